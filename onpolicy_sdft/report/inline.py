"""Scores and pictures of a run as a notebook shows them in place."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from markupsafe import Markup

from onpolicy_sdft.report.compose import run_document
from onpolicy_sdft.report.runs import SCORES
from onpolicy_sdft.report.tables import before_after_table, kl_sentence, score_notes
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import read_json

#: Pictures of the report that a notebook shows: the others are on the page.
SHOWN = (SCORES, "loss", "validation", "lengths", "diversity")


@dataclass(frozen=True, slots=True)
class InlineReport:
    """What a run came to. The whole report is the page at ``run.report_path``."""

    run: RunDirectory

    def __str__(self) -> str:
        """Return the scores as a table of text."""
        summary = read_json(self.run.eval_summary_path) if self.run.eval_summary_path.is_file() else {}
        result = read_json(self.run.result_path) if self.run.result_path.is_file() else {}
        lines = [before_after_table(summary).to_text()] if summary else []
        lines += [*score_notes(summary), kl_sentence(summary) or ""]
        lines.append((result.get("verdict") or {}).get("text", ""))
        return "\n".join(line for line in [*lines, f"report: {self.run.report_path}"] if line)

    def _repr_html_(self) -> str:
        """Return the scores and pictures as HTML; texts are escaped."""
        html = Markup('<pre style="font-family: monospace">{}</pre>').format(str(self))
        for picture in run_document(self.run).pictures():
            if picture.name in SHOWN:
                png = base64.b64encode(picture.png).decode("ascii")
                html += Markup('<figure><img src="data:image/png;base64,{}" alt="{}"></figure>').format(
                    png, picture.title
                )
        return str(html)
