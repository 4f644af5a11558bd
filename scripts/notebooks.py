"""Execute the notebooks from clean: ``python scripts/notebooks.py 01 02 --output outputs/notebooks``.

The kernel is the interpreter that runs this script, whatever kernels are installed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def execute(notebook: Path, output: Path, timeout: int = 3600) -> Path:
    """Execute a notebook.

    Args:
        notebook: Without outputs.
        output: Folder of the executed one; it is written up to the cell that failed.
        timeout: Maximum seconds of a cell.

    Raises:
        CellExecutionError: If a cell fails.
    """
    content = nbformat.read(notebook, as_version=4)
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    where = {"metadata": {"path": str(notebook.parent)}}
    code = [number for number, cell in enumerate(content.cells) if cell.cell_type == "code"]

    def print_progress(cell: nbformat.NotebookNode, cell_index: int) -> None:
        done = code.index(cell_index) + 1
        print(f"{notebook.stem}: cell {done} of {len(code)}", file=sys.stderr, flush=True)

    client = NotebookClient(
        content,
        km=manager,
        timeout=timeout,
        resources=where,
        coalesce_streams=True,
        on_cell_execute=print_progress,
        extra_arguments=["--log-level=ERROR"],  # the kernel's own: it warns of connections to this machine
    )
    file = output / notebook.name
    output.mkdir(parents=True, exist_ok=True)
    try:
        client.execute()
    finally:
        nbformat.write(content, file)
    return file


def main() -> None:
    """Execute the notebooks in the arguments, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="how the names begin, such as 02")
    parser.add_argument("--output", type=Path, default=Path("outputs/notebooks"))
    arguments = parser.parse_args()
    chosen = [
        file
        for file in sorted(NOTEBOOKS.glob("*.ipynb"))
        if not arguments.names or file.name.startswith(tuple(arguments.names))
    ]
    if not chosen:
        sys.exit(f"no notebook of {NOTEBOOKS} begins with {', '.join(arguments.names)}")
    for notebook in chosen:
        began = time.monotonic()
        try:
            print(execute(notebook, arguments.output), f"({time.monotonic() - began:.0f} s)", flush=True)
        except CellExecutionError as error:
            sys.exit(f"{notebook.name}: {error}")


if __name__ == "__main__":
    main()
