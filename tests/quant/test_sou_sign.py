"""Signatures: made, checked, and not got around."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sou_bytes import build, small

from mlx_companion.errors import ConfigError, SouError
from mlx_companion.quant.sou_layout import HEADER_SIZE, Kind
from mlx_companion.quant.sou_sign import CONTEXT, SigningKey, read_public_key
from mlx_companion.quant.sou_verify import verify
from mlx_companion.quant.sou_writer import text_part, write_sou

PARTS = [text_part(Kind.CONFIG, "config.json", b"{}"), text_part(Kind.RULES, "a.md", b"be kind")]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key in PEM."""
    return make_keys(tmp_path, "mine")


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization as s

    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_a_signed_file_is_valid_and_trusted(keys: tuple[Path, Path], tmp_path: Path) -> None:
    path, (private, public) = tmp_path / "a.sou", keys
    write_sou(path, PARTS, key=SigningKey(private))
    first = path.read_bytes()
    write_sou(path, PARTS, key=SigningKey(private))
    assert path.read_bytes() == first
    assert verify(path).signature == "valid"
    found = verify(path, read_public_key(public))
    assert found.signature == "trusted"
    assert found.public_key == read_public_key(public).hex()


def test_what_is_signed_is_what_the_specification_says(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    write_sou(tmp_path / "a.sou", PARTS, key=SigningKey(keys[0]))
    data = (tmp_path / "a.sou").read_bytes()
    at = HEADER_SIZE + int.from_bytes(data[28:32], "little")
    assert data[at : at + 8] == b"\1\0\0\0\0\0\0\0"
    assert CONTEXT == b"SOU signature v1\0"
    key = Ed25519PublicKey.from_public_bytes(data[at + 8 : at + 40])
    key.verify(data[at + 40 : at + 104], b"SOU signature v1\0" + data[32:64])


def test_somebody_else_s_signature_is_refused(keys: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.sou"
    other, _ = make_keys(tmp_path, "other")
    write_sou(path, PARTS, key=SigningKey(other))
    with pytest.raises(SouError, match="comes from somebody else"):
        verify(path, read_public_key(keys[1]))
    write_sou(path, PARTS)
    with pytest.raises(SouError, match="is not signed"):
        verify(path, read_public_key(keys[1]))
    assert verify(path).signature == "none"


def test_changed_content_under_an_old_signature(keys: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "a.sou"
    write_sou(path, PARTS, key=SigningKey(keys[0]))
    data = path.read_bytes()
    at = HEADER_SIZE + int.from_bytes(data[28:32], "little")
    path.write_bytes(build(small(), flags=1, block=data[at : at + 136]))
    for key in (None, read_public_key(keys[1])):
        with pytest.raises(SouError, match="signature is wrong"):
            verify(path, key)


def test_a_signature_changes_nothing_else(keys: tuple[Path, Path], tmp_path: Path) -> None:
    from mlx_companion.quant.sou_diff import diff

    write_sou(tmp_path / "a.sou", PARTS)
    write_sou(tmp_path / "b.sou", PARTS, key=SigningKey(keys[0]))
    assert diff(tmp_path / "a.sou", tmp_path / "b.sou")["same"]


def test_keys_of_other_kinds_are_refused(keys: tuple[Path, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    bad = tmp_path / "bad.pem"
    other = ec.generate_private_key(ec.SECP256R1())
    bad.write_bytes(other.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    with pytest.raises(ConfigError, match="another kind"):
        SigningKey(bad)
    with pytest.raises(ConfigError, match="no public key"):
        read_public_key(keys[0])
    with pytest.raises(ConfigError, match="no unencrypted private key"):
        SigningKey(keys[1])
    with pytest.raises(ConfigError, match="cannot be read"):
        SigningKey(tmp_path / "nowhere.pem")
    locked = s.BestAvailableEncryption(b"word")
    bad.write_bytes(other.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, locked))
    with pytest.raises(ConfigError, match="no unencrypted private key"):
        SigningKey(bad)


WITHOUT = """
import sys
sys.modules["cryptography"] = None
from mlx_companion.errors import MissingExtraError
from mlx_companion.quant.sou_sign import SigningKey
from mlx_companion.quant.sou_verify import verify
print(verify(sys.argv[1]).signature)
for act in (lambda: verify(sys.argv[1], bytes(range(32))), lambda: SigningKey("x")):
    try:
        act()
    except MissingExtraError as error:
        print(error)
"""


def test_without_the_extra(tmp_path: Path) -> None:
    import hashlib
    import struct

    block = struct.pack("<II32s64s", 1, 0, bytes(range(32)), bytes(64))
    block += hashlib.sha256(block).digest()
    (tmp_path / "a.sou").write_bytes(build(small(), flags=1, block=block))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "a.sou")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    state, *errors = done.stdout.splitlines()
    assert state == "not checked"
    assert len(errors) == 2
    assert all('pip install "mlx-companion[sou]"' in error for error in errors)
