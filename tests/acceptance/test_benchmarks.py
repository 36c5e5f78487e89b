"""The benchmark measures what it says, and says what it could not measure. No time is judged here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks import disk, harness
from benchmarks.__main__ import main
from benchmarks.harness import Case, Figure, Note, Section, Spread
from benchmarks.peers import environment
from benchmarks.suites import SUITES
from tests.support.brokers import MessageBroker
from tests.support.databases import JournalDatabase

ROOT = Path(__file__).resolve().parents[2]

#: Suite → how many figures it has on SQLite in a quick run.
PARTS = {
    "floor": 2,
    "steps": 25,
    "replay": 8,
    "replay: memory": 4,
    "endtoend: throughput, 2 pool processes": 6,
    "endtoend: throughput, 4 pool processes": 6,
    "endtoend: processor time, 2 pool processes": 30,
    "endtoend: processor time, 4 pool processes": 30,
    "endtoend: latency": 6,
    "endtoend: commits": 1,
    "scale": 12,
    "looks": 2,
    "recovery": 2,
    "waits": 2,
    "waits: memory": 2,
}


#: An heir may be quicker than a full lease, for it counts from the last renewal. SQLite has no server, sixty tasks may
#: cost others less than the kernel counts, and nothing may be idle.
MAYBE_NOTHING = ("beyond the lease", "database server", "broker", "idle")


@pytest.mark.slow
@pytest.mark.databases("sqlite")
@pytest.mark.brokers("redis")
def test_a_quick_run_measures_every_suite(database: JournalDatabase, broker: MessageBroker, tmp_path: Path):
    path = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--database", database.kind, "--broker", broker.kind]
    run = subprocess.run([*command, "--json", path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    content = json.loads(path.read_text())
    assert content["missing"] == {}
    figures = {section["suite"]: section["figures"] for section in content["sections"]}
    assert {suite: len(found) for suite, found in figures.items()} == PARTS
    assert {suite.split(":")[0] for suite in PARTS} == {*SUITES} - {"disk", "peers"}
    for figure in (figure for found in figures.values() for figure in found):
        assert len(figure["rounds"]) == 1
        assert math.isfinite(figure["median"]), figure
        assert figure["median"] > 0 or any(words in figure["name"] for words in MAYBE_NOTHING), figure
        assert figure["name"] in run.stdout
    # One for all of a task; and a worker's commit for all of its tasks, now and then.
    [commits] = figures["endtoend: commits"]
    assert round(commits["median"]) >= 1
    # What a quick run shows is not held against anything.
    assert {row["met"] for row in content["budget"]} == {None}
    assert "NOT MET" not in run.stdout


def bench(tmp_path: Path, *words: str) -> tuple[Result, dict[str, Any]]:
    """A quick run in this process: its output, and what it wrote."""
    path = tmp_path / "out.json"
    result = CliRunner().invoke(main, ["--quick", *words, "--json", str(path)])
    return result, json.loads(path.read_text())


def test_a_database_that_is_missing_is_said_loudly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DURABLE_TEST_POSTGRESQL_URL", "none")
    result, content = bench(tmp_path, "--suite", "floor", "--database", "sqlite,postgresql")
    assert result.exit_code == 1
    assert "NOT MEASURED: database postgresql: DURABLE_TEST_POSTGRESQL_URL says none" in result.output
    assert list(content["missing"]) == ["database postgresql"]
    assert [section["database"] for section in content["sections"]] == ["sqlite"]


@pytest.mark.databases("postgresql")
def test_a_peer_that_cannot_be_installed_is_said_loudly(
    database: JournalDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    empty = tmp_path / "wheels"
    empty.mkdir()
    monkeypatch.setattr(environment, "HOME", tmp_path / "environments")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    result, content = bench(tmp_path, "--suite", "peers", "--database", database.kind, "--peers", "dbos")
    assert result.exit_code == 1
    assert "NOT MEASURED: peer dbos:" in result.output
    assert "No matching distribution found for dbos" in content["missing"]["peer dbos"]
    [section] = content["sections"]
    assert "celery_durable, step" in {figure["name"] for figure in section["figures"]}


@pytest.mark.databases("postgresql")
def test_a_slower_disk_is_one_for_the_bare_commit_too(database: JournalDatabase, tmp_path: Path):
    result, content = bench(tmp_path, "--suite", "disk", "--database", database.kind)
    with database.engine().connect() as connection:
        if connection.exec_driver_sql("SHOW fsync").scalar_one() == "off":
            assert "fsync = off" in content["missing"]["disk on postgresql"]
            return
    assert result.exit_code == 0, result.output
    [section] = content["sections"]
    found = {figure["name"]: figure["median"] for figure in section["figures"]}
    assert len(found) == 3 * len(disk.DELAYS)
    assert section["figures"][-1]["reference"] == "bare commit of one row, syncs 1,000 µs longer"
    # The server sleeps at least as long as it is told to.
    for delay in disk.DELAYS:
        for figure, commits in (("bare commit of one row", 1), ("guarded step", 2)):
            assert found[f"{figure}, syncs {delay:,} µs longer"] >= commits * delay / 1e6


def test_a_suite_that_fails_does_not_take_the_others_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(bench: object, kind: str) -> list[Section]:
        raise RuntimeError("no disk")

    monkeypatch.setitem(SUITES, "steps", broken)
    result, content = bench(tmp_path, "--suite", "floor,steps", "--database", "sqlite")
    assert result.exit_code == 1
    assert "NOT MEASURED: steps on sqlite: it failed: RuntimeError: no disk" in result.output
    assert [section["suite"] for section in content["sections"]] == ["floor"]


# -- side by side -------------------------------------------------------------------------------------------------


def test_what_is_compared_takes_turns():
    turns = []

    def case(name: str) -> Case:
        def turn(note: Note) -> None:
            turns.append(name)
            note(name, float(len(turns)))

        return Case({name: "s"}, turn)

    figures = harness.measure([case("a"), case("b"), case("c")], 2, lambda text: None)
    assert "".join(turns) == "abcabcabc"
    # The first round was a warm-up.
    assert figures["b"].rounds == [[5.0], [8.0]]


def test_a_ratio_is_taken_within_each_round():
    # A machine that is ten times slower in every other round changes no ratio.
    reference = Figure("reference", "s", [[1.0], [10.0], [1.0], [10.0]])
    figure = Figure("figure", "s", [[3.0], [30.0], [3.0], [30.0]])
    assert harness.ratio(figure, reference) == Spread(3.0, 3.0, 3.0)


def test_a_turn_that_measures_nothing_is_an_error():
    with pytest.raises(AssertionError, match=r"left out.*second"):
        harness.measure([Case({"first": "s", "second": "s"}, lambda note: note("first", 1.0))], 1, lambda text: None)
