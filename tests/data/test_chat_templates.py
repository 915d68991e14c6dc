"""One rule over templates and tokenizers: prompt and target are what the chat template writes."""

from __future__ import annotations

import copy
import dataclasses
import json
from datetime import datetime
from typing import Any

import chat_toys
import pytest
from tokenizers import AddedToken, normalizers, processors
from transformers import PreTrainedTokenizerFast

from onpolicy_sdft.config.schema import ContextConfig
from onpolicy_sdft.data.chat_template import OwnMarkup
from onpolicy_sdft.data.preflight import describe_lengths
from onpolicy_sdft.data.prepare import Prepared, prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.errors import ConfigError, DataError, SdftError
from onpolicy_sdft.models.load import plain_template
from onpolicy_sdft.types import Demonstration, Turn

NOW = "28 Nov 2026 10:00:00"
TEXTS = ["Blue it is.", "42", "x = [1, 2]\n\nprint(x)", "né 東京 🙂", "a  b", "- one\n- two.", "<b>bold</b> & {{ x }}"]
TALKS = [
    (Turn("user", "Name a colour."),),
    (Turn("user", "One?\n"), Turn("assistant", "1"), Turn("user", "  And two? ")),
]


def renderer_of(toy: chat_toys.Toy, tokenizer: str = "bytes", **options: Any) -> Renderer:
    kwargs = {"student_template_kwargs": toy.kwargs, "teacher_template_kwargs": toy.kwargs}
    return Renderer(
        chat_toys.make(toy, tokenizer), ContextConfig(**{"date": "2026-11-28T10:00:00", **kwargs, **options})
    )


def whole_ids(renderer: Renderer, toy: chat_toys.Toy, turns: tuple[Turn, ...], response: str) -> list[int]:
    """What the chat template writes over the whole conversation, through transformers alone."""
    messages = [{"role": turn.role, "content": turn.content} for turn in (*turns, Turn("assistant", response))]
    template = toy.template.replace("strftime_now('%d %b %Y %H:%M:%S')", f"'{NOW}'")
    ids = renderer.tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False, **toy.kwargs)
    assert isinstance(ids, list)
    return ids


def holds(renderer: Renderer, toy: chat_toys.Toy, turns: tuple[Turn, ...], text: str) -> bool:
    asked, target = renderer.student_ids(turns), renderer.response_ids(text)
    whole = whole_ids(renderer, toy, turns, text)
    assert renderer.target(turns, text) == (asked, target)
    assert renderer.controls(target) == ()
    return [*asked, *target] == whole[: len(asked) + len(target)] and renderer.decode(target) == text


def rows(*pairs: tuple[str, str]) -> list[Demonstration]:
    return [
        Demonstration(f"id-{i}", (Turn("user", prompt),), response, origin=f"rows.jsonl, row {i + 1}")
        for i, (prompt, response) in enumerate(pairs)
    ]


def prepared(renderer: Renderer, *pairs: tuple[str, str], **options: Any) -> Prepared:
    return prepare(rows(*pairs), renderer, renderer.config, 0, **options)


@pytest.mark.parametrize("tokenizer", chat_toys.TOKENIZERS)
@pytest.mark.parametrize("name", chat_toys.TOYS)
@pytest.mark.few(40)
def test_prompt_and_target_begin_the_conversation_and_give_back_the_text(name, tokenizer):
    toy = chat_toys.TOYS[name]
    renderer = renderer_of(toy, tokenizer)
    for turns in TALKS:
        for text in TEXTS:
            if name == "gemma" and "blank" in tokenizer and renderer.tokenizer.decode(renderer.text_ids(text)) != text:
                continue  # its runs of blanks as tokens, and blanks before every part: no text survives that
            assert holds(renderer, toy, turns, text), text
            end = renderer.response_ids(text)[-1]
            assert renderer.tokenizer.convert_ids_to_tokens(end) == toy.end
            assert renderer.response_ids(text).count(end) == 1
            assert renderer.end_ids[-1] == end


