"""Sampling from the normalised product of the teacher's and the bare prompt's distributions.

Tokens are drawn in ``decode.sample_and_verify``; here are the mixture and the pairs of slots it is written in.

A blended request has a slot for its own prompt (the teacher's, with the demonstration) and a partner for the bare
prompt. Both hold the same completion. With p of the first and s of the second, tokens are drawn from

    q_b(y) = p(y)^(1 - b) s(y)^b / Z,    b in [0, 1],

which is what the mixed logits (1 - b) log p + b log s give: at b = 0 the prompt's own distribution, at b = 1 the bare
prompt's. Where a budget is given, b is the smallest that is not below the asked-for weight and keeps KL(q_b || s)
within it.

Sources: the product of teacher and student as a target, DemoPSD (arXiv:2607.02502), of divergences there; the bound on
its distance, iSDFT (arXiv:2609.24646).

Shape letters: S slots (row S is the padding slot), C places of a completion, B rows, Q tokens of a row, N tokens that
are drawn, M tokens of a forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from onpolicy_sdft.models.policy import Head
    from onpolicy_sdft.rollout.slots import SlotTexts
    from onpolicy_sdft.types import Blend

_BISECTIONS = 16  # b is known to 2^-16: the divergence is then off by less than rounding makes it in float32


@dataclass
class Pairs:
    """Which slot is whose partner, how their distributions are mixed, and what is recorded of it; a row each slot."""

    partners: torch.Tensor  # [S+1] int64; the padding slot where a slot has none
    weights: torch.Tensor  # [S+1]
    budgets: torch.Tensor  # [S+1] nats; inf: none
    bare_logprobs: torch.Tensor  # [S+1, C]
    blends: torch.Tensor  # [S+1, C]
    is_budgeted: bool = False  # some request of the call has a budget

    @staticmethod
    def make(num_slots: int, longest: int, dtype: torch.dtype, device: torch.device) -> Pairs:
        """Allocate for ``num_slots`` and the padding slot."""

        def real(*shape: int) -> torch.Tensor:
            return torch.zeros(num_slots + 1, *shape, dtype=dtype, device=device)

        partners = torch.zeros(num_slots + 1, dtype=torch.int64, device=device)
        return Pairs(partners, real(), real(), real(longest), real(longest))

    def reset(self) -> None:
        """Leave every slot without a partner."""
        self.partners.fill_(len(self.partners) - 1)
        self.weights.zero_()
        self.budgets.fill_(torch.inf)

    def seat(self, slots: Sequence[int], partner_of: Mapping[int, int], blends: Sequence[Blend | None]) -> None:
        """Note the partners of newly filled slots, and how each pair is blended."""
        budgets = [torch.inf if blend is None or blend.budget is None else blend.budget for blend in blends]
        for buffer, values in (
            (self.partners, [partner_of.get(slot, len(self.partners) - 1) for slot in slots]),
            (self.weights, [0.0 if blend is None else blend.weight for blend in blends]),
            (self.budgets, budgets),
        ):
            buffer[slots] = torch.tensor(values, dtype=buffer.dtype, device=buffer.device)

    def level(self, texts: SlotTexts, slots_B: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the next ``width`` tokens of slots, pending one and drafts, behind what their partners hold.

        Returns:
            The partners, [B], and the position of the pending token in each, [B]; 0 in the padding slot.
        """
        partners_B = self.partners[slots_B]
        lengths_B = texts.lengths[slots_B]
        firsts_B = texts.starts[partners_B] + lengths_B - texts.starts[slots_B]
        firsts_B = torch.where(partners_B < len(self.partners) - 1, firsts_B, 0)
        offsets_Q = torch.arange(width, device=slots_B.device)
        pending_BQ = texts.tokens[slots_B[:, None], lengths_B[:, None] + offsets_Q]
        texts.tokens[partners_B[:, None], firsts_B[:, None] + offsets_Q] = pending_BQ
        return partners_B, firsts_B


@dataclass(frozen=True, slots=True)
class Blended:
    """Logits at temperature 1 of tokens that are drawn; those of a slot without a partner are its own."""

    own_NV: torch.Tensor
    bare_NV: torch.Tensor
    mixed_NV: torch.Tensor
    weights_N: torch.Tensor  # b

    @staticmethod
    def of(pairs: Pairs, slots_N: torch.Tensor, raw_MV: torch.Tensor, pair_N: torch.Tensor, head: Head) -> Blended:
        """Mix what the output layer gave.

        Args:
            pairs: How to mix.
            slots_N: Slot of each token that is drawn.
            raw_MV: Of the forward: the N tokens, then those of their partners; may be overwritten.
            pair_N: Which of the M tokens is the partner of each; the token itself where it has none.
            head: Turns raw values into logits.
        """
        bare_NV = _finite(head.finish(raw_MV[pair_N]))
        own_NV = _finite(head.finish(raw_MV[: len(slots_N)]))
        weights_N = pairs.weights[slots_N].to(own_NV.dtype)
        if pairs.is_budgeted:
            weights_N = within_budget(own_NV, bare_NV, weights_N, pairs.budgets[slots_N].to(own_NV.dtype))
        return Blended(own_NV, bare_NV, mix(own_NV, bare_NV, weights_N), weights_N)


def mix(own_NV: torch.Tensor, bare_NV: torch.Tensor, weights_N: torch.Tensor) -> torch.Tensor:
    """Return the logits of the blended distribution; exactly one or the other at weights 0 and 1."""
    return torch.lerp(own_NV, bare_NV, weights_N[:, None])


def within_budget(
    own_NV: torch.Tensor, bare_NV: torch.Tensor, least_N: torch.Tensor, budgets_N: torch.Tensor
) -> torch.Tensor:
    """Return the least weights [N], at least ``least_N``, whose distribution is within a budget of the bare prompt's.

    KL(q_b || s) never rises with b: with d = log p - log s and a = 1 - b, its derivative by a is a Var_q(d). So b is
    found by halving, always as often: nothing is read back from the device.
    """
    bare_NV = torch.log_softmax(bare_NV, -1)

    def fits(weights_N: torch.Tensor) -> torch.Tensor:
        return divergence(own_NV, bare_NV, weights_N) <= budgets_N

    fits_already_N = fits(least_N)
    low_N, high_N = least_N, torch.ones_like(least_N)
    for _ in range(_BISECTIONS):
        middle_N = (low_N + high_N) / 2
        fits_N = fits(middle_N)
        low_N, high_N = torch.where(fits_N, low_N, middle_N), torch.where(fits_N, middle_N, high_N)
    return torch.where(fits_already_N, least_N, high_N)


def divergence(own_NV: torch.Tensor, bare_NV: torch.Tensor, weights_N: torch.Tensor) -> torch.Tensor:
    """Return KL(q_b || s) in nats, [N], for finite logits p and log-probabilities s."""
    mixed_NV = torch.log_softmax(mix(own_NV, bare_NV, weights_N), -1)
    return (mixed_NV.exp() * (mixed_NV - bare_NV)).sum(-1)


def _finite(logits_NV: torch.Tensor) -> torch.Tensor:
    return logits_NV.clamp_(min=torch.finfo(logits_NV.dtype).min)  # 0 * -inf would be nan
