"""Tokens of promises: what somebody outside must know to settle one.

A body puts a token into a link or a request, which may be the argument of a step, so every replay must give it the same
one. With ``durable_secret`` it is derived from the promise's id, and the database never holds it. Without, it is random
and kept in the journal.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from blake3 import blake3

from .errors import ConfigurationError

__all__ = ["Tokens", "fits", "hash_of"]

#: Bytes of a token.
_LENGTH: Final = 32
_KEY_CONTEXT: Final = "celery_durable v1 promise token"
_NAME_CONTEXT: Final = "celery_durable v1 name of a secret"
#: What a token is compared with where there is none.
_NOBODYS: Final = secrets.token_bytes(_LENGTH)


def hash_of(token: str) -> bytes:
    """What is stored of a token."""
    return blake3(token.encode("utf-8", "surrogatepass")).digest()


def fits(token: str, stored: bytes | None) -> bool:
    """Whether a token is the right one. It takes the same time whatever is wrong with it, and where there is none."""
    right = hmac.compare_digest(hash_of(token), _NOBODYS if stored is None else stored)
    return right and stored is not None


class Tokens:
    """Makes the tokens of one application.

    :param secret: setting ``durable_secret``.
    """

    def __init__(self, secret: str | Sequence[str] | None = None) -> None:
        texts = [secret] if isinstance(secret, str) else list(secret or ())
        #: Name → key, the newest first. The name stands in the journal, so that a replay finds the right one.
        self._keys = {_derived(_NAME_CONTEXT, text)[:6].hex(): _derived(_KEY_CONTEXT, text) for text in texts}

    def mint(self, promise_id: str) -> tuple[dict[str, Any], str]:
        """A new promise's token, and what the journal keeps to find it again."""
        for name, key in self._keys.items():
            return {"secret": name}, _text(blake3(promise_id.encode(), key=key).digest())
        token = _text(secrets.token_bytes(_LENGTH))
        return {"token": token}, token

    def again(self, promise_id: str, kept: Mapping[str, Any]) -> str:
        """The token that :meth:`mint` made.

        :raises ConfigurationError: when the secret that it was derived from is not there any more.
        """
        if "token" in kept:
            return str(kept["token"])
        key = self._keys.get(kept["secret"])
        if key is None:
            raise ConfigurationError(
                f"the token of promise {promise_id} was derived from a secret that is not in durable_secret any more. "
                "Add the old one behind the new one, in a list, until no such promise is waited for."
            )
        return _text(blake3(promise_id.encode(), key=key).digest())


def _derived(context: str, secret: str) -> bytes:
    return blake3(secret.encode("utf-8", "surrogatepass"), derive_key_context=context).digest()


def _text(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).decode("ascii").rstrip("=")
