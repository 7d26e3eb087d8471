"""Pairs and models whose numbers are rounded: what their files hold, old ones too, and which are refused."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load, save
from scipy import sparse

from recsys.collaborative import Collaborative
from recsys.errors import RecsysError
from recsys.numeric_storage import rounded
from recsys.pairs import SparsePairs
from recsys.sequence import SequenceConfig, SequenceModel
from recsys.text.embeddings import ItemEmbeddings
from recsys.transitions import Covisitation, transitions_from_files, transitions_to_files


def table(dim: int) -> np.ndarray:
    """(30, dim), one row of zeros."""
    matrix = np.random.default_rng(dim).normal(size=(30, dim)).astype(np.float32)
    matrix[4] = 0.0
    return matrix


def bits_of(matrix: np.ndarray) -> bytes:
    assert matrix.dtype == np.float32
    return matrix.tobytes()


def pairs_of(size: int = 30, count: int = 300) -> SparsePairs:
    """Pairs at random places; the first item and the last are one."""
    rng = np.random.default_rng(0)
    rows, columns = np.append(rng.integers(0, size, (2, count)), [[0], [size - 1]], axis=1)
    values = rng.random(count + 1).astype(np.float32)
    return SparsePairs.from_csr(sparse.csr_matrix((values, (rows, columns)), shape=(size, size)))


def same(found: SparsePairs, expected: SparsePairs) -> None:
    for part in ("offsets", "columns", "values"):
        array = getattr(found, part)
        assert array.dtype == getattr(expected, part).dtype
        np.testing.assert_array_equal(array, getattr(expected, part))


@pytest.mark.parametrize(("size", "width"), [(200, 1), (300, 2), (70_000, 4)])
def test_columns_take_few_bytes_and_come_back(size, width):
    pairs = pairs_of(size)
    arrays = load(save(pairs.to_arrays("p")))
    assert arrays["p_columns"].itemsize == width
    same(SparsePairs.from_arrays(arrays, "p"), pairs)


def test_no_pairs_come_back_as_none():
    for pairs in (SparsePairs.empty(5), SparsePairs.empty(0)):
        same(SparsePairs.from_arrays(load(save(pairs.to_arrays("p"))), "p"), pairs)


def test_rounded_pairs_halve_their_values_and_lose_those_that_become_zero():
    pairs = SparsePairs.from_csr(sparse.csr_matrix(np.array([[0.1, 1e-9], [-0.7, 1e-6]], np.float32)))
    found = pairs.rounded("float16")
    assert (
        found.csr.toarray().tolist()
        == np.float32([[np.float16(0.1), 0], [np.float16(-0.7), np.float16(1e-6)]]).tolist()
    )
    assert len(found.values) == 3
    arrays = load(save(found.to_arrays("p")))
    assert arrays["p_values"].dtype == np.float16
    same(SparsePairs.from_arrays(arrays, "p"), found)
    same(found.rounded("float16"), found)
    assert pairs.rounded("float32") is pairs


def damaged_pairs(**parts: np.ndarray) -> dict[str, np.ndarray]:
    whole = {
        "offsets": np.array([0, 1, 3, 3]),
        "columns": np.array([2, 0, 1], np.int32),
        "values": np.ones(3, np.float32),
    }
    return {f"p_{name}": array for name, array in {**whole, **parts}.items() if array is not None}


@pytest.mark.parametrize(
    "parts",
    [
        {"offsets": None},
        {"columns": None},
        {"values": None},
        {"offsets": np.zeros(0, np.int64)},
        {"offsets": np.array([0, 3, 1, 3])},
        {"offsets": np.array([0, 1, 2, 2])},
        {"offsets": np.array([1, 1, 3, 3])},
        {"offsets": np.array([0.0, 1.0, 3.0, 3.0])},
        {"columns": np.array([2, 0, 3], np.int32)},
        {"columns": np.array([2, 0, -1], np.int32)},
        {"columns": np.array([[2, 0, 1]], np.int32)},
        {"values": np.ones(2, np.float32)},
        {"values": np.ones(3, np.float64)},
    ],
)
def test_damaged_pairs_are_refused(parts):
    assert SparsePairs.from_arrays(damaged_pairs(), "p").csr.toarray().sum() == 3
    with pytest.raises(RecsysError, match=r"(pairs|table)_invalid: .* p"):
        SparsePairs.from_arrays(damaged_pairs(**parts), "p")


def collaborative() -> Collaborative:
    return Collaborative(table(4), pairs_of(), pairs_of(count=90), 0.02, 8.0)


def embeddings() -> ItemEmbeddings:
    digests = np.random.default_rng(1).integers(0, 256, (30, 16)).astype(np.uint8)
    return ItemEmbeddings(table(6), digests)


def sequence() -> SequenceModel:
    empty = SequenceModel.empty(embeddings().matrix, SequenceConfig(embedding_dim=4))
    return SequenceModel(table(4), empty.bias + 0.3, empty.weights, empty.embeddings, empty.config)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_rounded_models_come_back_to_the_bit(kind):
    found = collaborative().rounded(factors=kind, pairs="float16")
    again = Collaborative.from_files(found.to_files())
    assert bits_of(again.factors) == bits_of(found.factors) == bits_of(rounded(collaborative().factors, kind))
    same(again.ease, collaborative().ease.rounded("float16"))
    same(again.item_item, found.item_item)
    assert (again.regularization, again.confidence) == (0.02, 8.0)
    vectors = embeddings().rounded(kind)
    read = ItemEmbeddings.from_files(vectors.to_files())
    assert bits_of(read.matrix) == bits_of(vectors.matrix) == bits_of(rounded(embeddings().matrix, kind))
    np.testing.assert_array_equal(read.digests, embeddings().digests)
    network = sequence().rounded(kind)
    loaded = SequenceModel.from_files(network.to_files(), network.embeddings)
    assert bits_of(loaded.learned) == bits_of(network.learned) == bits_of(rounded(sequence().learned, kind))
    assert bits_of(loaded.items) == bits_of(network.items)
    assert loaded.config == network.config


def test_files_of_earlier_bundles_are_read():
    model, pairs = collaborative(), pairs_of()

    def plain(name: str, pairs: SparsePairs) -> dict[str, np.ndarray]:
        parts = ("offsets", "columns", "values")
        return {f"{name}_{part}": getattr(pairs, part) for part in parts}

    arrays = {"factors": model.factors, "constants": np.array([0.02, 8.0])}
    arrays |= plain("item_item", model.item_item) | plain("ease", model.ease)
    read = Collaborative.from_files({"collaborative.safetensors": save(arrays)})
    assert bits_of(read.factors) == bits_of(model.factors)
    same(read.item_item, model.item_item)
    same(transitions_from_files({"transitions.safetensors": save(plain("transitions", pairs))}), pairs)
    both = plain("to_outcome", pairs) | plain("between_outcomes", pairs)
    same(Covisitation.from_files({"covisitation.safetensors": save(both)}).between_outcomes, pairs)
    vectors = embeddings()
    old = save({"matrix": vectors.matrix, "digests": vectors.digests})
    assert bits_of(ItemEmbeddings.from_files({"item_embeddings.safetensors": old}).matrix) == bits_of(
        vectors.matrix
    )
    network = sequence()
    files = network.to_files()
    rows = {"learned": network.learned, "bias": network.bias, **vars(network.weights)}
    files["sequence.safetensors"] = save(rows)
    assert bits_of(SequenceModel.from_files(files, vectors.matrix).learned) == bits_of(network.learned)


def changed(files: dict[str, bytes], name: str, **arrays: np.ndarray | None) -> dict[str, bytes]:
    """The files with other arrays in one of them; None takes one out."""
    merged = {**load(files[name]), **arrays}
    return {**files, name: save({key: array for key, array in merged.items() if array is not None})}


def test_models_of_contradicting_arrays_are_refused():
    files = collaborative().rounded(factors="int8").to_files()
    name = "collaborative.safetensors"
    for arrays in (
        {"factors_scale": None},
        {"factors": np.zeros((29, 4), np.float32), "factors_scale": None},
        {"constants": None},
        {"constants": np.zeros(3)},
        {"ease_offsets": np.zeros(5, np.uint8), "ease_columns": np.zeros(0, np.uint8)},
    ):
        with pytest.raises(RecsysError, match="_invalid: "):
            Collaborative.from_files(changed(files, name, **arrays))
    for reader in (Collaborative.from_files, transitions_from_files, Covisitation.from_files):
        with pytest.raises(RecsysError, match=r"(collaborative|transitions)_invalid: the file does not load"):
            reader({})


def test_damaged_embeddings_and_sequence_models_are_refused():
    files = embeddings().rounded("int8").to_files()
    for arrays in ({"digests": None}, {"digests": np.zeros((29, 16), np.uint8)}, {"matrix_scale": None}):
        with pytest.raises(RecsysError, match=r"(embeddings|table)_invalid: "):
            ItemEmbeddings.from_files(changed(files, "item_embeddings.safetensors", **arrays))
    network, vectors = sequence(), embeddings().matrix
    whole = network.rounded("float16").to_files()
    for arrays in ({"learned": None}, {"bias": None}, {"text": None}, {"bias": np.zeros(29, np.float32)}):
        with pytest.raises(RecsysError, match=r"(sequence|table)_invalid: "):
            SequenceModel.from_files(changed(whole, "sequence.safetensors", **arrays), vectors)
    for files in (
        {},
        {"sequence.safetensors": whole["sequence.safetensors"]},
        {**whole, "sequence.json": b'{"width": 3}'},
        {**whole, "sequence.json": b"no json"},
    ):
        with pytest.raises(RecsysError, match="sequence_invalid: "):
            SequenceModel.from_files(files, vectors)
    with pytest.raises(RecsysError, match="sequence_invalid: its arrays contradict"):
        SequenceModel.from_files(whole, vectors[:-1])


def test_transitions_and_covisitation_round_alike():
    pairs = pairs_of()
    both = Covisitation(pairs, SparsePairs.empty(30)).rounded("float16")
    same(both.to_outcome, pairs.rounded("float16"))
    again = Covisitation.from_files(both.to_files())
    same(again.to_outcome, both.to_outcome)
    same(again.between_outcomes, both.between_outcomes)
    same(transitions_from_files(transitions_to_files(pairs.rounded("float16"))), pairs.rounded("float16"))
