"""Any feed as a benchmark: what its columns allow is scored, and the rest is named with a reason.

Titles and photos can always be matched with each other, without a label. Groups (variants, or several rows of
one product) add search within them: the first row of a group asks, the others are to be found among all
rows. Category paths give a task for each level, attributes one for each key. There is no training split, so
labels are those of the feed and nothing is fitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moonshelf import attributes, images
from moonshelf.errors import UserError
from moonshelf.evaluation.data.views import (
    DIRECTIONS,
    WITHIN,
    Dataset,
    Split,
    attribute_sets,
    directions,
    group_of,
    label_of,
    labelling,
    same_product,
    shows,
    stems,
    within_groups,
)  # fmt: skip
from moonshelf.evaluation.tasks import BOTH, Task
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
    split = Split(path.parent)
    products = split.usable(split.read(path.name, limit, **reading), fetcher)
    name = path.stem[:60]
    dataset = Dataset(name, "yours", "", [], [p.title for p in products if p.title])
    least = min(LEAST, max(2, len(products) // 10))
    for tasks in (
        _matching_views(name, products, split, dataset.not_run),
        _within_groups(name, products, split, dataset.not_run),
        _categories(name, products, least, dataset.not_run),
        _attributes(name, products, least, dataset.not_run),
    ):
        dataset.tasks += tasks
    if not dataset.tasks:
        reasons = "; ".join(f"{task}: {why}" for task, why in dataset.not_run.items())
        raise UserError(f"nothing of {path.name} can be scored ({reasons})")
    dataset.files, dataset.problems = split.files, split.problems
    dataset.note = (
        f"{len(products)} products of a feed, labels as it states them; hidden: the words of the labels "
        "dropped from the title"
    )
    return dataset


def _matching_views(
    name: str, products: Sequence[Product], split: Split, not_run: dict[str, str]
) -> list[Task]:
    """A title to its photo and back; photos and titles of one group answer for each other."""
    whole = [p for p in products if shows(p, BOTH)]
    if len(whole) < 2:
        reason = f"{len(whole)} of {len(products)} products have a title and a usable photo"
        not_run.update({task: reason for task in ("text → image", "image → text")})
        return []
    keys = [group_of(p) for p in whole]
    own: list[Mapping[str, float]] = [{key: 1.0} for key in keys]
    which = {task: DIRECTIONS[task] for task in ("text → image", "image → text")}
    return directions(name, whole, whole, own, which=which, keys=keys, problems=split.problems)


def _within_groups(
    name: str, products: Sequence[Product], split: Split, not_run: dict[str, str]
) -> list[Task]:
    sizes = Counter(p.group_id for p in products if p.group_id)
    if max(sizes.values(), default=0) < 2:
        reason = "no group id is shared by two products, so there is no truth for it"
        not_run.update(dict.fromkeys((*WITHIN, "product matching"), reason))
        return []
    tasks = within_groups(name, products) + same_product(name, products)
    done = {task.name for task in tasks}
    for task in (*WITHIN, "product matching"):
        if task not in done:
            not_run[task] = "no two products of a group have what the task shows: a usable photo, or a title"
    return tasks


def _categories(name: str, products: Sequence[Product], least: int, not_run: dict[str, str]) -> list[Task]:
    depth = max((len(p.category) for p in products), default=0)
    if not depth:
        not_run["category"] = "no product has a category"
    tasks: list[Task] = []
    for level in range(depth):
        called = "category" if depth == 1 else f"category level {level + 1}"
        tasks += _labels(name, called, "category", level, products, least, not_run)
    return tasks


def _attributes(name: str, products: Sequence[Product], least: int, not_run: dict[str, str]) -> list[Task]:
    counts = Counter(key for p in products for key in attributes.canonical(p.attributes))
    if not counts:
        not_run["attributes"] = "no product has an attribute such as colour or material"
    rare = [key for key, number in counts.items() if number < least]
    if rare:
        not_run[_listed(rare)] = f"fewer than {least} products state it"
    tasks: list[Task] = []
    scored: list[str] = []
    common = [key for key, number in counts.most_common() if number >= least]
    for place, key in enumerate(common):
        if len(scored) == MOST_KEYS:
            not_run[_listed(common[place:])] = f"the {MOST_KEYS} commonest attributes are scored"
            break
        made = _labels(name, key, key, -1, products, least, not_run)
        if made:
            scored.append(key)
        tasks += made
    return tasks + attribute_sets(name, products, scored)


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{'attribute' if len(keys) == 1 else 'attributes'} {', '.join(keys[:5])}{more}"


def _labels(
    name: str,
    called: str,
    key: str,
    level: int,
    products: Sequence[Product],
    least: int,
    not_run: dict[str, str],
) -> list[Task]:
    labels = [label for p in products if (label := label_of(p, key, level))]
    values = set(labels)
    if len(labels) < least:
        not_run[called] = f"{len(labels)} products state it, at least {least} are needed"
    elif len(values) < 2:
        not_run[called] = "all products state the same, so there is nothing to choose"
    elif len(values) > len(labels) / 2:
        not_run[called] = f"{len(values)} values for {len(labels)} products: it is no choice but a text"
    else:
        return labelling(name, called, key, level, products, products, hide=stems(values))
    return []
