"""From downloaded folders to the benchmark's form: finds scans and labels, makes grid, intensities, labels and
manifest.

The parameters are those of the public preparation by Ouyang et al. (ECCV 2020), which later papers use. CT: -125 to 275
HU become 0 to 255, a sixteenth of the slice is cut off on each side, the rest is resampled to 256 x 256. MR: the
brightest 0.5 % are clipped, voxels get a fixed size, 256 x 256 around the centre are kept. Labels are resampled one at
a time, linearly, and rounded. No bias field correction.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from SDFSMISLib.benchmark.data_sets import DataSet
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import write_text
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.labelmap import integer_labels
from SDFSMISLib.images.volume import Volume, match_labelmap, read_labelmap

NIFTI = r"\.nii(\.gz)?"
# Of scan and labelmap, in lower case; the group is the number that joins them. With _labels: our own form.
NAMES = {
    "chaos_t2": (
        (rf"images/chaos_(\d+){NIFTI}", rf"labels/chaos_(\d+){NIFTI}"),
        (rf"chaos_(\d+){NIFTI}", rf"chaos_(\d+)_labels{NIFTI}"),
        (rf"image_(\d+){NIFTI}", rf"label_(\d+){NIFTI}"),
    ),
    "sabs": (
        (rf"sabs_(\d+){NIFTI}", rf"sabs_(\d+)_labels{NIFTI}"),
        (rf"img(\d+){NIFTI}", rf"label(\d+){NIFTI}"),
        (rf"det(\d+)_avg{NIFTI}", rf"det(\d+)_avg_seg{NIFTI}"),
        (rf"image_(\d+){NIFTI}", rf"label_(\d+){NIFTI}"),
    ),
    "cmr": (
        (rf"cmr_(\d+){NIFTI}", rf"cmr_(\d+)_labels{NIFTI}"),
        (rf"patient_?(\d+)_c0{NIFTI}", rf"patient_?(\d+)_c0_manual{NIFTI}"),
        (rf"image_(\d+){NIFTI}", rf"label_(\d+){NIFTI}"),
    ),
}
EXPECTED = {
    "chaos_t2": "the challenge's MR/<number>/T2SPIR with DICOM_anon and Ground, or image_<number>.nii.gz and "
    "label_<number>.nii.gz",
    "sabs": "img<number>.nii.gz and label<number>.nii.gz, or DET<number>_avg.nii.gz and DET<number>_avg_seg.nii.gz",
    "cmr": "patient<number>_C0.nii.gz and patient<number>_C0_manual.nii.gz",
}


@dataclass(frozen=True)
class Pair:
    """One scan with its labels: two files, or a folder of DICOM slices and one of a PNG picture for each."""

    number: int
    scan: Path
    labels: Path


def find_pairs(data: DataSet, source: Path) -> list[Pair]:
    """All scans of a data set anywhere under the folder ``source``, by number.

    Raises :class:`InputError` where there are none, a scan has no labels or labels no scan, or two have one number.
    """
    if not source.is_dir():
        raise InputError(f"There is no folder {source}; name the one that holds what was downloaded.")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for scan_name, label_name in NAMES[data.name]:
        scans, labels = _matching(files, scan_name), _matching(files, label_name)
        if scans and labels:
            return _joined(scans, labels)
    if data.name == "chaos_t2" and (pairs := list(_dicom_pairs(source))):
        return sorted(pairs, key=lambda pair: pair.number)
    raise InputError(f"{source} holds no scans of {data.name} in a known layout; expected is {EXPECTED[data.name]}.")


def _matching(files: list[Path], name: str) -> dict[int, Path]:
    """The files whose path ends with ``name``, a regular expression of one group or more, by their number."""
    found: dict[int, Path] = {}
    for path in files:
        match = re.search(rf"(^|/){name}$", path.as_posix().lower())
        if match:
            number = int(match.group(2))
            if number in found:
                raise InputError(f"{found[number]} and {path} have the same number; name a folder with one of them.")
            found[number] = path
    return found


def _joined(scans: dict[int, Path], labels: dict[int, Path]) -> list[Pair]:
    for kind, here, there in (("labels", scans, labels), ("scan", labels, scans)):
        alone = sorted(here.keys() - there.keys())
        if alone and kind == "labels":
            raise InputError(f"{here[alone[0]]} has no {kind} beside it; fetch them, or take it out of the folder.")
        if alone:
            raise InputError(f"{here[alone[0]]} has no {kind} beside it; fetch it, or take them out of the folder.")
    return [Pair(number, scans[number], labels[number]) for number in sorted(scans)]


def _dicom_pairs(source: Path) -> Iterator[Pair]:
    """Of CHAOS's own layout."""
    for folder in sorted(path for path in source.rglob("*") if path.is_dir() and path.name.upper() == "T2SPIR"):
        if not folder.parent.name.isdigit():
            continue
        scan, labels = folder / "DICOM_anon", folder / "Ground"
        if not (scan.is_dir() and labels.is_dir()):
            raise InputError(f"{folder} lacks DICOM_anon or Ground; only the training part of CHAOS has labels.")
        yield Pair(int(folder.parent.name), scan, labels)


