"""A shop in a LangChain vector store: found by words, and by a photo.

    pip install "moonshelf[langchain]"
    python examples/with_langchain.py

`InMemoryVectorStore` comes with LangChain; Chroma, FAISS, PGVector, Qdrant and the rest take the same object.
"""

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from moonshelf.frameworks.langchain import MoonshelfEmbeddings
from moonshelf.sample import shop

products = shop(40).products
embeddings = MoonshelfEmbeddings("starter")
store = InMemoryVectorStore(embeddings)
store.add_documents([Document(product.title, id=product.id) for product in products])

print("words")
for found, score in store.similarity_search_with_score("leather bag", k=3):
    print(f"  {score:.2f}  {found.page_content}")

# One space for words and pictures: the photo of a product that has another photo finds titles.
photo = products[0].images[-1].data
print(f"a photo of: {products[0].title}")
for found in store.similarity_search_by_vector(embeddings.embed_image([photo])[0], k=3):
    print(f"        {found.page_content}")
