"""What a saved model folder must look like, checked before anything in it is used.

A model is data that strangers hand around, so a folder is taken only if every file is of a kind that we
write (safetensors, JSON, text), matches the SHA-256 in `manifest.json`, and if its configuration holds no
key that could name code: an allow-list taken from the configuration class, because remote code has run
through `config.json` before, even where remote code was switched off. Files that a file of the folder names
lie in the folder itself, where the manifest covers them, and numbers are what a model can have: sizes decide
what is allocated before any weight is read. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moonshelf.errors import UserError
from moonshelf.files import read_json, write_json

STARTER = Path(__file__).parents[1] / "starter"
STARTER_1 = STARTER.with_name("starter_1")  # of the release before: the packaged selector is an adapter on it
MANIFEST = "manifest.json"
MODEL_TYPES = ("qwen3_vl", "qwen2_5_vl")
ST_CONFIG = "config_sentence_transformers.json"
MODULE = "moonshelf.model.sentence_transformer.MoonModule"

# Rewritten by tools that save a card or a SentenceTransformer: checked by what they say, not by hash.
UNHASHED = {MANIFEST, "README.md", "modules.json", ST_CONFIG}
# Files that do not change a vector stay out of the fingerprint.
COSMETIC = {*UNHASHED, "golden.json", "creative.json"}
SUFFIXES = {".safetensors", ".json", ".txt", ".md", ".jinja"}

# Keys of stock checkpoints of all ages that today's configuration classes no longer list.
_LEGACY_KEYS = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "in_channels", "in_chans",
    "max_window_layers", "model_type", "pad_token_id", "rope_scaling", "rope_theta", "sliding_window",
    "spatial_patch_size", "tie_word_embeddings", "tokens_per_second", "torch_dtype", "transformers_version",
    "use_cache", "use_sliding_window", "vision_token_id",
}  # fmt: skip
# Read by others than us, or by pydantic: not searched for keys.
_DATA = ("golden.json", "vocab.json", "tokenizer.json", "labels.json")
# Known to the classes, but they choose code (kernels, quantisers), which is not for a file to do.
_CODE_KEYS = {
    "auto_map", "custom_pipelines", "quantization_config", "attn_implementation", "experts_implementation",
}  # fmt: skip
# Least and greatest of the numbers of `config.json` and `preprocessor_config.json`, those that cost memory or
# make numbers that are none. Every other one lies between -1 and a billion.
_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("hidden_size", "out_hidden_size", "head_dim", "window_size"), (1, 65_536)),
    **dict.fromkeys(("num_hidden_layers", "depth"), (1, 512)),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads"), (1, 1_024)),
    **dict.fromkeys(("patch_size", "temporal_patch_size", "spatial_merge_size", "merge_size"), (1, 128)),
    **dict.fromkeys(("in_channels", "in_chans"), (1, 16)),
    **dict.fromkeys(("attention_dropout", "initializer_range"), (0, 1)),
    "intermediate_size": (1, 1_000_000), "vocab_size": (1, 4_000_000),
    "num_position_embeddings": (1, 1_000_000), "rms_norm_eps": (1e-12, 0.1), "rope_theta": (1, 1e12),
    "rescale_factor": (1e-6, 1), "image_std": (1e-3, 10), "image_mean": (-10, 10),
}  # fmt: skip


def find(name: str, download: bool) -> Path:
    """The folder of a packaged model, a path, or (with `download`) a hub id; `UserError` if there is none."""
    folder = {"starter": STARTER, "starter-1": STARTER_1}.get(name) or Path(name)
    if is_folder(folder):
        return folder
    if not download:
        raise UserError(
            f"no model folder at {name[:200]!r}: give a folder or 'starter'; a hub id is only fetched with "
            "--download, or with `download: true` in a recipe."
        )
    return Path(fetch(name, [f"*{suffix}" for suffix in sorted(SUFFIXES)]))


def fetch(repo: str, patterns: Sequence[str], hint: str = "", **options: Any) -> str:
    """Some files of a repository of the hub. Raises UserError where it cannot be had; `hint` is added."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return snapshot_download(repo, allow_patterns=list(patterns), **options)
    except HFValidationError:
        raise UserError(f"{repo!r} is neither a folder here nor a name on the hub") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"{repo} could not be fetched ({type(error).__name__}: {first[:200]}){hint}"
        ) from None


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a name that no file system takes is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


# ---- manifest --------------------------------------------------------------------------------------


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the unhashed ones, by name relative to the folder."""
    found = {}
    for path in _files(folder):
        if path.name not in UNHASHED:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def digest(folder: Path) -> Any:
    """SHA-256 over every file of a model that can change a vector."""
    found = hashlib.sha256()
    for name, value in sorted(hashes(folder).items()):
        if name not in COSMETIC:
            found.update(f"{name} {value}\n".encode())
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Files of the folder; hidden ones (.git, .cache of a download) are nobody's and never read.

    Raises `UserError` for what is neither a file nor a folder: a pipe would be waited for without end."""
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.is_file():
            yield path
        elif not path.is_dir() or path.is_symlink():
            raise UserError(f"{path.name} in {folder.name!r} is neither a file nor a folder: remove it.")


def write_manifest(folder: Path) -> None:
    write_json(folder / MANIFEST, {"sha256": hashes(folder)})


