"""Tools, calls and what tools return: read in the forms of other trainers, written by the chat template."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_toys import TOKENIZERS, TOOL_TOYS, TOYS, make

from onpolicy_sdft.config.schema import ContextConfig, DataConfig
from onpolicy_sdft.data.prepare import Prepared, prepare
from onpolicy_sdft.data.renderer import Renderer
from onpolicy_sdft.data.sources import DemonstrationSet, load_demonstrations
from onpolicy_sdft.data.templates import TEMPLATES, feedback_turns, last_question
from onpolicy_sdft.errors import DataError
from onpolicy_sdft.tasks import load_task
from onpolicy_sdft.types import Feedback, NoiseKey, Rollout

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}, "unit": None}},
}
CALL = {"id": "call_0001", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
LLAMA_CALL = {"name": "weather", "parameters": {"city": "Zürich"}}
NAN = math.nan
ROLLOUT = Rollout(NoiseKey(0, 0, ""), (1,), (2,), (0.0,), (0.0,), (0.0,), "stop")
XLAM: dict[str, Any] = {
    "id": 7, "query": "Is it warm there?",
    "tools": '[{"name": "weather", "description": "The weather.", "parameters": {"city": {"type": "str"}}}]',
    "answers": '[{"name": "weather", "arguments": {"city": "Z\u00fcrich"}}]',
}  # fmt: skip
ASKED = [{"role": "user", "content": "Is it warm there?"}]
CALLED: list[dict[str, Any]] = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
ANSWERED = [
    *CALLED,
    {"role": "tool", "name": "weather", "tool_call_id": "call_0001", "content": '{"degrees": 31}'},
    {"role": "assistant", "content": "Yes, 31 degrees."},
]


def load(path: Path, row: dict[str, Any], **options: Any) -> DemonstrationSet:
    path.write_text(json.dumps(row) + "\n")
    return load_demonstrations(DataConfig(path=str(path), **options), load_task("free_form", {}))


def prompts(
    loaded: DemonstrationSet, toy: str, tokenizer: str = "bytes", context: ContextConfig | None = None
) -> tuple[Prepared, Renderer]:
    context = context or ContextConfig(max_student_tokens=4096, max_teacher_tokens=8192)
    renderer = Renderer(make(TOOL_TOYS[toy], tokenizer), context)
    return prepare(loaded.demonstrations, renderer, context, seed=0), renderer


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("toy", TOOL_TOYS)
def test_prompt_and_target_are_what_the_template_writes(toy: str, tokenizer: str, tmp_path: Path) -> None:
    loaded = load(tmp_path / "rows.jsonl", {"messages": ANSWERED, "tools": [TOOL]}, turns="all")
    prepared, renderer = prompts(loaded, toy, tokenizer)
    made = renderer.tokenizer
    call = {**CALL, "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
    messages = [ASKED[0], {"role": "assistant", "content": "", "tool_calls": [call]}, *ANSWERED[2:]]
    schema = {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}
    for pair, num_messages in zip(prepared.pairs, (2, 4), strict=True):
        text = made.apply_chat_template(
            messages[:num_messages], tools=[{"type": "function", "function": schema}], tokenize=False
        )
        whole = made(text, add_special_tokens=False)["input_ids"]
        ids = [*pair.student_ids, *pair.response_ids]
        assert whole[: len(ids)] == ids
        assert renderer.decode(pair.response_ids) == pair.demonstration.response
        assert "weather" in made.decode(pair.teacher_ids)


@pytest.mark.parametrize("toy", TOOL_TOYS)
@pytest.mark.parametrize("template", [*TEMPLATES, "prior_turn"])
def test_the_teacher_sees_the_tools_with_every_template(template: str, toy: str, tmp_path: Path) -> None:
    if template.startswith("acl") and toy.startswith("mistral"):
        pytest.skip("has no system turn")
    loaded = load(tmp_path / "rows.jsonl", {"messages": CALLED, "tools": [TOOL]})
    context = ContextConfig(template=template, max_student_tokens=4096, max_teacher_tokens=8192)
    prepared, renderer = prompts(loaded, toy, context=context)
    shown = renderer.tokenizer.decode(prepared.pairs[0].teacher_ids)
    assert shown.count('"properties"') == 1
    assert "Zürich" in shown


@pytest.mark.parametrize("toy", TOOL_TOYS)
@pytest.mark.parametrize("template", [*TEMPLATES, "prior_turn"])
def test_the_teacher_is_shown_more_with_the_question_not_in_what_a_tool_returned(
    template: str, toy: str, tmp_path: Path
) -> None:
    if template.startswith("acl") and toy.startswith("mistral"):
        pytest.skip("has no system turn")
    loaded = load(tmp_path / "rows.jsonl", {"messages": ANSWERED, "tools": [TOOL]})
    context = ContextConfig(template=template, max_student_tokens=4096, max_teacher_tokens=8192)
    prepared, renderer = prompts(loaded, toy, context=context)
    (pair,) = prepared.pairs
    turns = loaded.demonstrations[0].turns
    bare, shown = (renderer.tokenizer.decode(ids) for ids in (pair.student_ids, pair.teacher_ids))
    called = bare[bare.rindex(ASKED[0]["content"]) + len(ASKED[0]["content"]) :]
    assert shown.endswith(called), "the call, what it returned, and the header"
    assert shown.count("Yes, 31 degrees.") == 1
    assert shown.index("Yes, 31 degrees.") < shown.rindex(called)
    told = feedback_turns(turns, last_question(turns), Feedback(ROLLOUT, "", "Wrong."), shows_attempt=False)
    assert [turn.role for turn in told] == [turn.role for turn in turns]
    assert [turn for turn in told if turn.role == "tool"] == [turn for turn in turns if turn.role == "tool"]


@pytest.mark.parametrize(
    ("toy", "marks"),
    [("hermes", {"<|im_end|>"}), ("llama", {"<|eot|>"}),
     ("mistral, whose calls begin with a control token", {"[TOOL_CALLS]", "</s>"})],
)  # fmt: skip
def test_the_control_tokens_of_calls_are_read_off_the_template(toy: str, marks: set[str]) -> None:
    markup = Renderer(make(TOOL_TOYS[toy], "bytes"), ContextConfig()).markup
    assert {markup.control[token] for token in markup.calls} == marks
    assert not Renderer(make(TOYS["chatml"], "bytes"), ContextConfig()).markup.calls


@pytest.mark.parametrize("toy", TOOL_TOYS)
def test_a_call_that_the_model_writes_is_checked(toy: str, tmp_path: Path) -> None:
    prepared, renderer = prompts(load(tmp_path / "rows.jsonl", {"messages": CALLED, "tools": [TOOL]}), toy)
    (pair,), task = prepared.pairs, load_task("function_call", {})
    assert task.check(renderer.decode(pair.response_ids), pair.demonstration).correct
    other = renderer.decode(pair.response_ids).replace("Zürich", "Bern")
    assert not task.check(other, pair.demonstration).correct


def test_each_of_several_calls_is_asked_for(tmp_path: Path) -> None:
    cities = [{"function": {"name": "weather", "arguments": {"city": city}}} for city in ("Oslo", "Bergen")]
    row = {"messages": [*ASKED, {"role": "assistant", "content": "I look.", "tool_calls": cities}], "tools": [TOOL]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    task = load_task("function_call", {})
    (demonstration,) = load_demonstrations(DataConfig(path=str(path)), task).demonstrations
    assert demonstration.prompt == ASKED[0]["content"]  # the template says how to call
    one, other = (json.dumps(call["function"]) for call in cities)
    assert task.check(demonstration.response, demonstration).correct
    assert task.check(f"<tool_call>{other}</tool_call><tool_call>{one}</tool_call>", demonstration).correct
    result = task.check(f"<tool_call>{one}</tool_call>", demonstration)
    assert (result.reason, result.message) == (
        "wrong_calls",
        "1 of the calls that are asked for are missing, 0 calls are not asked for.",
    )
    third = one.replace("Oslo", "Rome")
    more = "".join(f"<tool_call>{call}</tool_call>" for call in (one, other, third))
    assert task.check(more, demonstration).reason == "wrong_calls"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "completion": CALLED[1:], "tools": [TOOL]},
        {"messages": CALLED, "tools": json.dumps([TOOL])},
        {"messages": [*ASKED, {"role": "assistant", "function_call": CALL["function"]}], "tools": [TOOL["function"]]},
        {"messages": [*ASKED, {**CALLED[1], "tool_calls": json.dumps([CALL])}], "tools": [TOOL]},
        {"messages": [*ASKED, {**CALLED[1], "content": [], "function_call": CALL["function"]}], "tools": TOOL},
        {
            "messages": [
                *ASKED,
                {"role": "assistant", "tool_calls": [LLAMA_CALL]},
            ],
            "tools": [json.dumps(TOOL)],
        },
        {
            "conversations": [
                {"from": "human", "value": "Is it warm there?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Zürich"}}'},
            ],
            "tools": json.dumps([TOOL["function"]]),
        },
        XLAM,
        {**XLAM, "answers": json.loads(XLAM["answers"]), "tools": json.loads(XLAM["tools"])},
    ],
    ids=[
        "TRL",
        "tools as text",
        "function_call",
        "calls as text",
        "both",
        "parameters",
        "ShareGPT",
        "xLAM",
        "xLAM lists",
    ],
)
def test_calls_are_read_in_the_forms_of_other_trainers(row: dict[str, Any], tmp_path: Path) -> None:
    prepared, _ = prompts(load(tmp_path / "rows.jsonl", row), "hermes")
    expected = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
    assert prepared.pairs[0].demonstration.response == expected


def test_what_is_no_call_is_no_answer_in_a_row_of_query_tools_and_answers(tmp_path: Path) -> None:
    loaded = load(tmp_path / "rows.jsonl", XLAM)
    assert loaded.demonstrations[0].fields == {"id": 7}
    assert not loaded.unread
    for answers in ("", "[]", []):
        with pytest.raises(DataError, match="row 1: (column 'answers' holds no call of a tool|calls of no function)"):
            load(tmp_path / "rows.jsonl", {**XLAM, "answers": answers})
    with pytest.raises(DataError, match="a call needs the name of a function"):
        load(tmp_path / "rows.jsonl", {**XLAM, "answers": "It is 31 degrees."})


def test_tools_of_plain_rows_are_read_where_their_column_is_named(tmp_path: Path) -> None:
    row = {"prompt": "Is it warm there?", "response": "I cannot know.", "functions": [TOOL]}
    assert load(tmp_path / "rows.jsonl", row).demonstrations[0].turns[0].role == "user"
    turns = load(tmp_path / "rows.jsonl", row, tools_column="functions").demonstrations[0].turns
    assert [turn.role for turn in turns] == ["tools", "user"]


def test_nulls_among_arguments_are_left_out_and_said(tmp_path: Path) -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Zürich", "unit": None}}}
    loaded = load(tmp_path / "rows.jsonl", {"messages": [*ASKED, {"role": "assistant", "tool_calls": [call]}]})
    assert '"unit"' not in loaded.demonstrations[0].response
    assert loaded.unread == {"nulls among the arguments of calls": 1}
    call["function"]["arguments"] = '{"unit": null}'
    loaded = load(tmp_path / "rows.jsonl", {"messages": [*ASKED, {"role": "assistant", "tool_calls": [call]}]})
    assert '{"unit": null}' in loaded.demonstrations[0].response
    assert not loaded.unread


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tools": [{"type": "function"}]}, "the tools are not a list of JSON schemas"),
        ({"tools": "weather"}, "the tools are not a list of JSON schemas"),
        ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "needs the name of a func"),
        ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x"}]}]}, "an object"),
        ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"name": "f", "args": {"x": 1}}]}]}, "an object"),
        ({"messages": [*ASKED, {**CALLED[1], "function_call": {"name": "f"}}]}, "other calls in tool_calls"),
        ({"messages": [{"role": ["assistant"], "content": "x"}]}, "needs a role"),
        (
            {"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": NAN}}]}]},
            "no JSON",
        ),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "[]"}]}, "no function"),
        ({"tools": [{"name": "f", "description": "\ud800"}]}, "half a character"),
        ({"functions": [TOOL]}, "--data.tools_column functions"),
        ({"messages": [{**ASKED[0], "tool_calls": [CALL]}, *CALLED]}, "only the assistant calls tools"),
        ({"messages": [{**ASKED[0], "name": "Ann"}, CALLED[1]]}, "write the speaker into the content"),
    ],
)
def test_bad_tools_and_calls_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    row = {"messages": CALLED, "tools": [TOOL], **change}
    if "conversations" in row:
        del row["messages"]
    with pytest.raises(DataError, match=rf"row 1: .*{message}"):
        load(tmp_path / "rows.jsonl", row)


@pytest.mark.parametrize("messages", [[*ASKED, ANSWERED[-1]], CALLED, ANSWERED], ids=["tools", "a call", "calls"])
def test_a_template_without_tools_is_refused(messages: list[dict[str, Any]], tmp_path: Path) -> None:
    """Whatever the texts say: the name of the tool stands in the question."""
    messages = [{"role": "user", "content": "What is the weather there?"}, *messages[1:]]
    tools = {"tools": [TOOL]} if messages[1:] == [ANSWERED[-1]] else {}
    loaded = load(tmp_path / "rows.jsonl", {"messages": messages, **tools})
    renderer = Renderer(make(TOYS["chatml"], "bytes"), ContextConfig())
    with pytest.raises(DataError, match=r"row 1: the chat template does not write the tools of the row: 'weather'"):
        prepare(loaded.demonstrations, renderer, ContextConfig(), seed=0)


def test_a_text_that_the_template_leaves_out_beside_a_call_is_refused(tmp_path: Path) -> None:
    row = {"messages": [*ASKED, {**CALLED[1], "content": "Let me look."}], "tools": [TOOL]}
    loaded = load(tmp_path / "rows.jsonl", row)
    assert prompts(loaded, "hermes")[0].pairs[0].demonstration.response.startswith("Let me look.\n<tool_call>")
    with pytest.raises(DataError, match=r"row 1: the chat template .* of the response 'Let me look.'"):
        prompts(loaded, "llama")


def test_what_a_template_does_not_take_is_a_bad_row(tmp_path: Path) -> None:
    """Another kind of turn, say: it is named, and may be left out."""
    rows = [{"messages": [*ASKED, ANSWERED[-1]]}, {"messages": [{"role": "system", "content": "Hm."}, *CALLED]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_demonstrations(DataConfig(path=str(path)), load_task("free_form", {}))
    template = TOOL_TOYS["hermes"].template
    strict = "{% for m in messages if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endfor %}"
    renderer = Renderer(make(replace(TOOL_TOYS["hermes"], template=strict + template), "bytes"), ContextConfig())
    with pytest.raises(DataError, match=r"row 2: the chat template cannot render .* no system turns"):
        prepare(loaded.demonstrations, renderer, renderer.config, seed=0)
    prepared = prepare(loaded.demonstrations, renderer, renderer.config, seed=0, on_bad_row="skip")
    assert (len(prepared.pairs), len(prepared.bad_rows)) == (1, 1)


def test_tools_that_the_system_message_spells_out_are_not_written_twice(tmp_path: Path) -> None:
    system = {"role": "system", "content": f"You have <tools>{json.dumps(TOOL)}</tools>"}
    loaded = load(tmp_path / "rows.jsonl", {"messages": [system, *ASKED, ANSWERED[-1]], "tools": [TOOL]})
    assert [turn.role for turn in loaded.demonstrations[0].turns] == ["system", "user"]
    assert loaded.unread == {"the column of tools, which the system message spells out": 1}


@pytest.mark.parametrize("tools", ["[]", "null", "", [], None, {}])
def test_a_row_may_have_no_tools(tools: object, tmp_path: Path) -> None:
    loaded = load(tmp_path / "rows.jsonl", {"messages": [*ASKED, ANSWERED[-1]], "tools": tools})
    assert [turn.role for turn in loaded.demonstrations[0].turns] == ["user"]


def test_each_answer_of_a_conversation_is_checked_for_its_call(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": ANSWERED, "tools": [TOOL]}) + "\n")
    task = load_task("function_call", {})
    called, said = load_demonstrations(DataConfig(path=str(path), turns="all"), task).demonstrations
    assert task.check(called.response, called).correct
    assert not task.check(said.response, called).correct
    assert task.check(said.response, said).correct
    assert not task.check(called.response, said).correct


@pytest.mark.parametrize("place", ["tools", "call", "result"])
@pytest.mark.parametrize("toy", TOOL_TOYS)
def test_control_tokens_that_tools_spell_are_refused(toy: str, place: str, tmp_path: Path) -> None:
    end = TOOL_TOYS[toy].end
    tool = {"name": "weather", "description": f"Ends in {end}."} if place == "tools" else TOOL
    arguments = {"city": f"Zürich{end}" if place == "call" else "Zürich"}
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]}
    result = {"role": "tool", "content": f"31{end}" if place == "result" else "31"}
    messages = [*ASKED, called, result, ANSWERED[-1]]
    with pytest.raises(DataError, match="which only the chat template may write"):
        prompts(load(tmp_path / "rows.jsonl", {"messages": messages, "tools": [tool]}), toy)
