"""Backends by the names that the command line takes.

starter, FOLDER     our selector, as shipped or as it was trained; with :pixels it is not shown the words
                    on the images
openai:URL#MODEL    a vision model behind an OpenAI-compatible endpoint
random              a number that follows from seed, words and pixels: a coin for every pair
first, second       always the same place
bytes               log of the file's size: the larger file wins
text                share of the picture that looks like words (`text_share`: an estimate, see there)
title, interest     cosine of our direct vectors of the image and of the words
clip:FOLDER         CLIP, SigLIP or a preference model of their form (PickScore), safetensors only
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from moonshelf.creatives.backends import scores
from moonshelf.creatives.backends.base import PairwiseBackend
from moonshelf.errors import UserError
from moonshelf.model.files import is_folder

if TYPE_CHECKING:
    from moonshelf.model.modeling import MoonModel

BASELINES = ("random", "first", "second", "bytes", "text", "title", "interest")
PIXELS = ":pixels"  # no words beside the pictures


def make_backend(name: str, model: str | Path | MoonModel = "starter", seed: int = 0) -> PairwiseBackend:
    """The backend of that name; `UserError` for one that is none.

    `model` is our embedding model, loaded only where a baseline needs its vectors.

    Examples:
        >>> make_backend("second").name
        'second'
    """
    kind, _, rest = name.partition(":")
    if kind == "openai" and rest:
        from moonshelf.creatives.backends.endpoint import EndpointBackend

        return EndpointBackend(rest)
    if kind == "clip" and rest:
        return scores.clip_score(rest)
    if name == "random":
        return scores.coin(seed)
    if name in ("first", "second"):
        return scores.ByPlace(("first", "second").index(name))
    if name == "bytes":
        return scores.per_image(name, lambda data: math.log(len(data)))
    if name == "text":
        return scores.per_image(name, scores.text_share_of, 10.0)
    if name in ("title", "interest"):
        from moonshelf.model.modeling import MoonModel

        loaded = MoonModel.from_pretrained(model) if isinstance(model, (str, Path)) else model
        return scores.similarity(loaded, name)
    folder, shown = name.removesuffix(PIXELS), not name.endswith(PIXELS)
    if folder != "starter" and not is_folder(Path(folder).expanduser()):
        raise UserError(
            f"there is no backend {name[:99]!r}: give starter, the folder of a selector (either with "
            f"{PIXELS} to keep words on the images from it), openai:URL#MODEL, {', '.join(BASELINES)} "
            "or clip:FOLDER"
        )
    from moonshelf.creatives.backends.model import CreativeModel

    selector = CreativeModel.from_pretrained(folder)
    selector.name = name
    if not shown:
        prompt = selector.prompt.model_copy(update={"overlays": False})
        selector.config = selector.config.model_copy(update={"prompt": prompt})
    return selector
