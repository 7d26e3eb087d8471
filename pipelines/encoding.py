"""The text step: distil a student once a catalogue, adapt it to behaviour, compile it, embed the items."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.config import Config
from pipelines.fitting import Step, head_examples
from pipelines.home import Home
from pipelines.terminal import plain
from recsys.dataset import Dataset
from recsys.requests import HistoryBatch
from recsys.storage import json_bytes, parse_json, write_atomic
from recsys.text.adaptation import EncodedTexts
from recsys.text.embeddings import ItemEmbeddings
from recsys.text.finetuning import Behaviour, finetune
from recsys.text.item_text import catalogue_texts
from recsys.text.openvino_runtime import OpenVinoEncoder
from recsys.text.quantization import build_encoder
from recsys.text.student import distil, fingerprint
from recsys.text.teacher import Teacher, load_teacher
from recsys.text.transformer import TextTransformer

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class TextModel:
    """The compiled encoder, the embeddings of the catalogue, and how both came about."""

    encoder: OpenVinoEncoder
    embeddings: ItemEmbeddings
    report: dict[str, Any]


def fit_text(data: Dataset, config: Config, home: Home, step: Step, *, seed: int = 0) -> TextModel:
    """Fit the encoder on the catalogue's text and on the log of `data`, and embed every item.

    The log must end where the ranker's training rows begin, so that these rows are new to the encoder.
    """
    texts = catalogue_texts(data.catalogue, max_chars=config.text.max_chars)
    with step("teacher"):
        teacher = load_teacher(config.text.teacher)
    student, distillation = student_of(teacher, texts, config, home, step, seed=seed)
    report: dict[str, Any] = {"distillation": distillation}
    student, report["finetuning"] = adapted(student, teacher, texts, data, config, step, seed=seed)
    with step("int8 encoder" if config.text.precision == "int8" else "encoder"):
        encoder = build_encoder(student, teacher.tokenizer, texts, precision=config.text.precision)
    with step("item embeddings"):
        embeddings = ItemEmbeddings.empty().update(texts, encoder)
    report["precision"] = encoder.config.precision
    return TextModel(encoder, embeddings, report)


def student_of(
    teacher: Teacher, texts: list[str], config: Config, home: Home, step: Step, *, seed: int = 0
) -> tuple[TextTransformer, dict[str, Any]]:
    """The distilled student, from the cache where the same teacher, texts and settings made one before."""
    if not config.text.distilled:
        return teacher.transformer, {"layers": len(list(teacher.transformer.layers))}
    settings = replace(config.distillation, seed=seed)
    folder = home.students / fingerprint(teacher, texts, settings)
    if (folder / REPORT_FILE).exists():
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        return TextTransformer.from_files(files), parse_json(files[REPORT_FILE], REPORT_FILE)
    with step("distillation") as progress:
        student, made = distil(teacher, texts, settings, progress=progress)
    report: dict[str, Any] = plain(asdict(made))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in student.to_files().items():
        write_atomic(folder / name, content)
    write_atomic(folder / REPORT_FILE, json_bytes(report))
    return student, report


def adapted(
    student: TextTransformer,
    teacher: Teacher,
    texts: list[str],
    data: Dataset,
    config: Config,
    step: Step,
    *,
    seed: int = 0,
) -> tuple[TextTransformer, dict[str, Any]]:
    """The student after fine-tuning on behaviour; unchanged where that did not help held-out requests."""
    settings = replace(config.finetuning, seed=seed)
    if settings.mode == "frozen":
        return student, {"mode": "frozen"}
    with step("student embeddings"):
        plain = build_encoder(student, teacher.tokenizer, [], precision="bf16").encode(texts)
    examples = head_examples(data, config, seed=seed)
    history = HistoryBatch.of(data.histories, examples.requests, limit=config.head.history_limit)
    with step(f"fine-tuning ({settings.mode})") as progress:
        tuned, report = finetune(
            student,
            teacher.tokenizer,
            EncodedTexts(texts, plain),
            Behaviour(examples, history, data.weights),
            settings,
            progress=progress,
        )
    return tuned, asdict(report)
