"""Files as other programs leave them: bad rows among good ones, kinds that no extension tells, forms of strings."""

from __future__ import annotations

import bz2
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plugins.text.text_corpora import prose
from xarch import DataRequest, UsageError
from xarch_text.options import TextOptions
from xarch_text.provider import TextData
from xarch_text.tally import PATIENCE

Open = Callable[..., Any]
PASS = {"validation": 0.0, "heldout": 0.0, "calibration": 0.0}


def rows(path: Path, bad: float, count: int = 1200, *, first: bool = False) -> Path:
    """JSON lines of which a share is empty, drawn anywhere or all at the beginning."""
    lines = [{"text": prose(i, 24)} for i in range(count)]
    numbers = range(count) if first else random.Random(0).sample(range(count), count)
    for i in list(numbers)[: round(bad * count)]:
        lines[i] = {"text": ""}
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def run(stream: Any, read: int) -> dict[str, int]:
    while stream.counters()["read"] < read:
        next(stream)
    return stream.counters()


@pytest.mark.parametrize("block", [16, 5000])
@pytest.mark.parametrize("bad", [0.01, 0.06, 0.15, 0.19])
def test_bad_rows_below_the_limit_are_skipped_pass_after_pass(
    tmp_path: Path, open_text: Open, bad: float, block: int
) -> None:
    """h01: skipped rows were counted when met, good ones only when their block was full."""
    path = rows(tmp_path / "a.jsonl", bad)
    good, lost = 1200 - round(bad * 1200), round(bad * 1200)
    counters = run(open_text(path, shuffle_records=block, samples=1, **PASS), 2 * good + 1)
    assert counters["skipped_empty"] >= 2 * lost
    assert counters["skipped_empty"] / (counters["skipped_empty"] + counters["read"]) == pytest.approx(bad, abs=0.02)


@pytest.mark.parametrize("block", [16, 5000])
def test_bad_rows_above_the_limit_end_the_pass(tmp_path: Path, open_text: Open, block: int) -> None:
    """h01: the share of the whole corpus decides, and is named."""
    path = rows(tmp_path / "a.jsonl", 0.21)
    stream = open_text(path, shuffle_records=block, samples=1, **PASS)
    with pytest.raises(UsageError, match="252 of 1200 documents cannot be used"):
        run(stream, 1000)


def test_bad_rows_that_all_come_first_do_not_end_a_pass(tmp_path: Path, open_text: Open) -> None:
    """h01: what comes first says nothing of the share."""
    path = rows(tmp_path / "a.jsonl", 0.1, first=True)
    assert run(open_text(path, shuffle_records=16, samples=1, **PASS), 1081)["skipped_empty"] >= 120


def test_a_corpus_without_a_good_row_ends_early(tmp_path: Path, open_text: Open) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n' * (3 * PATIENCE))
    with pytest.raises(UsageError, match=f"{round(PATIENCE / 0.8) + 1} of the first"):
        next(open_text(path, **PASS))


def test_counts_go_on_where_a_run_was_interrupted(tmp_path: Path, open_text: Open) -> None:
    """h01: neither side of the share is counted twice, nor left out, by a resume."""
    path = rows(tmp_path / "a.jsonl", 0.19)
    whole, part = (open_text(path, shuffle_records=64, samples=1, **PASS) for _ in range(2))
    for _ in range(700):
        next(whole)
    for _ in range(300):
        next(part)
    again = open_text(path, shuffle_records=64, samples=1, **PASS)
    again.load_state_dict(json.loads(json.dumps(part.state_dict())))
    for _ in range(400):
        next(again)
    assert again.counters() == whole.counters()


def test_damaged_files_count_by_their_bytes(tmp_path: Path, open_text: Open) -> None:
    """h01: one of two files is one of a thousand documents, and half of the corpus."""
    rows(tmp_path / "a.jsonl", 0.0, 400)
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b" + b"damaged" * 9000)
    with pytest.raises(UsageError, match=r"files with 63002 of \d+ bytes cannot be used"):
        run(open_text(tmp_path, samples=1, **PASS), 500)


TEXTS = [{"id": i, "meta": {"tags": ["a", "]", '"']}, "text": f"record {i} says hello. " * 3} for i in range(200)]
LAYOUTS = {
    "lines": "\n".join(map(json.dumps, TEXTS)),
    "array": json.dumps(TEXTS),
    "array over lines": json.dumps(TEXTS, indent=2),
    "array with a mark": "\ufeff [\n" + ",\n".join(json.dumps(t, ensure_ascii=False) for t in TEXTS) + "\n]\n",
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.data", "a.json.gz", "records"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_in_json_are_found_whatever_their_file_is_called(
    tmp_path: Path, open_text: Open, layout: str, name: str, tokenizer: Any
) -> None:
    """h02: braces and keys are no text."""
    content = LAYOUTS[layout].encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    stream = open_text(tmp_path / name, samples=1, length=256, **PASS)
    text = "".join(tokenizer.decode(next(stream)["input_ids"][0]) for _ in range(10))
    assert "says hello" in text
    assert not set('{}":') & set(text)
    assert run(open_text(tmp_path / name, samples=1, shuffle=False, interleave=1, **PASS), 200)["read"] == 200


def test_an_array_goes_on_behind_any_of_its_elements(tmp_path: Path, open_text: Open) -> None:
    (tmp_path / "a.json").write_text(json.dumps(TEXTS, indent=1, ensure_ascii=False).replace("hello", "hällo"))
    options = {"samples": 1, "shuffle_records": 16, **PASS}
    whole, part = open_text(tmp_path / "a.json", **options), open_text(tmp_path / "a.json", **options)
    expected = [next(whole)["input_ids"].tolist() for _ in range(120)]
    for _ in range(50):
        next(part)
    again = open_text(tmp_path / "a.json", **options)
    again.load_state_dict(part.state_dict())
    assert [next(again)["input_ids"].tolist() for _ in range(70)] == expected[50:]


