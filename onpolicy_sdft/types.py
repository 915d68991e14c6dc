"""Small frozen records that several packages share.

Shape letters: B sequences in a micro-batch, T positions, N loss tokens of a micro-batch, C tokens of a completion,
D hidden size, K kept alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

FinishReason = Literal["stop", "length"]
Verdict = Literal["keep", "fallback", "drop", "resample", "spare"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: str  # "system" | "user" | "assistant" | "tool" | "tools" (those of the conversation, as JSON)
    content: str
    extra: str = ""  # what else the chat template is given, as JSON: calls of an assistant, the name of a tool


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with the expert's answer to it.

    ``turns`` is the conversation up to and including the last turn of the user or of a tool; ``response`` answers it.
    ``fields`` holds whatever else the task's check needs (unit tests, choices, the bare answer), as loaded from the
    row.
    """

    example_id: str  # unique within the data set and stable: noise keys are derived from it
    turns: tuple[Turn, ...]
    response: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    origin: str = field(default="", compare=False)  # file and row number, for messages
    conversation: str = field(default="", compare=False)  # what it shares with other answers of one conversation
    answer: Turn | None = None  # the answer as a turn, where it calls tools; ``response`` is its text
    privileged: str = ""  # what the teacher is shown instead of the response, which may then be empty

    @property
    def prompt(self) -> str:
        """Text of the last turn."""
        return self.turns[-1].content

    @property
    def shown(self) -> str:
        """What the teacher is shown besides the prompt."""
        return self.privileged or self.response


