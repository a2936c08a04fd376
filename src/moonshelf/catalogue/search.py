"""Search over a catalogue folder: words, a picture, both, or "more like this one".

With words in the query two lists are made, the nearest vectors and the best full-text matches, and fused by
their scores with the weights that `index` found for this catalogue (see `fusion`). Each hit says which rank
it had in which list. Products that have an identifier which the words name come first.

The vector list comes from the FAISS index; where it is missing or damaged, the store is searched exactly and
the result says so. A filter's rows are remembered until the store changes: reading them is most of its cost.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.catalogue import fusion, manifest, vector_index
from moonshelf.catalogue.filters import Condition
from moonshelf.catalogue.fusion import DEPTH, PICTURED, SAFE, Fusion, Ranked, fuse
from moonshelf.catalogue.rows import codes_in, key_of
from moonshelf.catalogue.store import WRITTEN_WEIGHT, Store
from moonshelf.catalogue.vector_index import IndexInfo, Passing, VectorIndex
from moonshelf.errors import UserError
from moonshelf.model.encoders import rerankers
from moonshelf.model.encoders.base import Encoder, asking
from moonshelf.model.encoders.rerankers import Reranker
from moonshelf.product import ImageRef, Product
from moonshelf.prompts import clean_text

if TYPE_CHECKING:
    from moonshelf.catalogue.commits import EmbedReport
    from moonshelf.catalogue.matching.duplicates import DuplicateReport

MODES = ("hybrid", "vector", "text")
MEASURES = {"vector": "cosine", "text": "bm25"}  # what a score is in each list
MAX_K = 1_000
FILTERS_KEPT = 32  # each with up to 10 MB of vectors beside its rows: see `nearest`
FILTER_ROWS_KEPT = 4_000_000  # of all filters together, 16 bytes each
SHOWN = ("id", "title", "brand", "price", "currency", "category", "group_id", "link", "rationale")


@dataclass
class Hit:
    """One result. `score` orders the list: the cosine in mode vector, else what `fusion.fuse` gives, or what
    a reranker has given for the first of the list."""

    id: str
    score: float
    # vector_rank, text_rank, code_rank (from 1), cosine, bm25; of one that was reranked fused_rank, rerank
    why: dict[str, float | int]
    product: dict[str, Any]  # columns of the store, SHOWN if nothing else was asked for

    def as_dict(self) -> dict[str, Any]:
        return {"score": self.score, **self.product, "why": self.why}


@dataclass
class SearchResult:
    """Hits, best first, how they were found, and notes for the user (index missing, words ignored …)."""

    hits: list[Hit]
    mode: str
    notes: list[str] = field(default_factory=list)
    reranked_by: str = ""

    def rerank(self, scores: np.ndarray, name: str) -> None:
        """Order the first hits by a reranker's scores (n,). Those that an identifier names stay in front;
        what was not scored follows as it was."""
        first = [
            replace(hit, score=float(score), why={**hit.why, "fused_rank": rank, "rerank": float(score)})
            for rank, (hit, score) in enumerate(zip(self.hits, scores, strict=False), 1)
        ]
        first.sort(key=lambda hit: ("code_rank" not in hit.why, -hit.score))
        self.hits[: len(first)], self.reranked_by = first, name

    def as_dict(self) -> dict[str, Any]:
        reranked = {"reranked_by": self.reranked_by} if self.reranked_by else {}
        return {
            "mode": self.mode, **reranked, "notes": self.notes, "hits": [hit.as_dict() for hit in self.hits],
        }  # fmt: skip


@dataclass
class _Filter:
    """A filter's rows, at one version of the store; `passing` is how the index knows them."""

    version: int
    keys: np.ndarray
    passing: Passing | None = None


@dataclass(frozen=True)
class _Loaded:
    """The vector index as it was loaded; `state` is the time of its record and the store's version."""

    state: tuple[float, int]
    index: VectorIndex | None
    note: str
    fusion: Fusion | None


