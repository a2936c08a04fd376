"""Test-time ablation: another text in place of the model's own rationale, and what that does to its vectors.

This is LREM's sanity table for reasoning embedders. Reasoning pays only if the model's own rationale beats an
empty one, random words and the writing about another product; the catalogue's record, written as a rationale,
says what perfect reading would be worth. Queries (titles, phrases, label texts) are direct vectors, the same
for every text; only products have rationales. Every text is read as the model would read its own (see
`stream.encode_iter`), and differences are taken product by product, so their intervals are paired.

Choices (ours): random words come from the titles, as many tokens as the own rationale; another product's
rationale is that of the next one in a shuffled order; a photo alone has no title to copy. Besides photos, and
photos with titles, titles are shown without the words that phrases and labels ask for: what is left for the
rationale to add. Labels are those of the products measured, so accuracies are not those of `evaluate`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from moonshelf import images
from moonshelf.errors import Problem, UserError
from moonshelf.evaluation.data.dataset import TEMPLATES, stems, view
from moonshelf.evaluation.statistics import metrics, significance
from moonshelf.evaluation.tasks import says
from moonshelf.model.engine import load_picture
from moonshelf.product import Product
from moonshelf.prompts import END_THINK, THINK
from moonshelf.training.data import duplicate_mask, positive_mask
from moonshelf.training.sources.pairs import ORDER, Item, Query, synthetic_query
from research.studies.dense import ranks_of

if TYPE_CHECKING:
    from moonshelf.model.encoders.base import Encoded
    from moonshelf.model.head import FireStep
    from moonshelf.model.modeling import MoonModel

RATIONALES = {
    "own": "what the model writes",
    "none": "no rationale: the direct vector",
    "empty": "`<think></think>`",
    "random": "random words of titles, as many tokens as its own",
    "title": "a copy of the title that is shown",
    "other": "its own writing about another product",
    "catalogue": "the record's category and attributes: an upper bound",
}
PHOTO, WHOLE, HIDDEN = VIEWS = ("photo", "photo + title", "photo + title, hidden")
LEAST = 20  # products that must state an attribute for it to be measured, or a tenth of them if that is fewer


@dataclass(frozen=True)
class Figure:
    """One figure of the products in one view with one rationale: a value a query."""

    view: str
    rationale: str
    name: str
    values: list[float]
    groups: list[str]  # resampled together

    def interval(self) -> significance.Interval:
        return significance.bootstrap(self.values, self.groups)

    def against(self, other: Figure) -> significance.Interval:
        """The mean difference to another figure of the same queries, with its paired interval."""
        if self.groups != other.groups:
            raise ValueError(f"{self.name}: the two figures are not of the same queries")
        return significance.bootstrap(np.subtract(self.values, other.values), self.groups)


@dataclass(frozen=True)
class Read:
    """How the head read the products in one view with one rationale; means over the products."""

    view: str
    rationale: str
    weights: list[float]  # share of image, text and rationale in the fusion
    tokens: float  # of the rationale
    valid: float  # share of rationales that keep their format
    changed: float  # share of rationales that are not the model's own
    gates: list[float]  # of FIRE, a tapped depth each
    steps: list[float]  # size of FIRE's step relative to the vector it is added to


@dataclass
class Study:
    """All figures of one model."""

    products: int
    figures: list[Figure] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    taps: list[int] = field(default_factory=list)  # decoder layers that FIRE reads
    scales: list[float] = field(default_factory=list)  # norm of FIRE's layer scale at each
    problems: list[Problem] = field(default_factory=list)

    def find(self, view: str, rationale: str, name: str) -> Figure | None:
        wanted = (view, rationale, name)
        return next((f for f in self.figures if (f.view, f.rationale, f.name) == wanted), None)

    def as_dict(self) -> dict[str, Any]:
        """With the values of every query, so that another study can be compared with this one."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Study:
        return cls(**{
            **record, "figures": [Figure(**f) for f in record["figures"]],
            "reads": [Read(**r) for r in record["reads"]],
            "problems": [Problem(**p) for p in record["problems"]],
        })  # fmt: skip


