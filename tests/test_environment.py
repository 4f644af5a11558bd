import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [
    Requirement(line)
    for line in [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
]


def read_lock() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_lock_holds_nothing_but_exact_public_versions():
    pin = re.compile(r'[a-z0-9-]+==[0-9][a-z0-9.]*( ; sys_platform == "linux")?')
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
    ]
    assert [line for line in lines if not pin.fullmatch(line)] == []
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names))
    assert "://" not in (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_direct_dependency_is_locked_in_its_range_and_installed_as_locked(requirement):
    locked = str(read_lock()[canonicalize_name(requirement.name)].specifier).removeprefix("==")
    assert requirement.specifier.contains(locked)
    assert importlib.metadata.version(requirement.name) == locked


def test_lock_is_closed_under_dependencies():
    """It is installed without resolving, so nothing that a locked package needs may be missing from it."""
    lock = read_lock()
    missing = {}
    for name, pin in lock.items():
        if pin.marker is None or pin.marker.evaluate():
            for line in importlib.metadata.requires(name) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                    missing.setdefault(canonicalize_name(needed.name), name)
    assert {needed: by for needed, by in missing.items() if needed not in lock} == {}


def test_project_is_installed():
    assert importlib.metadata.version("fastcomposer") == PROJECT["version"]


def test_help_lists_every_target():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\S+) +\S", listed, re.MULTILINE) == phony


def run_setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "scripts" / "setup.sh"], env=os.environ | environment, capture_output=True, text=True
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that depends on nothing, at a path with a space in it."""
    folder = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "src" / "fastcomposer").mkdir(parents=True)
    (folder / "src" / "fastcomposer" / "__init__.py").touch()
    (folder / "requirements.lock").write_text("# nothing\n")
    (folder / "pyproject.toml").write_text('[project]\nname = "fastcomposer"\nversion = "7.0"\n')
    return folder


def test_setup_resumes_what_was_interrupted_and_then_does_nothing(checkout, tmp_path):
    shared = {"FASTCOMPOSER_ENVS": str(tmp_path / "envs")}
    assert "Ready" in run_setup(checkout, **shared).stdout
    (environment,) = (entry for entry in (tmp_path / "envs").iterdir() if entry.is_dir())
    assert run_setup(checkout, **shared).stdout == ""

    (environment / "complete").unlink()
    (environment / "half-installed").touch()
    assert "Installing 0 packages" in run_setup(checkout, **shared).stdout
    assert not (environment / "half-installed").exists()

    code = "import fastcomposer as f, importlib.metadata as m; print(f.__file__, m.version('fastcomposer'))"
    python = checkout / ".venv" / "bin" / "python"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == f"{checkout / 'src' / 'fastcomposer' / '__init__.py'} 7.0\n"
    pip = subprocess.run([checkout / ".venv" / "bin" / "pip", "--version"], capture_output=True, text=True)
    assert str(environment) in pip.stdout


def test_setup_says_when_the_chosen_python_will_not_do(checkout):
    result = run_setup(checkout, PYTHON="/bin/false")
    assert result.returncode == 1
    assert "PYTHON=/bin/false is no Python of version 3.11 or newer" in result.stderr
