"""The wire format between client and backend: packed arrays, content addresses, parts of a request, records.

Arrays are sent packed (:func:`pack_array`), as bytes or as base64 text within JSON. Damaged arrays, probabilities and
records raise a :class:`WireError`; the fields of a request are checked by the backend's schema.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Generic, TypeVar

import numpy as np

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.labelmap import bounding_box, label_values
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSlice

__all__ = [
    "ARRAY_TYPE",
    "ArrayTooLarge",
    "MAX_EARLIER_RECORDS",
    "PROTOCOL",
    "PROTOCOL_HEADER",
    "PackedProbabilities",
    "RECORDS_TYPE",
    "WireError",
    "content_address",
    "decode_array",
    "decode_labels",
    "decode_mask",
    "encode_array",
    "join_slices",
    "pack_array",
    "pack_probability",
    "query_fields",
    "read_record",
    "same_image",
    "split_slices",
    "support_fields",
    "support_image_for_wire",
    "unpack_array",
    "unpack_probability",
    "write_record",
]

PROTOCOL = 2
PROTOCOL_HEADER = "X-SDFSMIS-Protocol"
MAX_EARLIER_RECORDS = 1 << 16  # slices, and lanes, of an earlier stream in one request
ARRAY_TYPE, RECORDS_TYPE = "application/octet-stream", "application/x-ndjson"

MAGIC, VERSION = b"SDFA", 1
HEADER = struct.Struct("<4sBBBB")  # magic, version, codec, dtype, number of dimensions; then the sides, then a crc32
CRC = struct.Struct("<I")
SLICE = struct.Struct("<32sI")  # sha256 of a slice, and the number of bytes of the packed array that follows
MOST_DIMENSIONS = 32
DTYPES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
"""By their code on the wire."""

RAW, PACKED = 0, 1
"""Codecs. ``PACKED`` is zlib; integers of two bytes and more are made easy for it first: differences to the pixel on
the left, then to the row above, their sign moved to the lowest bit, bytes of like rank together.

