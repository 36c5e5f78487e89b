"""Finds problems of an installation before they hurt: ``celery durable doctor``, and warnings at a worker's start.

A check is a function with a stable code that looks at one thing and yields what it finds. Those of
:mod:`.own_settings` and :mod:`.celery_settings` read the configuration alone, and cost nothing; the others ask the
database.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import celery_settings, database, executions, own_settings
from .checks import Check, Finding, Patient, Severity, checks

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Check", "Finding", "Patient", "Severity", "checks", "examine", "warn_at_start"]

logger = logging.getLogger(__name__)

#: Checks that need only the configuration.
_CONFIGURATION = (own_settings, celery_settings)


def examine(patient: Patient) -> Iterator[Finding]:
    """Look at everything.

    Where the journal cannot be asked, that is a finding, and what is in it is not looked at.
    """
    reached = True
    for each in checks(database):
        found = each(patient) if reached else []
        reached = reached and not any(finding.fatal for finding in found)
        yield from found
    for module in (*_CONFIGURATION, *((executions,) if reached else ())):
        for each in checks(module):
            yield from each(patient)


def warn_at_start(app: Celery) -> list[Finding]:
    """Log the findings of the configuration alone, once for each cause.

    :returns: what was logged.
    """
    patient = Patient(app)
    said = []
    for module in _CONFIGURATION:
        for each in checks(module):
            for finding in each(patient):
                if finding.severity is not Severity.OK and not finding.silenced:
                    said.append(finding)
                    logger.warning(
                        "[%s] %s %s (celery durable doctor; to silence this: durable_silence = [%r])",
                        finding.code,
                        finding.text,
                        finding.cure,
                        finding.code,
                    )
    return said
