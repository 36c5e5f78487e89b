"""The limits of one run, and what it has used."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counters", "Limits"]


@dataclass(frozen=True)
class Limits:
    """What a run may use up."""

    max_steps: int = 10_000
    #: Seconds.
    lease_timeout: float = 30.0
    #: Setting ``durable_previews``.
    previews: bool = True


@dataclass
class Counters:
    """What happened in one run, for the log and the tests of users."""

    #: Steps answered from the journal.
    replayed: int = 0
    #: Operations called.
    called: int = 0
    #: Guarded steps answered from the journal, an earlier generation, or by SKIP.
    guarded_skipped: int = 0
    #: Commits that were given up because the journal was unavailable (``durable_on_unavailable = "degrade"``).
    degraded: int = 0
