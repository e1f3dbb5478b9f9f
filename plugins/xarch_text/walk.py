"""Training documents in a seeded random order, pass after pass, from any place."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from xarch import UsageError
from xarch_text.library import Block, Documents, Piece
from xarch_text.tally import Tally

START: dict[str, Any] = {"epoch": 0, "file": 0, "block": None, "item": 0}


class Walk:
    """Iterates over files in a new order every pass, with documents shuffled within blocks.

    A place consists of epoch, file, block and piece, so resuming from it rereads nothing before the block.

    Args:
        library: the training documents.
        seed: determines the order.
    """

    def __init__(self, library: Documents, seed: int) -> None:
        self.library, self.seed = library, seed

    def pieces(self, place: Mapping[str, Any], tally: Tally) -> Iterator[tuple[dict[str, Any], Piece]]:
        """Yield (place of the piece, piece) endlessly, starting at ``place``; ``tally`` counts them.

        Raises:
            UsageError: a whole pass yields nothing, or too many documents are unusable.
        """
        epoch, first, start, item = place["epoch"], place["file"], place["block"], place["item"]
        while True:
            order = self._shuffled(list(range(len(self.library.files))), epoch, "files")
            for at in range(first, len(order)):
                file = self.library.files[order[at]]
                for block in self.library.blocks(file, tally, start):
                    pieces = self._arranged(block, file.name, epoch)
                    for i in range(item, len(pieces)):
                        yield {"epoch": epoch, "file": at, "block": block.start, "item": i}, pieces[i]
                    item = 0
                start, item = None, 0
            tally.end_pass(self.library.bytes)
            if not tally.counts["read"]:
                raise UsageError(
                    f"{self.library.corpus.title} has no usable document for training",
                    "provide more text, or lower data.options.heldout and data.options.validation",
                )
            epoch, first = epoch + 1, 0

    def _arranged(self, block: Block, name: str, epoch: int) -> list[Piece]:
        documents = self._shuffled(block.documents, epoch, f"{name} {sorted(block.start.items())}")
        return [piece for pieces in documents for piece in pieces]

    def _shuffled(self, items: list[Any], epoch: int, what: str) -> list[Any]:
        if not self.library.reading.shuffle or len(items) < 2:
            return items
        items = list(items)
        # Seeding with a string uses SHA-512, which is identical on every machine.
        random.Random(f"{self.seed}|{epoch}|{what}").shuffle(items)
        return items
