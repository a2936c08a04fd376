"""Do two engines, precisions or versions make the same of the same products?

    python -m research.studies.parity starter --engines ours,transformers

What an engine does is cut into stages, each of which rests on the one before it: the prompt's tokens, the
pixels, the rationale's tokens, the vectors. Stages are compared product by product with the first engine in
the first precision; the first stage that differs is named, since all that comes after it must. Tokens and
pixels have to be equal, vectors may differ by a tolerance. A vector is only compared where the rationale is
the same. An engine that does not show a stage (a server does not show its pixels) is not compared there.

Engines: `ours`, one pass with a cache. `transformers`, the reference that shares least with it: chat template
and stock processor call, `generate`, then a second pass over everything. `vllm:URL`, a server that writes
what our engine pools, or `vllm:FOLDER`, vLLM in this process on an export. The results of an earlier run, say
by an older version, are one more (`against`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from moonshelf import sample
from moonshelf.catalogue.manifest import versions
from moonshelf.cli.console import print_json
from moonshelf.cli.export import load
from moonshelf.cli.options import Currency, Encoding, Json, MapColumns, reading
from moonshelf.errors import EXIT_OK, EXIT_USAGE, Problem, UserError
from moonshelf.feeds import read_feed
from moonshelf.model import engine
from moonshelf.model.engine import Row
from moonshelf.model.modeling import MoonModel, normalise
from moonshelf.model.precision import Precision
from moonshelf.model.writers import Body, at, difference, pool
from moonshelf.product import Product
from moonshelf.prompts import THINK
from moonshelf.training.starter import CHAT_TEMPLATE
from research.script import app_of, start
from research.studies.generated import Generated

STAGES = ("prompt", "pixels", "rationale", "direct vector", "reasoned vector")
PRECISIONS = ("float32", "bfloat16")
TOLERANCE = 1e-4  # of one number of a unit vector
_TOKENS, _ROWS = 4096, 16  # of one batch
_DIGITS = 8


class Result(BaseModel):
    """What one engine made of one product; None is a stage that it does not show."""

    model_config = ConfigDict(extra="forbid")

    id: str
    prompt: list[int] | None = None
    pixels: str | None = None  # SHA-256 of grid and float32 patches
    rationale: list[int] | None = None
    direct: list[float] | None = None
    reasoned: list[float] | None = None


class Trace(BaseModel):
    """One engine in one precision over all products, in order."""

    model_config = ConfigDict(extra="forbid")

    engine: str
    precision: str
    results: list[Result]

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"


class Record(BaseModel):
    """What `save` writes and `against` reads."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    versions: dict[str, str]
    traces: list[Trace]


@dataclass(frozen=True)
class Difference:
    """The first stage in which a product came out otherwise."""

    stage: str
    id: str
    detail: str


@dataclass
class Comparison:
    """One engine beside the reference."""

    name: str
    compared: dict[str, int] = field(default_factory=dict)  # products, by stage
    equal: dict[str, int] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)  # |difference| of one number, by kind of vector
    cosine: dict[str, float] = field(default_factory=dict)  # the least
    differences: list[Difference] = field(default_factory=list)  # one a product, in order of the products

    @property
    def first(self) -> Difference | None:
        """The earliest stage that differs, and the first product where it does."""
        return min(self.differences, key=lambda d: STAGES.index(d.stage), default=None)

    def as_dict(self) -> dict[str, Any]:
        shown = {key: value for key, value in vars(self).items() if key != "differences"}
        first = vars(self.first) if self.first else None
        return {**shown, "first_difference": first, "products_that_differ": len(self.differences)}


@dataclass
class Report:
    """What `moonshelf parity` prints."""

    model: str
    fingerprint: str
    reference: str
    products: int
    tolerance: float
    comparisons: list[Comparison]
    problems: list[Problem] = field(default_factory=list)  # products that no engine was given

    @property
    def exit_code(self) -> int:
        return EXIT_USAGE if any(c.differences for c in self.comparisons) else EXIT_OK

    def as_dict(self) -> dict[str, Any]:
        record = {**vars(self), "exit_code": self.exit_code}
        record["comparisons"] = [c.as_dict() for c in self.comparisons]
        record["problems"] = [p.as_dict() for p in self.problems]
        return record


