"""Directories as training, sequences, comparisons, sweeps and shifts leave them, small and with known figures."""

from pathlib import Path

import yaml

from onpolicy_sdft.runs.directory import RunDirectory
from onpolicy_sdft.runs.files import dumps_strict

EVIL = '</script><b>bold</b><script>alert("x")</script>\'&<!-- {{ 7 * 7 }} 😀 \ud800 \u2028 $x$'
TASKS = ("code", "calls", "math")
HELD = ("short_facts",)


def write(path: Path, *values):
    """Write JSON, one value a line, without waiting for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(dumps_strict(value) + "\n" for value in values))


def manifest(seed=0, **others):
    return {
        "command": ["sdft", "train", "--train.seed", str(seed)],
        "started": "2026-01-02T03:04:05+00:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "git": {"commit": "a" * 40, "dirty": True},
        "hardware": {"cpu": "CPU X", "num_usable_cores": 2, "gpus": []},
        "seeds": {"train.seed": seed},
        "num_ranks": 1,
        **others,
    }


def metrics(step, **values):
    figures = {
        "loss/total": 1.0 / step,
        "train/num_loss_tokens": 50.0,
        "train/total_loss_tokens": 50.0 * step,
        "train/tokens_per_second": 25.0,
        "rollout/tokens_per_second": 100.0,
        "rollout/mean_length": 60.0,
        "rollout/length_ratio": 1.1,
        "rollout/truncated_rate": 0.125,
        "rollout/entropy": 0.8 - 0.01 * step,
        "rollout/distinct_2": 0.7,
        "rollout/demonstration_overlap": 0.3,
        "rollout/verbatim_rate": 0.25,
        "screen/keep_rate": 0.75,
        "screen/fallback_rate": 0.25,
        "screen/drop_rate": 0.0,
        "screen/reason/check_rate": 0.25,
        "screen/reason/empty_rate": 0.0,
        "time/rollout_seconds": 1.0,
        "time/screen_seconds": 0.1,
        "time/score_seconds": 0.2,
        "time/learn_seconds": 0.5,
        "time/rollout_wait_seconds": 0.0,
        "time/step_seconds": 2.0,
        "memory/rollout_mib": 3072,
        "memory/learn_mib": 1024.0 + step,
    }
    return {"step": step, "skipped": "", "time": 0.0, "values": {**figures, **values}}


def rollout(step, **others):
    return {
        "step": step,
        "example_id": f"example-{step}",
        "attempt": 0,
        "prompt": "2 + 2?",
        "demonstration": "Four.",
        "rollout": "It is 4.",
        "target": "It is 4.",
        "verdict": "keep",
        "reason": "",
        "num_tokens": 5,
        "logprob_mean": -0.25,
        "surprise": 0.4,
        "leak": -0.1,
        **others,
    }


def many_rollouts(number):
    """Three verdicts in turn; lengths and texts that differ; one in fifty is nasty."""
    kinds = (("keep", ""), ("fallback", "check"), ("drop", "empty"))
    found = []
    for index in range(number):
        verdict, reason = kinds[index % 3]
        others = {"rollout": EVIL, "example_id": EVIL} if index % 50 == 49 else {"rollout": f"Answer {index}."}
        target = others["rollout"] if verdict == "keep" else None if verdict == "drop" else "Four."
        tokens = (index * 37) % 211
        found.append(
            rollout(
                index // 4 + 1, verdict=verdict, reason=reason, target=target, num_tokens=tokens, prompt=f"{index}?",
                **others,
            )
        )  # fmt: skip
    return found


def entry(label, score, *, retention=False, note=""):
    return {
        "label": label, "retention": retention, "score": score, "low": score - 0.1, "high": score + 0.1, "n": 128,
        "pass_at_k": None, "mean_length": 30.0, "truncated_rate": 0.0, "tokens_per_second": 100.0, "note": note,
    }  # fmt: skip


def kl(mean):
    return {
        "mean": mean, "low": mean - 0.01, "high": mean + 0.01, "num_completions": 30, "num_tokens": 999,
        "sums": [1.0, 2.0], "nll_mean": 1.5, "nll_low": 1.4, "nll_high": 1.6,
    }  # fmt: skip


#: What a step of a run with few curves logs.
FEW = ("loss/total", "time/step_seconds", "time/rollout_seconds", "rollout/entropy")


def make_run(path: Path, *, seed=0, lr=0.001, num_steps=5, rollouts=None, scored=True, few=False) -> Path:
    run = RunDirectory.create(path)
    run.config_path.write_text(yaml.safe_dump({"optim": {"lr": lr}, "train": {"seed": seed, "output_dir": str(path)}}))
    write(run.manifest_path, manifest(seed))
    steps = [metrics(step) for step in range(1, num_steps + 1)]
    for step in steps if few else []:
        step["values"] = {key: step["values"][key] for key in FEW}
    write(run.metrics_path, *steps)
    few = [rollout(1), rollout(2, verdict="fallback", reason="check")]
    write(run.rollouts_path, *(few if rollouts is None else rollouts))
    if scored:
        before = {"identity": "x", "sets": [entry("code", 0.4), entry("facts", 0.5, retention=True)], "kl": None}
        note = "phrase matching undercounts refusals"
        after = {"identity": "x", "sets": [entry("code", 0.6), entry("facts", 0.45, retention=True, note=note)]}
        write(run.eval_summary_path, {"before": before, "after": {**after, "kl": kl(0.02)}})
    return path


def around(rows, by=0.05):
    """A matrix with intervals of one width."""
    return {
        "value": rows,
        "low": [[value - by for value in row] for row in rows],
        "high": [[value + by for value in row] for row in rows],
    }


def figure(value, by=0.05):
    return {"value": value, "low": value - by, "high": value + by}


#: Rows: the base model, then after code, after calls, after math.
MATRIX = [[0.2, 0.1, 0.3], [0.7, 0.15, 0.3], [0.5, 0.8, 0.35], [0.4, 0.6, 0.9]]


def sequence(name="seq", *, seed=0, lost=0.0, config=None):
    """What ``sequence.json`` holds: MATRIX, with more lost of earlier tasks in the last row."""
    last = [MATRIX[3][0] - lost, MATRIX[3][1] - lost, MATRIX[3][2]]
    rows = [*MATRIX[:3], last]
    forgotten = {"code": figure(0.7 - last[0]), "calls": figure(0.8 - last[1])}
    return {
        "labels": list(TASKS),
        "retention_labels": list(HELD),
        "joint": False,
        "stages": [
            {"label": t, "run": f"stage-{i}-{t}", "steps": 5, "loss_tokens": 250.0, "seconds": 10.0}
            for i, t in enumerate(TASKS, start=1)
        ],
        "n": {**dict.fromkeys(TASKS, 128), "short_facts": 120},
        "matrix": around(rows),
        "retention": around([[0.5], [0.45], [0.4], [0.35]]),
        "kl": [None, kl(0.02), kl(0.04), kl(0.0625)],
        "metrics": {
            "average_accuracy": figure(sum(last) / 3),
            "acquisition": figure((0.5 + 0.65 + 0.55) / 3),
            "forgetting": figure((forgotten["code"]["value"] + forgotten["calls"]["value"]) / 2),
            "backward_transfer": figure(((last[0] - 0.7) + (last[1] - 0.8)) / 2),
            "forward_transfer": figure((0.05 + 0.05) / 2),
            "retention_change": figure(-0.15),
        },
        "forgetting_by_task": forgotten,
        "records": {t: ["stage-1-code/eval/before-code.jsonl"] for t in TASKS},
        "config": config or {"seed": seed, "adapter_handoff": "merged"},
        "manifest": manifest(seed),
        "command": ["sdft", "continual"],
    }


def make_sequence(path: Path, *, few=False, **options) -> Path:
    content = sequence(path.name, **options)
    write(path / "sequence.json", content)
    for stage in content["stages"]:
        make_run(path / stage["run"], scored=False, few=few)
    return path


METHODS = ("sft", "offline_sdft", "sdft", "sdft_kl")


def make_comparison(path: Path) -> Path:
    rows, over = [], {}
    for number, method in enumerate(METHODS):
        for seed in (0, 1):
            name = f"{method}-seed{seed}"
            lost = 0.02 * number + 0.01 * seed
            make_sequence(
                path / name, few=True, seed=seed, lost=lost, config={"seed": seed, "method": [f"{method}.yaml"]}
            )
            rows.append(
                {
                    "method": method, "seed": seed, "joint": False, "sequence": name, "lr": 1e-3, "loss_tokens": 750.0,
                    "steps": 15, "seconds": 30.0, "metrics": sequence(lost=lost)["metrics"], "kl": 0.0625,
                    "stopped": "",
                }
            )  # fmt: skip
        mine = [row["metrics"] for row in rows[-2:]]
        over[method] = {}
        for metric in mine[0]:
            values = [each[metric]["value"] for each in mine]
            mean = sum(values) / 2
            over[method][metric] = {"mean": mean, "low": mean - 0.03, "high": mean + 0.03, "n": 2, "values": values}
        over[method]["kl"] = {"mean": 0.0625, "low": 0.0625, "high": 0.0625, "n": 2, "values": [0.0625, 0.0625]}
    tuning = [
        {"method": m, "lr": lr, "score": 0.5 + 100 * lr, "chosen": lr == 1e-3, "stopped": "", "run": f"tune/{m}-{lr:g}"}
        for m in METHODS
        for lr in (1e-4, 1e-3)
    ]
    test = {"label": "code", "seed": 0, "only_a": 20, "only_b": 5, "n": 128, "p": 0.00407}
    write(
        path / "comparison.json",
        {
            "methods": list(METHODS), "seeds": [0, 1], "match": "tokens", "rows": rows, "over_seeds": over,
            "differences": [{"a": "sft", "b": "sdft", "metric": "forgetting", "value": 0.1, "low": 0.05, "high": 0.15}],
            "tuning": tuning, "mcnemar": [{"a": "sft", "b": "sdft", **test}], "config": {"match": "tokens"},
        },
    )  # fmt: skip
    return path


def spread(values):
    return {
        "mean": sum(values) / len(values), "low": min(values), "high": max(values), "sd": 0.01, "n": len(values),
        "values": values,
    }  # fmt: skip


def make_sweep(path: Path) -> Path:
    axes = {"optim.lr": [1e-4, 1e-3, 1e-2], "train.targets": ["policy", "demonstrations"]}
    runs, table = [], []
    for lr in axes["optim.lr"]:
        for targets in axes["train.targets"]:
            point, scores = {"optim.lr": lr, "train.targets": targets}, []
            for seed in (0, 1):
                name = f"lr={lr:g},targets={targets},seed={seed}"
                failed = lr == 1e-2 and targets == "policy"
                score = 0.4 + 20 * lr + 0.01 * seed
                row = {"name": name, "run": f"runs/{name}", "point": point, "seed": seed, "seconds": 12.0}
                if failed:
                    row |= {"state": "failed", "reason": "steps in a row made no update", "scores": {}}
                else:
                    make_run(path / "runs" / name, seed=seed, lr=lr, few=True)
                    row |= {"state": "done", "reason": "", "scores": {"eval/code/score": score, "eval/kl": 0.02}}
                    scores.append(row["scores"])
                runs.append(row)
            figures = {key: spread([s[key] for s in scores]) for key in scores[0]} if scores else {}
            table.append({"point": point, "scores": figures, "num_failed": 2 - len(scores)})
    record = {
        "axes": axes, "seeds": [0, 1], "runs": runs, "table": table,
        "metrics": ["eval/code/score", "eval/kl", "screen/keep_rate"], "base_model": {"eval/code/score": 0.3},
        "excluded": [{"values": {"optim.lr": 1.0, "train.targets": "policy"}, "why": "too hot"}],
    }  # fmt: skip
    write(path / "sweep.json", record)
    return path


def make_shift(path: Path) -> Path:
    values = {"sft": [0.5, 0.6, 0.7, 0.8], "sdft": [0.9, 0.95, 1.0, 0.95]}
    runs = [
        {
            "name": name, "path": f"runs/{name}", "similarities": each, "mean": sum(each) / 4, "low": 0.5, "high": 0.8,
            "kl": 0.4, "kl_low": 0.35, "kl_high": 0.45, "nll": 1.5, "nll_low": 1.4, "nll_high": 1.6,
            "identical_rate": 0.25, "truncated_rate": 0.0,
        }
        for name, each in values.items()
    ]  # fmt: skip
    write(
        path / "shift.json",
        {
            "reference": "seed", "runs": runs, "num_prompts": 4, "embedder": "minilm", "prompts": "records.jsonl",
            "num_cut": 0, "manifest": manifest(),
        },
    )  # fmt: skip
    write(path / "records.jsonl", {"example_id": "a", "prompt": "Why?"})
    return path
