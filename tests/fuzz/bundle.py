"""Files of a bundle: manifest, golden requests, signature, key, array, trees; each is whole or refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from recsys.bundle import Bundle, Manifest, parse_manifest, write_bundle
from recsys.errors import RecsysError
from recsys.forest import Forest
from recsys.golden import GOLDEN, Golden
from recsys.signing import check_signature, key_id, load_private_key, load_public_key
from tests.fuzz.memory import private_folder

MOST_NUMBERS = 1000
LONGEST_NAME = 200
DATA = {".bin", ".json", ".npy", ".parquet", ".safetensors", ".txt", ".xml"}
"""Endings of files that run nothing."""

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CODES = {
    "artifact_policy_violation",
    "key_invalid",
    "manifest_invalid",
    "non_finite_scores",
    "ranker_invalid",
    "signature_invalid",
}

_folder = cache(private_folder)


def check(data: bytes) -> None:
    """The same bytes in the place of every file that is read before anything vouches for it."""
    manifest = _read(parse_manifest, data)
    if manifest is not None:
        _check_manifest(manifest)
    golden = _read(Golden.from_files, {GOLDEN: data})
    if golden is not None:
        assert {len(getattr(golden, name)) for name in golden.__dataclass_fields__} == {len(golden)}
        assert Golden.from_files(golden.to_files()) == golden
    bundle = Bundle(_nothing(), {}, "0" * 64, b"the manifest", data)
    assert _read(check_signature, bundle, {key_id(KEY.public_key()): KEY.public_key()}) in (None, _own_id())
    _check_key(data)
    for name in ("a.npy", "config.json"):
        _check_written(name, data)
    forest = _read(Forest.parse, data.decode(errors="replace"))
    if forest is not None and len(forest.features) <= MOST_NUMBERS:
        _check_forest(forest)


def _read(parser: Callable[..., Any], *arguments: Any) -> Any:
    """What is read, None where it is refused."""
    try:
        return parser(*arguments)
    except RecsysError as error:
        assert error.code in CODES, error
        assert "\n" not in str(error)
        return None


def _check_manifest(manifest: Manifest) -> None:
    """Every name stays below its folder, on any file system; what is kept can be written again."""
    assert math.isfinite(manifest.as_of)
    assert manifest.golden is None or manifest.golden in manifest.files
    assert len({name.casefold() for name in manifest.files}) == len(manifest.files)
    for name in manifest.files:
        path = PurePosixPath(name)
        assert str(path) == name
        assert name.isascii()
        assert name.isprintable()
        assert len(name) <= LONGEST_NAME
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert path.suffix in DATA
    assert parse_manifest(manifest.to_bytes()) == manifest


def _check_key(data: bytes) -> None:
    path = _folder() / "key"
    path.touch(0o600)
    path.write_bytes(data)
    for load in (load_public_key, load_private_key):
        key = _read(load, path)
        if key is not None:
            assert len(key.public_bytes_raw() if load is load_public_key else key.private_bytes_raw()) == 32


def _check_written(name: str, data: bytes) -> None:
    """A file that is let in is read back by a loader that runs nothing."""
    folder = _folder() / "made"
    try:
        with warnings.catch_warnings(action="ignore"):  # of numpy, about arrays of older days
            manifest = write_bundle(folder, {name: data}, {"name": "n", "as_of": 0.0, "feature_schema": ""})
    except RecsysError as error:
        assert error.code in CODES, error
        assert not folder.exists()
        return
    assert (folder / name).read_bytes() == data
    assert list(manifest.files) == [name]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _check_forest(forest: Forest) -> None:
    """Every walk ends at a leaf, whatever is in the row."""
    width = len(forest.features)
    rows = np.array([0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e38, -1e-38], np.float32)
    matrix = np.repeat(rows[:, None], width, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        scores, effects = forest.score(matrix), forest.effects(matrix)
        most = np.abs(forest.leaves).sum()
    assert scores.shape == (len(rows),)
    assert effects.shape == (len(rows), width + 1)
    if np.isfinite(most):
        assert (np.abs(scores) <= most * (1 + 1e-9)).all()


@cache
def _nothing() -> Manifest:
    document = {"name": "n", "as_of": 0.0, "feature_schema": "", "created_by": "", "golden": None}
    return Manifest.model_validate({**document, "files": {}, "metadata": {}})


@cache
def _own_id() -> str:
    return key_id(KEY.public_key())
