"""A small catalogue of the sample shop, an application over a copy of it, and the same as a server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="needs moonshelf[serve]")

from serviceapp import server, serving

from moonshelf import MoonModel, Product
from moonshelf.catalogue.search import Catalogue
from moonshelf.sample import Shop
from moonshelf.sample import shop as sample_shop

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

PRODUCTS = 24


@pytest.fixture(scope="session")
def shop() -> Shop:
    return sample_shop(PRODUCTS)


@pytest.fixture(scope="session")
def moon() -> MoonModel:
    return MoonModel.from_pretrained("starter")


@pytest.fixture(scope="session")
def embedded(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue folder that nobody writes to."""
    folder = tmp_path_factory.mktemp("service") / "shelf"
    catalogue = Catalogue.create(folder, "starter")
    catalogue.embed(list(shop.products))
    catalogue.index()
    return folder


@pytest.fixture
def folder(embedded: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(embedded, tmp_path / "shelf"))


@pytest.fixture(scope="session")
def reader(embedded: Path) -> Iterator[TestClient]:
    """One application for all tests that only read."""
    with serving(embedded) as client:
        yield client


@pytest.fixture
def writer(folder: Path) -> Iterator[TestClient]:
    with serving(folder) as client:
        yield client


@pytest.fixture(scope="session")
def address(embedded: Path) -> Iterator[str]:
    with server(embedded) as found:
        yield found


@pytest.fixture(scope="session")
def photo(shop: Shop) -> Callable[[int], bytes]:
    """Bytes of the first picture of a product by its place in the shop."""

    def read(place: int) -> bytes:
        product: Product = shop.products[place]
        (ref, *_) = product.images
        return ref.data if ref.data is not None else Path(ref.path or "").read_bytes()

    return read
