"""Inputs of pictures, cameras and graphs."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np

from benchmarks.faults.fuzzing import mutate
from benchmarks.faults.fuzzing.harness import Target


def _prepare_pictures(folder: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (12, 16, 4), dtype=np.uint8)
    rgb = Image.fromarray(values[..., :3].copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 200
    (folder / "bombs").mkdir()
    for side in (4000, 11_000, 65_535, 2**31 - 1):
        (folder / "bombs" / f"{side}.png").write_bytes(_png(side, side if side < 2**31 - 1 else 1))
    rgb.save(folder / "a.jpg", exif=exif)
    rgb.save(folder / "a.png")
    Image.fromarray(values).save(folder / "b.png", exif=exif)
    rgb.save(folder / "a.webp")
    rgb.save(folder / "a.tiff", compression="tiff_lzw")
    rgb.convert("P").save(folder / "a.gif")
    rgb.save(folder / "a.bmp")
    Image.fromarray(values[..., 0].astype(np.uint16) * 257).save(folder / "d.png")


def _pictures_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch_pvd.data.datasets.pictures import picture_size, read_mask, read_picture

    source = rng.choice(sorted(p for p in prepared.iterdir() if p.is_file()))
    file = folder / source.name
    if rng.random() < 0.05:
        file = rng.choice(sorted((prepared / "bombs").iterdir()))
        width = 0
    elif rng.random() < 0.1:
        content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 12\n%%EndComments\n(x) show\nshowpage\n"
        file.write_bytes(content)
        width = 16
    else:
        file.write_bytes(mutate.content(rng, source.read_bytes()))
        width = 16
    wide, high = picture_size(file)
    if rng.random() < 0.5:
        read_picture(file, wide, high)
    else:
        read_mask(file, max(wide // 2, 1) if width == 16 else wide, max(high // 2, 1))


def _png(width: int, height: int) -> bytes:
    """A grey picture of one colour that claims any size and has rows for a few hundred lines."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * min((width + 1) * height, 20_000_000), 1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _prepare_cameras(folder: Path) -> None:
    from PIL import Image

    (folder / "images").mkdir()
    frames = []
    for i in range(9):
        Image.new("RGB", (16, 12), (i, 2, 3)).save(folder / "images" / f"{i}.png")
        pose = [[1, 0, 0, i * 0.1], [0, 1, 0, 0], [0, 0, 1, 3], [0, 0, 0, 1]]
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": pose, "k1": 0.01})
    said = {"fl_x": 20.0, "fl_y": 20.0, "cx": 8, "cy": 6, "w": 16, "h": 12, "aabb": [[-1, -1, -1], [1, 1, 1]]}
    (folder / "transforms.json").write_text(json.dumps({**said, "applied_scale": 1.0, "frames": frames}))
    rows = [[-0.0, 1, 0, i * 0.1, 12, 1, 0, 0, 0, 16, 0, 0, 1, 3, 20, 1.0, 5.0] for i in range(9)]
    np.save(folder / "poses_bounds.npy", np.array(rows, dtype=np.float64))


def _cameras_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    from xarch_pvd.data.datasets.open import open_posed

    os.symlink(prepared / "images", folder / "images")
    if rng.random() < 0.75:
        file = folder / "transforms.json"
        data = json.loads((prepared / "transforms.json").read_text())
        file.write_text(mutate.as_json(mutate.tree(rng, data)))
    else:
        content = mutate.content(rng, (prepared / "poses_bounds.npy").read_bytes())
        (folder / "poses_bounds.npy").write_bytes(content)
    images = open_posed(folder, rng.choice(("train", "test")))
    images.rays(0)
    images.image(0)


def _prepare_graph(folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy"]
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "a.onnx", save_as_external_data=True, location="a.onnx.data", size_threshold=0)


def _graph_case(rng: random.Random, prepared: Path, folder: Path) -> None:
    import onnx

    from xarch.cli.app import run as command_line
    from xarch.errors import UsageError

    data = folder / "a.onnx.data"
    data.write_bytes((prepared / "a.onnx.data").read_bytes())
    if rng.random() < 0.4:
        (folder / "a.onnx").write_bytes(mutate.content(rng, (prepared / "a.onnx").read_bytes()))
    else:
        model = onnx.load(prepared / "a.onnx", load_external_data=False)
        tensor = model.graph.initializer[0]
        entries = {e.key: e for e in tensor.external_data}
        name = rng.choice(sorted(entries))
        texts = (*mutate.TEXTS, "/etc/passwd", "../a.onnx.data", "sub/../../x", "C:\\x", "a.onnx.data\0x", "link", ".")
        entries[name].value = rng.choice((rng.choice(texts), str(rng.choice(mutate.NUMBERS))))
        if rng.random() < 0.3:
            tensor.dims[0] = rng.choice((-1, 0, 2**40, 2**62))
        (folder / "a.onnx").write_bytes(model.SerializeToString())
        (folder / "link").symlink_to(rng.choice(("/etc/passwd", "/dev/zero", "a.onnx.data")))
        if rng.random() < 0.2:
            data.unlink()
            data.symlink_to(rng.choice(("/etc/passwd", "/dev/zero", "/nowhere")))
    code = command_line(["inspect", str(folder / "a.onnx")])
    if code == 1:
        raise RuntimeError("xarch inspect failed unexpectedly")
    if code:
        raise UsageError(f"exit {code}")


TARGETS = (
    Target("pictures", 1000, _prepare_pictures, _pictures_case),
    Target("cameras", 800, _prepare_cameras, _cameras_case),
    Target("ONNX and its data", 400, _prepare_graph, _graph_case),
)
