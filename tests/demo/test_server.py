"""The address of the page."""

from __future__ import annotations

import socket

import pytest

from fastcomposer.demo.server import Address


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
