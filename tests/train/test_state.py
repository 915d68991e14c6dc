from __future__ import annotations

from onpolicy_sdft.train.state import TrainState, Update
from onpolicy_sdft.types import Demonstration, NoiseKey, PromptPair, Rollout, Target, Turn


def test_a_step_without_an_update_learned_no_text():
    pair = PromptPair(Demonstration("a", (Turn("user", "q"),), "r"), (1,), (1, 2), (7, 8))
    rollout = Rollout(NoiseKey(0, 0, "a"), (1, 2), (5, 6), (-1.0,) * 2, (-1.0,) * 2, (0.5,) * 2, "stop")
    target, state = Target(pair, (5, 6), "text", "keep", "", rollout), TrainState()
    state.advance(Update(0.1, 1, 2, 2, 0.0, skipped="not_finite"), [target])
    assert (state.step, state.num_updates, state.learned) == (1, 0, {})
    state.advance(Update(0.1, 1, 2, 2, 0.0), [target])
    assert (state.step, state.num_updates, list(state.learned)) == (2, 1, ["a"])
