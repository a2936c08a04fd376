"""Images from web addresses, for feeds that hold links. Off unless a `RemoteFetcher` is passed explicitly.

A feed is written by somebody else, so its links must not reach this machine's own network (server-side
request forgery). Each hop of a redirect is checked anew: scheme, port, host list, and every address that
the name resolves to. The name is resolved once and the checked address is the one dialled, so a name
server cannot answer twice differently. Time is capped for the whole fetch, name lookup and slow drips
included, and bytes are capped on the wire and in the body. Compressed bodies, cookies, proxies and
connection reuse are not supported, on purpose.

The transport is httpcore2 with a network backend of ours. Ready-made wrappers were looked at: those that
dial the address they checked are young (drawbridge is an alpha), and the established one (advocate) has
had no release since 2020.
"""

from __future__ import annotations

import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from moonshelf import __version__, images
from moonshelf.errors import UserError
from moonshelf.images import ImageError

try:
    import httpcore2
except ImportError as error:
    raise UserError("Fetching images from the web needs an extra: pip install 'moonshelf[remote]'") from error

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_URL = 4096  # characters
_MOMENT = 0.25  # seconds
_CONNECT_S = 5.0  # for one address
_RESOLVING = threading.BoundedSemaphore(16)  # look-ups that may hang at a time
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# Bodies that say they are no picture are not downloaded; all others are judged by their bytes.
_NO_PICTURE = re.compile(
    r"text/(html|css|javascript)|video/|audio/|application/(json|pdf|xhtml|javascript|zip)"
)

# Where addresses are assigned for use in public, less every row of IANA's two special-purpose registries,
# whatever a row says of being reachable: none of them is a web server. A table of our own, since the
# one in Python differs between versions (192.0.0.0/24 and 3fff::/20 count as global in some).
_UNICAST_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the row that is judged by the address inside
_SPECIAL: list[Network] = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "240.0.0.0/4",
        "224.0.0.0/4",  # multicast, which has a registry of its own
        "168.63.129.16/32",  # Azure's host service, inside public space
        "2001::/23",  # Teredo, benchmarks, ORCHID and what else IETF protocols use
        "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    )
]  # fmt: skip