@pytest.mark.parametrize("begins", [True, False], ids=["adds a token", "adds none"])
@pytest.mark.parametrize("tokenizer", chat_toys.TOKENIZERS)
def test_the_programs_own_template_begins_the_conversation_as_the_tokenizer_does(tokenizer, begins):
    made = chat_toys.make(chat_toys.Toy("", ("<s>", "</s>"), "</s>", "</s>", bos="<s>"), tokenizer)
    if begins:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
        )
    made.chat_template = plain_template(made)
    toy = chat_toys.Toy(made.chat_template, (), "</s>", "</s>")
    renderer = Renderer(made, ContextConfig())
    assert renderer.notes() == []
    for turns in TALKS:
        for text in TEXTS:
            assert holds(renderer, toy, turns, text), text
        asked = renderer.student_ids(turns)
        assert asked.count(made.bos_token_id) == int(begins)
        ends = {"assistant": "</s>"}
        said = "".join(f"{turn.role.title()}: {turn.content}{ends.get(turn.role, '')}\n" for turn in turns)
        assert list(asked) == made(f"{said}Assistant:")["input_ids"], "what the tokenizer makes of the text by itself"


@pytest.mark.parametrize("tokenizer", chat_toys.TOKENIZERS)
@pytest.mark.parametrize("name", chat_toys.TOYS)
@pytest.mark.parametrize(
    "text", [" a", "a ", "\na", "a\n", "\n\n", " ", "", "</think>\n\n42", "<think>\nso\n</think>\n\n42"]
)
@pytest.mark.few(72)
def test_texts_at_the_edge_hold_or_are_refused_with_the_fix(name, tokenizer, text):
    toy = chat_toys.TOYS[name]
    renderer = renderer_of(toy, tokenizer)
    try:
        assert holds(renderer, toy, TALKS[0], text)
    except DataError as error:
        assert "Fix: " in str(error)  # noqa: PT017  # refused or right: which, is up to the template


@pytest.mark.parametrize("name", chat_toys.UNUSABLE)
def test_templates_that_answers_cannot_be_learned_with_are_refused_with_both_texts(name):
    renderer = renderer_of(chat_toys.UNUSABLE[name], "byte-level pieces")
    with pytest.raises(SdftError, match=r"Fix: ") as refused:
        prepared(renderer, ("Name a colour.", "answer is 4."))
    prompt = renderer.markup.prompt
    assert repr(prompt)[-20:-1] in str(refused.value).replace("Name a colour.", "onpolicy sdft question")
    assert renderer.student_ids(TALKS[0])  # such a model can still be asked


def test_what_ends_answers_wins_over_the_end_of_text_and_needs_no_name():
    renderer = renderer_of(chat_toys.TOYS["llama-3"])
    assert renderer.tokenizer.decode(renderer.response_ids("ab")) == "ab<|eot_id|>"
    assert renderer.tokenizer.decode([renderer.terminator_id]) == "<|eot_id|>"


def test_blanks_that_a_template_trims_are_refused_or_trimmed_on_request():
    renderer = renderer_of(chat_toys.TOYS["llama-3"])
    with pytest.raises(DataError, match=r"row 1: .* make 'Blue' of the response 'Blue \\n'.*--context\.trim_responses"):
        prepared(renderer, ("q", "Blue \n"))
    trimming = renderer_of(chat_toys.TOYS["llama-3"], trim_responses=True)
    (pair,) = prepared(trimming, ("q", "Blue \n")).pairs
    assert pair.demonstration.response == "Blue"
    assert pair.response_ids == renderer.response_ids("Blue")


def test_what_a_template_writes_before_an_answer_is_learned_and_said():
    for name, lead in (("gpt-oss", "<|channel|>final<|message|>"), ("qwen3", "<think>\n\n</think>\n\n")):
        found = prepared(renderer_of(chat_toys.TOYS[name]), ("q", "Blue."))
        renderer = found.prompts._renderer
        target = found.pairs[0].response_ids
        assert renderer.tokenizer.decode(target) == lead + "Blue." + chat_toys.TOYS[name].end
        assert f"the chat template writes {lead!r} between its header and an answer" in found.notes[0]
    assert not prepared(renderer_of(chat_toys.TOYS["qwen3 without thinking"], date=None), ("q", "Blue.")).notes


# Text of rows never becomes a control token.


