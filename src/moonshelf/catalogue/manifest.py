"""What a catalogue folder says about itself, and one writer at a time.

A folder holds `manifest.json` (which model, preprocessing and mode its vectors come from),
`products.lance` (the rows, unless `place` names another place for them), `index/` (a cache), `run.json` and
`rejects.jsonl` (the last run).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from moonshelf.errors import UserError
from moonshelf.files import MAX_JSON, read_json, read_regular, read_settings, write_atomic, write_json
from moonshelf.model.encoders import exported, stock
from moonshelf.model.encoders.base import Encoder
from moonshelf.prompts import PromptSpec

FORMAT = 1
_FIRST = (  # fields of PromptSpec when catalogues were first written
    "instruction", "text_fields", "lower", "max_text_chars", "max_images", "min_pixels", "max_pixels",
    "max_rationale_tokens",
)  # fmt: skip
NAME = "manifest.json"
WRITING = "writing.json"  # the prompt, its version and the model by which rationales were asked for
_PROBE = 64 * 1024  # bytes that a place must take before anything is computed
PLACES = "MOONSHELF_PLACES"  # environment variable
_POLL_SECONDS = 0.02  # between two looks at a lock that another holds


class Manifest(BaseModel, frozen=True):
    """Which vectors a folder holds. `model` is what `from_pretrained` was given, `preprocessing` a hash.

    `place` is where LanceDB keeps the rows if not in the folder, such as s3://bucket/shelf; `keep_days` is
    how long versions of the rows outlive compaction, None where nobody has said (see `Store.compact`).
    """

    model: Annotated[str, Field(max_length=1_000)]
    fingerprint: Annotated[str, Field(max_length=100)]
    dim: Annotated[int, Field(gt=0, le=65_536)]
    preprocessing: Annotated[str, Field(max_length=100)]
    reason: Annotated[str, Field(pattern="^(off|on|auto)$")] = "off"
    format: int = FORMAT
    place: Annotated[str, Field(max_length=500)] = ""
    keep_days: Annotated[float, Field(ge=0, le=36_500)] | None = None
    versions: dict[str, str] = {}

    @classmethod
    def of(cls, model: Encoder, name: str, reason: str) -> Manifest:
        return cls(
            model=name, fingerprint=model.fingerprint, dim=model.dim, reason=reason, versions=versions(),
            preprocessing=preprocessing(model.prompt),
        )  # fmt: skip

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises UserError if the folder is no catalogue, or one of another format."""
        path = folder / NAME
        if folder.is_file():
            raise UserError(f"{folder} is a file: name the folder that `moonshelf embed` made.")
        if not path.exists():
            raise UserError(
                f"{folder} is not a catalogue (it has no {NAME}): make one with "
                f"`moonshelf embed FEED -o {folder}`."
            )
        try:
            manifest = read_settings(cls, path)  # what a later version adds is no concern of this one
        except UserError as error:
            why = str(error).rstrip(".")
            raise UserError(
                f"{path} is damaged ({why}): take it from a copy, or embed the feed into an empty folder."
            ) from None
        if manifest.format != FORMAT:
            raise UserError(
                f"{folder} was written in format {manifest.format}, this version reads {FORMAT}: "
                "embed the feed again into an empty folder."
            )
        return manifest

    def check_allowed(self, folder: Path) -> None:
        """Refuse a place of the rows that nobody on this machine has named: a manifest is a file that anybody
        may have written, and must not make us read other folders or dial out."""
        if self.place and self.place not in allowed_places():
            raise UserError(
                f"{folder} keeps its products at {self.place}, outside of its folder: if that is yours, "
                f"allow it with the environment variable {PLACES}={self.place} (spaces part several)."
            )

    def write(self, folder: Path, **changes: Any) -> Manifest:
        """Write it with `changes` to its fields; returns what was written."""
        changed = self.model_copy(update=changes)
        write_json(folder / NAME, changed.model_dump())
        return changed

    def check(self, model: Encoder, name: str, folder: Path) -> None:
        """Refuse a model whose vectors would not be comparable with those stored."""
        if model.fingerprint != self.fingerprint:
            what = f"model {self.model} ({self.fingerprint[:12]}), not {name} ({model.fingerprint[:12]})"
        elif model.dim != self.dim:
            what = f"{self.dim} dimensions, not {model.dim}"
        elif preprocessing(model.prompt) != self.preprocessing:
            what = "other preprocessing (prompt, text fields or pixel budget) than this model now has"
        else:
            return
        raise UserError(
            f"{folder} was embedded with {what}: pass the model it was made with (--model), "
            "or embed the feed again into an empty folder."
        )


def allowed_places() -> set[str]:
    """Places of rows that this user moved a catalogue to, or that the environment names."""
    found = os.environ.get(PLACES, "").split()
    with suppress(OSError, ValueError, RuntimeError):
        found += read_regular(_places_file(), MAX_JSON).decode().splitlines()
    return set(found)


def remember_place(place: str) -> None:
    """Allow a place from now on, for whoever asked for it by `moonshelf store move`."""
    if place not in (known := allowed_places()):
        try:
            _places_file().parent.mkdir(parents=True, exist_ok=True)
            write_atomic(_places_file(), "".join(f"{one}\n" for one in sorted({*known, place})).encode())
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"that {place} is allowed cannot be noted ({error}): set the environment variable "
                f"{PLACES}={place} instead."
            ) from None


