"""What the service bears, on loopback, over a catalogue of the sample shop.

    python benchmarks/serving.py [--callers 1,2,4,8,16,32] [--seconds 5] [--repeats 5] [--minutes 10]

kept      what one caller waits for on a connection that he keeps, against the same service without
          TCP_NODELAY (Nagle's algorithm, as it was until then). The sides alternate in one run.
levels    throughput and latency of /v1/embeddings and /v1/search at rising concurrency.
batching  the service against itself with one item a batch, on mixed lengths (short queries, long texts,
          titles with pictures): throughput at equal p95. The sides alternate in one run, in turned order.
memory    resident memory for --minutes under the same load, and its slope after the first fifth.
overload  a burst far above the queue: 429 with Retry-After, and how long until p95 is what it was.

Every embedding of every part is compared with the vector of the same input that the model makes without a
service (cosine distance below --tolerance); every search with its reply when it was asked alone. The cache of
vectors is off, but for `memory`, where it is small so that it turns over. The load: see `load`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import httpx
import numpy as np
from load import Call, Measured, burst, load, service
from paired import median_ratio
from rich.console import Console
from rich.table import Table

from moonshelf.cli.doctor import environment
from moonshelf.product import ImageRef, Product
from moonshelf.sample import Shop
from research.synthetic.shop import make_shop

PARTS = ("kept", "levels", "batching", "memory", "overload")
QUEUE = 32  # items, for the part on overload: small, so that a burst above it is cheap
BURST = 8  # times the queue
RECOVERED = 1.2  # times the former p95
PATIENCE = 60.0  # seconds that recovery is waited for


# ---- what is asked ---------------------------------------------------------------------------------


def inputs(shop: Shop, n: int) -> list[Product]:
    """Of each ten: six short queries, two long texts, two titles with a picture. All differ."""
    queries = [query.text for query in shop.queries if query.text]
    made = []
    for i in range(n):
        product = shop.products[i % len(shop.products)]
        if i % 5 == 1:
            told = [shop.products[(i + k) % len(shop.products)] for k in range(6)]
            text = f"{i}. " + " ".join(f"{p.title}. {p.description}" for p in told)
            made.append(Product(id=str(i), title=text[:4000]))
        elif i % 5 == 3:
            made.append(Product(id=str(i), title=f"{product.title} {i}", images=product.images[:1]))
        else:
            made.append(Product(id=str(i), title=f"{queries[i % len(queries)]} {i}"))
    return made


class Embeddings:
    """Calls of /v1/embeddings with their right vectors; keeps the largest distance that a reply had."""

    def __init__(self, products: list[Product], vectors: np.ndarray, reason: str, tolerance: float) -> None:
        self.tolerance, self.worst = tolerance, 0.0
        self.calls = [self._call(p, v, reason) for p, v in zip(products, vectors, strict=True)]

    def _call(self, product: Product, right: np.ndarray, reason: str) -> Call:
        given: Any = product.title
        if product.images:
            data = base64.b64encode(picture(product.images[0])).decode()
            given = {"text": product.title, "image": f"data:image/jpeg;base64,{data}"}

        def check(reply: Any) -> bool:
            (one,) = reply["data"]
            got = np.frombuffer(base64.b64decode(one["embedding"]), "<f4").astype(np.float64)
            distance = 1 - float(got @ right / np.linalg.norm(got) / np.linalg.norm(right))
            self.worst = max(self.worst, distance)
            return distance < self.tolerance

        return Call.of(
            "/v1/embeddings", {"input": [given], "encoding_format": "base64", "reason": reason}, check
        )


def picture(ref: ImageRef) -> bytes:
    return ref.data if ref.data is not None else Path(ref.path or "").read_bytes()


def searches(shop: Shop, address: str, n: int) -> list[Call]:
    """Calls of /v1/search whose right replies are those to the same call alone."""
    texts = [query.text for query in shop.queries if query.text]
    calls = []
    with httpx.Client(base_url=address, timeout=60) as client:
        for i in range(n):
            body = {"text": f"{texts[i % len(texts)]} {i}", "limit": 10}
            alone = client.post("/v1/search", json=body).raise_for_status().json()
            ids = [hit["product"]["id"] for hit in alone["hits"]]

            def check(reply: Any, ids: list[str] = ids) -> bool:
                return [hit["product"]["id"] for hit in reply["hits"]] == ids

            calls.append(Call.of("/v1/search", body, check))
    return calls


# ---- the parts -------------------------------------------------------------------------------------

NAGLE = """
import asyncio.base_events, socket
from moonshelf.service import server
listener = server.listener
def as_before(host, port):
    found = listener(host, port)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    return found
