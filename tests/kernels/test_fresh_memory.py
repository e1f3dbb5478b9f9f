"""The poisoned memory of the kernel tests stays inside them."""

from __future__ import annotations

import torch


def test_models_are_still_built_on_the_meta_device_after_something_was_compiled_here() -> None:
    """Tracing keeps the list of functions that a device context acts on; it must hold the real torch.empty."""
    compiled = torch.compile(torch.sin, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(torch.ones(2)), torch.ones(2).sin())
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 2)
    assert layer.weight.is_meta
    assert torch.empty(3).isnan().all()
