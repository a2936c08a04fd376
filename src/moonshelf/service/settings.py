"""Settings of the service: flags over environment (`MOONSHELF_…`) over a YAML file over the defaults here.

Each field is a flag of `moonshelf serve` too, and a row of the table in docs/serving.md. A name in the YAML
file that is no setting is an error, never a default in silence. An unknown variable is only a warning, since
others put theirs into the same environment: Kubernetes makes MOONSHELF_PORT_80_TCP for a Service of our name.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from moonshelf.errors import UserError

PREFIX = "MOONSHELF_"
CONFIG = PREFIX + "CONFIG"
OTHERS = {CONFIG, PREFIX + "ENDPOINT_KEY"}  # variables of ours that are no settings of the service
# In the environment a list is written with commas, or as JSON.
Words = Annotated[tuple[str, ...], NoDecode]
_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_RATE = re.compile(r"(\d{1,6})\s*(?:/|per)\s*(\d{1,6})?\s*(second|minute|hour|day)s?")


def _is_network(text: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_network(text))
    return False


# What the words of a list must be.
_LISTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "remote_hosts": (
        re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*").fullmatch,
        "is no host name: give it without scheme, port and path",
    ),
    "cors_origins": (
        re.compile(r"https?://[A-Za-z0-9_.\[\]:-]+").fullmatch,
        "is no origin: give it as https://shop.example, without a path",
    ),
    "trusted_proxies": (_is_network, "is neither an address nor a network such as 10.0.0.0/8"),
}


class Settings(BaseSettings):
    """What one process of the service goes by. Read once, at the start."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    folder: Path
    """Catalogue folder that `moonshelf embed` made."""
    model: str | None = None
    """Name or folder of a model; none: the catalogue's own."""
    backend: Literal["torch", "onnx", "openvino"] | None = None
    """What computes direct vectors; onnx and openvino write no rationales."""
    reranker: str | None = None
    """CrossEncoder (folder, hub id) or server (URL#MODEL) that reads the first hits again; none: none."""
    rerank_s: float = Field(2.0, gt=0)
    """Seconds that it has for one search, then the order before it stands."""
    creative_model: str = Field("starter", min_length=1)
    """Judge of creatives, as --backend of `moonshelf creative rank`; off: no such endpoints."""
    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on."""
    port: int = Field(8765, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    keys_file: Path | None = None
    """API keys, as `moonshelf keys add` writes them."""
    allow_open: bool = False
    """Listen beyond this machine without API keys, behind a proxy of your own."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens of one batch at most."""
    batch_wait_ms: float = Field(4.0, ge=0, le=1000)
    """Milliseconds that the first item of a batch waits for company."""
    max_queue_items: int = Field(512, ge=1)
    """Items that wait at most; more get 429."""
    max_queue_tokens: int = Field(262_144, ge=1)
    """Tokens that wait at most; more get 429."""
    deadline_s: float = Field(30.0, gt=0)
    """Seconds for one request, then 504."""
    max_body_mb: float = Field(32, gt=0)
    """Megabytes (2^20 bytes) of one request."""
    max_bodies_mb: float = Field(40, gt=0)
    """Megabytes of all large requests in hand; more get 429."""
    max_items: int = Field(256, ge=1)
    """Inputs or products of one request."""
    max_images: int = Field(16, ge=1)
    """Creatives, or pictures of one item."""
    cache_items: int = Field(20_000, ge=0)
    """Vectors kept by the hash of their input; 0: none."""
    rate_limit: str = ""
    """Requests of one key, or address without keys, as "600/minute"; empty: no limit."""
    max_connections: int = Field(1000, ge=1)
    """Connections of all callers together."""
    max_address_connections: int = Field(256, ge=1)
    """Connections of one address; trusted proxies may have more."""
    client_s: float = Field(10.0, gt=0)
    """Seconds that a caller may take for a header, and between two pieces of a body."""
    idle_s: int = Field(30, ge=1)
    """Seconds after a reply until an idle connection ends."""
    remote_hosts: Words = ()
    """Hosts from which pictures are fetched, *.shop.example for all below; empty: off."""
    cors_origins: Words = ()
    """Origins whose pages may call; empty: none."""
    trusted_proxies: Words = ()
    """Addresses or networks whose X-Forwarded-For counts; empty: none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object a line, or text."""
    shutdown_s: float = Field(20.0, ge=0)
    """Seconds after SIGTERM to finish what was taken."""
    # The choices and the default of MoonModel.from_pretrained; written out because its module loads torch.
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """What the model computes in."""
    device: str = Field("cpu", pattern=r"^(cpu|mps|cuda(:\d{1,2})?)$")
    """Where the model computes: cpu, cuda, cuda:1."""
    metrics_open: bool = True
    """/metrics needs no key."""
    threads: int | None = Field(None, ge=1)
    """Threads of torch; none: as torch chooses."""

    @field_validator(*_LISTS, mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        if given.lstrip().startswith("["):
            try:
                return json.loads(given)
            except json.JSONDecodeError:
                raise ValueError("it begins like a JSON list and is none") from None
        return tuple(word.strip() for word in given.split(",") if word.strip())

    @field_validator(*_LISTS)
    @classmethod
    def _fit(cls, words: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        fits, why = _LISTS[str(info.field_name)]
        for word in words:
            if not fits(word):
                raise ValueError(f"{word!r} {why}")
        return words

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, rate: str) -> str:
        parse_rates(rate)
        return rate

    @model_validator(mode="after")
    def _closed(self) -> Settings:
        if self.keys_file is None and not self.allow_open and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached by others and there are no API keys: give keys_file (see "
                "`moonshelf keys add`), or allow_open if a proxy of yours asks for them"
            )
        return self

    def trusts(self, address: str) -> bool:
        """Whether it is a trusted proxy's."""
        with suppress(ValueError):
            return any(ipaddress.ip_address(address) in network for network in self._proxies)
        return False

    @cached_property
    def _proxies(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        return [ipaddress.ip_network(one) for one in self.trusted_proxies]

    def shown(self) -> dict[str, Any]:
        """All settings as JSON values, for the start of the log; passwords inside addresses are left out."""
        return {name: _without_password(value) for name, value in self.model_dump(mode="json").items()}


class Rate(NamedTuple):
    """At most `amount` requests within `seconds`."""

    amount: int
    seconds: int
    text: str


def parse_rates(text: str) -> list[Rate]:
    """Rates such as "600/minute", "10 per second" or both, with a semicolon between. Raises ValueError."""
    found = []
    for one in re.split(r"[;,|]", text) if text.strip() else []:
        parts = _RATE.fullmatch(one.strip().lower())
        if parts is None or not int(parts[1]) or not int(parts[2] or 1):
            raise ValueError(f"{text!r} is no rate: write it as 600/minute, or as 10/second;600/minute")
        found.append(Rate(int(parts[1]), int(parts[2] or 1) * _UNITS[parts[3]], one.strip()))
    return found


def load_settings(
    folder: Path | str | None = None, config: Path | str | None = None, **flags: Any
) -> Settings:
    """Settings from all four places; a flag that is None was not given.

    folder: the catalogue; may also come from the environment or the file.
    config: YAML file, else the variable MOONSHELF_CONFIG, else none.
    Raises `UserError` with the first wrong value and where it came from.
    """
    config = config or os.environ.get(CONFIG) or None
    places: dict[str, Mapping[str, Any]] = {
        "file": _read(Path(config)) if config else {},
        "environment": EnvSettingsSource(Settings)(),
        "flag": {name: value for name, value in {"folder": folder, **flags}.items() if value is not None},
    }
    _warn_of_unknown_variables()
    merged = {name: value for place in places.values() for name, value in place.items()}
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise UserError(_sentence(error, places, config)) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address. Any name but localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the settings file {path} cannot be read: {_reason(error)}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"the settings file {path} is no valid YAML{where}.") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"the settings file {path} must hold lines such as `port: 8765`.")
    if unknown := [str(name) for name in found if name not in Settings.model_fields]:
        raise UserError(
            f"{path} has no setting {unknown[0]!r}{_meant(unknown[0], Settings.model_fields)}; "
            f"there is {', '.join(Settings.model_fields)}."
        )
    return found


