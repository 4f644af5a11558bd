"""Where modules live: a room imports from rooms before it alone, and nothing goes round in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "fastcomposer"
# Each row imports from rows above it, and its members from those before them in the row.
ROOMS = (
    ("utils",),
    ("prompt", "batch", "losses"),
    ("data", "models", "pipeline", "composer", "metrics", "training", "evaluation"),  # the core, as data flow
    ("preparation", "miniworld", "sweeps", "bench", "demo", "doctor"),  # features
    ("cli", "__main__"),
)
ORDER = [name for row in ROOMS for name in row]
FILES = {
    ".".join(file.with_suffix("").relative_to(SOURCE).parts).removesuffix(".__init__"): file
    for file in sorted((SOURCE / PACKAGE).rglob("*.py"))
}


def imports(module: str, file: Path) -> Iterator[str]:
    """Modules of the package that a file imports, at its head, within functions or for types."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written with whole names"
            for alias in node.names:
                found = f"{node.module}.{alias.name}"
                if (found if found in FILES else node.module) in FILES:
                    yield found if found in FILES else str(node.module)


# The package's own file names the public names of all rooms, and gives them its version.
IMPORTS = {name: {*imports(name, file)} - {PACKAGE, name} for name, file in FILES.items() if name != PACKAGE}
FOLDERS = sorted({name.rpartition(".")[0] for name in IMPORTS})


def test_every_room_is_in_the_order() -> None:
    assert sorted(ORDER) == sorted({name.split(".")[1] for name in IMPORTS})


def test_a_room_imports_from_rooms_before_it() -> None:
    place = {name: number for number, name in enumerate(ORDER)}
    backwards = [
        f"{module} imports {imported}"
        for module, found in IMPORTS.items()
        for imported in sorted(found)
        if place[imported.split(".")[1]] > place[module.split(".")[1]]
    ]
    assert backwards == []


def test_the_page_on_architecture_lists_every_room() -> None:
    text = (SOURCE.parent / "docs" / "concepts" / "architecture.md").read_text(encoding="utf-8")
    plan = text.partition("## Where things live")[2].partition("\n## ")[0].split()
    missing = [
        name
        for name in ORDER
        if name != "__main__"
        and not {f"{name}.py", f"{name}.py,", f"{name}/", f"{PACKAGE}/{name}/"} & {*plan}
    ]
    assert missing == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_files_and_folders_import_each_other_in_a_circle(folder: str) -> None:
    depth = folder.count(".") + 1
    inside = {name: found for name, found in IMPORTS.items() if name.startswith(f"{folder}.")}
    graph: dict[str, set[str]] = {}
    for name, found in inside.items():
        child = name.split(".")[depth]
        others = {other.split(".")[depth] for other in found if other in inside}
        graph[child] = graph.get(child, set()) | others - {child}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"{folder}: {' <- '.join(error.args[1])}")


def test_hydra_is_known_to_commands_and_sweeps_alone() -> None:
    outside = [
        name
        for name, file in FILES.items()
        if not name.startswith((f"{PACKAGE}.cli", f"{PACKAGE}.sweeps"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "hydra")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "hydra" for alias in node.names))
    ]
    assert outside == []
