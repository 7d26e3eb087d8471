"""Keys to slots: a hash table that must behave like a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from features.keys import NOTHING_YET, UNKNOWN, CompositeKeys, PlainKeys

composite = st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda pair: (pair[0] << 32) | pair[1])


@settings(max_examples=60)
@given(st.lists(st.lists(composite | st.just(UNKNOWN), max_size=40), max_size=6))
def test_composite_keys_behave_like_a_dictionary(batches):
    keys, expected = CompositeKeys(np.zeros(0, np.int64)), {UNKNOWN: UNKNOWN}
    for batch in batches:
        found = keys.find(np.array(batch, np.int64))
        assert found.tolist() == [expected.get(key, NOTHING_YET) for key in batch]
        for key in batch:
            expected.setdefault(key, len(expected) - 1)
        added = keys.find_or_add(np.array(batch, np.int64))
        assert added.tolist() == [expected[key] for key in batch]
    assert keys.keys.tolist() == list(expected)[1:]
    assert keys.size == len(expected) - 1


def test_many_composite_keys_of_one_shape_keep_their_slots():
    users, codes = np.divmod(np.arange(200_000, dtype=np.int64), 20)
    every = (users << 32) | codes
    keys = CompositeKeys(np.zeros(0, np.int64))
    np.testing.assert_array_equal(keys.find_or_add(every), np.arange(len(every)))
    np.testing.assert_array_equal(
        CompositeKeys(keys.keys.copy()).find(every[::-1]), np.arange(len(every))[::-1]
    )


def test_plain_keys_are_their_own_slots():
    keys = PlainKeys(3)
    assert keys.find(np.array([0, 2, 3, -1])).tolist() == [0, 2, NOTHING_YET, UNKNOWN]
    assert keys.find_or_add(np.array([5, -1])).tolist() == [5, UNKNOWN]
    assert keys.size == 6
