"""Checks of Celery's own settings that can harm a durable execution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import celery

from celery_durable.execution.chords import chord_expiry
from celery_durable.settings import LOSSY_TRANSPORTS

from .checks import Patient, Remark, check, error, fine, warning

__all__ = ["visibility_timeout"]

#: After how many seconds the broker delivers an unacknowledged message again, by default.
_VISIBILITY = {"redis": 3600.0, "rediss": 3600.0, "sentinel": 3600.0, "sqs": 1800.0, "gcpubsub": 600.0}
_REDIS = frozenset({"redis", "rediss", "sentinel"})
#: From here on a shorter timeout is worth a thought, in seconds.
_LONG = 900.0
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
            f"{_names(hasty)}: the hard time limit is not longer than durable_ack_timeout ({patience:g} s): if the "
            "database answers late, the execution fails instead of being delivered again.",
            "Raise the time limit of the task, or lower durable_ack_timeout.",
        )
    deaf = [task for task, hard, soft in limits if 0 < hard <= soft]
    if deaf:
        yield warning(
            f"{_names(deaf)}: the soft time limit is not shorter than the hard one: it is never reached, and the body "
            "is killed without a warning.",
            "Make the soft limit shorter than the hard one.",
        )


@check("CD923", "prefetching")
def prefetching(patient: Patient) -> Iterator[Remark]:
    """Messages that wait in a worker are lost for the others."""
    multiplier = patient.conf.worker_prefetch_multiplier
    if multiplier == 0:
        yield warning(
            "worker_prefetch_multiplier is 0: a worker takes as many messages as there are. If it dies, those that it "
            "has not started wait for the broker to deliver them again.",
            "Set it to 1 for long tasks, to a few for short ones; or use the outbox, which sends them again sooner.",
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
            "the broker's connection is lost. It continues afterwards, but guarded steps that were running are in "
            "doubt.",
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


@check("CD926", "visibility timeout")
def visibility(patient: Patient) -> Iterator[Remark]:
    """Redis and others deliver the message of a long task again while it runs, which harms where it is not durable."""
    timeout = visibility_timeout(patient)
    if timeout is None:
        yield fine(f"{patient.transport} has none")
        return
    lease = patient.settings.lease_timeout
    if timeout <= lease:
        yield warning(
            f"visibility_timeout ({timeout:g} s) is not longer than durable_lease_timeout ({lease:g} s): nearly every "
            "message is delivered several times. The copies are dropped, but each costs a look at the journal.",
            "Set it to a few minutes: it no longer decides when work continues.",
        )
        return
    others = [task for name, task in patient.app.tasks.items() if not name.startswith(("celery.", "celery_durable."))]
    plain = [task for task in others if task.acks_late and task not in patient.tasks]
    longest = max((task.time_limit or patient.conf.task_time_limit or 0 for task in plain), default=0)
    if longest > timeout:
        yield warning(
            f"a task that is not durable may run for {longest:g} s, longer than visibility_timeout ({timeout:g} s): "
            "its message is delivered again meanwhile, and it runs twice.",
            "Set the visibility timeout above it, or make the task durable.",
        )
    elif timeout >= _LONG and not patient.settings.outbox:
        yield fine(
            f"{timeout:g} s: that long wait the messages that a killed worker had taken and not started. Where all "
            "long tasks are durable, a few minutes are enough: copies of running and waiting executions are dropped"
        )
    else:
        yield fine(f"{timeout:g} s; copies of durable tasks that run, or wait, for longer are dropped")


@check("CD927", "lost messages")
def lossy(patient: Patient) -> Iterator[Remark]:
    """Some transports forget what a killed worker had taken."""
    transport = patient.transport
    if transport == "memory":
        yield warning("the broker is in memory: its messages are lost when this process ends.", "For tests only.")
    elif patient.settings.outbox:
        yield fine("the outbox records each message before the broker has it")
    elif transport in LOSSY_TRANSPORTS:
        yield warning(
            f"durable_outbox is off, and the {transport} transport loses the messages that a killed worker had taken: "
            "those that had not started are gone.",
            "Leave durable_outbox alone: it is on by itself on this transport.",
        )
    else:
        yield fine(f"{transport} keeps them; durable_outbox would also protect against the loss of the broker")


@check("CD928", "priorities")
def priorities(patient: Patient) -> Iterator[Remark]:
    """A priority that the broker is not configured to honour."""
    conf = patient.conf
    urgent = [task for task in patient.tasks if getattr(task, "priority", None)]
    if not (urgent or conf.task_default_priority):
        return
    who = _names(urgent) if urgent else "task_default_priority"
    if patient.transport in _REDIS and (conf.broker_transport_options or {}).get("queue_order_strategy") != "priority":
        yield warning(
            f"{who}: there are priorities, but by default Redis serves its queues in turn.",
            "broker_transport_options = {'queue_order_strategy': 'priority', ...}",
        )
    elif patient.transport in ("amqp", "pyamqp", "amqps", "librabbitmq") and not (
        conf.task_queue_max_priority or _declared_priorities(conf)
    ):
        yield warning(
            f"{who}: there are priorities, but RabbitMQ honours them only in queues declared with a maximum priority.",
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
    """Nobody continues an eager run."""
    if patient.conf.task_always_eager:
        yield warning(
            "task_always_eager is on: tasks run in the process that calls them, and nothing recovers one that dies.",
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
            "Set result_backend if you wait for results or use chords; otherwise set task_ignore_result.",
        )
    elif uri.startswith("rpc"):
        yield warning(
            "the result backend is rpc://: a result goes to the process that made the call, and is lost when that "
            "process ends. Nobody sees the end of an execution that continues later, or that it is parked.",
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
            f"{name} is {seconds:g} s: if a member of a chord waits longer (a sleep, a promise, a retry, an operator), "
            "the result backend forgets the chord, and its body never runs.",
            "Set it longer than any member waits.",
        )
    else:
        yield fine(f"members of chords may wait for up to {seconds / 3600:g} hours ({name})")
