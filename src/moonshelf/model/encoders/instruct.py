"""Rationales by an instruct model, vectors by an embedding model: reasoning without training.

A writer is told in one prompt (`INSTRUCTION`, with a version) to name a product's attributes. What it writes
becomes a rationale in our own format, read and counted like any other, and is appended to the product's words
before the encoder reads them: the vector is the encoder's, and a query's vector stays what it was. For 7 B
Think-Then-Embed (arXiv 2510.05014) found that this alone helps; docs/experiments.md says what it does here.

A server is asked to keep to a JSON schema while it writes (guided decoding), where it knows such a thing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from moonshelf import images
from moonshelf.endpoints import Endpoint, EndpointError, picture_part
from moonshelf.errors import Problem, UserError
from moonshelf.files import read_json
from moonshelf.model.encoders.base import Numbered, Reason, Run, Written
from moonshelf.model.encoders.stream import Streamed
from moonshelf.product import Product
from moonshelf.prompts import END_THINK, THINK, clean_text, read_rationale, write_rationale

VERSION = 1  # of the instruction; a catalogue keeps it, since another one gives other rationales
INSTRUCTION = (
    "You see one product of a shop: its pictures, its words, or both. Describe it as one JSON object, and "
    "write nothing else. The first key is category, from general to specific with > between. Other keys: "
    "{keys}. Values are short, in lower case and in English. Name only what can be seen or read, leave out a "
    "key rather than guess, and do not copy the title."
)
KEYS = ("colour", "pattern", "material", "shape", "gender", "use", "style")
MOST_TOKENS = 192  # of an answer
MOST_PICTURES, SIDE = 2, 512  # that a writer is shown, pixels
REQUESTS, BATCH = 16, 8  # at a time: of a server, in this process


class Answer(NamedTuple):
    text: str
    closed: bool  # the writer ended it itself, before the limit


class TextWriter(Protocol):
    """Answers a prompt about each product; `name` says which model it is, wherever it runs."""

    name: str
    prompted: bool  # False where it writes in its own way

    def answers(self, products: Sequence[Product], prompts: Sequence[str]) -> list[Answer]: ...


def rationale_of(text: str) -> str:
    """An answer as a rationale, "" where it holds no attributes: JSON, also in a fence, or our own format.

    >>> rationale_of('```json\\n{"category": "Shoes > Heels", "colour": ["Red", "black"]}\\n```')
    '<think>category: shoes > heels; colour: red, black</think>'
    >>> rationale_of("I cannot help with that.")
    ''
    """
    found: Any = read_rationale(text.strip())
    if "{" in text:
        try:
            found = json.loads(text[text.index("{") : text.rindex("}") + 1])
        except (ValueError, RecursionError):
            return ""
    flat = {
        str(key).lower(): ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, str | int | float | list) and not isinstance(value, bool)
    }
    category = [part.strip() for part in flat.pop("category", "").split(">")]
    body = write_rationale(tuple(filter(None, category)), flat)
    return f"{THINK}{body}{END_THINK}" if read_rationale(body) is not None else ""


class Reasoned(Streamed):
    """An encoder with a writer, as `base.Encoder`. `keys` maps names of categories to the attributes that are
    asked of products in them; `KEYS` are asked of all others.

    A product whose answer did not end, or holds no attributes, has the encoder's plain vector, and a
    rationale that counts as failed.
    """

    writes = True

    def __init__(
        self, encoder: Any, writer: TextWriter, keys: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.encoder, self.writer, self.asked = encoder, writer, dict(keys or {})
        self._keys = {name.casefold(): tuple(names) for name, names in self.asked.items()}
        self._some_closed = False

    def __getattr__(self, name: str) -> Any:
        """The rest is the encoder's own: fingerprint, dim, prompt, reads, queries, budget, source …"""
        if name == "encoder":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.encoder, name)

    @property
    def written_by(self) -> dict[str, Any]:
        """What a catalogue keeps of how its rationales were asked for."""
        asked = {"instruction": INSTRUCTION, "keys": self.asked} if self.writer.prompted else {}
        return {"version": VERSION, "writer": self.writer.name, **asked}

    def prompt_for(self, product: Product) -> str:
        """The instruction with the keys of the deepest of the product's categories that is known."""
        known = (self._keys.get(name.casefold()) for name in reversed(product.category))
        return INSTRUCTION.format(keys=", ".join(next(filter(None, known), KEYS)))

    def read_rows(self, numbered: Sequence[Numbered], reason: Reason) -> tuple[list[Any], list[Problem]]:
        """Rows of the encoder, with what was written for them. Raises UserError where the writer fails, or
        ends none of its first answers."""
        if reason == "off":
            rows, problems = self.encoder.read_rows(numbered, "off")
            return rows, problems
        products = [product for _, (product, _) in numbered]
        answers = self.writer.answers(products, [self.prompt_for(product) for product in products])
        self._some_closed |= any(answer.closed for answer in answers)
        if not self._some_closed:
            raise UserError(
                f"the writer {self.writer.name} ended none of its first {len(answers)} answers within "
                f"{MOST_TOKENS} tokens, so none was used: take an instruct model, or --reason off."
            )
        written = [rationale_of(answer.text) if answer.closed else "" for answer in answers]
        shown = [
            (number, self._with(product, text))
            for (number, (product, _)), text in zip(numbered, written, strict=True)
        ]
        rows, problems = self.encoder.read_rows(shown, "off")
        by_number = {number: i for i, (number, _) in enumerate(numbered)}
        for row in rows:
            row.answer, row.rationale_text = (found[by_number[row.index]] for found in (answers, written))
        return rows, problems

    def _with(self, product: Product, rationale: str) -> tuple[Product, str]:
        """As the encoder reads a rationale: given to it, or as words where it has never seen one."""
        if self.encoder.prompt.max_rationale_tokens or not rationale:
            return product, rationale
        body = rationale.removeprefix(THINK).removesuffix(END_THINK)
        return product.model_copy(update={"title": f"{product.title}\n{body}".strip()}), ""

    def runner(self, reason: Reason, batch_tokens: int) -> Run:
        if reason == "auto":
            raise UserError("with a writer a rationale is written for every product: set reason to on.")
        compute = self.encoder.runner("off", batch_tokens)

        def run(rows: list[Any]) -> list[Written]:
            results: list[Written] = compute(rows)
            for row, result in zip(rows, results, strict=True) if reason == "on" else ():
                text, result.closed = row.answer
                # What was answered instead is kept, so that people can see why it failed.
                kept = f"{THINK}{clean_text(text)[:400]}{END_THINK}"
                result.rationale, result.valid = row.rationale_text or kept, bool(row.rationale_text)
                result.ids = result.ids or [0] * len(text.split())  # its own tokens are not known here
            return results

        return run


