"""Commands as a user calls them, in this process."""

from __future__ import annotations

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any
from unittest.mock import patch


def called(command: Any, *arguments: str) -> tuple[int, str, str]:
    """Call a command by its module in ``fastcomposer.cli``; returns status, output and errors."""
    out, err, status = StringIO(), StringIO(), 0
    with patch.object(sys, "argv", ["fastcomposer", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            command.main()
        except SystemExit as end:
            status = int(end.code or 0)
    return status, out.getvalue(), err.getvalue()
