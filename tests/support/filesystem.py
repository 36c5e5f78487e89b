"""Kombu's filesystem transport, with messages that appear whole.

Kombu creates the file of a message, and only then locks and fills it. A worker that looks in between takes the empty
file and ends with ``JSONDecodeError`` ("Unrecoverable error"), at random, and more often on a busy machine. The tests
that use this broker are not about that.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from time import monotonic
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps

__all__ = ["Channel", "Transport"]


class Channel(filesystem.Channel):
    """Writes a message under a name that no consumer takes, and renames it."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        name = f"{round(monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        unfinished = Path(self.data_folder_out, f"{name}.unfinished")
        unfinished.write_text(dumps(payload))
        os.replace(unfinished, Path(self.data_folder_out, name))


class Transport(filesystem.Transport):
    """Use it as ``broker_transport``, beside the URL ``filesystem://``."""

    Channel = Channel
