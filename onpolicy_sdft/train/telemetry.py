"""What a step's targets look like, with the early signs of collapse. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from onpolicy_sdft.screening.reasons import REASONS
from onpolicy_sdft.types import Target

_OVERLAP_NGRAM = 4


def distinct_n(texts: Sequence[Sequence[int]], n: int) -> float:
    """Return the share of different n-grams among all n-grams of a group of token sequences.

    Source: Li et al. (2016), arXiv:1510.03055, over tokens instead of words.
    """
    grams = [tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def overlap(ids: Sequence[int], reference: Sequence[int], n: int = _OVERLAP_NGRAM) -> float:
    """Return the share of a sequence's n-grams that also stand in the reference."""
    n = min(n, len(ids))
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)] if n else []
    known = {tuple(reference[i : i + n]) for i in range(len(reference) - n + 1)}
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def screen_metrics(targets: Sequence[Target]) -> dict[str, float]:
    """Return verdict rates and reason rates of a step; empty where nothing was written."""
    written = [target for target in targets if target.rollout is not None]
    if not written:
        return {}
    verdicts = Counter(target.verdict for target in written)
    reasons = Counter(target.reason for target in written)
    values = {f"screen/{name}_rate": verdicts[name] / len(written) for name in ("keep", "fallback", "drop")}
    values |= {f"screen/reason/{name}_rate": reasons[name] / len(written) for name in REASONS}
    values["screen/mean_attempts"] = sum(target.attempt + 1 for target in written) / len(written)
    return values


def rollout_metrics(targets: Sequence[Target]) -> dict[str, float]:
    """Return lengths, entropy, diversity and copying of a step's rollouts; empty where there are none."""
    pairs = [(target.rollout, target.views) for target in targets if target.rollout is not None]
    if not pairs:
        return {}
    num_tokens = sum(len(rollout.token_ids) for rollout, _ in pairs)
    num_reference = sum(len(views.response_ids) for _, views in pairs)
    return {
        "rollout/mean_length": num_tokens / len(pairs),
        "rollout/length_ratio": num_tokens / num_reference,
        "rollout/truncated_rate": sum(r.finish_reason == "length" for r, _ in pairs) / len(pairs),
        "rollout/entropy": sum(sum(r.entropies) for r, _ in pairs) / num_tokens,
        "rollout/logprob": sum(sum(r.logprobs) for r, _ in pairs) / num_tokens,
        "rollout/distinct_2": distinct_n([r.token_ids for r, _ in pairs], 2),
        "rollout/demonstration_overlap": sum(overlap(r.token_ids, v.response_ids) for r, v in pairs) / len(pairs),
        "rollout/verbatim_rate": sum(r.token_ids == v.response_ids for r, v in pairs) / len(pairs),
    }
