"""The outside world of the example project: what the demo's verdict rests on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from example_project.clients import Carrier as CarrierClient
from example_project.clients import Gateway as GatewayClient
from example_project.clients import ServiceDown, ServiceRefused
from example_project.config import ROOT
from example_project.services.carrier import Carrier
from example_project.services.gateway import Gateway
from example_project.services.mailer import Mailer
from example_project.services.service import Faults, Server, Service

Start = Callable[..., str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a service in a thread and returns its address."""
    servers: list[tuple[Server, threading.Thread]] = []

    def run(service: type[Service], faults: Faults | None = None) -> str:
        server = Server(service(tmp_path / f"{service.name}.db", faults))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return server.url

    yield run
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
        server.service.ledger.close()


def post(url: str, body: Any, key: str | None = None) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=5
        ) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def ledger(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/ledger", timeout=5) as reply:
        return dict(json.load(reply))


CHARGE = {"reference": "order-1", "amount_cents": 500}


def test_gateway_repeats_its_answer_to_a_known_key(start: Start) -> None:
    url = start(Gateway)
    first, again = post(f"{url}/charges", CHARGE, "k1"), post(f"{url}/charges", CHARGE, "k1")
    assert first == (201, {"id": "ch_1", **CHARGE})
    assert again == (200, first[1])
    books = ledger(url)
    assert books["entries"] == [{"id": "ch_1", "entry": "charge", "key": "k1", "charge_id": None, **CHARGE}]
    assert books["requests"] == {"charged": 1, "repeated": 1}


@pytest.mark.parametrize("other", [{"amount_cents": 501}, {"reference": "order-2"}])
def test_gateway_refuses_a_key_that_meant_another_charge(start: Start, other: dict[str, Any]) -> None:
    url = start(Gateway)
    post(f"{url}/charges", CHARGE, "k1")
    status, body = post(f"{url}/charges", {**CHARGE, **other}, "k1")
    assert status == 422
    assert "another charge" in body["error"]
    assert len(ledger(url)["entries"]) == 1


def test_gateway_charges_once_when_equal_requests_race(start: Start) -> None:
    url = start(Gateway, Faults(latency=(0.0, 0.02), slow=0.5, slowness=(0.01, 0.03)))
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: post(f"{url}/charges", CHARGE, "k1"), range(24)))
    assert {body["id"] for _, body in answers} == {"ch_1"}
    assert sorted(status for status, _ in answers) == [200] * 23 + [201]
    assert len(ledger(url)["entries"]) == 1


def test_gateway_without_a_key_charges_every_time(start: Start) -> None:
    url = start(Gateway)
    assert {post(f"{url}/charges", CHARGE)[1]["id"] for _ in range(2)} == {"ch_1", "ch_2"}


def test_gateway_gives_money_back_once_per_key(start: Start) -> None:
    url = start(Gateway)
    gateway = GatewayClient(url)
    receipt = gateway.charge("order-1", 500, idempotency_key="k1")
    assert {gateway.refund("order-1", receipt, idempotency_key="k2") for _ in range(2)} == {"re_2"}
    gateway.refund("order-1", receipt, idempotency_key="k3")
    other = gateway.charge("order-1", 500, idempotency_key="k4")
    with pytest.raises(ServiceRefused, match="422"):
        gateway.refund("order-1", other, idempotency_key="k3")
    assert [(e["entry"], e["charge_id"], e["key"]) for e in ledger(url)["entries"]] == [
        ("charge", None, "k1"),
        ("refund", "ch_1", "k2"),
        ("refund", "ch_1", "k3"),
        ("charge", None, "k4"),
    ]
    assert ledger(url)["requests"] == {"charged": 2, "refunded": 2, "repeated": 1, "rejected": 1}


@pytest.mark.parametrize(
    ("body", "key", "status"),
    [
        ({**CHARGE, "charge_id": "ch_9"}, "k2", 404),
        ({**CHARGE, "charge_id": "ch_1", "reference": "order-2"}, "k2", 404),
        ({**CHARGE, "charge_id": "ch_1"}, "k1", 422),
        (CHARGE, "k2", 400),
    ],
)
def test_gateway_refuses_a_refund_of_what_was_not_charged(
    start: Start, body: dict[str, Any], key: str, status: int
) -> None:
    url = start(Gateway)
    post(f"{url}/charges", CHARGE, "k1")
    assert post(f"{url}/refunds", body, key)[0] == status
    assert len(ledger(url)["entries"]) == 1


