"""What `enrich` and `taxonomy` are worth on the development sets; fills the figures of docs/enrichment.md.

    python -m research.studies.enrichment starter --data DATA --rows 150 --page docs/enrichment.md

Categories: labels of six sets are mapped to Shopify's taxonomy by `taxonomy_rules.tsv`, checked by hand.
Right at depth d is a suggestion whose first d steps are those of one of the label's categories, of the rows
whose label is that deep; right at the leaf is one that is the label's category or below it. Beside it stand
BM25 over whole paths (the library's own, as in `Words`) and the nearest name by MiniLM; weights of the
evidence are those of the package, fitted on training splits alone (`--fit`). The model abstains from nothing
here (`--least 0`), so that all answer all rows; what a threshold gives is a table of its own. Attributes:
`fashion` with half of its values hidden, and the three sets of titles with hand-checked values: how many of
the stated values are suggested (recall), how many of those suggested are right (precision), at several
confidences. Intervals are bootstrapped over rows.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from scipy.optimize import minimize
from scipy.special import softmax

from moonshelf.attributes import canonical, normalise_value
from moonshelf.enrichment.categories import WEIGHTS, Categoriser, Words
from moonshelf.enrichment.readings import Reader, Reading
from moonshelf.enrichment.suggestions import Calibration, claims
from moonshelf.enrichment.taxonomy import Taxonomy
from moonshelf.evaluation.statistics.significance import bootstrap
from moonshelf.feeds import read_feed
from moonshelf.model.modeling import MoonModel
from moonshelf.product import Product
from research.script import app_of, start

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
RULES = Path(__file__).with_name("taxonomy_rules.tsv")
SETS = {
    "fashion": "fashion_products/validation-clear", "flipkart": "flipkart/validation",
    "luma": "luma/products", "grocery": "grocery/catalogue",
    "ae-110k": "attributes/ae-110k-train", "oa-mine": "attributes/oa-mine-train",
}  # fmt: skip
TRAINING = {"fashion": "fashion_products/train-clear", "flipkart": "flipkart/train"}
DEPTHS: tuple[int | str, ...] = (1, 2, 3, "leaf")
GERMAN = 60  # German names that are looked for


def rules() -> dict[str, list[tuple[tuple[str, ...], list[str]]]]:
    """Set -> (label, ids), as the file has them."""
    found = defaultdict(list)
    for line in RULES.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, label, ids, _ = line.split("\t")
            found[name].append((tuple(label.split(" > ")), ids.split(" | ")))
    return found


def labelled(data: Path, name: str, file: str, rows: int) -> list[tuple[str, list[str]]]:
    """At most `rows` titles of a set with the ids that are right, drawn with a seed."""
    known = sorted(rules()[name], key=lambda rule: -len(rule[0]))
    table = pq.read_table(data / f"{file}.parquet")
    found = []
    for row in table.select(
        [c for c in ("title", "category", "category_path") if c in table.column_names]
    ).to_pylist():
        path = tuple(row.get("category_path") or [row["category"]])
        ids = next((ids for label, ids in known if path[: len(label)] == label), None)
        if ids and row["title"]:
            found.append((row["title"], ids))
    return random.Random(0).sample(found, min(rows, len(found)))


def right(taxonomy: Taxonomy, id: str | None, truths: Sequence[str], depth: int | str) -> float | None:
    """1 or 0, None where no label is that deep. Abstaining is wrong."""
    paths = [taxonomy.paths[one] for one in truths]
    said = taxonomy.paths[id] if id else ()
    if depth == "leaf":
        return float(any(said[: len(path)] == path for path in paths))
    assert isinstance(depth, int)
    deep = [path for path in paths if len(path) >= depth]
    return float(any(said[:depth] == path[:depth] for path in deep)) if deep else None


def figures_of(taxonomy: Taxonomy, said: Sequence[str | None], truths: Sequence[Sequence[str]]) -> list[str]:
    cells = []
    for depth in DEPTHS:
        values = [
            one
            for id, ids in zip(said, truths, strict=True)
            if (one := right(taxonomy, id, ids, depth)) is not None
        ]
        mean = bootstrap(100 * np.array(values), seed=0)
        cells.append(f"{mean.value:.0f} ±{(mean.high - mean.low) / 2:.0f}")
    return cells


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " :-- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def of_categories(model: MoonModel, data: Path, rows: int, out: Path, against: bool) -> str:
    taxonomy = Taxonomy.read(data / "taxonomy")
    chooser = Categoriser(model, taxonomy, cache=out)
    paths = Words([taxonomy.text(id) for id in chooser.ids])
    minilm, names = None, np.zeros((0, 0))
    if against:
        from moonshelf.evaluation.encoders.baselines import minilm as load

        minilm = load()
        names = minilm.encode([Product(id=id, title=taxonomy.paths[id][-1]) for id in chooser.ids]).vectors
    lines, cut, recall = [], [], []
    for name, file in SETS.items():
        cases = labelled(data, name, file, rows)
        products = [Product(id=str(n), title=title) for n, (title, _) in enumerate(cases)]
        truths = [ids for _, ids in cases]
        evidence = chooser.evidence(products)
        best = [[ids[int(np.argmax(score(seen)))] if ids else None for ids, seen in evidence] for score in (
            lambda seen: seen @ WEIGHTS, lambda seen: seen[:, 0],
            lambda seen: seen[:, 1], lambda seen: seen[:, 2],
        )]  # fmt: skip
        methods = dict(
            zip(("all evidence", "likelihood alone", "words alone", "cosine alone"), best, strict=True)
        )
        methods["BM25 over paths"] = [chooser.ids[int(paths.scores(one.title).argmax())] for one in products]
        if minilm is not None:
            near = minilm.encode(products).vectors @ names.T
            methods["MiniLM, nearest name"] = [chooser.ids[at] for at in near.argmax(1).tolist()]
        lines += [
            [name, method, str(len(cases)), *figures_of(taxonomy, said, truths)]
            for method, said in methods.items()
        ]
        held = [
            any(right(taxonomy, id, t, "leaf") for id in ids)
            for (ids, _), t in zip(evidence, truths, strict=True)
        ]
        recall.append(f"{name} {100 * np.mean(held):.0f} %")
        for least in (0.3, 0.5, 0.7, 0.9):
            said = [chooser.decide(ids, seen, least) for ids, seen in evidence]
            given = [(one, ids) for one, ids in zip(said, truths, strict=True) if one]
            on_path = [
                any(
                    p[: len(q)] == q or q[: len(p)] == p
                    for t in ids
                    for p, q in [(taxonomy.paths[t], taxonomy.paths[one.id])]
                )
                for one, ids in given
            ]
            depth = np.mean([len(taxonomy.paths[one.id]) for one, _ in given]) if given else 0
            cut.append(
                [
                    name,
                    f"{least}",
                    f"{100 * len(given) / len(cases):.0f}",
                    f"{100 * np.mean(on_path) if given else 0:.0f}",
                    f"{depth:.1f}",
                ]
            )
    german = Taxonomy.read(data / "taxonomy", "de")
    both = Categoriser(model, taxonomy, also=[german], cache=out)
    known = Counter(path[-1] for path in german.paths.values())
    ids = [
        id
        for id in german.paths
        if known[german.paths[id][-1]] == 1 and german.paths[id] != taxonomy.paths[id]
    ]
    asked = [
        Product(id=id, title=f"Neu: {german.paths[id][-1]}") for id in random.Random(0).sample(ids, GERMAN)
    ]
    hits = {}
    for how, one_of in (("German names too", both), ("English names only", chooser)):
        best_of = [one.id if one else None for one in one_of.suggest(asked, 0.0)]
        pairs = zip(best_of, asked, strict=True)
        hits[how] = sum(bool(right(taxonomy, id, [one.id], "leaf")) for id, one in pairs)
    return "\n\n".join((
        "### Categories",
        table(("set", "by", "rows", *(f"depth {d}" if d != "leaf" else "leaf" for d in DEPTHS)), lines),
        "Share of rows whose category is among the 20 candidates: " + ", ".join(recall) + ".",
        "With a threshold: share of rows that get a category, share of those whose category lies on the "
        "label's path (above, at or below it), mean depth.",
        table(("set", "least", "given, %", "on the path, %", "depth"), cut),
        f"Titles that hold one category's German name (`Neu: …`), of {len(asked)}: "
        + ", ".join(f"{n} found with {how}" for how, n in hits.items()) + ".",
    ))  # fmt: skip


def stated_by(row: dict[str, Any]) -> dict[str, set[str]]:
    """Canonical key -> normalised values, of a set of titles."""
    found: dict[str, set[str]] = defaultdict(set)
    for key, values in json.loads(row["attributes"]).items():
        for name in canonical({key: "x"}):
            found[name] |= {normalise_value(name, value) for value in values}
    return found


def of_attributes(model: MoonModel, data: Path, rows: int, out: Path) -> str:
    lines, reliability = [], []
    sets: dict[str, tuple[list[Product], list[dict[str, set[str]]]]] = {}
    feed = [one for one in read_feed(data / f"{SETS['fashion']}.parquet") if isinstance(one, Product)]
    feed = random.Random(0).sample(feed, min(rows, len(feed)))
    sets["fashion"] = feed, [{k: {v} for k, v in canonical(one.attributes).items()} for one in feed]
    for name in ("ae-110k", "oa-mine", "wdc-pave"):
        records = random.Random(0).sample(
            pq.read_table(data / f"attributes/{name}-train.parquet").to_pylist(), rows
        )
        sets[name] = (
            [Product(id=str(n), title=r["title"]) for n, r in enumerate(records)],
            list(map(stated_by, records)),
        )
    for name, (products, truths) in sets.items():
        reader = Reader(model, out / f"readings-{name}.jsonl")
        readings = [one if isinstance(one, Reading) else None for one in reader.read(products)]
        pairs = [
            (product.id, claim, claim.value in truth[claim.name])
            for product, reading, truth in zip(products, readings, truths, strict=True) if reading
            for claim in claims(product, reading, None, None) if claim.name in truth
        ]  # fmt: skip
        one = Calibration(model.prompt.calibration)
        one.fit(pairs)
        rest = [
            (one.of(claim.name, claim.evidence), hit, claim.name)
            for id, claim, hit in pairs
            if one.held_out(id)
        ]
        keys = ("colour", "material", "pattern", "gender", "style", "season", "use")
        total = sum(k in t for p, t in zip(products, truths, strict=True) if one.held_out(p.id) for k in keys)
        for least in (0.0, 0.5, 0.8, 0.95):
            kept = [hit for sure, hit, key in rest if sure >= least and key in keys]
            share = bootstrap(100 * np.array(kept, float), seed=0) if kept else None
            said = f"{share.value:.0f} ±{(share.high - share.low) / 2:.0f}" if share else "–"
            lines.append(
                [name, f"{least}", str(total), f"{100 * sum(kept) / max(1, total):.0f}", said, str(len(kept))]
            )
        for bin in one.table:
            reliability.append(
                [
                    name,
                    f"{bin['from']} to {bin['to']}",
                    str(bin["count"]),
                    f"{bin['confidence']:.2f}",
                    f"{bin['right']:.2f}",
                ]
            )
        reliability.append(
            [
                name,
                f"error {one.error:.3f}" if one.error is not None else "–",
                f"fitted on {one.fitted}",
                "",
                "",
            ]
        )
    return "\n\n".join((
        "### Values of attributes",
        "Stated values of colour, material, pattern, gender, style, season and use, on the half that nothing "
        "was fitted on. `fashion` is read with its picture, the others have titles only. A value is right if "
        "it is exactly a stated one, normalised.",
        table(("set", "confidence from", "stated", "filled rightly, %", "right, %", "suggested"), lines),
        "Reliability, the same half:",
        table(("set", "confidence", "values", "said", "right"), reliability),
    ))  # fmt: skip


def fit_weights(cases: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Weights (3,) of maximum likelihood over products: evidence (k, 3), and a mask (k,) of right candidates.

    A weak prior holds them at `WEIGHTS` where products are few.
    """

    def loss(weights: np.ndarray) -> float:
        right = (float(softmax(seen @ weights)[mask].sum()) for seen, mask in cases if mask.any())
        return float((((weights - WEIGHTS) / WEIGHTS) ** 2).sum()) - math.fsum(
            math.log(p + 1e-12) for p in right
        )

    return np.asarray(minimize(loss, WEIGHTS, method="Nelder-Mead").x)


