"""Two small whole bundles, registries that hold them, and servers."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.serving.running import running
from tests.small_bundles import BundleParts, dataset, parts_of


@pytest.fixture(scope="session")
def bundle_parts() -> tuple[BundleParts, BundleParts]:
    """The parts of two versions that learned different things from the same log."""
    world = dataset()
    return parts_of(world, seed=1), parts_of(world, seed=2)


@pytest.fixture(scope="session")
def bundle_folder(bundle_parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first version as a folder, which no test may change."""
    return bundle_parts[0].write(tmp_path_factory.mktemp("bundles") / "first")


@pytest.fixture(scope="session")
def second_folder(bundle_parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second version as a folder, which no test may change."""
    return bundle_parts[1].write(tmp_path_factory.mktemp("bundles") / "second")


@pytest.fixture(scope="session")
def served_world() -> Any:
    """The dataset that both versions learned from."""
    return dataset()


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all servers over folders, so that each bundle has its trial once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def hosted(server_home: Path) -> Any:
    """`running` with that home."""
    return partial(running, home=server_home)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a home without versions; making its tables takes seconds, copying them does not."""
    from recsys.tracking import Registry

    home = tmp_path_factory.mktemp("registry")
    Registry(home).check()
    return home / "mlflow.db"


@pytest.fixture
def registry(tmp_path: Path, empty_registry: Path) -> Any:
    """A registry of its own for one test."""
    from recsys.tracking import Registry

    (tmp_path / "registry").mkdir()
    shutil.copy(empty_registry, tmp_path / "registry" / "mlflow.db")
    return Registry(tmp_path / "registry")


@pytest.fixture
def two_versions(registry: Any, bundle_folder: Path, second_folder: Path) -> Any:
    """A registry of its own with both bundles, and their versions; the first is the champion."""
    return _with_versions(registry, bundle_folder, second_folder)


@pytest.fixture(scope="session")
def shared_versions(
    empty_registry: Path, bundle_folder: Path, second_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The same for all tests, which may add versions and move no alias."""
    from recsys.tracking import Registry

    home = tmp_path_factory.mktemp("shared")
    shutil.copy(empty_registry, home / "mlflow.db")
    return _with_versions(Registry(home), bundle_folder, second_folder)


def _with_versions(registry: Any, *folders: Path) -> Any:
    versions = [registry.log_training("recsys", folder, {}, {}) for folder in folders]
    registry.set_alias("recsys", "champion", 1)
    return registry, *versions
