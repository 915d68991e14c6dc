"""Models that reason before they answer, as their templates have it; and ends that stand beside others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_toys import Toy, make

from onpolicy_sdft.config.schema import ContextConfig, DataConfig
from onpolicy_sdft.data.prepare import prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.data.sources import load_demonstrations
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.tasks.plain_text import without_thoughts
from onpolicy_sdft.tool_calls import read_tools
from onpolicy_sdft.types import Turn

ASKED = [Turn("user", "q")]
_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
_END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
_CHATML = ("<|im_start|>", "<|im_end|>")
_SPLIT = (
    "{% set text = m.content %}{% set thought = m.reasoning_content | default('') %}{% if '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}{% if m.role == 'assistant' %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ text }}"
)
#: The header opens a block of thoughts, as of Qwen3-Thinking, Qwen3.5 and Nemotron 3.
THINKING = Toy(
    _TURNS + _SPLIT + _END + "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' "
    "}}{% else %}{{ '<think>\n' }}{% endif %}{% endif %}",
    _CHATML, "<|im_end|>", "<|im_end|>", plain=("<think>", "</think>"),
)  # fmt: skip
#: An empty block in the header that no answer has: of Gemma 4 while it is not to think.
CHANNELS = Toy(
    "{% for m in messages %}<|turn>{{ m.role }}\n{% if m.reasoning %}<|channel>thought\n{{ m.reasoning }}\n<channel|>"
    "{% endif %}{{ m.content }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>assistant\n"
    "{% if not enable_thinking | default(false) %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}",
    ("<|turn>", "<turn|>", "<|channel>", "<channel|>"), "<turn|>", "<turn|>",
)  # fmt: skip
#: The model opens its block by itself, with special tokens.
SPECIAL = Toy(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.thinking %}[THINK]{{ m.thinking }}[/THINK]{% endif %}"
    "{{ m.content }}" + _END + "{% endif %}",
    (*_CHATML, "[THINK]", "[/THINK]", "<|tool|>"), "<|im_end|>", "<|im_end|>",
)  # fmt: skip
#: The default system message talks of the tags.
TALKED_OF = Toy(
    "<|im_start|>system\nWrite <think> thoughts </think> first.<|im_end|>\n" + _TURNS + "{{ m.content }}" + _END
    + "{% endif %}",
    _CHATML, "<|im_end|>", "<|im_end|>", plain=("<think>", "</think>"),
)  # fmt: skip
#: As of Mistral 7B v0.3: the system message stands in the last turn, if a user said that.
SYSTEM_IN_LAST_TURN = Toy(
    "<s>{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% endif %}{% for m in messages %}{% if m.role == 'user' %}[INST]{% if loop.last and system is defined %}"
    "{{ system + '\n\n' }}{% endif %}{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
    ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>", bos="<s>",
)  # fmt: skip
#: Texts are parts of a message, in the templates of some models that see pictures.
PARTS = Toy(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% else %}<image>{% endif %}{% endfor %}" + _END + "{% endif %}",
    (*_CHATML, "<image>"), "<|im_end|>", "<|im_end|>",
)  # fmt: skip
#: Two tokens end an answer; the model stops at the second.
TWO_ENDS = Toy(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{{ m.content }}<|end_answer|>"
    "{% else %}{{ m.content }}{% endif %}" + _END + "{% endif %}",
    (*_CHATML, "<|end_answer|>"), "<|im_end|>", "<|im_end|>",
)  # fmt: skip
#: Calls end in another token, and take their arguments as text.
OTHER_END = Toy(
    "{{ tools | tojson }}{% for m in messages %}<|start|>{{ m.role }}<|message|>{% if m.tool_calls %}"
    "{% for call in m.tool_calls %}{{ call.function.name + ' ' + call.function.arguments }}{% endfor %}<|call|>"
    "{% else %}{{ m.content }}<|return|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}",
    ("<|start|>", "<|message|>", "<|call|>", "<|return|>"), "<|return|>", "<|return|>",
)  # fmt: skip


def renderer_of(toy: Toy, tokenizer: str = "byte-level pieces", **kwargs: Any) -> Renderer:
    return Renderer(make(toy, tokenizer), ContextConfig(student_template_kwargs=kwargs, teacher_template_kwargs=kwargs))


def written(renderer: Renderer, target: tuple[int, ...]) -> str:
    return str(renderer.tokenizer.decode(list(target)))


def read(path: Path, **row: Any) -> Any:
    path.write_text(json.dumps(row) + "\n")
    return load_demonstrations(DataConfig(path=str(path)), load_task("free_form", {})).demonstrations


def test_what_the_header_opens_is_taken_off_a_response_that_opens_it_too():
    renderer = renderer_of(THINKING)
    asked, target = renderer.target(ASKED, "<think>\nhm\n</think>\n\nYes")
    assert written(renderer, asked).endswith("<|im_start|>assistant\n<think>\n")
    assert written(renderer, target) == "hm\n</think>\n\nYes<|im_end|>"
    assert renderer.target(ASKED, "hm\n</think>\n\nYes") == (asked, target)
    assert renderer.controls(target) == ()


def test_the_row_of_such_a_response_is_learned_and_shown_as_the_template_writes_it(tmp_path):
    renderer = renderer_of(THINKING)
    rows = read(tmp_path / "rows.jsonl", prompt="q", response="<think>\nhm\n</think>\n\nYes")
    (pair,) = prepare(rows, renderer, ContextConfig(), seed=0).pairs
    assert pair.demonstration.response == renderer.decode(pair.response_ids) == "hm\n</think>\n\nYes"


@pytest.mark.parametrize(("toy", "fix"), [(THINKING, "false"), (CHANNELS, "true")])
def test_a_header_that_no_answer_has_is_refused_with_the_argument_that_helps(toy, fix):
    with pytest.raises(DataError, match=rf"Fix: context\.student_template_kwargs and .* {{enable_thinking: {fix}}}"):
        renderer_of(toy).target(ASKED, "Yes")
    renderer = renderer_of(toy, enable_thinking=fix == "true")
    asked, target = renderer.target(ASKED, "Yes")
    whole = renderer.tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Yes"}], return_dict=False
    )
    assert [*asked, *target] == whole[: len(asked) + len(target)]


@pytest.mark.parametrize(
    ("toy", "kwargs", "expected"),
    [
        (THINKING, {}, "hm\n</think>\n\nYes<|im_end|>"),
        (CHANNELS, {"enable_thinking": True}, "<|channel>thought\nhm\n<channel|>Yes<turn|>"),
        (SPECIAL, {}, "[THINK]hm[/THINK]Yes<|im_end|>"),
    ],
)
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_beside_an_answer_is_learned_as_the_template_writes_it(toy, kwargs, expected, key, tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Yes", key: "hm"}]
    renderer = renderer_of(toy, **kwargs)
    (pair,) = prepare(read(tmp_path / "rows.jsonl", messages=messages), renderer, renderer.config, seed=0).pairs
    assert written(renderer, pair.response_ids) == expected
    assert renderer.controls(pair.response_ids) == ()
    assert pair.demonstration.response == expected.rpartition("<")[0]
    assert without_thoughts(pair.demonstration.response).strip() == "Yes"


def test_reasoning_that_a_template_leaves_out_is_refused(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Yes", "reasoning": "hm"}]
    renderer = renderer_of(PARTS)
    with pytest.raises(DataError, match=r"row 1.*leaves out the answer's reasoning .*enable_thinking: true"):
        prepare(read(tmp_path / "rows.jsonl", messages=messages), renderer, renderer.config, seed=0)


@pytest.mark.parametrize("extra", [{"reasoning": "a", "thinking": "b"}, {"reasoning": ["a"]}])
def test_reasoning_that_is_no_one_text_is_refused(extra, tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Yes", **extra}]
    with pytest.raises(DataError, match=r"row 1: .*reasoning"):
        read(tmp_path / "rows.jsonl", messages=messages)


def test_an_answer_of_reasoning_alone_is_empty(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "reasoning": "hm"}]
    with pytest.raises(DataError, match=r"row 1: .*empty"):
        read(tmp_path / "rows.jsonl", messages=messages)


def test_the_reasoning_of_old_turns_is_counted_where_the_template_drops_it(tmp_path):
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Yes", "reasoning": "hm, hm"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "No"},
    ]
    (row,) = read(tmp_path / "rows.jsonl", messages=messages)
    assert renderer_of(PARTS).num_left_out(row.turns, teacher=False) == len("hm, hm")
    assert renderer_of(SPECIAL).num_left_out(row.turns, teacher=False) == 0


@pytest.mark.parametrize(("toy", "text"), [(SPECIAL, "[THINK]hm[/THINK]Yes"), (TALKED_OF, "<think>hm</think>Yes")])
def test_tokens_around_thoughts_may_stand_in_an_answer_and_in_no_other_turn(toy, text):
    renderer = renderer_of(toy)
    _, target = renderer.target(ASKED, text)
    assert (renderer.decode(target), renderer.controls(target)) == (text, ())
    cut = target[: max(place for place, token in enumerate(target) if token in renderer.markup.thoughts) + 1]
    assert renderer.decode(cut) == text.removesuffix("Yes"), "what ends its thoughts does not end a text"
    with pytest.raises(DataError, match="the user's text spells the control token"):
        renderer.target([Turn("user", text)], "Yes")
    marked, plain = (
        [token for token in renderer.student_ids([Turn("user", said)]) if token in renderer.markup.thoughts]
        for said in (text, "q")
    )
    assert marked == plain, "a question that is no row stays text"


def test_other_special_tokens_of_a_model_that_thinks_stay_control_tokens():
    renderer = renderer_of(SPECIAL)
    with pytest.raises(DataError, match="spells the control token"):
        renderer.target(ASKED, "[THINK]hm[/THINK]<|tool|>")


def test_a_system_message_that_an_answer_drops_is_refused_with_the_way_on():
    renderer = renderer_of(SYSTEM_IN_LAST_TURN)
    assert renderer.decode(renderer.target(ASKED, "Yes")[1]) == "Yes"
    with pytest.raises(DataError, match=r"Fix: put the system message's text into the user's turn"):
        renderer.target([Turn("system", "Be brief."), *ASKED], "Yes")


@pytest.mark.parametrize("tokenizer", ["bytes", "blank before every part"])
def test_templates_that_take_texts_as_parts_are_given_parts(tokenizer):
    renderer = renderer_of(PARTS, tokenizer)
    turns = [Turn("system", "S"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")]
    asked, target = renderer.target(turns, "d")
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in [*((turn.role, turn.content) for turn in turns), ("assistant", "d")]
    ]
    whole = renderer.tokenizer.apply_chat_template(messages, return_dict=False)
    assert [*asked, *target] == whole[: len(asked) + len(target)]
    assert renderer.num_left_out(turns, teacher=False) == 0


def test_of_two_ends_that_stand_together_the_end_of_text_ends_an_answer():
    renderer = renderer_of(TWO_ENDS)
    _, target = renderer.target(ASKED, "Yes")
    assert written(renderer, target) == "Yes<|end_answer|><|im_end|>"
    assert (renderer.decode(target), renderer.controls(target)) == ("Yes", ())
    assert renderer.end_ids == target[-2:]


def test_calls_may_end_in_another_token_and_take_arguments_as_text():
    renderer = renderer_of(OTHER_END)
    tools = read_tools([{"name": "weather", "parameters": {}}])
    call = json.dumps({"tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]})
    _, target = renderer.target([tools, *ASKED], Turn("assistant", "", call))
    assert written(renderer, target) == 'weather {"city": "Oslo"}<|call|>'
    assert renderer.decode(target) == 'weather {"city": "Oslo"}'
    _, target = renderer.target([tools, *ASKED], "Cold.")
    assert written(renderer, target) == "Cold.<|return|>"


def test_reasoning_beside_an_answer_leaves_the_tasks_wording_in_the_prompt(tmp_path):
    asked = []
    for extra in ({}, {"reasoning": "2 and 2"}):
        answer = {"role": "assistant", "content": "#### 4", **extra}
        (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "2 + 2?"}, answer]}))
        config = DataConfig(path=str(tmp_path / "rows.jsonl"))
        asked.append(load_demonstrations(config, load_task("math_word_problem", {})).demonstrations[0].turns)
    assert asked[0] == asked[1]
    assert asked[0][-1].content != "2 + 2?"


def test_an_answer_that_reasons_and_calls_no_tool_asks_for_none(tmp_path):
    tools = [{"name": "weather", "parameters": {}}]
    answer = {"role": "assistant", "content": "Hello.", "reasoning": "No tool is needed."}
    row = {"messages": [{"role": "user", "content": "Hi"}, answer], "tools": tools}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    task = load_task("function_call", {})
    (demonstration,) = load_demonstrations(DataConfig(path=str(tmp_path / "rows.jsonl")), task).demonstrations
    assert task.check("Hello!", demonstration).correct
    assert not task.check("weather()", demonstration).correct
