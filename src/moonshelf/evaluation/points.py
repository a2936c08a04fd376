"""Points of a curve as JSON: one dataclass a point, checked when it is read back.

`OUT/curves.json` and `OUT/auto.json` are such files: `{"format": 1, "points": [{…}, …]}`. A report is built
from files that a person may have edited, so a missing or wrong field is said in one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from moonshelf.errors import UserError

FORMAT = 1
P = TypeVar("P")


def save_points(points: Sequence[Any], path: Path) -> None:
    """Write dataclasses of one kind, with full precision."""
    body = {"format": FORMAT, "points": [asdict(point) for point in points]}
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def load_points(path: Path, kind: type[P]) -> list[P]:
    """The points of a file, [] if there is none. Raises UserError that names file, point and field."""
    if not path.is_file():
        return []
    try:
        body = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, OSError) as error:
        raise UserError(f"{path.name} is not JSON ({error}): run the evaluation again") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT or not isinstance(body.get("points"), list):
        raise UserError(f"{path.name} is no list of points of format {FORMAT}: run the evaluation again")
    return typed(body["points"], kind, f"point {{}} of {path.name}")


def typed(records: list[Any], kind: type[P], where: str) -> list[P]:
    """Records of a JSON file as dataclasses; `where` says which one it is, with {} for its number."""
    try:
        return TypeAdapter(list[kind]).validate_json(json.dumps(records), strict=True)  # type: ignore[valid-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, *names = first["loc"]
        raise UserError(
            f"{where.format(int(place) + 1)}: {'.'.join(map(str, names)) or 'the record'}: "
            f"{first['msg'].lower()}; run the evaluation again"
        ) from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no figure")
