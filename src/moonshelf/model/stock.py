"""Stock checkpoints of transformers, loaded as data: no pickle, no remote code, no network.

Weights come as safetensors from a folder; a configuration with a key that could choose code is refused, and
so are weights that are not whole, which would be random ones. On a GPU a model runs in the precision of its
files, on a CPU in float32. Our own models have stricter rules, see `files`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moonshelf.errors import UserError
from moonshelf.model.files import items_of, read_json

if TYPE_CHECKING:
    import torch

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# A configuration with one of these chooses kernels, quantisers or pipelines: code. `auto_map` is harmless,
# because nothing is loaded with remote code allowed.
_CODE_KEYS = {"custom_pipelines", "quantization_config", "experts_implementation"}


def check_folder(folder: Path, config: str = "config.json") -> None:
    """Raise `UserError` unless the folder has `config`, safetensors, and no key that chooses code."""
    if not (folder / config).is_file():
        raise UserError(f"{folder.name!r} has no {config}: it is not the folder of such a model")
    parts = [folder]
    if (folder / "modules.json").is_file():
        modules = read_json(folder / "modules.json")
        for m in modules if isinstance(modules, list) else []:
            path = m.get("path") if isinstance(m, dict) else None
            if path and not (isinstance(path, str) and path == Path(path).name != ".."):
                raise UserError(
                    f"modules.json in {folder.name!r} names {path!r}, which is none of its folders"
                )
            parts += [folder / path] if path else []
    if not any(any(part.glob("*.safetensors")) for part in parts):
        raise UserError(f"{folder.name!r} has no weights as safetensors, and no other kind is read")
    for part in parts:
        pickles = [p.name for p in part.glob("*") if p.suffix in _PICKLES and p.name != "training_args.bin"]
        if pickles and not any(part.glob("*.safetensors")):
            raise UserError(
                f"{folder.name!r} keeps {pickles[0]} as a pickle, which can run code: make safetensors of it"
            )
        if (part / "config.json").is_file():
            for key, _ in items_of(read_json(part / "config.json")):
                if key in _CODE_KEYS or key.lstrip("_").startswith("attn_implementation"):
                    raise UserError(
                        f"config.json in {folder.name!r} has the key {key!r}, which can choose code"
                    )


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Quiet, and a `UserError` that names `what` where something of a folder cannot be loaded."""
    from safetensors import SafetensorError

    try:
        with quiet():
            yield
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{what} cannot be loaded: {reason}") from error


def load_model(auto: Any, folder: Path, **options: Any) -> tuple[Any, str, set[str]]:
    """A transformers model in evaluation mode, its precision for the fingerprint, and missing weights."""
    import torch

    device = pick_device()
    with loading(f"the model in {folder.name!r}"):
        model, info = auto.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="auto" if device.type == "cuda" else torch.float32,
            output_loading_info=True,
            **options,
        )
    return model.to(device).eval(), str(model.dtype), set(info["missing_keys"])


def whole(folder: Path, missing: set[str]) -> None:
    """Raise `UserError` where weights are missing, which would be random ones."""
    if missing:
        raise UserError(
            f"the weights in {folder.name!r} are not whole: {len(missing)} are missing, such as "
            f"{sorted(missing)[0]}; fetch the model again, or name another kind of peer for it"
        )


def pick_device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def unit(vectors: Any) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays one, and what is not finite stays so for the gate."""
    vectors = np.asarray(vectors, np.float32)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norm > 0, norm, 1.0)).astype(np.float32)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and loading reports of transformers."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
