"""`Segmenter`: the one way from painted slices to a segmented volume, for command line, server and Python alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.inference.contrast import Contrast
from SDFSMISLib.inference.finding import find_structure
from SDFSMISLib.inference.independent import OnProbability, run_independent
from SDFSMISLib.inference.postprocess import Postprocessing
from SDFSMISLib.inference.propagate import Lane, lanes_from, looked_at, run_propagate
from SDFSMISLib.inference.region import Region
from SDFSMISLib.inference.scan import QueryScan
from SDFSMISLib.inference.segmentation import Segmentation, SliceResult, certainty_of, presence_of
from SDFSMISLib.inference.shots import Shot
from SDFSMISLib.model.loading import BUILT_IN, load_pipeline
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.support import SupportSet, SupportSlice
from SDFSMISLib.volume import Volume

Strategy = Literal["propagate", "independent"]
STRATEGIES = ("propagate", "independent")
REGIONS = ("auto", "full")
FOUND_MARGIN = 3.0  # half sides of the box around what the first pass over full slices found
FOUND_REACH = 2  # slices to either side of it that are looked at again, through that box
MOST_SHOTS = 12  # painted slices that a pass without propagation looks at
LONGEST_PIXEL = 100.0  # ratio of a pixel's sides; beyond it a header is wrong, and squares in mm have no bound
UNLIKE_SPACING = 3.0  # a ratio of pixel sizes from which on a user is told


class Segmenter:
    """Segments volumes by painted slices.

    A segmenter holds networks only; runs share nothing else, so one may serve several threads in turn.
    """

    def __init__(self, pipeline: SDFSMISPipeline, name: str = "") -> None:
        """
        Args:
            pipeline: ready on its device.
            name: what to call the model in a result's provenance.
        """
        self.pipeline = pipeline
        self.name = name

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path = BUILT_IN, device: str = "auto") -> Segmenter:
        """A segmenter with weights.

        Args:
            name_or_dir: `built-in`, a pipeline folder, or a model hub's id.
            device: `auto` (the GPU where there is one), `cpu`, `cuda` or `cuda:N`.

        Raises:
            InputError: where the model or the device is not there, or the weights are damaged.
        """
        return cls(load_pipeline(name_or_dir, device), str(name_or_dir))

    @torch.no_grad()
    def segment(
        self,
        query: Volume,
        support: SupportSet,
        strategy: Strategy = "propagate",
        *,
        axis: int | None = None,
        slices: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        region: Literal["auto", "full"] = "auto",
        threshold: float = 0.5,
        postprocessing: Postprocessing | None = None,
        window: Literal["robust", "minmax"] = "robust",
        batch_size: int = 8,
        on_slice: Callable[[SliceResult], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Segmentation:
        """Segment `query` by `support`.

        Where slices of the query itself show the structure, they are the support, and `propagate` goes outwards from
        them. On another scan a search over all slices comes first, by registration for the built-in weights and by a
        pass of the networks for others; propagation starts at the slice that it finds. It does not pass a slice that
        was named and holds nothing.

        Args:
            query: the scan to segment.
            support: painted slices, of this scan or of others.
            strategy: `propagate`, or `independent`: each slice alone against the support, the paper's way.
            axis: array axis along which to slice; None = that of the painted slices, or the one that is anatomically
                nearest.
            slices: slices to segment, from 0; None = all.
            labels: label values to segment; None = all of the support.
            region: `auto` shows the network a square around the structure, `full` whole slices, the paper's way.
            threshold: probability above which a voxel belongs to the structure, 0 to 1.
            postprocessing: what is done behind the threshold; None = nothing.
            window: `robust`, or `minmax`, the paper's: how the query's intensities become [-1, 1].
            batch_size: slices per pass of the network; bounds the memory.
            on_slice: called after each slice of each label.
            cancel: asked after each slice; True stops the run with `Cancelled`, within one batch.

        Raises:
            InputError: where an option is unknown, a slice is outside the scan, or the support lacks a label.
            Cancelled: where `cancel` said so.
        """
        began = time.monotonic()
        _check_options(strategy, region, threshold, batch_size)
        wanted_labels = tuple(labels) if labels is not None else support.labels
        pieces = {label: support.for_label(label) for label in wanted_labels}
        if not pieces:
            raise InputError("The support set has nothing painted; paint the structure on at least one slice.")
        scan_hash = query.content_hash()
        run_axis = slice_axis(query, support, scan_hash) if axis is None else axis
        scan = QueryScan(query, run_axis, query.window(window))
        _check_pixels(scan)
        wanted = _wanted_slices(scan, slices)
        run = _Run(self.pipeline, scan, wanted, region == "full", threshold, batch_size, on_slice, cancel)
        for label, mine in pieces.items():
            run.add(label, [p for p in mine if p.scan == scan_hash and p.axis == run_axis], mine)
        if strategy == "independent":
            run.independent()
        else:
            run.propagate()
        painted = tuple(sorted({index for label in pieces for index in run.painted[label]}))
        return self._assembled(query, run, support, painted, postprocessing or Postprocessing(), began, scan)

    def seconds_per_slice(self) -> float:
        """What one slice of one label costs here, measured on two passes with random input; for telling the time to
        expect."""
        side = self.pipeline.config.resolution
        random = np.random.default_rng(0)
        image = random.uniform(-1, 1, (side, side)).astype(np.float32)
        mask = np.zeros((side, side), dtype=bool)
        mask[side // 3 : side // 2, side // 3 : side // 2] = True
        shot = Shot(image, mask, (1.0, 1.0))
        spent = []
        with torch.no_grad():
            for _ in range(2):
                began = time.monotonic()
                images, masks = shot.on_grid(Region.whole(mask.shape, (1.0, 1.0)), side)
                pair = images[None, None, None].expand(1, 1, 3, side, side)
                bank = self.pipeline.encode_support(pair, masks[None, None])
                self.pipeline.segment(self.pipeline.encode_images(pair[0]), bank).cpu()  # waits for the GPU
                spent.append(time.monotonic() - began)
        return spent[-1]

    def _assembled(
        self,
        query: Volume,
        run: _Run,
        support: SupportSet,
        painted: tuple[int, ...],
        postprocessing: Postprocessing,
        began: float,
        scan: QueryScan,
    ) -> Segmentation:
        voxels = postprocessing.labelmap(run.probabilities, run.threshold, query.geometry.spacing, scan.axis)
        if voxels.max(initial=0) < 256:
            voxels = voxels.astype(np.uint8)
        for label, shots in run.painted.items():
            for index, shot in shots.items():
                plane = voxels[(slice(None),) * scan.axis + (index,)]
                mask = scan.orientation.undo(shot.mask)
                plane[(plane == label) & ~mask] = 0
                plane[mask] = label
        names = {label: support.names.get(label, "") for label in run.probabilities}
        return Segmentation(
            labelmap=Volume(voxels, query.geometry, None, names),
            probabilities=run.probabilities,
            axis=scan.axis,
            painted=painted,
            certainty=run.certainty,
            seconds=time.monotonic() - began,
            warnings=_unlikeness(scan, run.pieces),
        )


@dataclass(eq=False)
class _Run:
    """One run: what is asked, what is painted, and what has come out so far."""

    pipeline: SDFSMISPipeline
    scan: QueryScan
    wanted: list[int]
    full: bool
    threshold: float
    batch_size: int
    on_slice: Callable[[SliceResult], None] | None
    cancel: Callable[[], bool] | None
    painted: dict[int, dict[int, Shot]] = field(default_factory=dict)
    shots: dict[int, list[Shot]] = field(default_factory=dict)
    pieces: list[SupportSlice] = field(default_factory=list)
    probabilities: dict[int, np.ndarray] = field(default_factory=dict)
    certainty: dict[int, np.ndarray] = field(default_factory=dict)
    finished: int = 0

    def add(self, label: int, here: Sequence[SupportSlice], pieces: Sequence[SupportSlice]) -> None:
        """Take a label on: its slices painted `here`, on this scan along this axis, and all its support slices.

        The former are its support where they show it; where they only say where it is not, all are.
        """
        self.painted[label] = {piece.index: Shot.of(piece, label) for piece in here}
        used = _evenly(here if self._starts(label) else pieces)
        self.shots[label] = [Shot.of(piece, label) for piece in used]
        self.pieces += used
        self.probabilities[label] = np.zeros(self.scan.volume.geometry.shape, dtype=np.uint8)
        self.certainty[label] = np.full(self.scan.count, np.nan)
        for index, shot in self.painted[label].items():
            self._keep(label, index, np.where(shot.mask, np.uint8(255), np.uint8(0)))

    @cached_property
    def total(self) -> int:
        """Slices that are to come out, of all labels; asked for when all labels are there."""
        return sum(len(self._open(label)) for label in self.shots)

    def independent(self) -> None:
        """All open slices of all labels, each alone."""
        for indices, shots in self._together({label: self._open(label) for label in self.shots}):
            self._alone(shots, indices, self.deliver)

    def propagate(self) -> None:
        """Outwards from the painted slices; where none is painted, from one that a search finds."""
        labels = [label for label in self.shots if self._open(label)]
        found = self._found([label for label in labels if not self._starts(label)])
        lanes: list[Lane] = []
        for label in labels:
            wanted, starts = self._open(label), self._starts(label) or found.get(label, {})
            mine = lanes_from(label, starts, self.painted[label], self.shots[label], wanted, self.scan.count)
            lanes += mine
            reached = {*starts, *(index for lane in mine for index in lane.path)}
            for index in wanted:
                if index not in reached:
                    self.deliver(label, index, np.zeros(self.scan.shape, dtype=np.uint8))
        self._along(lanes, self._deliver_open)

    def _along(self, lanes: list[Lane], deliver: OnProbability) -> None:
        """All lanes to their ends."""
        run_propagate(self.pipeline, self.scan, lanes, self.threshold, self.full, self.batch_size, deliver, self._ask)

    def deliver(self, label: int, index: int, probability: np.ndarray) -> None:
        """Take a finished slice in, tell about it, and stop where the caller wants to.

        Args:
            probability: uint8 canonical (rows, columns).
        """
        self._keep(label, index, probability)
        self.certainty[label][index] = certainty_of(probability)
        self.finished += 1
        if self.on_slice is not None:
            native = np.ascontiguousarray(self.scan.orientation.undo(probability))
            sure = float(self.certainty[label][index])
            self.on_slice(SliceResult(label, self.scan.axis, index, native, sure, self.finished, self.total))
        self._ask()

    def _deliver_open(self, label: int, index: int, probability: np.ndarray) -> None:
        """As `deliver`, but a slice that is only on the way to a wanted one is not told about."""
        if index in self._wanted_set:
            self.deliver(label, index, probability)

    def _found(self, labels: Sequence[int]) -> dict[int, dict[int, np.ndarray]]:
        """For each label that is seen somewhere a slice that shows it, with the mask. Slices that are named and hold
        nothing are left out."""
        unknown = {label: [i for i in range(self.scan.count) if i not in self.painted[label]] for label in labels}
        search = self._found_by_registration if self.pipeline.takes_neighbours else self._found_by_networks
        found = search(unknown)
        for label, (index, probability) in found.items():
            if index in self._wanted_set:
                self.deliver(label, index, probability)
        return {label: {index: self._mask(probability)} for label, (index, probability) in found.items()}

    def _found_by_registration(self, unknown: dict[int, list[int]]) -> dict[int, tuple[int, np.ndarray]]:
        """The slice that looks most like a painted one, with what the networks make of the mask that came along; for
        networks that take what was registered."""
        lanes: list[Lane] = []
        for label, indices in unknown.items():
            match = find_structure(self.scan, self.shots[label], indices, self._ask)
            if match is not None:
                mask, soft = match.probability > 127, match.probability.astype(np.float32) / 255
                painted = looked_at(match.index, {}, self.shots[label])
                lanes.append(Lane(label, match.index, mask, [match.index], painted, gap=None, soft=soft))
        seen: dict[int, tuple[int, np.ndarray]] = {}

        def keep(label: int, index: int, probability: np.ndarray) -> None:
            if self._mask(probability).any():
                seen[label] = index, probability

        self._along(lanes, keep)
        return seen

    def _found_by_networks(self, unknown: dict[int, list[int]]) -> dict[int, tuple[int, np.ndarray]]:
        """The most certain slice of a pass over full slices, then one around what that found."""
        best: dict[int, tuple[float, int, np.ndarray]] = {}  # presence, slice, probability

        def keep(label: int, index: int, probability: np.ndarray) -> None:
            presence = presence_of(probability, self.threshold)
            if presence > (best[label][0] if label in best else 0):
                best[label] = presence, index, probability
            self._ask()

        for indices, shots in self._together(unknown):
            self._alone(shots, indices, keep, full=True)
        if not self.full:
            for label, (_, first, probability) in list(best.items()):
                del best[label]
                region = Region.around(self._mask(probability), self.scan.spacing, FOUND_MARGIN)
                near = [index for index in unknown[label] if abs(index - first) <= FOUND_REACH]
                self._alone({label: self.shots[label]}, near, keep, region=region)
        return {label: (index, probability) for label, (_, index, probability) in best.items()}

    def _together(self, slices: dict[int, list[int]]) -> Iterator[tuple[Sequence[int], dict[int, list[Shot]]]]:
        """The shots of labels that want the same `slices`, so that one pass gives them all."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for label, indices in slices.items():
            groups.setdefault(tuple(indices), []).append(label)
        for wanted, labels in groups.items():
            yield wanted, {label: self.shots[label] for label in labels}

    def _alone(
        self,
        shots: dict[int, list[Shot]],
        indices: Sequence[int],
        deliver: Callable[[int, int, np.ndarray], None],
        full: bool = False,
        region: Region | None = None,
    ) -> None:
        """An `independent` pass over `indices`."""
        whole = self.full or full
        regions: dict[int, tuple[Region, list[Region]]] = {}
        for label, mine in shots.items():
            if region is not None:
                regions[label] = (region, [shot.region(False) for shot in mine])
            elif whole or not self._starts(label):
                regions[label] = (self.scan.whole, [shot.region(True) for shot in mine])
            else:
                around = Region.around(np.any([shot.mask for shot in mine], axis=0), self.scan.spacing)
                regions[label] = (around, [around] * len(mine))
        contrast = Contrast.unchanged() if self.full or not self.pipeline.sees_contrast else None
        run_independent(self.pipeline, self.scan, shots, regions, indices, self.batch_size, deliver, contrast)

    def _mask(self, probability: np.ndarray) -> np.ndarray:
        return probability > 255 * self.threshold

    def _keep(self, label: int, index: int, probability: np.ndarray) -> None:
        plane = self.probabilities[label][(slice(None),) * self.scan.axis + (index,)]
        plane[...] = self.scan.orientation.undo(probability)

    def _starts(self, label: int) -> dict[int, np.ndarray]:
        """The painted slices of this scan that show a label, by index: their masks, bool canonical."""
        return {index: shot.mask for index, shot in self.painted[label].items() if shot.mask.any()}

    def _open(self, label: int) -> list[int]:
        return [index for index in self.wanted if index not in self.painted[label]]

    def _ask(self) -> None:
        if self.cancel is not None and self.cancel():
            raise Cancelled("The segmentation was cancelled.")

    def __post_init__(self) -> None:
        self._wanted_set = set(self.wanted)


