"""Static checks of one plugin in a separate process, so that a hang or crash is just a finding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xarch.errors import XarchError
from xarch.registry.declare import RESOURCES, Spec
from xarch.registry.discover import FILES_VARIABLE, files_from_environment
from xarch.registry.loader import PluginInfo
from xarch.registry.registry import Registry

BASES = {
    "family": "xarch.contracts.family:Family",
    "source": "xarch.contracts.adapters:SourceAdapter",
    "target": "xarch.contracts.adapters:TargetAdapter",
    "objective": "xarch.contracts.objective:Objective",
    "connector": "xarch.contracts.connector:Connector",
    "batch_step": "xarch.contracts.batch_step:BatchStep",
    "stage": "xarch.contracts.stage:StageKind",
    "optimiser": "xarch.contracts.optimiser:OptimiserKind",
    "wrapper": "xarch.contracts.optimiser:OptimiserWrapper",
    "schedule": "xarch.contracts.optimiser:Schedule",
    "data": "xarch.contracts.data:DataProvider",
    "metric": "xarch.contracts.metric:Metric",
}
"""Kind -> base class of what its declarations load."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check and its outcome."""

    check: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about one plugin."""

    plugin: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(f.ok for f in self.findings)


def check_plugin(name: str, *, timeout: float) -> Report:
    """Check a plugin by name, or a plugin file by path, within ``timeout`` seconds."""
    environment = dict(os.environ)
    environment.pop("XARCH_STRICT_PLUGINS", None)
    if name.endswith(".py"):
        files = [*files_from_environment(), str(Path(name).resolve())]
        environment[FILES_VARIABLE] = os.pathsep.join(dict.fromkeys(files))
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    plugin = Path(name).stem if name.endswith(".py") else name
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "findings.json"
        call = [sys.executable, "-m", "xarch.registry.check", plugin, str(out)]
        try:
            ended = subprocess.run(
                call, env=environment, timeout=timeout, stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
        except subprocess.TimeoutExpired:
            return Report(plugin, (Finding("loads", False, f"did not finish within {timeout:g} s"),))
        if not out.is_file():
            last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
            why = f"its process ended with code {ended.returncode}" + (f": {last[0]}" if last else "")
            return Report(plugin, (Finding("loads", False, why),))
        return Report(plugin, tuple(Finding(**f) for f in json.loads(out.read_text(encoding="utf-8"))))


def findings(name: str) -> list[Finding]:
    """Load ``name`` alone beside the core, and check it. Runs in the child process."""
    from xarch.registry.loader import load_registry

    try:
        registry = load_registry(files_from_environment(), only=name)
    except XarchError as e:
        return [Finding("loads", False, e.what)]
    info = next((p for p in registry.plugins() if p.name == name), None)
    if info is None:
        return [Finding("loads", False, f"there is no plugin {name!r}")]
    if not info.loaded:
        return [Finding("loads", False, f"{info.state}: {info.detail}")]
    own = [s for s in registry.specs() if s.plugin == name]
    if any(registry.status(s)[0] == "unknown-family" for s in own):
        # Families may be another plugin's: only now is it worth loading the others.
        everything = load_registry(files_from_environment())
        registry = registry.knowing(everything.specs("family"))
    return [*_about_loading(info), *(_about_spec(registry, s) for s in own)]


def _about_loading(info: PluginInfo) -> list[Finding]:
    heavy = f"imports {', '.join(info.heavy)}" if info.heavy else ""
    printed = f"prints {info.output.strip().splitlines()[0][:60]!r}" if info.output.strip() else ""
    return [
        Finding("loads", True, f"{info.load_ms:.0f} ms, {info.declared} declarations, hooks {', '.join(info.hooks)}"),
        Finding("no heavy import at registration", not heavy, heavy),
        Finding("no output at registration", not printed, printed),
    ]


def _about_spec(registry: Registry, spec: Spec) -> Finding:
    title = f"{spec.kind} {spec.name}"
    state, detail = registry.status(spec)
    if state == "missing-extra":
        return Finding(title, True, f"not checked: {detail}")
    if state == "unknown-family":
        return Finding(title, False, detail)
    try:
        found = registry.resolve(spec)
        problem = _wrong(registry, spec, found)
    except XarchError as e:
        problem = e.what
    return Finding(title, not problem, problem or spec.load)


def _wrong(registry: Registry, spec: Spec, found: Any) -> str:
    """Return what is wrong with an imported declaration, or ""."""
    import importlib

    if spec.kind in RESOURCES:
        from xarch.config.yaml_text import parse_yaml

        top = parse_yaml(found, spec.load).data
        if not isinstance(top, dict):
            return "the top level must be a mapping"
        return "it has no `method:` head" if spec.kind == "method" and not isinstance(top.get("method"), dict) else ""
    if spec.kind == "teacher":
        return "" if ":" in str(found.get("ref", "")) else "ref should be SCHEME:REF"
    if spec.kind == "report":
        return "" if callable(found) else f"{type(found).__name__} is not a function"
    if spec.kind == "export":
        from xarch.contracts.export import Profile

        made = registry.create(spec.kind, spec.qualified)
        return "" if isinstance(made, Profile) else f"{type(made).__name__} is not a Profile"
    module, _, name = BASES[spec.kind].partition(":")
    base = getattr(importlib.import_module(module), name)
    if not (isinstance(found, type) and issubclass(found, base)):
        return f"{getattr(found, '__name__', found)} is not a subclass of {name}"
    abstract = sorted(getattr(found, "__abstractmethods__", ()))
    return f"does not implement {', '.join(abstract)}" if abstract else _other_facts(registry, spec, found)


def _other_facts(registry: Registry, spec: Spec, found: Any) -> str:
    """Return a mismatch between a declaration and its class, or ""."""
    units = spec.data.get("units")
    if units and units != found.units:
        return f"is declared in {units!r}, its class says {found.units!r}"
    known = {s.name for s in registry.specs("export")}
    strange = sorted(set(spec.data.get("profiles", ())) - known)
    return f"declares the unknown profile {strange[0]!r}; known: {', '.join(sorted(known))}" if strange else ""


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps([asdict(f) for f in findings(sys.argv[1])]), encoding="utf-8")
