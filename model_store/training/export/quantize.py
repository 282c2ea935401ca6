"""Publish a version again with the same net in int8 or fp16 beside fp32, and with what that changes, measured.

Promises: a published version is never changed: the new one has its fp32 files byte for byte, and so its fingerprint;
each precision is compared with fp32 on photographs as it will be served, and not published below the limit; the local
response norms stay in float32 (their squares have no range that int8 or fp16 could hold).
Does not: train for quantisation, choose what is served.
Source: ONNX Runtime's documentation of static quantisation (QDQ, per channel) and of float16 models.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from model_store.artifact import MODEL_FILE, WEIGHTS_FILE, Artifact, ManifestDraft
from model_store.errors import AgreementError
from model_store.image import views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner, top_k
from model_store.store import ModelStore
from model_store.training.evaluate import TOP, SplitImages
from model_store.training.export.publish import provisional_version

MADE: Final = ("int8", "fp16")
LEAST_AGREEMENT: Final = 0.99
CALIBRATE: Final = 64
_BATCH: Final = 16
_LAYERS: Final = ("Conv", "Relu", "MaxPool", "Flatten", "Gemm")

Progress = Callable[[str, int, int], None]  # (step, done, in all)


def add_precisions(
    artifact: Artifact,
    store: ModelStore,
    precisions: Sequence[str],
    data: Path,
    *,
    split: str = "val",
    calibrate: int = CALIBRATE,
    progress: Progress = lambda _step, _done, _total: None,
) -> Artifact:
    """Publish the next version of `artifact.name`: `artifact` with its net in `precisions` ("int8", "fp16") too.

    data: a folder with the photographs of calibration in `train` and those of the comparison in `split`.
    calibrate: how many photographs the ranges of int8 are taken from.
    Raises AgreementError, DatasetError, ArtifactError, PublishError.
    """
    artifact = artifact.at("fp32")
    artifact.verify()
    photographs = SplitImages(data, split)
    manifest = artifact.manifest
    measured = {name: entry.metrics for name, entry in manifest.precisions.items()}
    with store.staging(artifact.name) as staged:
        for name in manifest.files:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, staged / name)
        for precision in precisions:
            progress(f"making {precision}", 0, 1)
            folder = staged / precision
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            made: dict[str, Any] = {}
            if precision == "int8":
                sample = views(SplitImages(data, "train").sample(calibrate))
                made["calibration_images"] = len(sample)
                write_int8(artifact.model_path, folder, sample)
            else:
                write_fp16(artifact.model_path, folder)
            made |= compare(artifact, _as_version(artifact, folder), photographs, precision, progress)
            if not made["top5_agreement"] >= LEAST_AGREEMENT:
                raise AgreementError(precision, made["top5_agreement"], LEAST_AGREEMENT)
            measured[precision] = made | {"data": str(data), "split": split, "data_sha256": photographs.sha256}
        progress("publishing", 0, 1)
        draft = ManifestDraft(
            **manifest.model_dump(include=set(ManifestDraft.model_fields) - {"precisions", "parent_version"}),
            parent_version=artifact.id,
            precisions=measured,
        )
        return store.publish(staged, draft)


def write_int8(model: Path, folder: Path, photographs: NDArray[np.uint8]) -> None:
    """Write the graph `model` into `folder` in int8: static, per channel, as QDQ; its norms and fc7's values in float.

    photographs: views, uint8 [n,224,224,3], from which the ranges of the inner values are taken.
    """
    graph = onnx.load_model(model, load_external_data=False).graph
    quantize_static(
        model,
        folder / MODEL_FILE,
        _Views(photographs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "MaxPool", "Relu"],
        nodes_to_exclude=sorted(_norms(graph)),
        use_external_data_format=True,
        calibrate_method=CalibrationMethod.MinMax,
    )
    _save(onnx.load_model(folder / MODEL_FILE), folder)


def write_fp16(model: Path, folder: Path) -> None:
    """Write the graph `model` into `folder` in fp16, for CUDA: its layers, whose weights are halved in size.

    Inputs, outputs, the subtraction of the mean and the norms stay in float32: ONNX Runtime's own converter rounds the
    values between two such nodes to fp16, where a square over 65,504 is infinite.
    """
    net = onnx.load_model(model)
    _Halves(net.graph).convert()
    onnx.checker.check_model(net)
    _save(net, folder)


class _Halves:
    """The conversion of a graph's layers to fp16; a value that is needed in both types is cast once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.norms = _norms(graph)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {output.name for output in graph.output}
        self.as_half: dict[str, str] = {}
        self.as_float: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def convert(self) -> None:
        """Change the graph."""
        for node in list(self.graph.node):
            if node.op_type in _LAYERS and node.name not in self.norms:
                self.halve(node)
            else:
                node.input[:] = [self.in_float(name) for name in node.input]
                self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)

    def halve(self, node: onnx.NodeProto) -> None:
        """Let a layer compute in fp16; an output of the graph is cast back under its own name."""
        node.input[:] = [self.in_half(name) for name in node.input]
        [output] = node.output
        half = f"{output}.half"
        self.as_half[output], node.output[0] = half, half
        self.nodes.append(node)
        if output in self.outputs:
            self.in_float(output)

    def in_half(self, name: str) -> str:
        """Return the name of this value in fp16."""
        if name not in self.as_half:
            if name in self.tensors:
                tensor = self.tensors[name]
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name))
                self.as_half[name] = name
            else:
                self.as_half[name] = self.cast(name, f"{name}.half", onnx.TensorProto.FLOAT16)
                self.as_float[name] = name
        return self.as_half[name]

    def in_float(self, name: str) -> str:
        """Return the name of this value in its own type, cast back where a layer made it."""
        if name in self.as_half and name not in self.as_float:
            self.as_float[name] = self.cast(self.as_half[name], name, onnx.TensorProto.FLOAT)
        return name

    def cast(self, name: str, output: str, to: int) -> str:
        """Append a cast and return its output."""
        self.nodes.append(helper.make_node("Cast", [name], [output], name=f"{output}.cast", to=to))
        return output