def measure(
    model: MoonModel,
    items: Sequence[Item],
    rationales: Sequence[str] = tuple(RATIONALES),
    *,
    views: Sequence[str] = VIEWS,
    seed: int = 0,
    batch_tokens: int = 8192,
    say: Callable[[str], None] = lambda _: None,
) -> Study:
    """Figures of `items` in each view with each rationale. Raises `UserError` for an unknown rationale."""
    unknown = sorted(set(rationales) - set(RATIONALES))
    if unknown or not rationales:
        wrong = ", ".join(map(repr, unknown)) or "named"
        raise UserError(f"there is no rationale {wrong}: choose from {', '.join(RATIONALES)}.")
    study = Study(0)
    items = [item for item in items if _readable(item, model, study.problems)]
    if len(items) < 2:
        raise UserError(f"{len(items)} products with a usable picture: at least 2 are needed to rank them.")
    study.products = len(items)
    study.scales = [float(step.scale.detach().norm()) for step in _steps(model)]
    study.taps = list(model.config.taps) if study.scales else []
    say("queries")
    bench = Bench(model, items, seed, batch_tokens)
    hide = stems([name for item in items for name in (*item.category, *item.facts.values())])
    for shown in views:
        products = [_show(item, shown, hide) for item in items]
        written: tuple[Encoded, Watch] | None = None
        if set(rationales) != {"none"}:
            say(f"{shown}: own")
            written = _encode(model, products, batch_tokens, reason="on")
        own = written[0].rationales if written else []
        for kind in rationales:
            texts = None if kind in ("own", "none") else replaced(kind, items, products, own, model, seed)
            if texts == []:  # there is nothing to put in its place
                continue
            if kind == "own" and written:
                out, seen = written
            else:
                say(f"{shown}: {kind}")
                out, seen = _encode(model, products, batch_tokens, rationales=texts)
            study.figures += bench.figures(shown, kind, out)
            changed = [a != b for a, b in zip(out.rationales, own, strict=True)] if own else [False]
            valid = float(out.valid.mean()) if kind != "none" else 0.0
            means = out.weights.mean(0).tolist(), float(out.tokens.mean()), valid, float(np.mean(changed))
            study.reads.append(Read(shown, kind, *means, *seen.means()))
    return study


def _encode(
    model: MoonModel, products: Sequence[Product], batch_tokens: int, **options: Any
) -> tuple[Encoded, Watch]:
    with watched(model) as seen:
        return model.encode(products, batch_tokens=batch_tokens, **options), seen


def _readable(item: Item, model: MoonModel, problems: list[Problem]) -> bool:
    try:
        load_picture(item.images[0], model.prompt.max_pixels)
    except images.ImageError as error:
        problems.append(Problem(item.id, "images", str(error), item.id))
        return False
    return True


def _show(item: Item, shown: str, hide: frozenset[str]) -> Product:
    product = Product(id=item.id, title=item.title, images=item.images[:1])
    return view(product, text=shown != PHOTO, image=True, hide=hide if shown == HIDDEN else frozenset())


# ---- interventions -------------------------------------------------------------------------------------


def replaced(
    kind: str,
    items: Sequence[Item],
    products: Sequence[Product],
    own: Sequence[str],
    model: MoonModel,
    seed: int,
) -> list[str]:
    """The texts that stand in place of the products' `own` rationales; empty if there are none to be had."""
    rng = random.Random(seed)
    if kind == "empty":
        bodies = [""] * len(items)
    elif kind == "random":
        bodies = _random_words(items, own, model, rng)
    elif kind == "title":
        bodies = [model.prompt.text_of(product) for product in products]
        if not any(bodies):
            return []
    elif kind == "other":
        order = list(range(len(items)))
        rng.shuffle(order)
        following = dict(zip(order, [*order[1:], order[0]], strict=True))
        bodies = [_body(own[following[i]]) for i in range(len(items))]
    elif kind == "catalogue":
        bodies = [item.rationale for item in items]
        if not any(bodies):
            return []
    else:
        raise ValueError(f"{kind!r} replaces nothing")
    return [f"{THINK}{body}{END_THINK}" for body in bodies]


def _random_words(
    items: Sequence[Item], own: Sequence[str], model: MoonModel, rng: random.Random
) -> list[str]:
    """At least one word each, and no more tokens than `own` has if that allows one."""
    texts = [model.prompt.text_of(Product(id="t", title=item.title)) for item in items]
    words = sorted({word for text in (texts if any(texts) else map(_body, own)) for word in text.split()})
    if not words:
        return [""] * len(own)
    sizes = dict(zip(words, map(len, model.prepare.text_ids([f" {word}" for word in words])), strict=True))
    bodies = []
    for wanted in map(len, model.prepare.text_ids([_body(text) for text in own])):
        chosen = [rng.choice(words)]
        left = wanted - sizes[chosen[0]]
        while (word := rng.choice(words)) and sizes[word] <= left:
            chosen.append(word)
            left -= sizes[word]
        bodies.append(" ".join(chosen))
    return bodies


