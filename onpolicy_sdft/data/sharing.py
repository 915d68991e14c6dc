"""Which rank does what: work is dealt out by its expected size, the same way on every rank."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy_sdft.types import T


def shard_by_length(sizes: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Deal items to ranks so that their sums of sizes are close: largest first, each to the rank with the least.

    Args:
        sizes: Expected size of each item.
        num_ranks: Number of ranks.

    Returns:
        The indices of each rank's items, in ascending order; some may have none.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    sums = [0.0] * num_ranks
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        rank = min(range(num_ranks), key=lambda rank: (sums[rank], len(shares[rank]), rank))
        shares[rank].append(index)
        sums[rank] += sizes[index]
    return [sorted(share) for share in shares]


def shard_groups(sizes: Sequence[float], group_size: int, num_ranks: int) -> list[list[int]]:
    """Deal items as :func:`shard_by_length` does, so many neighbours to the same rank each.

    Args:
        sizes: Expected size of each item; a multiple of ``group_size``.
        group_size: Items of a group.
        num_ranks: Number of ranks.
    """
    groups = [sum(sizes[start : start + group_size]) for start in range(0, len(sizes), group_size)]
    dealt = shard_by_length(groups, num_ranks)
    return [[group * group_size + item for group in share for item in range(group_size)] for share in dealt]


def unshard(shares: Sequence[Sequence[int]], parts: Sequence[Sequence[T]]) -> list[T]:
    """Put what the ranks made of their shares back into the order of the items."""
    found = {
        index: item for share, part in zip(shares, parts, strict=True) for index, item in zip(share, part, strict=True)
    }
    return [found[index] for index in range(len(found))]
