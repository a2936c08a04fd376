"""What goes wrong because of the input, said in one sentence.

`UserError` is the only exception that the command line turns into a message without a traceback;
anything else is a defect of ours and keeps its traceback. `Problem` is the record of one row, file or
field that was rejected while the rest went on. Exit codes: 0 done, 1 a defect of ours, 2 a mistake in
the call or an unusable input, 3 done but some rows were rejected, 4 done without a verdict: a selector of
creatives abstained, 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import asdict, dataclass
from typing import Any

EXIT_OK, EXIT_DEFECT, EXIT_USAGE, EXIT_PARTIAL, EXIT_ABSTAINED, EXIT_STOPPED = 0, 1, 2, 3, 4, 130
_ADVICE = {
    errno.ENOSPC: "free some space or name another disk",
    errno.EDQUOT: "free some space or name another disk",
    errno.EACCES: "name a place that you may use",
    errno.EPERM: "name a place that you may use",
    errno.EROFS: "name a place that can be written to",
    errno.ENOTDIR: "name a folder",
    errno.EISDIR: "name a file",
    errno.ENOENT: "name one that exists",
}


class UserError(Exception):
    """A mistake that the user can mend. The message is one clear sentence that says what to do."""


class ImageError(Exception):
    """One picture cannot be used. `code` is short snake_case, `str()` one sentence without paths."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, so that the error survives a process pool
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


def system_error(error: BaseException) -> str | None:
    """What the disk or the system refused, as one sentence; None for what is no such thing.

    Lance gives errors of the disk as text, which is recognised by its number.
    """
    number, place = getattr(error, "errno", None), getattr(error, "filename", None)
    if isinstance(error, RuntimeError | ValueError):
        found = re.search(r"(?P<place>/[^\s:,]+)?[^/]*\(os error (?P<number>\d+)\)", str(error))
        number, place = (int(found["number"]), found["place"]) if found else (None, None)
    elif not isinstance(error, OSError) or isinstance(error, ConnectionError):
        return None
    if number is None or number == errno.EPIPE:
        return None
    reason = os.strerror(number)
    advice = f": {_ADVICE[number]}" if number in _ADVICE else ""
    return f"{f'{os.fsdecode(place)}: ' if place else ''}{reason[0].lower()}{reason[1:]}{advice}."


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one row: `fatal` means that the row was rejected, else it went on."""

    row: int | str  # number of the row in the feed (1 is the first record), or a file's name
    field: str
    reason: str
    id: str | None = None
    fatal: bool = True

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