def _places_file() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "moonshelf" / "places"


def preprocessing(prompt: PromptSpec) -> str:
    """Hash (16 hex digits) of everything that turns a product into the model's input.

    A field that `PromptSpec` was given later counts where it is set, so that older folders still fit.
    """
    fields = PromptSpec.model_fields
    unset = {name for name in fields if name not in _FIRST and getattr(prompt, name) == fields[name].default}
    return hashlib.sha256(prompt.model_dump_json(exclude=unset).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Installed versions of what the vectors and the files depend on."""
    found = {}
    for package in ("moonshelf", "torch", "transformers", "lancedb", "faiss-cpu", "pyarrow", "pillow"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a source tree that was not installed
            continue
    return found


# ---- the model of a folder -------------------------------------------------------------------------


def saved_model(folder: str | Path) -> str | None:
    """What `from_pretrained` was given for the vectors of a folder, or None if it is no catalogue yet."""
    folder = Path(folder)
    return Manifest.read(folder).model if (folder / NAME).exists() else None


def settle_writing(folder: Path, model: Any, reason: str) -> None:
    """Keep how an instruct model is asked for a folder's rationales, and refuse another way beside it."""
    path, asked = folder / WRITING, getattr(model, "written_by", None)
    known = read_json(path) if path.is_file() else None
    if reason == "off":
        path.unlink(missing_ok=True)
    elif known is not None and known != asked:
        raise UserError(
            f"{folder} holds rationales that were asked for in another way, see {WRITING} in it: name the "
            "same writer and attributes, or drop them by --reason off first."
        )
    elif asked is not None:
        write_json(path, asked)


def backend_of(name: str) -> tuple[str, str]:
    """What computes a model, "" where the name does not say so, and the name without it."""
    backend, _, rest = name.partition(":")
    return (backend, rest) if backend == "torch" or backend in exported.BACKENDS else ("", name)


def name_of(model: Encoder | str) -> str:
    """The name to be recorded: of a folder its whole path, so that a later search finds it from anywhere."""
    if not isinstance(model, str):
        return "the model passed"
    model = backend_of(model)[1]  # its vectors are the model's
    kind, folder = stock.parts(model)
    return f"{kind}{folder.resolve()}" if folder.is_dir() else model


def load_model(name: str, download: bool = False) -> Encoder:
    """`MoonModel.from_pretrained` for a name or path, `stock.load` for `st:` or `clip:` before one."""
    backend, name = backend_of(name)
    if backend in exported.BACKENDS or (Path(name) / exported.RECORD).is_file():
        from moonshelf.model.encoders.graph import load

        return load(name, backend)
    if stock.parts(name)[0]:
        return stock.load(name, stock.PROMPT, download)
    from moonshelf.model.modeling import MoonModel

    loader: Callable[..., Any] = MoonModel.from_pretrained
    loaded: Encoder = loader(name, download=download)
    return loaded


def placed(model: Any, precision: str | None, device: str | None) -> Encoder:
    """The model, computing in `precision` and on `device`, each as before where None. Raises UserError."""
    from moonshelf.model.precision import PRECISIONS, put_on

    if precision is not None and precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not '{precision}'.")
    if isinstance(model, exported.Exported) and (precision == "bfloat16" or device not in (None, "cpu")):
        raise UserError("exported models compute on the CPU, as they were exported: leave precision, device.")
    if isinstance(model, stock.StockEncoder) and precision == "bfloat16":
        raise UserError(
            f"{model.name} computes in float32 on a CPU, else as its files are: leave --precision."
        )
    if isinstance(model, exported.Exported):
        return model
    if precision is not None:
        model.precision = precision
    if device is not None:
        put_on(model, device)
    encoder: Encoder = model
    return encoder


# ---- one writer at a time --------------------------------------------------------------------------


class Locked(UserError):
    """Somebody else is writing to the folder: the same call may work later."""


class Unwritable(UserError):
    """The folder may be read, but not written to."""


def check_writable(folder: Path) -> None:
    """Raises Unwritable for a folder on a read-only file system, or of somebody else."""
    if not os.access(folder, os.W_OK):
        raise Unwritable(f"{folder} may only be read here: write to it where it is kept.")


def check_place(folder: Path) -> None:
    """Raises UserError where a catalogue could not be written, before anything is computed or made."""
    there = next((place for place in (folder, *folder.absolute().parents) if os.path.lexists(place)), folder)
    if not there.is_dir():
        raise UserError(f"{there} is a file: name a folder for the catalogue.")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"nothing can be written to {there}: {error.strerror}.") from None


@contextmanager
def writing(folder: Path, wait: float = 0.0, name: str = ".lock") -> Iterator[None]:
    """Hold the folder's writer lock (or another one, by its file's `name`), waiting up to `wait` seconds for
    it, else raise `Locked`.

    It excludes the threads of one process too. The kernel frees it when the process dies, however it dies.
    """
    check_writable(folder)
    deadline = time.monotonic() + wait
    with open(folder / name, "a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                left = deadline - time.monotonic()
                if left > 0:
                    time.sleep(min(_POLL_SECONDS, left))
                    continue
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise Locked(f"another process (pid {holder}) is writing to {folder}: wait until it has ended.")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
