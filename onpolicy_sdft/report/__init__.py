"""Tables, curves and self-contained pages from what runs, sequences, comparisons, sweeps and shifts leave. No torch."""

from onpolicy_sdft.report.html import build_report
from onpolicy_sdft.report.write import write_report

__all__ = ["build_report", "write_report"]
