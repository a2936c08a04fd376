"""Files of folders that people hand around (models, adapters, catalogues), and files replaced whole.

A folder may come from a stranger, or be half written: so only regular files are read (a pipe would be waited
for without end), up to a size, and JSON only so deep as our own is, without the numbers that JSON does not
have. What is wrong is one `UserError` that names the file and its folder, not where the folder lies.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from moonshelf.errors import UserError

MAX_JSON = 4 * 1024 * 1024  # bytes; the largest of ours, the record of a benchmark, has some 100 KB
MAX_DEPTH = 50

Settings = TypeVar("Settings", bound=BaseModel)


class Irregular(OSError):
    """Not a regular file: a pipe, a device, a socket, a folder."""


class TooLarge(OSError):
    """More bytes than are taken."""


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """All of a regular file. Raises `Irregular`, `TooLarge`, `FileNotFoundError` or another `OSError`."""
    # O_NONBLOCK: opening a pipe without a writer must not hang before fstat can refuse it.
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    )
    if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: devices act when they are opened
        raise Irregular()
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Irregular()
        data = file.read(max_bytes + 1) if status.st_size <= max_bytes else b""
    if status.st_size > max_bytes or len(data) > max_bytes:
        raise TooLarge()
    return data


def read_json(path: Path, max_bytes: int = MAX_JSON) -> Any:
    """Parsed JSON of a folder's file, or a `UserError`."""
    name = f"{path.name} in {path.absolute().parent.name!r}"
    try:
        data = read_regular(path, max_bytes)
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
        _check_depth(value)
    except FileNotFoundError:
        raise UserError(f"there is no {name}: fetch the folder again.") from None
    except Irregular:
        raise UserError(f"{name} is not a regular file: fetch the folder again.") from None
    except TooLarge:
        raise UserError(f"{name} has more than {max_bytes:,} bytes, which no such file has.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or 'I/O error'}.") from None
    except RecursionError:
        raise UserError(f"{name} is nested more than {MAX_DEPTH} deep, which no such file is.") from None
    except ValueError:
        raise UserError(f"{name} is not valid JSON: fetch the folder again.") from None
    return value


def read_settings(kind: type[Settings], path: Path) -> Settings:
    """A pydantic model from a JSON file of a folder, or a `UserError` that names the first wrong field."""
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise wrong_settings(path, error) from None


def wrong_settings(path: Path, error: ValidationError) -> UserError:
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))[:100] or "the whole"
    reason = first["msg"].removeprefix("Value error, ")[:300]
    return UserError(
        f"{path.name} in {path.absolute().parent.name!r} is not one of this version: {field}: {reason}."
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RecursionError
        nested = [one for one in level if isinstance(one, dict | list)]
        level = [x for one in nested for x in (one.values() if isinstance(one, dict) else one)]


# ---- writing ---------------------------------------------------------------------------------------


def write_json(path: Path, record: Any) -> None:
    write_atomic(path, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` so that a reader, or a process after a crash, sees the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    replace_durably(temporary, path)


def replace_durably(temporary: Path, path: Path) -> None:
    """Rename a finished file over `path` of the same folder; file first, then the folder's entry."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
