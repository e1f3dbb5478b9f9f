"""A model with some modules replaced by adaptive ones, and its operating points.

Legend: B samples, L positions, D width, N learners, K choices of a gate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xarch import Batch, LocalStudent, PlanError, Replaceable, Sink, Site, Student, Tap, TapModel
from xarch.matching.objectives.dense import opened
from xarch_acm.effort import Effort
from xarch_acm.exits import NEVER, ExitModule, Exits, taken
from xarch_acm.experts import ExpertModule
from xarch_acm.labels import lost, stop
from xarch_acm.learners import adaptive, check_budgets, chosen
from xarch_acm.module import AdaptiveModule, Point
from xarch_acm.options import AcmOptions
from xarch_acm.spent import DEVIATION, EXECUTED, SPREAD, Spent

EFFORT, LOGITS, BUDGET = "effort", "logits", "budget"
GATE, CHOICE, LEARNERS, SENSITIVITY = "gate", "choice", "learners", "sensitivity"
STATIC, GATED, BUCKETED, EXIT, SHUFFLED = "static", "gated", "bucketed", "exit", "shuffled"
"""Kinds of operating points. In the last, which tells whether gates know where learners are needed, what they choose
goes to other positions."""
CAUSAL = ("decoder",)
"""Families whose positions must not depend on later ones."""
Points = Mapping[str, Point]


def flat(value: Tensor) -> Tensor:
    """Return a value as [B, L, width]: a part works on each position on its own, wherever positions lie."""
    return value.reshape(value.shape[0], -1, value.shape[-1])


class AcmStudent(LocalStudent):
    """Wraps a student that is the teacher's own architecture.

    Args:
        inner: changed in place.
        options: of the target.

    Attributes:
        adaptive: path of a replaced module -> the adaptive module, in the order in which they run.
        threshold: for what gates learn: the price of a mean learner, in the answer's divergence; or from which share of
            the distance on a further one helps too little.
        shifts, fixed: budget -> shift of the gates, or how sure an answer must be that leaves early; budget -> path ->
            learners.
        filled: budget -> path -> share of the positions that runs each learner, in bucketed form.
    """

    spends = (EXECUTED, DEVIATION, SPREAD)

    def __init__(self, inner: Student, options: AcmOptions) -> None:
        self.inner, self.options = inner, options
        self.module: nn.Module = inner.module
        self.family, self.facts = inner.family, inner.facts
        self.parts: list[Replaceable] = chosen(inner.replaceable(), options, f"this {inner.family}")
        self.adaptive = {part.path: self._replace(part) for part in self.parts}
        check_budgets(self.adaptive.values(), options)
        mean = sum(m.cost for m in self.adaptive.values()) / len(self.adaptive)
        for module in self.adaptive.values():
            module.gate.price = module.cost / mean
        self.threshold = 1.0
        early = {path: module for path, module in self.adaptive.items() if isinstance(module, ExitModule)}
        self.exits = Exits(early) if early else None
        self.shifts = {share: NEVER if early else 0.0 for share in self.shares()}
        self.fixed = {share: self._uniform(share) for share in self.shares()}
        self.filled = {share: self._rooms(self.fixed[share]) for share in self.shares()}
        self._spent = Spent(self.adaptive)
        self._settle()

    def _replace(self, part: Replaceable) -> AdaptiveModule:
        made = adaptive(self.module, part, self.options)
        parent, _, leaf = part.path.rpartition(".")
        setattr(self.module.get_submodule(parent), leaf, made)
        return made

    def _settle(self) -> None:
        """Let every module run as it does at the student's own budget."""
        share = self.options.budget
        for path, module in self.adaptive.items():
            fixed = self.ungated and self.exits is None
            module.point = Point(fixed=self.fixed[share][path]) if fixed else Point(shift=self.shifts[share])

    def shares(self) -> list[float]:
        """Return all budgets: those of the operating points, and its own."""
        return sorted({*self.options.budgets, self.options.budget})

    @property
    def ungated(self) -> bool:
        """Whether no gate chooses a number of learners."""
        return self.options.gates in ("fixed", "experts", "exits")

    def always(self) -> float:
        """Return what routers take at a fixed number of learners, as a share of all learners' multiply-adds."""
        modules = self.adaptive.values()
        return (
            sum(m.gate_cost for m in modules if m.gated) / sum(m.cost * m.learners for m in modules)
            if self.ungated
            else 0.0
        )

    def _uniform(self, share: float) -> dict[str, int]:
        """Return the same number of learners for every module, within a budget where one learner is."""
        return {path: max(1, int(share * m.learners + 1e-9)) for path, m in self.adaptive.items()}

    def _rooms(self, fixed: Mapping[str, int]) -> dict[str, tuple[float, ...]]:
        """Return the shares of positions at which all run as many learners."""
        return {path: tuple(float(n < k) for n in range(self.adaptive[path].learners)) for path, k in fixed.items()}

    def taps(self) -> Mapping[str, Tap]:
        """Return the model's own taps, and ``PATH.gate`` and ``PATH.choice`` of every adaptive module: what the gate
        gives, and one-hot choices [B, L, K]; ``effort`` [B, L] is the share of all learners' multiply-adds that
        ran at a position, and ``budget`` [B] what may run."""
        found = {**self.inner.taps(), **{t.name: t for path in self.adaptive for t in self._gate_taps(path)}}
        found[BUDGET] = Tap(BUDGET, "share", "B")
        return found if self.ungated else {**found, EFFORT: Tap(EFFORT, EFFORT, "BL")}

    def _gate_taps(self, path: str) -> Iterator[Tap]:
        module = self.adaptive[path]
        info = {
            "cost": module.cost,
            "least": module.least,
            "learners": module.learners,
            "gate": 0.0 if self.options.gates in ("fixed", "exits") else module.gate_cost,
            "budget": self.options.budget,
        }
        for leaf in (GATE, CHOICE):
            yield Tap(f"{path}.{leaf}", "logits", "BLK", {"K": module.learners + 1 - module.least}, info)

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        share = self.options.budget
        points: Points = {}
        if self.module.training and self.options.sampled_budgets and self.exits is None:
            share = self.shares()[int(torch.randint(len(self.shares()), ()))]
            points = self.at_budget(share)
        if BUDGET in wanted:
            sink(BUDGET, torch.full((len(batch),), share, device=batch.device))
        with self.at(points):
            self.run_counted(batch, {*wanted} - {BUDGET}, sink, self._spent)

    def run_counted(self, batch: Batch, wanted: Collection[str], sink: Sink, spent: Spent) -> None:
        """Run, and count the learners that run outside training in ``spent``."""
        if self.exits is not None:
            self._leave(batch, self.exits)
        if EFFORT in wanted:
            effort = Effort(self.adaptive, {*wanted} - {EFFORT}, sink)
            self.run_counted(batch, effort.wanted, effort, spent)
            sink(EFFORT, effort.value())
            return
        gates = {name for name in wanted if name.rpartition(".")[0] in self.adaptive}
        own, known = set(wanted) - gates, list(self.inner.taps())
        # Its last tap takes the model to its end, past every gate.
        asked = own | {known[-1]} if gates else own
        counts = not self.module.training and not torch.is_grad_enabled()
        for path, module in self.adaptive.items():
            module.watch = self._watch(path, gates, sink, spent if counts else None)
        try:
            self.inner.run(batch, asked, lambda name, value: sink(name, value) if name in own else None)
        finally:
            for module in self.adaptive.values():
                module.watch = None

    def _leave(self, batch: Batch, exits: Exits) -> None:
        """Choose where samples leave: by chance in training, else where they are sure enough."""
        if self.module.training:
            exits.draw(len(batch), batch.device)
            return
        with torch.no_grad():
            least = float(next(iter(self.adaptive.values())).point.shift)
            exits.leave(taken(self.sure(batch), least) if least < NEVER else None)

    def sure(self, batch: Batch) -> Tensor:
        """Return how sure the answer is at every exit but the last, see :meth:`Exits.sure`."""
        assert self.exits is not None
        return self.exits.sure(lambda: opened(self.inner.collect(batch, {LOGITS})[LOGITS]), len(batch), batch.device)

    def _watch(self, path: str, gates: Collection[str], sink: Sink, spent: Spent | None) -> Any:
        def watch(made: Tensor, choice: Tensor) -> None:
            if spent is not None:
                spent.add(path, choice, gated=self.adaptive[path].gated)
            for leaf, value in ((GATE, made), (CHOICE, choice)):
                if f"{path}.{leaf}" in gates:
                    sink(f"{path}.{leaf}", flat(value))

        return watch

    def spent(self) -> Mapping[str, float]:
        return self._spent.read()

    def work(self, sample: Mapping[str, Any]) -> float:
        return self.inner.work(sample)

    def constants(self) -> Mapping[str, Tensor]:
        return self.inner.constants()

    def packed(self, name: str, value: Any) -> Any:
        return self.inner.packed(name, value)

    def unpacked(self, name: str, stored: Tensor) -> Any:
        return self.inner.unpacked(name, stored)

    def traits(self) -> Mapping[str, str]:
        """Return what is replaced, and what the gates cost."""
        learners = sum(m.cost * m.learners for m in self.adaptive.values())
        gates = sum(m.gate_cost for m in self.adaptive.values())
        found = {
            "learners": f"{self.options.learners} in each of {len(self.adaptive)} modules ({', '.join(self._kinds)})"
        }
        if self.options.gates not in ("fixed", "exits"):
            found["gates"] = f"{100 * gates / learners:.1f} % of the learners' multiply-adds"
        return found

    @property
    def _kinds(self) -> list[str]:
        return sorted({part.kind for part in self.parts})

    def sites(self) -> Mapping[str, Site]:
        """Return ``PATH.learners`` and ``PATH.gate`` of every adaptive module: both read the input and the output of
        the teacher's module at its place, gates also how much the teacher's answer depends on that output."""
        learners = {f"{path}.{LEARNERS}": self._learners(path) for path in self.adaptive}
        return {**learners, **self.gates()}

    def gates(self) -> Mapping[str, Site]:
        """Return the sites of gates."""
        return {f"{path}.{GATE}": self._gate(path) for path in self.adaptive}

    def _learners(self, path: str) -> Site:
        module = self.adaptive[path]
        sizes = {"N": module.learners, "D": module.outputs}
        return Site(
            f"{path}.{LEARNERS}",
            {"in": f"{path}.in", "out": f"{path}.out"},
            {"prefixes": Tap(f"{path}.prefixes", "hidden", "BLND", sizes)},
            {"prefixes": f"{path}.out"},
            (f"{path}.into", f"{path}.out"),
        )

    def _gate(self, path: str) -> Site:
        gate, _ = self._gate_taps(path)
        read, taught = ["in", "out"], Tap(f"{path}.label", "label", "BL")
        if self._estimates:
            read, taught = [*read, SENSITIVITY], Tap(f"{path}.lost", "loss", "BLK", gate.shape)
        elif self.options.gates == "experts":
            taught = Tap(f"{path}.activity", "share", "BLK", gate.shape)
        return Site(f"{path}.{GATE}", {name: f"{path}.{name}" for name in read}, {GATE: gate, taught.leaf: taught})

    @property
    def _estimates(self) -> bool:
        return self.options.gates == "estimate"

    def run_site(self, site: str, inputs: Mapping[str, Any], wanted: Collection[str], batch: Batch) -> dict[str, Any]:
        path = site.rpartition(".")[0]
        module, values = self.adaptive[path], {}
        x_BLD: Tensor = inputs["in"].to(module.out.weight.dtype)
        if "prefixes" in wanted:
            values["prefixes"] = module.prefixes(x_BLD)
        if GATE in wanted:
            values[GATE] = module.gate(x_BLD)
        if not {"lost", "label", "activity"}.isdisjoint(wanted):
            with torch.no_grad():
                values |= self._taught(path, x_BLD, inputs)
        return values

    def _taught(self, path: str, x_BLD: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what a gate learns first, by the name of its tap."""
        module = self.adaptive[path]
        if isinstance(module, ExpertModule):
            return {"activity": module.activity(x_BLD)}
        distances = module.distances(module.prefixes(x_BLD), inputs["out"])
        if self._estimates:
            return {"lost": lost(distances, inputs[SENSITIVITY], self.threshold)}
        return {"label": stop(distances, self.threshold, self.options.label_offset)}

    def param_groups(self) -> Mapping[str, list[str]]:
        """Return ``gates``, ``learners``, ``trunk`` (everything that is the teacher's) and ``all`` that
        learn."""
        groups: dict[str, list[str]] = {"gates": [], "learners": [], "trunk": [], "all": []}
        for name, _ in self.module.named_parameters():
            path = next((p for p in self.adaptive if name.startswith(f"{p}.")), None)
            kind = "trunk" if path is None else "gates" if name.startswith(f"{path}.gate.") else "learners"
            groups[kind].append(name)
            if kind != "gates" or self.options.gates not in ("fixed", "random", "exits"):
                groups["all"].append(name)
        return groups

    def no_decay(self) -> Collection[str]:
        known = {name for name, _ in self.module.named_parameters()}
        return ({*super().no_decay(), *self.inner.no_decay()}) & known

    @property
    def couples_batch(self) -> bool:
        return self.inner.couples_batch

    def variants(self) -> Mapping[str, TapModel]:
        """Return an operating point of every kind at every budget of B per cent, e.g. ``gated-B``."""
        return {name: OperatingPoint(self, self.points(name)) for name in self.names()}

    def kinds(self) -> Sequence[str]:
        """Return the kinds of operating points: gates choose, the number is fixed, learners have room for a fixed share
        of the positions, which needs all positions of a sample at once; or answers leave early."""
        if self.ungated:
            return (STATIC,) if self.exits is None else (EXIT,)
        return (GATED, STATIC) if self.family in CAUSAL else (GATED, STATIC, BUCKETED)

    def names(self) -> Sequence[str]:
        """Return the names of all operating points; the last are controls, see :data:`SHUFFLED`."""
        kinds = [*self.kinds(), *([] if self.ungated else [SHUFFLED])]
        return [f"{kind}-{round(100 * share)}" for share in self.options.budgets for kind in kinds]

    def points(self, name: str) -> Points:
        """Return how every module is run at an operating point."""
        kind, _, percent = name.partition("-")
        share = next(b for b in self.options.budgets if str(round(100 * b)) == percent)
        if kind == STATIC:
            return {path: Point(fixed=k) for path, k in self.fixed[share].items()}
        shift = self.shifts[share]
        if kind == SHUFFLED:
            return dict.fromkeys(self.adaptive, Point(shift=shift, shuffled=True))
        if kind == BUCKETED:
            return {path: Point(shift=shift, filled=shares) for path, shares in self.filled[share].items()}
        return dict.fromkeys(self.adaptive, Point(shift=shift))

    def at_budget(self, share: float) -> Points:
        """Return how every module is run at a budget of the table: gates shifted, or as many learners as it says."""
        if not self.ungated:
            return dict.fromkeys(self.adaptive, Point(shift=self.shifts[share]))
        return {path: Point(fixed=k) for path, k in self.fixed[share].items()}

    @contextmanager
    def at(self, points: Points) -> Iterator[None]:
        """Run some modules as told until the end of the block."""
        before = {path: self.adaptive[path].point for path in points}
        try:
            for path, point in points.items():
                self.adaptive[path].point = point
            yield
        finally:
            for path, point in before.items():
                self.adaptive[path].point = point

    def decide(self, decisions: Mapping[str, Any]) -> None:
        """Apply ``threshold``, and ``tables``: for every budget the shift of gates and learners per module.

        Raises:
            PlanError: a table does not name every module.
            ValueError: the decision is unknown.
        """
        unknown = sorted(set(decisions) - {"threshold", "tables"})
        if unknown:
            raise ValueError(f"an acm student accepts decisions about threshold and tables only, got {unknown}")
        self.threshold = float(decisions.get("threshold", self.threshold))
        for row in decisions.get("tables", ()):
            share, fixed = float(row["budget"]), {str(path): int(k) for path, k in row["fixed"].items()}
            if set(fixed) != set(self.adaptive):
                raise PlanError(f"decision `tables`: budget {share} names {len(fixed)} modules of {len(self.adaptive)}")
            self.shifts[share], self.fixed[share] = float(row["shift"]), fixed
            filled = {str(path): tuple(map(float, shares)) for path, shares in row.get("filled", {}).items()}
            self.filled[share] = filled or self._rooms(fixed)
        self._settle()

    def shard_units(self) -> Sequence[nn.Module]:
        return list(self.inner.shard_units())


class OperatingPoint(TapModel):
    """The student at a budget; shares its weights.

    Args:
        student: the whole student. points: see :meth:`AcmStudent.points`.
    """

    spends = (EXECUTED, DEVIATION, SPREAD)

    def __init__(self, student: AcmStudent, points: Points) -> None:
        self.student, self.points = student, points
        self.module, self.family, self.facts = student.module, student.family, student.facts
        self._spent = Spent(student.adaptive)

    def taps(self) -> Mapping[str, Tap]:
        return self.student.inner.taps()

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        with self.student.at(self.points):
            self.student.run_counted(batch, wanted, sink, self._spent)

    def spent(self) -> Mapping[str, float]:
        return self._spent.read()

    def work(self, sample: Mapping[str, Any]) -> float:
        return self.student.work(sample)
