"""Which of two answers a judge prefers, asked in both orders.

Judges prefer the answer that stands first (or second) for its place alone, so each pair is shown both ways: an answer
wins when it is preferred in both, and a pair whose two verdicts disagree is a tie.

Source: Zheng et al. (2023), arXiv:2306.05685, section 3.4 (swapping positions, the conservative rule).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Literal

from onpolicy_sdft.errors import MissingDependencyError, ModelError
from onpolicy_sdft.eval.alpaca import Pair
from onpolicy_sdft.eval.intervals import mean_interval

Preference = Literal["1", "2", "tie"]

#: ``ab`` shows the first file's answer first.
ORDERS = ("ab", "ba")

_VERDICTS: dict[str, Preference] = {"1": "1", "2": "2", "tie": "tie"}
_VERDICT = re.compile(rf"\[\[\s*({'|'.join(_VERDICTS)})\s*\]\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Question:
    """A pair shown in one order."""

    pair: Pair
    order: str
    prompt: str

    def key(self, judge: str) -> str:
        """Identify the question to a judge, by all that it reads."""
        return hashlib.sha256(repr((judge, self.prompt)).encode("utf-8", "backslashreplace")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said to one question, or why it said nothing."""

    text: str
    problem: str = ""


#: Asks a judge; yields (index of the prompt, reply) as replies come, in any order.
Judge = Callable[[Sequence[str]], Iterator[tuple[int, Reply]]]


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often the first file's answers win; a tie counts half."""

    win_rate: float | None  # over the n pairs that both verdicts are known of; None without any
    low: float | None  # 95 % bootstrap interval over prompts
    high: float | None
    n: int
    num_wins: int
    num_losses: int
    num_ties: int
    disagreement_rate: float | None  # share of the n pairs whose two verdicts are not the same
    first_place_rate: float | None  # share of the verdicts for one answer that are for the one shown first
    num_unparsable: int  # replies without one clear verdict
    num_refused: int  # questions the judge gave no reply to
    left_out: tuple[str, ...]  # "pair 7 (ba): why", a line for each of these


def questions_of(pairs: Sequence[Pair]) -> list[Question]:
    """Show each pair in both orders."""
    return [
        Question(pair, order, judge_prompt(pair.instruction, *shown))
        for pair in pairs
        for order, shown in zip(ORDERS, ((pair.first, pair.second), (pair.second, pair.first)), strict=True)
    ]


def judge_prompt(instruction: str, first: str, second: str) -> str:
    """Word a question to a judge."""
    return (
        "Two assistants were given the same instruction. Decide whose answer helps the person who gave it more: it "
        "should do what was asked, be correct, and be no longer than it needs to be. Which answer is shown first "
        "means nothing.\n\n"
        f"<instruction>\n{instruction}\n</instruction>\n\n"
        f"<answer_1>\n{first}\n</answer_1>\n\n<answer_2>\n{second}\n</answer_2>\n\n"
        "Give your reasons in one or two sentences. Then write your verdict alone on the last line: [[1]] if answer 1 "
        "is better, [[2]] if answer 2 is better, [[tie]] if they are equally good."
    )


def parse_verdict(reply: str) -> Preference | None:
    """Read the verdict: the one in the last line that holds any, if it is the only one there."""
    lines = [found for line in reply.splitlines() if (found := {v.lower() for v in _VERDICT.findall(line)})]
    if not lines or len(lines[-1]) > 1:
        return None
    return _VERDICTS[lines[-1].pop()]