def test_thoughts_before_the_header_of_an_answer_are_no_control_tokens_inside_it():
    renderer = renderer_of(chat_toys.TOYS["gpt-oss"])
    target = list(renderer.response_ids("4"))
    thoughts = renderer.tokenizer.encode(
        "<|channel|>analysis<|message|>so<|end|><|start|>assistant", add_special_tokens=False
    )
    assert not renderer.controls(thoughts + target)
    assert renderer.controls(target[:-1] + thoughts)


@pytest.mark.parametrize("tokenizer", chat_toys.TOKENIZERS)
@pytest.mark.parametrize("name", chat_toys.TOYS)
@pytest.mark.few(40)
def test_a_control_token_in_a_row_is_refused_with_file_and_row_or_left_out(name, tokenizer):
    toy = chat_toys.TOYS[name]
    renderer = renderer_of(toy, tokenizer)
    end = toy.end
    bad = [(f"hello{end}\nObey", "Blue."), ("hello", f"Bl{end}ue."), ("hello", f"Blue.{end}")]
    for pair in bad:
        with pytest.raises(
            DataError, match=r"rows\.jsonl, row 2: the (user|assistant)'s text spells the control token"
        ):
            prepared(renderer, ("q", "Blue."), pair)
    found = prepared(renderer, bad[0], ("q", "Blue."), *bad[1:], on_bad_row="skip")
    assert [pair.demonstration.example_id for pair in found.pairs] == ["id-1"]
    assert len(found.bad_rows) == 3
    assert any("3 rows are left out" in warning for warning in describe_lengths(found, 50)[1])
    with pytest.raises(DataError, match=r"No row is left to learn: 3 are bad"):
        prepared(renderer, *bad, on_bad_row="skip")


@pytest.mark.parametrize("tokenizer", chat_toys.TOKENIZERS)
@pytest.mark.parametrize("name", chat_toys.TOYS)
def test_prompts_that_are_not_rows_keep_spelled_control_tokens_as_text(name, tokenizer):
    renderer = renderer_of(chat_toys.TOYS[name], tokenizer)

    def controls(prompt: str) -> list[int]:
        return [token for token in renderer.student_ids([Turn("user", prompt)]) if token in renderer.control_ids]

    spelled = "".join(name for name in renderer.markup.control.values() if name.strip())
    assert controls(f"hello {spelled} you") == controls("hello you")
    if "blank" not in tokenizer:
        ids = renderer.student_ids([Turn("user", f"hello {spelled} you")])
        assert f"hello {spelled} you" in renderer.tokenizer.decode(list(ids))


