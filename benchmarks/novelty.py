"""How well a version tells its own kind of images from foreign ones, and what measuring it costs.

    python -m benchmarks.novelty --own DIR --foreign DIR [--foreign DIR ...] [--home DIR] [--model NAME:VERSION]

own: images of the kind that the version was trained on, but neither trained nor calibrated on. foreign: other images.
AUROC: the probability that a foreign image is more unusual than an own one (.5 is chance), for novelty and, as the
usual alternative, for one minus the probability of the best class. Refused: share of images that are `unknown` at the
threshold. The time is that of one image on one core, as the share of a classification.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.classes.figures import wilson_interval
from model_store.decoder.decoder import Decoder
from model_store.image import views
from model_store.image_files import find_images
from model_store.novelty.reference import ACCEPTED, Reference, load_reference
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore

BATCH = 16


def read_views(folder: Path, count: int, seed: int) -> NDArray[np.uint8]:
    """Return the center views of up to `count` random images of a folder, uint8 [n,224,224,3]."""
    paths = list(find_images(folder))
    chosen = np.random.default_rng(seed).permutation(len(paths))[:count]
    if not len(chosen):
        raise SystemExit(f"{folder} has no images.")
    with Decoder() as decoder:
        return np.concatenate([views(decoder.prepare(paths[number].read_bytes())) for number in chosen])


def measure(runner: Runner, reference: Reference, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the novelty's percentile and one minus the best probability of each image: float64 [2, n]."""
    parts = []
    for start in range(0, len(pixels), BATCH):
        rows = pixels[start : start + BATCH]
        outputs = runner.run(rows)
        percentiles = [novelty.percentile for novelty in reference.measure(outputs.fc7, rows)]
        parts.append(np.stack([percentiles, 1 - outputs.probabilities.max(axis=1)]))
    return np.concatenate(parts, axis=1)


def auroc(own: NDArray[np.float64], foreign: NDArray[np.float64]) -> float:
    """Return the probability that a foreign value is higher than an own one; equal values count half."""
    ordered = np.sort(own)
    below, not_above = np.searchsorted(ordered, foreign, "left"), np.searchsorted(ordered, foreign, "right")
    return float((below + not_above).mean() / 2 / len(own))


def median_ms(work: Callable[[], object], rounds: int = 50) -> float:
    """Return the median time of a call, in milliseconds."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("var"))
    parser.add_argument("--model", help="default: the active version")
    parser.add_argument("--own", type=Path, required=True)
    parser.add_argument("--foreign", type=Path, action="append", required=True)
    parser.add_argument("--images", type=int, default=400, help="of each folder, at most")
    parser.add_argument("--threshold", type=float, default=ACCEPTED)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    store = ModelStore(options.home)
    artifact = store.resolve(options.model) if options.model else store.active_artifact()
    reference = load_reference(artifact)
    if reference is None:
        raise SystemExit(f"{artifact.id} was published without a reference for novelty.")
    runner = Runner(artifact, RunnerOptions(device="cpu"))
    own_pixels = read_views(options.own, options.images, options.seed)
    own = measure(runner, reference, own_pixels)
    print(f"{artifact.id}, threshold {options.threshold}, seed {options.seed}")
    for folder in (options.own, *options.foreign):
        is_own = folder == options.own
        found = own if is_own else measure(runner, reference, read_views(folder, options.images, options.seed))
        refused = int((found[0] > 100 * options.threshold).sum())
        low, high = wilson_interval(refused, found.shape[1])
        text = f"{folder}: {found.shape[1]} images, refused {refused / found.shape[1]:.1%} ({low:.1%} to {high:.1%})"
        if not is_own:
            text += f"; AUROC {auroc(own[0], found[0]):.3f}, by probability {auroc(own[1], found[1]):.3f}"
        print(f"{text}; mean best probability {1 - found[1].mean():.2f}")
    one = own_pixels[:1]
    fc7 = runner.run(one).fc7
    cost, run = median_ms(lambda: reference.measure(fc7, one)), median_ms(lambda: runner.run(one))
    print(f"one image: {cost:.2f} ms for novelty, {cost / run:.1%} of {run:.1f} ms for a classification")


if __name__ == "__main__":
    main()
