"""Loads a configuration: recipe < file < environment < command line, with the origin of every value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from xarch.config.explain import unknown_key, validation_error
from xarch.config.overrides import environment_layer, flags_layer, sets_layer
from xarch.config.packaged import layer_of, method_of, packaged_layers, packaged_text, target_option, without_head
from xarch.config.provenance import Assignment, Layer, Merged, deep_leaves, dotted, leaves
from xarch.config.schema import RunConfig
from xarch.config.shapes import is_at
from xarch.config.yaml_text import MAX_BYTES, parse_yaml
from xarch.errors import UsageError

SUFFIXES = (".yaml", ".yml")
LENGTHS = ("share", "units", "epochs", "until")
"""Keys of a stage that say how long it lasts."""
PARTS = (("stages", "*", "matches", "*"), ("stages", "*", "validation"), ("stages", "*", "ema"), ("evaluate", "curve"))
"""Parts that not every run has; their settings do not make them."""
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([kKMG])\Z")
_FACTOR = {"k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration with the origin of its values.

    Attributes:
        config: validated.
        provenance: dotted key of every leaf -> origin ("run.yaml:14", "recipe X:3", "env XARCH_SEED", "default", ...).
        name: short name for the run folder.
        layers: the user's layers without recipes, lowest first.
    """

    config: RunConfig
    provenance: dict[str, str]
    name: str
    layers: tuple[Layer, ...] = field(default=(), repr=False)

    @property
    def needs_recipe(self) -> bool:
        """Whether to use the target's default recipe: no recipe is named and no stage is self-contained."""
        return self.config.recipe is None and not self.config.stages

    def with_recipe(self, name: str) -> LoadedConfig:
        """Return the user's values on top of the recipe ``name``.

        Raises:
            UsageError: the recipe does not exist, or a user's key matches nothing in it.
        """
        return _resolve(self.layers, self.name, name)

    def with_settings(
        self, settings: Mapping[str, Any], origin: str, evaluation: Mapping[str, Any] | None = None
    ) -> LoadedConfig:
        """Return the configuration with settings for what the stages of its method, if it has one, and its evaluation
        leave open.

        Args:
            settings: dotted key below a stage -> value.
            origin: shown as their origin.
            evaluation: dotted key below ``evaluate`` -> value.
        """
        recipe = self.config.recipe
        stages = settings if recipe is not None and method_of(recipe) is not None else {}
        if not self.layers or not (stages or evaluation):
            return self

        def complete(merged: Merged) -> None:
            _fill(merged, stages, origin)
            _fill_below(merged, ("evaluate",), evaluation or {}, origin)

        return _resolve(self.layers, self.name, recipe, complete)


def load_config(
    config: str | Mapping[str, Any] | None = None,
    *,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> LoadedConfig:
    """Resolve a configuration.

    Args:
        config: path of a YAML file, name of a packaged recipe or method, its content as plain data, or None when flags
            say everything.
        sets: ``a.b=c`` items, parsed as YAML and then converted by the schema.
        overrides: dotted key -> value of options with their own flag; None values are ignored.

    Raises:
        UsageError: a file, key or value is invalid; says which and where, with a suggestion.
    """
    base = _config_layer(config)
    layers = (*base, environment_layer(), flags_layer(overrides or {}), sets_layer(sets))
    return _resolve(layers, _file_name(config))


def _config_layer(config: str | Mapping[str, Any] | None) -> tuple[Layer, ...]:
    if config is None:
        return ()
    if isinstance(config, Mapping):
        given = tuple(Assignment(path, value, "given") for path, value in leaves(config))
        return (without_head(Layer("given", given)),)
    path = FilePath(config)
    if path.is_file() or path.suffix in SUFFIXES or len(path.parts) > 1:
        return (layer_of(path.name, parse_yaml(_read(path), path.name)),)
    packaged_text(config)
    return (Layer("command line", (Assignment(("recipe",), config, "command line"),)),)


def _read(path: FilePath) -> str:
    try:
        with open(path, "rb") as f:
            content = f.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES} bytes: it is not a configuration")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        folder = path.parent
        others = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, others, n=1)
        raise UsageError(f"{path} does not exist" + (f"; did you mean {folder / near[0]}?" if near else "")) from None
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e


