"""`sdfsmis demo`: a real head, one painted slice, and all files that a run writes.

The scan is the MNI152 template of nilearn, the T1-weighted mean of 152 healthy heads at 1 mm; the sum of its maps of
grey and white matter is the reference. Brain tissue is painted on one axial slice and segmented on all the others.
"""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from SDFSMISLib.console import duration, print_status, progress, waiting
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.options import RunOptions
from SDFSMISLib.support import SupportSet

__all__ = ["DemoResult", "Head", "read_head", "run_demo"]

SCAN = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
TISSUES = tuple(f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz" for tissue in ("gm", "wm"))
MEMBER = 0.5  # sum of both maps above which a voxel is brain tissue
LABEL, NAME = 1, "brain tissue"


@dataclass(frozen=True, eq=False)
class Head:
    """A scan, and a labelmap of its brain tissue on the same grid."""

    scan: Volume
    reference: Volume


@dataclass(frozen=True)
class DemoResult:
    """Dice over the slices that were not painted, Dice of copying the painted mask to them, seconds, and files."""

    dice: float
    copy_dice: float
    seconds: float
    seconds_per_slice: float
    files: tuple[Path, ...]


def read_head() -> Head:
    """The MNI152 head of nilearn; raises :class:`InputError` if that is not installed."""
    found = importlib.util.find_spec("nilearn")  # finds it without the seconds that importing it takes
    folder = Path(found.origin).parent / "datasets" / "data" if found is not None and found.origin else None
    if folder is None or not all((folder / name).is_file() for name in (SCAN, *TISSUES)):
        raise InputError(
            "The demonstration needs a scan of the package nilearn, which is not installed: run `pip install "
            "nilearn`, or `make demo` in a clone of the project."
        )
    scan = Volume.read(folder / SCAN)
    maps = [Volume.read(folder / name) for name in TISSUES]
    share = np.sum([one.voxels.astype(np.uint16) for one in maps], axis=0)  # each 0 to 255
    inside = (share > MEMBER * 255).astype(np.uint8) * LABEL
    return Head(scan, Volume(inside, maps[0].geometry, segment_names={LABEL: NAME}))


def run_demo(output: Path, command: str = "") -> DemoResult:
    """Segment the head's brain tissue by one slice, write the results into the folder ``output`` and print them.

    Args:
        command: the command line, for the provenance.

    Raises:
        InputError: if the scan or the weights are missing, or the folder cannot be written.
    """
    from SDFSMISLib.evaluation.contact_sheet import contact_sheet
    from SDFSMISLib.evaluation.protocols import painted_slices
    from SDFSMISLib.inference.output import check_writable, provenance, write_segmentation

    painted_file, labelmap_file = output / "painted_slice.seg.nrrd", output / "brain_tissue.seg.nrrd"
    sheet_file = output / "contact_sheet.png"
    for file in (painted_file, labelmap_file, sheet_file):
        check_writable(file)
    head = read_head()
    axis = head.scan.geometry.default_axis()
    (index,) = painted_slices(head.reference.voxels == LABEL, axis, shots=1)
    painted = _one_slice(head.reference, axis, index)
    support = SupportSet.from_labelmap(head.scan, painted, LABEL, [index], axis)
    with waiting("Loading the built-in weights"):
        from SDFSMISLib.inference import Segmenter
        from SDFSMISLib.model.loading import weights_digest

        segmenter = Segmenter.from_pretrained()
        each = segmenter.seconds_per_slice()
    slices = head.scan.slice_count(axis) - 1
    print_status(
        f"{NAME.capitalize()}, painted on one of {slices + 1} slices: about {duration(slices * each)} to find the rest."
    )
    with progress(NAME, slices) as advance:
        segmentation = segmenter.segment(head.scan, support, on_slice=lambda one: advance(one.finished, one.total))
    fields = provenance(
        segmentation,
        support,
        model=segmenter.name,
        weights=weights_digest(segmenter.pipeline),
        settings=RunOptions().settings,
        command=command,
    )
    painted.write(painted_file)
    volumes_file = write_segmentation(segmentation, labelmap_file, fields)
    contact_sheet(
        head.scan,
        segmentation.labelmap,
        sheet_file,
        reference=head.reference,
        axis=axis,
        painted=segmentation.painted,
        title=f"MNI152 T1: {NAME} from one painted slice",
    )
    result = DemoResult(
        dice=_dice(segmentation.labelmap.voxels, head.reference, axis, index),
        copy_dice=_dice(
            np.broadcast_to(_plane(painted, axis, index), painted.voxels.shape), head.reference, axis, index
        ),
        seconds=segmentation.seconds,
        seconds_per_slice=segmentation.seconds / slices,
        files=(labelmap_file, volumes_file, painted_file, sheet_file),
    )
    _print_results(result, head, axis, index, segmenter.pipeline.device)
    return result


def _print_results(result: DemoResult, head: Head, axis: int, index: int, device: object) -> None:
    labelmap, volumes, painted, sheet = result.files
    again = ["sdfsmis", "segment", "--support", head.scan.path, "--mask", painted, "--output", "mine.seg.nrrd"]
    plane = head.scan.geometry.plane(axis)
    rows = {
        "Scan": head.scan.path,
        "Painted": f"{painted} ({NAME} on slice {index} of axis {axis}, {plane})",
        "Result": f"{labelmap}, volumes in {volumes.name}",
        "Picture": f"{sheet} (dashed: the reference)",
        "Dice": f"{result.dice:.3f} on the slices not painted (copying the painted one: {result.copy_dice:.3f})",
        "Time": f"{result.seconds:.0f} s, {result.seconds_per_slice:.2f} s a slice, on {device}",
        "By hand": shlex.join(map(str, again)),
    }
    for name, text in rows.items():
        typer.echo(f"{name:<8} {text}")


def _one_slice(labelmap: Volume, axis: int, index: int) -> Volume:
    """The labelmap with one slice only: what a user would have painted."""
    voxels = np.zeros_like(labelmap.voxels)
    place = (slice(None),) * axis + (index,)
    voxels[place] = labelmap.voxels[place]
    return Volume(voxels, labelmap.geometry, segment_names=labelmap.segment_names)


def _plane(labelmap: Volume, axis: int, index: int) -> np.ndarray:
    """One slice in three dimensions, so that it can be repeated along ``axis``."""
    return np.expand_dims(labelmap.slice(axis, index), axis)


def _dice(voxels: np.ndarray, reference: Volume, axis: int, painted: int) -> float:
    """Dice over all slices but the painted one."""
    from SDFSMISLib.evaluation.metrics import dice

    ours, theirs = (np.delete(labels, painted, axis) == LABEL for labels in (voxels, reference.voxels))
    return dice(ours, theirs)
