"""The files of a result: the labelmap, a CSV of volumes, probabilities, and the provenance of all of them.

The files of one run appear together or not at all.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from SDFSMISLib import __version__
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import atomic_outputs, written_extension
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.inference.segmentation import Segmentation
from SDFSMISLib.support import SupportSet

__all__ = ["check_writable", "provenance", "written_files", "write_segmentation"]

PROBE_BYTES = 1 << 16  # written to test whether a folder is writable


def provenance(
    segmentation: Segmentation,
    support: SupportSet,
    *,
    model: str,
    weights: str,
    settings: Mapping[str, object],
    command: str = "",
    examples: Sequence[str] = (),
) -> dict[str, str]:
    """Header fields that say how a result was made.

    Args:
        segmentation: the result.
        support: what it was made from.
        model: name of the model.
        weights: its digest, see `SDFSMISLib.model.loading.weights_digest`.
        settings: options of the run, by name.
        command: the command line; "" if there was none.
        examples: content addresses of the finished scans that were used, the most alike first.

    Returns:
        by field name (``sdfsmis_...``); empty fields are left out.
    """
    axes = sorted({segmentation.axis, *(plane.axis for plane in segmentation.planes)})
    along = {axis: [plane.index for plane in segmentation.planes if plane.axis == axis] for axis in axes}
    painted = "; ".join(f"axis {axis}, slices {' '.join(map(str, found)) or 'none'}" for axis, found in along.items())
    fields = {
        "version": __version__,
        "model": model,
        "weights_sha256": weights,
        "command": command,
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "support": " ".join(support.digest()),
        "painted": painted,
        "examples": " ".join(digest[:16] for digest in examples),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": f"{segmentation.seconds:.1f}",
    }
    return {f"sdfsmis_{name}": value for name, value in fields.items() if value}


def written_files(labelmap: Path, probabilities: Sequence[Path] = ()) -> list[Path]:
    """The files that `write_segmentation` writes or replaces for the same arguments; the labelmap comes first.

    Raises:
        InputError: if a name lacks a volume's extension.

    >>> [path.name for path in written_files(Path("liver.nii.gz"))]
    ['liver.nii.gz', 'liver_volumes.csv', 'liver.json']
    """
    files = [labelmap, _volumes_file(labelmap), *probabilities]
    for volume in (labelmap, *probabilities):
        extension = written_extension(volume)
        if extension.lower() in (".nii", ".nii.gz", ".mha"):  # formats whose header may not hold the provenance
            files.append(volume.with_name(volume.name[: -len(extension)] + ".json"))
    return files


def check_writable(path: Path) -> None:
    """Raise `InputError` if a file `path` cannot be written, before the work is done.

    Leaves nothing behind, not even a folder. Does not tell whether the disk can hold the whole result.
    """
    try:
        if path.is_dir():
            raise InputError(f"Cannot write {path}: it is a folder; name a file.")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"Cannot write {path}: {reason}; name a file in a folder that can be written to.") from error


def write_segmentation(
    segmentation: Segmentation,
    labelmap: Path,
    metadata: Mapping[str, str],
    probabilities: Mapping[int, Path] | None = None,
) -> Path:
    """Write the labelmap, `<name>_volumes.csv` beside it, and the requested probabilities.

    Args:
        segmentation: the result.
        labelmap: file name with a volume's extension.
        metadata: provenance, for the header, or for `<name>.json` beside formats without such fields.
        probabilities: by label value, the file for its probabilities, float32 from 0 to 1.

    Returns:
        the CSV file: label, name, volume in ml, voxels.

    Raises:
        InputError: for an unknown extension, a folder that cannot be written, a full disk; nothing is changed then.
    """
    probabilities = probabilities or {}
    volumes = _volumes_file(labelmap)
    files = written_files(labelmap, list(probabilities.values()))
    with atomic_outputs([*files[1:], labelmap]) as temporary:
        segmentation.labelmap.write(temporary[labelmap], metadata)
        _write_volumes(segmentation, temporary[volumes])
        for label, path in probabilities.items():
            soft = segmentation.probabilities[label].astype(np.float32)
            soft /= 255
            fields = {**metadata, "sdfsmis_content": f"probability of label {label}, 0 to 1, before post-processing"}
            Volume(soft, segmentation.labelmap.geometry).write(temporary[path], fields)
    return volumes


def _volumes_file(labelmap: Path) -> Path:
    return labelmap.with_name(labelmap.name[: -len(written_extension(labelmap))] + "_volumes.csv")


def _write_volumes(segmentation: Segmentation, path: Path) -> None:
    counts, millilitres = segmentation.voxel_counts(), segmentation.volumes_ml()
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["label", "name", "volume_ml", "voxels"])
        for label, count in counts.items():
            name = segmentation.labelmap.segment_names.get(label, "")
            rows.writerow([label, name, f"{millilitres[label]:.6g}", count])
