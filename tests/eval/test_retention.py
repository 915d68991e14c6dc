from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from peft import LoraConfig, get_peft_model

from onpolicy_sdft.config.schema import ContextConfig
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.eval.intervals import ratio_interval
from onpolicy_sdft.eval.retention import BaseCompletion, general_prompts, kl_to_base, write_base_completions
from onpolicy_sdft.models.lora import inner_model
from onpolicy_sdft.rollout.backend import ignore_progress
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.types import Turn

PAD = 257


def given(model) -> Callable[[], contextlib.AbstractContextManager]:
    return lambda: contextlib.nullcontext(model)


def completions(num: int = 5) -> list[BaseCompletion]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(num):
        prompt = torch.randint(0, 256, (3 + i,), generator=generator).tolist()
        answer = [*torch.randint(0, 256, (7 - i,), generator=generator).tolist(), PAD]
        found.append(BaseCompletion(f"g{i}", "?", "?", tuple(prompt), tuple(answer)))
    return found


def naive_kl(seed, tuned, completion: BaseCompletion) -> float:
    ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    with torch.no_grad():
        p, q = (model(ids).logits.double().softmax(-1)[0] for model in (seed, tuned))
    start = len(completion.prompt_ids) - 1
    rows = range(start, start + len(completion.token_ids))
    return sum(float((p[row] * (p[row].log() - q[row].log())).sum()) for row in rows)


def test_sixty_general_prompts_ship_with_unique_ids_and_texts():
    prompts = general_prompts()
    assert len(prompts) == 60
    assert len({name for name, _ in prompts}) == 60
    assert len({text for _, text in prompts}) == 60
    assert all(text == text.strip() and text for _, text in prompts)


def test_more_general_prompts_than_there_are_is_an_error():
    assert len(general_prompts(7)) == 7
    with pytest.raises(ConfigError, match=r"eval\.kl_prompts=61, but there are 60"):
        general_prompts(61)


def test_a_model_is_at_distance_zero_from_itself(tiny_model):
    model = tiny_model()
    found = kl_to_base(model, given(model), completions(), PAD, ignore_progress)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert set(found.sums) == {0.0}


def test_the_distance_equals_a_naive_computation_in_float64(tiny_model):
    seed, tuned = tiny_model(torch.float64, seed=0), tiny_model(torch.float64, seed=1)
    asked = completions()
    found = kl_to_base(tuned, given(seed), asked, PAD, ignore_progress)
    expected = [naive_kl(seed, tuned, completion) for completion in asked]
    num_tokens = sum(len(completion.token_ids) for completion in asked)
    assert found.sums == pytest.approx(expected, abs=1e-10)
    assert found.mean == pytest.approx(sum(expected) / num_tokens, abs=1e-12)
    assert found.low < found.mean < found.high
    assert (found.num_completions, found.num_tokens) == (5, num_tokens)
    assert min(expected) > 0.1


def naive_nll(tuned, completion: BaseCompletion) -> float:
    ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    with torch.no_grad():
        q = tuned(ids).logits.double().softmax(-1)[0]
    start = len(completion.prompt_ids) - 1
    return -sum(float(q[start + place, token].log()) for place, token in enumerate(completion.token_ids))


def test_the_likelihood_of_the_seeds_tokens_equals_a_naive_computation_in_float64(tiny_model):
    seed, tuned = tiny_model(torch.float64, seed=0), tiny_model(torch.float64, seed=1)
    asked = completions()
    found = kl_to_base(tuned, given(seed), asked, PAD, ignore_progress)
    expected = [naive_nll(tuned, completion) for completion in asked]
    counts = [len(completion.token_ids) for completion in asked]
    assert found.nll_sums == pytest.approx(expected, abs=1e-10)
    assert found.nll_mean == pytest.approx(sum(expected) / sum(counts), abs=1e-12)
    assert (found.nll_low, found.nll_high) == ratio_interval(found.nll_sums, counts)
    assert found.nll_low < found.nll_mean < found.nll_high
    of_itself = kl_to_base(seed, given(seed), asked, PAD, ignore_progress)
    assert of_itself.mean == 0.0
    assert of_itself.nll_sums == pytest.approx([naive_nll(seed, completion) for completion in asked], abs=1e-10)


