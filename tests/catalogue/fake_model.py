"""A deterministic stand-in for MoonModel: hashed words and mean colours, and a log of what it was asked."""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from moonshelf import images
from moonshelf.catalogue.store import Store
from moonshelf.errors import Problem
from moonshelf.model.encoders.base import BOTH
from moonshelf.product import ImageRef, Product
from moonshelf.prompts import PromptSpec

DIM = 32


@dataclass
class Part:
    ids: list[str]
    vectors: np.ndarray
    rationales: list[str]
    valid: np.ndarray
    weights: np.ndarray
    tokens: np.ndarray
    row_index: np.ndarray
    problems: list[Problem] = field(default_factory=list)


def vector_of(text: str, colours: list[np.ndarray]) -> np.ndarray:
    vector = np.zeros(DIM, np.float32)
    for word in text.lower().split():
        vector[zlib.crc32(word.encode()) % (DIM - 4)] += 1
    for colour in colours:
        vector[-4:-1] += 2 * colour / len(colours)
    vector[-1] = 0.1
    return vector / np.linalg.norm(vector)


class FakeModel:
    """`seconds` of sleep a batch; `poison` ids get a NaN vector; `asked` lists every id it encoded."""

    reads, writes, queries = BOTH, True, None

    def __init__(
        self, fingerprint: str = "fake-1", dim: int = DIM, batch: int = 8, seconds: float = 0.0
    ) -> None:
        self.fingerprint, self.dim, self.batch, self.seconds = fingerprint, dim, batch, seconds
        self.prompt = PromptSpec(max_images=2)
        self.asked: list[str] = []
        self.poison: set[str] = set()
        self.fail_after: int | None = None

    def encode_iter(self, products: Iterable[Product], reason: str = "off", **_: Any) -> Iterator[Part]:
        stream, start = iter(products), 0
        while chunk := list(islice(stream, self.batch)):
            if self.seconds:
                time.sleep(self.seconds)
            yield self._part(chunk, start, reason)
            start += len(chunk)

    def encode(self, products: list[Product], reason: str = "off", **_: Any) -> Part:
        return self._part(list(products), 0, reason)

    def _part(self, chunk: list[Product], start: int, reason: str) -> Part:
        ids, vectors, rationales, places, problems = [], [], [], [], []
        for place, product in enumerate(chunk, start):
            if self.fail_after is not None and len(self.asked) >= self.fail_after:
                raise RuntimeError("the fake model broke")
            self.asked.append(product.id)
            try:
                colours = [
                    np.asarray(images.load(ref), np.float32).mean((0, 1)) / 255 for ref in product.images
                ]
            except images.ImageError as error:
                problems.append(Problem(place + 1, "images", str(error), product.id))
                continue
            ids.append(product.id)
            vector = vector_of(self.prompt.text_of(product), colours)
            vectors.append(np.full(self.dim, np.nan) if product.id in self.poison else vector)
            word = (product.title.split() or ["thing"])[-1].strip(";:").lower() or "thing"
            rationales.append(f"<think>category: {word}; colour: red</think>" if reason == "on" else "")
            places.append(place)
        n = len(ids)
        return Part(
            ids,
            np.array(vectors, np.float32).reshape(n, self.dim),
            rationales,
            np.ones(n, bool),
            np.tile(np.array([0.5, 0.5, 0.0], np.float32), (n, 1)),
            np.full(n, 9 if reason == "on" else 0, np.int32),
            np.array(places, np.int64),
            problems,
        )


def picture(
    colour: tuple[int, int, int] = (200, 30, 30), stripes: int = 0, form: str = "PNG", **save: Any
) -> bytes:
    """A small picture; `stripes` draws something for a perceptual hash to see."""
    image = Image.new("RGB", (48, 64), colour)
    for i in range(stripes):
        image.paste((255, 255, 255), (0, i * 64 // stripes, 48 - 7 * i % 40, i * 64 // stripes + 3))
    file = io.BytesIO()
    image.save(file, form, **save)
    return file.getvalue()


def product(number: int, **changes: Any) -> Product:
    colours = ("red", "blue", "green")
    kinds = ("running shoe", "leather boot", "canvas bag", "glass mug", "desk lamp")
    colour, kind = colours[number % 3], kinds[number % 5]
    fields: dict[str, Any] = {
        "id": f"p{number}",
        "title": f"{colour} {kind} {number}",
        "images": (ImageRef(data=picture((50 * (number % 5), 90, 20))),),
        "category": ("things", kind.split()[-1]),
        "attributes": {"Color": colour.title()},
        "brand": ("Acme", "Bolt")[number % 2],
        "price": float(number),
        "currency": "EUR",
    }
    return Product(**{**fields, **changes})


def table(folder: Any) -> dict[str, dict[str, Any]]:
    """All rows of a catalogue by id; fails if an id is there twice."""
    rows = Store.open(folder).scan(Store.open(folder).columns).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows), "an id is in the store twice"
    return {row["id"]: row for row in rows}
