"""A small run for the report's tests: a model in two modes, a baseline, two data sets, hostile text."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation_fakes import FakeEncoder, unit
from moonshelf.evaluation import record
from moonshelf.evaluation.contract import BOTH, IMAGE, TEXT
from moonshelf.evaluation.record import Predictions
from moonshelf.evaluation.statistics import scoring
from moonshelf.evaluation.tasks import Labelling, Matching, Retrieval
from moonshelf.product import Product

XSS = "<script>alert(1)</script>\"'><img src=https://evil.example/x onerror=alert(2)> {{ 7 * 7 }}"
BIDI = "left\u202eright\u2066end"
FORMULA = "=HYPERLINK(1)|`x` *b* [l](http://evil.example) @you www.evil.example"
DIRECT, REASONED, OTHER = "m direct", "m reasoned", "baseline <b>&"
COLOURS = ("red", "blue", "green")
N = 36


def title(i: int) -> str:
    return {0: XSS, 1: BIDI, 2: FORMULA, 3: "x" * 3000}.get(i, " ".join(["thing"] * (i % 12 + 1)))


def products(prefix: str = "p") -> list[Product]:
    names = {0: f"{prefix}<script>0", 1: f"{prefix}|1"}
    return [Product(id=names.get(i, f"{prefix}{i}"), title=title(i)) for i in range(N)]


def encoders() -> list[FakeEncoder]:
    """Three that differ in noise; the reasoned one is the best, and writes hostile rationales."""
    rng = np.random.default_rng(3)
    base = {p.id: rng.normal(size=16) for p in products()}
    base |= {c: sum(base[p.id] for p in products()[i::3]) for i, c in enumerate(COLOURS)}
    noise = {id: rng.normal(size=16) for id in base}

    def vector(share):
        def of(product):
            asked = product.id.endswith("?")
            known = product.title if product.title in COLOURS else product.id.removesuffix("?")
            return unit(base[known] + (share * noise[known] if asked else 0))

        return of

    def rationale(product):
        return f"<think>colour: {COLOURS[len(product.title) % 3]}; use: {product.title[:60]}</think>"

    return [
        FakeEncoder(vector(3.0), DIRECT, "d"),
        FakeEncoder(vector(1.3), REASONED, "r", writes=True, rationale=rationale),
        FakeEncoder(vector(30.0), OTHER, "p", reads=IMAGE),
    ]


def tasks() -> list[Retrieval | Labelling | Matching]:
    corpus = products()
    queries = [Product(id=f"{p.id}?", title=p.title) for p in corpus]
    keys, ids = [p.id for p in corpus], [q.id for q in queries]
    wanted = [{key: 1.0} for key in keys]
    truth = [COLOURS[i % 3] for i in range(N)]
    groups = [f"g{i // 2}" for i in range(N)]
    pairs = [(i, (i + step) % N) for i in range(N) for step in (1, 5)]
    return [
        Retrieval(f"toy {XSS}", "photo → product", "image", queries, corpus, keys, wanted, ids, BOTH, BOTH,
                  ("R@1", "nDCG@10")),
        Labelling("toy two", "colour", "image + text", corpus, truth, COLOURS, groups, BOTH, "colour"),
        Labelling("toy two", "words", "text", corpus, truth, COLOURS, groups, TEXT, "colour",
                  metrics=("accuracy",)),
        Matching("toy two", "product matching", "image", corpus, pairs, [a // 3 == b // 3 for a, b in pairs],
                 [f"g{a // 3}" for a, _ in pairs], BOTH),
    ]  # fmt: skip


def encode(encoder, items):
    return encoder.encode(items)


def picture(colour: str = "teal") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(file, "PNG")
    return file.getvalue()


def make_run(out: Path) -> Path:
    """Write a whole run's folder."""
    made, results = encoders(), []
    for task in tasks():
        done = [
            scoring.Scored(kept) if isinstance(kept, Predictions) else kept
            for encoder in made
            for kept in task.predict(encoder, encode)
        ]
        results += scoring.figures(done, DIRECT)
        for one in done:
            if isinstance(one, scoring.Scored):
                record.write_predictions(one.predictions, out)
    told = {
        "results": [r.as_dict() for r in results],
        "datasets": [
            {"name": f"toy {XSS}", "licence": XSS, "note": BIDI},
            {"name": "toy two", "licence": "none", "not_run": {"brand": XSS}},
        ],
        "encoders": [
            {"name": DIRECT, "fingerprint": "d", "encoded": 200, "from_cache": 4, "seconds": 1.0},
            {"name": REASONED, "fingerprint": "r", "encoded": 200, "from_cache": 0, "seconds": 8.0,
             "tokens": 4100},
            {"name": OTHER, "fingerprint": "p",
             "encoded": 0, "from_cache": 9, "seconds": 0.0, "tokens": None},
        ],
        "errors": [f"bad {XSS}"],
        "problems": [{"encoder": DIRECT, "row": 3, "field": "images", "reason": XSS, "id": XSS}] * 25,
        "settings": {"suite": XSS, "reason": ["off", "on"], "limit": None, "long": "x" * 3000},
        "versions": {"python": "3.11"}, "machine": {"cpus": 2}, "seconds": 12.5,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(told), encoding="utf-8")
    return out
