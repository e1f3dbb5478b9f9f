"""A plugin that takes over an export: its graphs are written, and the parity gate still judges them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from tests.e2e.leaving_plugin import SETTINGS, STACK
from xarch.api import convert, export
from xarch.errors import ParityError
from xarch.registry.loader import get_registry

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


def use(folder: Path, monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """Load the plugin above, whose graphs add ``by`` to the first output, and the family to export."""
    plugin = folder / "takeover.py"
    plugin.write_text(PLUGIN.replace("BY", repr(by)))
    leaving = Path(__file__).with_name("leaving_plugin.py")
    monkeypatch.setenv("XARCH_PLUGIN_FILES", f"{STACK}:{leaving}:{plugin}")
    get_registry.cache_clear()


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run of a tiny conversion whose graphs were taken over, and still compute what they should."""
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "home"))
    use(tmp_path, monkeypatch, 0.0)
    yield convert(overrides=SETTINGS, out=tmp_path / "run").path
    get_registry.cache_clear()


@pytest.mark.slow
def test_a_plugins_graphs_are_the_export_and_pass_the_gate_only_if_right(
    taken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = taken / "export" / "cpu" / "model.onnx"
    model = onnx.load(file, load_external_data=False)
    assert {p.key: p.value for p in model.metadata_props}["xarch.taken"] == "over"
    use(tmp_path, monkeypatch, 0.5)
    with pytest.raises(ParityError):
        export(taken, "cpu")
    assert file.with_suffix(".onnx.rejected").exists()
