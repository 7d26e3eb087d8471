"""Signatures of bundles: Ed25519 over the bytes of `manifest.json`, which fix every other byte.

The signature lies beside the manifest as `manifest.sig`. Who may sign is said by key files that the operator
names; nothing in a bundle or in the registry can add one. `openssl genpkey -algorithm ed25519` makes a key.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.bundle import SIGNATURE, Bundle, read_bundle
from recsys.errors import EXIT_CONFIG, EXIT_NO_INPUT, RecsysError
from recsys.storage import json_bytes, parse_json, storage_error, write_atomic

PublicKeys = Mapping[str, Ed25519PublicKey]
"""Keys whose signatures count, by `key_id`."""

_LARGEST_KEY = 4096
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_AT_ALL = stat.S_IRWXG | stat.S_IRWXO


class Signature(BaseModel):
    """What `manifest.sig` holds: whose key, and the 64 bytes in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    algorithm: Literal["ed25519"]
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


def key_id(key: Ed25519PublicKey) -> str:
    """Sixteen hex digits that tell keys apart: the start of the SHA-256 of the raw public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def sign_bundle(folder: Path, key: Ed25519PrivateKey) -> str:
    """Verify the bundle, put `manifest.sig` beside its manifest, and give the id of the key.

    Raises:
        RecsysError: of `read_bundle`; `storage_full`, `storage_failed`.
    """
    bundle = read_bundle(folder)
    signature = key.sign(bundle.manifest_bytes).hex()
    signed = Signature(algorithm="ed25519", key_id=key_id(key.public_key()), signature=signature)
    try:
        write_atomic(folder / SIGNATURE, json_bytes(signed.model_dump()))
    except OSError as error:
        raise storage_error(error, folder / SIGNATURE) from error
    return signed.key_id


def check_signature(bundle: Bundle, keys: PublicKeys) -> str:
    """The id of the key that signed the bundle.

    Raises:
        RecsysError: `signature_missing`; `signature_invalid` for a file of another form, a key that is not
            among `keys`, or a signature of other bytes.
    """
    if bundle.signature is None:
        raise RecsysError(
            "signature_missing", "a public key is configured and the bundle is not signed:", SIGNATURE
        )
    signed = _parse(bundle.signature)
    key = keys.get(signed.key_id)
    if key is None:
        known = ", ".join(sorted(keys)) or "none"
        raise RecsysError(
            "signature_invalid", f"key {signed.key_id} is not among those configured ({known}):", SIGNATURE
        )
    try:
        key.verify(bytes.fromhex(signed.signature), bundle.manifest_bytes)
    except InvalidSignature:
        what = f"key {signed.key_id} has not signed this manifest:"
        raise RecsysError("signature_invalid", what, SIGNATURE) from None
    return signed.key_id


def load_public_keys(paths: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    """Public keys by id, from files of PEM or of 64 hex digits.

    Raises:
        RecsysError: `key_unsafe` where somebody else may write a file or its folder; `key_missing`;
            `key_invalid` for what is no Ed25519 key.
    """
    keys = [load_public_key(path) for path in paths]
    return {key_id(key): key for key in keys}


def load_public_key(path: Path) -> Ed25519PublicKey:
    """One public key; raises as `load_public_keys`."""
    raw = _read_key(path, _OTHERS_WRITE)
    try:
        key = load_pem_public_key(raw) if _is_pem(raw) else Ed25519PublicKey.from_public_bytes(_unhex(raw))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _invalid(path) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _invalid(path)
    return key


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with, from a file of PEM (without a pass phrase) or of 64 hex digits.

    Raises:
        RecsysError: `key_unsafe` where somebody else may read or write the file; else as `load_public_keys`.
    """
    raw = _read_key(path, _OTHERS_AT_ALL)
    try:
        key = (
            load_pem_private_key(raw, None)
            if _is_pem(raw)
            else Ed25519PrivateKey.from_private_bytes(_unhex(raw))
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError asks for the pass phrase
        raise _invalid(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _invalid(path)
    return key


def _parse(raw: bytes) -> Signature:
    try:
        return Signature.model_validate(parse_json(raw, SIGNATURE))
    except (RecsysError, ValidationError) as error:
        what = "not a signature as `recsys.signing` writes it:"
        raise RecsysError("signature_invalid", what, SIGNATURE) from error


def _read_key(path: Path, forbidden: int) -> bytes:
    """The bytes of a key file that is ours or root's and that nobody else may touch in a `forbidden` way."""
    try:
        with path.open("rb") as file:
            status, raw = os.fstat(file.fileno()), file.read(_LARGEST_KEY + 1)
        folder = path.resolve().parent.stat()
    except OSError as error:
        what = f"the key cannot be read ({error.strerror}):"
        raise RecsysError("key_missing", what, str(path), exit_code=EXIT_NO_INPUT) from error
    shared = folder.st_mode & _OTHERS_WRITE and not folder.st_mode & stat.S_ISVTX
    if status.st_mode & forbidden or status.st_uid not in (0, os.geteuid()) or shared:
        wanted = "600" if forbidden == _OTHERS_AT_ALL else "644"
        what = f"others may touch the key: chmod {wanted} it, own it, and chmod go-w its folder:"
        raise RecsysError("key_unsafe", what, str(path), exit_code=EXIT_CONFIG)
    return raw


def _is_pem(raw: bytes) -> bool:
    return raw.lstrip().startswith(b"-----BEGIN")


def _unhex(raw: bytes) -> bytes:
    """The 32 bytes of a raw key; raises ValueError."""
    return bytes.fromhex(raw.decode("ascii"))


def _invalid(path: Path) -> RecsysError:
    what = "not an Ed25519 key in PEM or in 64 hex digits:"
    return RecsysError("key_invalid", what, str(path), exit_code=EXIT_CONFIG)
