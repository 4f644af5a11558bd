"""What the package gives, and what importing it costs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, fastcomposer; print(json.dumps([m for m in ('torch', 'diffusers') if m in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == []


def test_public_names() -> None:
    import fastcomposer

    for name in fastcomposer.__all__:
        assert getattr(fastcomposer, name).__name__ == name
    assert set(fastcomposer.__all__) <= set(dir(fastcomposer))
    with pytest.raises(AttributeError, match="no attribute 'FastComposr'"):
        _ = fastcomposer.FastComposr


def test_only_the_demo_imports_an_extra_with_its_module() -> None:
    extras = {"facenet_pytorch", "gradio", "optuna", "skimage", "spacy", "ray", "submitit", "joblib"}
    found = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if extras & {name.partition(".")[0] for name in names}:
                found.add(file.parent.name)
    assert found == {"demo"}


def test_a_subcommand_becomes_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastcomposer.cli.app import COMMANDS, main

    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: called.append(arguments))
    main(["train", "experiment=mini"])
    assert called == [[sys.executable, "-m", "fastcomposer.cli.train", "experiment=mini"]]
    assert all((ROOT / "src" / "fastcomposer" / "cli" / f"{name}.py").is_file() for name in COMMANDS)
    with pytest.raises(SystemExit) as end:
        main(["trian"])
    assert end.value.code == 2


@pytest.mark.slow
def test_a_wheel_alone_gives_pipelines_and_commands(tmp_path: Path) -> None:
    uv = str(ROOT / ".venv" / "bin" / "uv")
    subprocess.run([uv, "build", "--wheel", "--out-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    environment = tmp_path / "env"
    subprocess.run([uv, "venv", "--python", sys.executable, environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--python", python, wheel], check=True)
    code = "from fastcomposer import FastComposerPipeline; print(FastComposerPipeline.__name__)"
    outside = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    assert subprocess.run([python, "-c", code], **outside).stdout == "FastComposerPipeline\n"
    for command in ("train", "evaluate", "generate", "prepare", "report", "bench", "demo"):
        call = [environment / "bin" / "fastcomposer", command, "--cfg", "job"]
        assert "model:" in subprocess.run(call, **outside).stdout
