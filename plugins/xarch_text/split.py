"""Assignment of documents to splits, by names alone, so identical on every machine."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

SPLITS = ("train", "validation", "calibration", "heldout")


def fraction_of(identity: str) -> float:
    """Return a number in [0, 1) derived from an identity with SHA-256."""
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class Splitter:
    """Assigns documents to splits.

    Args:
        validation, heldout, calibration: fractions of the documents.
    """

    def __init__(self, validation: float, heldout: float, calibration: float = 0.0) -> None:
        self.shares = {"heldout": heldout, "validation": validation, "calibration": calibration}

    def document(self, identity: str) -> str:
        """Return the split of a document, from its identity alone."""
        u = fraction_of(identity)
        end = 0.0
        for split, share in self.shares.items():
            end += share
            if u < end:
                return split
        return "train"

    def documents(self, identities: Sequence[str]) -> dict[str, str]:
        """Return the splits of all documents of a corpus.

        A requested split that would be empty takes the training document with the smallest draw, so that even a corpus
        of a few dozen documents has held-out text.
        """
        found = {identity: self.document(identity) for identity in identities}
        for split, wanted in self.shares.items():
            training = sorted((fraction_of(i), i) for i, s in found.items() if s == "train")
            if wanted > 0 and split not in found.values() and len(training) > 1:
                found[training[0][1]] = split
        return found

    def piece(self, name: str, number: int) -> str:
        """Return the split of piece ``number`` of a file that is divided among splits.

        Pieces are spaced evenly rather than drawn at random, so that a file of a few dozen pieces has every split.
        """
        shift, left = fraction_of(name), 1.0
        for split, share in self.shares.items():
            # Take every (left / share)-th piece of those left by the previous splits.
            part = share / left
            taken = math.floor(number * part + shift)
            if math.floor((number + 1) * part + shift) > taken:
                return split
            number, left = number - taken, left - share
        return "train"
