"""A picture of the supervoxels that scans without labels are learned from: are they anything like organs?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from SDFSMISLib.atomic import atomic_output
from SDFSMISLib.training.adaptation_scans import AdaptationScan

__all__ = ["write_supervoxel_picture"]

MOST_SCANS = 4
TITLES = ("slice", "large supervoxels", "small ones")
SIDE = 2.6  # inches, of one slice
ALPHA = 0.45  # of a supervoxel's colour over the slice


def write_supervoxel_picture(scans: Sequence[AdaptationScan], path: Path) -> None:
    """A PNG with a row for each of the first scans: the slice in its middle, and the supervoxels on it.

    Colours tell neighbours apart and mean nothing else; what has no colour is not learned from.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = scans[:MOST_SCANS]
    figure = Figure(figsize=(len(TITLES) * SIDE, len(shown) * SIDE), layout="constrained")
    places = figure.subplots(len(shown), len(TITLES), squeeze=False)
    for row, scan in zip(places, shown, strict=True):
        for place, picture in zip(row, _slices(scan), strict=True):
            place.imshow(picture, aspect=_aspect(scan))
            place.set_axis_off()
    for place, title in zip(places[0], TITLES, strict=True):
        place.set_title(title, fontsize=9)
    with atomic_output(path, ".png") as part:
        FigureCanvasAgg(figure).print_png(str(part))


def _slices(scan: AdaptationScan) -> list[np.ndarray]:
    """The middle slice as colours, uint8 (rows, columns, 3): as it is, then with the supervoxels of each map."""
    from skimage.color import label2rgb
    from skimage.segmentation import mark_boundaries

    volume, axis = scan.volume, scan.volume.main_axis
    assert volume.image is not None
    index = volume.image.shape[axis] // 2

    def seen(array: np.ndarray) -> np.ndarray:
        return volume.orientations[axis].apply(np.take(array, index, axis=axis))

    grey = (seen(volume.image).astype(np.float32).clip(-1, 1) + 1) / 2
    pictures = [np.repeat(grey[..., None], 3, axis=2)]
    for parts in volume.maps:
        numbers = seen(parts).astype(np.int32)
        coloured = label2rgb(numbers, grey, alpha=ALPHA, bg_label=0)
        pictures.append(mark_boundaries(coloured, numbers, color=(1, 1, 1), mode="inner"))
    return [(255 * picture.clip(0, 1)).astype(np.uint8) for picture in pictures]


def _aspect(scan: AdaptationScan) -> float:
    """Height of a pixel over its width."""
    rest = [side for along, side in enumerate(scan.volume.spacing) if along != scan.volume.main_axis]
    rows, columns = scan.volume.orientations[scan.volume.main_axis].apply_spacing((rest[0], rest[1]))
    return rows / columns
