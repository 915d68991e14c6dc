"""Mistakes that were found in other trainers: each has a test here, or a reason why it cannot occur."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

#: Trap -> what goes wrong elsewhere, and the tests here as ``file::start of the name``, or why it cannot occur.
TRAPS: dict[str, tuple[str, list[str] | str]] = {
    "T1": ("a teacher rebuilt from a hub id", ["models/test_copies.py::test_stage_is_what_the_stage_before_left"]),
    "T2": ("a teacher's prompt cut on the left", ["data/test_renderer.py::test_an_over_long_context_cuts_the_end"]),
    "T3": ("a LoRA average from zeros", ["models/test_copies.py::test_the_average_has_the_half_life_it_says"]),
    "T4": ("an average in bfloat16", ["models/test_copies.py::test_the_average_of_bfloat16_weights_is_float32"]),
    "T5": ("bfloat16 weights trained", ["models/test_load_and_policy.py::test_training_bfloat16_weights_is_refused"]),
    "T6": (
        "a resumed run that forgets its average or position",
        ["fitting/test_fit.py::test_a_resumed_run_repeats", "models/test_copies.py::test_what_a_checkpoint_holds"],
    ),
    "T7": ("divided by the temperature", ["invariants/test_step.py::test_the_loss_is_at_temperature_one"]),
    "T8": (
        "samples off the distribution of the loss",
        ["invariants/test_methods.py::test_importance_weights_are_one", "rollout/test_hf.py::test_a_checkpoints_own"],
    ),
    "T9": (
        "one terminator of several",
        ["invariants/test_rollout_leaves_no_trace.py::test_every_terminator_ends_a_rollout"],
    ),
    "T10": (
        "cut-off samples learned as whole",
        ["invariants/test_rollout_leaves_no_trace.py::test_a_rollout_that_hit_the_limit_is_truncated"],
    ),
    "T11": ("padding equal to the terminator", ["data/test_collate.py::test_padding_that_equals_the_terminator"]),
    "T12": (
        "prompts tokenised twice and sliced by the other's length",
        ["rollout/test_hf.py::test_greedy_equals_plain", "data/test_collate.py::test_loss_tokens_are_exactly"],
    ),
    "T13": ("the first token doubled", ["data/test_renderer.py::test_the_first_token_is_not_doubled"]),
    "T14": ("means of means", ["invariants/test_methods.py::test_the_gradient_does_not_depend_on_the_micro_batch"]),
    "T15": ("dropout in rollouts and scoring", [
        "invariants/test_rollout_leaves_no_trace.py::test_dropout_is_off_in_rollouts",
        "models/test_copies.py::test_scoring_gives_hidden_states_and_a_head_of_those_weights_without_dropout",
    ]),
    "T16": (
        "checkpointing not put back",
        ["invariants/test_rollout_leaves_no_trace.py::test_an_exception_in_the_middle_of_a_rollout_leaves_no_trace"],
    ),
    "T17": ("importance ratios of sequences, or none", ["objectives/test_objective.py::test_weights_clip_importance"]),
    "T18": (
        "directions and rates by an ambiguous number",
        ["objectives/test_objective.py::test_a_divergence_equals_its_formula",
         "models/test_copies.py::test_an_average_at_its_ends"],
    ),
    "T19": ("an average moved by micro-batches", ["invariants/test_methods.py::test_the_average_moves_once_a_step"]),
    "T20": ("eight samples of a prompt by default", ["contracts/test_known_traps.py::test_one_sample_is_the_default"]),
    "T21": ("other prompts in training", ["data/test_renderer.py::test_prompts_in_the_same_thinking"]),
    "T22": ("checks that let wrong answers pass", [
        "tasks/test_math_word_problem.py::test_a_number_is_read_as_it_is_written",
        "tasks/test_math_word_problem.py::test_two_unparseable_answers_are_never_equal",
        "offline/test_legacy.py::test_the_last_number_is_read_as_published",
    ]),
    "T23": ("an average that gathers every shard", "Copies are elementwise on local parameters: no gather."),
    "T24": ("prompts in other states", ["data/test_renderer.py::test_prompts_that_start_the_answer_in_different"]),
    "T25": ("a sampler with old weights", ["rollout/test_engine.py::test_after_an_optimizer_step_in_place"]),
    "T26": ("braces of the user's text", ["data/test_renderer.py::test_braces_and_dollars_of_the_user"]),
    "T27": ("a rank without targets", ["invariants/test_step.py::test_a_rank_without_targets_still_reaches"]),
}  # fmt: skip


def test_every_known_trap_is_listed():
    assert list(TRAPS) == [f"T{number}" for number in range(1, 28)]


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_tested_where_it_says_or_has_a_reason(trap):
    what, where = TRAPS[trap]
    assert what
    if isinstance(where, str):
        assert where.endswith(".")
        return
    assert where
    for place in where:
        file, _, start = place.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert [name for name in names if name.startswith(start)], place


def test_one_sample_is_the_default():
    from onpolicy_sdft.config.schema import RunConfig

    assert RunConfig().rollout.num_samples == 1