def _resolve(
    layers: tuple[Layer, ...],
    name: str,
    default_recipe: str | None = None,
    complete: Callable[[Merged], None] = lambda merged: None,
) -> LoadedConfig:
    chosen = next((a for layer in reversed(layers) if (a := layer.get(("recipe",))) is not None), None)
    recipe = chosen.value if chosen is not None else default_recipe
    merged = Merged()
    if recipe:
        for layer in packaged_layers(str(recipe)):
            merged.apply(layer)
        merged.assign(Assignment(("recipe",), recipe, "default of the target"))
    stages_of_recipe = _stages(merged)
    alone: set[str] = set()
    for layer in layers:
        merged.apply(layer)
        # What a later layer takes away or misspells leaves a file's stage a stage of its own.
        alone |= {key for key in _stages(merged) if _stands_alone(merged, key)}
    whole = [key for key in _stages(merged) if key in stages_of_recipe or key in alone]
    if recipe or whole:
        _check_stages(merged, stages_of_recipe, whole)
        _check_matches(merged)
    elif _stages(merged):
        merged.tree["stages"] = {}
    complete(merged)
    _expand_amounts(merged)
    _expand_target(merged)
    config = _validated(merged)
    paths = (path for path, _ in deep_leaves(config.model_dump(mode="json")))
    return LoadedConfig(config, {dotted(path): merged.origin(path) for path in paths}, name or _name(config), layers)


def _fill(merged: Merged, settings: Mapping[str, Any], origin: str) -> None:
    """Give global gradient stages the settings that nothing else gives them; of those that say how long a stage lasts,
    only where none does."""
    for key in _stages(merged):
        stage = merged.tree["stages"][key]
        if stage.get("scope") != "global" or stage.get("kind", "gradient") != "gradient":
            continue
        lasts = any(stage.get(name) is not None for name in LENGTHS)
        other = _is_of_another_algorithm(stage, settings)
        wanted = {
            name: value
            for name, value in settings.items()
            if not (lasts and name in LENGTHS) and not (other and name.startswith("optimiser.options."))
        }
        _fill_below(merged, ("stages", key), wanted, origin)


def _fill_below(merged: Merged, section: tuple[str, ...], settings: Mapping[str, Any], origin: str) -> None:
    """Assign the settings of a section that nothing else gives; those of a part that is not there do not make it."""
    for name, value in settings.items():
        path = (*section, *name.split("."))
        fits = all(merged.has(path[: len(part)]) for part in PARTS if is_at(path[: len(part)], part))
        if fits and not _is_given(merged, path):
            merged.assign(Assignment(path, value, origin))


