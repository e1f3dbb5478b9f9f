"""Random number generators: seeding a stage, and saving their exact state."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class RandomState:
    """State of every random number generator, as cheap to take as possible: every step takes it.

    Attributes:
        tensors: states of torch's generators by device.
        python, numpy: states of the other two.
    """

    tensors: Mapping[str, Tensor]
    python: tuple[Any, ...]
    numpy: Any

    @classmethod
    def now(cls) -> RandomState:
        """Return the present state."""
        tensors = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        return cls(tensors, random.getstate(), np.random.get_state(legacy=True))

    def moved(self) -> bool:
        """Return whether a generator has drawn since."""
        now = RandomState.now()
        same = all(torch.equal(state, now.tensors[device]) for device, state in self.tensors.items())
        numpy = zip(self.numpy, now.numpy, strict=True)
        return not (same and self.python == now.python and all(np.array_equal(a, b) for a, b in numpy))

    def restore(self) -> None:
        """Put every generator back into this state."""
        torch.set_rng_state(self.tensors["cpu"].to(torch.uint8))
        if "cuda" in self.tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.tensors["cuda"].to(torch.uint8))
        random.setstate(self.python)
        np.random.set_state(self.numpy)


def rng_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors, JSON data) to pass to :func:`restore_rng`."""
    state = RandomState.now()
    version, internal, gauss = state.python
    kind, keys, position, has_gauss, cached = state.numpy
    return dict(state.tensors), {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }


def restore_rng(tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
    """Restore every generator to a saved state."""
    version, internal, gauss = data["python"]
    kind, keys, position, has_gauss, cached = data["numpy"]
    numpy = (kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached)
    RandomState(tensors, (version, tuple(internal), gauss), numpy).restore()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every generator inside the context, and restore its previous state on exit."""
    state = RandomState.now()
    seed_everything(seed)
    try:
        yield
    finally:
        state.restore()


def generator(*parts: object) -> torch.Generator:
    """Return a CPU generator seeded from ``parts`` alone."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
