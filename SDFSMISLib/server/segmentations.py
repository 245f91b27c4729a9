"""From a request to a run: the slices it names, the painted ones, and what has come before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.inference.run import Finished, Options, Run
from SDFSMISLib.server.answers import PackedAnswers
from SDFSMISLib.server.engine import Engine
from SDFSMISLib.server.failures import Refused
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.schema import Answer, SegmentationRequest
from SDFSMISLib.server.store import MissingSlices, Store
from SDFSMISLib.support import SupportSet
from SDFSMISLib.wire import PROTOCOL, stack_of, support_slice


def run_of(request: SegmentationRequest, owner: str, store: Store, engine: Engine) -> tuple[Run, int]:
    """The run that a request asks for, and the bytes of its slices, which it holds on to whatever the store does.

    Raises:
        Refused: where slices are missing, the request is too large, or of another protocol.
        InputError: where it makes no sense.
    """
    if request.protocol != PROTOCOL:
        raise Refused(
            426,
            "protocol_mismatch",
            f"This backend speaks protocol {PROTOCOL}, the request is of protocol {request.protocol}; install the same "
            "version of SDFSMIS on both sides.",
        )
    _check_size(request, engine.limits)
    query = request.query
    sent = dict(query.slices)
    addresses = [*sent.values(), *(piece.slice for piece in request.support)]
    try:
        arrays = store.get(owner, dict.fromkeys(addresses))
    except MissingSlices as missing:
        raise Refused(
            409,
            "slices_missing",
            f"{len(missing.addresses)} slices are not here, or no longer; send them, and ask again.",
            {"missing": missing.addresses},
        ) from missing
    scan = stack_of(
        query.model_dump(), lambda index: arrays[sent[index]], identity=lambda index: f"{owner} {sent[index]}"
    )
    _check_slices(sent, arrays, scan.count, scan.native_shape)
    painted = tuple(support_slice(piece.model_dump(), arrays[piece.slice]) for piece in request.support)
    for piece in painted:
        if piece.scan == scan.scan and piece.axis == scan.axis and piece.labels.shape != scan.native_shape:
            raise InputError(
                f"A slice painted on the scan has shape {piece.labels.shape}; the scan's have {scan.native_shape}."
            )
    options = Options(request.strategy, request.region, request.threshold)
    labels = list(dict.fromkeys(request.labels))
    run = engine.run(scan, SupportSet(painted), options, request.slices, labels, _finished(request, scan.native_shape))
    lacking = [index for index in run.needed() if index not in sent]
    if lacking:
        raise InputError(f"Slice {lacking[0]} is needed for those that are wanted, and the query does not name it.")
    painted_bytes = sum(piece.labels.size * (1 + len(labels)) for piece in painted)
    return run, sum(array.nbytes for array in arrays.values()) + painted_bytes


def _check_size(request: SegmentationRequest, limits: Limits) -> None:
    query = request.query
    pixels = math.prod(query.shape)
    # A piece that is complete is looked at for each label, also for those that are absent on it.
    masked = sum(
        math.prod(piece.shape) * (1 + max(len(piece.masks), len(request.labels) if piece.complete else 0))
        for piece in request.support
    )
    answers = max(len(request.finished), len(request.lanes) // 2)  # a lane comes from either side
    for what, given, accepted in (
        ("pixels of a slice", pixels, limits.slice_pixels),
        ("slices", max(query.count, len(query.slices)), limits.slices),
        ("painted slices", len(request.support), limits.shots),
        ("labels", len(request.labels), limits.labels),
        ("pixels of all painted slices and their masks", masked, limits.masked_pixels),
        ("slices that have come before", answers, len(request.labels) * query.count),
    ):
        if given > accepted:
            raise Refused(413, "too_large", f"{given} {what} were given; {accepted} are accepted.")


def _check_slices(sent: dict[int, str], arrays: dict[str, np.ndarray], count: int, shape: tuple[int, int]) -> None:
    for index, address in sent.items():
        if index >= count:
            raise InputError(f"Slice {index} was named; the scan has the slices 0 to {count - 1}.")
        if arrays[address].shape != shape:
            raise InputError(f"Slice {index} was sent with shape {arrays[address].shape}; the scan's have {shape}.")


def _finished(request: SegmentationRequest, shape: tuple[int, int]) -> Finished:
    """What has come of this run before."""
    for answer in (*request.finished, *request.lanes, *(request.found or ())):
        if answer.index >= request.query.count or answer.label not in request.labels:
            raise InputError(
                f"Slice {answer.index} of label {answer.label} is said to have come before; it was not asked for."
            )
    slices = {(answer.label, answer.index): answer.model_dump() for answer in request.finished}
    lanes = {(answer.label, answer.start, answer.index): answer.model_dump() for answer in request.lanes}
    return Finished(PackedAnswers(shape, slices), PackedAnswers(shape, lanes), _found(request.found, shape))


def _found(starts: Sequence[Answer] | None, shape: tuple[int, int]) -> dict[int, tuple[int, np.ndarray]] | None:
    if starts is None:
        return None
    soft = PackedAnswers(shape, {start.label: start.model_dump() for start in starts})
    return {start.label: (start.index, soft[start.label]) for start in starts}