def _check_options(strategy: str, region: str, threshold: float, batch_size: int) -> None:
    if strategy not in STRATEGIES:
        raise InputError(f"The strategy {strategy!r} was given; {' and '.join(STRATEGIES)} are accepted.")
    if region not in REGIONS:
        raise InputError(f"The region {region!r} was given; {' and '.join(REGIONS)} are accepted.")
    if not 0 < threshold < 1:
        raise InputError(
            f"The threshold {threshold} was given; a probability between 0 and 1 is accepted, 0.5 by default."
        )
    if batch_size < 1:
        raise InputError(f"The batch size {batch_size} was given; 1 or more slices are accepted.")


def slice_axis(query: Volume, support: SupportSet, scan_hash: str) -> int:
    """The axis of the painted slices where they are of this scan, else the one that lies anatomically nearest to
    theirs.

    Args:
        scan_hash: the query's content hash.
    """
    for piece in support.slices:
        if piece.scan == scan_hash:
            return piece.axis
    plane = support.slices[0].plane
    return next(axis for axis in range(3) if query.geometry.plane(axis) == plane)


def _wanted_slices(scan: QueryScan, slices: Sequence[int] | None) -> list[int]:
    if slices is None:
        return list(range(scan.count))
    wanted = sorted({int(index) for index in slices})
    outside = [index for index in wanted if not 0 <= index < scan.count]
    if outside or not wanted:
        named = f"Slice {outside[0]} was given" if outside else "No slice was given"
        raise InputError(f"{named}; axis {scan.axis} of the scan has the slices 0 to {scan.count - 1}.")
    return wanted