@dataclass(frozen=True, slots=True)
class PromptPair:
    """A demonstration as the model meets it: the student's and the teacher's prompt and the answer, as token ids."""

    demonstration: Demonstration
    student_ids: tuple[int, ...]  # bare prompt, generation header included
    teacher_ids: tuple[int, ...]  # prompt with the demonstration, same header
    response_ids: tuple[int, ...]  # the demonstration as a target, terminator included; of a row without a response,
    # which is never learned, what the teacher is shown
    num_trimmed_tokens: int = 0  # cut off the end of the shown demonstration
    num_dropped_examples: int = 0  # k-shot examples left out to make room
    sample_index: int = 0  # which of several rollouts of this example in a step, counted through its presentations
    presentation: int = 0  # a step that spans two epochs may present an example twice, on two ranks: each by itself
    feedback: Feedback | None = None  # what the teacher sees of the student's own attempt in this step, if it made one

    @property
    def presented(self) -> tuple[str, int]:
        """Which example this is a sample of, and in which presentation: whatever is counted of samples, by this."""
        return self.demonstration.example_id, self.presentation


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a task's check says of one completion."""

    correct: bool
    reason: str = ""  # short and countable, e.g. "wrong_answer"; empty when correct
    answer: str | None = None  # what was extracted and compared, for the records
    # For a model that is to try again; no part of the verdict. A few short lines, without the right answer:
    message: str = field(default="", compare=False)
    expected: str = field(default="", compare=False)  # the right answer, where the check has a short form of it


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """Identity of one draw: the sampled tokens are a function of it and of the distribution, and of nothing else."""

    seed: int
    step: int
    example_id: str
    sample_index: int = 0
    attempt: int = 0  # which draw of a target, from 0; draws for other ends have the numbers below

    FIRST_TRY: ClassVar[int] = -1  # the student's own, which the teacher is told of (train/feedback.py)
    BARE_ANSWER: ClassVar[int] = 1_000_000  # the review's answers to a bare prompt, counted on from here
    SECOND_HALF: ClassVar[int] = 2_000_000  # bare continuations of a rollout's first half, likewise
    PROBE_BARE: ClassVar[int] = 3_000_000  # the policy's answer to a bare prompt of a probe
    PROBE_TAUGHT: ClassVar[int] = 3_000_001  # what its teacher writes there


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How logits become the distribution of the next token; the default is the model's own distribution."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # 1: none; looks at the whole prefix, prompt included

    @classmethod
    def of(cls, options: object) -> Self:
        """Take them from options of the same names."""
        return cls(**{each.name: getattr(options, each.name) for each in fields(cls)})

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    @property
    def leaves_out(self) -> bool:
        """Whether unlikely tokens are never drawn."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True)
class Blend:
    """A second prompt that a completion is written under: tokens follow p(. | prompt)^(1 - b) p(. | bare prompt)^b."""

    prompt_token_ids: tuple[int, ...]  # the bare prompt
    weight: float  # b, in [0, 1]
    budget: float | None = None  # nats; b is raised from ``weight`` until KL(blended || bare) of a token is within it


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One completion to write."""

    prompt_token_ids: tuple[int, ...]
    key: NoiseKey
    max_new_tokens: int
    draft_token_ids: tuple[tuple[int, ...], ...] = ()  # texts worth looking n-grams up in; a hint, never a constraint
    expected_new_tokens: int | None = None  # a guess, for the order of work only
    params: SamplingParams | None = None  # None: the distribution of the call
    blend: Blend | None = None  # None: the prompt alone

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """The prompts that are read, each in a slot of its own; the completion stands behind all of them."""
        return (self.prompt_token_ids,) if self.blend is None else (self.prompt_token_ids, self.blend.prompt_token_ids)


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """What a rollout keeps of the distribution at each token, beyond the log-probability of the token itself."""

    hidden: bool = False  # the final hidden state, for objectives over the whole vocabulary
    top_k: int = 0  # this many likeliest tokens with their log-probabilities


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The likeliest tokens at each position of a completion, at temperature 1."""

    token_ids: torch.Tensor  # [C, K] int64, likeliest first
    logprobs: torch.Tensor  # [C, K] nats


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion the policy wrote, with how likely each token was when it was drawn."""

    key: NoiseKey
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # ends in exactly one terminator iff finish_reason == "stop"
    logprobs: tuple[float, ...]  # log pi(y_t | prompt) at temperature 1, in nats; of a blended text too
    sampling_logprobs: tuple[float, ...]  # under the processed distribution the token was drawn from, in nats
    entropies: tuple[float, ...]  # entropy of the temperature-1 distribution at each token (the blended one), in nats
    finish_reason: FinishReason
    bare_logprobs: tuple[float, ...] = ()  # of a blended text: log pi(y_t | bare prompt) at temperature 1, in nats
    blends: tuple[float, ...] = ()  # of a blended text: the b each token was drawn with
    hidden: torch.Tensor | None = field(default=None, compare=False, repr=False)  # [C, D], see RecordOptions
    top: TopLogprobs | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """How far a rollout call has come since it last said so."""

    num_finished: int  # completions that ended
    num_tokens: int  # tokens written
    slots_in_use: int | None = None  # completions being written at the moment
    accept_rate: float | None = None  # share of drafted tokens that were kept, over the call so far


@dataclass(frozen=True, slots=True)
class Feedback:
    """The student's own attempt at a prompt, and what its check said."""

    rollout: Rollout  # the attempt
    attempt: str  # its text
    message: str  # what the check says of it; empty where it is right
    sibling: str = ""  # another attempt at the same prompt, which is right
    stands: bool = False  # the attempt is the rollout of this step: no other is written
    drop: str = ""  # why nothing is learned; empty where something is
    result: CheckResult | None = None  # of the check of the attempt: where it stands, it is not checked again


@dataclass(frozen=True, slots=True)
class Measures:
    """How a rollout looks from the bare prompt; nats a token. None: not measured."""

    surprise: float  # mean -log p(token | bare prompt)
    surprise_max: float  # the largest of them
    leak: float | None = None  # mean log p(token | demonstration without the question) - log p(token | bare prompt)
    support: float | None = None  # how much likelier the demonstration becomes given this rollout than given others'
    support_spread: float | None = None  # standard deviation of that over the others
    step_rate: float | None = None  # share of bare continuations of its first half that the check accepts
    agreement: float | None = None  # share of the demonstration's rollouts of this step that the check accepts
    solved_rate: float | None = None  # share of the policy's bare answers to its prompt that the check accepts


