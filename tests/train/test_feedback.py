"""What the teacher is told of the student's own attempt, with a backend that writes what a script says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from onpolicy_sdft.config.schema import ContextConfig, ScreeningConfig
from onpolicy_sdft.data.prepare import prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.data.templates import PRIOR_TURN, TEMPLATES
from onpolicy_sdft.rollout.backend import NO_LISTENER, Listener, RolloutStats
from onpolicy_sdft.rollout.drafts import DraftStore
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks import load_task, work_of
from onpolicy_sdft.tasks.protocol import Checker
from onpolicy_sdft.train.batch import repeat_samples
from onpolicy_sdft.train.feedback import AttemptOptions, FeedbackSource
from onpolicy_sdft.train.probe import Probe
from onpolicy_sdft.train.source import Sampling
from onpolicy_sdft.types import (
    Demonstration,
    NoiseKey,
    PromptPair,
    Rollout,
    RolloutRequest,
    SamplingParams,
    Target,
    Turn,
)

TASK = load_task("math_word_problem", {})
ROWS = [
    Demonstration("a", (Turn("user", "How many apples?"),), "There are 70 + 2 = 72. The answer is 72."),
    Demonstration("b", (Turn("user", "How many pears?"),), "The answer is 33."),
]
WRONG, RIGHT, REWRITE = "I count them. The answer is 7.", "Let me see. The answer is 72.", "So the answer is 72."


@dataclass
class Script:
    """Writes by example and sample what it was given for attempts, and ``REWRITE`` for all others."""

    renderer: Renderer
    attempts: dict[tuple[str, int], str] = field(default_factory=dict)
    finish: str = "stop"
    calls: list[list[RolloutRequest]] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)  # contexts that are open
    seen: list[list[str]] = field(default_factory=list)  # those of each call
    stats: RolloutStats = field(default_factory=RolloutStats)

    def generate(
        self, requests: Sequence[RolloutRequest], params: Any, on_progress: Any, record: Any,
        listener: Listener = NO_LISTENER,
    ) -> list[Rollout]:  # fmt: skip
        self.calls.append(list(requests))
        self.seen.append(list(self.inside))
        rollouts = []
        for index, request in enumerate(requests):
            rollouts.append(self.rollout(request))
            listener.ended(index, rollouts[-1])
        for request in listener.more(len(rollouts)):
            self.calls[-1].append(request)
            rollouts.append(self.rollout(request))
            listener.ended(len(rollouts) - 1, rollouts[-1])
        return rollouts

    def rollout(self, request: RolloutRequest) -> Rollout:
        name = (request.key.example_id, request.key.sample_index)
        text = self.attempts.get(name, WRONG) if request.key.attempt == -1 or self.is_student else REWRITE
        ids = self.renderer.response_ids(text)
        ids = ids if self.finish == "stop" else ids[:-1]
        flat = (0.0,) * len(ids)
        return Rollout(request.key, request.prompt_token_ids, ids, flat, flat, flat, self.finish)

    is_student: bool = False

    @contextlib.contextmanager
    def weights(self, kind: str) -> Iterator[None]:
        self.inside.append(kind)
        yield
        self.inside.remove(kind)


@dataclass
class Bench:
    """A source, what writes for it, and its examples."""

    source: FeedbackSource
    script: Script
    pairs: list[PromptPair]
    tokenizer: Any

    def told(self, pair: PromptPair) -> str:
        return str(self.tokenizer.decode(list(pair.teacher_ids)))


@pytest.fixture
def make(tokenizer: Any) -> Any:
    def bench(
        attempts: dict[tuple[str, int], str] | None = None,
        *,
        view: str = "teacher",
        num_samples: int = 1,
        num_attempts: int = 1,
        show_attempt: bool = True,
        context: dict[str, Any] | None = None,
        rows: Sequence[Demonstration] = ROWS,
        task: Any = TASK,
        **options: Any,
    ) -> Bench:
        config = ContextConfig(**{"show": "none", **(context or {})})
        renderer = Renderer(tokenizer, config)
        prepared = prepare(rows, renderer, config, 0, work_of(task))
        script = Script(renderer, attempts or {}, is_student=view == "student")
        source = FeedbackSource(
            script,
            Sampling(SamplingParams(), 50, seed=3, prompt=view),
            store=DraftStore(10_000),
            options=AttemptOptions(
                num_samples=num_samples,
                num_attempts=num_samples if view == "student" else num_attempts,
                check=Checker(task).all,
                decode=renderer.decode,
                prompt=lambda *told: prepared.prompts.fit(*told, shows_attempt=show_attempt),
                writing=lambda: script.weights("live"),
                **options,
            ),
        )
        return Bench(source, script, repeat_samples(prepared.pairs, num_samples), tokenizer)

    return bench


def test_the_student_tries_from_its_bare_prompt_with_its_own_weights_and_noise(make):
    bench = make()
    pairs = bench.source.begin(bench.pairs, 5)
    (asked,) = bench.script.calls
    assert [r.prompt_token_ids for r in asked] == [v.student_ids for v in bench.pairs]
    assert [r.key for r in asked] == [NoiseKey(3, 5, "a", 0, -1), NoiseKey(3, 5, "b", 0, -1)]
    assert bench.script.seen == [["live"]]
    bench.source.rollouts(pairs, step=5)
    assert not {r.key for r in bench.script.calls[1]} & {r.key for r in asked}
    assert [r.prompt_token_ids for r in bench.script.calls[1]] == [v.teacher_ids for v in pairs]


@pytest.mark.parametrize("template", [PRIOR_TURN, *TEMPLATES])
def test_the_teacher_sees_attempt_and_message_and_no_right_answer(make, template):
    bench = make(context={"template": template})
    pair = bench.source.begin(bench.pairs, 0)[0]
    shown = bench.told(pair)
    assert shown.index("How many apples?") < shown.index(WRONG) < shown.index("ends up with 7, which is not right.")
    assert TASK.work_wording in shown
    assert "72" not in shown
    assert shown.endswith(f"{bench.pairs[0].demonstration.prompt}<|im_end|>\n<|im_start|>assistant\n")
    assert pair.teacher_ids != pair.student_ids
    assert (pair.feedback.attempt, pair.feedback.stands, pair.feedback.drop) == (WRONG, False, "")


def test_without_the_attempt_the_message_stands_behind_the_question(make):
    bench = make(show_attempt=False)
    shown = bench.told(bench.source.begin(bench.pairs, 0)[0])
    assert "I count them" not in shown
    assert shown.count("<|im_start|>user") == 1
    assert (
        shown.index("How many apples?") < shown.index("Your first answer was checked") < shown.index("ends up with 7")
    )


def test_the_right_answer_is_told_on_request(make):
    bench = make(reveal=True)
    assert "What is right: 72" in bench.told(bench.source.begin(bench.pairs, 0)[0])


@pytest.mark.parametrize(
    ("show", "own", "other"), [("own", True, False), ("others", False, True), ("both", True, True)]
)
def test_the_demonstration_is_shown_where_the_context_shows_it(make, show, own, other):
    bench = make(context={"show": show, "num_demonstrations": 2 if show == "both" else 1})
    shown = bench.told(bench.source.begin(bench.pairs, 0)[0])
    assert ("70 + 2" in shown) is own
    assert ("33" in shown) is other


def test_a_right_sibling_is_shown_beside_a_wrong_attempt(make):
    bench = make({("a", 2): RIGHT}, num_attempts=3)
    first, second = bench.source.begin(bench.pairs, 0)
    assert [r.key.sample_index for r in bench.script.calls[0]] == [0, 1, 2] * 2
    assert f"Another answer of yours is right:\n{RIGHT}" in bench.told(first)
    assert "Another answer" not in bench.told(second)
    assert bench.source.figures()["feedback/sibling_rate"] == 0.5


def test_samples_take_the_attempts_in_turn(make):
    texts = {("a", i): f"Attempt {i}. The answer is {i}." for i in range(4)}
    bench = make(texts, num_samples=3, num_attempts=2, rows=ROWS[:1])
    told = bench.source.begin(bench.pairs, 0)
    assert [v.feedback.attempt[:9] for v in told] == ["Attempt 0", "Attempt 1", "Attempt 0"]
    assert len(bench.script.calls[0]) == 2
    twice = repeat_samples([bench.pairs[0], bench.pairs[0]], 3)  # the example comes twice in a step: other attempts
    told = bench.source.begin(twice, 0)
    assert [v.feedback.attempt[:9] for v in told[3:]] == ["Attempt 2", "Attempt 3", "Attempt 2"]


@pytest.mark.parametrize("view", ["teacher", "student"])
def test_what_is_told_does_not_depend_on_how_samples_are_dealt_out(make, view):
    texts = {("a", 1): RIGHT}
    whole = make(texts, view=view, num_samples=2, num_attempts=2)
    together = whole.source.begin(whole.pairs, 0)
    parts = []
    for index in range(len(whole.pairs)):
        rank = make(texts, view=view, num_samples=2, num_attempts=2)
        parts += rank.source.begin([rank.pairs[index]], 0)
    assert parts == together
    assert make().source.begin([], 0) == []


def test_a_right_attempt_is_dropped_as_solved_and_counted(make):
    bench = make({("a", 0): RIGHT})
    pairs = bench.source.begin(bench.pairs, 0)
    rollouts = bench.source.rollouts(pairs, step=0)
    assert len(bench.script.calls[1]) == 1  # only the other one is written
    targets = judge(bench, pairs, rollouts)
    assert [(t.verdict, t.reason, t.token_ids == ()) for t in targets] == [
        ("drop", "solved", True),
        ("keep", "", False),
    ]
    assert targets[0].text == RIGHT
    assert bench.source.figures()["feedback/solved_rate"] == 0.5


def test_a_right_attempt_is_learned_on_request(make):
    bench = make({("a", 0): RIGHT}, solved="learn")
    pairs = bench.source.begin(bench.pairs, 0)
    rollouts = bench.source.rollouts(pairs, step=0)
    target = judge(bench, pairs, rollouts)[0]
    assert (target.verdict, target.text) == ("keep", RIGHT)
    assert pairs[0].teacher_ids == bench.pairs[0].teacher_ids
    again = bench.source.rollouts(pairs, step=0, attempt=1)  # drawn again, it is the teacher's turn
    assert again[0].prompt_token_ids == pairs[0].teacher_ids


def judge(bench: Bench, pairs: Sequence[PromptPair], rollouts: Sequence[Rollout | None]) -> list[Target]:
    screen = Screen(ScreeningConfig(check="keep"), TASK, bench.script.renderer.decode, 0)
    return screen(pairs, rollouts, lambda again, attempt: bench.source.rollouts(again, step=0, attempt=attempt))


def test_a_right_attempt_that_was_cut_off_is_not_solved(make):
    bench = make({("a", 0): RIGHT})
    bench.script.finish = "length"
    pair = bench.source.begin(bench.pairs, 0)[0]
    assert pair.feedback.drop == ""
    assert "cut off after" in pair.feedback.message


def test_with_the_students_view_the_attempts_are_the_rollouts(make):
    bench = make({("a", 1): RIGHT}, view="student", num_samples=2)
    pairs = bench.source.begin(bench.pairs, 4)
    rollouts = bench.source.rollouts(pairs, step=4)
    assert len(bench.script.calls) == 1
    assert [r.key for r in rollouts] == [NoiseKey(3, 4, n, i, 0) for n in "ab" for i in range(2)]
    assert [v.feedback.rollout for v in pairs] == rollouts
    assert [v.feedback.drop for v in pairs] == ["", "solved", "", ""]
    assert RIGHT in bench.told(pairs[0])


def test_an_attempt_that_is_the_rollout_is_checked_once(make):
    class Counted:
        num_checks, name = 0, "counted"

        def check(self, completion: str, demonstration: Demonstration) -> Any:
            Counted.num_checks += 1
            return TASK.check(completion, demonstration)

    bench = make({("a", 0): RIGHT}, view="student", task=Counted(), solved="learn")
    pairs = bench.source.begin(bench.pairs, 0)
    screen = Screen(ScreeningConfig(check="drop"), Counted(), bench.script.renderer.decode, 0)
    found = screen(pairs, bench.source.rollouts(pairs, step=0), lambda again, attempt: [])
    assert [target.correct for target in found] == [True, False]
    assert Counted.num_checks == 2


def test_the_attempt_is_a_draft_of_the_rewrite_and_of_the_next_attempt(make):
    bench = make()
    pairs = bench.source.begin(bench.pairs, 0)
    rollouts = bench.source.rollouts(pairs, step=0)
    tried = pairs[0].feedback.rollout.token_ids
    assert bench.script.calls[1][0].draft_token_ids == (tried, pairs[0].response_ids)
    bench.source.remember(judge(bench, pairs, rollouts))
    bench.source.begin(bench.pairs, 1)
    assert bench.script.calls[2][0].draft_token_ids[0] == tried


def test_a_watch_hears_of_rewrites_in_their_own_places(make):
    bench = make({("a", 0): RIGHT})
    pairs = bench.source.begin(bench.pairs, 0)
    heard: list[tuple[int, str]] = []

    class Ear:
        def ended(self, draw: int, rollout: Rollout) -> None:
            heard.append((draw, rollout.key.example_id))

        def again(self, num_ended: int) -> list[tuple[PromptPair, int]]:
            return [(pairs[1], 1)]

    found = bench.source.rollouts(pairs, step=0, watch=Ear())
    assert heard == [(1, "b"), (2, "b")]  # the draw behind those of the examples is the one drawn again
    assert [rollout.key.attempt for rollout in found] == [-1, 0]
    assert bench.script.calls[1][1].key.attempt == 1


@pytest.mark.parametrize("show", ["own", "none"])
def test_the_end_of_the_attempt_is_cut_first_then_the_demonstration(make, show):
    length = len(begun(make, show, 5000).teacher_ids)
    cut = begun(make, show, length - 10)
    assert len(cut.teacher_ids) == length - 10
    assert cut.num_trimmed_tokens == 0
    bench = make(context={"show": show, "max_teacher_tokens": length - 10})
    shown = bench.told(bench.source.begin(bench.pairs, 0)[0])
    assert WRONG[:-10] in shown
    assert WRONG[:-9] not in shown
    assert bench.source.figures()["feedback/cut_rate"] >= 0.5
    shorter = begun(make, show, length - len(WRONG) + 16 - 20)
    if show == "own":
        assert shorter.num_trimmed_tokens == 20
        assert shorter.feedback.drop == ""
    else:  # nothing is left to cut
        assert shorter.feedback.drop == "no_room"


def begun(make: Any, show: str, limit: int) -> PromptPair:
    bench = make(context={"show": show, "max_teacher_tokens": limit})
    return bench.source.begin(bench.pairs, 0)[0]


def test_what_a_task_of_ones_own_says_by_its_reason_is_told(make):
    class Terse:
        def check(self, completion: str, demonstration: Demonstration) -> Any:
            return replace(TASK.check(completion, demonstration), message="", reason="off_by_ten")

    bench = make(task=Terse())
    assert "The check says: off by ten." in bench.told(bench.source.begin(bench.pairs, 0)[0])


def test_a_look_at_the_teacher_tells_it_of_attempts_as_a_step_does(make):
    bench = make({("a", 0): RIGHT}, context={"show": "own"})
    screen = Screen(ScreeningConfig(check="keep"), TASK, bench.script.renderer.decode, 0)

    class Unmeasured:
        def measure(self, targets: Sequence[Target], step: int) -> Sequence[Target]:
            return targets

    seen = Probe(bench.pairs, bench.source, screen, Unmeasured()).taught(0)
    asked = [request.prompt_token_ids for request in bench.script.calls[1]]
    assert asked[0] == bench.pairs[0].teacher_ids  # the student is right: as if it had not tried
    assert WRONG in str(bench.tokenizer.decode(list(asked[1])))
    assert [(target.verdict, target.text) for target in seen] == [("keep", REWRITE)] * 2


def test_a_rank_that_got_no_example_has_no_shares_of_attempts(make):
    bench = make()
    bench.source.begin([], 0)
    assert not [name for name in bench.source.figures() if name.startswith("feedback/")]