def _check_pixels(scan: QueryScan) -> None:
    row, column = scan.spacing
    if max(row, column) > LONGEST_PIXEL * min(row, column):
        raise InputError(
            f"Pixels of slices along axis {scan.axis} are {row:g} x {column:g} mm; sides that differ by up to "
            f"{LONGEST_PIXEL:g} times are accepted. Name another axis, or correct the file's header."
        )


def _evenly(pieces: Sequence[SupportSlice]) -> list[SupportSlice]:
    """At most `MOST_SHOTS` of the painted slices, spread evenly: the time of each query grows with their number."""
    if len(pieces) <= MOST_SHOTS:
        return list(pieces)
    places = np.linspace(0, len(pieces) - 1, MOST_SHOTS).round().astype(int)
    return [pieces[place] for place in places]


def _unlikeness(scan: QueryScan, pieces: Sequence[SupportSlice]) -> list[str]:
    """One sentence for each way in which the query differs from painted slices so much that a user should look."""
    messages = []
    for piece in pieces:
        ratio = max(scan.spacing) / max(piece.spacing)
        if not 1 / UNLIKE_SPACING < ratio < UNLIKE_SPACING:
            messages.append(
                f"Pixels are {max(scan.spacing):.3g} mm in the query and {max(piece.spacing):.3g} mm in the support; "
                "results may be poor."
            )
        if scan.volume.geometry.plane(scan.axis) != piece.plane:
            messages.append(
                "The query is cut in another anatomical plane than the painted slices; results may be poor."
            )
        ours, theirs = scan.window, piece.window
        overlap = min(ours.high, theirs.high) - max(ours.low, theirs.low)
        if overlap < 0.3 * max(ours.high - ours.low, theirs.high - theirs.low):
            messages.append(
                f"Intensities differ: {ours.low:.4g} to {ours.high:.4g} in the query, {theirs.low:.4g} to "
                f"{theirs.high:.4g} in the support; is it another modality?"
            )
    return list(dict.fromkeys(messages))
