"""The process of the service: its log, its server, its end.

Uvicorn serves; on SIGTERM or SIGINT it takes no new connection, waits for the requests in hand, and the
application then finishes what its queue holds. One process owns the model: more processes are more copies.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from typing import Any

from moonshelf.errors import EXIT_DEFECT, EXIT_OK, UserError
from moonshelf.service.settings import Settings

FIELDS = ("method", "route", "status", "ms", "key", "request_id", "products", "model", "settings")


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


def set_up_log(settings: Settings) -> None:
    """Our log to stderr in the chosen form; uvicorn's own access log is off, since it holds queries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    for name in ("moonshelf", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(settings.log_level.upper())
    logging.getLogger("uvicorn.access").disabled = True


def serve(settings: Settings) -> int:
    """Serve until a signal ends it; returns the exit code. Raises UserError for what the user must mend."""
    from moonshelf.catalogue.store import Store

    Store.open(settings.folder)  # what is no catalogue is said before anything heavy is loaded
    try:
        import uvicorn

        from moonshelf.service.app import create_app
    except ImportError as error:
        raise UserError(f"the service needs {error.name}: install moonshelf[serve].") from None
    set_up_log(settings)
    logging.getLogger("moonshelf.service").info("settings", extra={"settings": settings.shown()})
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    config = uvicorn.Config(
        create_app(settings, failed), host=settings.host, port=settings.port, log_config=None,
        access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
    )  # fmt: skip
    server = uvicorn.Server(config)
    # Uvicorn ends in order on a signal and then raises it anew: by then there is nothing left to end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        socket = config.bind_socket()
        port = socket.getsockname()[1]
        print(f"http://{settings.host}:{port}/ (stop with Ctrl-C)", file=sys.stderr, flush=True)
        server.run([socket])
    except KeyboardInterrupt:  # uvicorn raises it anew once all is finished
        pass
    except SystemExit as error:  # uvicorn's way of saying that the port is taken
        if error.code:
            raise UserError(
                f"{settings.host}:{settings.port} cannot be listened on: is another service there? "
                "Take another --port."
            ) from None
    if failures and isinstance(failures[0], UserError):
        raise failures[0]
    return EXIT_DEFECT if failures else EXIT_OK
