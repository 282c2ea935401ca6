"""Publish an imported net as a version: write the served graph, compare it with torch, record labels and origin.

Guarantees: the graph is run exactly as it will be served and compared with the net in torch before the version becomes
visible. If any step fails, nothing is published and no file remains. The manifest has the SHA-256 of the source file
and the preprocessing.
Out of scope: measuring errors (`fc7 evaluate` does that on the user's images); choosing which version is served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.artifact import Artifact
from model_store.image import SIZE
from model_store.manifest import FEATURES, ManifestDraft, class_labels
from model_store.store import ModelStore, model_name_of
from model_store.training.errors import ImportFormatError
from model_store.training.evaluate import SplitImages, TorchPredictor
from model_store.training.export.agreement import measure_bf16
from model_store.training.export.graph import OPSET, producer
from model_store.training.export.novelty import reference_of_photographs
from model_store.training.export.publish import Parity, check_parity, staged_runner, staged_version
from model_store.training.export.served_graph import write_served_graph
from model_store.training.importers.imported_net import ImportedNet
from model_store.training.importers.labels import Labels
from model_store.training.nets.alexnet import AlexNet, Hidden


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The new version, its parity with the net in torch, and its labels."""

    artifact: Artifact
    parity: Parity
    labels: Labels


def publish_import(
    net: ImportedNet,
    store: ModelStore,
    labels: Labels,
    *,
    name: str | None = None,
    photographs: SplitImages | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> ImportResult:
    """Publish `net` as the next version of the model `name` (default: derived from the file's name).

    labels: one for each class. photographs: on which bf16 is compared with f32, and which become the reference for
    novelty; without them, the version runs in f32 and has no novelty.
    Raises ParityError, PublishError, ModelNameError, and ImportFormatError if fc7 does not have the served size.
    """
    source = net.source
    hidden = [layer.neurons for layer in net.architecture.layers if isinstance(layer, Hidden)]
    if not hidden or hidden[-1] != FEATURES:
        raise ImportFormatError(source.path, f"a served version requires {FEATURES} neurons in fc7")
    draft = ManifestDraft(
        name=name or model_name_of(source.path.stem) or net.architecture.name,
        architecture=net.architecture.name,
        classes=class_labels(labels.names),
        recipe={
            "imported": source.to_dict(),
            "preprocessing": net.preprocessing,
            "remarks": list(net.remarks),
            "architecture": net.architecture.to_dict(),
            "labels": labels.origin,
        },
        opset=OPSET,
        producer=producer(),
    )
    with store.staging(draft.name) as staged:
        progress("writing the graph")
        model = AlexNet(net.architecture)
        model.load_state_dict(dict(net.weights), assign=True)
        model.eval().requires_grad_(False)
        write_served_graph(model, net.mean, staged)
        progress("comparing with torch")
        with staged_runner(staged, draft) as runner:
            parity = check_parity(runner, TorchPredictor(draft.name, labels.names, model, net.mean), _test_images())
            metrics: dict[str, Any] = {"parity": asdict(parity)}
            if photographs is not None:
                progress("computing the reference for novelty")
                metrics |= reference_of_photographs(runner, photographs, staged)
        if photographs is not None:
            progress("comparing bf16 with f32")
            bf16 = measure_bf16(staged_version(staged, draft), photographs, lambda _done, _total: None)
            metrics |= {"bf16": bf16} if bf16 else {}
        draft = draft.model_copy(update={"metrics": metrics})
        progress("publishing")
        return ImportResult(store.publish(staged, draft), parity, labels)


def _test_images(count: int = 4) -> NDArray[np.uint8]:
    """Return generated images for the comparison, uint8 [count, 256, 256, 3]: smooth colors with noise.

    An importer has no real images, but any images show whether two implementations compute the same net.
    """
    random = np.random.default_rng(2012)
    coarse = random.integers(0, 256, (count, 5, 5, 3), np.uint8)
    images = [Image.fromarray(colors).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for colors in coarse]
    smooth = np.stack([np.asarray(image) for image in images])
    return np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
