"""Publish a new version with the same net in int8 or fp16 beside fp32, together with measured differences.

Guarantees: published versions never change. The new version has the same fp32 files, byte for byte, and so the same
fingerprint. Each precision is compared with fp32 on real images, run exactly as it will be served, and is not published
below the agreement limit. Local response normalization stays in float32, because its squares exceed the range of int8
and fp16.
Out of scope: quantization-aware training; choosing what is served.
References: ONNX Runtime's documentation of static quantization (QDQ, per channel) and of float16 models.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from model_store.artifact import Artifact
from model_store.cores import usable_cores
from model_store.decoder.decoder import Decoder
from model_store.durable import copy_file
from model_store.errors import DatasetError
from model_store.image import views
from model_store.manifest import MODEL_FILE, WEIGHTS_FILE, ManifestDraft
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Outputs, Runner
from model_store.store import ModelStore
from model_store.training.data.reader import read_fingerprints
from model_store.training.data.sources import find_source
from model_store.training.data.split import SplitRule, split_source, split_to_make
from model_store.training.errors import AgreementError
from model_store.training.evaluate import SplitImages
from model_store.training.export.agreement import BATCH, compare
from model_store.training.export.graph import PIXELS
from model_store.training.export.novelty import PrecisionNovelty
from model_store.training.export.publish import Progress, staged_version

MIN_AGREEMENT: Final = 0.99
_FP16_OPERATORS: Final = ("Conv", "Relu", "MaxPool", "Flatten", "Gemm")


def add_precisions(
    artifact: Artifact,
    store: ModelStore,
    precisions: Sequence[str],
    data: Path,
    *,
    split: str = "val",
    calibrate: int = 64,
    progress: Progress = lambda *_: None,
) -> Artifact:
    """Publish the next version of `artifact.name`: the same net, with `precisions` ("int8", "fp16") added.

    data: a data set with the images for calibration in `train` and those for the comparison in `split`. If it has no
    images for validation, they are chosen as in training.
    calibrate: number of images that determine the ranges of int8.
    Raises AgreementError, DatasetError, ArtifactError and PublishError.
    """
    artifact = artifact.at("fp32")
    artifact.verify()
    images, training = _images(data, split, partial(progress, "choosing images"))
    manifest = artifact.manifest
    draft = ManifestDraft(**manifest.model_dump(include=set(ManifestDraft.model_fields) - {"precisions"}))
    metrics = {name: entry.metrics for name, entry in manifest.precisions.items()}
    with store.staging(artifact.name) as staged:
        for name in manifest.files:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(artifact.path / name, staged / name)
        for precision in precisions:
            progress(f"converting to {precision}", 0, 1)
            draft.base_graphs.pop(precision, None)
            step = f"comparing {precision} with fp32"
            folder = staged / precision
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            measured: dict[str, Any] = {}
            if precision == "int8":
                sample = views((training or SplitImages(data, "train")).sample(calibrate))
                measured["calibration_images"] = len(sample)
                write_int8(artifact.model_path, folder, sample)
            else:
                write_fp16(artifact.model_path, folder)
            novelty = PrecisionNovelty(artifact)
            measured |= _compare(artifact, staged_version(folder, draft), images, partial(progress, step), novelty)
            if not measured["top5_agreement"] >= MIN_AGREEMENT:
                raise AgreementError(precision, measured["top5_agreement"], MIN_AGREEMENT)
            measured |= novelty.write(folder)
            metrics[precision] = measured | {"data": str(data), "split": split, "data_sha256": images.sha256}
        progress("publishing", 0, 1)
        draft = draft.model_copy(update={"parent_version": artifact.id, "precisions": metrics})
        return store.publish(staged, draft)


def _images(data: Path, split: str, progress: Callable[[int, int], None]) -> tuple[SplitImages, SplitImages | None]:
    """Return the images for the comparison; and those for calibration, or None for those of the split `train`."""
    try:
        return SplitImages(data, split), None
    except DatasetError:
        source = find_source(data)
        divided = split_to_make(source)
        if split != "val" or divided is None:
            raise
    with Decoder() as decoder, ThreadPoolExecutor(usable_cores()) as workers:
        fingerprints, _ = read_fingerprints(source.splits[divided], workers, decoder, progress)
    chosen = split_source(source, fingerprints, SplitRule()).splits
    images = SplitImages(data, divided)
    return images.only(chosen["val"]), images.only(chosen["train"])


def write_int8(model: Path, folder: Path, images: NDArray[np.uint8]) -> None:
    """Write the graph `model` into `folder` in int8: static, per channel, QDQ. Normalization and fc7 stay in float32.

    images: views, uint8 [n, 224, 224, 3], from which the ranges of the activations are measured.
    """
    graph = onnx.load_model(model, load_external_data=False).graph
    quantize_static(
        model,
        folder / MODEL_FILE,
        _CalibrationImages(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "MaxPool", "Relu"],
        nodes_to_exclude=sorted(_normalization_nodes(graph)),
        use_external_data_format=True,
        calibrate_method=CalibrationMethod.MinMax,
    )
    _save(onnx.load_model(folder / MODEL_FILE), folder)


def write_fp16(model: Path, folder: Path) -> None:
    """Write the graph `model` into `folder` in fp16, for CUDA. The weights take half the space.

    Inputs, outputs, the subtraction of the mean and the normalization stay in float32. ONNX Runtime's own converter
    rounds the values between two float32 nodes to fp16, where squares above 65,504 become infinite.
    """
    net = onnx.load_model(model)
    _Fp16Conversion(net.graph).convert()
    onnx.checker.check_model(net)
    _save(net, folder)


class _Fp16Conversion:
    """Converts the layers of a graph to fp16. A value that is needed in both types is cast only once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.normalization = _normalization_nodes(graph)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {output.name for output in graph.output}
        self.fp16_names: dict[str, str] = {}  # value -> its name in fp16
        self.float32_names: set[str] = set()  # values in `fp16_names` that also exist in float32
        self.nodes: list[onnx.NodeProto] = []

    def convert(self) -> None:
        """Convert the graph in place."""
        for node in list(self.graph.node):
            if node.op_type in _FP16_OPERATORS and node.name not in self.normalization:
                self.convert_node(node)
            else:
                node.input[:] = [self.as_float32(name) for name in node.input]
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)

    def convert_node(self, node: onnx.NodeProto) -> None:
        """Make a node compute in fp16. An output of the graph is cast back to float32 under its own name."""
        node.input[:] = [self.as_fp16(name) for name in node.input]
        [output] = node.output
        self.fp16_names[output] = node.output[0] = f"{output}.half"
        self.nodes.append(node)
        if output in self.outputs:
            self.as_float32(output)

    def as_fp16(self, name: str) -> str:
        """Return the name of this value in fp16. Weights are converted, other values are cast."""
        if name not in self.fp16_names:
            if name in self.tensors:
                tensor = self.tensors[name]
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name))
                self.fp16_names[name] = name
            else:
                self.fp16_names[name] = self.cast(name, f"{name}.half", onnx.TensorProto.FLOAT16)
                self.float32_names.add(name)
        return self.fp16_names[name]

    def as_float32(self, name: str) -> str:
        """Return the name of this value in float32, after casting it if a converted node computed it."""
        if name in self.fp16_names and name not in self.float32_names:
            self.cast(self.fp16_names[name], name, onnx.TensorProto.FLOAT)
            self.float32_names.add(name)
        return name

    def cast(self, name: str, output: str, to: int) -> str:
        """Append a cast and return the name of its output."""
        self.nodes.append(helper.make_node("Cast", [name], [output], name=f"{output}.cast", to=to))
        return output


