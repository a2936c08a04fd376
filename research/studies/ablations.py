"""What reasoning and each part of the method are worth: rationales replaced, and arms trained without a part.

    python -m research.studies.ablations starter --data DATA --feed fashion_products/validation-clear.parquet
    python -m research.studies.ablations recipes/ablations.yaml --data DATA --out runs/ablations

A YAML file (`recipes/ablations.yaml`) names the recipes of the two stages and what each arm changes in them.
Every arm has the same budget, of minutes or of steps, and every seed; an arm with a joint stage gives a share
of it to that stage, so that it has had no more than the others. Arms run one after the other in this process.
A stage lies in a folder named by the hash of its recipe: arms that share a cold start train it once, a killed
stage goes on through its trainer's own resuming, and an arm whose figures are there is not run again unless
its recipe has changed. Figures are those of `interventions`, on validation products from the far end of the
order from whose near end the trainers choose their checkpoints.

Intervals: over several seeds, Student's t of the seeds' means, and differences are taken within a seed; with
one seed, the bootstrap over products, which says nothing about the luck of a training.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moonshelf.cli.console import say
from moonshelf.cli.options import flags
from moonshelf.errors import EXIT_PARTIAL, UserError
from moonshelf.evaluation.statistics import significance
from moonshelf.files import write_atomic
from moonshelf.model.modeling import MoonModel
from moonshelf.training import quiet_dependencies
from moonshelf.training.data import SourceSpec, load_source, spread
from moonshelf.training.recipe import JointRecipe, Recipe, load_recipe
from moonshelf.training.sources.pairs import Item
from research.script import app_of, start
from research.studies import interventions
from research.studies.interventions import (
    RATIONALES,
    Figure,
    Study,
    depth_lines,
    difference,
    measure,
    percent,
    row,
)

BUDGETED = ("steps", "minutes", "seed", "out", "model", "stage")  # not an arm's to choose
NO_END = (
    1_000_000  # steps of a cold start whose budget is minutes; its schedule follows the share that is used
)
Trained = Callable[[Recipe | JointRecipe, Path], Path]


class Budget(BaseModel):
    """What an arm may use up in all: minutes of training, or steps."""

    model_config = ConfigDict(extra="forbid")

    minutes: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=2)
    joint: float = Field(default=0.3, gt=0, lt=1)  # share of the joint stage, in arms that have one


class Change(BaseModel):
    """Fields that replace those of the base recipes; `joint` is None in an arm without that stage."""

    model_config = ConfigDict(extra="forbid")

    cold_start: dict[str, Any] = {}
    joint: dict[str, Any] | None = None


class Plan(BaseModel):
    """An ablation as its YAML file describes it."""

    model_config = ConfigDict(extra="forbid")

    cold_start: str  # recipe, relative to the file
    joint: str | None = None
    changes: Change = Change()  # to both, in every arm
    budget: Budget
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    arms: dict[str, Change] = Field(min_length=1)
    reference: str | None = None  # arm that the others are compared with; default: the first
    products: int = Field(default=500, ge=2)  # held-out products that are measured
    rationales: tuple[str, ...] = ("none", "own")  # of `interventions`; more take longer

    @property
    def first(self) -> str:
        return self.reference or next(iter(self.arms))


@dataclass(frozen=True)
class Run:
    """One arm with one seed: its stages' recipes, with `out` and the joint stage's `model` still to be filled
    in."""

    arm: str
    seed: int
    stages: tuple[Recipe | JointRecipe, ...]

    @property
    def keys(self) -> list[str]:
        """A hash a stage, of its recipe and of the stages before it."""
        found: list[str] = []
        for stage in self.stages:
            filled_in = {"out", "model"} if isinstance(stage, JointRecipe) else {"out"}
            text = stage.model_dump_json(exclude=filled_in) + "".join(found)
            found.append(hashlib.sha256(text.encode()).hexdigest()[:12])
        return found

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def writes(self) -> bool:
        """The model was taught to write; else only its direct vectors mean anything."""
        return bool(getattr(self.stages[0], "sft_weight", 1.0))


def load_plan(path: Path, **overrides: Any) -> tuple[Plan, list[Run]]:
    """A plan with flags on top, and its runs, seed by seed.

    Whatever is wrong with it is one `UserError`, before any training.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        plan = Plan.model_validate({**values, **{k: v for k, v in overrides.items() if v is not None}})
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise UserError(f"ablation {path} cannot be read: {error}") from None
    except ValidationError as error:
        raise UserError(f"ablation {path}: {_first(error)}") from None
    if plan.first not in plan.arms:
        raise UserError(
            f"ablation {path}: reference {plan.first!r} is no arm: there are {', '.join(plan.arms)}."
        )
    if (plan.budget.minutes is None) == (plan.budget.steps is None):
        raise UserError(f"ablation {path}: give the budget in minutes or in steps, one of them.")
    unknown = sorted(set(plan.rationales) - set(RATIONALES))
    if unknown or not plan.rationales:
        raise UserError(f"ablation {path}: rationales are of {', '.join(RATIONALES)}.")
    cold = load_recipe(path.parent / plan.cold_start)
    joint = load_recipe(path.parent / plan.joint) if plan.joint else None
    if not isinstance(cold, Recipe) or not (joint is None or isinstance(joint, JointRecipe)):
        raise UserError(f"ablation {path}: cold_start and joint must each name a recipe of that stage.")
    if not cold.validation:
        raise UserError(f"{plan.cold_start}: without `validation` there are no products to measure.")
    try:
        return plan, [_run(plan, name, seed, cold, joint) for seed in plan.seeds for name in plan.arms]
    except UserError as error:
        raise UserError(f"ablation {path}: {error}") from None


