import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIGURATION["project"]
GROUPS = [*PROJECT["optional-dependencies"].values(), *CONFIGURATION["dependency-groups"].values()]
DIRECT = [Requirement(line) for group in (PROJECT["dependencies"], *GROUPS) for line in group]
UV = ROOT / ".venv" / "bin" / "uv"


def read_lock() -> dict[str, str]:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    return {package["name"]: package["version"] for package in packages}


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_direct_dependency_is_locked_in_its_range_and_installed_as_locked(requirement):
    locked = read_lock()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(locked)
    assert importlib.metadata.version(requirement.name) == locked


def test_lock_is_of_these_requirements():
    command = [UV, "lock", "--check", "--offline", "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_help_lists_every_target():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\S+) +\S", listed, re.MULTILINE) == phony
