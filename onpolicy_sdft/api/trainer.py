"""``SDFTTrainer``: the main job over objects in memory, for programs and notebooks."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft import log
from onpolicy_sdft.api.checks import callbacks_of, given_task, refuse_unread
from onpolicy_sdft.api.models import DESCRIBED, given_model, lora_options, name_of_base, num_ranks, remove_left_base
from onpolicy_sdft.api.rows import DATA, TRAIN, Rows, kept, write_rows
from onpolicy_sdft.build.bundle import load_bundle
from onpolicy_sdft.build.cuda import make_repeatable
from onpolicy_sdft.build.data import refuse_unaskable
from onpolicy_sdft.build.given import Given
from onpolicy_sdft.build.loaded import ReadyModel
from onpolicy_sdft.config.check import check, evaluation_sets
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.schema import EvalSetConfig, RunConfig, TaskConfig
from onpolicy_sdft.data.eval_sets import load_eval_sets
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.evaluate import evaluate_stage
from onpolicy_sdft.fitting.export import export
from onpolicy_sdft.fitting.fit import TrainOutcome, fit
from onpolicy_sdft.models.export import refuse_foreign
from onpolicy_sdft.report.html import build_report
from onpolicy_sdft.report.inline import InlineReport
from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.train.callbacks import scores_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from onpolicy_sdft.models.load import LoadedModel
    from onpolicy_sdft.tasks.function import CheckFunction
    from onpolicy_sdft.tasks.protocol import Task
    from onpolicy_sdft.train.callbacks import Callback

#: Stands for rows to score, until their file has a name.
_EVAL_ROWS = "(eval_dataset)"

_GO_ON = "a new trainer with train.resume auto goes on with the run"


def _options(
    config: RunConfig | Mapping[str, Any] | str | Path | None, scores_rows: bool
) -> tuple[RunConfig, set[str]]:
    """Return a config as it was given, in one of its forms, and the names of the options that a dict has.

    Args:
        config: As given.
        scores_rows: Whether rows to score are given, which options such as ``eval.limit`` go with.
    """
    if isinstance(config, RunConfig):
        return config, set()
    rows = {"eval.path": _EVAL_ROWS} if scores_rows else {}
    if isinstance(config, str | Path):
        # A path of the file's own stays: it is refused later.
        return load_config(config, **({} if _has_eval_path(config) else rows)), set()
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(
            f"config is {type(config).__name__}. Fix: a dict of options, load_config(...), or a YAML file."
        )
    given = _by_dotted_name(config or {})
    return load_config(**{**rows, **given}), set(given)


def _has_eval_path(file: str | Path) -> bool:
    try:
        return load_config(file).eval.path is not None
    except ConfigError:
        return False


def _by_dotted_name(options: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Return options of sections, as YAML has them, by dotted name; those that have one already stay."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        is_section = not section and "." not in name and isinstance(value, Mapping)
        found |= _by_dotted_name(value, f"{name}.") if is_section else {section + name: value}
    return found


class SDFTTrainer:
    """Fine-tune a chat model on demonstrations without making it forget.

    It is the run of ``sdft train``: the same step, run directory and report. Rows are written into the run directory
    (``data/``), so that the run can be resumed, scored and looked at without this program.

    Args:
        model: A model of transformers, which is trained in place, or its path or hub id. None: ``model.name`` of the
            config.
        tokenizer: Of a model object, or its path or hub id; None: the one at its ``name_or_path``. A copy is used.
        train_dataset: A list of dicts, a ``datasets.Dataset`` or anything that gives rows, in one of the
            formats of docs/data.md or with the columns that ``data`` of the config names. None: the config's own data.
        eval_dataset: Rows to score before and after training, with the same columns, or several such sets by name.
        peft_config: ``peft.LoraConfig``; None: ``lora`` of the config (adapters of rank 16; ``lora.enabled`` false
            trains every weight).
        task: What a right answer is: ``function(prompt, completion, row)`` that returns true or false, a score, or
            either with a reason; an object with the methods of a task; or a name. None: ``task`` of the config.
        config: Options: a ``RunConfig``, a YAML file, or a dict by dotted name (``{"optim.lr": 1e-4}``). One that an
            argument takes the place of, and that says something else, is refused.
        callbacks: One or several, see :class:`~onpolicy_sdft.train.callbacks.Callback`.

    Raises:
        SdftError: On anything that can be mended, with the way to do it.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path | None = None,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        peft_config: PeftConfig | None = None,
        task: Task | CheckFunction | str | None = None,
        config: RunConfig | Mapping[str, Any] | str | Path | None = None,
        callbacks: Sequence[Callback] | Callback | None = (),
    ) -> None:
        log.show(int(os.environ.get("RANK", "0")))
        scores_rows = eval_dataset is not None and not isinstance(eval_dataset, Mapping)
        options, named = _options(config, scores_rows)
        self._model: LoadedModel | None = None
        self._tasks: dict[str, Task] = {}
        if model is None or isinstance(model, str | Path):
            if tokenizer is not None:
                raise ConfigError("tokenizer goes with a model object; that of a named model is loaded with it.")
            if model is not None:
                refuse_unread(options, named, "model", {"model.name": str(model)})
                options = replace(options, model=replace(options.model, name=str(model)))
        else:
            self._model, described = given_model(model, tokenizer, options.model)
            read = {f"model.{name}": getattr(described, name) for name in DESCRIBED}
            refuse_unread(options, named, "a model object", read)
            options = replace(options, model=described)
        if peft_config is not None:
            adapters = lora_options(peft_config)
            refuse_unread(
                options, named, "peft_config", {f"lora.{name}": value for name, value in asdict(adapters).items()}
            )
            options = replace(options, lora=adapters)
        if task is not None:
            options = replace(options, task=self._named_task(task, options, named))
        self._files: dict[Path, Rows] = {}  # what is written into the run directory
        self.config = self._with_rows(options, named, train_dataset, eval_dataset)
        check(self.config)
        self.callbacks = callbacks_of(callbacks)
        self.outcome: TrainOutcome | None = None
        self._has_begun = False

    def _named_task(self, task: Task | CheckFunction | str, options: RunConfig, named: Container[str]) -> TaskConfig:
        """Return the option ``task`` that names what was given; options of that task go with its name."""
        if isinstance(task, str):
            refuse_unread(options, named, "task", {"task.name": task})
            return replace(options.task, name=task)
        name, self._tasks[name] = given_task(task)
        refuse_unread(options, named, "task", {"task.name": name, "task.options": {}})
        return TaskConfig(name)

    @property
    def run(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(Path(self.config.train.output_dir))

    @property
    def model(self) -> PreTrainedModel | PeftModel | None:
        """The model: after training with its adapters; None before it was loaded."""
        if self.outcome is not None and self.outcome.trained is not None:
            return self.outcome.trained.model
        return None if self._model is None else self._model.model

    def train(self) -> TrainOutcome:
        """Train, score and export as the config says, and write the report; ``train.resume`` auto goes on with a run.

        Raises:
            SdftError: On anything that can be mended; all but training itself is tried before the first step.
        """
        if self._has_begun:
            raise ConfigError(
                "This trainer has begun a run already, and its model is not what it was. Fix: a new trainer with "
                "a fresh model; with train.resume auto it goes on where the run stopped."
            )
        config = self._write()
        if config.train.deterministic:
            make_repeatable("train.deterministic")
        self._has_begun = self._model is not None or self.outcome is not None
        self.outcome = fit(
            config, ["SDFTTrainer.train", *sys.argv], Given(self._model, self._tasks, tuple(self.callbacks))
        )
        self._has_begun = True
        if self.outcome.is_first:
            build_report(self.outcome.run)
        return self.outcome

    def evaluate(self) -> dict[str, float]:
        """Score the model as it is now on the evaluation sets; works in one process.

        The records of a trained model are in ``eval/`` of the run, those of an untrained one in a folder beside it,
        ``OUTPUT_DIR-start``.

        Returns:
            ``eval/LABEL/score`` of each set; of a trained model ``eval/kl`` as well, where ``eval.kl_prompts`` asks.
        """
        if num_ranks() > 1:
            raise ConfigError(
                f"evaluate() works in one process, and {num_ranks()} were launched. Fix: eval_dataset is scored "
                f"before and after training by all of them; or sdft eval {self.run.path} afterwards."
            )
        if self.outcome is not None:
            return self._score(self._trained(), self.run)
        config = self._write()
        config = replace(config, eval=replace(config.eval, kl_prompts=0))
        bundle = load_bundle(config, given=self._model)
        run = RunDirectory.create(f"{config.train.output_dir}-start", resume=True)
        return self._score(ReadyModel(config, bundle, bundle.loaded.model, None), run)

    def sample(self, prompts: Sequence[str], **options: Any) -> list[str]:
        """Answer prompts with the trained model; see :meth:`~onpolicy_sdft.build.loaded.ReadyModel.sample`."""
        return self._trained().sample(prompts, **options)

    def save_model(self, output: str | Path, *, merged: bool = False, dtype: str | None = None) -> Path:
        """Write the trained model for transformers and PEFT, with its tokenizer and card; of several ranks one does.

        Args:
            output: Folder, not inside the run. An earlier export there is replaced, other files are not.
            merged: Fold the adapter into the base, which is loaded once more for that.
            dtype: Of a whole model; None: as the base's files.
        """
        self._require_model()
        target, source = Path(output).resolve(), self.run.model_path.resolve()
        if not self._is_first():
            return Path(output)
        if merged or dtype is not None:
            export(self.run.path, output, merged=merged, push_to_hub=None, dtype=dtype)
            return Path(output)
        if self.run.path.resolve() in (target, *target.parents):
            raise ConfigError(f"{output} is inside the run itself. Fix: another folder.")
        refuse_foreign(target)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        return Path(output)

    def push_to_hub(
        self, name: str, *, merged: bool = False, private: bool = False, revision: str | None = None
    ) -> None:
        """Push the trained model and its card to the hub; of several ranks one does.

        Args:
            name: USER/NAME.
            merged: Fold the adapter into the base.
            private: Of a repository that is made.
            revision: Branch; it is made if need be.
        """
        self._require_model()
        if self._is_first():
            export(self.run.path, None, merged=merged, push_to_hub=name, private=private, revision=revision)

    def report(self) -> InlineReport:
        """Return scores and pictures of the run, which a notebook shows in place."""
        return InlineReport(self.run)

    def _is_first(self) -> bool:
        return self.outcome.is_first if self.outcome is not None else int(os.environ.get("RANK", "0")) == 0

    def _require_model(self) -> None:
        if not self.run.model_path.is_dir():
            raise ConfigError(f"{self.run.path} has no model/ yet. Fix: train() to the end; {_GO_ON}.")

    def _trained(self) -> ReadyModel:
        """Return the trained model of this process."""
        if self.outcome is None:
            raise ConfigError("There is no trained model in this process. Fix: train() first, or load_run(DIRECTORY).")
        if self.outcome.result.exit_code:
            raise ConfigError(
                f"The run was stopped ({self.outcome.result.reason}), and has no model yet. Fix: {_GO_ON}."
            )
        if self.outcome.trained is None:
            raise ConfigError(
                f"Several ranks trained the model. Fix: load_run({str(self.run.path)!r}), when they ended."
            )
        return self.outcome.trained

    def _score(self, loaded: ReadyModel, run: RunDirectory) -> dict[str, float]:
        sets = load_eval_sets(evaluation_sets(loaded.config), tasks=self._tasks)
        if not sets:
            raise ConfigError("There is no set to score on. Fix: eval_dataset=..., or eval.sets of the config.")
        refuse_unaskable(loaded.bundle, sets)
        return scores_of(evaluate_stage(loaded.config, loaded.bundle, loaded.model, sets, run, "eval"))

    def _with_rows(
        self,
        config: RunConfig,
        named: Container[str],
        train: Rows | None,
        questions: Rows | Mapping[str, Rows] | None,
    ) -> RunConfig:
        """Return the config that names the files which the rows are written into, when the run begins."""
        folder = Path(config.train.output_dir).absolute() / DATA

        def file_of(name: str, rows: Rows) -> str:
            self._files[folder / name] = kept(rows)
            return str(folder / name)

        data = config.data
        if train is not None:
            path = file_of(TRAIN, train)
            refuse_unread(config, named, "train_dataset", {"data.path": path, "data.name": None, "data.options": {}})
            data = replace(data, name=None, path=path, options={}, split="train")
            config = replace(config, data=data)
        if isinstance(questions, Mapping):
            sets = [
                EvalSetConfig(
                    label, replace(data, name=None, path=file_of(f"eval/{label}.jsonl", rows), limit=None, options={}),
                    config.task, config.rollout.max_new_tokens,
                )
                for label, rows in questions.items()
            ]  # fmt: skip
            config = replace(config, eval=replace(config.eval, sets=[*config.eval.sets, *sets]))
        elif questions is not None:
            path = file_of("eval.jsonl", questions)
            if config.eval.path != _EVAL_ROWS:
                refuse_unread(config, named, "eval_dataset", {"eval.path": path})
            config = replace(config, eval=replace(config.eval, path=path))
        return config

    def _write(self) -> RunConfig:
        """Write what was given into the run directory, which must be free or this run's own; return the config."""
        config = self.config
        run = RunDirectory.create(config.train.output_dir, resume=config.train.resume == "auto")
        for path, rows in self._files.items():
            # Rows to train on are part of what a run is; those to score on may change.
            write_rows(rows, path, fixed=path.name == TRAIN and run.manifest_path.is_file())
        if self._model is not None:
            return replace(config, model=replace(config.model, name=name_of_base(self._model, config, run)))
        remove_left_base(run)
        return config
