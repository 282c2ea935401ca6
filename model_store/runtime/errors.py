"""Errors of explaining an answer. The others are in `model_store.errors`."""

from __future__ import annotations

from dataclasses import dataclass

from model_store.errors import ArtifactError


@dataclass(eq=False)
class NotExplainableError(ArtifactError):
    """A version has no graph for explanations."""

    model: str
    message = (
        "{model} has no graph for explanations, because an earlier release published it, or only its last layer was "
        "fitted. Publish a version that has the graph, with the same weights and fingerprint: fc7 models "
        "add-explanations {model}. Then activate that version."
    )
