"""The wire format: arrays, probabilities, requests and records come through whole, or are refused in one sentence."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from pydantic import ValidationError

from SDFSMISLib import slices
from SDFSMISLib import wire as protocol
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.intensity import IntensityWindow
from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.server.schema import PaintedSlice, Query
from SDFSMISLib.slices import SliceStack
from SDFSMISLib.support import SupportSet, SupportSlice
from SDFSMISLib.wire import (
    WireError,
    content_address,
    decode_array,
    encode_array,
    join_slices,
    pack_array,
    pack_probability,
    query_fields,
    read_record,
    split_slices,
    support_fields,
    support_image_for_wire,
    unpack_array,
    unpack_probability,
    write_record,
)
from volume_examples import quick, seeds, volumes

ENOUGH = 1 << 20

dtypes = st.one_of(
    numpy_strategies.boolean_dtypes(),
    numpy_strategies.integer_dtypes(endianness="?"),
    numpy_strategies.unsigned_integer_dtypes(endianness="?"),
    numpy_strategies.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)
arrays = numpy_strategies.arrays(
    dtypes, numpy_strategies.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9), fill=st.nothing()
)
some_arrays = [
    np.arange(-15, 15, dtype=np.int16).reshape(5, 6) * 7,
    np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    np.arange(35).reshape(5, 7) % 3 == 0,
    np.zeros((20, 20), np.uint8),
    np.zeros((0, 4), np.int32),
    np.array(-3, np.int64),
]


def painted(volume: Volume, axis: int, seed: int) -> SupportSlice:
    """A painted slice of a volume with the labels 1 and 300."""
    rng = np.random.default_rng(seed)
    labels = Volume(np.zeros(volume.geometry.shape, np.uint16), volume.geometry)
    plane = labels.slice(axis, 0)
    plane[:] = rng.choice([0, 1, 300], plane.shape)
    plane[0, 0] = 300
    return SupportSet.from_labelmap(volume, labels, label=None, slices=[0], axis=axis).slices[0]


def through_json(fields: dict) -> dict:
    return json.loads(json.dumps(fields, allow_nan=False))


# -- packed arrays -----------------------------------------------------------------------------------------------------


@quick
@given(arrays, st.booleans())
def test_any_array_comes_back_as_it_was(array: np.ndarray, compress: bool) -> None:
    back = unpack_array(pack_array(array, compress), ENOUGH)
    assert back.dtype == array.dtype.newbyteorder("<") and back.shape == array.shape and back.flags.writeable
    assert back.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()  # NaN too, to the last bit


@quick
@given(arrays, st.data())
def test_how_an_array_lies_in_memory_changes_nothing(array: np.ndarray, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(array.ndim)))
    view = np.flip(array.transpose(order))
    back = unpack_array(pack_array(view), ENOUGH)
    assert back.shape == view.shape and back.tobytes() == view.astype(view.dtype.newbyteorder("<")).tobytes()
    assert content_address(view) == content_address(back) == content_address(np.array(back, order="F"))


def test_the_content_address_tells_apart_type_shape_and_values() -> None:
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    others = [array.astype(np.uint16), array.reshape(4, 3), array.ravel(), array + np.int16(1), array.astype(np.int32)]
    assert len({content_address(other) for other in (array, *others)}) == 6
    assert content_address(array.astype(">i2")) == content_address(array)
    by_hand = hashlib.sha256(b"<i2 (3, 4)" + struct.pack("<12h", *range(12)))  # as another program computes it
    assert content_address(array) == by_hand.hexdigest()


def test_floats_of_more_than_64_bits_are_sent_as_64_bits() -> None:
    array = np.linspace(0, 1, 7, dtype=np.longdouble)
    assert np.array_equal(unpack_array(pack_array(array), ENOUGH), array.astype(np.float64))
    assert content_address(array) == content_address(array.astype(np.float64))


@pytest.mark.parametrize("array", [np.zeros(3, complex), np.array(["text"]), np.array([None])])
def test_what_is_no_number_cannot_be_packed(array: np.ndarray) -> None:
    with pytest.raises(WireError, match="can be sent"):
        pack_array(array)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("array", some_arrays, ids=lambda array: f"{array.dtype}{array.shape}")
def test_an_array_cut_at_any_byte_or_followed_by_one_is_refused(array: np.ndarray, compress: bool) -> None:
    data = pack_array(array, compress)
    for length in range(len(data)):
        with pytest.raises(WireError):
            unpack_array(data[:length], ENOUGH)
    with pytest.raises(WireError):
        unpack_array(data + b"\0", ENOUGH)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("array", some_arrays, ids=lambda array: f"{array.dtype}{array.shape}")
def test_an_array_with_any_bit_flipped_is_refused(array: np.ndarray, compress: bool) -> None:
    data = pack_array(array, compress)
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(WireError):
            unpack_array(bytes(damaged), ENOUGH)


@quick
@given(st.binary(max_size=200))
def test_any_bytes_are_an_array_or_refused(data: bytes) -> None:
    for start in (b"", b"SDFA\1", b"SDFA\1\1\3\2"):
        with pytest.raises(WireError):
            unpack_array(start + data, ENOUGH)


def forged(shape: tuple[int, ...], payload: bytes, codec: int = protocol.PACKED, code: int = 2) -> bytes:
    """A packed array with a right checksum and whatever else; by default of uint8."""
    head = struct.pack(f"<4sBBBB{len(shape)}I", b"SDFA", 1, codec, code, len(shape), *shape)
    return head + struct.pack("<I", zlib.crc32(head + payload)) + payload


@pytest.mark.parametrize("shape", [(1 << 31,), (65535, 65535), (0, 1 << 31), (1 << 31,) * 4])
@pytest.mark.parametrize("codec", [protocol.RAW, protocol.PACKED])
def test_an_array_above_the_bound_is_refused_before_memory_is_taken(shape: tuple[int, ...], codec: int) -> None:
    data = forged(shape, zlib.compress(b"\0" * 100), codec)
    tracemalloc.start()
    with pytest.raises(WireError, match="are accepted"):
        unpack_array(data, ENOUGH)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_more_than_is_declared_is_never_unpacked() -> None:
    bomb = zlib.compress(b"\0" * 50_000_000, 9)
    tracemalloc.start()
    with pytest.raises(WireError, match="does not unpack to the 16 bytes"):
        unpack_array(forged((4, 4), bomb), ENOUGH)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        forged((4, 4), zlib.compress(b"\0" * 15)),
        forged((4, 4), zlib.compress(b"\0" * 16) + b"more"),
        forged((4, 4), zlib.compress(b"\0" * 16)[:-1]),
        forged((4, 4), b"this is not compressed"),
        forged((4, 4), b"\0" * 17, protocol.RAW),
        forged((1,) * 33, b"\0", protocol.RAW),
        forged((1,) * 255, b"\0", protocol.RAW),
        forged((4, 4), b"\0" * 16, codec=2),
        forged((4, 4), b"\0" * 16, protocol.RAW, code=12),
    ],
)
def test_a_right_checksum_does_not_make_an_array_right(data: bytes) -> None:
    with pytest.raises(WireError):
        unpack_array(data, ENOUGH)


def test_a_smooth_slice_becomes_smaller_and_noise_does_not_become_larger() -> None:
    rows, columns = np.mgrid[:200, :200]
    smooth = (1000 * np.sin(rows / 30) * np.cos(columns / 20)).astype(np.int16)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    assert len(pack_array(smooth)) < smooth.nbytes / 4
    assert len(pack_array(noise)) == len(pack_array(noise, compress=False)) < noise.nbytes + 30
    assert len(pack_array(noise > 128, compress=False)) < noise.size / 8 + 30


@pytest.mark.parametrize("text", ["?", "AAA", "AAAA\n", "ä", 3, None, [], base64.b64encode(b"other").decode()])
def test_text_that_holds_no_array_is_refused(text: object) -> None:
    with pytest.raises(WireError):
        decode_array(text, ENOUGH)  # type: ignore[arg-type]


def test_text_holds_an_array_and_nothing_above_the_bound() -> None:
    array = np.arange(6, dtype=np.int16)
    assert np.array_equal(decode_array(encode_array(array), 12), array)
    with pytest.raises(WireError, match="takes 12 bytes; 11 are accepted"):
        decode_array(encode_array(array), 11)


# -- probabilities -----------------------------------------------------------------------------------------------------


@quick
@given(
    numpy_strategies.arrays(
        np.uint8, numpy_strategies.array_shapes(min_dims=2, max_dims=2, max_side=12), fill=st.just(0)
    )
)
def test_a_probability_comes_back_and_only_its_box_is_sent(probability: np.ndarray) -> None:
    fields = through_json(pack_probability(probability))
    assert np.array_equal(unpack_probability(fields, probability.shape), probability)
    if probability.any():
        _, _, height, width = fields["box"]
        assert decode_array(fields["data"], ENOUGH).shape == (height, width)
    else:
        assert fields == {"box": [0, 0, 0, 0], "data": ""}


def test_a_view_of_a_probability_can_be_sent() -> None:
    probability = np.zeros((9, 6), np.uint8)
    probability[2:5, 1:3] = 200
    view = probability.T[::-1, ::-1]
    assert np.array_equal(unpack_probability(pack_probability(view), (6, 9)), view)


@pytest.mark.parametrize(
    "box", [[0, 0, 3], [0, 0, 3, 3, 3], [-1, 0, 3, 3], [4, 0, 3, 3], [0, 5, 3, 3], [0, 0, 0, 3], [0, 0, 9, 9], "", None]
)
def test_a_probability_outside_its_slice_is_refused(box: object) -> None:
    data = encode_array(np.ones((3, 3), np.uint8))
    with pytest.raises(WireError):
        unpack_probability({"box": box, "data": data}, (6, 7))


@pytest.mark.parametrize("part", [np.ones((3, 3), np.int16), np.ones((9, 1), np.uint8), np.ones((3, 4), np.uint8)])
def test_a_probability_of_another_type_or_size_is_refused(part: np.ndarray) -> None:
    with pytest.raises(WireError):
        unpack_probability({"box": [0, 0, 3, 3], "data": encode_array(part)}, (6, 7))


# -- the parts of a request --------------------------------------------------------------------------------------------


@quick
@given(volumes(), st.integers(0, 2), seeds)
def test_a_painted_slice_comes_back_as_it_was(volume: Volume, axis: int, seed: int) -> None:
    piece = painted(volume, axis, seed)
    for own in (None, volume.slice(axis, 0)):
        image = support_image_for_wire(piece, own)
        sent = unpack_array(pack_array(image), ENOUGH)
        fields = through_json(support_fields(piece, [1, 300], content_address(image)))
        assert fields["slice"] == content_address(sent)
        back = PaintedSlice.model_validate(fields).support_slice(sent)
        assert back.digest() == piece.digest()  # every field, and both arrays
        assert back.image.dtype == np.float32 and back.labels.dtype == np.uint16
        assert np.array_equal(back.canonical_image(), piece.canonical_image())


def test_only_the_masks_of_the_labels_asked_for_are_sent() -> None:
    piece = a_piece()
    fields = support_fields(piece, [300, 7], ADDRESS)
    assert [entry["label"] for entry in fields["masks"]] == [300]
    back = PaintedSlice.model_validate(fields).support_slice(piece.image)
    assert np.array_equal(back.labels, np.where(piece.labels == 300, 300, 0))


@quick
@given(volumes(), st.permutations(range(3)), st.integers(1, 3), st.sampled_from([1, 20, 1 << 20]))
def test_slices_along_all_axes_come_back_as_they_were(
    volume: Volume, order: list[int], count: int, cut_pixels: int
) -> None:
    """Those of the first are sent, those of the others are cut from them."""
    try:
        stacks = SliceStack.along(volume, order[:count])
    except InputError:  # pixels that no scan has
        return
    main = stacks[order[0]]
    addresses = {index: content_address(main.read(index)) for index in range(main.count)}
    fields = through_json(query_fields(stacks, addresses))
    assert {index: address for index, address in fields["slices"]} == addresses
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "CUT_PIXELS", cut_pixels)
        back = Query.model_validate(fields).slice_stacks(main.read, lambda axis, index: f"{axis} {index}")
    assert list(back) == list(stacks)
    for axis, stack in stacks.items():
        assert (back[axis].plane, back[axis].count, back[axis].native_shape) == (
            stack.plane,
            stack.count,
            stack.native_shape,
        )
        assert back[axis].identity is not None and back[axis].identity(1) == f"{axis} 1"
        for index in {0, stack.count - 1}:
            assert back[axis].image(index).tobytes() == stack.image(index).tobytes()


def test_what_is_known_of_a_painted_slice_comes_back() -> None:
    piece = replace(a_piece(), known=np.arange(30).reshape(5, 6) % 4 == 0)
    fields = through_json(support_fields(piece, [1, 300], ADDRESS))
    assert PaintedSlice.model_validate(fields).support_slice(piece.image).digest() == piece.digest()
    for known in ("?", encode_array(np.ones((6, 5), bool)), encode_array(np.ones((5, 6), np.uint8))):
        with pytest.raises(WireError):
            PaintedSlice.model_validate(fields | {"known": known}).support_slice(piece.image)


def test_an_upload_of_several_slices_cut_anywhere_is_refused() -> None:
    packed = [(content_address(array), pack_array(array)) for array in (*some_arrays[:2], np.zeros((3, 3), np.uint8))]
    body = join_slices(packed)
    assert [(address, bytes(data)) for address, data in split_slices(body)] == packed
    whole = np.cumsum([0, *(len(join_slices([one])) for one in packed)])
    for length in range(len(body)):
        if length not in whole:
            with pytest.raises(WireError):
                list(split_slices(body[:length]))


@pytest.mark.parametrize("dtype", ["int16", "uint8", "uint16", "float32"])
def test_a_painted_slice_of_the_query_has_the_address_of_the_query_s_own(dtype: str) -> None:
    piece, volume = a_piece(dtype), a_volume(dtype)
    own = content_address(volume.slice(0, 0))
    assert content_address(support_image_for_wire(piece, volume.slice(0, 0))) == own
    if dtype == "int16":
        assert content_address(support_image_for_wire(piece)) == own


@pytest.mark.parametrize("value", [0.5, -0.0, 40000, -40000, np.nan, np.inf])
def test_values_that_int16_does_not_hold_are_sent_as_float32(value: float) -> None:
    piece = a_piece()
    image = piece.image.copy()
    image[1, 1] = value
    sent = support_image_for_wire(replace(piece, image=image))
    assert sent.dtype == np.float32 and sent.tobytes() == image.tobytes()


def test_a_slice_whose_type_is_normalised_otherwise_is_not_sent_for_a_painted_one() -> None:
    """Integers of 32 bits are normalised in 64 bits, float32 in 32."""
    piece, volume = a_piece("int32"), a_volume("int32")
    assert support_image_for_wire(piece, volume.slice(0, 0)).dtype == np.int16
    other = volume.slice(0, 0) + np.int32(1)
    assert np.array_equal(support_image_for_wire(piece, other), piece.image)


def a_volume(dtype: str = "int16") -> Volume:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(3, 5, 6)) if dtype == "float32" else rng.integers(0, 200, (3, 5, 6))
    directions = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
    return Volume(values.astype(dtype), Geometry((3, 5, 6), (0.7, 0.8, 3.0), (1.0, 2.0, 3.0), directions))


def a_piece(dtype: str = "int16") -> SupportSlice:
    return painted(a_volume(dtype), 0, 5)


ADDRESS = 64 * "0"
IMPOSSIBLE = {
    "axis": [3, -1, "first", None, 1.5],
    "spacing": [[1, 0], [1], [1, 2, 3], [1, float("nan")], [1, float("inf")], [1, "wide"], 5],
    "thickness": [0, -1, "thick", None, float("inf")],
    "orientation": [{}, None, {"transpose": 2, "flip_rows": True, "flip_columns": True}],
    "plane": ["oblique", None, 3],
    "window": [{"low": 0}, {"low": "dark", "high": 1}, {"low": 2, "high": 1}, {"low": 0, "high": float("inf")}, 7],
    "scan": [3, None],
    "shape": [[5], [5, 0], [5, -6], [5.5, 6], "56", None],
}
EVERYWHERE = encode_array(np.ones((5, 6), bool))
OTHER = {"axis": 2, "orientation": {"transpose": False, "flip_rows": True, "flip_columns": True}, "plane": "sagittal"}
STACK_ONLY = {
    "count": [0, -1, 2.5, None],
    "other_axes": [
        None,
        [3],
        [{}],
        [OTHER, OTHER],
        [OTHER | {"axis": 0}],
        [OTHER | {"axis": 3}],
        [OTHER | {"scan": "x"}],
    ],
}
PIECE_ONLY = {
    "index": [-1, 1.5, None],
    "complete": [2, "perhaps", None],
    "masks": [None, [3], [{}], [{"label": 1, "data": "?"}], [{"label": 0, "data": EVERYWHERE}]],
}


def test_a_stack_with_an_impossible_or_missing_field_is_refused() -> None:
    stack = SliceStack.of(a_volume(), 0)
    fields = query_fields(SliceStack.along(a_volume(), [0, 2]), {})
    for name, values in (IMPOSSIBLE | STACK_ONLY).items():
        for value in values:
            with pytest.raises((InputError, ValidationError)):
                Query.model_validate(fields | {name: value}).slice_stacks(stack.read)
        if name == "other_axes":
            continue  # there need not be any
        with pytest.raises(ValidationError, match="Field required"):
            Query.model_validate({key: value for key, value in fields.items() if key != name})


def test_a_painted_slice_with_an_impossible_or_missing_field_is_refused() -> None:
    piece = a_piece()
    fields = support_fields(piece, [1, 300], ADDRESS)
    for name, values in (IMPOSSIBLE | PIECE_ONLY).items():
        for value in values:
            with pytest.raises((InputError, ValidationError)):
                PaintedSlice.model_validate(fields | {name: value}).support_slice(piece.image)
        with pytest.raises(ValidationError, match="Field required"):
            PaintedSlice.model_validate({key: value for key, value in fields.items() if key != name})


def test_masks_that_do_not_fit_are_refused() -> None:
    piece = a_piece()
    fields = support_fields(piece, [1, 300], ADDRESS)
    twice = [*fields["masks"], {"label": 4, "data": fields["masks"][0]["data"]}]
    for masks, words in (
        (twice, "overlaps"),
        ([{"label": 1, "data": encode_array(np.ones((6, 5), bool))}], "came for a slice of shape"),
        ([{"label": 1, "data": encode_array(np.ones((5, 6), np.uint8))}], "bool is needed"),
        ([{"label": 1, "data": encode_array(np.ones((50, 6), bool))}], "are accepted"),
    ):
        with pytest.raises(WireError, match=words):
            PaintedSlice.model_validate(fields | {"masks": masks}).support_slice(piece.image)
    with pytest.raises(WireError, match="the image sent for it"):
        PaintedSlice.model_validate(fields).support_slice(piece.image.T)


# -- records -----------------------------------------------------------------------------------------------------------

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(st.text().filter(lambda name: name != "type"), json_values, max_size=4).map(
    lambda fields: {"type": "start", **fields}
)
RECORD = {"type": "slice", "label": 3, "index": 7, "box": [1, 2, 3, 4], "data": "U0RGQQ==", "certainty": 0.75}


@quick
@given(records)
def test_a_record_comes_back_as_it_was(record: dict) -> None:
    line = write_record(record)
    assert read_record(line) == record and line.count(b"\n") == 1
    whole = json.loads(line)
    assert list(whole)[-1] == "crc32"  # any reader of JSON lines can read it


def test_a_record_cut_at_any_byte_or_followed_by_one_is_refused() -> None:
    line = write_record(RECORD)
    for length in range(len(line)):
        with pytest.raises(WireError):
            read_record(line[:length])
    with pytest.raises(WireError):
        read_record(line + b" ")


def test_a_record_with_any_bit_flipped_is_refused() -> None:
    line = write_record(RECORD)
    for position in range(8 * len(line)):
        damaged = bytearray(line)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(WireError):
            read_record(bytes(damaged))


@quick
@given(st.binary(max_size=60))
def test_any_line_with_a_right_checksum_is_a_record_or_refused(body: bytes) -> None:
    line = body + b',"crc32":"%08x"}\n' % zlib.crc32(body)
    try:
        assert isinstance(read_record(line), dict)
    except WireError:
        pass


def test_a_record_nested_without_end_is_refused() -> None:
    body = b'{"type":' + b"[" * 200_000
    with pytest.raises(WireError, match="no JSON"):
        read_record(body + b',"crc32":"%08x"}\n' % zlib.crc32(body))


def test_a_window_is_sent_as_the_two_numbers_that_it_is() -> None:
    stack = SliceStack.of(a_volume(), 0, window=IntensityWindow(-160.25, 1e-300))
    assert Query.model_validate(through_json(query_fields({0: stack}, {}))).slice_plane().window == stack.plane.window