def weights_of(model: MoonModel, data: Path, rows: int, out: Path) -> np.ndarray:
    """Weights of the evidence, fitted on training splits."""
    taxonomy = Taxonomy.read(data / "taxonomy")
    chooser, pairs = Categoriser(model, taxonomy, cache=out), []
    for name, file in TRAINING.items():
        cases = labelled(data, name, file, rows)
        products = [Product(id=str(n), title=title) for n, (title, _) in enumerate(cases)]
        for (ids, seen), (_, truth) in zip(chooser.evidence(products), cases, strict=True):
            if ids:
                pairs.append((seen, np.array([bool(right(taxonomy, id, truth, "leaf")) for id in ids])))
    return fit_weights(pairs)


def main(
    model: Annotated[str, typer.Argument(help="Name or folder of a model.")] = "starter",
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("data"),
    rows: Annotated[int, typer.Option(help="Rows of each set, at most.")] = 150,
    out: Annotated[Path, typer.Option(help="Folder for vectors and readings, used again.")] = Path(
        "runs/enrichment"
    ),
    page: Annotated[Path | None, typer.Option(help="Page whose figures are to be filled in.")] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Only fit the weights of the evidence and print them.")
    ] = False,
    against: Annotated[bool, typer.Option(help="Stand MiniLM beside; needs the extra baselines.")] = True,
) -> None:
    """Figures of categories and attributes, beside baselines."""
    out.mkdir(parents=True, exist_ok=True)
    loaded = MoonModel.from_pretrained(model)
    if fit:
        print(weights_of(loaded, data, rows, out).round(3).tolist())
        return
    text = "\n\n".join((
        f"Model {model} ({loaded.fingerprint}), at most {rows} rows a set, ± half of the 95 % interval.",
        of_categories(loaded, data, rows, out, against), of_attributes(loaded, data, rows, out),
    ))  # fmt: skip
    print(text)
    if page:
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    start(app_of(main))
