"""Direct vectors by torch, ONNX Runtime and OpenVINO, each paired with torch in one run.

    python benchmarks/exports.py [--products 64] [--repeats 7] [--model starter] [--out FILE]

Titles, photos, and both of the sample shop, all at once and one by one. A ratio above 1 says how many times
as fast as torch an export is. Int8 comes with what it costs: least cosine, and R@1 of photos to titles lost.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from paired import paired, save
from rich.console import Console
from rich.table import Table

from moonshelf import MoonModel, Product
from moonshelf.errors import UserError
from moonshelf.model.encoders.exported import Exported
from moonshelf.model.encoders.graph import export
from moonshelf.sample import shop

EXPORTS = (("onnx", False), ("onnx", True), ("openvino", False), ("openvino", True))


def shown(n: int) -> dict[str, list[Product]]:
    products = shop(n).products
    return {
        "titles": [Product(id=one.id, title=one.title) for one in products],
        "photos": [Product(id=one.id, images=one.images[:1]) for one in products],
        "both": [Product(id=one.id, title=one.title, images=one.images[:1]) for one in products],
    }


def encode(encoder: Any, parts: list[list[Product]]) -> None:
    for part in parts:
        encoder.encode(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    console, results = Console(), dict[str, Any]()
    model, views = MoonModel.from_pretrained(options.model), shown(options.products)
    table = Table("export", "shown", "torch, ms a product", "export", "times as fast", "95 %")
    for backend, int8 in EXPORTS:
        name = f"{backend} int8" if int8 else backend
        with tempfile.TemporaryDirectory() as folder:
            try:
                report = export(options.model, Path(folder) / "export", backend, int8)
            except UserError as error:
                console.print(f"{name}: {error}", soft_wrap=True)
                continue
            other = Exported(Path(folder) / "export")
            console.print(f"{name}: least cosine {report['cosine']}, R@1 lost {report['loss']}")
            results[name] = {"report": report}
            for view, products in views.items():
                for way, parts in (("at once", [products]), ("one by one", [[one] for one in products[:16]])):
                    found = results[name][f"{view}, {way}"] = paired(
                        partial(encode, other, parts), partial(encode, model, parts), options.repeats,
                        time.perf_counter,
                    )  # fmt: skip
                    ours, theirs = (1e3 * found[key] / sum(map(len, parts)) for key in ("ours_s", "theirs_s"))
                    low, high = found["interval"]
                    times = f"{found['ratio']:.2f}", f"{low:.2f} to {high:.2f}"
                    table.add_row(name, f"{view}, {way}", f"{theirs:.2f}", f"{ours:.2f}", *times)
    console.print(table)
    save(options.out, options, results)


if __name__ == "__main__":
    main()
