"""Rows of the store as the API shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moonshelf.catalogue.rows import key_of
from moonshelf.catalogue.store import Store
from moonshelf.creatives.schema import KEYS, QUESTIONS, Assessment
from moonshelf.service.review_schemas import FindingView
from moonshelf.service.schemas import ProductView, Weights

# Columns of the store that a view needs; the thumbnail itself has an address of its own.
COLUMNS = (
    "id", "title", "description", "brand", "price", "currency", "category", "group_id", "link",
    "availability", "attributes", "rationale", "rationale_valid", "reasoned_attributes", "weight_image",
    "weight_text", "weight_rationale", "pictures",
)  # fmt: skip
SHOWN_TEXT = 2_000  # characters of a description


def view(row: Mapping[str, Any]) -> ProductView:
    """One row with `COLUMNS` as the API shows it."""
    return ProductView(
        id=row["id"],
        title=row["title"] or "",
        description=(row["description"] or "")[:SHOWN_TEXT],
        brand=row["brand"],
        price=row["price"],
        currency=row["currency"],
        category=row["category"] or "",
        group_id=row["group_id"],
        link=row["link"],
        availability=row["availability"],
        attributes=_pairs(row["attributes"]),
        rationale=row["rationale"] or "",
        rationale_valid=row["rationale_valid"] if row["rationale"] else None,
        reasoned_attributes=_pairs(row["reasoned_attributes"]),
        weights=weights((row["weight_image"], row["weight_text"], row["weight_rationale"])),
        thumbnail=f"/v1/thumbnails/{key_of(row['id'])}.jpg" if row["pictures"] else None,
    )


def views_of(store: Store, ids: Sequence[str]) -> dict[str, ProductView]:
    """Views by id; unknown ids are left out."""
    rows = store.rows([key_of(id) for id in dict.fromkeys(ids)], COLUMNS).to_pylist() if ids else []
    return {row["id"]: view(row) for row in rows}


def weights(shares: Sequence[float | None]) -> Weights | None:
    """Shares of picture, text and rationale; None where they were not stored."""
    if any(share is None for share in shares):
        return None
    image, text, rationale = (float(share or 0) for share in shares)
    return Weights(image=image, text=text, rationale=rationale)


def findings(assessment: Assessment | None) -> list[FindingView]:
    """The judge's answers with the questions in words; empty where it gave no reasons."""
    if assessment is None:
        return []
    return [
        FindingView(
            question=finding.question,
            asks=QUESTIONS[KEYS.index(finding.question)].asks,
            answer=finding.answer,
            reason_a=finding.reason_a,
            reason_b=finding.reason_b,
        )
        for finding in assessment.findings
    ]


def _pairs(text: str | None) -> dict[str, str]:
    return {str(key): str(value) for key, value in json.loads(text or "{}").items()}
