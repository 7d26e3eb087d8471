"""Rounded tables: how far numbers move, what stays to the bit, how many bytes it takes, what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from recsys.errors import RecsysError
from recsys.numeric_storage import from_arrays, load_arrays, rounded, storage_of, to_arrays
from recsys.pairs import known_rows

KINDS = ("float32", "float16", "int8")
matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 4), st.integers(0, 5)),
    elements=st.floats(-6e4, 6e4, width=32),
)


def bits(matrix: np.ndarray) -> bytes:
    assert matrix.dtype == np.float32
    return matrix.tobytes()


def table(rows: int = 50, dim: int = 16) -> np.ndarray:
    """Rows of very different sizes, two of them zero."""
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(rows, dim)) * 10.0 ** rng.integers(-4, 4, (rows, 1))
    matrix[[4, 9]] = 0.0
    return matrix.astype(np.float32)


@given(matrices, st.sampled_from(KINDS))
@settings(max_examples=100)
def test_rounding_again_changes_no_bit_and_neither_do_files(matrix, kind):
    once = rounded(matrix, kind)
    assert bits(rounded(once, kind)) == bits(once)
    arrays = load(save(to_arrays(once, "t")))
    assert bits(from_arrays(arrays, "t")) == bits(once)


def test_rows_of_every_magnitude_are_stored_as_they_were_rounded():
    rng = np.random.default_rng(0)
    for exponent in range(-148, 126):
        matrix = (rng.normal(size=(3, 7)) * 2.0**exponent).astype(np.float32)
        once = rounded(matrix, "int8")
        assert bits(rounded(once, "int8")) == bits(once)
        assert storage_of(once) == "int8"
        assert known_rows(once).tolist() == (np.abs(matrix).max(axis=1) >= 2.0**-119).tolist()


def test_an_int8_row_moves_by_half_its_scale_at_most():
    matrix = table()
    largest = np.abs(matrix).max(axis=1)
    moved = np.abs(rounded(matrix, "int8") - matrix).max(axis=1)
    scale = to_arrays(rounded(matrix, "int8"), "t")["t_scale"]
    np.testing.assert_allclose(scale, largest / 127, rtol=2.0**-17)
    assert (moved <= scale * 0.5001).all()
    assert (moved[largest > 0] > scale[largest > 0] * 0.2).all()


def test_a_float16_number_moves_by_half_its_last_bit_at_most():
    matrix = table()
    moved = np.abs(rounded(matrix, "float16") - matrix)
    assert (moved <= np.maximum(np.abs(matrix) * 2.0**-11, 2.0**-25)).all()
    assert moved.max() > 0


def test_the_whole_numbers_are_the_nearest():
    matrix = np.array([[127.0, 1.4, -1.6, -127.0, 0.0], [254.0, 3.1, 0.9, -2.0, -1.1]], np.float32)
    arrays = to_arrays(rounded(matrix, "int8"), "t")
    assert arrays["t"].tolist() == [[127, 1, -2, -127, 0], [127, 2, 0, -1, -1]]
    assert arrays["t_scale"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("kind", KINDS)
def test_zero_rows_stay_unknown_and_others_known(kind):
    matrix = table()
    found = rounded(matrix, kind)
    np.testing.assert_array_equal(known_rows(found), known_rows(matrix))
    assert found.shape == matrix.shape
    again = from_arrays(to_arrays(found, "t"), "t")
    assert not again[[4, 9]].any()


@pytest.mark.parametrize(("kind", "size"), [("float32", 3200), ("float16", 1600), ("int8", 1000)])
def test_a_table_takes_the_bytes_of_its_kind(kind, size):
    arrays = to_arrays(rounded(table(), kind), "t")
    assert sum(array.nbytes for array in arrays.values()) == size
    assert arrays["t"].dtype == np.dtype(kind)
    assert storage_of(rounded(table(), kind)) == kind


def test_other_rows_in_another_order_stay_in_their_kind():
    found = rounded(table(), "int8")
    cut = found[np.random.default_rng(1).permutation(50)[:20]]
    assert storage_of(np.concatenate([cut, np.zeros((3, 16), np.float32)])) == "int8"
    cut[7] += np.float32(1e-3)
    assert storage_of(cut) == "float32"


def test_the_sign_of_zero_is_kept():
    signed = np.array([[127.0, -0.0]], np.float32)
    assert storage_of(signed) == "float16"
    assert bits(from_arrays(to_arrays(signed, "t"), "t")) == bits(signed)


def test_a_single_row_late_in_a_long_table_counts():
    long = np.zeros((70_000, 2), np.float32)
    assert storage_of(long) == "int8"
    long[69_999, 1] = 0.1
    long[69_999, 0] = 0.3
    assert storage_of(long) == "float32"
    assert bits(from_arrays(to_arrays(long, "t"), "t")) == bits(long)


def test_what_is_not_finite_is_kept_whole_and_not_rounded():
    wild = np.array([[np.nan, 1.0], [np.inf, 0.1]], np.float32)
    assert storage_of(wild) == "float32"
    np.testing.assert_array_equal(from_arrays(to_arrays(wild, "t"), "t"), wild)
    for kind in ("float16", "int8"):
        with pytest.raises(ValueError, match="finite"):
            rounded(wild, kind)
    with pytest.raises(ValueError, match="too large for float16"):
        rounded(np.array([[7e4]], np.float32), "float16")
    with pytest.raises(ValueError, match=re.escape("(rows, dim)")):
        rounded(np.ones(3, np.float32), "int8")
    with pytest.raises(ValueError, match="unknown storage int4: one of float32, float16, int8"):
        rounded(table(), "int4")


CODES, SCALE = np.ones((3, 2), np.int8), np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "is missing"),
        ({"t": CODES}, "scale"),
        ({"t": CODES.astype(np.float16), "t_scale": SCALE}, "scale"),
        ({"t": CODES, "t_scale": SCALE[:2]}, "shape"),
        ({"t": CODES, "t_scale": SCALE[:, None]}, "shape"),
        ({"t": CODES[0], "t_scale": SCALE}, "shape"),
        ({"t": CODES, "t_scale": SCALE.astype(np.float64)}, "scale"),
        ({"t": CODES, "t_scale": -SCALE}, "negative or not finite"),
        ({"t": CODES, "t_scale": SCALE * np.nan}, "negative or not finite"),
        ({"t": CODES.astype(np.float64)}, "cannot be of type float64"),
        ({"t": CODES.astype(np.uint8)}, "cannot be of type uint8"),
    ],
)
def test_contradicting_arrays_are_refused(arrays, message):
    with pytest.raises(RecsysError, match=f"table_invalid: the table .*{message}.*t"):
        from_arrays(arrays, "t")


def test_a_damaged_file_is_refused_with_the_code_of_its_reader():
    whole = save({"t": CODES})
    assert load_arrays({"f": whole}, "f", "x_invalid")["t"].tolist() == CODES.tolist()
    for files in ({}, {"f": b""}, {"f": whole[:-1]}, {"f": whole + b"0"}):
        with pytest.raises(RecsysError, match="x_invalid: the file does not load"):
            load_arrays(files, "f", "x_invalid")