SIDE = 256  # of a prepared slice, pixels
HOUNSFIELD = (-125.0, 275.0)
CUT = 16  # of a CT slice's side, one part is cut off on each side
BRIGHTEST = 0.5  # % of an MR scan's voxels
MR_SPACING = {"chaos_t2": (1.25, 1.25, 7.7), "cmr": (1.25, 1.25, 7.99)}  # mm (x, y, z)
# Of labels as they are downloaded: lowest and highest value -> ours.
CHAOS_GREYS = ((55, 70, 1), (110, 135, 2), (175, 200, 3), (240, 255, 4))
CMR_VALUES = ((200, 200, 1), (500, 500, 2), (600, 600, 3))
LICENCES = {
    "chaos_t2": ("CHAOS challenge, T2-SPIR", "CC BY-NC-SA 4.0"),
    "sabs": ("Multi-Atlas Labeling Beyond the Cranial Vault, abdomen (Synapse syn3193805)", "Synapse terms of use"),
    "cmr": ("MS-CMRSeg challenge 2019, bSSFP", "challenge terms of use"),
}


def prepare(data: DataSet, source: Path, output: Path, progress: Callable[[int, int, str], None] | None = None) -> Path:
    """Makes the benchmark's form of what lies under ``source`` and returns the manifest, ``cases.json`` in ``output``.

    Scans that are in that form already are not copied: the manifest names them where they are. A run that was stopped
    goes on. Raises :class:`InputError` for an unknown layout, and files that are damaged or do not fit together.
    """
    pairs = find_pairs(data, source)
    entries = []
    for place, pair in enumerate(pairs):
        name = f"{data.name.partition('_')[0]}_{pair.number:02d}"
        if progress:
            progress(place, len(pairs), name)
        entries.append(_entry(data, pair, name, output))
    if progress:
        progress(len(pairs), len(pairs), "")
    about, licence = LICENCES[data.name]
    group = {"modality": data.modality, "source": about, "licence": licence, "may_train_shipped_weights": False}
    manifest = output / "cases.json"
    content = {"groups": {data.name: group}, "cases": entries}
    write_text(manifest, json.dumps(content, indent=1) + "\n")
    return manifest


def _entry(data: DataSet, pair: Pair, name: str, output: Path) -> dict[str, Any]:
    """One case of the manifest; its files are made where they are missing."""
    scan, labels = output / f"{name}.nii.gz", output / f"{name}_labels.nii.gz"
    if not (scan.exists() and labels.exists()):
        image, labelmap = _read(data, pair)
        if _is_prepared(data, image, labelmap):
            scan, labels = pair.scan, pair.labels
        else:
            prepared = _ct(image, labelmap) if data.modality == "CT" else _mr(image, labelmap, MR_SPACING[data.name])
            for volume, path in zip(prepared, (scan, labels), strict=True):
                volume.write(path)
    files = {"image": _from(output, scan), "labels": _from(output, labels)}
    targets = dict(data.labels)
    return {"id": f"{data.name}/{name}", "group": data.name, **files, "targets": targets, "split": "test"}


def _from(folder: Path, path: Path) -> str:
    """The path as the manifest in ``folder`` has it."""
    inside = path.parent.resolve() == folder.resolve()
    return path.name if inside else os.path.abspath(path)


