"""Fusion and FIRE against an independent float64 reference, written from the equations in their docstrings.

The reference walks over rows, heads and tokens one by one and projects every token, so that it shares
neither code nor shape tricks with the modules.
"""

from __future__ import annotations

from math import erf, exp, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moonshelf.model.configuration import MODALITIES, MoonConfig, default_taps
from moonshelf.model.head import (
    Fire,
    ModalityFusion,
    MoonHead,
    PicturePath,
    WordPath,
    locked,
    semantic,
    summaries,
)
from moonshelf.model.modeling import normalise

D, HEADS, BATCH, LENGTH = 16, 4, 5, 7
CONFIG = MoonConfig(hidden=D, dim=8, matryoshka=(8, 4), heads=HEADS, taps=(1, 0))
Array = np.ndarray


def randomised(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module


class Weights:
    """The module's weights as float64 arrays, and the textbook operations on single vectors."""

    def __init__(self, module: nn.Module) -> None:
        self.values = {k: v.detach().double().numpy() for k, v in module.state_dict().items()}

    def linear(self, name: str, x: Array) -> Array:
        return self.values[f"{name}.weight"] @ x + self.values.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: Array) -> Array:
        y = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return y * self.values[f"{name}.weight"] + self.values[f"{name}.bias"]


def softmax(x: list[float]) -> list[float]:
    powers = [exp(v - max(x)) for v in x]
    return [p / sum(powers) for p in powers]


def gelu(x: Array) -> Array:
    return np.array([v * 0.5 * (1 + erf(v / sqrt(2))) for v in x])


