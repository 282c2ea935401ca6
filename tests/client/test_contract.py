"""The client agrees with docs/openapi.json and with the errors of the service."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import fc7_client
import httpx
import pytest
from fc7_client import errors, models

from service.api.problems import STATUS, Kind, problem

OPENAPI = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text(encoding="utf-8"))
SCHEMAS = OPENAPI["components"]["schemas"]
NAMES = {
    "Novelty": "NoveltyInfo",
    "Evidence": "EvidenceInfo",
    "Neighbour": "NeighbourInfo",
    "Explanation": "DrawnExplanation",
    "Image": "ImageInfo",
    "FieldValue": "FieldValueInfo",
    "MetadataField": "FieldInfo",
    "Suggestion": "SuggestionInfo",
    "Skipped": "SkippedEntry",
    "SkippedPage": "SkippedAnswer",
    "Backup": "BackupInfo",
    "Backups": "BackupsAnswer",
    "Snapshot": "SnapshotInfo",
    "Snapshots": "SnapshotsAnswer",
    "Job": "JobInfo",
    "Jobs": "JobsAnswer",
    "Models": "ModelsAnswer",
    "Activation": "ActivationAnswer",
}
KINDS: list[Kind] = sorted(set(STATUS.values()), key=lambda kind: kind.slug)
ANSWERS = sorted(
    name
    for name, value in vars(models).items()
    if isinstance(value, type) and issubclass(value, models.Answer) and value is not models.Answer
)


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_has_the_members_of_its_schema(name: str) -> None:
    fields = getattr(models, name).model_fields
    schema = SCHEMAS[NAMES.get(name, name)]
    assert {field.alias or key for key, field in fields.items()} == set(schema["properties"])
    required = {field.alias or key for key, field in fields.items() if field.is_required()}
    assert required <= set(schema["required"]), "an answer without the optional members must be understood"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.slug)
def test_every_problem_of_the_service_has_its_exception(kind: Kind) -> None:
    answer = problem("/v1/classify", kind, "What is wrong.", {"Retry-After": "3"}, limit=5)
    found = errors.problem_of(httpx.Response(kind.status, headers=dict(answer.headers), content=bytes(answer.body)))
    assert type(found) is not errors.ProblemError
    assert (type(found) is errors.ServerError) == (kind.status in (499, 500))
    assert (found.slug, found.title, found.status, str(found)) == (kind.slug, kind.title, kind.status, "What is wrong.")
    assert (found.members["limit"], found.retry_after) == (5, 3)


def test_every_error_can_be_imported_from_the_package() -> None:
    kinds = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert kinds <= set(fc7_client.__all__)
    assert all(hasattr(fc7_client, name) for name in fc7_client.__all__)


def test_both_clients_have_the_same_documented_operations() -> None:
    sync, awaiting = (
        {name for name in dir(client) if not name.startswith("_")}
        for client in (fc7_client.Client, fc7_client.AsyncClient)
    )
    assert sync == awaiting
    assert [name for name in sync if not getattr(fc7_client.Client, name).__doc__] == []


def test_parameters_of_operations_exist_in_the_api() -> None:
    operations: list[tuple[str, str, set[str]]] = [
        ("classify", "/v1/classify", {"images"}),
        ("search", "/v1/search", {"images"}),
        ("embed", "/v1/embed", {"images"}),
        ("explain", "/v1/explain", {"image"}),
        ("heat_map", "/v1/explain", {"image"}),
    ]
    for name, path, own in operations:
        known = {each["name"] for each in OPENAPI["paths"][path]["post"]["parameters"]}
        function: Any = getattr(fc7_client.Client, name).__wrapped__
        arguments = {argument.rstrip("_") for argument in typing.get_type_hints(function)} - {"return"}
        assert arguments - own - known == set(), name
