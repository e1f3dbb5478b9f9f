"""``xarch pvd ...``: one file per command."""

from __future__ import annotations

from xarch_pvd.commands.edit import edit
from xarch_pvd.commands.render import render
from xarch_pvd.commands.save import save
from xarch_pvd.commands.train import train

__all__ = ["edit", "render", "save", "train"]
