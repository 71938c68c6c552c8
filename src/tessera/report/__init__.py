"""The report of a run (`record` reads it, `page` lays it out, `charts` draws, `style` is its look) and of a `chain`; its card."""

from tessera.report.card import write_card
from tessera.report.chain import write_chain_report
from tessera.report.page import write_report
from tessera.report.record import read_run

__all__ = ["read_run", "write_card", "write_chain_report", "write_report"]
