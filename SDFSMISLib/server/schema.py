"""The JSON of the backend's requests and answers, as pydantic models; the OpenAPI page /docs is made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, field_validator
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import SliceOrientation
from SDFSMISLib.options import THRESHOLD_RANGE, Region, Strategy
from SDFSMISLib.slices import SlicePlane, SliceStack
from SDFSMISLib.support import SupportSlice
from SDFSMISLib.wire import MAX_EARLIER_RECORDS, PROTOCOL, WireError, decode_labels, decode_mask

Address = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="content address (sha256, hex) of a slice")]
Index = Annotated[int, Field(ge=0, le=2**31 - 1, description="slice, from 0")]
LabelValue = Annotated[int, Field(ge=1, le=65535)]
Millimetres = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Intensity = Annotated[float, Field(ge=-3.5e38, le=3.5e38, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=1 << 16)]
Axis = Annotated[int, Field(ge=0, le=2, description="array axis in the order (slices, height, width)")]
Packed = Annotated[str, Field(description="base64 of a packed array, see SDFSMISLib/wire.py")]
ScanName = Annotated[str, Field(max_length=256, description="content hash of the whole scan, or any name of it")]
Shape = Annotated[tuple[Side, Side], Field(description="(rows, columns)")]
Spacing = Annotated[tuple[Millimetres, Millimetres], Field(description="(row, column), mm")]
Plane = Literal["axial", "coronal", "sagittal"]

# Bounds on what is parsed at all, since each wrong element takes time and memory; `ServerLimits` may be lower.
MAX_SLICES, MAX_MASKS = 1 << 16, 1 << 10


class RequestModel(BaseModel):
    """A part of a request. Unknown fields are refused: most are misspelt names of known ones."""

    model_config = ConfigDict(extra="forbid")


class Orientation(RequestModel):
    """How native slices are turned to the anatomical orientation: transposed first, then flipped."""

    transpose: bool
    flip_rows: bool
    flip_columns: bool


class Window(RequestModel):
    """Raw intensities, of the whole scan, that the networks see as -1 and 1."""

    low: Intensity
    high: Intensity


class SlicePlaneFields(RequestModel):
    """Where slices lie, how they are turned and windowed; see `slices.SlicePlane`."""

    axis: Axis
    spacing: Spacing
    thickness: Annotated[Millimetres, Field(description="distance of neighbouring slices, mm")]
    orientation: Orientation
    window: Window
    scan: ScanName
    plane: Plane

    def slice_plane(self) -> SlicePlane:
        """The value of the fields; raises :class:`InputError` for a window whose ``low`` is above ``high``."""
        return SlicePlane.from_fields(self.model_dump(include=set(SlicePlaneFields.model_fields)))


class OtherAxis(RequestModel):
    """A further axis of a run, and how its slices are turned; they are cut from the slices of the query."""

    axis: Axis
    orientation: Orientation
    plane: Plane


class Query(SlicePlaneFields):
    """The slices to segment: parallel slices of one scan, and the addresses of those that were sent: all of them if
    slices of other axes are cut from them."""

    count: Annotated[int, Field(ge=1, le=1 << 20, description="slices of the scan along the axis")]
    shape: Shape
    slices: Annotated[list[tuple[Index, Address]], Field(max_length=MAX_SLICES), FailFast()]
    other_axes: Annotated[list[OtherAxis], Field(max_length=2, description="the scan was painted along them too")] = []

    def slice_stacks(
        self, read: Callable[[int], np.ndarray], identity: Callable[[int, int], str] | None = None
    ) -> dict[int, SliceStack]:
        """The slices along each axis of the run, by axis, the query's own first.

        Args:
            read: gives the slice of an index along the query's own axis.
            identity: gives the identity of the slice with an axis and an index.

        Raises:
            InputError: if an axis is given twice, or a pixel's sides are too unlike for any scan.
        """
        main = SliceStack(read, self.count, self.shape, self.slice_plane(), identity and partial(identity, self.axis))
        stacks = {self.axis: main}
        for other in self.other_axes:
            if other.axis in stacks:
                raise InputError(f"Axis {other.axis} was given twice; give each axis of a run once.")
            orientation = SliceOrientation(**other.orientation.model_dump())
            stacks[other.axis] = main.cut(
                other.axis, orientation, other.plane, identity and partial(identity, other.axis)
            )
        return stacks


class LabelMask(RequestModel):
    """Where a label is painted: bool (rows, columns)."""

    label: LabelValue
    data: Packed


class PaintedSlice(SlicePlaneFields):
    """A painted slice, of the query's scan (same `scan`; any `axis`) or of another."""

    slice: Annotated[Address | None, Field(description="null: cut from the slices of the query, whose axes it is of")]
    masks: Annotated[list[LabelMask], Field(max_length=MAX_MASKS), FailFast()]
    known: Annotated[
        Packed | None, Field(description="bool (rows, columns): where the masks count; null = everywhere")
    ] = None
    shape: Shape
    index: Index
    complete: Annotated[bool, Field(description="a label that is absent here is truly absent")]

    def support_slice(self, image: np.ndarray) -> SupportSlice:
        """The painted slice, with its image (rows, columns).

        Raises:
            WireError: if the image has another shape, or a mask is damaged, of another shape, or overlaps another.
        """
        if image.shape != self.shape:
            raise WireError(
                f"A painted slice is said to be of shape {self.shape}; the image sent for it has {image.shape}."
            )
        labels = decode_labels([(mask.label, mask.data) for mask in self.masks], self.shape)
        known = None if self.known is None else decode_mask(self.known, self.shape)
        image = image.astype(np.float32)
        return SupportSlice(image, labels, self.index, self.slice_plane(), self.complete, known)


