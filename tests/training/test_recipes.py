"""Every recipe that the project ships is read by the code, and the launch files by Accelerate."""

from __future__ import annotations

from pathlib import Path

import pytest

from moonshelf.creatives.training.recipe import STAGES as SELECTORS
from moonshelf.creatives.training.recipe import GrpoRecipe
from moonshelf.training.recipe import JointRecipe, Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
RUNS = sorted([*RECIPES.glob("cold-start-*.yaml"), *RECIPES.glob("joint-*.yaml")])
LAUNCH = sorted((RECIPES / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.sources and recipe.out.startswith("runs/")
    if isinstance(recipe, Recipe) and recipe.backbone:
        assert "\n" not in recipe.prompt.instruction.strip().replace("\n", " ")
        assert "<" not in recipe.prompt.instruction  # the model's own markup is written by the code alone
        # Without LoRA the tower is trained: the default rate is a starter's, and would wipe a pretrained one.
        assert recipe.vision_lr <= recipe.lr <= 1e-4
        assert recipe.prompt.instruction.endswith("\n")  # the picture or the title follows


@pytest.mark.parametrize("path", sorted(RECIPES.glob("joint-qwen*.yaml")), ids=lambda path: path.stem)
def test_a_joint_recipe_goes_on_from_its_cold_start(path: Path) -> None:
    recipe, first = load_recipe(path), load_recipe(path.with_name(path.name.replace("joint", "cold-start")))
    assert isinstance(recipe, JointRecipe) and isinstance(first, Recipe)
    assert recipe.model == f"{first.out}/checkpoint"
    assert (recipe.products * recipe.rollouts) % recipe.accumulate == 0
    assert (recipe.lora is None) == (first.lora is None)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("creative-grpo-*.yaml")), ids=lambda path: path.stem)
def test_a_selectors_second_stage_goes_on_from_its_first(path: Path) -> None:
    recipe = load_recipe(path, SELECTORS)
    first = load_recipe(path.with_name(path.name.replace("grpo", "sft")), SELECTORS)
    assert isinstance(recipe, GrpoRecipe) and recipe.model == f"{first.out}/checkpoint"
    assert (2 * recipe.pairs * recipe.rollouts) % recipe.accumulate == 0
    hub = "/" in first.base
    assert first.download == hub and (recipe.lr <= 1e-5) == hub and first.lora is not None


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.stem)
def test_launch_files_are_read_by_accelerate(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    wanted = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(path.stem, "DEEPSPEED")
    assert config.distributed_type.value == wanted


def test_the_classes_that_fsdp_wraps_are_the_backbones_own() -> None:
    import yaml
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
    from transformers.models.qwen3_vl import modeling_qwen3_vl

    text = (RECIPES / "accelerate" / "fsdp2.yaml").read_text()
    names = yaml.safe_load(text)["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert len(names) == 2 and all(hasattr(modeling_qwen3_vl, name) for name in names)
    others = ("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock")
    assert ",".join(others) in text and all(hasattr(modeling_qwen2_5_vl, name) for name in others)
