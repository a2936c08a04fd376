"""The pages keep up with the code: links, commands, flags, imports and files that they name exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from huggingface_hub import ModelCard

from moonshelf.cli import app

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "moonshelf"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
    ROOT / "research" / "README.md",
    *(CARDS := sorted(SOURCE.glob("*/README.md"))),
]


def text_of(page: Path) -> str:
    return re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Contents of the fenced blocks of some languages; "" is a fence without one."""
    for language, body in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE):
        if language in languages:
            yield body


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[tuple[str, str]]:
    """(page, line) of every call of a program: in fenced blocks, and in `code` of the prose."""
    found = []
    for page in PAGES:
        lines = [line for body in blocks(page, "sh", "bash", "") for line in body.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", prose(page))
        for line in lines:
            line = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if line.startswith(program + " "):
                found.append((page.name, line))
    return found


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert file.is_relative_to(ROOT), f"{page.name} links out of the project: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize(("page", "line"), commands("moonshelf"))
def test_commands_are_those_of_the_command_line(page: str, line: str) -> None:
    name, *arguments = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    if name.startswith("-"):
        return
    group = typer.main.get_command(app)
    command = group.get_command(typer.Context(group), name)  # type: ignore[attr-defined]
    if hasattr(command, "get_command") and arguments:  # a command of a group, as in `creative rank`
        name, *arguments = arguments
        command = command.get_command(typer.Context(command), name)
    assert command is not None, f"{page} calls a command that does not exist: {line}"
    if arguments:  # a bare name in the prose stands for the command
        command.make_context(name, list(arguments))  # parses, and says what is wrong
    for word in arguments:
        assert not word.startswith("recipes/") or (ROOT / word).is_file(), f"{page}: {line}"


@pytest.mark.parametrize(("page", "line"), commands("python -m"))
def test_modules_that_are_run_exist(page: str, line: str) -> None:
    module = line.split()[2]
    if module.split(".")[0] in ("moonshelf", "research"):
        path = (ROOT / "src" if module.startswith("moonshelf") else ROOT).joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page}: {line}"


@pytest.mark.parametrize(("page", "line"), commands("make"))
def test_make_targets_exist(page: str, line: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(shlex.split(line, comments=True)[1:]) <= targets, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_import_what_exists(page: Path) -> None:
    for body in blocks(page, "python", "py"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moonshelf"):
                path = SOURCE.joinpath(*(node.module or "").split(".")[1:])
                file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                code = file.read_text(encoding="utf-8")
                for alias in node.names:
                    assert re.search(rf"\b{alias.name}\b", code), (
                        f"{page.name}: {alias.name} of {node.module}"
                    )


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_a_model_card_says_to_a_hub_what_it_says_to_people(card: Path) -> None:
    """Its front matter is what a hub reads; every figure in it stands in the card's own text."""
    read = ModelCard(card.read_text(encoding="utf-8"))
    said = read.data.to_dict()
    for field in ("license", "language", "library_name", "pipeline_tag", "tags", "datasets", "metrics"):
        assert said[field], f"{card.parent.name} does not say its {field}"
    adapter = (card.parent / "adapter_config.json").is_file()
    assert adapter == bool(said.get("base_model"))
    assert read.data.eval_results, "no model index"
    for result in read.data.eval_results:
        assert re.search(rf"(?<![\d.]){re.escape(str(result.metric_value))}(?![\d.])", read.text), result


def test_every_model_that_is_shipped_has_a_card() -> None:
    assert CARDS and {card.parent for card in CARDS} == {m.parent for m in SOURCE.glob("*/manifest.json")}
