"""Data sets of the library `datasets`, in every form in which a folder holds them, without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.plugins.pictures.picture_files import write_parquet
from xarch.errors import UsageError
from xarch.planning.resolve import providers, resolve_data
from xarch.registry.loader import get_registry
from xarch.testing import DataConformance
from xarch_datasets.stored import Wanted, stored

datasets = pytest.importorskip("datasets")
SENTENCES = [f"Sentence {i} says that {i * 7919 % 10007} is not {i * 104729 % 99991}." for i in range(600)]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def saved(folder: Path) -> str:
    rows = datasets.Dataset.from_dict({"text": SENTENCES, "number": list(range(len(SENTENCES)))})
    datasets.DatasetDict({"train": rows.select(range(500)), "test": rows.select(range(500, 600))}).save_to_disk(folder)
    return str(folder)


class TestTexts(DataConformance):
    options: ClassVar[Mapping[str, Any]] = {"options": {"tokenizer": "bytes"}}
    sample: ClassVar[Mapping[str, Any]] = {"length": 32}
    workers = False

    def make_ref(self, folder: Path) -> str:
        return f"datasets:{saved(folder / 'saved')}"


class TestPictures(DataConformance):
    options: ClassVar[Mapping[str, Any]] = {"options": {"heldout": 0.2, "validation": 0.1, "calibration": 0.1}}
    samples = 4
    most = 60
    workers = False

    def make_ref(self, folder: Path) -> str:
        return f"datasets-images:{write_parquet(folder / 'p')}"


def test_a_folder_of_files_and_only_some_rows(tmp_path: Path) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    lines = "".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES[:100])
    (folder / "a.jsonl").write_text(lines)
    (folder / "test-a.jsonl").write_text(lines)
    assert stored(Wanted(str(folder), None, None, None)).rows == {"train": 100, "test": 100}
    few = stored(Wanted(str(folder), None, "train", 7))
    assert (few.rows, few.texts) == ({"train": 7}, ("text",))
    stamp = few.folder.stat().st_mtime_ns
    assert stored(Wanted(str(folder), None, "train", 7)).folder.stat().st_mtime_ns == stamp
    (folder / "a.jsonl").write_text(lines + lines)
    assert stored(Wanted(str(folder), None, None, None)).rows["train"] == 200


def test_what_cannot_be_read_says_what_can(tmp_path: Path) -> None:
    def described(ref: str, **options: Any) -> Any:
        found = resolve_data(get_registry(), ref, options)
        opened = providers(get_registry())(ref, options)
        return found.adapter.describe(opened.request)

    place = saved(tmp_path / "saved")
    assert described(f"datasets:{place}").title.endswith("rows: 500 of train")
    with pytest.raises(UsageError, match="no split 'dev'; it has train, test"):
        described(f"datasets:{place}", split="dev")
    with pytest.raises(UsageError, match="no column of pictures"):
        described(f"datasets-images:{place}")
    with pytest.raises(UsageError, match="neither a folder"):
        described("datasets:./nowhere/at/all")
    with pytest.raises(UsageError, match="datasets:me/unknown cannot be loaded"):
        described("datasets:me/unknown")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no file that can be read"):
        described(f"datasets:{tmp_path / 'empty'}")
