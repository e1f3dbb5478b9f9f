"""Data provider ``images``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from xarch import (
    BatchStream,
    DataInfo,
    DataProvider,
    DataRequest,
    TensorInfo,
    UsageError,
    sampled_digest,
)
from xarch_pictures.arrays import read_digits, read_idx, read_npz
from xarch_pictures.cifar import read_cifar
from xarch_pictures.folders import read_folder
from xarch_pictures.options import PictureOptions
from xarch_pictures.parquet import read_parquet
from xarch_pictures.selecting import SPLITS, Selection, select
from xarch_pictures.table import Table, part_of
from xarch_pictures.views import Form, PictureStream, Samples

DIGITS = "digits"
USUAL_SIZE = 224
HINT = "a folder with one sub-folder a class, or of Parquet, CIFAR or IDX files; FILE.npz; images:digits"


class PictureData(DataProvider):
    """Pictures, with labels or without.

    References: ``images:FOLDER`` (classes are sub-folders, also below ``train``, ``val`` and ``test``; without
    sub-folders there are no labels), folders or files of Parquet with a column of image files, the folders of CIFAR-10
    and CIFAR-100 of torchvision, folders of IDX files (MNIST and its kin, also .gz), ``images:FILE.npz``, and
    ``images:digits`` (scikit-learn).

    Batches hold ``images`` float32 [B,C,H,W] in 0..1, not normalised, ``labels`` int64 [B], ``index`` int64 [B], which
    numbers the training pictures from 0, and ``sample_id``; ``images@teacher`` and ``images@ema`` where the teacher or
    the student's moving average sees other pictures.
    Units are images.
    """

    Options = PictureOptions

    def describe(self, request: DataRequest) -> DataInfo:
        options: PictureOptions = request.options
        table, chosen, form = _resolved(request)
        samples = {split: len(chosen.indices[split]) for split in SPLITS}
        facts: dict[str, Any] = {"indices": samples["train"], "size": form.size, "channels": form.channels}
        samples["train"] *= options.augment.repeats
        facts["samples"] = samples
        shape = {"C": form.channels, "H": form.size, "W": form.size}
        tensors = {"images": TensorInfo("BCHW", shape), "index": TensorInfo("B")}
        if form.views(options):
            seen = {"C": form.channels, "H": form.teacher_size, "W": form.teacher_size}
            tensors["images@teacher"] = TensorInfo("BCHW", seen)
        if options.ema_view != "same":
            tensors["images@ema"] = TensorInfo("BCHW", shape)
        warnings = table.warnings
        if chosen.labels is not None:
            counts = chosen.counts(len(table.names))
            facts |= {"classes": len(table.names), "class_counts": counts, "class_names": list(table.names)}
            if missing := [name for name, n in zip(table.names, counts, strict=True) if not n]:
                seen_by = "class has" if len(missing) == 1 else "classes have"
                warnings += (f"{len(missing)} {seen_by} no training pictures with a label: {', '.join(missing[:4])}",)
            tensors["labels"] = TensorInfo("B")
            if chosen.labelled is not None:
                tensors["labelled"] = TensorInfo("B", dtype="float32")
        chosen_by = options.model_dump_json()
        return DataInfo(
            table.title,
            f"{_digest(table)} {form} {chosen_by}",
            "image",
            size={"pictures": len(table), **samples},
            tensors=tensors,
            facts=facts,
            warnings=warnings,
        )

    def open(self, request: DataRequest) -> BatchStream:
        """See :meth:`xarch.DataProvider.open`.

        Raises:
            UsageError: the split has no pictures, or the batch does not fit the repeats.
        """
        table, chosen, form = _resolved(request)
        samples = Samples(table, chosen, request.options, form, training=request.split == "train")
        return PictureStream(samples, request, chosen.indices[request.split], request.options.skip_limit)


def _resolved(request: DataRequest) -> tuple[Table, Selection, Form]:
    options: PictureOptions = request.options
    if request.sample:
        raise UsageError(f"a sample of pictures has no {sorted(request.sample)[0]!r}", "see data.options")
    facts = request.facts or getattr(request.teacher, "facts", None)
    table = find_table(request.ref, options)
    native = min(table.size) if table.size else None
    size = options.size or native or int(getattr(facts, "height", USUAL_SIZE))
    channels = options.channels or getattr(facts, "channels", None) or table.channels
    return table, _selected(table, options.model_dump_json()), Form(size, channels, options.teacher_size or size)


@lru_cache(maxsize=4)
def _digest(table: Table) -> str:
    return sampled_digest(table.files) if table.files else table.title


@lru_cache(maxsize=4)
def _selected(table: Table, options: str) -> Selection:
    return select(table, PictureOptions.model_validate_json(options))


def find_table(ref: str, options: PictureOptions) -> Table:
    """Return the data set of a reference.

    Raises:
        UsageError: it does not exist, is damaged, or is of no known format.
    """
    if ref == DIGITS:
        return _digits(options.labels)
    path = Path(ref).expanduser()
    if not path.exists():
        raise UsageError(f"images:{ref} does not exist (looked for {path.absolute()})", HINT)
    return _table(path, options.labels, options.image_column, options.label_column, _stamp(path))


@lru_cache(maxsize=2)
def _digits(labels: bool) -> Table:
    return read_digits(labels)


def _stamp(path: Path) -> tuple[Any, ...]:
    """Return what changes with the files and classes in a folder, so that a changed data set is read anew."""
    seen = [path]
    if path.is_dir():
        seen += path.iterdir()
        seen += [p for part in seen[1:] if part_of(part.name) is not None and part.is_dir() for p in part.iterdir()]
    return tuple(sorted((str(p), s.st_mtime_ns, s.st_size) for p in seen for s in [p.lstat()]))


@lru_cache(maxsize=4)
def _table(path: Path, labels: bool, image: str | None, label: str | None, stamp: Mapping[str, Any]) -> Table:
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return read_npz(path, labels)
        if path.suffix.lower() == ".parquet":
            return read_parquet([path], image, label, labels)
    elif path.is_dir():
        tables = sorted(p for depth in ("*", "*/*") for p in path.glob(f"{depth}.parquet") if p.name[0] != ".")
        if tables:
            return read_parquet(tables, image, label, labels)
        found = read_cifar(path, labels) or read_idx(path, labels) or read_folder(path, labels)
        if found is not None:
            return found
    raise UsageError(f"images:{path} holds no pictures that can be read", HINT)
