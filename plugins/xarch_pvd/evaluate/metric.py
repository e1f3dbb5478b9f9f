"""Metric ``field-psnr``: a student's renders against its teacher's, and against ground-truth images if available."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from xarch import Batch, Evaluation, EvaluationRequest, Metric, TapModel, UsageError
from xarch_field import render
from xarch_field.teacher import FieldModel
from xarch_pvd.evaluate.view_samples import ShownViews

KEPT = 4
"""Number of views whose teacher render is cached between evaluations."""
UNITS = {
    "psnr": "dB to the images",
    "ssim": "to the images",
    "psnr_teacher": "dB",
    "worst_psnr_teacher": "dB",
    "psnr_drop": "dB",
    "bytes": "weights in memory",
}
RAYS = ("origins", "dirs", "background")


class FieldPSNR(Metric):
    """Mean over views of the peak signal-to-noise ratio (dB) and structural similarity of whole images.

    Figures of a student: ``psnr_teacher``, ``ssim_teacher`` and ``worst_psnr_teacher`` (its worst view) against the
    teacher's renders; with pictures also ``psnr`` and ``ssim`` of everyone, and ``psnr_drop`` (teacher - student);
    ``pictures`` is how many views had one, and masked pixels are left out.
    ``bytes`` is what the weights take. ``n`` is the number of views.
    """

    figures = (
        "psnr_teacher",
        "ssim_teacher",
        "worst_psnr_teacher",
        "psnr",
        "ssim",
        "psnr_drop",
        "pictures",
        "bytes",
    )

    def __init__(self) -> None:
        self._renders: dict[int, tuple[TapModel, Batch, Tensor]] = {}

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """See :meth:`xarch.Metric.evaluate`.

        Raises:
            UsageError: there are no held-out views, or there is no teacher.
        """
        teacher, students = request.teacher, request.students
        if teacher is None:
            raise UsageError("field-psnr needs a teacher, but this run has none")
        models: dict[str, TapModel] = {"teacher": teacher, **students}
        lists: dict[str, dict[str, list[float]]] = {name: {} for name in models}
        shown = ShownViews()
        views = 0
        judged = 0
        for batch in request.batches():
            pictures = {"teacher": self._teacher_picture(teacher, batch, views)}
            pictures |= {name: _picture(model, batch) for name, model in students.items()}
            kept = batch["mask"].view(pictures["teacher"].shape[:2]) if "mask" in batch.tensors else None
            if "picture" in batch.tensors and (kept is None or bool(kept.any())):
                pictures["truth"] = batch["picture"].view(pictures["teacher"].shape)
                judged += 1
            for name in models:
                _compare(lists[name], name, pictures, kept)
            if "student" in pictures:
                of_truth = () if "truth" in pictures else ("psnr", "ssim")
                last = {n: {k: v[-1] for k, v in lists[n].items() if k not in of_truth} for n in ("teacher", "student")}
                shown.add(pictures, last)
            views += 1
            request.progress(batch.units)
        if not views:
            raise UsageError("no held-out view to evaluate on", "raise evaluate.samples, or pass a folder with images")
        figures = {name: _figures(values, _bytes(models[name])) for name, values in lists.items()}
        student = figures.get("student", figures["teacher"])
        gated = dict(student)
        if judged:
            gated["pictures"] = float(judged)
            gated["psnr_drop"] = figures["teacher"]["psnr"] - student["psnr"]
        return Evaluation(
            metric="psnr" if judged else "psnr_teacher",
            higher_is_better=True,
            unit="dB",
            teacher=figures["teacher"],
            student=student,
            baselines={k: v for k, v in figures.items() if k not in ("teacher", "student")},
            gated=gated,
            units=UNITS,
            directions={**{name: name != "bytes" for name in student}, "psnr_drop": False},
            n=views,
            samples=shown.samples(),
        )

    def _teacher_picture(self, teacher: TapModel, batch: Batch, view: int) -> Tensor:
        """Return the teacher's render; the first views are cached for repeated evaluations."""
        known, rays, picture = self._renders.get(view, (None, batch, torch.empty(0)))
        if known is teacher and all(torch.equal(rays[key], batch[key]) for key in RAYS):
            return picture
        picture = _picture(teacher, batch)
        if view < KEPT:
            self._renders[view] = (teacher, batch, picture)
        return picture


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio of images in [0, 1], dB; at most 100."""
    return float(-10 * torch.log10((a.double() - b.double()).square().mean().clamp_min(1e-10)))


def _picture(model: TapModel, batch: Batch) -> Tensor:
    """Render a view as [height, width, 3]."""
    assert isinstance(model, FieldModel)
    seen = render(model.field, batch["origins"], batch["dirs"], batch["background"], samples=model.facts.samples)
    return seen["rgb"].view(batch.meta["height"], batch.meta["width"], 3).clamp(0, 1)


def _ssim(a: Tensor, b: Tensor, kept_HW: Tensor | None = None) -> float:
    """Return mean structural similarity; with a mask, over the pixels it keeps (the others must be equal)."""
    from skimage.metrics import structural_similarity

    if kept_HW is not None and not bool(kept_HW.all()):
        a, b = (x.cpu() * kept_HW.cpu()[..., None] for x in (a, b))
    side = min(a.shape[0], a.shape[1], 7)
    window = side if side % 2 else side - 1
    mean, full_HWC = structural_similarity(
        a.cpu().numpy(), b.cpu().numpy(), channel_axis=2, data_range=1.0, win_size=window, full=True
    )
    if kept_HW is None or bool(kept_HW.all()):
        return float(mean)
    return float(torch.from_numpy(full_HWC)[kept_HW.cpu()].mean())


def _compare(
    values: dict[str, list[float]], name: str, pictures: Mapping[str, Tensor], kept_HW: Tensor | None = None
) -> None:
    """Add the figures of one view; masked pixels are not compared with its ground truth."""

    def add(key: str, value: float) -> None:
        values.setdefault(key, []).append(value)

    if name != "teacher":
        add("psnr_teacher", psnr(pictures[name], pictures["teacher"]))
        add("ssim_teacher", _ssim(pictures[name], pictures["teacher"]))
    if "truth" in pictures:
        seen, truth = pictures[name], pictures["truth"]
        if kept_HW is None:
            kept_HW = torch.ones(truth.shape[:2], dtype=torch.bool)
        kept_HW = kept_HW.to(seen.device)
        add("psnr", psnr(seen[kept_HW], truth.to(seen.device)[kept_HW]))
        add("ssim", _ssim(seen, truth, kept_HW))


def _figures(values: Mapping[str, list[float]], size: int) -> dict[str, float]:
    figures = {key: sum(v) / len(v) for key, v in values.items()}
    if "psnr_teacher" in values:
        figures["worst_psnr_teacher"] = min(values["psnr_teacher"])
    return {**figures, "bytes": float(size)}


def _bytes(model: TapModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.module.parameters())
