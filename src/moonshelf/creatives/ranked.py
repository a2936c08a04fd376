"""Campaigns with their rankings: the file that `moonshelf creative rank --json` prints, and what leaves.

Images stand in the file by their names (a path or an address) and hashes, so it says what was ranked without
holding it. `exported` is one text of many campaigns in one of the forms of `export` and `bandit`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moonshelf.creatives.bandit import bandit_prior
from moonshelf.creatives.export import experiment_plan, plan_markdown, pooled_rate, ranking_csv
from moonshelf.creatives.pair import Campaign
from moonshelf.creatives.ranking import Ranking
from moonshelf.errors import UserError
from moonshelf.feeds.base import MAX_DOCUMENT

EXPORTS = ("plan", "csv", "bandit")


def to_records(both: Sequence[tuple[Campaign, Ranking]]) -> list[dict[str, Any]]:
    """One JSON object a campaign, its ranking under `ranking`."""
    found = []
    for campaign, ranking in both:
        record = campaign.model_dump(mode="json", exclude={"creatives"})
        record["creatives"] = [
            one.model_dump(mode="json", exclude={"image", "facts"}) | {"image": one.image.name}
            for one in campaign.creatives
        ]
        found.append(record | {"ranking": ranking.model_dump(mode="json")})
    return found


def is_ranked(path: Path) -> bool:
    """Whether a file is one of these, by its first bytes."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(200).lstrip()
    return head.startswith(b"{") and head[1:].lstrip().startswith(b'"campaigns"')


def read_ranked(path: Path) -> list[tuple[Campaign, Ranking]]:
    """The campaigns and rankings of such a file. Raises UserError that says what is wrong with it."""
    try:
        if path.stat().st_size > MAX_DOCUMENT:
            raise UserError(f"{path.name} is larger than {MAX_DOCUMENT // 2**20} MiB: rank fewer campaigns.")
        rows = json.loads(path.read_text(encoding="utf-8"))["campaigns"]
        return [_both(row) for row in rows]
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror or 'I/O error'}.") from None
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise UserError(f"{path.name} is not what `moonshelf creative rank --json` prints.") from None


def _both(row: dict[str, Any]) -> tuple[Campaign, Ranking]:
    ranking = Ranking.model_validate_json(json.dumps(row["ranking"]))
    fields = {name: value for name, value in row.items() if name != "ranking"}
    fields["creatives"] = [one | {"image": _image(one["image"])} for one in fields["creatives"]]
    try:
        return Campaign.model_validate_json(json.dumps(fields)), ranking
    except ValidationError as error:
        raise ValueError(str(error)) from None


def _image(name: str) -> dict[str, str]:
    return {"url" if name.startswith(("https://", "http://")) else "path": name}


def exported(
    both: Sequence[tuple[Campaign, Ranking]],
    to: str,
    *,
    base_rate: float | None = None,
    top: int = 10,
    plan: Mapping[str, Any] | None = None,
    as_json: bool = False,
) -> str:
    """The text of one of `EXPORTS`. `plan` goes to `experiment_plan`, `top` to the CSV.

    A plan is Markdown unless `as_json`; priors are a JSON list. Raises UserError.
    """
    if to == "csv":
        return ranking_csv(both, top)
    if to == "plan":
        plans = [experiment_plan(ranking, one, base_rate=base_rate, **plan or {}) for one, ranking in both]
        if not as_json:
            return "\n\n".join(plan_markdown(one).strip() for one in plans) + "\n"
        records: list[Any] = [one.model_dump(mode="json") for one in plans]
    else:
        records = []
        for one, ranking in both:
            rate = pooled_rate(one) if base_rate is None else base_rate
            records.append(bandit_prior(ranking, base_rate=rate).model_dump(mode="json"))
    return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
