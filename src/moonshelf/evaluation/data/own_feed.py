"""Any feed as a benchmark: what its columns allow is scored, and the rest is named with a reason.

Titles and photos can always be matched with each other, without a label. Groups (variants, or several rows of
one product) add search within them: the first row of a group asks, the others are to be found among all
rows. Category paths give a task for each level, attributes one for each key. There is no training split, so
labels are those of the feed and nothing is fitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moonshelf import attributes, images
from moonshelf.errors import UserError
from moonshelf.evaluation.contract import BOTH
from moonshelf.evaluation.data.dataset import ACROSS, WITHIN, Dataset, group_of, label_of, shows, stems
from moonshelf.product import Product

LEAST = 20  # products that must state a label for it to be scored, or a tenth of the feed if that is fewer
MOST_KEYS = 12  # attributes scored, the commonest first


def own_feed(
    path: Path,
    limit: int | None = None,
    fit_rows: int = 0,
    fetcher: images.Fetcher | None = None,
    **reading: Any,
) -> Dataset:
    """The tasks that a feed gives. Raises UserError if there is none, with the reasons.

    `limit` takes a sample of the products; pictures behind web addresses are used only with a `fetcher`;
    `reading` are options of `read_feed`.
    """
    dataset = Dataset(path.stem[:60], path.parent)
    products = dataset.usable(dataset.read(path.name, limit, **reading), fetcher)
    dataset.texts = [p.title for p in products if p.title]
    _across(dataset, products)
    _groups(dataset, products)
    depth = max((len(p.category) for p in products), default=0)
    if not depth:
        dataset.not_run["category"] = "no product has a category"
    for level in range(depth):
        called = "category" if depth == 1 else f"category level {level + 1}"
        label(dataset, called, "category", level, products)
    _attributes(dataset, products)
    if not dataset.tasks:
        reasons = "; ".join(f"{task}: {why}" for task, why in dataset.not_run.items())
        raise UserError(f"nothing of {path.name} can be scored ({reasons})")
    dataset.note = (
        f"{len(products)} products of a feed, labels as it states them; hidden: the words of the labels "
        "dropped from the title"
    )
    return dataset


def _across(dataset: Dataset, products: Sequence[Product]) -> None:
    """A title to its photo and back; photos and titles of one group answer for each other."""
    whole = [p for p in products if shows(p, BOTH)]
    if len(whole) > 1:
        keys = [group_of(p) for p in whole]
        dataset.retrieval(whole, whole, [{key: 1.0} for key in keys], ACROSS, keys)
    else:
        reason = f"{len(whole)} of {len(products)} products have a title and a usable photo"
        dataset.not_run |= dict.fromkeys(ACROSS, reason)


def _groups(dataset: Dataset, products: Sequence[Product]) -> None:
    grouped = [p.group_id for p in products if p.group_id]
    dataset.within_groups(products)
    dataset.same_product(products)
    done = {task.name for task in dataset.tasks}
    reason = "no two products of a group have what the task shows: a usable photo, or a title"
    if len(set(grouped)) == len(grouped):
        reason = "no group id is shared by two products, so there is no truth for it"
    dataset.not_run |= {task: reason for task in (*WITHIN, "product matching") if task not in done}


def _attributes(dataset: Dataset, products: Sequence[Product]) -> None:
    """The commonest attributes, each alone and then all together."""
    counts = Counter(key for p in products for key in attributes.canonical(p.attributes))
    if not counts:
        dataset.not_run["attributes"] = "no product has an attribute such as colour or material"
    least = _least(products)
    if rare := [key for key, number in counts.items() if number < least]:
        dataset.not_run[_listed(rare)] = f"fewer than {least} products state it"
    scored: list[str] = []
    common = [key for key, number in counts.most_common() if number >= least]
    for place, key in enumerate(common):
        if len(scored) == MOST_KEYS:
            dataset.not_run[_listed(common[place:])] = f"the {MOST_KEYS} commonest attributes are scored"
            break
        if label(dataset, key, key, -1, products):
            scored.append(key)
    dataset.attribute_sets(products, scored)


def label(dataset: Dataset, name: str, key: str, level: int, products: Sequence[Product]) -> bool:
    """Score a category level or an attribute, with a reason where its labels are no choice; whether it is."""
    labels = [x for p in products if (x := label_of(p, key, level))]
    values, least = set(labels), _least(products)
    if len(labels) < least:
        reason = f"{len(labels)} products state it, at least {least} are needed"
    elif len(values) < 2:
        reason = "all products state the same, so there is nothing to choose"
    elif len(values) > len(labels) / 2:
        reason = f"{len(values)} values for {len(labels)} products: it is no choice but a text"
    else:
        return dataset.labelling(name, key, level, products, hide=stems(values))
    dataset.not_run[name] = reason
    return False


def _least(products: Sequence[Product]) -> int:
    return min(LEAST, max(2, len(products) // 10))


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{'attribute' if len(keys) == 1 else 'attributes'} {', '.join(keys[:5])}{more}"
