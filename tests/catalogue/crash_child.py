"""What the processes that get killed do, and the server that forks them.

`python crash_child.py` imports everything once, then forks a child for each line on stdin, so that kills hit
work and not imports. It answers with the child's pid, and with its exit status when it has ended.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import traceback
import warnings
from collections.abc import Iterator

from fake_model import FakeModel, product

from moonshelf.catalogue import commits, embed, rows, vector_index
from moonshelf.catalogue.store import Store
from moonshelf.product import Product

ROWS = 120


def version_one() -> Iterator[Product]:
    return (product(i) for i in range(ROWS))


def version_two() -> Iterator[Product]:
    """Of each six: one changed, one only cheaper, one gone, three as before; and a quarter more."""
    for i in range(ROWS + ROWS // 4):
        if i % 6 == 0:
            yield product(i, title=f"changed thing {i}")
        elif i % 6 == 1:
            yield product(i, price=0.5)
        elif i % 6 != 2 or i >= ROWS:
            yield product(i)


FEEDS = {1: version_one, 2: version_two}


def embed_until_killed(folder: str, version: int, acknowledged: str) -> None:
    log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    model = FakeModel(batch=4, seconds=0.004)
    embed.embed_feed(
        FEEDS[version](),
        folder,
        model,
        options=embed.Options(shard_rows=12, allow_removals=True),
        on_commit=lambda ids: os.write(log, "".join(f"{id}\n" for id in ids).encode()),
    )


def index_until_killed(folder: str) -> None:
    while True:
        vector_index.build(folder)


def upsert_until_killed(folder: str, seed: int, acknowledged: str) -> None:
    """Products in and out at random, a line of `id title` for each acknowledged one; `-` if removed."""
    dice, model, log = random.Random(seed), FakeModel(), os.open(acknowledged, os.O_WRONLY | os.O_APPEND)
    writer = commits.Writer(Store.open(folder), compact_after=5)
    for step in itertools.count():
        products = [
            product(dice.randrange(40), title=f"title-{seed}-{step}-{i}") for i in range(dice.randint(1, 6))
        ]
        known = writer.store.hashes(p.id for p in products)
        drafts = {p.id: rows.prepare_row(p, model.prompt, "off", known.get(p.id)) for p in products}
        out = model.encode([draft.product for draft in drafts.values()])
        whole = [
            rows.build_row(draft, out.vectors[i], out.weights[i], "", True, 0)
            for i, draft in enumerate(drafts.values())
        ]
        leaving = f"p{dice.randrange(40)}"
        done = writer.commit(whole, removed=[leaving], wait=30)
        lines = [f"{row['id']} {row['title']}\n" for row in whole]
        os.write(log, "".join([*lines, *(f"{id} -\n" for id in done.removed)]).encode())


WORK = {"embed": embed_until_killed, "index": index_until_killed, "upsert": upsert_until_killed}


def serve() -> None:
    # The server itself never touches a store; only its children do, after the fork.
    warnings.filterwarnings("ignore", message="lancedb fork support")
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                WORK[name](*arguments)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
