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


#: Kind of fault that models, data and machines brought out here -> its tests.
FAULTS: dict[str, list[str]] = {
    "what ends an answer is read off the template": [
        "data/test_chat_templates.py::test_prompt_and_target_begin_the_conversation",
    ],
    "an export stops where the run stops": [
        "fitting/test_export_verb.py::test_an_adapter_and_its_merged_export",
        "fitting/test_export_verb.py::test_the_best_weights_and_what_is_pushed",
    ],
    "text of rows is no markup": ["data/test_chat_templates.py::test_a_control_token_in_a_row"],
    "a resumed run reads what it began with": [
        "fitting/test_broken_steps.py::test_a_resumed_run_refuses_to_read_other_things",
    ],
    "ranks see one directory": ["distributed/test_ddp.py::test_ranks_that_see_different_directories"],
    "what a template drops of the demonstration": [
        "data/test_chat_templates.py::test_what_a_template_drops_of_the_demonstration_is_counted",
    ],
    "adapters on the head": [
        "models/test_targets.py::test_what_is_accepted_learns_and_merges",
        "models/test_ready.py::test_a_trained_parameter_that_the_loss_does_not_reach",
    ],
    "adapters on a tied embedding": ["models/test_targets.py::test_what_is_accepted_learns_and_merges"],
    "generate is tried before it is trusted": [
        "rollout/test_hf_trial.py::test_a_model_that_reads_padding_writes_one_text",
        "rollout/test_hf_trial.py::test_a_mask_that_is_ignored",
    ],
    "what adapters do not reach": ["models/test_ready.py::test_what_adapters_do_not_reach"],
    "the dtype of a merged export": ["fitting/test_export_verb.py::test_a_merged_export_has_the_dtype"],
    "bfloat16 decoding with adapters beside the base": [
        "rollout/test_weights.py::test_float32_adapters_that_are_not_merged",
    ],
    "kernels without a folder for their cache": ["rollout/test_jit.py::test_kernels_compile_without_a_cache"],
    "the memory of a control group": [
        "test_machine.py::test_a_limit_of_version_2",
        "test_machine.py::test_a_limit_of_version_1",
        "rollout/test_memory.py::test_a_budget_within_a_control_group",
    ],
    "ranks wait for one that works": ["distributed/test_waiting.py::test_a_rank_that_works_longer"],
    "a long cell of a table": ["data/test_sources.py::test_a_csv_cell_may_be_as_long"],
    "memory that grows with every step": ["train/test_memory_stays_flat.py::test_three_hundred_steps"],
    "a tokenizer larger than the embedding": ["models/test_tokens_beyond.py::test_it_is_refused_with_both_numbers"],
    "a generation config that cannot be saved": [
        "fitting/test_export_verb.py::test_a_generation_config_that_cannot_be_saved",
    ],
    "a turn end that was never trained": ["eval/test_turn_end.py::test_a_turn_end_that_was_never_trained"],
    "the first step of a warm-up": ["train/test_loop_parts.py::test_schedules_warm_up"],
    "rollouts that collapse": ["train/test_alarms.py::test_each_collapse_is_said"],
    "empty columns and fields": [
        "data/test_sources.py::test_an_empty_column_is_said_to_be_empty",
        "data/test_sources.py::test_an_empty_field_of_a_message",
    ],
    "tables and refrains are no loops": ["screening/test_reasons.py::test_a_text_may_repeat_itself"],
    "talk about the demonstration": [
        "screening/test_mentions.py::test_a_phrase_of_some_language",
        "screening/test_mentions.py::test_a_run_of_the_templates_own_words",
    ],
    "a check that raises or takes long": [
        "tasks/test_any_text.py::test_random_texts_never",
        "tasks/test_any_text.py::test_no_cut_off_opening",
        "screening/test_screen.py::test_a_check_that_raises_is_a_verdict",
    ],
    "calls in the dialects of models": ["tasks/test_function_call.py::test_answers_are_read_in_the_forms"],
    "options that people read": ["tasks/test_short_answers.py::test_what_is_picked_is_what_people_read"],
    "numbers as they are written": ["tasks/test_math_word_problem.py::test_a_number_is_read_as_it_is_written"],
    "nonsense where there is no check": ["screening/test_review.py::test_a_free_text_must_lead_back"],
    "errors name the option that helps": [
        "data/test_sources.py::test_a_missing_column_names_the_option",
        "data/test_sources.py::test_a_file_given_as_the_name",
    ],
    "an export without the installed package": ["models/test_export.py::test_an_export_from_a_source_checkout"],
    "nothing is random but the adapters' dropout": ["models/test_ready.py::test_nothing_is_random"],
    "the template for base models": [
        "models/test_load_and_policy.py::test_the_plain_chat_template",
        "data/test_chat_templates.py::test_the_programs_own_template",
    ],
    "control tokens inside a rollout": [
        "screening/test_make_screen.py::test_a_control_token",
        "offline/test_distill.py::test_control_tokens_in_a_distilled_row",
    ],
    "a number in the answer column": ["tasks/test_math_word_problem.py::test_a_number_in_the_answer_column"],
    "programs as models write them": ["tasks/test_python_code.py::test_programs_are_read_in_the_forms"],
    "prose around calls": [
        "tasks/test_function_call.py::test_another_call_or_none_is_wrong",
        "tasks/test_function_call.py::test_answers_are_read_in_the_forms",
    ],
    "what picks no option": ["tasks/test_short_answers.py::test_what_is_picked_is_what_people_read"],
    "no number is read as another": [
        "tasks/test_math_word_problem.py::test_a_number_is_read_as_it_is_written",
        "tasks/test_math_word_problem.py::test_the_check_accepts_a_value_in_every_spelling",
    ],
    "columns and fields that vanish": [
        "data/test_sources.py::test_a_csv_column_that_stands_twice",
        "data/test_sources.py::test_a_message_key_that_would_be_lost",
    ],
    "a step without an update has no loss": [
        "invariants/test_step.py::test_a_step_that_is_not_finite_changes_nothing",
        "train/test_panel.py::test_the_loss_that_is_shown_is_the_last",
    ],
    "a run that broke inside a step": ["fitting/test_broken_steps.py::test_a_run_that_breaks_in_every_step"],
    "a skipped step and the teacher's refresh": [
        "invariants/test_step.py::test_a_skipped_step_neither_takes_nor_loses",
    ],
    "torn checkpoints": ["train/test_checkpoint.py::test_torn_checkpoints_go_before"],
    "the weight of the demonstration with several samples": ["train/test_pairing.py::test_the_added_demonstration"],
    "rows that plain fine-tuning leaves out": ["build/test_rows_of_a_run.py::test_sft_leaves_no_row_out"],
    "a run on an exported adapter": ["fitting/test_export_verb.py::test_a_run_on_an_exported_adapter"],
    "checks in threads and the warnings of others": [
        "tasks/test_any_text.py::test_checks_in_threads_leave_the_warnings",
    ],
    "caches keyed by less than the content": ["data/test_sources.py::test_a_parquet_file_replaced"],
    "right rollouts that are short": ["screening/test_screen.py::test_what_the_check_accepts"],
    "an adapter on an embedded model": ["models/test_export.py::test_an_adapter_on_an_embedded_model"],
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
    assert_tested(where)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_kind_of_fault_is_tested_where_it_says(kind):
    assert_tested(FAULTS[kind])


def assert_tested(where: list[str]) -> None:
    """Every place, ``file::start of the name``, is a test."""
    assert where
    for place in where:
        file, _, start = place.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert [name for name in names if name.startswith(start)], place


def test_one_sample_is_the_default():
    from onpolicy_sdft.config.schema import RunConfig

    assert RunConfig().rollout.num_samples == 1
