"""Checks of Celery's own settings, where they would betray a durable execution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import celery

from ..expiry import chord_expiry
from ..settings import LOSSY_TRANSPORTS
from .checks import Patient, Remark, check, error, fine, warning

__all__ = ["visibility_timeout"]

#: Where the broker brings back a message that was not acknowledged for so long: its default, in seconds.
_VISIBILITY = {"redis": 3600.0, "rediss": 3600.0, "sentinel": 3600.0, "sqs": 1800.0, "gcpubsub": 600.0}
_REDIS = frozenset({"redis", "rediss", "sentinel"})
#: A chord is forgotten sooner than Celery's own default, in seconds.
_A_DAY = 86_400.0


def visibility_timeout(patient: Patient) -> float | None:
    """After how many seconds the broker delivers an unacknowledged message again; None: it does not."""
    default = _VISIBILITY.get(patient.transport)
    if default is None:
        return None
    return float((patient.conf.broker_transport_options or {}).get("visibility_timeout", default))


def _names(tasks: list[Any]) -> str:
    names = [task.name for task in tasks[:3]]
    return ", ".join(names) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")


@check("CD921", "late acknowledgement")
def acknowledgement(patient: Patient) -> Iterator[Remark]:
    """Without it a message is lost with its worker."""
    early = [task for task in patient.tasks if not (task.acks_late and task.reject_on_worker_lost)]
    if early:
        yield error(
            f"{_names(early)}: acks_late or reject_on_worker_lost was set to False after the task was made. A message "
            "is lost with its worker, and a killed process fails it.",
            "Leave both alone on durable tasks.",
        )


@check("CD922", "time limits")
def time_limits(patient: Patient) -> Iterator[Remark]:
    """Limits that strike where the database is slow, or never."""
    conf, patience = patient.conf, patient.settings.ack_timeout
    limits = [
        (task, task.time_limit or conf.task_time_limit or 0, task.soft_time_limit or conf.task_soft_time_limit or 0)
        for task in patient.tasks
    ]
    hasty = [task for task, hard, _ in limits if 0 < hard <= patience]
    if hasty:
        yield warning(
            f"{_names(hasty)}: the hard time limit is within durable_ack_timeout ({patience:g} s): where the database "
            "answers late, the execution fails instead of coming back.",
            "Give the task more time, or the database less.",
        )
    deaf = [task for task, hard, soft in limits if 0 < hard <= soft]
    if deaf:
        yield warning(
            f"{_names(deaf)}: the soft time limit is no shorter than the hard one: it never comes to it, and the body "
            "never hears of its end.",
            "Make the soft limit the shorter one.",
        )


@check("CD923", "prefetching")
def prefetching(patient: Patient) -> Iterator[Remark]:
    """Messages that wait in a worker are lost for the others."""
    multiplier = patient.conf.worker_prefetch_multiplier
    if multiplier == 0:
        yield warning(
            "worker_prefetch_multiplier is 0: a worker takes as many messages as there are. What it has not started "
            "when it dies waits for the broker to bring it back.",
            "Set it to 1 for long tasks, to some more for short ones; or use the outbox, which brings it back sooner.",
        )
    else:
        yield fine(
            f"worker_prefetch_multiplier is {multiplier}" + ("; 1 is better for long tasks" if multiplier > 1 else "")
        )


@check("CD924", "lost connections")
def connection_loss(patient: Patient) -> Iterator[Remark]:
    """Celery can kill late-acknowledging tasks when it reconnects."""
    if patient.conf.worker_cancel_long_running_tasks_on_connection_loss:
        yield warning(
            "worker_cancel_long_running_tasks_on_connection_loss is on: every durable body that runs is killed when "
            "the broker's connection is lost. It goes on afterwards, but guarded steps that run then are in doubt.",
            "Turn it off: a message that the broker delivers again meanwhile is dropped.",
        )


@check("CD925", "deduplication")
def deduplication(patient: Patient) -> Iterator[Remark]:
    """Before 5.7 Celery's own way loses callbacks."""
    if patient.conf.get("worker_deduplicate_successful_tasks") and _version() < (5, 7):
        yield warning(
            f"worker_deduplicate_successful_tasks is on: Celery {celery.__version__} then drops a redelivered message "
            "together with its chain and callbacks, although they may not have been sent yet.",
            "Turn it off; duplicates of durable tasks are dropped anyway, and rightly.",
        )


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in celery.__version__.split(".")[:2])