def _is_prepared(data: DataSet, image: Volume, labelmap: Volume) -> bool:
    """Whether a scan has the grid and the label values of the benchmark's form already."""
    rows, columns = image.geometry.shape[1:]
    wanted = MR_SPACING.get(data.name)
    if (rows, columns) != (SIDE, SIDE) or labelmap.voxels.max() > max(data.labels.values()):
        return False
    if wanted is None:
        return float(image.voxels.min()) >= 0 and float(image.voxels.max()) <= 255
    return bool(np.allclose(image.geometry.spacing, wanted, rtol=0.01))


# -- reading


def _read(data: DataSet, pair: Pair) -> tuple[Volume, Volume]:
    """Scan and labelmap on one grid, with our label values."""
    if pair.scan.is_dir():
        image, labels = _read_dicom(pair.scan, pair.labels)
        return image, Volume(_renamed(labels, CHAOS_GREYS, pair.labels), image.geometry)
    image, labelmap = Volume.read(pair.scan), read_labelmap(pair.labels)
    labelmap, _ = match_labelmap(labelmap, image.geometry)
    values = labelmap.voxels
    most = max(data.labels.values())
    if values.max() > most and data.name in ("chaos_t2", "cmr"):
        values = _renamed(values, CHAOS_GREYS if data.name == "chaos_t2" else CMR_VALUES, pair.labels)
    if values.max() > most:
        raise InputError(f"{pair.labels} holds the label {values.max()}; {data.name} has the labels 1 to {most}.")
    return image, Volume(integer_labels(values, str(pair.labels)), image.geometry)


def _renamed(values: np.ndarray, ranges: tuple[tuple[int, int, int], ...], path: Path) -> np.ndarray:
    """Our label values, uint8, of the challenge's; raises :class:`InputError` for others than these."""
    named = np.zeros(values.shape, dtype=np.uint8)
    for low, high, label in ranges:
        named[(values >= low) & (values <= high)] = label
    if unknown := np.setdiff1d(values[named == 0], 0).tolist():
        accepted = ", ".join(f"{low} to {high}" if low < high else str(low) for low, high, _ in ranges)
        raise InputError(f"{path} holds the label value {unknown[0]}; accepted are {accepted}, and 0.")
    return named


