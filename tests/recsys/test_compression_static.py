"""The static table: regression against the dense solution, files, texts without words, company."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import sparse

from recsys.compression.static import frequent_pairs, ridge_towards, static_table, token_embeddings
from recsys.compression.variant import Variant
from recsys.errors import RecsysError
from recsys.text.quantization import mean_cosine
from recsys.text.static_runtime import TABLE_FILE, StaticEncoder, token_matrix
from recsys.text.torch_runtime import TorchEncoder


@pytest.fixture(scope="module")
def variant(tiny_teacher) -> Variant:
    return Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def teacher(variant) -> TorchEncoder:
    return TorchEncoder(variant.transformer, variant.tokenizer)


@pytest.fixture(scope="module")
def encoder(variant, teacher, made_up_texts) -> StaticEncoder:
    train = made_up_texts[::2]
    return static_table(variant, train, teacher.encode(train))


def test_the_ridge_is_the_dense_solution():
    rng = np.random.default_rng(0)
    shares = sparse.random(60, 8, 0.4, "csr", random_state=rng, dtype=np.float32)
    shares = sparse.csr_matrix((shares.data, shares.indices, shares.indptr), (60, 9))  # one never occurs
    start, wanted = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(60, 4)).astype(np.float32)
    dense = shares.toarray().astype(np.float64)
    diagonal = (dense**2).sum(0)
    strength = 0.1 * diagonal[diagonal > 0].mean()
    exact = np.linalg.solve(dense.T @ dense + strength * np.eye(9), dense.T @ wanted + strength * start)
    found = ridge_towards(start, shares, wanted, 0.1)
    np.testing.assert_allclose(found, exact, atol=1e-4)
    np.testing.assert_array_equal(found[8], start[8])


def test_it_comes_closer_to_the_teacher_on_texts_it_has_not_seen(variant, teacher, encoder, made_up_texts):
    unseen = made_up_texts[1::2]
    unfitted = StaticEncoder.of(token_embeddings(variant), variant.tokenizer)
    assert mean_cosine(encoder, teacher, unseen) > mean_cosine(unfitted, teacher, unseen) + 0.05


def test_it_is_small(variant, encoder):
    table = len(encoder.to_files()[TABLE_FILE])
    assert table < variant.transformer.architecture.vocabulary * (encoder.dim + 4) + 500


def test_company_does_not_matter(encoder, made_up_texts):
    together = encoder.encode(made_up_texts[:64])
    alone = np.concatenate([encoder.encode([text]) for text in made_up_texts[:64]])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)


def test_texts_without_words_are_zeros(encoder):
    assert not encoder.encode(["", "  "]).any()
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_files_bring_the_same_encoder_back(encoder, made_up_texts):
    again = StaticEncoder.from_files(encoder.to_files())
    assert again.encoder_id == encoder.encoder_id
    np.testing.assert_array_equal(again.encode(made_up_texts), encoder.encode(made_up_texts))


@pytest.mark.parametrize("name", ["static_table.safetensors", "tokenizer.json", "static.json"])
def test_damaged_files_are_refused(encoder, name):
    files = encoder.to_files()
    with pytest.raises(RecsysError, match=r"static table|not a tokenizer"):
        StaticEncoder.from_files(files | {name: files[name][: len(files[name]) // 2]})
    with pytest.raises(RecsysError, match="static table"):
        StaticEncoder.from_files({key: content for key, content in files.items() if key != name})


def test_every_text_needs_its_embedding(variant, made_up_texts):
    with pytest.raises(ValueError, match="2 embeddings for 3 texts"):
        static_table(variant, made_up_texts[:3], np.zeros((2, 32), np.float32))


def counted_pairs(variant, texts, named):
    """The slow way: every text, every pair of neighbours."""
    rows = np.zeros((len(texts), variant.tokenizer.vocabulary + len(named)))
    place = {tuple(pair): variant.tokenizer.vocabulary + row for row, pair in enumerate(named.tolist())}
    for row, ids in enumerate(variant.tokenizer.encode(texts)):
        for token in ids:
            rows[row, token] += 1 / len(ids)
        for pair in itertools.pairwise(ids):
            if pair in place:
                rows[row, place[pair]] += 1 / len(ids)
    return rows


def test_pairs_are_the_most_frequent_neighbours_and_counted_where_they_occur(variant, made_up_texts):
    texts = ["", *made_up_texts[:40], " ", made_up_texts[0]]
    named = frequent_pairs(variant, texts, 15)
    counts: dict[tuple[int, int], int] = {}
    for ids in variant.tokenizer.encode(texts):
        for pair in itertools.pairwise(ids):
            counts[pair] = counts.get(pair, 0) + 1
    wanted = sorted(counts.values(), reverse=True)[: len(named)]
    assert sorted((counts[tuple(pair)] for pair in named.tolist()), reverse=True) == wanted
    assert min(wanted) >= 3
    found = token_matrix(variant.tokenizer, texts, named).toarray()
    np.testing.assert_allclose(found, counted_pairs(variant, texts, named), atol=1e-6)
    assert len(frequent_pairs(variant, ["", "one"], 15)) == 0


def test_pairs_come_closer_on_the_corpus_and_survive_their_files(variant, teacher, made_up_texts):
    train = made_up_texts[::2]
    plain = static_table(variant, train, teacher.encode(train))
    paired = static_table(variant, train, teacher.encode(train), pairs=200)
    assert mean_cosine(paired, teacher, train) > mean_cosine(plain, teacher, train)
    reloaded = StaticEncoder.from_files(paired.to_files())
    np.testing.assert_array_equal(reloaded.encode(train), paired.encode(train))
    assert reloaded.encoder_id == paired.encoder_id != plain.encoder_id
