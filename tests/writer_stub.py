"""A server that speaks vLLM's dialect of the chat protocol, and vLLM's Python interface; a tiny model inside.

It reads a request by itself: chat template, stock processor call, `generate`. So what it agrees on with the
engine, it agrees on because the protocol carried it. `told.fault` makes it answer otherwise.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from transformers import LogitsProcessor, LogitsProcessorList

from moonshelf import images
from moonshelf.model.modeling import MoonModel
from moonshelf.model.writers import served_name
from moonshelf.training.starter import CHAT_TEMPLATE


@dataclass
class Told:
    """How the stub is to answer, and what it was asked."""

    url: str = ""
    fault: str = ""  # tokens, prompt, silent, banned, empty
    requests: list[dict[str, Any]] = field(default_factory=list)


class Bias(LogitsProcessor):
    def __init__(self, bias: dict[str, float]) -> None:
        self.bias = bias

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token, value in self.bias.items():
            scores[:, int(token)] += value
        return scores


def complete(model: MoonModel, body: dict[str, Any]) -> dict[str, Any]:
    pictures, messages = [], []
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, list):
            parts = []
            for part in content:
                if part["type"] == "image_url":
                    data = base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
                    pictures.append(images.decode(data))
                parts.append({"type": "image"} if part["type"] == "image_url" else part)
            content = parts
        messages.append({"role": message["role"], "content": content})
    text = model.processor.tokenizer.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, tokenize=False,
        add_generation_prompt=body["add_generation_prompt"],
        continue_final_message=body["continue_final_message"],
    )  # fmt: skip
    inputs = model.processor(images=pictures or None, text=[text], return_tensors="pt")
    ids, reason = generate(model, inputs, body["max_tokens"], body["stop_token_ids"], body["logit_bias"])
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant"}, "token_ids": ids}
    prompt = inputs["input_ids"][0].tolist()
    return {"object": "chat.completion", "choices": [choice], "prompt_token_ids": prompt}


def generate(
    model: MoonModel, inputs: Any, most: int, stop: list[int], bias: dict[Any, float]
) -> tuple[list[int], str]:
    with torch.inference_mode():
        output = model.backbone.generate(
            **inputs, max_new_tokens=most, do_sample=False, eos_token_id=stop,
            pad_token_id=model.prepare.pad, logits_processor=LogitsProcessorList([Bias(bias)]),
        )  # fmt: skip
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids, "stop" if ids and ids[-1] in stop else "length"


def offline(model: MoonModel, fault: str = "") -> ModuleType:
    """What `import vllm` is to find: a picture has one token in the prompt, and is widened here."""

    class LLM:
        def __init__(self, **settings: Any) -> None:
            self.settings = settings

        def generate(self, prompts: list[dict[str, Any]], params: Any, use_tqdm: bool) -> list[Any]:
            return [self._one(prompt, params) for prompt in prompts]

        def _one(self, prompt: dict[str, Any], params: Any) -> Any:
            given, inputs, counts = prompt["prompt_token_ids"], {}, list[int]()
            if seen := prompt.get("multi_modal_data", {}).get("image"):
                inputs = dict(model.processor.image_processor(seen, return_tensors="pt"))
                counts = model.prepare.image_tokens(inputs["image_grid_thw"].numpy())
            image, left = model.prepare.image, iter(counts)
            ids = [token for one in given for token in [one] * (next(left) if one == image else 1)]
            tokens = torch.tensor([ids])
            inputs |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            inputs["mm_token_type_ids"] = (tokens == image).int()
            told = generate(model, inputs, params.max_tokens, params.stop_token_ids, params.logit_bias)
            ids = [ids[0] + 1, *ids[1:]] if fault == "prompt" else ids
            answer = SimpleNamespace(token_ids=told[0], finish_reason=told[1])
            return SimpleNamespace(outputs=[answer], prompt_token_ids=ids)

    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SimpleNamespace
    return module  # type: ignore[no-any-return]


def application(model: MoonModel, told: Told) -> FastAPI:
    app, lock = FastAPI(), threading.Lock()

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> Any:
        if body["model"] != served_name(model):
            return JSONResponse({"error": {"message": "no such model"}}, 404)
        with lock:
            told.requests.append(body)
            answer = complete(model, body)
        choice = answer["choices"][0]
        if told.fault == "tokens":
            choice["token_ids"][0] = (choice["token_ids"][0] + 1) % 200
        elif told.fault == "prompt":
            answer["prompt_token_ids"][1] += 1
        elif told.fault == "silent":
            del answer["prompt_token_ids"], choice["token_ids"]
        elif told.fault == "banned":
            choice["token_ids"][0] = model.prepare.emb
        elif told.fault == "empty":
            answer["choices"] = []
        elif told.fault == "unsaid" and choice["finish_reason"] == "stop":  # the token it stopped at
            del choice["token_ids"][-1]
        return answer

    return app


@contextlib.contextmanager
def serving(model: MoonModel) -> Iterator[Told]:
    """The stub on a free port of the loopback interface."""
    told = Told()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        told.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server = uvicorn.Server(uvicorn.Config(application(model, told), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield told
        server.should_exit = True
        thread.join()
