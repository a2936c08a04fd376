"""Moonshelf: products read, described, and put into one vector.

Importing this package is cheap: the heavy names below load on first use, so `moonshelf --help`
answers at once. Telemetry of the libraries underneath is switched off here, before any of them loads.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# setdefault: a user who wants a dependency's telemetry can still turn it on in the environment.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"

_LAZY = {
    "Product": "moonshelf.product",
    "ImageRef": "moonshelf.product",
    "MoonModel": "moonshelf.model.modeling",
    "Encoded": "moonshelf.model.encoders.base",
}

if TYPE_CHECKING:
    from moonshelf.model.encoders.base import Encoded
    from moonshelf.model.modeling import MoonModel
    from moonshelf.product import ImageRef, Product

__all__ = ["Encoded", "ImageRef", "MoonModel", "Product", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'moonshelf' has no attribute {name!r}")
