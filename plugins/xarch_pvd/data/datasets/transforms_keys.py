"""Keys of transforms.json: supported ones, ones that do not affect rays, and unsupported ones that would."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from xarch import UsageError

READ = frozenset(
    {
        "frames", "file_path", "transform_matrix", "mask_path", "camera_angle_x", "camera_angle_y", "fl_x", "fl_y",
        "cx", "cy", "w", "h", "k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "camera_model", "is_fisheye", "aabb",
        "applied_transform", "applied_scale", "train_filenames", "val_filenames", "test_filenames"
    }
)  # fmt: skip
HARMLESS = frozenset(
    {
        # Provenance of a file, hints for a program's own world, and other kinds of images.
        "aabb_scale", "scale", "offset", "from_na", "up", "render_aabb", "render_aabb_to_local", "sharpness",
        "rotation", "colmap_im_id", "image_id", "camera_label", "camera_angle", "time", "timestamp", "depth_file_path",
        "depth_path", "depth_unit_scale_factor", "integer_depth_scale", "enable_depth_loading", "normal_file_path",
        "semantics", "panoptic_classes", "ply_file_path", "sparse_pcd_path", "orientation_override",
        "auto_scale_poses_factor", "n_extra_learnable_dims", "colmap_db", "path", "exposure", "white_balance",
        "transform_matrix_start_time", "bbox", "name", "version"
    }
)  # fmt: skip
CHANGING = {
    "rolling_shutter": "a rolling shutter",
    "transform_matrix_start": "a camera that moves during the exposure",
    "transform_matrix_end": "a camera that moves during the exposure",
    "white_transparent": "pixels that are transparent where they are white",
    "black_transparent": "pixels that are transparent where they are black",
    "mask_color": "pixels that are masked by their colour",
    "fix_premult": "colours multiplied by their alpha",
    "fisheye_crop_radius": "a fisheye image with a rim",
    "ftheta_p0": "an f-theta lens",
    "latlong": "a panorama",
    "equirectangular": "a panorama",
    "light_dir": "its own lights",
}
"""Keys that, if set, change rays or pixels in an unsupported way."""


def check_keys(document: Mapping[str, Any], frames: Iterable[Mapping[str, Any]], where: str) -> tuple[str, ...]:
    """Check keys and return warnings about ignored ones.

    Raises:
        UsageError: a key changes what the cameras see.
    """
    names: dict[str, Any] = dict(document)
    for frame in frames:
        names.update(frame)
    for name, what in CHANGING.items():
        value = names.get(name)
        if value not in (None, False, 0, []) and not (isinstance(value, list) and not any(value)):
            raise UsageError(f"{where} sets {name}: {what}, which is not supported", "preprocess the images without it")
    unknown = sorted(set(names) - READ - HARMLESS - set(CHANGING))
    return (f"{where} has unknown keys that are ignored: {', '.join(unknown[:8])}",) if unknown else ()
