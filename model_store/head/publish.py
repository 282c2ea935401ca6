"""Publish a version with another head as the next version of a model: same fc7, so the vectors of an index stay valid.

Guarantees: deleting either version does not affect the other. All precisions of the parent get the head. Nothing is
published if a file of the parent differs from its manifest.
Out of scope: activating the version.
"""

from __future__ import annotations

from typing import Any

from model_store.artifact import Artifact
from model_store.durable import copy_file, sha256_of
from model_store.errors import ArtifactCorruptError
from model_store.head.fit import FittedHead
from model_store.head.graph import replace_head
from model_store.manifest import ManifestDraft, class_labels, graph_files
from model_store.store import ModelStore


def publish_head(store: ModelStore, parent: Artifact, fitted: FittedHead, source: dict[str, Any]) -> Artifact:
    """Publish the parent with another head, and return the version in the precision of `parent`.

    source: where the labels are from, for the recipe of the manifest. Raises HeadGraphError, ArtifactCorruptError,
    PublishError.
    """
    manifest, head = parent.manifest, fitted.head
    recipe: dict[str, Any] = {
        **manifest.recipe,
        "head": {"method": "logistic regression", "l2": fitted.l2, "vectors": parent.embedder, **source},
    }
    if isinstance(architecture := recipe.get("architecture"), dict):
        recipe["architecture"] = architecture | {"classes": len(head.labels)}
    # bf16 changes fc7 and not the head, so the measurement of the parent holds for the vectors.
    metrics = fitted.metrics() | {name: manifest.metrics[name] for name in ("bf16",) if name in manifest.metrics}
    draft = ManifestDraft(
        name=manifest.name,
        architecture=manifest.architecture,
        classes=class_labels(head.labels),
        recipe=recipe,
        opset=manifest.opset,
        producer=manifest.producer,
        metrics=metrics,
        parent_version=parent.id,
        precisions={name: entry.metrics for name, entry in manifest.precisions.items()},
        base_graphs={precision: base_graph(parent, precision) for precision in parent.precisions},
        input=manifest.input,
    )
    with store.staging(manifest.name) as staged:
        for precision in parent.precisions:
            graph, weights = graph_files(precision)
            (staged / graph).parent.mkdir(exist_ok=True)
            model = replace_head(parent.read(graph), head.weights, head.biases, of=parent.id)
            (staged / graph).write_bytes(model)
            copy_file(parent.path / weights, staged / weights)
            expected, found = manifest.files[weights].sha256, sha256_of(staged / weights)
            if found != expected:
                raise ArtifactCorruptError(parent.path / weights, expected, found)
        return store.publish(staged, draft).at(parent.precision, parent.engine)


def base_graph(artifact: Artifact, precision: str) -> str:
    """Return the SHA-256 of the graph that first computed the fc7 of a version with the same weights."""
    return artifact.manifest.base_graphs.get(precision) or artifact.manifest.files[graph_files(precision)[0]].sha256
