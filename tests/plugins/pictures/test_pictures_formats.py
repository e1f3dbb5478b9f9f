"""Every format gives the stored pixels and labels, and hostile files end in an error or are skipped."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.plugins.pictures.picture_files import pixels, write_cifar, write_folder, write_idx, write_parquet
from xarch import SkipSample, UsageError
from xarch_pictures.cifar import read_plain
from xarch_pictures.decoding import decode

PLAIN: dict[str, Any] = {"heldout": 0.2, "validation": 0.1, "calibration": 0.0}


def stored(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()


def whole(stream: Any) -> dict[str, torch.Tensor]:
    batches = [b.tensors for b in stream]
    return {key: torch.cat([b[key] for b in batches]) for key in batches[0]}


def test_idx_pictures_and_labels_are_those_of_the_files(data: Any, tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 30, seed=1)
    write_idx(tmp_path, "t10k", 12, seed=2, packed=False)
    read = whole(data(tmp_path).open("heldout"))
    assert torch.equal((read["images"] * 255).round(), stored(pixels(12, 1, seed=2)))
    assert read["labels"].tolist() == [i % 3 for i in range(12)]
    info = data(tmp_path).info
    assert info.facts["samples"]["heldout"] == 12
    assert (info.facts["size"], info.facts["channels"], info.facts["classes"]) == (8, 1, 3)


def test_cifar_pictures_are_colour_planes(data: Any, tmp_path: Path) -> None:
    opened = data(write_cifar(tmp_path))
    read = whole(opened.open("heldout"))
    assert torch.equal((read["images"] * 255).round(), stored(pixels(10, side=32, seed=5)))
    assert opened.info.facts["class_names"][3] == "kind3"


def test_parquet_reads_names_from_the_schema(data: Any, tmp_path: Path) -> None:
    write_parquet(tmp_path / "p", count=60)
    write_parquet(tmp_path / "p", "test-00000-of-00001.parquet", count=9)
    opened = data(tmp_path / "p")
    assert opened.info.facts["class_names"] == ["kind0", "kind1", "kind2"]
    read = whole(opened.open("heldout"))
    expected = pixels(9, seed=len("test-00000-of-00001.parquet"))
    assert torch.equal((read["images"] * 255).round(), stored(expected))


def test_parquet_with_two_label_columns_asks_which(data: Any, tmp_path: Path) -> None:
    write_parquet(tmp_path / "p", coarse_label=True)
    with pytest.raises(UsageError, match=r"several label columns \(label, coarse_label\)"):
        data(tmp_path / "p").info  # noqa: B018
    assert data(tmp_path / "p", label_column="coarse_label").info.facts["classes"] == 3


def test_parquet_of_ones_own_names_its_columns(data: Any, tmp_path: Path) -> None:
    """The only column of bytes is the pictures'; labels may be words; a wrong name is told the right ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = pq.read_table(next(write_parquet(tmp_path / "p").glob("*")))
    photo = pa.array([cell["bytes"] for cell in stored["image"].to_pylist()], pa.binary())
    words = pa.array([["owl", None, "cat", "dog"][i % 4] for i in range(len(photo))])
    made = {"photo": photo, "kind": words, "share": pa.array([0.5] * len(photo))}
    (tmp_path / "own").mkdir()
    pq.write_table(pa.table(made), tmp_path / "own" / "train.parquet")
    info = data(tmp_path / "own", label_column="kind").info
    assert info.facts["class_names"] == ["cat", "dog", "owl"]
    assert list(info.warnings) == ["15 rows without a label are not read"]
    with pytest.raises(UsageError, match=r"no label column \(photo, kind, share\)"):
        _ = data(tmp_path / "own").info
    with pytest.raises(UsageError, match=r"no image column 'foto' \(photo, kind, share\)"):
        _ = data(tmp_path / "own", image_column="foto", label_column="kind").info
    with pytest.raises(UsageError, match="column 'share' holds double"):
        _ = data(tmp_path / "own", label_column="share").info


