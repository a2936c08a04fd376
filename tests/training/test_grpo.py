"""The plain GRPO step against TRL's GRPOTrainer on the same rollouts, loss and gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moonshelf.training.grpo import advantages, divergence, grpo_loss, total
from tiny import picture

GROUP, TEMPERATURE, LIMIT = 2, 0.7, 12
PROMPTS = ["red running shoe for men", "leather heels"]
LENGTHS = [9, 4, 7, 1]  # tokens of each rollout


def token_logps(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability (B, T) of completion `ids` (B, T) by `logits` (B, L, V) of prompt and completion."""
    wanted = logits[:, -ids.shape[1] - 1 : -1].float() / temperature
    return wanted.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


class Case:
    """A real trainer on a tiny model, with four rollouts of two prompts with a picture each."""

    def __init__(self, model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *_, **__: None)
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        self.backbone = copy.deepcopy(model.backbone)  # TRL changes `forward`
        self.trainer = GRPOTrainer(
            model=self.backbone,
            reward_funcs=[lambda completions, **_: self.earned],
            args=GRPOConfig(
                output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=4,
                num_generations=GROUP, max_completion_length=LIMIT, temperature=TEMPERATURE,
                activation_checkpointing=False,
            ),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
            processing_class=copy.deepcopy(model.processor),
        )  # fmt: skip
        self.trainer.current_gradient_accumulation_steps = 1
        self.backbone.train()
        self.inputs = self._rollouts(model)

    def _rollouts(self, model: Any) -> dict[str, Any]:
        from moonshelf.images import decode

        dice = torch.Generator().manual_seed(5)
        shown = [[decode(picture(seed, 90 + 20 * seed, 96))] for seed in (1, 2) for _ in range(GROUP)]
        texts = [
            f"<|vision_start|><|image_pad|><|vision_end|>{text}" for text in PROMPTS for _ in range(GROUP)
        ]
        read = model.processor(images=shown, text=texts)
        width, longest = max(map(len, read["input_ids"])), max(LENGTHS)
        pad = model.prepare.pad
        prompt = torch.tensor([[pad] * (width - len(ids)) + ids for ids in read["input_ids"]])
        kept = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in read["input_ids"]])
        written = torch.randint(0, 250, (len(texts), longest), generator=dice)
        alive = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]
        kinds = torch.zeros(len(texts), width + longest, dtype=torch.long)
        kinds[:, :width] = (prompt == model.processor.image_token_id).long()
        return {
            "prompt_ids": prompt, "prompt_mask": kept,
            "completion_ids": written.masked_fill(~alive, pad), "completion_mask": alive.long(),
            "advantages": advantages(torch.tensor([1.0, 0.25, 0.0, 0.75]), GROUP),
            "num_items_in_batch": alive.sum(), "num_images": [1] * len(texts), "mm_token_type_ids": kinds,
            "pixel_values": read["pixel_values"], "image_grid_thw": read["image_grid_thw"],
        }  # fmt: skip

    def logps(self) -> Tensor:
        """By the plain forward: no fused head, no labels."""
        inputs = self.inputs
        rest = {
            k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw", "mm_token_type_ids")
        }
        out = self.backbone(
            input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            **rest,
        )
        return token_logps(out.logits, inputs["completion_ids"], TEMPERATURE)

    def compare(self, ours: Callable[[Tensor], Tensor], more: dict[str, Tensor], **settings: Any) -> None:
        for name, value in settings.items():
            assert hasattr(self.trainer, name), name
            setattr(self.trainer, name, value)
        theirs = self.trainer._compute_loss(self.backbone, {**self.inputs, **more})
        expected = self.gradients(theirs)
        loss = ours(self.logps())
        got = self.gradients(loss)
        assert loss.item() == pytest.approx(theirs.item(), abs=1e-5)
        assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-4, msg=name)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        self.backbone.zero_grad()
        loss.backward()
        return {n: p.grad.clone() for n, p in self.backbone.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module", params=["model", "model_2_5"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("trl", reason="TRL is a development dependency")
    model = request.getfixturevalue(request.param)
    with pytest.MonkeyPatch.context() as patch:
        yield Case(model, tmp_path_factory.mktemp("trainer"), patch)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["fresh", "stale", "forced", "by token"])
