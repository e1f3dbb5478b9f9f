"""Checks of a stage's settings that need no pairs: what its kind takes, and the figures that it names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from xarch.config.schema import Gate, RunConfig, Stage
from xarch.contracts.control import TO_CONTROL
from xarch.contracts.metric import Metric
from xarch.contracts.stage import StageKind
from xarch.errors import PlanError, UsageError
from xarch.matching.references import near
from xarch.registry.registry import Registry

OF_STUDENTS = ("variants", "exports")
"""First words of gates on operating points and exported files: ``variants.NAME.FIGURE``."""


@dataclass(frozen=True)
class NamedFigures:
    """Which figures a configuration may name.

    Attributes:
        registry: of the run.
        metric: the run's metric, None without one.
        family: of the student.
        spends: figures that the student counts itself.
    """

    registry: Registry
    metric: str | None
    family: str
    spends: Collection[str] = ()

    def check(self, where: str, name: str) -> None:
        """Check a figure of the run's metric, or the name of a metric whose headline is meant.

        Raises:
            UsageError: no metric measures it, as far as metrics declare their figures.
            PlanError: it names a metric for other families.
        """
        known = self._declared()
        if self._matches(name, known):
            return
        if not self.registry.has("metric", name):
            if self.metric is None or known:
                whose = f"figures of {self.metric}" if self.metric else "this run has no metric; figures"
                raise UsageError(f"{where}: no metric measures {name!r}", near(name, known, whose))
            return
        spec = self.registry.get("metric", name)
        if not spec.serves(self.family):
            raise PlanError(
                f"{where}: {name!r} is for {', '.join(spec.accepts) or 'no family'}; the student is of family "
                f"{self.family!r}",
                "name a figure of the run's metric, or leave it out to validate by the stage's loss",
            )

    def check_gates(self, gates: Mapping[str, Gate]) -> None:
        """Check the figures that gates name.

        Raises:
            UsageError: the run's metric does not measure one, as far as it declares its figures.
        """
        known = self._declared()
        for name in gates:
            first, _, rest = name.partition(".")
            figure = rest.partition(".")[2] if first in OF_STUDENTS else name
            if known and not self._matches(figure.removesuffix(TO_CONTROL), known):
                raise UsageError(
                    f"gates.{name}: no such figure, {self.metric} does not measure {figure!r}",
                    near(figure, known, "figures"),
                )

    def check_control_gates(self, config: RunConfig, controls: int) -> None:
        """Check that what gates compare with controls will be measured; a trial is not held to its gates.

        Args:
            controls: number of controls that will be evaluated.

        Raises:
            UsageError: none will be.
        """
        name = next((name for name in config.gates if name.endswith(TO_CONTROL)), None)
        if name is None or controls or config.tiny:
            return
        switched = "set evaluate.controls=true" if not config.evaluate.controls else "this student has no control"
        raise UsageError(f"gates.{name}: this figure will not be measured", f"{switched}, or gates.{name}=null")

    def _declared(self) -> Collection[str]:
        if self.metric is None:
            return ()
        kind: type[Metric] = self.registry.resolve(self.registry.get("metric", self.metric))
        return (*kind.figures, *self.spends) if kind.figures else ()

    @staticmethod
    def _matches(name: str, known: Collection[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in known)


def check_kind(where: str, stage: Stage, kind: StageKind) -> None:
    """Check that a stage has what its kind needs, and nothing that the kind ignores.

    Raises:
        UsageError: it has not.
    """
    if kind.trains:
        missing = [key for key in ("matches", "trains") if not getattr(stage, key)]
        if missing:
            raise UsageError(f"{where}: a stage of kind {stage.kind!r} requires `{missing[0]}`", None)
        return
    useless = [k for k in ("matches", "trains", "until", "phases", "validation", "ema") if getattr(stage, k)]
    if useless:
        raise UsageError(
            f"{where}.{useless[0]}: a stage of kind {stage.kind!r} does not optimise matches", f"remove {useless[0]}"
        )


def check_figures(where: str, stage: Stage, figures: NamedFigures, models: Collection[str], *, teacher: bool) -> None:
    """Check every figure that a stage names: that of its validation, and those it requires before it starts.

    Args:
        models: the sides whose figures may be required.
        teacher: whether the run has a main teacher.

    Raises:
        UsageError: a side or a figure does not exist.
        PlanError: a metric is for other families.
    """
    if stage.validation is not None and stage.validation.metric is not None:
        figures.check(f"{where}.validation.metric", stage.validation.metric)
    for named in stage.requires:
        side, dot, figure = named.partition(".")
        if not dot or not figure or side not in models:
            raise UsageError(
                f"{where}.requires: {named!r} is not SIDE.FIGURE", near(side, models, "sides") + "; e.g. teacher.top1"
            )
        if side == "teacher" and not teacher:
            raise UsageError(f"{where}.requires: {named!r} needs a teacher, but this run has none", None)
        figures.check(f"{where}.requires.{named}", figure)
