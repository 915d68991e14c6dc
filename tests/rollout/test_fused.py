"""Fused operations give what they stand for, stand only for what they equal, and leave nothing behind."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
from torch import nn
from toys import ask, engine, logits, make, with_adapter
from transformers.models.llama import modeling_llama

from onpolicy_sdft.rollout import fused
from onpolicy_sdft.rollout.cpu import KEY_BLOCK
from onpolicy_sdft.rollout.cpu import passes as cpu_passes
from onpolicy_sdft.rollout.cpu.fusing import CpuPasses, Packed
from onpolicy_sdft.rollout.weights import LocalWeights, can_pack, pack_linear
from onpolicy_sdft.types import SamplingParams

pytestmark = pytest.mark.skipif(not can_pack(), reason="this build of torch has no packed linears")
#: What is fused in each layer (norms, gated units), norms behind the last layer, and whether positions are.
FUSED = {
    "llama": (2, 1, 1, True),
    "qwen2": (2, 1, 1, True),
    "qwen3": (4, 1, 1, True),
    "mistral": (2, 1, 1, True),
    "gemma": (2, 1, 1, True),
    "gemma2": (4, 1, 1, True),
    "gemma3": (6, 1, 1, True),
    "gpt_neox": (0, 0, 0, True),
    "gpt_oss": (2, 0, 1, False),
}


def rotation_of(model):
    return sys.modules[type(model).__module__].apply_rotary_pos_emb


@pytest.mark.parametrize(
    ("family", "adapted"), [*((name, False) for name in FUSED), *((n, True) for n in FUSED if n != "gpt_oss")]
)
def test_what_is_fused_computes_the_models_own_logits_and_is_put_back(family, adapted):
    plain = make(family)
    rotation = rotation_of(plain)
    norms = {m for m in plain.modules() if "RMSNorm" in type(m).__name__}
    units = {m for m in plain.modules() if hasattr(m, "gate_proj")}
    model = with_adapter(plain) if adapted else plain
    own, view = logits(model), LocalWeights(model, True, "packed")
    num_norms, num_units, num_last, rotates = FUSED[family]
    for _ in range(2):
        with view.open():
            assert sum("forward" in m.__dict__ for m in norms) == num_norms * 3 + num_last
            assert sum("forward" in m.__dict__ for m in units) == num_units * 3
            assert (rotation_of(plain) is not rotation) == rotates
            torch.testing.assert_close(logits(model), own, atol=2e-4, rtol=1e-4)
        assert torch.equal(logits(model), own)
        assert rotation_of(plain) is rotation
        assert not any("forward" in m.__dict__ for m in model.modules())


def test_after_an_exception_positions_are_the_models_own_again():
    own = modeling_llama.apply_rotary_pos_emb
    with pytest.raises(RuntimeError, match="inside"), LocalWeights(make("llama"), True, "packed").open():
        raise RuntimeError("inside")
    assert modeling_llama.apply_rotary_pos_emb is own


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_memory_of_weights_can_be_given_back_afterwards(family):
    model = make(family)
    engine(model).generate(ask(2), SamplingParams())
    for parameter in model.parameters():
        parameter.untyped_storage().resize_(0)


class Unit(nn.Module):
    def __init__(self, act_fn, combine=lambda g, u: g * u) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 16), nn.Linear(8, 16, bias=False), nn.Linear(16, 8)
        self.act_fn, self.combine = act_fn, combine

    def forward(self, x):
        return self.down_proj(self.combine(self.act_fn(self.gate_proj(x)), self.up_proj(x)))


class Norm(nn.Module):
    eps = 1e-5

    def __init__(self, scale) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2.0, 8))
        self.scale = scale

    def forward(self, x):
        return x * self.scale(x) * self.weight


def silent(module, weight):
    """A module whose output is zero, whatever it computes."""
    getattr(module, weight).weight.data.zero_()
    module.down_proj.bias.data.zero_()
    return module


def hooked(module, part):
    getattr(module, part).register_forward_hook(lambda module, given, out: out)
    return module


UNITS = {
    "silu": (lambda: Unit(nn.SiLU()), True),
    "gelu, tanh": (lambda: Unit(nn.GELU(approximate="tanh")), True),
    "gelu": (lambda: Unit(nn.GELU()), True),
    "a function": (lambda: Unit(nn.functional.silu), True),
    "relu": (lambda: Unit(nn.ReLU()), False),
    "a sum": (lambda: Unit(nn.SiLU(), lambda g, u: g + u), False),
    "clamped far out": (lambda: Unit(nn.SiLU(), lambda g, u: g.clamp(max=16) * u), False),
    "a clamped activation": (lambda: Unit(lambda x: nn.functional.silu(x).clamp(max=7)), False),
    "zeros": (lambda: silent(Unit(nn.GELU()), "down_proj"), False),
    "a hook": (lambda: hooked(Unit(nn.SiLU()), "up_proj"), False),
    "a hook of the activation": (lambda: hooked(Unit(nn.SiLU()), "act_fn"), False),
}
NORMS = {
    "root mean square": (lambda x: torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5), True),
    "centred": (lambda x: torch.rsqrt(x.var(-1, keepdim=True) + 1e-5), False),
    "epsilon outside the root": (lambda x: 1 / (x.pow(2).mean(-1, keepdim=True).sqrt() + 1e-5), False),
    "another epsilon": (lambda x: torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), False),
}


@pytest.mark.parametrize("name", UNITS)
@torch.no_grad()
def test_a_unit_is_fused_only_if_it_is_what_its_names_say(name):
    make_unit, expected = UNITS[name]
    unit = make_unit()
    x = torch.randn(1, 5, 8)
    own = unit(x)
    packed = {m: Packed(pack_linear(m.weight), m.bias) for m in unit.children() if isinstance(m, nn.Linear)}
    with contextlib.ExitStack() as stack:
        said = fused.fuse(unit, CpuPasses(packed, torch.float32), stack)
        assert ("forward" in unit.__dict__) == expected
        assert said == ("1 gated units" if expected else "nothing")
        torch.testing.assert_close(unit(x), own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NORMS)
@torch.no_grad()
def test_a_norm_is_fused_only_if_it_is_that_norm(name):
    scale, expected = NORMS[name]
    norm = Norm(scale)
    with contextlib.ExitStack() as stack:
        fused.fuse(nn.Sequential(norm, nn.LayerNorm(8), nn.BatchNorm1d(8)).eval(), CpuPasses({}, torch.float32), stack)
        assert ("forward" in norm.__dict__) == expected


class Pair(Norm):
    def forward(self, x, gate=None):
        return (super().forward(x), x) if gate is None else super().forward(x) * gate


@torch.no_grad()
def test_a_module_that_returns_more_than_numbers_keeps_its_own():
    norm = Pair(NORMS["root mean square"][0])
    with contextlib.ExitStack() as stack:
        assert fused.fuse(norm, CpuPasses({}, torch.float32), stack) == "nothing"


@torch.no_grad()
def test_what_a_module_was_not_compared_on_is_its_own():
    norm = make("llama").model.norm
    x = torch.randn(1, 3, 32).bfloat16()
    own = norm(x)
    with contextlib.ExitStack() as stack:
        fused.fuse(norm, CpuPasses({}, torch.float32), stack)
        assert "forward" in norm.__dict__
        assert torch.equal(norm(x), own)
        with torch.enable_grad():
            assert norm(torch.randn(1, 3, 32, requires_grad=True)).grad_fn is not None


def test_what_is_fused_is_decided_by_the_weights_as_they_are_at_each_opening():
    model = make("llama")
    view, unit = LocalWeights(model, True, "packed"), model.model.layers[0].mlp
    down = unit.down_proj.weight.data.clone()
    unit.down_proj.weight.data.zero_()
    with view.open():
        assert "forward" not in unit.__dict__
    unit.down_proj.weight.data.copy_(down)
    with view.open():
        assert "forward" in unit.__dict__


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU has no packed linears of bfloat16")
def test_units_are_fused_in_bfloat16_and_are_near():
    model = make("llama")
    own, view = logits(model), LocalWeights(model, True, "bfloat16")
    with view.open():
        assert view.fused == "3 gated units"
        assert (logits(model).float() - own).abs().mean() < 0.1 * own.std()


def interleaved(q, k, cos, sin, unsqueeze_dim=1):
    def turn(x):
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

    cos, sin = cos[:, None], sin[:, None]
    return q * cos + turn(q) * sin, k * cos + turn(k) * sin


def test_interleaved_positions_keep_their_own(monkeypatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", interleaved)
    with LocalWeights(make("llama"), True, "packed").open():
        assert modeling_llama.apply_rotary_pos_emb is interleaved


def test_positions_keep_their_own_operations_where_a_gradient_is_wanted():
    with LocalWeights(make("llama"), True, "packed").open():
        q = torch.randn(1, 4, 3, 8, requires_grad=True)
        cos = torch.randn(1, 3, 8)
        turned, _ = modeling_llama.apply_rotary_pos_emb(q, q, cos, cos)
        turned.sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize("rows", [1, 3, 3000])
def test_a_norm_in_one_pass_is_the_norm(rows):
    x, weight = torch.randn(2, rows, 24) * 3, torch.randn(24)
    own = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (1 + weight)
    torch.testing.assert_close(cpu_passes.rms_norm(x, weight, 1.0, 1e-5), own)


@pytest.mark.parametrize("tokens", [1, 3, 3000])
def test_positions_in_one_pass_are_the_positions(tokens):
    x = torch.randn(1, tokens, 6, 16).transpose(1, 2)
    cos, sin = torch.randn(1, tokens, 16), torch.randn(1, tokens, 16)
    own, _ = modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(cpu_passes.rotate(x, cos, sin), own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 1500])
@pytest.mark.few(2)
def test_keys_and_values_go_where_they_belong(tokens, dtype):
    slots, length, heads, key_size, value_size = 5, 5 * KEY_BLOCK, 2, 24, 16
    keys = torch.zeros(slots, heads, length // KEY_BLOCK, key_size, KEY_BLOCK, dtype=dtype)
    values = torch.zeros(slots, heads, length, value_size, dtype=dtype)
    expected_keys, expected_values = torch.zeros(slots, heads, length, key_size, dtype=dtype), values.clone()
    places = torch.randperm(slots * length)[:tokens]
    at, positions = places // length, places % length
    new_keys, new_values = torch.randn(tokens, heads, key_size), torch.randn(tokens, heads, value_size)
    new_keys, new_values = new_keys.to(dtype), new_values.to(dtype)
    cpu_passes.store(new_keys, new_values, at, positions, keys, values)
    expected_keys[at, :, positions], expected_values[at, :, positions] = new_keys, new_values
    assert torch.equal(keys.transpose(-1, -2).flatten(2, 3), expected_keys)
    assert torch.equal(values, expected_values)
