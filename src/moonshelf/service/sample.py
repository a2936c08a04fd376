"""The sample shop as a catalogue, for those who want to see the service before they have embedded a feed."""

from __future__ import annotations

from pathlib import Path

from moonshelf.catalogue.manifest import NAME as MANIFEST
from moonshelf.catalogue.search import Catalogue
from moonshelf.errors import UserError
from moonshelf.sample import SIZE, shop, write_shop


def make_sample(folder: Path, model: str = "starter", products: int = SIZE) -> bool:
    """Write the shop into `folder`/shop and embed it with its rationales; False if a catalogue is there.

    Raises UserError for a folder that holds other files.
    """
    if (folder / MANIFEST).exists():
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds other files: name a new or an empty folder for the sample shop.")
    write_shop(shop(products), folder / "shop")
    catalogue = Catalogue.create(folder, model)
    catalogue.embed(folder / "shop" / "products.jsonl", reason="on", progress=True)
    catalogue.index()
    return True
