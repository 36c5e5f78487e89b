"""Main keys, by name: the first one writes, all of them read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from blake3 import blake3

from celery_durable.errors import ConfigurationError

__all__ = ["KEY_BYTES", "Key", "KeyMissing", "Keyring", "key_id"]

#: Length of a main key, in bytes.
KEY_BYTES: Final = 32
#: Length of a key's id in a sealed row, in bytes.
ID_BYTES: Final = 4

_ID: Final = blake3(derive_key_context="celery_durable v1 key id")


class Key(NamedTuple):
    """A main key. It never encrypts anything itself: each execution has a key that is derived from it."""

    #: What the operator calls it.
    name: str
    #: 32 bytes.
    secret: bytes
    #: 4 bytes that stand for the name in a sealed row.
    id: bytes

    def __repr__(self) -> str:
        # The secret must not get into a log with a traceback's local variables.
        return f"Key({self.name!r})"


class KeyMissing(Exception):
    """A row is sealed with a key that this process does not have. The data is not damaged: the key may come back."""

    def __init__(self, wanted: bytes, names: tuple[str, ...]) -> None:
        super().__init__(f"it is sealed with key {wanted.hex()}, and there are only {', '.join(names)}")
        #: The id of the key, 4 bytes.
        self.wanted = wanted


def key_id(name: str) -> bytes:
    """The 4 bytes by which sealed rows name a key. They follow from its name, so they say nothing about the key."""
    return _ID.copy().update(name.encode()).digest(ID_BYTES)


class Keyring:
    """The keys of an application.

    :param keys: a mapping of name → 32 random bytes. The first one seals, all of them open.
    :param setting: the setting that they come from, for errors.
    :raises ConfigurationError: for no keys, a key of another length, or two names with one id.
    """

    def __init__(self, keys: Any, setting: str = "durable_encryption_keys") -> None:
        if not isinstance(keys, Mapping) or not keys:
            raise _refused(setting, "it must be a dict of name → 32 bytes, with the key that writes first")
        self._keys: dict[bytes, Key] = {}
        for name, secret in keys.items():
            key = _checked(setting, name, secret)
            if (other := self._keys.get(key.id)) is not None:
                raise _refused(setting, f"the names {other.name!r} and {name!r} have one id: rename the newer key")
            self._keys[key.id] = key
        #: The key that seals.
        self.writer: Final = next(iter(self._keys.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """The names, the writer's first."""
        return tuple(key.name for key in self._keys.values())

    def find(self, wanted: bytes) -> Key:
        """The key with this id.

        :raises KeyMissing: when there is none.
        """
        try:
            return self._keys[wanted]
        except KeyError:
            raise KeyMissing(wanted, self.names) from None


def _checked(setting: str, name: Any, secret: Any) -> Key:
    if not isinstance(name, str) or not name:
        raise _refused(setting, f"the name {name!r} of a key must be a text")
    if not isinstance(secret, bytes) or len(secret) != KEY_BYTES:
        # Never the value itself: it may be nearly right.
        got = f"{len(secret)} bytes" if isinstance(secret, bytes) else f"a {type(secret).__name__}"
        why = f"key {name!r} must be {KEY_BYTES} bytes, and is {got}"
        raise _refused(setting, f"{why}. secrets.token_bytes({KEY_BYTES}) makes one")
    return Key(name, secret, key_id(name))


def _refused(setting: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{setting}: {why}.", setting=setting)
