"""The report of a run: `record` reads it, `page` lays it out, `charts` draws, `style` is its look."""

from tessera.report.page import write_report
from tessera.report.record import read_run

__all__ = ["read_run", "write_report"]
