"""One optimiser step, which never updates from non-finite values."""

from __future__ import annotations

from dataclasses import dataclass

from xarch.contracts.batch import Batch
from xarch.contracts.stage import StageContext
from xarch.engine.guards import finite, first_nonfinite_gradient, first_nonfinite_module
from xarch.errors import DivergedError


@dataclass(frozen=True)
class Place:
    """Position of a step within its stage.

    Attributes:
        step: optimiser steps completed before it.
        progress: position in the stage's schedules and phases, 0 to 1.
        lr_position: planned step that it corresponds to in the learning-rate schedule.
        lr_scale: further factor on the learning rate.
    """

    step: int
    progress: float
    lr_position: float
    lr_scale: float


def take_step(context: StageContext, batch: Batch, place: Place, *, monitored: bool) -> dict[str, float]:
    """Compute the gradients of a whole batch, apply wrappers (SAM), clip and update.

    Args:
        monitored: whether to include the objectives' monitor figures.

    Returns:
        The figures of the step.

    Raises:
        DivergedError: the loss or the gradient norm is not finite; no update was made.
    """
    matches, trainable = context.matches(), context.trainable()
    trainable.zero_grad()
    row = matches.backward(batch, place.progress, monitored=monitored)
    loss = row["loss"]
    _check(context, loss, None, batch, place.step)
    seen = matches.monitor() if monitored else {}
    for moved in trainable.again():
        with moved:
            matches.backward(batch, place.progress, monitored=False)
    norm = trainable.clip()
    _check(context, loss, norm, batch, place.step)
    lr = trainable.step(context.rate.factor(place.lr_position, context.steps) * place.lr_scale)
    trainable.zero_grad()
    matches.after_step()
    return {**row, "lr": lr, "grad_norm": norm, **seen}


def _check(context: StageContext, loss: float, norm: float | None, batch: Batch, step: int) -> None:
    bad_gradient = context.processes.any(norm is not None and not finite(norm))
    if finite(loss) and not bad_gradient:
        return
    if not finite(loss):
        where = first_nonfinite_module(context.student.module, lambda: context.matches().measure([batch]))
        where = f"module {where}" if where else "the objective or the teacher's values"
    else:
        name = first_nonfinite_gradient(context.trainable().named.items())
        where = f"the gradient of {name}" if name else "a gradient on another rank"
    context.trainable().zero_grad()
    what, value = ("loss", loss) if not finite(loss) else ("gradient norm", norm)
    raise DivergedError(
        f"{what} is {value} in stage {context.name} at step {step + 1} of {context.steps}; "
        f"first non-finite: {where}; no update was made",
        f"lower the learning rate: `--set stages.{context.name}.optimiser.lr={context.settings.optimiser.lr / 3:.1e}` "
        "or set `--set runtime.on_nan=retry`; then resume",
    )
