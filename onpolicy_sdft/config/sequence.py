"""Options of task sequences and of comparisons on them: one level above the options of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from onpolicy_sdft.config.bounds import number
from onpolicy_sdft.config.load import Verbatim
from onpolicy_sdft.config.schema import DataConfig, TaskConfig


@dataclass
class StageConfig:
    """One task of a sequence."""

    label: str = ""
    """Name of the task in tables, files and metrics."""
    data: DataConfig = field(default_factory=DataConfig)
    """Its demonstrations."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """Its check, in training and in tests."""
    test: DataConfig = field(default_factory=DataConfig)
    """Its test questions."""
    validation: DataConfig | None = None
    """Its validation questions: they choose learning rates and say when enough is learned."""
    max_new_tokens: int = number(256, at_least=1)
    """Longest answer to a test or validation question."""
    target_score: float | None = None
    """Validation score that counts as learned, for comparisons at the same acquisition."""
    options: dict[str, Verbatim] = field(default_factory=dict)
    """Further options of this stage's run, by dotted name."""


@dataclass
class SequenceConfig:
    """Tasks one after the other: train, evaluate all of them, next."""

    base: list[str] = field(default_factory=list)
    """YAML files of run options that all stages share; later ones win."""
    run: dict[str, Verbatim] = field(default_factory=dict)
    """Run options that all stages share, by section, after ``base``; ``eval.sets`` are what is never trained."""
    method: list[str] = field(default_factory=list)
    """YAML files of the method, after those (``configs/methods/*.yaml``)."""
    options: dict[str, Verbatim] = field(default_factory=dict)
    """Run options by dotted name, after everything else."""
    stages: list[StageConfig] = field(default_factory=list)
    """The tasks, in order."""
    seed: int = number(0, at_least=0, below=2**64)
    """``train.seed`` of every stage."""
    adapter_handoff: Literal["continue", "merge"] = "continue"
    """Adapters of a stage: the one before goes on learning, or it is merged into the base and a new one starts."""
    keep_optimizer: bool = False
    """Go on with the optimizer's state of the stage before."""
    replay_rate: float = number(0.0, at_least=0, below=1)
    """Rehearsal: share of earlier stages' demonstrations in each stage, their targets written anew. 0: none."""
    joint: bool = False
    """Train on all tasks at once, for as many steps as the stages have together: the ceiling."""
    output_dir: str = "runs/sequence"
    """The sequence's directory; every stage is a run in it."""
    distilled_dir: str | None = None
    """Where distilled sets are kept, for the offline method. Unset: in ``output_dir``."""
    base_scores: str | None = None
    """A run whose scores of the same base model are taken over."""
    launch: list[str] = field(default_factory=list)
    """Command that starts each run, e.g. [accelerate, launch, --config_file, launch/accelerate/zero2.yaml]."""


@dataclass
class MethodConfig:
    """One method of a comparison."""

    files: list[str] = field(default_factory=list)
    """YAML files over the sequence's own."""
    options: dict[str, Verbatim] = field(default_factory=dict)
    """Run options by dotted name."""
    lrs: list[float] = field(default_factory=list)
    """Its learning rates to choose from, as many as every other method's. Empty: those of the comparison."""


@dataclass
class CompareConfig:
    """Methods side by side on one sequence."""

    sequence: list[str] = field(default_factory=list)
    """YAML files of the sequence; later ones win."""
    methods: dict[str, MethodConfig] = field(default_factory=dict)
    """The methods by name."""
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    """Each method runs the sequence once a seed."""
    lrs: list[float] = field(default_factory=list)
    """Learning rates tried for each method on the first stage with the first seed; its validation set chooses."""
    match: Literal["steps", "tokens", "acquisition"] = "steps"
    """What is equal between methods: optimizer steps a stage, learned tokens a stage, or the validation score at
    which a stage ends (``target_score`` of the stage)."""
    max_steps: int | None = number(None, at_least=1)
    """Steps a stage; with another ``match`` the most there may be. Unset: as the sequence says."""
    max_loss_tokens: int | None = number(None, at_least=1)
    """Learned tokens a stage, for ``match: tokens``."""
    every_steps: int = number(5, at_least=1)
    """Steps between two looks at the validation score, for ``match: acquisition``."""
    joint: list[str] = field(default_factory=list)
    """Methods that are also trained on all tasks at once, with the first seed: the ceiling."""
    output_dir: str = "runs/compare"
    """Directory of the comparison."""
