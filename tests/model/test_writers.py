"""Rationales written elsewhere: the same ids give the same vectors, and what is not ours is refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from moonshelf.cli.export import export_vllm
from moonshelf.errors import UserError
from moonshelf.model import engine
from moonshelf.model.modeling import MoonModel
from moonshelf.model.writers import Apart, Body, Offline, Served, opened, pictures, pool
from moonshelf.product import ImageRef, Product
from research.studies.generated import Generated
from writer_stub import Told, offline, serving


@pytest.fixture(scope="module")
def server(model: MoonModel) -> Iterator[Told]:
    with serving(copy.deepcopy(model)) as told:
        yield told


@pytest.fixture(autouse=True)
def honest(server: Told) -> None:
    server.fault = ""
    server.requests.clear()


def rows_of(model: MoonModel, products: list[Product]) -> list[engine.Row]:
    rows, problems = engine.read_rows(model, list(enumerate((p, "") for p in products)), "on")
    assert not problems
    return rows


def test_pictures_come_back_as_they_entered(model: MoonModel, products: list[Product]) -> None:
    """Cut again, a restored picture gives the same patches: a server's processor has nothing left to do."""
    for row in rows_of(model, products):
        restored = pictures(model, row)
        assert len(restored) == len(row.image_tokens)
        if restored:
            patches, grid = model.prepare.cut(restored)
            np.testing.assert_array_equal(patches, row.patches)
            np.testing.assert_array_equal(grid, row.grid)


@pytest.mark.parametrize("family", ["model", "model_2_5"])
def test_generate_writes_what_the_engine_writes(
    request: pytest.FixtureRequest, products: list[Product], family: str
) -> None:
    model: MoonModel = request.getfixturevalue(family)
    ours = engine.runner(model, "on", 4096)(rows_of(model, products))
    rows = rows_of(model, products)
    bodies = Generated().write(model, rows)
    assert [body.ids for body in bodies] == [one.ids for one in ours]
    assert [body.closed for body in bodies] == [one.closed for one in ours]
    assert {body.closed for body in bodies} == {True, False}, "both endings should be among them"
    for mine, theirs in zip(pool(model, rows, bodies, 4096), ours, strict=True):
        np.testing.assert_allclose(mine.vector, theirs.vector, atol=1e-5)
        assert (mine.rationale, mine.valid, mine.tokens) == (theirs.rationale, theirs.valid, theirs.tokens)


@pytest.mark.parametrize("fault", ["", "unsaid"])
def test_a_server_writes_and_the_engine_pools(
    model: MoonModel, products: list[Product], server: Told, fault: str
) -> None:
    server.fault = fault
    ours = model.encode(products, reason="on")
    apart = opened(model, server.url)
    theirs = apart.encode(products, reason="on")
    assert theirs.rationales == ours.rationales and theirs.ids == ours.ids
    np.testing.assert_allclose(theirs.vectors, ours.vectors, atol=1e-5)
    np.testing.assert_allclose(theirs.weights, ours.weights, atol=1e-5)
    assert (theirs.valid == ours.valid).all() and (theirs.tokens == ours.tokens).all()
    assert (apart.fingerprint, apart.dim, apart.prompt) == (model.fingerprint, model.dim, model.prompt)
    assert len(server.requests) == len(products)


@pytest.mark.parametrize("family", ["model", "model_2_5"])
def test_vllm_in_this_process_writes_and_the_engine_pools(
    request: pytest.FixtureRequest,
    products: list[Product],
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: MoonModel = request.getfixturevalue(family)
    monkeypatch.setitem(sys.modules, "vllm", offline(copy.deepcopy(model)))
    export_vllm(model, tmp_path / "export")
    ours = model.encode(products, reason="on")
    theirs = opened(model, str(tmp_path / "export")).encode(products, reason="on")
    assert theirs.rationales == ours.rationales and (theirs.valid == ours.valid).all()
    np.testing.assert_allclose(theirs.vectors, ours.vectors, atol=1e-5)


def test_vllm_in_this_process_is_checked(
    model: MoonModel, products: list[Product], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "export")
    with pytest.raises(UserError, match="is no export of this model"):
        Offline(model, folder)
    export_vllm(model, folder)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"needs vllm: install moonshelf\[vllm\]"):
        Offline(model, folder)
    monkeypatch.setitem(sys.modules, "vllm", offline(copy.deepcopy(model), "prompt"))
    with pytest.raises(UserError, match=r"has read product .* otherwise than this model does"):
        opened(model, folder).encode(products, reason="on")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.project.weight.mul_(2)
    other.source = None
    other.__dict__.pop("fingerprint", None)
    with pytest.raises(UserError, match="is no export of this model"):
        Offline(other, folder)


def test_direct_vectors_ask_no_server(model: MoonModel, products: list[Product], server: Told) -> None:
    apart = opened(model, server.url)
    np.testing.assert_array_equal(apart.encode(products).vectors, model.encode(products).vectors)
    assert not server.requests
    with pytest.raises(UserError, match="set reason to on"):
        apart.encode(products, reason="auto")


def test_broken_products_are_reported_in_their_place(
    model: MoonModel, products: list[Product], server: Told
) -> None:
    broken = Product(id="broken", images=(ImageRef(data=b"no picture"),))
    parts = list(opened(model, server.url).encode_iter([products[0], broken, products[1]], reason="on"))
    assert [id for part in parts for id in part.ids] == [products[0].id, products[1].id]
    [problem] = [problem for part in parts for problem in part.problems]
    assert (problem.id, problem.row) == ("broken", 2)
    with pytest.raises(engine.EncodingError, match="broken"):
        opened(model, server.url).encode([broken], reason="on")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("prompt", "has read product 'text' otherwise than this model does .token 1 is"),
        ("silent", "has to know `return_token_ids`"),
        ("banned", "which a rationale cannot hold"),
        ("empty", "with no completion"),
    ],
)
def test_what_is_not_ours_is_refused(
    model: MoonModel, products: list[Product], server: Told, fault: str, words: str
) -> None:
    server.fault = fault
    with pytest.raises(UserError, match=words):
        opened(model, server.url).encode(products[:1], reason="on")


def test_another_model_on_the_server_is_not_taken(
    model: MoonModel, products: list[Product], server: Told
) -> None:
    other = copy.deepcopy(model)
    other.__dict__.pop("fingerprint", None)  # computed once, and copied along
    other.head.norm.bias.data += 1.0
    with pytest.raises(UserError, match="404"):
        opened(other, server.url).encode(products[:1], reason="on")


def test_every_setting_of_the_sampling_is_named(model: MoonModel, products: list[Product]) -> None:
    body = Served(model, "http://127.0.0.1:1/v1").request(model, rows_of(model, products)[1])
    assert body["temperature"] == 0 and body["repetition_penalty"] == 1 and body["return_token_ids"]
    assert body["stop_token_ids"] == [model.prepare.end_think]
    assert (
        str(model.prepare.emb) in body["logit_bias"]
        and str(model.prepare.end_think) not in body["logit_bias"]
    )


def test_a_writer_is_anything_that_writes(model: MoonModel, products: list[Product]) -> None:
    class Fixed:
        def write(self, model: MoonModel, rows: list[engine.Row]) -> list[Body]:
            ids = model.prepare.ids("colour: red")
            return [Body(ids, True) for _ in rows]

    out = Apart(model, Fixed()).encode(products, reason="on")
    given = model.encode(products, rationales=["colour: red"] * len(products))
    np.testing.assert_allclose(out.vectors, given.vectors, atol=1e-6)
    assert out.valid.all() and set(out.rationales) == {"<think>colour: red</think>"}