def _warn_of_unknown_variables() -> None:
    names = {PREFIX + name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in names | OTHERS:
            logging.getLogger(__name__).warning(
                "the variable %s is no setting%s and is not used", variable, _meant(variable, names)
            )


def _meant(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _sentence(error: ValidationError, places: Mapping[str, Mapping[str, Any]], config: Any) -> str:
    first = error.errors()[0]
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    if not first["loc"]:  # about several settings together
        return f"{what}."
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return (
            f"the setting {name} is missing: give it in the call, as {PREFIX}{name.upper()} or in the file."
        )
    if first["type"] == "extra_forbidden":
        return f"there is no setting {name!r}{_meant(name, Settings.model_fields)}."
    place = next(place for place in ("flag", "environment", "file") if name in places[place])
    where = {
        "flag": "--" + name.replace("_", "-"),
        "environment": PREFIX + name.upper(),
        "file": f"{name} in {config}",
    }
    return f"{where[place]} cannot be {_without_password(str(places[place][name]))!r}: {what}."


def _without_password(value: Any) -> Any:
    """An address such as openai:https://user:password@host/v1?key=…#model loses what may be secret."""
    if not isinstance(value, str) or "://" not in value:
        return value
    start, scheme = value.split(":", 1) if not value.startswith("http") else ("", value)
    parts = urlsplit(scheme)
    netloc = parts.netloc.rpartition("@")[2]
    shown = parts._replace(netloc=netloc, query="…" if parts.query else "").geturl()
    return f"{start}:{shown}" if start else shown


def _reason(error: Exception) -> str:
    return (error.strerror or "no reason given") if isinstance(error, OSError) else "it is not UTF-8"