@pytest.mark.parametrize("body", [[], {}, {**CHARGE, "amount_cents": "5"}, {**CHARGE, "amount_cents": 0}])
def test_gateway_rejects_nonsense(start: Start, body: Any) -> None:
    url = start(Gateway)
    assert post(f"{url}/charges", body, "k1")[0] == 400
    assert ledger(url)["entries"] == []


def test_carrier_books_a_parcel_for_every_request(start: Start) -> None:
    url = start(Carrier)
    carrier = CarrierClient(url)
    assert carrier.parcels("order-1") == []
    first, second = carrier.book("order-1", "Ada"), carrier.book("order-1", "Ada")
    carrier.book("order-2", "Ada")
    assert first.tracking != second.tracking
    assert carrier.parcels("order-1") == [first, second]


def test_carrier_takes_no_notice_of_keys(start: Start) -> None:
    url = start(Carrier)
    body = {"reference": "order-1", "recipient": "Ada"}
    assert post(f"{url}/parcels", body, "k1")[1]["id"] != post(f"{url}/parcels", body, "k1")[1]["id"]


def test_mailer_sends_whatever_it_gets(start: Start) -> None:
    url = start(Mailer)
    body = {"reference": "order-1", "to": "ada@example.org", "tag": "greeting", "subject": "hello"}
    assert [post(f"{url}/mails", body, "k1")[0] for _ in range(2)] == [201, 201]
    assert [entry["id"] for entry in ledger(url)["entries"]] == ["ma_1", "ma_2"]


def test_a_refused_request_did_nothing(start: Start) -> None:
    url = start(Gateway, Faults(down=1.0))
    with pytest.raises(ServiceDown, match="nothing was done"):
        GatewayClient(url).charge("order-1", 500, idempotency_key="k1")
    assert ledger(url) == {"entries": [], "requests": {"refused": 1}}


def test_a_late_answer_comes_after_the_work(start: Start) -> None:
    url = start(Gateway, Faults(slow=1.0, slowness=(0.5, 0.5)))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, f"{url}/charges", CHARGE, "k1")
        deadline = time.monotonic() + 5
        while not ledger(url)["entries"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not answer.done()
        assert answer.result()[0] == 201


def test_clients_tell_a_refusal_from_an_absent_service(start: Start) -> None:
    gateway = GatewayClient(start(Gateway))
    gateway.charge("order-1", 500, idempotency_key="k1")
    with pytest.raises(ServiceRefused, match="422"):
        gateway.charge("order-1", 501, idempotency_key="k1")
    with pytest.raises(ServiceDown, match="nobody listens"):
        GatewayClient("http://127.0.0.1:1").charge("order-1", 500, idempotency_key="k1")


def test_unknown_paths_are_answered(start: Start) -> None:
    url = start(Carrier)
    assert post(f"{url}/charges", {})[0] == 404
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        urllib.request.urlopen(f"{url}/nothing", timeout=5)
    error.value.close()


def serve(tmp_path: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Run the gateway as a process of its own."""
    address = tmp_path / "url"
    address.unlink(missing_ok=True)
    options = ["--port", "0", "--ledger", str(tmp_path / "gateway.db"), "--url-file", str(address)]
    command = [sys.executable, "-m", "example_project.services.gateway", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 20
    while not address.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, address.read_text()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_ledger_survives_its_service(tmp_path: Path, how: signal.Signals) -> None:
    process, url = serve(tmp_path)
    try:
        status, charge = post(f"{url}/charges", CHARGE, "k1")
        assert status == 201
        process.send_signal(how)
        assert process.wait(timeout=10) == (-how if how is signal.SIGKILL else 0)
        process, url = serve(tmp_path)
        assert post(f"{url}/charges", CHARGE, "k1") == (200, charge)
        assert len(ledger(url)["entries"]) == 1
    finally:
        process.kill()
        process.wait()
