"""The report of a run: `page` lays it out, `charts` draws, `style` is its look."""

from tessera.report.page import read_run, write_report

__all__ = ["read_run", "write_report"]
