"""The first-party source passes the kit that third-party sources pass."""

from __future__ import annotations

from pathlib import Path

from xarch.testing import SourceConformance
from xarch_decoder.testing import tiny_llama


class TestHF(SourceConformance):
    def make_ref(self, folder: Path) -> str:
        return tiny_llama(folder)
