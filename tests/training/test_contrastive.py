"""InfoNCE against a float64 NumPy reference, and its masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moonshelf.training.losses import (
    MAX_SCALE,
    CrossBatchMemory,
    Labels,
    Negatives,
    Temperature,
    info_nce,
    label_loss,
    text_loss,
)


def reference(a: np.ndarray, b: np.ndarray, scale: float, same: np.ndarray) -> float:
    """Row-wise cross-entropy of the positive against every pair that is not masked."""
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    logits = scale * a @ b.T
    losses = []
    for i in range(len(a)):
        kept = [j for j in range(len(b)) if j == i or not same[i, j]]
        losses.append(np.log(np.exp(logits[i, kept]).sum()) - logits[i, i])
    return float(np.mean(losses))


def test_agrees_with_numpy_in_both_directions_and_at_every_size() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 16))
    same = rng.random((7, 7)) < 0.3
    got = info_nce(torch.tensor(a), torch.tensor(b), torch.tensor(5.0).double(), torch.tensor(same), (16, 8))
    want = np.mean(
        [
            (reference(a[:, :d], b[:, :d], 5.0, same) + reference(b[:, :d], a[:, :d], 5.0, same.T)) / 2
            for d in (16, 8)
        ]
    )
    assert abs(float(got) - want) < 1e-9


def test_a_masked_pair_is_no_negative() -> None:
    a = torch.eye(3)
    b = a[[0, 0, 2]].clone().requires_grad_()  # the second picture looks like the first product
    nothing, twin = torch.zeros(3, 3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool)
    twin[0, 1] = twin[1, 0] = True
    scale = torch.tensor(10.0)
    assert info_nce(a, b, scale, twin, (3,)) < info_nce(a, b, scale, nothing, (3,))


def test_everything_masked_leaves_only_the_positive() -> None:
    a = torch.randn(4, 8)
    assert float(info_nce(a, a, torch.tensor(3.0), torch.ones(4, 4, dtype=torch.bool), (8,))) == 0.0


def test_temperature_is_bounded() -> None:
    temperature = Temperature()
    temperature.log_scale.data.fill_(20.0)
    assert float(temperature()) == MAX_SCALE


def test_items_of_past_steps_are_negatives_of_either_side_unless_masked() -> None:
    rng = np.random.default_rng(1)
    a, b, products, titles = (rng.normal(size=(n, 8)) for n in (4, 4, 3, 5))
    free = torch.zeros(4, 4, dtype=torch.bool)
    skipped = torch.tensor([[True, False, False]] * 4)
    of_left = Negatives(torch.tensor(products), skipped)
    of_right = Negatives(torch.tensor(titles), torch.zeros(4, 5, dtype=torch.bool))
    sides = torch.tensor(a), torch.tensor(b), torch.tensor(2.0).double(), free, (8,)
    none, forth, back = np.zeros((4, 4), bool), np.zeros((4, 6), bool), np.zeros((4, 9), bool)
    left = reference(a, np.concatenate([b, products[1:]]), 2.0, forth)
    right = reference(b, np.concatenate([a, titles]), 2.0, back)
    assert abs(float(info_nce(*sides, of_left, of_right)) - (left + right) / 2) < 1e-9
    plain = reference(b, a, 2.0, none)
    assert abs(float(info_nce(*sides, of_left)) - (left + plain) / 2) < 1e-9


def test_the_queue_forgets_the_oldest() -> None:
    queue = CrossBatchMemory(3)
    queue.push(torch.zeros(2, 4), ["a", "b"])
    queue.push(torch.ones(2, 4, requires_grad=True), ["c", "d"])
    assert queue.items == ["b", "c", "d"]
    assert queue.vectors[:, 0].tolist() == [0.0, 1.0, 1.0] and not queue.vectors.requires_grad
    off = CrossBatchMemory(0)
    off.push(torch.ones(2, 4), ["a", "b"])
    assert not off.items and not len(off.vectors)


def test_a_value_is_told_from_all_values_of_its_key_and_unknown_ones_are_passed_over() -> None:
    rng = np.random.default_rng(2)
    a, names = rng.normal(size=(4, 8)), rng.normal(size=(5, 8))
    places, losses = [3, -1, 0, 4], []
    for dim in (8, 4):
        left, right = (x[:, :dim] / np.linalg.norm(x[:, :dim], axis=1, keepdims=True) for x in (a, names))
        logits = 7.0 * left @ right.T
        shares = np.log(np.exp(logits).sum(1)) - logits[range(4), places]
        losses.append(shares[[0, 2, 3]].mean())
    vectors = torch.tensor(a, requires_grad=True)
    labels = Labels(torch.tensor(names, requires_grad=True), torch.tensor(places))
    loss = label_loss(vectors, labels, torch.tensor(7.0), (8, 4))
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    unknown = Labels(labels.vectors, torch.full((4,), -1))
    assert float(label_loss(vectors, unknown, torch.tensor(7.0), (8, 4))) == 0


def test_a_text_is_taught_by_direction_and_by_its_neighbours() -> None:
    rng = np.random.default_rng(3)
    a, b = (torch.tensor(rng.normal(size=(6, 5))) for _ in range(2))
    assert float(text_loss(3 * b, b)) == pytest.approx(0, abs=1e-12)
    unit = [x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (a, b)]
    pointwise = 1 - (unit[0] * unit[1]).sum(1).mean()
    pairs = ((unit[0] @ unit[0].T - unit[1] @ unit[1].T) ** 2).mean()
    assert float(text_loss(a, b)) == pytest.approx(pointwise + 10 * pairs)
