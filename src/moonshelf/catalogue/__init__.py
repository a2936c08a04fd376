"""The catalogue: embed a feed into a folder, index it, search it, and find what is in it twice.

`Catalogue` is the whole room in one class; the modules below it are embed (feed to store), store (the durable
truth), vector_index (a rebuildable cache), search (rank fusion) and matching (evidence, never a merge).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moonshelf.catalogue.search import Catalogue

__all__ = ["Catalogue"]


def __getattr__(name: str) -> Any:
    if name == "Catalogue":  # lazily: importing the store's library takes a second
        from moonshelf.catalogue.search import Catalogue

        return Catalogue
    raise AttributeError(f"module 'moonshelf.catalogue' has no attribute {name!r}")
