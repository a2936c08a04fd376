"""Fine-tune the starter on your own catalogue, and see that the result is a model like any other.

    pip install 'moonshelf[train]'
    python examples/fine_tune.py

Trains for a few steps on the sample of the package, so that it ends in a minute: enough to see that it
works, not enough to learn. Writes `tuned/` into the current folder; run again, it goes on from there.
"""

from pathlib import Path

from moonshelf import MoonModel
from moonshelf.sample import shop, write_shop
from moonshelf.training.cold_start import train_cold_start
from moonshelf.training.recipe import Recipe

# Any feed that `moonshelf check` reads; category and attributes of its rows are what the model learns to
# write. Hold some products back: what is shown of them says whether the training helps.
feed = write_shop(shop(40), "tuned/feed")

recipe = Recipe(
    model="starter",  # go on from it, with its tokenizer and prompt
    sources=[{"feed": "products.jsonl"}],
    out="tuned/run",
    steps=4,  # your catalogue: some hundreds
    batch=8,  # products that are each other's negatives: 64 where there is memory
    lr=5e-4,
    vision_lr=2.5e-4,
    self_generated_from=0.0,  # the starter can write already: let it read what it writes from the start
    memory=16,
)
checkpoint = train_cold_start(recipe, Path(feed).parent)

# `moonshelf train RECIPE.yaml --data FOLDER` does the same, with the same fields.
model = MoonModel.from_pretrained(checkpoint)
held_out = shop(48).products[40:]
out = model.encode(held_out, reason="on")
for product, rationale in zip(held_out, out.rationales, strict=True):
    print(product.title, "\n   ", rationale)

# Its vectors are others than the starter's: a catalogue is embedded anew with `--model tuned/run/checkpoint`.
print(f"fingerprint {model.fingerprint}; starter {MoonModel.from_pretrained('starter').fingerprint}")
