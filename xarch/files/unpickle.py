"""Reads one pickled checkpoint in a process of its own and writes it as safetensors.

``python -m xarch.files.unpickle SOURCE TARGET``. The pickle is read by ``torch.load(weights_only=True)``, which refuses
everything but tensors and plain containers. The process of its own bounds what a hostile file can do to its reader: a
crash or a full memory ends this process, not the run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xarch.errors import UsageError, XarchError
from xarch.files.safe_load import save_weights

WRAPPERS = ("state_dict", "model_state_dict", "model")
SHARING = 4
"""How often the same bytes may be named; a tied head needs 2, a tensor expanded without bytes needs thousands."""


def state_dict(loaded: Any) -> Mapping[str, Any]:
    """The table of tensors of a checkpoint, possibly one level down under a usual name.

    Raises:
        UsageError: there is none, or it holds other things as well.
    """
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise UsageError(f"it holds a {type(loaded).__name__}, wanted a table of tensors")
    import torch

    strange = [str(k) for k, v in loaded.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)]
    if strange:
        raise UsageError(f"entries that are not tensors: {', '.join(strange[:5])}")
    return loaded


def convert(source: Path, target: Path) -> None:
    """Read ``source`` without running anything from it and write ``target`` atomically.

    Raises:
        UsageError: it holds something else than tensors, or tensors larger than the file can hold.
    """
    import torch

    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as e:
        # Everything ends here: a refused global, a cut archive, an index error inside a hostile stream.
        lines = [line for line in str(e).splitlines() if "nsupported" in line or "GLOBAL" in line] or [str(e)]
        raise UsageError(f"weights_only=True blocked it: {' '.join(lines[0].split())[:300]}") from e
    tensors = state_dict(loaded)
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    if needed > SHARING * source.stat().st_size:
        raise UsageError(f"its tensors would need {needed} bytes, the file has {source.stat().st_size}")
    save_weights(tensors, target, {"source": source.name})


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except XarchError as e:
        sys.exit(e.what)
