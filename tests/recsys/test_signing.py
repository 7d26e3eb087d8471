"""Signatures of bundles: who may sign, what is refused, and that the registry carries them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from recsys.bundle import MANIFEST, SIGNATURE, read_bundle, write_bundle
from recsys.errors import EXIT_CONFIG, EXIT_NO_INPUT, RecsysError
from recsys.golden import Golden
from recsys.signing import (
    check_signature,
    key_id,
    load_private_key,
    load_public_key,
    load_public_keys,
    sign_bundle,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEYS = {key_id(KEY.public_key()): KEY.public_key()}


def refusal(call, *arguments) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        call(*arguments)
    return caught.value


def make_bundle(folder: Path, text: bytes = b"tree\n") -> Path:
    golden = Golden(["q"], ["u"], ["i"], [""], [1.5], [0.25])
    files = {"ranker.txt": text, **golden.to_files()}
    write_bundle(folder, files, {"name": "recsys", "as_of": 1.7e9, "feature_schema": "ab" * 32})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_signed_bundle_is_the_same_bundle_and_its_signer_is_named(folder: Path):
    before = read_bundle(folder)
    assert before.signature is None
    assert sign_bundle(folder, KEY) == key_id(KEY.public_key())
    after = read_bundle(folder)
    assert (after.digest, dict(after.files)) == (before.digest, dict(before.files))
    assert check_signature(after, KEYS) == key_id(KEY.public_key())
    assert (folder / SIGNATURE).stat().st_mode & 0o777 == 0o600


def test_an_unsigned_bundle_is_refused(folder: Path):
    assert refusal(check_signature, read_bundle(folder), KEYS).code == "signature_missing"


def test_another_signer_is_refused_under_either_name(folder: Path):
    sign_bundle(folder, OTHER)
    error = refusal(check_signature, read_bundle(folder), KEYS)
    assert error.code == "signature_invalid"
    assert "not among those configured" in error.what
    signed = json.loads((folder / SIGNATURE).read_bytes())
    signed["key_id"] = key_id(KEY.public_key())
    (folder / SIGNATURE).write_text(json.dumps(signed))
    error = refusal(check_signature, read_bundle(folder), KEYS)
    assert error.code == "signature_invalid"
    assert "has not signed" in error.what


def test_the_signature_of_another_bundle_is_refused(folder: Path, tmp_path: Path):
    other = make_bundle(tmp_path / "other", b"eert\n")
    sign_bundle(other, KEY)
    shutil.copy(other / SIGNATURE, folder / SIGNATURE)
    assert refusal(check_signature, read_bundle(folder), KEYS).code == "signature_invalid"


def test_a_manifest_that_reads_the_same_is_not_the_one_that_was_signed(folder: Path):
    sign_bundle(folder, KEY)
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes() + b"\n")
    assert refusal(check_signature, read_bundle(folder), KEYS).code == "signature_invalid"


@pytest.mark.parametrize("place", [0, 63])
def test_any_flipped_bit_of_the_signature_is_found(folder: Path, place: int):
    sign_bundle(folder, KEY)
    signed = json.loads((folder / SIGNATURE).read_bytes())
    raw = bytearray.fromhex(signed["signature"])
    raw[place] ^= 1
    (folder / SIGNATURE).write_text(json.dumps({**signed, "signature": raw.hex()}))
    assert refusal(check_signature, read_bundle(folder), KEYS).code == "signature_invalid"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"0" * 128,
        b'{"algorithm": "none", "key_id": "%s", "signature": "%s"}' % (b"0" * 16, b"0" * 128),
        b'{"algorithm": "ed25519", "key_id": "%s", "signature": "00"}' % (b"0" * 16),
    ],
)
def test_a_malformed_signature_is_refused(folder: Path, raw: bytes):
    (folder / SIGNATURE).write_bytes(raw)
    assert refusal(check_signature, read_bundle(folder), KEYS).code == "signature_invalid"


def test_a_signature_must_be_a_small_plain_file_beside_the_manifest(folder: Path, tmp_path: Path):
    (folder / SIGNATURE).write_bytes(b" " * 5000)
    assert refusal(read_bundle, folder).code == "manifest_invalid"
    (folder / SIGNATURE).unlink()
    (folder / SIGNATURE).symlink_to("/etc/hostname")
    assert refusal(read_bundle, folder).code == "manifest_invalid"
    (folder / SIGNATURE).unlink()
    (folder / "inner").mkdir()
    (folder / "inner" / SIGNATURE).write_bytes(b"{}")
    assert refusal(read_bundle, folder).code == "artifact_policy_violation"
    files = {"a.json": b"{}", SIGNATURE: b"{}"}
    metadata = {"name": "recsys", "as_of": 0.0, "feature_schema": ""}
    assert refusal(write_bundle, tmp_path / "new", files, metadata).code == "artifact_policy_violation"


def test_a_damaged_bundle_is_not_signed(folder: Path):
    (folder / "ranker.txt").write_bytes(b"eert\n")
    assert refusal(sign_bundle, folder, KEY).code == "digest_mismatch"
    assert not (folder / SIGNATURE).exists()


def test_keys_are_read_from_pem_and_from_hex(tmp_path: Path):
    for content in (private_pem(KEY), KEY.private_bytes_raw().hex().encode() + b"\n"):
        key = load_private_key(key_file(tmp_path, content))
        assert key.private_bytes_raw() == KEY.private_bytes_raw()
    for content in (public_pem(KEY), KEY.public_key().public_bytes_raw().hex().encode()):
        assert set(load_public_keys([key_file(tmp_path, content, 0o644)])) == set(KEYS)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_public_key_that_others_may_write_is_refused(tmp_path: Path, mode: int):
    error = refusal(load_public_key, key_file(tmp_path, public_pem(KEY), mode))
    assert (error.code, error.exit_code) == ("key_unsafe", EXIT_CONFIG)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_private_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int):
    assert refusal(load_private_key, key_file(tmp_path, private_pem(KEY), mode)).code == "key_unsafe"


def test_a_key_in_a_folder_that_others_may_write_is_refused(tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    path = key_file(shared, public_pem(KEY), 0o644)
    shared.chmod(0o777)
    assert refusal(load_public_key, path).code == "key_unsafe"
    link = tmp_path / "link"
    link.symlink_to(path)
    assert refusal(load_public_key, link).code == "key_unsafe"
    shared.chmod(0o1777)
    assert key_id(load_public_key(path)) in KEYS


X25519_PUBLIC = (
    X25519PrivateKey.from_private_bytes(bytes(32))
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)
LOCKED = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


@pytest.mark.parametrize("raw", [b"", b"ab", b"xy" * 32, b"\xff" * 32, X25519_PUBLIC, private_pem(KEY)])
def test_what_is_no_public_key_is_refused(tmp_path: Path, raw: bytes):
    error = refusal(load_public_key, key_file(tmp_path, raw))
    assert (error.code, error.exit_code) == ("key_invalid", EXIT_CONFIG)


@pytest.mark.parametrize("raw", [b"", b"ab", LOCKED, public_pem(KEY), b"-----BEGIN nothing"])
def test_what_is_no_private_key_is_refused(tmp_path: Path, raw: bytes):
    assert refusal(load_private_key, key_file(tmp_path, raw)).code == "key_invalid"


def test_a_missing_key_is_named(tmp_path: Path):
    error = refusal(load_public_key, tmp_path / "nowhere")
    assert (error.code, error.exit_code) == ("key_missing", EXIT_NO_INPUT)
    assert "nowhere" in error.where


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_makes_our_keys_and_agrees_with_our_signatures(folder: Path, tmp_path: Path):
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    openssl("genpkey", "-algorithm", "ed25519", "-out", "private.pem")
    openssl("pkey", "-in", "private.pem", "-pubout", "-out", "public.pem")
    (tmp_path / "private.pem").chmod(0o600)
    sign_bundle(folder, load_private_key(tmp_path / "private.pem"))
    assert check_signature(read_bundle(folder), load_public_keys([tmp_path / "public.pem"]))
    signed = json.loads((folder / SIGNATURE).read_bytes())
    (tmp_path / "raw").write_bytes(bytes.fromhex(signed["signature"]))
    verify = ("pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin")
    openssl(*verify, "-in", str(folder / MANIFEST), "-sigfile", "raw")


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_the_registry_carries_the_signature(folder: Path, tmp_path: Path):
    from recsys.tracking import Registry

    sign_bundle(folder, KEY)
    registry = Registry(tmp_path / "home")
    version = registry.log_training("recsys", folder, {}, {})
    fetched = registry.load(version, tmp_path / "cache" / "one")
    assert check_signature(fetched, KEYS) == key_id(KEY.public_key())