class RemoteFetcher:
    """Fetches pictures over http(s); safe to share between threads. Satisfies `images.Fetcher`.

    hosts: names to fetch from, `*.shop.example` for all below; None allows any public host.
    schemes, ports: what a link may name, before and after redirects; plain `http` has to be asked for.
    max_redirects: hops after the first request.
    timeout: seconds for one picture altogether.
    allow_networks: networks in CIDR notation that are dialled although not public, for a shop's own
        image store. Everything else that is private, local or reserved stays forbidden.
    """

    def __init__(
        self,
        *,
        hosts: Iterable[str] | None = None,
        schemes: Collection[str] = ("https",),
        ports: Collection[int] = (80, 443),
        max_redirects: int = 3,
        timeout: float = 20.0,
        allow_networks: Iterable[str] = (),
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        if unknown := set(schemes) - set(_DEFAULT_PORTS):
            raise UserError(f"Images are fetched over http and https, not over {', '.join(sorted(unknown))}.")
        self.hosts = None if hosts is None else tuple(host.lower().rstrip(".") for host in hosts)
        self.schemes, self.ports = frozenset(schemes), frozenset(ports)
        self.max_redirects, self.timeout = max_redirects, timeout
        try:
            self.allow_networks = [ipaddress.ip_network(network) for network in allow_networks]
        except ValueError as error:
            raise UserError(f"A network to allow is not in CIDR notation: {error}.") from error
        self._own_context = ssl_context is not None
        if ssl_context is None and "https" in self.schemes:
            ssl_context = httpcore2.default_ssl_context()  # made once: it reads the system's certificates
        self._ssl_context = ssl_context

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which read their system's certificates themselves."""
        if self._own_context:
            raise UserError("A fetcher with certificates of its own cannot be sent to other processes.")
        return {name: value for name, value in vars(self).items() if name != "_ssl_context"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._ssl_context = httpcore2.default_ssl_context() if "https" in self.schemes else None

    def fetch(
        self, url: str, *, max_bytes: int = images.DEFAULT.max_bytes, gone: threading.Event | None = None
    ) -> bytes:
        """Bytes of the picture at `url`, at most `max_bytes`; they begin like a picture of a known format.

        Ends soon after another thread sets `gone`; while it connects, at its timeout at the latest.

        Raises `ImageError` with a code `remote_…` or `too_many_bytes`; messages name the host only, since
        links may hold keys.
        """
        deadline = time.monotonic() + self.timeout
        for _ in range(self.max_redirects + 1):
            target = self._parse(url)
            with (
                _said_plainly(target.host),
                closing(self._connect(target, deadline, max_bytes, gone)) as connection,
            ):
                response = connection.handle_request(_request(target))
                with closing(response):
                    if response.status not in (301, 302, 303, 307, 308):
                        return _body(response, target.host, max_bytes)
                    location = _header(response, b"location")
            if not location:
                raise ImageError("remote_failed", f"{target.host} redirects to nowhere")
            try:
                url = urljoin(target.url, location)
            except ValueError as error:
                raise _malformed("it redirects to a malformed address") from error
        raise ImageError("remote_redirects", f"the image redirects more than {self.max_redirects} times")

    def _parse(self, url: str) -> _Target:
        target = _parse(url)
        if target.scheme not in self.schemes:
            raise ImageError("remote_scheme", f"images are not fetched over {target.scheme}")
        if target.port not in self.ports:
            raise ImageError("remote_port", f"images are not fetched from port {target.port}")
        if self.hosts is not None and not any(_matches(target.host, host) for host in self.hosts):
            raise ImageError("remote_host", f"{target.host} is not in the list of hosts")
        return target

    def _connect(self, target: _Target, deadline: float, max_bytes: int, gone: threading.Event | None) -> Any:
        # 200,000: headers, and the framing of chunked bodies
        budget = _Budget(deadline, 2 * max_bytes + 200_000, gone or threading.Event())
        return httpcore2.HTTPConnection(
            origin=httpcore2.Origin(target.scheme.encode(), target.host.encode(), target.port),
            ssl_context=self._ssl_context,
            network_backend=_Backend(self._check, budget),
        )

    def _check(self, address: Address) -> bool:
        return any(address in network for network in self.allow_networks) or is_public(address)


def is_public(address: Address) -> bool:
    """True for unicast addresses of the open internet; one behind NAT64 counts as the address inside.

    Other addresses that hold an IPv4 address (mapped, compatible, 6to4, Teredo) are refused whatever it is:
    no name server has a reason to answer with one.
    """
    if address.version == 6:
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _UNICAST_V6 or address.scope_id is not None:
            return False
    return not any(address in network for network in _SPECIAL)


# ---------------------------------------------------------------------------------------------- links


@dataclass(frozen=True)
class _Target:
    """A link taken apart once; nothing downstream parses the text again, so no two parsers can differ."""

    scheme: str
    host: str  # lower-case ASCII; an IPv6 address without brackets
    port: int
    path: str  # with the query

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"


def _parse(url: str) -> _Target:
    url = url.strip(" ")
    if len(url) > _MAX_URL:
        raise _malformed(f"it has more than {_MAX_URL} characters")
    if any(ord(c) < 32 or ord(c) == 127 for c in url) or "\\" in url:
        raise _malformed("it holds control characters or backslashes")
    try:
        parts = urlsplit(url)
        port, hostname = parts.port, parts.hostname or ""
    except ValueError as error:
        raise _malformed("its host or port cannot be read") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise ImageError("remote_scheme", "the image's address is neither http nor https")
    if "@" in parts.netloc:
        raise _malformed("it holds a user name")
    # Feeds often hold spaces and accents as they are; what is escaped already stays so.
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
    )
    host = _host(hostname, bracketed="[" in parts.netloc)
    return _Target(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port, path)


def _host(name: str, *, bracketed: bool) -> str:
    """Canonical host. A name that any resolver might read as a number is refused, unless it is an address
    written in full: `127.1`, `0x7f.1`, `2130706433` and `0177.0.0.1` all mean this machine to some."""
    if bracketed:
        try:
            if "%" in name:  # a scope, which says through which network card
                raise ValueError("scoped address")
            return str(ipaddress.IPv6Address(name))
        except ValueError as error:
            raise _malformed("its host is not an IPv6 address") from error
    try:
        host = name.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError as error:
        raise _malformed("its host is not a name") from error
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _malformed("its host is not a name")
    if re.fullmatch(r"\d+|0x[0-9a-f]*", labels[-1]):
        try:
            if not name.isascii():  # digits in circles and the like
                raise ValueError("digits that are not ASCII")
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise _malformed("its host is an address in an unusual notation") from error
    return host


def _malformed(why: str) -> ImageError:
    return ImageError("remote_url", f"the image's address is not used: {why}")


def _matches(host: str, allowed: str) -> bool:
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


# ------------------------------------------------------------------------------------------ connection


class _Budget:
    """What is left of time and bytes; every wait on the network is cut to it."""

    def __init__(self, deadline: float, max_bytes: int, gone: threading.Event) -> None:
        self.deadline, self.bytes_left, self.gone = deadline, max_bytes, gone

    def seconds(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0 or self.gone.is_set():
            raise httpcore2.ReadTimeout()
        return left

    def moment(self) -> float:
        """Seconds until one should look anew whether the picture is still wanted."""
        return min(self.seconds(), _MOMENT)

    def spend(self, count: int) -> None:
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise ImageError("too_many_bytes", "the web server sent more bytes than are taken")


class _Backend(httpcore2.NetworkBackend):
    """Resolves once, checks every address, dials a checked one."""

    def __init__(self, check: Callable[[Address], bool], budget: _Budget) -> None:
        self._check, self._budget = check, budget
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        addresses = _resolve(host, port, self._budget)
        for address in addresses:  # one forbidden answer condemns the name, whichever would be dialled
            if not self._check(address):
                raise ImageError("remote_address", f"{host} leads to an address that is not public")
        failure: Exception = httpcore2.ConnectError()
        for address in addresses[:4]:
            try:
                seconds = min(self._budget.seconds(), _CONNECT_S)
                stream = self._inner.connect_tcp(str(address), port, timeout=seconds)
                return _Stream(stream, self._budget)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class _Stream(httpcore2.NetworkStream):
    def __init__(self, inner: httpcore2.NetworkStream, budget: _Budget) -> None:
        self._inner, self._budget = inner, budget

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            moment = self._budget.moment()  # raises it when the time is over
            try:
                data = self._inner.read(max_bytes, moment)
            except httpcore2.ReadTimeout:
                continue
            self._budget.spend(len(data))
            return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._budget.seconds())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(
            self._inner.start_tls(ssl_context, server_hostname, self._budget.seconds()), self._budget
        )

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _resolve(host: str, port: int, budget: _Budget) -> list[Address]:
    """Addresses of a host. The system's resolver takes no timeout, so it is waited for from outside."""
    answers: queue.Queue[Any] = queue.Queue()

    def look_up() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)
        finally:
            _RESOLVING.release()

    while not _RESOLVING.acquire(timeout=budget.moment()):
        pass
    threading.Thread(target=look_up, daemon=True, name="moonshelf-resolve").start()
    while True:
        try:
            answer = answers.get(timeout=budget.moment())
            break
        except queue.Empty:
            continue
    if isinstance(answer, Exception):
        raise ImageError("remote_failed", f"the host {host} is not known") from answer
    # A scoped address (fe80::1%eth0) keeps its scope here and is refused like any link-local one.
    return list(dict.fromkeys(ipaddress.ip_address(entry[4][0]) for entry in answer))


