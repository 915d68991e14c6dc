"""The engine on a real model: the tokens of transformers' generate, but for near-ties, whatever its shapes."""

from __future__ import annotations

import pytest
from toys import assert_same_but_for_ties, engine

from onpolicy_sdft import load_config
from onpolicy_sdft.build.bundle import load_bundle
from onpolicy_sdft.build.data import load_rows, make_prompt_pairs
from onpolicy_sdft.rollout.hf import HFBackend
from onpolicy_sdft.types import NoiseKey, RolloutRequest, SamplingParams

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module")
def chat_and_requests():
    config = load_config("configs/online/quickstart.yaml", **{"model.dtype": "float32", "data.limit": 24})
    bundle = load_bundle(config)
    pairs = make_prompt_pairs(config, bundle, *load_rows(config)).prepared.pairs
    return bundle, [
        RolloutRequest(v.teacher_ids, NoiseKey(0, 0, v.demonstration.example_id), 48, (v.response_ids,)) for v in pairs
    ]


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(0.0), SamplingParams(0.6, top_p=0.9)], ids=str)
def test_tokens_are_generates_but_for_near_ties(chat_and_requests, params):
    bundle, requests = chat_and_requests
    model = bundle.loaded.model.eval()
    theirs = HFBackend(model, bundle.stop_token_ids, bundle.pad_token_id, 8).generate(requests, params)
    for shape in ({"num_slots": 24, "max_draft_tokens": 0}, {"num_slots": 5, "max_draft_tokens": 8}):
        one = engine(model, bundle.stop_token_ids, **shape)
        for asked, expected in ((requests, theirs), (requests[::-1], theirs[::-1])):
            ours = one.generate(asked, params)
            assert_same_but_for_ties(model, ours, expected, params)
            same = sum(a.token_ids == b.token_ids for a, b in zip(ours, expected, strict=True))
            assert same >= len(requests) - 2  # near-ties are rare