def _run(plan: Plan, name: str, seed: int, cold: Recipe, joint: JointRecipe | None) -> Run:
    arm, budget = plan.arms[name], plan.budget
    share = budget.joint if arm.joint is not None else 0.0
    stages: list[Recipe | JointRecipe] = []
    bases: list[tuple[Recipe | JointRecipe, float, dict[str, Any], dict[str, Any]]] = [
        (cold, 1 - share, plan.changes.cold_start, arm.cold_start)
    ]
    if arm.joint is not None:
        if joint is None:
            raise UserError(f"arm {name!r} has a joint stage, but the plan names no recipe for it.")
        bases.append((joint, share, plan.changes.joint or {}, arm.joint))
    for base, part, everywhere, own in bases:
        changes = {**everywhere, **own}
        everyones = {"model"} if base is cold else set()  # where all arms begin is the plan's to say
        fixed = sorted((set(own) | set(everywhere) - everyones) & set(BUDGETED))
        if fixed:
            raise UserError(f"arm {name!r}: {fixed[0]!r} is the same for all arms, it cannot be changed.")
        end: dict[str, Any] = {"minutes": None, "steps": max(1, round(part * (budget.steps or 1)))}
        if budget.minutes is not None:  # the joint schedule counts steps: its recipe says how many
            end = {"minutes": part * budget.minutes, "steps": NO_END if base is cold else base.steps}
        try:
            values = {**base.model_dump(), **changes, **end, "seed": seed, "out": ""}
            stages.append(type(base).model_validate(values))
        except ValidationError as error:
            raise UserError(f"arm {name!r}: {_first(error)}") from None
    return Run(name, seed, tuple(stages))


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"field {'.'.join(map(str, first['loc']))!r}: {first['msg']}."


# ---- running -------------------------------------------------------------------------------------------


def train(recipe: Recipe | JointRecipe, data: Path) -> Path:
    """Train one stage, or what is left of it; returns the folder of the model."""
    if isinstance(recipe, JointRecipe):
        from moonshelf.training.joint import train_joint

        return train_joint(recipe, data)
    from moonshelf.training.cold_start import train_cold_start

    return train_cold_start(recipe, data)


