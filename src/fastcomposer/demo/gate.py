"""Who may use the server: names it answers to, and quotas of each visitor."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from fastcomposer.demo.uploads import PageLimits

_SHARED = (".gradio.live", ".gradio.app")  # of addresses that Gradio's servers publish


def is_allowed_host(host: str, names: Collection[str], share: bool = False) -> bool:
    """Whether a request's ``Host`` is a number, or one of the names.

    Any other name may be a stranger's that points here, through which a page of theirs would read this one
    (DNS rebinding).
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ipaddress.ip_address(name)
        return True
    except ValueError:
        name = host.rpartition(":")[0] or host
    known = {"localhost", *(one.lower() for one in names)}
    return name.lower() in known or (share and name.lower().endswith(_SHARED))


class Gate:
    """ASGI middleware in front of the page.

    Args:
        app: The page.
        names: Host names that it answers to, besides ``localhost`` and numbers.
        share: Whether it is published through Gradio's servers.
        limits: Limits of the page.
        waiting: Number of waiting requests of a client address.
    """

    def __init__(
        self,
        app: Any,
        names: Collection[str],
        share: bool,
        limits: PageLimits,
        waiting: Callable[[str], int],
    ) -> None:
        self.app, self.names, self.share, self.limits, self.waiting = app, names, share, limits, waiting
        self._uploads: dict[str, list[tuple[float, int]]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in ("http", "websocket"):
            refusal = self._refusal(scope)
            if refusal is not None and scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            if refusal is not None:
                status, reason = refusal
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not is_allowed_host(headers.get("host", ""), self.names, self.share):
            return 400, "This server does not answer to that name; server.names adds one."
        if scope.get("method") != "POST":
            return None
        visitor, path = (scope.get("client") or ("",))[0], scope["path"].rstrip("/")
        if path.endswith("/queue/join") and self.waiting(visitor) >= self.limits.waiting_per_visitor:
            return 503, f"You have {self.limits.waiting_per_visitor} waiting requests. Wait for one of them."
        if path.endswith("/upload"):
            return self._refused_upload(visitor, headers.get("content-length", ""))
        return None

    def _refused_upload(self, visitor: str, length: str) -> tuple[int, str] | None:
        if not length.isdecimal():
            return 411, "An upload must state its length."
        now = time.monotonic()
        kept = {
            who: [(when, size) for when, size in sizes if now - when < self.limits.minutes * 60]
            for who, sizes in self._uploads.items()
        }
        self._uploads = {who: sizes for who, sizes in kept.items() if sizes}
        own = self._uploads.setdefault(visitor, [])
        if sum(size for _, size in own) + int(length) > self.limits.megabytes_per_visitor * 1e6:
            most, minutes = self.limits.megabytes_per_visitor, self.limits.minutes
            return 429, f"You may upload {most:g} MB in {minutes:g} minutes. Try again later."
        own.append((now, int(length)))
        return None
