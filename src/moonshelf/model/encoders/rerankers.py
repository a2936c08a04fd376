"""Rerankers: who reads what is asked and what was found together, and says how well they fit.

    reranker = load("/models/ms-marco-MiniLM-L6-v2")           # a CrossEncoder; or a fetched hub id
    reranker = load("http://127.0.0.1:8000/v1#bge-reranker")   # a server with /v1/rerank, such as ours

A CrossEncoder may read pictures too (Qwen3-VL-Reranker and its kin, as sentence-transformers has them). It
is loaded as data, like an encoder (`stock`). A reranker is a step that may fail: `score` keeps to a deadline,
and whoever calls it goes on with the order that there was.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moonshelf import images
from moonshelf.endpoints import Endpoint
from moonshelf.errors import UserError
from moonshelf.model.encoders import stock
from moonshelf.model.encoders.base import BOTH, TEXT
from moonshelf.product import Product
from moonshelf.prompts import PromptSpec

FIRST = 50  # of a list that are read again
BATCH = 16  # pairs between two looks at the clock
SECONDS = 10.0  # of one list
_SIDE = 512  # pictures are decoded no larger than this

Pair = tuple[Product, Product]  # what is asked, what was found


class RerankError(UserError):
    """A reranker did not do its work, in one sentence: whoever asked it goes on with the order there was."""


class Reranker(Protocol):
    """`score` gives (n,) float64, higher where a pair fits better; those of one query are comparable."""

    name: str
    reads: frozenset[str]

    def score(self, pairs: Sequence[Pair]) -> np.ndarray: ...


class CrossEncoderReranker:
    """A CrossEncoder of sentence-transformers: of texts, or of texts and pictures."""

    prompt: PromptSpec = stock.PROMPT

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.model, missing = stock.load_module("CrossEncoder", folder, name)
        if missing or self.model.num_labels != 1:
            why = (
                f"its files lack {sorted(missing)[0]}"
                if missing
                else f"it knows {self.model.num_labels} labels"
            )
            raise UserError(f"{name} is no reranker, which gives one score for a pair: {why}")
        self.reads = BOTH if self.model.supports("image") else TEXT
        self.fingerprint = stock.hash_folder("cross-encoder", folder)

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        shown = [(self._shown(query), self._shown(product)) for query, product in pairs]
        scores = self.model.predict(shown, batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(scores, np.float64).reshape(len(pairs))

    def _shown(self, product: Product) -> Any:
        text = self.prompt.text_of(product)
        if self.reads == TEXT or not product.images:
            return text
        picture = images.load(product.images[0], max_side=_SIDE)
        return {"text": text, "image": picture} if text else picture


class EndpointReranker:
    """A server with /rerank in the form that Cohere, Jina, vLLM and this project's own service share."""

    reads = TEXT
    prompt: PromptSpec = stock.PROMPT

    def __init__(self, address: str) -> None:
        self.endpoint = Endpoint(address, "/rerank", "rerank", SECONDS, max_bytes=4 << 20)
        self.name = f"rerank:{self.endpoint.model}"
        self.fingerprint = f"{self.endpoint.url}#{self.endpoint.model}"

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """By one request a query."""
        scores = np.full(len(pairs), np.nan)
        asked: dict[str, list[int]] = {}
        for place, (asking, _) in enumerate(pairs):
            asked.setdefault(self.prompt.text_of(asking), []).append(place)
        for query, places in asked.items():
            documents = [self.prompt.text_of(pairs[place][1]) for place in places]
            answer = self.endpoint.post({"query": query, "documents": documents, "top_n": len(places)})
            try:
                for one in json.loads(answer)["results"]:
                    index = int(one["index"])
                    if not 0 <= index < len(places):
                        raise ValueError(index)
                    scores[places[index]] = float(one["relevance_score"])
            except (ValueError, LookupError, TypeError):
                raise UserError(f"the reranker {self.endpoint.host} gave no list of scores") from None
        return scores


def load(spec: str, download: bool = False) -> Reranker:
    """The reranker of a folder, a hub id or URL#MODEL. Raises `UserError` for one that cannot be used."""
    address = spec.removeprefix("rerank:")
    if address.startswith(("http://", "https://")):
        return EndpointReranker(address)
    return CrossEncoderReranker(stock.locate(spec, download), stock.short_name(spec))


def score(reranker: Reranker, pairs: Sequence[Pair], seconds: float = SECONDS) -> np.ndarray:
    """(n,) float64 scores of pairs, in batches. Raises `RerankError` where the deadline of `seconds` passes,
    the reranker fails, or what it gives are no scores.

    It computes in a thread that is left behind where it hangs, after the batch in hand.
    """
    found: list[Any] = []
    late = threading.Event()

    def work() -> None:
        try:
            for start in range(0, len(pairs), BATCH):
                if late.is_set():
                    return
                found.append(checked(reranker, pairs[start : start + BATCH]))
        except RerankError as error:
            found.append(error)

    thread = threading.Thread(target=work, name="moonshelf-rerank", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        late.set()
        raise late_error(reranker, seconds)
    if found and isinstance(found[-1], RerankError):
        raise found[-1]
    return np.concatenate(found) if found else np.zeros(0)


def late_error(reranker: Reranker, seconds: float) -> RerankError:
    return RerankError(f"the reranker {reranker.name} did not answer within {seconds:.3g} s")


def checked(reranker: Reranker, pairs: Sequence[Pair]) -> np.ndarray:
    """The scores (n,) of one batch. Raises `RerankError` if there are none, or not one for each pair."""
    try:
        scores = np.asarray(reranker.score(pairs), np.float64)
    except Exception as error:  # whatever a model or a server of others gives
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise RerankError(f"the reranker {reranker.name} failed: {reason}") from error
    if scores.shape != (len(pairs),) or not np.isfinite(scores).all():
        raise RerankError(f"the reranker {reranker.name} gave what are no {len(pairs)} scores")
    return scores


def why_not(reranker: Reranker, query: Product | None) -> str:
    """Why a reranker cannot read what is asked, "" where it can."""
    if query is None:
        return "a product to be like is no query to read again"
    if "image" in reranker.reads or query.title or query.description:
        return ""
    return f"{reranker.name} reads text alone, and the query has none"
