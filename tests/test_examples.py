"""The examples as a visitor runs them, in an empty folder: they end, and say what they are there to say."""

from __future__ import annotations

import ast
import csv
import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOK = EXAMPLES / "look_inside.ipynb"


def cells() -> list[dict]:
    """The notebook's cells of code, which were saved without what they put out."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    found = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in found)
    return found


def code_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    return "\n".join("".join(cell["source"]) for cell in cells())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs an example in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def ran(name: str, *needs: str) -> str:
        for module in needs:
            pytest.importorskip(module, reason=f"{name} needs {module}")
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return ran


def test_a_csv_is_embedded_and_searched_and_the_second_time_nothing_is_read(run) -> None:
    out = run("embed_and_search.py")
    assert "40 new, 0 unchanged, 0 rejected" in out
    parts = out.split("\n\n")[1:]
    assert len(parts) == 4 and all(2 <= len(part.splitlines()) <= 4 for part in parts)  # a title, then hits
    assert "text_rank" in out and "vector_rank" in out
    assert "0 new, 40 unchanged, 0 rejected" in run("embed_and_search.py")


def test_attributes_fill_what_the_feed_left_empty_and_nothing_else(run) -> None:
    out = run("attributes_to_feed.py")
    with open("attributes/products.csv") as before, open("attributes/filled.csv") as after:
        pairs = list(zip(csv.DictReader(before), csv.DictReader(after), strict=True))
    assert len(pairs) == 24
    filled = 0
    for old, new in pairs:
        marked = new.pop("written_by_model").split()
        filled += len(marked)
        assert all(new[key] == value for key, value in old.items() if key not in marked)
        assert all(new[key] and not old[key] for key in marked)
    assert f"{filled} empty cells filled" in out


def test_a_few_steps_of_training_give_a_model_of_its_own(run) -> None:
    out = run("fine_tune.py", "accelerate", "peft")
    tuned, starter = re.findall(r"\b[0-9a-f]{16}\b", out)
    assert tuned != starter and out.count("<think>") == 8
    assert Path("tuned/run/checkpoint/manifest.json").is_file()


def test_creatives_are_ranked_with_reasons(run) -> None:
    out = run("rank_creatives.py")
    assert len(re.findall(r"best with +\d+%", out)) == 4 and "P(A) = " in out
    assert all(question in out for question in ("query", "title", "layout", "background"))


def test_the_service_answers_openais_client(run) -> None:
    out = run("serve_and_call.py", "openai", "fastapi", "uvicorn")
    assert out.count("256 numbers; <think>") == 2
    assert len(re.findall(r"^\d\.\d\d ", out, re.MULTILINE)) == 3


@pytest.mark.parametrize(
    ("name", "needs"),
    [("langchain", "langchain_core"), ("llama_index", "llama_index.core"), ("haystack", "haystack")],
)
def test_another_framework_finds_bags(run, name: str, needs: str) -> None:
    hits = re.findall(r"^  \d\.\d\d  (.*)$", run(f"with_{name}.py", needs), re.MULTILINE)
    assert len(hits) >= 3 and all("Handbag" in hit or "pack" in hit or "Rucksack" in hit for hit in hits[:3])


def test_the_notebook_draws_three_figures(run, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="the notebook draws with matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names: dict = {}
    for cell in cells():
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert len(pyplot.get_fignums()) == 3
    for number in pyplot.get_fignums():
        pyplot.figure(number).canvas.draw()
    pyplot.close("all")
    assert len(re.findall(r"^\d\.\d\d  \w", capsys.readouterr().out, re.MULTILINE)) == 5


@pytest.mark.parametrize("path", [*SCRIPTS, NOTEBOOK], ids=lambda path: path.name)
def test_an_example_is_short_public_and_linked(path: Path) -> None:
    code = code_of(path)
    assert len(code.splitlines()) <= 60
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moonshelf"):
            assert not any(alias.name.startswith("_") for alias in node.names)
            assert not (node.module or "").startswith("moonshelf.cli")
        assert not (isinstance(node, ast.Attribute) and node.attr.startswith("_"))
    assert f"](../examples/{path.name})" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
