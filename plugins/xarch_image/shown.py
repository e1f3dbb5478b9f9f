"""Held-out pictures that an evaluation keeps for a person to look at, with the answers of teacher and student."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from xarch import Batch

EACH = 4
"""Pictures kept of each kind: the first ones, and the first that only one model gets right."""
SIDE = 160
"""Largest height of a kept picture, pixels; smaller ones are enlarged by whole factors."""


class ShownPictures:
    """Collects pictures of one evaluation."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[Tensor, int | None, dict[str, tuple[int, float]], Tensor | None]]] = {
            "": [],
            "teacher": [],
            "student": [],
        }

    def add(self, batch: Batch, scores: Mapping[str, Tensor], places: Tensor | None = None) -> None:
        """Add a batch; most pictures are not kept.

        Args:
            scores: of teacher and student [B, K]. places: where the student computed [B, height, width], in 0 to 1.
        """
        labels = batch.get("labels")
        truth = None if labels is None else (labels if labels.ndim == 1 else labels.argmax(-1)).tolist()
        chosen = {name: score_BK.argmax(-1).tolist() for name, score_BK in scores.items()}
        for row in range(len(batch)):
            label = None if truth is None else truth[row]
            right = [name for name in chosen if chosen[name][row] == label]
            kind = right[0] if len(right) == 1 and len(chosen) == 2 else ""
            if len(self._kept[kind]) < EACH:
                answers = {n: (chosen[n][row], float(s[row].softmax(-1).max())) for n, s in scores.items()}
                where = None if places is None else places[row]
                self._kept[kind].append((_image(batch)[row].detach().cpu(), label, answers, where))

    def samples(
        self,
        names: Sequence[str],
        recall: Mapping[str, Mapping[int, float]],
        counts: Sequence[int],
        groups: Mapping[str, Sequence[int]],
    ) -> list[dict[str, Any]]:
        """Return JSON data: one entry per picture, then one with the recall of every class by teacher and student, and
        other models ``beside`` them, and one with what the groups of classes are."""

        def said(index: int | None) -> str | None:
            return None if index is None else names[index] if names else str(index)

        found: list[dict[str, Any]] = []
        for kept in self._kept.values():
            for image, label, answers, where in kept:
                shares = {
                    n: {"class": said(c), "share": p, "right": c == label, "judged": label is not None}
                    for n, (c, p) in answers.items()
                }
                found.append({"png": _png(image), "label": said(label), "answers": shares})
                if where is not None:
                    least, most = where.aminmax()
                    found[-1]["effort"] = {
                        "png": _png(_beside(image, (where - least) / (most - least).clamp_min(1e-6))),
                        "mean": float(where.mean()),
                        "least": float(least),
                        "most": float(most),
                    }
        if recall:
            sides = {n: r for n, r in recall.items() if n in ("teacher", "student")}
            others = {n: r for n, r in recall.items() if n not in sides}
            rows = [
                {
                    "class": said(c),
                    "images": counts[c] if counts else None,
                    **{n: r.get(c) for n, r in sides.items()},
                    "beside": {n: r.get(c) for n, r in others.items()},
                }
                for c in recall["student"]
            ]
            found.append({"recall": rows})
        if recall and groups:
            sizes = {name: [counts[c] for c in classes] for name, classes in groups.items()}
            found.append(
                {
                    "groups": [
                        {"name": n, "classes": len(of), "most": max(of), "least": min(of)} for n, of in sizes.items()
                    ]
                }
            )
        return found


def _image(batch: Batch) -> Tensor:
    return batch.seen_by("student")["images"]


def _beside(image: Tensor, places: Tensor) -> Tensor:
    """Return a picture and, to its right, where a model computed, from the least (0) to the most (1)."""
    colours = image if image.shape[0] == 3 else image[:1].expand(3, -1, -1)
    gap = torch.ones(3, image.shape[1], max(1, image.shape[2] // 16))
    return torch.cat([colours, gap, _heat(places, image)], -1)


def _heat(places: Tensor, image: Tensor) -> Tensor:
    """Return colours [3, H, W] from white (0) to dark red (1), as large as the picture."""
    share = torch.nn.functional.interpolate(places[None, None].float(), image.shape[-2:])[0]
    return 1 - share * torch.tensor([0.4, 1.0, 1.0])[:, None, None]


def _png(image: Tensor) -> str:
    """Encode an image [C, H, W] in 0 to 1 as a base64 PNG; of other channels than 1 and 3, the first."""
    from PIL import Image

    image = image if image.shape[0] in (1, 3) else image[:1]
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    if max(picture.size) > 2 * SIDE or picture.height > SIDE:
        picture.thumbnail((2 * SIDE, SIDE))
    elif (factor := SIDE // (2 * picture.height)) > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
