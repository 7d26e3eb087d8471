"""One place that loads any encoder: each kind by its files, without torch, and a clear no for none."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import RecsysError
from recsys.text.loading import LOADERS, load_encoder
from recsys.text.openvino_runtime import OpenVinoEncoder
from recsys.text.runtime import SavedEncoder
from recsys.text.static_runtime import StaticEncoder

TEXTS = ["red lamp", "", "a wooden chair for the studio", "violin"]


@pytest.fixture(scope="module")
def static_encoder(tiny_teacher) -> StaticEncoder:
    table = np.random.default_rng(0).normal(size=(tiny_teacher.tokenizer.vocabulary, 8))
    return StaticEncoder.of(table.astype(np.float32), tiny_teacher.tokenizer)


@pytest.fixture(scope="module", params=["openvino", "static", "onnx"])
def encoder(request, tiny_encoder, static_encoder, tiny_teacher) -> SavedEncoder:
    if request.param != "onnx":
        return tiny_encoder if request.param == "openvino" else static_encoder
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        pytest.skip('ONNX Runtime is not installed: pip install "recsys[compare]"')
    from recsys.compression.onnx_int8 import build_onnx
    from recsys.text.transformer import TextTransformer

    return build_onnx(TextTransformer.from_teacher(tiny_teacher.transformer, 1), tiny_teacher.tokenizer)


def test_every_kind_loads_from_its_files_among_those_of_a_bundle(encoder):
    again = load_encoder({"catalogue.parquet": b"", **encoder.to_files(), "manifest.json": b"{}"}, threads=1)
    assert type(again) is type(encoder)
    assert (again.encoder_id, again.dim) == (encoder.encoder_id, encoder.dim)
    assert again.to_files() == encoder.to_files()
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_what_holds_no_encoder_is_refused_by_name(tiny_encoder):
    rest = {name: content for name, content in tiny_encoder.to_files().items() if name not in LOADERS}
    for files in ({}, {"ranker.txt": b"tree"}, rest):
        with pytest.raises(RecsysError, match=r"encoder_invalid: no text encoder.*encoder\.xml"):
            load_encoder(files)


def test_a_kind_that_lacks_a_file_is_refused(tiny_encoder, static_encoder):
    for encoder in (tiny_encoder, static_encoder):
        files = encoder.to_files()
        for name in files.keys() - LOADERS.keys():
            with pytest.raises(RecsysError, match="encoder_invalid"):
                load_encoder({other: content for other, content in files.items() if other != name})


def test_threads_reach_the_runtime(tiny_encoder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        OpenVinoEncoder, "from_files", classmethod(lambda cls, files, *, threads: asked.append(threads))
    )
    load_encoder(tiny_encoder.to_files(), threads=5)
    assert asked == [5]


def test_an_onnx_encoder_without_its_runtime_names_what_to_install(tiny_teacher, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    files = {
        "encoder_onnx.bin": b"",
        "tokenizer.json": tiny_teacher.tokenizer.definition,
        "onnx.json": b'{"dim": 32, "max_chars": 200, "max_tokens": 32, "precision": "int8"}',
    }
    with pytest.raises(RecsysError, match=r'missing_extra: .*pip install "recsys\[compare\]"'):
        load_encoder(files)


def test_loading_and_encoding_import_no_training_library(encoder, tmp_path: Path):
    for name, content in encoder.to_files().items():
        (tmp_path / name).write_bytes(content)
    script = (
        "import sys, pathlib; from recsys.text.loading import load_encoder\n"
        "files = {path.name: path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()}\n"
        "assert load_encoder(files).encode(['red lamp']).any()\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'nncf', 'onnx', 'openvino_telemetry.main'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
