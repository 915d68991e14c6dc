from __future__ import annotations

import re

import pytest

from onpolicy_sdft.errors import ConfigError
from onpolicy_sdft.experiments.grid import grid, run_name, short_names

AXES = {"objective.name": ["nll", "jsd"], "optim.lr": [1e-4, 0.003]}


def names(axes, exclude=()):
    return [point.name for point in grid(axes, exclude).points]


def test_all_combinations_in_order_with_the_last_axis_fastest():
    found = grid(AXES).points
    assert [point.values for point in found] == [
        {"objective.name": "nll", "optim.lr": 1e-4},
        {"objective.name": "nll", "optim.lr": 0.003},
        {"objective.name": "jsd", "optim.lr": 1e-4},
        {"objective.name": "jsd", "optim.lr": 0.003},
    ]
    assert [point.name for point in found] == [
        "objective-nll_lr-0.0001",
        "objective-nll_lr-0.003",
        "objective-jsd_lr-0.0001",
        "objective-jsd_lr-0.003",
    ]
    assert run_name(found[0], 7) == "objective-nll_lr-0.0001_seed-7"


def test_a_name_stays_when_values_are_added_or_written_otherwise():
    more = {"objective.name": ["reverse_kl", "jsd", "nll"], "optim.lr": [1, 1e-4, 3e-3]}
    assert set(names(AXES)) < set(names(more))
    assert names({"rollout.temperature": [1, 0]}) == names({"rollout.temperature": [1.0, 0.0]})


def test_no_axes_are_one_point_that_only_seeds_tell_apart():
    (point,) = grid({}).points
    assert run_name(point, 3) == "seed-3"


def test_bundles_are_known_by_their_label_and_methods_by_their_name():
    axes = {
        "method": ["sft", "somewhere/mine.yaml"],
        "teacher": [
            {"label": "every 4", "teacher.weights": "stage", "teacher.refresh_steps": 4},
            {"label": 2, "method": "sdft_kl", "optim.lr": 1.0},
        ],
    }
    found = grid(axes).points
    assert [point.name for point in found] == [
        "method-sft_teacher-every-4",
        "method-sft_teacher-2",
        "method-mine_teacher-every-4",
        "method-mine_teacher-2",
    ]
    method, teacher = found[3].choices
    assert (method.method, dict(method.options), method.shown) == ("somewhere/mine.yaml", {}, "mine")
    assert (teacher.method, dict(teacher.options), teacher.shown) == ("sdft_kl", {"optim.lr": 1.0}, 2)


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("context.template", ["prior_turn", "mine/a b.jinja", "mine/a_b.jinja", "x" * 300, "x" * 299 + "y", "", "/"]),
        ("optim.betas", [[0.9, 0.95], [0.9, 0.99]]),
        ("task.options", [{"match": "contains"}, {"match": "exact"}, {}]),
        ("rollout.temperature", [0.1234567, 0.1234568, 1e-30, 1e30, float("inf")]),
        ("lora.enabled", [True, False]),
        ("train.max_loss_tokens", [None, 5]),
        ("screening.banned_phrases", [[], ["../../etc/passwd", "a\nb\0"]]),
    ],
)
def test_names_are_file_names_whatever_the_values_and_different_for_different_ones(axis, values):
    found = names({axis: values})
    assert len(set(found)) == len(values)
    assert all(re.fullmatch(r"[A-Za-z0-9.+_-]{1,150}", name) for name in found)
    assert not any(name.startswith(".") for name in found)


def test_many_axes_make_a_name_that_still_is_short_and_its_own():
    axes = {f"axis{i}": [{"label": f"{'long' * 7}{j}", "optim.lr": j} for j in range(2)] for i in range(8)}
    found = names(axes)
    assert len(set(found)) == 2**8
    assert max(map(len, found)) < 200


def test_axes_that_end_alike_keep_their_whole_name():
    assert short_names(["objective.name", "task.name", "optim.lr", "eval.seed", "data.seed"]) == {
        "objective.name": "objective",
        "task.name": "task",
        "optim.lr": "lr",
        "eval.seed": "eval-seed",
        "data.seed": "data-seed",
    }


def test_two_points_of_one_name_are_refused():
    axes = {"a": [{"label": "x y", "optim.lr": 1}, {"label": "x-y", "optim.lr": 2}]}
    with pytest.raises(ConfigError, match="would both be called 'a-x-y'"):
        grid(axes)


def test_what_is_left_out_is_listed_with_the_reason():
    exclude = [
        {"objective.name": "nll", "optim.lr": 0.003, "why": "too hot"},
        {"objective.name": ["jsd"], "optim.lr": [1e-4]},
    ]
    found = grid(AXES, exclude)
    assert [point.name for point in found.points] == ["objective-nll_lr-0.0001", "objective-jsd_lr-0.003"]
    assert [(entry.values, entry.why) for entry in found.excluded] == [
        ({"objective.name": "nll", "optim.lr": 0.003}, "too hot"),
        ({"objective.name": "jsd", "optim.lr": 1e-4}, ""),
    ]


def test_a_list_that_is_a_value_itself_is_left_out_as_one():
    axes = {"optim.betas": [[0.9, 0.95], [0.9, 0.99]]}
    assert names(axes, [{"optim.betas": [0.9, 0.95]}]) == [names(axes)[1]]


def test_leaving_out_everything_is_refused():
    with pytest.raises(ConfigError, match="leaves nothing"):
        grid(AXES, [{"objective.name": ["nll", "jsd"]}])
