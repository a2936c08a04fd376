"""Every data set of the benchmark by name: what it is, whose it is, how large, and whether we ever ran it.

A `Card` is called to read its data set. The cards are in `cards.toml`; what reads them lies beside:
`validation`, `published`, and `own_feed` for any feed. What of a card could not be checked, the card says.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonshelf.errors import UserError
from moonshelf.evaluation.data import published
from moonshelf.evaluation.data.dataset import Dataset
from moonshelf.evaluation.data.own_feed import own_feed
from moonshelf.evaluation.data.validation import fashion, flipkart, grocery, luma, sample_shop
from moonshelf.evaluation.report.plain import grid
from moonshelf.model.encoders.stock import need

if TYPE_CHECKING:
    from rich.console import Console

NEVER_RUN = "never run on the real files, only on small ones of the documented shape"
READERS: dict[str, Callable[..., Dataset]] = {
    "fashion": fashion, "grocery": grocery, "luma": luma, "flipkart": flipkart, "sampleshop": sample_shop,
    "implicitave": published.implicit_ave,
    **{
        f"marqo-{name}": partial(published.marqo, f"marqo-{name}")
        for name in ("google", "google-100k", "amazon", "amazon-100k")
    },
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """One data set: `read` gives its tasks, the rest says what a reader of figures must know."""

    name: str
    about: str
    licence: str
    size: str = ""
    splits: str = ""
    citation: str = ""
    read: Callable[..., Dataset] | None = field(default=None, repr=False)
    ran: bool = True  # on the real files
    mteb: Sequence[str] = ()  # tasks of mteb that it is, which reads them from the hub
    hub: str = ""  # where it lies there
    source: str = ""  # where it is to be had, if not on the hub
    unverified: str = ""  # what of this card or of the reader could not be checked
    published: bool = True  # lies in DATA/NAME, as its authors publish it
    needs_data: bool = True
    path: Path | None = None  # of a feed of the user's, wherever it lies

    def __call__(
        self, data: Path | None = None, limit: int | None = None, fit_rows: int = 2000, download: bool = False
    ) -> Dataset:
        """Read the data set from below `data`. With `download`, what is missing is fetched, pictures too.

        Raises UserError where it is not there, or not of the layout that is read.
        """
        sizes = {"limit": limit, "fit_rows": fit_rows}
        if self.mteb and not download:
            raise UserError(f"mteb fetches {self.name} from the hub: allow it with --download")
        if self.read is None:
            dataset = published.mteb_set(self.name, self.mteb, limit)
        elif self.path is not None:
            dataset = self.read(self.path, fetcher=fetcher_if(download), **sizes)
        elif self.published:
            where = published.locate(self.name, data, self.hub, self.source, download=download)
            dataset = self.read(where, fetcher=fetcher_if(download), **sizes)
            dataset.files = {f"{self.name}/{path}": digest for path, digest in dataset.files.items()}
        elif self.needs_data and data is None:
            raise UserError(f"the data set {self.name} needs the folder of its files: name it with --data")
        else:
            dataset = self.read(data, **sizes)
        dataset.licence = self.licence
        if not self.ran:
            dataset.note = f"{NEVER_RUN}; {dataset.note}"
        return dataset

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "about": self.about, "licence": self.licence, "size": self.size,
            "splits": self.splits, "citation": self.citation, "ran_on_real_files": self.ran,
            "source": self.source, "hub": {"": self.hub} if self.hub else {}, "mteb": list(self.mteb),
            "unverified": self.unverified,
        }  # fmt: skip


def fetcher_if(download: bool) -> Any:
    """What fetches pictures from public web addresses, or None."""
    if not download:
        return None
    need("--download", "httpcore2", package="moonshelf[remote]")
    from moonshelf.remote import RemoteFetcher

    return RemoteFetcher()


_LISTED = tomllib.loads(Path(__file__).with_name("cards.toml").read_text(encoding="utf-8"))
DATASETS = {name: Card(name, read=READERS.get(name), **facts) for name, facts in _LISTED.items()}
SUITES = {"validation": ("fashion", "grocery", "luma", "flipkart"), "sampleshop": ("sampleshop",)}


def select(suite: str, reading: Mapping[str, Any] | None = None) -> dict[str, Card]:
    """What a suite reads, by name.

    `suite` is a suite, data sets with commas between them (`mteb:TASK` is one), or the path of a feed.
    `NAME@OWNER/REPO` reads the data set NAME from another address of the hub, `@REVISION` behind it
    pins one. `reading` are options of `read_feed`, for a feed alone. Raises UserError.
    """
    given = {name: value for name, value in (reading or {}).items() if value is not None}
    if suite not in (*SUITES, *DATASETS) and Path(suite).exists():
        path = Path(suite)
        return {path.stem: Card(path.stem, "a feed", "yours", read=partial(own_feed, **given), path=path)}
    if given:
        raise UserError("--map, --encoding and --currency say how a feed is read: name one with --suite")
    if suite in SUITES:
        return {name: DATASETS[name] for name in SUITES[suite]}
    chosen: dict[str, Card] = {}
    for part in (part.strip() for part in suite.split(",")):
        if part.startswith("mteb:"):
            task = part.removeprefix("mteb:")
            chosen[task] = Card(task, "a task of mteb", "see mteb", mteb=(task,))
            continue
        name, at, address = part.partition("@")
        if name not in DATASETS:
            known = ", ".join(dict.fromkeys((*SUITES, *DATASETS)))
            raise UserError(
                f"there is no suite or data set '{part}': choose from {known}, name the file of a feed, "
                "or mteb:TASK"
            )
        chosen[name] = _readdressed(name, address) if at else DATASETS[name]
    return chosen


def _readdressed(name: str, address: str) -> Card:
    card = DATASETS[name]
    if not card.published or card.mteb:
        raise UserError(f"the data set {name} has no single address on the hub: leave out '@{address}'")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", address):
        raise UserError(f"'{address}' is no address of the hub: write it as {name}@OWNER/REPO")
    return replace(card, hub=address, ran=False)


def show(console: Console) -> None:
    """Every card as a table for a terminal."""
    lines = [["data set", "what it asks", "size", "split", "licence", "real files", "cite"]]
    for c in DATASETS.values():
        ran = "run" if c.ran else "never run"
        lines.append([c.name, c.about, c.size, c.splits, c.licence, ran, c.citation])
    console.print(grid("", lines, left=len(lines[0])))
    more = "A feed of your own: moonshelf evaluate MODEL --suite FILE. Not checked, and addresses: --json."
    console.print(f"[dim]{more}[/dim]")
