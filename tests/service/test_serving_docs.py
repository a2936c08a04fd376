"""docs/serving.md against the code: the settings, metrics, paths and errors that it names are those there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from moonshelf.service.monitor import Monitor
from moonshelf.service.routes import ERRORS, router
from moonshelf.service.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def table(after: str) -> list[list[str]]:
    """Cells of the first table after a text, without its head."""
    rows = re.search(r"(?:^\|.*\n)+", PAGE[PAGE.index(after) :], re.MULTILINE)
    assert rows is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[0].splitlines()[2:]]


def test_the_table_of_settings_is_that_of_the_code() -> None:
    expected = []
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        empty = default is None or default in ("", ())
        cell = "required" if field.is_required() else "" if empty else f"`{shown}`"
        expected.append([f"`{name}`", cell, str(field.description)])
    assert table("<!-- settings -->") == expected


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    found = {}
    for family in Monitor().registry.collect():
        if family.name.startswith("moonshelf_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = family
    rows = {cells[0].strip("`"): cells for cells in table("## Metrics and logs")}
    assert set(rows) == set(found)
    monitor = Monitor()
    metrics = (value for value in vars(monitor).values() if hasattr(value, "_labelnames"))
    labels = {metric._name: set(metric._labelnames) for metric in metrics}
    for name, cells in rows.items():
        assert set(re.findall(r"`(\w+)`", cells[1])) == labels[name.removesuffix("_total")], name


def test_paths_exist() -> None:
    paths = {route.path for route in router.routes}  # type: ignore[attr-defined]
    for named in set(re.findall(r"/v1/[a-z_/-]+[a-z]", PAGE)):
        known = any(named == path or named.startswith(path.split("{")[0]) for path in paths if path != "/v1")
        assert known, named


def test_every_status_of_the_api_is_explained() -> None:
    explained = {int(cells[0]) for cells in table("## Errors")}
    assert {int(status) for status in ERRORS} <= explained
    statuses = re.findall(
        r"_refusal\((\d+)|reply\.error\((\d+)", (ROOT / "src/moonshelf/service/app.py").read_text()
    )
    assert {int(a or b) for a, b in statuses} <= explained


def test_flags_of_the_benchmark_exist() -> None:
    source = (ROOT / "benchmarks" / "serving.py").read_text(encoding="utf-8")
    (line,) = re.findall(r"^python (benchmarks/serving\.py .+)$", PAGE, re.MULTILINE)
    for word in shlex.split(line):
        assert not word.startswith("--") or f'"{word}"' in source, word


def test_files_of_deploy_are_listed() -> None:
    names = {path.name for path in (ROOT / "deploy").iterdir()} - {"Dockerfile.dockerignore"}
    assert names == set(re.findall(r"\.\./deploy/([\w.]+)", PAGE))
