"""Labelmaps: label values and bounding boxes, the segments of a Slicer header, resampling to another grid."""

from __future__ import annotations

import colorsys
import itertools
import re
import warnings
from collections.abc import Mapping

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry

__all__ = [
    "bounding_box",
    "integer_labels",
    "label_values",
    "merge_layers",
    "read_segments",
    "resample_labels",
    "segment_fields",
]

LARGEST_LABEL = 65535


def label_values(voxels: np.ndarray) -> list[int]:
    """The distinct values above zero in an integer array of any shape, sorted."""
    found: set[int] = set()
    for plane in voxels if voxels.ndim > 2 else (voxels,):
        found.update(np.flatnonzero(np.bincount(plane.reshape(-1))).tolist())
    return sorted(found - {0})


def bounding_box(array: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that contains all nonzero elements, as one slice for each axis; None if all are zero.

    >>> bounding_box(np.array([[0, 0, 0], [0, 1, 1]]))
    (slice(1, 2, None), slice(1, 3, None))
    """
    filled = np.flatnonzero(array.any(axis=tuple(range(1, array.ndim))))
    if not filled.size:
        return None
    side = slice(int(filled[0]), int(filled[-1]) + 1)
    if array.ndim == 1:
        return (side,)
    others = bounding_box(np.asarray(array[side].any(axis=0)))  # a volume is read twice, in its memory's order
    assert others is not None
    return (side, *others)


def label_boxes(voxels: np.ndarray) -> dict[int, np.ndarray]:
    """For each label of ``(slices, height, width)``: first and last index along x, y, z, as a ``(3, 2)`` array."""
    boxes: dict[int, np.ndarray] = {}
    for k, plane in enumerate(voxels):
        for label in label_values(plane):
            sides = bounding_box(plane == label)
            assert sides is not None
            box = np.array([*((side.start, side.stop - 1) for side in reversed(sides)), (k, k)])
            if label in boxes:
                before = boxes[label]
                box = np.stack([np.minimum(before[:, 0], box[:, 0]), np.maximum(before[:, 1], box[:, 1])], axis=1)
            boxes[label] = box
    return boxes


def integer_labels(voxels: np.ndarray, source: str) -> np.ndarray:
    """``voxels`` as uint8, or as uint16 if a label is above 255; ``source`` names them in messages.

    Raises :class:`InputError` if a value is not a whole number from 0 to 65535.
    """
    low, high = voxels.min(), voxels.max()
    if not (low >= 0 and high <= LARGEST_LABEL):  # NaN is refused too
        raise InputError(
            f"{source} is not a labelmap: it has values from {low} to {high}; labels are whole numbers from 0 to "
            f"{LARGEST_LABEL}."
        )
    labels = voxels.astype(np.uint8 if high <= 255 else np.uint16, copy=False)
    if voxels.dtype.kind == "f" and any((plane != whole).any() for plane, whole in zip(voxels, labels, strict=True)):
        raise InputError(
            f"{source} is not a labelmap: it has fractions between {low:g} and {high:g}; labels are whole numbers from "
            f"0 to {LARGEST_LABEL}."
        )
    return labels


def read_segments(fields: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """(layer, label value, name) of each segment in a Slicer header, in the header's order."""
    numbers = {int(match[1]) for key in fields if (match := re.fullmatch(r"Segment(\d+)_(?:ID|Name|LabelValue)", key))}
    segments = []
    for number in sorted(numbers):
        # A header from before Slicer 4.11 names neither: one segment per layer then, painted with 1.
        layer = fields.get(f"Segment{number}_Layer", str(number)).strip()
        label = fields.get(f"Segment{number}_LabelValue", "1").strip()
        if not (layer.isdecimal() and label.isdecimal()):
            raise InputError(f"Segment {number} of the header has layer {layer!r}, label {label!r}; both are numbers.")
        name = fields.get(f"Segment{number}_Name") or fields.get(f"Segment{number}_ID", "")
        segments.append((int(layer), int(label), name))
    return segments


def merge_layers(
    layers: np.ndarray, segments: list[tuple[int, int, str]], source: str
) -> tuple[np.ndarray, dict[int, str]]:
    """One labelmap of the layers ``(slices, height, width, layers)``, and its names; warns that they were merged.

    In an overlap the later layer wins. A label value that an earlier segment has too gets the next free number.
    """
    labels = np.zeros(layers.shape[:3], dtype=np.uint16)
    names: dict[int, str] = {}
    known = {(layer, label): name for layer, label, name in segments}
    overlap, renumbered = 0, []
    for layer in range(layers.shape[3]):
        plane = integer_labels(layers[..., layer], source)
        # Segments without a voxel keep their place in the names, voxels without a segment get one.
        values = sorted({*label_values(plane), *(label for on, label in known if on == layer)})
        overlap += int(np.count_nonzero((plane > 0) & (labels > 0)))
        for value in values:
            number = value if value not in names else max(names) + 1
            names[number] = known.get((layer, value), "")
            if number != value:
                renumbered.append(f"{names[number] or value} has label {number} now")
            np.copyto(labels, np.uint16(number), where=plane == value)
    warnings.warn(
        f"{source} has {layers.shape[3]} layers of segments; they were merged into one labelmap, the later layer on "
        f"top in {overlap} voxels{'; ' + ', '.join(renumbered) if renumbered else ''}.",
        stacklevel=3,
    )
    return integer_labels(labels, source), names


def segment_fields(voxels: np.ndarray, names: Mapping[int, str]) -> dict[str, str]:
    """The header fields by which Slicer shows a labelmap ``(slices, height, width)`` as named, coloured segments."""
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    boxes = label_boxes(voxels)
    for number, label in enumerate(sorted({*boxes, *names})):
        # The golden ratio keeps the hues of any number of labels apart.
        color = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65, 0.95)
        segment = {
            "ID": f"Segment_{label}",
            "Name": names.get(label) or f"Segment_{label}",
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{part:.6g}" for part in color),
            "ColorAutoGenerated": "1",
            "LabelValue": str(label),
            "Layer": "0",
            "Extent": " ".join(map(str, boxes[label].ravel() if label in boxes else (0, -1) * 3)),
            "Tags": "|",
        }
        fields.update({f"Segment{number}_{key}": value for key, value in segment.items()})
    return fields


