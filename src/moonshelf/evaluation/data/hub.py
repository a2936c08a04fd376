"""Where a published data set lies on this machine, and how it gets there: by hand, or with `--download`.

Nothing is fetched unless asked for. A data set called NAME lies in `DATA/NAME`, file for file as on the hub,
so that `hf download OWNER/NAME --repo-type dataset --local-dir DATA/NAME` puts it there. What was once
fetched is used again without the network; a fetch that was broken off is gone on with, under another name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moonshelf.errors import UserError

SAFE_FILES = ("*.parquet", "*.json", "*.jsonl", "*.tsv", "*.csv", "*.txt", "*.md", "*.jpg", "*.jpeg", "*.png")


def locate(
    name: str, data: Path | None, addresses: Mapping[str, str], how: str, *, download: bool = False
) -> Path:
    """The folder `DATA/NAME`, complete or as it was found.

    `addresses` maps folders below it ("" for itself) to data sets of the hub; `how` says what to do where
    there are none. Raises UserError, with what to do, if it is not there and may not or cannot be fetched.
    """
    if data is None:
        raise UserError(
            f"the data set {name} is read from the folder {name} of your data: name it with --data"
        )
    folder = data / name
    missing = [part for part in addresses or ("",) if not _holds_files(folder / part)]
    if not missing or _holds_files(folder, besides=addresses):  # then in another layout: its reader knows
        return folder
    if not addresses:
        raise UserError(f"there is no {name} in the data folder {data.name}: {how}")
    if not download:
        calls = [f"`{_command(addresses[part], folder / part)}`" for part in missing]
        raise UserError(
            f"there is no {name} in the data folder {data.name}: allow it to be fetched with --download, "
            f"or fetch it yourself with {' and '.join(calls)}"
        )
    for part in missing:
        _fetch(addresses[part], folder / part)
    return folder


def _holds_files(folder: Path, besides: Collection[str] = ()) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name.removesuffix(".part") for path in folder.iterdir() if not path.name.startswith(".")}
    return bool(names - set(besides))


def _command(address: str, folder: Path) -> str:
    repo, _, revision = address.partition("@")
    pinned = f" --revision {revision}" if revision else ""
    return f"hf download {repo} --repo-type dataset{pinned} --local-dir {folder}"


def _fetch(address: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    repo, _, revision = address.partition("@")
    part = folder.with_name(folder.name + ".part")  # so that half a data set never passes for a whole one
    try:
        snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision or None,
            local_dir=part,
            allow_patterns=[*SAFE_FILES, *(f"**/{pattern}" for pattern in SAFE_FILES)],
        )
    except HFValidationError as error:
        raise UserError(f"{repo} is no address of a data set on the hub: {error}") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"{repo} could not be fetched ({type(error).__name__}: {first[:200]}): check the connection and "
            f"your right to read it, or run `{_command(address, folder)}` where that works"
        ) from None
    if not _holds_files(part):
        raise UserError(f"{repo} holds none of the files that are read here ({', '.join(SAFE_FILES[:6])})")
    if folder.is_dir():
        folder.rmdir()  # it was empty
    part.rename(folder)


def table(
    path: Path, columns: Mapping[str, Collection[str]], *, where: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file with only some columns, streamed.

    `columns` maps our name to the names that a column may have, the first that is there is taken; `where`
    keeps rows of equal values. Raises UserError if a column is missing or the file is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, memory_map=False)
    except (pa.ArrowException, OSError, ValueError):
        raise UserError(f"{path.name} is not a readable Parquet file") from None
    with file:
        there = file.schema_arrow.names
        chosen = {ours: pick(path.name, there, names) for ours, names in columns.items()}
        for batch in file.iter_batches(batch_size=8192, columns=list(chosen.values())):
            for row in batch.to_pylist():
                record = {ours: row[name] for ours, name in chosen.items()}
                if all(record[name] == value for name, value in (where or {}).items()):
                    yield record


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
    """Names of the columns of a Parquet file, or of the first object of JSON lines or of a JSON array."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except (pa.ArrowException, OSError, ValueError):
            raise UserError(f"{path.name} is not a readable Parquet file") from None
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(1 << 20).lstrip("\ufeff [\r\n\t")
    try:
        first, _ = json.JSONDecoder().raw_decode(head)
    except (ValueError, RecursionError):
        first = None
    if not isinstance(first, dict):
        raise UserError(f"{path.name} does not begin with a JSON object: it is not the layout that is read")
    return list(first)