# --------------------------------------------------------------------------------------------- answers


def _request(target: _Target) -> httpcore2.Request:
    url = httpcore2.URL(
        scheme=target.scheme.encode(),
        host=target.host.encode(),
        port=target.port,
        target=target.path.encode(),
    )
    headers = [
        ("Host", target.netloc),
        ("User-Agent", f"moonshelf/{__version__}"),
        ("Accept", "image/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    return httpcore2.Request("GET", url, headers=headers)


def _body(response: httpcore2.Response, host: str, max_bytes: int) -> bytes:
    if response.status != 200:
        raise ImageError("remote_status", f"{host} answers with status {response.status}")
    if _header(response, b"content-encoding") not in ("", "identity"):
        raise ImageError("remote_type", f"{host} sends a compressed body, which was not asked for")
    if _NO_PICTURE.match(kind := _header(response, b"content-type").lower()):
        raise ImageError("remote_type", f"{host} sends {kind.split(';')[0][:40]}, not an image")
    length = _header(response, b"content-length")
    too_long = ImageError("too_many_bytes", f"the image at {host} has more than {max_bytes:,} bytes")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_long
    body = bytearray()
    for part in response.iter_stream():
        body += part
        if len(body) > max_bytes:
            raise too_long
    data = bytes(body)
    images.probe(data, limits=images.Limits(max_bytes=max_bytes))
    return data


def _header(response: httpcore2.Response, name: bytes) -> str:
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("utf-8", "replace").strip()
    return ""


@contextmanager
def _said_plainly(host: str) -> Iterator[None]:
    try:
        yield
    except httpcore2.TimeoutException as error:
        raise ImageError("remote_timeout", f"{host} took too long") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise ImageError("remote_failed", f"{host} could not be reached or broke off") from error
