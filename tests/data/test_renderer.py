from __future__ import annotations

import copy
from typing import Any

import pytest

from onpolicy_sdft.config.schema import ContextConfig, ScreeningConfig
from onpolicy_sdft.data.prepare import Prepared, prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.data.templates import TEMPLATES, TeacherContext
from onpolicy_sdft.errors import ConfigError, DataError
from onpolicy_sdft.tasks import TASKS, load_task, work_of
from onpolicy_sdft.types import Demonstration, Turn

HEADER = "<|im_start|>assistant\n"
TERMINATOR = "<|im_end|>"
TWO = {"show": "both", "num_demonstrations": 2}


def row(prompt: str = "Name a colour.", response: str = "Blue it is.", name: str = "id-0") -> Demonstration:
    return Demonstration(name, (Turn("user", prompt),), response)


def make(tokenizer: Any, *rows: Demonstration, **options: Any) -> Prepared:
    config = ContextConfig(**options)
    return prepare(rows, Renderer(tokenizer, config), config, seed=0)


def text(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return tokenizer.decode(list(ids))


def turns(*pairs: tuple[str, str]) -> str:
    return "".join(f"<|im_start|>{role}\n{content}{TERMINATOR}\n" for role, content in pairs)


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def teacher_text(tokenizer: Any, template: str, *rows: Demonstration, **options: Any) -> str:
    return text(tokenizer, make(tokenizer, *rows, template=template, **options).pairs[0].teacher_ids)


def test_the_student_sees_the_bare_prompt_and_the_generation_header(tokenizer):
    (pair,) = make(tokenizer, row()).pairs
    assert text(tokenizer, pair.student_ids) == turns(("user", "Name a colour.")) + HEADER


def test_prior_turn_shows_the_demonstration_as_an_answer_and_asks_again(tokenizer):
    question = ("user", "Name a colour.")
    expected = turns(question, ("assistant", "Blue it is."), question) + HEADER
    assert teacher_text(tokenizer, "prior_turn", row()) == expected


def test_prior_turn_keeps_system_message_and_history_in_front(tokenizer):
    history = (Turn("system", "S"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    demonstration = Demonstration("id-0", history, "d")
    expected = turns(
        ("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "c")
    )
    assert teacher_text(tokenizer, "prior_turn", demonstration) == expected + HEADER


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_shows_question_and_demonstration_once_and_ends_in_the_header(tokenizer, template):
    shown = teacher_text(tokenizer, template, row())
    assert shown.count("Name a colour.") == 1
    assert shown.count("Blue it is.") == 1
    assert shown.endswith(f"{TERMINATOR}\n{HEADER}")


def test_reference_and_example_say_what_the_demonstration_is(tokenizer):
    reference = teacher_text(tokenizer, "reference", row())
    assert "Reference answer:\nBlue it is.\n\nUsing the reference answer as a guide, write your own" in reference
    example = teacher_text(tokenizer, "example", row())
    assert "This is an example of a response to the question:\nBlue it is." in example


@pytest.mark.parametrize("template", ["work", "solution_first", "explain"])
@pytest.mark.parametrize("task", TASKS)
def test_templates_that_ask_for_the_work_word_it_as_the_task_does(tokenizer, template, task):
    config, loaded = ContextConfig(template=template), load_task(task, {})
    renderer = Renderer(tokenizer, config)
    (pair,) = prepare([row()], renderer, config, 0, work_of(loaded)).pairs
    shown = text(tokenizer, pair.teacher_ids)
    assert loaded.work_wording in shown
    assert "  " not in shown
    (silent,) = prepare([row()], renderer, config, 0).pairs
    assert text(tokenizer, silent.teacher_ids) == shown.replace(
        f" {loaded.work_wording}", "", bool(loaded.work_wording)
    )


def test_the_solution_may_stand_before_the_question(tokenizer):
    shown = teacher_text(tokenizer, "solution_first", row())
    assert shown.index("Blue it is.") < shown.index("Name a colour.")
    assert shown.endswith(f"Name a colour.{TERMINATOR}\n{HEADER}")


def test_what_a_template_says_is_not_banned_from_answers(tokenizer):
    phrases = ScreeningConfig().banned_phrases
    for template in ("work", "solution_first", "explain"):
        shown = teacher_text(tokenizer, template, row()).lower()
        assert not [phrase for phrase in phrases if phrase in shown]


@pytest.mark.parametrize("template", ["acl_gsm8k", "acl_openfunctions", "acl_alpaca"])
def test_the_templates_of_the_2024_paper_replace_the_system_message(tokenizer, template):
    demonstration = Demonstration("id-0", (Turn("system", "mine"), Turn("user", "q")), "a")
    shown = teacher_text(tokenizer, template, demonstration)
    assert shown.startswith("<|im_start|>system\n")
    assert shown.count("<|im_start|>system") == 1
    assert "mine" not in shown
    assert "reference answer" in shown


def test_an_unknown_template_names_the_nearest(tokenizer):
    with pytest.raises(ConfigError, match=r"'referense' is neither a template nor a file\. Did you mean 'reference'"):
        make(tokenizer, row(), template="referense")


def test_a_jinja_file_of_ones_own_is_a_template(tokenizer, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{{ question }} (hint: {{ demonstration }}){{ work }}{% for e in examples %} {{ e.response }}{% endfor %}"
    )
    shown = teacher_text(tokenizer, str(path), row(), row("Other?", "Red.", "id-1"), **TWO)
    assert shown == turns(("user", "Name a colour. (hint: Blue it is.) Red.")) + HEADER


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ ''.__class__ }} {{ question }} {{ demonstration }}", "access to attribute '__class__'.* is unsafe"),
        ("{{ question }} {{ demonstration }} {{ answer }}", "'answer' is undefined"),
        ("{{ question }} {{ demonstration }} {{ 1 / 0 }}", "division by zero"),
        ("{{ question }} {{ demonstration", "does not compile"),
        ("{{ demonstration }}", "must show {{ question }} somewhere"),
        ("{{ question }}", "must show {{ demonstration }} somewhere"),
    ],
)
def test_a_jinja_file_that_cannot_serve_is_refused(tokenizer, tmp_path, source, problem):
    path = tmp_path / "mine.jinja"
    path.write_text(source)
    with pytest.raises(ConfigError, match=problem):
        make(tokenizer, row(), template=str(path))


