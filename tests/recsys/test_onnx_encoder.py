"""The ONNX rung on a random model: what it costs, how near it stays, and what its files may be."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from recsys.compression.onnx_int8 import PACKAGES, build_onnx
from recsys.errors import RecsysError
from recsys.text.onnx_runtime import INPUTS, OUTPUT, OnnxEncoder
from recsys.text.quantization import mean_cosine
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import Architecture, LayerShape, TextTransformer

for package in PACKAGES:
    pytest.importorskip(package, reason=f'{package} is not installed: pip install "recsys[compare]"')


@pytest.fixture(scope="module")
def reference(tiny_teacher) -> TorchEncoder:
    """A compressed model that is wide enough for its weights to outweigh the graph."""
    import torch

    shape = Architecture(
        vocabulary=tiny_teacher.tokenizer.vocabulary,
        dim=256,
        head_dim=64,
        positions=32,
        layers=(LayerShape(3, 0), LayerShape(0, 1024)),
        order=(1, 0, 1),
        word_rank=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TorchEncoder(TextTransformer(shape).eval(), tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def int8_encoder(reference) -> OnnxEncoder:
    return build_onnx(reference.transformer, reference.tokenizer)


@pytest.fixture(scope="module")
def fp32_encoder(reference) -> OnnxEncoder:
    return build_onnx(reference.transformer, reference.tokenizer, precision="fp32")


@pytest.fixture
def texts(made_up_texts) -> list[str]:
    """64 texts of many lengths."""
    return [text[: 5 + 2 * row] for row, text in enumerate(made_up_texts[:64])]


def test_fp32_equals_torch(fp32_encoder, reference, texts):
    texts = ["", *texts, "x" * 1_000_000, "e" + "\u0301" * 10_000, "\ud800 lone"]
    np.testing.assert_allclose(fp32_encoder.encode(texts), reference.encode(texts), atol=1e-5)


def test_int8_stays_close_to_torch_and_is_a_quarter_of_the_size(int8_encoder, fp32_encoder, reference, texts):
    assert mean_cosine(int8_encoder, reference, texts) > 0.99
    assert not np.allclose(int8_encoder.encode(texts), reference.encode(texts), atol=1e-4)
    large, small = (len(encoder.to_files()["encoder_onnx.bin"]) for encoder in (fp32_encoder, int8_encoder))
    assert 3.6 < large / small < 4.1


def test_embedding_does_not_depend_on_company_order_or_threads(int8_encoder, texts, rng):
    together = int8_encoder.encode(texts)
    alone = np.concatenate([int8_encoder.encode([text]) for text in texts])
    order = rng.permutation(len(texts))
    other = OnnxEncoder.from_files(int8_encoder.to_files(), threads=3)
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        int8_encoder.encode([texts[row] for row in order]), together[order], rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(other.encode(texts), together, rtol=0, atol=1e-6)


def test_one_run_over_many_texts_would_make_them_depend_on_each_other(int8_encoder, texts):
    """Why texts are run one by one; where this fails, they need not be any more."""
    from recsys.text.runtime import plan_batches

    tokens = int8_encoder._tokenizer.encode(texts)
    alone, (rows, ids, mask) = int8_encoder.encode(texts), plan_batches(tokens)[0]
    (batched,) = int8_encoder._session.run([OUTPUT], dict(zip(INPUTS, (ids, mask), strict=True)))
    assert len(rows) > 8
    assert np.abs(batched - alone[rows]).max() > 1e-4


def test_rows_have_length_one_and_blank_text_is_zero(int8_encoder):
    lengths = np.linalg.norm(int8_encoder.encode(["", " \n\t", "red lamp", "👨‍👩‍👧"]), axis=1)
    np.testing.assert_allclose(lengths, [0, 0, 1, 1], atol=1e-5)
    assert int8_encoder.encode([]).shape == (0, int8_encoder.dim)


def test_encoder_survives_its_files_bit_for_bit(int8_encoder, texts):
    files = int8_encoder.to_files()
    again = OnnxEncoder.from_files(files)
    assert set(files) == {"encoder_onnx.bin", "tokenizer.json", "onnx.json"}
    assert (again.encoder_id, again.dim, again.precision) == (int8_encoder.encoder_id, 256, "int8")
    assert again.to_files() == files
    np.testing.assert_array_equal(again.encode(texts), int8_encoder.encode(texts))


def test_graph_says_nothing_of_the_sources_it_was_made_from(int8_encoder, fp32_encoder):
    for encoder in (int8_encoder, fp32_encoder):
        graph = encoder.to_files()["encoder_onnx.bin"]
        assert not [word for word in (b"stack_trace", b"forward", b"transformer.py") if word in graph]


def set_in_config(**values):
    return lambda files: files.update(
        {"onnx.json": json.dumps(json.loads(files["onnx.json"]) | values).encode()}
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda files: files.pop("encoder_onnx.bin"),
        lambda files: files.pop("tokenizer.json"),
        lambda files: files.update({"encoder_onnx.bin": b""}),
        lambda files: files.update({"encoder_onnx.bin": b"<net"}),
        lambda files: files.update({"encoder_onnx.bin": files["encoder_onnx.bin"][:-100]}),
        lambda files: files.update({"tokenizer.json": b"{}"}),
        lambda files: files.update({"onnx.json": b"[1"}),
        lambda files: files.update({"onnx.json": b'{"dim": 256}'}),
        set_in_config(precision="int4"),
        set_in_config(precision=["int8"]),
        set_in_config(dim=32),
    ],
)
def test_damaged_files_are_refused(int8_encoder, damage):
    files = int8_encoder.to_files()
    damage(files)
    with pytest.raises(RecsysError, match="encoder_invalid"):
        OnnxEncoder.from_files(files)


def looked_up(table, *, inputs=INPUTS, output=OUTPUT) -> bytes:
    """A graph of our shape: each text's first row of a table (rows, dim)."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Gather", ["table", inputs[0]], ["rows"]),
        helper.make_node("ReduceMax", ["rows", "axis"], [output], keepdims=0),
        helper.make_node("Identity", [inputs[-1]], ["rest"]),
    ]
    given = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in inputs]
    found = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["B", 4])]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "graph", given, found, [table, axis])
    return helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]
    ).SerializeToString()


