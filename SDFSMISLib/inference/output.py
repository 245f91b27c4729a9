"""What a run leaves on the disk: the labelmap, its volumes, the probabilities, and how they came about.

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

PROBE_BYTES = 1 << 16  # written to a place to see whether it takes anything


def provenance(
    segmentation: Segmentation,
    support: SupportSet,
    *,
    model: str,
    weights: str,
    settings: Mapping[str, object],
    command: str = "",
) -> dict[str, str]:
    """How a result came about, as header fields.

    Args:
        model: its name. weights: its digest, see `SDFSMISLib.model.loading`.
        settings: options of the run, by name.
        command: the command line, "" where there was none.
    """
    painted = " ".join(map(str, segmentation.painted)) or "none"
    fields = {
        "version": __version__,
        "model": model,
        "weights_sha256": weights,
        "command": command,
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "support": " ".join(support.digest()),
        "painted": f"axis {segmentation.axis}, slices {painted}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": f"{segmentation.seconds:.1f}",
    }
    return {f"sdfsmis_{name}": value for name, value in fields.items() if value}


def written_files(labelmap: Path, probabilities: Sequence[Path] = ()) -> list[Path]:
    """The files that `write_segmentation` writes or replaces when given these; the labelmap comes first.

    Raises:
        InputError: where a name does not end as a volume's does.
    """
    files = [labelmap, _volumes_file(labelmap), *probabilities]
    for volume in (labelmap, *probabilities):
        extension = written_extension(volume)
        if extension.lower() in (".nii", ".nii.gz", ".mha"):  # formats whose header may not hold the provenance
            files.append(volume.with_name(volume.name[: -len(extension)] + ".json"))
    return files


def check_writable(path: Path) -> None:
    """Raise `InputError` where a file `path` could not be written, so that it is known before the work is done.

    Nothing is left behind, not even a folder; whether the disk will hold a whole result is not known before.
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
    """Write the labelmap, `<name>_volumes.csv` beside it, and the probabilities of the labels that are asked for.

    Args:
        labelmap: a file name with a volume's extension.
        metadata: goes into the header, or into `<name>.json` beside the file (NIfTI).
        probabilities: for each label value the file of its probabilities, float32 from 0 to 1.

    Returns:
        the CSV file: label, name, volume in ml, voxels.

    Raises:
        InputError: an unknown extension, a folder that cannot be written, a full disk; nothing is changed then.
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
