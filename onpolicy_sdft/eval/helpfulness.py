"""Helpfulness: answers in AlpacaEval's format, and which of two such files a judge prefers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onpolicy_sdft.build.bundle import context_window
from onpolicy_sdft.build.loaded import load_target
from onpolicy_sdft.errors import DataError, ModelError, RunDirectoryError
from onpolicy_sdft.eval.alpaca import generator_of, pair_up, read_outputs, to_outputs
from onpolicy_sdft.eval.answers import Asking, remove_kept
from onpolicy_sdft.eval.judge import Judge, Preference, Question, Reply, count_wins, parse_verdict, questions_of
from onpolicy_sdft.eval.prompts import answer, load_prompts
from onpolicy_sdft.runs.claim import claimed
from onpolicy_sdft.runs.files import append_jsonl, read_jsonl, write_json_atomic
from onpolicy_sdft.runs.progress import Progress
from onpolicy_sdft.types import Turn

logger = logging.getLogger(__name__)


_JUDGEMENTS, _SUMMARY = "judgements.jsonl", "judge.json"

#: Questions a local judge is asked before their verdicts are written down.
_LOCAL_CHUNK = 64


def export_outputs(
    target: str,
    prompts_source: str | None,
    prompt_column: str,
    num_prompts: int | None,
    asking: Asking,
    generator: str | None,
    output: Path,
) -> int:
    """Answer instructions and write AlpacaEval's ``model_outputs``.

    Args:
        target: Run directory, local model, hub id or embedded name.
        prompts_source: See :func:`~onpolicy_sdft.eval.prompts.load_prompts`.
        prompt_column: Column of the instruction.
        num_prompts: Take the first so many; None takes all.
        asking: How they are answered.
        generator: Name of the model in the file; None: the target's own.
        output: The file.

    Returns:
        Number of answers.
    """
    finished = load_target(target)
    config = finished.config if finished.run is not None else None
    prompts = load_prompts(prompts_source, prompt_column, num_prompts, config)
    _refuse_foreign(output)
    partial = output.with_name(f".{output.name}.partial") / "answers.jsonl"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"output={output} cannot be written: {error}.") from error
    records = answer(finished, prompts, asking, partial, "answers")
    default = Path(prompts_source).stem if prompts_source else "general_prompts"
    datasets = [str(prompt.fields.get("dataset") or default) for prompt in prompts]
    write_json_atomic(output, to_outputs(records, generator or _name(target), datasets))
    remove_kept(partial)
    return len(records)


def _name(target: str) -> str:
    return Path(target).resolve().name if Path(target).exists() else target


class LocalJudge:
    """A judge that is a model of this machine.

    Args:
        target: Run directory, local model, hub id or embedded name.
        asking: How it is asked.
    """

    def __init__(self, target: str, asking: Asking) -> None:
        self.finished, self.asking = load_target(target), asking

    def __call__(self, prompts: Sequence[str]) -> Iterator[tuple[int, Reply]]:
        """Ask; see :data:`~onpolicy_sdft.eval.judge.Judge`."""
        bundle, rollout = self.finished.bundle, self.finished.config.rollout
        backend = bundle.backend(self.finished.model, rollout, rollout.batch_size)
        window = context_window(bundle)
        ids = [bundle.renderer.student_ids([Turn("user", prompt)]) for prompt in prompts]
        fits = [window is None or len(own) + self.asking.max_new_tokens <= window for own in ids]
        for index in (place for place, fit in enumerate(fits) if not fit):
            yield index, Reply("", f"{len(ids[index])} tokens do not fit into the judge's context window of {window}")
        left = [index for index, fit in enumerate(fits) if fit]
        for start in range(0, len(left), _LOCAL_CHUNK):
            chunk = left[start : start + _LOCAL_CHUNK]
            requests = [self.asking.request(ids[index], prompts[index]) for index in chunk]
            for index, written in zip(chunk, backend.generate(requests, self.asking.params), strict=True):
                yield index, Reply(bundle.renderer.decode(written.token_ids))


def _refuse_foreign(output: Path) -> None:
    """Refuse to overwrite a file that holds no answers in AlpacaEval's format."""
    if not output.exists():
        return
    try:
        is_own = bool(read_outputs(output))
    except (DataError, OSError):
        is_own = False
    if not is_own:
        raise RunDirectoryError(
            f"output={output} is there already, and holds no answers in AlpacaEval's format: it is not overwritten. "
            "Fix: another file, or move it away."
        )


def run_judge(first: Path, second: Path, judge: Judge, judge_facts: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Let a judge compare two files of answers, each pair in both orders.

    Replies are written down as they come, so an interrupted call goes on with the same command and asks nothing twice.

    Args:
        first: A file in AlpacaEval's format; the win rate is its.
        second: The other file, to the same instructions.
        judge: Asked one prompt a question.
        judge_facts: What identifies the judge and how it is asked; verdicts of another are not taken for its.
        output: Directory for ``judgements.jsonl`` and ``judge.json``.

    Returns:
        What ``judge.json`` holds.

    Raises:
        DataError: If the files do not answer the same instructions.
        ModelError: If the judge cannot be asked.
    """
    pairs = pair_up(first, second)
    questions = questions_of(pairs)
    identity = repr(sorted(judge_facts.items()))
    with claimed(output, "output", "judge", (_SUMMARY, _JUDGEMENTS)):
        replies, problems = _ask(questions, judge, identity, output / _JUDGEMENTS)
    keys = [question.key(identity) for question in questions]
    if problems and not any(key in replies for key in keys):
        raise ModelError(f"The judge replied to none of {len(questions)} questions; to the first: {problems[keys[0]]}")
    verdicts: list[Preference | None] = [parse_verdict(replies[key]) if key in replies else None for key in keys]
    found = count_wins(questions, verdicts, [problems.get(key, "") for key in keys])
    summary = {
        "first": _facts(first),
        "second": _facts(second),
        "judge": dict(judge_facts),
        **dataclasses.asdict(found),
        "num_pairs": len(pairs),
        "judgements": _JUDGEMENTS,
    }
    write_json_atomic(output / _SUMMARY, summary)
    return summary


def _ask(
    questions: Sequence[Question], judge: Judge, identity: str, path: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Ask what has no reply yet; return replies and problems by the question's key."""
    asked = {question.key(identity): question for question in questions}  # a question that stands twice is asked once
    there = {record["key"]: record["reply"] for record in read_jsonl(path)} if path.is_file() else {}
    replies = {key: reply for key, reply in there.items() if key in asked}
    if replies:
        logger.info(f"{len(replies)} judgements are there already ({path})")
    if len(there) > len(replies):
        others = len(there) - len(replies)
        logger.info(f"{others} judgements in {path} are of other answers or another judge: they do not count")
    left = [key for key in asked if key not in replies]
    problems: dict[str, str] = {}
    with Progress("judge", len(asked), "judgements", start=len(replies)) as progress:
        for index, reply in judge([asked[key].prompt for key in left]):
            key, question = left[index], asked[left[index]]
            progress.update(1)
            if reply.problem:
                problems[key] = reply.problem
                continue
            replies[key] = reply.text
            record = {
                "key": key,
                "pair": question.pair.index + 1,
                "order": question.order,
                "verdict": parse_verdict(reply.text),
                "instruction": question.pair.instruction,
                "reply": reply.text,
            }
            append_jsonl(path, record)
    return replies, problems


def _facts(path: Path) -> dict[str, Any]:
    entries = read_outputs(path)
    return {
        "path": str(path),
        "generator": generator_of(entries, path),
        "mean_characters": sum(len(entry["output"]) for entry in entries) / len(entries),
    }