def verify_manifest(folder: Path) -> None:
    """Raise `UserError` if a file of a saved model is missing, changed or unlisted."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder.name!r} has no {MANIFEST}: it was not saved by Moonshelf, or only in part.")
    manifest = read_json(folder / MANIFEST)
    listed = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(listed, dict):
        raise UserError(f"{MANIFEST} in {folder.name!r} lists no hashes: fetch the model again.")
    found = hashes(folder)
    wrong = sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
    if wrong:
        named = ", ".join(name[:80] for name in wrong[:3])
        raise UserError(
            f"the model in {folder.name!r} does not match its {MANIFEST}: {named} missing, "
            "changed or unlisted; fetch the model again, or save it anew if you changed it yourself."
        )


def write_sentence_transformer(folder: Path) -> None:
    """The two files by which `SentenceTransformer(folder, trust_remote_code=True)` finds our module."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": MODULE}]
    config = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    (folder / "modules.json").write_text(json.dumps(modules, indent=1) + "\n")
    (folder / ST_CONFIG).write_text(json.dumps(config, indent=1) + "\n")


# ---- what may be in it -----------------------------------------------------------------------------


def check_safety(folder: Path) -> None:
    """Raise `UserError` for a file of another kind, or a configuration that names code.

    For saved models and for stock checkpoints; a stock one may hold pictures and licences beside the
    weights, so only kinds that can carry code or pickled objects are refused there.
    """
    saved = any((folder / name).is_file() for name in ("moon.json", "creative.json"))
    unsafe = {
        ".bin",
        ".pt",
        ".pth",
        ".pkl",
        ".pickle",
        ".ckpt",
        ".npy",
        ".npz",
        ".h5",
        ".msgpack",
        ".py",
        ".so",
    }
    for path in _files(folder):
        suffix = path.suffix.lower()
        if not saved and suffix == ".py" and path.parent != folder:
            continue  # examples beside a stock checkpoint; nothing of ours or theirs looks for code there
        if suffix in unsafe or (saved and suffix not in SUFFIXES):
            raise UserError(
                f"the model in {folder.name!r} holds {path.name!r}: only {', '.join(sorted(SUFFIXES))} files "
                "are taken, because other kinds can run code when they are loaded; delete it."
            )
        if suffix == ".json" and path.name not in _DATA:
            content = read_json(path)
            if path.name.endswith(".index.json"):
                _check_index(folder, path, content)
            for key, value in items_of(content):
                if key in _CODE_KEYS or key.startswith("_attn"):
                    raise UserError(
                        f"{path.name} in {folder.name!r} has the key {key[:80]!r}, which can name code: "
                        "remove it."
                    )
                if key.endswith(("_file", "_files")):
                    _check_name(folder, path, value)
    if (folder / "modules.json").is_file():
        modules = read_json(folder / "modules.json")
        listed = modules if isinstance(modules, list) else []
        types = [str(m.get("type")) if isinstance(m, dict) else "" for m in listed]
        stock = not saved and all(kind.startswith("sentence_transformers.") for kind in types)
        if not (types == [MODULE] or (types and stock)):
            raise UserError(
                f"modules.json in {folder.name!r} names another module than {MODULE}: save it anew."
            )
        for part in (str(m.get("path") or "") for m in listed):
            if part and part != Path(part).name:
                raise UserError(f"modules.json in {folder.name!r} names {part[:80]!r}, none of its folders.")


def items_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of parsed JSON with its value, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from items_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from items_of(inner)


def _check_index(folder: Path, path: Path, index: Any) -> None:
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names:
        raise UserError(f"{path.name} in {folder.name!r} lists no weights: fetch the model again.")
    for name in {str(value) for value in names.values()}:
        _check_name(folder, path, name, ".safetensors")


def _check_name(folder: Path, path: Path, name: Any, suffix: str = "") -> None:
    """A file that another one names is one of the folder's own, by its plain name."""
    own = {inside.name for inside in folder.iterdir() if inside.is_file()}
    for one in name if isinstance(name, list) else [name]:
        if one is not None and not (isinstance(one, str) and one in own and one.endswith(suffix)):
            raise UserError(
                f"{path.name} in {folder.name!r} names the file {str(one)[:80]!r}, which is none of this "
                f"folder's {suffix or 'own'} files: fetch the model again."
            )


def check_config(folder: Path) -> None:
    """Raise `UserError` if `config.json` is of another type or has a key that its class does not know."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in MODEL_TYPES:
        raise UserError(
            f"backbone type {str(kind)[:80]!r} is not supported: use one of {', '.join(MODEL_TYPES)}."
        )
    from transformers import AutoConfig

    known = AutoConfig.for_model(kind).to_dict()
    common = _LEGACY_KEYS | known["text_config"].keys()  # older checkpoints keep the text's keys at the top
    for name in ("text_config", "vision_config"):
        if not isinstance(config.get(name, {}), dict):
            raise UserError(f"config.json in {folder.name!r} has no usable {name}: fetch the model again.")
    parts = {
        "": (config, common | known.keys()),
        "text_config": (config.get("text_config", {}), common),
        "vision_config": (config.get("vision_config", {}), _LEGACY_KEYS | known["vision_config"].keys()),
    }
    for name, (part, allowed) in parts.items():
        unknown = sorted(set(part) - allowed)
        if unknown:
            where = f" ({name})" if name else ""
            raise UserError(
                f"config.json{where} in {folder.name!r} has the unknown key {unknown[0][:80]!r}: remove it "
                "if the model does not need it, or update Moonshelf."
            )
    for file in ("config.json", "preprocessor_config.json"):
        if (folder / file).is_file():
            for key, value in items_of(read_json(folder / file)):
                _check_numbers(folder, file, key, value)


def _check_numbers(folder: Path, file: str, key: str, value: Any) -> None:
    low, high = _BOUNDS.get(key, (-1, 1e9))
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bool) or not isinstance(one, int | float):
            continue
        if not low <= one <= high:
            raise UserError(
                f"{file} in {folder.name!r} has {key[:80]}: {str(one)[:40]}, which lies outside of "
                f"{low:,} to {high:,}: fetch the model again."
            )
