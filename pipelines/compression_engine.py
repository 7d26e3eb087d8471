"""What a ladder stands on: the root encoder, adapted to behaviour, and the engine fitted on its embeddings.

Both are kept in the folder of the study, in the formats of a bundle, so that a run that goes on does not
fit them again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from features.builder import Features
from pipelines.config import Config
from pipelines.encoding import adapted
from pipelines.fitting import Step, fit, stacking_split
from pipelines.terminal import plain
from recsys.compression.build import Source
from recsys.compression.variant import Variant
from recsys.dataset import Dataset
from recsys.model import Model
from recsys.protocols import Protocol, Split
from recsys.recommender import Recommender
from recsys.storage import json_bytes, parse_json, read_folder, write_folder
from recsys.text.embeddings import ItemEmbeddings
from recsys.text.item_text import catalogue_texts
from recsys.text.quantization import build_encoder
from recsys.text.student import Lessons
from recsys.text.teacher import Teacher, load_teacher
from recsys.text.transformer import TextTransformer

ROOT_REPORT, FEATURES_FILE = "root.json", "features.json"


@dataclass(frozen=True)
class Engine:
    """The root, and the models that were fitted on its embeddings.

    Attributes:
        teacher: the model that the root was adapted from, for the reference of speeds.
        source: what variants are made from.
        models: the fitted recommender. `features`: its columns.
        report: how the root was adapted.
    """

    teacher: Teacher
    source: Source
    models: Recommender
    features: Features
    report: dict[str, Any]


def engine_of(
    window: Split, data: Dataset, protocol: Protocol, config: Config, folder: Path, step: Step
) -> Engine:
    """Adapt the root and fit the engine on what lies before `window`, or read both from the folder."""
    texts = catalogue_texts(data.catalogue, max_chars=config.text.max_chars)
    with step("teacher"):
        teacher = load_teacher(config.text.teacher)
    transformer, report = _root(teacher, texts, window, protocol, config, folder / "root", step)
    files = read_folder(folder / "engine", FEATURES_FILE)
    if files is None:
        files = _fitted(transformer, teacher, texts, window, data, protocol, config, step)
        write_folder(folder / "engine", files, FEATURES_FILE)
    features = Features.from_json(files[FEATURES_FILE])
    model = Model.from_files(files, features)
    recovery = replace(config.compression.recovery, seed=config.seed)
    with step("lessons"):
        lessons = Lessons.of(replace(teacher, transformer=transformer), texts, recovery)
    root = Variant(transformer, teacher.tokenizer)
    source = Source(root, texts, model.embeddings.matrix, lessons, recovery, folder / "networks")
    return Engine(teacher, source, model.recommender, features, report)


def _root(
    teacher: Teacher,
    texts: list[str],
    window: Split,
    protocol: Protocol,
    config: Config,
    folder: Path,
    step: Step,
) -> tuple[TextTransformer, dict[str, Any]]:
    """The teacher, fine-tuned on the log before the ranker's rows where that helped what was held out."""
    files = read_folder(folder, ROOT_REPORT)
    if files is None:
        past = stacking_split(window.train, protocol, config).train
        tuned, report = adapted(teacher.transformer, teacher, texts, past, config, step, seed=config.seed)
        files = {**tuned.to_files(), ROOT_REPORT: json_bytes(plain(report))}
        write_folder(folder, files, ROOT_REPORT)
    return TextTransformer.from_files(files), parse_json(files[ROOT_REPORT], ROOT_REPORT)


def _fitted(
    transformer: TextTransformer,
    teacher: Teacher,
    texts: list[str],
    window: Split,
    data: Dataset,
    protocol: Protocol,
    config: Config,
    step: Step,
) -> dict[str, bytes]:
    """The engine as files: everything of a bundle that knows the root by its embeddings only."""
    runtime = build_encoder(transformer, teacher.tokenizer, [], precision="fp32")
    with step("root embeddings"):
        embeddings = ItemEmbeddings.empty().update(texts, runtime)
    fitted = fit(window.train, window.visible, protocol, embeddings.matrix, config, step, seed=config.seed)
    roles = dict(zip(data.event_types, data.roles, strict=True))
    model = Model(fitted.recommender, data.catalogue, data.users, embeddings, roles, {})
    return {**model.to_files(), FEATURES_FILE: fitted.features.to_json().encode()}
