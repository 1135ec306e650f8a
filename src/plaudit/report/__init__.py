"""The report of a run: training, evaluations, data and settings on one page that needs no network."""

from plaudit.report.build import Report, write_report

__all__ = ["Report", "write_report"]
