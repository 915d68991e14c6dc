"""Row-wise distributions against transformers' warpers, and the draw in two moves against one move."""

from __future__ import annotations

import pytest
import tokenizers
import torch
from scipy import stats
from tokenizers.models import Unigram, WordLevel
from transformers import PreTrainedTokenizerFast

from onpolicy_sdft.rollout.noise import key_words
from onpolicy_sdft.rollout.sampling import BatchSamplingParams, Vocabulary, draw, likeliest, warpers
from onpolicy_sdft.types import NoiseKey, SamplingParams

CPU = torch.device("cpu")
PARAMS = [
    SamplingParams(),
    SamplingParams(0.6),
    SamplingParams(1.3, top_k=7),
    SamplingParams(top_p=0.7),
    SamplingParams(0.9, top_k=60, top_p=0.8),
    SamplingParams(min_p=0.1),
    SamplingParams(0.5, top_k=30, top_p=0.95, min_p=0.01),
    SamplingParams(top_p=0.999),
    SamplingParams(0.8, repetition_penalty=1.4),
    SamplingParams(top_k=5, repetition_penalty=0.7),
]


@pytest.mark.parametrize("num_candidates", [8, 512, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_many_distributions_are_what_transformers_warpers_give_each_alone(num_candidates, dtype):
    logits = torch.randn(len(PARAMS), 300, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 3
    prefixes = torch.randint(0, 300, (len(PARAMS), 40), generator=torch.Generator().manual_seed(2))
    lengths = torch.arange(len(PARAMS)) * 4 + 1
    batch_params = BatchSamplingParams.of(PARAMS, Vocabulary(300), CPU)
    ours = batch_params.process(batch_params.penalise(logits, prefixes, lengths), num_candidates)
    for row, params in enumerate(PARAMS):
        theirs = warpers(params)(prefixes[row : row + 1, : lengths[row]], logits[row : row + 1].clone())
        torch.testing.assert_close(ours[row : row + 1], theirs, msg=str(params))


@pytest.mark.parametrize("num_candidates", [8, None])
def test_ids_without_a_token_are_left_out_before_every_filter(num_candidates):
    logits = torch.randn(len(PARAMS), 300, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    missing = [0, 63, 64, 279]
    logits[:, [*missing, *range(280, 300)]] += 9.0
    prefixes = torch.randint(0, 280, (len(PARAMS), 40), generator=torch.Generator().manual_seed(2))
    lengths = torch.arange(len(PARAMS)) * 4 + 1
    batch_params = BatchSamplingParams.of(PARAMS, Vocabulary(280, tuple(missing)), CPU)
    ours = batch_params.process(batch_params.penalise(logits, prefixes, lengths), num_candidates)
    for row, params in enumerate(PARAMS):
        kept = logits[row : row + 1, :280].index_fill(1, torch.tensor(missing), -torch.inf)
        theirs = warpers(params)(prefixes[row : row + 1, : lengths[row]], kept)
        torch.testing.assert_close(ours[row : row + 1], theirs, msg=str(params))


def test_records_leave_out_ids_without_a_token_in_the_sampling_distribution_alone():
    logits = torch.randn(64, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    keys = key_words([NoiseKey(0, step, "x") for step in range(64)])
    batch_params = BatchSamplingParams.of([SamplingParams()] * 64, Vocabulary(280), CPU)
    places = torch.zeros(64, dtype=torch.int64)
    drawn = draw(logits, batch_params.process(logits), batch_params.greedy_B, keys, places)
    assert int(drawn.token_ids.max()) < 280
    chosen = drawn.token_ids[:, None]
    torch.testing.assert_close(drawn.logprobs, logits.log_softmax(-1).gather(-1, chosen)[:, 0])
    torch.testing.assert_close(drawn.sampling_logprobs, logits[:, :280].log_softmax(-1).gather(-1, chosen)[:, 0])


def test_rows_can_be_picked_and_overwritten():
    batch_params = BatchSamplingParams.of(PARAMS, Vocabulary(300), CPU)
    picked = batch_params[torch.tensor([3, 1])]
    assert picked.top_p_B.tolist() == pytest.approx([0.7, 1.0])
    picked.put(torch.tensor([0]), batch_params, torch.tensor([2]))
    assert picked.top_k_B.tolist() == [7, 300]


@pytest.mark.parametrize("vocab_size", [5, 64, 130])
def test_a_draw_in_two_moves_follows_the_distribution(vocab_size):
    logits = torch.linspace(-2, 2, vocab_size)[torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0))]
    num = 20_000
    keys = key_words([NoiseKey(0, step, "x") for step in range(num)])
    batch = logits.expand(num, -1).clone()
    drawn = draw(batch, batch, torch.zeros(num, dtype=torch.bool), keys, torch.zeros(num, dtype=torch.int64))
    counts = torch.bincount(drawn.token_ids, minlength=vocab_size)
    assert stats.chisquare(counts, torch.softmax(logits.double(), -1) * num, sum_check=False).pvalue > 1e-3


def test_what_is_recorded_with_a_draw_is_the_distribution_it_came_from():
    logits = torch.randn(6, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    greedy = torch.tensor([False] * 5 + [True])
    processed = logits / 0.7
    found = draw(logits, processed, greedy, key_words([NoiseKey(0, 0, str(i)) for i in range(6)]), torch.arange(6))
    raw, params, rows = torch.log_softmax(logits, -1), torch.log_softmax(processed, -1), torch.arange(6)
    torch.testing.assert_close(found.logprobs, raw[rows, found.token_ids])
    torch.testing.assert_close(found.sampling_logprobs[:5], params[rows, found.token_ids][:5])
    torch.testing.assert_close(found.entropies, -(raw.exp() * raw).sum(-1))
    assert found.sampling_logprobs[5] == 0.0
    assert found.token_ids[5] == logits[5].argmax()


def test_the_noise_is_asked_for_by_id_so_that_laws_with_fewer_tokens_draw_as_before():
    """A distribution that keeps what was drawn draws it again: masking others does not move the noise."""
    logits = torch.randn(200, 40, generator=torch.Generator().manual_seed(3))
    words = key_words([NoiseKey(0, i, "x") for i in range(200)])
    none, place = torch.zeros(200, dtype=torch.bool), torch.zeros(200, dtype=torch.int64)
    whole = draw(logits.clone(), logits, none, words, place).token_ids
    fewer = logits.scatter(1, ((whole + 1) % 40)[:, None], -torch.inf)
    assert torch.equal(draw(logits.clone(), fewer, none, words, place).token_ids, whole)


def test_the_likeliest_come_with_their_logprobs():
    logits = torch.randn(3, 50, dtype=torch.float64)
    top = likeliest(logits, 4)
    torch.testing.assert_close(top.logprobs, torch.log_softmax(logits, -1).topk(4).values)
    assert likeliest(logits, 99).token_ids.shape == (3, 50)


def test_ids_between_a_tokenizers_own_have_no_token_but_pieces_that_stand_twice_do():
    words = tokenizers.Tokenizer(WordLevel({"a": 0, "b": 3, "c": 4, "<unk>": 6}, unk_token="<unk>"))
    found = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=words), (9,))
    assert found == Vocabulary(10, (1, 2, 5, 7, 8))
    assert found.without_token(12) == [1, 2, 5, 7, 8, 10, 11]
    assert found.within(5) == Vocabulary(5, (1, 2))
    pieces = tokenizers.Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0), ("a", -2.0), ("b", -3.0)], 0))
    assert Vocabulary.of(PreTrainedTokenizerFast(tokenizer_object=pieces)) == Vocabulary(4)