@pytest.mark.parametrize("said", ["hello <|IM_END|> you", "hello ＜|im_end|＞ you"])
def test_what_a_normalising_tokenizer_takes_for_a_control_token_stays_text(said):
    """It cannot be found by its spelling. A row is refused; prompts of a chat, or with a model's text, are not."""
    backend = chat_toys.TOKENIZERS["bytes"]()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.add_special_tokens(
        [AddedToken(each, special=True, normalized=True) for each in ("<|im_start|>", "<|im_end|>")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = chat_toys.TOYS["chatml"].template
    renderer = Renderer(tokenizer, ContextConfig())
    plain, ids = (renderer.student_ids([Turn("user", text)]) for text in ("hello you", said))
    assert [token for token in ids if token in renderer.control_ids] == [
        token for token in plain if token in renderer.control_ids
    ]
    assert "hello <|im_end|> you" in tokenizer.decode(list(ids))
    with pytest.raises(DataError, match=r"the user's text spells the control token '<\|im_end\|>'"):
        renderer.target([Turn("user", said)], "Blue.")


def test_markers_without_a_special_flag_are_control_tokens_and_tags_are_not():
    renderer = renderer_of(chat_toys.TOYS["chatml without special flags"])
    with pytest.raises(DataError, match=r"the user's text spells the control token '<\|im_start\|>'"):
        prepared(renderer, ("a<|im_start|>b", "Blue."))
    renderer = renderer_of(chat_toys.TOYS["qwen3 without thinking"])
    text = '<tool_call>\n{"name": "f"}\n</tool_call>'
    assert holds(renderer, chat_toys.TOYS["qwen3 without thinking"], TALKS[0], text)
    opened = renderer_of(chat_toys.TOYS["header that opens a block"])
    assert holds(opened, chat_toys.TOYS["header that opens a block"], TALKS[0], "so\n</think>\n\n42")


def test_the_system_message_and_every_turn_are_looked_at():
    renderer = renderer_of(chat_toys.TOYS["chatml"])
    for role, turns in {
        "system": (Turn("system", "a<|im_end|>b"), Turn("user", "q")),
        "assistant": (Turn("user", "q"), Turn("assistant", "a<|im_end|>b"), Turn("user", "q")),
    }.items():
        with pytest.raises(DataError, match=f"the {role}'s text spells the control token"):
            renderer.target(turns, "Blue.")


def test_control_tokens_inside_a_completion_are_shown_and_named():
    renderer = renderer_of(chat_toys.TOYS["chatml"])
    start = renderer.tokenizer.convert_tokens_to_ids("<|im_start|>")
    ids = (*renderer.text_ids("Par"), start, *renderer.text_ids("is"), renderer.terminator_id)
    assert renderer.decode(ids) == "Par<|im_start|>is"
    assert renderer.controls(ids) == ("<|im_start|>",)
    assert renderer.decode(ids[:-1]) == "Par<|im_start|>is"  # cut off by the length limit


def test_a_context_template_that_spells_a_control_token_is_refused(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ question }}<|im_end|>\n{{ demonstration }}")
    renderer = renderer_of(chat_toys.TOYS["chatml"], template=str(path))
    with pytest.raises(ConfigError, match=r"mine\.jinja' spells the control token '<\|im_end\|>'.*Fix: take it out"):
        prepared(renderer, ("q", "a"))


def test_an_attempt_that_spells_control_tokens_is_shown_as_text():
    renderer = renderer_of(chat_toys.TOYS["chatml"])
    turns = [Turn("user", "q"), Turn("assistant", "a<|im_end|>b"), Turn("user", "again")]
    ids = renderer.teacher_ids(turns)
    assert ids.count(renderer.terminator_id) == 3


# The demonstration stands whole in the teacher's prompt, or it is said.


def test_what_a_template_drops_of_the_demonstration_is_counted_and_said():
    thought = "<think>\nTwo and two are four.\n</think>\n\n"
    renderer = renderer_of(chat_toys.TOYS["qwen3"], template="prior_turn")
    found = prepared(renderer, ("2 + 2?", thought + "4"), ("3 + 3?", "6"))
    (missing,) = found.left_out
    assert (missing.example_id, missing.num_characters) == ("id-0", len(thought))
    assert missing.num_given == len("2 + 2?" + thought + "4" + "2 + 2?")
    (warning,) = [text for text in describe_lengths(found, 50)[1] if "out of the teacher's prompt" in text]
    assert f"left {len(thought)} of {missing.num_given} characters out of the teacher's prompt" in warning
    assert "in 1 rows: id-0" in warning
    assert "--context.template reference" in warning
    assert not prepared(renderer_of(chat_toys.TOYS["qwen3"], template="reference"), ("2 + 2?", thought + "4")).left_out


@pytest.mark.parametrize(
    ("written", "num_lost"),
    [
        ("{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}", 10),
        ("<|im_start|>{{ m.role }}\n{{ m.content[:22] if m.role == 'user' else m.content }}<|im_end|>\n", 18),
        ("<|im_start|>{{ m.role }}\n{{ m.content | e }}<|im_end|>\n", 0),
        ("<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n", 0),
    ],
)
def test_turns_that_a_template_drops_or_cuts_are_counted_in_both_prompts(written, num_lost):
    header = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    template = "{% for m in messages %}" + written + "{% endfor %}" + header
    toy = dataclasses.replace(chat_toys.TOYS["chatml"], template=template)
    turns = (Turn("system", "Be < brief"), Turn("user", "q" * 40))
    config = ContextConfig(template="reference")
    found = prepare([Demonstration("id-0", turns, "a")], renderer_of(toy), config, 0)
    assert [each.num_characters for each in found.left_out_bare] == ([num_lost] if num_lost else [])
    assert bool(found.left_out) == bool(num_lost)
    said = [line for line in describe_lengths(found, 50)[1] if "out of the bare prompt" in line]
    assert len(said) == bool(num_lost)


def test_what_is_left_out_of_other_examples_counts_too():
    pairs = [(f"{i} + {i}?", f"<think>\nsum\n</think>\n\n{2 * i}") for i in range(3)]
    renderer = renderer_of(chat_toys.TOYS["qwen3"], template="prior_turn", show="others", num_demonstrations=2)
    found = prepared(renderer, *pairs)
    assert [each.num_characters for each in found.left_out] == [2 * len("<think>\nsum\n</think>\n\n")] * 3


def test_a_method_without_a_teacher_leaves_rows_out_for_the_bare_prompt_alone():
    renderer = renderer_of(chat_toys.TOYS["chatml"], max_teacher_tokens=40, max_student_tokens=80)
    short, long = ("q", "a"), ("q" * 90, "a")
    with pytest.raises(
        DataError, match=r"1 of 1 rows .*max_teacher_tokens=40.*id-0 \(teacher's prompt of \d+ tokens, uncut"
    ):
        prepared(renderer, short)
    found = prepared(renderer, short, asks_teacher=False)
    assert [pair.teacher_ids for pair in found.pairs] == [()]
    assert [row.name for row in describe_lengths(found, 50)[0]] == ["bare prompt (student)", "demonstration"]
    with pytest.raises(
        DataError, match=r"1 of 2 rows do not fit in context.max_student_tokens=80: id-1 \(bare prompt of 1"
    ):
        prepared(renderer, short, long, asks_teacher=False)


# What else is read.


def test_a_template_that_reads_the_clock_sees_one_date_which_can_be_given():
    toy = chat_toys.TOYS["llama-3 with dates"]
    renderer = renderer_of(toy)
    assert NOW in renderer.tokenizer.decode(renderer.student_ids(TALKS[0]))
    assert renderer.writer.date == "2026-11-28T10:00:00"
    assert "--context.date 2026-11-28T10:00:00 gives the same prompts again" in renderer.notes()[-1]
    assert renderer_of(chat_toys.TOYS["llama-3"]).writer.date == ""
    again, other = (prepared(renderer_of(toy, date=date), ("q", "a")) for date in ("2026-11-28T10:00:00", "2026-11-29"))
    assert prepared(renderer, ("q", "a")).digest == again.digest != other.digest
    with pytest.raises(ConfigError, match=r"context\.date='today' is no date"):
        renderer_of(toy, date="today")


CLOCKS = {
    "plain": "{{ strftime_now('%d %b %Y %H:%M:%S') }}",
    "with a blank": "{{ strftime_now ('%d %b %Y %H:%M:%S') }}",
    "put together": "{{ strftime_now('%d %b ' ~ '%Y %H:%M:%S') }}",
    "under another name": "{% set now = strftime_now %}{{ now('%d %b %Y %H:%M:%S') }}",
    "by keyword": "{{ strftime_now(format='%d %b %Y %H:%M:%S') }}",
    "in a macro": "{% macro today(f) %}{{ strftime_now(f) }}{% endmacro %}{{ today('%d %b %Y %H:%M:%S') }}",
    "if there is one": "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y %H:%M:%S') }}{% endif %}",
    "as text": "{% set at = strftime_now('%d %b %Y|%H:%M:%S').split('|') %}{{ at[0] }} {{ at[1] }}",
}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
@pytest.mark.parametrize("named", [False, True])
def test_every_use_of_the_clock_sees_the_date(clock, named):
    toy = chat_toys.TOYS["chatml"]
    template = f"\n'Today' \"is\" {clock}.\n" + toy.template
    tokenizer = chat_toys.make(dataclasses.replace(toy, template=template), "bytes")
    if named:
        tokenizer.chat_template = {"default": template}
    renderer = Renderer(tokenizer, ContextConfig(date="2026-11-28T10:00:00"))
    assert tokenizer.decode(renderer.student_ids(TALKS[0])).startswith(f"\n'Today' \"is\" {NOW}.\n<|im_start|>")
    assert [note for note in renderer.notes() if "clock" in note] == [
        "the chat template reads the clock and sees 2026-11-28T10:00:00 in the whole run: --context.date "
        "2026-11-28T10:00:00 gives the same prompts again"
    ]


@pytest.mark.parametrize("code", [*"aAbBcdeHIjmMpSuUVwWxXyYzZ%", "-d", "-m", "-I", "Q"])
@pytest.mark.few(12)
def test_every_part_of_a_date_is_written_as_python_does(code):
    toy = chat_toys.TOYS["chatml"]
    template = f"{{{{ strftime_now('<%{code}> 5% ') }}}}" + toy.template
    tokenizer = chat_toys.make(dataclasses.replace(toy, template=template), "bytes")
    renderer = Renderer(tokenizer, ContextConfig(date="2026-01-08T09:05:03"))
    expected = datetime(2026, 1, 8, 9, 5, 3).strftime(f"<%{code}> 5%% ")
    assert tokenizer.decode(renderer.student_ids(TALKS[0])).startswith(f"{expected}<|im_start|>")


@pytest.mark.parametrize("option", ["student_template_kwargs", "teacher_template_kwargs"])
def test_a_template_argument_that_the_template_never_reads_is_refused(option):
    toy = chat_toys.TOYS["chatml"]
    template = "{% if enable_thinking is defined and not enable_thinking %}/no{% endif %}" + toy.template
    tokenizer = chat_toys.make(dataclasses.replace(toy, template=template), "bytes")
    with pytest.raises(
        ConfigError,
        match=rf"context.{option} has enable_thinkin=False.*it reads .*enable_thinking.*Did you mean 'enable_thinking'",
    ):
        Renderer(tokenizer, ContextConfig(**{option: {"enable_thinkin": False}}))
    Renderer(tokenizer, ContextConfig(**{name: {"enable_thinking": True} for name in OPTIONS}))


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "tokenize"])
def test_a_template_argument_that_the_program_gives_is_refused(name):
    tokenizer = chat_toys.make(chat_toys.TOYS["chatml"], "bytes")
    with pytest.raises(ConfigError, match=f"has {name}=.*which the program gives itself"):
        Renderer(tokenizer, ContextConfig(teacher_template_kwargs={name: []}))


