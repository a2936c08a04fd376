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
from moonshelf.creatives.export import (
    experiment_plan,
    google_display_assets,
    meta_asset_feed,
    plan_markdown,
    pooled_rate,
    ranking_csv,
)
from moonshelf.creatives.pair import Campaign
from moonshelf.creatives.ranking import Ranking
from moonshelf.errors import Problem, UserError
from moonshelf.feeds.base import MAX_DOCUMENT

EXPORTS = ("plan", "meta", "google", "csv", "bandit")


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
    link: str = "",
    top: int = 10,
    plan: Mapping[str, Any] | None = None,
    as_json: bool = False,
) -> tuple[str, list[Problem]]:
    """The text of one of `EXPORTS`, and what has to be seen to. `plan` goes to `experiment_plan`.

    A plan is Markdown unless `as_json`; the other forms are JSON lists. Raises UserError.
    """
    if to == "csv":
        return ranking_csv(both, top), []
    problems: list[Problem] = []
    records: list[Any] = []
    for campaign, ranking in both:
        if to == "plan":
            records.append(experiment_plan(ranking, campaign, base_rate=base_rate, **plan or {}))
        elif to == "meta":
            spec, remarks = meta_asset_feed(ranking, campaign, link=link, top=top)
            records.append({"campaign_id": campaign.id, **spec})
            problems += remarks
        elif to == "google":
            assets, remarks = google_display_assets(ranking, campaign, top=top)
            records.append({"campaign_id": campaign.id, **assets})
            problems += remarks
        else:
            rate = pooled_rate(campaign) if base_rate is None else base_rate
            records.append(bandit_prior(ranking, base_rate=rate))
    if to == "plan" and not as_json:
        return "\n\n".join(plan_markdown(one).strip() for one in records) + "\n", problems
    plain = [one if isinstance(one, dict) else one.model_dump(mode="json") for one in records]
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n", problems
