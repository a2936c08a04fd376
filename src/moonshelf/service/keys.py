"""API keys: made, kept as hashes, compared in constant time, revoked without a restart.

A key is 256 random bits, so what is stored is its plain SHA-256. Slow hashes such as Argon2 are for
passwords, which can be guessed from a list; no list holds a random key, and a slow hash would only slow each
request down and let strangers burn our processor.

The file is JSON: {"keys": [{"name", "sha256", "scopes", "created"}]}. Who can write it can let themselves in.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import stat
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from moonshelf.errors import UserError
from moonshelf.files import replace_durably

PREFIX = "ms_"  # so that scanners of leaked secrets, and people, know one when they see it
LONGEST = 256  # characters of what is presented; more is no key and is not hashed
Scope = Literal["read", "write"]
ALL: frozenset[Scope] = frozenset(("read", "write"))
READ: frozenset[Scope] = frozenset(("read",))
_log = logging.getLogger(__name__)


class Key(BaseModel):
    """A stored key. `name` is what logs and feedback show of its owner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    scopes: Annotated[frozenset[Scope], PlainSerializer(sorted)] = Field(min_length=1)
    created: str = Field(description="ISO 8601, UTC.")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key]


def new_key(name: str, scopes: Collection[Scope] = ALL) -> tuple[str, Key]:
    """(the key itself, which is nowhere kept and so can be shown only now; the record to store)."""
    plain = PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        return plain, Key(name=name, sha256=_digest(plain), scopes=frozenset(scopes), created=created)
    except ValidationError:
        raise UserError(
            f"{name!r} is no name for a key: use up to 64 letters, digits and . _ @ - without spaces."
        ) from None


def read_keys(path: Path) -> list[Key]:
    """The keys of a file. Raises `UserError` if it is missing, broken, or names two keys alike."""
    try:
        keys = _File.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise UserError(
            f"the file of keys {path} cannot be read ({error.strerror}): make one with `moonshelf keys add`."
        ) from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "its JSON"
        raise UserError(
            f"the file of keys {path} is broken at {where}: mend it, or make a new one."
        ) from None
    names = [key.name for key in keys]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"the file of keys {path} has two keys named {twice[0]}: take one of them out.")
    return keys


def write_keys(path: Path, keys: list[Key]) -> None:
    """Replace the file, readable by its owner alone; a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # one left by a crash might have another mode
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(_File(keys=keys).model_dump_json(indent=2) + "\n")
    replace_durably(temporary, path)


def add_key(path: Path, name: str, scopes: Collection[Scope] = ALL) -> str:
    """Add a key to a file, which is made if there is none; returns the key itself."""
    plain, key = new_key(name, scopes)
    with _changing(path):
        keys = read_keys(path) if path.exists() else []
        if any(other.name == name for other in keys):
            raise UserError(f"there is a key named {name} in {path}: revoke it first, or take another name.")
        write_keys(path, [*keys, key])
    return plain


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of a file; services that use it refuse the key from their next request on."""
    with _changing(path):
        keys = read_keys(path)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            names = ", ".join(key.name for key in keys) or "none"
            raise UserError(f"there is no key named {name} in {path}; its keys: {names}.")
        write_keys(path, left)


class KeyRing:
    """The keys of a file, read again when the file changes. Safe to use from several threads.

    While the file is gone or cannot be read, `broken` is set and no key is accepted.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises `UserError` if the file cannot be used. A file without keys is taken: it lets no one in."""
        self._path, self._lock, self.broken = Path(path), threading.Lock(), False
        self._stamp = _stamp(self._path)  # before reading: a change in between is seen later, not missed
        self._keys = tuple(read_keys(self._path))
        if not self._keys:
            _log.warning("%s holds no keys: every request will be refused", path)
        if self._path.stat().st_mode & stat.S_IWOTH:
            _log.warning("%s can be written by every user of this machine: chmod 600 it", path)

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, presented: str) -> Key | None:
        """The key that was presented, or None. Takes the same time whichever key it is or is nearly."""
        self._reload()
        if len(presented) > LONGEST:
            return None
        digest, found = _digest(presented), None
        for key in self._keys:  # all of them, always: no early end tells which one it was
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _reload(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        with self._lock:
            if stamp == self._stamp:
                return
            self._stamp = stamp  # of a broken file too, which is reported once and not at each request
            try:
                self._keys, self.broken = tuple(read_keys(self._path)), False
            except UserError as error:
                # Whoever takes the file away wants nobody in, or does not know that a revoked key would stay.
                self._keys, self.broken = (), True
                _log.error("no API key is accepted until this is mended: %s", error)
            else:
                _log.info("keys read again from %s: %d", self._path, len(self._keys))


def _digest(plain: str) -> str:
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What tells two states of a file apart; the inode too, since a file's clock may be coarse, and when its
    rights were changed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """One change at a time: without this lock, adding a key could bring back one revoked meanwhile."""
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} for the file of keys does not exist: make it first.")
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
