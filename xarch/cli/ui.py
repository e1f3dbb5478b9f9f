"""Progress of a run: a live panel on a terminal, timestamped lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from xarch.cli.activity import Heartbeat
from xarch.cli.eta import Eta
from xarch.engine.events import Reporter
from xarch.numbers import count, duration, figure

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

LINE_SECONDS = 5.0
INNER = ("grad_norm", "validation_before", "validation_after", "validation_kept_after")
"""Figures of a stage that are not shown by name at its end."""
DELIVERY = {"evaluate": "evaluation", "export": "export", "bench": "bench"}
"""Phases after the stages -> their part of the plan's time."""


def make_reporter(console: Console) -> Reporter:
    """Return the reporter for a console."""
    return LiveReporter(console) if console.is_terminal and not console.is_dumb_terminal else LineReporter(console)


@contextlib.contextmanager
def watched(reporter: Reporter) -> Iterator[Reporter]:
    """Use a reporter and always remove its panel at the end."""
    try:
        yield reporter
    finally:
        if isinstance(reporter, LineReporter | LiveReporter):
            reporter.close()


class _Followed(Reporter):
    """Tracks the progress of the run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.eta = Eta({}, clock)
        self.unit = "units"
        self.title = ""
        self.step_now, self.steps = 0, 0
        self.detail = ""
        self.loss: float | None = None
        self.stages_left: set[str] = set()
        self.began = clock()

    def plan_ready(self, plan: Any) -> None:
        parts = {phase: plan.estimates.parts.get(part, 0.0) for phase, part in DELIVERY.items()}
        self.stages_left = {s.name for s in plan.stages}
        self.eta = Eta({s.name: s.seconds for s in plan.stages} | parts, self.clock)
        self.unit = f"{plan.unit}s"

    def phase(self, name: str, detail: str = "") -> None:
        self.title, self.detail, self.began = f"{name} {detail}".strip(), "", self.clock()
        self.step_now = self.steps = 0
        self.loss = None
        if name in DELIVERY and not self.stages_left:
            self.eta.begin(name)

    def stage_started(self, index: int, total: int, name: str, kind: str, steps: int) -> None:
        self.eta.begin(name)
        self.began = self.clock()
        self.title, self.detail = f"stage {index}/{total} {name}", kind
        self.step_now, self.steps, self.loss = 0, steps, None

    def step(self, step: int, steps: int, metrics: Mapping[str, float], units: int) -> None:
        self.eta.step(step, steps, units)
        self.step_now, self.steps, self.detail = step, steps, ""
        self.loss = metrics.get("loss")

    def progress(self, done: int, total: int, message: str = "") -> None:
        self.step_now, self.steps, self.detail = done, total, message

    def stage_finished(self, name: str, outcome: Any) -> None:
        self.eta.end()
        self.stages_left.discard(name)

    def figures(self) -> str:
        """Return e.g. ``10/100  loss 0.41  5200 tokens/s  3 m left, run 9 m``; unknown parts are left out."""
        parts = [f"{self.step_now}/{self.steps}"] if self.steps else []
        parts += [f"loss {figure(self.loss)}"] if self.loss is not None else []
        if self.loss is not None and self.eta.rate is not None:
            parts.append(f"{count(self.eta.rate)} {self.unit}/s")
            parts += [self._left()] if self._left() else []
        parts += [self.detail] if self.detail else []
        return "  ".join(parts)

    def _left(self) -> str:
        left, run = self.eta.stage_seconds(), self.eta.run_seconds()
        if self.loss is None or left is None or self.step_now >= self.steps:
            return ""
        return f"{duration(left)} left" + (f", run {duration(run)}" if run is not None else "")

    def since(self) -> str:
        """Return how long this phase or stage has taken, e.g. ``12 s so far``."""
        return f"{duration(self.clock() - self.began)} so far"


def _figures(metrics: Mapping[str, float]) -> str:
    """Format what a stage ends with; the figures of its matches are in the report."""
    shown = {k: v for k, v in metrics.items() if not k.startswith(("match.", "weighted.")) and k not in INNER}
    parts = [f"{name} {figure(value)}" for name, value in shown.items()]
    before, after = (metrics.get(f"validation_{when}") for when in ("before", "after"))
    if before is not None and after is not None:
        parts.append(f"validation {figure(before)} to {figure(after)}")
    return "  ".join(parts)


class LineReporter(_Followed):
    """Prints one line every few seconds and at every start and end; for log files and pipes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.console = console
        self.printed = -LINE_SECONDS
        self.heartbeat = Heartbeat(self._alive, clock)

    def phase(self, name: str, detail: str = "") -> None:
        super().phase(name, detail)
        self._print(self.title)

    def stage_started(self, index: int, total: int, name: str, kind: str, steps: int) -> None:
        super().stage_started(index, total, name, kind, steps)
        self._print(f"{self.title} ({kind}{f', {steps} steps' if steps else ''})")

    def step(self, step: int, steps: int, metrics: Mapping[str, float], units: int) -> None:
        super().step(step, steps, metrics, units)
        self._sometimes(step == steps)

    def progress(self, done: int, total: int, message: str = "") -> None:
        super().progress(done, total, message)
        self._sometimes(done == total)

    def stage_finished(self, name: str, outcome: Any) -> None:
        super().stage_finished(name, outcome)
        found = _figures(outcome.metrics)
        self._print(f"stage {name} done  {found}".rstrip())

    def message(self, text: str) -> None:
        self._print(text)

    def finished(self, status: Mapping[str, Any]) -> None:
        self.close()

    def close(self) -> None:
        """End the signs of life; safe to call twice."""
        self.heartbeat.stop()

    def _alive(self) -> None:
        self._line("  ".join(filter(None, [self.title, self.figures(), self.since()])))

    def _sometimes(self, last: bool) -> None:
        if last or self.clock() - self.printed >= LINE_SECONDS:
            self._print(f"{self.title}  {self.figures()}")

    def _print(self, text: str) -> None:
        self.printed = self.clock()
        self.heartbeat.said()
        self._line(text)

    def _line(self, text: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, soft_wrap=True)


