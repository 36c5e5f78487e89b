"""A process that calls tasks by a chosen id, or runs one anew; its command line says which."""

from __future__ import annotations

import sys

from celery import chain

import celery_durable
from celery_durable import DurableIdConflict
from celery_durable.runtime import Runtime
from tests.support.ledger import Ledger

from .app import add, app, await_gate, held, total

#: Exit code: the id belongs to another call.
CONFLICT = 3


def main(command: str, *args: str) -> None:
    if command == "add":
        execution, number = args
        add.apply_async((int(number), 1), durable_id=execution)
    elif command == "held":
        held.apply_async(durable_id=args[0])
    elif command == "race":
        # Connected already, so that all are at the same place when the gate opens.
        Runtime.of(app).database.check_schema()
        Ledger.from_env().fire("caller")
        await_gate("race")
        try:
            main("add", *args)
        except DurableIdConflict:
            sys.exit(CONFLICT)
    elif command == "chain":
        last = total.si([1, 2]).set(durable_id="third")
        chain(add.s(1, 2).set(durable_id="first"), add.s(5).set(durable_id="second"), last)()
    elif command == "rerun":
        execution, step, new = args
        celery_durable.get(execution, app).rerun(step, durable_id=new)
    else:
        raise SystemExit(f"unknown command {command}")


if __name__ == "__main__":
    main(*sys.argv[1:])