def test_parquet_larger_than_memory_is_mapped_from_the_cache(data: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    inside = whole(data(write_parquet(tmp_path / "p"), **PLAIN).open("heldout"))
    monkeypatch.setattr("xarch_pictures.parquet.IN_MEMORY", 0)
    mapped = whole(data(write_parquet(tmp_path / "q"), **PLAIN).open("heldout"))
    assert torch.equal(inside["images"], mapped["images"])


def test_npz_parts(data: Any, tmp_path: Path) -> None:
    x = pixels(20, 1)[..., 0]
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(20) % 4, x_test=x[:5] // 2, y_test=np.arange(5) % 4)
    opened = data(tmp_path / "a.npz")
    assert opened.info.facts["samples"]["heldout"] == 5
    assert torch.equal(
        (whole(opened.open("heldout"))["images"] * 255).round()[:, 0], torch.from_numpy(x[:5] // 2).float()
    )


def test_folder_parts_are_kept_apart(data: Any, tmp_path: Path) -> None:
    opened = data(write_folder(tmp_path / "p", 8, ("train", "val", "test")), validation=0.0, calibration=0.1)
    assert opened.info.facts["samples"] == {"train": 22, "validation": 24, "calibration": 2, "heldout": 24}
    assert opened.info.facts["class_names"] == ["class0", "class1", "class2"]


def test_pictures_without_classes_have_no_labels(data: Any, tmp_path: Path) -> None:
    for i, picture in enumerate(pixels(20)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    opened = data(tmp_path, **PLAIN)
    assert "classes" not in opened.info.facts
    assert set(next(opened.open()).tensors) == {"images", "index", "sample_id"}


def test_other_files_and_stray_pictures_are_reported(data: Any, tmp_path: Path) -> None:
    write_folder(tmp_path / "p")
    (tmp_path / "p" / "notes.txt").write_text("hello")
    os.mkfifo(tmp_path / "p" / "class0" / "pipe.png")
    Image.fromarray(pixels(1)[0]).save(tmp_path / "p" / "cover.png")
    told = " ".join(data(tmp_path / "p").info.warnings)
    assert "2 other files" in told
    assert "1 pictures outside class folders" in told


def test_a_class_folder_without_pictures_is_told(data: Any, tmp_path: Path) -> None:
    """It would shift the numbers of the classes after it against those of a teacher that knew it."""
    root = write_folder(tmp_path / "p", parts=("train", "test"))
    (root / "train" / "class1b").mkdir()
    info = data(root).info
    assert info.facts["classes"] == 3
    assert any("1 class folders without pictures" in text for text in info.warnings)


def test_a_class_that_training_never_sees_is_told(data: Any, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "p")
    assert not data(root).info.warnings
    assert data(root, labelled=2).info.warnings[0].startswith("1 class has no training pictures with a label: class")


def test_a_link_out_of_the_folder_is_refused(data: Any, tmp_path: Path) -> None:
    write_folder(tmp_path / "p")
    Image.fromarray(pixels(1)[0]).save(tmp_path / "secret.png")
    (tmp_path / "p" / "class0" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UsageError, match="leads out of"):
        data(tmp_path / "p").info  # noqa: B018


def test_corrupt_pictures_are_counted_and_too_many_are_an_error(data: Any, tmp_path: Path) -> None:
    write_folder(tmp_path / "p", 20)
    bad = sorted((tmp_path / "p" / "class1").iterdir())
    for path in bad[:6]:
        path.write_bytes(path.read_bytes()[:60])
    stream = data(tmp_path / "p", **PLAIN, size=8).open(samples=20)
    for _ in range(4):
        next(stream)
    assert stream.counters()["skipped: damaged or not an image"] > 0
    for path in bad[6:]:
        path.write_bytes(b"not a picture")
    (tmp_path / "p").rename(tmp_path / "q")
    stream = data(tmp_path / "q", **PLAIN, size=8).open(samples=40)
    with pytest.raises(UsageError, match="unusable"):
        next(stream)


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("I;16", np.array([[0, 65535], [32896, 257]], np.uint16), [[0, 255], [128, 1]]),
        ("L", np.array([[0, 255], [7, 9]], np.uint8), [[0, 255], [7, 9]]),
    ],
)
def test_grey_depth(mode: str, values: np.ndarray, expected: list[list[int]]) -> None:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "png")
    assert np.array(decode(out.getvalue(), 1)).tolist() == expected


def test_palette_cmyk_transparency_and_orientation() -> None:
    def file(picture: Image.Image, kind: str = "png", **more: Any) -> bytes:
        out = io.BytesIO()
        picture.save(out, kind, **more)
        return out.getvalue()

    red = Image.new("RGB", (4, 2), (255, 0, 0))
    assert decode(file(red.quantize(4)), 3).getpixel((1, 1)) == (255, 0, 0)
    assert decode(file(red.convert("CMYK"), "tiff"), 3).getpixel((1, 1)) == (255, 0, 0)
    assert decode(file(Image.new("RGBA", (2, 2), (255, 0, 0, 0))), 3).getpixel((0, 0)) == (255, 255, 255)
    assert decode(file(Image.new("RGBA", (2, 2), (0, 0, 0, 255))), 1).getpixel((0, 0)) == 0
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    assert decode(file(red, "jpeg", exif=exif), 3).size == (2, 4)


