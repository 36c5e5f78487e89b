"""The seal: payloads that are encrypted and bound to their place.

Who reads the database learns nothing from them, and who writes to it cannot change, move or forge them. This folder
knows bytes, keys and places. What a payload means is for :mod:`celery_durable.codec`, which encodes before the seal
and decodes after it.

Nothing writes sealed rows yet: the store is to call it for each row.
"""

from .box import OVERHEAD, SEALED, Box, SealBroken
from .keys import Key, KeyMissing, Keyring, key_id
from .places import entry_place, message_place, payload_place, promise_place

__all__ = [
    "OVERHEAD",
    "SEALED",
    "Box",
    "Key",
    "KeyMissing",
    "Keyring",
    "SealBroken",
    "entry_place",
    "key_id",
    "message_place",
    "payload_place",
    "promise_place",
]
