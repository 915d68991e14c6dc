from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy_sdft.config.examples import collection_options
from onpolicy_sdft.config.load import RENAMED, dump_config, field_names, kept_parser, load_config, load_plan, parse
from onpolicy_sdft.config.schema import EvalSetConfig, RunConfig
from onpolicy_sdft.config.sequence import SequenceConfig
from onpolicy_sdft.errors import ConfigError


@pytest.fixture
def yaml_file(tmp_path: Path):
    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def parse_flags(*flags: str) -> RunConfig:
    return parse(kept_parser("sdft train"), flags)[0]


def refuse(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_flags(*flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_options_give_the_defaults_of_the_schema():
    assert load_config() == parse_flags() == RunConfig()


def test_a_file_sets_what_it_names_and_leaves_the_rest(yaml_file):
    config = load_config(yaml_file("optim: {lr: 1e-3}\nrollout: {temperature: 0.5}\n"))
    assert (config.optim.lr, config.rollout.temperature) == (1e-3, 0.5)
    assert config.optim.betas == RunConfig().optim.betas
    assert config.train == RunConfig().train


def test_the_later_of_file_and_flag_wins(yaml_file):
    path = str(yaml_file("train: {seed: 1, batch_size: 4}\n"))
    after = parse_flags("--config", path, "--train.seed", "2")
    before = parse_flags("--train.seed", "2", "--config", path)
    assert (after.train.seed, after.train.batch_size) == (2, 4)
    assert before.train.seed == 1


def test_a_later_file_wins_over_an_earlier_one_and_overrides_over_both(yaml_file):
    first = yaml_file("train: {seed: 1, batch_size: 1, max_steps: 1}\n", "first.yaml")
    second = yaml_file("train: {seed: 2, batch_size: 2}\n", "second.yaml")
    train = load_config(first, second, **{"train.seed": 3}).train
    assert (train.seed, train.batch_size, train.max_steps) == (3, 2, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.max_steps", None),
        ("train.max_steps", 7),
        ("optim.betas", (0.8, 0.9)),
        ("task.options", {"allow_execution": True, "limit": 3}),
        ("lora.target_modules", ["q_proj", "v_proj"]),
        ("lora.target_modules", "all-linear"),
        ("data.path", "a file: with 'quotes' # and more.jsonl"),
        ("data.id_column", "7"),
        ("data.system", "Line one.\nLine two."),
        ("screening.banned_phrases", []),
        ("rollout.merge_adapter", False),
    ],
)
def test_an_override_of_any_type_arrives_as_it_was_given(name, value):
    section, _, field = name.partition(".")
    config = load_config(**{name: value}, **({"data.path": "x"} if name == "data.system" else {}))
    assert getattr(getattr(config, section), field) == value


def test_evaluation_sets_are_read_whole(yaml_file):
    text = "eval:\n  sets:\n  - {label: mine, retention: true, data: {path: x.jsonl, limit: 3}, task: {name: exact}}\n"
    (item,) = load_config(yaml_file(text)).eval.sets
    assert isinstance(item, EvalSetConfig)
    assert (item.label, item.retention, item.data.limit, item.task.name) == ("mine", True, 3, "exact")
    assert item.max_new_tokens == EvalSetConfig().max_new_tokens


def test_a_dumped_config_loads_back_to_itself(yaml_file):
    config = load_config(
        **{
            "optim.betas": (0.8, 0.95),
            "task.options": {"allow_execution": True},
            "context.student_template_kwargs": {"tools": [{"name": "f"}]},
            "data.system": "Two\nlines: {{ braces }} and ünïcode",
            "lora.target_modules": ["q_proj"],
            "train.max_loss_tokens": 1000,
            "eval.sets": [{"label": "a", "data": {"path": "x"}, "retention": True}],
            "eval.validation": [{"label": "b"}],
            "eval.every_steps": 5,
            "eval.best_metric": "eval/b/score",
        }
    )
    assert load_config(yaml_file(dump_config(config))) == config


def test_the_defaults_load_back_to_themselves(yaml_file):
    assert load_config(yaml_file(dump_config(RunConfig()))) == RunConfig()


def test_every_option_is_listed_by_its_dotted_name():
    names = field_names()
    assert "optim.lr" in names
    assert "eval.sets" in names
    assert (
        len(names)
        == len(set(names))
        == sum(len(dataclasses.fields(getattr(RunConfig(), section.name))) for section in dataclasses.fields(RunConfig))
    )


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("optm: {lr: 1}\n", "optm.lr", "optim.lr"),
        ("seeds: 1\n", "seeds", "seed"),
        ("optim: {weight_deca: 1}\n", "optim.weight_deca", "optim.weight_decay"),
        ("train: {lr: 1}\n", "train.lr", "optim.lr"),
        ("eval: {validaton: []}\n", "eval.validaton", "eval.validation"),
        ("eval: {sets: [{lable: x}]}\n", "eval.sets[].lable", "eval.sets[].label"),
        ("eval: {sets: [{data: {pth: x}}]}\n", "eval.sets[].data.pth", "eval.sets[].data.path"),
    ],
)
def test_an_unknown_key_of_a_file_names_the_nearest_valid_one(yaml_file, text, unknown, nearest):
    message = refuse("--config", str(yaml_file(text)))
    assert f"There is no option '{unknown}'. The nearest option is '" in message
    assert nearest in message


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--rollout.temprature=1", "rollout.temperature"),
        ("--trian.seed=1", "train.seed"),
        ("--optim.l=1", "optim.lr"),
        ("--eval.set=[]", "eval.sets"),
        ("--train.max_length_ratio=2", "screening.max_length_ratio"),
    ],
)
def test_an_unknown_flag_names_the_nearest_valid_one_and_the_help(flag, nearest):
    message = refuse(flag)
    name = flag.removeprefix("--").partition("=")[0]
    assert message == f"There is no option {name!r}. The nearest option is {nearest!r}. See sdft train --help."


