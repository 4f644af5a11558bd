"""The page deletes the folder that it made, leftovers of killed pages, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastcomposer.demo.folder import MARKER, PREFIX, page_folder
from fastcomposer.demo.server import Address, serve
from fastcomposer.demo.uploads import PageLimits


def paths(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_the_page_did_not_make_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # so that the variables are put back
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    (tmp_path / "files" / "uploads").mkdir(parents=True)
    (tmp_path / "files" / "uploads" / "thesis.txt").write_text("years of work")
    (tmp_path / f"{PREFIX}1").mkdir()
    (tmp_path / f"{PREFIX}1" / "notes.txt").write_text("not marked")
    before, used = paths(tmp_path), []

    def examples(folder: Path) -> list[object]:
        used.append(folder)
        raise OSError("ends the page before it is served")

    with pytest.raises(OSError, match="ends the page"):
        serve(None, {"checkpoint": "x"}, Address(), PageLimits(), tmp_path, examples)  # type: ignore[arg-type]
    assert used[0].is_relative_to(tmp_path) and not used[0].parent.parent.exists()
    assert paths(tmp_path) == before


def test_each_page_has_a_folder_of_its_own_while_it_runs(tmp_path: Path) -> None:
    with page_folder(tmp_path) as first:
        (first / "upload.png").write_bytes(b"")
        with page_folder(tmp_path) as second:  # the first page still runs
            assert first != second
            assert (first / "upload.png").exists()
    assert paths(tmp_path) == []


def test_what_a_killed_page_left_is_deleted(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from fastcomposer.demo.folder import page_folder\n"
        "with page_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'upload.png').write_bytes(b'')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.rglob("*.png")] == ["upload.png"]
    with page_folder(tmp_path) as folder:
        assert [*tmp_path.iterdir()] == [folder.parent]
    assert paths(tmp_path) == []


def test_links_lead_nowhere(tmp_path: Path) -> None:
    output, home = tmp_path / "output", tmp_path / "home"
    for folder in (home, output / f"{PREFIX}left", output / f"{PREFIX}linked"):
        folder.mkdir(parents=True)
    (home / "precious.txt").write_text("stays")
    (home / MARKER).write_text("")
    (output / f"{PREFIX}home").symlink_to(home)  # a link to a marked folder
    (output / f"{PREFIX}linked" / MARKER).symlink_to(home / MARKER)  # a marker that is a link
    (output / f"{PREFIX}left" / MARKER).write_text("")
    (output / f"{PREFIX}left" / "away").symlink_to(home)  # a link in a leftover
    with page_folder(output) as folder:
        (folder / "away").symlink_to(home)
        names = {path.name for path in output.iterdir()}
        assert names == {folder.parent.name, f"{PREFIX}home", f"{PREFIX}linked"}
    assert paths(home) == sorted([MARKER, "precious.txt"])
    assert paths(output) == sorted([f"{PREFIX}home", f"{PREFIX}linked", f"{PREFIX}linked/{MARKER}"])