def test_two_completions_alike_are_both_counted(tiny_model):
    seed, tuned = tiny_model(torch.float64, seed=0), tiny_model(torch.float64, seed=1)
    one, other, *_ = completions()
    found = kl_to_base(tuned, given(seed), [one, other, one], PAD, ignore_progress)
    assert found.sums == pytest.approx([naive_kl(seed, tuned, c) for c in (one, other, one)], abs=1e-10)
    assert found.nll_sums == pytest.approx([naive_nll(tuned, c) for c in (one, other, one)], abs=1e-10)


def test_the_direction_is_from_seed_to_tuned(tiny_model):
    one, other = tiny_model(torch.float64, seed=0), tiny_model(torch.float64, seed=1)
    there = kl_to_base(other, given(one), completions(), PAD, ignore_progress)
    back = kl_to_base(one, given(other), completions(), PAD, ignore_progress)
    assert there.mean != pytest.approx(back.mean, rel=1e-3)


def test_the_adapter_switched_off_is_the_seed_as_well_as_a_second_copy(tiny_model):
    seed = tiny_model()
    tuned = get_peft_model(copy.deepcopy(seed), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))

    @contextlib.contextmanager
    def adapter_off() -> Iterator[torch.nn.Module]:
        with tuned.disable_adapter():
            yield inner_model(tuned)

    tuned.train()
    switched = kl_to_base(inner_model(tuned), adapter_off, completions(), PAD, ignore_progress)
    copied = kl_to_base(inner_model(tuned), given(seed), completions(), PAD, ignore_progress)
    assert switched.sums == pytest.approx(copied.sums, abs=1e-5)
    assert switched.mean > 1e-3
    assert tuned.training


def test_progress_is_told_of_every_completion_and_token(tiny_model):
    told: list[tuple[int, int]] = []
    model, asked = tiny_model(), completions()
    kl_to_base(model, given(model), asked, PAD, lambda advance: told.append((advance.num_finished, advance.num_tokens)))
    assert sum(num for num, _ in told) == 5
    assert sum(tokens for _, tokens in told) == sum(len(completion.token_ids) for completion in asked)


def test_the_seed_writes_the_same_completions_every_time(tiny_model, tokenizer):
    renderer = Renderer(tokenizer, ContextConfig())
    written = [
        write_base_completions(HFBackend(tiny_model(), (PAD,), PAD, size), renderer, 4, 5, ignore_progress)
        for size in (3, 4)
    ]
    assert [c.example_id for c in written[0]] == [name for name, _ in general_prompts(4)]
    assert [c.token_ids for c in written[0]] == [c.token_ids for c in written[1]]
    assert all(1 <= len(c.token_ids) <= 5 for c in written[0])
    assert len({c.token_ids for c in written[0]}) == 4
    assert written[0][0].prompt_ids == renderer.student_ids([Turn("user", written[0][0].prompt)])


def test_completions_are_as_long_as_the_context_window_has_room(tiny_model, tokenizer):
    renderer = Renderer(tokenizer, ContextConfig())
    longest = max(len(renderer.student_ids([Turn("user", prompt)])) for _, prompt in general_prompts(2))
    window = longest + 6
    backend = HFBackend(tiny_model(), (PAD,), PAD, 2)
    written = write_base_completions(backend, renderer, 2, 60, ignore_progress, window)
    assert max(len(each.prompt_ids) + len(each.token_ids) for each in written) == window
    with pytest.raises(DataError, match=rf"leaves no room .* {longest} positions .*Fix: --eval\.kl_prompts 0"):
        write_base_completions(backend, renderer, 2, 60, ignore_progress, longest)
