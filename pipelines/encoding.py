"""The text step: distil a student once a catalogue, adapt it to behaviour, compile it, embed the items."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.config import Config
from pipelines.fitting import Step, head_examples
from pipelines.home import Home
from pipelines.terminal import plain
from recsys.collaborative_training import interaction_matrix, item_item_pairs
from recsys.dataset import Dataset
from recsys.events import Float32
from recsys.next_items import NextItems, Source, next_items, with_hard_negatives
from recsys.pairs import DensePairs
from recsys.requests import HistoryBatch
from recsys.retrieval.sources import neighbour_scores, text_scores
from recsys.storage import json_bytes, parse_json, read_folder, write_folder
from recsys.text.contrastive import contrast
from recsys.text.embeddings import ItemEmbeddings
from recsys.text.finetuning import Behaviour, finetune
from recsys.text.item_text import catalogue_texts
from recsys.text.quantization import build_encoder
from recsys.text.runtime import SavedEncoder
from recsys.text.settings import FinetuneConfig
from recsys.text.student import distil, fingerprint
from recsys.text.teacher import Teacher, load_teacher
from recsys.text.text_in_training import EncodedTexts
from recsys.text.transformer import TextTransformer
from recsys.transitions import fit_transitions

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class TextModel:
    """The compiled encoder, the embeddings of the catalogue, and how both came about."""

    encoder: SavedEncoder
    embeddings: ItemEmbeddings
    report: dict[str, Any]


def fit_text(data: Dataset, config: Config, home: Home, step: Step, *, seed: int = 0) -> TextModel:
    """Fit the encoder on the catalogue's text and on the log of `data`, and embed every item.

    The log must end where the ranker's training rows begin, so that these rows are new to the encoder.
    """
    config.finetuning.check_mergeable()
    texts = catalogue_texts(data.catalogue, max_chars=config.text.max_chars)
    with step("teacher"):
        teacher = load_teacher(config.text.teacher)
    student, distillation = student_of(teacher, texts, config, home, step, seed=seed)
    report: dict[str, Any] = {"distillation": distillation}
    student, report["finetuning"] = adapted(student, teacher, texts, data, config, step, seed=seed)
    with step("int8 encoder" if config.text.precision == "int8" else "encoder"):
        encoder = build_encoder(student, teacher.tokenizer, texts, precision=config.text.precision)
    with step("item embeddings"):
        embeddings = ItemEmbeddings.empty().update(texts, encoder).rounded(config.storage.embeddings)
    report["precision"] = encoder.config.precision
    return TextModel(encoder, embeddings, report)


def text_of(encoder: SavedEncoder, origin: str, data: Dataset, config: Config, step: Step) -> TextModel:
    """A finished encoder over the items of `data`; `origin` says where it comes from."""
    texts = catalogue_texts(data.catalogue, max_chars=config.text.max_chars)
    with step("item embeddings"):
        embeddings = ItemEmbeddings.empty().update(texts, encoder).rounded(config.storage.embeddings)
    return TextModel(encoder, embeddings, {"encoder": origin, "encoder_id": encoder.encoder_id})


def student_of(
    teacher: Teacher, texts: list[str], config: Config, home: Home, step: Step, *, seed: int = 0
) -> tuple[TextTransformer, dict[str, Any]]:
    """The distilled student, from the cache where the same teacher, texts and settings made one before."""
    if not config.text.distilled:
        return teacher.transformer, {"layers": len(list(teacher.transformer.layers))}
    settings = replace(config.distillation, seed=seed)
    folder = home.students / fingerprint(teacher, texts, settings)
    if files := read_folder(folder, REPORT_FILE):
        return TextTransformer.from_files(files), parse_json(files[REPORT_FILE], REPORT_FILE)
    with step("distillation") as progress:
        student, made = distil(teacher, texts, settings, progress=progress)
    report: dict[str, Any] = plain(asdict(made))
    write_folder(folder, {**student.to_files(), REPORT_FILE: json_bytes(report)}, REPORT_FILE)
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
    """The student after fine-tuning on behaviour; unchanged where that did not help what was held out."""
    settings = replace(with_objective(config.finetuning, data), seed=seed)
    if settings.mode == "frozen":
        return student, {"mode": "frozen"}
    with step("student embeddings"):
        plain = build_encoder(student, teacher.tokenizer, [], precision="bf16").encode(texts)
    catalogue = EncodedTexts(texts, plain)
    if settings.objective == "contrastive":
        with step("hard negatives"):
            pairs = contrastive_pairs(data, plain, config)
        with step(f"fine-tuning (contrastive, {settings.mode})") as progress:
            tuned, report = contrast(
                student, teacher.tokenizer, catalogue, pairs, settings, progress=progress
            )
        return tuned, asdict(report)
    behaviour = click_behaviour(data, config, seed=seed)
    with step(f"fine-tuning (click, {settings.mode})") as progress:
        tuned, report = finetune(
            student, teacher.tokenizer, catalogue, behaviour, settings, progress=progress
        )
    return tuned, asdict(report)


def with_objective(settings: FinetuneConfig, data: Dataset) -> FinetuneConfig:
    """The settings with `auto` replaced by what the log can teach."""
    if settings.objective != "auto":
        return settings
    return replace(settings, objective="contrastive" if data.slates is None else "click")


def click_behaviour(data: Dataset, config: Config, *, seed: int = 0) -> Behaviour:
    """What the head learns from, with the histories of then."""
    examples = head_examples(data, config, seed=seed)
    history = HistoryBatch.of(data.histories, examples.requests, limit=config.head.history_limit)
    return Behaviour(examples, history, data.weights)


def contrastive_pairs(data: Dataset, embeddings: Float32, config: Config) -> NextItems:
    """The newest histories with what came next, and hard negatives from transitions, item-item and text.

    The sources are fitted on what lies before the first of these pairs.
    """
    settings, retrieval = config.finetuning.contrast, config.retrieval
    pairs = next_items(
        data,
        most=config.stacking.head_requests,
        history_limit=settings.history_limit,
        half_life_days=retrieval.half_life_days,
        position_decay=retrieval.position_decay,
    )
    if not len(pairs) or not settings.hard_negatives:
        return pairs
    past = data.with_log(data.events.take(slice(0, int(pairs.requests.known[0]))), None)
    transitions = fit_transitions(past, config.transitions)
    item_item = item_item_pairs(interaction_matrix(past), config.collaborative)
    sources: list[Source] = [
        lambda part: neighbour_scores(transitions, part.history, part.recency),
        lambda part: neighbour_scores(item_item, part.history, part.recency),
        lambda part: text_scores(DensePairs(embeddings), part.history, part.recency),
    ]
    return with_hard_negatives(pairs, sources, data, settings.mined)
