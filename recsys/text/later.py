"""An encoder that is loaded when it is needed first, so that nobody who can do without it has to wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from recsys.events import Float32
from recsys.text.runtime import Encoder


class LaterEncoder:
    """Stands for an encoder; safe to call from several threads, of which the first one loads it."""

    def __init__(self, load: Callable[[], Encoder]) -> None:
        """Take what loads it, which is called again where it failed, and let go once it did not."""
        self._load = load
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether the next call has nothing to load."""
        return self._encoder is not None

    def get_ready(self) -> Encoder:
        """The encoder itself; raises whatever loading it raises."""
        with self._lock:
            if self._encoder is None:
                encoder = self._load()
                self._encoder, self._load = encoder, lambda: encoder
            return self._encoder

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.get_ready().dim

    @property
    def encoder_id(self) -> str:
        """Digest of everything that decides the embeddings."""
        return self.get_ready().encoder_id

    def encode(self, texts: Sequence[str]) -> Float32:
        """(len(texts), dim) rows of length 1 in input order; zeros for a text without a word."""
        return self.get_ready().encode(texts)
