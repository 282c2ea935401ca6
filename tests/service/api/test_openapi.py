"""The public surface is kept in docs/openapi.json. After a wanted change: python -m tests.service.api.test_openapi"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import Settings

KEPT = Path(__file__).parents[3] / "docs" / "openapi.json"


def current() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(create_app(Settings()).openapi()))
    return document


def test_the_kept_document_is_the_served_one() -> None:
    assert current() == json.loads(KEPT.read_text()), f"wanted? then: python -m {__name__}"


def test_every_operation_documents_its_problems_and_has_an_id() -> None:
    ids = []
    for path, methods in current()["paths"].items():
        for operation in methods.values():
            ids.append(operation["operationId"])
            for status, answer in operation["responses"].items():
                if status >= "400":
                    kind = "application/json" if path.startswith("/v2") else "application/problem+json"
                    assert list(answer["content"]) == [kind], (path, status)
    assert len(set(ids)) == len(ids)


if __name__ == "__main__":
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(current(), indent=2, ensure_ascii=False) + "\n")