class SliceProbability(RequestModel):
    """The probability of a label on a slice, uint8 with 255 meaning 1, as an earlier stream gave it."""

    label: LabelValue
    axis: Axis
    index: Index
    box: Annotated[tuple[int, int, int, int], Field(description="(top, left, height, width); all else is 0")]
    data: Packed


class TrackProbability(SliceProbability):
    """What propagation from the painted slice `start` gave on a slice, as a `lane` record gave it."""

    start: Index


class SegmentationRequest(RequestModel):
    """What to segment, by which painted slices; after a cut, also what an earlier stream gave.

    Example:
        The fields without a default are

        >>> SegmentationRequest.model_json_schema()["required"]
        ['protocol', 'query', 'support', 'labels']
    """

    protocol: Annotated[int, Field(json_schema_extra={"const": PROTOCOL})]
    query: Query
    support: Annotated[list[PaintedSlice], Field(min_length=1, max_length=MAX_MASKS), FailFast()]
    labels: Annotated[list[LabelValue], Field(min_length=1, max_length=MAX_MASKS), FailFast()]
    slices: Annotated[
        list[Index] | None,
        Field(max_length=MAX_SLICES, description="slices of the query's own axis that are wanted; null = all"),
    ] = None
    strategy: Strategy = "propagate"
    region: Region = "auto"
    threshold: Annotated[float, Field(gt=THRESHOLD_RANGE[0], lt=THRESHOLD_RANGE[1], allow_inf_nan=False)] = 0.5
    finished: Annotated[
        list[SliceProbability],
        Field(max_length=MAX_EARLIER_RECORDS, description="previews, and final slices of labels that are not fused"),
        FailFast(),
    ] = []
    lanes: Annotated[list[TrackProbability], Field(max_length=MAX_EARLIER_RECORDS), FailFast()] = []
    found: Annotated[list[SliceProbability] | None, Field(max_length=MAX_MASKS)] = None

    @field_validator("protocol")
    @classmethod
    def _check_protocol(cls, protocol: int) -> int:
        """Runs before other fields are looked at, which another protocol may have others of."""
        if protocol != PROTOCOL:
            older = "the program that sent the request" if protocol < PROTOCOL else "the backend"
            raise ApiError(
                426,
                "protocol_mismatch",
                f"This backend speaks protocol {PROTOCOL}, and the request is of protocol {protocol}; update {older}.",
            )
        return protocol