def test_a_date_that_no_template_reads_is_said():
    renderer = Renderer(chat_toys.make(chat_toys.TOYS["chatml"], "bytes"), ContextConfig(date="2026-11-28"))
    assert renderer.notes()[-1].startswith("context.date=2026-11-28 has no effect")


OPTIONS = ("student_template_kwargs", "teacher_template_kwargs")
WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("reads", ["", "{% if tools is defined and false %}{{ tools }}{% endif %}"])
def test_tools_for_all_rows_that_the_template_does_not_write_are_refused(reads):
    toy = chat_toys.TOYS["chatml"]
    tokenizer = chat_toys.make(dataclasses.replace(toy, template=reads + toy.template), "bytes")
    with pytest.raises(ConfigError, match=r"context.student_template_kwargs has tools.*Fix: a model whose chat templ"):
        Renderer(tokenizer, ContextConfig(**{name: {"tools": [WEATHER]} for name in OPTIONS}))
    written = "{% if tools %}{{ tools | tojson }}{% endif %}" + toy.template
    tokenizer = chat_toys.make(dataclasses.replace(toy, template=written), "bytes")
    renderer = Renderer(tokenizer, ContextConfig(**{name: {"tools": [WEATHER]} for name in OPTIONS}))
    assert '"name": "weather"' in tokenizer.decode(renderer.student_ids(TALKS[0]))


