"""A decoder student with recurrent mixers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from xarch import PlanError
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.block import MixerFactory
from xarch_decoder.model.mixer import ATTENTION
from xarch_decoder.student import DecoderStudent
from xarch_mohawk.mixer import RecurrentMixer


class RecurrentStudent(DecoderStudent):
    """See :class:`DecoderStudent`.

    Attributes:
        count: number of layers for ``kl_probe`` to choose, None if the layers are given.
    """

    def __init__(
        self,
        facts: DecoderFacts,
        mixers: Sequence[Sequence[MixerFactory]],
        *,
        count: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(facts, mixers, device=device)
        self.count = count

    @property
    def open_layers(self) -> tuple[int, ...]:
        """Return the layers that still hold both mixers."""
        return tuple(i for i in self.replaced if ATTENTION in self.decoder.block(i).kinds)

    def mixer(self, layer: int) -> RecurrentMixer[Any]:
        """Return the recurrent mixer of a layer.

        Raises:
            ValueError: the layer has none.
        """
        found = self.decoder.block(layer).mixer(self.replacement(layer) or "recurrent")
        assert isinstance(found, RecurrentMixer)
        return found

    def finish(self) -> None:
        """Fold the gain of every mixer.

        Raises:
            PlanError: no stage chose the layers.
        """
        if self.open_layers:
            raise PlanError(
                f"student.options.layers: no stage chose among the {len(self.open_layers)} layers with two mixers",
                "add a stage `choose: {kind: kl_probe}`, or name the layers with `replace`, `keep` or `every`",
            )
        for layer in self.replaced:
            self.mixer(layer).fold_gain()
