"""Stock checkpoints of transformers, CLIP first, loaded as data: no pickle, no remote code, no network.

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
    from PIL import Image

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# A configuration with one of these chooses kernels, quantisers or pipelines: code. `auto_map` is harmless,
# because nothing is loaded with remote code allowed.
_CODE_KEYS = {"custom_pipelines", "quantization_config", "experts_implementation"}


class Clip:
    """CLIP, SigLIP and their kin in transformers: models with text and image features of one size."""

    def __init__(self, folder: Path, name: str) -> None:
        check_folder(folder)
        from transformers import AutoModel, AutoTokenizer

        self.model, self.dtype, missing = load_model(AutoModel, folder)
        if not hasattr(self.model, "get_text_features") or not hasattr(self.model, "get_image_features"):
            raise UserError(
                f"{name} has no text and image features in one space: is it an image: or st: model?"
            )
        whole(folder, missing)
        self.pixels = image_processor(folder)
        self.max_side = pixel_side(self.pixels)
        with quiet():
            self.tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        config = self.model.config
        # SigLIP was trained on lower-case text that is always padded to its full length.
        self.siglip = str(config.model_type).startswith("siglip")
        self.max_length = int(getattr(config.text_config, "max_position_embeddings", 77))

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """(n, dim) features, not normalised."""
        import torch

        inputs = self.tokenizer(
            [text.lower() for text in texts] if self.siglip else texts,
            padding="max_length" if self.siglip else True,
            truncation=True, max_length=self.max_length, return_tensors="pt",
        )  # fmt: skip
        with torch.inference_mode():
            return array(pooled(self.model.get_text_features(**inputs.to(self.model.device))))

    def embed_pictures(self, pictures: list[Image.Image]) -> np.ndarray:
        """(n, dim) features, not normalised."""
        import torch

        inputs = self.pixels(images=pictures, return_tensors="pt").to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            return array(pooled(self.model.get_image_features(**inputs)))


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


def load_model(auto: Any, folder: Path, **options: Any) -> tuple[Any, str, set[str]]:
    """A transformers model in evaluation mode, its precision for the fingerprint, and missing weights."""
    import torch
    from safetensors import SafetensorError

    device = pick_device()
    try:
        with quiet():
            model, info = auto.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype="auto" if device.type == "cuda" else torch.float32,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the model in {folder.name!r} cannot be loaded: {reason}") from error
    return model.to(device).eval(), str(model.dtype), set(info["missing_keys"])


def whole(folder: Path, missing: set[str]) -> None:
    """Raise `UserError` where weights are missing, which would be random ones."""
    if missing:
        raise UserError(
            f"the weights in {folder.name!r} are not whole: {len(missing)} are missing, such as "
            f"{sorted(missing)[0]}; fetch the model again, or name another kind of peer for it"
        )


def image_processor(folder: Path) -> Any:
    """The folder's own image processor; `UserError` if it has none that can be built here."""
    from transformers import AutoImageProcessor

    try:
        with quiet():
            return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the pixels of {folder.name!r} cannot be prepared: {reason}") from error


def pixel_side(processor: Any) -> int | None:
    """Four times the side that a processor makes, so that its own resizing still has pixels to spare."""
    sizes = [getattr(processor, name, None) or {} for name in ("size", "crop_size")]
    sides = [side for size in sizes for side in dict(size).values() if isinstance(side, int) and side < 4096]
    return 4 * max(sides) if sides else None


def pooled(output: Any, own: bool = True) -> Any:
    """(n, dim) of a model's output: the pooled one, else the mean of the last states."""
    if not hasattr(output, "last_hidden_state"):
        return output
    if own and getattr(output, "pooler_output", None) is not None:
        return output.pooler_output.flatten(1)
    states = output.last_hidden_state
    return states.mean(dim=(2, 3)) if states.dim() == 4 else states.mean(dim=1)


def pick_device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


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
