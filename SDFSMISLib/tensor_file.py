"""Tensor files: numpy arrays in the safetensors format, with numpy and the standard library only, as Slicer has.

The format is that of https://huggingface.co/docs/safetensors: eight bytes with the length of a JSON header, the header
(dtype, shape and place of each array, and a table of texts), then the arrays, little endian, one after the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["TensorFileError", "read_tensors", "write_tensors"]

DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
METADATA = "__metadata__"


class TensorFileError(ValueError):
    """A file is not in the format, or damaged."""


def write_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file; arrays of bool, integers and floats."""
    header: dict[str, Any] = {METADATA: dict(metadata)}
    parts, end = [], 0
    for name, array in tensors.items():
        stored = np.ascontiguousarray(array)
        stored = stored.astype(stored.dtype.newbyteorder("<"), copy=False)
        begin, end = end, end + stored.nbytes
        header[name] = {"dtype": NAMES[stored.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        parts.append(stored.tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def read_tensors(path: str | PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and texts of a file.

    Raises:
        TensorFileError: where the file is not in the format, damaged, or holds a dtype that numpy has not.
        OSError: where it cannot be read.
    """
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(LONGEST_HEADER, len(data) - 8):
        raise TensorFileError("it is not a safetensors file")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = {str(key): str(value) for key, value in header.pop(METADATA, {}).items()}
        return {name: _tensor(entry, memoryview(data)[8 + length :]) for name, entry in header.items()}, metadata
    except TensorFileError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TensorFileError(f"its header is damaged ({error})") from error


def _tensor(entry: Mapping[str, Any], data: memoryview) -> np.ndarray:
    dtype, shape, (begin, end) = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(side, int) and side >= 0 for side in (*shape, begin, end)):
        raise TensorFileError("a shape or a place in it is no number")
    if not begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise TensorFileError("an array in it is cut off")
    array = np.frombuffer(data[begin:end], dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="))  # a copy, so that it can be written to