def _is_of_another_algorithm(stage: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether a stage chose another optimiser than the one that the settings' options are for."""
    optimiser = stage.get("optimiser")
    chosen = optimiser.get("algorithm") if isinstance(optimiser, dict) else None
    return chosen is not None and chosen != settings.get("optimiser.algorithm")


def _is_given(merged: Merged, path: tuple[str, ...]) -> bool:
    """Return whether a value is given, or a short form or the removal (null) of the section it belongs to."""
    node: Any = merged.tree
    for key in path:
        if not isinstance(node, dict):
            return True
        if key not in node:
            return False
        node = node[key]
    return node is not None


def _stages(merged: Merged) -> list[str]:
    stages = merged.tree.get("stages")
    return list(stages) if isinstance(stages, dict) else []


def _stands_alone(merged: Merged, key: str) -> bool:
    """Return whether a stage is self-contained, rather than changing a stage of a recipe."""
    stage = merged.tree["stages"][key]
    if not isinstance(stage, dict) or "kind" in stage:
        return True
    matches = stage.get("matches")
    given = list(matches.values()) if isinstance(matches, dict) else []
    whole = all(isinstance(m, dict) and {"student", "objective"} <= m.keys() for m in given)
    return bool(given) and whole and "trains" in stage


def _check_stages(merged: Merged, known: Sequence[str], whole: Sequence[str]) -> None:
    """Reject misspelt stages: those that are neither in the recipe nor self-contained."""
    wrong = [key for key in _stages(merged) if key not in whole]
    if wrong:
        lines = [unknown_key(("stages", key), [*known, *whole], merged.origin(("stages", key))) for key in wrong]
        raise UsageError("\n".join(lines), "a new stage needs `matches` and `trains`, or a `kind` other than gradient")


def _check_matches(merged: Merged) -> None:
    """Reject misspelt matches: those that are neither in the recipe nor say what they compare."""
    lines = []
    for key in _stages(merged):
        stage = merged.tree["stages"][key]
        matches = stage.get("matches") if isinstance(stage, dict) else None
        given = matches if isinstance(matches, dict) else {}
        wrong = [n for n, m in given.items() if isinstance(m, dict) and not m.keys() & {"student", "objective"}]
        known = [name for name in given if name not in wrong]
        paths = [("stages", key, "matches", name) for name in wrong]
        lines += [unknown_key(path, known, merged.origin(path)) for path in paths]
    if lines:
        raise UsageError("\n".join(lines), "a new match needs `student` and `objective`")


def _expand_amounts(merged: Merged) -> None:
    """Expand ``2M`` and ``500k`` where the schema expects units."""
    paths = [("budget",), *(("stages", key, "units") for key in _stages(merged))]
    for path in paths:
        parent: Any = merged.tree
        for key in path[:-1]:
            parent = parent[key]
        value = parent.get(path[-1]) if isinstance(parent, dict) else None
        amount = _AMOUNT.match(value) if isinstance(value, str) else None
        if amount:
            parent[path[-1]] = round(min(float(amount[1]), 1e15) * _FACTOR[amount[2].replace("K", "k")])


def _expand_target(merged: Merged) -> None:
    """Expand ``target: NAME:REST`` of a target that stands for many models: REST is the option that it declares."""
    student = merged.tree.get("student")
    target = student.get("target") if isinstance(student, dict) else None
    name, colon, rest = target.partition(":") if isinstance(target, str) else ("", "", "")
    option = target_option(name, rest) if colon and rest else None
    if option is None:
        return
    origin = merged.origin(("student", "target"))
    merged.assign(Assignment(("student", "target"), name, origin))
    merged.assign(Assignment(("student", "options", option), rest, origin))


def _validated(merged: Merged) -> RunConfig:
    try:
        return RunConfig.model_validate(merged.tree)
    except ValidationError as first:
        if not _restore_text(first, merged):
            raise validation_error(first, merged) from None
    try:
        return RunConfig.model_validate(merged.tree)
    except ValidationError as second:
        raise validation_error(second, merged) from None


def _restore_text(error: ValidationError, merged: Merged) -> bool:
    """Restore the user's text where the schema expects text: ``--set data.ref=1`` is the text "1"."""
    changed = False
    for item in error.errors(include_url=False):
        path = tuple(item["loc"])
        if item["type"] in ("string_type", "literal_error") and path in merged.texts and merged.has(path):
            parent: Any = merged.tree
            for key in path[:-1]:
                parent = parent[key]
            changed = changed or parent[path[-1]] != merged.texts[path]
            parent[path[-1]] = merged.texts[path]
    return changed


def _file_name(config: str | Mapping[str, Any] | None) -> str:
    if config is None or isinstance(config, Mapping):
        return ""
    path = FilePath(config)
    generic = path.stem in ("run", "config") and path.suffix in SUFFIXES
    return (path.resolve().parent.name if generic else path.stem) or "run"


def _name(config: RunConfig) -> str:
    """Return TEACHER-to-STUDENT in words that suit a folder's name."""
    target = config.student.target
    option = target_option(target, "") if target else None
    model = str(config.student.options.get(option) or "") if option else ""
    teacher, student = (_word(text) for text in (config.teacher, model or target or ""))
    return f"{teacher or 'teacher'}-to-{student}" if student else teacher or "teacher"


def _word(reference: str) -> str:
    """Return the last part of a reference's path, without its arguments."""
    return re.split(r"[:/\\]", reference.partition("?")[0].rstrip("/"))[-1]
