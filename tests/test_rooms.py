"""The house: how large each room is, who may import whom, and that nothing goes round in a circle.

`python tests/test_rooms.py` prints the table. A ceiling is what a room held when it was written down, with
some lines for faults that are being mended; it only ever falls. Beside it stands what the room shall come to.
Who adds lines to a room at its ceiling takes as many out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "moonshelf"
LINES, MODULES = (44_320, 22_000), (239, 115)  # of the package: ceiling, target
LONGEST = 500  # lines of a file
CROWD = 15  # files directly in a folder


class Room(NamedTuple):
    """Its ceiling and its target in lines, and the files and folders of `SOURCE` that belong to it."""

    ceiling: int
    target: int
    parts: tuple[str, ...] = ()


NOUNS = (
    "product", "attributes", "identifiers", "prompts", "images", "remote", "errors",
    "files", "plaintext", "memory",
)  # fmt: skip
# From the bottom up: a room imports what stands above its own line here, and nothing below.
ROOMS = {
    "nouns": Room(2_278, 1_050, NOUNS),
    "endpoints": Room(157, 100),
    "feeds": Room(5_408, 2_400),
    "sample": Room(146, 150),
    "model": Room(5_125, 2_000),
    "training": Room(4_187, 2_300),
    "catalogue": Room(5_255, 2_200),
    "enrichment": Room(1_187, 800),
    "scale": Room(683, 900),
    "frameworks": Room(215, 213),
    "evaluation": Room(5_959, 2_500),
    "creatives": Room(7_159, 5_000),
    "service": Room(4_092, 2_300),
    "cli": Room(2_425, 1_600),
}
# Rooms that do not know each other, whatever their order: the first never imports the second.
APART = (
    ("model", "feeds"), ("training", "catalogue"), ("catalogue", "training"), ("creatives", "catalogue"),
)  # fmt: skip
# Circles that are left, closed by imports inside of functions; the first is the façade `MoonModel.encode`.
CIRCLES = [
    [f"moonshelf.model.{name}" for name in ("decode", "engine", "golden", "modeling")],
]
CROWDS = {
    "creatives": 15, "model": 17, "service": 20,
}  # fmt: skip


def room_of(part: str) -> str:
    """The room of a file or folder of `SOURCE`."""
    for name, room in ROOMS.items():
        if part in (room.parts or (name,)):
            return name
    pytest.fail(f"say in docs/architecture.md and in ROOMS where {part} belongs")


@cache
def files() -> dict[str, Path]:
    """Module -> file, of the whole package."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def inside() -> Iterator[tuple[str, str]]:
    """(module, room) of all but the package's own front."""
    for module in files():
        _, _, rest = module.partition(".")
        part = rest.split(".")[0]
        if part not in ("", "__main__"):
            yield module, room_of(part)


def table() -> str:
    """Rooms with their files, lines, ceiling and target."""
    rows = [f"{'room':12}{'files':>6}{'lines':>8}{'ceiling':>9}{'target':>8}"]
    for name, room in ROOMS.items():
        mine = [files()[module] for module, other in inside() if other == name]
        held = sum(map(lines, mine))
        rows.append(f"{name:12}{len(mine):>6}{held:>8,}{room.ceiling:>9,}{room.target:>8,}")
    held = sum(map(lines, files().values()))
    rows.append(f"{'all':12}{len(files()):>6}{held:>8,}{LINES[0]:>9,}{LINES[1]:>8,}")
    return "\n".join(rows)


def test_no_room_grows_past_its_ceiling() -> None:
    print(table())
    held: dict[str, int] = dict.fromkeys(ROOMS, 0)
    for module, room in inside():
        held[room] += lines(files()[module])
    over = {name: held[name] - room.ceiling for name, room in ROOMS.items() if held[name] > room.ceiling}
    assert not over, f"lines too many: {over}\n{table()}"
    assert sum(map(lines, files().values())) <= LINES[0] and len(files()) <= MODULES[0], table()


def test_no_file_is_long_and_no_folder_more_crowded_than_it_was() -> None:
    long = {module: lines(path) for module, path in files().items()}
    assert not {module: n for module, n in long.items() if n > LONGEST}
    folders: dict[str, int] = {}
    for path in files().values():
        folder = "/".join(path.relative_to(SOURCE).parts[:-1])
        folders[folder] = folders.get(folder, 0) + 1
    crowded = {folder: n for folder, n in folders.items() if n > CROWDS.get(folder, CROWD)}
    assert not crowded, f"more files than they may hold: {crowded}"


# ---- imports -----------------------------------------------------------------------------------------


@cache
def imports(module: str, run: bool = True) -> frozenset[str]:
    """Modules that one imports, inside of functions too; `run` leaves out what only type checkers read."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if run and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in files() else node.module)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(files()[module].read_text(encoding="utf-8")))
    return frozenset(found)


def test_imports_point_one_way() -> None:
    order = {name: i for i, name in enumerate(ROOMS)}
    for module, room in inside():
        for other in imports(module, run=False):
            assert other.split(".")[0] != "research", f"{module} imports {other}: research is not installed"
            rest = other.partition(".")[2].split(".")[0]
            if other.split(".")[0] == "moonshelf" and rest in {m.split(".")[1] for m, _ in inside()}:
                used = room_of(rest)
                assert order[used] <= order[room], f"{module} ({room}) imports {other} ({used})"
                assert (room, used) not in APART, f"{module} ({room}) imports {other} ({used})"


def circles() -> list[list[str]]:
    """Groups of modules that import each other, directly or by others (Tarjan's components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(imports(module)):
            if other not in files() or other == module:
                continue
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in files():
        if module not in index:
            visit(module)
    return found


def test_nothing_goes_round_in_a_new_circle() -> None:
    assert [group for group in circles() if group not in CIRCLES] == []


if __name__ == "__main__":
    print(table())
