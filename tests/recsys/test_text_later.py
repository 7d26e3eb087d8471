"""An encoder that comes later: loaded once, by whoever needs it first, and again where that failed."""

import threading

import numpy as np
import pytest

from recsys.text.later import LaterEncoder


class Encoder:
    dim, encoder_id = 2, "abc"

    def encode(self, texts):
        return np.ones((len(texts), 2), np.float32)


def test_it_is_loaded_once_whoever_asks():
    loads: list[int] = []

    def load() -> Encoder:
        loads.append(1)
        return Encoder()

    encoder = LaterEncoder(load)
    assert (encoder.is_loaded, loads) == (False, [])
    threads = [threading.Thread(target=encoder.encode, args=(["a"],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (encoder.is_loaded, loads) == (True, [1])
    assert (encoder.dim, encoder.encoder_id, encoder.encode(["a", "b"]).shape) == (2, "abc", (2, 2))


def test_what_fails_is_told_and_tried_again():
    failures = [MemoryError(), RuntimeError("damaged")]

    def load() -> Encoder:
        if failures:
            raise failures.pop()
        return Encoder()

    encoder = LaterEncoder(load)
    with pytest.raises(RuntimeError, match="damaged"):
        encoder.encode(["a"])
    with pytest.raises(MemoryError):
        _ = encoder.dim
    assert not encoder.is_loaded
    assert encoder.encode([]).shape == (0, 2)