def compare(
    reference: Artifact, other: Artifact, photographs: SplitImages, precision: str, progress: Progress
) -> dict[str, Any]:
    """Return how the answers of `other` differ from those of `reference`, one view a photograph, on the CPU.

    `top1_agreement`: share with the same best class. `top5_agreement`: share whose best class in fp32 is among the
    best `k` (five, and fewer than the classes). `fc7_cosine`: mean and least over the photographs. Errors are shares of
    the photographs whose class the model knows, None where there is none.
    """
    labels = reference.labels
    k = max(1, min(TOP, len(labels) - 1))
    index_of = {label: index for index, label in enumerate(labels)}
    same: list[NDArray[np.bool_]] = []
    among: list[NDArray[np.bool_]] = []
    cosines: list[NDArray[np.float32]] = []
    wrong: list[tuple[bool, bool, bool, bool]] = []
    seen = 0
    first, second = (Runner(version, RunnerOptions(device="cpu")) for version in (reference, other))
    try:
        for pixels, truth in _batches(photographs):
            wanted, found = first.run(pixels), second.run(pixels)
            best, found_best = top_k(wanted.probabilities, k)[0], top_k(found.probabilities, k)[0]
            same.append(best[:, 0] == found_best[:, 0])
            among.append((found_best == best[:, :1]).any(axis=1))
            norms = np.linalg.norm(wanted.fc7, axis=1) * np.linalg.norm(found.fc7, axis=1)
            cosines.append((wanted.fc7 * found.fc7).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny))
            for row, label in enumerate(truth):
                index = index_of.get(label)
                if index is not None:
                    a, b = best[row], found_best[row]
                    wrong.append((a[0] != index, index not in a, b[0] != index, index not in b))
            seen += len(pixels)
            progress(f"comparing {precision} with fp32", seen, len(photographs))
    finally:
        first.close()
        second.close()
    every = np.concatenate(cosines)
    result: dict[str, Any] = {
        "images": seen,
        "k": k,
        "top1_agreement": float(np.concatenate(same).mean()),
        "top5_agreement": float(np.concatenate(among).mean()),
        "fc7_cosine": float(every.mean()),
        "fc7_cosine_least": float(every.min()),
        "top1_error": None,
        "top5_error": None,
        "top1_error_change": None,
        "top5_error_change": None,
    }
    if wrong:
        before1, before5, after1, after5 = np.mean(wrong, axis=0).tolist()
        result |= {"top1_error": after1, "top5_error": after5}
        result |= {"top1_error_change": after1 - before1, "top5_error_change": after5 - before5}
    return result


class _Views(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    """The photographs, one at a time, as the calibration asks for them."""

    def __init__(self, photographs: NDArray[np.uint8]) -> None:
        self._rest = iter(photographs)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next input, None after the last."""
        view = next(self._rest, None)
        return None if view is None else {"pixels": view[None]}


def _norms(graph: onnx.GraphProto) -> set[str]:
    """Return the nodes of local response normalisation: from the squares to the division by their power's root."""
    used_by: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            used_by.setdefault(name, []).append(node)
    found: set[str] = set()
    waiting = [node for node in graph.node if node.op_type == "Mul" and len(set(node.input)) == 1]
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            if node.op_type != "Div":
                waiting.extend(used_by.get(node.output[0], []))
    return found


def _save(model: onnx.ModelProto, folder: Path) -> None:
    """Write graph and weights, and nothing else, into `folder`."""
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
    (folder / WEIGHTS_FILE).chmod((folder / MODEL_FILE).stat().st_mode)  # onnx lets nobody else read it


def _as_version(artifact: Artifact, folder: Path) -> Artifact:
    """Return the graph in `folder` as a version of its own, so that it is run by the Runner that will serve it."""
    draft = ManifestDraft(**artifact.manifest.model_dump(include=set(ManifestDraft.model_fields) - {"precisions"}))
    return provisional_version(folder, draft)


def _batches(photographs: SplitImages) -> Iterator[tuple[NDArray[np.uint8], list[str]]]:
    pixels: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for picture, label in photographs:
        pixels.append(picture)
        labels.append(label)
        if len(pixels) == _BATCH:
            yield views(np.stack(pixels)), labels
            pixels, labels = [], []
    if pixels:
        yield views(np.stack(pixels)), labels
