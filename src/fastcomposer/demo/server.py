"""The server of the page, which writes into its own folder only."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcomposer.demo.folder import page_folder
from fastcomposer.demo.uploads import PageLimits
from fastcomposer.utils.ranges import Port

if TYPE_CHECKING:
    from fastcomposer.demo.examples import Example

_HARD_LIMIT = 4  # times megabytes: larger uploads are refused while they arrive

# Without Gradio's additions to a page.
_PLAIN: Mapping[str, Any] = {
    "quiet": True,
    "show_error": True,
    "footer_links": [],
    "ssr_mode": False,
    "pwa": False,
    "run_history": False,
    "enable_monitoring": False,
}


@dataclass(frozen=True)
class Address:
    """Address of the page.

    Attributes:
        host: Host name or number; ``0.0.0.0`` for all interfaces.
        port: Port.
        share: Publish the page through Gradio's servers, under a public address.
        names: Further host names that the page answers to, besides ``localhost``, numbers and ``host``.
    """

    host: str = "127.0.0.1"
    port: Port = 7860
    share: bool = False
    names: Sequence[str] = ()

    def check(self) -> None:
        """Refuse a port in use, or the address of another machine, with a ValueError."""
        if not 0 < self.port < 65536:
            raise ValueError(f"server.port={self.port}: must lie between 1 and 65535")
        try:
            kind, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
        except OSError:
            raise ValueError(f"server.host={self.host}: not an address of this machine") from None
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise ValueError(
                    f"server.port={self.port} on {self.host}: {error.strerror}; set another, such as "
                    f"server.port={self.port + 1}"
                ) from None


def serve(
    pipeline: Any,
    settings: Mapping[str, Any],
    address: Address,
    limits: PageLimits,
    output: Path,
    examples: Callable[..., Sequence[Example]] | None = None,
) -> None:
    """Serve the page until the process ends.

    Args:
        pipeline: A FastComposer pipeline.
        settings: As of :class:`~fastcomposer.demo.studio.Studio`.
        address: Address of the page.
        limits: Limits of the page.
        output: Uploads and images lie in a new folder inside, which is deleted at the end.
        examples: Returns examples, given a folder for their images.
    """
    with page_folder(output) as files:
        # Gradio reads these from the environment, partly at import.
        os.environ["GRADIO_TEMP_DIR"] = str(files / "uploads")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        logging.getLogger("httpx").setLevel(logging.WARNING)  # of Gradio's check of its own server

        from starlette.middleware import Middleware

        from fastcomposer.demo.gate import Gate
        from fastcomposer.demo.layout import CSS, WORK, build, theme
        from fastcomposer.demo.studio import Studio

        tries = [] if examples is None else examples(files / "examples")
        blocks = build(Studio(pipeline, settings), limits, tries, f"Loaded: {settings['checkpoint']}")
        blocks.queue(max_size=limits.waiting, api_open=False)

        def waiting(visitor: str) -> int:
            queue = blocks._queue.event_queue_per_concurrency_id.get(WORK)
            clients = [event.request.client for event in ([] if queue is None else [*queue.queue])]
            return sum(client is not None and client.host == visitor for client in clients)

        names = (address.host, *address.names)
        gate: Any = Middleware(Gate, names=names, share=address.share, limits=limits, waiting=waiting)
        try:
            _, here, _ = blocks.launch(
                server_name=address.host,
                server_port=address.port,
                share=address.share,
                max_file_size=int(limits.megabytes * 1e6 * _HARD_LIMIT),
                theme=theme(),
                css_paths=CSS,
                prevent_thread_lock=True,
                app_kwargs={"middleware": [gate]},
                **_PLAIN,
            )
            print(f"The page is at {here} (Ctrl-C stops it)", flush=True)
            blocks.block_thread()
        finally:
            blocks.close(verbose=False)
