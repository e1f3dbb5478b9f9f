"""Right side of a match: resolves an address, which may depend on the student's layer, to references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xarch.config.schema import Match
from xarch.contracts.data import TensorInfo
from xarch.contracts.local import Site
from xarch.contracts.model import Student
from xarch.contracts.tap import Tap
from xarch.errors import PlanError, UsageError
from xarch.matching.layers import Found, expand, first_layer, layers_at, pair_layers
from xarch.matching.references import (
    ALL,
    BATCH,
    COPIES,
    MAIN,
    RANDOM,
    RESERVED,
    SAME,
    STUDENT,
    Address,
    MissingTap,
    Reference,
    find_tap,
    near,
    seen_tensors,
)


@dataclass(frozen=True)
class RightSide:
    """The values that a match at one site, or of a global stage, may refer to.

    Attributes:
        student, site: the student, and the site of a local stage.
        teachers: name -> taps; "" is the main teacher.
        tensors: tensors of a batch.
        match, where: the match and its configuration key.
    """

    student: Student
    site: Site | None
    teachers: Mapping[str, Mapping[str, Tap]]
    tensors: Mapping[str, TensorInfo]
    match: Match
    where: str

    def right(self, address: Address | None, taps: Sequence[Found]) -> dict[str, Reference] | None:
        """Return the right side of student taps (several only if joined), see ``Pair.right``.

        Returns:
            None if the map excludes their layers.

        Raises:
            UsageError, PlanError: see ``pair_stage``.
        """
        if address is None:
            return {}
        if address.model == ALL:
            return self._of_all(address, taps)
        if self.match.join and _follows(address):
            each = {f.name: self._resolve(address, f, "teacher") for f in taps}
            kept = {name: ref for name, ref in each.items() if ref is not None}
            if len(kept) != len(each):
                raise PlanError(f"{self.where}.map: excludes layers of joined taps", "name them in `map`")
            return kept
        if _is_pattern(address.name):
            return self._pattern(address)
        found = self._resolve(address, taps[0], "teacher")
        return None if found is None else {"": found}

    def single(self, address: Address | None, taps: Sequence[Found], argument: str) -> Reference:
        """Return the reference of a further value of the match.

        Raises:
            UsageError, PlanError: it is not exactly one value.
        """
        where = f"{self.where}.aux.{argument}"
        if address is None or address.model == ALL or _is_pattern(address.name):
            raise UsageError(f"{where}: an aux value is one tap or tensor", "write TAP, student:TAP or batch:KEY")
        if self.match.join and _follows(address):
            raise UsageError(f"{where}: joined taps have several layers, but an aux value only one", "name the tap")
        found = self._resolve(address, taps[0], f"aux.{argument}")
        if found is None:
            raise PlanError(f"{where}: the map excludes the layer of {taps[0].name}", "name it in `map`")
        return found

    def _of_all(self, address: Address, taps: Sequence[Found]) -> dict[str, Reference] | None:
        names = [name for name in self.teachers if name not in (MAIN, *RESERVED)]
        if not names:
            raise PlanError(
                f"{self.where}.teacher: '*:{address.name}' means all of `teachers:`, but there are none",
                "add some, e.g. teachers: {a: {ref: SCHEME:REF}}",
            )
        if self.match.join:
            raise PlanError(f"{self.where}: joined taps cannot be compared with several teachers", "set join: false")
        found = {n: self._resolve(Address(n, address.name), taps[0], "teacher") for n in names}
        return {name: ref for name, ref in found.items() if ref is not None} or None

    def _pattern(self, address: Address) -> dict[str, Reference]:
        if not self.match.join:
            raise PlanError(
                f"{self.where}.teacher: the pattern {address.name!r} may match several taps",
                "use {j} and {i} to pair layers, or `join: true` for an objective that takes several",
            )
        taps = self._taps(address, "teacher")
        found = expand(address.name, taps)
        if not found:
            raise MissingTap(
                f"{self.where}.teacher: no tap matches {address.name!r}", near(address.name, taps, "taps near it")
            )
        return {f.name: Reference(address.model, f.name, taps[f.name]) for f in found}

    def _resolve(self, address: Address, tap: Found, key: str) -> Reference | None:
        """Resolve one reference; None if the map excludes the tap's layer."""
        where = f"{self.where}.{key}"
        if address.model == BATCH:
            return self._tensor(address.name, where)
        taps = self._taps(address, key)
        if address.model in (STUDENT, *COPIES):
            return self._of_student(address, tap, taps, where)
        name = self._counterpart(address, tap, taps) if address.same else self._named(address.name, tap, taps)
        whose = f"teacher {address.model!r}" if address.model else "the teacher"
        return None if name is None else Reference(address.model, name, find_tap(taps, name, whose, where))

    def _taps(self, address: Address, key: str) -> Mapping[str, Tap]:
        model = address.model
        if model == STUDENT:
            return self.student.taps() if self.site is None else self.site.taps
        if model in COPIES:
            if self.site is not None:
                raise PlanError(
                    f"{self.where}.{key}: {model!r} is a whole model, but a local stage runs single sites",
                    "set scope: global, or use student:TAP of the same site",
                )
            return self.student.taps()
        source = MAIN if model == RANDOM else model
        if source not in self.teachers:
            text = f"{model}:{address.name}" if model else address.name
            raise PlanError(
                f"{self.where}.{key}: {text!r} is a teacher tap, but this run has no teacher (`teacher: none`)",
                "compare with batch:KEY, student:TAP, ema:TAP or null, or set a teacher",
            )
        return self.teachers[source]

    def _tensor(self, key: str, where: str) -> Reference:
        seen = seen_tensors(self.tensors)
        if key not in seen:
            other = f"; the student does not see {key!r}" if key in self.tensors else ""
            raise PlanError(
                f"{where}: batches have no tensor {key!r}{other}",
                near(key, seen, "tensors of the data and of the stage's batch steps"),
            )
        info = seen[key]
        return Reference(BATCH, key, Tap(key, "data", info.layout, dict(info.shape)))

    def _of_student(self, address: Address, tap: Found, taps: Mapping[str, Tap], where: str) -> Reference:
        name = tap.name if address.name == SAME else address.name
        if "{i}" in name:
            raise UsageError(f"{where}: {{i}} denotes a teacher layer, but {address.model}: is the student", "use {j}")
        name = self._last(self._with_layer(name, tap, where), taps)
        whose = "the student" if self.site is None else f"site {self.site.name}"
        return Reference(address.model, name, find_tap(taps, name, whose, where))

    def _counterpart(self, address: Address, tap: Found, taps: Mapping[str, Tap]) -> str | None:
        """Return the teacher tap that ``same`` refers to."""
        if self.site is not None:
            self._no_map()
            return self.site.counterpart(tap.name)
        main = address.model in (MAIN, RANDOM)
        if main and self.match.map in (None, "target"):
            known = self.student.counterparts().get(tap.name)
            if known is not None:
                return known
        if tap.layer is None or not (layers := layers_at(tap.place, taps)):
            return tap.name
        own = layers_at(tap.place, self.student.taps())
        target = self.student.layer_map() if main else {}
        layer = pair_layers(self.match.map, own, layers, target, self.where).get(tap.layer)
        return None if layer is None else tap.place.replace("{j}", str(layer))

    def _named(self, name: str, tap: Found, taps: Mapping[str, Tap]) -> str | None:
        """Return the full name of a teacher tap from one that may have placeholders or be local to the site."""
        if "{i}" in name:
            layer = self._teacher_layer(name, tap, taps)
            if layer is None:
                return None
            name = name.replace("{i}", str(layer))
        elif self.site is not None:
            self._no_map()
        name = self._last(self._with_layer(name, tap, self.where), taps)
        return name if self.site is None or name in taps else self.site.counterpart(name)

    def _teacher_layer(self, name: str, tap: Found, taps: Mapping[str, Tap]) -> int | None:
        if self.site is not None:
            self._no_map()
            return first_layer(self.site.place)
        if tap.layer is None:
            raise UsageError(
                f"{self.where}.teacher: {{i}} depends on the student's layer, but {tap.name!r} has none",
                "use {j} in the student tap names",
            )
        layers = layers_at(name.replace("{j}", str(tap.layer)), taps)
        own = layers_at(tap.place, self.student.taps())
        return pair_layers(self.match.map, own, layers, self.student.layer_map(), self.where).get(tap.layer)

    def _with_layer(self, name: str, tap: Found, where: str) -> str:
        if "{j}" not in name:
            return name
        layer = tap.layer if self.site is None else first_layer(self.site.name)
        if layer is None:
            raise UsageError(f"{where}: {{j}} denotes the student's layer, but {tap.name!r} has none", "name the tap")
        return name.replace("{j}", str(layer))

    def _last(self, name: str, taps: Mapping[str, Tap]) -> str:
        if "{last}" not in name:
            return name
        found = expand(name, taps)
        return found[0].name if found else name

    def _no_map(self) -> None:
        if self.match.map not in (None, "target"):
            raise UsageError(
                f"{self.where}.map: in a local stage the student's sites determine the teacher layers",
                "remove `map`, or set scope: global",
            )


def _follows(address: Address) -> bool:
    """Return whether the address depends on the student tap."""
    return address.name == SAME or "{i}" in address.name or "{j}" in address.name


def _is_pattern(name: str) -> bool:
    return any(letter in name for letter in "*?[")
