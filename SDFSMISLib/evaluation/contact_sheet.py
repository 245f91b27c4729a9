"""The contact sheet: one picture of a segmentation, slice by slice, that a person can judge at a glance.

Slices are shown as radiologists look at them: patient's right on the left of the picture, anterior (axial slices) or
superior (the others) up, voxels true to shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.metrics import dice
from SDFSMISLib.images.files import atomic_output
from SDFSMISLib.images.geometry import Geometry, SliceOrientation
from SDFSMISLib.images.labelmap import bounding_box
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["chosen_slices", "contact_sheet"]

COLOURS = ("#00e5ff", "#ff5c8a", "#7dff6b", "#ffb300", "#b388ff", "#ff8a65", "#40c4ff", "#eeff41", "#69f0ae", "#f48fb1")
REFERENCE_COLOUR, PAINTED_COLOUR, TEXT_COLOUR, FAINT_COLOUR = "#ffffff", "#ffd600", "#f2f2f2", "#a0a0a0"
PLATE = {"facecolor": "black", "alpha": 0.5, "pad": 1.5, "lw": 0}  # behind a text in a tile
DASHES = (0, (2.5, 2.0))
SHEET_WIDTH, LARGEST_TILE, GAP = 12.0, 3.0, 0.06  # inches
DOTS_PER_INCH = 110
SLICE_MARGIN = 0.1  # of the structure's slices, shown beyond it at either end
CROP_MARGIN, CROP_MARGIN_MM = 0.25, 15.0  # around the structure in a slice: a share of its size, at least so many mm
MOST_ELONGATED = 1.5  # of a tile, unless the slice itself is
LEGEND_COLUMNS = 5
SCALE_BARS = (1, 2, 5, 10, 20, 50, 100)  # mm
PLANES = ("sagittal", "coronal", "axial")  # across the axes L, P, S
ENDS = (("R", "L"), ("A", "P"), ("I", "S"))


def contact_sheet(
    scan: Volume,
    segmentation: Volume,
    path: str | PathLike[str],
    reference: Volume | None = None,
    axis: int = 0,
    painted: Sequence[int | Plane] = (),
    title: str = "",
    columns: int = 6,
    count: int = 24,
) -> Path:
    """Draws ``count`` slices along ``axis`` that cover the structure and a margin, as a PNG; returns its path.

    ``segmentation`` and ``reference`` are labelmaps on the scan's grid; each label's contour has its colour, the
    reference is drawn in dashed white, for the labels that the segmentation holds or names (every label of the
    reference where it has none). The slices in ``painted``, numbers along ``axis`` or planes of any axis, are left out
    of the Dice that is printed beside a label's name; those along ``axis`` are always among those shown, framed and
    marked, the others are lines on them. The slices run from the head to the feet, from anterior to posterior, or from
    right to left, and are numbered from 0 as they lie along ``axis``. The file appears whole or not at all. Raises
    :class:`InputError` if a labelmap has another grid, a painted slice lies outside the scan, the name does not end in
    ``.png``, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"The picture {path} was asked for; give it a name that ends in .png.")
    for labelmap, role in ((segmentation, "segmentation"), (reference, "reference")):
        if labelmap is not None and not labelmap.geometry.same_grid(scan.geometry):
            raise InputError(
                f"The {role} does not lie on the scan's grid; bring it there first "
                f"({role}: {labelmap.geometry.describe()}; scan: {scan.geometry.describe()})."
            )
    scan.slice_count(axis)  # refuses an axis that no scan has
    planes = [one if isinstance(one, Plane) else Plane(axis, int(one)) for one in painted]
    outside = [plane for plane in planes if not 0 <= plane.index < scan.slice_count(plane.axis)]
    if outside:
        along, index = outside[0]
        raise InputError(
            f"Slice {index} was named as painted; axis {along} of this scan has the slices 0 to "
            f"{scan.slice_count(along) - 1}."
        )
    labels = _shown_labels(segmentation, reference)
    labelmaps = [segmentation] if reference is None else [segmentation, reference]
    view = _View.of(scan.geometry, axis)
    holding, shadow = _extent(labelmaps, labels, axis)
    indices = chosen_slices(holding, [plane.index for plane in planes if plane.axis == axis], count, columns)
    box = _crop(view.turn(shadow), view.spacing)
    drawing = _Drawing(scan, labelmaps, labels, axis, planes, view, box)
    heading = title or (scan.path.name if scan.path else "")
    figure = drawing.sheet(indices[::-1] if view.backwards else indices, columns, heading)
    with atomic_output(path, path.suffix) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
    return path