def _body(rationale: str) -> str:
    return rationale.removeprefix(THINK).removesuffix(END_THINK)


# ---- figures -------------------------------------------------------------------------------------------


class Bench:
    """What the products are compared with: direct vectors of titles, phrases and labels, encoded once."""

    def __init__(self, model: MoonModel, items: Sequence[Item], seed: int, batch_tokens: int) -> None:
        def encode(texts: Sequence[str]) -> np.ndarray:
            products = [Product(id=str(i), title=text) for i, text in enumerate(texts)]
            return model.encode(products, batch_tokens=batch_tokens).vectors

        self.items, self.groups = items, [item.group for item in items]
        self.titled = [i for i, item in enumerate(items) if model.prompt.text_of(_titled(item))]
        owners = [items[i] for i in self.titled]
        self.titles = encode([item.title for item in owners])
        self.twins = duplicate_mask(owners, items).numpy().astype(float)
        phrases = [_phrase(item, random.Random(f"{seed}/{item.id}")) for item in items]
        self.asked = [i for i, query in enumerate(phrases) if query.text]
        asked = [phrases[i] for i in self.asked]
        self.phrases = encode([query.text for query in asked])
        self.wanted = positive_mask(asked, [items[i] for i in self.asked], items).numpy().astype(float)
        self.labels: dict[str, tuple[list[str], np.ndarray]] = {}
        for key in keys_of(items):
            names = sorted({_label(item, key) for item in items} - {""})
            templates = TEMPLATES.get(key, ("{}",))
            mean = np.mean([encode([t.format(name) for name in names]) for t in templates], axis=0)
            self.labels[key] = names, mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def figures(self, shown: str, kind: str, out: Encoded) -> Iterator[Figure]:
        """Figures of the products' vectors, in the order of `items`, and of what their rationales state."""

        def figure(name: str, values: Any, rows: Sequence[int]) -> Figure:
            return Figure(shown, kind, name, np.asarray(values).tolist(), [self.groups[i] for i in rows])

        if shown == PHOTO and self.titled:
            scores = metrics.similarity(self.titles, out.vectors)
            for k in (1, 10):
                yield figure(
                    f"title → photo R@{k}", metrics.hit(ranks_of(scores, self.twins), k), self.titled
                )
            scores, twins = scores.T[self.titled], self.twins.T[self.titled]
            for k in (1, 10):
                yield figure(f"photo → title R@{k}", metrics.hit(ranks_of(scores, twins), k), self.titled)
        elif shown != PHOTO and self.asked:
            asked = ranks_of(metrics.similarity(self.phrases, out.vectors), self.wanted)
            yield figure("phrase → product R@1", metrics.hit(asked, 1), self.asked)
            yield figure("phrase → product nDCG@10", metrics.ndcg(asked, 10), self.asked)
        for key, (names, vectors) in self.labels.items():
            rows = [i for i, item in enumerate(self.items) if _label(item, key)]
            truth = [_label(self.items[i], key) for i in rows]
            gains = np.array([[float(name == own) for name in names] for own in truth])
            values = metrics.hit(ranks_of(metrics.similarity(out.vectors[rows], vectors), gains), 1)
            yield figure(f"{key}, by vector", values, rows)
            if kind != "none":
                told = [
                    bool(out.valid[i]) and says(out.rationales[i], key, own)
                    for i, own in zip(rows, truth, strict=True)
                ]
                yield figure(f"{key}, as stated", np.array(told, float), rows)