def test_a_template_of_tools_that_ends_turns_otherwise_is_refused_with_the_reason():
    toy = chat_toys.TOYS["chatml"]
    ending = dataclasses.replace(toy, special=(*toy.special, "<|eot|>"))
    tokenizer = chat_toys.make(ending, "bytes")
    with_tools = "{{ tools | tojson }}" + toy.template.replace("<|im_end|>", "<|eot|>")
    tokenizer.chat_template = {"default": toy.template, "tool_use": with_tools}
    renderer = Renderer(tokenizer, ContextConfig())
    turns = (Turn("tools", json.dumps([WEATHER])), Turn("user", "Rome?"))
    assert renderer.target(TALKS[0], "Blue.")
    for ask in (lambda: renderer.target(turns, "Warm."), lambda: renderer.student_ids(turns)):
        with pytest.raises(DataError, match=r"ends an answer with <\|eot\|> where there are tools.*<\|im_end\|> else"):
            ask()
    for_all = Renderer(tokenizer, ContextConfig(**{name: {"tools": [WEATHER]} for name in OPTIONS}))
    assert for_all.tokenizer.convert_ids_to_tokens(for_all.terminator_id) == "<|eot|>"
    assert for_all.decode(for_all.target(TALKS[0], "Blue.")[1]) == "Blue."


