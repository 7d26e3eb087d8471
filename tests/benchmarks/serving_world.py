"""What is served: a trained version of a simulated shop, and a shop of a hundred thousand items made of it.

The first comes from the real pipeline (`recsys simulate`, `train`, `promote`, `score`) with less training
than by default, but more trees, as many as a larger log gives. The second holds the first one's arrays many
times side by side, with ids of their own, and goes through the same writers: as large as it looks, and loaded
as any other. Both are kept in `recsys-bench` below RECSYS_BENCH_HOME: making them takes minutes only once.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from features.builder import Features
from recsys.bundle import MANIFEST, Bundle, read_bundle, write_bundle
from recsys.tracking import Registry
from recsys.versions import Version
from tests.benchmarks.serving_copies import copied_files

HOME = "RECSYS_BENCH_HOME"
USERS, ITEMS, COPIES = 2000, 1500, 67
QUICK = (
    "text.distilled=false", "finetuning.mode=frozen", "ranker.learning_rate=0.006", "ranker.patience=200",
)  # fmt: skip
NAME, LARGE = "recsys", "recsys-large"


@dataclass(frozen=True)
class World:
    """A registered version, and what is known of it.

    Attributes:
        home: of its registry.
        version: the champion. `folder`: a copy of its bundle. `as_of`: the moment that it was made.
        users: ids of those with a history. `items`: all ids.
    """

    home: Path
    version: Version
    folder: Path
    as_of: float
    users: Sequence[str]
    items: Sequence[str]

    @property
    def uri(self) -> str:
        """Of the champion."""
        return f"models:/{self.version.name}@champion"

    def bundle(self) -> Bundle:
        """Its bundle, read anew."""
        return read_bundle(self.folder)

    def bytes(self) -> int:
        """Of the bundle's files."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def night(self) -> pl.DataFrame:
        """The scores of the night: user_id, item_id, rank, score."""
        files = sorted((self.home / "scores").glob("night=*/*.parquet"))
        return pl.concat([pl.read_parquet(file) for file in files])


def trained_world() -> World:
    """The version of the simulated shop, made where it is not there or another one is wanted now."""
    place, recipe = _place(), _recipe()
    data, home, note = place / "data", place / "home", place / "recipe.json"
    if not note.exists() or json.loads(note.read_text()) != {**recipe, "is_made": True}:
        if note.exists():
            shutil.rmtree(place)
        place.mkdir(mode=0o700, parents=True)  # what is there without a note is not ours
        note.write_text(json.dumps(recipe))
        _recsys("simulate", str(data), "--users", str(USERS), "--items", str(ITEMS))
        settings = [word for setting in QUICK for word in ("--set", setting)]
        _recsys("train", str(data), "--home", str(home), *settings)
        _recsys("promote", NAME, "--force", "--home", str(home))
        _recsys("score", str(data), "--home", str(home))
        note.write_text(json.dumps({**recipe, "is_made": True}))
    return _world(home, NAME)


def large_world(small: World) -> World:
    """The version of the large shop, registered in the same home where it is not there."""
    registry = Registry(small.home)
    if not registry.list_versions(LARGE):
        files, metadata = copied_files(small.bundle(), _place() / "data", COPIES)
        with tempfile.TemporaryDirectory(dir=small.home) as folder:
            write_bundle(Path(folder, "bundle"), files, {**metadata, "name": LARGE})
            version = registry.log_training(LARGE, Path(folder, "bundle"), {"copies": COPIES}, {})
        registry.set_alias(LARGE, "champion", version.number)
    return _world(small.home, LARGE)


def another_version(world: World, number: int) -> Version:
    """A version like this one with a digest of its own, under the name NAME-flips; made if absent."""
    registry, name = Registry(world.home), f"{world.version.name}-flips"
    found = [each for each in registry.list_versions(name) if each.number == number]
    if found:
        return found[0]
    bundle = world.bundle()
    manifest = bundle.manifest
    metadata = {
        **manifest.metadata, "as_of": manifest.as_of, "feature_schema": manifest.feature_schema,
        "name": name, "twin": number,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=world.home) as folder:
        write_bundle(Path(folder, "bundle"), bundle.files, metadata)
        return registry.log_training(name, Path(folder, "bundle"), {}, {})


def _recipe() -> dict[str, object]:
    """What the version is made of."""
    schema = Features().schema.digest
    return {"users": USERS, "items": ITEMS, "copies": COPIES, "settings": [*QUICK], "schema": schema}


def _place() -> Path:
    return Path(os.environ.get(HOME) or tempfile.gettempdir()).expanduser().absolute() / "recsys-bench"


def _world(home: Path, name: str) -> World:
    registry = Registry(home)
    version = registry.resolve(f"models:/{name}@champion")
    folder = home / "cache" / "bundles" / version.digest
    bundle = read_bundle(folder) if (folder / MANIFEST).exists() else registry.load(version, folder)
    users, items = (
        pl.read_parquet(io.BytesIO(bundle.files[file])) for file in ("users.parquet", "items.parquet")
    )
    known = users.filter("known")["user_id"].to_list()
    return World(home, version, folder, bundle.manifest.as_of, known, items["item_id"].to_list())


def _recsys(*words: str) -> None:
    """Run a command; what goes wrong is raised with what it said."""
    program = str(Path(sys.executable).with_name("recsys"))
    done = subprocess.run([program, *words, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"recsys {words[0]}: {done.stderr[-2000:]}")
    print(f"recsys {' '.join(words)}", json.loads(done.stdout).get("seconds", ""), file=sys.stderr)
