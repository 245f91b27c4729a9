"""The tests of one fold: which slices are painted for which slices of which scan.

Two protocols. `field`, the literature's: the query's slices that hold the organ are cut into three chunks, and each is
done with painted slices from the same third of the organ in the support scan. And `official`, what the official code of
SD-FSMIS does: all painted slices go to every chunk. Both are told where the organ begins and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.benchmark.data_sets import Fold
from SDFSMISLib.evaluation.cases import Case
from SDFSMISLib.evaluation.protocols import CHUNKS, LabelledScan, Task
from SDFSMISLib.support import SupportSet

__all__ = ["PROTOCOLS", "Protocol", "Window", "fold_task", "painted_for_chunks", "query_cases"]

Protocol = Literal["field", "official"]
Window = Literal["robust", "minmax"]
PROTOCOLS: tuple[Protocol, ...] = ("field", "official")


@dataclass(frozen=True)
class _Chunk:
    """Slices of the query, and the slices of the support scan that are painted for them."""

    judged: tuple[int, ...]
    painted: tuple[int, ...]


def query_cases(fold: Fold, protocol: Protocol) -> tuple[Case, ...]:
    """The fold's queries: with `field` every scan, the support too; with `official` all but the support."""
    return tuple(case for case in fold.cases if protocol == "field" or case.id != fold.support.id)


def fold_task(
    fold: Fold,
    case: Case,
    organ: str,
    load: Callable[[Case], LabelledScan],
    shots: int,
    protocol: Protocol,
    window: Window = "robust",
) -> Task | None:
    """The test of one organ of one scan, a part for each chunk; None where query or support lacks the organ.

    ``window`` says how the painted slices' intensities become [-1, 1]. Raises :class:`InputError` for fewer shots than
    1, and where query and support are sliced along different axes.
    """
    query, supporting = load(case), load(fold.support_for(case))
    reference, shown = query.mask(organ), supporting.mask(organ)
    if not (reference.any() and shown.any()):
        return None
    chunks = _chunks(_holding(reference, query.axis), _holding(shown, supporting.axis), shots, protocol)
    parts = tuple(_task(query, organ, reference, supporting, chunk, window) for chunk in chunks if chunk.judged)
    whole = _Chunk(
        tuple(sorted({index for chunk in chunks for index in chunk.judged})),
        tuple(sorted({index for chunk in chunks for index in chunk.painted})),
    )
    return replace(_task(query, organ, reference, supporting, whole, window), parts=parts)


def painted_for_chunks(holding: Sequence[int], shots: int, protocol: Protocol) -> list[tuple[int, ...]]:
    """The slices of the support scan, of those ``holding`` the organ, that are painted for each of the three chunks.

    `field`: ``shots`` slices spread evenly over each third, so one shot is the slices at 1/6, 1/2 and 5/6. `official`:
    the same slices for every chunk: those three, or with more shots than one so many spread over the whole organ. A
    thin organ gives fewer.
    """
    if shots < 1:
        raise InputError(f"{shots} shots were asked for; at least 1 painted slice is needed.")
    if protocol == "official":
        spread = _spread(holding, CHUNKS if shots == 1 else shots)
        return [tuple(dict.fromkeys(spread))] * CHUNKS
    spread = _spread(holding, CHUNKS * shots)
    return [tuple(dict.fromkeys(spread[place * shots : (place + 1) * shots])) for place in range(CHUNKS)]


def _chunks(query: Sequence[int], support: Sequence[int], shots: int, protocol: Protocol) -> list[_Chunk]:
    bounds = np.linspace(0, len(query), CHUNKS + 1).astype(int)
    painted = painted_for_chunks(support, shots, protocol)
    return [
        _Chunk(tuple(query[start:stop]), slices)
        for start, stop, slices in zip(bounds[:-1], bounds[1:], painted, strict=True)
    ]


def _task(
    query: LabelledScan, organ: str, reference: np.ndarray, supporting: LabelledScan, chunk: _Chunk, window: Window
) -> Task:
    support = supporting.support(organ, chunk.painted)
    if window != "robust":
        seen = supporting.scan.window(window)
        support = SupportSet(tuple(replace(piece, window=seen) for piece in support.slices), support.names)
    return Task(
        case=query.case,
        target=organ,
        query=query.scan,
        axis=query.axis,
        support=support,
        label=supporting.case.targets[organ],
        shown=organ,
        reference=reference,
        painted=(),
        judged=chunk.judged,
        support_case=supporting.case,
    )


def _holding(mask: np.ndarray, axis: int) -> list[int]:
    """The slices along ``axis`` that hold something."""
    return np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))).tolist()


def _spread(holding: Sequence[int], count: int) -> list[int]:
    """The middles of ``count`` equal parts of the slices in ``holding``; with repeats where it has fewer."""
    return [holding[(2 * place + 1) * len(holding) // (2 * count)] for place in range(count)]
