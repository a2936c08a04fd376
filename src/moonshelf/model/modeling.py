"""`MoonModel`: a stock vision-language backbone with the fusion and FIRE head on top.

The backbone keeps its class, its files and its weights' names, so transformers, PEFT and vLLM know it; the
head is a second safetensors file beside it. Nothing here copies modelling code: visual features, positions
and the cache are the backbone's own.

A saved model is a folder: the backbone as `transformers` saves it, `head.safetensors`, `moon.json` (head),
`prompt.json` (what is read and written), the processor, `golden.json` (inputs and the vectors that they
must give), `modules.json` (the folder loads as a SentenceTransformer) and `manifest.json` (SHA-256 of every
file, checked on loading; see `files`). Only safetensors are read; remote code is never run; nothing is
downloaded unless asked.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from moonshelf.errors import UserError
from moonshelf.files import read_settings
from moonshelf.model import files
from moonshelf.model.configuration import MoonConfig, default_taps
from moonshelf.model.encoders.base import BOTH
from moonshelf.model.encoders.stream import Streamed
from moonshelf.model.head import MoonHead, summaries
from moonshelf.model.lookup import Lookup
from moonshelf.model.precision import Precision, computing_in, resolve, without_gradients
from moonshelf.model.processing import ADDED_TOKENS, Batch, MoonProcessor, Preprocessor, register
from moonshelf.model.stock import quiet
from moonshelf.model.stock_embedding import UNTRAINED, embedding_prompt, is_embedding
from moonshelf.prompts import PromptSpec

if TYPE_CHECKING:
    from moonshelf.errors import Problem
    from moonshelf.model.encoders.base import Numbered, Reason, Run
    from moonshelf.model.engine import Row
    from moonshelf.product import Product

BACKBONES: dict[str, type[PreTrainedModel]] = {
    "qwen3_vl": Qwen3VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
}


@dataclass
class Reading:
    """What one pass over a batch leaves behind, all (B, L, d) unless said otherwise."""

    states: Tensor  # last layer, after the final norm
    raw: Tensor  # input embeddings, visual tokens as they enter the language model
    taps: list[Tensor]  # outputs of the tapped layers, in the order of the configuration
    deltas: Tensor  # (B, 1) int64: rotary position of a new token minus its place in the row
    cache: Any = None
    seen: Tensor | None = None  # (B, n, d) what the picture path reads; zeros in a row without pictures

    def rows(self, change: Callable[[Tensor], Tensor]) -> Reading:
        """The reading of other rows, each tensor (B, ...) passed through `change`; the cache is shared."""
        seen = None if self.seen is None else change(self.seen)
        states, raw, deltas = change(self.states), change(self.raw), change(self.deltas)
        return Reading(states, raw, [change(tap) for tap in self.taps], deltas, self.cache, seen)


class _PatchProjection(nn.Conv3d):
    """The tower's patch embedding as the matrix product that it is: kernel and stride are one patch.

    The weight keeps its name and shape; a CPU runs this 3.6 times as fast as the convolution.
    """

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


class MoonModel(Streamed, nn.Module):
    """Backbone, head, processor and prompt. `encode` and `reason` are the calls that users need."""

    reads, queries = BOTH, None  # as `encoders.base.Encoder` has them: a query is a product too

    def __init__(
        self,
        backbone: PreTrainedModel,
        processor: MoonProcessor,
        config: MoonConfig,
        prompt: PromptSpec | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.processor, self.config = backbone, processor, config
        self.prompt = prompt or PromptSpec()
        self.prepare = Preprocessor(processor, self.prompt)
        self.head = MoonHead(config)
        patches = backbone.model.visual.patch_embed.proj
        if type(patches) is nn.Conv3d:
            patches.__class__ = _PatchProjection
        self.labels: list[str] = []  # category names of the training data; `reason="auto"` compares with them
        self.source: Path | None = None
        self.precision: Precision = "float32"  # of `encode` and `reason`; see `computing`
        self.lookup = Lookup()  # of what it wrote: guesses that make writing quicker and change nothing

    # ---- forward -------------------------------------------------------------------------------

    @property
    def decoder(self) -> Any:
        """The language model inside the backbone."""
        return self.backbone.model.language_model

    @property
    def writes(self) -> bool:
        """Rationales; a stock embedding model has not learned to, and its prompt leaves no room for them."""
        return self.prompt.max_rationale_tokens > 0

    @property
    def vocabulary(self) -> int:
        """Rows of the token embedding, at least as many as the tokenizer has tokens."""
        return int(self.backbone.config.get_text_config().vocab_size)

    @property
    def device(self) -> torch.device:
        return self.head.project.weight.device

    def computing(self) -> AbstractContextManager[None]:
        """The precision in which the engine computes; weights and vectors are float32 in any case."""
        return computing_in(resolve(self.precision, self.device), self.backbone)

    @contextmanager
    def inferring(self) -> Iterator[None]:
        """`computing`, without gradients; see `precision` for how."""
        with without_gradients(resolve(self.precision, self.device), self.device), self.computing():
            yield

    @property
    def dim(self) -> int:
        return self.config.dim

    @contextmanager
    def _tapped(self) -> Iterator[dict[int, Tensor]]:
        """Collect the outputs of the tapped layers; hooks, because asking for all states keeps all of them.

        Hooks sit on the module, so each takes only what its own thread computes.
        """
        found: dict[int, Tensor] = {}
        owner = threading.get_ident()

        def keep(layer: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                if threading.get_ident() == owner:
                    found[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        taps = self.config.taps if self.config.fire else ()
        handles = [self.decoder.layers[layer].register_forward_hook(keep(layer)) for layer in taps]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def see(self, batch: Batch) -> Any:
        """Visual features of a batch, to be passed to `read` as often as needed; None without pictures."""
        if batch.pixel_values is None or batch.grid is None:
            return None
        return self.look(batch.pixel_values, batch.grid)

    def look(self, patches: Tensor, grid: Tensor) -> Any:
        """What the vision tower gives for n pictures: patches (P, patch) float32, grid (n, 3) int64."""
        return self.backbone.model.get_image_features(patches, grid, return_dict=True)

    def read(self, batch: Batch, visual: Any = None, use_cache: bool = False) -> Reading:
        """One pass of the backbone over a batch; `visual` is what `see` gave, computed here if missing."""
        visual = self.see(batch) if visual is None else visual
        positions, deltas = self.backbone.model.get_rope_index(
            batch.input_ids,
            mm_token_type_ids=batch.image_mask.int(),
            image_grid_thw=batch.grid,
            attention_mask=batch.attention.long(),
        )
        raw = self.backbone.get_input_embeddings()(batch.input_ids)
        seen, features = None, {}
        if self.head.pictures is not None:
            tokens = batch.image_mask.sum(1)
            empty = raw.new_zeros(len(raw), self.config.pictures, self.config.hidden)
            seen = empty if visual is None else summaries(visual, tokens.tolist(), empty)
            if visual is not None and self.head.glance is not None:
                added = self.head.glanced(seen).repeat_interleave(tokens, 0)
                visual = copy.copy(visual)  # without the glance it is read again, by other rows
                visual.pooler_output = [torch.cat(list(visual.pooler_output)) + added]
        if visual is not None:
            features = {"image": visual}
            raw = raw.masked_scatter(batch.image_mask[..., None], torch.cat([*visual.pooler_output]).to(raw))
        with self._tapped() as found:
            output = self.backbone.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention.long(),
                position_ids=positions,
                mm_encoder_outputs=features,
                use_cache=use_cache,
            )
        taps = [found[layer] for layer in self.config.taps] if self.config.fire else []
        cache = output[self.cache_name] if use_cache else None
        return Reading(output.last_hidden_state, raw, taps, deltas, cache, seen)

    @cached_property
    def cache_name(self) -> str:
        """What transformers calls the key-value cache: `cache` from 5.24 on, `past_key_values` before."""
        known = inspect.signature(type(self.backbone.model).forward).parameters
        return "cache" if "cache" in known else "past_key_values"

    def logits(self, states: Tensor) -> Tensor:
        return self.backbone.lm_head(states)

    def forward(self, batch: Batch, visual: Any = None) -> tuple[Tensor, Tensor, Reading]:
        """Vectors (B, dim), not normalised, modality weights (B, 3), and the reading they came from.

        The rationale, where a row has one, is part of the batch: this is the training path. The engine
        decodes it instead and calls the head itself.
        """
        reading = self.read(batch, visual)
        e = reading.states[torch.arange(len(batch.emb), device=batch.emb.device), batch.emb]
        vectors, weights = self.head(
            e, reading, batch, (batch.input_ids, reading.states, batch.rationale_mask)
        )
        return vectors, weights, reading

    # ---- use -----------------------------------------------------------------------------------

    def read_rows(self, numbered: Sequence[Numbered], reason: Reason) -> tuple[list[Row], list[Problem]]:
        from moonshelf.model.engine import read_rows

        return read_rows(self, numbered, reason)

    def runner(self, reason: Reason, batch_tokens: int) -> Run:
        from moonshelf.model.engine import runner

        return runner(self, reason, batch_tokens)

    def budget(self, reason: Reason, tokens: int) -> int:
        from moonshelf.model.engine import best_batch_tokens

        return best_batch_tokens(self, reason, tokens)

    def reason(self, products: Sequence[Product], **options: Any) -> list[str]:
        """The rationale of each product, `<think>…</think>`."""
        return self.encode(products, reason="on", **options).rationales

    # ---- loading and saving --------------------------------------------------------------------

    @classmethod
    def from_backbone(
        cls, path: str, prompt: PromptSpec | None = None, download: bool = False, **head: Any
    ) -> MoonModel:
        """A stock Qwen-VL checkpoint with a new head, whose settings `head` are those of `MoonConfig`.

        An embedding model (`stock_embedding`) keeps its own vector, cut to `dim` numbers: the head starts as
        the identity, and training moves on from there. An instruct model can write rationales at once, but
        its vectors mean nothing before training, of which a warning tells.
        """
        folder = files.find(path, download)
        files.check_safety(folder)
        backbone = _load_backbone(folder)
        processor = MoonProcessor.from_pretrained(str(folder))
        stock = embedding_prompt(folder, path, processor.tokenizer, processor.image_processor, prompt)
        added = [t for t in ADDED_TOKENS if t not in processor.tokenizer.get_vocab()]
        if added:
            processor.tokenizer.add_tokens(added)  # ordinary tokens, see ADDED_TOKENS
            if len(processor.tokenizer) > len(cast(nn.Embedding, backbone.get_input_embeddings()).weight):
                backbone.resize_token_embeddings(len(processor.tokenizer))
        text = backbone.config.text_config
        settings = {"hidden": text.hidden_size, "taps": default_taps(text.num_hidden_layers), **head}
        if stock is None:
            warnings.warn(f"{path}: {UNTRAINED}", stacklevel=2)
            return cls(backbone, processor, MoonConfig(**settings), prompt).eval()
        dim = settings.setdefault("dim", min(256, text.hidden_size))
        if dim > text.hidden_size:
            raise UserError(f"{path} gives vectors of {text.hidden_size} numbers: dim cannot be {dim}.")
        smaller = (size for size in (512, 256, 128, 64) if size < dim)
        settings = {"matryoshka": (dim, *smaller), "norm": False, **settings}
        with torch.random.fork_rng(devices=[]):  # what is behind the zeros is the same at every start
            torch.manual_seed(0)
            model = cls(backbone, processor, MoonConfig(**settings), stock).eval()
        model.head.start_at_state()
        return model

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "starter",
        download: bool = False,
        verify: bool = True,
        precision: Precision = "float32",
    ) -> MoonModel:
        """Load `starter`, a folder written by `save_pretrained`, or (with `download`) a hub id.

        A stock embedding model of the Qwen-VL family is taken as it is: see `from_backbone`.

        `precision` is what is computed in: `auto` takes bfloat16 where the machine has instructions for it,
        which is faster and moves a vector by less than 0.01.

        Raises `UserError` if the folder is missing, has no Moonshelf head, holds a file or a configuration
        that could run code, or (with `verify`) a file that does not match the manifest.
        """
        folder = files.find(str(name), download)
        if not (folder / "moon.json").is_file():
            files.check_safety(folder)
            if not is_embedding(folder, str(name)):
                raise UserError(f"{str(name)!r} has no Moonshelf head (moon.json is missing): {UNTRAINED}.")
            model = cls.from_backbone(str(name), download=download)
            model.source, model.precision = folder, precision
            return model
        files.check_safety(folder)
        if verify:
            files.verify_manifest(folder)
        config = read_settings(MoonConfig, folder / "moon.json")
        prompt = read_settings(PromptSpec, folder / "prompt.json")
        backbone = _load_backbone(folder)
        text = backbone.config.text_config
        if config.hidden != text.hidden_size or max(config.taps, default=0) >= text.num_hidden_layers:
            raise UserError(f"moon.json in {folder.name!r} does not fit the backbone in config.json.")
        try:
            model = cls(backbone, MoonProcessor.from_pretrained(str(folder)), config, prompt)
        except Exception as error:  # transformers and tokenizers have no one class for a broken file
            raise _unusable("the tokenizer or image processor", folder, error) from error
        try:
            head = {k: v.float() for k, v in load_file(folder / "head.safetensors").items()}
            model.head.load_state_dict(head)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"head.safetensors in {folder.name!r} is missing or does not fit moon.json."
            ) from error
        for name, weights in head.items():
            if not bool(weights.isfinite().all()):
                raise UserError(f"head.{name} in {folder.name!r} holds numbers that are not finite.")
        labels = folder / "labels.json"
        model.labels = files.read_json(labels) if labels.exists() else []
        if not isinstance(model.labels, list) or not all(isinstance(one, str) for one in model.labels):
            raise UserError(f"labels.json in {folder.name!r} is no list of words: fetch the model again.")
        model.source, model.precision = folder, precision
        return model.eval()

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        golden: bool | Sequence[Product] = False,
        state: dict[str, Tensor] | None = None,
    ) -> None:
        """Write the folder that `from_pretrained` and `SentenceTransformer` read.

        `state` stands in for the backbone's own weights, say with adapters merged in.
        `dtype` (say float16) halves the files. `golden` adds `golden.json` with the vectors and rationales
        that the saved weights give for the built-in inputs (True) or for these products; `moonshelf doctor`
        computes them anew.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = state or self.backbone.state_dict()
        state = {k: v if dtype is None else v.to(dtype) for k, v in weights.items()}
        for old in (*folder.glob("*.safetensors*"), folder / "labels.json", folder / "golden.json"):
            old.unlink(missing_ok=True)
        with quiet():
            self.backbone.save_pretrained(folder, state_dict=state, max_shard_size="35MB")
        head = {
            k: (v if dtype is None else v.to(dtype)).contiguous() for k, v in self.head.state_dict().items()
        }
        save_file(head, folder / "head.safetensors")
        self.processor.image_processor.save_pretrained(folder)
        self.processor.tokenizer.save_pretrained(folder)
        (folder / "moon.json").write_text(self.config.model_dump_json(indent=1) + "\n")
        (folder / "prompt.json").write_text(self.prompt.model_dump_json(indent=1) + "\n")
        if self.labels:
            (folder / "labels.json").write_text(json.dumps(self.labels, ensure_ascii=False, indent=0) + "\n")
        files.write_sentence_transformer(folder)
        files.write_manifest(folder)
        if golden is not False and golden != []:
            from moonshelf.model.golden import write_golden

            write_golden(folder, None if golden is True else golden)
            files.write_manifest(folder)
        # Rounded files are another model than the one in memory, with another fingerprint.
        self.source = folder if dtype is None else None
        self.__dict__.pop("fingerprint", None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of every file that can change a vector; of the weights if never saved.

        Computed once: a model that is trained on must be saved before it is asked for its fingerprint.
        """
        digest = files.digest(self.source) if self.source is not None else hashlib.sha256()
        if self.source is None or not (self.source / "moon.json").is_file():  # a head that no file holds
            digest.update((self.config.model_dump_json() + self.prompt.model_dump_json()).encode())
        if self.source is None:
            for name, tensor in sorted(self.state_dict().items()):
                digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def choose_features(visual: Any, places: Sequence[int]) -> Any:
    """Features of some pictures of what `see` gave, in the order of `places`; None for none."""
    if not places:
        return None
    chosen = SimpleNamespace(pooler_output=[visual.pooler_output[p] for p in places])
    if hasattr(visual, "deepstack_features"):
        chosen.deepstack_features = [[layer[p] for p in places] for layer in visual.deepstack_features]
    return chosen


def normalise(vectors: Tensor, dim: int | None = None) -> Tensor:
    """Unit length in float32, after cutting to the first `dim` numbers (Matryoshka)."""
    return F.normalize(vectors[..., :dim].float(), dim=-1)


def _load_backbone(folder: Path) -> PreTrainedModel:
    files.check_config(folder)
    family: Any = BACKBONES[files.read_json(folder / "config.json")["model_type"]]
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            _check_weights(folder, family, config)
            backbone, found = family.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
    except UserError:
        raise
    except Exception as error:  # transformers has no one class for a broken file
        raise _unusable("the weights", folder, error) from error
    missing = sorted(found["missing_keys"])  # they would be random
    if missing == ["lm_head.weight"] and is_embedding(folder, ""):  # sentence-transformers leaves it out
        backbone.lm_head.weight = nn.Parameter(backbone.get_input_embeddings().weight.detach().clone())
        missing = []
    if missing:
        raise UserError(f"the weights in {folder.name!r} lack {missing[0]}: fetch the model again.")
    register(type(backbone.config))
    return cast(PreTrainedModel, backbone)


def _check_weights(folder: Path, family: Any, config: Any) -> None:
    """The files hold about as many weights as the configuration says: what it says is what is allocated."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if not (folder / "model.safetensors").is_file() and index.is_file():
        names = set(files.read_json(index)["weight_map"].values())
    held = tensors = 0
    for name in names:
        with safe_open(folder / name, "pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
        tensors += len(shapes)
        held += sum(map(math.prod, shapes))
    if config.text_config.num_hidden_layers + config.vision_config.depth > tensors:
        raise UserError(f"config.json in {folder.name!r} names more layers than there are weights.")
    with torch.device("meta"):
        said = sum(parameter.numel() for parameter in family(config).parameters())
    if said > 1.1 * held + 1e6:
        raise UserError(
            f"config.json in {folder.name!r} describes {said:,} weights, the files hold {held:,}: fetch the "
            "model again."
        )


def _unusable(what: str, folder: Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return UserError(f"{what} in {folder.name!r} cannot be read: {reason.replace(str(folder), folder.name)}")
