"""What is shown while a run goes on, and how long it is said to take."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from xarch.cli.eta import Eta
from xarch.cli.session import Session
from xarch.cli.ui import LineReporter, LiveReporter, make_reporter, watched
from xarch.contracts.stage import StageOutcome
from xarch.engine.events import Reporter
from xarch.numbers import count, duration, size


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


PLAN = SimpleNamespace(
    unit="token",
    estimates=SimpleNamespace(parts={"export": 50.0}),
    stages=[SimpleNamespace(name="a", seconds=10.0), SimpleNamespace(name="b", seconds=40.0)],
)


def test_time_left_comes_from_what_was_measured() -> None:
    clock = Clock()
    eta = Eta({"a": 10.0, "b": 40.0}, clock)
    eta.begin("a")
    assert eta.stage_seconds() is None
    assert eta.run_seconds() is None
    for step in range(1, 11):
        clock.now += 2.0
        eta.step(step, 20, 100)
    assert eta.stage_seconds() == pytest.approx(20.0)
    assert eta.rate == pytest.approx(50.0)
    # Stage a takes 40 s instead of the planned 10 s, so b is expected to take four times its plan as well.
    assert eta.run_seconds() == pytest.approx(20.0 + 160.0)
    clock.now += 20.0
    eta.end()
    eta.begin("b")
    for step in (1, 2):
        clock.now += 1.0
        eta.step(step, 10, 100)
    assert eta.run_seconds() == pytest.approx(8.0)


def test_time_left_of_a_resumed_stage_counts_only_its_own_steps() -> None:
    clock = Clock()
    eta = Eta({"a": 10.0}, clock)
    eta.begin("a")
    for step in (51, 52, 53):
        clock.now += 1.0
        eta.step(step, 60, 10)
    assert eta.stage_seconds() == pytest.approx(7.0)


def play(reporter: Reporter, clock: Clock) -> None:
    """A run of two stages."""
    reporter.plan_ready(PLAN)
    reporter.phase("load", "hf:x")
    reporter.stage_started(1, 2, "a", "gradient", 20)
    for step in range(1, 21):
        clock.now += 2.0
        reporter.step(step, 20, {"loss": 1 / step, "lr": 1.0}, 5000)
    reporter.stage_finished("a", StageOutcome(metrics={"loss": 0.05}))
    reporter.stage_started(2, 2, "b", "closed_form", 0)
    reporter.progress(1, 3, "blocks.0")
    clock.now += 9.0
    reporter.progress(3, 3, "blocks.2")
    reporter.message("a [bracketed] word")
    reporter.finished({"state": "done"})


def test_lines_for_files_and_pipes() -> None:
    out, clock = io.StringIO(), Clock()
    play(LineReporter(Console(file=out, width=200), clock), clock)
    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines[0] == "load hf:x"
    assert lines[1] == "stage 1/2 a (gradient, 20 steps)"
    assert "stage 1/2 a  3/20  loss 0.3333  2500 tokens/s  34 s left, run 6 m 34 s" in lines
    assert lines[-5] == "stage 1/2 a  20/20  loss 0.05  2500 tokens/s"
    assert lines[-4] == "stage a done  loss 0.05"
    assert lines[-2] == "stage 2/2 b  3/3  blocks.2"
    assert lines[-1] == "a [bracketed] word"
    assert len([line for line in lines if line.startswith("stage 1/2 a  ")]) < 12


def test_a_panel_for_terminals() -> None:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    with watched(LiveReporter(console, clock)) as reporter:
        play(reporter, clock)
        reporter.phase("export", "cpu")
    text = out.getvalue()
    assert "stage 1/2 a done in 40 s  loss 0.05" in text
    assert "a [bracketed] word" in text
    assert "stage 2/2 b" in text
    assert isinstance(reporter, LiveReporter)
    assert reporter.live is None


def test_the_run_is_done_when_its_exports_are() -> None:
    clock = Clock()
    reporter = LiveReporter(Console(file=io.StringIO(), force_terminal=True, width=100), clock)
    with watched(reporter):
        reporter.plan_ready(PLAN)
        reporter.phase("evaluate", "one sample")
        for name, seconds in (("a", 10.0), ("b", 40.0)):
            reporter.stage_started(1, 2, name, "closed_form", 0)
            clock.now += seconds
            reporter.stage_finished(name, StageOutcome(metrics={}))
        assert reporter.eta.share() == pytest.approx(0.5)
        reporter.phase("export", "cpu")
        clock.now += 25.0
        assert reporter.eta.share() == pytest.approx(0.75)
        clock.now += 1000.0
        assert reporter.eta.share() < 1.0


def test_a_stage_ends_with_its_loss_and_validation() -> None:
    out, clock = io.StringIO(), Clock()
    with watched(LineReporter(Console(file=out, width=200), clock)) as reporter:
        reporter.stage_started(1, 1, "a", "gradient", 2)
        figures = {"loss": 0.5, "match.kd": 0.5, "grad_norm": 3.0, "validation_before": 0.9, "validation_after": 0.4}
        reporter.stage_finished("a", StageOutcome(metrics=figures))
    assert out.getvalue().splitlines()[-1].endswith("stage a done  loss 0.5  validation 0.9 to 0.4")


def test_a_silent_phase_gives_signs_of_life() -> None:
    out, clock = io.StringIO(), Clock()
    with watched(LineReporter(Console(file=out, width=200), clock)) as reporter:
        assert isinstance(reporter, LineReporter)
        reporter.phase("export", "cpu")
        for _ in range(40):
            clock.now += 1.0
            reporter.heartbeat.check()
        reporter.message("written")
        clock.now += 4.0
        reporter.heartbeat.check()
    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines == ["export cpu", *(f"export cpu  {s} s so far" for s in (5, 15, 35)), "written"]


PANEL = """
from rich.console import Console
from types import SimpleNamespace
from xarch.cli.ui import LiveReporter, make_reporter
clock = iter(range(1000))
console = Console(color_system="256")
reporter = make_reporter(console)
assert isinstance(reporter, LiveReporter)
reporter.clock = reporter.eta.clock = lambda: 2.0 * next(clock)
stages = [SimpleNamespace(name="a", seconds=10.0), SimpleNamespace(name="b", seconds=30.0)]
reporter.plan_ready(SimpleNamespace(unit="token", stages=stages, estimates=SimpleNamespace(parts={})))
reporter.eta.clock = reporter.clock
reporter.stage_started(1, 2, "a", "gradient", 20)
for step in range(1, 11):
    reporter.step(step, 20, {"loss": 1 / step}, 5000)