@dataclass
class Done:
    """An arm and seed that was measured, or that could not be trained."""

    arm: str
    seed: int
    keys: list[str]
    minutes: float = 0.0  # that this call took; a stage of an earlier one takes none
    fingerprint: str = ""
    study: Study | None = None
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "study": self.study.as_dict() if self.study else None}

    def line(self) -> dict[str, Any]:
        """The record without the values of every query: means with their intervals."""
        record = {**self.__dict__}
        study = record.pop("study")
        if study is None:
            return record
        figures = []
        for figure in study.figures:
            found = figure.interval()
            figures.append(
                {"view": figure.view, "rationale": figure.rationale, "figure": figure.name,
                 "value": found.value, "low": _finite(found.low), "high": _finite(found.high), "n": found.n}
            )  # fmt: skip
        whole = study.as_dict()
        kept = {name: whole[name] for name in ("products", "reads", "taps", "scales")}
        return {**record, **kept, "figures": figures}


def run_plan(
    path: Path,
    data: Path,
    out: Path,
    *,
    only: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
    train: Trained = train,
) -> tuple[Plan, list[Done]]:
    """Train and measure every arm of a plan that is not yet done, and write `results.jsonl` and `table.md`.

    `only` names some arms; `overrides` are fields of the plan. An arm that cannot be trained (rewards that
    collapse, say) is recorded with the reason, and the next one begins; a later call tries it again.
    """
    plan, runs = load_plan(path, **(overrides or {}))
    wrong = [name for name in only if name not in plan.arms]
    if wrong:
        raise UserError(f"there is no arm {wrong[0]!r}: there are {', '.join(plan.arms)}.")
    (out / "arms").mkdir(parents=True, exist_ok=True)
    items: list[Item] = []
    done = {run.name: found for run in runs if (found := _saved(plan, run, out))}
    lines = {name: json.dumps(found.line()) for name, found in done.items()}

    def finished() -> list[Done]:
        names = [run.name for run in runs if run.name in done]
        write_atomic(out / "results.jsonl", "".join(lines[name] + "\n" for name in names).encode())
        write_atomic(out / "table.md", f"{markdown(plan, [done[name] for name in names])}\n".encode())
        return [done[name] for name in names]

    for run in runs:
        if run.name in done:
            say(f"{run.name}: done before")
        elif not only or run.arm in only:
            if not items and run.stages[0].validation:
                held_out = load_source(SourceSpec(feed=run.stages[0].validation), data)
                items = spread(held_out, len(held_out))[-plan.products :]
            say(f"{run.name}: training")
            done[run.name] = _do(plan, run, items, data, out, say, train)
            lines[run.name] = json.dumps(done[run.name].line())
            finished()
    return plan, finished()


def _do(
    plan: Plan, run: Run, items: list[Item], data: Path, out: Path, say: Callable[[str], None], train: Trained
) -> Done:
    began, folder, result = time.monotonic(), Path(), Done(run.arm, run.seed, _keys(plan, run))
    try:
        for stage, key in zip(run.stages, run.keys, strict=True):
            place = out / "stages" / f"{stage.stage}-{key}"
            if not (place / "done").exists():
                change = {"out": str(place)}
                if isinstance(stage, JointRecipe):
                    change["model"] = str(folder)
                trained = train(stage.model_copy(update=change), data)
                (place / "done").write_text(f"{trained.relative_to(place)}\n")
            folder = place / (place / "done").read_text().strip()
            gc.collect()
        say(f"{run.name}: measuring")
        model = MoonModel.from_pretrained(folder)
        wanted = plan.rationales if run.writes else ("none",)
        result.study = measure(model, items, wanted, say=lambda what: say(f"{run.name}: {what}"))
    except UserError as error:
        result.error = str(error)
        say(f"{run.name}: {error}")
        return result
    result.minutes, result.fingerprint = (time.monotonic() - began) / 60, model.fingerprint
    write_atomic(_file(out, run), json.dumps(result.as_dict()).encode())
    return result