class LiveReporter(_Followed):
    """Redraws one panel in place; messages scroll above it."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.console = console
        self.live: Live | None = None

    def phase(self, name: str, detail: str = "") -> None:
        super().phase(name, detail)
        self._draw()

    def stage_started(self, index: int, total: int, name: str, kind: str, steps: int) -> None:
        super().stage_started(index, total, name, kind, steps)
        self._draw()

    def step(self, step: int, steps: int, metrics: Mapping[str, float], units: int) -> None:
        super().step(step, steps, metrics, units)
        self._draw()

    def progress(self, done: int, total: int, message: str = "") -> None:
        super().progress(done, total, message)
        self._draw()

    def stage_finished(self, name: str, outcome: Any) -> None:
        super().stage_finished(name, outcome)
        found = _figures(outcome.metrics)
        self.message(f"{self.title} done in {duration(self.clock() - self.eta.started)}  {found}".rstrip())

    def message(self, text: str) -> None:
        self._started().console.print(text, markup=False)

    def finished(self, status: Mapping[str, Any]) -> None:
        self.close()

    def close(self) -> None:
        """Remove the panel; safe to call twice."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _started(self) -> Live:
        from rich.live import Live

        if self.live is None:
            # Drawn four times a second whatever happens, so that the time taken goes on while a phase says nothing.
            self.live = Live(console=self.console, get_renderable=self._panel, refresh_per_second=4, transient=True)
            self.live.start()
        return self.live

    def _draw(self) -> None:
        self._started()

    def _panel(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        # Each bar is a cell: one of its own ends without a new line, and what follows it on a terminal is cut off.
        bars = Table.grid(expand=True, padding=(0, 1, 0, 0))
        bars.add_column()
        bars.add_column(ratio=1)
        bars.add_column(justify="right")
        shares = {"stage" if self.loss is not None else "": self.step_now / self.steps} if self.steps else {}
        if self.eta.stage:
            shares["run"] = self.eta.share()
        for name, share in shares.items():
            bars.add_row(name, ProgressBar(total=1.0, completed=share), f"{100 * share:.0f} %")
        body = [bars] if shares else []
        title = Text(self.title)
        text = "  ".join(filter(None, [self.figures(), "" if self._left() else self.since()]))
        return Panel(Group(*body, Text(text)), title=title, title_align="left", border_style="dim")
