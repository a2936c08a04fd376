"""Uvicorn, as the service runs it, and its end.

On SIGTERM or SIGINT no new connection is taken, the requests in hand are waited for, and the application then
ends. All of it together has `shutdown_s`. A thread that is inside a library cannot be ended, and Python waits
for its threads; so when that time is over the process ends as it is. What was acknowledged is on disk.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from moonshelf.errors import EXIT_OK, UserError
from moonshelf.service.connections import Connections, listener
from moonshelf.service.settings import Settings

log = logging.getLogger("moonshelf.service")

REQUESTS_SHARE = 0.8  # of `shutdown_s`, for the requests in hand; the rest is for commits and the queue
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """Its signals start a clock that ends the process."""

    def __init__(self, config: uvicorn.Config, shutdown_s: float) -> None:
        super().__init__(config)
        self.shutdown_s = shutdown_s
        self._asked = threading.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._asked.set()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # uvicorn would raise them anew once all is finished

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Signals end the server in order, also before it runs; and the process, when their time is over."""
        threading.Thread(target=self._watch, name="moonshelf-end", daemon=True).start()
        before = {one: signal.signal(one, self.handle_exit) for one in SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, signal.SIG_IGN if self._asked.is_set() else handler)

    def leave(self, code: int) -> None:
        """After a signal, end the process here: Python's own end waits for threads and takes seconds."""
        if self._asked.is_set():
            logging.shutdown()
            os._exit(code)

    def _watch(self) -> None:
        self._asked.wait()
        time.sleep(self.shutdown_s)
        log.warning("ended after %g s with work unfinished", self.shutdown_s)
        self.leave(EXIT_OK)


def make_server(app: FastAPI, settings: Settings) -> tuple[Server, socket.socket]:
    """The server of an application and the socket that it is to run on.

    Raises UserError where the address cannot be listened on.
    """
    monitor = getattr(app.state, "monitor", None)
    connections = Connections(settings, lambda: monitor and monitor.dropped("connections"))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False, ws="none",
        http=connections.protocol, backlog=512, timeout_keep_alive=settings.idle_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=REQUESTS_SHARE * settings.shutdown_s,  # type: ignore[arg-type]
    )  # fmt: skip
    try:
        found = listener(settings.host, settings.port)
    except OSError as error:
        raise UserError(
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror or error}): is another "
            "service there? Take another --port."
        ) from None
    return Server(config, settings.shutdown_s), found
