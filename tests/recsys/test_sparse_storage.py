"""The sparse codec: back to the byte, in the bytes that are promised, and damage is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import RecsysError
from recsys.text.sparse_storage import expand, squeeze

HEADER = 13
mostly_zero = st.lists(st.sampled_from([0, 0, 0, 0, 0, 0, 1, 128, 255]), max_size=90).map(bytes)


@given(data=st.one_of(st.binary(max_size=60), mostly_zero), width=st.sampled_from([1, 2, 4]))
@settings(deadline=None)
def test_what_is_squeezed_comes_back_to_the_byte(data, width):
    squeezed = squeeze(data, width)
    assert expand(squeezed) == data
    words = [data[at : at + width] for at in range(0, len(data) // width * width, width)]
    filled = sum(any(word) for word in words)
    assert len(squeezed) == HEADER + -(-len(words) // 8) + filled * width + len(data) % width


def test_a_file_is_header_mask_and_words():
    data = bytes([0, 0, 7, 1, 0, 0, 0, 9, 5])
    expected = (
        b"RSP1" + b"\x02" + (9).to_bytes(8, "little") + bytes([0b01010000]) + bytes([7, 1, 0, 9]) + b"\x05"
    )
    assert squeeze(data, 2) == expected


def test_half_of_float_weights_takes_half_the_bytes_and_the_mask(rng):
    weights = rng.normal(size=64_000).astype(np.float32)
    weights[rng.permutation(len(weights))[:32_000]] = 0.0
    assert len(squeeze(weights.tobytes(), 4)) == 13 + 64_000 // 8 + 32_000 * 4


def test_negative_zero_is_kept():
    data = np.array([-0.0, 0.0, 1.0], np.float32).tobytes()
    assert expand(squeeze(data, 4)) == data


@pytest.mark.parametrize("width", [0, 3, 8, -1])
def test_another_width_is_refused(width):
    with pytest.raises(ValueError, match="width must be one of 1, 2, 4"):
        squeeze(b"1234", width)


@given(data=mostly_zero, width=st.sampled_from([1, 2, 4]), at=st.integers(0, 200))
@settings(deadline=None)
def test_every_truncation_and_addition_is_told(data, width, at):
    squeezed = squeeze(data, width)
    for damaged in (squeezed[: at % len(squeezed)], squeezed + b"\x00"):
        with pytest.raises(RecsysError, match="encoder_invalid"):
            expand(damaged)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0),  # another magic
        (4, 3),  # no such width
        (5, 200),  # a longer length than the mask has bits for
        (12, 255),  # a length of exabytes, which must not be allocated
        (13, 0b11100000),  # one word more than there are
        (13, 0b10000000),  # one less
        (13, 0b00100010),  # as many, but one beyond the length
    ],
)
def test_header_and_mask_that_do_not_fit_are_told(place, value):
    damaged = bytearray(squeeze(bytes([0, 0, 0, 5, 0, 6, 0, 0, 0, 0]), 2))  # five words, two of them filled
    damaged[place] = value
    with pytest.raises(RecsysError, match="encoder_invalid"):
        expand(bytes(damaged))
