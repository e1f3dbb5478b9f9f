"""A plugin that takes over an export: its graphs are written, and the parity gate still judges them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from xarch.api import convert
from xarch.errors import ParityError
from xarch.registry.loader import get_registry
from xarch_decoder.testing import tiny_llama, tiny_text

PLUGIN = """
from dataclasses import replace

import torch
from xarch import hookimpl


class Shifted(torch.nn.Module):
    def __init__(self, module, by):
        super().__init__()
        self.module, self.by = module, by

    def forward(self, *inputs):
        first, *rest = self.module(*inputs)
        return (first + self.by, *rest)


@hookimpl
def xarch_export(graphs):
    return [replace(g, module=Shifted(g.module, BY), metadata={**g.metadata, "taken": "over"}) for g in graphs]
"""


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, by: float) -> Path:
    """A tiny conversion with the plugin above; its graphs add ``by`` to the logits."""
    plugin = folder / "takeover.py"
    plugin.write_text(PLUGIN.replace("BY", repr(by)))
    monkeypatch.setenv("XARCH_PLUGIN_FILES", str(plugin))
    monkeypatch.setenv("XARCH_HOME", str(folder / "home"))
    get_registry.cache_clear()
    overrides = {
        "teacher": tiny_llama(folder / "teacher"),
        "student.target": "dm2",
        "data.ref": tiny_text(folder / "text.txt"),
        "data.options": {"tokenizer": "bytes"},
        "data.sample": {"length": 48},
        "runtime.threads": 1,
        "runtime.tensorboard": False,
        "export.bench": False,
        "export.options": {"prefill": []},
        "tiny": True,
    }
    try:
        return convert(overrides=overrides, out=folder / "run").path
    finally:
        get_registry.cache_clear()


def test_the_plugins_graphs_are_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run(tmp_path, monkeypatch, 0.0)
    model = onnx.load(path / "export" / "cpu" / "decode_1.onnx", load_external_data=False)
    assert {p.key: p.value for p in model.metadata_props}["xarch.taken"] == "over"


def test_wrong_graphs_do_not_pass_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParityError):
        run(tmp_path, monkeypatch, 0.5)
    assert (tmp_path / "run" / "export" / "cpu" / "decode_1.onnx.rejected").exists()
