"""Seals and opens payloads.

A sealed payload, in bytes::

    version (1) | key id (4) | salt (16) | commitment (16) | nonce (12) | ciphertext | tag (16)

The cipher is AES-256-GCM. Its key, and the commitment, are derived from a main key for one execution and one salt::

    BLAKE3 derive_key("celery_durable v1 payload", main key | len(namespace) (4) | namespace | pk (8) | salt)

The first 32 bytes of that are the key of the cipher, the next 16 the commitment. GCM does not commit to its key: with
two keys, a row can be made that opens under both. So the commitment is compared before anything is decrypted, as the
AWS Encryption SDK does. Nonces are random. A fresh key for each execution and process keeps their number under one
key far below the 2**32 that NIST SP 800-38D allows. Numbers are big-endian.
"""

from __future__ import annotations

import hmac
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from celery_durable.errors import ConfigurationError

from .keys import ID_BYTES, Keyring

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["OVERHEAD", "SEALED", "Box", "SealBroken"]

#: Set in ``codec`` where the data is sealed; the other bits say what it is once it is opened.
SEALED: Final = 0x100

VERSION: Final = 1
_SALT: Final = 16
_COMMITMENT: Final = 16
_NONCE: Final = 12
_TAG: Final = 16
_HEAD: Final = 1 + ID_BYTES + _SALT + _COMMITMENT
#: How many bytes a sealed payload is longer than what is in it.
OVERHEAD: Final = _HEAD + _NONCE + _TAG

_DERIVED: Final = blake3(derive_key_context="celery_durable v1 payload")
#: Executions whose keys are kept: those that run, wait or are looked at in one process.
_KEPT: Final = 4096


class SealBroken(Exception):
    """A sealed payload does not open: it was changed, cut, moved, or made by somebody without the key."""


class _Opened(NamedTuple):
    #: What a sealed payload begins with: everything before the nonce.
    head: bytes
    cipher: AESGCM


class Box:
    """Seals and opens the payloads of one application.

    :param keys: the main keys.
    :param namespace: setting ``durable_namespace``.
    :raises ConfigurationError: where the library ``cryptography`` is not installed.
    """

    def __init__(self, keys: Keyring, namespace: str) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ConfigurationError(
                "durable_encryption_keys needs the library cryptography. Install it: "
                "pip install 'celery-durable[encryption]'.",
                setting="durable_encryption_keys",
            ) from error
        self._keys = keys
        self._cipher = AESGCM
        self._invalid = InvalidTag
        self._namespace: Final = namespace.encode()
        self._writing = lru_cache(_KEPT)(self._new)
        self._reading = lru_cache(_KEPT)(self._derive)

    def seal(self, pk: int, place: bytes, data: bytes) -> bytes:
        """Encrypt a payload of an execution for its place.

        :param pk: of the execution.
        :param place: of the payload, see :mod:`.places`.
        """
        # A process that was forked off has salts of its own.
        head, cipher = self._writing(pk, os.getpid())
        nonce = os.urandom(_NONCE)
        return head + nonce + cipher.encrypt(nonce, data, place)

    def open(self, pk: int, place: bytes, data: bytes) -> bytes:
        """Decrypt a payload that stands in a place.

        :raises KeyMissing: when the key is not among ours. Nothing is known about the payload then.
        :raises SealBroken: when it was not sealed for this place by somebody with the key.
        """
        if len(data) < OVERHEAD or data[0] != VERSION:
            raise SealBroken("it is no sealed payload of this version")
        opened = self._reading(pk, data[1 : 1 + ID_BYTES], data[1 + ID_BYTES : 1 + ID_BYTES + _SALT])
        if not hmac.compare_digest(opened.head, data[:_HEAD]):
            raise SealBroken("its key commitment is another key's, or another execution's")
        end = _HEAD + _NONCE
        try:
            return opened.cipher.decrypt(data[_HEAD:end], data[end:], place)
        except self._invalid:
            raise SealBroken("it was changed, or belongs to another place") from None

    def is_current(self, data: bytes) -> bool:
        """Whether a sealed payload is sealed with the key that writes now."""
        return data[1 : 1 + ID_BYTES] == self._keys.writer.id

    def _new(self, pk: int, process: int) -> _Opened:
        return self._derive(pk, self._keys.writer.id, os.urandom(_SALT))

    def _derive(self, pk: int, key_id: bytes, salt: bytes) -> _Opened:
        secret = self._keys.find(key_id).secret
        words = (secret, len(self._namespace).to_bytes(4, "big"), self._namespace, pk.to_bytes(8, "big"), salt)
        derived = _DERIVED.copy().update(b"".join(words)).digest(32 + _COMMITMENT)
        return _Opened(b"%c%b%b%b" % (VERSION, key_id, salt, derived[32:]), self._cipher(derived[:32]))
