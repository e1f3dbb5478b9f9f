"""onnxruntime sends usage data to its maker unless told otherwise before its import; xarch promises to send nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted([*(ROOT / "examples").rglob("*.py"), *(ROOT / "plugins").glob("*/device/*.py")])
OPENING = """
import sys
from pathlib import Path
from xarch.export.session import open_session
open_session(Path(sys.argv[1]), "CPUExecutionProvider", threads=1)
"""


def test_a_session_leaves_no_usage_data(tmp_path: Path) -> None:
    """What is going to be sent is queued in a file below the user's home."""
    model = tmp_path / "same.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    home = tmp_path / "home"
    home.mkdir()
    # CI switches the data off too, and would hide what is missing.
    env = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", OPENING, str(model)]
    done = subprocess.run(command, env={**env, "HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not [f for f in home.rglob("*") if "onnxruntime" in str(f)]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_examples_switch_it_off_before_the_import(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if "import onnxruntime" in text:
        assert text.index("ORT_DISABLE_TELEMETRY") < text.index("import onnxruntime")
