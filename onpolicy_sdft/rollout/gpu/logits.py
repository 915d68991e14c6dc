"""What every sampling kernel does to a logit it has loaded."""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)  # the smallest float32
BIG = tl.constexpr(2**31 - 1)  # above every id


@triton.jit
def finish(x, scale, softcap):
    """Return finite float32 logits of what the output layer gave, as ``Head.finish`` and the clamp behind it do."""
    x = x.to(tl.float32)
    if scale is not None:
        x = x * scale
    if softcap is not None:
        x = softcap * (1.0 - 2.0 / (tl.exp(2.0 * x / softcap) + 1.0))  # tanh
    return tl.where(x < LOWEST, LOWEST, x)  # unlike a maximum it keeps nan, which is to be seen
