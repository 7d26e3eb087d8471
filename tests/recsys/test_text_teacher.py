"""Loading a teacher from a folder, its refusals, and the packaged teacher end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.errors import EXIT_UNAVAILABLE, RecsysError
from recsys.text import teacher as teacher_module
from recsys.text.embeddings import ItemEmbeddings
from recsys.text.openvino_runtime import OpenVinoEncoder
from recsys.text.quantization import build_encoder, mean_cosine
from recsys.text.student import DistillationConfig, distil
from recsys.text.teacher import PACKAGED_TEACHER, load_teacher
from recsys.text.tokenization import TokenLimits, pad_batch
from recsys.text.torch_runtime import TorchEncoder

BEAUTY = Path(__file__).parents[3] / "shared" / "data" / "beauty"


@pytest.fixture
def bert_folder(tiny_teacher_folder: Path, tmp_path: Path) -> Path:
    """A copy of a random BERT's folder, to be damaged."""
    return Path(shutil.copytree(tiny_teacher_folder, tmp_path / "bert"))


def test_folder_gives_the_same_embeddings_as_transformers(bert_folder, made_up_texts):
    import torch
    from transformers import BertModel

    loaded = load_teacher(str(bert_folder), limits=TokenLimits(max_tokens=16))
    bert = BertModel.from_pretrained(bert_folder, add_pooling_layer=False).eval()
    tokens = loaded.tokenizer.encode(made_up_texts[:20])
    input_ids, mask = map(torch.from_numpy, pad_batch(tokens, 16))
    with torch.inference_mode():
        hidden = bert(input_ids, attention_mask=mask).last_hidden_state
        expected = torch.nn.functional.normalize(
            (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        )
        actual = loaded.transformer(input_ids, mask)
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"model_type": "mpnet"}),
        ("config.json", {"intermediate_size": 25}),
        ("config.json", {"num_hidden_layers": 3}),
        ("model.safetensors", "no tensors"),
        ("tokenizer.json", None),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}),
    ],
)
def test_unfit_folder_is_refused(bert_folder, name, content):
    path = bert_folder / name
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        before = json.loads(path.read_text()) if path.exists() else {}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(before | content))
    with pytest.raises(RecsysError, match="teacher_invalid"):
        load_teacher(str(bert_folder))


def test_packaged_teacher_with_another_content_is_refused(bert_folder, monkeypatch):
    monkeypatch.setattr(teacher_module, "PACKAGED_FOLDER", str(bert_folder))
    with pytest.raises(RecsysError, match=r"teacher_changed: .*model\.safetensors"):
        load_teacher(PACKAGED_TEACHER)


def test_unknown_teacher_is_unavailable(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RecsysError, match="teacher_unavailable") as caught:
        load_teacher("nobody/no-such-encoder")
    assert caught.value.exit_code == EXIT_UNAVAILABLE


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not BEAUTY.is_dir(), reason="needs ../shared/data")
def test_packaged_teacher_to_int8_student_to_embeddings():
    texts = pl.read_parquet(BEAUTY / "items.parquet")["title"].fill_null("").to_list()[:3000]
    teacher = load_teacher()
    student, report = distil(teacher, texts, DistillationConfig(max_tokens_seen=150_000))
    assert report.holdout_cosine > 0.88
    encoder = build_encoder(student, teacher.tokenizer, texts, precision="int8")
    assert encoder.config.precision == "int8"
    assert mean_cosine(encoder, TorchEncoder(student, teacher.tokenizer), texts[:300]) > 0.995
    encoder = OpenVinoEncoder.from_files(encoder.to_files())
    items = ItemEmbeddings.empty().update(texts[:200], encoder).update(texts[:300], encoder)
    assert items.encoded <= 100
    np.testing.assert_allclose(items.matrix, encoder.encode(texts[:300]), atol=1e-6)
