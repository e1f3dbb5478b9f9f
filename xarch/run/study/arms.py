"""The runs of a study: every arm with every seed, each with a configuration file that can be run manually."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xarch.config.delivery import Evaluate
from xarch.config.load import load_config
from xarch.config.provenance import leaves
from xarch.config.schema import RunConfig
from xarch.config.study import StudyConfig, read_yaml
from xarch.config.yaml_text import dump_yaml, parse_yaml
from xarch.errors import UsageError
from xarch.files.atomic import write_text

SEED = "{seed}"


@dataclass(frozen=True)
class StudyArm:
    """An arm after expanding the axes.

    Attributes:
        name: e.g. "kd" or "kd,lr=0.001".
        sets: dotted configuration key -> value.
        control: name of the arm that it is compared with; "" for the control itself or without a control.
        base, point: names of the arm before expansion and of its place on the axes.
    """

    name: str
    sets: Mapping[str, Any]
    control: str
    base: str = ""
    point: str = ""


@dataclass(frozen=True)
class StudyRun:
    """One conversion of a study.

    Attributes:
        arm, seed: its arm and seed.
        config: its configuration file.
        folder: its run folder.
        digest: identity of its resolved configuration.
    """

    arm: str
    seed: int
    config: Path
    folder: Path
    digest: str

    @property
    def name(self) -> str:
        """ "ARM seed N", for display."""
        return f"{self.arm} seed {self.seed}"

    @property
    def log(self) -> Path:
        """Log file of its process."""
        return Path(f"{self.folder}.log")

    @property
    def mark(self) -> Path:
        """File with the study's own facts about it."""
        return Path(f"{self.folder}.json")


def arms_of(study: StudyConfig) -> list[StudyArm]:
    """Expand arms × axes, in file order.

    Raises:
        UsageError: the control is not among them, or two arms get the same name.
    """
    named = {name: arm.set for name, arm in study.arms.items()} or {"": {}}
    points = [_point(at) for at in itertools.product(*(_values(key, given) for key, given in study.axes.items()))]
    found = {(arm, at): ",".join(filter(None, (arm, points[at][0]))) for arm in named for at in range(len(points))}
    names = list(found.values())
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UsageError(f"two arms are named {twice!r}: their axes end in the same key and value", "use `arms`")
    control = study.control
    if control is not None and control not in names and control not in study.arms:
        raise UsageError(f"control: no arm {control!r}", f"available arms: {', '.join(names)}")
    made = []
    for (arm, at), name in found.items():
        label, sets = points[at]
        rival = "" if control is None else control if control in names else found[control, at]
        made.append(StudyArm(name, {**named[arm], **sets}, "" if rival == name else rival, arm, label))
    return made


def _values(key: str, given: list[Any] | Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (name, settings) of every value of an axis."""
    if isinstance(given, Mapping):
        return [(name, arm.set) for name, arm in given.items()]
    return [(_name(key, value), {key: value}) for value in given]


def _point(values: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[str, dict[str, Any]]:
    names: list[str] = []
    sets: dict[str, Any] = {}
    for name, chosen in values:
        names.append(name)
        sets.update(chosen)
    return ",".join(names), sets


def _name(key: str, value: Any) -> str:
    plain = isinstance(value, str | int | float) or value is None
    shown = str(value) if plain else hashlib.sha256(json.dumps(value).encode()).hexdigest()[:6]
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", f"{key.rsplit('.', 1)[-1]}={shown}")


def runs_of(study: StudyConfig, arms: list[StudyArm], base_folder: Path, out: Path) -> list[StudyRun]:
    """Return all runs, seed by seed so that an early table already compares arms, and write their configuration files.

    Raises:
        UsageError: a configuration is invalid, or two arms are evaluated on different samples; names the arm.
    """
    base = _base(study, base_folder)
    first: tuple[str, Evaluate] | None = None
    (out / "configs").mkdir(parents=True, exist_ok=True)
    made = []
    for seed, arm in itertools.product(study.seeds, arms):
        tree: dict[str, Any] = {"runtime": {"cache": "shared", "threads": study.threads}}
        for path, value in _assignments(base, arm.sets):
            _assign(tree, path, value)
        tree = _seeded(tree, seed)
        for key in ("seed", *study.seeded):
            _assign(tree, tuple(key.split(".")), seed)
        config = out / "configs" / f"{arm.name}.seed-{seed}.yaml"
        text = dump_yaml(tree)
        if not config.is_file() or config.read_text(encoding="utf-8") != text:
            write_text(config, text)
        try:
            resolved = load_config(str(config)).config
        except UsageError as e:
            raise UsageError(f"arm {arm.name!r}: {e.what}", e.hint) from e
        first = first or (arm.name, resolved.evaluate)
        _require_same_samples(arm.name, resolved.evaluate, *first)
        made.append(StudyRun(arm.name, seed, config, out / "runs" / arm.name / f"seed-{seed}", _digest(resolved)))
    return made


def _require_same_samples(arm: str, own: Evaluate, first: str, others: Evaluate) -> None:
    """Recipes have evaluations of their own, and a difference of figures needs the same samples on both sides."""
    for key in ("samples", "sample"):
        here, there = getattr(own, key), getattr(others, key)
        if here != there:
            raise UsageError(
                f"arm {arm!r}: evaluate.{key} is {here}, but {there} in arm {first!r}; figures of different held-out "
                "samples cannot be compared",
                f"set evaluate.{key} in `base`, for all arms",
            )


def _seeded(value: Any, seed: int) -> Any:
    """Return a value with the seed in place of ``{seed}`` in its texts, e.g. a teacher that was made with each seed."""
    if isinstance(value, Mapping):
        return {key: _seeded(inner, seed) for key, inner in value.items()}
    if isinstance(value, list):
        return [_seeded(inner, seed) for inner in value]
    return value.replace(SEED, str(seed)) if isinstance(value, str) else value


def _assignments(base: Mapping[str, Any], sets: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for path, value in leaves(base):
        yield tuple(str(p) for p in path), value
    for key, value in sets.items():
        prefix = tuple(key.split("."))
        for below, leaf in leaves(value) if isinstance(value, Mapping) and value else [((), value)]:
            yield (*prefix, *(str(p) for p in below)), leaf


def _assign(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a nested value. Null is kept, since it may remove an entry of the recipe."""
    node: Any = tree
    for key in path[:-1]:
        if isinstance(node, list):
            node = node[_index(node, key, path)]
            continue
        if not isinstance(node.get(key), dict | list):
            node[key] = {}
        node = node[key]
    if isinstance(node, list):
        node[_index(node, path[-1], path)] = copy.deepcopy(value)
    elif not (value == {} and isinstance(node.get(path[-1]), dict)):
        node[path[-1]] = copy.deepcopy(value)


def _index(node: list[Any], key: str, path: tuple[str, ...]) -> int:
    if key in map(str, range(len(node))):
        return int(key)
    raise UsageError(f"{'.'.join(path)}: the list has {len(node)} entries, numbered from 0")


def _base(study: StudyConfig, folder: Path) -> dict[str, Any]:
    if isinstance(study.base, dict):
        return study.base
    beside = folder / study.base
    path = beside if beside.is_file() else Path(study.base)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        data = parse_yaml(read_yaml(path), path.name).data
        if not isinstance(data, dict):
            raise UsageError(f"{path}: the top level must be a mapping, not {type(data).__name__}")
        return data
    return {"recipe": study.base}


def _digest(config: RunConfig) -> str:
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
