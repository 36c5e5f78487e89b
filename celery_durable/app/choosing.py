"""Which Celery application is meant if none is named.

Celery keeps the current application per thread. In a thread that has none it does not fail, but creates a default one,
without a broker and without settings. The journal of that one would be a new, empty file somewhere.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from celery import Celery, _state

from celery_durable.errors import ConfigurationError
from celery_durable.runtime.proxies import behind
from celery_durable.settings import is_made_up, names_journal

__all__ = ["choose", "real"]


def real(app: Any) -> Any:
    """An application itself, where a proxy of it is given.

    :raises ConfigurationError: for anything else.
    """
    found = behind(app)
    if not isinstance(found, Celery):
        raise ConfigurationError(f"app= takes a Celery application, not {found!r}.")
    return found


def choose(durable: Collection[Celery]) -> Any:
    """The application that a caller means who names none.

    It is the current one of this thread or, where that has none, of the process; or the only one that the program has
    made. Where those are several, or the current one has to do with no journal, it is the one that has: whose settings
    name a database, or where none's do, which has durable tasks. A program without any may have configured the
    one that Celery makes up, in a ``celeryconfig``.

    :param durable: the applications of which it is known that they have durable tasks. Tasks are lazy, and those of one
        application may be in the others too.
    :raises ConfigurationError: where several may be meant.
    """
    tls: Any = _state._tls  # type: ignore[attr-defined]
    remembered = tls.current_app or _state.default_app  # type: ignore[attr-defined]
    current = None if remembered is None else real(remembered)
    if current is not None and is_made_up(current):
        current = None
    if current is not None and (current in durable or names_journal(current)):
        return current
    apps = [app for app in list(_state._get_active_apps()) if not is_made_up(app)]  # type: ignore[attr-defined]
    known = [app for app in apps if names_journal(app)] or [app for app in apps if app in durable]
    if len(known) == 1 and current not in known:
        return known[0]
    if current is not None:
        return current
    if len(apps) < 2:
        return apps[0] if apps else real(_state.get_current_app())
    names = ", ".join(sorted(repr(app.main or "(without a name)") for app in known or apps))
    raise ConfigurationError(
        f"which Celery application is meant? There are several ({names}), and none of them is current in this thread. "
        "Pass app=, or call app.set_default() once, which makes it the default in every thread."
    )