def keys_of(items: Sequence[Item]) -> list[str]:
    """Category and visible attributes that enough of the items state, with at least two values."""
    counts = Counter(key for item in items for key in ("category", *ORDER[1:]) if _label(item, key))
    least = min(LEAST, max(2, len(items) // 10))
    return [
        key
        for key in ("category", *ORDER[1:])
        if counts[key] >= least and len({_label(item, key) for item in items} - {""}) > 1
    ]


def _label(item: Item, key: str) -> str:
    if key == "category":
        return item.category[-1] if item.category else ""
    return item.facts.get(key, "")


def _titled(item: Item) -> Product:
    return Product(id=item.id, title=item.title)


def _phrase(item: Item, rng: random.Random) -> Query:
    """The category and up to two facts, as a shopper would ask."""
    keys = list(item.facts)
    return synthetic_query(item, [*sorted(rng.sample(keys, min(2, len(keys))), key=keys.index), "category"])


class Watch:
    """Sums of FIRE's gates and relative steps, a tapped depth each."""

    def __init__(self, depths: int) -> None:
        self.gates, self.steps, self.rows = np.zeros(depths), np.zeros(depths), np.zeros(depths)

    def means(self) -> tuple[list[float], list[float]]:
        rows = np.maximum(self.rows, 1)
        return (self.gates / rows).tolist(), (self.steps / rows).tolist()


def _steps(model: MoonModel) -> list[FireStep]:
    return [cast("FireStep", step) for step in model.head.fire.steps] if model.head.fire is not None else []


@contextmanager
def watched(model: MoonModel) -> Iterator[Watch]:
    """Watch FIRE while the model encodes."""
    steps = _steps(model)
    found, handles = Watch(len(steps)), []
    for depth, step in enumerate(steps):

        def gate(_: Any, __: Any, output: Any, depth: int = depth) -> None:
            found.gates[depth] += float(output.sum())

        def moved(_: Any, inputs: Any, output: Any, depth: int = depth) -> None:
            z = inputs[0]
            found.steps[depth] += float(((output - z).norm(dim=-1) / z.norm(dim=-1).clamp(min=1e-12)).sum())
            found.rows[depth] += len(z)

        handles += [step.gate.register_forward_hook(gate), step.register_forward_hook(moved)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


# ---- table ---------------------------------------------------------------------------------------------


CAPTION = (
    "Own: mean ± half of the 95 % bootstrap interval. Others: mean, and the difference to its own with the "
    "paired interval; * says that it does not hold 0. All in percent."
)
HEADS = ("view", "rationale", "image", "text", "rationale", "tokens", "keep the format", "not its own")


def markdown(study: Study) -> str:
    """One table a view: a row a rationale, its own with an interval, the others as differences to it."""
    lines = [f"{study.products} products. {CAPTION}"]
    for shown in dict.fromkeys(f.view for f in study.figures):
        names = list(dict.fromkeys(f.name for f in study.figures if f.view == shown))
        lines += ["", f"**{shown}**", "", row("rationale", *names), row(*["---"] * (len(names) + 1))]
        for kind in dict.fromkeys(f.rationale for f in study.figures if f.view == shown):
            found = [(study.find(shown, kind, name), study.find(shown, "own", name)) for name in names]
            lines.append(row(kind, *(_cell(*pair) for pair in found)))
    lines += ["", "**Shares in the fusion, and the rationales**", "", row(*HEADS)]
    lines.append(row(*["---"] * len(HEADS)))
    for read in study.reads:
        shares = [f"{weight:.3f}" for weight in read.weights]
        told = ["–"] * 3
        if read.rationale != "none":
            told = [f"{read.tokens:.1f}", percent(read.valid), percent(read.changed)]
        lines.append(row(read.view, read.rationale, *shares, *told))
    return "\n".join([*lines, *depth_lines(study)])


def depth_lines(study: Study) -> list[str]:
    """FIRE at each tapped depth: the norm of its layer scale, its gate, and the size of its step."""
    whole = [read for read in study.reads if read.view != PHOTO] or study.reads
    if not study.taps or not whole:
        return []
    lines = ["", f"**FIRE** ({whole[0].view}, {whole[0].rationale})", "",
             row("layer", "norm of the scale", "mean gate", "step / vector"), row(*["---"] * 4)]  # fmt: skip
    for tap, scale, gate, step in zip(study.taps, study.scales, whole[0].gates, whole[0].steps, strict=True):
        lines.append(row(str(tap), f"{scale:.3f}", f"{gate:.3f}", f"{step:.3f}"))
    return lines


def _cell(figure: Figure | None, own: Figure | None) -> str:
    if figure is None:
        return "–"
    value = figure.interval()
    if own is None or figure.rationale == "own":
        return f"{percent(value.value)} ± {100 * (value.high - value.low) / 2:.1f}"
    return f"{percent(value.value)} ({difference(figure.against(own))})"


def difference(interval: significance.Interval) -> str:
    """`-2.1 [-4.0, -0.3]*`, in percent; the star says that the interval does not hold 0."""
    star = "*" if interval.low > 0 or interval.high < 0 else ""
    return f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]{star}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
