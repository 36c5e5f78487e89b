"""What the demo's workers tell, and how it is read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from example_project.demo import events
from example_project.demo.events import Event, EventLog


def append(path: Path, *found: Event) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(event)) + "\n" for event in found)


def test_what_is_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(events.VARIABLE, str(tmp_path / "events"))
    events.write("child")
    events.write("start", "e1")
    log = EventLog(tmp_path / "events")
    log.refresh()
    assert [(event.kind, event.execution) for event in log.events] == [("child", ""), ("start", "e1")]
    assert log.children == {os.getpid(): "e1"}


def test_a_process_is_idle_after_its_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events")
    log.refresh()
    append(log.path, Event(1.0, 7, "start", "e1"))
    log.refresh()
    assert log.children == {7: "e1"}
    append(log.path, Event(1.1, 7, "run", "e1"))
    log.refresh()
    assert log.children == {7: "e1"}
    append(log.path, Event(2.0, 7, "end", "e1"))
    log.refresh()
    assert log.children == {7: ""}
    assert len(log.events) == 3


def test_a_line_that_is_not_complete_is_read_later(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events")
    line = json.dumps(asdict(Event(1.0, 7, "start", "e1"))) + "\n"
    log.path.write_text(line[:20])
    log.refresh()
    assert log.events == []
    log.path.write_text(line)
    log.refresh()
    assert log.children == {7: "e1"}


def test_a_delivery_that_was_dropped_is_no_new_run(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events")
    append(
        log.path,
        Event(1.0, 7, "start", "e1"),
        Event(1.1, 7, "run", "e1"),  # killed in the middle: it has no end
        Event(2.0, 8, "start", "e1"),
        Event(2.1, 8, "end", "e1"),
        Event(4.0, 9, "start", "e1"),
        Event(4.1, 9, "run", "e1"),
        Event(5.0, 9, "end", "e1"),
    )
    log.refresh()
    assert log.started_again("e1", after=1.5) == 4.1
    assert log.started_again("e1", after=4.5) is None
    assert log.started_again("e2", after=0.0) is None


def test_a_parcel_belongs_to_its_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events")
    append(
        log.path, Event(1.0, 7, "start", "e1", "e1"), Event(2.0, 8, "start", "child", "e1"), Event(3.0, 8, "run", "e1")
    )
    log.refresh()
    assert log.orders == {"e1": "e1", "child": "e1"}
