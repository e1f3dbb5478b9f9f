"""Objectives of the literature, one file each, usable by name in any method of a family with such taps.

What several objectives share is in ``labelled`` (logits and labels), ``relations`` (between samples of a batch),
``grids`` (places) and ``joined`` (several taps).
"""

from __future__ import annotations

from typing import Any

from xarch import hookimpl

LOGITS, LABELLED = "logits with logits", "logits with logits, and labels"
SAMPLES, PLACES, JOINED = "any values of samples, relations in the batch", "maps or tokens of any grid", "joined maps"
NATS, SQUARE = "nats/position", "squared value"
OBJECTIVES = (
    ("ofa", "ofa:OFA", LABELLED, NATS, "arXiv:2310.19444", "distribution with an enhanced label, for exits"),
    ("dkd", "dkd:DKD", LABELLED, NATS, "arXiv:2203.08679", "the label and the other classes with weights of their own"),
    ("nkd", "nkd:NKD", LABELLED, NATS, "arXiv:2303.17005", "the other classes normalised on both sides"),
    ("wsld", "wsld:WSLD", LABELLED, NATS, "arXiv:2102.00650", "soft labels weighted by who does worse"),
    ("ferkd", "ferkd:FerKD", LABELLED, NATS, "arXiv:2308.14678", "targets by how sure the teacher is of a view"),
    ("ldam", "ldam:LDAM", "logits with labels", NATS, "arXiv:1906.07413", "cross-entropy, margins for rare classes"),
    (
        "logit-adjustment",
        "logit_adjustment:LogitAdjustment",
        "logits with labels",
        NATS,
        "arXiv:2007.07314",
        "cross-entropy, classes shifted by their frequency",
    ),
    ("consistency", "consistency:Consistency", LABELLED, NATS, "arXiv:2308.09922", "another view, where it is right"),
    ("margin-mse", "margin_mse:MarginMSE", LABELLED, SQUARE, "arXiv:2010.02666", "margins of the right class"),
    ("logit-std", "logit_std:LogitStd", LOGITS, NATS, "arXiv:2403.01427", "standardised logits"),
    ("taid", "taid:TAID", LOGITS, NATS, "arXiv:2501.16937", "a target between student and teacher that moves"),
    ("ltkd", "ltkd:LTKD", LOGITS, NATS, "arXiv:2506.18496", "groups of classes, rebalanced: a teacher of long tails"),
    ("ctkd", "ctkd:CTKD", LOGITS, NATS, "arXiv:2211.16231", "a learned, adversarial temperature"),
    ("dac-kl", "dac_kl:DACKL", LOGITS, NATS, "arXiv:2407.10068", "a learned band of the teacher's distribution"),
    ("discriminator", "discriminator:Discriminator", LOGITS, NATS, "arXiv:2009.08453", "tells both outputs apart"),
    ("dist", "dist:DIST", LOGITS, "1 - correlation", "arXiv:2205.10536", "correlation over classes and over the batch"),
    ("mlld", "mlld:MLLD", LOGITS, "nats and squared value", "CVPR 2023", "samples, batch and classes at five heats"),
    ("sinkd", "sinkd:SinKD", LOGITS, "distance", "arXiv:2402.17110", "optimal transport between the batches"),
    ("srrl", "srrl:SRRL", "features with logits", SQUARE, "ICLR 2021", "through the teacher's classifier"),
    ("nd", "nd:ND", "features, and labels", "1 - cosine", "arXiv:2305.17007", "direction of the class, and norm"),
    ("rkd", "rkd:RKD", SAMPLES, "Huber", "arXiv:1904.05068", "distances and angles between samples"),
    ("sp", "sp:SP", SAMPLES, SQUARE, "arXiv:1907.09682", "similarities between samples"),
    ("pkt", "pkt:PKT", SAMPLES, "nats", "arXiv:1803.10837", "similarities as probabilities"),
    ("corr", "correlation_congruence:Corr", SAMPLES, SQUARE, "arXiv:1904.01802", "differences of neighbouring samples"),
    ("cckd", "correlation_congruence:CCKD", SAMPLES, SQUARE, "arXiv:1904.01802", "kernels between samples"),
    ("cka", "cka:CKA", SAMPLES, "1 - CKA", "arXiv:1905.00414", "centred kernel alignment"),
    ("mi-alpha", "mi_alpha:MIAlpha", SAMPLES, "-nats", "arXiv:2109.11105", "a bound of the mutual information"),
    (
        "crd",
        "crd:CRD",
        "samples by index, and labels",
        "nats",
        "arXiv:1910.10699",
        "contrast with banks of all samples",
    ),
    ("at", "at:AT", PLACES, SQUARE, "arXiv:1612.03928", "where both sides are active"),
    ("nst", "nst:NST", PLACES, SQUARE, "arXiv:1707.01219", "distribution of where features are active"),
    ("ickd", "ickd:ICKD", PLACES, SQUARE, "arXiv:2202.03680", "correlation between features"),
    ("vid", "vid:VID", PLACES, "nats/number", "arXiv:1904.05835", "likelihood with learned variances"),
    ("mgd", "mgd:MGD", PLACES, SQUARE, "arXiv:2205.01529", "the teacher's map from a masked one"),
    ("minilm", "minilm:MiniLM", PLACES, NATS, "arXiv:2002.10957", "relations of queries, keys or values"),
    ("reviewkd", "reviewkd:ReviewKD", JOINED, SQUARE, "arXiv:2104.09044", "stages fused from late to early"),
    ("afd", "afd:AFD", JOINED, "norm", "arXiv:2102.02973", "all pairs of places, weighted by attention"),
)
"""Name, module and class, what it compares, units, paper, summary."""


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register every objective; none is imported."""
    for name, load, compares, units, paper, summary in OBJECTIVES:
        load = f"{__name__}.{load}"
        registry.objective(name, load=load, compares=compares, units=units, paper=paper, summary=summary)
