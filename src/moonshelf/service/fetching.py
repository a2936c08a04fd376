"""Pictures behind links, fetched for requests: few at a time, fewer of one host, and not for long.

A host that hangs takes the places of its own pictures only. Fetching has threads of its own, and each fetch
ends at FETCH_S, or when its caller has gone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from moonshelf import images
from moonshelf.images import ImageError
from moonshelf.remote import RemoteFetcher
from moonshelf.service.body import Held
from moonshelf.service.pools import Pools

FETCH_S = 10.0  # for one picture: name, connection, TLS and body
OF_ONE_HOST = 2  # pictures at a time, of all callers


class Fetched:
    """What links led to, or why not. Satisfies `images.Fetcher`."""

    def __init__(self, found: dict[str, bytes | ImageError]) -> None:
        self._found = found

    def fetch(self, url: str, *, max_bytes: int) -> bytes:
        one = self._found[url]
        if isinstance(one, ImageError):
            raise one
        return one


class Fetching:
    """Fetches from `hosts`; see `remote.RemoteFetcher`."""

    def __init__(self, hosts: Sequence[str], pools: Pools) -> None:
        self._fetcher, self._pools = RemoteFetcher(hosts=hosts, timeout=FETCH_S), pools
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def fetch(self, urls: Sequence[str], held: Held) -> Fetched:
        """All of them. Raises Refused where requests hold too much already."""
        different = list(dict.fromkeys(urls))
        tasks = [asyncio.create_task(self._one(url, held)) for url in different]
        try:
            return Fetched(dict(zip(different, await asyncio.gather(*tasks), strict=True)))
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, url: str, held: Held) -> bytes | ImageError:
        host = _host(url)
        place = self._places.get(host) or self._places.setdefault(host, asyncio.Semaphore(OF_ONE_HOST))
        async with place:
            try:
                data: bytes = await self._pools.run_while_wanted("fetch", self._fetch, url)
            except ImageError as error:
                return error
        held.take(len(data))
        return data

    def _fetch(self, url: str, gone: threading.Event) -> bytes:
        return self._fetcher.fetch(url, max_bytes=images.DEFAULT.max_bytes, gone=gone)


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""  # the fetcher says what is wrong with it
