"""Selection of the backend of an operation: backends register here, operations select here.

A backend is one call of :func:`register`. By default the available backend with the highest priority runs that supports
the call's device, dtype and features. A backend can be requested by the ``backend=`` argument of an operation, by
:func:`use_backend`, or by the environment variable ``XARCH_KERNELS``, in this order of precedence.

A compiled backend has a ``check``, which builds it and compares it with naive before its first use. If that fails, one
line is logged and the next backend runs; if the backend was requested, the call fails with the same reason.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from xarch.errors import UsageError, XarchError
from xarch.failures import is_out_of_memory
from xarch.kernels.precision import tracing

ENVIRONMENT = "XARCH_KERNELS"

_REGISTRY: dict[str, dict[str, Backend]] = {}
_VERDICTS: dict[tuple[Backend, str], str | None] = {}
_USES: dict[tuple[str, str, torch.dtype, frozenset[str]], Use] = {}
_REQUESTED: ContextVar[str | None] = ContextVar("xarch_kernels_backend", default=None)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation of one operation."""

    op: str
    name: str
    priority: int
    run: Callable[..., Any]
    devices: frozenset[str] | None
    """Device types it runs on; None means all."""
    dtypes: frozenset[torch.dtype] | None
    """Dtypes it takes; None means every floating dtype."""
    lacks: frozenset[str]
    """Features of a call that it does not support, such as ``segment_ids``."""
    available: Callable[[], str | None]
    """Why it cannot run in this installation, or None if it can."""
    check: Callable[[str], None] | None
    """Builds it, compares it with naive on a device type, and raises if it must not be used."""

    def serves(self, device: str) -> bool:
        """Whether it supports a device type at all."""
        return self.devices is None or device in self.devices

    def refusal(self, device: str, dtype: torch.dtype, features: Collection[str] = ()) -> str | None:
        """Why this backend cannot take a call, or None if it can."""
        if self.devices is not None and not self.serves(device):
            return f"runs on {', '.join(sorted(self.devices))}, not on {device}"
        if self.dtypes is not None and dtype not in self.dtypes:
            return f"takes {', '.join(sorted(str(d) for d in self.dtypes))}, not {dtype}"
        missing = sorted(self.lacks.intersection(features))
        if missing:
            return f"does not support {', '.join(missing)}"
        return self.available()

    def verdict(self, device: str) -> str | None:
        """Why the check before the first use failed on this device, or None; the check runs once per process."""
        if self.check is None:
            return None
        key = (self, device)
        if key not in _VERDICTS:
            _VERDICTS[key] = reason = _checked(self.check, device)
            if reason is not None:
                _LOG.warning("%s: backend %s is not used on %s: %s", self.op, self.name, device, reason)
        return _VERDICTS[key]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which backend runs for one operation, and why: an entry of :func:`describe`."""

    op: str
    backend: str
    why: str
    refused: dict[str, str] = field(default_factory=dict)
    """Backends that cannot run, each with its reason."""


def register(
    op: str,
    name: str,
    *,
    priority: int,
    devices: Collection[str] | None = None,
    dtypes: Collection[torch.dtype] | None = None,
    lacks: Collection[str] = (),
    available: Callable[[], str | None] | None = None,
    check: Callable[[str], None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that adds a function as backend ``name`` of ``op``; a second one of the same name replaces it.

    The function takes the arguments of the operation except ``backend``. It may import what it needs when it is first
    called; ``available`` must answer without doing so. ``check`` gets a device type, builds what must be built and
    raises if the backend must not be used there; it runs before the first use, in a thread of its own.
    """

    def add(run: Callable[..., Any]) -> Callable[..., Any]:
        _REGISTRY.setdefault(op, {})[name] = Backend(
            op=op,
            name=name,
            priority=priority,
            run=run,
            devices=None if devices is None else frozenset(devices),
            dtypes=None if dtypes is None else frozenset(dtypes),
            lacks=frozenset(lacks),
            available=available or _always,
            check=check,
        )
        return run

    return add


def _always() -> str | None:
    return None