def test_a_graph_of_another_shape_is_refused(reference):
    from onnx import TensorProto, helper

    table = helper.make_tensor("table", TensorProto.FLOAT, [2, 4], range(8))
    assert OnnxEncoder(looked_up(table), reference.tokenizer, "fp32").dim == 4
    for graph in (looked_up(table, inputs=("input_ids",)), looked_up(table, output="embedding")):
        with pytest.raises(RecsysError, match="not that of a text encoder"):
            OnnxEncoder(graph, reference.tokenizer, "fp32")


def test_a_graph_reads_no_file(reference, tmp_path, monkeypatch):
    from onnx import TensorProto

    table = TensorProto(
        name="table", data_type=TensorProto.FLOAT, dims=[64, 4], data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": "secret.bin", "offset": "0", "length": "1024"}.items():
        table.external_data.add(key=key, value=value)
    (tmp_path / "secret.bin").write_bytes(bytes(1024))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecsysError, match="encoder_invalid"):
        OnnxEncoder(looked_up(table), reference.tokenizer, "fp32")


def test_int8_that_loses_the_texts_is_refused(tiny_teacher):
    """One row of the word table a thousand times larger leaves nothing of the others."""
    import torch

    shape = Architecture.uniform(
        tiny_teacher.tokenizer.vocabulary, dim=32, heads=4, feed_forward=64, layers=1, positions=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spoilt = TextTransformer(shape).eval()
    with torch.no_grad():
        spoilt.words.weight[0] *= 1e4
    with pytest.raises(RecsysError, match=r"encoder_invalid: the int8 graph has cosine 0\.[0-8]"):
        build_onnx(spoilt, tiny_teacher.tokenizer)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_extra_is_named_with_the_extra_that_brings_it(reference, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf'missing_extra: module {package} is missing: pip install "recsys\[compare\]"'
    with pytest.raises(RecsysError, match=message) as raised:
        build_onnx(reference.transformer, reference.tokenizer)
    assert raised.value.exit_code == 69


def test_runtime_imports_no_torch_and_waits_with_onnx():
    script = (
        "import sys, recsys.text.onnx_runtime\nassert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
