"""How a stock embedding model of the Qwen-VL family makes its vector, so that our head can start from it.

The vector of such a model is the state at the last token of a rendered prompt, cut to its first numbers and
brought to unit length. A `PromptSpec` says the same thing here: what stands before and after pictures and
words, and which token is read last, in the place of `<emb>`. Two sources say it of a folder:

- its sentence-transformers files: the chat template with its options, the default prompt (else that of
  documents), last-token pooling. Any other module between states and vector is refused, since a head cannot
  start from it.
- for a folder of Qwen3-VL-Embedding without these files, the recipe of that model's own repository
  (QwenLM/Qwen3-VL-Embedding, `src/models/qwen3_vl_embedding.py`): an instruction as system message, the
  opening of an answer, whatever the tokenizer adds to it.

Pictures keep to the size that the folder's image processor names, and to that repository's upper bound.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

from moonshelf.errors import UserError
from moonshelf.model import files
from moonshelf.prompts import MAX_PIXELS, PromptSpec

INSTRUCTION = "Represent the user's input."  # Qwen3-VL-Embedding's own, where nobody gives another
LARGEST = 1800 * 32**2  # pixels of a picture there
TEXT_CHARS = 8_000  # of a product; the starter's limit is for its few positions
UNTRAINED = (
    "an instruct model has no vector to start from: it can write attributes at once, but its vectors need "
    "training, see `moonshelf train`"
)
_KNOWN = re.compile(r"qwen3-vl-embedding", re.IGNORECASE)
_WORDS = "moonshelf words"  # stands for a product while a template is rendered


def embedding_prompt(
    folder: Path, name: str, tokenizer: Any, pixels: Any, prompt: PromptSpec | None = None
) -> PromptSpec | None:
    """The prompt by which the embedding model in `folder` reads products; None if it is none.

    `tokenizer` and `pixels` (the image processor) are the folder's. Fields that a given `prompt` sets hold,
    an instruction too, but what stands around products is always the model's. Raises UserError for an
    embedding model whose vector is not the state of a last token.
    """
    if not is_embedding(folder, name):
        return None
    own = _of_sentence_transformer(folder)
    instruction, options = own or (INSTRUCTION, {"add_generation_prompt": True})
    size = dict(getattr(pixels, "size", None) or {})
    own_prompt = PromptSpec(
        max_text_chars=TEXT_CHARS,
        max_rationale_tokens=0,  # before a cold start it writes none
        min_pixels=min(size.get("shortest_edge", PromptSpec().min_pixels), LARGEST),
        max_pixels=min(size.get("longest_edge", LARGEST), LARGEST, MAX_PIXELS),
    )
    given = prompt or PromptSpec()
    prompt = own_prompt.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})
    if prompt.instruction.strip():
        instruction = prompt.instruction.strip()
        if not unicodedata.category(instruction[-1]).startswith("P"):  # as that repository does
            instruction += "."
    before, after, last = _around(folder, tokenizer, instruction, options)
    return prompt.model_copy(
        update={"instruction": instruction, "before": before, "after": after, "emb": last}
    )


def is_embedding(folder: Path, name: str) -> bool:
    """Whether a stock checkpoint is an embedding model: by its modules, else by the one known name."""
    if (folder / "modules.json").is_file():
        return files.MODULE not in [m.get("type") for m in files.read_json(folder / "modules.json")]
    return _KNOWN.search(f"{name} {folder.resolve()}") is not None


def _of_sentence_transformer(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Instruction and template options of a SentenceTransformer's folder, None where it is none."""
    if not (folder / "modules.json").is_file():
        return None
    modules = [(str(m.get("type")), str(m.get("path"))) for m in files.read_json(folder / "modules.json")]
    kinds = [kind.rpartition(".")[2] for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _refused(folder, f"its vectors pass {' > '.join(kinds)}")
    pooling = files.read_json(folder / modules[1][1] / "config.json")
    modes = [key for key, on in pooling.items() if on is True and key.startswith("pooling_mode_")]  # before 6
    mode = pooling.get("pooling_mode") or " and ".join(key.removeprefix("pooling_mode_") for key in modes)
    if mode != "lasttoken":
        raise _refused(folder, f"its pooling is {mode}")
    settings, prompts = _read(folder / "sentence_bert_config.json"), _read(folder / files.ST_CONFIG)
    if "message" not in (settings.get("modality_config") or {}):
        raise _refused(folder, "its sentence-transformers files read plain text without pictures")
    named = prompts.get("prompts") or {}
    instruction = named.get(prompts.get("default_prompt_name") or "document") or ""
    options = (settings.get("processing_kwargs") or {}).get("chat_template") or {}
    return str(instruction), {key: value for key, value in options.items() if key != "restore_suffix"}


def _around(folder: Path, tokenizer: Any, instruction: str, options: dict[str, Any]) -> tuple[str, str, str]:
    """What is rendered before a product, after it, and the last token, which gives the vector."""
    system = {"role": "system", "content": [{"type": "text", "text": instruction}]}
    user = {"role": "user", "content": [{"type": "text", "text": _WORDS}]}
    template = tokenizer.chat_template or _read(folder / "chat_template.json").get("chat_template")
    if template is None:
        raise _refused(folder, "it has no chat template")
    rendered = tokenizer.apply_chat_template(
        [system, user] if instruction else [user], chat_template=template, tokenize=False, **options
    )
    before, words, after = rendered.partition(_WORDS)
    ids, whole = (tokenizer(rendered, add_special_tokens=own)["input_ids"] for own in (False, True))
    if not words or whole[: len(ids)] != ids:
        raise _refused(folder, "its template does not show a product as it stands, or its tokenizer opens it")
    # A tokenizer may close what it is given, which the template does not show.
    after += "".join(tokenizer.convert_ids_to_tokens(whole[len(ids) :]))
    last = tokenizer.decode(whole[-1:])
    if not after.endswith(last) or (instruction and instruction not in before):
        raise _refused(folder, "its template does not end as its tokens do")
    before = before.replace(instruction, "{instruction}") if instruction else before
    return before, after.removesuffix(last), last


def _read(path: Path) -> dict[str, Any]:
    found = files.read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _refused(folder: Path, why: str) -> UserError:
    return UserError(
        f"our head cannot start from the embedding model in {folder.name!r}: {why}, and it starts from the "
        "state of a last token only; use the model as it is, by the name st:FOLDER."
    )
