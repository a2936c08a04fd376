"""Embed a CSV and search it: by words, by words within a filter, by a photo, and by likeness.

    python examples/embed_and_search.py

Writes `shop/` into the current folder. Run it again: the model reads nothing that has not changed.
"""

import csv
import json

from moonshelf import ImageRef, Product
from moonshelf.catalogue.search import Catalogue
from moonshelf.sample import shop, write_shop

# A feed as a shop exports it. Here it is the sample of the package, as a CSV with its photos beside it;
# put your own file in its place. `moonshelf check FEED` says what is wrong with one.
FEED = "shop/products.csv"
rows = [json.loads(line) for line in write_shop(shop(40), "shop").open(encoding="utf-8")]
with open(FEED, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["id", "title", "brand", "price", "image"])
    for row in rows:
        photo = row["images"][0]["path"]  # relative to the feed
        writer.writerow([row["id"], row["title"], row["brand"], f"{row['price']} {row['currency']}", photo])

# The columns are recognised by their names. With reason="on" the model first writes what it sees.
catalogue = Catalogue.create("shop/catalogue")
report = catalogue.embed(FEED, reason="on")
print(f"{report.new} new, {report.unchanged} unchanged, {report.rejected} rejected")
catalogue.index()


def show(title: str, **query) -> None:
    """Print the best three; `why` says at which place words and vectors had each."""
    print(f"\n{title}")
    for hit in catalogue.search(k=3, **query).hits:
        print(f"  {hit.score:.2f}  {hit.product['title']}  {hit.why}")


show("words", query="black leather bag")
show("words and a filter", query="bag", where="price < 60 AND written_category like 'accessories%'")

# A query is a product too: with a photo, or with a photo and words. This is another photo of the first row.
photo = ImageRef(path="shop/" + rows[0]["images"][1]["path"])
show("a photo", query=Product(id="query", images=(photo,)))
show("like the first product", like=rows[0]["id"])