def parity(
    model: MoonModel,
    products: Sequence[Product],
    engines: Sequence[str] = ("ours", "transformers"),
    precisions: Sequence[str] = ("float32",),
    *,
    tolerance: float = TOLERANCE,
    against: Path | None = None,
    save: Path | None = None,
    name: str = "",
) -> Report:
    """Run every engine in every precision, a server in its own, and compare them with the first.

    Raises UserError for an unknown engine or precision, and where nothing is left to compare.
    """
    runs = _runs(engines, precisions)
    earlier = _read(against, model) if against else []
    rows, problems = engine.read_rows(model, list(enumerate((p, "") for p in products)), "on")
    if not rows:
        why = problems[0].reason if problems else "there is none"
        raise UserError(f"no product can be compared: {why}")
    kept = [products[row.index] for row in rows]
    traces = [run(model, rows, kept) for run in runs]
    if save:
        record = Record(fingerprint=model.fingerprint, versions=versions(), traces=traces)
        save.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    others = [*traces[1:], *earlier]
    if not others and not save:
        raise UserError("one engine in one precision has nothing to be compared with: name another.")
    reference = traces[0]
    comparisons = [compare(reference, other, tolerance) for other in others]
    return Report(name, model.fingerprint, reference.name, len(rows), tolerance, comparisons, problems)


Run = Callable[[MoonModel, list[Row], list[Product]], Trace]


def _runs(engines: Sequence[str], precisions: Sequence[str]) -> list[Run]:
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UserError(f"there is no precision {precision!r}: take {' or '.join(PRECISIONS)}.")
    found: list[Run] = []
    for one in engines:
        if one.startswith("vllm:"):
            found.append(_in("float32", _served(one), one))
        elif one in ("ours", "transformers"):
            how = ours if one == "ours" else transformers
            found += [_in(precision, how, one) for precision in precisions]
        else:
            raise UserError(f"there is no engine {one!r}: take ours, transformers, vllm:URL or vllm:FOLDER.")
    if not found:
        raise UserError("name at least one engine and one precision.")
    return found


def _in(precision: str, how: Callable[[MoonModel, list[Row], list[Product]], list[Result]], name: str) -> Run:
    def run(model: MoonModel, rows: list[Row], products: list[Product]) -> Trace:
        before, model.precision = model.precision, cast(Precision, precision)
        try:
            results = how(model, [replace(row) for row in rows], products)
        finally:
            model.precision = before
        return Trace(engine=name, precision="as served" if ":" in name else precision, results=results)

    return run


# ---- engines ---------------------------------------------------------------------------------------


def ours(model: MoonModel, rows: list[Row], products: list[Product]) -> list[Result]:
    """The engine as it is used."""
    written, direct = (engine.runner(model, reason, _TOKENS)(rows) for reason in ("on", "off"))
    return [
        Result(
            id=row.id, prompt=_prompt(model, row), pixels=_pixels(model, row), rationale=one.ids,
            direct=_numbers(without.vector), reasoned=_numbers(one.vector),
        )
        for row, one, without in zip(rows, written, direct, strict=True)
    ]  # fmt: skip


def transformers(model: MoonModel, rows: list[Row], products: list[Product]) -> list[Result]:
    """Chat template, stock processor call, `generate`, and a second pass over everything."""
    prepare, found = model.prepare, []
    for first in range(0, len(rows), _ROWS):
        part = rows[first : first + _ROWS]
        stock = [_stock(model, product) for product in products[first : first + _ROWS]]
        bodies = Generated().write(model, part)
        tails = [[prepare.think, *body.ids, prepare.end_think, prepare.emb] for body in bodies]
        vectors = [_second_pass(model, part, t) for t in ([[prepare.emb]] * len(part), tails)]
        for i, (row, body) in enumerate(zip(part, bodies, strict=True)):
            prompt, pixels = stock[i]
            found.append(
                Result(
                    id=row.id, prompt=prompt, pixels=pixels, rationale=body.ids,
                    direct=_numbers(vectors[0][i]), reasoned=_numbers(vectors[1][i]),
                )
            )  # fmt: skip
    return found


