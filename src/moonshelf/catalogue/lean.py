"""LanceDB without the two thirds of its import that a search never calls.

`import lancedb` runs 2.7 s on a quiet machine: a generated REST client of 148 model classes, which only
catalogues behind a REST server use, is nearly half of it, and pandas, wherever it is installed, a fifth.
`moonshelf search` opens a folder (or a bucket), prints and ends, so while it imports LanceDB the client's
modules are stand-ins and pandas counts as not installed. Only this one command does so, in a process of its
own: a program that imports `moonshelf` gets LanceDB whole.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CLIENT, PANDAS = "lance_namespace_urllib3_client", "pandas"


class _StandIn(ModuleType):
    """A module of which every name is a class that nobody makes an instance of."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _LeftOut(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == PANDAS:
            raise ModuleNotFoundError("pandas is left out while LanceDB is imported", name=name)
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] == CLIENT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def import_lancedb() -> None:
    """Import it so; whole, and as slowly as ever, where a version of it does not take that."""
    if "lancedb" in sys.modules:
        return
    finder = _LeftOut()
    sys.meta_path.insert(0, finder)
    try:
        import lancedb  # noqa: F401
    except Exception:
        halves = (CLIENT, "lancedb", "lance_namespace")
        for name in [name for name in sys.modules if name.split(".")[0] in halves]:
            del sys.modules[name]
    finally:
        sys.meta_path.remove(finder)
