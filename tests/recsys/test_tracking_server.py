import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys.bundle import write_bundle
from recsys.errors import RecsysError
from recsys.golden import Golden
from recsys.tracking import Registry
from tests.tracking_server import tracking_server

pytestmark = [
    pytest.mark.slow,
    # MLflow 3.17 on SQLAlchemy 2.1
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


def test_a_real_server_keeps_versions(tmp_path: Path):
    home = tmp_path / "home"
    with tracking_server(tmp_path) as uri:
        registry = Registry(home, uri)
        registry.check()
        versions = []
        for number in (1, 2):
            folder = tmp_path / f"bundle-{number}"
            golden = Golden(["q"], ["u"], ["i"], [""], [1.5], [float(number)])
            files = {"ranker.txt": b"tree\n" * number, "items/table.json": b"[]", **golden.to_files()}
            write_bundle(folder, files, {"name": "recsys", "as_of": 1.7e9, "feature_schema": "ab" * 32})
            table = {"evaluation": [{"model": "full", "auc": 0.7}]}
            versions.append(registry.log_training("recsys", folder, {"seed": 0}, {"auc": 0.7}, table))
        first, second = versions
        registry.promote(first, {"auc_min": 0.6})
        registry.promote(second)
        assert registry.resolve("models:/recsys@champion") == second
        assert registry.rollback("recsys") == first
        assert registry.aliases("recsys") == {"champion": 1, "previous": 2}
        assert registry.list_versions("recsys") == [second, first]
        assert registry.metrics(first) == {"auc": 0.7}
        bundle = registry.load(second, tmp_path / "cache")
        assert bundle.files["ranker.txt"] == b"tree\n" * 2
        for unknown, code in (
            ("models:/nothing@champion", "unknown_model"),
            ("models:/recsys@challenger", "unknown_alias"),
            ("models:/recsys/9", "unknown_version"),
        ):
            with pytest.raises(RecsysError, match=code):
                registry.resolve(unknown)
        for stored in (tmp_path / "stored").rglob("ranker.txt"):
            stored.write_bytes(b"eert\n")
        with pytest.raises(RecsysError, match="digest_mismatch"):
            registry.load(first, tmp_path / "first")
    started = time.monotonic()
    with pytest.raises(RecsysError, match="registry_unavailable"):
        registry.resolve("models:/recsys@champion")
    assert time.monotonic() - started < 10
    assert not home.exists()


def test_two_processes_may_open_a_new_home_together(tmp_path: Path):
    code = "import sys, pathlib, recsys.tracking as t; t.Registry(pathlib.Path(sys.argv[1])).check()"
    command = [sys.executable, "-c", code, str(tmp_path / "home")]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert outputs == [(b"", b""), (b"", b"")]
