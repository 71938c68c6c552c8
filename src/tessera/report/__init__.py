"""The report of a run (`record` reads it, `page` lays it out, `charts` draws, `style` is its look), and the `card` of a chain."""

from tessera.report.card import CHAIN, write_card
from tessera.report.page import write_report
from tessera.report.record import read_run

__all__ = ["CHAIN", "read_run", "write_card", "write_report"]