def test_a_template_with_an_error_is_what_is_to_be_mended():
    toy = chat_toys.TOYS["chatml"]
    tokenizer = chat_toys.make(dataclasses.replace(toy, template="{% if x %}\n{% endfor %}" + toy.template), "bytes")
    with pytest.raises(ConfigError, match=r"chat template has an error of its own in line 2.*chat_template.jinja"):
        Renderer(tokenizer, ContextConfig())


def test_the_digest_follows_every_id():
    found = prepared(renderer_of(chat_toys.TOYS["chatml"]), ("q", "a"), ("r", "b"))
    (first, second), digests = found.pairs, {found.digest}
    for field in ("student_ids", "teacher_ids", "response_ids"):
        other = dataclasses.replace(second, **{field: (*getattr(second, field), 1)})
        digests.add(dataclasses.replace(found, pairs=(first, other)).digest)
    assert len(digests) == 4


def test_a_template_that_leaves_out_what_the_tokenizer_adds_is_said():
    toy = dataclasses.replace(
        chat_toys.TOYS["llama-3"], template=chat_toys.TOYS["llama-3"].template.replace("{{ bos_token }}", "")
    )
    tokenizer = copy.deepcopy(chat_toys.make(toy, "bytes"))
    bos = "<|begin_of_text|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    (note,) = Renderer(tokenizer, ContextConfig()).notes()
    assert f"the chat template leaves out {bos}, which the tokenizer puts before every text" in note
    assert not renderer_of(chat_toys.TOYS["llama-3"], date=None).notes()


@pytest.mark.parametrize("name", chat_toys.TOYS)
def test_text_that_goes_through_another_program_is_tokenised_as_rows_are(name):
    toy = chat_toys.TOYS[name]
    renderer = renderer_of(toy)
    markup = OwnMarkup(renderer.markup.control.values())
    spelled = next(iter(renderer.markup.control.values()))
    for text in (*TEXTS, f"a{spelled}b", f"{spelled}{spelled}"):

        def render(contents):
            turns = [Turn("user", content) for content in contents]
            return renderer.writer.text(turns, renderer.config.teacher_template_kwargs, generation=True)

        found = [token for piece in markup.pieces(markup.render([text], render)) for token in renderer.text_ids(piece)]
        assert tuple(found) == renderer.teacher_ids([Turn("user", text)])


def test_taking_out_the_seam_leaves_every_mark_whole():
    renderer = renderer_of(chat_toys.TOYS["chatml"])
    spelled = next(iter(renderer.markup.control.values()))
    text = f"a{spelled}b"
    for _ in range(300):  # marks are random: one in thirty held the seam
        markup = OwnMarkup(renderer.markup.control.values())
        rendered = markup.render([text], lambda contents: spelled + "".join(contents))
        assert rendered == f"{markup.mark}{spelled}{markup.mark}{text}"


def test_tokens_that_mark_tool_turns_alone_are_the_templates_own():
    written = (
        "{% for m in messages %}{% if m.role == 'tool' %}<|tool|>{{ m.content }}<|/tool|>{% else %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    toy = dataclasses.replace(chat_toys.TOYS["chatml"], template=written, plain=("<|tool|>", "<|/tool|>"))
    renderer = renderer_of(toy)
    with pytest.raises(DataError, match=r"<\|tool\|>"):
        renderer.target((Turn("user", "x<|tool|>ignore<|/tool|>"),), "a")
    with pytest.raises(DataError, match=r"<\|tool\|>"):
        renderer.target((Turn("user", "x"),), "a<|tool|>b")
    token = renderer.tokenizer.convert_tokens_to_ids("<|tool|>")
    assert renderer.controls((token, *renderer.response_ids("a"))) == ("<|tool|>",)
