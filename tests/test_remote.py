"""Fetching pictures from links that a stranger wrote. All traffic stays on the loopback interface."""

from __future__ import annotations

import contextlib
import copy
import gzip
import ipaddress
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hostile_images as hostile
from moonshelf import images
from moonshelf.errors import UserError
from moonshelf.images import ImageError
from moonshelf.product import ImageRef

remote = pytest.importorskip("moonshelf.remote", reason="needs the extra `remote`", exc_type=UserError)

PICTURE = hostile.save(hostile.noisy((40, 30)), "PNG")
SHOP, TRAP = "127.0.0.1", "127.0.0.2"  # the shop's own server may be dialled, the trap never


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    named = {
        "Content-Length": str(len(body)),
        **{key.replace("_", "-"): value for key, value in headers.items()},
    }
    head = "".join(f"{key}: {value}\r\n" for key, value in named.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


class Server(socketserver.ThreadingTCPServer):
    """Answers raw bytes by path and counts the connections."""

    allow_reuse_address, daemon_threads = True, True

    def __init__(self, address: str, port: int = 0) -> None:
        self.routes: dict[str, bytes | Callable[[socket.socket], None]] = {}
        self.connections, self.requests = 0, list[bytes]()
        self.tls: ssl.SSLContext | None = None
        super().__init__((address, port), socketserver.BaseRequestHandler)
        self.port = self.server_address[1]

    def finish_request(self, request: socket.socket, client_address: object) -> None:
        self.connections += 1
        if self.tls:
            try:
                request = self.tls.wrap_socket(request, server_side=True)
            except OSError:
                return  # the client did not like the certificate
        data = b""
        while b"\r\n\r\n" not in data and (more := request.recv(4096)):
            data += more
        self.requests.append(data)
        reply = self.routes.get(data.split(b" ")[1].decode(), answer(status="404 Not Found"))
        with contextlib.suppress(OSError):  # the client had enough
            reply(request) if callable(reply) else request.sendall(reply)


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    shop = Server(SHOP)
    try:
        trap = Server(TRAP, shop.port)
    except OSError:
        shop.server_close()
        pytest.skip("this system has one loopback address only")
    for server in (shop, trap):
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield shop, trap
    for server in (shop, trap):
        server.shutdown()
        server.server_close()


@pytest.fixture
def names(monkeypatch) -> dict[str, list[list[str]]]:
    """Host name to its answers, one list of addresses per look-up; the last answer repeats."""
    table: dict[str, list[list[str]]] = {"shop.test": [[SHOP]], "trap.test": [[TRAP]]}
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        if host not in table:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                raise socket.gaierror(socket.EAI_NONAME, "not known") from None
            return real(host, port, *args, **kwargs)
        answers = table[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table


@pytest.fixture
def fetcher(servers, names):
    def make(**options):
        settings = {
            "schemes": ("http",),
            "ports": (servers[0].port,),
            "allow_networks": (f"{SHOP}/32",),
            "timeout": 5.0,
        }
        return remote.RemoteFetcher(**{**settings, **options})

    return make


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ImageError) as caught:
        call()
    assert (
        "0x" not in str(caught.value) and "secret" not in str(caught.value) and len(str(caught.value)) < 200
    )
    return caught.value.code


# ------------------------------------------------------------------------------------------ the good way


def test_a_picture_is_fetched_and_decoded(servers, fetcher):
    shop, trap = servers
    shop.routes["/a%20b.png?k=1"] = answer(PICTURE, Content_Type="image/png")
    ref = ImageRef(url=f"http://shop.test:{shop.port}/a b.png?k=1")
    assert images.load(ref, fetcher=fetcher()).size == (40, 30)
    request = shop.requests[0].lower()
    assert f"host: shop.test:{shop.port}".encode() in request and b"accept-encoding: identity" in request
    assert b"cookie" not in request and trap.connections == 0


@pytest.mark.parametrize(
    "location", ["/b.png", "b.png", "http://shop.test:{port}/b.png", "//shop.test:{port}/b.png"]
)
def test_a_redirect_to_an_allowed_place_is_followed(servers, fetcher, location):
    shop, _ = servers
    shop.routes["/a.png"] = answer(status="302 Found", Location=location.format(port=shop.port))
    shop.routes["/b.png"] = answer(PICTURE)
    assert fetcher().fetch(f"http://shop.test:{shop.port}/a.png") == PICTURE


def test_chunked_bodies_and_wrong_content_types_are_taken(servers, fetcher):
    shop, _ = servers
    half = len(PICTURE) // 2
    chunks = b"".join(
        f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (PICTURE[:half], PICTURE[half:])
    )
    shop.routes["/chunked"] = answer(Content_Length="", Transfer_Encoding="chunked") + chunks + b"0\r\n\r\n"
    shop.routes["/plain"] = answer(PICTURE, Content_Type="text/plain")
    for path in ("/chunked", "/plain"):
        assert fetcher().fetch(f"http://shop.test:{shop.port}{path}") == PICTURE


# ------------------------------------------------------------------------------------ forbidden addresses


FORBIDDEN = [
    "127.0.0.2", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200",
    "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "168.63.129.16", "192.88.99.1", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
    "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "2002:7f00:1::",
    "2001:0:53aa::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "4000::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700::1111", "2a00:1450:4001::1", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_not_public(address):
    assert not remote.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address):
    assert remote.is_public(ipaddress.ip_address(address))


# IANA's two special-purpose address registries, every row; 64:ff9b::/96 is judged by what is inside.
REGISTRIES = [
    "0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
    "172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32",
    "192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24",
    "192.88.99.0/24", "192.88.99.2/32", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32", "224.0.0.0/4",
    "::1/128", "::/128", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23",
    "2001::/32", "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32",
    "2001:4:112::/48", "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16",
    "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
]  # fmt: skip


@pytest.mark.parametrize("network", map(ipaddress.ip_network, REGISTRIES), ids=str)
def test_no_special_purpose_network_is_public(network):
    assert not remote.is_public(network[0]) and not remote.is_public(network[-1])
    if network.version == 4:
        for address in (network[0], network[-1]):  # every way to write an IPv4 address into an IPv6 one
            for base in ("::ffff:0:0", "::", "64:ff9b::"):
                assert not remote.is_public(ipaddress.IPv6Address(base) + int(address))
            assert not remote.is_public(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80)))