def count_wins(
    questions: Sequence[Question], verdicts: Sequence[Preference | None], problems: Sequence[str]
) -> WinRate:
    """Turn the verdicts on all questions into a win rate.

    Args:
        questions: From :func:`questions_of`: both orders of a pair follow each other.
        verdicts: One a question; None where there is none.
        problems: Why the judge gave no reply; empty where it gave one.
    """
    values, num_disagreements, left_out = [], 0, []
    for question, verdict, problem in zip(questions, verdicts, problems, strict=True):
        if verdict is None:
            why = problem or "no clear verdict in the reply"
            left_out.append(f"pair {question.pair.index + 1} ({question.order}): {why}")
    for straight, swapped in zip(verdicts[::2], verdicts[1::2], strict=True):
        if straight is None or swapped is None:
            continue
        mine, theirs = straight, {"1": "2", "2": "1", "tie": "tie"}[swapped]  # both as the first file's answer is 1
        num_disagreements += mine != theirs
        values.append({"1": 1.0, "2": 0.0, "tie": 0.5}[mine] if mine == theirs else 0.5)
    n = len(values)
    low, high = mean_interval(values) if n else (None, None)
    decided = [verdict for verdict in verdicts if verdict in ("1", "2")]
    return WinRate(
        win_rate=sum(values) / n if n else None,
        low=low,
        high=high,
        n=n,
        num_wins=values.count(1.0),
        num_losses=values.count(0.0),
        num_ties=values.count(0.5),
        disagreement_rate=num_disagreements / n if n else None,
        first_place_rate=decided.count("1") / len(decided) if decided else None,
        num_unparsable=sum(v is None and not p for v, p in zip(verdicts, problems, strict=True)),
        num_refused=sum(bool(problem) for problem in problems),
        left_out=tuple(left_out),
    )


class EndpointJudge:
    """A judge behind any endpoint that speaks OpenAI's chat completions.

    Passing faults (time-outs, 408, 409, 429, 5xx) are tried again by the library, waiting longer each time.

    Args:
        base_url: E.g. ``http://localhost:8000/v1``.
        api_key: As the endpoint wants it; None for one that wants none.
        model: Name of the model there.
        request: More fields of each request, such as ``temperature``.
        num_parallel: Requests under way at once.
        max_retries: Further tries of one request.
        timeout_seconds: Longest wait for one reply.

    Raises:
        MissingDependencyError: If the library is not installed.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        model: str,
        request: Mapping[str, Any],
        num_parallel: int,
        max_retries: int,
        timeout_seconds: float,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingDependencyError(
                "A judge behind an endpoint needs the library openai: pip install 'onpolicy_sdft[judge]'. "
                "Or judge with a local model: --judge local:MODEL."
            ) from error
        self.base_url, self.model, self.request, self.num_parallel = base_url, model, dict(request), num_parallel
        self.client = openai.OpenAI(
            base_url=base_url, api_key=api_key or "none", max_retries=max_retries, timeout=timeout_seconds
        )

    def __call__(self, prompts: Sequence[str]) -> Iterator[tuple[int, Reply]]:
        """Ask; see :data:`Judge`.

        Raises:
            ModelError: If the endpoint does not answer; replies so far have been yielded.
        """
        import openai

        pool = ThreadPoolExecutor(self.num_parallel)
        try:
            waiting = {pool.submit(self._ask, prompt): index for index, prompt in enumerate(prompts)}
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except openai.APIError as error:
            status = getattr(error, "status_code", None)
            raise ModelError(
                f"The judge at {self.base_url} failed"
                f"{f' with status {status}' if status else ''}: {' '.join(str(error).split())[:300]}. What was judged "
                "is kept: give the same command again to go on."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, prompt: str) -> Reply:
        import openai

        try:
            completion = self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": prompt}], **self.request
            )
        except openai.BadRequestError as error:  # of this question alone: too long, or filtered
            return Reply("", f"refused by the endpoint: {' '.join(str(error).split())[:300]}")
        except ValueError as error:  # what calls itself JSON and is none
            return Reply("", f"no chat completion came back: {' '.join(str(error).split())[:200]}")
        try:
            return Reply(completion.choices[0].message.content or "")
        except (AttributeError, IndexError, TypeError):  # the library does not check what comes back
            return Reply("", f"no chat completion came back: {' '.join(str(completion).split())[:200]}")
