"""References, formats, documents that cannot be used, options."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.plugins.text.text_corpora import prose
from xarch import DataRequest, UsageError
from xarch_text.corpus import find_corpus
from xarch_text.html_text import without_tags
from xarch_text.library import Library
from xarch_text.options import EXTENSIONS, TextOptions
from xarch_text.provider import TextData
from xarch_text.tally import Tally

Open = Callable[..., Any]


def good_files(root: Path, count: int = 60) -> Path:
    root.mkdir(exist_ok=True)
    for i in range(count):
        (root / f"good{i:02d}.txt").write_text(prose(i, 40))
    return root


def one_pass(ref: Path, **options: Any) -> dict[str, int]:
    """Counters of reading every document once."""
    library = Library(
        find_corpus(str(ref), EXTENSIONS), TextOptions(heldout=0, validation=0, calibration=0, **options), "train"
    )
    tally = Tally(1.0)
    for file in library.files:
        for _ in library.blocks(file, tally):
            pass
    return tally.counts


def test_registration_imports_nothing_heavy() -> None:
    code = (
        "import sys, xarch_text\n"
        "from xarch.registry.declare import Declarations\n"
        "r = Declarations('text'); xarch_text.xarch_register(r)\n"
        "print([(s.kind, s.name, s.accepts) for s in r.specs], {'torch', 'transformers', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    metrics = ", ".join(f"('metric', '{name}', ('decoder',))" for name in ("perplexity", "recall"))
    data = ", ".join(f"('data', '{name}', ())" for name in ("text", "pairs", "denoising"))
    assert done.stdout.strip() == f"[{data}, {metrics}, ('report', 'domains', ('decoder',))] set()"


@pytest.mark.timeout(60)
def test_describing_reads_samples_of_the_content(tmp_path: Path) -> None:
    root = good_files(tmp_path / "c", 3)
    os.truncate(root / "good02.txt", 1 << 36)
    info = TextData().describe(DataRequest(str(root), TextOptions()))
    assert (info.unit, info.size["files"]) == ("token", 3)
    assert info.size["bytes"] == sum(f.stat().st_size for f in root.iterdir())
    text = (root / "good00.txt").read_text()
    (root / "good00.txt").write_text(f"{text[:-1]}#")
    assert TextData().describe(DataRequest(str(root), TextOptions())).digest != info.digest


@pytest.mark.parametrize(
    ("ref", "files"),
    [("c", 3), ("c/b.md", 1), ("c/*.md", 1), ("c/**/*.txt", 2), ("c/sub", 1)],
)
def test_references(tmp_path: Path, ref: str, files: int) -> None:
    (tmp_path / "c" / "sub").mkdir(parents=True)
    (tmp_path / "c" / ".hidden").mkdir()
    for name in ("a.txt", "b.md", "sub/d.txt", "picture.png", ".hidden/x.txt", ".dot.txt"):
        (tmp_path / "c" / name).write_text("text")
    assert TextData().describe(DataRequest(str(tmp_path / ref), TextOptions())).size["files"] == files


def test_extensions_choose_the_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.log", "b.txt", "c.log.gz"):
        (tmp_path / name).write_text("text")
    count = [
        TextData().describe(DataRequest(str(tmp_path), TextOptions(extensions=e))).size["files"]
        for e in (["log"], [".txt"], [])
    ]
    assert count == [2, 1, 3]


@pytest.mark.parametrize("ref", ["missing.txt", "empty", "empty/*.txt"])
def test_nothing_there_is_a_usage_error(tmp_path: Path, ref: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError):
        TextData().describe(DataRequest(str(tmp_path / ref), TextOptions()))


def test_identities_do_not_depend_on_where_the_folder_is(tmp_path: Path, open_text: Open) -> None:
    stream = [open_text(good_files(tmp_path / name), "heldout") for name in ("one", "two")]
    assert [b.meta for b in stream[0]] == [b.meta for b in stream[1]]


BAD: dict[str, tuple[str, bytes]] = {
    "skipped_empty": ("bad.txt", b""),
    "skipped_not_utf8": ("bad.txt", b"caf\xe9 " * 20),
    "skipped_binary": ("bad.txt", b"\x7fELF\0\0\0" * 20),
    "skipped_corrupt": ("bad.txt.gz", gzip.compress(prose(1, 4000).encode())[:200]),
}


@pytest.mark.parametrize("reason", BAD)
def test_unusable_files_are_counted_and_skipped(tmp_path: Path, open_text: Open, reason: str) -> None:
    name, content = BAD[reason]
    root = good_files(tmp_path / "c")
    for i in range(3):
        (root / f"{i}{name}").write_bytes(content)
    counters = one_pass(root)
    assert counters[reason] == 3
    assert counters["read"] == 60


def test_a_corrupt_parquet_file_is_skipped(tmp_path: Path, open_text: Open) -> None:
    root = good_files(tmp_path / "c")
    (root / "bad.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")
    counters = one_pass(root)
    assert counters["skipped_corrupt"] == 1


def test_unusable_records_are_counted_by_reason(tmp_path: Path, open_text: Open) -> None:
    lines = [json.dumps({"text": prose(i, 40)}).encode() for i in range(100)]
    lines[10:10] = [
        b"{not json",
        b'{"other": 1}',
        b'{"text": ""}',
        b'{"text": 5}',
        b'\xff\xfe{"text": "x"}',
        b"[" * 9999,
    ]
    lines += [b'{"text": "half a pair \\ud800"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    counters = one_pass(tmp_path / "a.jsonl")
    assert counters == {
        "read": 100,
        "skipped_invalid_json": 2,
        "skipped_no_text": 2,
        "skipped_empty": 1,
        "skipped_not_utf8": 2,
    }


def test_records_before_the_damage_are_used(tmp_path: Path, open_text: Open) -> None:
    content = b"".join(json.dumps({"text": prose(i, 40)}).encode() + b"\n" for i in range(2000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content)[:-5000])
    counters = one_pass(tmp_path / "a.jsonl.gz")
    assert counters["skipped_corrupt"] == 1
    assert counters["read"] > 1000


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_too_much_unusable_is_an_error_that_names_the_first_three(tmp_path: Path, open_text: Open, split: str) -> None:
    root = good_files(tmp_path / "c")
    for i in range(60):
        (root / f"bad{i}.txt").write_bytes(b"\xff\xfe" * 50)
    stream = open_text(root, split, heldout=0.4)
    with pytest.raises(UsageError, match="cannot be used, more than the limit of 20%") as caught:
        list(islice(stream, 5000))
    assert caught.value.what.count("bad") == 3
    assert "not UTF-8" in caught.value.what


def test_the_limit_can_be_raised(tmp_path: Path, open_text: Open) -> None:
    root = good_files(tmp_path / "c")
    for i in range(60):
        (root / f"bad{i}.txt").write_bytes(b"")
    stream = open_text(root, skip_limit=0.9, length=64, samples=1)
    for _ in range(200):
        next(stream)
    assert stream.counters()["skipped_empty"] > 30


def test_only_unusable_documents_do_not_hang(tmp_path: Path, open_text: Open) -> None:
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text("  \n ")
    with pytest.raises(UsageError):
        next(open_text(tmp_path))
    with pytest.raises(UsageError, match="no usable document"):
        next(open_text(tmp_path, skip_limit=1.0))


def test_heldout_that_does_not_fill_a_row_is_an_error(tmp_path: Path, open_text: Open) -> None:
    (tmp_path / "a.txt").write_text("very little text")
    with pytest.raises(UsageError, match="do not fill one row"):
        next(open_text(tmp_path / "a.txt", "heldout"))


def test_parquet_needs_the_column(tmp_path: Path, open_text: Open) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": [prose(i, 40) for i in range(80)], "n": list(range(80))}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="no text column 'text'") as caught:
        next(open_text(tmp_path / "a.parquet"))
    assert "body" in str(caught.value.hint)
    assert next(open_text(tmp_path / "a.parquet", field="body")).units == 64


def test_a_field_may_be_nested(tmp_path: Path, open_text: Open) -> None:
    rows = [json.dumps({"doc": {"body": prose(i, 40)}}) for i in range(80)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert one_pass(tmp_path / "a.jsonl", field="doc.body")["read"] == 80


def test_long_lines_are_not_held_in_memory(tmp_path: Path, open_text: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xarch_text.records.MAX_LINE", 1000)
    rows = [json.dumps({"text": prose(i, 40)}) for i in range(80)]
    rows[20] = json.dumps({"text": "x" * 5000})
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    counters = one_pass(tmp_path / "a.jsonl")
    assert counters["skipped_too_long"] == 1
    assert counters["read"] == 79


def test_html_keeps_the_visible_text_however_it_is_cut() -> None:
    page = (
        "<html><head><title>t</title><style>p {}</style><body><h1>Head &amp;\n line</h1><p>one <b>bold</b>  word"
        "<script>if (a < b) {}</script></p><pre>  kept\n    as is</pre><ul><li>x<li>y</ul></body>"
    )
    want = "Head & line\n\none bold word\n\n  kept\n    as is\n\nx\ny"
    assert "".join(without_tags(iter([page]))) == want
    for size in (1, 3, 7, 50):
        assert "".join(without_tags(page[i : i + size] for i in range(0, len(page), size))) == want


def test_line_ends_and_byte_order_marks_do_not_reach_the_model(tmp_path: Path, open_text: Open, tokenizer: Any) -> None:
    for i in range(60):
        (tmp_path / f"{i}.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n" * 1 + b"three\r\n" * 20)
    text = tokenizer.decode(next(open_text(tmp_path, length=80, samples=1))["input_ids"][0])
    assert text.startswith("one\ntwo\nthree\n")
    assert "\r" not in text


def test_rows_longer_than_the_teacher_reads_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    from types import SimpleNamespace

    teacher = SimpleNamespace(facts=SimpleNamespace(max_positions=64, vocab=20))
    root = good_files(tmp_path / "c")

    def open_(length: int) -> Any:
        return TextData().open(
            DataRequest(
                str(root),
                TextOptions(),
                split="train",
                samples=1,
                sample={"length": length},
                processors={"teacher": tokenizer},
                seed=0,
                teacher=teacher,
            )
        )

    with pytest.raises(UsageError, match="at most 64"):
        open_(65)
    with pytest.raises(UsageError, match="vocabulary ends at 19"):
        next(open_(64))


@pytest.mark.parametrize("sample", [{"length": 1}, {"length": "512"}, {"length": True}, {"size": 4}])
def test_wrong_samples_are_refused(sample: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TextData().units_per_sample(sample)


def test_units_of_a_sample_are_its_tokens() -> None:
    assert TextData().units_per_sample({"length": 77}) == 77


def test_a_teacher_without_tokenizer_says_so(tmp_path: Path) -> None:
    root = good_files(tmp_path / "c", 2)
    with pytest.raises(UsageError, match="no tokenizer"):
        TextData().open(
            DataRequest(
                str(root), TextOptions(), split="train", samples=1, sample={}, processors={"teacher": None}, seed=0
            )
        )


@pytest.mark.parametrize(
    "options", [{"validation": 0.5, "heldout": 0.5}, {"skip_limit": 2}, {"separator": "x"}, {"shufle": True}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TextOptions(**options)


def test_a_corpus_larger_than_memory_is_never_read_whole(tmp_path: Path, open_text: Open) -> None:
    """The file is a gigabyte on paper (sparse); the first batch may touch only its beginning."""
    path = tmp_path / "huge.jsonl"
    with open(path, "wb") as f:
        for i in range(300):
            f.write(json.dumps({"text": prose(i, 200)}).encode() + b"\n")
        f.truncate(1 << 30)
    import tracemalloc

    tracemalloc.start()
    try:
        batch = next(open_text(path, shuffle_records=100, samples=2, length=64))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert batch.units == 128
    assert peak < 32 << 20
