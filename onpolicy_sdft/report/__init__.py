"""Tables, curves and one self-contained HTML page from a run directory. No torch."""

from onpolicy_sdft.report.html import build_report

__all__ = ["build_report"]