def resample_labels(voxels: np.ndarray, source: Geometry, target: Geometry) -> tuple[np.ndarray, int]:
    """Labels ``(slices, height, width)`` on another grid by nearest neighbour; and how many painted voxels lie outside.

    Works slice by slice, and only within the box of the painted voxels.
    """
    labels = np.zeros(target.shape, dtype=voxels.dtype)
    to_target = np.linalg.inv(target.index_to_physical()) @ source.index_to_physical()
    to_source = np.linalg.inv(to_target)
    boxes = label_boxes(voxels)
    if not boxes:
        return labels, 0
    ends = np.stack([np.min([*boxes.values()], axis=0)[:, 0], np.max([*boxes.values()], axis=0)[:, 1]], axis=1)
    corners = np.array([(*corner, 1.0) for corner in itertools.product(*ends)]) @ to_target.T
    # Half a voxel of the source reaches that far on the target.
    reach = np.abs(to_target[:3, :3]).sum(axis=1) / 2 + 1e-6
    sides = np.array(target.shape[::-1])
    first = np.clip(np.ceil(corners[:, :3].min(axis=0) - reach), 0, sides).astype(int)
    last = np.clip(np.floor(corners[:, :3].max(axis=0) + reach) + 1, 0, sides).astype(int)
    i, j = np.meshgrid(np.arange(first[0], last[0]), np.arange(first[1], last[1]), indexing="xy")
    for k in range(first[2], last[2]):
        inside = np.ones(i.shape, dtype=bool)
        nearest = []
        for row, side in zip(to_source[:3], source.shape[::-1], strict=True):
            # Rounded half up after a nudge, so that an exact tie falls the same way in every slice.
            index = np.floor(row[0] * i + row[1] * j + row[2] * k + row[3] + 0.5 - 1e-6).astype(np.intp)
            inside &= (index >= 0) & (index < side)
            nearest.append(index)
        found = labels[k, first[1] : last[1], first[0] : last[0]]
        found[inside] = voxels[nearest[2][inside], nearest[1][inside], nearest[0][inside]]
    return labels, _outside(voxels, to_target, sides)


def _outside(voxels: np.ndarray, to_target: np.ndarray, sides: np.ndarray) -> int:
    """How many voxels above zero have their centre outside a grid of ``sides`` (x, y, z)."""
    outside = 0
    for k, plane in enumerate(voxels):
        rows, columns = np.nonzero(plane)
        if rows.size:
            index = to_target[:3] @ np.stack([columns, rows, np.full_like(rows, k), np.ones_like(rows)])
            outside += int(((index < -0.5 - 1e-6) | (index > sides[:, None] - 0.5 + 1e-6)).any(axis=0).sum())
    return outside