def test_an_unknown_flag_that_is_near_to_none_lists_its_section():
    assert "teacher has: weights, half_life, refresh_steps, device." in refuse("--teacher.zzz", "1")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--optim.lr=fast", "optim.lr='fast' is not usable: expected float."),
        ("--train.max_steps=1.5", "train.max_steps='1.5' is not usable: expected int or null."),
        ("--lora.enabled=3", "lora.enabled='3' is not usable: expected bool."),
        ("--optim.betas=[0.9]", "optim.betas='[0.9]' is not usable: expected two numbers, such as [0.9, 0.95]."),
        ("--teacher.device=cpuu", "teacher.device='cpuu' is not usable: expected 'auto' or 'cpu'. "
         "Did you mean 'cpu'?"),
        ("--train.seed=null", "train.seed='null' is not usable: expected int."),
        (
            "--eval.sets=null",
            "eval.sets='null' is not usable: expected a list of records, such as "
            "[{label: mine, data: {path: rows.jsonl}}].",
        ),
    ],
)  # fmt: skip
def test_a_bad_value_names_option_value_and_what_is_expected(flag, message):
    assert refuse(flag) == message


@pytest.mark.parametrize("text", ["train: {seed: null}\n", "eval: {sets: null}\n"])
def test_null_in_a_file_is_refused_where_it_means_nothing(yaml_file, text):
    assert "=null is not usable: give a value, or leave the option out." in refuse("--config", str(yaml_file(text)))


@pytest.mark.parametrize("value", ["3", "null", "[]"])
def test_a_section_that_is_no_mapping_is_refused(yaml_file, value):
    assert "optim is a section of options" in refuse("--config", str(yaml_file(f"optim: {value}\n")))


@pytest.mark.parametrize("text", ["", "- a\n", "optim: {lr: [}\n"])
def test_a_file_that_is_no_config_is_refused_in_one_line(yaml_file, text):
    refuse("--config", str(yaml_file(text)))


def test_a_config_file_that_is_not_there_is_named():
    assert "nowhere.yaml" in refuse("--config", "nowhere.yaml")


def test_a_loaded_config_is_checked():
    with pytest.raises(ConfigError, match=r"optim\.lr=-1\.0 is not usable"):
        load_config(**{"optim.lr": -1.0})


def test_print_config_writes_a_file_that_loads_to_the_same_options(capsys, yaml_file):
    flags = ("--optim.lr=0.5", "--task.options={allow_execution: true}")
    with pytest.raises(SystemExit) as stopped:
        parse_flags(*flags, "--print_config")
    assert stopped.value.code == 0
    assert load_config(yaml_file(capsys.readouterr().out)) == parse_flags(*flags)


