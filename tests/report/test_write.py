"""Where reports go, and in what form."""

import re

import pytest
from PIL import Image
from places import EVIL, make_run, make_sequence, make_sweep, rollout, sequence

from onpolicy_sdft.cli.main import main
from onpolicy_sdft.errors import ConfigError, RunDirectoryError
from onpolicy_sdft.report.write import write_report
from onpolicy_sdft.runs.files import read_json, write_json_atomic


def test_one_run_gets_its_page_and_plots_in_its_own_directory(tmp_path):
    run = make_run(tmp_path / "run")
    written = write_report([run])
    assert written[0] == run / "report.html"
    assert run / "plots" / "loss.png" in written
    assert "from metrics.jsonl" in written[0].read_text()


@pytest.mark.usefixtures("unrendered")
def test_other_directories_and_several_runs_get_one_page_in_the_first(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    assert write_report(runs) == [runs[0] / "report.html"]
    assert not (runs[0] / "plots").exists()
    place = make_sequence(tmp_path / "seq")
    assert write_report([place]) == [place / "report.html"]
    assert "from sequence.json" in (place / "report.html").read_text()


@pytest.mark.usefixtures("unrendered")
def test_files_are_named_from_the_report_or_as_they_were_given(tmp_path, monkeypatch):
    make_sequence(tmp_path / "work" / "seq")
    (tmp_path / "work" / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (page,) = write_report(["seq"], output="elsewhere/x.html")
    assert "from seq/sequence.json" in page.read_text()
    (page,) = write_report(["seq"], output="x.html")
    assert "from seq/sequence.json" in page.read_text()


@pytest.mark.usefixtures("unrendered")
def test_json_holds_what_the_tables_show_with_their_files(tmp_path):
    place = make_sequence(tmp_path / "seq")
    (path,) = write_report([place], form="json")
    assert path == place / "report.json"
    (part,) = read_json(path)["parts"]
    found = {block["name"]: block for section in part["sections"] for block in section["blocks"]}
    assert found["accuracy"]["kind"] == "table"
    assert found["accuracy"]["sources"][0] == "sequence.json"
    assert found["accuracy"]["rows"][1]["matrix/code"] == {
        "value": 0.7, "low": pytest.approx(0.65), "high": pytest.approx(0.75),
    }  # fmt: skip
    expected = sequence()["metrics"]
    assert {row["metric"]: row["value"] for row in found["metrics"]["rows"]} == {
        name: pytest.approx(each["value"]) for name, each in expected.items()
    }
    assert found["time"]["rows"][0]["rollout_seconds"] == 5.0
    assert part["rollouts"][0] == {"run": "code", "n": 2, "sources": ["stage-1-code/rollouts.jsonl"]}
    assert all(block["sources"] for block in found.values())


def test_markdown_has_the_tables_and_its_pictures_beside_it(tmp_path):
    place = make_sweep(tmp_path / "swp")
    written = write_report([place], output=tmp_path / "out" / "sweep.md")
    text = written[0].read_text()
    assert "| 0.001 | policy | 0.425 ± 0.010 (0.420 to 0.430) |" in text
    assert "steps in a row made no update" in text
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert links
    assert [tmp_path / "out" / link for link in links] == written[1:]
    assert len(set(links)) == len(links)
    assert all(link.startswith("plots/sweep-") for link in links)
    for path in written[1:]:
        assert min(Image.open(path).size) > 150
    # Tables are whole: every row has as many cells as its rule.
    for table in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


@pytest.mark.usefixtures("unrendered")
def test_two_parts_with_pictures_of_one_name_keep_them_apart(tmp_path):
    places = [make_sequence(tmp_path / name) for name in ("a", "b")]
    written = write_report(places, output=tmp_path / "report.md")
    assert len({path.name for path in written}) == len(written)
    assert tmp_path / "plots" / "accuracy.png" in written
    assert tmp_path / "plots" / "accuracy-2.png" in written


@pytest.mark.usefixtures("unrendered")
def test_markdown_fences_what_holds_fences_and_escapes_tags(tmp_path):
    run = make_run(tmp_path / "run", rollouts=[rollout(1, verdict=EVIL)])
    (run / "config.yaml").write_text("a: '```'\n")
    text = write_report([run], form="md")[0].read_text()
    assert "````\na: '```'\n````" in text
    assert "<b>bold" not in text


@pytest.mark.parametrize(
    ("name", "starts"), [("x.md", "# run"), ("x.json", "{"), ("x.html", "<!DOCTYPE"), ("x", "<!DOCTYPE")]
)
@pytest.mark.usefixtures("unrendered")
def test_the_form_follows_the_ending_of_the_output(tmp_path, name, starts):
    run = make_run(tmp_path / "run")
    assert write_report([run], output=tmp_path / name)[0].read_text().strip().startswith(starts)


def test_an_output_that_is_a_directory_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"is a directory\. Fix: name a file in it"):
        write_report([tmp_path / "none"], output=tmp_path)


def test_what_holds_nothing_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "report.html").write_text("of another report")
    with pytest.raises(RunDirectoryError, match=r"not a run directory.*sequence\.json.*Fix: give the output"):
        write_report([tmp_path])
    with pytest.raises(RunDirectoryError, match="no such directory"):
        write_report([tmp_path / "none"])


@pytest.mark.usefixtures("unrendered")
def test_the_verb_takes_several_paths_and_says_what_it_wrote(tmp_path, capsys):
    runs = [str(make_run(tmp_path / name)) for name in ("a", "b")]
    assert main(["report", *runs, "--output", str(tmp_path / "both.html"), "--format=html"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'both.html'}\n"
    assert main(["report", runs[0], "--format", "pdf"]) == 2
    assert "format='pdf' is not usable" in capsys.readouterr().err


@pytest.mark.usefixtures("unrendered")
def test_a_summary_of_a_member_that_is_damaged_is_named(tmp_path):
    a, b = (make_run(tmp_path / name) for name in ("a", "b"))
    (b / "eval" / "summary.json").write_text("{")
    write_json_atomic(a / "manifest.json", {"hardware": {"gpus": 3}, "git": 5, "seeds": []})
    (page,) = write_report([a, b])
    assert "b/eval/summary.json: scores before and after (" in page.read_text()


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("name", ["x.html", "x.md", "x.json"])
@pytest.mark.few(1)
def test_a_file_that_is_no_report_is_kept_and_an_earlier_report_is_replaced(tmp_path, name):
    place, target = make_sequence(tmp_path / "seq"), tmp_path / name
    target.write_text('{"prompt": "mine"}\n')
    with pytest.raises(ConfigError, match=f"{name} is there already, and it is no report"):
        write_report([place], output=target)
    assert target.read_text() == '{"prompt": "mine"}\n'
    target.unlink()
    for _ in range(2):
        assert write_report([place], output=target)[0] == target
