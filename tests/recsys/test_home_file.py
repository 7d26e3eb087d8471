"""Names read without MLflow: what MLflow itself says, and silence wherever it may know better."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from recsys.bundle import write_bundle
from recsys.errors import RecsysError
from recsys.golden import Golden
from recsys.tracking import Registry
from recsys.tracking.home_file import DATABASE, is_readable, resolve_in_home

# MLflow 3.17 on SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

NAME = "my_shop-1"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Three versions of one name, the second of which was deleted, and a name without any."""
    home = tmp_path_factory.mktemp("a home")
    registry = Registry(home)
    files = {"ranker.txt": b"tree\n", **Golden(["q"], [7], [1], [""], [1.5], [0.25]).to_files()}
    for number in range(1, 4):
        folder = home / f"bundle{number}"
        write_bundle(folder, files, {"name": NAME, "as_of": 1.5 + number, "feature_schema": "ab" * 32})
        registry.log_training(NAME, folder, {}, {}, tags={"quality": "good"})
    registry.set_alias(NAME, "champion", 3)
    registry.set_alias(NAME, "challenger", 1)
    registry.client.delete_model_version(NAME, "2")
    registry.client.create_registered_model("empty")
    return registry


@pytest.fixture
def home(registry: Registry, tmp_path: Path) -> Path:
    shutil.copy(registry.home / DATABASE, tmp_path / DATABASE)
    return tmp_path


def refusal(call, *arguments) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        call(*arguments)
    return caught.value


@pytest.mark.parametrize("wanted", ["@champion", "@challenger", "/1", "/3"])
def test_a_version_is_the_one_that_mlflow_names(registry, wanted):
    uri = f"models:/{NAME}{wanted}"
    assert resolve_in_home(registry.home, uri) == registry.resolve(uri)


@pytest.mark.parametrize(
    "uri",
    [
        f"models:/{NAME}@nobody",
        f"models:/{NAME}@Champion",
        f"models:/{NAME}/2",
        f"models:/{NAME}/9",
        "models:/empty@champion",
        "models:/nothing@champion",
        "models:/nothing/1",
        "models:/a.b/1",
        "models:/no@slash/1",
    ],
)
def test_what_is_unknown_is_refused_as_mlflow_would(registry, uri):
    found, expected = refusal(resolve_in_home, registry.home, uri), refusal(registry.resolve, uri)
    assert (str(found), found.exit_code) == (str(expected), expected.exit_code)


def test_an_alias_of_a_deleted_version_leads_nowhere(registry, home):
    with closing(sqlite3.connect(home / DATABASE)) as database, database:
        database.execute(
            "INSERT INTO registered_model_aliases (name, alias, version) VALUES (?, 'old', 2)", [NAME]
        )
    uri = f"models:/{NAME}@old"
    assert (
        refusal(resolve_in_home, home, uri).code
        == refusal(Registry(home).resolve, uri).code
        == "unknown_alias"
    )


def test_an_alias_that_moves_is_followed(home):
    uri = f"models:/{NAME}@champion"
    Registry(home).set_alias(NAME, "champion", 1)
    found = resolve_in_home(home, uri)
    assert found is not None
    assert found.number == 1


def test_mlflow_is_asked_where_it_may_know_better(registry, home, tmp_path):
    uri = f"models:/{NAME}@champion"
    assert resolve_in_home(registry.home, f"models:/{NAME}@latest") is None
    assert (is_readable(home), is_readable(tmp_path / "nowhere")) == (True, False)
    assert resolve_in_home(tmp_path / "nowhere", uri) is None
    assert not (tmp_path / "nowhere").exists()
    with closing(sqlite3.connect(home / DATABASE)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'another'")
    assert (is_readable(home), resolve_in_home(home, uri)) == (False, None)
    (home / DATABASE).write_bytes(b"no database" * 1000)
    assert (is_readable(home), resolve_in_home(home, uri)) == (False, None)


def test_a_name_is_read_without_mlflow(registry):
    code = (
        "import pathlib, sys; sys.modules['mlflow'] = None\n"
        "from serving.lifecycle.cached_bundles import open_registry\n"
        "registry = open_registry(pathlib.Path(sys.argv[1]))\n"
        "version = registry.resolve(sys.argv[2])\n"
        "print(version.number, len(version.digest))\n"
        "try: registry.load(version, pathlib.Path('nowhere'))\n"
        "except Exception as error: print(error.code)\n"
    )
    command = [sys.executable, "-c", code, str(registry.home), f"models:/{NAME}@champion"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "64", "missing_extra"]
