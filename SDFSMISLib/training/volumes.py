"""Training volumes: real scans with labels and supervoxels, and synthetic label volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.cases import Case, read_manifest
from SDFSMISLib.evaluation.protocols import load_case
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.volume import SliceOrientation
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.supervoxels import Felzenszwalb, Slic, Supervoxels, kept_supervoxels
from SDFSMISLib.training.synthesis import synthetic_labels

LEAST_PART = 200  # voxels


@dataclass(frozen=True)
class MainAxis:
    """The axis along which scans are compared.

    Attributes:
        number: in array order. plane: of its slices, such as `axial`.
        rising: whether slices run towards left, posterior or superior.
    """

    number: int
    plane: str
    rising: bool


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
        main: the axis along which it is compared with others; None for a synthetic volume.
    """

    name: str
    image: np.ndarray | None
    maps: tuple[np.ndarray, ...]
    labelled: bool
    spacing: tuple[float, float, float]
    axes: tuple[int, ...]
    orientations: tuple[SliceOrientation, SliceOrientation, SliceOrientation]
    group: str
    main: MainAxis | None = None

    @property
    def main_axis(self) -> int:
        """Number of the axis along which a scan is compared with others."""
        assert self.main is not None, "synthetic volumes are not compared"
        return self.main.number


def slicing(
    geometry: Geometry, shape: tuple[int, ...], spacing: tuple[float, float, float]
) -> tuple[tuple[int, ...], MainAxis]:
    """The `axes` and the `main` of a scan whose voxels, perhaps averaged, have this shape and spacing, array order."""
    thick = int(np.argmax(spacing))
    isotropic = max(spacing) < 2.2 * min(spacing) and min(shape) >= 24
    number = geometry.default_axis() if isotropic else thick
    through = geometry.index_to_physical()[:3, 2 - number]
    rising = bool(through[np.argmax(np.abs(through))] > 0)
    return (0, 1, 2) if isotropic else (thick,), MainAxis(number, geometry.plane(number), rising)


def load_training_volumes(manifest: Path, cache: Path, config: TrainingConfig) -> list[TrainingVolume]:
    """The training cases of a manifest (`cases.json`), with supervoxels kept in the folder `cache`.

    Args:
        manifest: file with `groups` and `cases`; only cases with `split: train` are read.
        config: `shippable` leaves out groups whose terms forbid weights that are passed on, `held_out` single cases;
            `window`, `supervoxels` and `supervoxel_size` say how images and these are made.
    """
    content = read_manifest(manifest)
    allowed = {name for name, group in content.groups.items() if group.may_train_shipped_weights}
    cases = [
        case
        for case in content.cases
        if case.split == "train" and (not config.shippable or case.group in allowed) and case.id not in config.held_out
    ]
    if not cases:
        raise InputError(
            f"{manifest} has no case with split 'train' that may be used; add some or train on synthetic ones."
        )
    return [_real_volume(case, cache, config) for case in cases]


def synthetic_volumes(count: int, seed: int) -> list[TrainingVolume]:
    """`count` synthetic label volumes, isotropic at 1 mm: the labels, which give the appearance, and their connected
    parts, of which targets are made."""
    rng = np.random.default_rng(seed)
    plain = SliceOrientation(False, False, False)
    made = []
    for number in range(count):
        labels = synthetic_labels(rng)
        maps = (labels, _connected_parts(labels))
        name = f"synthetic_{number}"
        made.append(TrainingVolume(name, None, maps, True, (1.0, 1.0, 1.0), (0, 1, 2), (plain,) * 3, "synthetic"))
    return made


def _connected_parts(labels: np.ndarray) -> np.ndarray:
    """Every connected part of every label under a number of its own, uint16; small ones are 0."""
    parts = np.zeros(labels.shape, dtype=np.uint16)
    count = 0
    for value in np.unique(labels[labels > 0]):
        found, number = ndimage.label(labels == value)
        sizes = np.bincount(found.ravel(), minlength=number + 1)
        kept = [part for part in range(1, number + 1) if sizes[part] >= LEAST_PART]
        for part in kept:
            count += 1
            parts[found == part] = count
    return parts


def _real_volume(case: Case, cache: Path, config: TrainingConfig) -> TrainingVolume:
    labelled = load_case(case)
    scan, labels = labelled.scan, labelled.labelmap.voxels
    labels = np.where(np.isin(labels, list(case.targets.values())), labels, 0).astype(np.uint16)
    if not labels.any():
        raise InputError(f"{case.labels} holds none of the targets of {case.id!r}; leave the case out, or correct it.")
    image = scan.window(config.window).normalize(scan.voxels).astype(np.float16)
    along = scan.geometry.axis_spacing
    spacing = (along(0), along(1), along(2))
    axes, main = slicing(scan.geometry, image.shape, spacing)
    kinds: Sequence[Supervoxels] = [Slic(100), Slic(400)]
    if config.supervoxels == "felzenszwalb":
        kinds = [Felzenszwalb(config.supervoxel_size)]
    parts = (kept_supervoxels(kind, image, spacing, cache, case.id) for kind in kinds)
    maps = (labels, labels) if config.supervoxels == "labels" else (labels, *parts)
    return TrainingVolume(
        name=case.id,
        image=image,
        maps=maps,
        labelled=True,
        spacing=spacing,
        axes=axes,
        orientations=tuple(scan.geometry.slice_orientation(axis) for axis in range(3)),  # type: ignore[arg-type]
        group=f"{case.group} {sorted(case.targets.items())}",
        main=main,
    )
