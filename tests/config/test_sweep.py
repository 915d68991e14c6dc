from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from onpolicy_sdft.config import sweep
from onpolicy_sdft.config.load import field_names
from onpolicy_sdft.config.sweep import SweepConfig, canonical, layer_file, load_sweep, make_sweep_parser
from onpolicy_sdft.errors import ConfigError

ROOT = Path(__file__).parents[2]
BUNDLES = "axes:\n  targets: [{label: a, train.targets: policy}, {label: b, train.targets: demonstrations}]\n"


@pytest.fixture
def yaml_file(tmp_path: Path):
    def write(text: str, name: str = "sweep.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def refuse(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_sweep(arguments)
    return str(caught.value)


def test_no_options_give_the_defaults():
    assert load_sweep([])[0] == SweepConfig()


def test_a_file_and_later_flags_make_a_sweep(yaml_file):
    path = yaml_file("axes: {optim.lr: [1e-4, 3.0e-4]}\nseeds: [1, 2]\nmax_parallel: 2\noutput_dir: somewhere\n")
    config, namespace = load_sweep(["--config", path, "--max_parallel", "3", "--retry_failed", "true"])
    assert config.axes == {"optim.lr": [1e-4, 3e-4]}
    assert (config.seeds, config.max_parallel, config.output_dir, config.retry_failed) == ([1, 2], 3, "somewhere", True)
    assert namespace.max_parallel == 3


def test_flags_of_runs_are_shared_by_all_runs_and_win_over_options(yaml_file):
    path = yaml_file("options: {train.max_steps: 9, optim.lr: 0.1}\n")
    config, _ = load_sweep(["--train.max_steps", "2", "--config", path, "--data.path=rows.jsonl", "--seeds=[4]"])
    assert config.options == {"train.max_steps": "2", "optim.lr": 0.1, "data.path": "rows.jsonl"}
    assert config.seeds == [4]
    assert "--train.max_steps needs a value" in refuse("--train.max_steps")


def test_text_stays_text_also_where_yaml_could_read_something_else(yaml_file):
    path = yaml_file(
        "options: {data.system: 'Answer: yes', data.id_column: '7'}\n"
        "axes: {data.system: ['null', 'a: b', null], rollout.temperature: [0, 1.0, '1']}\n"
        "exclude: [{data.system: 'a: b', why: 'as: said'}]\n"
    )
    config, _ = load_sweep(["--config", path])
    assert config.options == {"data.system": "Answer: yes", "data.id_column": "7"}
    assert config.axes["data.system"] == ["null", "a: b", None]
    assert config.exclude == [{"data.system": "a: b", "why": "as: said"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: {optim.lrr: [1]}", "There is no option 'optim.lrr'. The nearest option is 'optim.lr'."),
        ("axes: {optim: [1]}", "takes bundles"),
        ("axes: {optim.lr: []}", "optim.lr has no values"),
        ("axes: {optim.lr: [0.1, 1.0e-1]}", "optim.lr has 0.1 twice"),
        ("axes: {rollout.top_k: [1, 1.0]}", "has 1.0 twice"),
        ("axes: {optim.lr: 3}", "axes='3' is not usable: expected a list, such as [a, b]."),
        ("axes: {train.seed: [0, 1]}", "train.seed is set by the sweep itself. Fix: seeds."),
        ("axes: {train.output_dir: [a]}", "Fix: output_dir"),
        ("axes: {train.resume: [auto]}", "Fix: leave it out"),
        ("options: {train.seed: 3}", "options: train.seed is set by the sweep itself. Fix: seeds."),
        ("options: {train.max_step: 3}", "The nearest option is 'train.max_steps'."),
        ("options: {train: {max_steps: 3}}", "There is no option 'train'"),
        (
            "axes: {method: [sfdt]}",
            "There is no method and no file 'sfdt'. There are: feedback, offline_sdft, sdft, sdft_forward_kl, "
            "sdft_kl, sft.",
        ),
        ("axes: {method: [3]}", "method=3 is not usable"),
        ("axes: {a/b: [{label: x, optim.lr: 1}]}", "names files and columns"),
        ("axes: {mine: [{label: a, optim.lr: 1}, 3]}", "mine=3 is not usable: expected a bundle"),
        ("axes: {mine: [{label: a}]}", "expected a bundle"),
        ("axes: {mine: [{label: on, optim.lr: 1}]}", "YAML reads on, off"),
        ("axes: {mine: [{label: a, optim.lrr: 1}]}", "axes: mine (a): There is no option 'optim.lrr'."),
        ("axes: {mine: [{label: a, train.seed: 1}]}", "train.seed is set by the sweep itself"),
        ("axes: {mine: [{label: a, method: nope}]}", "There is no method and no file 'nope'"),
        ("axes: {mine: [{label: a, optim.lr: 1}, {label: a, optim.lr: 2}]}", 'mine has "a" twice'),
        (BUNDLES + "exclude: [{why: because}]", "names no axis"),
        (BUNDLES + "exclude: [{optim.lr: 1}]", "'optim.lr' is no axis. There are: targets."),
        (BUNDLES + "exclude: [{targets: c}]", "targets has no value 'c'. There are: ['a', 'b']."),
        (BUNDLES + "exclude: [{targets: a, why: {as: said}}]", "expected a text"),
        ("seeds: []", "at least one"),
        ("seeds: [1, 1]", "different numbers"),
        ("seeds: [-1]", "from 0 on"),
        ("max_parallel: 0", "it must be at least 1"),
        ("slurm: {timeout_min: 5}", "is not read by launcher=local"),
        ("launcher: submitit", "how long a run may take"),
        ("launcher: slurm", "expected 'local' or 'submitit'"),
        ("axs: {optim.lr: [1]}", "There is no option 'axs'. The nearest option is 'axes'. See sdft sweep --help."),
        ("train: {max_steps: 3}", "train.max_steps is an option of runs. Fix: write it under options"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_way_out(yaml_file, text, message):
    assert message in refuse("--config", yaml_file(text + "\n"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sede=3", "There is no option 'sede'. The nearest option is 'seeds'. See sdft sweep --help."),
        ("--optim.lrr=3", "There is no option 'optim.lrr'. The nearest option is 'optim.lr'. See sdft sweep --help."),
        ("--config=nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_an_unknown_flag_names_the_nearest_of_the_sweep_or_of_a_run(flag, message):
    assert message in refuse(flag)


def test_exclude_takes_labels_lists_and_lists_that_are_values(yaml_file):
    text = BUNDLES + "  optim.betas: [[0.9, 0.95], [0.9, 0.99]]\n"
    entries = "exclude: [{targets: [a, b], optim.betas: [0.9, 0.95]}, {optim.betas: [[0.9, 0.95], [0.9, 0.99]]}]\n"
    config, _ = load_sweep(["--config", yaml_file(text + entries)])
    assert len(config.exclude) == 2


def test_methods_and_layers_are_found_from_here_and_from_the_checkout(tmp_path, monkeypatch):
    shipped = ROOT / "configs" / "methods" / "sft.yaml"
    monkeypatch.chdir(tmp_path)
    assert layer_file("sft", is_method=True).resolve() == shipped
    assert layer_file("configs/online/methods.yaml").resolve() == ROOT / "configs" / "online" / "methods.yaml"
    (tmp_path / "mine.yaml").write_text("{}")
    assert layer_file("mine.yaml", is_method=True) == Path("mine.yaml")
    with pytest.raises(ConfigError, match="no file 'sft'"):
        layer_file("sft")


def test_equal_values_have_one_text_and_others_have_others():
    assert canonical(1) == canonical(1.0) != canonical(True)
    assert canonical([1, {"b": 2, "a": 1}]) == canonical((1.0, {"a": 1, "b": 2}))
    assert len({canonical(value) for value in (1, "1", True, None, "null", [1], {"1": 1})}) == 7


def test_every_option_has_a_text_and_the_help_shows_it(capsys):
    body = inspect.getsource(SweepConfig)
    assert body.count('"""') == 2 * (len(fields(SweepConfig)) + 1)
    with pytest.raises(SystemExit):
        load_sweep(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"--{item.name}" in shown for item in fields(SweepConfig))
    assert "Runs at once, at most." in shown
    assert make_sweep_parser().prog == "sdft sweep"


def test_what_the_sweep_sets_itself_are_options_of_runs():
    assert set(sweep.OWN) <= set(field_names())