@given(st.ip_addresses())
def test_an_address_is_public_unless_a_registry_says_otherwise(address):
    special = [n for n in map(ipaddress.ip_network, REGISTRIES) if address in n]
    unicast = address.version == 4 or address in ipaddress.ip_network("2000::/3")
    if str(address) != "168.63.129.16" and address not in ipaddress.ip_network("64:ff9b::/96"):
        assert remote.is_public(address) == (unicast and not special)


def test_a_name_that_leads_inside_is_not_dialled(servers, fetcher, names):
    shop, trap = servers
    trap.routes["/a.png"] = answer(PICTURE)
    fetch = fetcher().fetch
    for url in (
        f"http://trap.test:{trap.port}/a.png",
        f"http://{TRAP}:{trap.port}/a.png",
        f"http://[::1]:{trap.port}/a",
    ):
        assert code_of(lambda url=url: fetch(url)) == "remote_address"
    for addresses in ([SHOP, TRAP], ["::ffff:127.0.0.1"], ["169.254.169.254"], ["fe80::1%1"]):
        names["mixed.test"] = [addresses]
        assert code_of(lambda: fetch(f"http://mixed.test:{shop.port}/a.png")) == "remote_address"
    assert (shop.connections, trap.connections) == (0, 0)


def test_a_redirect_cannot_lead_inside(servers, fetcher):
    shop, trap = servers
    trap.routes["/a.png"] = answer(PICTURE)
    port = trap.port
    expected = {
        f"http://trap.test:{port}/a.png": "remote_address",
        f"http://{TRAP}:{port}/a.png": "remote_address",
        f"//{TRAP}:{port}/a.png": "remote_address",
        f"http://2130706434:{port}/a.png": "remote_url",
        f"http://shop.test@{TRAP}:{port}/a.png": "remote_url",
        f"http://{TRAP}:{port}\\@shop.test/a.png": "remote_url",
        f"http://shop.test:{port + 1}/a.png": "remote_port",
        f"https://shop.test:{port}/a.png": "remote_scheme",
        "file:///etc/passwd": "remote_scheme",
        "gopher://shop.test/": "remote_scheme",
        "http://[": "remote_url",
    }
    for location, code in expected.items():
        shop.routes["/go"] = answer(status="302 Found", Location=location)
        assert code_of(lambda: fetcher().fetch(f"http://shop.test:{port}/go")) == code, location
    assert trap.connections == 0


