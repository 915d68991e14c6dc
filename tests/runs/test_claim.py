"""A directory that somebody works in is theirs until they are done, whatever the work is."""

from __future__ import annotations

import pytest

from onpolicy_sdft.errors import RunDirectoryError
from onpolicy_sdft.runs.claim import claimed


def test_a_second_job_in_a_directory_is_refused(tmp_path):
    output = tmp_path / "made" / "here"
    with (
        claimed(output, "output_dir", "sequence"),
        pytest.raises(RunDirectoryError, match=f"Another sequence is at work in output_dir={output}"),
        claimed(output, "output_dir", "sequence"),
    ):
        pytest.fail("it was let in")


def test_what_was_claimed_is_free_afterwards_also_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path, "output_dir", "run"):
        raise ZeroDivisionError
    with claimed(tmp_path, "output_dir", "run"):
        pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunDirectoryError, match=r"output_dir=.*file/here cannot be made"),
        claimed(tmp_path / "file" / "here", "output_dir", "run"),
    ):
        pytest.fail("it was let in")
