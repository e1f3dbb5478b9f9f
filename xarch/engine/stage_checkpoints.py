"""Checkpoints as seen by a stage kind; the engine saves its own resume state beside the kind's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from xarch.contracts.stage import SavedStep, StageCheckpoints
from xarch.engine.checkpoint import CheckpointFolder
from xarch.engine.seeds import restore_rng, rng_state
from xarch.engine.stopwatch import Spent, Stopwatch

if TYPE_CHECKING:
    from xarch.engine.context import EngineContext

RNG = "rng|"


class EngineCheckpoints(StageCheckpoints):
    """Implements :class:`StageCheckpoints` on a folder.

    Args:
        folder: of the stage.
        context: stage whose state is saved and restored.
    """

    def __init__(self, folder: CheckpointFolder, context: EngineContext) -> None:
        self.folder, self.context = folder, context

    def latest(self) -> SavedStep | None:
        context = self.context
        found = self.folder.latest()
        if found is None or found.final:
            context.metrics.cut(context.metrics_start)
            context.curve.cut(context.curve_start)
            return None
        engine = found.state["engine"]
        drawn = {k.removeprefix(RNG): v for k, v in found.trainer.items() if k.startswith(RNG)}
        restore_rng(drawn, engine["rng"])
        context.clock = Stopwatch(Spent(**engine["training"]))
        context.cutting.clear()
        context.cutting.update(engine["cutting"])
        context.figures = dict(engine["figures"])
        context.metrics.cut(engine["metrics"])
        context.curve.cut(engine["curve"])
        trainer = {k: v for k, v in found.trainer.items() if not k.startswith(RNG)}
        return SavedStep(found.step, found.model, trainer, found.state["facts"])

    def save(
        self, step: int, *, model: Mapping[str, Tensor], trainer: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        context = self.context
        if context.processes.main:
            drawn, rng = rng_state()
            engine = {
                "rng": rng,
                "training": vars(context.clock.spent),
                "cutting": context.cutting,
                "figures": context.figures,
                "metrics": dict(context.metrics.mark()),
                "curve": dict(context.curve.mark()),
            }
            self.folder.save(
                step,
                model=model,
                trainer={**trainer, **{RNG + k: v for k, v in drawn.items()}},
                state={"facts": dict(facts), "engine": engine},
            )
        context.processes.barrier()
