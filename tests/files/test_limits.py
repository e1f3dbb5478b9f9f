"""What is believed about files of others: sizes, ratios, depths and numbers, refused before memory is taken."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from xarch.config.load import load_config
from xarch.config.yaml_text import MAX_NODES, parse_yaml
from xarch.contracts.options import Options
from xarch.contracts.typed import Size, typed
from xarch.errors import UsageError
from xarch.files.archive import extract_member
from xarch.files.bounded_json import parse_json, read_json
from xarch.files.header import weights_header
from xarch.files.limits import LARGEST, RATIO_FREE, absurd_number, check_stored_archive, shown, too_dense


@pytest.mark.slow
@pytest.mark.timeout(40)
@pytest.mark.parametrize(
    "text",
    [
        "a: [" + "1," * 400_000 + "]",
        "a:\n" + "- 1\n" * 230_000,
        "a: " + "[" * 400_000,
        "a: " + "{b: " * 900 + "1" + "}" * 900,
        "- " * 400_000,
        "a: 1" + "0" * 900_000,
    ],
    ids=["flow", "block", "brackets", "maps", "dashes", "digits"],
)
def test_a_large_configuration_is_refused_while_it_is_read(text: str) -> None:
    """faults 22: 0.8 MB with 400,000 scalars took over a minute."""
    with pytest.raises(UsageError):
        parse_yaml(text, "run.yaml")


def test_a_configuration_below_the_limit_is_read() -> None:
    assert len(parse_yaml("\n".join(f"k{i}: 1" for i in range(2000)), "a").data) == 2000
    assert MAX_NODES >= 20_000


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[" * 200 + "]" * 200, "levels deep"),
        ("[" * 100_000, "too deeply"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ("[1e999]", "beyond any number"),
        ("1" * 5000, "not valid JSON"),
        ("[" + "0," * 50 + "0]", "more than 20 values"),
        ("", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
    ],
)
def test_json_is_bounded(text: str | bytes, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        parse_json(text, "a.json", max_values=20 if what.endswith("values") else 1 << 20)


def test_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(" " * 1001)
    with pytest.raises(UsageError, match="larger than 1000"):
        read_json(tmp_path / "a.json", max_bytes=1000)
    (tmp_path / "a.yaml").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="larger than"):
        load_config(str(tmp_path / "a.yaml"))


def test_a_header_of_a_million_tensors_is_refused_unread(tmp_path: Path) -> None:
    head = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' + b',"b":[]' * 4_000_000 + b"}"
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(UsageError, match="values"):
        weights_header(tmp_path / "a.safetensors")


def test_archives_are_judged_by_ratio_beyond_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not too_dense(1, RATIO_FREE)
    assert too_dense(RATIO_FREE // 1000, RATIO_FREE + 1)
    assert not too_dense(RATIO_FREE // 50, 2 * RATIO_FREE)
    monkeypatch.setattr("xarch.files.limits.RATIO_FREE", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * (2 << 20))
    with pytest.raises(UsageError, match="unpacks from"):
        extract_member(tmp_path / "a.zip", "a", tmp_path / "out")
    with pytest.raises(UsageError, match="more than its own size"):
        check_stored_archive(tmp_path / "a.zip")
    assert not (tmp_path / "out").exists()


class Sized(Options):
    width: int = 1
    rate: float = 1.0
    more: dict[str, Any] = Field({})


@pytest.mark.parametrize("data", [{"width": 10**30}, {"rate": 10**400}, {"more": {"a": [1, -(10**17)]}}])
def test_options_take_no_absurd_number(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(LARGEST)):
        Sized.model_validate(data)


@pytest.mark.parametrize(
    "given",
    [
        "budget=1e400", "budget=9" + "9" * 30, "budget=" + "9" * 5000, "seed=-1", "seed=" + "9" * 20,
        "stages.hidden.batch.size=1e18", "stages.hidden.batch.size=1000000000000",
        "stages.hidden.units=" + "9" * 400 + "G",
        "stages.hidden.optimiser.lr=1e300", "runtime.threads=1000000", "evaluate.samples=1000000000",
        "stages.hidden.epochs=1e12", "runtime.cache_gb=.inf", "stages.hidden.ema=1e99",
    ],
)  # fmt: skip
def test_set_refuses_absurd_values_with_their_limit(given: str) -> None:
    """faults 3: some of these ended in OverflowError or ValueError."""
    with pytest.raises(UsageError) as caught:
        load_config("mohawk", sets=[given])
    assert given.split("=")[0].split(".")[-1] in str(caught.value)


@dataclass(frozen=True)
class Facts:
    layers: Size
    scale: float = 1.0
    windows: tuple[int | None, ...] = ()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({}, "layers"),
        ({"layers": "many"}, "valid integer"),
        ({"layers": 1 << 30}, "less than or equal"),
        ({"layers": 1, "other": 2}, "other"),
        ({"layers": 1, "scale": float("nan")}, "beyond any number"),
        ({"layers": 10**400}, "digits"),
        ({"layers": 1, "windows": [1, "x"]}, "windows.1"),
        ([], "dictionary"),
        (None, "dictionary"),
    ],
)
def test_facts_are_typed(data: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        typed(Facts, data, "facts")
    assert typed(Facts, {"layers": 3, "windows": [None, 4]}, "facts") == Facts(3, 1.0, (None, 4))


def test_values_are_shown_whatever_they_are() -> None:
    for value in (10**5000, "x" * 9000, [0] * 9000, float("nan"), {"a": 1}):
        assert len(shown(value)) < 120
    assert absurd_number({"a": [{"b": 10**30}]}) == ("a.0.b", 10**30)
    assert absurd_number(json.loads("[1, 2.5, true, null]")) is None


def test_a_gzip_bomb_of_text_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xarch_text.corpus import find_corpus
    from xarch_text.reading import pieces_of
    from xarch_text.tally import Unreadable

    monkeypatch.setattr("xarch.files.limits.RATIO_FREE", 1 << 20)
    with gzip.open(tmp_path / "a.txt.gz", "wb", compresslevel=1) as out:
        out.write(b"a " * (1 << 20))
    (file,) = find_corpus(str(tmp_path / "a.txt.gz"), [], "auto").files
    with pytest.raises(Unreadable):
        for _ in pieces_of(file, 1 << 16):
            pass
