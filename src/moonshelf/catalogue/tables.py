"""What the catalogue's commands print for people. Catalogue text is untrusted: control characters are
dropped and nothing in it is read as markup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moonshelf.prompts import END_THINK, THINK, clean_text

if TYPE_CHECKING:
    from moonshelf.catalogue.commits import EmbedReport
    from moonshelf.catalogue.matching.duplicates import DuplicateReport
    from moonshelf.catalogue.matching.match import MatchReport
    from moonshelf.catalogue.search import SearchResult

_ID_CELLS, _PRICE_CELLS, _LEAST_TITLE = 24, 12, 12  # widths of columns; longer ids push their own line
_HEADINGS = {
    "duplicate": "Duplicates: one identifier",
    "similar": "Similar looks: for a person to judge",
    "variant": "Variants: not duplicates",
}


def plain(value: object, width: int = 200) -> Text:
    """One line of text as it is, without control characters, at most `width` long."""
    text = clean_text("" if value is None else str(value))
    return Text(text if len(text) <= width else text[: width - 1] + "…")


def show_embed(report: EmbedReport, folder: str, console: Console) -> None:
    counts = {
        "new": report.new,
        "changed": report.changed,
        "metadata only": report.metadata_only,
        "unchanged": report.unchanged,
        "removed": report.removed,
        "rejected": report.rejected,
    }
    line = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    console.print(Text(f"{report.read:,} products read: {line}."), soft_wrap=True)
    details = [f"{report.rows:,} in the store", f"{report.seconds:.1f} s"]
    if report.items_per_s is not None:
        details.append(f"{report.items_per_s:.1f} embedded a second")
    if report.reasoning_valid_rate is not None:
        details.append(f"reasoning_valid_rate {report.reasoning_valid_rate:.3f}")
    console.print(Text("; ".join(details) + "."))
    if report.note:
        console.print(plain(f"Note: {report.note}.", 400), soft_wrap=True)
    if report.unlisted:
        kept = (
            f"{report.unlisted:,} products that the feed does not list were kept, since it has rows that "
            "could not be read and may be theirs; --allow-removals removes them."
        )
        console.print(Text(kept), soft_wrap=True)
    if report.removed:
        undo = f"Removed by mistake? moonshelf store rollback {folder} {report.before}"
        console.print(Text(undo), soft_wrap=True)
    for problem in report.problems[:5]:
        mark = "rejected" if problem.fatal else "warning"
        console.print(
            plain(f"  row {problem.row}, {problem.id or 'no id'}, {problem.field}: {problem.reason} ({mark})")
        )
    if report.problems:
        total = report.rejected + report.warnings
        console.print(Text(f"All {total:,} remarks are in {folder}/rejects.jsonl."), soft_wrap=True)


def show_hits(result: SearchResult, console: Console, details: bool = False) -> None:
    """A line a hit with its whole id, so that it can be copied; on a terminal titles are cut to fit.

    `details` adds what the model wrote, the category, the link, and the ranks in the lists.
    """
    ids = [printable(hit.product["id"]) for hit in result.hits]
    wide = min(_ID_CELLS, max(map(cell_len, ids), default=0))
    for hit, id in zip(result.hits, ids, strict=True):
        product = hit.product
        price = (
            "" if product["price"] is None else f"{product['price']:g} {product['currency'] or ''}".strip()
        )
        start = f"{hit.score:.4f}  {id}{' ' * (wide - cell_len(id))}  "
        title = plain(product["title"]).plain
        if console.is_terminal:
            room = max(_LEAST_TITLE, console.width - cell_len(start) - _PRICE_CELLS)
            title = set_cell_size(
                title if cell_len(title) <= room else f"{set_cell_size(title, room - 1)}…", room
            )
        print(f"{start}{title}  {plain(price).plain}".rstrip())
        if details:
            ranks = [
                f"{name} {hit.why[f'{name}_rank']}"
                for name in ("code", "vector", "text", "fused")
                if f"{name}_rank" in hit.why
            ]
            wrote = (product["rationale"] or "").removeprefix(THINK).removesuffix(END_THINK)
            said = {"category": product["category"], "wrote": wrote, "link": product["link"]}
            for name, value in (*said.items(), ("ranks", ", ".join(ranks))):
                if value:
                    print(f"        {name}: {plain(value, 400).plain}")
    for note in result.notes or ([] if result.hits else ["nothing found"]):
        console.print(plain(f"Note: {note}.", 400), style="dim", soft_wrap=True)


def printable(text: str) -> str:
    """A text letter for letter, but for what would move a terminal's cursor or turn its direction."""
    return "".join(c if c.isprintable() else "?" for c in text)


