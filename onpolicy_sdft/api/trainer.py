"""``SDFTTrainer``: the main job over objects in memory, for programs and notebooks."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft import log
from onpolicy_sdft.api.objects import Rows, differs_from_files, given_model, given_task, kept, lora_options, write_rows
from onpolicy_sdft.build.bundle import load_bundle
from onpolicy_sdft.build.data import refuse_unaskable
from onpolicy_sdft.build.given import Given
from onpolicy_sdft.build.loaded import LoadedRun
from onpolicy_sdft.config.check import check, evaluation_sets
from onpolicy_sdft.config.load import load_config
from onpolicy_sdft.config.schema import EvalSetConfig, RunConfig
from onpolicy_sdft.data.eval_sets import load_eval_sets
from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.eval.evaluate import evaluate_stage
from onpolicy_sdft.fitting.export import export
from onpolicy_sdft.fitting.fit import TrainOutcome, fit
from onpolicy_sdft.models.export import export_model, refuse_foreign
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

logger = logging.getLogger(__name__)


def _options(config: RunConfig | Mapping[str, Any] | str | Path | None) -> RunConfig:
    """Return a config as it was given, in one of its forms."""
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, str | Path):
        return load_config(config)
    return load_config(**_by_dotted_name(config or {}))


def _by_dotted_name(options: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Return options of sections, as YAML has them, by dotted name; those that have one already stay."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        is_section = not section and "." not in name and isinstance(value, Mapping)
        found |= _by_dotted_name(value, f"{name}.") if is_section else {section + name: value}
    return found


def _kept_questions(given: Rows | Mapping[str, Rows] | None) -> Rows | Mapping[str, Rows] | None:
    if given is None:
        return None
    return {name: kept(rows) for name, rows in given.items()} if isinstance(given, Mapping) else kept(given)


class SDFTTrainer:
    """Fine-tune a chat model on demonstrations without making it forget.

    It is the run of ``sdft train``: the same step, run directory and report. Rows are written into the run directory
    (``data/``), so that the run can be resumed, scored and looked at without this program.

    Args:
        model: A model of transformers, which is trained in place, or its path or hub id. None: ``model.name`` of the
            config.
        tokenizer: Of a model object; None: the one at its ``name_or_path``. A copy is used.
        train_dataset: A list of dicts, a ``datasets.Dataset`` or anything that gives rows, with the columns that
            ``data`` of the config names (``prompt`` and ``response``). None: the config's own data.
        eval_dataset: Rows to score before and after training, with the same columns, or several such sets by name.
        peft_config: ``peft.LoraConfig``; None: ``lora`` of the config (adapters of rank 16; ``lora.enabled`` false
            trains every weight).
        task: What a right answer is: ``function(prompt, completion, row)`` that returns true or false, a score, or
            either with a reason; an object with the methods of a task; or a name. None: ``task`` of the config.
        config: Options: a ``RunConfig``, a YAML file, or a dict by dotted name (``{"optim.lr": 1e-4}``).
        callbacks: See :class:`~onpolicy_sdft.train.callbacks.Callback`.

    Raises:
        SdftError: On anything that can be mended, with the way to do it.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        peft_config: PeftConfig | None = None,
        task: Task | CheckFunction | str | None = None,
        config: RunConfig | Mapping[str, Any] | str | Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        log.show(int(os.environ.get("RANK", "0")))
        options = _options(config)
        self._rows = None if train_dataset is None else kept(train_dataset)
        self._questions = _kept_questions(eval_dataset)
        self._model: LoadedModel | None = None
        self._tasks: dict[str, Task] = {}
        if model is None or isinstance(model, str | Path):
            if tokenizer is not None:
                raise ConfigError("tokenizer goes with a model object; that of a named model is loaded with it.")
            if model is not None:
                options = dataclasses.replace(options, model=dataclasses.replace(options.model, name=str(model)))
        else:
            self._model, described = given_model(model, tokenizer, options.model)
            options = dataclasses.replace(options, model=described)
        if peft_config is not None:
            options = dataclasses.replace(options, lora=lora_options(peft_config))
        if isinstance(task, str):
            options = dataclasses.replace(options, task=dataclasses.replace(options.task, name=task, options={}))
        elif task is not None:
            name, made = given_task(task)
            self._tasks[name] = made
            options = dataclasses.replace(options, task=dataclasses.replace(options.task, name=name, options={}))
        check(options)
        self.config = options
        self.callbacks = list(callbacks)
        self.outcome: TrainOutcome | None = None

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
        if self.outcome is not None:
            raise ConfigError("This trainer has trained already, and its model has adapters. Fix: make a new one.")
        run = RunDirectory.create(self.config.train.output_dir, resume=self.config.train.resume == "auto")
        config = self._with_files(run.path)
        self.outcome = fit(
            config, ["SDFTTrainer.train", *sys.argv], Given(self._model, self._tasks, tuple(self.callbacks))
        )
        if self.outcome.is_first:
            build_report(self.outcome.run)
        return self.outcome

    def evaluate(self) -> dict[str, float]:
        """Score the model as it is now on the evaluation sets.

        The records of a trained model are in ``eval/`` of the run, those of an untrained one in a folder beside it,
        ``OUTPUT_DIR-start``.

        Returns:
            ``eval/LABEL/score`` of each set; of a trained model ``eval/kl`` as well, where ``eval.kl_prompts`` asks.
        """
        if self.outcome is not None:
            if self.outcome.trained is None:
                raise ConfigError(f"Ranks hold parts of the model. Fix: sdft eval {self.run.path}, when they ended.")
            trained = self.outcome.trained
            return self._score(trained, self.run)
        run = RunDirectory.create(f"{self.config.train.output_dir}-start", resume=True)
        config = self._with_files(run.path)
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, kl_prompts=0))
        bundle = load_bundle(config, given=self._model)
        self._model = bundle.loaded
        return self._score(LoadedRun(config, bundle, bundle.loaded.model, None), run)

    def sample(self, prompts: Sequence[str], **options: Any) -> list[str]:
        """Answer prompts with the trained model; see :meth:`~onpolicy_sdft.build.loaded.LoadedRun.sample`."""
        if self.outcome is None or self.outcome.trained is None:
            raise ConfigError("There is no trained model in this process. Fix: train() first, or load_run(DIRECTORY).")
        return self.outcome.trained.sample(prompts, **options)

    def save_model(self, output: str | Path, *, merged: bool = False, dtype: str | None = None) -> Path:
        """Write the trained model for transformers and PEFT, with its tokenizer and card.

        Args:
            output: Folder; one with other files is not overwritten.
            merged: Fold the adapter into the base, which is loaded once more for that.
            dtype: Of a whole model; None: as the base's files.
        """
        self._require_model()
        if merged or dtype is not None:
            export(self.run.path, output, merged=merged, push_to_hub=None, dtype=dtype)
            return Path(output)
        refuse_foreign(Path(output).resolve())
        shutil.copytree(self.run.model_path, output, dirs_exist_ok=True)
        return Path(output)

    def push_to_hub(
        self, name: str, *, merged: bool = False, private: bool = False, revision: str | None = None
    ) -> None:
        """Push the trained model and its card to the hub.

        Args:
            name: USER/NAME.
            merged: Fold the adapter into the base.
            private: Of a repository that is made.
            revision: Branch; it is made if need be.
        """
        self._require_model()
        export(self.run.path, None, merged=merged, push_to_hub=name, private=private, revision=revision)

    def report(self) -> InlineReport:
        """Return scores and pictures of the run, which a notebook shows in place."""
        return InlineReport(self.run)

    def _require_model(self) -> None:
        if not self.run.model_path.is_dir():
            raise ConfigError(f"{self.run.path} has no model/ yet. Fix: train() first.")

    def _score(self, loaded: LoadedRun, run: RunDirectory) -> dict[str, float]:
        sets = load_eval_sets(evaluation_sets(loaded.config), tasks=self._tasks)
        if not sets:
            raise ConfigError("There is no set to score on. Fix: eval_dataset=..., or eval.sets of the config.")
        refuse_unaskable(loaded.bundle, sets)
        return scores_of(evaluate_stage(loaded.config, loaded.bundle, loaded.model, sets, run, "eval"))

    def _with_files(self, folder: Path) -> RunConfig:
        """Write what was given into a folder of the run; return the config that names it there."""
        config, data = self.config, self.config.data
        if self._rows is not None:
            path = write_rows(self._rows, folder / "data" / "train.jsonl")
            data = dataclasses.replace(data, name=None, path=str(path), options={})
            config = dataclasses.replace(config, data=data)
        if isinstance(self._questions, Mapping):
            named = {
                name: write_rows(rows, folder / "data" / f"{name}.jsonl") for name, rows in self._questions.items()
            }
            sets = [
                EvalSetConfig(
                    label, dataclasses.replace(data, name=None, path=str(path), limit=None, options={}),
                    config.task, config.rollout.max_new_tokens,
                )
                for label, path in named.items()
            ]  # fmt: skip
            config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, sets=[*config.eval.sets, *sets]))
        elif self._questions is not None:
            path = write_rows(self._questions, folder / "data" / "eval.jsonl")
            config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, path=str(path)))
        if self._model is not None and not self._is_in_files(self._model):
            if config.train.init_from is not None:
                raise ConfigError(
                    "A model that is in no folder cannot be the base of a run that goes on from another run. Fix: "
                    "save the model (save_pretrained), load it from there, and train both runs on that."
                )
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, name=self._write_base(folder)))
        check(config)
        return config

    @staticmethod
    def _is_in_files(given: LoadedModel) -> bool:
        """Whether the model can be loaded again from where it says it came from."""
        if given.source and differs_from_files(given.model, given.source):
            logger.info(f"the model's weights are not those of {given.source}: they are kept with the run, in base/")
            return False
        return bool(given.source)

    def _write_base(self, folder: Path) -> str:
        """Write a model that is in no files into the run: whoever loads its adapter needs it."""
        base = RunDirectory(folder).base_path
        assert self._model is not None
        if not base.is_dir():
            export_model(self._model.model, self._model.tokenizer, base, str(base), {"made": "in memory"}, {})
        return str(base)