@dataclass(frozen=True, slots=True)
class Target:
    """What the student learns from one rollout, or in its place."""

    pair: PromptPair
    token_ids: tuple[int, ...]  # the loss tokens, terminator included when there is one
    text: str
    verdict: Verdict  # "keep": the rollout is learned; "fallback": the demonstration is; "drop", "spare": nothing is
    reason: str  # why it was not kept; empty when kept
    rollout: Rollout | None  # None when the demonstration was the source from the start
    attempt: int = 0
    correct: bool | None = None  # the check's verdict on the rollout; None: it was not asked
    is_verbatim: bool = False  # the rollout is what the teacher was shown, word for word
    measures: Measures | None = None
    weight: float = 1.0  # of its loss tokens


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One target behind its bare prompt, and how its tokens are learned."""

    prompt_ids: Sequence[int]
    target_ids: Sequence[int]
    teacher_ids: Sequence[int] = ()  # the prompt that the teacher's distribution is asked under
    rollout: Rollout | None = None  # where the target came from, if it is one
    plain: bool = False  # learned by nll whatever the objective is
    counted: bool = True  # its tokens are in the step's denominator
    weight: float = 1.0
    num_skipped: int = 0  # first target tokens that are read but not learned
    clip: float | None = None  # tokens with a larger nll, in nats, give no gradient

    @property
    def length(self) -> int:
        """Tokens of prompt and target."""
        return len(self.prompt_ids) + len(self.target_ids)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Prompt + target texts, right-padded or packed into one row, and where their loss tokens stand.

    The shape is one of few (``shapes.py``): behind the texts stand padding rows, or one more text of padding.
    """

    input_ids: torch.Tensor  # [B, T] int64; packed: [1, T]
    attention_mask: torch.Tensor | None  # [B, T] int64, 1 on real tokens and padding rows; None: packed
    packed_lengths: tuple[int, ...]  # tokens of each text that is packed, padding last; empty: padded
    loss_rows: torch.Tensor  # [N] int64, row of ``input_ids`` that a loss token stands in
    loss_positions: torch.Tensor  # [N] int64, position whose hidden state predicts the loss token
    labels: torch.Tensor  # [N] int64, the loss tokens
    weights: torch.Tensor  # [N] float32, weight of each loss token
    plain: torch.Tensor  # [N] bool, learned by nll whatever the objective is
    clips: torch.Tensor  # [N] float32, nll above which a token gives no gradient; inf: none
    num_loss_tokens: int  # N
    num_counted_tokens: int  # of them in the step's denominator
    rows: tuple[TrainingRow, ...]  # what it was made of

    @property
    def num_padding_tokens(self) -> int:
        """Tokens that belong to no row."""
        return self.input_ids.numel() - sum(row.length for row in self.rows)


class Ranks(Protocol):
    """The processes that work together; every rank must make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Index of this process."""
        ...

    @property
    def num_ranks(self) -> int:
        """Number of processes."""
        ...

    @property
    def num_local_ranks(self) -> int:
        """Number of processes on this machine."""
        ...

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank, on every rank."""
        ...

    def on_first(self, function: Callable[[], T]) -> T:
        """Run a function on the first rank; every rank gets its result, or its error."""
        ...


@dataclass(frozen=True, slots=True)
class OneRank:
    """A process by itself."""

    rank: int = 0
    num_ranks: int = 1
    num_local_ranks: int = 1

    def gather(self, value: T) -> list[T]:
        """Return the value alone."""
        return [value]

    def on_first(self, function: Callable[[], T]) -> T:
        """Run the function."""
        return function()


ONE_RANK = OneRank()


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimizer step did; keys of ``values`` are ``area/quantity``."""

    step: int
    skipped: str  # why no optimizer step was taken; empty when one was
    values: Mapping[str, float]
    targets: tuple[Target, ...] = ()
