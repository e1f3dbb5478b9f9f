"""Data providers ``datasets`` and ``datasets-images``: rows are stored once; ``text:`` and ``images:`` read them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from xarch import BatchStream, DataInfo, DataProvider, DataRequest, Options, PlanError, UsageError, validated
from xarch_datasets.stored import Stored, Wanted, stored

DEFAULT_LENGTH = 512


class RowOptions(Options):
    """Options for choosing rows, and for reading them."""

    config: str | None = Field(None, description="configuration of the data set, e.g. wikitext-2-raw-v1")
    split: str | None = Field(None, description="split to read; default: train of texts, all of pictures")
    column: str | None = Field(None, description="column to read; default: the only one of its kind, or `text`")
    rows: int | None = Field(None, ge=1, description="first rows of a split to read; of a hub's, no others are fetched")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the provider that reads the rows")


class TokenRow(Options):
    """Form of one row."""

    length: int = Field(DEFAULT_LENGTH, strict=True, ge=2, le=1 << 24, description="tokens of a row")


class StoredData(DataProvider):
    """Data sets as the library `datasets` loads them: ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` on the Hugging Face
    hub, or a folder: saved by ``save_to_disk``, or of Parquet, Arrow, JSON lines or CSV files. Folders need no network.

    The rows are stored as Parquet once, in the user's cache, a batch at a time.
    """

    Options = RowOptions
    split: str | None = None

    def describe(self, request: DataRequest) -> DataInfo:
        """See :meth:`xarch.DataProvider.describe`. Fetches the rows if they are not stored yet."""
        rows, opened = self._opened(request)
        info = opened.adapter.describe(replace(opened.request, sample=request.sample, facts=request.facts))
        shown = ", ".join(f"{count} of {split}" for split, count in sorted(rows.rows.items()))
        hub = {} if Path(request.ref).expanduser().is_dir() else {"hub_dataset": request.ref.partition("@")[0]}
        return replace(info, title=f"{request.ref}, rows: {shown}", facts={**info.facts, **hub})

    def open(self, request: DataRequest) -> BatchStream:
        """See :meth:`xarch.DataProvider.open`."""
        kept = ("split", "samples", "sample", "processors", "seed", "teacher", "facts", "workers")
        stream: BatchStream = self._opened(request)[1].open(**{name: getattr(request, name) for name in kept})
        return stream

    def _opened(self, request: DataRequest) -> tuple[Stored, Any]:
        options: RowOptions = request.options
        rows = stored(Wanted(request.ref, options.config, options.split or self.split, options.rows))
        if request.provider is None:
            raise PlanError(f"{type(self).__name__} needs the provider of its request")
        return rows, request.provider(*self.reading(rows, request.ref, options))

    @abstractmethod
    def reading(self, rows: Stored, ref: str, options: RowOptions) -> tuple[str, dict[str, Any]]:
        """Return reference and options of the provider that reads the rows.

        Raises:
            UsageError: it is not clear which column is meant.
        """


class TextRows(StoredData):
    """A column of texts; every row is a document. Batches are those of ``text:``."""

    Sample = TokenRow
    split = "train"

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        return validated(TokenRow, sample, "sample").length

    def sizes(self, sample: Mapping[str, Any]) -> Mapping[str, int]:
        return {"L": validated(TokenRow, sample, "sample").length}

    def reading(self, rows: Stored, ref: str, options: RowOptions) -> tuple[str, dict[str, Any]]:
        column = options.column or ("text" if "text" in rows.texts else _only(rows.texts, "texts", ref))
        return f"text:{rows.folder}", {"field": column, "extensions": [".parquet"], **options.options}


class PictureRows(StoredData):
    """A column of pictures, and one of labels. Batches and splits are those of ``images:``."""

    def reading(self, rows: Stored, ref: str, options: RowOptions) -> tuple[str, dict[str, Any]]:
        column = options.column or _only(rows.pictures, "pictures", ref)
        return f"images:{rows.folder}", {"image_column": column, **options.options}


def _only(columns: tuple[str, ...], what: str, ref: str) -> str:
    if len(columns) == 1:
        return columns[0]
    found = f"several columns of {what}: {', '.join(columns)}" if columns else f"no column of {what}"
    other = "datasets-images" if what == "texts" else "datasets"
    raise UsageError(
        f"{ref} has {found}", "`--set data.options.column=NAME`" if columns else f"perhaps {other}:{ref} is meant"
    )
