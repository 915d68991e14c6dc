"""EleutherAI's lm-evaluation-harness on a model in memory.

Source: https://github.com/EleutherAI/lm-evaluation-harness (library ``lm_eval``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy_sdft.data.chat_template import OwnMarkup
from onpolicy_sdft.errors import ConfigError, DataError, MissingDependencyError, did_you_mean
from onpolicy_sdft.rollout.sampling import Vocabulary
from onpolicy_sdft.runs.files import dumps_strict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Pool:
    """Tasks whose accuracy is reported as one, each weighted by its questions."""

    tasks: tuple[str, ...]
    disjoint: bool  # whether no question is in two of them; else a standard error would need their covariance


@dataclass(frozen=True, slots=True)
class Preset:
    """Tasks as a paper ran them."""

    tasks: tuple[str, ...]
    num_fewshot: int
    pools: Mapping[str, Pool]
    metric: str  # the figure it reported


#: ``acl2024``: Yang et al. (ACL 2024, arXiv:2402.13669), ``scripts/*/sdft.sh`` of https://github.com/sail-sg/sdft:
#: ``lm_eval --tasks truthfulqa,ai2_arc,hellaswag,winogrande`` without ``--num_fewshot`` (these tasks' own number is 0)
#: and without a chat template; ``eval/eval_general_knowledge.py`` reports ``acc,none`` of the four. ``ai2_arc`` and
#: ``truthfulqa`` were groups then, whose ``acc`` lm-eval 0.4 averaged over tasks by their questions; today they are
#: tags, so their parts are run and averaged here (``truthfulqa_gen`` has no ``acc``). MMLU ran through LLaMA-Factory
#: with ``--n_shot 0`` and a bare prompt; the harness words it alike but is another program.
PRESETS: dict[str, Preset] = {
    "acl2024": Preset(
        tasks=(
            "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "arc_easy", "arc_challenge", "hellaswag", "winogrande",
        ),
        num_fewshot=0,
        pools={
            "truthfulqa": Pool(("truthfulqa_mc1", "truthfulqa_mc2"), disjoint=False),
            "ai2_arc": Pool(("arc_easy", "arc_challenge"), disjoint=True),
        },
        metric="acc,none",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What the harness says of one task or group."""

    name: str
    metrics: Mapping[str, Any]  # "acc,none": value, "acc_stderr,none": its standard error, ...
    num_samples: int
    config: Mapping[str, Any]  # empty for a group
    version: Any
    num_fewshot: int | None
    samples: Sequence[Mapping[str, Any]]

    @property
    def config_hash(self) -> str:
        """Digest of the task's config: prompts, data set, metrics."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    def rows(self) -> list[tuple[str, float, float | None]]:
        """List (metric, value, standard error or None)."""
        found = []
        for key, value in self.metrics.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = self.metrics.get(f"{metric}_stderr,{filtered}")
            number = error if isinstance(error, int | float) and math.isfinite(error) else None
            found.append((metric if filtered == "none" else key, float(value), number))
        return found


class Harness:
    """The harness with a model and the tasks it knows.

    Args:
        model: The model, adapters merged or not.
        tokenizer: Its tokenizer.
        include_path: Directory of further tasks; None: those of the library alone.
        batch_size: Requests of one forward.
        control: Names of the tokens that are markup of the chat template, and never text of a row.

    Raises:
        MissingDependencyError: If the library is not installed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        include_path: str | None,
        batch_size: int,
        control: Iterable[str],
    ) -> None:
        require_lm_eval()
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        self.tasks = TaskManager(include_path=include_path)
        self.markup = OwnMarkup(control)
        never_write_ids_without_a_token(model, tokenizer)
        self.model = _reading_rows_as_text(HFLM, self.markup)(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size
        )

    def check(self, names: Sequence[str]) -> None:
        """Refuse names that no task, group or tag has.

        Raises:
            ConfigError: With the nearest name.
        """
        known = list(self.tasks.all_tasks)
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"lm-eval has no task {name!r}.{did_you_mean(name, known)} "
                    "Tasks of your own: --include_path DIR (their YAML files)."
                )

    def run(
        self, name: str, num_fewshot: int | None, limit: int | None, chat_template: bool, seed: int
    ) -> list[TaskResult]:
        """Run one task, group or tag.

        Args:
            name: Its name.
            num_fewshot: Examples shown; None: the task's own number.
            limit: Use the first so many questions of each task; None: all.
            chat_template: Ask through the tokenizer's chat template rather than with plain text.
            seed: Of the choice of examples.

        Returns:
            One result a task or group, the parts of a group included.

        Raises:
            DataError: If its data cannot be had.
        """
        import lm_eval

        try:
            found = lm_eval.simple_evaluate(
                self.model, tasks=[name], num_fewshot=num_fewshot, limit=limit, task_manager=self.tasks,
                apply_chat_template=chat_template, random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed,
                fewshot_random_seed=seed,
            )  # fmt: skip
        except OSError as error:  # what the loader of data sets raises when there is no hub, or no such file
            raise DataError(
                f"lm-eval cannot get the data of {name!r}: {' '.join(str(error).split())[:300]}. Without a hub, take "
                "tasks that read local files: --include_path DIR."
            ) from error
        return results_of(plain(found, without=self.markup.mark))


