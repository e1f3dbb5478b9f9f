"""Loads plugins one by one, so that a broken plugin does not affect the others."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from xarch.errors import PluginError, UsageError
from xarch.failures import is_out_of_memory
from xarch.files.atomic import write_json
from xarch.files.bounded_json import read_json
from xarch.files.home import config_dir
from xarch.registry import hooks as hookspecs
from xarch.registry.blame import last_line
from xarch.registry.declare import API_VERSION, Declarations, Spec
from xarch.registry.discover import CORE, OWN_DISTRIBUTION, Candidate, discover, files_from_environment
from xarch.registry.registry import Registry
from xarch.registry.watch import watched

STATES = ("ok", "disabled", "incompatible", "missing-extra", "failed", "conflict", "unknown-family")


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One row of ``xarch plugins list``.

    Attributes:
        name: entry-point name, or ``DISTRIBUTION/NAME`` where two distributions use the same one.
        origin: where it was found: ``module`` of an entry point, or the path of a plugin file.
        distribution, version: who ships it; empty for a plugin file.
        state: one of :data:`STATES`.
        detail: reason for the state: the last traceback line, the missing extra, or the other owner.
        hooks: hooks it implements.
        declared: number of its declarations.
        load_ms: time to import and register it, in milliseconds.
        output: what it printed while it was imported.
        heavy: heavy libraries it imported while it was registered; there should be none.
        traceback: full text of the failure, or "".
    """

    name: str
    origin: str
    distribution: str = ""
    version: str = ""
    state: str = "ok"
    detail: str = ""
    hooks: tuple[str, ...] = ()
    declared: int = 0
    load_ms: float = 0.0
    output: str = ""
    heavy: tuple[str, ...] = ()
    traceback: str = ""

    @property
    def loaded(self) -> bool:
        """Whether its hooks and declarations are in use."""
        return bool(self.hooks) and self.state in ("ok", "missing-extra", "conflict", "unknown-family")

    @property
    def owner(self) -> str:
        """Its name in errors: plugin, distribution and version."""
        ships = f"{self.distribution} {self.version}".strip() or self.origin
        return f"plugin {self.name!r} ({ships})"


EVERYTHING = frozenset({"all", "*"})


def state_file() -> Path:
    """Return the file with the list of disabled plugins."""
    return config_dir() / "plugins.json"


def stored_disabled() -> list[str]:
    """Return the names in the user's list, sorted.

    Raises:
        UsageError: the file is not in the format that xarch writes.
    """
    path = state_file()
    if not path.is_file():
        return []
    data = read_json(path)
    names = data.get("disabled") if isinstance(data, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise UsageError(f'{path} should hold {{"disabled": [NAME, ...]}}', f"delete {path}")
    return sorted(set(names))


def environment_disabled() -> list[str]:
    """Names in XARCH_DISABLE_PLUGINS (comma-separated; ``all`` leaves only the core)."""
    return [name.strip() for name in os.environ.get("XARCH_DISABLE_PLUGINS", "").split(",") if name.strip()]


def disable(name: str) -> None:
    """Add ``name`` to the user's list.

    Raises:
        UsageError: the core cannot be disabled.
    """
    if name == CORE:
        raise UsageError("the core plugin cannot be disabled: the engine's own stages and objectives live there")
    _write({*stored_disabled(), name})


def enable(name: str) -> None:
    """Remove ``name`` from the user's list."""
    _write(set(stored_disabled()) - {name})


def _write(names: set[str]) -> None:
    path = state_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"disabled": sorted(names)})
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror}", "set XARCH_HOME to a folder you may write") from e


HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "timm", "tensorflow", "jax", "scipy", "pandas")
PREFIX = "xarch_"


@functools.cache
def get_registry() -> Registry:
    """Return the registry of this process. ``get_registry.cache_clear()`` makes the next call load everything again."""
    return load_registry(files_from_environment())


def load_registry(files: Sequence[str] = (), *, only: str | None = None) -> Registry:
    """Load every plugin that is installed and not disabled, then the plugin ``files``.

    With ``only``, load only the core and the plugin with that name, even if it is disabled.

    Raises:
        PluginError: a plugin file fails, or any plugin does while XARCH_STRICT_PLUGINS=1.
        UsageError: a plugin file does not exist.
    """
    manager = Manager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    disabled = {*stored_disabled(), *environment_disabled()} if only is None else set()
    strict = os.environ.get("XARCH_STRICT_PLUGINS", "") not in ("", "0")
    infos: list[PluginInfo] = []
    specs: list[Spec] = []
    for candidate in discover(files):
        if only is not None and candidate.name not in (CORE, only):
            continue
        outcome = _attempt(manager, candidate, disabled)
        by_hand = candidate.entry_point is None
        if outcome.info.state in ("failed", "incompatible") and (strict or by_hand or candidate.name == CORE):
            info = outcome.info
            raise PluginError(f"{info.owner} is {info.state}: {info.detail}", _STRICT_HINT) from outcome.error
        infos.append(outcome.info)
        specs += outcome.specs
    registry = Registry(manager, infos, specs)
    infos = [_with_state(registry, info) for info in infos]
    for info in infos:
        if not info.loaded and manager.has_plugin(info.name):
            manager.unregister(name=info.name)
    return Registry(manager, infos, specs)


