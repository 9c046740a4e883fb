"""What a request must keep to: host, origin, framing, length and speed."""

import time

import anyio
import pytest

pytest.importorskip("starlette", reason="the extra ssm-jax[serve] is not installed")

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from ssm_jax.serve.guards import Guard, refusal
from ssm_jax.serve.limits import Limits

HOST = {"host": "127.0.0.1:8000"}


def status_of(method, headers, loopback=True):
    refused = refusal(method, Headers(headers), loopback, 1000)
    return refused and refused[0]


@pytest.mark.parametrize(
    "host",
    [
        *(
            "[::1]evil.example",
            "[::1",
            "::1",
            "[::1]:",
            "[::1]:80x",
            "localhost:",
            "[localhost]:1:2",
        ),
        *(
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "127.0.0.1:80:80",
            "",
        ),
    ],
)
def test_hosts_of_elsewhere(host):
    assert status_of("GET", {"host": host}) == 400
    assert status_of("GET", {"host": host}, loopback=False) is None


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.9.9.9:80", "[::1]", "[::1]:80"])
def test_hosts_of_this_machine(host):
    assert status_of("GET", {"host": host}) is None


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
def test_nothing_is_changed_for_other_pages(method):
    for origin in (
        *(
            "http://evil.example",
            "null",
            "",
            "http://127.0.0.1",
            "http://127.0.0.1:80001",
            "http://[",
        ),
        *("http://localhost:8000", "http://127.0.0.1:8000@evil.example", "ftp://127.0.0.1:8000"),
    ):
        assert status_of(method, HOST | {"origin": origin}) == 403, origin
    for site in ("cross-site", "same-site", "rubbish", ""):
        assert status_of(method, HOST | {"sec-fetch-site": site}) == 403, site
    own = HOST | {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert status_of(method, own) is None
    assert status_of(method, HOST) is None  # a program, no page
    assert status_of("GET", HOST | {"origin": "http://evil.example"}) is None


def test_a_body_has_one_length():
    both = HOST | {"content-length": "5", "transfer-encoding": "chunked"}
    assert status_of("POST", both) == 400
    assert status_of("POST", HOST | {"transfer-encoding": "chunked"}) is None
    for length in ("1001", "-1", "+1", "a", "", "1e3", "9" * 5000, "²"):
        assert status_of("POST", HOST | {"content-length": length}) == 413, length
    assert status_of("POST", HOST | {"content-length": "1000"}) is None


def run(limits, messages, ending=lambda: False):
    """What an application that reads its body meets; `messages` are (seconds before, message)."""
    waiting, taken, before = list(messages), [], time.monotonic()

    async def receive():
        nonlocal before
        if not waiting:
            await anyio.sleep_forever()
        seconds, message = waiting[0]
        await anyio.sleep(max(0, before + seconds - time.monotonic()))  # broken off, it goes on
        waiting.pop(0)
        before = time.monotonic()
        return message

    async def app(scope, receive, send):
        while True:
            taken.append(await receive())
            if not taken[-1].get("more_body"):
                return

    async def whole():
        scope = {"type": "http", "method": "POST", "headers": [(b"host", b"localhost")]}
        await Guard(app, limits, True, ending)(scope, receive, None)

    try:
        anyio.run(whole)
    except HTTPException as error:
        assert error.headers == {"connection": "close"}
        return error.status_code, taken
    return None, taken


def part(size, more=True):
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


def test_uploads_that_stand_still_are_broken_off():
    assert run(Limits(idle_seconds=0), [(0, part(1))])[0] == 408
    status, taken = run(Limits(idle_seconds=30), [(0, part(1)), (0.3, part(1, more=False))])
    assert (status, len(taken)) == (None, 2)


def test_uploads_that_trickle_are_broken_off(monkeypatch):
    monkeypatch.setattr("ssm_jax.serve.guards._GRACE", 0.5)
    trickle = [(0.3, part(1))] * 20
    assert run(Limits(bytes_per_second=10_000), trickle)[0] == 408
    status, taken = run(Limits(bytes_per_second=1), [*trickle[:3], (0.3, part(1, more=False))])
    assert (status, len(taken)) == (None, 4)


def test_nobody_is_waited_for_at_the_end():
    begun = time.monotonic()
    status, _ = run(Limits(), [(0, part(1))], ending=lambda: time.monotonic() - begun > 0.5)
    assert status == 503


def test_bodies_that_are_longer_than_they_may_be():
    limits = Limits(upload_bytes=1000, files=1)
    messages = [(0, part(1000))] * 10
    status, taken = run(limits, messages)
    assert (status, len(taken)) == (413, 3)  # 2048 bytes are for names and boundaries
