"""Every data set of the benchmark by name: what it is, whose it is, how large, and whether we ever ran it.

A `Card` is called to read its data set. What reads it lies beside: `shared_sets`, `hub_sets`, `mbe`, and
`own_feed` for any feed. Facts on the cards are from the data sets' own pages and papers, as far as we could
read them; what could not be checked says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonshelf.errors import UserError
from moonshelf.evaluation.data import hub
from moonshelf.evaluation.data import published as hub_sets
from moonshelf.evaluation.data.mbe import mbe
from moonshelf.evaluation.data.mteb_sets import mteb_set
from moonshelf.evaluation.data.own_feed import own_feed
from moonshelf.evaluation.data.validation import fashion, flipkart, grocery, luma, sample_shop
from moonshelf.evaluation.data.views import Dataset

if TYPE_CHECKING:
    from rich.console import Console

NEVER_RUN = "never run on the real files, only on small ones of the documented shape"


@dataclass(frozen=True)
class Card:
    """One data set: `read` gives its tasks, the rest says what a reader of figures must know."""

    name: str
    about: str
    licence: str
    size: str
    splits: str
    citation: str
    read: Callable[..., Dataset] | None = field(default=None, repr=False)
    ran: bool = True  # on the real files
    mteb: tuple[str, ...] = ()  # tasks of mteb that it is, which reads them from the hub
    source: str = ""  # where it is to be had, if not on the hub
    addresses: Mapping[str, str] = field(default_factory=dict)  # folder below its own -> data set of the hub
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
        if self.mteb:
            if not download:
                raise UserError(f"mteb fetches {self.name} from the hub: allow it with --download")
            dataset = mteb_set(self.name, self.mteb, limit)
            dataset.licence = self.licence
            if not self.ran:
                dataset.note = f"{NEVER_RUN}; {dataset.note}"
            return dataset
        assert self.read is not None
        if self.path is not None:
            return self.read(self.path, limit=limit, fit_rows=fit_rows, fetcher=fetcher_if(download))
        if self.needs_data and data is None:
            raise UserError(f"the data set {self.name} needs the folder of its files: name it with --data")
        if not self.published:
            return self.read(data, limit=limit, fit_rows=fit_rows)
        folder = hub.locate(self.name, data, self.addresses, self.source, download=download)
        dataset = self.read(folder, limit=limit, fit_rows=fit_rows, fetcher=fetcher_if(download))
        dataset.licence = self.licence
        if not self.ran:
            dataset.note = f"{NEVER_RUN}; {dataset.note}"
        dataset.files = {f"{self.name}/{path}": digest for path, digest in dataset.files.items()}
        return dataset

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "about": self.about, "licence": self.licence, "size": self.size,
            "splits": self.splits, "citation": self.citation, "ran_on_real_files": self.ran,
            "source": self.source, "hub": dict(self.addresses), "mteb": list(self.mteb),
            "unverified": self.unverified,
        }  # fmt: skip


def fetcher_if(download: bool) -> Any:
    """What fetches pictures from public web addresses, or None."""
    if not download:
        return None
    try:
        from moonshelf.remote import RemoteFetcher
    except ImportError as error:
        raise UserError(f"fetching pictures needs {error.name}: install moonshelf[remote]") from None
    return RemoteFetcher()


_CARDS = (
    Card(
        "fashion", "studio photos with real titles: retrieval, three category levels, colour",
        "believed MIT, photos the brands'", "1,264 products of 10,855", "validation of the shared set",
        "Fashion Product Images, Kaggle", fashion, True, published=False,
    ),
    Card(
        "grocery", "phone photos taken in shops, searched in a catalogue", "MIT", "296 photos, 81 products",
        "validation of the shared set", "Klasson et al., WACV 2019, Grocery Store Dataset", grocery, True,
        published=False,
    ),
    Card(
        "luma", "other views of a garment, searched among all colour variants", "OSL-3.0 / AFL-3.0",
        "191 products, 715 photos", "all", "Magento sample data", luma, True, published=False,
    ),
    Card(
        "flipkart", "seven balanced departments", "believed CC BY-SA 4.0", "96 products of 924",
        "validation of the shared set", "Flipkart products, Kaggle", flipkart, True, published=False,
    ),
    Card(
        "sampleshop", "a drawn shop: graded queries, every attribute known", "Apache-2.0",
        "160 products unless --limit says", "drawn", "this package", sample_shop, True, published=False,
        needs_data=False,
    ),
    Card(
        "mbe", "Taobao products and purchases: five directions, five category levels, attributes",
        "Apache-2.0", "2.7 M train, 410 k test", "test", "Zhang et al., MOON, WSDM 2026, arXiv:2508.11999",
        partial(mbe, "mbe"), False, addresses={"": "Daoze/MM-Bench-E-Commerce"},
        unverified="names of the query's columns and of the files; pictures are web addresses",
    ),
    Card(
        "mbe2", "as mbe, with titles enriched and pictures added in training", "not verified",
        "5,751,594 train, 636,241 test triplets", "test", "Nie et al., MOON2.0, CVPR 2026, arXiv:2511.12449",
        partial(mbe, "mbe2"), False, addresses={"": "ZHNie/MBE2.0"},
        unverified="licence; files and columns are taken to be those of mbe",
    ),
    Card(
        "mbe3", "as mbe, for reasoning about attributes; much harder than mbe2", "not published yet",
        "not stated", "test", "Wu et al., MOON3.0, arXiv:2604.00513", partial(mbe, "mbe3"), False,
        source="it had no public address when this was written: name one as mbe3@OWNER/NAME, or put its "
        "files there",
        unverified="everything: files and columns are taken to be those of mbe",
    ),
    Card(
        "m5product", "products of 5 modalities; here title and photo, searched by label", "on request",
        "6 M products", "query and corpus", "Dong et al., M5Product, CVPR 2022, arXiv:2109.04275",
        hub_sets.m5product, False,
        source="ask its authors for it; put query.json and gallery.json ({id: {title, label, url}}) there, "
        "photos as images/ID.jpg",
        unverified="licence; the layout is that of the authors' evaluation code, names of the files are ours",
    ),
    Card(
        "fashion200k", "descriptions to photos and back, as in M-BEIR", "not stated",
        "1,719 texts for 202 k photos; 4.9 k photos for 61 k texts", "test",
        "Han et al., ICCV 2017; Wei et al., UniIR, arXiv:2311.17136",
        ran=False, mteb=("Fashion200kT2IRetrieval", "Fashion200kI2TRetrieval"), unverified="licence",
    ),
    Card(
        "fashioniq", "a photo and a wish, to the photo of another garment", "CDLA-Permissive-1.0, photos not",
        "6,003 queries, 74 k photos", "test of M-BEIR",
        "Wu et al., Fashion IQ, CVPR 2021, arXiv:1905.12794; Wei et al., UniIR, arXiv:2311.17136",
        ran=False, mteb=("FashionIQIT2IRetrieval",), unverified="licence and size of the pool",
    ),
    Card(
        "marqo-google", "titles and search terms to photos of Google Shopping", "none stated for the data",
        "982,700 products, 22 GB: use --limit", "data", "Marqo, ecommerce-embeddings, 2024",
        partial(hub_sets.marqo, "marqo-google"), False, addresses={"": "Marqo/google-shopping-general-eval"},
    ),
    Card(
        "marqo-google-100k", "a sample of marqo-google", "none stated for the data", "99.8 k products",
        "data", "Marqo, ecommerce-embeddings, 2024", partial(hub_sets.marqo, "marqo-google-100k"), False,
        addresses={"": "Marqo/google-shopping-general-eval-100k"},
    ),
    Card(
        "marqo-amazon", "titles to photos of Amazon", "none stated for the data",
        "3.34 M products: use --limit", "data", "Marqo, ecommerce-embeddings, 2024",
        partial(hub_sets.marqo, "marqo-amazon"), False,
        addresses={"": "Marqo/amazon-products-eval"},
        unverified="columns are taken to be those of marqo-google, search terms where there are any",
    ),
    Card(
        "marqo-amazon-100k", "a sample of marqo-amazon", "none stated for the data", "100 k products", "data",
        "Marqo, ecommerce-embeddings, 2024", partial(hub_sets.marqo, "marqo-amazon-100k"), False,
        addresses={"": "Marqo/amazon-products-eval-100k"},
        unverified="columns are taken to be those of marqo-google, search terms where there are any",
    ),
    Card(
        "esci", "shoppers' queries and the products judged for them", "Apache-2.0",
        "of 130 k queries and 2.6 M judgements what mteb samples", "test: us, es, jp",
        "Reddy et al., Shopping Queries Dataset, arXiv:2206.06588", ran=False, mteb=("ESCIReranking",),
        unverified="size of mteb's sample and its grades",
    ),
    Card(
        "sop", "Stanford Online Products: other photos of the same product", "for research",
        "120,053 photos of 22,634 products, test 60,502 of 11,316", "test",
        "Oh Song et al., CVPR 2016, arXiv:1511.06452", ran=False, mteb=("SOPI2IRetrieval",),
        unverified="licence; every photo searches the others, so mteb itself scores it",
    ),
    Card(
        "implicitave", "attribute values that only the photo tells, five domains", "not stated",
        "68,604 train, 1,610 checked", "evaluation", "Zou et al., ImplicitAVE, ACL 2024, arXiv:2404.15592",
        hub_sets.implicit_ave, True,
        source="clone github.com/HenryPengZou/ImplicitAVE there; its photos come with it or from its links",
        unverified="licence",
    ),
)  # fmt: skip

DATASETS: dict[str, Callable[..., Dataset]] = {card.name: card for card in _CARDS}
SUITES: dict[str, tuple[str, ...]] = {
    "validation": ("fashion", "grocery", "luma", "flipkart"),
    "sampleshop": ("sampleshop",),
}


def cards() -> list[Card]:
    """Every registered data set, in the order of the page."""
    return [card for card in DATASETS.values() if isinstance(card, Card)]


def select(suite: str, reading: Mapping[str, Any] | None = None) -> dict[str, Callable[..., Dataset]]:
    """What a suite reads, by name. Each is called with (data, limit=, fit_rows=), a card with download= too.

    `suite` is a suite, data sets with commas between them (`mteb:TASK` is one), or the path of a feed.
    `NAME@OWNER/REPO` reads the data set NAME from another address of the hub, `@REVISION` behind it
    pins one. `reading` are options of `read_feed`, for a feed alone. Raises UserError.
    """
    given = {name: value for name, value in (reading or {}).items() if value is not None}
    if suite not in (*SUITES, *DATASETS) and Path(suite).exists():
        return {Path(suite).stem: _feed(Path(suite), given)}
    if given:
        raise UserError("--map, --encoding and --currency say how a feed is read: name one with --suite")
    if suite in SUITES:
        return {name: DATASETS[name] for name in SUITES[suite]}
    chosen: dict[str, Callable[..., Dataset]] = {}
    for part in (part.strip() for part in suite.split(",")):
        if part.startswith("mteb:"):
            task = part.removeprefix("mteb:")
            chosen[task] = Card(task, "a task of mteb", "see mteb", "", "", "", mteb=(task,))
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


def _feed(path: Path, reading: Mapping[str, Any]) -> Card:
    read = partial(own_feed, **reading)
    return Card(
        path.stem, "a feed", "yours", "", "all", "", read, source=str(path), needs_data=False, path=path
    )


def _readdressed(name: str, address: str) -> Card:
    card = DATASETS[name]
    if not isinstance(card, Card) or not card.published or card.mteb:
        raise UserError(f"the data set {name} has no single address on the hub: leave out '@{address}'")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", address):
        raise UserError(f"'{address}' is no address of the hub: write it as {name}@OWNER/REPO")
    return replace(card, addresses={"": address}, ran=False)


def show(console: Console) -> None:
    """Every card as a table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    page = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("data set", "what it asks", "size", "split", "licence", "real files", "cite"):
        page.add_column(title, overflow="fold", no_wrap=title == "data set")
    for card in cards():
        ran = Text("run", "green") if card.ran else Text("never run", "yellow")
        cells = (card.about, card.size, card.splits, card.licence)
        page.add_row(Text(card.name, "bold"), *map(Text, cells), ran, Text(card.citation))
    console.print(page)
    console.print(
        Text(
            "A feed of your own: moonshelf evaluate MODEL --suite FILE. Not checked, and addresses: --json.",
            "dim",
        )
    )