def read_keys(path: str | Path) -> dict[str, list[str]]:
    """Attributes by category, from JSON such as {"Shoes": ["heel height", "material"]}. Raises UserError."""
    found = read_json(Path(path)) if Path(path).is_file() else None
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(one, list) and one and all(isinstance(key, str) for key in one) for one in lists):
        raise UserError(
            f'{path} should hold attributes by category: {{"Shoes": ["heel height", "material"]}}.'
        )
    return dict(found or {})


# ---- writers ---------------------------------------------------------------------------------------


def writer_at(address: str) -> TextWriter:
    """The writer of URL#MODEL (vLLM's server too), or a folder or name of a model in this process."""
    served = address.startswith(("http://", "https://"))
    return ServedInstruct(address) if served else LocalInstruct(address)


def _schema(prompt: str) -> dict[str, Any]:
    """What guided decoding keeps an answer to: an object of short strings, category first."""
    keys = prompt.partition("Other keys: ")[2].partition(". ")[0].split(", ")
    properties = {key: {"type": "string", "maxLength": 60} for key in ("category", *keys)}
    return {
        "type": "object", "properties": properties, "required": ["category"], "additionalProperties": False
    }  # fmt: skip


def _pictures(product: Product) -> list[Any]:
    """Pictures that a writer is shown; none where one is broken, which the encoder says of the product."""
    try:
        return [images.load(ref, max_side=SIDE) for ref in product.images[:MOST_PICTURES]]
    except images.ImageError:
        return []


def _words(product: Product) -> list[dict[str, str]]:
    """Title and description, which are data and stand behind the instruction."""
    text = clean_text(f"{product.title}\n{product.description}")[:1_000]
    return [{"type": "text", "text": text}] if text else []


def _message(product: Product, prompt: str) -> list[dict[str, Any]]:
    pictures = [picture_part(picture) for picture in _pictures(product)]
    return [{"role": "user", "content": [{"type": "text", "text": prompt}, *pictures, *_words(product)]}]


