"""Write attributes back to a feed: what the model reads off photo and title fills the feed's empty cells.

    python examples/attributes_to_feed.py

Writes `attributes/products.csv` and `attributes/filled.csv` into the current folder.
"""

import csv
import json

from moonshelf import MoonModel
from moonshelf.attributes import canonical
from moonshelf.feeds import read_feed
from moonshelf.prompts import read_rationale
from moonshelf.sample import shop, write_shop

FIELDS = ("colour", "material", "pattern")  # columns of the feed that may be filled
SURE = 0.5  # pairs of which the model is less sure stay out; see docs/attributes.md

# A feed whose colours are known for every second product only; put your own file in its place.
FEED = "attributes/products.csv"
rows = [json.loads(line) for line in write_shop(shop(24), "attributes").open(encoding="utf-8")]
with open(FEED, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["id", "title", "image", *FIELDS])
    for number, row in enumerate(rows):
        colour = row["attributes"]["colour"] if number % 2 else ""
        writer.writerow([row["id"], row["title"], row["images"][0]["path"], colour, "", ""])

# The model writes its attributes as `key: value; …` and says of each pair how sure it is.
products = list(read_feed(FEED))
written = MoonModel.from_pretrained("starter").encode(products, reason="on")
found: dict[str, dict[str, str]] = {}
for id, rationale, confidence in zip(written.ids, written.rationales, written.confidence, strict=True):
    pairs = read_rationale(rationale) or {}  # None where the format was not kept
    sure = {key: pairs[key] for key, c in zip(pairs, confidence, strict=False) if c >= SURE}
    found[id] = canonical(sure)  # "color" and "colour" are one key

# Only empty cells are filled, and a column says which: a guess must not pass for what the seller said.
filled: list[tuple[str, str, str]] = []
with open(FEED, encoding="utf-8") as old, open("attributes/filled.csv", "w", newline="") as new:
    reader = csv.DictReader(old)
    copy = csv.DictWriter(new, [*(reader.fieldnames or ()), "written_by_model"])
    copy.writeheader()
    for row in reader:
        mine = {key: found[row["id"]][key] for key in FIELDS if not row[key] and key in found[row["id"]]}
        copy.writerow({**row, **mine, "written_by_model": " ".join(mine)})
        filled += [(row["id"], key, value) for key, value in mine.items()]

# The sample was drawn, so here the truth is known. Of your own feed, look at some before you publish any.
truth = shop(24).truth
right = sum(truth[id].attributes.get(key) == value for id, key, value in filled)
print(f"{len(filled)} empty cells filled in attributes/filled.csv, {right} of them as the product was drawn")
