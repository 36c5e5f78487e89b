"""The scopes of a running body: how they are opened and left, and what must have ended when the body ends.

A body that is stopped (it is cancelled, or undone after a crash) is left scope by scope, each where its own journal
ends: however far one branch has come, the others may know more of what there is to undo.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from celery_durable.journal.cursor import SEGMENT, ReplayCursor, read_whole
from celery_durable.journal.entries import only_audits
from celery_durable.journal.packing import unpacked
from celery_durable.replay import divergence
from celery_durable.replay.leaving import Held, Park, Undoing, Waiting
from celery_durable.replay.scope import ScopeState
from celery_durable.replay.shared_prefix import read_mark
from celery_durable.store.records import META, UNDO, Entry, EntryKind, Journaled

from .base import BodyContext

__all__ = ["ScopedContext"]


class ScopedContext(BodyContext):
    """What a durable context knows of its scopes."""

    #: Scopes of which the journal may know something.
    _known: list[ScopeState]

    # -- opening --------------------------------------------------------------------------------------------

    def _scope(self, path: str, lane: str, end: int | None = None, first: Any = None) -> ScopeState:
        run = self._run
        cursor = ReplayCursor(
            functools.partial(run.load, path),
            empty=not run.opened.resumed,
            long=run.opened.steps > SEGMENT,
            first=first,
            unreadable=run.unreadable,
        )
        run.scopes.add(path)
        scope = ScopeState(path, lane, cursor, end)
        if run.opened.resumed:
            self._known.append(scope)
        return scope

    def _open_scope(self, name: str) -> tuple[ScopeState, int, list[Journaled] | None, bool]:
        """Take a position for a scope of branches, and journal that one stands there.

        :returns: whether the body is to be left instead, too.
        """
        scope, position = self._next_place(name)
        run = self._run
        rows = scope.cursor.take(position)
        if run.stopping and self._at_the_end(scope, rows):
            return scope, position, rows, True
        if rows is None:
            run.append(Entry(scope.path, position, 0, EntryKind.SCOPE, None, name))
        else:
            found = divergence.check_scope(rows, run.execution_id, scope.place(position), name)
            if found is not None:
                self._diverge(found)
        return scope, position, rows, False

    # -- leaving --------------------------------------------------------------------------------------------

    @staticmethod
    def _at_the_end(scope: ScopeState, rows: list[Journaled] | None) -> bool:
        """Whether a scope of a body that is stopped has come to where its journal ends: what it asks for now would be
        new.
        """
        if scope.path == UNDO:
            return False
        return rows is None or rows[-1].kind in (EntryKind.ATTEMPT, EntryKind.RUN_AGAIN) or only_audits(rows)

    def _leave(self, scope: ScopeState, left: Waiting | Undoing) -> BaseException:
        """This scope is left. A branch is left alone; the body permanently."""
        if self._run.stopping and not isinstance(left, Held):
            left = Undoing()
        scope.left = left
        if not scope.path and not scope.open_parallels:
            return self._run.standing.bar(left)
        return left

    def _stop(self, scope: ScopeState) -> BaseException:
        """By what a plain call of a body that is stopped is left. Other coroutines of the scope continue to their
        ends.
        """
        return Undoing() if self._in_coroutine() else self._leave(scope, Undoing())

    # -- the ends of a body ---------------------------------------------------------------------------------

    def _load_meta(self) -> None:
        """What the journal says of the execution itself."""
        run = self._run
        position, ends = 0, not run.opened.resumed
        while not ends:
            rows, position, ends = read_whole(functools.partial(run.load, META), position, SEGMENT)
            for row in rows:
                if row.kind == EntryKind.PATCH:
                    run.patches.load(row)
                elif row.kind == EntryKind.SHARED:
                    run.saga.shared = read_mark(row, run.codec)
                else:
                    run.saga.load(row)
        run.stopping = run.saga.undoing

    def _ended(self) -> None:
        """The body returned: whatever is wrong and was hidden comes out now.

        :raises ReplayDivergence: a recorded step was never reached.
        :raises Park: a branch left a step in doubt, and nobody was told.
        """
        run = self._run
        run.check()
        self._check_awaited()
        run.settle_errors(None)
        self._check_left(self._body, "the body")
        if run.opened.resumed:
            self._check_scopes()
        doubts = run.doubts()
        if doubts:
            raise run.standing.bar(Park("\n".join(item.doubt or "" for item in doubts)))

    def _check_left(self, scope: ScopeState, what: str) -> None:
        rows = scope.cursor.first_left(scope.next_position)
        if rows is not None:
            place = scope.place(rows[0].position)
            self._diverge(divergence.leftover(self._run.execution_id, place, rows, what))

    def _check_scopes(self) -> None:
        """No branch is left over of which the body created none this time."""
        run = self._run
        for path in sorted(run.recorded_scopes() - run.scopes):
            rows = list(unpacked(run.load(path, 0, 1)))
            self._diverge(divergence.leftover(run.execution_id, f"{path}/0", rows, "the body"))

    def _left_behind(self) -> Iterator[list[Journaled]]:
        """What the journal of this generation knows and the body has not asked for, position by position. It is taken
        by that.
        """
        run = self._run
        if not run.opened.resumed:
            return
        for scope in self._known:
            if scope.path != UNDO:
                yield from scope.cursor.rest()
        for path in sorted(run.recorded_scopes() - run.scopes):
            yield from ReplayCursor(functools.partial(run.load, path), empty=False).rest()

    def _awaits_more(self) -> bool:
        """Whether the journal knows of steps that the body has not come to yet."""
        return any(scope.cursor.has(scope.next_position) or scope.cursor.holds for scope in self._known)
