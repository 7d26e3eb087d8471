"""Arrays in place: the same as the library's own reader gives, and nothing of a damaged file."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError
from safetensors.numpy import load, save

from recsys.array_files import Handover, read_arrays

NAME = "tables.safetensors"
DTYPES = ("bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8")
arrays = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


def handover(data: bytes) -> Handover:
    return Handover({NAME: np.frombuffer(bytearray(data), np.uint8)})


def described(body: bytes, **entries: Any) -> bytes:
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + body


def entry(begin: int, end: int, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "__metadata__"), arrays, max_size=4))
def test_every_array_is_that_of_the_library(tables):
    data = save(tables, metadata={"any": "thing"})
    for files in ({NAME: data}, handover(data)):
        found = read_arrays(files, NAME)
        assert found.keys() == tables.keys()
        for name, expected in load(data).items():
            assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape)
            assert found[name].tobytes() == expected.tobytes()
            assert found[name].flags.writeable
            assert found[name].flags.aligned
            assert found[name].flags.c_contiguous


def test_a_table_of_a_handover_is_not_copied_and_can_be_had_once():
    data = np.frombuffer(bytearray(save({"one": np.arange(100.0), "two": np.arange(7)})), np.uint8)
    files = Handover({NAME: data, "small.json": np.frombuffer(b"{}", np.uint8)})
    found = read_arrays(files, NAME)
    assert all(np.shares_memory(array, data) for array in found.values())
    assert dict(files) == {"small.json": b"{}"}
    with pytest.raises(KeyError):
        read_arrays(files, NAME)


def test_a_table_of_other_files_is_not_touched():
    data = save({"one": np.arange(4.0)})
    read_arrays({NAME: data}, NAME)["one"][:] = 0.0
    assert load(data)["one"].tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x02\0\0\0\0\0\0\0{",
        described(b"\0" * 4, a=entry(0, 8, [2])),  # longer than the file
        described(b"\0" * 8, a=entry(0, 4, [1])),  # bytes behind the last array
        described(b"\0" * 8, a=entry(4, 8, [1])),  # a gap
        described(b"\0" * 8, a=entry(0, 8, [2]), b=entry(4, 8, [1])),  # over each other
        described(b"\0" * 8, a=entry(0, 8, [1])),  # another size than its shape
        described(b"\0" * 4, a=entry(0, 4, [1], "BF16")),
        described(b"\0" * 4, a=entry(0, 4, [1], ["F32"])),
        described(b"\0" * 4, a=entry(0, 4, [True])),
        described(b"\0" * 4, a=entry(0, 4, [-1, -1])),
        described(b"\0" * 4, a=entry(0, 4, "1")),
        described(b"", a=entry(0, 0, [0, 2**70])),
        described(b"", a={"dtype": "F32"}),
        described(b"", a=[]),
    ],
)
def test_what_is_damaged_is_refused(data):
    for files in ({NAME: data}, handover(data)):
        with pytest.raises(SafetensorError):
            read_arrays(files, NAME)


@given(data=st.data())
def test_a_flipped_bit_ends_in_no_other_error(data):
    raw = bytearray(save({"one": np.arange(4.0), "two": np.arange(3, dtype=np.int8)}))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = read_arrays({NAME: bytes(raw)}, NAME)
    except SafetensorError:
        return
    assert sum(array.nbytes for array in found.values()) == 35


def test_a_missing_file_is_a_missing_key():
    with pytest.raises(KeyError):
        read_arrays({}, NAME)
