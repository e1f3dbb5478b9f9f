"""On-disk cache of teacher values, so that a teacher never runs twice on the same samples.

An entry is named by the digest of everything its values depend on: the teacher's weights, the taps, the precision and
the batch itself, or the number that its data give a sample. An entry that would be stale has another name, so it is
never used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from xarch.contracts.batch import CHANGED, Batch
from xarch.contracts.model import Sink
from xarch.failures import is_out_of_memory
from xarch.files.atomic import save_tensors
from xarch.files.digest import weights_digest

SAMPLE = "sample_id"
DIGEST = "sha256"


class TeacherCache:
    """A size-limited folder with one entry per batch.

    Args:
        folder: where entries are stored; created on first use.
        fingerprint: identifies weights and precision.
        limit_bytes: maximum size of the folder.
        say: called with one line when the cache stops writing.
    """

    def __init__(self, folder: Path, fingerprint: str, limit_bytes: int, say: Callable[[str], None]) -> None:
        self.folder, self.fingerprint, self.limit_bytes, self.say = folder, fingerprint, limit_bytes, say
        self.hits = self.writes = 0
        self._used = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 0
        self._closed = False

    def key(self, batch: Batch, wanted: Collection[str]) -> str:
        """Return the digest of everything the values depend on."""
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update("\0".join(sorted(wanted)).encode())
        for name in sorted(batch.tensors):
            tensor = batch.tensors[name].detach().cpu().contiguous()
            digest.update(f"\0{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def push(self, batch: Batch, wanted: Collection[str], sink: Sink, live: Callable[[Sink], None]) -> None:
        """Push the requested values of ``batch`` into ``sink`` in the teacher's order; on a miss, ``live`` runs the
        teacher."""
        key = self.key(batch, wanted)
        found = self._read(key, batch.device)
        if found is not None:
            for name in sorted(found):
                sink(name.split("|", 1)[1], found[name])
            self.hits += 1
            return
        kept: dict[str, Tensor] = {}
        live(self._tee(sink, kept))
        self._write(key, kept)

    def _tee(self, sink: Sink, kept: dict[str, Tensor]) -> Sink:
        def tee(name: str, value: Any) -> None:
            if not self._closed:
                kept[f"{len(kept):05d}|{name}"] = value.detach().to("cpu", copy=True).contiguous()
            sink(name, value)

        return tee

    def _read(self, key: str, device: torch.device) -> dict[str, Tensor] | None:
        file = self.folder / f"{key}.safetensors"
        if not file.exists():
            return None
        try:
            with safe_open(file, "pt") as opened:
                known = (opened.metadata() or {}).get(DIGEST)
            values = load_file(file, device=str(device))
            if weights_digest(values) != known:
                raise ValueError("its content is not what was written")
            return values
        except (OSError, ValueError, SafetensorError) as e:
            if is_out_of_memory(e):
                raise
            self.say(f"teacher cache: {file.name} is damaged ({e}); recomputing it")
            file.unlink(missing_ok=True)
            return None

    def _write(self, key: str, values: dict[str, Tensor]) -> None:
        """Store an entry unless the limit is reached; a full disk only disables caching."""
        if self._closed:
            return
        size = sum(v.numel() * v.element_size() for v in values.values())
        if self._used + size > self.limit_bytes:
            self._closed = True
            self.say(f"teacher cache: limit of {self.limit_bytes / 1e9:.1f} GB reached; further values are not cached")
            return
        partial = self.folder / f".{key}.tmp-{os.getpid()}"
        try:
            self._make()
            save_tensors(values, partial, {DIGEST: weights_digest(values)})
            os.replace(partial, self.folder / f"{key}.safetensors")
        except OSError as e:
            if is_out_of_memory(e):
                raise
            self._closed = True
            self.say(f"teacher cache: {e.strerror}; continuing without it")
            return
        finally:
            partial.unlink(missing_ok=True)
        self._used += size
        self.writes += 1

    def _make(self) -> None:
        # Without parents: a run folder that was removed meanwhile must not come back.
        self.folder.mkdir(exist_ok=True)

    def clear(self) -> None:
        """Remove every entry."""
        for file in self.folder.glob("*.safetensors"):
            file.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


class SharedTeacherCache(TeacherCache):
    """A size-limited folder with one entry per sample, shared by runs with different batches.

    The data number each sample together with its augmentation draw (``sample_id``). A batch without numbers, or one
    that a batch step changed, is computed. Entries stay when the stage ends.
    """

    def push(self, batch: Batch, wanted: Collection[str], sink: Sink, live: Callable[[Sink], None]) -> None:
        numbers = batch.get(SAMPLE)
        if numbers is None or batch.meta.get(CHANGED):
            live(sink)
            return
        keys = [self._sample_key(int(n), wanted) for n in numbers.tolist()]
        found = [self._read(key, batch.device) for key in keys]
        if all(values is not None for values in found):
            entries = [values for values in found if values is not None]
            for name in sorted(entries[0]):
                sink(name.split("|", 1)[1], torch.cat([values[name] for values in entries]))
            self.hits += 1
            return
        kept: dict[str, Tensor] = {}
        live(self._tee(_replacing(found, sink), kept))
        for at, (key, values) in enumerate(zip(keys, found, strict=True)):
            if values is None and kept:
                self._write(key, {name: value[at : at + 1].clone() for name, value in kept.items()})

    def _sample_key(self, number: int, wanted: Collection[str]) -> str:
        return hashlib.sha256("\0".join([self.fingerprint, *sorted(wanted), str(number)]).encode()).hexdigest()

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Do nothing: other runs use the entries."""


def _replacing(found: Sequence[Mapping[str, Tensor] | None], sink: Sink) -> Sink:
    """Return a sink that replaces computed values by stored ones. The result does not depend on which samples are
    already stored, so a killed run resumes exactly."""
    stored = {
        at: {name.split("|", 1)[1]: value for name, value in values.items()}
        for at, values in enumerate(found)
        if values is not None
    }

    def replace(name: str, value: Any) -> None:
        if stored:
            value = value.clone()
            for at, values in stored.items():
                value[at] = values[name][0]
        sink(name, value)

    return replace
