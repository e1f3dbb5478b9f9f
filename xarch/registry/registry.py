"""Looks up declarations of plugins, and imports them on first use."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pluggy

from xarch.errors import PluginError, UsageError
from xarch.failures import as_error
from xarch.registry.blame import HINT, Owners, last_line, passes, plugin_errors
from xarch.registry.declare import ANY_FAMILY, API_VERSION, KINDS, RESOURCES, Spec
from xarch.registry.discover import CORE

if TYPE_CHECKING:
    from xarch.registry.loader import PluginInfo


def read_resource(load: str) -> str:
    """Return the UTF-8 text of ``package:folder/file``; for a single-file plugin, the package is the file's folder.

    Raises:
        UsageError: the path leaves the package.
        FileNotFoundError, ModuleNotFoundError: it is not there.
    """
    package, _, path = load.partition(":")
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/"):
        raise UsageError(f"{load!r} leaves its package")
    loaded = sys.modules.get(package)
    spec = getattr(loaded, "__spec__", None) or importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}")
    if spec.submodule_search_locations is None:
        return (Path(spec.origin or "").parent / path).read_text(encoding="utf-8")
    from importlib.resources import files

    return files(package).joinpath(*parts).read_text(encoding="utf-8")


_PLURALS = {"data": "data", "export": "profiles", "family": "families", "batch_step": "batch-steps"}
PLURAL = {kind: _PLURALS.get(kind, f"{kind}s") for kind in KINDS}
"""Kind -> its plural in ``xarch list``."""
SPOKEN = {"batch_step": "batch step", "stage": "stage kind", "wrapper": "optimiser wrapper", "export": "profile"}
"""Kinds by the words that people know them by."""


class Registry:
    """All declarations of all loaded plugins.

    Args:
        manager: holds the hook implementations of the loaded plugins, under their names.
        plugins: one entry for every plugin that was found, loaded or not.
        specs: declarations of the loaded ones.
    """

    def __init__(self, manager: pluggy.PluginManager, plugins: Iterable[PluginInfo], specs: Iterable[Spec]) -> None:
        self._manager = manager
        self._plugins = {p.name: p for p in plugins}
        self._specs = list(specs)
        self._resolved: dict[str, Any] = {}
        self._families: dict[str, Any] = {}
        self._owners = Owners(self._plugins.values())

    def plugins(self) -> list[PluginInfo]:
        """Every plugin found, in loading order."""
        return list(self._plugins.values())

    def specs(self, kind: str | None = None) -> list[Spec]:
        """Return declarations of one kind, or all, sorted by kind, name and owner."""
        chosen = [s for s in self._specs if kind is None or s.kind == kind]
        return sorted(chosen, key=lambda s: (KINDS.index(s.kind), s.name, s.plugin))

    def knowing(self, specs: Iterable[Spec]) -> Registry:
        """Return a registry extended by these declarations."""
        more = [s for s in specs if s not in self._specs]
        return Registry(self._manager, self._plugins.values(), [*self._specs, *more])

    def versions(self) -> dict[str, str]:
        """Return loaded plugin -> version of its distribution, for the plan and run.json."""
        return {p.name: p.version for p in self._plugins.values() if p.loaded}

    def owner(self, spec: Spec) -> str:
        """Return the name of a spec in errors: plugin, distribution, version, kind and name."""
        info = self._plugins.get(spec.plugin)
        return f"{info.owner if info else f'plugin {spec.plugin!r}'} {spec.kind} {spec.name!r}"

    def get(self, kind: str, name: str, layout: str = "", *, where: str = "") -> Spec:
        """The spec called ``name``, or ``plugin:name``; of several implementations the one for ``layout``, else the
        general one.

        Args:
            where: key of the configuration that names it, for messages.

        Raises:
            UsageError: nobody declares it.
            PluginError: two plugins declare it, or its plugin did not load.
        """
        owner, _, plain = name.rpartition(":")
        claims = [s for s in self._specs if s.kind == kind and s.name == plain and owner in ("", s.plugin)]
        own = [s for s in claims if layout in s.layouts]
        claims = own or [s for s in claims if not s.layouts] or claims
        if len(claims) == 1:
            return claims[0]
        if not claims:
            raise self._unknown(kind, plain, owner, f"{where}: " if where else "")
        owners = " and ".join(self._plugins[s.plugin].owner for s in claims)
        choices = " or ".join(s.qualified for s in claims)
        raise PluginError(f"{where}{': ' * bool(where)}{kind} {plain!r} is declared by {owners}", f"write {choices}")

    def has(self, kind: str, name: str) -> bool:
        """Return whether a loaded plugin declares ``name`` or ``plugin:name``, once or more."""
        owner, _, plain = name.rpartition(":")
        return any(s.kind == kind and s.name == plain and owner in ("", s.plugin) for s in self._specs)

    def _unknown(self, kind: str, name: str, owner: str, where: str) -> UsageError | PluginError:
        info = self._plugins.get(owner)
        if info is not None and not info.loaded:
            hint = f"xarch plugins enable {owner}" if info.state == "disabled" else f"xarch plugins check {owner}"
            return PluginError(f"{where}{kind} {owner}:{name}: {info.owner} is {info.state}: {info.detail}", hint)
        if owner and info is None:
            return PluginError(f"{where}{kind} {owner}:{name}: there is no plugin {owner!r}", "xarch plugins list")
        known = sorted({s.name for s in self._specs if s.kind == kind})
        near = difflib.get_close_matches(name, known, n=1)
        what = f"{where}unknown {SPOKEN.get(kind, kind)} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        hint = f"known: {', '.join(known) or 'none'}"
        missing = [f"{p.name} ({p.state})" for p in self._plugins.values() if not p.loaded]
        if missing:
            hint += f"; not loaded: {', '.join(missing)}, see `xarch plugins list`"
        return UsageError(what, hint)

    def status(self, spec: Spec) -> tuple[str, str]:
        """Return (state, detail): "ok", or "incompatible", "missing-extra", "conflict" or "unknown-family" with the
        reason."""
        if spec.api != API_VERSION:
            return "incompatible", f"written for plugin API {spec.api}, this xarch has {API_VERSION}"
        absent = [m for m in spec.needs if not module_exists(m)]
        if absent:
            return "missing-extra", f"needs {', '.join(absent)}: {install_hint(spec, absent)}"
        rivals = [s for s in self._specs if s.rivals(spec) and s.plugin != spec.plugin]
        if rivals:
            return "conflict", f"{spec.kind} {spec.name!r} is also declared by {', '.join(s.plugin for s in rivals)}"
        families = {s.name for s in self._specs if s.kind == "family"} | {ANY_FAMILY}
        strange = [name for name in spec.families if name not in families]
        if strange:
            near = difflib.get_close_matches(strange[0], families, n=1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            return "unknown-family", f"no plugin registers the family {strange[0]!r}{guess}"
        return "ok", ""

    def resolve(self, spec: Spec) -> Any:
        """Import what a spec names: a class, function or object; the text of a recipe or method; a teacher's facts.

        Raises:
            PluginError: wrong API version, a missing extra, or the import failed; names plugin and adapter.
        """
        state, detail = self.status(spec)
        if state in ("incompatible", "missing-extra"):
            raise PluginError(f"{self.owner(spec)}: {detail}")
        key = f"{spec.kind} {spec.qualified} {spec.load}"
        if key not in self._resolved:
            with self.guard(spec, f"load {spec.load!r}"):
                self._resolved[key] = _import(spec)
        return self._resolved[key]

    def create(self, kind: str, name: str, *, where: str = "") -> Any:
        """Look up, import and instantiate; an object that is not callable is returned unchanged. Each family has a
        single instance."""
        spec = self.get(kind, name, where=where)
        if kind == "family":
            if spec.qualified not in self._families:
                self._families[spec.qualified] = self._instance(spec)
            return self._families[spec.qualified]
        return self._instance(spec)

    def _instance(self, spec: Spec) -> Any:
        value = self.resolve(spec)
        if not callable(value):
            return value
        with self.guard(spec, "create"):
            return value()

    @contextlib.contextmanager
    def guard(self, spec: Spec, during: str = "") -> Iterator[None]:
        """Convert exceptions of adapter code to a PluginError that names plugin, adapter and ``during``.

        If another plugin's code is innermost on the traceback, the error is that plugin's: a student that raises within
        a built-in stage kind is not blamed on xarch.
        """
        try:
            yield
        except (Exception, SystemExit) as e:
            if passes(e):
                raise
            culprit, where = self._owners.of(e), f", {during}" if during else ""
            if culprit is None and spec.plugin == CORE and as_error(e) is not None:
                raise
            if culprit is None or culprit.name == spec.plugin:
                raise PluginError(f"{self.owner(spec)}{where}: {last_line(e)}", HINT) from e
            within = f"in {spec.kind} {spec.name!r}"
            raise PluginError(f"{culprit.owner}, {within}{where}: {last_line(e)}", HINT) from e

    @contextlib.contextmanager
    def attributed(self, during: str) -> Iterator[None]:
        """Attribute exceptions of code that calls several plugins: an exception with plugin code on its traceback
        becomes that plugin's PluginError; any other passes as an xarch error."""
        try:
            yield
        except (Exception, SystemExit) as e:
            culprit = None if passes(e) else self._owners.of(e)
            if culprit is None:
                raise
            raise PluginError(f"{culprit.owner}, {during}: {last_line(e)}", HINT) from e

    def call(self, hook: str, *, only: str | None = None, **arguments: Any) -> Any:
        """Call a hook in every loaded plugin (or ``only`` one), with its arguments by name.

        Returns:
            The list of results that are not None, or the single result of a ``firstresult`` hook.

        Raises:
            PluginError: an implementation raised; names the plugin.
        """
        chosen = self._manager.get_plugin(only) if only else None
        others = [p for p in self._manager.get_plugins() if p is not chosen] if only else []
        caller = self._manager.subset_hook_caller(hook, others)
        who = _Blame(hook, caller.get_hookimpls(), self._plugins)
        with plugin_errors_of(who):
            return caller(**arguments)

    def implementers(self, hook: str) -> Sequence[str]:
        """Return the names of the plugins that implement a hook, in loading order."""
        return [i.plugin_name for i in getattr(self._manager.hook, hook).get_hookimpls()]


