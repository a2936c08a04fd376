"""The process of the service, from its log to its exit code. One process owns the model: more processes are
more copies.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from moonshelf import memory
from moonshelf.errors import EXIT_DEFECT, EXIT_OK, UserError
from moonshelf.service.settings import Settings

FIELDS = ("method", "route", "status", "ms", "key", "request_id", "products", "model", "settings")
DECODED = 100_000_000  # bytes that pictures may take while they are decoded, beside what bodies leave


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        said |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={getattr(record, name)}" for name in FIELDS if getattr(record, name, "") != ""]
        line = " ".join([time.strftime("%H:%M:%S"), record.levelname.lower(), record.getMessage(), *fields])
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class Seldom(logging.Filter):
    """Lets one message of others' loggers through a second: callers can make uvicorn and asyncio complain as
    often as they like, such as of bad requests and of too many open files."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("moonshelf"):
            return True
        now, text = time.monotonic(), str(record.msg)[:80]
        if now - self._said.get(text, -1.0) < 1:
            return False
        if len(self._said) > 100:
            self._said.clear()
        self._said[text] = now
        return True


def set_up_log(settings: Settings) -> None:
    """Our log to stderr in the chosen form; uvicorn's own access log is off, since it holds queries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    handler.addFilter(Seldom())
    for name in ("moonshelf", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(settings.log_level.upper())
    logging.getLogger("uvicorn.access").disabled = True


def make_sample(folder: Path, model: str) -> None:
    """Write the sample shop into `folder`/shop and embed it with its rationales, if no catalogue is there.

    Raises UserError for a folder that holds other files.
    """
    from moonshelf.catalogue.manifest import NAME
    from moonshelf.catalogue.search import Catalogue
    from moonshelf.sample import shop, write_shop

    if (folder / NAME).exists():
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds other files: name a new or an empty folder for the sample shop.")
    write_shop(shop(), folder / "shop")
    catalogue = Catalogue.create(folder, model)
    catalogue.embed(folder / "shop" / "products.jsonl", reason="on", progress=True)
    catalogue.index()


def serve(settings: Settings) -> int:
    """Serve until a signal ends it; returns the exit code. Raises UserError for what the user must mend."""
    from moonshelf.catalogue.store import Store

    Store.open(settings.folder)  # what is no catalogue is said before anything heavy is loaded
    try:
        from moonshelf.service.app import create_app
        from moonshelf.service.body import BESIDE, COPIES
        from moonshelf.service.server import make_server
    except ImportError as error:
        raise UserError(f"the service needs {error.name}: install moonshelf[serve].") from None
    memory.share_heaps()
    bodies = max(settings.max_bodies_mb, settings.max_body_mb) * 2**20 + BESIDE
    memory.room.size = DECODED + COPIES * int(bodies)
    set_up_log(settings)
    logging.getLogger("moonshelf.service").info("settings", extra={"settings": settings.shown()})
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    server, socket = make_server(create_app(settings, failed), settings)
    with socket, server.watched():
        port = socket.getsockname()[1]
        print(f"http://{settings.host}:{port}/ (stop with Ctrl-C)", file=sys.stderr, flush=True)
        server.run([socket])
    if failures and isinstance(failures[0], UserError):
        raise failures[0]
    code = EXIT_DEFECT if failures else EXIT_OK
    server.leave(code)
    return code
