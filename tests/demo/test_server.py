"""The address of the page."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from fastcomposer.demo.gate import Gate
from fastcomposer.demo.server import Address
from fastcomposer.demo.uploads import PageLimits


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = rf"server\.port={port} on 127\.0\.0\.1: Address already in use; set another"
        with pytest.raises(ValueError, match=message):
            Address(port=port).check()
    Address(port=port).check()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (Address(host="192.0.2.1"), r"server\.port=7860 on 192\.0\.2\.1: Cannot assign"),
        (Address(host="no such name"), r"server\.host=no such name: not an address of this machine"),
        (Address(port=0), r"server\.port=0: must lie between 1 and 65535"),
    ],
)
def test_other_addresses_are_refused(address: Address, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        address.check()


def status_of(gate: Gate, method: str = "GET", path: str = "/", host: str = "localhost", **more: str) -> int:
    """Status that a gate answers a request with; 200 where it lets it pass."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
    scope = {"type": "http", "method": method, "path": path, "client": ("10.0.0.1", 5)}
    asyncio.run(gate({**scope, "headers": [(b"host", host.encode()), *headers]}, None, send))
    return sent[0]["status"]


async def page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize(
    ("host", "share", "status"),
    [
        ("localhost:7860", False, 200),
        ("127.0.0.1:7860", False, 200),
        ("[::1]:7860", False, 200),
        ("Studio.lan", False, 200),
        ("evil.example:7860", False, 400),
        ("localhost.evil.example", False, 400),
        ("", False, 400),
        ("abc.gradio.live", False, 400),
        ("abc.gradio.live", True, 200),
    ],
)
def test_other_names_are_refused(host: str, share: bool, status: int) -> None:
    assert status_of(Gate(page, ["studio.lan"], share, PageLimits(), lambda _: 0), host=host) == status


def test_quotas_of_a_visitor() -> None:
    waiting = {"10.0.0.1": 1}
    limits = PageLimits(megabytes_per_visitor=1, waiting_per_visitor=2)
    gate = Gate(page, [], False, limits, lambda visitor: waiting[visitor])
    join = {"method": "POST", "path": "/gradio_api/queue/join"}
    assert status_of(gate, **join) == 200
    waiting["10.0.0.1"] = 2
    assert status_of(gate, **join) == 503
    upload = {"method": "POST", "path": "/gradio_api/upload"}
    assert [status_of(gate, **upload, content_length="600000") for _ in range(2)] == [200, 429]
    assert status_of(gate, **upload, content_length="300000") == 200
    assert status_of(gate, **upload) == 411