def _read_dicom(scan: Path, labels: Path) -> tuple[Volume, np.ndarray]:
    """A folder of slices, sorted by position, and the grey values of the picture of the same name for each of them.

    CHAOS gives slices of one scan different series numbers, so that they cannot be found by these.
    """
    import SimpleITK
    from PIL import Image

    files = sorted((path for path in scan.iterdir() if path.suffix.lower() == ".dcm"), key=lambda path: path.name)
    pictures = {path.stem: path for path in labels.iterdir() if path.suffix.lower() == ".png"}
    without = [path for path in files if path.stem not in pictures]
    if not files or without:
        what = f"for {without[0].name}" if files else "and no slice"
        raise InputError(f"{labels} has no picture {what}; fetch CHAOS's training part again.")
    try:
        ordered = sorted(files, key=_place)
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in ordered])
        image = reader.Execute()
        labels_read = np.stack([np.asarray(Image.open(pictures[path.stem]).convert("L")) for path in ordered])
    except (RuntimeError, OSError, ValueError) as error:
        last = str(error).strip().splitlines()[-1:]
        raise InputError(f"The slices in {scan} cannot be read ({' '.join(last)}); fetch them again.") from error
    voxels = SimpleITK.GetArrayFromImage(image)
    if voxels.shape != labels_read.shape:
        raise InputError(
            f"The slices in {scan} are {voxels.shape}, and their labels {labels_read.shape}; fetch them again."
        )
    geometry = Geometry(voxels.shape, image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return Volume(voxels, geometry), labels_read


def _place(path: Path) -> float:
    """Where a DICOM slice lies along the normal of its plane, mm."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    turn = np.reshape(reader.GetDirection(), (3, 3))
    return float(np.dot(turn[:, 2], reader.GetOrigin()))


# -- intensities and grid


def _ct(image: Volume, labelmap: Volume) -> tuple[Volume, Volume]:
    low, high = HOUNSFIELD
    clipped = np.clip(image.voxels.astype(np.float32), low, high)
    span = float(clipped.max() - clipped.min()) or 1.0
    levels = (clipped - clipped.min()) / span * 255
    rows, columns = (side - 2 * (side // CUT) for side in image.geometry.shape[1:])
    x, y, z = image.geometry.spacing
    start = tuple(side // CUT for side in image.geometry.shape[1:])
    spacing = (x * columns / SIDE, y * rows / SIDE, z)
    cut = _cut(levels, image.geometry, start, (rows, columns))
    grid = _resampled_grid(cut.geometry, spacing, (image.geometry.shape[0], SIDE, SIDE))
    labels = _cut(labelmap.voxels, image.geometry, start, (rows, columns))
    return _resampled(cut, grid), _resampled_labels(labels, grid)


def _mr(image: Volume, labelmap: Volume, spacing: tuple[float, float, float]) -> tuple[Volume, Volume]:
    voxels = image.voxels.astype(np.float32)
    voxels = np.minimum(voxels, np.percentile(voxels, 100 - BRIGHTEST))
    old = image.geometry
    counts = np.array(old.shape) * old.spacing[::-1] / spacing[::-1]
    grid = _resampled_grid(old, spacing, tuple(max(1, round(count)) for count in counts))
    made = _resampled(Volume(voxels, old), grid), _resampled_labels(Volume(labelmap.voxels, old), grid)
    return _on_grid(made[0], float(voxels.min())), _on_grid(made[1], 0)


def _resampled_grid(old: Geometry, spacing: tuple[float, float, float], shape: tuple[int, ...]) -> Geometry:
    """A grid with another voxel size and the same first corner: the outer edges of voxels, not their centres, meet."""
    moved = np.reshape(old.direction, (3, 3)) @ ((np.array(spacing) - old.spacing) / 2)
    origin = tuple(np.array(old.origin) + moved)
    return Geometry((shape[0], shape[1], shape[2]), spacing, origin, old.direction)


def _cut(voxels: np.ndarray, old: Geometry, start: tuple[int, ...], size: tuple[int, int]) -> Volume:
    """A part of every slice, from row and column ``start``."""
    rows, columns = start
    part = voxels[:, rows : rows + size[0], columns : columns + size[1]]
    moved = np.reshape(old.direction, (3, 3)) @ (np.array([columns, rows, 0]) * old.spacing)
    origin = tuple(np.array(old.origin) + moved)
    return Volume(part, Geometry(part.shape, old.spacing, origin, old.direction))


def _resampled(volume: Volume, grid: Geometry) -> Volume:
    """Linearly, float32; beyond the edge the edge goes on."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.voxels, dtype=np.float32))
    image.SetSpacing(volume.geometry.spacing)
    image.SetOrigin(volume.geometry.origin)
    image.SetDirection(volume.geometry.direction)
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetSize(grid.shape[::-1])
    resampler.SetOutputSpacing(grid.spacing)
    resampler.SetOutputOrigin(grid.origin)
    resampler.SetOutputDirection(grid.direction)
    resampler.SetInterpolator(SimpleITK.sitkLinear)
    resampler.UseNearestNeighborExtrapolatorOn()
    return Volume(SimpleITK.GetArrayFromImage(resampler.Execute(image)), grid)


def _resampled_labels(labels: Volume, grid: Geometry) -> Volume:
    """Each label by itself, linearly, then rounded."""
    made = np.zeros(grid.shape, dtype=np.uint8)
    for label in np.unique(labels.voxels[labels.voxels > 0]).tolist():
        one = _resampled(Volume((labels.voxels == label).astype(np.float32), labels.geometry), grid)
        made[np.rint(one.voxels) > 0] = label
    return Volume(made, grid)


def _on_grid(volume: Volume, outside: float) -> Volume:
    """Every slice as ``SIDE`` x ``SIDE`` around its centre, cut or filled."""
    old = volume.geometry
    starts = [(side - SIDE) // 2 for side in old.shape[1:]]
    before = [max(-start, 0) for start in starts]
    part = volume.voxels[:, max(starts[0], 0) : max(starts[0], 0) + SIDE, max(starts[1], 0) : max(starts[1], 0) + SIDE]
    behind = [SIDE - side - before[axis] for axis, side in enumerate(part.shape[1:])]
    filled = np.pad(part, [(0, 0), *zip(before, behind, strict=True)], constant_values=outside)
    moved = np.reshape(old.direction, (3, 3)) @ (np.array([starts[1], starts[0], 0]) * old.spacing)
    origin = tuple(np.array(old.origin) + moved)
    return Volume(filled, Geometry(filled.shape, old.spacing, origin, old.direction))
