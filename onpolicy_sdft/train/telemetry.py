"""What a step's targets look like, with the early signs of collapse. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from onpolicy_sdft.config.schema import REVIEW_RULES
from onpolicy_sdft.objectives.objective import LossPart
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


def shared_start(texts: Sequence[tuple[str, Sequence[int]]]) -> float:
    """Return how much of a text is the beginning of another row's text as well: a mean over the texts.

    Args:
        texts: Example id and token ids of each; texts of one example are not compared with each other.
    """
    ordered = sorted((tuple(ids), example_id) for example_id, ids in texts)
    longest = [0] * len(ordered)
    for places in (range(len(ordered)), range(len(ordered) - 1, -1, -1)):
        # In order, a text shares most with its neighbours: the nearest of another row on either side.
        for number, place in enumerate(places):
            ids, example_id = ordered[place]
            other = next((ordered[p] for p in reversed(places[:number]) if ordered[p][1] != example_id), None)
            if other is not None:
                longest[place] = max(longest[place], _num_shared(ids, other[0]))
    return sum(n / max(1, len(ids)) for n, (ids, _) in zip(longest, ordered, strict=True)) / max(1, len(ordered))


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    differing = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))


def screen_metrics(targets: Sequence[Target]) -> dict[str, float]:
    """Return verdict rates and reason rates of a step; empty where nothing was written."""
    written = [target for target in targets if target.rollout is not None]
    if not written:
        return {}
    drawn, written = written, [target for target in written if target.verdict != "spare"]
    verdicts = Counter[str](target.verdict for target in written)
    reasons = Counter(target.reason for target in written)
    values = {f"screen/{name}_rate": verdicts[name] / len(written) for name in ("keep", "fallback", "drop")}
    if len(drawn) > len(written):  # others of the same demonstration were learned in their place
        values["screen/spare_rate"] = 1 - len(written) / len(drawn)
    rules = (*REASONS, *REVIEW_RULES)
    values |= {f"screen/reason/{name}_rate": reasons[name] / len(written) for name in rules}
    costs = Counter(target.reason for target in written if target.correct and target.verdict in ("fallback", "drop"))
    values |= {
        f"screen/refused_right/{name}_rate": costs[name] / len(written)
        for name in rules
        if name not in ("check", "solved")
    }
    values["screen/mean_attempts"] = sum(target.attempt + 1 for target in written) / len(written)
    return values


def rollout_metrics(targets: Sequence[Target]) -> dict[str, float]:
    """Return lengths, entropy, diversity and copying of a step's rollouts; empty where there are none."""
    pairs = [(target.rollout, target.pair) for target in targets if target.rollout is not None]
    if not pairs:
        return {}
    num_tokens = sum(len(rollout.token_ids) for rollout, _ in pairs)
    num_reference = sum(len(pair.response_ids) for _, pair in pairs)
    return {
        "rollout/mean_length": num_tokens / len(pairs),
        "rollout/length_ratio": num_tokens / num_reference,
        "rollout/truncated_rate": sum(r.finish_reason == "length" for r, _ in pairs) / len(pairs),
        "rollout/entropy": sum(sum(r.entropies) for r, _ in pairs) / num_tokens,
        "rollout/logprob": sum(sum(r.logprobs) for r, _ in pairs) / num_tokens,
        "rollout/distinct_2": distinct_n([r.token_ids for r, _ in pairs], 2),
        "rollout/shared_start": shared_start([(v.demonstration.example_id, r.token_ids) for r, v in pairs]),
        "rollout/demonstration_overlap": sum(overlap(r.token_ids, v.response_ids) for r, v in pairs) / len(pairs),
        "rollout/verbatim_rate": sum(target.is_verbatim for target in targets) / len(pairs),
    }


def review_metrics(targets: Sequence[Target]) -> dict[str, float]:
    """Return the measures of a step's rollouts, each a mean over those that have it; nats a token."""
    measures = [target.measures for target in targets if target.measures is not None]
    found = {}
    for name in ("surprise", "surprise_max", "leak", "support", "step_rate", "agreement", "solved_rate"):
        known = [value for each in measures if (value := getattr(each, name)) is not None]
        if known:
            found[f"rollout/{name}"] = sum(known) / len(known)
    return found


def loss_metrics(name: str, loss_sum: float, figures: Sequence[float], num_tokens: int) -> dict[str, float]:
    """Return the step's loss and its parts per token of the denominator, so that the parts sum to it.

    ``loss/total`` is what was minimised; ``loss/NAME`` the objective's own part of it. Rates and the mean importance
    are over the tokens that the objective itself learns. Parts and rates that are zero throughout are left out.
    """
    per_token, per_own = 1 / num_tokens, 1 / max(1, figures[LossPart.OWN_TOKENS])
    found = {"loss/total": loss_sum * per_token, f"loss/{name}": figures[LossPart.OWN] * per_token}
    named = {
        "loss/demonstration_nll": (LossPart.PLAIN, per_token),
        "loss/anchor": (LossPart.ANCHOR, per_token),
        "loss/clipped_rate": (LossPart.CLIPPED, per_own),
        "loss/mean_importance": (LossPart.IMPORTANCE, per_own),
        "loss/importance_capped_rate": (LossPart.CAPPED, per_own),
        "loss/fallback_clipped_rate": (LossPart.STAND_IN_CLIPPED, per_token),
    }
    return found | {key: figures[part] * scale for key, (part, scale) in named.items() if figures[part]}


def length_metrics(targets: Sequence[Target], num_skipped: int) -> dict[str, float]:
    """Return the share of targets that are not learned for being no longer than what is skipped of each."""
    learned = [target for target in targets if target.verdict not in ("drop", "spare")]
    if not num_skipped or not learned:
        return {}
    return {"train/too_short_rate": sum(len(target.token_ids) <= num_skipped for target in learned) / len(learned)}


def without_records(targets: Sequence[Target]) -> list[Target]:
    """Return targets without what was recorded of their distributions, which is large and has been used."""
    return [
        target if target.rollout is None else replace(target, rollout=replace(target.rollout, hidden=None, top=None))
        for target in targets
    ]