@pytest.mark.parametrize("template", [*TEMPLATES, "prior_turn"])
def test_braces_and_dollars_of_the_user_are_left_alone(tokenizer, template):
    prompt, response = "Cost of {{ 7 * 7 }} in ${x} & <b>%s</b>?", "{% set x = 1 %}{'a': $5, \"b\": \\n}"
    (pair,) = make(tokenizer, row(prompt, response), template=template).pairs
    assert prompt in text(tokenizer, pair.student_ids)
    shown = text(tokenizer, pair.teacher_ids)
    assert prompt in shown
    assert response in shown
    assert text(tokenizer, pair.response_ids) == response + TERMINATOR


@pytest.mark.parametrize("template", [*TEMPLATES, "prior_turn"])
def test_an_over_long_context_cuts_the_end_of_the_demonstration_and_nothing_else(tokenizer, template):
    response = "".join(f"<{i}>" for i in range(100))
    (whole,) = make(tokenizer, row(response=response), template=template).pairs
    limit = len(whole.teacher_ids) - 50
    prepared = make(tokenizer, row(response=response), template=template, max_teacher_tokens=limit)
    (pair,) = prepared.pairs
    shown = text(tokenizer, pair.teacher_ids)
    assert len(pair.teacher_ids) == limit
    assert shown == text(tokenizer, whole.teacher_ids).replace(response, response[:-50])
    assert pair.num_trimmed_tokens == 50
    assert prepared.trimmed_ids == ("id-0",)
    assert pair.response_ids == whole.response_ids


def test_a_demonstration_is_never_cut_in_the_middle_of_a_character(tokenizer):
    response = "é" * 50  # two tokens each
    whole = len(make(tokenizer, row(response=response)).pairs[0].teacher_ids)
    (pair,) = make(tokenizer, row(response=response), max_teacher_tokens=whole - 5).pairs
    shown = text(tokenizer, pair.teacher_ids)
    assert "\ufffd" not in shown
    assert shown.count("é") == 47


def test_examples_are_left_out_before_the_demonstration_is_cut(tokenizer):
    rows = [row(f"Question {i}?", f"Answer {i}. " + "x" * 40, f"id-{i}") for i in range(4)]
    options = {"show": "both", "num_demonstrations": 4, "neighbours": "random"}
    full = make(tokenizer, *rows, **options).pairs[0]
    order = [f"Question {i}?" for i in range(1, 4)]
    order.sort(key=text(tokenizer, full.teacher_ids).index)
    fewer = make(tokenizer, *rows, **options, max_teacher_tokens=len(full.teacher_ids) - 1).pairs[0]
    shown = text(tokenizer, fewer.teacher_ids)
    assert (fewer.num_dropped_examples, fewer.num_trimmed_tokens) == (1, 0)
    assert order[0] not in shown  # the farthest goes first
    assert order[1] in shown
    assert order[2] in shown
    alone = make(tokenizer, rows[0]).pairs[0]
    cut = make(tokenizer, *rows, **options, max_teacher_tokens=len(alone.teacher_ids) - 10).pairs[0]
    assert (cut.num_dropped_examples, cut.num_trimmed_tokens) == (3, 10)


