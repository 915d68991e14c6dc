from __future__ import annotations

import pytest

from onpolicy_sdft.cli.main import main


@pytest.mark.parametrize("flag", ["--model.name", "--model.dtype=bfloat16"])
def test_an_option_of_the_model_that_a_run_is_scored_without_is_refused(flag, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model: {name: other}\n")
    assert main(["eval", str(tmp_path), *flag.split("="), *(["other"] if "=" not in flag else [])]) == 2
    assert f"{flag.partition('=')[0]} has no effect: {tmp_path} is what is scored" in capsys.readouterr().err


def test_the_name_of_a_model_is_given_once(capsys):
    assert main(["eval", "some/model", "--model.name", "other"]) == 2
    assert "--model.name has no effect: some/model is what is scored" in capsys.readouterr().err
