"""Probabilities that a client hands back, kept as they came and unpacked when one is asked for."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from typing import Any, Generic, TypeVar

import numpy as np

from SDFSMISLib.wire import pack_probability, unpack_probability

Place = TypeVar("Place", bound=Hashable)


class PackedAnswers(MutableMapping[Place, np.ndarray], Generic[Place]):
    """uint8 (rows, columns) by place.

    Args:
        shape: (rows, columns) of all of them.
        fields: their `box` and `data` by place.

    Raises:
        WireError: where one is damaged; each is looked at once.
    """

    def __init__(self, shape: tuple[int, int], fields: Mapping[Place, Mapping[str, Any]]) -> None:
        self._shape = shape
        self._fields = dict(fields)
        for one in self._fields.values():
            unpack_probability(one, shape)

    def __getitem__(self, place: Place) -> np.ndarray:
        return unpack_probability(self._fields[place], self._shape)

    def __setitem__(self, place: Place, probability: np.ndarray) -> None:
        self._fields[place] = pack_probability(probability)

    def __delitem__(self, place: Place) -> None:
        del self._fields[place]

    def __contains__(self, place: object) -> bool:
        return place in self._fields

    def __iter__(self) -> Iterator[Place]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)
