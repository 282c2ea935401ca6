"""Temperature scaling: divide the logits by one number, so that probabilities match the share of correct answers.

Guarantees: the order of the classes of an image never changes, and fc7 is not touched. The temperature is that with the
lowest negative log-likelihood on all images. What is reported is cross-fitted: each half of the images is judged with
the temperature of the other half. With few images, or without a gain on the other half, the temperature is 1.
Out of scope: running the net (publish.py).
References: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from model_store.classes.figures import FigureCounter
from model_store.manifest import MODEL_FILE
from model_store.training.evaluate import Predictor
from model_store.training.export.explain_graph import write_explain_graph
from model_store.training.export.graph import PROBABILITIES

Floats = NDArray[np.float32]

FEWEST_IMAGES: Final = 100
LARGEST: Final = 8.0  # the temperature is from 1 / 8 to 8; without a single error, the likelihood would have no maximum
TEMPERATURE: Final = "temperature"  # name of the tensor in the graph
SCALED: Final = "fc8.scaled"  # name of the node and its output
_TINY: Final = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Quality:
    """Expected calibration error, and mean negative log-likelihood in nats."""

    calibration_error: float
    likelihood: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted temperature. by_half: those of the images at even and at odd positions.

    before, after: with temperature 1, and with the temperature of the other half.
    """

    temperature: float
    by_half: tuple[float, float]
    images: int
    before: Quality
    after: Quality

    def to_dict(self) -> dict[str, Any]:
        """Return the entry `calibration` of the metrics."""
        return {
            "temperature": self.temperature,
            "images": self.images,
            "expected_calibration_error_before": self.before.calibration_error,
            "expected_calibration_error": self.after.calibration_error,
            "negative_log_likelihood_before": self.before.likelihood,
            "negative_log_likelihood": self.after.likelihood,
        }


def fit_calibration(probabilities: Floats, truth: NDArray[np.int64]) -> Calibration:
    """Fit the temperature. probabilities: of a net with temperature 1, float32 [n, classes]. truth: int64 [n]."""
    logits = np.log(np.maximum(probabilities, _TINY))  # equal to the net's, up to a constant for each image
    odd = np.arange(len(truth)) % 2 == 1
    before = _quality(logits, truth, np.ones(len(truth)))
    unchanged = Calibration(1.0, (1.0, 1.0), len(truth), before, before)
    if len(truth) < FEWEST_IMAGES or not np.isfinite(logits).all():  # such a net does not pass the parity check
        return unchanged
    even_half, odd_half = (fit_temperature(logits[half], truth[half]) for half in (~odd, odd))
    after = _quality(logits, truth, np.where(odd, even_half, odd_half))
    if not after.likelihood < before.likelihood:
        return unchanged
    return Calibration(fit_temperature(logits, truth), (even_half, odd_half), len(truth), before, after)


def fit_temperature(logits: NDArray[np.floating[Any]], truth: NDArray[np.int64]) -> float:
    """Return the temperature with the lowest negative log-likelihood. logits: [n, classes]. truth: int64 [n]."""
    rows, limit = np.arange(len(truth)), float(np.log(LARGEST))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, truth].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x))


def _quality(logits: Floats, truth: NDArray[np.int64], temperatures: NDArray[np.float64]) -> Quality:
    """temperatures: of each image, [n]."""
    scaled = log_softmax(logits / temperatures[:, None], axis=1)
    counter = FigureCounter(logits.shape[1])
    counter.add(truth, logits.argmax(axis=1), np.exp(scaled.max(axis=1)))
    figures = counter.figures([""] * logits.shape[1])
    likelihood = -float(scaled[np.arange(len(truth)), truth].mean())
    return Quality(figures.expected_calibration_error, likelihood)


class CrossFitted:
    """A `Predictor` of a calibrated graph, with the temperature of the other half for each image.

    It must get all images once, in the order in which the temperature was fitted.
    """

    def __init__(self, predictor: Predictor, calibration: Calibration, view_count: int) -> None:
        self.name, self.labels = predictor.name, predictor.labels
        self._predictor, self._views = predictor, view_count
        even_half, odd_half = calibration.by_half
        self._exponents = calibration.temperature / np.array([odd_half, even_half])
        self._images = 0

    @staticmethod
    def wrap(predictor: Predictor, calibration: Calibration | None, view_count: int) -> Predictor:
        """Return `predictor` itself if there is no temperature."""
        if calibration is None or calibration.temperature == 1:
            return predictor
        return CrossFitted(predictor, calibration, view_count)

    def both(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """uint8 [n, 224, 224, 3] -> (probabilities [n, classes], fc7 [n, neurons]), float32."""
        probabilities, fc7 = self._predictor.both(pixels)
        images = self._images + np.arange(len(pixels)) // self._views
        self._images += len(pixels) // self._views
        logits = np.log(np.maximum(probabilities, _TINY).astype(np.float64))
        return softmax(logits * self._exponents[images % 2, None], axis=1).astype(np.float32), fc7


def add_temperature(folder: Path, temperature: float) -> None:
    """Divide the logits by `temperature` in the graphs in `folder`. `weights.bin` does not change. Raises OSError."""
    model = onnx.load_model(folder / MODEL_FILE, load_external_data=False)
    nodes = model.graph.node
    [(position, softmax_node)] = [(at, node) for at, node in enumerate(nodes) if PROBABILITIES in node.output]
    division = helper.make_node("Div", [softmax_node.input[0], TEMPERATURE], [SCALED], name=SCALED)
    softmax_node.input[0] = SCALED
    nodes.insert(position, division)
    model.graph.initializer.append(numpy_helper.from_array(np.array(temperature, np.float32), TEMPERATURE))
    onnx.save_model(model, folder / MODEL_FILE)
    onnx.checker.check_model(folder / MODEL_FILE, full_check=True)
    write_explain_graph(folder)
