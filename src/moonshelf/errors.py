"""What goes wrong because of the input, said in one sentence.

`UserError` is the only exception that the command line turns into a message without a traceback;
anything else is a defect of ours and keeps its traceback. `Problem` is the record of one row, file or
field that was set aside while the rest went on. Exit codes: 0 done, 1 a defect of ours, 2 a mistake in
the call or an unusable input, 3 done but some rows were set aside, 4 done without a verdict: a selector of
creatives abstained.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

EXIT_OK, EXIT_DEFECT, EXIT_USAGE, EXIT_PARTIAL, EXIT_ABSTAINED = 0, 1, 2, 3, 4


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


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one row: `fatal` means that the row was set aside, else it went on."""

    row: int | str  # number of the row in the feed (1 is the first record), or a file's name
    field: str
    reason: str
    id: str | None = None
    fatal: bool = True

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
