"""Creatives in the service: pairs of all callers judged together, in the model's thread.

The judge is loaded with the service; where it cannot be, the endpoints say why and the rest of the service
works. Rankings ask pair after pair through the same queue, from a thread of their own.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moonshelf.creatives.schema import CAVEAT, Campaign, Creative, Judgement, Pair
from moonshelf.errors import ImageError, UserError
from moonshelf.product import ImageRef
from moonshelf.service.batcher import Batcher, Kind
from moonshelf.service.inputs import BadInput
from moonshelf.service.pools import Pools

if TYPE_CHECKING:
    from moonshelf.creatives.backends.base import PairwiseBackend
    from moonshelf.creatives.ranking import Ranking

log = logging.getLogger("moonshelf.service")

JUDGE = "judge"
PAIR_TOKENS = 512  # what a pair counts in the queue: two pictures, twice, and the reasons


class Unavailable(Exception):
    """The service has no judge; the message says why."""


class CreativeService:
    """The judge of creatives, by the name of a backend; `off` is none."""

    def __init__(self, name: str, budget: int) -> None:
        self.name, self.budget = name, budget
        self.backend: PairwiseBackend | None = None
        self.why = "this service was started without a judge of creatives (creative_model is off)"
        self._batcher: Batcher | None = None

    def open(self) -> dict[str, Kind]:
        """Load the judge; returns the kind of work that it does, for the batcher."""
        if self.name == "off":
            return {}
        from moonshelf.creatives.backends.names import make_backend

        try:
            self.backend = make_backend(self.name)
        except UserError as error:
            self.why = "this service could not load its judge of creatives: its log says why"
            log.warning("no judge of creatives: %s", error)
            return {}
        return {JUDGE: Kind(self._run, self.budget, handicap=0.5)}

    def attach(self, batcher: Batcher) -> None:
        self._batcher = batcher

    @property
    def note(self) -> str:
        """What stands under every verdict."""
        return f"Judged by {self.judge}. {CAVEAT}"

    @property
    def judge(self) -> str:
        return self.backend.described if self.backend is not None else ""

    def _run(self, pairs: list[Pair]) -> list[Judgement]:
        from moonshelf.creatives.selector import judge

        assert self.backend is not None
        return judge(self.backend, pairs)

    def _submit(self, pairs: Sequence[Pair], deadline: float) -> list[Any]:
        if self.backend is None or self._batcher is None:
            raise Unavailable(self.why)
        return self._batcher.submit(JUDGE, pairs, [PAIR_TOKENS] * len(pairs), deadline)

    async def compare(self, pair: Pair, deadline: float = math.inf) -> Judgement:
        """One pair, judged in both orders. Raises Unavailable, Overloaded, Expired or Stopped."""
        (future,) = self._submit([pair], deadline)
        judgement: Judgement = await asyncio.wrap_future(future)
        return judgement

    async def rank(
        self, campaign: Campaign, budget: int | None, pools: Pools, deadline: float = math.inf
    ) -> Ranking:
        """An order of the creatives. Raises as `compare`, and UserError for a budget that is too small."""
        from moonshelf.creatives.ranking import rank

        if self.backend is None:
            raise Unavailable(self.why)
        gone = asyncio.Event()
        asked: list[Any] = []

        def ask(pairs: Sequence[Pair]) -> list[Judgement]:
            if gone.is_set():  # the caller does not wait any more
                raise asyncio.CancelledError
            asked[:] = self._submit(pairs, deadline)
            return [future.result() for future in asked]

        try:
            ranking: Ranking = await pools.run("rank", rank, campaign, ask, budget=budget)
        except asyncio.CancelledError:
            gone.set()
            for future in asked:
                future.cancel()
            raise
        return ranking.model_copy(update={"judge": self.backend.name})


def creative(id: str, ref: ImageRef, text: str, param: str) -> Creative:
    """One creative whose picture decodes, with the words on it. Raises BadInput."""
    try:
        return Creative.read(id, ref, text)
    except (ImageError, ValueError) as error:
        raise BadInput(param, str(error)) from None