@check("CD926", "visibility time-out")
def visibility(patient: Patient) -> Iterator[Remark]:
    """Redis and others deliver the message of a long task again while it runs."""
    timeout = visibility_timeout(patient)
    if timeout is None:
        yield fine(f"{patient.transport} has none")
        return
    lease = patient.settings.lease_timeout
    limit = max((task.time_limit or patient.conf.task_time_limit or 0 for task in patient.tasks), default=0)
    if timeout <= lease:
        yield warning(
            f"visibility_timeout ({timeout:g} s) is not longer than durable_lease_timeout ({lease:g} s): nearly every "
            "message is delivered several times. The copies are dropped, but each costs a look at the journal.",
            "Set it to an hour or more: it does not decide any more when work goes on.",
        )
    elif limit > timeout:
        yield warning(
            f"a durable task may run for {limit:g} s, longer than visibility_timeout ({timeout:g} s): its message is "
            "delivered again meanwhile, and the copy dropped.",
            "Set the visibility time-out above the longest task and countdown.",
        )
    else:
        yield fine(f"{timeout:g} s; copies of messages that run, or wait, for longer are dropped")


@check("CD927", "lost messages")
def lossy(patient: Patient) -> Iterator[Remark]:
    """Some transports forget what a killed worker had taken."""
    transport = patient.transport
    if transport == "memory":
        yield warning("the broker is in memory: its messages live and die with this process.", "For tests only.")
    elif patient.settings.outbox:
        yield fine("the outbox records each message before the broker has it")
    elif transport in LOSSY_TRANSPORTS:
        yield warning(
            f"durable_outbox is off, and the {transport} transport loses the messages that a killed worker had taken: "
            "those that had not started are gone.",
            "Leave durable_outbox alone: it is on by itself on this transport.",
        )
    else:
        yield fine(f"{transport} keeps them; durable_outbox would survive the loss of the broker, too")


@check("CD928", "priorities")
def priorities(patient: Patient) -> Iterator[Remark]:
    """A priority that the broker was not told to heed."""
    conf = patient.conf
    urgent = [task for task in patient.tasks if getattr(task, "priority", None)]
    if not (urgent or conf.task_default_priority):
        return
    who = _names(urgent) if urgent else "task_default_priority"
    if patient.transport in _REDIS and (conf.broker_transport_options or {}).get("queue_order_strategy") != "priority":
        yield warning(
            f"{who}: there are priorities, but Redis serves its queues in turn unless told otherwise.",
            "broker_transport_options = {'queue_order_strategy': 'priority', ...}",
        )
    elif patient.transport in ("amqp", "pyamqp", "amqps", "librabbitmq") and not (
        conf.task_queue_max_priority or _declared_priorities(conf)
    ):
        yield warning(
            f"{who}: there are priorities, but RabbitMQ heeds them only in queues declared with a highest one.",
            "Set task_queue_max_priority, or x-max-priority on the queues.",
        )


def _declared_priorities(conf: Any) -> bool:
    queues = conf.task_queues or ()
    return any(
        getattr(queue, "max_priority", None) or "x-max-priority" in (getattr(queue, "queue_arguments", None) or {})
        for queue in (queues.values() if isinstance(queues, dict) else queues)
    )


@check("CD929", "eager mode")
def eager(patient: Patient) -> Iterator[Remark]:
    """Eager runs have nobody who goes on with them."""
    if patient.conf.task_always_eager:
        yield warning(
            "task_always_eager is on: tasks run in the process that calls them, and nobody recovers one that dies.",
            "For tests only.",
        )


@check("CD931", "result backend")
def results(patient: Patient) -> Iterator[Remark]:
    """Where callers look for a result, and for SUSPENDED or AMBIGUOUS."""
    uri = patient.app.backend.as_uri()
    if uri.startswith("disabled") and patient.conf.task_ignore_result:
        yield fine("none, and task_ignore_result is on: nobody waits for results")
    elif uri.startswith("disabled"):
        yield warning(
            "there is no result backend: AsyncResult knows nothing, chords do not work, and a parked execution shows "
            "in the log and in `celery durable list` only. The journal has all outcomes.",
            "Set result_backend where anybody waits for results or uses chords, task_ignore_result where nobody does.",
        )
    elif uri.startswith("rpc"):
        yield warning(
            "the result backend is rpc://: a result goes to the process that called, and is lost when that ends. An "
            "execution that goes on later, or is parked, is not seen by anybody else.",
            "Use a backend that stores results, such as redis:// or db+postgresql://.",
        )
    else:
        yield fine(uri)


@check("CD932", "result expiry")
def expiry(patient: Patient) -> Iterator[Remark]:
    """A chord is forgotten while its member waits."""
    seconds = chord_expiry(patient.app)
    if seconds is None:
        return
    name = "result_chord_expires" if patient.conf.get("result_chord_expires") is not None else "result_expires"
    if seconds < _A_DAY:
        yield warning(
            f"{name} is {seconds:g} s: a chord of which a member waits for longer (a sleep, a promise, a retry, an "
            "operator) is forgotten by the result backend, and its body never runs.",
            "Set it longer than any member waits.",
        )
    else:
        yield fine(f"members of chords may wait for up to {seconds / 3600:g} hours ({name})")
