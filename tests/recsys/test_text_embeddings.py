"""Item texts and the table of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Catalogue
from recsys.errors import RecsysError
from recsys.events import Float32
from recsys.text.embeddings import ItemEmbeddings, text_digests
from recsys.text.item_text import catalogue_texts, item_text


class LetterEncoder:
    """Counts letters; remembers what it was asked."""

    dim = 26

    def __init__(self, encoder_id: str = "letters") -> None:
        self.encoder_id = encoder_id
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> Float32:
        self.asked.extend(texts)
        counts = np.array([[text.count(letter) for letter in map(chr, range(97, 123))] for text in texts])
        counts = counts.reshape(len(texts), self.dim)
        return (counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1)).astype(np.float32)


def test_only_new_texts_are_encoded():
    encoder = LetterEncoder()
    first = ItemEmbeddings.empty().update(["abc", "xyz", "abc"], encoder)
    second = first.update(["xyz", "new", "abc"], encoder)
    assert encoder.asked == ["abc", "xyz", "new"]
    assert (first.encoded, second.encoded) == (2, 1)
    np.testing.assert_array_equal(second.matrix, LetterEncoder().encode(["xyz", "new", "abc"]))


def test_nothing_new_encodes_nothing_and_changes_nothing():
    encoder = LetterEncoder()
    table = ItemEmbeddings.empty().update(["abc", ""], encoder)
    again = table.update(["abc", ""], encoder)
    assert again.encoded == 0
    np.testing.assert_array_equal(again.matrix, table.matrix)
    assert not again.matrix[1].any()


def test_another_encoder_encodes_everything_anew():
    table = ItemEmbeddings.empty().update(["abc", "xyz"], LetterEncoder())
    assert table.update(["abc", "xyz"], LetterEncoder("other")).encoded == 2


def test_empty_catalogue_has_an_empty_table():
    table = ItemEmbeddings.empty().update([], LetterEncoder())
    assert table.matrix.shape == (0, 26)
    assert ItemEmbeddings.from_files(table.to_files()).update(["a"], LetterEncoder()).encoded == 1


def test_table_survives_its_files_and_still_knows_its_texts():
    encoder = LetterEncoder()
    table = ItemEmbeddings.empty().update(["abc", "\ud800 lone"], encoder)
    again = ItemEmbeddings.from_files(table.to_files())
    np.testing.assert_array_equal(again.matrix, table.matrix)
    assert again.update(["\ud800 lone", "abc"], encoder).encoded == 0
    np.testing.assert_array_equal(again.pairs.factors, table.matrix)


@pytest.mark.parametrize("files", [{}, {"item_embeddings.safetensors": b"damaged"}])
def test_damaged_table_is_refused(files):
    with pytest.raises(RecsysError, match="embeddings_invalid"):
        ItemEmbeddings.from_files(files)


def test_digests_are_the_same_on_every_machine():
    assert text_digests(["lamp"], "e")[0].tobytes().hex() == "6fe5359037d20b70b7484c08d7e3b30c"


def test_tiny_encoder_fills_the_table(tiny_encoder, made_up_texts):
    table = ItemEmbeddings.empty().update(made_up_texts[:50], tiny_encoder)
    table = table.update(made_up_texts[:60], tiny_encoder)
    np.testing.assert_allclose(table.matrix, tiny_encoder.encode(made_up_texts[:60]), atol=1e-6)


@pytest.mark.parametrize(
    ("title", "description", "text"),
    [
        ("Red lamp", "It shines.", "Red lamp\nIt shines."),
        (" Red \n lamp ", "", "Red lamp"),
        ("", "It shines.", "It shines."),
        ("Red lamp", "Red  lamp", "Red lamp"),
        ("", " \t", ""),
        ("bad \ud800", "", "bad ?"),
    ],
)
def test_item_text_is_title_then_description(title, description, text):
    assert item_text(title, description) == text


def test_item_text_is_capped():
    assert item_text("ab " * 10_000, "cd", max_chars=7) == "ab ab a"
    assert item_text("ab", "cd ef gh", max_chars=6) == "ab\ncd"


def test_catalogue_texts_follow_its_rows():
    frame = pl.DataFrame({"item_id": [7, 3], "title": ["Lamp", None], "description": [None, "A chair"]})
    assert catalogue_texts(Catalogue.from_frame(frame)) == ["Lamp", "A chair"]