def _reading_rows_as_text(language_model: Any, markup: OwnMarkup) -> Any:
    """Return the harness's kind of model, for which only the chat template writes control tokens."""

    class PlainRows(language_model):  # type: ignore[misc]
        def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], *args: Any, **kwargs: Any) -> str:
            def render(contents: Sequence[str]) -> str:
                said = [{**turn, "content": text} for turn, text in zip(chat_history, contents, strict=True)]
                return str(super(PlainRows, self).apply_chat_template(said, *args, **kwargs))

            return markup.render([turn["content"] for turn in chat_history], render)

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **kwargs: Any,
        ) -> list[int]:
            encode = super().tok_encode
            first, *others = markup.pieces(string)
            ids = list(encode(first, add_special_tokens=add_special_tokens, **kwargs))
            for piece in others:
                ids += encode(piece, add_special_tokens=False, **kwargs)
            return ids[-left_truncate_len:] if left_truncate_len else ids

        def tok_batch_encode(
            self,
            strings: Sequence[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[Any, Any]:
            if not any(len(markup.pieces(each)) > 1 for each in strings):
                whole = ["".join(markup.pieces(each)) for each in strings]
                return tuple(super().tok_batch_encode(whole, padding_side, left_truncate_len, truncation))
            ids = {"input_ids": [self.tok_encode(each) for each in strings]}
            padded = self.tokenizer.pad(ids, padding="longest", padding_side=padding_side, return_tensors="pt")
            cut = slice(-left_truncate_len if left_truncate_len else None, None)
            return padded["input_ids"][:, cut], padded["attention_mask"][:, cut]

    return PlainRows


def never_write_ids_without_a_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have ``generate`` leave out the ids that the tokenizer has no token for."""
    never = Vocabulary.of(tokenizer).without_token(model.config.get_text_config().vocab_size)
    if never and model.generation_config is not None:
        model.generation_config.suppress_tokens = never


def require_lm_eval() -> None:
    """Refuse to go on without the library.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "The bridge to lm-eval needs the library lm_eval: pip install 'onpolicy_sdft[lm-eval]'."
        ) from error


def plain(found: Any, without: str = "") -> Any:
    """Turn what the harness returns into what strict JSON can hold, without the marks of a template's own tokens."""
    text = json.dumps(found, default=_plain_value)
    text = text.replace(json.dumps(without)[1:-1], "") if without else text
    return json.loads(dumps_strict(json.loads(text)))


def _plain_value(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)  # numpy and torch numbers; functions of a config


def results_of(found: Mapping[str, Any]) -> list[TaskResult]:
    """Take the harness's results apart, parts of a group before the group."""
    parts: Mapping[str, Sequence[str]] = found.get("group_subtasks", {})

    def num_samples(name: str) -> int:
        if name in found.get("n-samples", {}):
            return int(found["n-samples"][name]["effective"])
        return sum(num_samples(part) for part in parts.get(name, ()))

    results = [
        TaskResult(
            name=name,
            metrics={key: value for key, value in metrics.items() if "," in key},
            num_samples=num_samples(name),
            config=found.get("configs", {}).get(name, {}),
            version=found.get("versions", {}).get(name),
            num_fewshot=found.get("n-shot", {}).get(name),
            samples=found.get("samples", {}).get(name, ()),
        )
        for name, metrics in found["results"].items()
    ]
    return sorted(results, key=lambda result: bool(parts.get(result.name)))


def pool_accuracy(results: Mapping[str, TaskResult], pool: Pool, metric: str) -> tuple[float, float | None, int]:
    """Average a metric over tasks, each weighted by its questions.

    Returns:
        The mean, its standard error (None where questions are shared), and the number of questions.
    """
    counts = [results[name].num_samples for name in pool.tasks]
    total = sum(counts)
    values = [float(results[name].metrics[metric]) for name in pool.tasks]
    mean = sum(count * value for count, value in zip(counts, values, strict=True)) / total
    first, _, rest = metric.partition(",")
    errors = [results[name].metrics.get(f"{first}_stderr,{rest}") for name in pool.tasks]
    if not pool.disjoint or not all(isinstance(error, int | float) for error in errors):
        return mean, None, total
    variance = sum((count / total * error) ** 2 for count, error in zip(counts, errors, strict=True) if error)
    return mean, math.sqrt(variance), total


def tasks_digest(include_path: str | None) -> str:
    """Digest a directory of tasks, so that results of other tasks are not taken for theirs."""
    found = hashlib.sha256()
    for path in sorted(Path(include_path).rglob("*")) if include_path else ():
        if path.is_file():
            found.update(f"{path.relative_to(include_path or '.')} {path.stat().st_size}\n".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:16]
