"""The screen as a run makes it: with the tokenizer's control tokens and the template's wording."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from onpolicy_sdft.build.method import make_screen
from onpolicy_sdft.config.schema import RunConfig
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.screening.screen import Screen
from onpolicy_sdft.tasks.free_form import FreeForm
from onpolicy_sdft.types import Demonstration, NoiseKey, PromptPair, Rollout, Turn


def made(tokenizer: Any, template: str = "reference") -> tuple[Screen, Renderer]:
    config = RunConfig()
    config.context.template = template
    renderer = Renderer(tokenizer, config.context)
    none: Any = None
    bundle: Any = SimpleNamespace(renderer=renderer)
    data: Any = SimpleNamespace(task=FreeForm(), prepared=none)
    return make_screen(config, bundle, data, num_workers=0), renderer


def make_pair(renderer: Renderer, response: str) -> PromptPair:
    demonstration = Demonstration("id-0", (Turn("user", "Where?"),), response)
    return PromptPair(demonstration, (1,), (1, 2), renderer.response_ids(response))


def rollout(ids: tuple[int, ...]) -> Rollout:
    numbers = (0.0,) * len(ids)
    return Rollout(NoiseKey(0, 0, "id-0"), (1,), ids, numbers, numbers, numbers, "stop")


def test_a_control_token_inside_a_rollout_is_a_reason_and_is_shown(tokenizer: Any) -> None:
    screen, renderer = made(tokenizer)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    whole = renderer.response_ids("Paris")
    broken = (*whole[:2], start, *whole[2:])
    target = screen.judge(make_pair(renderer, "Paris"), rollout(broken), 0)
    assert (target.verdict, target.reason) == ("fallback", "control")
    assert "<|im_start|>" in screen.decode(broken)
    target = screen.judge(make_pair(renderer, "Paris"), rollout(whole), 0)
    assert (target.verdict, target.reason) == ("keep", "")


def test_the_wording_of_the_runs_own_template_is_talk_about_the_demonstration(tokenizer: Any) -> None:
    text = "This is how somebody else answered: Paris."
    for template, reason in (("explain", "banned"), ("acl_gsm8k", "")):
        screen, renderer = made(tokenizer, template)
        target = screen.judge(make_pair(renderer, "It is Paris, I think."), rollout(renderer.response_ids(text)), 0)
        assert target.reason == reason


def test_a_rollout_that_stopped_at_another_token_is_learned_with_the_templates(tokenizer: Any) -> None:
    screen, renderer = made(tokenizer)
    whole, other = renderer.response_ids("Paris"), tokenizer.bos_token_id
    target = screen.judge(make_pair(renderer, "Paris"), rollout((*whole[:-1], other)), 0)
    assert (target.verdict, target.token_ids) == ("keep", whole)