def _compare(
    reference: Artifact,
    other: Artifact,
    images: SplitImages,
    progress: Callable[[int, int], None],
    novelty: PrecisionNovelty,
) -> dict[str, Any]:
    options, done = RunnerOptions(device="cpu"), 0

    def count(expected: Outputs, actual: Outputs) -> None:
        nonlocal done
        novelty.add(expected, actual)
        done += len(expected.fc7)
        progress(done, len(images))

    with (
        closing(Runner(reference, replace(options, arithmetic="f32"))) as first,
        closing(Runner(other, options)) as second,
    ):
        return compare(first, second, novelty.watch(images.batches(BATCH)), count)


class _CalibrationImages(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    """Hands images to the calibration, one at a time."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._remaining = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next input, or None after the last."""
        view = next(self._remaining, None)
        return None if view is None else {PIXELS: view[None]}


def _normalization_nodes(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all nodes of local response normalization, from the squares to the division."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    queue = [node for node in graph.node if node.op_type == "Mul" and len(set(node.input)) == 1]
    while queue:
        node = queue.pop()
        if node.name not in found:
            found.add(node.name)
            if node.op_type != "Div":
                queue.extend(readers.get(node.output[0], []))
    return found


def _save(model: onnx.ModelProto, folder: Path) -> None:
    """Write graph and weights into `folder`, after removing everything else from it."""
    for path in folder.iterdir():
        path.unlink()
    onnx.save_model(
        model,
        folder / MODEL_FILE,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS_FILE,
        size_threshold=1024,
    )
    (folder / WEIGHTS_FILE).chmod((folder / MODEL_FILE).stat().st_mode)  # onnx makes it readable for the owner only
