"""Training volumes: real scans with labels and supervoxels, and synthetic label volumes."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.training.synthesis import synthetic_labels
from SDFSMISLib.volume import SliceOrientation, Volume, read_labelmap


@dataclass(frozen=True)
class TrainingVolume:
    """One volume to draw episodes from.

    Attributes:
        image: (slices, height, width) float16 in [-1, 1]; None for a synthetic volume, whose appearance is drawn each
            time.
        maps: label volumes to take targets from, (slices, height, width) integers, 0 = nothing: the labels first.
        labelled: whether maps[0] are labels (of people, or of the synthesis) rather than supervoxels.
        spacing: mm between voxels, array order.
        axes: the axes along which slices are taken: all of a nearly isotropic volume, else the thick one.
        orientations: of slices along each axis.
        group: volumes of one group show the same anatomy with the same targets under the same label values.
    """

    name: str
    image: np.ndarray | None
    maps: tuple[np.ndarray, ...]
    labelled: bool
    spacing: tuple[float, float, float]
    axes: tuple[int, ...]
    orientations: tuple[SliceOrientation, SliceOrientation, SliceOrientation]
    group: str


def load_training_volumes(manifest: Path, cache: Path, shippable: bool = True) -> list[TrainingVolume]:
    """The training cases of a manifest (`cases.json`), with supervoxels kept in the folder `cache`.

    Args:
        manifest: file with `groups` and `cases`; only cases with `split: train` are read.
        shippable: leave out groups whose terms forbid weights that are passed on.
    """
    content = json.loads(manifest.read_text())
    cases = [
        case
        for case in content["cases"]
        if case["split"] == "train" and (not shippable or content["groups"][case["group"]]["may_train_shipped_weights"])
    ]
    if not cases:
        raise InputError(
            f"{manifest} has no case with split 'train' that may be used; add some or train on synthetic ones."
        )
    return [_real_volume(manifest.parent, case, cache) for case in cases]


def synthetic_volumes(count: int, seed: int) -> list[TrainingVolume]:
    """`count` synthetic label volumes, isotropic at 1 mm."""
    rng = np.random.default_rng(seed)
    plain = SliceOrientation(False, False, False)
    return [
        TrainingVolume(
            f"synthetic_{i}",
            None,
            (synthetic_labels(rng),),
            True,
            (1.0, 1.0, 1.0),
            (0, 1, 2),
            (plain,) * 3,
            "synthetic",
        )
        for i in range(count)
    ]


def _real_volume(folder: Path, case: dict, cache: Path) -> TrainingVolume:
    scan = Volume.read(folder / case["image"])
    labels = read_labelmap(folder / case["labels"]).voxels
    wanted = list(case["targets"].values())
    labels = np.where(np.isin(labels, wanted), labels, 0).astype(np.uint16)
    image = scan.window().normalize(scan.voxels).astype(np.float16)
    spacing = tuple(scan.geometry.axis_spacing(axis) for axis in range(3))
    thick = int(np.argmax(spacing))
    isotropic = max(spacing) < 2.2 * min(spacing) and min(image.shape) >= 24
    maps = (labels, *(_supervoxels(case["id"], image, spacing, count, cache) for count in (100, 400)))
    return TrainingVolume(
        name=case["id"],
        image=image,
        maps=maps,
        labelled=True,
        spacing=spacing,  # type: ignore[arg-type]
        axes=(0, 1, 2) if isotropic else (thick,),
        orientations=tuple(scan.geometry.slice_orientation(axis) for axis in range(3)),  # type: ignore[arg-type]
        group=f"{case['group']} {sorted(case['targets'].items())}",
    )


def _supervoxels(name: str, image: np.ndarray, spacing: tuple, count: int, cache: Path) -> np.ndarray:
    """About `count` SLIC supervoxels (Achanta et al., PAMI 2012) of the part that is not background, 0 outside."""
    key = hashlib.sha256(f"slic-2 {name} {image.shape} {count}".encode()).hexdigest()[:16]
    path = cache / f"supervoxels_{key}.npz"
    if path.exists():
        with np.load(path) as kept:
            return kept["supervoxels"]
    from skimage.segmentation import slic

    steps = tuple(2 if size >= 96 else 1 for size in image.shape)  # found at half size: a tenth of the time
    small = image[:: steps[0], :: steps[1], :: steps[2]].astype(np.float32)
    found = slic(
        small,
        n_segments=count,
        compactness=0.06,
        mask=small > -0.98,
        spacing=tuple(s * step for s, step in zip(spacing, steps, strict=True)),
        channel_axis=None,
        max_num_iter=5,
        start_label=1,
    ).astype(np.uint16)
    for axis, step in enumerate(steps):
        found = np.repeat(found, step, axis=axis)
    found = found[: image.shape[0], : image.shape[1], : image.shape[2]]
    cache.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez_compressed(part, supervoxels=found)
    os.replace(part, path)
    return found
