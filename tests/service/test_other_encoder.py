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
from stock_models import make_bert, make_cross_encoder

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


def test_a_reranker_is_served_and_falls_back_in_time(tmp_path: Path) -> None:
    make_bert(tmp_path / "theirs")
    judge = make_cross_encoder(tmp_path / "judge")
    embed_feed(SHOP, tmp_path / "shelf", f"st:{tmp_path / 'theirs'}")
    documents = [product.title for product in SHOP]
    wanted = judge.predict([("blue lamp", text) for text in documents])
    best = np.argsort(-wanted).tolist()
    with serving(tmp_path / "shelf", reranker=str(tmp_path / "judge"), rerank_s=60) as client:
        body = {"model": "judge", "query": "blue lamp", "documents": documents, "return_documents": True}
        reply = client.post("/v1/rerank", json=body).json()
        assert [one["index"] for one in reply["results"]] == best and reply["model"] == "judge"
        scores = [one["relevance_score"] for one in reply["results"]]
        np.testing.assert_allclose(scores, wanted[best], atol=1e-5)
        assert reply["results"][0]["document"] == {"text": documents[best[0]]}
        assert len(client.post("/v1/rerank", json={**body, "top_n": 1}).json()["results"]) == 1
        assert client.post("/v1/rerank", json={**body, "model": "other"}).status_code == 404
        found = client.post("/v1/search", json={"text": "blue lamp", "rerank": True}).json()
        assert found["reranked_by"] == "judge"
        assert [hit["product"]["id"] for hit in found["hits"]] == [str(i) for i in best]
        assert found["hits"][0]["why"]["fused_rank"] >= 1
    with serving(tmp_path / "shelf", reranker=str(tmp_path / "judge"), rerank_s=1e-6) as client:
        found = client.post("/v1/search", json={"text": "blue lamp", "rerank": True}).json()
        assert found["reranked_by"] is None and len(found["hits"]) == 3
        assert "did not answer within 1e-06 s: this is the order before reranking" in found["notes"][-1]
        late = client.post("/v1/rerank", json={"query": "blue lamp", "documents": documents})
        assert late.status_code == 503 and "did not answer" in late.json()["error"]["message"]
    with serving(tmp_path / "shelf") as client:
        for path, body in (
            ("search", {"text": "lamp", "rerank": True}),
            ("rerank", {"query": "lamp", "documents": ["a"]}),
        ):
            refused = client.post(f"/v1/{path}", json=body)
            assert refused.status_code == 422 and "no reranker" in refused.json()["error"]["message"]