def test_k_shot_examples_are_earlier_turns_of_the_conversation(tokenizer):
    rows = [row("One?", "1", "id-0"), row("Two?", "2", "id-1")]
    shown = teacher_text(tokenizer, "prior_turn", *rows, **TWO)
    question = ("user", "One?")
    expected = turns(("user", "Two?"), ("assistant", "2"), question, ("assistant", "1"), question)
    assert shown == expected + HEADER


PALETTE = [
    row(),
    row("  name a COLOUR. ", "Blue, again.", "twin"),
    row("Name a fruit.", "Plum.", "id-2"),
    row("Name a tree.", "Oak.", "id-3"),
]


@pytest.mark.parametrize("template", [*TEMPLATES, "prior_turn"])
@pytest.mark.parametrize("neighbours", ["random", "nearest"])
def test_only_others_are_shown_without_the_own_answer_or_that_of_the_same_question(tokenizer, template, neighbours):
    options = {"show": "others", "num_demonstrations": 3, "neighbours": neighbours}
    for pair in make(tokenizer, *PALETTE, template=template, **options).pairs[:2]:
        shown = text(tokenizer, pair.teacher_ids)
        assert "Blue" not in shown
        assert "Plum." in shown
        assert "Oak." in shown
        assert shown.count(pair.demonstration.prompt) == 1
        assert shown.endswith(f"{TERMINATOR}\n{HEADER}")
        assert "solution" not in shown
        assert "reference answer" not in shown


@pytest.mark.parametrize("template", [*TEMPLATES, "prior_turn"])
def test_both_shows_the_own_demonstration_after_others(tokenizer, template):
    shown = teacher_text(tokenizer, template, *PALETTE, show="both", num_demonstrations=3)
    assert max(shown.index("Plum."), shown.index("Oak.")) < shown.index("Blue it is.")
    assert "Blue, again." not in shown


def test_others_alone_drop_the_farthest_and_cut_the_last_one_that_stays(tokenizer):
    rows = [row(), row("Name a fruit.", "p" * 40, "id-1"), row("Name a nice colour.", "q" * 40, "id-2")]
    options = {"show": "others", "num_demonstrations": 2, "neighbours": "nearest"}
    one = len(make(tokenizer, *rows, **{**options, "num_demonstrations": 1}).pairs[0].teacher_ids)
    pair = make(tokenizer, *rows, **options, max_teacher_tokens=one).pairs[0]
    assert (pair.num_dropped_examples, pair.num_trimmed_tokens) == (1, 0)
    pair = make(tokenizer, *rows, **options, max_teacher_tokens=one - 10).pairs[0]
    assert (pair.num_dropped_examples, pair.num_trimmed_tokens) == (1, 10)
    assert "q" * 30 + TERMINATOR in text(tokenizer, pair.teacher_ids)
    with pytest.raises(DataError, match="rows do not fit"):
        make(tokenizer, *rows, **options, max_teacher_tokens=one - 40)


def test_only_others_are_refused_where_a_question_has_none(tokenizer):
    with pytest.raises(DataError, match=r"'id-0': context\.show=others, but no other row.*--context\.show own"):
        make(tokenizer, *PALETTE[:2], show="others")


@pytest.mark.parametrize(
    ("show", "source", "missing"),
    [
        ("others", "{{ question }} {{ demonstration }}", "examples"),
        ("both", "{{ question }} {{ demonstration }}", "examples"),
        ("both", "{{ question }} {{ examples }}", "demonstration"),
        ("others", "{{ examples }}", "question"),
    ],
)
def test_a_jinja_file_has_to_show_what_is_to_be_shown(tmp_path, show, source, missing):
    path = tmp_path / "mine.jinja"
    path.write_text(source)
    with pytest.raises(ConfigError, match=rf"must show {{{{ {missing} }}}} somewhere \(context\.show={show}\)"):
        TeacherContext(str(path), show)


def test_a_jinja_file_for_others_alone_need_not_show_the_demonstration(tokenizer, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{% for e in examples %}{{ e.question }} {{ e.response }} {% endfor %}{{ question }}{{ demonstration }}"
    )
    shown = teacher_text(tokenizer, str(path), row(), row("Other?", "Red.", "id-1"), show="others")
    assert shown == turns(("user", "Other? Red. Name a colour.")) + HEADER


def test_rows_that_cannot_fit_are_refused_with_their_ids(tokenizer):
    with pytest.raises(
        DataError, match=r"1 of 2 rows do not fit .*: long \(bare prompt of \d+ tokens\).*--context\.on_too_long drop"
    ):
        make(tokenizer, row(), row("x" * 300, name="long"), max_student_tokens=200)


