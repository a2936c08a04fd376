"""Rows of the store as the API shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moonshelf.catalogue.rows import key_of
from moonshelf.catalogue.store import Store
from moonshelf.creatives.schema import KEYS, QUESTIONS, Assessment, Judgement
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
    shown = {name: row[name] for name in COLUMNS if name in ProductView.model_fields}
    shown |= {name: row[name] or "" for name in ("title", "category", "rationale")}
    shown |= {name: json.loads(row[name] or "{}") for name in ("attributes", "reasoned_attributes")}
    shown["description"] = (row["description"] or "")[:SHOWN_TEXT]
    shown["rationale_valid"] = row["rationale_valid"] if row["rationale"] else None
    return ProductView(
        **shown,
        weights=weights((row["weight_image"], row["weight_text"], row["weight_rationale"])),
        thumbnail=f"/v1/thumbnails/{key_of(row['id'])}.jpg" if row["pictures"] else None,
    )


def views_of(store: Store, ids: Sequence[str]) -> dict[str, ProductView]:
    """Views by id; unknown ids are left out."""
    rows = store.rows([key_of(id) for id in dict.fromkeys(ids)], COLUMNS).to_pylist() if ids else []
    return {row["id"]: view(row) for row in rows}


def weights(shares: Sequence[float | None] | None) -> Weights | None:
    """Shares of picture, text and rationale; None where they were not stored."""
    if shares is None or any(share is None for share in shares):
        return None
    image, text, rationale = (float(share or 0) for share in shares)
    return Weights(image=image, text=text, rationale=rationale)


def findings(assessment: Assessment | None) -> list[FindingView]:
    """The judge's answers with the questions in words; empty where it gave no reasons."""
    given = assessment.findings if assessment is not None else ()
    return [FindingView(**one.model_dump(), asks=QUESTIONS[KEYS.index(one.question)].asks) for one in given]


def judged(judgement: Judgement) -> dict[str, Any]:
    """The fields of `Judged`."""
    shown = judgement.model_dump(include={"p", "abstained", "flags"})
    return {**shown, "findings": findings(judgement.assessment)}
