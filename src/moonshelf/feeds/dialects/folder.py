"""A folder of pictures as a feed: subfolders are the category, the file's name is id and title.

`shoes/boots/red-suede-boot.jpg` becomes the product `shoes/boots/red-suede-boot`, category (shoes, boots),
title "red suede boot"; names without words (`IMG_0412`) give no title. Files are taken in sorted order;
links to folders are not followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from moonshelf.errors import UserError
from moonshelf.feeds.base import END, Row, Source, rejected
from moonshelf.feeds.build import Draft
from moonshelf.product import ImageRef

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_CAMERA = re.compile(r"(?i)(img|dsc|dscn|dscf|pxl|image|photo|pic|screenshot|whatsapp|untitled)s?")
_HEX = re.compile(r"[0-9a-f]{8,}")


def read(source: Source) -> Iterator[Row]:
    """One row a picture. Raises UserError if there is none."""
    number = 0
    unread: list[str] = []
    for number, (path, parts) in enumerate(walk(str(source.path), unread=unread), 1):
        yield _row(source, number, path, parts)
    for path in unread:
        yield rejected(os.path.relpath(path, source.path), END, "the folder cannot be read")
    if number == 0:
        raise UserError(f"{source.name} holds no pictures ({', '.join(SUFFIXES)}).")


def walk(
    folder: str, parts: tuple[str, ...] = (), unread: list[str] | None = None
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pictures below a folder in sorted order, each with the names of the subfolders that lead to it.

    Folders that cannot be read go to `unread`.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError:
        if unread is not None:
            unread.append(folder)
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path, (*parts, entry.name), unread)
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry.path, parts


def _row(source: Source, number: int, path: str, parts: tuple[str, ...]) -> Row:
    stem = os.path.splitext(os.path.basename(path))[0]
    name = "/".join((*parts, stem))
    try:
        name.encode()
    except UnicodeEncodeError:
        return rejected(number, "id", "the file's name is not valid text: rename it")
    draft = Draft(source, number)
    draft.set("id", name)
    draft.set("title", _title(stem))
    draft.set("category", [part.replace("_", " ").replace("-", " ") for part in parts])
    draft.image(ImageRef(path=os.path.abspath(path)))
    return draft.finish()


def _title(stem: str) -> str:
    """Words of a file's name, or "" if they are a camera's or a hash."""
    words = [word for word in re.split(r"[\s_\-.+]+", stem) if word]
    told = (
        re.search(r"[^\W\d_]{3}", w) and not _CAMERA.fullmatch(w) and not _HEX.fullmatch(w) for w in words
    )
    return " ".join(words) if any(told) else ""