def _file(out: Path, run: Run) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in run.arm)
    return out / "arms" / f"{name}-seed{run.seed}.json"


def _saved(plan: Plan, run: Run, out: Path) -> Done | None:
    """The result of a run that is done; None if there is none, or if its plan was another."""
    try:
        record = json.loads(_file(out, run).read_text(encoding="utf-8"))
        found = Done(**{**record, "study": Study.from_dict(record["study"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if found.arm == run.arm and found.keys == _keys(plan, run) else None


def _keys(plan: Plan, run: Run) -> list[str]:
    """What the result of a run depends on: recipes, and what was measured."""
    return [*run.keys, f"{plan.products} products, {', '.join(plan.rationales)}"]


# ---- table ---------------------------------------------------------------------------------------------


def over_seeds(figures: Sequence[Figure], others: Sequence[Figure] | None = None) -> significance.Interval:
    """The mean of a figure over seeds, or its mean difference to `others`, with a 95 % interval.

    One seed: bootstrap over products. Several: Student's t over the seeds' means.
    """
    if len(figures) == 1:
        return figures[0].against(others[0]) if others else figures[0].interval()
    from scipy.stats import t  # moonshelf[train] brings it

    means = [np.mean(figure.values) for figure in figures]
    if others is not None:
        means = [mean - np.mean(other.values) for mean, other in zip(means, others, strict=True)]
    middle, n = float(np.mean(means)), len(means)
    half = float(t.ppf(0.975, n - 1)) * float(np.std(means, ddof=1)) / math.sqrt(n)
    return significance.Interval(middle, middle - half, middle + half, n, n)


def markdown(plan: Plan, done: Sequence[Done]) -> str:
    """One table a view and rationale: a row an arm, its mean with interval, and what it is ahead."""
    seeds = sorted({d.seed for d in done if d.study})
    by_arm = {name: {d.seed: d.study for d in done if d.arm == name and d.study} for name in plan.arms}
    spent = plan.budget
    lines = [
        f"Budget of an arm: {f'{spent.minutes:g} minutes' if spent.minutes else f'{spent.steps:,} steps'}, "
        f"seeds {', '.join(map(str, seeds)) or 'none yet'}. Mean ± half of the 95 % interval "
        "(Student's t over seeds; bootstrap over products where one seed is given), then the difference to "
        f"{plan.first!r} with its paired interval; * says that it does not hold 0. All in percent."
    ]
    studies = [study for found in by_arm.values() for study in found.values()]
    for shown, kind in dict.fromkeys((f.view, f.rationale) for s in studies for f in s.figures):
        names = list(
            dict.fromkeys(
                f.name for s in studies for f in s.figures if (f.view, f.rationale) == (shown, kind)
            )
        )
        lines += ["", f"**{shown}, rationale: {kind}**", "", row("arm", "seeds", *names)]
        lines.append(row(*["---"] * (len(names) + 2)))
        for name, found in by_arm.items():
            cells = [_cell(found, by_arm[plan.first], (shown, kind, n), name == plan.first) for n in names]
            lines.append(row(name, str(len(found)), *cells))
    lines += ["", "**Shares in the fusion, and the rationales**", ""]
    lines.append(row("arm", "view", "rationale", "image", "text", "rationale", "tokens", "keep the format"))
    lines.append(row(*["---"] * 8))
    for name, found in by_arm.items():
        lines += _reads(name, list(found.values()))
    for name, found in by_arm.items():
        for study in list(found.values())[:1]:
            part = depth_lines(study)
            lines += [*part[:1], f"{part[1]}: {name}, seed {min(found)}", *part[2:]] if part else []
    failed = [f"{d.arm}, seed {d.seed}: {d.error}" for d in done if d.error]
    return "\n".join([*lines, *(["", "**Not trained**", ""] if failed else []), *failed])


def _cell(
    found: Mapping[int, Study], reference: Mapping[int, Study], key: tuple[str, str, str], is_first: bool
) -> str:
    mine = {seed: figure for seed, study in found.items() if (figure := study.find(*key))}
    if not mine:
        return "–"
    value = over_seeds(list(mine.values()))
    text = f"{percent(value.value)} ± {100 * (value.high - value.low) / 2:.1f}"
    both = [s for s in mine if s in reference and reference[s].find(*key)]
    if is_first or not both:
        return text
    others = [figure for s in both if (figure := reference[s].find(*key))]
    return f"{text} ({difference(over_seeds([mine[s] for s in both], others))})"


def _reads(name: str, studies: Sequence[Study]) -> list[str]:
    """How the head read the products, averaged over seeds."""
    lines = []
    for shown, kind in dict.fromkeys((r.view, r.rationale) for s in studies for r in s.reads):
        reads = [r for s in studies for r in s.reads if (r.view, r.rationale) == (shown, kind)]
        shares, valid = np.mean([r.weights for r in reads], axis=0), float(np.mean([r.valid for r in reads]))
        told = ["–", "–"]
        if kind != "none":
            told = [f"{np.mean([r.tokens for r in reads]):.1f}", percent(valid)]
        lines.append(row(name, shown, kind, *(f"{share:.3f}" for share in shares), *told))
    return lines


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def ablate_model(
    name: str,
    feed: str,
    data: Path,
    out: Path | None = None,
    *,
    products: int | None = None,
    rationales: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Test-time ablation of one model on some products of a feed: its table, and files of it in `out`."""
    n = products or 300
    items = load_source(SourceSpec(feed=feed), data)
    items = spread(items, len(items))[-n:]
    study = measure(MoonModel.from_pretrained(name), items, rationales or tuple(RATIONALES), say=say)
    table = interventions.markdown(study)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "study.json", json.dumps(study.as_dict()).encode())
        write_atomic(out / "table.md", f"{table}\n".encode())
    return table


# ---- the script --------------------------------------------------------------------------------------


def main(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="A model to test, or a YAML file of arms to train.")],
    data: Annotated[Path, typer.Option(help="Folder that feeds are relative to.")] = Path("."),
    out: Annotated[Path | None, typer.Option(help="Folder for results; for arms runs/ablations.")] = None,
    feed: Annotated[str, typer.Option(help="Products to test a model on.")] = "sample",
    products: Annotated[int | None, typer.Option(min=2, help="How many products to measure.")] = None,
    rationales: Annotated[
        str | None, typer.Option(help="Of own,none,empty,random,title,other,catalogue.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of an arm; may be repeated.")] = None,
) -> None:
    """Say what reasoning and each part of the method are worth.

    A model: its rationales are replaced by empty, random or another product's. A YAML file: arms are trained
    one after the other, each without a part; a killed call goes on. Its fields are flags: --seeds "[0, 1]".
    """
    quiet_dependencies()
    wanted = [x.strip() for x in rationales.split(",") if x.strip()] if rationales else None
    if what.endswith((".yaml", ".yml")):
        fields = {**flags(context.args), "products": products, "rationales": wanted}
        place = out or Path("runs/ablations")
        plan, done = run_plan(Path(what), data, place, only=only or (), overrides=fields, say=say)
        print(markdown(plan, done))
        if any(run.error for run in done):
            raise typer.Exit(EXIT_PARTIAL)
        return
    if context.args:
        raise UserError(f"{context.args[0]!r} is no option for the test of a model.")
    print(ablate_model(what, feed, data, out, products=products, rationales=wanted, say=say))


app = app_of(main, free=True)

if __name__ == "__main__":
    start(app)