reporter.live.refresh()
reporter.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
@pytest.mark.parametrize("columns", [80, 50])
def test_a_colour_terminal_shows_bars_and_numbers(columns: int) -> None:
    """edge 3: what followed the bar was cut off wherever there was colour."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")} | {"TERM": "xterm-256color"}
    done = subprocess.Popen([sys.executable, "-c", PANEL], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    read = b""
    with contextlib.suppress(OSError):  # EIO once the program has closed its side
        while part := os.read(ours, 65536):
            read += part
    os.close(ours)
    assert done.wait() == 0, read.decode()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read.decode())
    assert "\x1b[38;5;" in read.decode(), "it has no colours"
    lines = [line.strip("│ \r") for line in shown.splitlines()]
    assert any(re.fullmatch("stage [━╸╺]+ +50 %", line) for line in lines), shown
    assert any(re.fullmatch("run +[━╸╺]+ +12 %", line) for line in lines), shown
    assert "10/20 loss 0.1 2500 tokens/s 20 s left, run 2 m 20 s" in " ".join(" ".join(lines).split()), shown


def test_the_panel_is_taken_down_after_an_error() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    reporter = LiveReporter(console)
    reporter.phase("load")
    with pytest.raises(KeyError), watched(reporter):
        raise KeyError
    assert reporter.live is None


def test_the_reporter_suits_the_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_reporter(Console(file=io.StringIO(), force_terminal=True)), LiveReporter)
    assert isinstance(make_reporter(Console(file=io.StringIO())), LineReporter)


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, said in (("0", "hello\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        out = io.StringIO()
        Session(stream=out).console.print("hello")
        assert out.getvalue() == said
        document = io.StringIO()
        Session(json=True, stream=document).emit({"a": 1}, lambda console: None)
        assert bool(document.getvalue()) == bool(said)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (9999, "9999"), (12_345, "12.3 k"), (134_515_008, "135 M"), (0.25, "0.25"), (7e12, "7 T")],
)
def test_counts(value: float, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12 B"), (1500, "1.5 kB"), (98_000_000, "98 MB"), (3.2e9, "3.2 GB")])
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.2, "<1 s"),
        (1, "1 s"),
        (59.6, "1 m"),
        (90, "1 m 30 s"),
        (3600, "1 h"),
        (3725, "1 h 2 m"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert duration(value) == text