class SliceAddresses(BaseModel):
    slices: Annotated[list[Address], Field(max_length=MAX_SLICES), FailFast()]


class MissingSlicesResponse(BaseModel):
    missing: list[str]


class HealthResponse(BaseModel):
    status: Literal["ok", "stopping", "device lost"]
    version: str


class ModelInfo(BaseModel):
    name: str
    weights_sha256: str
    resolution: Annotated[int, Field(description="side of the square on which the networks see, pixels")]
    searches: Annotated[bool, Field(description="the networks search on another scan: a second pass over its slices")]
    looks_ahead: Annotated[
        bool,
        Field(
            description="propagation also reads slices ahead of each one, 2 n on either side, n being 3 mm in slices, "
            "rounded (halves to even numbers), at least 1 and at most 10; send them too"
        ),
    ]


class DeviceInfo(BaseModel):
    name: str
    kind: str


class LimitsInfo(BaseModel):
    slice_pixels: int
    slices: int
    shots: int
    labels: int
    body_bytes: int
    store_bytes: int
    queue: int


class QueueInfo(BaseModel):
    running: int


class CapabilitiesResponse(BaseModel):
    name: Literal["sdfsmis"] = "sdfsmis"
    version: str
    protocol: int
    models: list[ModelInfo]
    device: DeviceInfo
    seconds_per_slice: Annotated[float, Field(description="of one label, measured when the backend started")]
    strategies: list[str]
    regions: list[str]
    limits: LimitsInfo
    queue: QueueInfo


class ErrorInfo(BaseModel):
    code: Annotated[str, Field(description="for programs")]
    message: Annotated[str, Field(description="a sentence for people")]
    missing: Annotated[list[str] | None, Field(description="addresses of the slices to send")] = None


class ErrorResponse(BaseModel):
    error: ErrorInfo


STREAM = """One JSON object per line, each closed by `crc32`, that of the line's bytes before `,"crc32":`.

- `start`: model, device, warnings; the axes along which each label is followed, and whether it is `fused` at the end;
  `total`, the number of slices that will come along all of them
- `slice`: a finished slice of a label; `box` and `data` hold its probability, zero outside. Its `stage` is `final`, or
  `preview` if the label is fused: then its slices of the query's own axis come once more in the end, beyond `total`
- `lane`, `found`: to be kept and handed back in `lanes` and `found` if the stream is cut
- `alive`: nothing new for some seconds; `ahead` is the number of other runs that take turns
- `end`: all is done. `error`: it is not, and why

A stream without `end` or `error` was cut: send what is missing, ask again with what has come, but for the final slices
of fused labels. Closing it cancels.
"""


class ApiError(HTTPException):
    """A request that is answered with an error; raise it anywhere below a route.

    Args:
        status: HTTP status.
        code: names the kind of error for programs.
        message: a sentence for people, which says what to do.
        details: further fields of the answer's `error`.
        headers: of the answer.

    Example:
        >>> error = ApiError(413, "too_large", "The slice has 20 million pixels; send a smaller one.")
        >>> error.response().body
        b'{"error":{"code":"too_large","message":"The slice has 20 million pixels; send a smaller one."}}'
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code
        self.details = dict(details or {})

    def response(self) -> JSONResponse:
        error = {"code": self.code, "message": self.detail, **self.details}
        return JSONResponse({"error": error}, self.status_code, self.headers)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The entries of these error statuses in a route's OpenAPI description: all answer with an `ErrorResponse`."""
    return {status: {"model": ErrorResponse} for status in statuses}
