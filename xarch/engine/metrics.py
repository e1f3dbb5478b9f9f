"""metrics.jsonl (deterministic, no times), TensorBoard and further trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch.engine.trackers import Trackers
from xarch.files.run_dir import NO_ROWS, RunDir


class MetricsLog:
    """Writes rows on rank 0 only.

    Args:
        run: the run folder, or None on other ranks.
        tensorboard: also write TensorBoard scalars.

    Attributes:
        trackers: also get the figures.
    """

    def __init__(self, run: RunDir | None, *, tensorboard: bool) -> None:
        self.run = run
        self.trackers: Trackers | None = None
        self._tensorboard = tensorboard and run is not None
        self._writer: Any = None

    def row(self, stage: str, step: int, metrics: Mapping[str, float], units: int | None = None) -> None:
        """Write one line: stage, step and figures."""
        if self.run is None:
            return
        head: dict[str, Any] = {"stage": stage, "step": step}
        if units is not None:
            head["units"] = units
        self.run.append_row(self.run.metrics, {**head, **metrics})
        if self._tensorboard:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.run.tb))
            for name, value in metrics.items():
                self._writer.add_scalar(f"{stage}/{name}", value, step)
        if self.trackers is not None:
            self.trackers.log(stage, step, metrics)

    def summary(self, figures: Mapping[str, float]) -> None:
        """Send the evaluated figures of the student to the trackers."""
        if self.trackers is not None:
            self.trackers.summary(figures)

    def mark(self) -> Mapping[str, Any]:
        """Return the position in metrics.jsonl and the digest of what is before it, for checkpoints."""
        return self.run.rows_mark(self.run.metrics) if self.run is not None else NO_ROWS

    def cut(self, mark: Mapping[str, Any]) -> None:
        """Truncate metrics.jsonl to a position.

        Raises:
            UsageError: what is before it has changed.
        """
        if self.run is not None:
            self.run.cut_rows(self.run.metrics, mark)

    def close(self) -> None:
        """Flush TensorBoard and end the trackers."""
        if self.trackers is not None:
            self.trackers.finish()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