def backends(op: str | None = None) -> list[Backend]:
    """Backends of one operation (or of all), best first."""
    chosen = [b for table in _REGISTRY.values() for b in table.values() if op in (None, b.op)]
    return sorted(chosen, key=lambda b: (b.op, -b.priority, b.name))


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Within the block, every operation that has a backend ``name`` uses it; None restores the default choice.

    Raises:
        UsageError: no operation has a backend of this name.
    """
    if name is not None:
        _known(name, "use_backend()")
    token = _REQUESTED.set(name or "")
    try:
        yield
    finally:
        _REQUESTED.reset(token)


@contextmanager
def isolated(*names: str) -> Iterator[None]:
    """Within the block, backends are checked again, and what is registered there is removed at its end.

    Args:
        names: the only backends that are kept within the block; none means all.
    """
    registry, verdicts, used = {op: dict(table) for op, table in _REGISTRY.items()}, dict(_VERDICTS), dict(_USES)
    for table in _REGISTRY.values():
        for name in set(table).difference(names or table):
            del table[name]
    _VERDICTS.clear()
    try:
        yield
    finally:
        _REGISTRY.clear()
        _REGISTRY.update(registry)
        _VERDICTS.clear()
        _VERDICTS.update(verdicts)
        _USES.clear()
        _USES.update(used)


def select(
    op: str,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    features: Collection[str] = (),
    backend: str | None = None,
) -> Backend:
    """The backend that runs a call.

    Raises:
        UsageError: the requested backend is unknown or cannot run this call, or no backend can.
    """
    return _REGISTRY[op][_chosen_name(op, torch.device(device).type, dtype, features, backend)]


def describe(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> list[Choice]:
    """The backend that runs for each operation on a device, why, and why the others do not.

    Compiled backends that would run are built and checked, as before their first use.
    """
    kind = torch.device(device).type
    choices = []
    for op in sorted(_REGISTRY):
        chosen, why = _choose(op, kind, dtype, (), None)
        refused = {b.name: r for b in backends(op) if (r := _reason(b, kind, dtype, (), verify=False)) is not None}
        choices.append(Choice(op, chosen.name, why, refused))
    return choices


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """A choice that was left to the environment: the backend that ran calls of one kind."""

    op: str
    device: str
    dtype: str
    features: tuple[str, ...]
    backend: str


@contextmanager
def recording() -> Iterator[None]:
    """Within the block, :func:`uses` knows only what ran within it."""
    before = dict(_USES)
    _USES.clear()
    try:
        yield
    finally:
        _USES.clear()
        _USES.update(before)


def uses() -> list[Use]:
    """The backends that ran, in this process or the present :func:`recording`, except where a call or
    :func:`use_backend` named one."""
    return sorted(_USES.values())


def now(use: Use) -> str | None:
    """The backend that runs such calls in this process; None if it does not know the operation.

    Raises:
        UsageError: no backend can run them.
    """
    if use.op not in _REGISTRY:
        return None
    return _choose(use.op, use.device, getattr(torch, use.dtype), use.features, None)[0].name


def _chosen_name(op: str, device: str, dtype: torch.dtype, features: Collection[str], backend: str | None) -> str:
    name = _choose(op, device, dtype, features, backend)[0].name
    if backend is None and _REQUESTED.get() is None and not tracing():
        kind = (op, device, dtype, frozenset(features))
        if kind not in _USES or _USES[kind].backend != name:
            _USES[kind] = Use(op, device, str(dtype).removeprefix("torch."), tuple(sorted(features)), name)
    return name


# torch.compile runs this while it traces, instead of tracing into locks, environment and compilers. The public
# decorator torch.compiler.assume_constant_result sets the same attribute but imports all of dynamo.
_chosen_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _choose(
    op: str, device: str, dtype: torch.dtype, features: Collection[str], backend: str | None
) -> tuple[Backend, str]:
    table = _REGISTRY[op]
    if backend is not None:
        if backend not in table:
            raise UsageError(
                f"{op} has no backend {backend!r}", f"backends of {op}: {', '.join(b.name for b in backends(op))}"
            )
        return _insist(table[backend], device, dtype, features, "backend="), "requested by the call"
    requested, origin = _request()
    if requested in table and not (tracing() and _reason(table[requested], device, dtype, features) is not None):
        return _insist(table[requested], device, dtype, features, origin), f"forced by {origin}"
    reasons: list[str] = []
    elsewhere: list[str] = []
    for candidate in backends(op):
        reason = _reason(candidate, device, dtype, features)
        if reason is None:
            if requested in table:
                return candidate, f"{requested}: {_reason(table[requested], device, dtype, features)}"
            why = "first choice" if not reasons else "; ".join(reasons)
            return candidate, f"{origin} names no backend of {op}" if requested else why
        if candidate.serves(device):
            reasons.append(f"{candidate.name}: {reason}")
        else:
            elsewhere.append(f"{candidate.name}: {reason}")
    raise UsageError(f"no backend of {op} can run on {device} with {dtype}: {'; '.join(elsewhere + reasons)}")


def _reason(
    backend: Backend, device: str, dtype: torch.dtype, features: Collection[str], verify: bool = True
) -> str | None:
    """Why a backend cannot take a call; without ``verify`` a check that has not run yet counts as passed."""
    reason = backend.refusal(device, dtype, features)
    if reason is None and (verify or (backend, device) in _VERDICTS):
        reason = backend.verdict(device)
    return reason


def _checked(check: Callable[[str], None], device: str) -> str | None:
    """Run a check in a thread of its own, where the caller's no_grad, autocast, default device and fake tensors do not
    apply.
    """
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(check, device).result()
    except XarchError as e:
        return e.what
    except Exception as e:
        if is_out_of_memory(e):
            # Another backend would give other bits, and would not find more memory.
            raise
        return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
    return None


def _request() -> tuple[str, str]:
    """The requested backend (empty: none) and where it was requested."""
    inner = _REQUESTED.get()
    if inner is not None:
        return inner, "use_backend()"
    name = os.environ.get(ENVIRONMENT, "").strip()
    return (_known(name, ENVIRONMENT) if name else ""), ENVIRONMENT


def _known(name: str, origin: str) -> str:
    names = sorted({b.name for b in backends()})
    if name not in names:
        raise UsageError(f"{origin}: no kernel backend is called {name!r}", f"known backends: {', '.join(names)}")
    return name


def _insist(chosen: Backend, device: str, dtype: torch.dtype, features: Collection[str], origin: str) -> Backend:
    reason = _reason(chosen, device, dtype, features)
    if reason is not None:
        raise UsageError(
            f"{chosen.op}: backend {chosen.name!r}, forced by {origin}, cannot run this call: {reason}",
            f"choose another of {', '.join(b.name for b in backends(chosen.op))}, or request none",
        )
    return chosen
