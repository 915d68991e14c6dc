"""Every metric of a training step: what it is called, what it counts in, what it means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of ``metrics.jsonl``, or several of one kind."""

    name: str  # ``area/quantity``; a ``*`` stands for the names of a kind
    unit: str
    meaning: str
    chart: str = ""  # of the report, by its key there; empty: not drawn


_SHARE, _NATS, _SECONDS, _TOKENS, _COUNT = "share", "nats a token", "seconds", "tokens", "count"

METRICS = (
    Metric(
        "loss/total",
        _NATS,
        "what was minimised; for `nll` the mean of -log p(target | bare prompt)",
        "loss",
    ),
    Metric("loss/demonstration_nll", _NATS, "its part of demonstrations that are added or stand in, by `nll`"),
    Metric("loss/anchor", _NATS, "its part of the anchor's divergence (`objective.anchor_kl`)"),
    Metric("loss/clipped_rate", _SHARE, "loss tokens at which `objective.clip` took effect"),
    Metric("loss/fallback_clipped_rate", _SHARE, "loss tokens at which `screening.fallback_clip` took effect"),
    Metric("loss/mean_importance", "ratio", "mean weight of `objective.importance`"),
    Metric("loss/importance_capped_rate", _SHARE, "loss tokens whose weight was capped (`objective.importance_cap`)"),
    Metric("loss/*", _NATS, "the objective's own part, under its name"),
    Metric("train/lr", "", "learning rate of the step"),
    Metric("train/grad_norm", "norm", "norm of the gradient before it is clipped (`optim.max_grad_norm`)", "gradient"),
    Metric("train/num_loss_tokens", _TOKENS, "learned in the step, by all ranks"),
    Metric("train/total_loss_tokens", _TOKENS, "learned since the run began"),
    Metric("train/num_micro_batches", _COUNT, "forwards and backwards of the step, on each rank"),
    Metric("train/padding_rate", _SHARE, "padding among the tokens of the micro-batches"),
    Metric("train/tokens_per_second", "tokens a second", "learned tokens over the whole step's time", "speed"),
    Metric("train/num_halvings", _COUNT, "times that micro-batches were halved since memory ran out"),
    Metric("train/num_releases", _COUNT, "times that slots were given back since memory ran out in learning"),
    Metric("train/too_short_rate", _SHARE, "targets that `objective.skip_tokens` leaves nothing of"),
    Metric("rollout/mean_length", _TOKENS, "mean length of the rollouts", "lengths"),
    Metric("rollout/length_ratio", "ratio", "tokens of the rollouts over those of their demonstrations", "lengths"),
    Metric("rollout/truncated_rate", _SHARE, "rollouts that reached `rollout.max_new_tokens`", "lengths"),
    Metric("rollout/entropy", _NATS, "mean entropy of what was sampled from: falls in a collapse", "diversity"),
    Metric("rollout/logprob", _NATS, "mean log-probability of the sampled tokens"),
    Metric("rollout/distinct_2", _SHARE, "different token pairs among all pairs of the step", "diversity"),
    Metric("rollout/shared_start", _SHARE, "of a rollout that another row's rollout begins with, too", "diversity"),
    Metric(
        "rollout/demonstration_overlap",
        _SHARE,
        "4-grams of a rollout that its demonstration has",
        "diversity",
    ),
    Metric("rollout/verbatim_rate", _SHARE, "rollouts that are word for word what the teacher was shown", "diversity"),
    Metric("rollout/surprise", _NATS, "mean -log p of a rollout under the bare prompt", "surprise"),
    Metric("rollout/surprise_max", "nats", "the largest of a rollout's tokens, a mean over rollouts"),
    Metric(
        "rollout/leak",
        _NATS,
        "how much likelier a rollout is given the demonstration alone",
        "surprise",
    ),
    Metric("rollout/support", _NATS, "how much likelier the demonstration becomes given the rewrite, against others"),
    Metric("rollout/step_rate", _SHARE, "bare continuations of a rollout's first half that the check accepts"),
    Metric("rollout/agreement", _SHARE, "rollouts of a demonstration in a step that the check accepts"),
    Metric("rollout/solved_rate", _SHARE, "bare samples of a row that are right (`screening.bare_samples`)"),
    Metric("rollout/num_tokens", _TOKENS, "all that ranks sampled in the step: attempts, refused draws, the review's"),
    Metric("rollout/num_slots", _COUNT, "completions that are written at once"),
    Metric("rollout/slot_occupancy", _SHARE, "how busy the slots were"),
    Metric("rollout/tokens_per_forward", _TOKENS, "written a decode forward, over all slots"),
    Metric(
        "rollout/tokens_per_second",
        "tokens a second",
        "sampled by all ranks, in the time of the slowest",
        "speed",
    ),
    Metric(
        "rollout/accept_rate",
        _SHARE,
        "share of drafted (speculative) tokens that were kept, absent without drafts; not of rollouts: for those "
        "`screen/keep_rate`",
    ),
    Metric("rollout/drafted_rate", "ratio", "drafted tokens over written ones"),
    Metric("rollout/padding_rate", _SHARE, "padding among the tokens of the rollout's forwards"),
    Metric("rollout/blend", "weight", "mean weight of the bare prompt in what was sampled from"),
    Metric("rollout/mismatch", _NATS, "mean distance of vLLM's log-probs from the model's own"),
    Metric("rollout/mismatch_max", "nats", "the largest of a token"),
    Metric("rollout/num_out_of_memory", _COUNT, "times that a rollout of a rank had to go on with fewer slots"),
    Metric("screen/keep_rate", _SHARE, "rollouts that are learned"),
    Metric("screen/fallback_rate", _SHARE, "rollouts in whose place the demonstration is learned", "fallbacks"),
    Metric("screen/drop_rate", _SHARE, "rollouts that are left out", "fallbacks"),
    Metric("screen/spare_rate", _SHARE, "rollouts left out for a better one of the same demonstration"),
    Metric("screen/mean_attempts", _COUNT, "draws a rollout (`resample`)"),
    Metric("screen/reason/*_rate", _SHARE, "rollouts refused for a reason", "fallbacks"),
    Metric("screen/refused_right/*_rate", _SHARE, "rollouts that a rule refused although the check accepts them"),
    Metric("bare/length", _TOKENS, "median length of the policy's own bare answers, which rollouts are compared with"),
    Metric("bare/surprise", _NATS, "mean -log p of the bare answers", "surprise"),
    Metric("bare/score", _SHARE, "bare answers that are right"),
    Metric("bare/of_right", "0 or 1", "whether length and steps are of the right bare answers alone"),
    Metric("feedback/attempt_length", _TOKENS, "mean length of the student's attempts"),
    Metric("feedback/*", _SHARE, "what became of the student's attempts (`feedback.enabled`)"),
    Metric("time/step_seconds", _SECONDS, "the whole step", "time"),
    Metric("time/rollout_seconds", _SECONDS, "putting the weights in place (gathering them), and sampling rollouts"),
    Metric("time/attempt_seconds", _SECONDS, "of it, the student's attempts"),
    Metric("time/sampling_seconds", _SECONDS, "all that the step sampled, the review's samples too"),
    Metric("time/rollout_prefill_seconds", _SECONDS, "of it, the prompts"),
    Metric("time/rollout_decode_seconds", _SECONDS, "of it, the tokens"),
    Metric("time/rollout_wait_seconds", _SECONDS, "waiting for the rollouts of other ranks"),
    Metric(
        "time/screen_seconds",
        _SECONDS,
        "after sampling: waiting for verdicts, drawing again, the review's measures",
    ),
    Metric("time/judging_seconds", _SECONDS, "reaching all verdicts, in workers"),
    Metric("time/judging_beside_seconds", _SECONDS, "of it, during the rollout"),
    Metric("time/score_seconds", _SECONDS, "the teacher's own forwards"),
    Metric("time/learn_seconds", _SECONDS, "forwards, backwards and the update"),
    Metric(
        "memory/rollout_mib",
        "MiB",
        "of the largest rank: on a GPU the peak, else what is resident after it",
        "memory",
    ),
    Metric("memory/learn_mib", "MiB", "the same of learning", "memory"),
    Metric("eval/*/score", "score", "score on a validation set, at steps that were validated", "validation"),
)