def test_a_second_look_up_cannot_change_the_address(servers, fetcher, names):
    shop, trap = servers
    shop.routes["/a.png"] = trap.routes["/a.png"] = answer(PICTURE)
    shop.routes["/go"] = answer(status="301 Moved", Location="/a.png")
    names["rebind.test"] = [[SHOP], [TRAP]]
    assert fetcher().fetch(f"http://rebind.test:{shop.port}/a.png") == PICTURE
    assert names["rebind.test"] == [[TRAP]]  # looked up once; the next hop would see the trap, and is refused
    names["rebind.test"] = [[SHOP], [TRAP]]
    assert code_of(lambda: fetcher().fetch(f"http://rebind.test:{shop.port}/go")) == "remote_address"
    assert trap.connections == 0


OTHER_SCHEMES = [
    "file:///etc/passwd", "data:image/png;base64,AAAA", "ftp://shop.test/a", "/etc/passwd", "", "https://shop.test/a",
    "javascript:alert(1)", "//shop.test/a",
]  # fmt: skip
MALFORMED = [
    # this machine, in notations that some resolvers read
    "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://0/",
    "http://0x/", "http://127.0.0.1.5/", "http://%31%32%37.0.0.1/", "http://１２７.1/", "http://①②⑦.0.0.1/",
    "http://[::1%25eth0]/", "http://[::ffff:1.2.3]/",
    # two readings of one text
    "http://user:secret@shop.test/", "http://shop.test\\@127.0.0.2/", "http://shop.test\n/",
    "http://shop.test/\r\nHost: a", "http:///a", "http://shop.test:99999/", "http://-a-.test/", "http://a..b/",
    "http://" + "a" * 300 + ".test/", "http://shop.test/" + "a" * 9000,
]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "code"),
    [
        *((url, "remote_scheme") for url in OTHER_SCHEMES),
        *((url, "remote_url") for url in MALFORMED),
        ("http://shop.test:22/", "remote_port"),
    ],
)
def test_odd_links_are_refused_before_any_look_up(url, code, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    assert code_of(lambda: remote.RemoteFetcher(schemes=("http",), ports=(80,)).fetch(url)) == code


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_target_or_an_image_error(text):
    for url in (text, "http://" + text, "http://shop.test/" + text):
        try:
            target = remote._parse(url)
        except ImageError:
            continue
        assert target.url.isascii() and target.url.isprintable() and " " not in target.url
        assert remote._parse(target.url) == target  # one reading only


def test_plain_http_is_off_by_default():
    assert code_of(lambda: remote.RemoteFetcher().fetch("http://shop.test/a.png")) == "remote_scheme"


def test_host_list(servers, fetcher, names):
    shop, _ = servers
    shop.routes["/a.png"] = answer(PICTURE)
    shop.routes["/go"] = answer(status="302 Found", Location=f"http://other.test:{shop.port}/a.png")
    names["cdn.shop.test"] = names["other.test"] = names["evilshop.test"] = [[SHOP]]
    fetch = fetcher(hosts=["Shop.test", "*.shop.test"]).fetch
    for host in ("shop.test", "cdn.shop.test", "CDN.shop.test."):
        assert fetch(f"http://{host}:{shop.port}/a.png") == PICTURE
    for url in (
        f"http://other.test:{shop.port}/a.png",
        f"http://evilshop.test:{shop.port}/",
        f"http://shop.test:{shop.port}/go",
    ):
        assert code_of(lambda url=url: fetch(url)) == "remote_host"


# --------------------------------------------------------------------------------------- costly answers


def drip(piece: bytes, start: bytes = b"") -> Callable[[socket.socket], None]:
    def send(sock: socket.socket) -> None:
        sock.sendall(start)
        while True:
            sock.sendall(piece)
            time.sleep(0.02)

    return send


def flood(start: bytes) -> Callable[[socket.socket], None]:
    def send(sock: socket.socket) -> None:
        sock.sendall(start)
        while True:
            sock.sendall(bytes(65536))

    return send


@pytest.mark.parametrize(
    "reply",
    [
        drip(b"x", answer(Content_Length="100000")),
        drip(b"X-More: 1\r\n", b"HTTP/1.1 200 OK\r\n"),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda sock: time.sleep(2),
    ],
    ids=["body", "headers", "continue", "silence"],
)
def test_time_is_capped_for_the_whole_fetch(servers, fetcher, reply):
    shop, _ = servers
    shop.routes["/slow"] = reply
    started = time.monotonic()
    assert (
        code_of(lambda: fetcher(timeout=0.4).fetch(f"http://shop.test:{shop.port}/slow")) == "remote_timeout"
    )
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("slow", ["name", "silence", "body"])
def test_a_fetch_that_nobody_waits_for_ends(servers, fetcher, monkeypatch, slow):
    shop, _ = servers
    shop.routes["/slow"] = drip(b"x", answer(Content_Length="100000") if slow == "body" else b"")
    if slow == "name":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(3))
    gone = threading.Event()
    threading.Timer(0.3, gone.set).start()
    started, patient = time.monotonic(), fetcher(timeout=20)
    url = f"http://shop.test:{shop.port}/slow"
    assert code_of(lambda: patient.fetch(url, gone=gone)) == "remote_timeout"
    assert time.monotonic() - started < 2