def test_an_array_is_read_in_bounded_memory(tmp_path: Path, open_text: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xarch_text.records.MAX_LINE", 1 << 17)
    (tmp_path / "a.json").write_text(json.dumps([*TEXTS, {"text": "x" * (1 << 20)}, *TEXTS]))
    with pytest.raises(UsageError, match="too long"):
        run(open_text(tmp_path / "a.json", samples=1, **PASS), 300)


def test_one_object_is_no_prose(tmp_path: Path, open_text: Open) -> None:
    """h02: a configuration file is no document of text."""
    (tmp_path / "config.json").write_text(json.dumps({"width": 5, "names": ["a"] * 500}, indent=2))
    with pytest.raises(UsageError, match=r"1 of 1 documents cannot be used.*no text"):
        next(open_text(tmp_path / "config.json", **PASS))


KINDS = {
    "rows.csv": (b"id,text\n1,hello\n", "comma-separated"),
    "rows.jsonl.zst": (b"\x28\xb5\x2f\xfd" + b"x" * 99, "Zstandard"),
    "rows.bz2": (bz2.compress(b"text"), "bzip2"),
    "book.docx": (b"PK\x03\x04" + b"x" * 99, "zip archive"),
    "book.txt": (b"%PDF-1.7 ...", "PDF"),
    "utf16.txt": ("plain text".encode("utf-16"), "UTF-16"),
    "array.npy": (b"\x93NUMPY\x01\0", "NumPy"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_that_are_not_read_are_refused_by_name_in_the_plan(tmp_path: Path, name: str) -> None:
    """h02: a reader is not chosen by the extension alone, and an unknown kind is no prose."""
    content, what = KINDS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=what):
        TextData().describe(DataRequest(str(tmp_path / name), TextOptions()))


def test_a_folder_says_what_it_does_not_read(tmp_path: Path) -> None:
    """h02: files that are passed over are counted in the plan."""
    (tmp_path / "a.txt").write_text(prose(0, 100))
    for name in ("b.json", "c.jsonl.zst", "d.jsonl.zst", "e.png"):
        (tmp_path / name).write_bytes(b"x")
    (warning,) = TextData().describe(DataRequest(str(tmp_path), TextOptions())).warnings
    assert "1 .json, 2 .jsonl.zst" in warning
    assert "png" not in warning


def test_records_among_text_files_are_counted_not_trained(tmp_path: Path, open_text: Open) -> None:
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(prose(i, 60))
    (tmp_path / "x.txt").write_text(LAYOUTS["lines"])
    assert run(open_text(tmp_path, samples=1, skip_limit=0.9, **PASS), 61)["skipped_json"] == 1


def test_what_a_file_is_can_be_said(tmp_path: Path, open_text: Open, tokenizer: Any) -> None:
    (tmp_path / "a.json").write_text(LAYOUTS["lines"])
    batch = next(open_text(tmp_path / "a.json", samples=1, length=256, read_as="text", **PASS))
    assert '"text":' in tokenizer.decode(batch["input_ids"][0])


def columns() -> dict[str, Any]:
    import pyarrow as pa

    texts = pa.array([f"record {i} says hello world. " * 3 for i in range(60)])
    return {
        "string": texts,
        "large_string": texts.cast(pa.large_string()),
        "string_view": texts.cast(pa.string_view()),
        "categorical": texts.dictionary_encode(),
        "large categorical": texts.cast(pa.large_string()).dictionary_encode(),
        "bytes": texts.cast(pa.binary()),
    }


@pytest.mark.parametrize("form", columns())
def test_every_form_of_text_in_parquet_is_read(tmp_path: Path, open_text: Open, form: str, tokenizer: Any) -> None:
    """h03: pandas writes a categorical column as a dictionary of strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": columns()[form]}), tmp_path / "a.parquet")
    batch = next(open_text(tmp_path / "a.parquet", samples=1, length=64, **PASS))
    assert "says hello world." in tokenizer.decode(batch["input_ids"][0])


def test_a_column_inside_of_a_structure(tmp_path: Path, open_text: Open, tokenizer: Any) -> None:
    """h03: `a.b` names a nested text in Parquet as in JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    docs = [{"body": f"record {i} says hello. " * 3, "n": i} for i in range(60)]
    pq.write_table(pa.table({"doc": docs}), tmp_path / "a.parquet")
    batch = next(open_text(tmp_path / "a.parquet", samples=1, length=64, field="doc.body", **PASS))
    assert "says hello." in tokenizer.decode(batch["input_ids"][0])
    with pytest.raises(UsageError, match="no text column 'text'") as caught:
        next(open_text(tmp_path / "a.parquet"))
    assert "doc.body" in str(caught.value.hint)


def test_parquet_is_parquet_under_any_name(tmp_path: Path, open_text: Open) -> None:
    """h03: the first bytes say what a file without an extension is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": columns()["string"]}), tmp_path / "part-0000")
    assert len(list(islice(open_text(tmp_path / "part-0000", **PASS), 3))) == 3


def test_rows_longer_than_the_teacher_reads_are_refused_in_the_plan(tmp_path: Path) -> None:
    """h17: the description knows the facts, so no stage has to find it out."""
    (tmp_path / "a.txt").write_text(prose(0, 100))
    request = DataRequest(str(tmp_path / "a.txt"), TextOptions(), facts=SimpleNamespace(max_positions=256))
    with pytest.raises(UsageError, match="512 tokens, but the teacher supports at most 256"):
        TextData().describe(request)
    TextData().describe(replace(request, sample={"length": 256}))
