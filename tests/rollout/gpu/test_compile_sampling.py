"""The kernels that draw a token compile for the cards they are for, with the sizes of real models."""

from __future__ import annotations

import pytest
from compiling import compile_for

from onpolicy_sdft.rollout.gpu import filters, sampling, settle

CARDS = [80, 90]
#: A dtype and a card.
KINDS = [
    ("bf16", 90), ("fp32", 80),
    *(pytest.param(*kind, marks=pytest.mark.slow) for kind in (("bf16", 80), ("fp16", 80), ("fp16", 90), ("fp32", 90))),
]  # fmt: skip
ALIGNED = ("raw_stride", "changed_stride", "x_stride", "vocab", "num_tokens")
ROW = {
    "slots_ptr": "*i64", "lengths_ptr": "*i64", "starts_ptr": "*i64", "words_ptr": "*i64", "temperature_ptr": "*fp32",
    "greedy_ptr": "*i1",
}  # fmt: skip
WRITTEN = {
    "sums_ptr": "*fp32", "picks_ptr": "*i32", "tokens_ptr": "*i64", "logprobs_ptr": "*fp32", "sampling_ptr": "*fp32",
    "entropies_ptr": "*fp32",
}  # fmt: skip
UNCHANGED = {"changed_ptr": None, "changed_stride": None}
PARAMS = {
    "own": {**UNCHANGED, "floors_ptr": None, "scale": None, "softcap": None, "RAW": True},
    "temperature": {**UNCHANGED, "floors_ptr": None, "softcap": None, "RAW": False},
    "filtered": {**UNCHANGED, "scale": None, "RAW": False},
    "penalised": {"RAW": False},
}


def types_of(dtype: str, constants: dict) -> dict[str, str]:
    """The types of what a kernel that reads logits is given and that is not constant."""
    given = {
        "raw_ptr": f"*{dtype}", "raw_stride": "i32", "changed_ptr": "*fp32", "changed_stride": "i32",
        "floors_ptr": "*fp32", **ROW, **WRITTEN, "vocab": "i32", "num_tokens": "i32", "width": "i32", "scale": "fp32",
        "softcap": "fp32",
    }  # fmt: skip
    return {name: kind for name, kind in given.items() if name not in constants}


@pytest.mark.parametrize(("dtype", "capability"), KINDS)
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.few(3)
def test_the_draw_compiles(alone, params, dtype, capability):
    constants = PARAMS[params]
    types = types_of(dtype, constants)
    made = compile_for(
        sampling.survey, capability, types | {"num_tiles": "i32"},
        constants | {"BLOCKS": sampling._BLOCKS, "ALONE": alone}, ALIGNED, num_warps=4,
    )  # fmt: skip
    assert made.shared < 32 << 10  # several programs a multiprocessor
    if not alone:
        shares = {"SHARES": 1 << (sampling.shares_of(1, 256_000)[0] - 1).bit_length()}
        compile_for(
            sampling.conclude, capability, types | {"num_shares": "i32"}, constants | shares, ALIGNED, num_warps=2
        )


@pytest.mark.parametrize(("dtype", "capability"), KINDS)
@pytest.mark.parametrize("softcap", [None, "fp32"])
@pytest.mark.few(1)
def test_the_filters_compile(softcap, dtype, capability):
    types = {
        "x_ptr": f"*{dtype}", "x_stride": "i32", "slots_ptr": "*i64", "temperature_ptr": "*fp32", "top_k_ptr": "*i64",
        "top_p_ptr": "*fp32", "min_p_ptr": "*fp32", "greedy_ptr": "*i1", "floors_ptr": "*fp32", "padding_slot": "i32",
        "vocab": "i32", "width": "i32",
    }  # fmt: skip
    constants = {"scale": None, "IDS": filters._IDS} | ({"softcap": None} if softcap is None else {})
    compile_for(
        filters.floors, capability, types | ({} if softcap is None else {"softcap": softcap}), constants, ALIGNED,
        num_warps=16,
    )  # fmt: skip


@pytest.mark.parametrize("capability", CARDS)
@pytest.mark.parametrize(("width", "stops"), [(1, 1), (8, 2), (16, 4)])
def test_settling_compiles(width, stops, capability):
    kinds = {
        "logprobs_ptr": "*fp32", "sampling_ptr": "*fp32", "entropies_ptr": "*fp32", "recorded_logprobs_ptr": "*fp32",
        "recorded_sampling_ptr": "*fp32", "recorded_entropies_ptr": "*fp32", "done_ptr": "*i1",
        "tokens_stride": "i32", "source_stride": "i32",
        "recorded_stride": "i32", "padding_slot": "i32", "width": "i32", "num_stops": "i32",
    }  # fmt: skip
    constants = {"WIDTH": width, "STOPS": stops}
    types = {name: kinds.get(name, "*i64") for name in settle.settle.arg_names if name not in constants}
    compile_for(settle.settle, capability, types, constants, num_warps=1)
