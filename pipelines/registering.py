"""`recsys promote`, `rollback` and `verify`: what stands in the registry, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.home import Home
from pipelines.scoring import fetch_bundle
from pipelines.training import check_bundle
from recsys.bundle import MANIFEST, Bundle, read_bundle
from recsys.errors import EXIT_NO_INPUT, RecsysError
from recsys.publication import list_nights, verify_night
from recsys.tracking import Registry
from recsys.versions import Version


def promote_version(registry: Registry, model: str, gates: Mapping[str, float]) -> dict[str, Any]:
    """Move `champion` to `models:/NAME/NUMBER`, or to the newest version of a bare name.

    Raises:
        RecsysError: `gates_failed`, `unknown_model`, or of `Registry.resolve`.
    """
    version = registry.resolve(model) if model.startswith("models:") else newest(registry, model)
    registry.promote(version, gates)
    return {"model": version.uri, "aliases": registry.aliases(version.name), "gates": dict(gates)}


def newest(registry: Registry, name: str) -> Version:
    """The newest version of `name`; raises RecsysError `unknown_model`."""
    versions = registry.list_versions(name)
    if not versions:
        what = "nothing is registered under this name: train first, or give another --home"
        raise RecsysError("unknown_model", what, repr(name), exit_code=EXIT_NO_INPUT)
    return versions[0]


def rollback_name(registry: Registry, name: str) -> dict[str, Any]:
    """Swap `champion` and `previous`."""
    version = registry.rollback(name)
    return {"model": version.uri, "aliases": registry.aliases(name)}


def verify_thing(what: str, home: Home, registry: Registry) -> dict[str, Any]:
    """Verify a registered version, a bundle folder or every night of a published table.

    Raises:
        RecsysError: naming the file and what is wrong with it.
    """
    if what.startswith("models:"):
        version = registry.resolve(what)
        return _verified_bundle(version.uri, fetch_bundle(registry, version, home))
    folder = Path(what)
    if (folder / MANIFEST).exists():
        return _verified_bundle(str(folder), read_bundle(folder))
    nights = list_nights(folder)
    if not nights:
        raise RecsysError(
            "no_input", "neither a bundle nor a table of nights", str(folder), exit_code=EXIT_NO_INPUT
        )
    found = [verify_night(folder, night) for night in nights]
    return {"verified": str(folder), "nights": {str(one.night): one.digest for one in found}}


def _verified_bundle(what: str, bundle: Bundle) -> dict[str, Any]:
    check_bundle(bundle)
    golden = bundle.golden()
    return {
        "verified": what,
        "digest": bundle.digest,
        "files": len(bundle.files),
        "golden_rows": 0 if golden is None else len(golden),
        "as_of": bundle.manifest.as_of,
    }