def show_duplicates(report: DuplicateReport, console: Console, limit: int = 20) -> None:
    counts = ", ".join(f"{len(report.of(kind)):,} {kind}" for kind in _HEADINGS)
    console.print(Text(f"Groups: {counts}. Nothing is merged."))
    for kind, heading in _HEADINGS.items():
        groups = report.of(kind)
        if groups:
            console.print(Text(heading, style="bold"))
        for group in groups[:limit]:
            console.print(Text(f"  cosine at least {group.score:.3f}"))
            for id, title in zip(group.ids, group.titles, strict=True):
                console.print(Text("    ").append(plain(id, 60)).append("  ").append(plain(title, 90)))
            for pair in group.pairs[:3]:
                console.print(plain(f"{pair.a} / {pair.b}: {pair.why}", 300), style="dim")
        if len(groups) > limit:
            console.print(Text(f"  … and {len(groups) - limit:,} more; --json lists all"))
    for note in report.notes:
        console.print(plain(f"Note: {note}.", 400), style="dim")


def show_enrich(report: Mapping[str, Any], console: Console) -> None:
    """What a run of `enrich` found: numbers, gaps of the largest categories, how far confidence holds."""
    names = ("products", "rejected", "suggested", "accepted", "conflicts", "supplemental")
    console.print(plain("; ".join(f"{name.replace('_', ' ')}: {report[name]}" for name in names)))
    gaps = Table("category", "attribute", *(kinds := ("filled", "missing", "fillable")))
    largest = sorted(report["gaps"].items(), key=lambda one: -sum(c["missing"] for c in one[1].values()))
    for category, attributes in largest[:8]:  # what nothing fills is in report.json only
        some = {name: count for name, count in attributes.items() if count["filled"] + count["fillable"]}
        for n, (name, count) in enumerate(some.items()):
            cells = tuple(str(count[kind]) for kind in kinds)
            gaps.add_row(plain("" if n else category.split(" > ")[-1]), name, *cells)
    sure = Table("confidence, held-out rows", "values", "said", "right")
    for one in report["calibration"]["table"]:
        cells = (str(one["count"]), *(f"{one[name]:.2f}" for name in ("confidence", "right")))
        sure.add_row(f"{one['from']} to {one['to']}", *cells)
    for shown in (gaps, sure, *(plain(f"Note: {note}.", 600) for note in report["notes"])):
        console.print(shown)


def show_matches(report: MatchReport, folder: str, console: Console, limit: int = 10) -> None:
    counts = ", ".join(f"{report.levels.get(one, 0):,} {one}" for one in ("decided", "high", "medium", "low"))
    console.print(Text(f"{report.a:,} products of A, {report.b:,} of B, {report.compared:,} pairs compared."))
    console.print(Text(f"Matched: {counts}. Without a partner: {len(report.unmatched):,}.", style="bold"))
    for row in report.doubtful[:limit]:
        console.print(plain(f"  {row['score']:.2f}  A {row['a_id']}  {row['a_title']}", 160))
        console.print(Text("        ").append(plain(f"B {row['b_id']}  {row['b_title']}", 160)))
        said = f"{row['why']}; next: {row['runner_up'] or 'none'}"
        console.print(Text("        ").append(plain(said, 300)), style="dim")
    for note in report.notes:
        console.print(plain(f"Note: {note}.".replace("?.", "?"), 600), style="dim", soft_wrap=True)
    if report.rejected:
        console.print(Text(f"{report.rejected:,} rows were rejected: {folder}/rejects.jsonl"))
    console.print(Text(f"matches.csv, review.csv and unmatched.csv are in {folder}."), soft_wrap=True)