Measured on one core, size and speed for 12 slices each of three scans: abdominal MR of int16 0.31 at 190 MB/s (zlib
alone, level 1: 0.51 at 85 MB/s), head and neck CT of int16 0.09 at 330 MB/s (0.10 at 310), abdominal CT of int32 0.38
at 210 MB/s (0.52 at 80). The differences do not pay for bytes and floats, which hold few distinct values in most files:
brain MR of float32 0.03 as it is, 0.04 shuffled.
"""

RECORD_END = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\n\Z')


class WireError(InputError):
    """Received data are damaged, or of another protocol."""


class ArrayTooLarge(WireError):
    """A received array is larger than accepted."""


# -- packed arrays -----------------------------------------------------------------------------------------------------


def pack_array(array: np.ndarray, compress: bool = True) -> bytes:
    """An array of any shape as bytes: little-endian, floats of at most 64 bits.

    Raises:
        WireError: for an array of anything but booleans, integers or real numbers.

    >>> packed = pack_array(np.arange(6, dtype=np.int16).reshape(2, 3))
    >>> unpack_array(packed, most_bytes=100).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    array = _wire_array(array)
    if array.dtype.str not in DTYPES or array.ndim > MOST_DIMENSIONS or max(array.shape, default=0) >= 1 << 32:
        raise WireError(
            f"An array of type {array.dtype} and shape {array.shape} was given; booleans, integers and real numbers of "
            f"at most {MOST_DIMENSIONS} dimensions can be sent."
        )
    codec, payload = RAW, _bytes(np.packbits(array) if array.dtype.kind == "b" else array).tobytes()
    if compress:
        packed = _deflate(array)
        if len(packed) < len(payload):
            codec, payload = PACKED, packed
    head = HEADER.pack(MAGIC, VERSION, codec, DTYPES.index(array.dtype.str), array.ndim)
    head += struct.pack(f"<{array.ndim}I", *array.shape)
    return head + CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def unpack_array(data: bytes | memoryview, most_bytes: int) -> np.ndarray:
    """The array of :func:`pack_array`'s bytes, writable.

    Args:
        most_bytes: the most that the array may take in memory; a larger one is refused before it is unpacked.

    Raises:
        WireError: if the bytes are damaged, cut, followed by others, or of another format.
        ArrayTooLarge: if the array is larger.
    """
    if len(data) < HEADER.size:
        raise WireError(f"{len(data)} bytes came that should be a packed array; they are cut.")
    magic, version, codec, code, dimensions = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or codec not in (RAW, PACKED) or code >= len(DTYPES):
        raise WireError(
            "What came is no packed array, or one of another version; use a backend and a client of the same version."
        )
    start = HEADER.size + 4 * dimensions + CRC.size
    if len(data) < start or dimensions > MOST_DIMENSIONS:
        raise WireError("A packed array came damaged or cut; send it again.")
    shape = struct.unpack_from(f"<{dimensions}I", data, HEADER.size)
    dtype = np.dtype(DTYPES[code])
    size = math.prod(max(side, 1) for side in shape) * dtype.itemsize
    if size > most_bytes:
        raise ArrayTooLarge(f"An array of shape {shape} of {dtype} takes {size} bytes; {most_bytes} are accepted.")
    head, payload = memoryview(data)[: start - CRC.size], memoryview(data)[start:]
    if CRC.unpack_from(data, start - CRC.size)[0] != zlib.crc32(payload, zlib.crc32(head)):
        raise WireError("A packed array came damaged or cut; send it again.")
    count = math.prod(shape)
    length = -(-count // 8) if dtype.kind == "b" else count * dtype.itemsize
    plain = _inflate(payload, length) if codec == PACKED else bytes(payload)
    if len(plain) != length:
        raise WireError(f"An array of shape {shape} and type {dtype} came with {len(plain)} bytes instead of {length}.")
    if dtype.kind == "b":
        return np.unpackbits(np.frombuffer(plain, np.uint8), count=count).astype(bool).reshape(shape)
    values = np.frombuffer(plain, np.uint8)
    return _restored(values, shape, dtype) if codec == PACKED else values.view(dtype).reshape(shape).copy()


def content_address(array: np.ndarray) -> str:
    """sha256 (hex) of an array's dtype (``"<i2"``), shape (``(3, 4)``) and values in C order, little-endian.

    It does not depend on the packing; dtypes are changed as by :func:`pack_array`.
    """
    array = _wire_array(array)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(_bytes(array).data)
    return digest.hexdigest()


def join_slices(packed: Iterable[tuple[str, bytes]]) -> bytes:
    """Packed slices, each with its content address, as the body of one upload; bodies can be joined.

    >>> array = np.eye(2, dtype=np.int16)
    >>> body = join_slices([(content_address(array), pack_array(array))])
    >>> [(address == content_address(array), unpack_array(data, 100).tolist()) for address, data in split_slices(body)]
    [(True, [[1, 0], [0, 1]])]
    """
    return b"".join(SLICE.pack(bytes.fromhex(address), len(data)) + data for address, data in packed)


def split_slices(body: bytes) -> Iterator[tuple[str, memoryview]]:
    """Content address and packed array of each slice of :func:`join_slices`' bytes; nothing is unpacked or checked yet.

    Raises:
        WireError: where the bytes are cut.
    """
    rest = memoryview(body)
    while rest:
        if len(rest) < SLICE.size:
            raise WireError(f"{len(rest)} bytes follow the last slice; an upload has nothing but whole slices.")
        digest, length = SLICE.unpack_from(rest)
        data, rest = rest[SLICE.size : SLICE.size + length], rest[SLICE.size + length :]
        if len(data) < length:
            raise WireError(f"A slice of {length} bytes was announced, and {len(data)} came; send it again.")
        yield digest.hex(), data


def encode_array(array: np.ndarray) -> str:
    """A packed array as base64 text."""
    return base64.b64encode(pack_array(array)).decode("ascii")


def decode_array(text: str, most_bytes: int) -> np.ndarray:
    """The array of :func:`encode_array`'s text; see :func:`unpack_array`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise WireError("What should be base64 text of a packed array is none.") from error
    return unpack_array(data, most_bytes)


def _wire_array(array: np.ndarray) -> np.ndarray:
    """The array, contiguous and little-endian, of a type that every machine has."""
    array = np.asarray(array)
    dtype = np.dtype(np.float64) if array.dtype.kind == "f" and array.dtype.itemsize > 8 else array.dtype
    return array.astype(dtype.newbyteorder("<"), order="C", copy=False)


def _bytes(array: np.ndarray) -> np.ndarray:
    """uint8, one dimension: the memory of an array in C order."""
    return array.reshape(-1).view(np.uint8)


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of an array of any shape, the last dimension being the columns."""
    columns = shape[-1] if shape else 1
    return math.prod(shape[:-1]), columns


def _is_differenced(dtype: np.dtype) -> bool:
    return dtype.kind in "iu" and dtype.itemsize > 1


def _deflate(array: np.ndarray) -> bytes:
    """The payload of the codec ``PACKED``."""
    if array.dtype.kind == "b":
        return zlib.compress(np.packbits(array).tobytes(), 1)
    if not _is_differenced(array.dtype):
        return zlib.compress(array.tobytes(), 1)
    size = array.dtype.itemsize
    values = array.reshape(_rows(array.shape)).view(f"<u{size}").copy()
    values[:, 1:] -= values[:, :-1].copy()
    values[1:] -= values[:-1].copy()
    signed = values.view(f"<i{size}")
    values = ((signed << 1) ^ (signed >> (8 * size - 1))).reshape(-1)
    shuffled = values.view(np.uint8).reshape(-1, size).T
    # Runs of equal bytes are all there is to find: faster than a search for longer matches, and smaller.
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return deflate.compress(shuffled.tobytes()) + deflate.flush()


def _inflate(payload: memoryview, length: int) -> bytes:
    """The decompressed bytes, which must be ``length``; at most one byte more is unpacked."""
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(payload, length + 1)
    except zlib.error as error:
        raise WireError("A packed array came damaged or cut; send it again.") from error
    if not inflate.eof or inflate.unused_data:
        raise WireError(f"A packed array does not unpack to the {length} bytes that it declares.")
    return plain


def _restored(plain: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The array of the bytes that :func:`_deflate` compressed."""
    if not _is_differenced(dtype):
        return plain.view(dtype).reshape(shape).copy()
    size = dtype.itemsize
    folded = np.ascontiguousarray(plain.reshape(size, -1).T).reshape(-1).view(f"<u{size}")
    values: np.ndarray = ((folded >> 1) ^ np.negative(folded & 1)).reshape(_rows(shape))
    np.cumsum(values, axis=0, dtype=values.dtype, out=values)
    np.cumsum(values, axis=1, dtype=values.dtype, out=values)
    return values.view(dtype).reshape(shape)


# -- probabilities -----------------------------------------------------------------------------------------------------


def pack_probability(probability: np.ndarray) -> dict[str, Any]:
    """A probability, uint8 (rows, columns), as ``box`` (top, left, height, width) and ``data``, which is zero outside.

    One that is zero everywhere has the box of four zeros and empty data.
    """
    box = bounding_box(probability)
    if box is None:
        return {"box": [0, 0, 0, 0], "data": ""}
    starts, sizes = [side.start for side in box], [side.stop - side.start for side in box]
    return {"box": [*starts, *sizes], "data": encode_array(probability[box])}


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r:.40} is no whole number from 0 to {(1 << 31) - 1}")
    return value


def unpack_probability(fields: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """The probability, uint8 (rows, columns) of the given shape, of :func:`pack_probability`'s fields.

    Raises:
        WireError: if the box is not inside the slice, or the data are not uint8 of its size.
    """
    try:
        (top, left, height, width), data = map(_natural, fields["box"]), fields["data"]
    except (LookupError, TypeError, ValueError) as error:
        raise WireError(f"A probability has a field that is missing or impossible ({error}).") from error
    probability = np.zeros(shape, dtype=np.uint8)
    if (top, left, height, width) == (0, 0, 0, 0) and data == "":
        return probability
    if not (height and width and top + height <= shape[0] and left + width <= shape[1]):
        raise WireError(f"A probability's box {list(fields['box'])} does not lie inside a slice of shape {shape}.")
    part = decode_array(data, height * width)
    if part.dtype != np.uint8 or part.shape != (height, width):
        raise WireError(f"A probability of {part.dtype} {part.shape} came for a box of {(height, width)} in uint8.")
    probability[top : top + height, left : left + width] = part
    return probability


Key = TypeVar("Key", bound=Hashable)


class PackedProbabilities(MutableMapping[Key, np.ndarray], Generic[Key]):
    """Probabilities of slices, uint8 (rows, columns), 255 meaning 1, kept packed in a few kilobytes each.

    A slice is unpacked into a new array each time it is read.

    Args:
        shape: (rows, columns) of every slice.
        fields: slices that are packed already, as :func:`pack_probability` gives them.

    Raises:
        WireError: if one of ``fields`` is damaged.

    >>> packed = PackedProbabilities((4, 6))
    >>> packed["liver", 7] = np.pad(np.full((1, 2), 200, np.uint8), ((1, 2), (3, 1)))
    >>> packed.bounds([("liver", 7)])
    ((1, 3), (2, 5))
    >>> packed["liver", 7][1].tolist()
    [0, 0, 0, 200, 200, 0]
    """

    def __init__(self, shape: tuple[int, int], fields: Mapping[Key, Mapping[str, Any]] | None = None) -> None:
        self._shape = shape
        self._fields = dict(fields or {})
        for packed in self._fields.values():
            unpack_probability(packed, shape)

    def __getitem__(self, key: Key) -> np.ndarray:
        return unpack_probability(self._fields[key], self._shape)

    def __setitem__(self, key: Key, probability: np.ndarray) -> None:
        if probability.shape != self._shape or probability.dtype != np.uint8:
            raise ValueError(f"{probability.dtype} {probability.shape} was given; uint8 {self._shape} is a slice.")
        self._fields[key] = pack_probability(probability)

    def __delitem__(self, key: Key) -> None:
        del self._fields[key]

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def __iter__(self) -> Iterator[Key]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def copy(self) -> PackedProbabilities[Key]:
        """The same slices; later changes of one do not show in the other."""
        copied = PackedProbabilities[Key](self._shape)
        copied._fields = dict(self._fields)
        return copied

    def bounds(self, keys: Iterable[Key]) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """First (row, column) with nonzero pixels in some slices, and the one after the last; None if all are zero."""
        boxes = [box for key in keys if key in self._fields and any(box := self._fields[key]["box"])]
        if not boxes:
            return None
        tops, lefts, heights, widths = np.transpose(boxes)
        bottom, right = int((tops + heights).max()), int((lefts + widths).max())
        return (int(tops.min()), int(lefts.min())), (bottom, right)


# -- the parts of a request --------------------------------------------------------------------------------------------


def query_fields(stacks: Mapping[int, SliceStack], addresses: Mapping[int, str]) -> dict[str, Any]:
    """The ``query`` of a request.

    Args:
        stacks: the slices along each axis of the run, by axis, the main one first. Of the others nothing is sent but
            how they are turned: they are cut from the main axis' slices, all of which must be sent then.
        addresses: content addresses of the slices of the main axis that were sent, by index.
    """
    main, *others = stacks.values()
    return {
        **main.plane.to_fields(),
        "count": main.count,
        "shape": list(main.native_shape),
        "slices": [[index, addresses[index]] for index in sorted(addresses)],
        "other_axes": [
            {name: fields[name] for name in ("axis", "orientation", "plane")}
            for fields in (stack.plane.to_fields() for stack in others)
        ],
    }


def support_image_for_wire(painted: SupportSlice, own: np.ndarray | None = None) -> np.ndarray:
    """A painted slice's image as it is sent; for a slice of the query the same array, so that it is sent once.

    The image of a support slice is float32. If all its values are whole numbers within int16, as in most scans, it is
    sent as int16; both are normalised to the same values.

    Args:
        own: the query's slice of the same scan, axis and index, if there is one. It is sent if it has the same values,
            of a dtype that float32 represents exactly.
    """
    image = np.ascontiguousarray(painted.image, dtype=np.float32)
    if own is not None and (own.dtype.itemsize <= 2 or own.dtype == np.float32) and same_image(own, image):
        return own
    with np.errstate(invalid="ignore"):  # NaN and values beyond int16: they are not the same then
        whole = image.astype(np.int16)
    return whole if same_image(whole, image) else image


def support_fields(painted: SupportSlice, labels: Collection[int], address: str | None) -> dict[str, Any]:
    """One entry of a request's ``support``.

    Args:
        labels: the labels whose masks are sent, if the slice has them.
        address: content address of the image that was sent for it, see :func:`support_image_for_wire`; None = it is
            cut from the slices of the query.
    """
    return {
        "slice": address,
        "masks": [
            {"label": label, "data": encode_array(painted.mask(label))}
            for label in label_values(painted.labels)
            if label in labels
        ],
        "known": None if painted.known is None else encode_array(painted.known),
        "shape": list(painted.labels.shape),
        **painted.to_fields(),
    }


def decode_labels(masks: Iterable[tuple[int, str]], shape: tuple[int, int]) -> np.ndarray:
    """uint16 (rows, columns), the label value of each pixel, of the label values and encoded masks of an entry.

    Raises:
        WireError: as :func:`decode_mask`, or if two masks overlap.
    """
    labels = np.zeros(shape, dtype=np.uint16)
    for label, data in masks:
        mask = decode_mask(data, shape)
        if labels[mask].any():
            raise WireError(f"Label {label} overlaps another label of its slice; a pixel has one label.")
        labels[mask] = label
    return labels


def decode_mask(data: str, shape: tuple[int, int]) -> np.ndarray:
    """Bool (rows, columns) of an encoded mask.

    Raises:
        WireError: if it is damaged, or of another shape or type.
    """
    mask = decode_array(data, math.prod(shape))
    if mask.dtype != bool or mask.shape != shape:
        raise WireError(f"A mask of {mask.dtype} {mask.shape} came for a slice of shape {shape}; bool is needed.")
    return mask


def same_image(array: np.ndarray, image: np.ndarray) -> bool:
    """Whether an array as float32 equals the image bit by bit, including NaN and the sign of zero."""
    if array.shape != image.shape:
        return False
    return np.array_equal(np.ascontiguousarray(array, dtype=np.float32).view(np.uint32), image.view(np.uint32))


# -- records -----------------------------------------------------------------------------------------------------------


def write_record(record: Mapping[str, Any]) -> bytes:
    """A record as one line of JSON that ends with the crc32 of the bytes before it."""
    body = json.dumps(record, separators=(",", ":"), allow_nan=False)[:-1].encode("ascii")
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


def read_record(line: bytes) -> dict[str, Any]:
    """The record of a line, without its crc32.

    Raises:
        WireError: if the line is cut or damaged.

    >>> read_record(write_record({"type": "alive", "ahead": 2}))
    {'type': 'alive', 'ahead': 2}
    """
    end = RECORD_END.search(line)
    if end is None or int(end[1], 16) != zlib.crc32(line[: end.start()]):
        raise WireError("A record came damaged or cut.")
    try:
        return json.loads(line[: end.start()] + b"}")
    except (ValueError, RecursionError) as error:
        raise WireError("A record came that is no JSON.") from error
