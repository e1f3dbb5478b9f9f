"""Where a stage gets the teacher's values from: the teacher itself, or the cache on disk in front of it.

An entry's name is the digest of everything its values depend on: the teacher's weights, the taps, the precision and the
batch itself. An entry that would be stale has another name, so it is never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.model import Sink, Teacher
from xarch.errors import PluginError


class TeacherCache:
    """A bounded folder of entries.

    Args:
        folder: where entries live; made on first use.
        fingerprint: identifies weights and precision.
        limit_bytes: nothing is written beyond this.
        say: receives one line when the cache stops writing.
    """

    def __init__(self, folder: Path, fingerprint: str, limit_bytes: int, say: Callable[[str], None]) -> None:
        self.folder, self.fingerprint, self.limit_bytes, self.say = folder, fingerprint, limit_bytes, say
        self.hits = self.writes = 0
        self._used = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 0
        self._closed = False

    def key(self, batch: Batch, wanted: Collection[str]) -> str:
        """Digest of what the values depend on."""
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update("\0".join(sorted(wanted)).encode())
        for name in sorted(batch.tensors):
            tensor = batch.tensors[name].detach().cpu().contiguous()
            digest.update(f"\0{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def play(self, key: str, wanted: Collection[str], device: torch.device, sink: Sink) -> bool:
        """Push an entry's values into ``sink`` in the order they were written; False if there is none."""
        file = self.folder / f"{key}.safetensors"
        if not file.exists():
            return False
        try:
            values = load_file(file, device=str(device))
        except (OSError, SafetensorError) as e:
            self.say(f"teacher cache: {file.name} is damaged ({e}); computing it again")
            file.unlink(missing_ok=True)
            return False
        for name in sorted(values):
            sink(name.split("|", 1)[1], values[name])
        self.hits += 1
        return True

    def recorder(self, sink: Sink) -> tuple[Sink, dict[str, Tensor]]:
        """A sink that passes values on and keeps copies for :meth:`write`."""
        kept: dict[str, Tensor] = {}

        def tee(name: str, value: Any) -> None:
            if not self._closed:
                kept[f"{len(kept):05d}|{name}"] = value.detach().to("cpu", copy=True).contiguous()
            sink(name, value)

        return tee, kept

    def write(self, key: str, values: dict[str, Tensor]) -> None:
        """Store an entry unless the limit is reached; a full disk only ends the caching."""
        if self._closed:
            return
        size = sum(v.numel() * v.element_size() for v in values.values())
        if self._used + size > self.limit_bytes:
            self._closed = True
            self.say(f"teacher cache: limit of {self.limit_bytes / 1e9:.1f} GB reached; the rest is computed again")
            return
        partial = self.folder / f".{key}.tmp-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(values, partial)
            os.replace(partial, self.folder / f"{key}.safetensors")
        except OSError as e:
            self._closed = True
            self.say(f"teacher cache: {e.strerror}; continuing without it")
            return
        finally:
            partial.unlink(missing_ok=True)
        self._used += size
        self.writes += 1

    def clear(self) -> None:
        """Remove every entry."""
        for file in self.folder.glob("*.safetensors"):
            file.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


class TeacherFeed:
    """Gives the wanted teacher taps of a batch, without gradients, in forward order."""

    def __init__(
        self,
        teacher: Teacher,
        autocast: Callable[[], contextlib.AbstractContextManager[object]],
        cache: TeacherCache | None = None,
    ) -> None:
        self.teacher, self.autocast, self.cache = teacher, autocast, cache

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push each wanted tap into ``sink``.

        Raises:
            PluginError: the teacher ended without giving every wanted tap.
        """
        if not wanted:
            return
        seen = batch.seen_by("teacher")
        if self.cache is None:
            self._live(seen, wanted, sink)
            return
        key = self.cache.key(seen, wanted)
        device = next(iter(seen.tensors.values())).device
        if not self.cache.play(key, wanted, device, sink):
            tee, kept = self.cache.recorder(sink)
            self._live(seen, wanted, tee)
            self.cache.write(key, kept)

    def _live(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        given: set[str] = set()

        def note(name: str, value: Any) -> None:
            given.add(name)
            sink(name, value)

        with torch.no_grad(), self.autocast():
            self.teacher.run(batch, wanted, note)
        missing = sorted(set(wanted) - given)
        if missing:
            raise PluginError(f"the teacher {self.teacher.ref} did not give the taps {', '.join(missing[:5])}")