_STRICT_HINT = "`-v` shows the plugin's traceback"


class Manager(pluggy.PluginManager):
    """Plugin manager that inspects ``xarch_*`` names only, so that registering a module never triggers its lazy
    attributes."""

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if name.startswith(PREFIX) else None


@dataclass
class _Outcome:
    info: PluginInfo
    specs: list[Spec]
    error: BaseException | None = None


def _attempt(manager: Manager, candidate: Candidate, disabled: set[str]) -> _Outcome:
    """Load one plugin and record any failure in its info. KeyboardInterrupt and a shortage of memory propagate."""
    c = candidate
    info = PluginInfo(c.name, c.origin, c.distribution, c.version)
    by_hand = c.entry_point is None
    if c.name != CORE and not by_hand and disabled & {c.name, c.distribution, *EVERYTHING}:
        return _Outcome(replace(info, state="disabled", detail=f"xarch plugins enable {c.name}"), [])
    printed, heavy_before, start = io.StringIO(), _heavy(), time.perf_counter()
    registration = Declarations(c.name)
    try:
        mismatch = _incompatible(c)
        if mismatch:
            return _Outcome(replace(info, state="incompatible", detail=mismatch), [])
        with watched(info.owner, c.name), contextlib.redirect_stdout(printed):
            module = _import(c)
            hooks = _register(manager, c.name, module, registration)
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        if is_out_of_memory(e):
            raise
        if manager.has_plugin(c.name):
            manager.unregister(name=c.name)
        text = "".join(traceback.format_exception(type(e), e, e.__traceback__))
        state, detail = "failed", last_line(e)
        if isinstance(e, ModuleNotFoundError) and c.extras:
            state, detail = "missing-extra", f"{e}: pip install '{c.distribution}[{','.join(c.extras)}]'"
        failed = replace(info, state=state, detail=detail, traceback=text, output=printed.getvalue())
        return _Outcome(failed, [], e)
    info = replace(
        info,
        hooks=hooks,
        declared=len(registration.specs),
        load_ms=1000 * (time.perf_counter() - start),
        output=printed.getvalue(),
        heavy=tuple(sorted(_heavy() - heavy_before)),
    )
    return _Outcome(info, registration.specs)


def _heavy() -> set[str]:
    return {name for name in HEAVY if name in sys.modules}


def _incompatible(c: Candidate) -> str:
    """Return why the distribution's requirements exclude this xarch version, or ""."""
    from xarch._version import __version__

    if c.distribution == OWN_DISTRIBUTION:
        return ""
    for line in c.requires:
        if not line.lower().startswith("xarch"):
            continue
        from packaging.requirements import Requirement

        need = Requirement(line)
        applies = need.marker is None or need.marker.evaluate({"extra": ""})
        if need.name.lower() == "xarch" and applies and not need.specifier.contains(__version__, prereleases=True):
            return f"requires xarch {need.specifier}, this is {__version__}"
    return ""


def _import(c: Candidate) -> Any:
    if c.entry_point is not None:
        return c.entry_point.load()
    name = f"xarch_plugin_file_{c.name}"
    spec = importlib.util.spec_from_file_location(name, c.origin)
    if spec is None or spec.loader is None:
        raise ImportError(f"{c.origin} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _register(manager: Manager, name: str, module: Any, registration: Declarations) -> tuple[str, ...]:
    """Add a plugin's hooks and run its ``xarch_register``; returns the names of its hooks.

    Raises:
        ValueError: it has no hooks, or one that does not exist.
        pluggy.PluginValidationError: a hook has an argument that its specification lacks.
    """
    manager.register(module, name)
    callers = manager.get_hookcallers(module) or []
    unknown = [c.name for c in callers if not c.has_spec()]
    if unknown:
        raise ValueError(f"unknown hooks {', '.join(unknown)}; the hooks are {', '.join(_hook_names(hookspecs))}")
    if not callers:
        unmarked = [n for n in dir(module) if n in _hook_names(hookspecs)]
        why = f"{unmarked[0]} is not marked with @xarch.hookimpl" if unmarked else "it should implement xarch_register"
        raise ValueError(f"{getattr(module, '__name__', module)} has no hooks: {why}")
    others = [p for p in manager.get_plugins() if p is not module]
    manager.subset_hook_caller("xarch_register", others)(registry=registration)
    return tuple(c.name for c in callers)


def _hook_names(specs: ModuleType) -> Iterable[str]:
    return [name for name in dir(specs) if name.startswith(PREFIX)]


def _with_state(registry: Registry, info: PluginInfo) -> PluginInfo:
    """Return the plugin's state after loading all: a declaration may lack an extra, or conflict with another plugin."""
    if info.state != "ok":
        return info
    own = [s for s in registry.specs() if s.plugin == info.name]
    if own and all(s.api != API_VERSION for s in own):
        return replace(info, state="incompatible", detail=registry.status(own[0])[1])
    found = [registry.status(s) for s in own]
    for state in ("conflict", "unknown-family", "missing-extra"):
        details = [detail for s, detail in found if s == state]
        if details:
            return replace(info, state=state, detail="; ".join(dict.fromkeys(details)))
    return info
