"""Tensor files: what the safetensors library reads and writes, and nothing that is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load, save

from SDFSMISLib.support import DTYPES, TensorFileError, read_tensors, write_tensors

any_array = st.sampled_from(sorted(DTYPES.values())).flatmap(
    lambda code: arrays.arrays(np.dtype(code), arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
any_arrays = st.dictionaries(st.text("abc.0", min_size=1, max_size=4), any_array, max_size=3)
texts = st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=2)
few = settings(max_examples=60, deadline=None)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


@few
@given(any_arrays, texts)
def test_the_library_reads_what_is_written(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    assert same(load(write_tensors(tensors, metadata)), tensors)


@few
@given(tensors=any_arrays, metadata=texts)
def test_what_the_library_writes_is_read(
    tensors: dict[str, np.ndarray], metadata: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "t.safetensors"
    path.write_bytes(save(tensors, metadata or None))
    found, texts_found = read_tensors(path)
    assert same(found, tensors) and texts_found == metadata
    assert all(array.flags.writeable for array in found.values())


@few
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_never_worse(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(write_tensors({"a": np.arange(6, dtype=np.int16), "b": np.ones((2, 2), np.float32)}, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.mktemp("damaged") / "t.safetensors"
    path.write_bytes(bytes(whole[:cut]))
    try:
        read_tensors(path)
    except TensorFileError:
        pass


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(write_tensors({"a": np.arange(6)}, {})[:-1])
    with pytest.raises(TensorFileError, match="cut off"):
        read_tensors(path)