class _Blame:
    """Finds the plugin whose hook implementation is on a traceback."""

    def __init__(self, hook: str, impls: Sequence[Any], plugins: dict[str, PluginInfo]) -> None:
        self.hook, self.plugins = hook, plugins
        self.codes = {getattr(i.function, "__code__", None): i.plugin_name for i in impls}

    def name(self, error: BaseException) -> str:
        step = error.__traceback__
        while step is not None:
            plugin = self.codes.get(step.tb_frame.f_code)
            if plugin is not None:
                return f"{self.plugins[plugin].owner} hook {self.hook}"
            step = step.tb_next
        return f"hook {self.hook}"


@contextlib.contextmanager
def plugin_errors_of(who: _Blame) -> Any:
    """Like :func:`plugin_errors`, but find the responsible plugin on the traceback."""
    try:
        yield
    except (Exception, SystemExit) as e:
        with plugin_errors(who.name(e)):
            raise


def module_exists(name: str) -> bool:
    """Return whether the top-level package of ``name`` is installed, without importing it."""
    try:
        return importlib.util.find_spec(name.split(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def install_hint(spec: Spec, absent: Sequence[str]) -> str:
    """Return the command that installs what a spec needs: an xarch extra, a requirement, or the modules."""
    wanted = spec.extra or " ".join(absent)
    is_extra = bool(spec.extra) and wanted.isidentifier()
    return f"pip install 'xarch[{wanted}]'" if is_extra else f"pip install {wanted}"


def _import(spec: Spec) -> Any:
    if spec.kind in RESOURCES:
        return read_resource(spec.load)
    if not spec.load:
        return dict(spec.data)
    module, _, attributes = spec.load.partition(":")
    return reduce(getattr, attributes.split("."), importlib.import_module(module))
