"""Hostile external data is refused before any runtime opens it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from xarch.errors import UsageError
from xarch.export.check import check_file, inspect_onnx
from xarch.export.external_data import external_ranges, read_model
from xarch.export.profiles import cpu

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def external(location: str, *, offset: object = 0, length: object = WEIGHT.nbytes) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=WEIGHT.shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def write(path: Path, tensor: onnx.TensorProto, *, inside: str = "initializer") -> Path:
    """A model x @ w whose w is an initialiser, a constant, or hidden in a branch of an If."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    if inside == "initializer":
        graph = helper.make_graph([product], "g", [x], [y], [tensor])
    elif inside == "constant":
        graph = helper.make_graph([helper.make_node("Constant", [], ["w"], value=tensor), product], "g", [x], [y])
    else:
        branch = helper.make_graph([product], "b", [], [y], [tensor])
        flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
        choice = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([choice], "g", [flag, x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_data_beside_the_model_is_fine(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path / "m.onnx", external("w.data"))
    assert check_file(path, cpu) == {"MatMul": 1}
    assert inspect_onnx(path)["external_weight_bytes"] == {"w.data": WEIGHT.nbytes}


@pytest.mark.parametrize("inside", ["initializer", "constant", "branch"])
@pytest.mark.parametrize(
    "location", ["../secret", "a/../../secret", "/etc/passwd", "..\\secret", "C:\\secret", "", ".", "a\0b"]
)
def test_locations_outside_the_folder(location: str, inside: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m").mkdir()
    path = write(tmp_path / "m" / "m.onnx", external(location), inside=inside)
    for use in (inspect_onnx, lambda p: check_file(p, cpu)):
        with pytest.raises(UsageError) as caught:
            use(path)
        assert caught.value.exit_code == 2
        assert "'w'" in caught.value.what or "external data" in caught.value.what


@pytest.mark.parametrize("folder_link", [False, True])
def test_symbolic_links_are_refused(folder_link: bool, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "w.data").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m").mkdir()
    if folder_link:
        os.symlink(tmp_path / "outside", tmp_path / "m" / "sub")
        location = "sub/w.data"
    else:
        os.symlink(tmp_path / "outside" / "w.data", tmp_path / "m" / "w.data")
        location = "w.data"
    path = write(tmp_path / "m" / "m.onnx", external(location))
    with pytest.raises(UsageError, match="symbolic link"):
        inspect_onnx(path)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.data")
    with pytest.raises(UsageError, match="not a regular file"):
        inspect_onnx(write(tmp_path / "m.onnx", external("w.data")))


@pytest.mark.parametrize(
    ("offset", "length", "message"),
    [
        (4, 48, "refers to bytes 4 to 52"),
        (-48, 48, "refers to bytes -48"),
        (2**63, 48, "refers to bytes"),
        (0, 44, "48 bytes by shape and 44"),
        (0, -1, "48 bytes by shape and -1"),
        ("zero", 48, "no readable offset"),
        (0, None, "no readable offset"),
    ],
)
def test_ranges_that_do_not_fit(offset: object, length: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path / "m.onnx", external("w.data", offset=offset, length=length))
    with pytest.raises(UsageError, match=message):
        inspect_onnx(path)


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'w\.data'.*No such file"):
        inspect_onnx(write(tmp_path / "m.onnx", external("w.data")))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08", b"\xff" * 100])
def test_files_that_are_no_models(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(UsageError, match="not an ONNX model"):
        inspect_onnx(tmp_path / "m.onnx")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        inspect_onnx(tmp_path / "m.onnx")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "a", "w.data", "/", "\\", "~", "c:", ""]), max_size=5).map("/".join))
def test_no_location_reaches_the_parent(location: str) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "m"
        folder.mkdir()
        (folder.parent / "w.data").write_bytes(WEIGHT.tobytes())
        (folder / "w.data").write_bytes(WEIGHT.tobytes())
        path = write(folder / "m.onnx", external(location))
        try:
            (found,) = external_ranges(read_model(path), path)
        except UsageError:
            return
        assert (folder / found.location).resolve().is_relative_to(folder.resolve())