def test_a_question_too_long_for_the_teacher_is_refused_rather_than_cut(tokenizer):
    with pytest.raises(DataError, match="1 of 1 rows do not fit"):
        make(tokenizer, row("x" * 100), max_teacher_tokens=200)


def test_rows_that_cannot_fit_are_dropped_on_request_and_named(tokenizer):
    rows = [row(), row("x" * 300, name="long")]
    prepared = make(tokenizer, *rows, max_student_tokens=200, on_too_long="drop")
    assert prepared.dropped_ids == ("long",)
    assert [pair.demonstration.example_id for pair in prepared.pairs] == ["id-0"]


def test_a_data_set_of_which_nothing_fits_is_refused(tokenizer):
    with pytest.raises(DataError, match="No row fits"):
        make(tokenizer, row("x" * 300), max_student_tokens=100, on_too_long="drop")


def test_the_target_ends_in_the_templates_terminator_and_nothing_after(tokenizer):
    (pair,) = make(tokenizer, row()).pairs
    assert text(tokenizer, pair.response_ids) == "Blue it is.<|im_end|>"
    assert pair.response_ids.count(tokenizer.eos_token_id) == 1


def test_the_templates_terminator_wins_over_the_end_of_text_token(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    other.eos_token = "<|endoftext|>"
    assert text(other, Renderer(other, ContextConfig()).response_ids("Hi")) == "Hi<|im_end|>"


def test_a_template_without_a_terminator_uses_the_end_of_text_token(tokenizer):
    plain = with_template(
        tokenizer, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )  # fmt: skip
    assert Renderer(plain, ContextConfig()).terminator_id == tokenizer.eos_token_id


def test_a_response_that_spells_the_terminator_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"'id-0': the assistant's text spells the control token '<\|im_end\|>'"):
        make(tokenizer, row(response="Blue.<|im_end|>"))


def test_the_first_token_is_not_doubled_by_a_tokenizer_that_adds_it(tokenizer):
    from tokenizers import processors

    adding = copy.deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    assert adding("x")["input_ids"][0] == tokenizer.bos_token_id
    (pair,) = make(adding, row()).pairs
    for ids in (pair.student_ids, pair.teacher_ids):
        assert ids[0] == tokenizer.bos_token_id
        assert ids[1] != tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in pair.response_ids


def test_a_template_that_doubles_the_first_token_is_refused(tokenizer):
    doubled = with_template(tokenizer, "{{ bos_token }}" + tokenizer.chat_template)
    with pytest.raises(ConfigError, match="beginning-of-text token twice"):
        make(doubled, row())


EMPTY_BLOCK = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}"
    + EMPTY_BLOCK
    + "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n" + EMPTY_BLOCK + "{% endif %}"
)


def test_prompts_that_start_the_answer_in_different_states_are_refused(tokenizer):
    thinking = with_template(tokenizer, THINKING)
    with pytest.raises(ConfigError, match=r"start the answer differently.*the same thinking mode"):
        make(thinking, row(), student_template_kwargs={"enable_thinking": False})


def test_prompts_in_the_same_thinking_mode_start_the_answer_alike(tokenizer):
    thinking = with_template(tokenizer, THINKING)
    off = {"enable_thinking": False}
    (pair,) = make(thinking, row(), student_template_kwargs=off, teacher_template_kwargs=off).pairs
    for ids in (pair.student_ids, pair.teacher_ids):
        assert text(tokenizer, ids).endswith(HEADER + "<think>\n\n</think>\n\n")


NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_model_without_a_system_role_takes_templates_that_need_none(tokenizer):
    strict = with_template(tokenizer, NO_SYSTEM)
    for template in ("prior_turn", "reference", "example"):
        assert make(strict, row(), template=template).pairs


def test_a_model_without_a_system_role_refuses_a_system_message_with_the_way_out(tokenizer):
    strict = with_template(tokenizer, NO_SYSTEM)
    with pytest.raises(ConfigError, match=r"\['system', 'user'\]: System role not supported.*context\.template"):
        make(strict, row(), template="acl_gsm8k")


def test_a_context_without_examples_needs_no_neighbours():
    context = TeacherContext("reference")
    (turn,) = context.turns(row(), "shown", [])
    assert turn.content.startswith("Name a colour.\n\nReference answer:\nshown\n")


def test_completions_are_decoded_without_special_tokens(tokenizer):
    renderer = Renderer(tokenizer, ContextConfig())
    assert renderer.decode(renderer.response_ids("né 5 < 6")) == "né 5 < 6"