def chosen_slices(holding: np.ndarray, painted: Sequence[int], count: int, columns: int) -> list[int]:
    """At most ``count`` slices, evenly spread over those that hold something and a margin, the painted ones among them.

    ``holding`` says for each slice whether it holds a label; where none does, all slices are covered. A sheet that
    would end in a row that is not full is filled with more margin.
    """
    filled = sorted({*np.flatnonzero(holding).tolist(), *painted}) or [0, len(holding) - 1]
    margin = max(1, round(SLICE_MARGIN * (filled[-1] - filled[0] + 1)))
    first, last = max(filled[0] - margin, 0), min(filled[-1] + margin, len(holding) - 1)
    while last - first + 1 < min(count, len(holding)) and (last - first + 1) % columns:
        if first > 0 and (last == len(holding) - 1 or filled[0] - first <= last - filled[-1]):
            first -= 1
        else:
            last += 1
    chosen = set(np.linspace(first, last, min(count, last - first + 1)).round().astype(int).tolist())
    for index in painted:
        spare = chosen.difference(painted)
        if index not in chosen and spare:
            chosen.remove(min(spare, key=lambda other: abs(other - index)))
            chosen.add(int(index))
    return sorted(chosen)


@dataclass(frozen=True)
class _View:
    """How slices along one axis are shown: turned, and with what at their edges."""

    plane: str
    orientation: SliceOrientation
    upside_down: bool  # canonical rows run toward S, a picture's rows run down
    spacing: tuple[float, float]  # (row, column) mm, as shown
    left: str
    top: str
    backwards: bool  # the order of the slices in the file is not the one in which they are shown

    @classmethod
    def of(cls, geometry: Geometry, axis: int) -> _View:
        directions = geometry.index_to_physical()[:3, :3] / np.asarray(geometry.spacing)
        through = directions[:, 2 - axis]
        row, column = (directions[:, 2 - other] for other in range(3) if other != axis)
        orientation = geometry.slice_orientation(axis)
        if orientation.transpose:
            row, column = column, row
        row = -row if orientation.flip_rows else row
        column = -column if orientation.flip_columns else column
        plane = geometry.plane(axis)
        upside_down = plane != "axial"
        down = -row if upside_down else row
        against = bool(through[PLANES.index(plane)] < 0)
        return cls(
            plane=plane,
            orientation=orientation,
            upside_down=upside_down,
            spacing=orientation.apply_spacing(geometry.in_plane_spacing(axis)),
            left=_start(column),
            top=_start(down),
            backwards=not against if plane == "axial" else against,
        )

    def turn(self, array: np.ndarray) -> np.ndarray:
        """The picture of a native slice; a view."""
        canonical = self.orientation.apply(array)
        return canonical[::-1] if self.upside_down else canonical


def _start(direction: np.ndarray) -> str:
    """The patient's side from which an LPS direction leads away."""
    nearest = int(np.argmax(np.abs(direction)))
    return ENDS[nearest][0 if direction[nearest] > 0 else 1]


