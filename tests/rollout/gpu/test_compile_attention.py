"""Attention and the passes around it compile for the cards they are for, within a card's shared memory."""

from __future__ import annotations

import pytest
from compiling import SHARED_MEMORY, compile_for

from onpolicy_sdft.rollout.gpu import attention, passes

CARDS = [80, 90]
SMALL_CARD = 99 << 10  # bytes of shared memory of a block on consumer cards
KINDS = {"bf16": 2, "fp16": 2, "fp32": 4}
#: Head size, value size, query heads a key-value head.
HEADS = {"64": (64, 64, 3), "96": (96, 96, 1), "128": (128, 128, 7), "256": (256, 256, 8), "mixed": (192, 128, 4)}
#: Query rows of a tile, tokens a tile of a grid, parts of the keys.
SHAPES = {"prompt": (64, 0, 1), "row": (16, 1, 1), "split row": (16, 1, 8), "drafts": (64, 9, 1)}
CONSTANTS = {"G", "D", "DP", "E", "EP", "ROWS", "KEYS", "WIDTH", "TOKENS", "SPLITS", "SOFTCAP", "SINKS", "PRECISION"}


def types_of(kernel, constants, **kinds):
    """Pointers by name, strides and sizes as integers."""
    return {name: kinds.get(name, "i32") for name in kernel.arg_names if name not in constants}


def compile_attention(kind, heads, shape, capability, shared_memory, **more):
    (size, value_size, group), (rows, width, splits) = HEADS[heads], SHAPES[shape]
    itemsize, wide = KINDS[kind], {"D": attention._power(size), "E": attention._power(value_size)}
    blocks = attention.choose_blocks(rows, wide["D"], wide["E"], itemsize, shared_memory)
    constants = {
        "G": group, "D": size, "DP": wide["D"], "E": value_size, "EP": wide["E"], "ROWS": rows, "KEYS": blocks.keys,
        "WIDTH": width, "TOKENS": max(1, rows // group), "SPLITS": splits, "SOFTCAP": False, "SINKS": False,
        "PRECISION": "ieee" if kind == "fp32" else "tf32", **more,
    }  # fmt: skip
    whole, narrow = dict.fromkeys(("slots_ptr", "positions_ptr", "tiles_ptr"), "*i64"), f"*{kind}"
    pointers = dict.fromkeys(("q_ptr", "keys_ptr", "values_ptr", "sinks_ptr"), narrow)
    facts = {"largest_ptr": "*fp32", "total_ptr": "*fp32", "out_ptr": "*fp32" if splits > 1 else narrow}
    types = types_of(attention.attend_tiles, CONSTANTS, **whole, **pointers, **facts, scale="fp32", softcap="fp32")
    aligned = [name for name, type_ in types.items() if type_ == "i32" and name != "window"]
    made = compile_for(
        attention.attend_tiles, capability, types, constants, aligned, num_warps=4, num_stages=blocks.stages
    )
    assert made.shared <= shared_memory
    if splits > 1:
        join = {name: constants[name] for name in ("G", "E", "EP", "ROWS", "WIDTH", "TOKENS", "SPLITS", "SINKS")}
        kinds = facts | pointers | {"parts_ptr": "*fp32", "out_ptr": narrow}
        compile_for(attention.join_parts, capability, types_of(attention.join_parts, join, **kinds), join, num_warps=4)


@pytest.mark.parametrize("capability", CARDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("heads", ["64", "128", "256"])
@pytest.mark.few(4)
def test_attention_compiles_within_the_shared_memory_of_the_card(heads, shape, capability):
    compile_attention("bf16", heads, shape, capability, SHARED_MEMORY[capability])


@pytest.mark.parametrize(
    ("kind", "heads"),
    [("bf16", "256"), ("bf16", "mixed"), ("fp16", "96"), ("fp32", "64"), ("fp32", "128"), ("fp32", "256")],
)
@pytest.mark.few(1)
def test_attention_fits_a_small_card(kind, heads):
    compile_attention(kind, heads, "prompt", 80, SMALL_CARD)


@pytest.mark.parametrize("capability", CARDS)
@pytest.mark.parametrize("more", [{"SOFTCAP": True}, {"SINKS": True}], ids=["softcap", "sinks"])
@pytest.mark.few(1)
def test_other_scorings_compile(more, capability):
    for shape in ("prompt", "split row"):
        compile_attention("bf16", "64", shape, capability, SHARED_MEMORY[capability], **more)


@pytest.mark.parametrize("capability", CARDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.few(1)
def test_the_passes_compile(kind, capability):
    numbers = f"*{kind}"

    def compiled(kernel, constants, warps, **kinds):
        pointers = {name: numbers for name in kernel.arg_names if name.endswith("_ptr")}
        compile_for(kernel, capability, types_of(kernel, constants, **pointers | kinds), constants, num_warps=warps)

    where = {"slots_ptr": "*i64", "positions_ptr": "*i64"}
    compiled(attention.store_tokens, {"D": 80, "DP": 128, "E": 64, "EP": 64}, 1, **where)
    for round_first in (True, False):
        norm = {"SIZE": 4096, "ROUND": round_first}
        compiled(passes.norm_rows, norm, 4, epsilon="fp32", offset="fp32")
    for activation in passes.ACTIVATIONS.values():
        compiled(passes.gate_rows, {"ACTIVATION": activation, "SIZE": 1024}, 4)
    compiled(passes.rotate_rows, {"HALF": 40, "HALF_P": 64}, 1)
    for half, norm in ((32, True), (32, False), (16, False)):
        heads = {"NUM_Q": 14, "NUM_K": 2, "D": 64, "HALF": half, "SIZE": half, "NORM": norm, "ROUND": True}
        compiled(passes.place_heads, heads, 1, epsilon="fp32", offset="fp32", **where)


def test_a_card_is_never_asked_for_more_than_it_has():
    for itemsize in (2, 4):
        for size in (16, 32, 64, 128, 256):
            for rows in (16, 32, 64):
                blocks = attention.choose_blocks(rows, size, size, itemsize, SMALL_CARD)
                assert blocks.keys >= 16
                assert blocks.stages >= 1
