"""A process that a body has forked: a copy of everything, and owner of nothing.

What the body does there is not journaled, and cannot be: the lease is its parent's. When it leaves the body it ends,
because above the body is the loop of a pool process, which must run only once.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

__all__ = ["end_fork"]


def end_fork(owner: int, error: BaseException | None) -> None:
    """End this process, if it is not the one that runs the body but a fork of it.

    :param owner: the pid of that one.
    :param error: with which it has left the body; None where it has returned.
    """
    if os.getpid() == owner:
        return
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        status = 1
        sys.stderr.write(f"a process that a durable body had forked has left the body with {error!r}; it ends\n")
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)
