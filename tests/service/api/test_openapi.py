"""docs/openapi.json matches the API. After an intended change, run: python -m tests.service.api.test_openapi"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from service.app import create_app
from service.settings import Settings

DOCUMENT = Path(__file__).parents[3] / "docs" / "openapi.json"


def current() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(create_app(Settings()).openapi()))
    return document


def test_the_committed_document_matches_the_api() -> None:
    assert current() == json.loads(DOCUMENT.read_text()), f"if the change is intended, run: python -m {__name__}"


def test_every_operation_has_an_id_and_documents_its_problems() -> None:
    ids = []
    for path, methods in current()["paths"].items():
        for operation in methods.values():
            ids.append(operation["operationId"])
            for status, answer in operation["responses"].items():
                if status >= "400":
                    kind = "application/json" if path.startswith("/v2") else "application/problem+json"
                    assert list(answer["content"]) == [kind], (path, status)
    assert len(set(ids)) == len(ids)


def test_examples_match_their_schemas() -> None:
    document = current()
    for methods in document["paths"].values():
        for operation in methods.values():
            bodies = list(operation.get("requestBody", {}).get("content", {}).items())
            answers = [
                each
                for status, answer in operation["responses"].items()
                if status.startswith("2")
                for each in answer.get("content", {}).items()
            ]
            for kind, content in bodies + answers:
                if kind.endswith("json") and "schema" in content:
                    schema = content["schema"] | {"components": document["components"]}
                    jsonschema.validate(content["example"], schema, jsonschema.Draft202012Validator)
            for parameter in operation.get("parameters", []):
                if parameter.get("required"):
                    jsonschema.validate(parameter["example"], parameter["schema"])


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(json.dumps(current(), indent=2, ensure_ascii=False) + "\n")