class Catalogue:
    """A catalogue folder: `open` it, then `search`, `embed`, `index`, `duplicates`.

    `model` is a `MoonModel`, a name or path for `MoonModel.from_pretrained`, or None for the model that the
    folder was embedded with. It is loaded when a query first needs it.
    """

    def __init__(self, folder: Path, model: Encoder | str | None = None) -> None:
        self.folder = folder
        self._given = model
        self._model: Encoder | None = None
        self._quick: Any = None  # the query side alone; False where there is none of this model
        self._store: Store | None = None
        self._loaded: _Loaded | None = None
        self._loading = threading.Lock()
        self._filters: OrderedDict[Condition, _Filter] = OrderedDict()
        self._filtering = threading.Lock()

    @classmethod
    def open(cls, folder: str | Path, model: Encoder | str | None = None) -> Catalogue:
        """Raises UserError if the folder is no catalogue. A new one begins with `Catalogue.create`."""
        catalogue = cls(Path(folder), model)
        catalogue._store = Store.open(folder)
        return catalogue

    @classmethod
    def create(cls, folder: str | Path, model: Encoder | str = "starter") -> Catalogue:
        """A catalogue in a folder that may be empty or not exist yet; nothing is written before `embed`."""
        return cls(Path(folder), model)

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store.open(self.folder)
        return self._store

    def __len__(self) -> int:
        return len(self.store)

    # ------------------------------------------------------------------------------------ model

    @property
    def model(self) -> Encoder:
        """The model, loaded once and checked against the vectors in the folder."""
        if self._model is None:
            given = self._given or self.store.manifest.model
            self._model = manifest.load_model(given) if isinstance(given, str) else given
        if self._store is not None:
            self._store.manifest.check(self._model, self.model_name, self.folder)
        return self._model

    @property
    def model_name(self) -> str:
        return manifest.name_of(self._given) if self._given is not None else self.store.manifest.model

    # ----------------------------------------------------------------------------------- writing

    def embed(self, feed: Any, *, progress: bool = False, **options: Any) -> EmbedReport:
        """Bring the catalogue up to date with a feed; `options` are those of `embed.Options`."""
        from moonshelf.catalogue.embed import Options, embed_feed

        passed = {name: options.pop(name, None) for name in ("fetcher", "on_commit", "cluster")}
        model = self._model or self._given or self.store.manifest.model
        report = embed_feed(
            feed, self.folder, model, model_name=self.model_name, options=Options(**options),
            progress=progress, load=lambda _: self.model, **passed,
        )  # fmt: skip
        self._store = Store.open(self.folder)
        return report

    def index(self, *, forget: bool = False, vector_weight: float | None = None) -> IndexInfo:
        """Build the vector and full-text indexes anew. What vectors weigh in search is `vector_weight` (0 to
        1), or what was set earlier unless that is to be forgotten, or measured (`fusion.measure`)."""
        _check_weight(vector_weight)

        def weigh(store: Store, index: VectorIndex) -> dict[str, Any]:
            if vector_weight is not None:
                return Fusion(vector_weight, fusion.SET).as_dict()
            earlier = None if forget else Fusion.read(vector_index.read_info(self.folder))
            if earlier is not None and earlier.why == fusion.SET:
                return earlier.as_dict()
            return fusion.measure(store, index, lambda: self.model).as_dict()

        return vector_index.build(self.folder, weigh=weigh)

    def duplicates(self, **options: Any) -> DuplicateReport:
        """Pairs and groups that may be one product; see `duplicates.find`."""
        from moonshelf.catalogue.matching.duplicates import find

        return find(self.store, **options)

    # ----------------------------------------------------------------------------------- search

    def search(
        self,
        query: Product | str | None = None,
        *,
        like: str | None = None,
        k: int = 10,
        where: str | Condition | None = None,
        mode: str = "hybrid",
        reason: str = "off",
        vector: np.ndarray | None = None,
        columns: Sequence[str] = SHOWN,
        written: float = WRITTEN_WEIGHT,
        vector_weight: float | None = None,
        reranker: Reranker | None = None,
        rerank_seconds: float = rerankers.SECONDS,
    ) -> SearchResult:
        """The k best rows for a query (words, or a Product with title, pictures or both), or like a row.

        `where` is a condition as `where.parse` reads it, or one that is made already. `mode` hybrid falls
        back to vector where the query has no words. `vector` is that of the query, (dim,) float32, where
        somebody else has computed it; `columns` are those of the store that each hit holds; `written` is the
        weight of what the model wrote beside the record's words, 0 leaves it out. `vector_weight`, 0 to 1, is
        the vectors' in mode hybrid, by default that of the index, and at least a half where the query has a
        picture. A product whose id, SKU, GTIN or MPN is in the words comes first. A `reranker` reads the
        first 50 again with the query; where it cannot, or not within `rerank_seconds`, the order stays and a
        note says so. Raises UserError for an unusable query, filter or id.
        """
        if mode not in MODES:
            raise UserError(f"mode must be one of {', '.join(MODES)}, not '{mode}'.")
        if not 1 <= k <= MAX_K:
            raise UserError(f"k must lie between 1 and {MAX_K}, not {k}.")
        _check_weight(vector_weight)
        if (query is None) == (like is None):
            raise UserError("give either a query (words, a picture or both) or the id of a product (like).")
        if isinstance(query, str):
            query = Product(id="query", title=query)
        words = clean_text(query.title or query.description)[:1000] if query is not None else ""
        if query is not None and not words and not query.images:
            raise UserError("the query is empty: give words or a picture.")
        if mode == "text" and not words:
            raise UserError("mode text needs words in the query.")
        if isinstance(where, str):
            from moonshelf.catalogue.where import parse  # brings Lark, which nobody else needs

            where = parse(where)
        allowed = self._filter(where) if where is not None else None
        notes: list[str] = []
        if not len(self.store):
            return SearchResult([], mode, [f"{self.folder} holds no products"])
        if allowed is not None and not len(allowed.keys):
            return SearchResult([], mode, ["no product passes the filter"])

        depth = max(DEPTH, k)
        lists: dict[str, list[tuple[int, float]]] = {"vector": [], "text": [], "code": []}
        if words and mode != "vector":
            lists["code"] = self.store.with_code(codes_in(words), depth, where)
            found = self.store.full_text(words, depth, where, written)
            if found is None:
                notes.append(f"no full-text index yet: run `moonshelf index {self.folder}`")
            elif not found and not lists["code"]:
                notes.append("no product has a word of the query")
            lists["text"] = found or []
        if mode != "text":
            if vector is None:
                vector = self._vector(query, like, reason, notes)
            near, note = self._nearest(vector, depth + 1, where, allowed)
            notes += [note] if note else []
            lists["vector"] = [hit for hit in near if like is None or hit[0] != key_of(like)][:depth]
        used = mode if mode != "hybrid" else "hybrid" if lists["text"] or lists["code"] else "vector"
        if used == "hybrid" and vector_weight is None:
            vector_weight, note = self._vector_weight()
            notes += [note] if note else []
            if query is not None and query.images:
                vector_weight = max(vector_weight, PICTURED)
        weight = (vector_weight or 0.0) if used == "hybrid" else 0.0
        best = lists["vector"]
        if used != "vector":
            best = fuse(best, lists["text"], weight, [key for key, _ in lists["code"]])
        wanted = max(k, rerankers.FIRST) if reranker is not None else k
        result = SearchResult(self._hits(best[:wanted], lists, columns), used, notes)
        if reranker is not None:
            try:
                if why := rerankers.why_not(reranker, query):
                    raise rerankers.RerankError(why)
                pairs = self.pairs(query, result.hits, "image" in reranker.reads)
                result.rerank(rerankers.score(reranker, pairs, rerank_seconds), reranker.name)
            except rerankers.RerankError as error:
                notes.append(f"{error}: this is the order before reranking")
        del result.hits[k:]
        return result

    def pairs(self, query: Product | None, hits: Sequence[Hit], pictures: bool) -> list[rerankers.Pair]:
        """What a reranker reads: the query with each of the first hits, pictures as thumbnails."""
        first, columns = hits[: rerankers.FIRST], ["id", "title", "description"]
        columns += ["thumbnail"] if pictures else []
        found = self.store.rows([key_of(hit.id) for hit in first], columns).to_pylist()
        rows = {row["id"]: _read_again(row) for row in found}
        asked = query or Product(id="query")
        return [(asked, rows.get(hit.id) or Product(id=hit.id)) for hit in first]

    def _vector(self, query: Product | None, like: str | None, reason: str, notes: list[str]) -> np.ndarray:
        if query is None:
            rows = self.store.rows([key_of(like or "")], ["id", "vector"]).to_pylist()
            if not rows or rows[0]["id"] != like:
                raise UserError(f"there is no product with the id '{like}'.")
            return np.asarray(rows[0]["vector"], dtype=np.float32)
        from moonshelf import images

        for ref in query.images:
            try:
                images.load(ref, max_side=64)
            except images.ImageError as error:
                raise UserError(f"the picture of the query cannot be used: {error}.") from None
        encoder = self._query_side(query, reason) or asking(self.model)
        if query.images and "image" not in encoder.reads:
            if not (query.title or query.description):
                raise UserError(f"{encoder.name} reads text alone: give words to search for, or use --like.")
            notes.append(f"{encoder.name} reads text alone: the picture was left out")
        vector = np.asarray(encoder.encode([query], reason=reason).vectors[0], dtype=np.float32)
        if not np.isfinite(vector).all():
            raise RuntimeError("the model gave a vector that is not finite for the query")
        return vector

    def _query_side(self, query: Product, reason: str) -> Any:
        """The part of a model that words alone need, without torch; None where that cannot be."""
        given = self._given or ""  # a model, or a name that says what computes it: ONNX Runtime does here
        wanted = isinstance(given, str) and manifest.backend_of(given)[0] in ("", "onnx")
        if self._model is not None or not wanted or query.images or reason != "off":
            return None
        if self._quick is None:
            from moonshelf.model.encoders.exported import query_side

            quick = query_side(self.model_name)  # of another model: the whole of it is loaded, and refused
            same = quick is not None and quick.fingerprint == self.store.manifest.fingerprint
            self._quick = quick if same else False
        return self._quick or None

    def _nearest(
        self, vector: np.ndarray, k: int, where: Condition | None, allowed: _Filter | None
    ) -> tuple[list[tuple[int, float]], str]:
        loaded = self._index()
        index, note = loaded.index, loaded.note
        if index is None:
            return self.store.nearest(vector, k, where), note
        passing = allowed.passing if allowed is not None else None
        if allowed is not None and (passing is None or passing.index is not index):
            allowed.passing = passing = Passing(index, allowed.keys)
        return index.search(vector[None], k, passing)[0], note

    def _filter(self, where: Condition) -> _Filter:
        version = self.store.version
        with self._filtering:
            found = self._filters.get(where)
            if found is not None and found.version == version:
                self._filters.move_to_end(where)
                return found
        found = _Filter(version, self.store.keys_where(where))
        with self._filtering:
            self._filters[where] = found
            self._filters.move_to_end(where)
            while len(self._filters) > FILTERS_KEPT or (
                len(self._filters) > 1
                and sum(len(one.keys) for one in self._filters.values()) > FILTER_ROWS_KEPT
            ):
                self._filters.popitem(last=False)
        return found

    def _index(self) -> _Loaded:
        """The index, loaded again when it or the store has changed."""
        with self._loading:  # readers in other threads wait for one loading instead of each doing it
            path = self.folder / "index" / "index.json"
            state = (path.stat().st_mtime if path.exists() else 0.0, self.store.version)
            if self._loaded is None or self._loaded.state != state:
                fused = Fusion.read(vector_index.read_info(self.folder))
                self._loaded = _Loaded(state, *vector_index.load(self.store), fused)
            return self._loaded

    def moved(
        self,
        before: int,
        after: int,
        added: Sequence[str],
        vectors: Sequence[np.ndarray],
        removed: Sequence[str],
    ) -> None:
        """The store went from version `before` to `after` by these changes alone, which the caller made: ids
        with new (dim,) vectors, and ids that are gone. Spares the loaded index the look at the whole store.
        """
        with self._loading:
            now = self._loaded
            if now is None or now.index is None or now.state[1] != before:
                return  # whoever asks next loads it
            keys, gone = (np.array([key_of(id) for id in ids], np.int64) for ids in (added, removed))
            rows = np.array(vectors, np.float32).reshape(len(keys), self.store.manifest.dim)
            index = now.index.catch_up(keys, rows, gone)
            self._loaded = replace(now, state=(now.state[0], after), index=index)

    def index_state(self) -> tuple[dict[str, Any] | None, str]:
        """What `index/index.json` says, None without an index, and why the index is not used, or ""."""
        return vector_index.read_info(self.folder) or None, self._index().note

    def _vector_weight(self) -> tuple[float, str]:
        """What the index says, or the default and a note where it says nothing."""
        loaded = self._index()
        if loaded.fusion is not None or not loaded.state[0]:  # without an index a note has said what to do
            return loaded.fusion.weight if loaded.fusion is not None else SAFE, ""
        advice = f"how much vectors find here was not measured: they weigh {SAFE:g}; run"
        return SAFE, f"{advice} `moonshelf index {self.folder}`"

    def _hits(self, best: Ranked, lists: Mapping[str, Ranked], columns: Sequence[str]) -> list[Hit]:
        why: dict[int, dict[str, float | int]] = defaultdict(dict)
        for name, ranked in lists.items():
            for rank, (key, score) in enumerate(ranked, 1):
                why[key][f"{name}_rank"] = rank
                if name in MEASURES:
                    why[key][MEASURES[name]] = round(score, 6)
        table = self.store.rows([key for key, _ in best], ["key", *columns])
        rows = {row.pop("key"): row for row in table.to_pylist()}
        # One that is not there was removed between the two reads.
        return [Hit(rows[key]["id"], score, why[key], rows[key]) for key, score in best if key in rows]


def _read_again(row: Mapping[str, Any]) -> Product:
    """A stored product as a reranker reads it."""
    shown = row.get("thumbnail")
    return Product(
        id=row["id"], title=row.get("title") or "", description=row.get("description") or "",
        images=(ImageRef(data=shown),) if shown else (),
    )  # fmt: skip


def _check_weight(weight: float | None) -> None:
    if weight is not None and not 0 <= weight <= 1:
        raise UserError(f"the weight of the vectors must lie between 0 and 1, not {weight:g}.")


def make_query(text: str | None, image: str | Path | None) -> Product | None:
    """The query of a command line, or None if there is neither words nor a picture."""
    if text is None and image is None:
        return None
    pictures = (ImageRef(path=str(image)),) if image is not None else ()
    return Product(id="query", title=text or "", images=pictures)
