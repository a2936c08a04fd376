"""A shop in a LlamaIndex vector store: nodes found by words and by a photo.

pip install "moonshelf[llama-index]"
python examples/with_llama_index.py
"""

from io import BytesIO

from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore, VectorStoreQuery

from moonshelf.frameworks.llama_index import MoonshelfEmbedding
from moonshelf.sample import shop

products = shop(40).products
model = MoonshelfEmbedding("starter")
# The model is a transformation too: calling it with nodes fills in their embeddings.
nodes = model([TextNode(id_=product.id, text=product.title) for product in products])
titles = {node.id_: node.text for node in nodes}
store = SimpleVectorStore()
store.add(nodes)


def show(name: str, embedding: list[float]) -> None:
    found = store.query(VectorStoreQuery(query_embedding=embedding, similarity_top_k=3))
    print(name)
    for id, score in zip(found.ids, found.similarities, strict=True):
        print(f"  {score:.2f}  {titles[id]}")


show("words", model.get_query_embedding("leather bag"))
photo = BytesIO(products[0].images[-1].data)
show(f"a photo of: {products[0].title}", model.get_image_embedding(photo))
