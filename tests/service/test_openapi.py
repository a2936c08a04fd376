"""The API against its own description: random requests get no defect, and what was promised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from serviceapp import server

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
]  # fmt: skip
EXAMPLES = 12  # of an operation; the slow test takes many more


@pytest.fixture(scope="module")
def scratch(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose catalogue may be spoilt."""
    import shutil

    folder = Path(shutil.copytree(embedded, tmp_path_factory.mktemp("fuzz") / "shelf"))
    with server(folder) as address:
        yield address


def operations(address: str) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


def fuzz(address: str, examples: int) -> int:
    asked = 0
    for operation in operations(address):

        @settings(
            max_examples=examples, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def run(case: Any) -> None:
            nonlocal asked
            asked += 1
            reply = case.call(base_url=address)
            case.validate_response(reply, checks=CHECKS)

        run()
    return asked


def test_the_description_names_every_route_and_has_examples(address: str) -> None:
    paths = {f"{one.method.upper()} {one.path}" for one in operations(address)}
    assert {
        "POST /v1/embeddings", "POST /v1/search", "POST /v1/products", "DELETE /v1/products/{id}",
        "GET /v1/duplicates", "POST /v1/creatives/compare", "POST /v1/creatives/rank", "POST /v1/feedback",
        "GET /v1/catalogue", "GET /v1/suggestions", "GET /health", "GET /ready", "GET /metrics",
    } <= paths  # fmt: skip
    import httpx

    described = httpx.get(f"{address}/openapi.json").json()["components"]["schemas"]
    for name in ("EmbeddingsRequest", "SearchRequest", "ProductIn", "FeedbackRequest"):
        assert described[name]["examples"], name


def test_random_requests_meet_no_defect(scratch: str) -> None:
    assert fuzz(scratch, EXAMPLES) > 100


@pytest.mark.slow
def test_many_random_requests_meet_no_defect(scratch: str) -> None:
    assert fuzz(scratch, 300) > 2000
