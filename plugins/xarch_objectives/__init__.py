"""Objectives of the literature, one file each, usable by name in any method of a family with such taps.

What several objectives share is in ``labelled`` (logits and labels) and ``relations`` (between samples of a batch).
"""

from __future__ import annotations

from typing import Any

from xarch import hookimpl

LOGITS, LABELLED = "logits with logits", "logits with logits, and labels"
NATS = "nats/position"
OBJECTIVES = (
    ("ofa", "ofa:OFA", LABELLED, NATS, "arXiv:2310.19444", "distribution with an enhanced label, for exits"),
    ("dkd", "dkd:DKD", LABELLED, NATS, "arXiv:2203.08679", "the label and the other classes with weights of their own"),
    ("nkd", "nkd:NKD", LABELLED, NATS, "arXiv:2303.17005", "the other classes normalised on both sides"),
    ("wsld", "wsld:WSLD", LABELLED, NATS, "arXiv:2102.00650", "soft labels weighted by who does worse"),
    ("logit-std", "logit_std:LogitStd", LOGITS, NATS, "arXiv:2403.01427", "standardised logits"),
    ("dist", "dist:DIST", LOGITS, "1 - correlation", "arXiv:2205.10536", "correlation over classes and over the batch"),
    ("taid", "taid:TAID", LOGITS, NATS, "arXiv:2501.16937", "a target between student and teacher that moves"),
)
"""Name, module and class, what it compares, units, paper, summary."""


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register every objective; none is imported."""
    for name, load, compares, units, paper, summary in OBJECTIVES:
        load = f"{__name__}.{load}"
        registry.objective(name, load=load, compares=compares, units=units, paper=paper, summary=summary)
