"""Commands as children of a process that has imported everything once, which takes seconds.

A child runs its command as ``python -m`` does, in a session of its own; only its modules are loaded already.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

_PRELOAD = (
    "fastcomposer.cli.common",
    "fastcomposer.data.shards",
    "fastcomposer.evaluation.methods",
    "fastcomposer.evaluation.scoring",
    "fastcomposer.evaluation.summary",
    "fastcomposer.miniworld.render",
    "fastcomposer.training.callbacks",
    "fastcomposer.training.module",
    "hydra.main",
    "lightning.pytorch.loggers",
    "rich.table",
)
PATIENCE = 600.0
"""Seconds until a process counts as hanging."""
_READY = b"ready"
_GLANCE = 0.01  # seconds between two looks at a process


class Server:
    """Starts commands; to be used with ``with``."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(other.fileno())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(command, pass_fds=[other.fileno()], env=environment)
        other.close()
        if self._socket.recv(len(_READY)) != _READY:
            raise RuntimeError("the server of a soak could not start")

    def call(self, folder: Path, command: str, arguments: Sequence[str]) -> Process:
        """Start ``fastcomposer.cli.<command>`` in a folder."""
        request = json.dumps({"folder": str(folder), "command": command, "arguments": [*arguments]}).encode()
        (output, out), (status, ended) = os.pipe(), os.pipe()
        socket.send_fds(self._socket, [request], [out, ended])
        os.close(out)
        os.close(ended)
        return Process(output, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()  # which ends it
        self._process.wait()


class Process:
    """One call of a command; its ``pid`` is that of its group of processes, too."""

    def __init__(self, output: int, status: int) -> None:
        self.status: int | None = None  # negative for a signal; None while it runs
        self._output, self._status = b"", os.fdopen(status)
        self.pid = int(self._status.readline())
        self._ended = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(output,), daemon=True)
        self._listener.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _listen(self, output: int) -> None:
        while content := os.read(output, 65_536):
            self._output += content
        os.close(output)

    def _watch(self) -> None:
        with self._status:
            self.status = int(self._status.readline())
        self._ended.set()

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Wait until it ends, or for some time; whether it has ended."""
        return self._ended.wait(max(seconds, 0))

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; whether it holds while the process still runs."""
        deadline = time.monotonic() + PATIENCE
        while not self._ended.is_set() and time.monotonic() < deadline:
            if condition():
                return True
            self.wait(_GLANCE)
        return False

    def end(self) -> int | None:
        """Wait for its end; returns its status, ``None`` if it hangs and is killed."""
        if not self.wait():
            self.signal_all(signal.SIGKILL)
            return None
        self._listener.join(20)  # orphans may hold its output for a while
        return self.status

    @property
    def text(self) -> str:
        """Its output."""
        return self._output.decode(errors="replace")

    def signal(self, number: int) -> bool:
        """Send it a signal; whether it was running."""
        return self.status is None and _sent(os.kill, self.pid, number)

    def signal_all(self, number: int) -> bool:
        """Send it and its workers a signal."""
        return self.status is None and _sent(os.killpg, self.pid, number)

    def workers(self) -> list[int]:
        """Its child processes."""
        try:
            found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}
        except OSError:
            return []
        return [pid for pid, line in lines.items() if b"resource_tracker" not in line]


def _sent(send: Callable[[int, int], None], pid: int, number: int) -> bool:
    try:
        send(pid, number)
    except ProcessLookupError:
        return False
    return True


# --- the server --------------------------------------------------------------------------------------------


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork a child for every request; returns the request in the child, ``None`` at the end."""
    for name in _PRELOAD:
        import_module(name)
    if threading.active_count() > 1:  # (pyarrow's allocator has one, too, which knows of forks)
        raise RuntimeError("an import has started a thread: children could hang on its locks")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch
    connection.send(_READY)
    while True:
        request, descriptors, _, _ = socket.recv_fds(connection, 65_536, 2)
        if not request:
            return None
        if os.fork() == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return {**json.loads(request), "output": _watched(*descriptors)}
        for descriptor in descriptors:
            os.close(descriptor)


def _watched(output: int, status: int) -> int:
    """Fork the child; returns its output there. This process reports the child's pid and end."""
    if (pid := os.fork()) == 0:
        os.close(status)
        return output
    os.close(output)
    os.write(status, b"%d\n" % pid)
    _, ended = os.waitpid(pid, 0)
    os.write(status, b"%d" % os.waitstatus_to_exitcode(ended))
    os._exit(0)


def _run(folder: str, command: str, arguments: list[str], output: int) -> None:
    """Be the command. Its output goes through a pipe: no limit on files ends it."""
    os.setsid()
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    os.chdir(folder)
    sys.argv = [command, *arguments]
    runpy.run_module(f"fastcomposer.cli.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        _run(**asked)
