"""Checks of the settings ``durable_*``."""

from __future__ import annotations

from collections.abc import Iterator

from celery_durable.codec.classes import import_modules
from celery_durable.errors import ConfigurationError
from celery_durable.retention.rules import Rules
from celery_durable.store.urls import shown

from .celery_settings import visibility_timeout
from .checks import Patient, Remark, check, checks, error, fine, warning

__all__: list[str] = []

#: Below this a body that computes without a pause may keep the heartbeat from its turn, in seconds.
_SHORT_LEASE = 5.0


@check("CD911", "lease")
def lease(patient: Patient) -> Iterator[Remark]:
    """Leases that live owners may lose, and dead ones keep for long."""
    settings = patient.settings
    if settings.lease_timeout < _SHORT_LEASE:
        yield warning(
            f"durable_lease_timeout is {settings.lease_timeout:g} s: a CPU-bound body may delay the heartbeat of its "
            "process for that long, and lose its execution to another worker.",
            f"Set it to {_SHORT_LEASE:g} or more, unless bodies mostly wait.",
        )
    if settings.ack_timeout > settings.lease_timeout / 2:
        yield warning(
            f"durable_ack_timeout ({settings.ack_timeout:g} s) is more than half of durable_lease_timeout "
            f"({settings.lease_timeout:g} s): a database that answers late may cost a live owner its lease.",
            "Set it to a third of the lease timeout or less.",
        )
    if settings.recovery_interval > settings.lease_timeout:
        yield warning(
            f"durable_recovery_interval ({settings.recovery_interval:g} s) is longer than durable_lease_timeout "
            f"({settings.lease_timeout:g} s): executions of dead workers, and waits that end, may be late by as much.",
            "Set it to a few seconds at most; looking costs one short query.",
        )


@check("CD912", "namespace")
def namespace(patient: Patient) -> Iterator[Remark]:
    """Two applications without a name take each other's executions."""
    nameless = not patient.app.main and patient.settings.namespace == "celery"
    if nameless and patient.url.get_backend_name() != "sqlite":
        yield warning(
            "the app has no name, so its namespace is 'celery'. Another app without a name on the same database would "
            "take its executions over.",
            "Name it, Celery('shop'), or set durable_namespace.",
        )
    else:
        yield fine(f"{patient.settings.namespace!r}")


@check("CD913", "pickle")
def pickle(patient: Patient) -> Iterator[Remark]:
    """Data that can run code."""
    settings = patient.settings
    if settings.serializer == "pickle" or "pickle" in settings.accept_serializers:
        name = "durable_serializer is" if settings.serializer == "pickle" else "durable_accept_serializers has"
        yield warning(
            f"{name} 'pickle': whoever can write to the journal can run code in every worker.",
            "Set durable_serializer to 'json', which keeps the types that journals need, and leave 'pickle' in "
            "durable_accept_serializers only until what was pickled has ended.",
        )
    accepted = [str(name) for name in patient.conf.accept_content or ()]
    if {"pickle", "application/x-python-serialize"} & set(accepted):
        yield warning(
            "accept_content has 'pickle': whoever can write to the broker can run code in every worker, and so can "
            "whoever can write to the journal, whose messages and outcomes are read by it.",
            "Take it out where all producers can send JSON.",
        )


@check("CD914", "unencrypted data")
def clear(patient: Patient) -> Iterator[Remark]:
    """There is no encryption of payloads yet."""
    where = shown(patient.url)
    yield fine(
        f"arguments, results, errors and the values of steps are stored as they are, in {where} (durable_payload, "
        "durable_journal, durable_promise, durable_outbox): protect it, and its backups, like the data themselves."
    )


@check("CD915", "tombstones")
def tombstones(patient: Patient) -> Iterator[Remark]:
    """A duplicate that comes after its tombstone has gone is run."""
    settings = patient.settings
    late = visibility_timeout(patient)
    if not Rules.of(settings).active or settings.tombstone_ttl is None or late is None:
        return
    if settings.tombstone_ttl <= late:
        yield warning(
            f"durable_tombstone_ttl is {settings.tombstone_ttl:g} s, but the broker may deliver a message again after "
            f"{late:g} s (visibility_timeout): it would find no trace of the execution, and run.",
            "Set it to several times the visibility timeout, and longer than the longest countdown.",
        )


@check("CD916", "silence")
def silence(patient: Patient) -> Iterator[Remark]:
    """A mistyped code silences nothing."""
    known = [each.code for each in checks()]
    for code in patient.settings.silence:
        if code not in known:
            yield warning(
                f"durable_silence has {code!r}, which is the code of no check, and silences nothing.",
                f"Known are: {', '.join(known)}.",
            )


@check("CD917", "modules")
def modules(patient: Patient) -> Iterator[Remark]:
    """A module that cannot be imported leaves values unreadable."""
    try:
        import_modules(patient.settings.modules)
    except ConfigurationError as failure:
        yield error(failure.message, "Correct its name, or install it where the workers run.")
