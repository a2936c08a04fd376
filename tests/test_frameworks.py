"""LangChain, LlamaIndex and Haystack, the real packages: their classes give the model's own vectors."""

from __future__ import annotations

import asyncio
import doctest
import importlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from moonshelf.errors import UserError
from moonshelf.frameworks import Vectors
from moonshelf.model.modeling import MoonModel
from moonshelf.product import ImageRef, Product
from tiny import picture

WORDS = ["red running shoe", "leather heels", "a mug"]
NEEDS = {"langchain": "langchain_core", "llama_index": "llama_index.core", "haystack": "haystack"}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(picture(3))
    return path


def own(model: MoonModel, *products: Product) -> np.ndarray:
    """What `encode` gives, which the classes must repeat."""
    return model.encode(products).vectors


def texts(*titles: str) -> list[Product]:
    return [Product(id=title, title=title) for title in titles]


def same(found: object, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(found, dtype=np.float32), expected, atol=1e-5)
    assert not isinstance(found, np.ndarray)  # the frameworks serialise plain floats


def test_langchain(model: MoonModel, photo: Path) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.vectorstores import InMemoryVectorStore

    from moonshelf.frameworks.langchain import MoonshelfEmbeddings

    embeddings = MoonshelfEmbeddings(model)
    expected = own(model, *texts(*WORDS))
    same(embeddings.embed_documents(WORDS), expected)
    same(embeddings.embed_query(WORDS[1]), expected[1])
    same(asyncio.run(embeddings.aembed_documents(WORDS)), expected)
    assert embeddings.embed_documents([]) == []
    both = Product(id="p", title=WORDS[0], images=(ImageRef(path=str(photo)),))
    bare = both.model_copy(update={"title": ""})
    same(embeddings.embed_image([str(photo), photo.read_bytes()]), own(model, bare, bare))
    same(embeddings.embed_products([both]), own(model, both))
    store = InMemoryVectorStore(embeddings)
    store.add_texts(WORDS)
    assert store.similarity_search(WORDS[2], k=1)[0].page_content == WORDS[2]


def test_llama_index(model: MoonModel, photo: Path) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import ImageNode, TextNode

    from moonshelf.frameworks.llama_index import MoonshelfEmbedding

    embedding = MoonshelfEmbedding(model, embed_batch_size=2)
    expected = own(model, *texts(*WORDS))
    same(embedding.get_text_embedding_batch(WORDS), expected)  # two batches
    same(embedding.get_query_embedding(WORDS[0]), expected[0])
    same(asyncio.run(embedding.aget_query_embedding(WORDS[0])), expected[0])
    image = own(model, Product(id="p", images=(ImageRef(path=str(photo)),)))
    twice = [str(photo), BytesIO(photo.read_bytes())]
    same(embedding.get_image_embedding_batch(twice), np.repeat(image, 2, 0))
    same(asyncio.run(embedding.aget_image_embedding(str(photo))), image[0])
    assert embedding.to_dict()["class_name"] == "MoonshelfEmbedding"
    index = VectorStoreIndex([TextNode(text=one) for one in WORDS], embed_model=embedding)
    assert index.as_retriever(similarity_top_k=1).retrieve(WORDS[1])[0].text == WORDS[1]
    node = ImageNode(image_path=str(photo))
    same(embedding.get_image_embedding(node.resolve_image()), image[0])


def test_haystack(model: MoonModel, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("haystack")
    from haystack import Document, Pipeline
    from haystack.dataclasses import ByteStream

    from moonshelf.frameworks import haystack

    monkeypatch.setattr("moonshelf.frameworks.load_model", lambda name: model)
    same(haystack.MoonshelfTextEmbedder().run(text=WORDS[0])["embedding"], own(model, *texts(WORDS[0]))[0])
    seen = ImageRef(path=str(photo))
    manual = ByteStream(b"%PDF", mime_type="application/pdf")
    documents = [
        Document(content=WORDS[0]),
        Document(content=WORDS[1], blob=ByteStream(photo.read_bytes(), mime_type="image/png")),
        Document(content=None, meta={"file_path": str(photo)}),
        Document(content=WORDS[2], meta={"file_path": "manual.txt"}, blob=manual),
    ]
    expected = own(
        model,
        Product(id="0", title=WORDS[0]),
        Product(id="1", title=WORDS[1], images=(seen,)),
        Product(id="2", images=(seen,)),
        Product(id="3", title=WORDS[2]),
    )
    pipeline = Pipeline()
    pipeline.add_component("embedder", haystack.MoonshelfDocumentEmbedder("starter"))
    for one in (
        pipeline,
        Pipeline.loads(pipeline.dumps(), allowed_modules=["moonshelf.frameworks.*"]),
    ):  # a saved pipeline names its model
        found = one.run({"embedder": {"documents": documents}})["embedder"]["documents"]
        same([document.embedding for document in found], expected)
        assert [document.id for document in found] == [document.id for document in documents]
    assert all(document.embedding is None for document in documents)


def test_bad_input_is_one_sentence(model: MoonModel, photo: Path) -> None:
    vectors = Vectors(model)
    with pytest.raises(ValueError, match=r"product '1': it has no text and no picture"):
        vectors.texts(["a shoe", "  "])
    photo.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"product '0': "):
        vectors.pictures([photo])
    with pytest.raises(ValueError, match=r"nothing\.png"):
        vectors.pictures([photo.with_name("nothing.png")])
    with pytest.raises(UserError, match="no model folder at 'nowhere'"):
        Vectors("nowhere").texts(["a shoe"])


@pytest.mark.parametrize("name", NEEDS)
def test_the_examples_of_the_docstrings(name: str) -> None:
    pytest.importorskip(NEEDS[name])
    module = importlib.import_module(f"moonshelf.frameworks.{name}")
    assert len(Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()) <= 60
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_the_example_of_what_they_share() -> None:
    assert doctest.testmod(importlib.import_module("moonshelf.frameworks")).failed == 0
