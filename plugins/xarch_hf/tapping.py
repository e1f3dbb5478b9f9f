"""Taps of a running transformers model: hooks on its modules, and its attention function.

transformers lets a model's attention and mask functions be selected by name. The ones registered here compute fused
attention and, while a teacher runs, also push queries, keys, values and heads; score matrices are never requested, so
nothing L x L exists. Outside a run they are transformers' own fused attention.

Legend: B batch, L tokens, D width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from xarch_decoder.factored import AttentionFactors
from xarch_decoder.model.mixer import SequenceInfo
from xarch_hf.attention import Visible, causal_attention, visible

IMPLEMENTATION = "xarch"
"""Name of the attention implementation in transformers' registry."""

_current: ContextVar[Run | None] = ContextVar("xarch_hf_run", default=None)


class Finished(Exception):
    """Everything wanted has been pushed; unwinds the model's forward."""


class Run:
    """One forward pass of a teacher.

    Args:
        wanted: names of the taps to push.
        sink: receives (name, value); called while the model runs.
        sequence: positions and documents of the batch.
    """

    def __init__(self, wanted: Collection[str], sink: Callable[[str, Any], None], sequence: SequenceInfo) -> None:
        self._left, self._sink, self.sequence = set(wanted), sink, sequence

    def wants(self, name: str) -> bool:
        """Return whether ``name`` has yet to be pushed."""
        return name in self._left

    def push(self, name: str, value: Any) -> None:
        """Push a value to the sink.

        Raises:
            Finished: it was the last one.
        """
        if name in self._left:
            self._left.discard(name)
            self._sink(name, value)
            if not self._left:
                raise Finished

    def seen(self, window: int | None) -> Visible | None:
        """Return visible keys for layers with this window; computed once per run."""
        positions_BL, segmented = self.sequence.positions_BL, self.sequence.segment_ids_BL is not None
        return self.sequence.once(("visible", window), lambda: visible(positions_BL, segmented, window))

    @contextlib.contextmanager
    def active(self, hooks: Collection[Callable[[Run], Any]]) -> Iterator[None]:
        """Install hooks for the duration of the block and suppress :class:`Finished`."""
        handles = [hook(self) for hook in hooks]
        token = _current.set(self)
        try:
            yield
        except Finished:
            pass
        finally:
            _current.reset(token)
            for handle in handles:
                handle.remove()


def on_input(module: nn.Module, name: str) -> Callable[[Run], Any]:
    """Return a hook installer that pushes the first argument of ``module``."""

    def install(run: Run) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            run.push(name, args[0] if args else kwargs["hidden_states"])

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    return install


def on_output(module: nn.Module, name: str, wrap: Callable[[Tensor], Any] = lambda x: x) -> Callable[[Run], Any]:
    """Return a hook installer that pushes the wrapped (first) output of ``module``."""

    def install(run: Run) -> Any:
        def hook(_: nn.Module, args: Any, result: Any) -> None:
            run.push(name, wrap(result[0] if isinstance(result, tuple) else result))

        return module.register_forward_hook(hook)

    return install


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface: query [B, H, L, E], key and value [B, K, L, E] -> [B, L, H, E]."""
    run = _current.get()
    if run is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    stem = f"blocks.{module.layer_idx}"
    scale, window, softcap = options["scaling"], options.get("sliding_window"), options.get("softcap")
    if run.wants(f"{stem}.matrix"):
        q_BLHE, k_BLKE = query.transpose(1, 2), key.transpose(1, 2)
        factors = AttentionFactors(q_BLHE, k_BLKE, scale, window, softcap, run.sequence.segment_ids_BL)
        run.push(f"{stem}.matrix", factors)
        del q_BLHE, k_BLKE, factors
    run.push(f"{stem}.values", value.transpose(1, 2))
    heads_BHLE = causal_attention(query, key, value, scale=scale, seen=run.seen(window), softcap=softcap)
    heads_BLHE = heads_BHLE.transpose(1, 2)
    run.push(f"{stem}.heads", heads_BLHE)
    return heads_BLHE, None


def _mask(**arguments: Any) -> Tensor | None:
    """Implement transformers' mask interface: None while a teacher runs, as visibility follows from positions."""
    return None if _current.get() is not None else sdpa_mask(**arguments)


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
