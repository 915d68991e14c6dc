from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from onpolicy_sdft.config.schema import ContextConfig, EvalConfig
from onpolicy_sdft.data.eval_sets import EvalSet
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.eval.answers import EVAL_STEP, Asking, Kept, answer_prompts, digest, remove_kept, write_in_chunks
from onpolicy_sdft.eval.runner import score_set
from onpolicy_sdft.rollout.backend import ignore_progress
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.runs.files import read_jsonl
from onpolicy_sdft.tasks.exact import Exact
from onpolicy_sdft.types import Demonstration, NoiseKey, RolloutRequest, SamplingParams, Turn

END = 257
NAMES = tuple("abcdefghij")


def requests(num: int) -> list[RolloutRequest]:
    return [RolloutRequest(tuple(range(1 + i % 3)), NoiseKey(0, EVAL_STEP, f"q{i}"), 5) for i in range(num)]


class Writer:
    """Writes numbered records and remembers what it was asked; dies on request."""

    def __init__(self, dies_at_call: int | None = None) -> None:
        self.calls: list[list[int]] = []
        self.dies_at_call = dies_at_call

    def __call__(self, indices: Sequence[int]) -> tuple[list[dict[str, Any]], float]:
        if len(self.calls) == self.dies_at_call:
            raise KeyboardInterrupt
        self.calls.append(list(indices))
        return [{"answer": f"answer {index}"} for index in indices], 1.0


def kept(tmp_path: Path, weights: str = "w", size: int = 4) -> Kept:
    return Kept(tmp_path / "partial" / "set.jsonl", weights, size)


@pytest.mark.parametrize("dies_at_call", [0, 1, 2])
def test_an_interrupted_call_goes_on_after_the_last_whole_chunk(tmp_path, dies_at_call):
    asked = requests(10)
    with pytest.raises(KeyboardInterrupt):
        write_in_chunks(asked, Writer(dies_at_call), "what", kept=kept(tmp_path))
    writer = Writer()
    told = []
    records, seconds = write_in_chunks(
        asked, writer, "what", lambda advance: told.append(advance.num_finished), kept=kept(tmp_path)
    )
    assert [record["answer"] for record in records] == [f"answer {i}" for i in range(10)]
    assert [index for call in writer.calls for index in call] == list(range(4 * dies_at_call, 10))
    assert seconds == 3.0, "the seconds of the interrupted call count"
    assert sum(told) == 4 * dies_at_call


def test_a_chunk_that_was_cut_short_on_disk_is_written_again(tmp_path):
    mine = kept(tmp_path)
    write_in_chunks(requests(8), Writer(), "what", kept=mine)
    whole = mine.path.read_bytes()
    mine.path.write_bytes(whole[:-20])
    writer = Writer()
    records, _ = write_in_chunks(requests(8), writer, "what", kept=mine)
    assert writer.calls == [[4, 5, 6, 7]]
    assert len(records) == 8
    assert mine.path.read_bytes() == whole


def test_a_file_damaged_elsewhere_is_an_error_and_no_answer(tmp_path):
    mine = kept(tmp_path)
    write_in_chunks(requests(8), Writer(), "what", kept=mine)
    mine.path.write_bytes(mine.path.read_bytes().replace(b'"seconds"', b'"seco', 1))
    with pytest.raises(RunDirectoryError, match="line 2 is damaged"):
        write_in_chunks(requests(8), Writer(), "what", kept=mine)


@pytest.mark.parametrize(("weights", "asked"), [("others", "what"), ("w", "other questions")])
def test_answers_of_other_weights_or_to_other_questions_are_never_taken(tmp_path, weights, asked, logged):
    write_in_chunks(requests(8), Writer(), "what", kept=kept(tmp_path))
    writer = Writer()
    write_in_chunks(requests(8), writer, asked, kept=kept(tmp_path, weights))
    assert len(writer.calls) == 2
    assert "written anew" in logged[0]
    assert read_jsonl(kept(tmp_path).path)[0] == {"weights": weights, "asked": asked}


def test_nothing_is_kept_where_nothing_is_asked_to_be(tmp_path):
    writer = Writer()
    write_in_chunks(requests(9), writer, "what")
    assert writer.calls == [list(range(9))]
    assert not list(tmp_path.iterdir())


def test_removing_takes_the_directory_along_once_it_is_empty(tmp_path):
    first, second = tmp_path / "partial" / "a.jsonl", tmp_path / "partial" / "b.jsonl"
    first.parent.mkdir()
    first.touch()
    second.touch()
    remove_kept(first)
    assert second.is_file()
    remove_kept(second)
    assert not first.parent.exists()
    remove_kept(first)