def test_a_decompression_bomb_is_skipped_before_it_is_decoded() -> None:
    import zlib

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    with pytest.raises(SkipSample):
        decode(b"\x89PNG\r\n\x1a\n" + chunk, 3)


@pytest.mark.parametrize("shape", [(1 << 31, 28, 28), (1000, 4000, 4000)])
def test_idx_headers_are_checked_before_memory_is_taken(data: Any, tmp_path: Path, shape: tuple[int, ...]) -> None:
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as f:
        f.write(struct.pack(">4B3I", 0, 0, 8, 3, *shape) + bytes(100))
    with pytest.raises(UsageError, match="out of proportion"):
        data(tmp_path).info  # noqa: B018


def test_npz_headers_and_objects_are_refused(data: Any, tmp_path: Path) -> None:
    import zipfile

    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as z:
        z.writestr("x.npy", out.getvalue() + bytes(10))
    with pytest.raises(UsageError, match="claims"):
        data(tmp_path / "bomb.npz").info  # noqa: B018
    np.savez(tmp_path / "o.npz", x=np.array([{}], dtype=object), y=np.zeros(1, int))
    with pytest.raises(UsageError, match="damaged or holds objects"):
        data(tmp_path / "o.npz").info  # noqa: B018


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


@pytest.mark.parametrize(
    "held",
    [Evil(), {b"data": Evil()}, {b"data": np.array([Evil()], dtype=object)}, {b"data": np.zeros(3, np.float32)}, [1]],
)
def test_pickles_with_anything_but_bytes_are_refused(tmp_path: Path, monkeypatch: Any, held: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").write_bytes(pickle.dumps(held, protocol=2))
    with pytest.raises(UsageError):
        read_plain(tmp_path / "train")
    assert not (tmp_path / "owned").exists()


def test_a_pickled_array_must_have_its_bytes(tmp_path: Path) -> None:
    held = pickle.dumps({b"data": np.zeros((4, 3), np.uint8)}, protocol=2)
    (tmp_path / "train").write_bytes(held.replace(b"K\x04K\x03\x86", b"K\xffK\xff\x86"))
    with pytest.raises(UsageError, match="12 bytes"):
        read_plain(tmp_path / "train")


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """As the published CIFAR files are: text is bytes, and numpy's names are the old ones."""
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array += b"(K\x01K\x02K\x03\x86" + dtype + b"\x89U\x06abcdeftb"
    (tmp_path / "train").write_bytes(b"\x80\x02}U\x04data" + array + b"sU\x06labels](K\x01K\x02es.")
    read = read_plain(tmp_path / "train")
    assert read["data"].value.tolist() == [[97, 98, 99], [100, 101, 102]]
    assert read["labels"] == [1, 2]


def test_parts_whose_pictures_and_labels_differ_are_refused(data: Any, tmp_path: Path) -> None:
    """Equal sums are not enough: one label too few in a part would give every later picture another's label."""
    x, y = pixels(10, 1)[..., 0], np.arange(10) % 3
    np.savez(tmp_path / "moved.npz", x_train=x, y_train=y[:9], x_test=x[:5], y_test=y[:6])
    with pytest.raises(UsageError, match="10 pictures and 9 labels"):
        data(tmp_path / "moved.npz").info  # noqa: B018
    np.savez(tmp_path / "shapes.npz", x_train=x, y_train=y, x_test=x[:, :4], y_test=y)
    with pytest.raises(UsageError, match="different shapes"):
        data(tmp_path / "shapes.npz").info  # noqa: B018
    folder = write_cifar(tmp_path)
    batches = sorted(p for p in folder.rglob("*_batch*") if p.is_file())
    for path, change in zip(batches[:2], (-1, 1), strict=True):
        kept = pickle.loads(path.read_bytes(), encoding="bytes")
        given = kept[b"labels"]
        kept[b"labels"] = given[:-1] if change < 0 else [*given, 0]
        path.write_bytes(pickle.dumps(kept, 2))
    with pytest.raises(UsageError, match=r"pictures and \d+ labels"):
        data(folder).info  # noqa: B018


def test_an_idx_file_of_labels_is_not_one_of_pictures(data: Any, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\1" + struct.pack(">I", 6) + bytes(6))
    with pytest.raises(UsageError, match="pictures have"):
        data(tmp_path).info  # noqa: B018


def test_names_of_classes_that_are_no_words_are_refused(data: Any, tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    (meta,) = folder.rglob("batches.meta")
    meta.write_bytes(pickle.dumps({b"label_names": [1, 2, 3]}, 2))
    with pytest.raises(UsageError, match="no names of classes"):
        data(folder).info  # noqa: B018
