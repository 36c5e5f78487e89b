"""Values derived from ``durable_secret``: tokens of promises, and ids of child tasks.

Whoever settles a promise from outside must know its token. A body puts it into a link or a request, which may be the
argument of a step, so every replay must return the same one. With ``durable_secret`` it is derived from the promise's
id, and the database never holds it. Without, it is random and kept in the journal.

A child's id is made once, from the newest secret, and kept in the journal together with the child's message: no replay
makes it again, whatever the secret is by then.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from blake3 import blake3

from celery_durable.errors import ConfigurationError
from celery_durable.identity import child_id

__all__ = ["Tokens", "fits", "token_hash"]

#: Bytes of a token.
_LENGTH: Final = 32
_KEY_CONTEXT: Final = "celery_durable v1 promise token"
_CHILD_CONTEXT: Final = "celery_durable v1 key of child ids"
_NAME_CONTEXT: Final = "celery_durable v1 name of a secret"
#: What a token is compared with where there is none.
_NOBODYS: Final = secrets.token_bytes(_LENGTH)


def token_hash(token: str) -> bytes:
    """What is stored of a token."""
    return blake3(token.encode("utf-8", "surrogatepass")).digest()


def fits(token: str, stored: bytes | None) -> bool:
    """Whether a token is the right one. It takes the same time whatever is wrong with it, and where there is none."""
    right = hmac.compare_digest(token_hash(token), _NOBODYS if stored is None else stored)
    return right and stored is not None


class Tokens:
    """Makes the tokens of one application, and the ids of its child tasks.

    :param secret: setting ``durable_secret``.
    """

    def __init__(self, secret: str | Sequence[str] | None = None) -> None:
        texts = [secret] if isinstance(secret, str) else list(secret or ())
        #: Name → key, the newest first. The name stands in the journal, so that a replay finds the right one.
        self._keys = {_derived(_NAME_CONTEXT, text)[:6].hex(): _derived(_KEY_CONTEXT, text) for text in texts}
        self._child_key = _derived(_CHILD_CONTEXT, texts[0]) if texts else None

    def mint(self, promise_id: str) -> tuple[dict[str, Any], str]:
        """A new promise's token, and what the journal keeps to find it again."""
        for name, key in self._keys.items():
            return {"secret": name}, _text(blake3(promise_id.encode(), key=key).digest())
        token = _text(secrets.token_bytes(_LENGTH))
        return {"token": token}, token

    def again(self, promise_id: str, kept: Mapping[str, Any]) -> str:
        """The token that :meth:`mint` made.

        :raises ConfigurationError: when the secret that it was derived from is no longer there.
        """
        if "token" in kept:
            return str(kept["token"])
        key = self._keys.get(kept["secret"])
        if key is None:
            raise ConfigurationError(
                f"the token of promise {promise_id} was derived from a secret that is not in durable_secret any more. "
                "Add the old one after the new one, in a list, until nobody waits for such a promise."
            )
        return _text(blake3(promise_id.encode(), key=key).digest())

    def child_id(self, namespace: str, execution_id: str, lane: str, name: str, occurrence: int) -> str:
        """The id of a child task that is to be started now; see :func:`.identity.child_id`."""
        return child_id(namespace, execution_id, lane, name, occurrence, key=self._child_key)


def _derived(context: str, secret: str) -> bytes:
    return blake3(secret.encode("utf-8", "surrogatepass"), derive_key_context=context).digest()


def _text(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).decode("ascii").rstrip("=")
