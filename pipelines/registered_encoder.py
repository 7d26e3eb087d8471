"""A text encoder as it comes from the registry, and the catalogue embedded by it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipelines.config import Config
from pipelines.encoding import TextModel, fit_text, text_of
from pipelines.fitting import Step
from pipelines.home import Home
from recsys.dataset import Dataset
from recsys.text.loading import load_encoder
from recsys.text.runtime import SavedEncoder
from recsys.tracking import Registry

RECEIPT_FILE = "receipt.json"


def registered_encoder(registry: Registry, uri: str) -> tuple[SavedEncoder, str]:
    """The encoder that `uri` means now, verified and loaded, and the fixed name of its version.

    Raises:
        RecsysError: of `Registry.resolve`, `Registry.load` and `load_encoder`.
    """
    version = registry.resolve(uri)
    with tempfile.TemporaryDirectory() as folder:
        bundle = registry.load(version, Path(folder, "bundle"))
    return load_encoder(encoder_files(dict(bundle.files))), version.uri


def registered_text(registry: Registry, uri: str, data: Dataset, config: Config, step: Step) -> TextModel:
    """The items of `data` embedded by a registered encoder, which is used as it is."""
    with step("registered encoder"):
        encoder, origin = registered_encoder(registry, uri)
    return text_of(encoder, origin, data, config, step)


def text_model(
    past: Dataset, config: Config, home: Home, step: Step, *, registry: Registry | None = None, seed: int = 0
) -> TextModel:
    """The encoder that the settings name, or one that is fitted on `past` (see `fit_text`).

    Raises:
        RecsysError: of `registered_encoder`; `registry` defaults to that of the home.
    """
    if not config.text.encoder:
        return fit_text(past, config, home, step, seed=seed)
    found = registry or Registry(home.path)
    return registered_text(found, config.text.encoder, past, config, step)


def encoder_files(files: dict[str, bytes]) -> dict[str, bytes]:
    """The encoder's own files among those of its bundle."""
    return {name: content for name, content in files.items() if name != RECEIPT_FILE}
