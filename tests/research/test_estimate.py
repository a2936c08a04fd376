"""The arithmetic of a training step, held against parameters that were counted and bytes that are saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moonshelf.errors import UserError
from moonshelf.model.configuration import MoonConfig, default_taps
from moonshelf.model.head import MoonHead
from moonshelf.model.modeling import BACKBONES, Reading
from moonshelf.training.recipe import JointRecipe, Lora, Recipe
from research.studies.estimate import PUBLISHED, Shape, config_of, estimate, main, skeleton

pytestmark = pytest.mark.research

HUB = "Qwen/Qwen3-VL-2B-Instruct"


def cold(**changes: Any) -> Recipe:
    values = {"sources": [], "batch": 64, "chunk": 8, "checkpointing": True, "precision": "bfloat16"}
    return Recipe.model_validate({**values, **changes})


def joint(**changes: Any) -> JointRecipe:
    return JointRecipe.model_validate({"sources": [], "model": "m", "precision": "bfloat16", **changes})


@pytest.mark.parametrize(
    ("name", "parameters"),
    (  # as the model pages of the hub state them
        ("Qwen/Qwen3-VL-2B-Instruct", 2_127_532_032),
        ("Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
    ),
)
def test_published_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    model = skeleton(config_of(name), cold())
    found = dict(model.named_parameters())
    assert sum(p.numel() for n, p in found.items() if n.startswith("backbone.")) == parameters
    assert all(p.is_meta for p in found.values())


def tiny(family: str) -> Any:
    """A configuration in which every size differs from every other."""
    kind, text, vision = PUBLISHED[HUB if family == "qwen3_vl" else "Qwen/Qwen2.5-VL-3B-Instruct"]
    assert kind == family
    config = config_of(HUB if family == "qwen3_vl" else "Qwen/Qwen2.5-VL-3B-Instruct")
    text = {
        **text, "vocab_size": 500, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0,
        "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
    }  # fmt: skip
    vision = {
        **vision, "depth": 3, "hidden_size": 96, "num_heads": 3, "intermediate_size": 320, "patch_size": 16,
        "out_hidden_size": 128, "num_position_embeddings": 256,
    }  # fmt: skip
    vision |= {"deepstack_visual_indexes": [1]} if family == "qwen3_vl" else {"fullatt_block_indexes": [2]}
    ids = {"image_token_id": 1, "video_token_id": 2, "vision_start_token_id": 3, "vision_end_token_id": 4}
    return type(config)(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


class Saved:
    """Bytes of distinct storages that autograd keeps for the backward pass, parameters aside."""

    def __init__(self, *modules: nn.Module) -> None:
        self.own = {p.untyped_storage().data_ptr() for m in modules for p in m.parameters()}
        self.sizes = {p.numel() for m in modules for p in m.parameters() if p.ndim >= 2}
        self.kept: dict[int, torch.Tensor] = {}

    def __enter__(self) -> Saved:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        cast = tensor.dtype == torch.bfloat16 and tensor.untyped_storage().nbytes() // 2 in self.sizes
        if place not in self.own and not cast:  # bf16 copies of weights are a line of their own
            self.kept[place] = tensor
        return tensor

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.kept.values())


@pytest.mark.parametrize("width", (4, 2), ids=("float32", "bfloat16"))
@pytest.mark.parametrize("checkpointing", (False, True), ids=("all", "checkpointing"))
@pytest.mark.parametrize("family", ("qwen3_vl", "qwen2_5_vl"))
def test_activations_are_what_autograd_saves(family: str, checkpointing: bool, width: int) -> None:
    """Within a fifth, for the tower and for language model and head, on both families."""
    config = tiny(family)
    torch.manual_seed(0)
    backbone = BACKBONES[family](config).train()
    backbone.set_attn_implementation("sdpa")
    if checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    taps = default_taps(4)
    head = MoonHead(MoonConfig(hidden=128, dim=64, matryoshka=(64,), taps=taps)).train()
    rows, side, words = 3, 20, 60
    visual = side * side // 4
    length = visual + words
    grid = torch.tensor([[1, side, side]] * rows)
    patches = rows * side * side
    ids = torch.full((rows, length), 7)
    ids[:, :visual] = 1
    attention = torch.ones_like(ids)
    attention[0, -3:] = 0  # a mask, as every padded batch has
    batch = type("Batch", (), {"image_mask": ids == 1, "text_mask": ids == 7})()
    found: dict[int, torch.Tensor] = {}
    for i in taps:
        layer = backbone.model.language_model.layers[i]
        layer.register_forward_hook(lambda *a, i=i: found.update({i: a[2]}))

    with torch.autocast("cpu", torch.bfloat16, enabled=width == 2):
        with Saved(backbone) as tower:
            seen = backbone.model.get_image_features(
                torch.randn(patches, 3 * 2 * 16 * 16), grid, return_dict=True
            )
        with Saved(backbone, head) as language:
            positions, _ = backbone.model.get_rope_index(
                ids, mm_token_type_ids=(ids == 1).int(), image_grid_thw=grid, attention_mask=attention
            )
            states = backbone.model(
                input_ids=ids, attention_mask=attention, position_ids=positions,
                mm_encoder_outputs={"image": seen}, use_cache=False,
            ).last_hidden_state  # fmt: skip
            raw = backbone.get_input_embeddings()(ids)
            reading = Reading(states, raw, [found[i] for i in taps], torch.zeros(rows, 1))
            nothing = torch.zeros_like(attention, dtype=torch.bool)
            head(states[:, -1], reading, batch, (ids, states, nothing))
    shape = Shape.of(config)
    assert tower.bytes == pytest.approx(patches * shape.saved_a_patch(width, checkpointing), rel=0.2)
    assert language.bytes == pytest.approx(rows * length * shape.saved_a_token(width, checkpointing), rel=0.2)


def test_memory_falls_with_chunks_checkpointing_adapters_and_shards() -> None:
    config = config_of(HUB)
    full = estimate(cold(), config)
    assert full.trained == full.parameters
    assert full.bytes["optimiser"] == 8 * full.trained == 2 * full.bytes["gradients"]
    saved = full.bytes["activations"]
    assert estimate(cold(chunk=4), config).bytes["activations"] == pytest.approx(saved / 2)
    assert estimate(cold(checkpointing=False), config).bytes["activations"] > 5 * saved
    adapted = estimate(cold(lora=Lora()), config)
    assert adapted.trained < 0.1 * full.trained and adapted.total < 0.6 * full.total
    packed = estimate(cold(lora=Lora(quantise=True)), config)
    assert packed.bytes["frozen weights"] < 0.6 * adapted.bytes["frozen weights"]
    sharded = estimate(cold(), config, processes=8, sharding="fsdp2")
    assert sharded.bytes["optimiser"] == pytest.approx(full.bytes["optimiser"] / 8)
    zero = [estimate(cold(), config, processes=8, sharding=s).total for s in ("ddp", "zero2", "zero3")]
    assert zero == sorted(zero, reverse=True)


def test_operations_are_six_a_parameter_and_token_and_some_for_attention() -> None:
    """With no recomputation, no tower to speak of and no writing, 6 N D within what attention adds."""
    config = config_of(HUB)
    recipe = cold(checkpointing=False, chunk=None, prompt={"max_pixels": 32 * 32, "max_rationale_tokens": 1})
    found = estimate(recipe, config)
    layers = sum(
        p.numel() for n, p in skeleton(config, recipe).named_parameters() if ".language_model.layers." in n
    )
    assert 1.0 < found.flops / (6 * layers * found.tokens) < 1.25
    cached = estimate(recipe.model_copy(update={"chunk": 8}), config)
    assert 1.2 < cached.flops / found.flops < 1.4  # gradient caching reads everything once more


def test_a_joint_step_counts_rollouts_slices_and_the_reference() -> None:
    config = config_of(HUB)
    whole = estimate(joint(beta=0.04), config)
    assert whole.bytes["reference of the KL"] == 4 * whole.parameters
    assert "reference of the KL" not in estimate(joint(beta=0.04, lora=Lora()), config).bytes
    sliced = estimate(joint(accumulate=8), config)
    assert sliced.bytes["logits"] == pytest.approx(whole.bytes["logits"] / 8)
    assert sliced.bytes["writing"] == whole.bytes["writing"]  # all rollouts are written at once
    more = estimate(joint(rollouts=16), config)
    assert more.bytes["logits"] == pytest.approx(2 * whole.bytes["logits"])


def test_shape_reads_windows_and_grouped_heads() -> None:
    shape = Shape.of(config_of("Qwen/Qwen2.5-VL-3B-Instruct"))
    assert (shape.queries, shape.keys, shape.windows) == (2048, 256, 64)
    assert shape.picture(448 * 448) == (1024, 256)
    assert Shape.of(config_of(HUB)).picture(448 * 448) == (784, 196)
    assert dataclasses.replace(shape, layers=2).saved_a_token(2, False) < shape.saved_a_token(2, False)


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "training.md"


def test_the_tables_of_the_page_are_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """The first table; the others come from the same code."""
    names = ("qwen3-vl-2b", "qwen3-vl-4b", "qwen2.5-vl-3b")
    main([str(ROOT / "recipes" / f"cold-start-{name}.yaml") for name in names])
    assert capsys.readouterr().out.strip() in PAGE.read_text()


def test_a_joint_recipe_without_its_model_says_what_to_add(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes" / "joint-qwen3-vl-2b.yaml")
    with pytest.raises(SystemExit):
        main([recipe])
    assert "--cold-start" in capsys.readouterr().err
    main([recipe, "--cold-start", recipe.replace("joint", "cold-start"), "--rollouts", "4"])
    assert "joint-qwen3-vl-2b" in capsys.readouterr().out


def test_an_unknown_backbone_is_a_user_error() -> None:
    with pytest.raises(UserError):
        config_of("nobody/no-such-model")
