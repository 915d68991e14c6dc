"""The progress display on a terminal and elsewhere."""

import io
import re

import pytest

from onpolicy_sdft.runs.progress import Progress, format_seconds, print_table


class Clock:
    """A clock that moves when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Stream(io.StringIO):
    """A stream that counts flushes and may say that it is a terminal."""

    def __init__(self, terminal=False):
        super().__init__()
        self.terminal = terminal
        self.num_flushes = 0

    def isatty(self):
        return self.terminal

    def flush(self):
        self.num_flushes += 1
        super().flush()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Stream(terminal=True)


def visible(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_plain_lines_come_at_most_every_so_often_and_are_flushed(clock):
    stream = Stream()
    with Progress("train", 40, "steps", stream=stream, every_seconds=10, clock=clock) as progress:
        for _ in range(8):
            clock.now += 4
            progress.update(loss=1.23456, tokens_per_second=1234.5, fallback_rate=0.125)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "train 0/40 steps",
        "train 3/40 steps",
        "train 6/40 steps",
        "train 8/40 steps",
    ]
    assert lines[1] == ("train 3/40 steps, loss 1.235, tokens/s 1,234, fallback rate 12%, eta 2:28, elapsed 0:12")
    assert stream.num_flushes >= len(lines)


def test_the_last_state_is_shown_once_also_after_an_exception(clock):
    stream = Stream()

    def job():
        with Progress("eval", 3, stream=stream, every_seconds=0, clock=clock) as progress:
            progress.update(2, score=0.5)
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        job()
    assert stream.getvalue().splitlines() == [
        "eval 0/3, elapsed 0:00",
        "eval 2/3, score 0.5, eta 0:00, elapsed 0:00",
    ]


def test_a_resumed_job_takes_its_eta_from_what_it_did_itself(clock):
    stream = Stream()
    progress = Progress("train", 20, stream=stream, start=10, every_seconds=0, clock=clock)
    with progress:
        clock.now += 6
        progress.update()
    assert "train 11/20, eta 0:54" in stream.getvalue()


def test_a_pause_does_not_count_in_time_or_eta(clock):
    stream = Stream()
    with Progress("train", 3, stream=stream, every_seconds=0, clock=clock) as progress:
        clock.now += 5
        with progress.paused():
            clock.now += 1000
        progress.update()
    assert "train 1/3, eta 0:10, elapsed 0:05" in stream.getvalue()


def test_fields_stay_until_given_again_and_none_takes_one_away(clock):
    stream = Stream()
    with Progress("job", stream=stream, every_seconds=0, clock=clock) as progress:
        progress.update(a=1, b="x")
        progress.update(a=None)
        progress.update(b=float("nan"))
    assert stream.getvalue().splitlines()[1:] == [
        "job 1, a 1, b x, elapsed 0:00",
        "job 2, b x, elapsed 0:00",
        "job 3, b nan, elapsed 0:00",
    ]


def test_a_display_that_is_off_shows_nothing(clock, terminal):
    for stream in (Stream(), terminal):
        with Progress("job", 2, stream=stream, enabled=False, clock=clock) as progress:
            progress.update(loss=1.0)
            with progress.paused():
                pass
        assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_with_the_same_text(terminal):
    with Progress("train", 4, "steps", stream=terminal) as progress:
        progress.update(loss=1.5, fallback_rate=0.25)
    text = visible(terminal.getvalue())
    assert "1/4 steps" in text
    assert "loss 1.5, fallback rate 25%" in text
    assert "\x1b[" in terminal.getvalue()


def test_a_paused_bar_lets_another_job_show_its_own(terminal):
    with Progress("train", 4, stream=terminal) as outer:
        outer.update()
        with outer.paused(), Progress("eval", 2, stream=terminal) as inner:
            inner.update(2)
        outer.update()
    text = visible(terminal.getvalue())
    assert text.rindex("2/4") > text.rindex("2/2")


def test_a_dumb_terminal_gets_plain_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with Progress("train", 4, stream=terminal) as progress:
        progress.update()
    assert terminal.getvalue().startswith("train 0/4, elapsed 0:00\n")
    assert "\x1b" not in terminal.getvalue()


def test_tables_are_aligned_text_or_ruled_and_never_read_as_markup(terminal):
    columns, rows = ("set", "n"), [("[red]task[/red]", "128")]
    plain = Stream()
    print_table("Scores", columns, rows, stream=plain)
    assert plain.getvalue() == ("Scores\nset                n\n---------------  ---\n[red]task[/red]  128\n")
    print_table("Scores", columns, rows, stream=terminal)
    assert "[red]task[/red]" in visible(terminal.getvalue())
    assert "│" in terminal.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (42.4, "0:42"), (655, "10:55"), (3723, "1:02:03")])
def test_durations_read_as_clocks_do(seconds, text):
    assert format_seconds(seconds) == text