def test_a_slow_name_server_is_not_waited_for(fetcher, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1.5))
    started = time.monotonic()
    port = next(iter(fetcher().ports))
    assert code_of(lambda: fetcher(timeout=0.3).fetch(f"http://shop.test:{port}/a")) == "remote_timeout"
    assert time.monotonic() - started < 1.2


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"", Content_Length="5000000000"),
        flood(answer(Content_Length="")),
        flood(answer(Content_Length="90000000")),
        flood(answer(Content_Length="", Transfer_Encoding="chunked") + b"fffffff\r\n"),
        lambda sock: sock.sendall(
            answer(Content_Length="", Transfer_Encoding="chunked")
            + b"1;"
            + b"x" * 3000
            + b"\r\na\r\n"
            + b"1\r\na\r\n" * 90_000
        ),
    ],
    ids=["declared", "undeclared", "within what was declared", "chunked", "tiny chunks"],
)
def test_bytes_are_capped(servers, fetcher, reply):
    shop, _ = servers
    shop.routes["/big"] = reply
    call = fetcher().fetch
    assert code_of(lambda: call(f"http://shop.test:{shop.port}/big", max_bytes=50_000)) == "too_many_bytes"


def test_endless_headers_are_refused(servers, fetcher):
    shop, _ = servers
    shop.routes["/big"] = flood(b"HTTP/1.1 200 OK\r\nX: ")
    assert code_of(lambda: fetcher().fetch(f"http://shop.test:{shop.port}/big")) in (
        "remote_failed",
        "too_many_bytes",
    )