def _stock(model: MoonModel, product: Product) -> tuple[list[int], str]:
    """Token ids and pixels of one product by template and processor call."""
    refs = product.images[: model.prompt.max_images]
    pictures = [engine.load_picture(ref, model.prompt.max_pixels) for ref in refs]
    instruction, text = model.prompt.instruction, model.prompt.text_of(product)
    content: list[Any] = [{"type": "text", "text": instruction}] if instruction else []
    content += [{"type": "image"}] * len(pictures) + ([{"type": "text", "text": text}] if text else [])
    messages: list[Any] = [{"role": "user", "content": content}]
    rendered = model.processor.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, add_generation_prompt=True,
        tokenize=False,
    )  # fmt: skip
    inputs = model.processor(images=pictures or None, text=[cast(str, rendered) + THINK], return_tensors="np")
    values, grid = inputs.get("pixel_values"), inputs.get("image_grid_thw")
    return np.asarray(inputs["input_ids"])[0].tolist(), _digest(values, grid)


def _second_pass(model: MoonModel, rows: list[Row], tails: list[list[int]]) -> np.ndarray:
    pixels = None
    if patches := [row.patches for row in rows if row.patches is not None]:
        grids = np.concatenate([row.grid for row in rows if row.grid is not None])
        pixels = model.prepare.scale(np.concatenate(patches)), grids
    batch = model.prepare.batch([r.text for r in rows], [r.image_tokens for r in rows], tails, pixels)
    with model.inferring():
        return normalise(model(batch.to(model.device))[0]).cpu().numpy()


def _served(address: str) -> Callable[[MoonModel, list[Row], list[Product]], list[Result]]:
    def served(model: MoonModel, rows: list[Row], products: list[Product]) -> list[Result]:
        bodies: list[Body] = at(model, address.removeprefix("vllm:"), strict=False).write(model, rows)
        pooled = pool(model, rows, bodies, _TOKENS)
        return [
            Result(id=row.id, prompt=body.prompt, rationale=body.ids, reasoned=_numbers(one.vector))
            for row, body, one in zip(rows, bodies, pooled, strict=True)
        ]

    return served


def _prompt(model: MoonModel, row: Row) -> list[int]:
    return model.prepare.row(row.text, row.image_tokens, [model.prepare.think])[0]


def _pixels(model: MoonModel, row: Row) -> str:
    return _digest(None if row.patches is None else model.prepare.scale(row.patches), row.grid)


def _digest(values: Any, grid: Any) -> str:
    digest = hashlib.sha256()
    if values is not None:
        digest.update(np.asarray(grid, np.int64).tobytes() + np.asarray(values, np.float32).tobytes())
    return digest.hexdigest()


def _numbers(vector: np.ndarray) -> list[float]:
    return [round(float(x), _DIGITS) for x in vector]


# ---- comparing -------------------------------------------------------------------------------------


def compare(reference: Trace, other: Trace, tolerance: float) -> Comparison:
    """All stages of two traces, product by product, matched by id."""
    found = Comparison(other.name)
    theirs = {result.id: result for result in other.results}
    for mine in reference.results:
        if mine.id not in theirs:
            raise UserError(f"product {mine.id!r} is not in the other results: compare the same products.")
        yours, first = theirs[mine.id], None
        for stage, detail in _stages(mine, yours, tolerance, found):
            found.compared[stage] = found.compared.get(stage, 0) + 1
            found.equal[stage] = found.equal.get(stage, 0) + (not detail)
            if detail and first is None:
                first = Difference(stage, mine.id, detail)
        if first:
            found.differences.append(first)
    return found


def _stages(mine: Result, yours: Result, tolerance: float, found: Comparison) -> Iterator[tuple[str, str]]:
    """(stage, what differs or "") of the stages that both show."""
    if mine.prompt is not None and yours.prompt is not None:
        same = mine.prompt == yours.prompt
        yield "prompt", "" if same else difference(mine.prompt, yours.prompt)
    if mine.pixels is not None and yours.pixels is not None:
        yield "pixels", "" if mine.pixels == yours.pixels else "other values"
    same = mine.rationale == yours.rationale
    if mine.rationale is not None and yours.rationale is not None:
        yield "rationale", "" if same else difference(mine.rationale, yours.rationale)
    for kind, a, b in (
        ("direct vector", mine.direct, yours.direct),
        ("reasoned vector", mine.reasoned, yours.reasoned),
    ):
        if a is None or b is None or (kind == "reasoned vector" and not same):
            continue
        if len(a) != len(b):
            yield kind, f"{len(b)} dimensions, not {len(a)}"
            continue
        x, y = np.array(a), np.array(b)
        largest = float(np.abs(x - y).max())
        cosine = float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
        found.largest[kind] = max(largest, found.largest.get(kind, 0.0))
        found.cosine[kind] = min(cosine, found.cosine.get(kind, 1.0))
        yield kind, "" if largest <= tolerance else f"off by {largest:.1e} in one number, cosine {cosine:.6f}"


