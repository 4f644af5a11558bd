"""Set up what requirements.lock describes, or write that lock anew; the standard library is all it needs.

Dependencies weigh gigabytes, checkouts come and go: they are installed once per lock into a shared
environment under ``$FASTCOMPOSER_ENVS`` (default ``~/.cache/fastcomposer/envs``), and each checkout gets a
small ``.venv`` that sees the shared packages, its own ``src`` and whatever else its owner installs into it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
VENV = ROOT / ".venv"
STAMP = VENV / "fastcomposer.json"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# The one to build on: this script may be running in the very .venv that it is about to rebuild.
INTERPRETER = getattr(sys, "_base_executable", None) or sys.executable

# Packages whose declared version bounds are ignored; what they depend on is locked all the same.
UNBOUND = ("facenet-pytorch",)
# torch depends on these on Linux alone.
LINUX_ONLY = re.compile(r"nvidia-|cuda-|triton$")
LOCK_HEADER = """\
# The whole environment, every version exact. Written by `make lock` from pyproject.toml; not edited by hand.
# Installed by `make setup`, or anywhere else with: pip install --no-deps -r requirements.lock
# (--no-deps because facenet-pytorch asks for a torch of 2024, and runs on today's; nothing else is missing.)
"""
# One file, read by the shell and then by Python: a plain "#!" line is limited in length and allows no spaces.
LAUNCHER = """\
#!/bin/sh
'''exec' "$(dirname -- "$0")/python" "$0" "$@"
' '''
import sys
from {module} import {name}
if __name__ == "__main__":
    sys.exit({attribute}())
"""


class SetupError(Exception):
    """Something the user can act on; the message says what."""


def shared_folder() -> Path:
    """Return the folder of the shared environment for this lock, Python version and platform."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environments = Path(os.environ.get("FASTCOMPOSER_ENVS") or cache / "fastcomposer" / "envs")
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    return (
        environments.expanduser().absolute() / f"{PYTHON}{sys.abiflags}-{sysconfig.get_platform()}-{digest}"
    )


def setup() -> None:
    """Bring the shared environment and this checkout's ``.venv`` up to date; do nothing when they are."""
    shared = shared_folder()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {
        "checkout": str(ROOT),
        "environment": str(shared),
        "interpreter": str(Path(INTERPRETER).resolve()),
        "version": project["version"],
        "recipe": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }
    current = read_stamp()
    if is_complete(shared) and current == wanted:
        return
    with exclusive(shared.with_name(shared.name + ".lock")):
        if not is_complete(shared):
            install(shared)
        # From nothing only for another interpreter: the owner's own additions survive everything else.
        same_interpreter = current.get("interpreter") == wanted["interpreter"]
        make_venv(VENV, "--without-pip", *([] if same_interpreter else ["--clear"]))
        link(shared, project)
        STAMP.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    print(f"Ready: {VENV} (packages: {shared}). To use it in a shell: source .venv/bin/activate")


def is_complete(shared: Path) -> bool:
    """Tell whether a shared environment was installed to its end."""
    return (shared / "complete").exists()


def read_stamp() -> dict[str, str]:
    """Return what ``.venv`` was last set up for; nothing when it was not."""
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that dies with the process, so that checkouts set up at the same time install once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another process is setting up this environment; waiting for it ...", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def install(shared: Path) -> None:
    """Install the lock into a new shared environment; only the mark written last makes it count."""
    count = sum(line[:1].isalnum() for line in LOCK.read_text(encoding="utf-8").splitlines())
    print(f"Installing {count} packages into {shared} (several GB, once per lock) ...", flush=True)
    if shared.exists():  # an installation that was interrupted
        shutil.rmtree(shared)
    make_venv(shared)
    pip(shared, "install", "--no-deps", "-r", LOCK)
    (shared / "complete").touch()


