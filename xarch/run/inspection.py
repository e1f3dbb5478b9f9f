"""What ``xarch inspect`` shows: facts of a teacher, data, a run, a student, an ONNX file or a registered name."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xarch.errors import UsageError
from xarch.files.bounded_json import read_json
from xarch.files.manifest import raise_first, verify
from xarch.files.run_dir import RunDir
from xarch.printable import say
from xarch.registry.loader import get_registry

if TYPE_CHECKING:
    from xarch.planning.plan import Plan
    from xarch.registry.declare import Spec


def read_plan(run: RunDir) -> Plan:
    """Return the plan of a run.

    Raises:
        UsageError: plan.json was made by another version or is damaged.
    """
    from xarch.config.validation import validated
    from xarch.planning.plan import Plan

    data = run.read_json(run.plan)
    return validated(Plan, data, f"{run.plan} cannot be used: ", "make the run again")


def inspect(ref: str) -> dict[str, Any]:
    """Return facts about a teacher or data by reference, a run, a student folder, an ONNX file or a registered name.

    Raises:
        UsageError: it is none of these, or a file of a run or student is damaged.
    """
    path = Path(ref)
    if path.suffix == ".onnx":
        from xarch.export.check import inspect_onnx

        return dict(inspect_onnx(path))
    if (path / "plan.json").is_file():
        run = RunDir.open(path)
        raise_first(run.faults())
        made = read_plan(run)
        return {"run": str(path), "state": run.state(), "plan": made.model_dump(mode="json")}
    if (path / "config.json").is_file():
        found = read_json(path / "config.json")
        if isinstance(found, dict) and "target" in found:
            verify(path)
            return {"student": str(path), **found}
    registry = get_registry()
    named = [s for s in registry.specs() if ref in (s.name, s.qualified)]
    if named:
        return {"names": [_declared(s) for s in named]}
    scheme = ref.partition(":")[0]
    sources, data = ({s.name for s in registry.specs(kind)} for kind in ("source", "data"))
    known = sorted(sources | data | {"zoo"})
    if ":" in ref and scheme not in known:
        raise UsageError(
            f"{scheme!r} is neither a source of teachers nor a provider of data", f"known: {', '.join(known)}"
        )
    return _data(ref) if scheme in data - sources else _teacher(ref)


def _declared(spec: Spec) -> dict[str, Any]:
    """Return the facts of a declaration, and the options, layouts and units of its class."""
    from xarch.registry.declare import RESOURCES

    registry = get_registry()
    facts = {"kind": spec.kind, "name": spec.name, "plugin": spec.plugin, "summary": spec.summary, **spec.data}
    if spec.accepts and spec.kind != "teacher":
        facts["families"] = list(spec.accepts)
    if spec.kind in RESOURCES:
        text = registry.resolve(spec)
        if spec.kind == "method":
            from xarch.config.method import read_method

            facts |= read_method(text, spec.qualified).model_dump(mode="json")
        return {**facts, "yaml": text}
    if spec.kind == "teacher":
        return facts
    found = registry.resolve(spec)
    options = getattr(found, "Options", None)
    return {
        **facts,
        **_layouts(found),
        "doc": getdoc(found) or "",
        "options": options.model_json_schema() if options is not None else {},
    }


def _layouts(found: Any) -> dict[str, Any]:
    """Layouts that an objective or a connector takes, tensors that a family reads; nothing for other kinds."""
    known: dict[str, Any] = {}
    accepts = getattr(found, "accepts", None)
    if isinstance(accepts, frozenset):
        known["layouts"] = sorted(" / ".join(pair) if isinstance(pair, tuple) else pair for pair in accepts)
    for name in ("units", "unit", "metric", "mask"):
        value = getattr(found, name, "")
        if isinstance(value, str) and value:
            known[name] = value
    tensors = getattr(found, "tensors", None)
    return {**known, "tensors": dict(tensors)} if isinstance(tensors, Mapping) else known


def _data(ref: str) -> dict[str, Any]:
    from xarch.config.schema import RunConfig
    from xarch.planning.describe import Describer

    registry = get_registry()
    config = RunConfig.model_validate({"data": {"ref": ref}})
    with registry.attributed(f"describe {ref}"):
        info = Describer(registry, say).data(config, None).info
    return {
        "data": ref,
        "title": info.title,
        "unit": info.unit,
        "size": dict(info.size),
        "facts": dict(info.facts),
        "warnings": list(info.warnings),
        "tensors": [
            {"name": name, "layout": tensor.layout, "shape": dict(tensor.shape)}
            for name, tensor in info.tensors.items()
        ],
    }


def _teacher(ref: str) -> dict[str, Any]:
    from xarch.planning.describe import Describer

    registry = get_registry()
    with registry.attributed(f"describe {ref}"):
        described = Describer(registry, say).reference(ref, {})
    info = described.info
    return {
        "teacher": ref,
        "title": info.title,
        "family": info.family,
        "parameters": info.parameters,
        "weight_bytes": info.weight_bytes,
        "facts": info.facts.to_json(),
        "details": info.details,
        "warnings": list(info.warnings),
        "taps": [
            {"name": t.name, "kind": t.kind, "layout": t.layout, "shape": dict(t.shape)}
            for t in described.taps.values()
        ],
    }