@dataclass(frozen=True, eq=False)
class _Drawing:
    scan: Volume
    labelmaps: list[Volume]  # the segmentation, and the reference if there is one
    labels: list[int]
    axis: int
    painted: list[Plane]
    view: _View
    box: tuple[slice, slice]

    def sheet(self, indices: Sequence[int], columns: int, title: str) -> Figure:
        from matplotlib.figure import Figure

        columns = min(columns, len(indices))
        rows = -(-len(indices) // columns)
        high, wide = ((side.stop - side.start) * step for side, step in zip(self.box, self.view.spacing, strict=True))
        tile = min(LARGEST_TILE, (SHEET_WIDTH - GAP) / columns - GAP)
        tile_height = tile * high / wide
        handles = self._legend_handles()
        footer = 0.25 + 0.24 * -(-len(handles) // LEGEND_COLUMNS)
        header = 0.8
        height = header + rows * (tile_height + GAP) + footer
        figure = Figure(figsize=(SHEET_WIDTH, height), dpi=DOTS_PER_INCH, facecolor="black")
        left = (SHEET_WIDTH - columns * (tile + GAP) + GAP) / 2
        window = self.scan.window()
        for place, index in enumerate(indices):
            row, column = divmod(place, columns)
            bottom = height - header - (row + 1) * tile_height - row * GAP
            start = left + column * (tile + GAP)
            axes = figure.add_axes((start / SHEET_WIDTH, bottom / height, tile / SHEET_WIDTH, tile_height / height))
            image = window.normalize(self.view.turn(self.scan.slice(self.axis, index))[self.box])
            axes.imshow(image, cmap="gray", vmin=-1, vmax=1, aspect="auto", interpolation="bilinear")
            self._crossing_planes(axes)
            self._contours(axes, index)
            self._marks(axes, index, tile)
            if place == 0:
                self._directions(axes, wide)
        style: dict[str, Any] = {"va": "center", "parse_math": False}  # a name may hold a dollar sign
        figure.text(0.012, 1 - 0.3 / height, title, fontsize=13, weight="bold", color=TEXT_COLOUR, **style)
        figure.text(0.012, 1 - 0.58 / height, self._caption(len(indices)), fontsize=9, color=FAINT_COLOUR, **style)
        legend = figure.legend(
            handles=handles, loc="lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=9, labelcolor=TEXT_COLOUR
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        return figure

    def _contours(self, axes: Axes, index: int) -> None:
        planes = [self.view.turn(labelmap.slice(self.axis, index))[self.box] for labelmap in self.labelmaps]
        strokes: list[tuple[np.ndarray, str | None, float, Any]] = [(planes[0], None, 1.3, "solid")]
        if len(planes) == 2:
            # Dark below, so that the dashes are seen on white bone; on top, so that both are seen where they agree.
            strokes = [(planes[1], "black", 1.8, "solid"), *strokes, (planes[1], REFERENCE_COLOUR, 1.0, DASHES)]
        for plane, colour, width, style in strokes:
            for place, label in enumerate(self.labels):
                mask = np.pad(plane == label, 1)  # so that a contour closes at the picture's edge
                if mask.any():
                    columns, rows = np.arange(mask.shape[1]) - 1, np.arange(mask.shape[0]) - 1
                    colours = [colour or COLOURS[place % len(COLOURS)]]
                    axes.contour(columns, rows, mask, [0.5], colors=colours, linewidths=width, linestyles=[style])

    def _crossing_planes(self, axes: Axes) -> None:
        """A line for each painted slice of another axis."""
        shape = self.scan.geometry.slice_shape(self.axis)
        for plane in self.painted:
            if plane.axis != self.axis:
                line = np.zeros(shape, dtype=bool)
                np.moveaxis(line, plane.axis - (plane.axis > self.axis), 0)[plane.index] = True
                shown = self.view.turn(line)[self.box]
                for places, draw in ((shown.all(axis=1), axes.axhline), (shown.all(axis=0), axes.axvline)):
                    for place in np.flatnonzero(places):
                        draw(float(place), color=PAINTED_COLOUR, linewidth=0.8, alpha=0.6)

    def _marks(self, axes: Axes, index: int, tile: float) -> None:
        from matplotlib.patches import Rectangle

        painted = Plane(self.axis, index) in self.painted
        axes.set(xticks=[], yticks=[], xlim=(-0.5, self._side(1) - 0.5), ylim=(self._side(0) - 0.5, -0.5))
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.text(
            0.03,
            0.97,
            f"{index} painted" if painted else str(index),
            transform=axes.transAxes,
            va="top",
            fontsize=8.5 if tile > 1.5 else 7,
            color="black" if painted else TEXT_COLOUR,
            weight="bold" if painted else "normal",
            bbox={**PLATE, "facecolor": PAINTED_COLOUR, "alpha": 1} if painted else PLATE,
        )
        if painted:
            frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=PAINTED_COLOUR, linewidth=5)
            axes.add_patch(frame)

    def _directions(self, axes: Axes, wide: float) -> None:
        """The patient's sides at the edges of the first tile, and a scale bar."""
        style: dict[str, Any] = {"transform": axes.transAxes, "color": TEXT_COLOUR, "fontsize": 8, "bbox": PLATE}
        axes.text(0.03, 0.5, self.view.left, va="center", **style)
        axes.text(0.5, 0.97, self.view.top, ha="center", va="top", **style)
        bar = max([length for length in SCALE_BARS if length <= 0.4 * wide], default=SCALE_BARS[0])
        start = 0.97 - bar / wide
        axes.plot([start, 0.97], [0.04, 0.04], color=TEXT_COLOUR, linewidth=2, transform=axes.transAxes)
        axes.text(0.97, 0.07, f"{bar} mm", ha="right", **style)

    def _caption(self, shown: int) -> str:
        row, column = self.view.spacing
        thickness = self.scan.geometry.axis_spacing(self.axis)
        parts = [
            f"{self.view.plane}: {shown} of {self.scan.slice_count(self.axis)} slices along axis {self.axis}",
            f"pixels {row:.3g} × {column:.3g} mm, slices {thickness:.3g} mm apart",
        ]
        if len(self.labelmaps) == 2:
            parts.append("Dice over the slices that were not painted" if self.painted else "Dice over all slices")
        return "   ·   ".join(parts)

    def _legend_handles(self) -> list:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        handles: list = []
        for place, label in enumerate(self.labels):
            names = (labelmap.segment_names.get(label) for labelmap in self.labelmaps)
            name = next(filter(None, names), f"label {label}")
            if len(self.labelmaps) == 2:
                counted = np.ix_(*self._counted())
                segmented, reference = (labelmap.voxels[counted] == label for labelmap in self.labelmaps)
                name += f"  Dice {dice(segmented, reference):.3f}"
            handles.append(Line2D([], [], color=COLOURS[place % len(COLOURS)], linewidth=2, label=name))
        if len(self.labelmaps) == 2:
            handles.append(Line2D([], [], color=REFERENCE_COLOUR, linestyle=DASHES, label="reference"))
        if self.painted:
            handles.append(Patch(fill=False, edgecolor=PAINTED_COLOUR, linewidth=2, label="painted slice"))
        return handles

    def _counted(self) -> list[np.ndarray]:
        """The indices on each axis of the voxels that are on no painted slice."""
        return [
            np.setdiff1d(np.arange(side), [plane.index for plane in self.painted if plane.axis == axis])
            for axis, side in enumerate(self.scan.voxels.shape)
        ]

    def _side(self, dimension: int) -> int:
        return self.box[dimension].stop - self.box[dimension].start


def _shown_labels(segmentation: Volume, reference: Volume | None) -> list[int]:
    def values(labelmap: Volume) -> set[int]:
        return {int(value) for plane in labelmap.voxels for value in np.unique(plane)} - {0}

    labels = values(segmentation) | set(segmentation.segment_names)
    return sorted(labels or (values(reference) if reference else ()))


def _extent(labelmaps: Sequence[Volume], labels: Sequence[int], axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(whether each slice along ``axis`` holds a label, the union of labels over the slices: bool, native rows and
    columns).
    """
    first = labelmaps[0]
    holding = np.zeros(first.slice_count(axis), dtype=bool)
    shadow = np.zeros(first.geometry.slice_shape(axis), dtype=bool)
    for labelmap in labelmaps:
        for index in range(len(holding)):
            held = np.isin(labelmap.slice(axis, index), labels)
            holding[index] |= held.any()
            shadow |= held
    return holding, shadow


def _crop(shadow: np.ndarray, spacing: tuple[float, float]) -> tuple[slice, slice]:
    """The rows and columns to show: those under the structure's shadow and a generous margin, not too elongated."""
    sides = bounding_box(shadow)
    if sides is None:
        return slice(0, shadow.shape[0]), slice(0, shadow.shape[1])
    spans = []
    for side, step in zip(sides, spacing, strict=True):
        size = (side.stop - side.start) * step
        spans.append([(side.start + side.stop) * step / 2, size + 2 * max(CROP_MARGIN * size, CROP_MARGIN_MM)])
    longest = max(span for _, span in spans)
    box = []
    for (centre, span), length, step in zip(spans, shadow.shape, spacing, strict=True):
        half = max(span, longest / MOST_ELONGATED) / 2
        box.append(slice(max(int((centre - half) / step), 0), min(int(np.ceil((centre + half) / step)), length)))
    return box[0], box[1]
