"""How far training is: a panel of figures on a terminal, the plain lines of any job elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from onpolicy_sdft.config.scores import scores_by_label
from onpolicy_sdft.runs.progress import Progress, format_figure

_LOSS = "loss/total"
#: What a line shows of a step's metrics, those that it has.
_LINE = {"loss": _LOSS, "tokens_per_second": "train/tokens_per_second", "fallback_rate": "screen/fallback_rate"}
#: What the panel shows of them: metric, heading, unit.
_PANEL = (
    (_LOSS, "loss", "nats a token"),
    ("screen/fallback_rate", "fallback rate", ""),
    ("train/tokens_per_second", "learned", "tokens/s"),
    ("rollout/tokens_per_second", "written", "tokens/s"),
    ("memory/learn_mib", "memory, learning", "MiB"),
    ("memory/rollout_mib", "memory, rollouts", "MiB"),
)


class TrainProgress(Progress):
    """Progress of training, with the newest figures and scores in a panel where there is a terminal."""

    def __init__(self, *args: Any, title: str = "", **options: Any) -> None:
        """Describe the job.

        Args:
            *args: As :class:`~onpolicy_sdft.runs.progress.Progress` takes them.
            title: Of the panel.
            **options: As that class takes them.
        """
        super().__init__(*args, **options)
        self._title = title
        self._step = 0
        self._metrics: Mapping[str, float] = {}
        self._start_scores: dict[str, float] = {}  # by set
        self._latest: dict[str, tuple[int, float]] = {}  # step and score by set

    def show_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Count a step and show what it came to.

        Args:
            step: Optimizer step, from 1.
            metrics: As in ``metrics.jsonl``, those of a validation among them.
        """
        self.recall_step(step, metrics)
        shown = {name: metrics[key] for name, key in _LINE.items() if key in metrics}
        self.update(1, **shown, **{f"{label}/score": score for label, score in scores_by_label(metrics).items()})

    def recall_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take up the metrics of a step that was counted already, such as one of the run that is resumed."""
        learned = {_LOSS: self._metrics[_LOSS]} if _LOSS in self._metrics else {}
        self._step, self._metrics = step, {**learned, **metrics}  # a step that learned nothing has no loss
        self.show_scores(step, scores_by_label(metrics))

    def show_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Show scores by set: those of the start stay, beside the newest.

        Args:
            step: Steps taken; 0 for the model as it was before training.
            scores: Share of right answers by set.
        """
        if step == 0:
            self._start_scores |= scores
        else:
            self._latest |= {label: (step, score) for label, score in scores.items()}

    def _bar_details(self) -> str:
        slots = self._fields.get("slots")
        doing = "" if slots is None else f"writing {slots} rollouts" if slots else "judging and learning"
        return ", ".join([*self._eta(), *([doing] if doing else [])])

    def _frame(self, bar: RenderableType) -> RenderableType:
        parts = [bar, self._figures(), self._score_table()]
        return Panel(Group(*(part for part in parts if part is not None)), title=Text(self._title), title_align="left")

    def _figures(self) -> Columns | None:
        known = [entry for entry in _PANEL if entry[0] in self._metrics]
        if not known:
            return None
        cells = []
        for name, heading, unit in known:
            figure = format_figure(name, self._metrics[name])
            cells.append(Text.assemble((f"{heading} ", "dim"), figure, f" {unit}"))
        return Columns(cells, equal=True, padding=(0, 3), title=Text(f"\nstep {self._step}", "bold"))

    def _score_table(self) -> Table | None:
        labels = list(dict.fromkeys([*self._start_scores, *self._latest]))
        if not labels:
            return None
        table = Table(box=None, padding=(0, 2, 0, 0), title=Text("\nscores"), title_justify="left", title_style="bold")
        for heading in ("set", "start", "latest", "step"):
            table.add_column(heading, justify="left" if heading == "set" else "right", no_wrap=heading != "set")
        for label in labels:
            start, (step, latest) = self._start_scores.get(label), self._latest.get(label, ("", None))
            table.add_row(Text(label), _score(start), _score(latest), str(step))
        return table


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
