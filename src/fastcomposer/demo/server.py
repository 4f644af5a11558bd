"""Serves the page: nothing of it leaves the machine, and nothing is written outside its folder."""

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

if TYPE_CHECKING:
    from fastcomposer.demo.examples import Example

_HARD_LIMIT = 4  # of the limit in megabytes: what is beyond is refused while it comes in

# Gradio's own additions to a page.
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
    """Where the page is served.

    Attributes:
        host: Name or number of the machine's address; ``0.0.0.0`` for all of them.
        port: Port.
        share: Whether Gradio's servers pass the page on to the world, under an address of theirs.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False

    def check(self) -> None:
        """See whether the port is free.

        Raises:
            ValueError: If it is not, or this machine has no such address.
        """
        if not 0 < self.port < 65536:
            raise ValueError(f"server.port={self.port}: ports are numbers from 1 to 65535")
        try:
            kind, _, _, _, place = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
        except OSError:
            raise ValueError(f"server.host={self.host}: this machine knows no such address") from None
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place)
            except OSError as error:
                raise ValueError(
                    f"server.port={self.port} on {self.host}: {error.strerror}; choose another, such as "
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
    """Serve the page until somebody ends it.

    Args:
        pipeline: Draws.
        settings: See :class:`~fastcomposer.demo.studio.Studio`.
        address: Where.
        limits: What is taken.
        output: Uploads and images are in a new folder inside while the page runs, and deleted with that
            folder; see :func:`~fastcomposer.demo.folder.page_folder`.
        examples: Takes a folder and gives things to try; ``None`` for none.
    """
    with page_folder(output) as files:
        # Gradio takes these from the environment alone, some of them when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = str(files / "uploads")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio looks whether its own server is there

        from fastcomposer.demo.layout import CSS, build, theme
        from fastcomposer.demo.studio import Studio

        tries = [] if examples is None else examples(files / "examples")
        blocks = build(Studio(pipeline, settings), limits, tries, f"Loaded: {settings['checkpoint']}")
        blocks.queue(max_size=limits.waiting, api_open=False)
        try:
            _, here, _ = blocks.launch(
                server_name=address.host,
                server_port=address.port,
                share=address.share,
                max_file_size=int(limits.megabytes * 1e6 * _HARD_LIMIT),
                theme=theme(),
                css_paths=CSS,
                prevent_thread_lock=True,
                **_PLAIN,
            )
            print(f"The page is at {here} (Ctrl-C ends it)", flush=True)
            blocks.block_thread()
        finally:
            blocks.close(verbose=False)
