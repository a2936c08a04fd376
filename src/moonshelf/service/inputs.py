"""From what a request holds to products: texts, pictures in their several forms, chat messages.

There is no agreed form for pictures in `/v1/embeddings`. The documented one is {"text": …, "image": data
URI}; a bare data URI, lists of these, and chat messages with image_url parts (vLLM's form) are read too.
Pictures are decoded by `moonshelf.images` alone, later; here only their encoding is undone.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from moonshelf.product import ImageRef, Product
from moonshelf.service.schemas import EmbeddingsRequest, Item, Message, ProductIn

_DATA = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.IGNORECASE)
_WEB = re.compile(r"https?://", re.IGNORECASE)
_BLANK = re.compile(r"[ \t\r\n]")
_SPACE = str.maketrans("", "", " \t\r\n")


class BadInput(Exception):
    """One field cannot be used: `param` is its path in the request."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param, self.message = param, message


def picture(value: str, param: str) -> ImageRef:
    """A data URI, base64 or web address as a reference; whether a web address is fetched is decided later.

    Raises BadInput.
    """
    value = value.strip()
    if _WEB.match(value):
        return ImageRef(url=value[:4096])
    body = value
    if value[:5].lower() == "data:":
        if not (start := _DATA.match(value)):
            raise BadInput(param, "the data URI is not of the form data:image/…;base64,…")
        body = value[start.end() :]
    try:
        if _BLANK.search(body):
            body = body.translate(_SPACE)
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(param, "the picture is neither base64, a data URI nor a web address") from None
    if not data:
        raise BadInput(param, "the picture is empty")
    return ImageRef(data=data)


def products_of(request: EmbeddingsRequest) -> list[Product]:
    """One product an input; all messages together are one. Raises BadInput."""
    if request.messages is not None:
        return [_of_messages(request.messages)]
    given = request.input if isinstance(request.input, list) else [request.input]
    single = not isinstance(request.input, list)
    return [
        of_input(one, str(i), "input" if single else f"input.{i}")
        for i, one in enumerate(given)
        if one is not None
    ]


def of_input(one: str | Item, id: str, param: str) -> Product:
    """One text, data URI or item. Raises BadInput."""
    if isinstance(one, str):
        if _DATA.match(one):
            return Product(id=id, images=(picture(one, param),))
        if not one.strip():
            raise BadInput(param, "the text is empty")
        return Product(id=id, title=one)
    given = [one.image] if isinstance(one.image, str) else one.image or []
    pictures = tuple(picture(value, f"{param}.image") for value in given)
    return Product(id=id, title=one.text or "", images=pictures)


def _of_messages(messages: Sequence[Message]) -> Product:
    texts: list[str] = []
    pictures: list[ImageRef] = []
    for i, message in enumerate(messages):
        if message.role != "user":
            continue
        if isinstance(message.content, str):
            texts.append(message.content)
            continue
        for j, part in enumerate(message.content):
            param = f"messages.{i}.content.{j}"
            given = part.image or part.image_url
            if part.type in ("text", "input_text"):
                texts.append(part.text or "")
            elif given is None:
                raise BadInput(param, "the part has no picture")
            else:
                pictures.append(picture(given if isinstance(given, str) else given.url, param))
    text = "\n".join(text for text in texts if text.strip())
    if not text and not pictures:
        raise BadInput("messages", "no user message holds a text or a picture")
    return Product(id="0", title=text, images=tuple(pictures))


def product_of(given: ProductIn, param: str) -> Product:
    """A catalogue record of an upsert. Raises BadInput for a picture, `ValueError` for the record itself."""
    fields = given.model_dump(exclude={"images", "category"})
    pictures = tuple(picture(value, f"{param}.images.{i}") for i, value in enumerate(given.images))
    return Product(**fields, category=tuple(given.category), images=pictures)