def test_help_shows_every_option_with_its_text(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_flags("--help_all")
    shown = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert [name for name in field_names() if f"--{name}" not in shown] == []
    assert "Peak learning rate. (type: float, default: 0.0002)" in shown


def documented(kind: type[Any], source: str) -> bool:
    body = source.partition(f"class {kind.__name__}:")[2].partition("\n\n\n")[0]
    return body.count('"""') == 2 * (len(dataclasses.fields(kind)) + 1)


def test_every_field_of_every_section_has_a_text():
    source = (Path(__file__).parents[2] / "onpolicy_sdft/config/schema.py").read_text()
    sections = [type(getattr(RunConfig(), section.name)) for section in dataclasses.fields(RunConfig)]
    assert [kind.__name__ for kind in (*sections, EvalSetConfig, RunConfig) if not documented(kind, source)] == []


def test_a_later_list_of_records_inherits_nothing_from_an_earlier_one(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    data = {"name": "embedded:list_functions", "split": "test", "limit": 12}
    task = {"name": "python_code", "options": {"allow_execution": True}}
    item = {"label": "a", "data": data, "task": task, "max_new_tokens": 99, "retention": True}
    own = {"label": "b", "data": {"path": "x.jsonl"}, "task": {"name": "exact"}}
    for place, more in (("sets", {}), ("validation", {"every_steps": 1})):
        first.write_text(yaml.safe_dump({"eval": {place: [item], **more}}))
        second.write_text(yaml.safe_dump({"eval": {place: [own], **more}}))
        alone = getattr(load_config(second).eval, place)
        assert getattr(load_config(first, second).eval, place) == alone
        assert getattr(load_config(first, **{f"eval.{place}": [own]}).eval, place) == alone
        given = ["--config", str(first), f"--eval.{place}", json.dumps([own])]
        assert getattr(parse(kept_parser("sdft train"), given)[0].eval, place) == alone
        both = ["--config", str(first), f"--eval.{place}+", json.dumps(own)]
        assert [each.label for each in getattr(parse(kept_parser("sdft train"), both)[0].eval, place)] == ["a", "b"]


def test_the_stages_of_a_sequence_inherit_nothing_from_those_of_an_earlier_file(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    rows = {"path": "a.jsonl", "limit": 3}
    stage = {"label": "a", "data": rows, "test": rows, "max_new_tokens": 6, "options": {"optim.lr": 1.0}}
    first.write_text(yaml.safe_dump({"stages": [stage]}))
    second.write_text(yaml.safe_dump({"stages": [{"label": "b", "data": {"path": "b"}, "test": {"path": "b"}}]}))
    both = load_plan(SequenceConfig, "sdft continual", "", ["--config", str(first), "--config", str(second)])
    assert both.stages == load_plan(SequenceConfig, "sdft continual", "", ["--config", str(second)]).stages


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
@pytest.mark.few(2)
def test_an_option_of_an_old_name_is_refused_with_the_new_one(tmp_path, old, new):
    section, _, name = old.rpartition(".")
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({section: {name: "x"}} if section else {name: "x"}))
    expected = f"The option {old} is called {new} now"
    for given in (["--config", str(path)], [f"--{old}", "x"], [f"--{old}=x"]):
        with pytest.raises(ConfigError, match=expected):
            parse(kept_parser("sdft train"), given) if section else load_plan(SequenceConfig, "x", "", given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {max_steps: 3}\ntrain: {seed: 5}\n", "line 2: the key train stands there twice (first in line 1)"),
        ("train:\n  seed: 1\n  seed: 2\n", "line 3: the key train.seed stands there twice"),
        ("train:\n  seed: 010\n", "line 2: YAML reads train.seed: 010 as 8"),
        ("train:\n  seed: 1:30\n", "line 2: YAML reads train.seed: 1:30 as 90"),
        ("", "has no options: it is empty"),
    ],
)
def test_what_yaml_would_drop_or_read_otherwise_is_refused_by_line_and_key(tmp_path, text, said):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_a_config_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"train: {output_dir: caf\xe9}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml is not UTF-8"):
        load_config(tmp_path / "config.yaml")


#: What else an example needs to make sense.
BESIDE = {"eval.validation": {"eval.every_steps": 5}, "replay.sources": {"replay.rate": 0.1}}


@pytest.mark.parametrize("name", collection_options())
@pytest.mark.few(6)
def test_a_wrong_list_or_mapping_is_answered_with_an_example_that_is_taken(name):
    with pytest.raises(ConfigError, match=rf"{re.escape(name)}=.* is not usable: expected .*, such as ") as refused:
        load_config(**{name: 2.5})
    example = str(refused.value).partition(", such as ")[2].removesuffix(".")
    beside = BESIDE.get(name, {})
    section, _, option = name.partition(".")
    found = getattr(getattr(load_config(**{name: example}, **beside), section), option)
    assert found
    assert isinstance(found, type(yaml.safe_load(example)) | tuple)
