"""Layer numbers: placeholders in tap names, and pairing of student and teacher layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate

from xarch.errors import PlanError

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
LayerMap = str | Mapping[int, int] | None


def first_layer(name: str) -> int | None:
    """Return the first integer among the parts of a dotted name: ``blocks.3.output`` belongs to layer 3."""
    found = _NUMBER.search(name)
    return int(found[0]) if found else None


def place_of(name: str) -> str:
    """Return ``name`` as a pattern for the same place in any layer: ``blocks.{j}.output``."""
    return _NUMBER.sub("{j}", name, count=1)


@dataclass(frozen=True)
class Found:
    """A tap matched by a pattern, the layer matched by its placeholder, and the same place in any layer."""

    name: str
    layer: int | None
    place: str


def expand(pattern: str, names: Iterable[str]) -> list[Found]:
    """Return the names matched by a pattern with ``*``, ``{j}`` (or ``{i}``) and ``{last}``, in their order. ``{j}`` is
    the same number wherever it appears; ``{last}`` is the largest number with a match.
    """
    known = list(names)
    if "{last}" in pattern:
        deepest = [f.layer for f in expand(pattern.replace("{last}", "{j}"), known) if f.layer is not None]
        if not deepest:
            return []
        pattern = pattern.replace("{last}", str(max(deepest)))
    # fnmatch escapes braces, so substitute a plain word for the placeholder during translation.
    text = translate(pattern.replace("{j}", "LAYERNUMBER").replace("{i}", "LAYERNUMBER"))
    text = text.replace("LAYERNUMBER", r"(?P<layer>\d+)", 1).replace("LAYERNUMBER", "(?P=layer)")
    matched = [(name, m) for name in known if (m := re.match(text, name))]
    return [
        Found(name, int(m["layer"]), f"{name[: m.start('layer')]}{{j}}{name[m.end('layer') :]}")
        if "layer" in m.groupdict()
        else Found(name, first_layer(name), place_of(name))
        for name, m in matched
    ]


def layers_at(pattern: str, names: Iterable[str]) -> list[int]:
    """Return the layers in which a place exists, ascending."""
    return sorted({f.layer for f in expand(pattern, names) if f.layer is not None})


def pair_layers(
    how: LayerMap, own: Sequence[int], teacher: Sequence[int], target: Mapping[int, int], where: str
) -> dict[int, int]:
    """Return student layer -> the teacher layer it is matched with.

    Args:
        how: ``map`` of the match: even (of the deeper side only layers at even depths), last, target, ``{j: i}``, or
            None for the student's map.
        own, teacher: layers of each side that have the tap, ascending.
        target: the student's map; empty if it keeps depth and numbers.
        where: configuration key, for messages.

    Raises:
        PlanError: a layer does not exist, or depths differ and no map is given.
    """
    if how == "even":
        if not own or not teacher:
            raise PlanError(f"{where}.map: 'even' needs layers on both sides", _depths(own, teacher))
        count = min(len(own), len(teacher))
        chosen = dict(zip(_spread(own, count), _spread(teacher, count), strict=True))
    elif how == "last":
        if not own or len(own) > len(teacher):
            raise PlanError(
                f"{where}.map: 'last' needs at least as many teacher layers as student layers", _depths(own, teacher)
            )
        chosen = dict(zip(own, teacher[len(teacher) - len(own) :], strict=True))
    elif isinstance(how, Mapping):
        missing = sorted(set(how) - set(own))
        if missing:
            raise PlanError(f"{where}.map: the student has no layer {missing[0]} there", _depths(own, teacher))
        chosen = dict(how)
    elif target:
        chosen = {j: target[j] for j in own if j in target}
    elif len(own) != len(teacher):
        raise PlanError(
            f"{where}: the student has {len(own)} such layers, the teacher {len(teacher)}, and no map says which "
            "belong together",
            "give `map: even`, `map: last` or `map: {0: 1, 1: 3}`; or declare `layer_map` in the target",
        )
    else:
        chosen = {j: j for j in own}
    wrong = sorted(i for i in chosen.values() if i not in teacher)
    if wrong:
        raise PlanError(f"{where}.map: the teacher has no layer {wrong[0]} there", _depths(own, teacher))
    return chosen


def _spread(layers: Sequence[int], count: int) -> list[int]:
    """Return ``count`` layers at even depths, the last one included."""
    return [layers[(k + 1) * len(layers) // count - 1] for k in range(count)]


def _depths(own: Sequence[int], teacher: Sequence[int]) -> str:
    def said(layers: Sequence[int]) -> str:
        return f"{layers[0]} to {layers[-1]}" if layers else "none"

    return f"layers of the student: {said(own)}; of the teacher: {said(teacher)}"
