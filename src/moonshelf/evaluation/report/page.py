"""What every page of ours is made with: the report of an evaluation, the demo's, and those about creatives.

A page is a Jinja template that begins with `head.html` (style and content policy); charts come from
`plots.html`. `template` finds it, in the caller's folder or in this one, and gives it what all pages share:
the filters `clean`, `percent`, `signed` and `number`, and the sizes that charts are drawn in. A page is one
file, loads nothing and runs nothing: pictures are `data_uri`s of `thumbnail`s, every word is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moonshelf import images
from moonshelf.plaintext import shown
from moonshelf.product import ImageRef

if TYPE_CHECKING:
    from jinja2 import Template

WIDTH, HEIGHT = 340, 250  # of a chart, and where its axes lie
LEFT, RIGHT, TOP, BOTTOM = 46, 332, 12, 206
PLOTS = 4  # charts of a section that are open


def template(name: str, *folders: Path, **filters: Callable[..., Any]) -> Template:
    """A page of `folders` or of this one; what is put into it is escaped, a missing name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    shared = {"clean": shown, "percent": percent, "signed": signed, "number": number}
    environment.filters.update(shared | filters)
    environment.globals.update(box=(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM), PLOTS=PLOTS)
    return environment.get_template(name)


def write_texts(out: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write files (name -> text) into the folder of a run; gives their paths."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    return [out / name for name in texts]


def thumbnail(ref: ImageRef | None, side: int) -> bytes:
    """A picture as a JPEG without metadata, at most `side` pixels wide and high; b"" if there is none, or
    none that can be read."""
    if ref is None:
        return b""
    try:
        picture = images.load(ref, max_side=side)
    except images.ImageError:
        return b""
    picture.info.clear()  # comments and profiles of the original would be saved along
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82)
    return file.getvalue()


def data_uri(jpeg: bytes | None) -> str:
    """A JPEG as an address that holds it; "" for none."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}" if jpeg else ""


def facts(*groups: object, seconds: object = None) -> dict[str, str]:
    """Settings, versions and machine of a run as one flat list of names and values."""
    found: dict[str, str] = {}
    for group in groups:
        for name, value in group.items() if isinstance(group, Mapping) else ():
            if isinstance(value, list | tuple):
                value = ", ".join(map(str, value)) or "none"
            found[str(name).replace("_", " ")] = "none" if value is None else str(value)
    if isinstance(seconds, int | float):
        found["whole run"] = f"{seconds:,.1f} s"
    return found


# ---- numbers -----------------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    """A share in percent with one decimal and without the sign, as the tables give it; n/a for none."""
    return "n/a" if value is None else f"{100 * value:.1f}"


def between(low: float | None, high: float | None) -> str:
    """The ends of an interval in percent; "" where it is not known."""
    return "" if low is None or high is None else f"{percent(low)} to {percent(high)}"


def signed(points: float) -> str:
    """+1.2, −0.3, with a true minus sign."""
    return f"{points:+.1f}".replace("-", "−")


def number(value: float | None) -> str:
    """A share for a style sheet, 0 … 100, never anything else."""
    return f"{100 * min(max(float(value or 0), 0.0), 1.0):.2f}"
