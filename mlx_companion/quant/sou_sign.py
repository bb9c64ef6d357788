"""ed25519 signatures of `.sou` files (extra `sou`, the package `cryptography`).

What is signed is the digest in the header, which covers the table and through it every byte. A
signature proves that the holder of a key made the file; whose key it is, the reader has to know.

    openssl genpkey -algorithm ed25519 -out me.pem
    openssl pkey -in me.pem -pubout -out me.pub.pem
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_companion.errors import ConfigError, MissingExtraError, SouError
from mlx_companion.quant.sou_layout import Signature, encode_signature

CONTEXT = b"SOU signature v1\x00"
_MOST = 1 << 16


class SigningKey:
    """A private key, from a PEM file.

    Args:
        path: an unencrypted PEM file with an ed25519 private key.

    Raises:
        ConfigError: not such a file.
        MissingExtraError: `cryptography` is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        serialization, ed25519 = _modules()
        try:
            key = serialization.load_pem_private_key(_pem(path), password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} holds no unencrypted private key in PEM: {error}") from None
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ConfigError(
                f"{path} is a key of another kind; make one with "
                "`openssl genpkey -algorithm ed25519 -out key.pem`"
            )
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes_raw()

    def block(self, digest: bytes) -> bytes:
        """The signature block for a file with this digest."""
        return encode_signature(self.public_key, self._key.sign(CONTEXT + digest))


def read_public_key(path: str | Path) -> bytes:
    """The 32 bytes of an ed25519 public key in a PEM file.

    Raises:
        ConfigError: not such a file.
        MissingExtraError: `cryptography` is not installed.
    """
    serialization, ed25519 = _modules()
    try:
        key = serialization.load_pem_public_key(_pem(path))
    except ValueError as error:
        raise ConfigError(f"{path} holds no public key in PEM: {error}") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(f"{path} is a public key of another kind; ed25519 is expected")
    return key.public_bytes_raw()


def check_signature(found: Signature, digest: bytes) -> None:
    """Check a signature against the key that it claims.

    Raises:
        SouError: it is not right.
        MissingExtraError: `cryptography` is not installed.
    """
    _, ed25519 = _modules()
    from cryptography.exceptions import InvalidSignature

    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(found.public_key)
        key.verify(found.signature, CONTEXT + digest)
    except (InvalidSignature, ValueError):
        raise SouError("its signature is wrong; the file was changed after it was signed") from None


def _pem(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MOST)
    except OSError as error:
        raise ConfigError(f"the key {path} cannot be read ({error.strerror})") from error


def _modules() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtraError("cryptography", "sou") from error
    return serialization, ed25519