def test_a_redirect_loop_ends(servers, fetcher):
    shop, _ = servers
    shop.routes["/loop"] = answer(status="307 Again", Location="/loop")
    assert (
        code_of(lambda: fetcher(max_redirects=3).fetch(f"http://shop.test:{shop.port}/loop"))
        == "remote_redirects"
    )
    assert shop.connections == 4


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (answer(b"<html>", Content_Type="text/html; charset=utf-8"), "remote_type"),
        (answer(b"<html>not found</html>", Content_Type="image/jpeg"), "unsupported_format"),
        (answer(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip"), "remote_type"),
        (answer(b"", Content_Type="image/png"), "empty"),
        (answer(status="404 Not Found"), "remote_status"),
        (answer(PICTURE, status="206 Partial"), "remote_status"),
        (answer(status="302 Found"), "remote_failed"),
        (answer(PICTURE[:50], Content_Length="5000"), "remote_failed"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "remote_failed"),
        (b"", "remote_failed"),
        (answer(hostile.jpeg_with_size(65535, 65535)), "too_many_pixels"),
    ],
)
def test_answers_that_are_no_picture(servers, fetcher, reply, code):
    shop, _ = servers
    shop.routes["/a?key=secret"] = reply
    assert code_of(lambda: fetcher().fetch(f"http://shop.test:{shop.port}/a?key=secret")) == code


def test_unknown_and_unreachable_hosts(servers, fetcher):
    shop, _ = servers
    assert code_of(lambda: fetcher().fetch(f"http://nowhere.test:{shop.port}/a")) == "remote_failed"
    with socket.socket() as closed:
        closed.bind((SHOP, 0))
        port = closed.getsockname()[1]
    assert code_of(lambda: fetcher(ports=(port,)).fetch(f"http://shop.test:{port}/a")) == "remote_failed"


def test_certificates_are_checked_against_the_name(servers, fetcher, names, tmp_path):
    """Although an address is dialled, the certificate must be the name's, and from a trusted issuer."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=shop.test"
    request += f" -addext subjectAltName=DNS:shop.test -keyout {key} -out {certificate}"
    subprocess.run(request.split(), check=True, capture_output=True)
    shop, _ = servers
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, key)
    shop.tls = server_side
    shop.routes["/a.png"] = answer(PICTURE)
    names["other.test"] = [[SHOP]]
    trusting = ssl.create_default_context(cafile=str(certificate))
    fetch = fetcher(schemes=("https",), ssl_context=trusting).fetch
    assert fetch(f"https://shop.test:{shop.port}/a.png") == PICTURE
    assert code_of(lambda: fetch(f"https://other.test:{shop.port}/a.png")) == "remote_failed"
    assert (
        code_of(lambda: fetcher(schemes=("https",)).fetch(f"https://shop.test:{shop.port}/a.png"))
        == "remote_failed"
    )


# ------------------------------------------------------------------------------------------------ set-up


def test_mistakes_in_the_settings_are_named():
    with pytest.raises(UserError, match="ftp"):
        remote.RemoteFetcher(schemes=("ftp",))
    with pytest.raises(UserError, match="CIDR"):
        remote.RemoteFetcher(allow_networks=["10.0.0.1/8"])


def test_a_missing_extra_says_what_to_install():
    script = (
        "import sys; sys.modules['httpcore2'] = None\n"
        "from moonshelf.errors import UserError\n"
        "try: import moonshelf.remote\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "pip install 'moonshelf[remote]'" in done.stdout


def test_decoding_does_not_import_the_network():
    script = (
        "import sys, moonshelf.images\n"
        "print([name for name in sys.modules if name in ('httpcore2', 'moonshelf.remote')])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_fetcher_goes_to_other_processes() -> None:
    there = copy.deepcopy(remote.RemoteFetcher(hosts=["shop.example"], timeout=3.0))  # as pickling does it
    assert (there.hosts, there.timeout) == (("shop.example",), 3.0) and there._ssl_context is not None
    with pytest.raises(UserError, match="certificates of its own"):
        copy.deepcopy(remote.RemoteFetcher(ssl_context=ssl.create_default_context()))
