"""A shop in a Haystack pipeline: documents with a title and a photo in one vector, found by words.

pip install "moonshelf[haystack]"
python examples/with_haystack.py
"""

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.dataclasses import ByteStream
from haystack.document_stores.in_memory import InMemoryDocumentStore

from moonshelf.frameworks.haystack import MoonshelfDocumentEmbedder, MoonshelfTextEmbedder
from moonshelf.sample import shop

store = InMemoryDocumentStore(embedding_similarity_function="cosine")

fill = Pipeline()
fill.add_component("embedder", MoonshelfDocumentEmbedder("starter"))
fill.add_component("writer", DocumentWriter(store))
fill.connect("embedder", "writer")
documents = []
for product in shop(40).products:
    photo = ByteStream(product.images[0].data, mime_type="image/jpeg")
    documents.append(Document(id=product.id, content=product.title, blob=photo))
print(fill.run({"embedder": {"documents": documents}})["writer"]["documents_written"], "documents")

search = Pipeline()
search.add_component("embedder", MoonshelfTextEmbedder("starter"))
search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
search.connect("embedder.embedding", "retriever.query_embedding")
found = search.run({"embedder": {"text": "leather bag"}})["retriever"]["documents"]
for document in found:
    print(f"  {document.score:.2f}  {document.content}")
