"""Tokenising, batching and the two runtimes, on the tiny model."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from recsys.errors import RecsysError
from recsys.text.openvino_runtime import OpenVinoEncoder
from recsys.text.quantization import build_encoder, mean_cosine
from recsys.text.runtime import plan_batches
from recsys.text.teacher import Teacher
from recsys.text.tokenization import Tokenizer, TokenLimits, pad_batch
from recsys.text.torch_runtime import TorchEncoder

AWKWARD = [
    "",
    "   \n\t",
    "x" * 1_000_000,
    "e" + "\u0301" * 10_000,
    "\ud800 lone",
    "a\x00b",
    "👨‍👩‍👧 lamp",
    "\ufeffred lamp",
]


@pytest.fixture(scope="module")
def int8_encoder(tiny_teacher: Teacher, made_up_texts: list[str]) -> OpenVinoEncoder:
    return build_encoder(tiny_teacher.transformer, tiny_teacher.tokenizer, made_up_texts, precision="int8")


def test_openvino_equals_torch(tiny_teacher, tiny_encoder, made_up_texts):
    reference = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer)
    texts = [*made_up_texts, *AWKWARD]
    np.testing.assert_allclose(tiny_encoder.encode(texts), reference.encode(texts), atol=1e-5)


def test_int8_stays_close_to_fp32(int8_encoder, tiny_encoder, made_up_texts):
    assert int8_encoder.config.precision == "int8"
    assert mean_cosine(int8_encoder, tiny_encoder, made_up_texts) > 0.99
    assert not np.array_equal(int8_encoder.encode(made_up_texts), tiny_encoder.encode(made_up_texts))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_embedding_does_not_depend_on_batch_mates(precision, tiny_encoder, int8_encoder, made_up_texts, rng):
    encoder = tiny_encoder if precision == "fp32" else int8_encoder
    texts = [text[: 5 + 2 * row] for row, text in enumerate(made_up_texts[:64])]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    order = rng.permutation(len(texts))
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(encoder.encode([texts[row] for row in order]), together[order], atol=1e-6)


def test_padding_has_no_influence_in_torch(tiny_teacher):
    import torch

    tokens = tiny_teacher.tokenizer.encode(["red lamp for the kitchen"])
    short, long = (
        tiny_teacher.transformer(*map(torch.from_numpy, pad_batch(tokens, length))).detach().numpy()
        for length in (len(tokens[0]), 32)
    )
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_rows_have_length_one_and_blank_text_is_zero(tiny_encoder):
    lengths = np.linalg.norm(tiny_encoder.encode(AWKWARD), axis=1)
    np.testing.assert_allclose(lengths[:2], 0)
    np.testing.assert_allclose(lengths[2:], 1, atol=1e-5)
    assert tiny_encoder.encode([]).shape == (0, tiny_encoder.dim)


def test_text_beyond_the_cap_is_not_read(tiny_encoder):
    cap = tiny_encoder.config.max_chars
    text = ("red lamp " * 200)[:cap]
    np.testing.assert_array_equal(*tiny_encoder.encode([text, text + " violin"]))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_encoder_survives_its_files_bit_for_bit(precision, tiny_encoder, int8_encoder, made_up_texts):
    encoder = tiny_encoder if precision == "fp32" else int8_encoder
    files = encoder.to_files()
    again = OpenVinoEncoder.from_files(files, threads=1)
    assert set(files) == {"encoder.xml", "encoder.bin", "tokenizer.json", "encoder.json"}
    assert again.encoder_id == encoder.encoder_id
    np.testing.assert_array_equal(again.encode(made_up_texts), encoder.encode(made_up_texts))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_building_twice_gives_the_same_bytes(
    precision, tiny_teacher, tiny_encoder, int8_encoder, made_up_texts
):
    encoder = tiny_encoder if precision == "fp32" else int8_encoder
    again = build_encoder(
        tiny_teacher.transformer, tiny_teacher.tokenizer, made_up_texts, precision=precision
    )
    assert again.to_files() == encoder.to_files()


def test_int8_without_calibration_text_is_fp32(tiny_teacher):
    encoder = build_encoder(tiny_teacher.transformer, tiny_teacher.tokenizer, ["", " "], precision="int8")
    assert encoder.config.precision == "fp32"


@pytest.mark.parametrize(
    "damage",
    [
        lambda files: files.pop("encoder.bin"),
        lambda files: files.update({"encoder.xml": b"<net"}),
        lambda files: files.update({"encoder.bin": files["encoder.bin"][:100]}),
        lambda files: files.update({"tokenizer.json": b"{}"}),
        lambda files: files.update({"encoder.json": b'{"dim": 32}'}),
    ],
)
def test_damaged_files_are_refused(tiny_encoder, damage):
    files = tiny_encoder.to_files()
    damage(files)
    with pytest.raises(RecsysError, match="encoder_invalid"):
        OpenVinoEncoder.from_files(files)


def test_batches_hold_each_text_once_within_the_budget():
    tokens = [[1] * length for length in [3, 0, 9, 8, 17, 3, 300]]
    batches = plan_batches(tokens, token_budget=16)
    assert sorted(np.concatenate([rows for rows, _, _ in batches]).tolist()) == [0, 2, 3, 4, 5, 6]
    assert [ids.shape for _, ids, _ in batches] == [(1, 304), (1, 24), (1, 16), (2, 8), (1, 8)]
    assert all(mask.sum(1).tolist() == [len(tokens[row]) for row in rows] for rows, _, mask in batches)


def test_tokenizer_ignores_the_padding_its_file_asks_for(tiny_teacher):
    short = Tokenizer(tiny_teacher.tokenizer.definition, TokenLimits(max_chars=100, max_tokens=4))
    assert [len(ids) for ids in short.encode(["lamp", "red lamp brush mirror", " "])] == [3, 4, 0]


def test_serving_path_imports_neither_torch_nor_telemetry():
    script = (
        "import sys, recsys.text.openvino_runtime, recsys.text.embeddings, recsys.text.item_text\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'nncf', 'openvino_telemetry.main'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