class Meeting:
    """Ranks that are threads of this process."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks, self.values = num_ranks, [None] * num_ranks
        self.barrier = threading.Barrier(num_ranks, timeout=20)

    def of(self, rank: int) -> Any:
        meeting = self

        class Mine:
            num_ranks = meeting.num_ranks

            def gather(self, value: Any) -> list[Any]:
                meeting.values[rank] = value
                meeting.barrier.wait()
                found = list(meeting.values)
                meeting.barrier.wait()
                return found

            def on_first(self, function: Callable[[], Any]) -> Any:
                return self.gather(function() if rank == 0 else None)[0]

        mine = Mine()
        mine.rank = rank
        return mine


def together(num_ranks: int, job: Callable[[Any], Any]) -> list[Any]:
    meeting, results = Meeting(num_ranks), [None] * num_ranks

    def work(rank: int) -> None:
        results[rank] = job(meeting.of(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_each_chunk_and_take_up_what_another_number_of_them_left(tmp_path, num_ranks):
    asked = requests(23)
    with pytest.raises(KeyboardInterrupt):
        write_in_chunks(asked, Writer(dies_at_call=1), "what", kept=kept(tmp_path))
    writers = [Writer() for _ in range(num_ranks)]

    def job(ranks: Any) -> Any:
        return write_in_chunks(asked, writers[ranks.rank], "what", ranks=ranks, kept=kept(tmp_path, size=3))

    found = together(num_ranks, job)
    assert all(records == found[0][0] for records, _ in found)
    assert [record["answer"] for record in found[0][0]] == [f"answer {i}" for i in range(23)]
    written = [index for writer in writers for call in writer.calls for index in call]
    assert sorted(written) == list(range(4, 23)), "each once, by one rank"
    assert all(len(writer.calls) == len(writers[0].calls) for writer in writers), "ranks make the same calls"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_real_model_gives_the_same_score_with_and_without_an_interruption(
    tmp_path, tokenizer, tiny_model, temperature
):
    """Noise is keyed: what an interrupted evaluation had left to answer comes out as it would have."""
    renderer = Renderer(tokenizer, ContextConfig())
    rows = [Demonstration(name, (Turn("user", f"say {name}"),), name) for name in NAMES]
    questions = EvalSet("mine", rows, Exact(), max_new_tokens=6, retention=False)
    config = EvalConfig(temperature=temperature, num_samples=2 if temperature else 1)

    class Dies(HFBackend):
        calls = 0

        def generate(self, asked, params, on_progress=ignore_progress):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().generate(asked, params, on_progress)

    def backend(kind: type[HFBackend] = HFBackend) -> HFBackend:
        return kind(tiny_model(), (END,), END, batch_size=4)

    whole = score_set(questions, backend(), renderer, config, ignore_progress)
    with pytest.raises(KeyboardInterrupt):
        score_set(questions, backend(Dies), renderer, config, ignore_progress, kept=kept(tmp_path, size=3))
    assert sum(len(line.get("records", ())) for line in read_jsonl(kept(tmp_path).path)) == 6
    again = score_set(questions, backend(), renderer, config, ignore_progress, kept=kept(tmp_path, size=3))
    assert again.records == whole.records
    facts = ("score", "low", "high", "n", "pass_at_k", "pass_at", "mean_length", "truncated_rate")
    assert [getattr(again, name) for name in facts] == [getattr(whole, name) for name in facts]


def test_the_digest_tells_prompts_keys_lengths_laws_and_what_is_added_apart():
    one = [RolloutRequest((1, 2), NoiseKey(0, EVAL_STEP, "a"), 5)]
    others = [
        digest([RolloutRequest((1, 3), NoiseKey(0, EVAL_STEP, "a"), 5)], SamplingParams()),
        digest([RolloutRequest((1, 2), NoiseKey(1, EVAL_STEP, "a"), 5)], SamplingParams()),
        digest([RolloutRequest((1, 2), NoiseKey(0, EVAL_STEP, "a"), 6)], SamplingParams()),
        digest(one, SamplingParams(temperature=0.0)),
        digest(one, SamplingParams(), "a task"),
        digest([*one, *one], SamplingParams()),
    ]
    assert len({digest(one, SamplingParams()), *others}) == 7
    assert digest(one, SamplingParams()) == digest(list(one), SamplingParams())


def test_answers_that_nobody_checks_keep_the_tokens_of_prompt_and_answer(tmp_path, tokenizer, tiny_model):
    renderer = Renderer(tokenizer, ContextConfig())
    prompts = [Demonstration(name, (Turn("user", f"say {name}"),), "") for name in NAMES[:4]]
    backend = HFBackend(tiny_model(), (END,), END, batch_size=4)
    found = answer_prompts(
        prompts, backend, renderer, Asking(5, temperature=0.0, seed=0), ignore_progress, kept(tmp_path, size=3)
    )
    assert [record["prompt"] for record in found] == [prompt.prompt for prompt in prompts]
    assert [tuple(record["prompt_ids"]) for record in found] == [renderer.student_ids(p.turns) for p in prompts]
    assert [record["completion"] for record in found] == [renderer.decode(record["token_ids"]) for record in found]
    assert all(record["finish_reason"] == "length" for record in found if END not in record["token_ids"])
