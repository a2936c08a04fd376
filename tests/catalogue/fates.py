"""A feed in which rows meet every fate, and what a run made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fake_model import FakeModel, picture, product, table

from moonshelf.catalogue.embed import Options, embed_feed
from moonshelf.errors import Problem
from moonshelf.product import ImageRef, Product


def feed() -> list[Product | Problem]:
    """Rows of every fate; some ids twice, far apart and near each other."""
    rows: list[Product | Problem] = [product(i) for i in range(40)]
    rows[7] = product(7, images=(ImageRef(data=b"no picture"),))
    rows[9] = product(8, title="the id of the row before")
    rows[20] = Problem(21, "price", "a reader did not like it", "p20")
    rows[30] = product(2, title="the id of a row far before")
    rows[33] = product(33, title="", images=())
    rows[34] = product(34, images=(ImageRef(data=picture()), ImageRef(data=b"broken")))
    return rows


def changed() -> list[Product | Problem]:
    rows = feed()
    rows[0] = product(0, title="another title")
    rows[1] = product(1, price=99.0)
    del rows[12]
    return [*rows, product(50)]


def rejects(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def counts(report: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in report.as_dict().items()
        if key not in ("seconds", "items_per_s", "before")
    }


def as_one_process(folder: Path, cluster: Any) -> None:
    """What a cluster makes of a feed is what one process makes of it: store, report, what was rejected."""
    options = Options(shard_rows=10)
    for rows in (feed(), changed()):  # from nothing, then on what is there
        one = embed_feed(rows, folder / "one", FakeModel(), options=options)
        many = embed_feed(rows, folder / "many", FakeModel(), options=options, cluster=cluster)
        assert counts(many) == counts(one) and many.complete
        assert table(folder / "many") == table(folder / "one")
        in_order = sorted(rejects(folder / "one"), key=lambda problem: problem["row"])
        assert rejects(folder / "many") == in_order
    assert (one.metadata_only, one.removed, one.changed, one.rejected) == (1, 1, 1, 5)
