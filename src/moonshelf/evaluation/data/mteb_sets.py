"""Retrieval and reranking tasks of mteb as data sets of ours: `--suite mteb:TASK`, of text, photos or both.

mteb reads them from the hub, and keeps them in the hub's own cache. Pictures are taken as files and decoded
here. Choices: a reranking task is ranked over what was judged for all its queries together, which is harder
than each query's own list; of a task in which every item searches the others (`skip_first_result`) mteb alone
can tell the figures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.contract import TEXT
from moonshelf.evaluation.data.views import VIEWS, Dataset, corpus_of, sample
from moonshelf.evaluation.encoders.pretrained import need
from moonshelf.evaluation.tasks import Retrieval
from moonshelf.product import ImageRef, Product

METRICS = ("R@1", "R@10", "MRR", "nDCG@10")


def mteb_set(name: str, tasks: Sequence[str], limit: int | None = None) -> Dataset:
    """The data set `name` of the named tasks of mteb, `limit` queries and items of each.

    Raises UserError where mteb does not know a task, cannot read it, or ranks nothing in it.
    """
    need("mteb", f"mteb:{tasks[0]}", "moonshelf[eval]")
    import mteb

    made: list[Retrieval] = []
    problems: list[Problem] = []
    texts: list[str] = []
    for called in tasks:
        try:
            task: Any = mteb.get_task(called)
            if not hasattr(task, "skip_first_result"):
                raise UserError(f"{called} is no retrieval task: name one, or run it with mteb")
            if task.skip_first_result:
                raise UserError(
                    f"in {called} every item searches the others, which mteb alone can score: "
                    f"python -m moonshelf.evaluation.mteb_model run -m moonshelf/starter -t {called}"
                )
            task.load_data()
        except UserError:
            raise
        except Exception as error:  # of the network and of whatever reads the task
            reason = str(error).strip("'\" \n").splitlines() or [type(error).__name__]
            raise UserError(f"mteb cannot read the task {called}: {reason[0][:300]}") from error
        for subset, splits in task.dataset.items():
            parts = splits[task.metadata.eval_splits[0]]
            where = called if len(task.dataset) == 1 else f"{called}, {subset}"
            made.append(_retrieval(name, where, parts, limit, problems))
            texts += [product.title for product in made[-1].corpus if product.title]
    note = "as mteb reads it; reranking is over all that was judged, of all queries together"
    return Dataset(name, "see `moonshelf datasets`", note, [*made], texts, {}, problems)


def _retrieval(
    name: str, task: str, parts: Mapping[str, Any], limit: int | None, problems: list[Problem]
) -> Retrieval:
    truth: dict[str, dict[str, float]] = {
        query: {item: float(gain) for item, gain in judged.items() if gain > 0}
        for query, judged in parts["relevant_docs"].items()
    }
    items = set(parts["corpus"]["id"])
    asked = [one for one in parts["queries"]["id"] if items & truth.get(one, {}).keys()]
    problems += [
        Problem(one, "truth", "no relevant item in the corpus: rejected", one)
        for one in sorted(set(parts["queries"]["id"]) - set(asked))[:100]
    ]
    asked = sample(asked, limit)
    wanted = {item for one in asked for item in truth[one]}
    queries = _products(parts["queries"], set(asked))
    corpus = _products(parts["corpus"], corpus_of(parts["corpus"]["id"], wanted, limit))
    if not queries:
        raise UserError(f"no query of {task} has a relevant item in its corpus")
    asks, finds = _shown(queries), _shown(corpus)
    view = next(called for called, shown in VIEWS.items() if shown == asks)
    ids = [query.id for query in queries]
    return Retrieval(
        name, task, view, queries, corpus, [item.id for item in corpus], [truth[one] for one in ids], ids,
        asks, finds, METRICS,
    )  # fmt: skip


def _products(table: Any, ids: Collection[str]) -> list[Product]:
    """Rows of a table of mteb with `id` and of `title`, `text`, `image` what there is; pictures as files."""
    import datasets

    table = table.select([row for row, one in enumerate(table["id"]) if one in ids])
    if "image" in table.column_names:
        table = table.cast_column("image", datasets.Image(decode=False))
    products = []
    for row in table:
        text = " ".join(row[key] for key in ("title", "text") if row.get(key)).strip()
        photo = (row.get("image") or {}).get("bytes")
        refs = (ImageRef(data=photo),) if photo else ()
        products.append(Product(id=str(row["id"]), title=text, images=refs))
    return products


def _shown(products: Sequence[Product]) -> frozenset[str]:
    """What any of the products shows."""
    image = {"image"} if any(p.images for p in products) else set()
    return frozenset(image | ({"text"} if any(p.title for p in products) else set())) or TEXT