server.listener, asyncio.base_events._set_nodelay = as_before, lambda one: None
"""


def kept(options: argparse.Namespace, folder: Path, shop: Shop, embeddings: Embeddings) -> dict[str, Any]:
    """Median milliseconds of one caller on both sides, by path, and the median of their ratios."""
    with (
        service(folder, cache_items=0, **options.settings) as now,
        service(folder, NAGLE, cache_items=0, **options.settings) as before,
    ):
        asked = {
            "/health": [Call("/health", b"")],
            "/v1/search": searches(shop, now.address, 64),
            "/v1/embeddings": embeddings.calls,
        }
        found = {}
        for name, calls in asked.items():
            took: dict[str, list[float]] = {"now": [], "before": []}
            for repeat in range(options.repeats):
                sides = [("now", now), ("before", before)]
                for side, running in sides if repeat % 2 == 0 else sides[::-1]:
                    one = load(running.address, calls, 1, options.seconds, first=17 * repeat)
                    took[side].append(one.quantile(0.5))
            ratios = [b / n for b, n in zip(took["before"], took["now"], strict=True)]
            found[name] = {side: float(np.median(ms)) for side, ms in took.items()} | median_ratio(ratios)
    return found


def levels(options: argparse.Namespace, folder: Path, shop: Shop, embeddings: Embeddings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with service(folder, cache_items=0, **options.settings) as running:
        asked = {"embeddings": embeddings.calls, "search": searches(shop, running.address, 64)}
        for name, calls in asked.items():
            load(running.address, calls, 2, min(2.0, options.seconds))  # warm
            found[name] = [
                {"callers": n, **load(running.address, calls, n, options.seconds).as_dict()}
                for n in options.callers
            ]
    return found


def batching(options: argparse.Namespace, folder: Path, shop: Shop, embeddings: Embeddings) -> dict[str, Any]:
    """Curves of throughput over p95 for both sides, and their ratio at each p95 of the unbatched side."""
    curves: dict[str, list[list[dict[str, Any]]]] = {"batched": [], "alone": []}
    one = {"batch_tokens": 1, "batch_wait_ms": 0}  # an item always fits, so a batch is one item
    with (
        service(folder, cache_items=0, **options.settings) as batched,
        service(folder, cache_items=0, **{**options.settings, **one}) as alone,
    ):
        sides = [("batched", batched), ("alone", alone)]
        for _, side in sides:
            load(side.address, embeddings.calls, 2, min(2.0, options.seconds))
        for repeat in range(options.repeats):
            for curve in curves.values():
                curve.append([])
            for level, callers in enumerate(options.callers):
                for name, side in sides if (repeat + level) % 2 == 0 else sides[::-1]:
                    measured = load(
                        side.address, embeddings.calls, callers, options.seconds, first=17 * repeat
                    )
                    curves[name][-1].append({"callers": callers, **measured.as_dict()})
    ratios = []
    for level, callers in enumerate(options.callers):
        theirs = [curve[level] for curve in curves["alone"]]
        reached = [
            throughput_at(ours, at["p95_ms"]) for ours, at in zip(curves["batched"], theirs, strict=True)
        ]
        row = {
            "callers": callers,
            "p95_ms": float(np.median([at["p95_ms"] for at in theirs])),
            "alone": float(np.median([at["throughput"] for at in theirs])),
            "batched": float(np.median(reached)),
            **median_ratio([r / at["throughput"] for r, at in zip(reached, theirs, strict=True)]),
        }
        ratios.append(row)
    return {"curves": curves, "at_equal_p95": ratios, "aim": 3.0}


def throughput_at(curve: list[dict[str, Any]], limit: float) -> float:
    """Most replies a second with p95 within `limit` ms, between measured levels by straight lines.

    Zero where even the lowest level is slower; beyond the highest level it is that level's, an underestimate.
    """
    points = sorted((point["p95_ms"], point["throughput"]) for point in curve if point["replies"])
    p95, best = [p for p, _ in points], np.maximum.accumulate([t for _, t in points])
    return float(np.interp(limit, p95, best, left=0.0))


def memory(options: argparse.Namespace, folder: Path, shop: Shop, embeddings: Embeddings) -> dict[str, Any]:
    samples: list[tuple[float, float]] = []
    total = Measured()
    with service(folder, cache_items=max(1, options.inputs // 4), **options.settings) as running:
        begun = time.monotonic()
        while (now := time.monotonic() - begun) < 60 * options.minutes:
            samples.append((now / 60, running.memory()))
            # Portions of a few seconds, since latencies and replies are kept for each.
            part = load(
                running.address, embeddings.calls, 8, min(5.0, 60 * options.minutes), total.statuses[200]
            )
            total.statuses += part.statuses
            total.wrong += part.wrong
            total.seconds += part.seconds
        samples.append(((time.monotonic() - begun) / 60, running.memory()))
    minutes, mib = np.array(samples).T
    late = minutes >= minutes[-1] / 5
    slope = float(np.polyfit(minutes[late], mib[late], 1)[0]) if late.sum() > 2 else float("nan")
    return {
        "minutes": float(minutes[-1]), "replies": total.statuses[200], "wrong": total.wrong,
        "first_mib": float(mib[0]), "after_warm_up_mib": float(mib[late][0]), "last_mib": float(mib[-1]),
        "most_mib": float(mib.max()), "mib_a_minute": slope, "samples": samples,
    }  # fmt: skip


def overload(options: argparse.Namespace, folder: Path, shop: Shop, embeddings: Embeddings) -> dict[str, Any]:
    with service(folder, cache_items=0, max_queue_items=QUEUE, **options.settings) as running:
        load(running.address, embeddings.calls, 2, min(2.0, options.seconds))
        before = load(running.address, embeddings.calls, 4, options.seconds)
        flood = burst(running.address, embeddings.calls, BURST * QUEUE)
        ended = time.monotonic()
        recovered, windows = None, []
        while recovered is None and time.monotonic() - ended < PATIENCE:
            window = load(running.address, embeddings.calls, 4, max(1.0, options.seconds / 4))
            windows.append(window.as_dict())
            if window.quantile(0.95) <= RECOVERED * before.quantile(0.95):
                recovered = time.monotonic() - ended
    return {
        "before": before.as_dict(), "burst": flood.as_dict(), "sent": BURST * QUEUE, "queue": QUEUE,
        "refused": flood.statuses[429], "told_when": len(flood.retry_after),
        "retry_after_s": sorted(set(flood.retry_after)), "recovered_within_s": recovered, "windows": windows,
    }  # fmt: skip


# ---- report ----------------------------------------------------------------------------------------


def show(results: dict[str, Any], console: Console) -> None:
    if "kept" in results:
        table = Table("path, one caller", "p50 ms", "without TCP_NODELAY", "ratio", "95%")
        for name, row in results["kept"].items():
            low, high = row["interval"]
            figures = [f"{row[key]:.2f}" for key in ("now", "before", "ratio")]
            table.add_row(name, *figures, f"{low:.2f}–{high:.2f}")
        console.print(table)
    if "levels" in results:
        table = Table("path", "callers", "replies/s", "p50 ms", "p95 ms", "p99 ms", "wrong", "not 200")
        for name, rows in results["levels"].items():
            for row in rows:
                figures = [f"{row[key]:.1f}" for key in ("throughput", "p50_ms", "p95_ms", "p99_ms")]
                other = sum(n for status, n in row["statuses"].items() if status != "200")
                table.add_row(name, str(row["callers"]), *figures, str(row["wrong"]), str(other))
        console.print(table)
    if "batching" in results:
        table = Table("p95 ms", "alone, callers", "alone /s", "batched /s", "ratio", "95%")
        for row in results["batching"]["at_equal_p95"]:
            low, high = row["interval"]
            figures = [f"{row['batched']:.1f}", f"{row['ratio']:.2f}", f"{low:.2f}–{high:.2f}"]
            ours = figures if row["batched"] else ["slower", "", ""]  # than this p95, even with one caller
            table.add_row(f"{row['p95_ms']:.0f}", str(row["callers"]), f"{row['alone']:.1f}", *ours)
        console.print(table)
        sides = results["batching"]["curves"].items()
        console.print("wrong:", {name: sum(r["wrong"] for c in curves for r in c) for name, curves in sides})
    if "memory" in results:
        r = results["memory"]
        console.print(
            f"memory: {r['after_warm_up_mib']:.0f} MiB after a fifth, {r['last_mib']:.0f} MiB after "
            f"{r['minutes']:.1f} min and {r['replies']:,} replies ({r['wrong']} wrong); "
            f"slope {r['mib_a_minute']:+.2f} MiB a minute"
        )
    if "overload" in results:
        r = results["overload"]
        after = (
            "not within the time" if r["recovered_within_s"] is None else f"{r['recovered_within_s']:.1f} s"
        )
        console.print(
            f"overload: {r['sent']} at once on a queue of {r['queue']}: {r['burst']['statuses']}, "
            f"{r['told_when']} of {r['refused']} refusals with Retry-After {r['retry_after_s']}; "
            f"p95 within {RECOVERED} × {r['before']['p95_ms']:.0f} ms again: {after}"
        )
    console.print(f"largest cosine distance to the offline vector: {results['worst_distance']:.2e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--products", type=int, default=160, help="of the catalogue")
    parser.add_argument("--inputs", type=int, default=200, help="different inputs of /v1/embeddings")
    parser.add_argument(
        "--callers", type=lambda s: [int(x) for x in s.split(",")], default=[1, 2, 4, 8, 16, 32]
    )
    parser.add_argument("--seconds", type=float, default=5, help="of load at each level")
    parser.add_argument("--repeats", type=int, default=5, help="of the part on batching")
    parser.add_argument("--minutes", type=float, default=10, help="of the part on memory")
    parser.add_argument("--reason", choices=("off", "on", "auto"), default="off")
    parser.add_argument("--threads", type=int, help="of torch in each service")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="cosine distance to the offline vector")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    options.settings = {"threads": options.threads} if options.threads else {}
    parts = {"kept": kept, "levels": levels, "batching": batching, "memory": memory, "overload": overload}
    if unknown := set(wanted := options.only.split(",")) - set(parts):
        parser.error(f"there is no part {sorted(unknown)[0]}")
    console = Console(width=150)
    results: dict[str, Any] = {"model": options.model, "environment": environment(), "options": vars(options)}
    with tempfile.TemporaryDirectory() as place:
        with console.status("catalogue and offline vectors"):
            shop = make_shop(options.products, seed=11, n_queries=60)
            folder, embeddings = prepared(options, shop, Path(place))
        for part in wanted:
            with console.status(part):
                results[part] = parts[part](options, folder, shop, embeddings)
    results["worst_distance"] = embeddings.worst
    console.print(f"{options.model}, reason {options.reason}; load of the machine {os.getloadavg()[0]:.1f}")
    show(results, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, default=str), encoding="utf-8")


def prepared(options: argparse.Namespace, shop: Shop, place: Path) -> tuple[Path, Embeddings]:
    """A catalogue folder, and calls with the vectors that the model makes of their inputs on its own."""
    from moonshelf.catalogue import Catalogue
    from moonshelf.model.modeling import MoonModel

    model = MoonModel.from_pretrained(options.model)
    catalogue = Catalogue.create(place / "catalogue", options.model)
    catalogue.embed(shop.products)
    catalogue.index()
    products = inputs(shop, options.inputs)
    vectors = model.encode(products, reason=options.reason).vectors.astype(np.float64)
    return place / "catalogue", Embeddings(products, vectors, options.reason, options.tolerance)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
