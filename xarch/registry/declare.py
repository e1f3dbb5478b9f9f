"""Lazy declarations: what a plugin provides, without importing it; one method per kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

API_VERSION = 2

KINDS = (
    "family",
    "source",
    "target",
    "method",
    "recipe",
    "objective",
    "connector",
    "batch_step",
    "stage",
    "optimiser",
    "wrapper",
    "schedule",
    "data",
    "metric",
    "export",
    "teacher",
    "report",
)
RESOURCES = ("recipe", "method")
"""Kinds that name a file of a package instead of an attribute of a module."""
ANY_FAMILY = "*"
"""In ``accepts``, ``families`` and ``produces``: any family."""


@dataclass(frozen=True)
class Spec:
    """One registered thing.

    Attributes:
        kind, name: its kind and name; ``plugin:name`` selects one if two plugins use the same name.
        load: "module:attribute" imported on first use ("" for pure data, see ``data``).
        summary: one line for ``xarch list``.
        plugin: entry-point name of the owner; filled in by the loader.
        accepts: for targets, metrics, methods and report sections: families, or "*" for any.
        produces: for sources and targets: family of the model they give; "*" for any (a target: the teacher's).
        extra: xarch extra (or pip requirement) that brings what it needs.
        needs: importable module names without which it is shown as "missing-extra".
        layouts: for objectives: the student layouts this implementation is for; empty for all that no other one claims.
        api: version of the plugin API it was written for.
        data: kind-specific facts, e.g. the pinned package of a named teacher, what an objective compares, or the
            profiles that a target exports to.
    """

    kind: str
    name: str
    load: str
    summary: str
    plugin: str = ""
    accepts: tuple[str, ...] = ()
    produces: str = ""
    extra: str = ""
    needs: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    api: int = API_VERSION
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def qualified(self) -> str:
        """``plugin:name``."""
        return f"{self.plugin}:{self.name}"

    def rivals(self, other: Spec) -> bool:
        """Return whether both declare the same name for the same kind and layouts."""
        same = (self.kind, self.name) == (other.kind, other.name)
        return same and (set(self.layouts) & set(other.layouts) != set() or not (self.layouts or other.layouts))

    @property
    def families(self) -> tuple[str, ...]:
        """All families it names."""
        return (*self.accepts, self.produces) if self.produces else self.accepts

    def serves(self, family: str) -> bool:
        """Return whether it supports teachers (targets) or students (metrics, methods, report sections) of this
        family."""
        anything = not self.accepts and self.kind in ("method", "report")
        return anything or ANY_FAMILY in self.accepts or family in self.accepts


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")
LOAD = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")
RESOURCE = re.compile(r"[A-Za-z_][\w.]*:[\w./+-]+\Z")


class Declarations:
    """Collects the declarations of one plugin; nothing is imported before it is used.

    Every method takes ``load`` ("module:attribute"), ``summary`` (one line for ``xarch list``) and the optional
    ``extra`` (what to install for it), ``needs`` (modules it needs), ``api`` (plugin API it was written for) and
    ``data`` (further facts). All raise ValueError for a malformed or repeated declaration.
    """

    def __init__(self, plugin: str) -> None:
        self.plugin = plugin
        self.specs: list[Spec] = []

    def source(self, name: str, *, load: str, summary: str = "", produces: str, **common: Any) -> None:
        """A source adapter; ``name`` is the scheme of its references, ``produces`` the family of its teachers."""
        self._add("source", name, load, summary, produces=produces, **common)

    def target(
        self,
        name: str,
        *,
        load: str,
        summary: str = "",
        accepts: Iterable[str],
        produces: str = "",
        recipes: Iterable[str] = (),
        profiles: Iterable[str] = (),
        reference: str = "",
        **common: Any,
    ) -> None:
        """A target adapter.

        Args:
            accepts: families of teachers.
            produces: the student's family; by default the teacher's.
            recipes: what its ``recipe`` may name, the usual one first; the plan refuses any other.
            profiles: those that a small student passes. ``xarch list pairs`` shows no others, and the conformance tests
                build each.
            reference: option that the rest of ``NAME:REST`` sets, for a target that stands for many models.
        """
        families = _names(accepts)
        if not families:
            raise ValueError(f"target {name!r}: accepts names no family")
        gives = produces or (families[0] if len(families) == 1 else ANY_FAMILY)
        said: dict[str, Any] = {"recipes": list(_names(recipes)), "profiles": list(_names(profiles))}
        said["reference"] = reference
        data = {**(common.pop("data", None) or {}), **{key: value for key, value in said.items() if value}}
        self._add("target", name, load, summary, accepts=families, produces=gives, data=data, **common)

    def family(self, name: str, *, load: str, summary: str = "", **common: Any) -> None:
        """A family: ``load`` names a ``Family`` class."""
        self._add("family", name, load, summary, **common)

    def objective(
        self,
        name: str,
        *,
        load: str,
        summary: str = "",
        compares: str = "",
        units: str = "",
        paper: str = "",
        layouts: Iterable[str] = (),
        **common: Any,
    ) -> None:
        """An objective.

        Args:
            compares: what it compares, e.g. "logits with logits or labels", for lists, which import nothing.
            units: as the class says, e.g. "nats/token".
            paper: where it comes from, e.g. "arXiv:1503.02531".
            layouts: it is the implementation of this name for these student layouts only: ``kl`` is one word in every
                recipe, whatever form a family's logits have.
        """
        said = {"compares": compares, "units": units, "paper": paper}
        data = {**(common.pop("data", None) or {}), **{key: value for key, value in said.items() if value}}
        self._add("objective", name, load, summary, data=data, layouts=_names(layouts), **common)

    def connector(self, name: str, *, load: str, summary: str = "", **common: Any) -> None:
        """A connector."""
        self._add("connector", name, load, summary, **common)

    def batch_step(self, name: str, *, load: str, summary: str = "", **common: Any) -> None:
        """A batch step."""
        self._add("batch_step", name, load, summary, **common)

    def stage(self, name: str, *, load: str, summary: str = "", **common: Any) -> None:
        """A stage kind."""
        self._add("stage", name, load, summary, **common)

    def optimiser(self, name: str, *, load: str, summary: str = "", **common: Any) -> None:
        """An optimiser: ``load`` names an ``OptimiserKind``."""
        self._add("optimiser", name, load, summary, **common)

    def wrapper(self, name: str, *, load: str, summary: str = "", **common: Any) -> None:
        """A wrapper of optimisers (``optimiser.wrap``): ``load`` names an ``OptimiserWrapper``."""
        self._add("wrapper", name, load, summary, **common)

    def schedule(self, name: str, *, load: str, summary: str = "", **common: Any) -> None:
        """A learning-rate schedule: ``load`` names a ``Schedule``."""
        self._add("schedule", name, load, summary, **common)

    def recipe(self, name: str, *, load: str, summary: str = "", **common: Any) -> None:
        """A recipe: ``load`` names a YAML file in a package, ``"package:recipes/file.yaml"``."""
        self._add("recipe", name, load, summary, **common)

    def method(self, name: str, *, load: str, summary: str = "", families: Iterable[str] = (), **common: Any) -> None:
        """A method: ``load`` names its ``method.yaml`` in a package; ``families`` are those it serves (lists show them
        without reading the file)."""
        self._add("method", name, load, summary, accepts=_names(families), **common)

    def data(self, name: str, *, load: str, summary: str = "", **common: Any) -> None:
        """A data provider; ``name`` is the scheme of its references."""
        self._add("data", name, load, summary, **common)

    def export(self, name: str, *, load: str, summary: str = "", **common: Any) -> None:
        """A profile to export to: ``load`` names a ``Profile`` or a function that returns one."""
        self._add("export", name, load, summary, **common)

    def metric(self, name: str, *, load: str, summary: str = "", accepts: Iterable[str], **common: Any) -> None:
        """A metric for students of the families in ``accepts``."""
        self._add("metric", name, load, summary, accepts=_names(accepts), **common)

    def report(self, name: str, *, load: str, summary: str = "", accepts: Iterable[str] = (), **common: Any) -> None:
        """Report sections: ``load`` names a function from ``RunInfo`` to sections, asked for runs whose student is of a
        family in ``accepts`` (of any, if there are none)."""
        self._add("report", name, load, summary, accepts=_names(accepts), **common)

    def teacher(self, name: str, *, ref: str, summary: str = "", **facts: Any) -> None:
        """A teacher by name (``zoo:NAME``): a reference and pinned facts such as package, version, file and sha256, or
        a list of these as ``packages``."""
        common = {key: facts.pop(key) for key in ("extra", "needs", "api") if key in facts}
        self._add("teacher", name, "", summary, data={"ref": ref, **facts}, **common)

    def _add(
        self,
        kind: str,
        name: str,
        load: str,
        summary: str,
        *,
        accepts: tuple[str, ...] = (),
        produces: str = "",
        extra: str = "",
        needs: Iterable[str] = (),
        layouts: tuple[str, ...] = (),
        api: int = API_VERSION,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        if not NAME.match(name):
            raise ValueError(f"{kind} {name!r}: a name is letters, digits, '.', '_', '+' and '-'")
        pattern = RESOURCE if kind in RESOURCES else LOAD
        if kind != "teacher" and not pattern.match(load):
            wanted = "package:folder/file.yaml" if kind in RESOURCES else "module:attribute"
            raise ValueError(f"{kind} {name!r}: load={load!r} should look like {wanted!r}")
        spec = Spec(
            kind=kind,
            name=name,
            load=load,
            summary=" ".join(summary.split()),
            plugin=self.plugin,
            accepts=accepts,
            produces=produces,
            extra=extra,
            needs=_names(needs),
            layouts=layouts,
            api=api,
            data=dict(data or {}),
        )
        if any(s.rivals(spec) for s in self.specs):
            raise ValueError(f"{kind} {name!r} is declared twice")
        self.specs.append(spec)


def _names(names: Iterable[str]) -> tuple[str, ...]:
    """Return a tuple of names; a single string is one name."""
    return (names,) if isinstance(names, str) else tuple(names)
