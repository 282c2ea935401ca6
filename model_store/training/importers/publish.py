"""Make an imported net a version: the served graph, compared with torch, its labels, and where it came from.

Promises: what export.py promises of the graph: it is run as it will be served and compared with the net in torch before
anything is visible; on failure nothing is left. The manifest has the source file's SHA-256 and the preprocessing.
Does not: measure errors (fc7 evaluate does, on the user's images), choose which version is served.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import FEATURES, Artifact, ManifestDraft, class_labels
from model_store.errors import ImportFormatError
from model_store.image import SIZE
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.evaluate import TorchPredictor
from model_store.training.export.graph import OPSET, PRODUCER
from model_store.training.export.publish import Parity, check_parity, provisional_version
from model_store.training.export.served_graph import write_served_graph
from model_store.training.importers.imported_net import ImportedNet, build, manifest_recipe
from model_store.training.importers.labels import Labels
from model_store.training.nets.alexnet import Hidden

_PICTURES: Final = 4  # enough for a batch of one and one of several

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Imported:
    """The new version, how near it is to the net in torch, and where its labels are from."""

    artifact: Artifact
    parity: Parity
    labels: Labels


def default_name(net: ImportedNet) -> str:
    """Return a model's name made from the file's: "bvlc_alexnet.caffemodel" -> "bvlc_alexnet"."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", net.source.path.stem).lstrip("._-")[:64]
    return stem or net.architecture.name


def publish_import(
    net: ImportedNet,
    store: ModelStore,
    labels: Labels,
    *,
    name: str | None = None,
    progress: Progress = lambda _step: None,
) -> Imported:
    """Publish `net` as the next version of `name` (the file's own name unless given).

    labels: one for each class. Raises ParityError, PublishError, ModelNameError, and ImportFormatError for a net whose
    fc7 has not the served size.
    """
    hidden = [layer.neurons for layer in net.architecture.layers if isinstance(layer, Hidden)]
    if not hidden or hidden[-1] != FEATURES:
        raise ImportFormatError(net.source.path, f"a served version has {FEATURES} neurons in fc7")
    draft = ManifestDraft(
        name=name or default_name(net),
        architecture=net.architecture.name,
        classes=class_labels(labels.names),
        recipe=manifest_recipe(net) | {"labels": labels.origin},
        opset=OPSET,
        producer=f"{PRODUCER} {version('fc7')}",
    )
    with store.staging(draft.name) as staged:
        progress("writing the graph")
        model = build(net)
        write_served_graph(model, net.mean, staged)
        progress("comparing with torch")
        runner = Runner(provisional_version(staged, draft), RunnerOptions(device="cpu", streams=2))
        try:
            parity = check_parity(runner, TorchPredictor(draft.name, labels.names, model, net.mean), _pictures())
        finally:
            runner.close()
        draft = draft.model_copy(update={"metrics": {"parity": asdict(parity)}})
        progress("publishing")
        return Imported(store.publish(staged, draft), parity, labels)


def _pictures() -> NDArray[np.uint8]:
    """Return pictures to compare with, uint8 [n, 256, 256, 3]: smooth colours over the whole range, and noise.

    An importer has no photographs; any pictures show whether two computations of one net are the same.
    """
    random = np.random.default_rng(2012)
    coarse = random.uniform(0, 255, (_PICTURES, 5, 5, 3))
    places = np.linspace(0, 3.999, SIZE)
    low, part = places.astype(int), places % 1
    rows = coarse[:, low] * (1 - part)[None, :, None, None] + coarse[:, low + 1] * part[None, :, None, None]
    smooth = rows[:, :, low] * (1 - part)[None, None, :, None] + rows[:, :, low + 1] * part[None, None, :, None]
    return np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
