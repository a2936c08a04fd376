"""Where a published data set lies on this machine, and how it gets there: by hand, or with `--download`.

Nothing is fetched unless asked for. A data set called NAME lies in `DATA/NAME`, file for file as on the hub,
so that `hf download OWNER/NAME --repo-type dataset --local-dir DATA/NAME` puts it there. What was once
fetched is used again without the network; a fetch that was broken off is gone on with, under another name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from moonshelf.errors import UserError
from moonshelf.model.files import fetch

SAFE_FILES = ("*.parquet", "*.json", "*.jsonl", "*.tsv", "*.csv", "*.txt", "*.md", "*.jpg", "*.jpeg", "*.png")


def locate(name: str, data: Path | None, address: str, how: str, *, download: bool = False) -> Path:
    """The folder `DATA/NAME`.

    `address` is a data set of the hub, `how` says what to do where there is none. Raises UserError, with what
    to do, if it is not there and may not or cannot be fetched.
    """
    if data is None:
        raise UserError(
            f"the data set {name} is read from the folder {name} of your data: name it with --data"
        )
    folder = data / name
    if _holds_files(folder):
        return folder
    if not address:
        raise UserError(f"there is no {name} in the data folder {data.name}: {how}")
    if not download:
        raise UserError(
            f"there is no {name} in the data folder {data.name}: allow it to be fetched with --download, "
            f"or fetch it yourself with `{_command(address, folder)}`"
        )
    _fetch_data(address, folder)
    return folder


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def _command(address: str, folder: Path) -> str:
    repo, _, revision = address.partition("@")
    pinned = f" --revision {revision}" if revision else ""
    return f"hf download {repo} --repo-type dataset{pinned} --local-dir {folder}"


def _fetch_data(address: str, folder: Path) -> None:
    repo, _, revision = address.partition("@")
    part = folder.with_name(folder.name + ".part")  # so that half a data set never passes for a whole one
    patterns = [*SAFE_FILES, *(f"**/{pattern}" for pattern in SAFE_FILES)]
    hint = ": check the connection and your right to read it, or run "
    hint += f"`{_command(address, folder)}` where that works"
    fetch(repo, patterns, hint, repo_type="dataset", revision=revision or None, local_dir=part)
    if not _holds_files(part):
        raise UserError(f"{repo} holds none of the files that are read here ({', '.join(SAFE_FILES[:6])})")
    if folder.is_dir():
        folder.rmdir()  # it was empty
    part.rename(folder)


def pick(file: str, there: Sequence[str], names: Collection[str]) -> str:
    """The first of `names` that is a column of a file. Raises UserError if there is none."""
    for name in names:
        if name in there:
            return name
    shown = ", ".join(there[:12]) + (", …" if len(there) > 12 else "")
    raise UserError(
        f"{file} has no column {' or '.join(names)} (it has {shown}): this is not the layout that is read"
    )


def first_columns(path: Path) -> list[str]:
    """Names of the columns of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        raise UserError(f"{path.name} is not a readable Parquet file") from None