def link(shared: Path, project: dict[str, Any]) -> None:
    """Make ``.venv`` see the shared packages, the checkout's ``src`` and the packages' commands."""
    site = VENV / "lib" / f"python{PYTHON}" / "site-packages"
    shared_site = shared / "lib" / f"python{PYTHON}" / "site-packages"
    (site / "fastcomposer.pth").write_text(
        f"{os.path.relpath(ROOT / 'src', site)}\nimport site; site.addsitedir({str(shared_site)!a})\n",
        encoding="utf-8",
    )
    for stale in site.glob("fastcomposer-*.dist-info"):
        shutil.rmtree(stale)
    information = site / f"{project['name']}-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    (information / "INSTALLER").write_text("make setup\n", encoding="utf-8")

    commands = VENV / "bin"
    for distribution in importlib.metadata.distributions(path=[str(shared_site)]):
        for entry in distribution.entry_points.select(group="console_scripts"):
            name = entry.attr.partition(".")[0]
            launcher = commands / entry.name
            launcher.unlink(missing_ok=True)
            launcher.write_text(
                LAUNCHER.format(module=entry.module, name=name, attribute=entry.attr), encoding="utf-8"
            )
            launcher.chmod(0o755)
    for program in (shared / "bin").iterdir():  # what is no script, such as ruff
        command = commands / program.name
        if program.is_symlink() or program.is_dir() or (command.exists() and not command.is_symlink()):
            continue
        with program.open("rb") as handle:
            is_script = handle.read(2) == b"#!"
        if not is_script and os.access(program, os.X_OK):
            command.unlink(missing_ok=True)
            command.symlink_to(program)


def make_venv(folder: Path, *options: str) -> None:
    """Create a virtual environment from the interpreter that also underlies the running one."""
    if subprocess.run([INTERPRETER, "-I", "-m", "venv", *options, folder]).returncode:
        raise SetupError(f"{INTERPRETER} could not create {folder}; its message is above.")


def pip(environment: Path, *arguments: str | Path) -> None:
    """Run an environment's own pip, which reads the user's usual pip settings.

    Raises:
        SetupError: pip failed; says what to check.
    """
    command = [environment / "bin" / "python", "-I", "-m", "pip", "--disable-pip-version-check", *arguments]
    # A user-wide "install for me alone" contradicts a virtual environment.
    if subprocess.run(command, env={**os.environ, "PIP_USER": "0"}, stdin=subprocess.DEVNULL).returncode:
        raise SetupError(
            "pip failed; its message is above. Things to check:\n"
            "  - network access to a Python package index (pip's own settings for proxies apply);\n"
            "  - disk space for the environment (FASTCOMPOSER_ENVS moves it) and for pip's cache;\n"
            f"  - that the packages exist for this Python, {PYTHON} (PYTHON=python3.11 chooses another).\n"
            "Nothing half-installed is used: run the command again once that is mended."
        )


def lock() -> None:
    """Resolve pyproject.toml with its extras to the newest versions that fit, and write requirements.lock."""
    if sys.platform != "linux":
        raise SetupError(
            "The lock is written on Linux: only there does torch name the CUDA packages it needs."
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in project.get("optional-dependencies", {}).values():
        requirements += extra
    unbound = [requirement for requirement in requirements if canonical(requirement) in UNBOUND]
    bound = [requirement for requirement in requirements if requirement not in unbound]

    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "env"
        make_venv(environment)
        resolved = resolve(environment, "--no-deps", *unbound) if unbound else []
        dependencies = {
            canonical(requirement)
            for package in resolved
            for requirement in package.get("requires_dist", [])
            if "extra ==" not in requirement
        }
        resolved += resolve(environment, *bound, *sorted(dependencies))

    pins = {canonical(package["name"]): package["version"] for package in resolved}
    if builds := [f"{name}=={version}" for name, version in pins.items() if "+" in version]:
        raise SetupError(f"pip chose builds that the public index does not serve: {', '.join(builds)}.")
    lines = [
        f"{name}=={version}" + (' ; sys_platform == "linux"' if LINUX_ONLY.match(name) else "")
        for name, version in sorted(pins.items())
    ]
    LOCK.write_text(LOCK_HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{LOCK.name}: {len(lines)} packages")


def resolve(environment: Path, *arguments: str) -> list[dict[str, Any]]:
    """Return the metadata of the packages that pip would install, without installing them."""
    report = environment / "report.json"
    pip(environment, "install", "--quiet", "--dry-run", "--ignore-installed", "--report", report, *arguments)
    return [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]


def canonical(requirement: str) -> str:
    """Return the normalised name of the package that a requirement asks for."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    if name is None:
        raise SetupError(f"pyproject.toml: {requirement!r} is no requirement.")
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def main() -> int:
    """Run the chosen command and return the exit status."""
    parser = argparse.ArgumentParser(description="Set up the environment, or write its lock anew.")
    parser.add_argument("command", nargs="?", choices=["setup", "lock"], default="setup")
    try:
        {"setup": setup, "lock": lock}[parser.parse_args().command]()
    except (SetupError, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the next run starts over with what pip has cached.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
