"""Views of an evaluation as one SVG: ground-truth image, teacher, student and their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, GAP, HEADING, CAPTION = 1024, 8, 38, 24
TITLES = {
    "truth": "image",
    "teacher": "teacher",
    "student": "student",
    "error": "student − teacher",
    "teacher_error": "teacher − image",
    "student_error": "student − image",
}
LIMIT = {"error": "teacher", "teacher_error": "truth", "student_error": "truth"}
FIGURES = {
    "error": ("student", "psnr_teacher", "ssim_teacher"),
    "teacher_error": ("teacher", "psnr", "ssim"),
    "student_error": ("student", "psnr", "ssim"),
}
"""Image or map -> the figures shown below it: whose, and which."""
BAR = ("#000004", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")
"""Colours of the maps' scale at equal intervals."""
STYLE = (
    "text{fill:#17212b;font:13px system-ui,sans-serif}.faint{fill:#5b6875;font-size:12px}"
    "@media(prefers-color-scheme:dark){text{fill:#e6ebf0}.faint{fill:#9aa7b4}}"
)


def renders_svg(shown: Sequence[Mapping[str, Any]]) -> str:
    """Draw one row per view.

    Args:
        shown: samples with pictures, from :class:`xarch_pvd.evaluate.view_samples.ShownViews`.
    """
    names = [n for n in TITLES if any(n in sample["png"] for sample in shown)]
    width = (WIDTH - GAP * (len(names) - 1)) / max(len(names), 4)
    heights = [width * s["size"][1] / s["size"][0] for s in shown]
    total = HEADING + sum(heights) + CAPTION * len(shown)
    full = len(names) * (width + GAP) - GAP
    stops = "".join(f'<stop offset="{i / (len(BAR) - 1):g}" stop-color="{c}"/>' for i, c in enumerate(BAR))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{full:.0f}" height="{total:.0f}" '
        f'viewBox="0 0 {full:.0f} {total:.0f}"><style>{STYLE}</style>'
        f'<defs><linearGradient id="bar">{stops}</linearGradient></defs>'
    ]
    for column, name in enumerate(names):
        left, top = column * (width + GAP), float(HEADING)
        parts += _heading(name, left, width, shown[0]["limits"])
        for sample, height in zip(shown, heights, strict=True):
            if name not in sample["png"]:
                # A view without a picture among others that have one.
                top += height + CAPTION
                continue
            parts.append(
                f'<image x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'href="data:image/png;base64,{sample["png"][name]}"/>'
            )
            parts.append(
                f'<text class="faint" x="{left:.1f}" y="{top + height + 15:.1f}">{_below(name, sample)}</text>'
            )
            top += height + CAPTION
    return "".join([*parts, "</svg>"])


def _heading(name: str, left: float, width: float, limits: Mapping[str, float]) -> list[str]:
    """Draw the title of a column and, for a map, its colour scale with the errors."""
    parts = [f'<text x="{left:.1f}" y="13">{TITLES[name]}</text>']
    if name in LIMIT:
        end = f"{limits[LIMIT[name]]:g}"
        bar = width - 8 * len(end) - 24
        parts += [
            f'<text class="faint" x="{left:.1f}" y="31">0</text>',
            f'<rect x="{left + 12:.1f}" y="23" width="{bar:.1f}" height="8" fill="url(#bar)"/>',
            f'<text class="faint" x="{left + bar + 17:.1f}" y="31">{end}</text>',
        ]
    return parts


def _below(name: str, sample: Mapping[str, Any]) -> str:
    if name in FIGURES:
        who, psnr, ssim = FIGURES[name]
        figures = sample["figures"][who]
        return f"{figures[psnr]:.2f} dB · SSIM {figures[ssim]:.3f}"
    first = next(n for n in TITLES if n in sample["png"])
    return f"view {sample['view']}{' (worst)' if sample['worst'] else ''}" if name == first else ""
