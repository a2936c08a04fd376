"""A catalogue of another's encoder, served: both prompts, no rationales, no place on this machine told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serviceapp import serving

from moonshelf import Product
from moonshelf.catalogue.embed import embed_feed
from moonshelf.errors import UserError
from moonshelf.service.monitor import Monitor
from moonshelf.service.settings import Settings
from stock_models import make_bert

SHOP = [
    Product(id=str(i), title=title) for i, title in enumerate(("red shoe", "blue lamp", "green glass mug"))
]


def test_a_sentence_transformer_is_served(tmp_path: Path) -> None:
    model = make_bert(tmp_path / "theirs", {"query": "find: ", "document": "page: "})
    make_bert(tmp_path / "other")
    embed_feed(SHOP, tmp_path / "shelf", f"st:{tmp_path / 'theirs'}")
    with serving(tmp_path / "shelf") as client:
        card = client.get("/v1/models").json()["data"][0]
        assert (card["id"], card["dimensions"]) == ("st:theirs", 32)
        for side, wanted in (("query", model.encode_query), ("document", model.encode_document)):
            body = {"input": ["red shoe"], "model": "st:theirs", "input_type": side}
            found = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
            expected = wanted(["red shoe"], normalize_embeddings=True)[0]
            np.testing.assert_allclose(found, expected, atol=1e-5)
        hits = client.post("/v1/search", json={"text": "blue lamp", "mode": "vector"}).json()["hits"]
        asked = model.encode_query(["blue lamp"], normalize_embeddings=True)[0]
        stored = model.encode_document([p.title for p in SHOP], normalize_embeddings=True)
        assert [hit["product"]["id"] for hit in hits] == [str(i) for i in np.argsort(-stored @ asked)]
        refused = client.post("/v1/embeddings", json={"input": "red shoe", "reason": "on"})
        assert refused.status_code == 422 and "writes no rationales" in refused.json()["error"]["message"]
        stored_now = client.post(
            "/v1/products", json={"products": [{"id": "new", "title": "red canvas bag"}]}
        )
        assert stored_now.json()["new"] == 1
        assert str(tmp_path) not in client.get("/v1/catalogue").text


def test_another_encoder_is_refused_at_serve(tmp_path: Path) -> None:
    from moonshelf.service.catalogue_service import CatalogueService

    make_bert(tmp_path / "theirs")
    make_bert(tmp_path / "other", {"query": "find: ", "document": "page: "})
    embed_feed(SHOP, tmp_path / "shelf", f"st:{tmp_path / 'theirs'}")
    settings = Settings(folder=tmp_path / "shelf", model=f"st:{tmp_path / 'other'}")
    with pytest.raises(UserError, match=r"was embedded with model st:.*pass the model it was made with"):
        CatalogueService(settings, Monitor()).open()