def _read(path: Path, model: MoonModel) -> list[Trace]:
    """The traces of an earlier run, named after its versions."""
    try:
        record = Record.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path} cannot be read: name a file that --save wrote.") from None
    except ValidationError:
        raise UserError(f"{path} is not a file that this script's --save wrote.") from None
    if record.fingerprint != model.fingerprint:
        raise UserError(
            f"{path} was made with the model {record.fingerprint}, and this one is {model.fingerprint}: "
            "versions are compared on one model."
        )
    known = [name for name in ("moonshelf", "torch", "transformers") if name in record.versions]
    label = f"{path.name} ({', '.join(f'{name} {record.versions[name]}' for name in known)}): "
    return [trace.model_copy(update={"engine": label + trace.engine}) for trace in record.traces]


# ---- the command -----------------------------------------------------------------------------------


def products_of(
    feed: str | None, n: int, dialect: str | None, images_root: str | None, **how: Any
) -> list[Product]:
    """The first `n` products of a feed, without those that its reader sets aside, or of the sample shop."""
    if feed is None:
        feed = str(sample.PRODUCTS)
    items = read_feed(feed, dialect, images_root=images_root, **how)
    return list(islice((item for item in items if isinstance(item, Product)), n))


def lines(report: Report) -> list[str]:
    """The report as lines of text."""
    found = [f"{report.products} products, compared with {report.reference}; tolerance {report.tolerance:g}"]
    found += [f"  left out: {problem.id}: {problem.reason}" for problem in report.problems]
    for one in report.comparisons:
        found.append(one.name)
        for stage in STAGES:
            text = f"  {stage:<16}"
            if stage in one.compared:
                text += f"{one.equal[stage]} of {one.compared[stage]} equal"
            else:
                text += "not compared: one of the two does not show it, or nothing before it is equal"
            if stage in one.largest:
                text += f", off by at most {one.largest[stage]:.1e}, cosine at least {one.cosine[stage]:.7f}"
            found.append(text)
        first = one.first
        found.append(f"  DIFFERS first in {first.stage}, {first.id}: {first.detail}" if first else "  agrees")
    return found


def main(
    model: Annotated[str, typer.Argument(help="Folder of a model, or 'starter'.")] = "starter",
    engines: Annotated[
        str,
        typer.Option(help="Of ours, transformers, vllm:URL or vllm:EXPORT; all are compared with the first."),
    ] = "ours,transformers",
    dtypes: Annotated[str, typer.Option(help="Precisions of ours and transformers.")] = "float32",
    feed: Annotated[str | None, typer.Option(help="Feed to compare on; default: the sample shop.")] = None,
    products: Annotated[int, typer.Option(min=1, help="How many products.")] = 24,
    tolerance: Annotated[float, typer.Option(min=0, help="Of one number of a unit vector.")] = 1e-4,
    against: Annotated[Path | None, typer.Option(help="Results that an earlier run saved.")] = None,
    save: Annotated[Path | None, typer.Option(help="Keep the results, for a later version.")] = None,
    dialect: Annotated[str | None, typer.Option(help="Dialect of the feed; default: detected.")] = None,
    images_root: Annotated[str | None, typer.Option(help="Folder that image paths start from.")] = None,
    columns: MapColumns = None,
    encoding: Encoding = None,
    currency: Currency = None,
    json: Json = False,
) -> None:
    """Say whether engines, precisions or versions make the same of the same products.

    Compares tokens of the prompt, pixels, tokens of the rationale, and vectors; names the first stage that
    differs and the product. Exits with 0 if all agree, 2 if not.
    """
    how = reading(columns, encoding, currency)
    chosen, precisions = ([x.strip() for x in text.split(",") if x.strip()] for text in (engines, dtypes))
    report = parity(
        load(model), products_of(feed, products, dialect, images_root, **how), chosen, precisions,
        tolerance=tolerance, against=against, save=save, name=model,
    )  # fmt: skip
    if json:
        print_json(report.as_dict())
    else:
        print("\n".join(lines(report)))
    raise typer.Exit(report.exit_code)


app = app_of(main)

if __name__ == "__main__":
    start(app)