def test_trl_and_the_plain_step_agree(case: Case, kind: str, beta: float) -> None:
    """Fresh rollouts; an older policy's, with clipped ratios; tokens that do not count, or are paid apart."""
    dice = torch.Generator().manual_seed(11)
    now, mask = case.logps().detach(), case.inputs["completion_mask"]
    more: dict[str, Tensor] = {}
    if kind == "stale":
        more["old_per_token_logps"] = now + 0.4 * torch.randn(now.shape, generator=dice)
        ratio = (now - more["old_per_token_logps"]).exp()[mask.bool()]
        assert (ratio < 0.8).any() and (ratio > 1.28).any() and ((ratio > 0.8) & (ratio < 1.28)).any()
    if kind == "forced":
        more["tool_mask"] = torch.ones_like(mask)
        more["tool_mask"][[0, 1, 3], [8, 3, 0]] = 0  # the last token of three rollouts; the whole of one
        mask = mask * more["tool_mask"]
        more["num_items_in_batch"] = mask.sum()
    if kind == "by token":
        more["advantages"] = torch.randn(now.shape, generator=dice)
    if beta:
        more["ref_per_token_logps"] = now + 0.5 * torch.randn(now.shape, generator=dice)
    case.trainer.args.use_bias_correction_kl = False  # GRPO's own divergence
    case.compare(
        lambda logps: grpo_loss(
            logps,
            more.get("advantages", case.inputs["advantages"]),
            mask,
            old=more.get("old_per_token_logps"),
            reference=more.get("ref_per_token_logps"),
            beta=beta,
            clip=(0.2, 0.28),
        ),
        more,
        loss_type="grpo",
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=0.28,
    )


@pytest.mark.parametrize("earned", [[1.0, 0.0, 0.5, 0.75], [0.2, 0.2, 3.0, None], [None, None, -1.0, 1.0]])
def test_trl_and_the_plain_advantages_agree(case: Case, earned: list[float | None]) -> None:
    case.earned, case.trainer.beta = earned, 0.0
    rows = [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]
    theirs = case.trainer._generate_and_score_completions(rows)["advantages"]
    rewards = torch.tensor([math.nan if reward is None else reward for reward in earned])
    torch.testing.assert_close(advantages(rewards, GROUP), theirs, atol=1e-5, rtol=1e-5)


def test_a_group_without_spread_teaches_nothing_and_others_are_centred() -> None:
    gained = advantages(torch.tensor([0.7, 0.7, 0.7, 0.0, 1.0, 2.0]), 3).view(2, 3)
    assert gained[0].abs().max() < 1e-3 and float(gained[1].sum()) == pytest.approx(0, abs=1e-6)
    assert gained[1].tolist() == pytest.approx([-1, 0, 1], abs=1e-3)
    assert advantages(torch.tensor([1.0, math.nan, math.nan]), 3).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="groups of 4"):
        advantages(torch.zeros(6), 4)


def test_a_reward_that_does_not_apply_is_not_a_zero() -> None:
    rewards = torch.tensor([[1.0, math.nan], [1.0, 0.5], [math.nan, math.nan]])
    summed = total(rewards, torch.tensor([0.5, 2.0]))
    assert summed[:2].tolist() == [0.5, 1.5] and summed[2].isnan()


def test_a_step_makes_the_better_rollout_likelier() -> None:
    logits = torch.zeros(2, 4, 5, requires_grad=True)
    ids = torch.tensor([[1, 2], [3, 4]])
    before = token_logps(logits, ids)
    grpo_loss(before, torch.tensor([1.0, -1.0]), torch.ones(2, 2)).backward()
    assert logits.grad is not None
    after = token_logps(logits.detach() - logits.grad, ids)
    assert (after[0] > before[0]).all() and (after[1] < before[1]).all()


def test_masked_tokens_and_empty_rollouts_take_no_gradient() -> None:
    logps = torch.randn(3, 4, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    reference = torch.zeros(3, 4)
    loss = grpo_loss(logps, torch.tensor([1.0, -1.0, 5.0]), mask, reference=reference, beta=0.1)
    loss.backward()
    assert logps.grad is not None and loss.isfinite()
    assert ((logps.grad != 0) == mask.bool()).all()


def test_what_is_missing_is_named() -> None:
    logps, ones = torch.zeros(1, 2), torch.ones(1, 2)
    with pytest.raises(ValueError, match="reference"):
        grpo_loss(logps, torch.ones(1), ones, beta=0.1)


def test_the_divergence_is_unbiased_and_never_negative() -> None:
    """Weighted by the policy, the estimate at each token is the KL itself."""
    policy, reference = torch.randn(2, 50, dtype=torch.float64).log_softmax(-1)
    estimate = divergence(policy, reference)
    assert (estimate >= 0).all()
    assert float((policy.exp() * estimate).sum()) == pytest.approx(
        float((policy.exp() * (policy - reference)).sum())
    )
