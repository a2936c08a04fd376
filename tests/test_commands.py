"""Every command of the pages is run as it is written, in a folder with the few files that the pages name.

What cannot be run here is skipped with the reason; what takes long is marked slow. The model of the
catalogue's commands is the fake one of its tests: that a reader who types a line gets no error is tested.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonshelf import cli
from moonshelf.catalogue import Catalogue
from moonshelf.catalogue import manifest as manifest_module
from moonshelf.catalogue.store import Store
from test_docs import PAGES, blocks, commands
from tiny import picture as blocks_of_colour

sys.path.insert(0, str(Path(__file__).parent / "catalogue"))
from fake_model import FakeModel, picture, product

CANNOT = {  # what a line holds -> why it is not run here
    r"^make ": "it sets up an environment: CI runs it",
    r"^pip ": "it installs packages",
    r"^curl ": "tests/service/test_serving_docs.py runs it against a service",
    r"^accelerate ": "it needs several GPUs",
    r"python benchmarks/|python -m research\.": "it measures or makes something for minutes to hours",
    r"moonshelf serve ": "it serves until it is stopped: see tests/service/test_process.py",
    r"s3://|--ray": "it needs a bucket or a cluster: see tests/catalogue/test_ray.py",
    r"--url |--writer ": "it needs a server: see test_remote_index.py and test_parity.py",
    r"--download|clip:|--rerank": "it needs weights of others: see tests/catalogue/test_rerank.py",
    r"DATA\b|--recompute ": "it needs the data sets, which the project may not ship",
    r"shop/holes|enriched/filled|(index|evaluate) (before|after)": "tests/enrichment/test_story.py runs it",
    r"products\.tsv|filled/|TAXONOMY": "tests/enrichment runs it, with a model that writes and a taxonomy",
    r"moonshelf (train|mine) ": "it needs a training run",
}
SLOW = r"moonshelf (creative|evaluate|export) "
INPUTS = {  # what readers bring themselves
    "products.csv", "feed.csv", "feed.parquet", "products.parquet", "catalogue.parquet", "photo.jpg",
    "photos", "keys.json", "a.jpg", "b.jpg", "judgements.csv", "log.csv",
}  # fmt: skip


def lines() -> list[tuple[str, str]]:
    """(page, command) of every line of the shell blocks, in order; continued lines are one."""
    found = []
    for page in PAGES:
        for body in blocks(page, "sh", "bash", "console"):
            joined = re.sub(r"\\\n\s*", " ", body)
            for line in joined.splitlines():
                line = line.strip().removeprefix("$ ")
                if re.match(r"(moonshelf|python|make|pip|curl|accelerate) ", line):
                    found.append((page.name, line))
    return found


def cases() -> list[object]:
    marked = []
    for page, line in lines():
        why = next((why for pattern, why in CANNOT.items() if re.search(pattern, line)), None)
        marks = [pytest.mark.skip(reason=why)] if why else []
        marks += [pytest.mark.slow] if re.search(SLOW, line) else []
        marked.append(pytest.param(page, line, marks=marks, id=f"{page}: {line}"))
    return marked


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in which a reader could type the lines: a feed, photos, a catalogue of a dozen versions."""
    folder = tmp_path_factory.mktemp("home")
    rows = ["id,title,price,currency,category,colour,image"]
    for i in range(24):
        one = product(i)
        (folder / f"{i}.png").write_bytes(picture((10 * i, 90, 20), stripes=i % 7))
        path = " > ".join(one.category)
        rows.append(f"SKU-{i},{one.title},{i + 1},EUR,{path},{one.attributes['Color']},{i}.png")
    for name in ("products.csv", "feed.csv"):
        (folder / name).write_text("\n".join(rows) + "\n")
    (folder / "photo.jpg").write_bytes(picture(form="JPEG"))
    for i, name in enumerate(("a.jpg", "b.jpg")):
        (folder / name).write_bytes(blocks_of_colour(i, 400, 300))
    (folder / "photos").mkdir()
    for i in range(3):
        (folder / "photos" / f"{i}.png").write_bytes(blocks_of_colour(i, 400, 300))
    shelf = Catalogue.create(folder / "shelf", FakeModel())
    price = 0
    while not (folder / "shelf").exists() or Store.open(folder / "shelf").version <= 14:
        price += 1
        shelf.embed([product(i, id=f"SKU-{i}", price=float(price)) for i in range(24)], reason="on")
    shelf.index()
    for copy in ("demo/catalogue", "enriched"):
        shutil.copytree(folder / "shelf", folder / copy)
    rows = [(i % 2, f"SKU-{i}", 1 + i % 3) for i in range(24)]
    names = ("red shoe", "lamp")
    texts = {
        "judgements.csv": ["query,docid,rating", *(f"{names[q]},{id},{grade}" for q, id, grade in rows)],
        "qrels.txt": [f"q{q} 0 {id} {grade}" for q, id, grade in rows],
        "topics.tsv": ["query_id\tquery", *(f"q{q}\t{name}" for q, name in enumerate(names))],
        "log.csv": ["query,product_id,event", *(f"{names[q]},{id},click" for q, id, _ in rows)],
        "ubi_queries.ndjson": [
            f'{{"query_id": "q{q}", "user_query": "{name}"}}' for q, name in enumerate(names)
        ],
        "events.ndjson": [
            json.dumps(
                {
                    "action_name": "click",
                    "query_id": f"q{q}",
                    "event_attributes": {"object": {"object_id": id}},
                }
            )
            for q, id, _ in rows
        ],
    }
    for name, told in texts.items():
        (folder / name).write_text("\n".join(told) + "\n")
    return folder


@pytest.mark.parametrize(("page", "line"), cases())
def test_a_command_does_what_its_page_says(home, monkeypatch, page, line):
    monkeypatch.chdir(home)
    if "creative" not in line and ("evaluate" not in line or re.search("--judgements|--clicks", line)):
        monkeypatch.setattr(manifest_module, "load_model", lambda _: FakeModel())
    words = shlex.split(line, comments=True)
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], words[-1]
    assert words[0] == "moonshelf"
    result = CliRunner().invoke(cli.app, words[1:])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    no_verdict = result.exit_code == 4 and "creative compare" in line
    rejected = result.exit_code == 3 and " --for " in line  # by the channel: the feed has no links
    assert result.exit_code == 0 or no_verdict or rejected, result.output
    if target:
        (home / target).write_text(result.stdout)


def test_files_that_commands_read_are_made_or_brought():
    """A page does not read what nothing makes: in the prose too."""
    made = set(INPUTS)
    for _, line in lines():
        made |= set(re.findall(r"(?:>|-o|--out|--save|--file) (\S+)", line))
    for page, line in commands("moonshelf"):
        for word in shlex.split(line, comments=True)[2:]:
            if re.fullmatch(r"[\w-]+\.(json|csv|jsonl|parquet|jpg)", word):
                assert word in made, f"{page}: {line} reads {word}, which no command makes"
