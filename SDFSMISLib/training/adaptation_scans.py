"""Scans without labels, made ready to draw episodes from: on disk, so that memory does not grow with their number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from SDFSMISLib.atomic import atomic_output
from SDFSMISLib.errors import InputError
from SDFSMISLib.geometry import Geometry
from SDFSMISLib.training.supervoxels import Felzenszwalb
from SDFSMISLib.training.volumes import TrainingVolume, slicing
from SDFSMISLib.volume import Volume

__all__ = ["AdaptationScan", "prepared", "split"]

MOST_VOXELS = 16_000_000  # of a scan as it is learned from; larger ones are averaged
MOST_GROUPED = 1_000_000  # voxels that supervoxels are made of
LEAST_PARTS = (0.002, 0.0007)  # of a scan's voxels; the first as the literature's 5000 of an abdominal scan
LEAST_SLICES, LEAST_SIDE = 4, 32
LEAST_SUPERVOXELS = 4
AIR, LEAST_SHOWN = -0.98, 0.01  # what is darker shows nothing; share of the voxels that must show something
CORE = 0.2  # of the radius of the least part: how deep in a slice the core of a part begins
LEAST_CORE = 0.42  # of its voxels; abdominal organs have 0.45 to 0.67
MOST_AIR = 0.02  # of its voxels, that lie as near to the air
HELD_OUT = 6  # one scan of so many is measured on,
FEWEST_SCANS = 4  # where there are as many; else one supervoxel of so many
HELD_SUPERVOXELS = 5


@dataclass(frozen=True)
class AdaptationScan:
    """A scan that is ready.

    Attributes:
        volume: its maps are supervoxels whose borders the image shows: large ones, then smaller ones.
        content: sha256 (hex) of the scan.
    """

    volume: TrainingVolume
    content: str


def prepared(path: Path, cache: Path) -> AdaptationScan:
    """The scan in a file or DICOM folder; made ready once and kept in the folder `cache`.

    Raises:
        InputError: for what cannot be read, is too small, or shows nothing.
    """
    scan = Volume.read(path)
    content = scan.content_hash()
    folder = cache / content[:24]
    if not (folder / "scan.json").exists():
        _make_ready(scan, path, folder, content)
    return kept(folder)


def kept(folder: Path) -> AdaptationScan:
    """A scan that was made ready in `folder`, its voxels read as they are needed."""
    about = json.loads((folder / "scan.json").read_text(encoding="utf-8"))
    geometry = Geometry(*(tuple(part) for part in about["geometry"]))
    image = np.load(folder / "image.npy", mmap_mode="r")
    maps = tuple(np.load(folder / f"map_{number}.npy", mmap_mode="r") for number in range(about["maps"]))
    spacing = tuple(about["spacing"])
    axes, main = slicing(geometry, image.shape, spacing)
    volume = TrainingVolume(
        name=about["content"],
        image=image,
        maps=maps,
        labelled=True,
        spacing=spacing,
        axes=axes,
        orientations=tuple(geometry.slice_orientation(one) for one in range(3)),  # type: ignore[arg-type]
        group="scans",
        main=main,
    )
    return AdaptationScan(volume, about["content"])


def split(scans: Sequence[AdaptationScan], seed: int) -> tuple[list[TrainingVolume], list[TrainingVolume]]:
    """(what is learned from, what is held out to measure on): whole scans; of few scans some supervoxels of each."""
    if len(scans) >= FEWEST_SCANS:
        order = np.random.default_rng(seed).permutation(len(scans))
        held = set(order[: max(1, len(scans) // HELD_OUT)].tolist())
        learned = [scan.volume for place, scan in enumerate(scans) if place not in held]
        return learned, [scan.volume for place, scan in enumerate(scans) if place in held]
    volumes = [scan.volume for scan in scans]
    return [_only(volume, held=False) for volume in volumes], [_only(volume, held=True) for volume in volumes]


def _only(volume: TrainingVolume, held: bool) -> TrainingVolume:
    """The volume with the supervoxels that are held out, or with the others; neither is empty."""
    maps = []
    for part in volume.maps:
        numbers = np.unique(part[part > 0])
        chosen = np.zeros(int(numbers.max()) + 1, dtype=bool)
        chosen[numbers] = (np.arange(len(numbers)) % HELD_SUPERVOXELS == 0) == held
        maps.append(np.where(chosen[part], part, 0).astype(part.dtype))
    return replace(volume, maps=tuple(maps))


def _make_ready(scan: Volume, path: Path, folder: Path, content: str) -> None:
    axis = scan.geometry.default_axis()
    sides = [size for other, size in enumerate(scan.voxels.shape) if other != axis]
    if scan.slice_count(axis) < LEAST_SLICES or min(sides) < LEAST_SIDE:
        given = " × ".join(map(str, scan.voxels.shape))
        raise InputError(
            f"{path} has {given} voxels; {LEAST_SLICES} slices of {LEAST_SIDE} × {LEAST_SIDE} are the least to learn "
            "from."
        )
    along = scan.geometry.axis_spacing
    spacing = (along(0), along(1), along(2))
    image = scan.window("robust").normalize(scan.voxels).astype(np.float32)
    image, spacing = _averaged(image, spacing, MOST_VOXELS)
    shown = image > AIR
    maps = _supervoxels(image, spacing, axis) if np.ptp(image) > 0 and shown.mean() > LEAST_SHOWN else []
    if not maps or any(len(np.unique(part)) < LEAST_SUPERVOXELS for part in maps):
        raise InputError(f"{path} shows nothing that could be told apart; leave it out.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in [("image", image.astype(np.float16)), *((f"map_{n}", part) for n, part in enumerate(maps))]:
        with atomic_output(folder / f"{name}.npy", ".npy") as part:
            np.save(part, array)
    grid = scan.geometry
    about: dict[str, Any] = {"content": content, "maps": len(maps), "spacing": spacing}
    about["geometry"] = [grid.shape, grid.spacing, grid.origin, grid.direction]
    with atomic_output(folder / "scan.json", ".json") as part:
        part.write_text(json.dumps(about), encoding="utf-8")


def _supervoxels(image: np.ndarray, spacing: tuple[float, float, float], axis: int) -> list[np.ndarray]:
    """Maps of supervoxels that might be organs, large ones first; found on a coarser grid where the image is large."""
    coarse, there = _averaged(image, spacing, MOST_GROUPED)
    factors = _factors(image.shape, spacing, MOST_GROUPED)
    maps = []
    for share in LEAST_PARTS:
        found = Felzenszwalb(max(8, round(share * coarse.size)))(coarse, there)
        found = _organ_like(found.astype(np.uint16), there, axis, share)
        for along, factor in enumerate(factors):
            found = np.repeat(found, factor, axis=along)
        short = [(0, max(0, size - have)) for size, have in zip(image.shape, found.shape, strict=True)]
        found = np.pad(found, short, mode="edge")  # what did not fill a block goes with the last one
        maps.append(_smoothed(found, [1 if along == axis else 2 * factors[along] + 1 for along in range(3)]))
    return maps


def _organ_like(parts: np.ndarray, spacing: tuple[float, float, float], axis: int, share: float) -> np.ndarray:
    """The parts that are thick for their size and do not lie at the air: no skin, no fat under it, no remnants.

    Of all parts those that are least so are left where none is.
    """
    volume = share * parts.size * float(np.prod(spacing))
    depth = CORE * (3 / (4 * np.pi) * volume) ** (1 / 3)  # mm, of the radius of a ball of the least size
    inside, outside = np.ones(parts.shape, dtype=bool), np.zeros(parts.shape, dtype=bool)
    for along in (other for other in range(3) if other != axis):
        reach = max(1, round(depth / spacing[along]))
        for step in (-reach, reach):
            beside = np.roll(parts, step, axis=along)
            inside &= beside == parts
            outside |= beside == 0
    sizes = np.bincount(parts.ravel()).clip(min=1)
    core, air = (np.bincount(parts[where], minlength=len(sizes)) / sizes for where in (inside, outside))
    good = (core >= LEAST_CORE) & (air <= MOST_AIR)
    good[0] = False
    if good.sum() < LEAST_SUPERVOXELS:
        merit = core - air
        merit[0] = -np.inf
        good[np.argsort(merit)[-LEAST_SUPERVOXELS:]] = True
        good[0] = False
    return np.where(good[parts], parts, 0).astype(parts.dtype)


def _smoothed(parts: np.ndarray, widths: list[int]) -> np.ndarray:
    """Each voxel goes with the most frequent part around it, so that borders are no stairs and have no spurs."""
    best, most = (
        np.zeros(parts.shape, dtype=parts.dtype),
        ndimage.uniform_filter((parts == 0).astype(np.float32), widths),
    )
    for value in np.unique(parts[parts > 0]):
        share = ndimage.uniform_filter((parts == value).astype(np.float32), widths)
        wins = share > most
        best[wins], most[wins] = value, share[wins]
    return best


def _averaged(
    image: np.ndarray, spacing: tuple[float, float, float], most: int
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The image as the means of blocks, so that `most` voxels are left at most; and its spacing."""
    factors = _factors(image.shape, spacing, most)
    for axis, factor in enumerate(factors):
        if factor > 1:
            whole = image.shape[axis] // factor * factor
            parts = np.moveaxis(image, axis, 0)[:whole]
            parts = parts.reshape(whole // factor, factor, *parts.shape[1:]).mean(1)
            image = np.moveaxis(parts, 0, axis)
    z, y, x = (s * factor for s, factor in zip(spacing, factors, strict=True))
    return np.ascontiguousarray(image), (z, y, x)


def _factors(shape: tuple[int, ...], spacing: tuple[float, float, float], most: int) -> list[int]:
    """By how much each axis is made coarser; the finest first."""
    factors = [1, 1, 1]
    while np.prod([size // factor for size, factor in zip(shape, factors, strict=True)]) > most:
        steps = [s * factor for s, factor in zip(spacing, factors, strict=True)]
        factors[int(np.argmin(steps))] += 1
    return factors
