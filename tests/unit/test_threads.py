"""The library's own threads take no signals: a process that keeps one off its main thread lives until it lets it in."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

#: Sends SIGTERM to a process whose main thread does not want it, and lets it in later.
PROGRAM = """
import os, signal, threading, time
{start}
assert threading.active_count() > 1
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.2)
print("alive", flush=True)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {{signal.SIGTERM}})
time.sleep(60)
"""

THREADS = {
    "heartbeat and recovery": """
from celery_durable.common.threads import native_thread
native_thread(lambda sleep: sleep(60), "test")
""",
    "flush timer": """
from celery_durable.store import Database, Journal
from celery_durable.store.records import Entry, EntryKind, Fence
from celery_durable.journal.writer import ExecutionBuffer, JournalWriter
writer = JournalWriter(Journal(Database("sqlite://"), lease_ms=1000), flush_interval=60, ack_timeout=1)
writer.append(ExecutionBuffer(Fence(1, 1), 1, 0.0), Entry("", 0, 0, EntryKind.RESULT, None, "x"))
""",
}


@pytest.mark.parametrize("start", THREADS.values(), ids=THREADS)
def test_a_signal_that_the_main_thread_blocks_waits_for_it(start: str) -> None:
    program = PROGRAM.format(start=start)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "alive\n", done.stderr
    assert done.returncode == -signal.SIGTERM


def test_a_handler_runs_in_the_main_thread_at_once_and_the_masks_stay_as_they_were() -> None:
    program = """
import os, signal, threading, time
from celery_durable.common.threads import native_thread
before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
signal.signal(signal.SIGUSR1, lambda *_: print(threading.current_thread() is threading.main_thread(), flush=True))
native_thread(lambda sleep: sleep(60), "test")
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_a_descriptor_is_closed_at_once_under_gevent_too() -> None:
    program = """
from gevent import monkey
monkey.patch_all()
import gevent, os, socket
from celery_durable.common.threads import close_at_once
gevent.sleep(0)  # its loop is there
ours, theirs = socket.socketpair()
number = os.dup(ours.fileno())
close_at_once(number)
try:
    os.fstat(number)
except OSError:
    print("closed")
# Nobody remembers the number: whoever gets it can close it.
assert os.dup(ours.fileno()) == number
os.close(number)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("closed\n", 0), done.stderr
