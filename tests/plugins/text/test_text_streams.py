"""Training and fixed streams: content, splits, shuffling, exact positions."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins.text.text_corpora import prose
from xarch import DataRequest, UsageError
from xarch_text.corpus import find_corpus
from xarch_text.options import TextOptions
from xarch_text.provider import TextData

Open = Callable[..., Any]


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(a[k], b[k]) for k in ("input_ids", "segment_ids"))


def names(stream: Any, batches: int | None = None) -> set[str]:
    taken = islice(stream, batches) if batches else stream
    return {n.split("#")[0] if ".txt" in n else n for b in taken for row in b.meta["documents"] for n in row}


def test_batches_are_int64_rows_with_segments(folder: Callable[..., Path], open_text: Open, tokenizer: Any) -> None:
    batch = next(open_text(folder(), samples=3, length=48))
    assert batch.units == 3 * 48
    for name in ("input_ids", "segment_ids"):
        assert batch[name].dtype == torch.int64
        assert batch[name].shape == (3, 48)
    assert (batch["segment_ids"][:, 1:] - batch["segment_ids"][:, :-1]).min() >= 0
    assert batch["segment_ids"][:, 0].tolist() == [0, 0, 0]


def test_rows_of_one_lane_spell_whole_documents(folder: Callable[..., Path], open_text: Open, tokenizer: Any) -> None:
    """Side-by-side reading off: rows put end to end are the documents in full, each ended by the separator."""
    root = folder(documents=60, words=30)
    stream = open_text(root, samples=1, length=64, interleave=1)
    ids: list[int] = []
    while stream.counters().get("read", 0) < 6:
        ids += next(stream)["input_ids"][0].tolist()
    ends = [i for i, t in enumerate(ids) if t == tokenizer.eos_token_id]
    texts = {p.read_text(): p for p in root.rglob("*.txt")}
    spelled = [tokenizer.decode(ids[a:b]) for a, b in zip([0, *[e + 1 for e in ends]], ends, strict=False)]
    assert len(spelled) >= 5
    assert all(t in texts for t in spelled)


def test_segments_change_exactly_after_the_separator(
    folder: Callable[..., Path], open_text: Open, tokenizer: Any
) -> None:
    for batch in islice(open_text(folder(words=24), samples=4, length=64), 10):
        ids, segments = batch["input_ids"], batch["segment_ids"]
        steps = segments[:, 1:] - segments[:, :-1]
        assert torch.equal(steps == 1, (ids[:, :-1] == tokenizer.eos_token_id))
        assert steps.unique().tolist() == [0, 1]


def test_crossing_documents_hides_their_boundaries(folder: Callable[..., Path], open_text: Open) -> None:
    root = folder(words=24)
    crossing, plain = next(open_text(root, cross_documents=True)), next(open_text(root))
    assert torch.equal(crossing["input_ids"], plain["input_ids"])
    assert not crossing["segment_ids"].any()


def test_text_that_spells_a_special_token_does_not_become_one(tmp_path: Path, open_text: Open, tokenizer: Any) -> None:
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text("before <|end|> after " * 4)
    stream = open_text(tmp_path, length=256, separator="none", samples=1)
    assert tokenizer.eos_token_id not in next(stream)["input_ids"]


@pytest.mark.parametrize("documents", [60, 12])
def test_splits_do_not_overlap_and_cover_the_files(
    folder: Callable[..., Path], open_text: Open, documents: int
) -> None:
    root = folder(documents=documents, words=60)
    options = {"split_by": "document"}
    heldout = names(open_text(root, "heldout", **options))
    validation = names(open_text(root, "validation", **options))
    calibration = names(open_text(root, "calibration", **options))
    train = names(open_text(root, **options), 400)
    assert heldout
    assert validation
    assert calibration
    assert not heldout & validation
    assert not calibration & (heldout | validation)
    assert not train & (heldout | validation | calibration)
    assert len(train | heldout | validation | calibration) == documents


def test_membership_depends_on_the_name_alone(folder: Callable[..., Path], open_text: Open) -> None:
    root = folder(documents=60)
    before = names(open_text(root, "heldout"))
    for i in range(20):
        (root / f"new{i}.txt").write_text(prose(1000 + i, 60))
    after = names(open_text(root, "heldout"))
    assert before == {n for n in after if not n.startswith("new")}


def test_one_file_is_split_inside_without_overlap(tmp_path: Path, open_text: Open, tokenizer: Any) -> None:
    book = tmp_path / "book.txt"
    lines = [f"line {i} {prose(i, 24).splitlines()[1]}" for i in range(1500)]
    book.write_text("\n".join(lines) + "\n")

    def seen(stream: Any) -> set[str]:
        text = "\n".join(tokenizer.decode(row) for b in stream for row in b["input_ids"].tolist())
        return {w for w in lines if w in text}

    heldout, validation = seen(open_text(book, "heldout", length=64)), seen(open_text(book, "validation", length=64))
    train = seen(islice(open_text(book, length=64), 800))
    assert min(len(heldout), len(validation)) > 20
    assert not train & heldout
    assert not train & validation
    assert not heldout & validation
    assert len(train) > 1000


def test_fixed_windows_never_change_and_come_from_many_documents(folder: Callable[..., Path], open_text: Open) -> None:
    root = folder(documents=120, words=400)
    first, again = open_text(root, "heldout", seed=1), open_text(root, "heldout", seed=2)
    batches = list(first)
    assert all(equal(a, b) for a, b in zip(batches, again, strict=True))
    documents = [row[0] for b in batches for row in b.meta["documents"]]
    distinct = len(set(documents))
    assert distinct >= 4
    assert len(set(documents[:distinct])) == distinct


def test_short_heldout_documents_share_rows(folder: Callable[..., Path], open_text: Open) -> None:
    batches = list(open_text(folder(documents=200, words=12), "heldout", length=64))
    assert batches
    assert max(int(b["segment_ids"].max()) for b in batches) >= 1


def test_order_follows_seed_and_pass(folder: Callable[..., Path], open_text: Open) -> None:
    root = folder(documents=60, words=30)
    same = [next(open_text(root, seed=3)) for _ in range(2)]
    assert equal(*same)
    assert not equal(same[0], next(open_text(root, seed=4)))
    stream = open_text(root, samples=1, length=64, interleave=1, seed=3)
    opened: list[str] = []
    while len(opened) < 160:
        opened += [n for n in next(stream).meta["documents"][0] if n not in opened[-1:]]
    passes = len({n for n in opened})
    assert opened[:passes] != opened[passes : 2 * passes]
    assert set(opened[:passes]) == set(opened[passes : 2 * passes])


def test_shuffling_can_be_switched_off(folder: Callable[..., Path], open_text: Open) -> None:
    stream = open_text(folder(documents=60), samples=1, interleave=1, shuffle=False)
    opened = [n for b in islice(stream, 60) for n in b.meta["documents"][0]]
    assert opened == sorted(opened)


def write_jsonl(path: Path, count: int, words: int = 40) -> None:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as f:
        for i in range(count):
            f.write(json.dumps({"text": prose(i, words)}) + "\n")


def write_parquet(path: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": [prose(i, 40) for i in range(count)], "id": list(range(count))})
    pq.write_table(table, path, row_group_size=70)


CORPORA: dict[str, Callable[[Path], Any]] = {
    "files": lambda root: [(root / f"{i:02d}.txt").write_text(prose(i, 900 if i % 9 == 0 else 40)) for i in range(60)],
    "one-file": lambda root: (root / "book.txt").write_text("".join(prose(i, 60) for i in range(300))),
    "gz": lambda root: (root / "book.txt.gz").write_bytes(
        gzip.compress("".join(prose(i, 60) for i in range(300)).encode())
    ),
    "html": lambda root: (root / "book.html").write_text("".join(f"<p>{prose(i, 60)}</p>" for i in range(300))),
    "jsonl": lambda root: write_jsonl(root / "a.jsonl", 150),
    "jsonl.gz": lambda root: write_jsonl(root / "a.jsonl.gz", 150),
    "parquet": lambda root: write_parquet(root / "a.parquet", 150),
}


@pytest.mark.parametrize("kind", CORPORA)
@pytest.mark.parametrize("after", [0, 1, 7, 61])
def test_a_saved_position_gives_the_same_batches(tmp_path: Path, open_text: Open, kind: str, after: int) -> None:
    """Across blocks, documents in pieces and passes over the corpus."""
    CORPORA[kind](tmp_path)
    options = {"max_document_chars": 512, "shuffle_records": 16, "interleave": 3, "samples": 3, "length": 40}
    stream = open_text(tmp_path, **options)
    for _ in range(after):
        next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    want = [next(stream) for _ in range(40)]
    again = open_text(tmp_path, **options)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert all(equal(w, next(again)) for w in want)
    assert again.counters() == stream.counters()
    back = open_text(tmp_path, **options)
    back.load_state_dict(state)
    assert equal(want[0], next(back))


@pytest.mark.parametrize("kind", ["files", "jsonl"])
def test_a_fixed_stream_also_goes_on(tmp_path: Path, open_text: Open, kind: str) -> None:
    CORPORA[kind](tmp_path)
    stream = open_text(tmp_path, "heldout", samples=2, length=24)
    next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    want = list(stream)
    again = open_text(tmp_path, "heldout", samples=2, length=24)
    again.load_state_dict(state)
    assert want
    assert all(equal(a, b) for a, b in zip(want, again, strict=True))


def test_going_on_tokenises_only_the_open_pieces(tmp_path: Path, open_text: Open, monkeypatch: Any) -> None:
    from xarch_text.encoding import Encoder

    CORPORA["one-file"](tmp_path)
    options = {"max_document_chars": 1024, "interleave": 2}
    stream = open_text(tmp_path, **options)
    for _ in range(200):
        next(stream)
    state = stream.state_dict()
    again, calls, plain = open_text(tmp_path, **options), [], Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, piece: calls.append(piece) or plain(self, piece))
    again.load_state_dict(state)
    assert len(calls) == 2


def test_changed_files_are_noticed_when_going_on(folder: Callable[..., Path], open_text: Open) -> None:
    root = folder()
    state = open_text(root).state_dict()
    (root / "more.txt").write_text("more")
    with pytest.raises(UsageError, match="changed since the checkpoint"):
        open_text(root).load_state_dict(state)


def test_records_are_shuffled_within_blocks(tmp_path: Path, open_text: Open) -> None:
    write_jsonl(tmp_path / "a.jsonl", 400)
    stream = open_text(tmp_path / "a.jsonl", samples=1, interleave=1, shuffle_records=50)
    numbers = [int(n.split("#")[1]) for b in islice(stream, 300) for n in b.meta["documents"][0]]
    blocks = [n // 50 for n in dict.fromkeys(numbers)]
    assert numbers != sorted(numbers)
    assert blocks == sorted(blocks)


def test_standard_library_needs_no_data_at_all(open_text: Open) -> None:
    info = TextData().describe(DataRequest("python-stdlib", TextOptions()))
    assert info.size["files"] > 100
    batch = next(open_text("python-stdlib", length=128))
    documents = [n for row in batch.meta["documents"] for n in row]
    assert all(n.endswith(".py") and "/test/" not in n and "site-packages" not in n for n in documents)


def test_documentation_and_code_that_python_brings(open_text: Open) -> None:
    sizes = {
        name: TextData().describe(DataRequest(name, TextOptions())).size for name in ("python-topics", "python-mixed")
    }
    assert 50 < sizes["python-topics"]["files"] < sizes["python-mixed"]["files"]
    documents: set[str] = set()
    for batch in islice(open_text("python-mixed", length=256), 24):
        documents |= {n for row in batch.meta["documents"] for n in row}
    assert any(n.startswith("topics/") for n in documents)
    assert any(n.endswith(".py") for n in documents)
    (first,) = [t for t, n in zip(*_first("python-topics"), strict=True) if n == "topics/with.txt"]
    assert "context manager" in first


def _first(ref: str) -> tuple[list[str], list[str]]:
    files = find_corpus(ref, []).files
    return [f.path.read_text(encoding="utf-8") for f in files], [f.name for f in files]


def test_bytes_need_no_tokenizer(folder: Callable[..., Path]) -> None:
    provider = TextData()
    stream = provider.open(DataRequest(
        str(folder()), TextOptions(tokenizer="bytes"), split="train", samples=1, sample={"length": 600},
        processors={}, seed=0,
    ))  # fmt: skip
    assert "document " in bytes(next(stream)["input_ids"][0].tolist()).decode()
