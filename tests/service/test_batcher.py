"""The queue in front of the model: batches, budget, order, refusals, deadlines, cancelling, the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import wait
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshelf.service.batcher import Batcher, Expired, Kind, Overloaded, Stopped


class Slow:
    """Doubles numbers, one batch at a time, each only when `gate` is open; keeps what it was asked."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[Any]] = []

    def run(self, payloads: list[Any]) -> list[Any]:
        self.entered.set()
        assert self.gate.wait(10)
        self.batches.append(list(payloads))
        if "poison" in payloads:
            raise ValueError("poisoned")
        return [2 * payload for payload in payloads]


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int, int]] = []
        self.drops: list[str] = []

    def batch(self, kind: str, items: int, tokens: int, waited: Sequence[float], took: float) -> None:
        assert len(waited) == items and min(waited) >= 0 and took >= 0
        self.batches.append((kind, items, tokens))

    def dropped(self, reason: str) -> None:
        self.drops.append(reason)


def held(slow: Slow, batcher: Batcher, kind: str = "a") -> Any:
    """Keep the thread busy with one item until the gate opens."""
    slow.gate.clear()
    (first,) = batcher.submit(kind, [0], [1])
    assert slow.entered.wait(5)
    return first


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=8),
    st.integers(1, 100),
)
def test_every_item_is_computed_once_and_no_batch_passes_its_budget(
    requests: list[list[int]], budget: int
) -> None:
    slow, seen = Slow(), Seen()
    batcher = Batcher({"a": Kind(slow.run, budget)}, max_items=1000, max_tokens=100_000, observer=seen)
    futures = [batcher.submit("a", costs, costs) for costs in requests]
    results = [[future.result(10) for future in some] for some in futures]
    assert results == [[2 * cost for cost in costs] for costs in requests]
    assert sorted(x for batch in slow.batches for x in batch) == sorted(x for some in requests for x in some)
    assert all(sum(batch) <= budget or len(batch) == 1 for batch in slow.batches)
    batcher.close(5)
    assert sum(items for _, items, _ in seen.batches) == sum(map(len, requests))


def test_what_waits_while_the_model_computes_becomes_one_batch() -> None:
    slow = Slow()
    batcher = Batcher({"a": Kind(slow.run, 100)}, max_items=100, max_tokens=1000)
    first = held(slow, batcher)
    later = [batcher.submit("a", [i], [10])[0] for i in range(1, 9)]  # of eight callers
    slow.gate.set()
    wait([first, *later], 5)
    assert slow.batches == [[0], [1, 2, 3, 4, 5, 6, 7, 8]]
    batcher.close(5)


def test_the_first_of_an_idle_moment_waits_for_company() -> None:
    slow = Slow()
    batcher = Batcher({"a": Kind(slow.run, 100)}, max_items=100, max_tokens=1000, wait_s=0.5)
    futures = []
    for i in range(5):
        futures += batcher.submit("a", [i], [20])
        time.sleep(0.01)
    wait(futures, 5)
    assert slow.batches == [[0, 1, 2, 3, 4]]  # and the full budget ended the waiting
    batcher.close(5)


def test_long_work_lets_short_work_pass_but_does_not_wait_for_ever() -> None:
    slow = Slow()
    kinds = {"short": Kind(slow.run, 1), "long": Kind(slow.run, 1, handicap=0.2)}
    batcher = Batcher(kinds, max_items=100, max_tokens=1000)
    first = held(slow, batcher, "short")
    long = batcher.submit("long", [100], [1])
    passing = batcher.submit("short", [1], [1])
    time.sleep(0.3)
    late = batcher.submit("short", [2], [1])
    slow.gate.set()
    wait([first, *long, *passing, *late], 5)
    assert slow.batches == [[0], [1], [100], [2]]
    batcher.close(5)


def test_a_full_queue_refuses_the_whole_request_and_says_when_to_come_again() -> None:
    slow, seen = Slow(), Seen()
    batcher = Batcher({"a": Kind(slow.run, 10)}, max_items=4, max_tokens=40, observer=seen)
    first = held(slow, batcher)
    taken = batcher.submit("a", [1, 2, 3], [10, 10, 10])
    for payloads, costs in (([4, 5], [1, 1]), ([4], [11])):  # too many items, too many tokens
        with pytest.raises(Overloaded) as error:
            batcher.submit("a", payloads, costs)
        assert 1 <= error.value.retry_after <= 60
    assert batcher.waiting == 3 and seen.drops == ["queue full"] * 2
    slow.gate.set()
    assert [future.result(5) for future in (first, *taken)] == [0, 2, 4, 6]
    big = batcher.submit("a", list(range(9)), [1] * 9)  # alone it may be larger than the queue
    assert [future.result(5) for future in big] == [2 * i for i in range(9)]
    batcher.close(5)


def test_cancelled_and_late_work_is_never_computed() -> None:
    slow, seen = Slow(), Seen()
    batcher = Batcher({"a": Kind(slow.run, 100)}, max_items=100, max_tokens=1000, observer=seen)
    first = held(slow, batcher)
    (gone,) = batcher.submit("a", [1], [1])
    (late,) = batcher.submit("a", [2], [1], deadline=time.monotonic() + 0.05)
    (kept,) = batcher.submit("a", [3], [1])
    assert gone.cancel()
    time.sleep(0.1)
    slow.gate.set()
    assert kept.result(5) == 6 and first.result(5) == 0
    with pytest.raises(Expired):
        late.result(5)
    assert slow.batches == [[0], [3]] and sorted(seen.drops) == ["cancelled", "deadline"]
    batcher.close(5)


def test_one_callers_error_is_not_anothers() -> None:
    slow = Slow()
    batcher = Batcher({"a": Kind(slow.run, 100)}, max_items=100, max_tokens=1000)
    first = held(slow, batcher)
    good, bad, other = (batcher.submit("a", [payload], [1])[0] for payload in (1, "poison", 2))
    slow.gate.set()
    assert (first.result(5), good.result(5), other.result(5)) == (0, 2, 4)
    with pytest.raises(ValueError, match="poisoned"):
        bad.result(5)
    batcher.close(5)


def test_closing_finishes_what_was_taken_and_takes_nothing_new() -> None:
    slow = Slow()
    batcher = Batcher({"a": Kind(slow.run, 1)}, max_items=100, max_tokens=1000)
    first = held(slow, batcher)
    waiting = batcher.submit("a", [1, 2], [1, 1])
    closing = threading.Thread(target=batcher.close, args=(10,))
    closing.start()
    time.sleep(0.05)
    with pytest.raises(Stopped):
        batcher.submit("a", [3], [1])
    slow.gate.set()
    closing.join(10)
    assert [future.result(0) for future in (first, *waiting)] == [0, 2, 4]


def test_closing_refuses_what_is_left_after_its_time() -> None:
    slow = Slow()
    batcher = Batcher({"a": Kind(slow.run, 1)}, max_items=100, max_tokens=1000)
    held(slow, batcher)
    (left,) = batcher.submit("a", [1], [1])
    batcher.close(0.05)
    with pytest.raises(Stopped):
        left.result(5)
    slow.gate.set()
