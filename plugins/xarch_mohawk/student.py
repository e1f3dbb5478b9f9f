"""A decoder student with recurrent mixers."""

from __future__ import annotations

from typing import Any

from xarch_decoder.student import DecoderStudent
from xarch_mohawk.mixer import RecurrentMixer


class RecurrentStudent(DecoderStudent):
    """See :class:`DecoderStudent`."""

    def mixer(self, layer: int) -> RecurrentMixer[Any]:
        """Return the recurrent mixer of a layer.

        Raises:
            ValueError: the layer has none.
        """
        found = self.decoder.block(layer).mixer(self.replacement(layer) or "recurrent")
        assert isinstance(found, RecurrentMixer)
        return found

    def finish(self) -> None:
        """Fold the gain of every mixer; see :meth:`DecoderStudent.finish`."""
        super().finish()
        for layer in self.replaced:
            self.mixer(layer).fold_gain()
