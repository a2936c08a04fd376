"""Rationales written elsewhere, vectors pooled here.

A writer gives the token ids of a rationale; one teacher-forced pass of our engine over product, `<think>`,
those ids, `</think><emb>` then gives the vector. Only ids travel, since text that is cut into tokens again
may become other tokens. Two writers: `Served`, an OpenAI-compatible server that knows vLLM's extensions, and
`Offline`, vLLM in this process. `research/studies/generated.py` has a third, transformers' own `generate`.

vLLM gets each picture as it enters the model, scaled to its grid and without loss, so that its own image
processor has nothing left to do; the answer is opened with `<think>`, and vLLM says which tokens it has read:
if they are not ours, to the last one, that is an error and not another vector.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image

from moonshelf.endpoints import Endpoint
from moonshelf.errors import Problem, UserError
from moonshelf.model import engine
from moonshelf.model.decode import banned_tokens, reserved_tokens
from moonshelf.model.encoders.base import BOTH, Numbered, Reason, Run, Written
from moonshelf.model.encoders.stream import Streamed
from moonshelf.model.engine import Row
from moonshelf.model.files import read_json
from moonshelf.prompts import THINK

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel

REQUESTS = 32  # at a time: the server batches them
RECORD = "moonshelf.json"  # of an export: which model it was written from
_BAN = -100.0  # the lowest bias that the protocol takes


@dataclass(frozen=True)
class Body:
    """What a writer gave for one row."""

    ids: list[int]  # tokens between `<think>` and `</think>`
    closed: bool  # it wrote `</think>` itself, before the limit
    prompt: list[int] | None = None  # the tokens that it read, where it says so


class Writer(Protocol):
    """Writes the rationales of rows that were read for `reason="on"`."""

    def write(self, model: MoonModel, rows: Sequence[Row]) -> list[Body]: ...


# ---- pooling ---------------------------------------------------------------------------------------


def pool(model: MoonModel, rows: Sequence[Row], bodies: Sequence[Body], batch_tokens: int) -> list[Written]:
    """Vectors of rows with the rationales that were written for them, in their order, in one pass."""
    prepare = model.prepare
    for row, body in zip(rows, bodies, strict=True):
        row.given = [prepare.think, *body.ids, prepare.end_think, prepare.emb]
    results = engine.runner(model, "off", batch_tokens)(list(rows))
    for result, body in zip(results, bodies, strict=True):
        result.closed, result.valid = body.closed, result.valid and body.closed
    return results


class Apart(Streamed):
    """A `MoonModel` whose rationales a writer writes; encodes like one. While one window is pooled, the next
    is read and written, as a whole: a writer has the more to batch."""

    reads, writes, queries = BOTH, True, None

    def __init__(self, model: MoonModel, writer: Writer) -> None:
        self.model, self.writer = model, writer
        self.fingerprint, self.dim = model.fingerprint, model.dim
        self.prompt, self.source = model.prompt, model.source

    def read_rows(self, numbered: Sequence[Numbered], reason: Reason) -> tuple[list[Any], list[Problem]]:
        return self.model.read_rows(numbered, reason)

    def read_window(
        self, source: Iterator[Numbered], tokens: int, reason: Reason
    ) -> tuple[list[Any], list[Problem]]:
        rows, problems = super().read_window(source, tokens, reason)
        if rows and reason == "on":
            for row, body in zip(rows, self.writer.write(self.model, rows), strict=True):
                row.body = body
        return rows, problems

    def runner(self, reason: Reason, batch_tokens: int) -> Run:
        """Raises UserError for `auto`."""
        if reason == "auto":
            raise UserError("with a writer a rationale is written for every product: set reason to on.")
        if reason == "off":
            return self.model.runner("off", batch_tokens)
        return lambda rows: pool(self.model, rows, [row.body for row in rows], batch_tokens)

    def budget(self, reason: Reason, tokens: int) -> int:
        return self.model.budget(reason, tokens) if reason == "off" else tokens


def body_of(model: MoonModel, ids: list[int], prompt: list[int] | None = None) -> Body:
    """What was written, as our engine counts it: up to `</think>`, or cut at the limit."""
    end, limit = model.prepare.end_think, model.prompt.max_rationale_tokens
    place = ids.index(end) if end in ids else len(ids)
    return Body(ids[: min(place, limit)], end in ids and place <= limit, prompt)


# ---- a server --------------------------------------------------------------------------------------


def served_name(model: MoonModel) -> str:
    """How an exported model is to be called on a server, so that another one cannot be taken for it."""
    return f"moonshelf-{model.fingerprint}"


def opened(model: Any, address: str, keys: str | None = None) -> Any:
    """An encoder with its rationales written at `address`: by what was exported of it (see `at`), or, where
    it has not learned to read them or the address says `instruct:`, by `encoders.instruct`.

    `keys` is a file of the attributes that are asked for, by category.
    """
    other = address.removeprefix("instruct:")
    if model.writes and other == address:
        if keys:
            raise UserError(
                "attributes by category are asked of an instruct model: name it as instruct:WRITER."
            )
        return Apart(model, at(model, address))
    from moonshelf.model.encoders.instruct import Reasoned, read_keys, writer_at

    return Reasoned(model, writer_at(other), read_keys(keys) if keys else None)


def at(model: MoonModel, address: str, *, strict: bool = True) -> Writer:
    """vLLM at a URL, at URL#MODEL for another name there, or in this process on the folder of an export.

    `strict` False leaves it to the caller to compare the prompt's tokens with ours.
    """
    if address.startswith(("http://", "https://")):
        return Served(model, address, strict=strict)
    return Offline(model, address, strict=strict)


class Served:
    """vLLM's server, or one that answers like it; several requests at a time."""

    def __init__(
        self, model: MoonModel, address: str, *, strict: bool = True, timeout: float = 120.0
    ) -> None:
        """`strict`: see `at`."""
        address = address if "#" in address else f"{address}#{served_name(model)}"
        self.endpoint = Endpoint(address, "/chat/completions", kind="writer", timeout=timeout)
        self.strict = strict
        self._bias = {str(token): _BAN for token in _banned(model)}

    def write(self, model: MoonModel, rows: Sequence[Row]) -> list[Body]:
        with ThreadPoolExecutor(max_workers=REQUESTS, thread_name_prefix="moonshelf-writer") as threads:
            return list(threads.map(lambda row: self._write(model, row), rows))

    def request(self, model: MoonModel, row: Row) -> dict[str, Any]:
        """The body of one request; every setting that a server may have defaults for is named."""
        prepare, limit = model.prepare, model.prompt.max_rationale_tokens
        decode = model.processor.tokenizer.decode
        instruction, text = model.prompt.instruction, decode(row.text, clean_up_tokenization_spaces=False)
        content: list[dict[str, Any]] = [{"type": "text", "text": instruction}] if instruction else []
        content += [
            {"type": "image_url", "image_url": {"url": _png(picture)}} for picture in pictures(model, row)
        ]
        content += [{"type": "text", "text": text}] if text else []
        return {
            "messages": [
                {"role": "user", "content": content},
                {"role": "assistant", "content": THINK},
            ],
            "add_generation_prompt": False,
            "continue_final_message": True,
            "add_special_tokens": False,
            **{"n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
            **{"presence_penalty": 0.0, "frequency_penalty": 0.0},
            "max_tokens": limit + 1,
            "stop_token_ids": [prepare.end_think],
            "logit_bias": self._bias,
            "skip_special_tokens": False,
            "return_token_ids": True,
        }

    def _write(self, model: MoonModel, row: Row) -> Body:
        reply = self.endpoint.post(self.request(model, row))
        host = self.endpoint.host
        try:
            answer = json.loads(reply)
            choice, prompt = answer["choices"][0], answer.get("prompt_token_ids")
            ids = choice.get("token_ids")
            finished = choice.get("finish_reason") == "stop"
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(f"the writer {host} answered product {row.id!r} with no completion") from None
        if not _are_ids(ids) or not _are_ids(prompt):
            raise UserError(
                f"the writer {host} does not say which tokens it has read and written: it has to know "
                "`return_token_ids`, as vLLM does"
            )
        return _checked(model, row, ids, prompt, finished, host, self.strict)


# ---- vLLM in this process --------------------------------------------------------------------------


class Offline:
    """vLLM's own engine on a folder that `moonshelf export` wrote; needs the extra `vllm`."""

    def __init__(self, model: MoonModel, folder: str, *, strict: bool = True, **settings: Any) -> None:
        """`strict`: see `at`. `settings` go to `vllm.LLM`, say `dtype` or `gpu_memory_utilization`.

        Raises UserError if vLLM is not installed, or if the folder holds no export of this model.
        """
        record = Path(folder) / RECORD
        if not record.is_file() or read_json(record).get("served_name") != served_name(model):
            raise UserError(
                f"{folder} is no export of this model: write one with `moonshelf export MODEL --for vllm -o "
                f"{folder}`, or name the URL of a server."
            )
        for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE"):
            os.environ.setdefault(name, "1")
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise UserError(
                f"a writer in this process needs {error.name}: install moonshelf[vllm]."
            ) from None
        limit = model.prompt.max_rationale_tokens
        self.strict, self.folder = strict, folder
        room: Any = {"limit_mm_per_prompt": {"image": max(1, model.prompt.max_images), "video": 0}}
        self._engine = LLM(model=str(folder), seed=0, generation_config="vllm", **{**room, **settings})
        self._sampling = SamplingParams(
            temperature=0.0, max_tokens=limit + 1, stop_token_ids=[model.prepare.end_think],
            logit_bias=dict.fromkeys(_banned(model), _BAN), skip_special_tokens=False, detokenize=False,
        )  # fmt: skip

    def write(self, model: MoonModel, rows: Sequence[Row]) -> list[Body]:
        prompts = []
        for row in rows:
            ids = model.prepare.row(row.text, [1] * len(row.image_tokens), [model.prepare.think])[0]
            prompt: dict[str, Any] = {"prompt_token_ids": ids}  # vLLM widens a picture's one token itself
            if row.image_tokens:
                prompt["multi_modal_data"] = {"image": pictures(model, row)}
            prompts.append(prompt)
        found = []
        for row, output in zip(
            rows, self._engine.generate(prompts, self._sampling, use_tqdm=False), strict=True
        ):
            answer, read = output.outputs[0], list(output.prompt_token_ids)
            finished = answer.finish_reason == "stop"
            found.append(
                _checked(model, row, list(answer.token_ids), read, finished, self.folder, self.strict)
            )
        return found


# ---- what both have in common ----------------------------------------------------------------------


def _banned(model: MoonModel) -> list[int]:
    return [int(token) for token in (banned_tokens(model) == -torch.inf).nonzero()[:, 0]]


def _checked(
    model: MoonModel, row: Row, ids: list[int], prompt: list[int], finished: bool, where: str, strict: bool
) -> Body:
    """What vLLM wrote for a row, if it has read the row as we do and written what a rationale can hold."""
    expected = model.prepare.row(row.text, row.image_tokens, [model.prepare.think])[0]
    if strict and prompt != expected:
        raise UserError(
            f"the writer {where} has read product {row.id!r} otherwise than this model does "
            f"({difference(expected, prompt)}): serve what `moonshelf export` wrote, with its template"
        )
    if finished and model.prepare.end_think not in ids:  # the token that it stopped at may be left out
        ids = [*ids, model.prepare.end_think]
    body, never = body_of(model, ids, prompt), reserved_tokens(model)
    wrong = [i for i in body.ids if i in never or not 0 <= i < len(model.processor.tokenizer)]
    if wrong:
        raise UserError(
            f"the writer {where} wrote token {wrong[0]} for product {row.id!r}, which a rationale cannot "
            "hold: it has to keep to `logit_bias`"
        )
    return body


def pictures(model: MoonModel, row: Row) -> list[Image.Image]:
    """The pictures of a row as they enter the model, put together again from its patches."""
    if row.patches is None or row.grid is None:
        return []
    side, merge = model.prepare.images.patch_size, model.prepare.images.merge_size
    found, start = [], 0
    for _, height, width in row.grid.tolist():
        patches = row.patches[start : start + height * width]
        start += height * width
        # (rows / merge, columns / merge, merge, merge, 3, side, side): how Qwen's processor orders patches
        blocks = patches.reshape(height // merge, width // merge, merge, merge, 3, side, side)
        pixels = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(height * side, width * side, 3)
        found.append(Image.fromarray(np.ascontiguousarray(pixels)))
    return found


def difference(expected: Sequence[int], given: Sequence[int]) -> str:
    """Where two lists of tokens part, in words."""
    for place, (a, b) in enumerate(zip(expected, given, strict=False)):
        if a != b:
            return f"token {place} is {b}, not {a}"
    return f"{len(given)} tokens, not {len(expected)}"


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) for item in value)