class ServedInstruct:
    """An OpenAI-compatible server. A schema is left out for good where the server does not know it."""

    def __init__(self, address: str, timeout: float = 120.0) -> None:
        self.endpoint = Endpoint(address, "/chat/completions", "writer", timeout, max_bytes=1 << 20)
        self.name, self.prompted, self.guided = self.endpoint.model, True, True

    def answers(self, products: Sequence[Product], prompts: Sequence[str]) -> list[Answer]:
        with ThreadPoolExecutor(max_workers=REQUESTS, thread_name_prefix="moonshelf-writer") as threads:
            return list(threads.map(self._answer, products, prompts))

    def _answer(self, product: Product, prompt: str) -> Answer:
        body = {"messages": _message(product, prompt), "temperature": 0.0, "max_tokens": MOST_TOKENS}
        form = {"name": "attributes", "schema": _schema(prompt)}
        guide = {"response_format": {"type": "json_schema", "json_schema": form}} if self.guided else {}
        try:
            reply = self.endpoint.post(body | guide)
        except EndpointError as error:
            if not guide or error.status not in (400, 422):
                raise
            self.guided = False
            reply = self.endpoint.post(body)
        try:
            choice = json.loads(reply)["choices"][0]
            return Answer(str(choice["message"]["content"] or ""), choice.get("finish_reason") == "stop")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(
                f"the writer {self.endpoint.host} answered product {product.id!r} with no text"
            ) from None


class LocalInstruct:
    """An instruct model of the Qwen-VL family or a chat model of words, by `generate`; or one of ours, which
    writes in its own way and needs no prompt."""

    def __init__(self, name: str) -> None:
        from moonshelf.model import files
        from moonshelf.model.stock import check_folder, load_model

        folder = files.find(name, False)
        self.name, self.own, self.prompted = folder.name, None, True
        if (folder / "moon.json").is_file():
            from moonshelf.model.modeling import MoonModel

            self.own = MoonModel.from_pretrained(folder)
            self.name, self.prompted = f"{self.name} ({self.own.fingerprint})", False
            return
        check_folder(folder)
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

        from moonshelf.model.processing import MoonProcessor

        self.sees = read_json(folder / "config.json").get("model_type") in files.MODEL_TYPES
        auto = AutoModelForImageTextToText if self.sees else AutoModelForCausalLM
        self.model, _, _ = load_model(auto, folder)
        reader: Any = MoonProcessor if self.sees else AutoTokenizer
        self.reader = reader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        self.tokenizer = self.reader.tokenizer if self.sees else self.reader
        if not self.tokenizer.chat_template:
            raise UserError(f"{self.name} has no chat template: it takes an instruct model to write.")
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token

    def answers(self, products: Sequence[Product], prompts: Sequence[str]) -> list[Answer]:
        if self.own is not None:
            found = self.own.encode(products, reason="on", on_error="report")
            pairs = [Answer(*pair) for pair in zip(found.rationales, found.valid.tolist(), strict=True)]
            by_row = dict(zip(found.row_index.tolist(), pairs, strict=True))
            return [by_row.get(i, Answer("", False)) for i in range(len(products))]
        parts = [slice(at, at + BATCH) for at in range(0, len(products), BATCH)]
        return [answer for part in parts for answer in self._batch(products[part], prompts[part])]

    def _batch(self, products: Sequence[Product], prompts: Sequence[str]) -> list[Answer]:
        import torch

        pictures = [_pictures(product) if self.sees else [] for product in products]
        texts = []
        for product, prompt, shown in zip(products, prompts, pictures, strict=True):
            content: Any = [
                {"type": "text", "text": prompt},
                *[{"type": "image"}] * len(shown),
                *_words(product),
            ]
            if not self.sees:
                content = "\n".join(part["text"] for part in content)
            turn = [{"role": "user", "content": content}]
            texts.append(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        given = {"images": [one for shown in pictures for one in shown] or None} if self.sees else {}
        inputs = self.reader(text=texts, padding=True, return_tensors="pt", add_special_tokens=False, **given)
        ends = {self.tokenizer.eos_token_id, *np.atleast_1d(self.model.generation_config.eos_token_id or [])}
        with torch.inference_mode():
            output = self.model.generate(
                **inputs.to(self.model.device), max_new_tokens=MOST_TOKENS, do_sample=False,
                eos_token_id=[int(end) for end in ends], pad_token_id=self.tokenizer.pad_token_id,
            )  # fmt: skip
        ids = output[:, inputs["input_ids"].shape[1] :].tolist()
        written = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [Answer(text, not ends.isdisjoint(row)) for text, row in zip(written, ids, strict=True)]
