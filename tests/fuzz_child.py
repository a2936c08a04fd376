"""Damages pictures and folders at random for a time, in a process that may be killed:
`fuzz_child.py TARGET SECONDS SEED WORK`. Each try is noted in WORK/try before it runs. The last line of the
output is a record as JSON; what is neither a result nor one of our errors ends the run with a traceback."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import resource
import shutil
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "catalogue")]
warnings.simplefilter("error")

ODD_NUMBERS = [0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 1 << 24, 1_000_000]
ODD_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 1e-30, 0.5, -1.5, 1e308, 10**6, 10**9, 10**30, "", "x",
    "../x", "/etc/hosts",
    "x" * 10_000, [], {}, [1], [[]], {"a": 1}, [-1, 10**9], json.loads("[" * 40 + "]" * 40),
]  # fmt: skip


def damaged(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(made) + 1) if rng.random() < 0.5 else rng.randrange(min(len(made), 400) + 1)
        match rng.randrange(7):
            case 0:
                made[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                number = struct.pack(rng.choice("<>") + "I", rng.choice(ODD_NUMBERS))
                made[at : at + 4] = number[: rng.choice((2, 4))] if rng.random() < 0.5 else number
            case 2:
                del made[at : at + rng.choice((1, 4, 50, 5_000))]
            case 3:
                part = bytes(made[at : at + rng.choice((4, 40, 4_000))])
                made[at:at] = part * rng.choice((1, 2, 200 if len(part) < 100 else 2))
            case 4:
                made[at:] = made[at : rng.randrange(at, len(made) + 1)]
            case 5 if other:
                start = rng.randrange(len(other))
                made[at:at] = other[start : start + rng.choice((8, 100, 3_000))]
            case _:
                made[at : at + 4] = rng.randbytes(4)
    return bytes(made[: 4 << 20])


def changed(value: Any, rng: random.Random) -> Any:
    """Parsed JSON with one value, chosen at random, replaced, taken away or added."""
    value = copy.deepcopy(value)
    places = [(holder, key) for holder, key in _places(value)]
    if not places or rng.random() < 0.02:
        return rng.choice(ODD_VALUES)
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("auto_map", "extra", "vocab_file", ""))] = rng.choice(ODD_VALUES)
        case 2 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = rng.choice((holder[key] * 2, holder[key] + 1, -holder[key], holder[key] * 1000))
        case _:
            holder[key] = rng.choice(ODD_VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


# ---------------------------------------------------------------------------------------------- targets


def decoder(rng: random.Random, work: Path) -> Callable[[], str]:
    import costly_images
    import hostile_images as hostile
    from moonshelf import images

    corpus = [data for _, data, *_ in hostile.odd() if len(data) < 200_000]
    corpus += [data for _, data, _ in hostile.refused() if 20 < len(data) < 200_000]
    corpus += [hostile.save(hostile.noisy((40, 30)), fmt) for fmt in images.FORMATS] * 20
    corpus += [costly_images.webp_of(500, 500), costly_images.gif_of(900, 900)]

    def one() -> str:
        data = damaged(rng.choice(corpus), rng, rng.choice(corpus))
        (work / "try").write_bytes(data)
        try:
            images.probe(data)
            return images.decode(data, max_side=rng.choice((None, 320, 64))).mode
        except images.ImageError as error:
            assert len(str(error)) < 200 and "0x" not in str(error)
            return error.code

    return one


def _folder(
    rng: random.Random,
    work: Path,
    source: Path,
    use: Callable[[Path], None],
    seal: Callable[[Path, Path], None],
) -> Callable[[], str]:
    """Damages one file of a copy, makes its hashes fit (most times), and uses the copy."""
    from moonshelf.errors import UserError

    kept = work / "kept"
    shutil.copytree(source, kept)
    names = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    parsed = {name: json.loads((kept / name).read_text()) for name in names if name.suffix == ".json"}

    def one() -> str:
        shutil.rmtree(work / "copy", ignore_errors=True)
        shutil.copytree(kept, work / "copy")
        name = rng.choice([*parsed] if parsed and rng.random() < 0.6 else names)
        path = work / "copy" / name
        if name in parsed and rng.random() < 0.8:
            data = json.dumps(changed(parsed[name], rng)).encode()
        else:
            data = damaged(path.read_bytes(), rng)
        path.write_bytes(data)
        (work / "try").write_bytes(f"{name}\n".encode() + data)
        if rng.random() < 0.9:
            seal(work / "copy", path)
        try:
            use(work / "copy")
            return "used"
        except UserError as error:
            assert len(str(error)) < 1_500 and "Traceback" not in str(error)
            return "refused"

    return one


def model(rng: random.Random, work: Path) -> Callable[[], str]:
    from moonshelf.model import files
    from moonshelf.model.encoders.base import EncodingError
    from moonshelf.model.modeling import MoonModel
    from moonshelf.product import Product

    def use(folder: Path) -> None:
        loaded = MoonModel.from_pretrained(folder)
        with suppress(EncodingError):
            loaded.encode([Product(id="a", title="red shoe")])

    def seal(folder: Path, path: Path) -> None:
        if path.name != files.MANIFEST:
            files.write_manifest(folder)

    return _folder(rng, work, files.STARTER, use, seal)


def selector(rng: random.Random, work: Path) -> Callable[[], str]:
    from moonshelf.creatives.backends import model as model_backend
    from moonshelf.model import files

    base = model_backend.load_base("starter", False, "float32")
    weights = copy.deepcopy(base.backbone.state_dict())

    def again(*_: Any) -> Any:
        base.backbone.load_state_dict(weights)
        return base

    model_backend.load_base = again

    def use(folder: Path) -> None:
        model_backend.CreativeModel.from_pretrained(folder)

    def seal(folder: Path, path: Path) -> None:
        if path.name != files.MANIFEST:
            files.write_manifest(folder)

    return _folder(rng, work, model_backend.PACKAGED, use, seal)


def catalogue(rng: random.Random, work: Path) -> Callable[[], str]:
    from fake_model import FakeModel, product

    from moonshelf.catalogue import Catalogue

    source = work / "shelf"
    made = Catalogue.create(source, FakeModel())
    made.embed([product(i) for i in range(40)])
    made.index()

    def use(folder: Path) -> None:
        opened = Catalogue.open(folder, FakeModel())
        for mode in ("vector", "text"):
            opened.search("boot", k=3, mode=mode)

    def seal(folder: Path, path: Path) -> None:
        index = folder / "index" / "index.json"
        if path.parent == index.parent and path != index:
            record = json.loads(index.read_text())
            for name in ("", "rows_", "vectors_"):
                if record.get(f"{name}file" if name else "file") == path.name:
                    record[f"{name}sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            index.write_text(json.dumps(record))

    return _folder(rng, work, source, use, seal)


def main() -> None:
    target, seconds, seed, work = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    work.mkdir(parents=True)
    rng = random.Random(seed)
    one = {"decoder": decoder, "model": model, "selector": selector, "catalogue": catalogue}[target](
        rng, work
    )
    found: dict[str, int] = {}
    worst, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        began = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        answer = one()
        took = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - began
        if took > worst:
            worst = took
            shutil.copyfile(work / "try", work / "slowest")
        found[answer] = found.get(answer, 0) + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tries": sum(found.values()), "seconds": worst, "mb": peak, "found": found}))


if __name__ == "__main__":
    main()
