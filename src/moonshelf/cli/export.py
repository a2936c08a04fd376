"""A model as another engine takes it: the backbone alone, in the plain layout of transformers.

vLLM reads every safetensors file of a folder and knows the backbone's weights only, so the head cannot lie
among them. What is written has adapters merged in, our chat template, and the processor files that a stock
checkpoint has; it writes rationales and no vectors. The vector is pooled by the model's own folder, from the
token ids that were written: `moonshelf embed … --writer URL`.

The name under which the folder is to be served holds the model's fingerprint. So a client finds the weights
that it pools with, or an error.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from moonshelf.errors import UserError
from moonshelf.model import files
from moonshelf.model.modeling import MoonModel
from moonshelf.model.stock import quiet
from moonshelf.model.writers import RECORD, served_name
from moonshelf.training.adapters import merged_state
from moonshelf.training.starter import CHAT_TEMPLATE

_PROCESSORS = {  # stock names, by which AutoProcessor finds its classes
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
}


def load(name: str) -> MoonModel:
    """A model by name or folder; of a selector of creatives the model with its adapter merged in."""
    if name != "starter" and (Path(name) / "creative.json").is_file():
        from moonshelf.creatives.backends.model import CreativeModel

        return CreativeModel.from_pretrained(name).moon
    return MoonModel.from_pretrained(name)


def export_vllm(model: MoonModel, out: str | Path, name: str = "") -> str:
    """Write the folder; the command that serves it. Raises UserError if `out` holds something else."""
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file()):
        raise UserError(f"{out} holds something else: name a new or empty folder, or an earlier export.")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.safetensors*"):
        old.unlink()
    with quiet():
        model.backbone.save_pretrained(out, state_dict=merged_state(model))
    _write_processor(model, out)
    served = served_name(model)
    limit = model.prompt.max_images
    command = shlex.join(
        [
            "vllm", "serve", str(out), "--served-model-name", served, "--host", "127.0.0.1",
            "--generation-config", "vllm", "--limit-mm-per-prompt", json.dumps({"image": limit, "video": 0}),
        ]
    )  # fmt: skip
    record = {
        "model": name,
        "fingerprint": model.fingerprint,
        "served_name": served,
        "prompt": model.prompt.model_dump(),
        "serve": command,
    }
    (out / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return command


def _write_processor(model: MoonModel, out: Path) -> None:
    """Tokenizer, template and image processor under the names that stock checkpoints give them."""
    processor, video = _PROCESSORS[model.backbone.config.model_type]
    tokenizer = model.processor.tokenizer
    before, tokenizer.chat_template = tokenizer.chat_template, CHAT_TEMPLATE
    try:
        tokenizer.save_pretrained(out)
    finally:
        tokenizer.chat_template = before
    model.processor.image_processor.save_pretrained(out)
    shared = {"processor_class": processor}
    _update(out / "tokenizer_config.json", shared, drop=("is_local", "local_files_only"))
    images = _update(out / "preprocessor_config.json", shared)
    kept = ("size", "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
    settings = {key: images[key] for key in kept if key in images}
    text = json.dumps({**settings, **shared, "video_processor_type": video}, indent=1)
    (out / "video_preprocessor_config.json").write_text(text + "\n", encoding="utf-8")
    # A key of the newest transformers that older ones refuse; it says what they do anyway.
    config = files.read_json(out / "config.json")
    rope = config["vision_config"].get("rope_parameters")
    if rope and rope.get("rope_theta") == 10_000.0:
        del config["vision_config"]["rope_parameters"]
        (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _update(path: Path, values: dict[str, Any], drop: tuple[str, ...] = ()) -> dict[str, Any]:
    record = {key: value for key, value in files.read_json(path).items() if key not in drop} | values
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return record