def head(x: Array, h: int) -> Array:
    return x[h * (D // HEADS) : (h + 1) * (D // HEADS)]


def unit(x: Array) -> Array:
    return x / np.sqrt((x**2).mean() + 1e-6)


def pooled(query: Array, keys: list[Array], values: list[Array]) -> Array:
    """Attention of one query over projected tokens of one head; zeros if there is none."""
    if not keys:
        return np.zeros(D // HEADS)
    shares = softmax([float(query @ k) / sqrt(D // HEADS) for k in keys])
    return sum(share * value for share, value in zip(shares, values, strict=True))


def fusion_reference(w: Weights, e: Array, signals: dict[str, list[Array]]) -> tuple[Array, Array]:
    """z_0 and the modality weights of one product; a modality maps to the tokens that it has."""
    q = w.linear("query", w.norm("norm", e))
    mixed, shares = [], np.zeros((HEADS, 3))
    for h in range(HEADS):
        o, logits = {}, {}
        for m, name in enumerate(MODALITIES):
            tokens = [w.norm(f"norms.{name}", x) for x in signals[name]]
            keys = [head(w.linear(f"keys.{name}", x), h) for x in tokens]
            values = [head(w.linear(f"values.{name}", x), h) for x in tokens]
            if tokens:
                o[m] = pooled(head(q, h), keys, values)
                asked, said = unit(head(q, h)), unit(o[m])
                logits[m] = asked @ w.values["gate"][h] @ said / sqrt(D // HEADS) + w.values["bias"][h, m]
        for m, share in zip(logits, softmax(list(logits.values())), strict=True):
            shares[h, m] = share
        mixed.append(sum(shares[h, m] * o[m] for m in o))
    return e + w.linear("out", np.concatenate(mixed)), shares.mean(0)


def fire_reference(w: Weights, z: Array, taps: list[list[Array]]) -> Array:
    for k, states in enumerate(taps):
        p = f"steps.{k}."
        normed = w.norm(p + "norm", z)
        q = w.linear(p + "query", normed)
        tokens = [w.norm(p + "token_norm", x) for x in states]
        y = []
        for h in range(HEADS):
            keys = [head(w.linear(p + "keys", x), h) for x in tokens]
            values = [head(w.linear(p + "values", x), h) for x in tokens]
            y.append(pooled(head(q, h), keys, values))
        found = w.linear(p + "out", np.concatenate(y))
        inner = gelu(w.linear(p + "mlp.0", w.norm(p + "mlp_norm", found)))
        gate = 1 / (1 + np.exp(-w.linear(p + "gate.2", gelu(w.linear(p + "gate.0", normed)))))
        z = z + w.values[p + "scale"] * gate * (found + w.linear(p + "mlp.2", inner))
    return z


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """e (B, D), tokens (B, L, D) and masks: all present, one missing, two missing, scattered tokens."""
    generator = torch.Generator().manual_seed(3)
    e = torch.randn(BATCH, D, generator=generator, dtype=torch.float64)
    tokens = torch.randn(BATCH, LENGTH, D, generator=generator, dtype=torch.float64) * 3
    masks = {m: torch.rand(BATCH, LENGTH, generator=generator) < 0.5 for m in MODALITIES}
    for mask in masks.values():
        mask[0, 0] = True
    masks["image"][1] = False
    masks["rationale"][2] = False
    masks["image"][3] = masks["rationale"][3] = False
    masks["text"][1, 2] = masks["text"][3, 4] = masks["image"][2, 0] = masks["image"][4, 1] = True
    return e, tokens, masks


def chosen(tokens: Tensor, mask: Tensor, row: int) -> list[Array]:
    return [tokens[row, t].numpy() for t in range(LENGTH) if mask[row, t]]


def test_fusion_equals_the_reference(inputs: tuple[Tensor, Tensor, dict[str, Tensor]]) -> None:
    e, tokens, masks = inputs
    module = randomised(ModalityFusion(CONFIG), 0).double().eval()
    z, shares = module(e, {m: (tokens, masks[m]) for m in MODALITIES})
    assert z.shape == (BATCH, D) and shares.shape == (BATCH, 3)
    for row in range(BATCH):
        signals = {m: chosen(tokens, masks[m], row) for m in MODALITIES}
        expected, expected_shares = fusion_reference(Weights(module), e[row].numpy(), signals)
        np.testing.assert_allclose(z[row].detach(), expected, atol=1e-10)
        np.testing.assert_allclose(shares[row].detach(), expected_shares, atol=1e-10)
        absent = [not masks[m][row].any() for m in MODALITIES]
        assert (shares[row][absent] == 0).all() and shares[row].sum().item() == pytest.approx(1)


def test_fire_equals_the_reference(inputs: tuple[Tensor, Tensor, dict[str, Tensor]]) -> None:
    e, tokens, masks = inputs
    module = randomised(Fire(CONFIG), 1).double().eval()
    taps = [tokens, tokens.flip(2)]
    mask = masks["text"].clone()
    mask[4] = False
    z = module(e, taps, mask)
    assert z.shape == (BATCH, D)
    for row in range(BATCH):
        states = [chosen(tap, mask, row) for tap in taps]
        np.testing.assert_allclose(
            z[row].detach(), fire_reference(Weights(module), e[row].numpy(), states), atol=1e-10
        )


@pytest.mark.parametrize("kind", [ModalityFusion, Fire])
def test_masked_tokens_have_no_effect(
    kind: type[nn.Module], inputs: tuple[Tensor, Tensor, dict[str, Tensor]]
) -> None:
    e, tokens, masks = inputs
    module = randomised(kind(CONFIG), 2).double().eval()
    anything = torch.stack(list(masks.values())).any(0)
    noisy = torch.where(anything[..., None], tokens, 1e4)

    def run(x: Tensor) -> Tensor:
        if kind is Fire:
            return module(e, [x, x], anything)
        return module(e, {m: (x, masks[m]) for m in MODALITIES})[0]

    assert torch.equal(run(tokens), run(noisy))


def test_a_product_without_any_token_keeps_its_state(
    inputs: tuple[Tensor, Tensor, dict[str, Tensor]],
) -> None:
    e, tokens, _ = inputs
    nothing = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    module = randomised(ModalityFusion(CONFIG), 0).double().eval()
    z, shares = module(e, {m: (tokens, nothing) for m in MODALITIES})
    torch.testing.assert_close(z, e + module.out.bias)
    assert (shares == 0).all()


def test_training_hides_modalities_now_and_then_but_never_all(
    inputs: tuple[Tensor, Tensor, dict[str, Tensor]],
) -> None:
    e, tokens, masks = inputs
    module = ModalityFusion(CONFIG.model_copy(update={"modality_dropout": 0.5})).double().train()
    signals = {m: (tokens, masks[m]) for m in MODALITIES}
    present = torch.stack([masks[m].any(1) for m in MODALITIES], 1)
    torch.manual_seed(0)
    shares = torch.stack([module(e, signals)[1] for _ in range(60)])
    assert ((shares == 0) | present).all() and (shares[:, present] == 0).any()
    torch.testing.assert_close(shares.sum(-1), present.any(1).expand(60, -1).double())
    assert torch.equal(module.eval()(e, signals)[1] > 0, present)


def test_fire_starts_near_the_identity() -> None:
    z = torch.randn(BATCH, D)
    tokens = torch.randn(BATCH, LENGTH, D)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    assert (Fire(CONFIG)(z, [tokens, tokens], mask) - z).norm() < 0.2 * z.norm()


def test_default_taps_avoid_the_last_layer_and_go_down() -> None:
    assert default_taps(4) == (2, 1, 0)
    assert default_taps(28) == (20, 13, 6)
    assert default_taps(1) == (0,)
    for layers in range(2, 80):
        taps = default_taps(layers)
        assert list(taps) == sorted(set(taps), reverse=True) and max(taps) < layers


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": 18},
        {"taps": ()},
        {"matryoshka": (4, 8)},
        {"matryoshka": (4, 2)},
        {"hidden": 0},
        {"depth": 3},
    ],
)
def test_an_inconsistent_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        MoonConfig.model_validate({**CONFIG.model_dump(), **wrong})


def test_matryoshka_prefixes_are_unit_vectors_of_the_same_numbers() -> None:
    vectors = torch.randn(3, 256)
    short = normalise(vectors, 64)
    assert short.shape == (3, 64)
    torch.testing.assert_close(short, vectors[:, :64] / vectors[:, :64].norm(dim=1, keepdim=True))
    torch.testing.assert_close(normalise(normalise(vectors), 64), short)


# ---- the word path ----

WORDS = CONFIG.model_copy(update={"words": 30})


def word_inputs(seed: int = 3) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """States at `<emb>`, and ids, states and masks of both sources; row 0 has no text, row 1 no rationale."""
    generator = torch.Generator().manual_seed(seed)
    e, found = torch.randn(BATCH, D, generator=generator), {}
    for row, source in enumerate(("text", "rationale")):
        mask = torch.rand(BATCH, LENGTH, generator=generator) < 0.6
        mask[row] = False
        ids = torch.randint(0, 30, (BATCH, LENGTH), generator=generator)
        found[source] = ids, torch.randn(BATCH, LENGTH, D, generator=generator), mask
    return e, found


def mlp(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return w.linear(f"{name}.2", gelu(w.linear(f"{name}.0", x)))


@pytest.mark.parametrize("written", [False, True])
def test_the_word_path_is_its_equation(written: bool) -> None:
    module = randomised(WordPath(WORDS.model_copy(update={"written": written})), 5).eval()
    w, (e, words) = Weights(module), word_inputs()
    both = module(e, words).detach().numpy()
    found, free = both[:, ::2], both[:, 1::2]
    table = w.values["table.weight"]
    for row in range(BATCH):
        gates = np.exp(w.linear("gate", w.norm("norm", e[row].double().numpy())))
        wanted, follows = np.zeros(WORDS.dim // 2), np.zeros(WORDS.dim)
        for gate, source in zip(gates, ("text", "rationale"), strict=True):
            ids, states, mask = (x[row][words[source][2][row]] for x in words[source])
            if not mask.any():
                continue
            read = [w.norm(f"norms.{source}", x.double().numpy()) for x in states]
            shares = softmax([float(w.linear(f"scores.{source}", x)[0]) for x in read])
            meant = gate * sum(a * table[i] for a, i in zip(shares, ids.tolist(), strict=True))
            wanted += meant
            unit = meant / np.linalg.norm(meant)
            if source == "text":
                follows[1::2] += w.linear("linear", unit) + mlp(w, "free", unit)
            elif written:
                follows += w.linear("written.linear", unit) + mlp(w, "written.mlp", unit)
        np.testing.assert_allclose(found[row], wanted + follows[::2], atol=1e-4)
        np.testing.assert_allclose(free[row], follows[1::2], atol=1e-4)


def test_a_row_without_words_gets_nothing() -> None:
    module, (e, words) = randomised(WordPath(WORDS), 5).eval(), word_inputs()
    none = {source: (ids, states, mask & False) for source, (ids, states, mask) in words.items()}
    assert not module(e, none).any()


def test_the_word_path_starts_as_the_mean_of_the_words() -> None:
    module, (e, words) = WordPath(WORDS).eval(), word_inputs()
    found, table = semantic(module(e, words)), module.table.weight
    assert not module(e, words)[:, 1::2].any()
    for row in range(BATCH):
        means = [table[ids[row][mask[row]]].mean(0) for ids, _, mask in words.values() if mask[row].any()]
        torch.testing.assert_close(found[row], torch.stack(means).sum(0))


def test_a_text_that_is_locked_keeps_its_semantic_numbers() -> None:
    vectors = torch.randn(3, 8, requires_grad=True)
    held = locked(vectors)
    assert torch.equal(held, vectors)
    held.square().sum().backward()
    assert vectors.grad is not None
    assert not semantic(vectors.grad).any() and vectors.grad[:, 1::2].all()


# ---- the picture path ----

PICTURES = CONFIG.model_copy(update={"pictures": 3})


def test_the_picture_path_is_its_equation_and_silent_without_pictures() -> None:
    module = randomised(PicturePath(PICTURES), 6).eval()
    w, seen, texts = Weights(module), torch.randn(BATCH, 3, D), torch.arange(BATCH) % 2 == 0
    seen[1] = 0
    found = module(seen, texts).detach().numpy()
    for row in range(BATCH):
        u = np.concatenate([w.norm(f"norms.{n}", seen[row, n].double().numpy()) for n in range(3)])
        gate = np.exp(w.values["beside"][0]) if texts[row] else 1
        wanted = gate * (w.values["linear.weight"] @ u + mlp(w, "mlp", u)) * (row != 1)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-3, atol=1e-4)


def test_the_picture_path_starts_silent() -> None:
    assert not PicturePath(PICTURES).eval()(torch.randn(BATCH, 3, D), torch.ones(BATCH)).any()


def test_summaries_are_those_of_each_row_s_pictures() -> None:
    """Two pictures in the first row, none in the second, one in the third."""
    merged, deep = [torch.randn(n, D) for n in (4, 6, 9)], [torch.randn(n, D) for n in (4, 6, 9)]
    visual = SimpleNamespace(pooler_output=merged, deepstack_features=[deep])
    found = summaries(visual, [10, 0, 9], torch.zeros(3, 3, D))
    first = torch.cat(merged[:2])
    wanted = torch.stack([first.mean(0), first.amax(0), torch.cat(deep[:2]).mean(0)])
    torch.testing.assert_close(found[0], wanted)
    assert not found[1].any()
    torch.testing.assert_close(found[2][1], merged[2].amax(0))


# ---- the glance ----


def test_the_glance_is_its_equation_and_zero_at_the_start_and_without_pictures() -> None:
    config = PICTURES.model_copy(update={"glance": True})
    seen = torch.randn(BATCH, 3, D)
    seen[1] = 0
    assert not MoonHead(config).glanced(seen).any()
    module = randomised(MoonHead(config), 8).eval()
    p = module.pictures.look(seen).detach().double().numpy()
    found = module.glanced(seen).detach().numpy()
    assert not found[1].any()
    for row in (0, 2, 3, 4):
        unit = p[row] / np.sqrt((p[row] ** 2).mean() + 1e-6)
        wanted = module.glance.weight.detach().double().numpy() @ unit
        np.testing.assert_allclose(found[row], wanted, rtol=1e-3, atol=1e-4)
