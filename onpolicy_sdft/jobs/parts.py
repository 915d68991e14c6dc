"""Config -> objects: model, prompts, data, evaluation sets, rollout backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from peft import PeftModel

from onpolicy_sdft.data.mixing import mix, replayed_id
from onpolicy_sdft.data.preflight import refuse_beyond_window
from onpolicy_sdft.data.prepare import Prepared, prepare
from onpolicy_sdft.data.sources import DemonstrationSet, load_demonstrations
from onpolicy_sdft.data.views import Renderer
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.eval.runner import EvalSet
from onpolicy_sdft.models.generation import settle_generation
from onpolicy_sdft.models.load import LoadedModel, load, terminator_ids
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.models.seam import UnsupportedModel
from onpolicy_sdft.rollout.engine import EngineOptions, RolloutEngine
from onpolicy_sdft.rollout.hf import CollectiveDecoding
from onpolicy_sdft.rollout.hf_trial import hf_backend
from onpolicy_sdft.rollout.weights import LocalWeights
from onpolicy_sdft.runs.progress import Progress
from onpolicy_sdft.tasks import load_task, work_of
from onpolicy_sdft.tasks.mixed import MixedTask
from onpolicy_sdft.types import ONE_RANK, Ranks, RolloutProgress, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from onpolicy_sdft.config.schema import EvalSetConfig, RolloutConfig, RunConfig
    from onpolicy_sdft.rollout.backend import OnProgress, RolloutBackend
    from onpolicy_sdft.tasks.protocol import Task


Say = Callable[[str], None]


def say_nothing(text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Data:
    """The demonstrations, their check, and both views of each."""

    task: Task
    loaded: DemonstrationSet
    prepared: Prepared


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """A model that can be asked: weights, prompts, stop_token_ids."""

    loaded: LoadedModel
    renderer: Renderer
    stop_token_ids: tuple[int, ...]
    say: Say = say_nothing
    ranks: Ranks = ONE_RANK
    together: CollectiveDecoding | None = None  # how ranks write with weights that are divided
    backends: dict[tuple[int, int], RolloutBackend] = field(default_factory=dict, repr=False)

    @property
    def pad_token_id(self) -> int:
        """Any valid id for padding; masks tell it from text."""
        tokenizer = self.loaded.tokenizer  # not given one here: it is exported as it came
        return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    @property
    def num_tokens(self) -> int:
        """Ids from here on have no token: embeddings are often padded to a round size."""
        return max(*self.loaded.tokenizer.get_vocab().values(), *self.stop_token_ids) + 1

    def backend(
        self,
        model: PreTrainedModel | PeftModel,
        config: RolloutConfig,
        batch_size: int,
        say: Say | None = None,
        learning_bytes: int = 0,
    ) -> RolloutBackend:
        """Return the rollout backend over a model that lives as long as this, the same one at every call."""
        key = (id(inner_model(model)), batch_size if config.backend == "hf" else 0)
        if key not in self.backends:
            self.backends[key] = self.new_backend(model, config, batch_size, say, learning_bytes)
        return self.backends[key]

    def _kv_fraction(self, config: RolloutConfig) -> float:
        # Ranks on CPUs see the same free memory; those on GPUs have each their own.
        on_cpu = self.loaded.model.device.type == "cpu"
        return config.kv_fraction / (self.ranks.num_ranks if on_cpu else 1)

    def new_backend(
        self,
        model: PreTrainedModel | PeftModel,
        config: RolloutConfig,
        batch_size: int,
        say: Say | None = None,
        learning_bytes: int = 0,
    ) -> RolloutBackend:
        """Return a rollout backend of its own over a model: the engine, or transformers' generate where it must be.

        Args:
            model: With or without adapters.
            config: ``rollout`` of the run.
            batch_size: Completions at once, of ``hf``.
            say: Told how large the engine's slots are, or why the engine does not serve this model; this chat's own
                listener when unset.
            learning_bytes: What learning will take on a GPU and has not taken yet.
        """
        say = say or self.say
        if self.together is not None:
            return self._hf_backend(model, batch_size, False, say)
        if config.backend == "engine":
            attention = None if config.attention == "auto" else config.attention
            options = EngineOptions(
                num_slots=config.num_slots, kv_gib=config.kv_gib, kv_fraction=self._kv_fraction(config),
                learning_bytes=learning_bytes, prefill_tokens=config.prefill_tokens,
                max_draft_tokens=config.max_draft_tokens, deterministic=config.deterministic,
                attention=attention, graphs=config.graphs, sync_steps=config.sync_steps,
            )  # fmt: skip
            weights = LocalWeights.on_device(model, config.merge_adapter, config.decode_copy, attention)
            try:
                return RolloutEngine(model, self.stop_token_ids, weights, options, say, self.num_tokens)
            except UnsupportedModel as error:
                say(f"rollouts go through transformers' generate: {type(inner_model(model)).__name__}: {error}")
        return self._hf_backend(model, batch_size, config.merge_adapter, say)

    def _hf_backend(
        self, model: PreTrainedModel | PeftModel, batch_size: int, merge_adapter: bool, say: Say
    ) -> RolloutBackend:
        return hf_backend(
            model,
            self.stop_token_ids,
            self.pad_token_id,
            batch_size,
            merge_adapter,
            self.together,
            say,
            self.num_tokens,
        )


def load_chat(
    config: RunConfig,
    say: Say = say_nothing,
    ranks: Ranks = ONE_RANK,
    device: torch.device | None = None,
    together: CollectiveDecoding | None = None,
) -> ModelBundle:
    """Load the model of a config and what is needed to talk to it.

    Args:
        config: Names the model.
        say: Told what is going on.
        ranks: The processes that each load it.
        device: Where to; None: the GPU, if there is one.
        together: How ranks write with weights that are divided among them.
    """
    say(f"loading {config.model.name}")
    loaded = load(config.model, say)
    if not config.model.load_in_4bit:
        loaded.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]  # transformers wraps .to in a way mypy misreads
    renderer = Renderer(loaded.tokenizer, config.context)
    stop_token_ids = tuple(sorted({*terminator_ids(loaded.model, loaded.tokenizer), renderer.terminator_id}))
    settle_generation(loaded.model, stop_token_ids, say)
    return ModelBundle(loaded, renderer, stop_token_ids, say, ranks, together)


def load_rows(config: RunConfig) -> tuple[Task, DemonstrationSet]:
    """Load and check the demonstrations: all that can be done before the model is there."""
    task = load_task(config.task.name, config.task.options)
    own = load_demonstrations(config.data, task)
    tasks: dict[str, Task] = {}
    others: dict[str, DemonstrationSet] = {}
    for index, source in enumerate(config.replay.sources):
        its = load_task(source.task.name, source.task.options)
        others[source.label] = load_demonstrations(source.data, its, section=f"replay.sources[{index}].data")
        tasks |= {replayed_id(source.label, row.example_id): its for row in others[source.label].demonstrations}
    mixed = mix(own, others, config.replay.rate, config.train.seed)
    bare = [row.example_id for row in mixed.demonstrations if not row.response]
    if bare:
        raise DataError(
            f"{mixed.where}: {len(bare)} rows have no response, the first is {bare[0]!r}: there is nothing to learn. "
            "Fix: --data.response_column COLUMN, or score these rows under eval.sets."
        )
    return MixedTask(task, tasks) if tasks else task, mixed


def make_views(
    config: RunConfig, chat: ModelBundle, task: Task, loaded: DemonstrationSet, *, asks_teacher: bool = True
) -> Data:
    """Make both views of every demonstration fit the configured limits and the model's own context window.

    Args:
        config: Of the run.
        chat: The model's prompts.
        task: Says what the work of an answer is.
        loaded: The demonstrations.
        asks_teacher: Whether the method has a teacher; without one no row is left out for its prompt.
    """
    window, context = context_window(chat), config.context
    if window is not None:
        room = max(1, window - config.rollout.max_new_tokens)
        context = replace(
            context,
            max_teacher_tokens=min(context.max_teacher_tokens, room),
            max_student_tokens=min(context.max_student_tokens, room),
        )
    prepared = prepare(
        loaded.demonstrations, chat.renderer, context, config.train.seed, work_of(task),
        asks_teacher=asks_teacher, on_bad_row=config.data.on_bad_row,
    )  # fmt: skip
    refuse_beyond_window(prepared, config.rollout.max_new_tokens, window)
    return Data(task, loaded, prepared)


def context_window(chat: ModelBundle) -> int | None:
    """Positions the model has; None when its config does not say."""
    window = getattr(chat.loaded.model.config.get_text_config(), "max_position_embeddings", None)
    return None if window is None else int(window)


def refuse_unaskable(chat: ModelBundle, sets: Sequence[EvalSet]) -> None:
    """Refuse questions that the chat template cannot render or that do not fit, before any work is done.

    Raises:
        ConfigError: If the chat template fails.
        DataError: If a question and its longest answer are more than the model's context window.
    """
    window = context_window(chat)
    for questions in sets:
        for question in questions.demonstrations:
            needed = len(chat.renderer.student_ids(question.turns)) + questions.max_new_tokens
            if window is not None and needed > window:
                raise DataError(
                    f"Question {question.example_id} of evaluation set {questions.label!r} needs {needed} positions "
                    f"with its answer, the model has {window}. Lower its max_new_tokens or leave the row out."
                )


def load_eval_sets(configs: Sequence[EvalSetConfig], section: str = "eval.sets") -> list[EvalSet]:
    """Load and check the questions of evaluation sets."""
    found = []
    for index, item in enumerate(configs):
        task = load_task(item.task.name, item.task.options)
        rows = load_demonstrations(item.data, task, section=f"{section}[{index}].data")
        found.append(EvalSet(item.label, rows.demonstrations, task, item.max_new_tokens, item.retention))
    return found


def sampling_params(config: RolloutConfig) -> SamplingParams:
    """Return the sampling parameters of a config."""
    return SamplingParams(config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty)


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[PreTrainedModel]:
    """Give the base model of a LoRA run: the same weights without the adapter."""
    with model.disable_adapter():
        yield inner_model(model)


def seed_context(
    config: RunConfig, model: PreTrainedModel | PeftModel, *, untrained: bool = False
) -> Callable[[], AbstractContextManager[PreTrainedModel]]:
    """Return a context that gives the base model: the adapter off, or a second copy for full fine-tuning.

    Args:
        config: Names the base model.
        model: The model at hand.
        untrained: Whether it is still the base model itself.
    """
    goes_on = config.train.start_from is not None  # what it starts from is no base model any more
    if isinstance(model, PeftModel) and not (goes_on and config.train.carry == "merge"):
        return lambda: adapter_off(model)
    if untrained and not goes_on and not isinstance(model, PeftModel):
        return lambda: nullcontext(model)
    seed = load(config.model).model
    seed.to(model.device)  # type: ignore[arg-type]  # as in load_chat

    @contextmanager
    def second_copy() -> Iterator[PreTrainedModel]:
        yield seed

    return second_copy


def show_writing(progress: Progress) -> OnProgress:
    """Return a rollout callback that shows what is being written beside a bar that counts something else."""

    def on_progress(advance: RolloutProgress) -> None:
        progress.update(0, writing=advance.num_tokens, slots=advance.slots_in_use, accept_rate=advance.accept_rate)

    return on_progress


def tick(progress: Progress) -> OnProgress:
    """Return a rollout callback that advances a bar by finished completions and shows speed, slots and drafts."""
    written, started = 0, time.perf_counter()

    def on_progress(advance: RolloutProgress) -> None:
        nonlocal written
        written += advance.num_tokens
        speed = written / max(1e-9, time.perf_counter() - started)
        progress.update(
            advance.num_finished, tokens=written, tokens_per_second=speed, slots=advance.slots_in_use,
            accept_rate=advance.accept_rate,
        )  # fmt: skip

    return on_progress
