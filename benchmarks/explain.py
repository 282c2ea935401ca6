"""What explanations cost, and whether the hot parts matter: time and memory, and the deletion test on photographs.

    python -m benchmarks.explain [--home DIR] [--model NAME:VERSION] [--data DIR] [--images 100]

Time: one image with the graph for explanations, divided by one image with the served graph, both on this machine.
Deletion test: a fifth of the cells of each photograph is replaced by its mean color, and the probability of its most
probable class is measured again. The hottest fifth is compared with random cells, and with the same shape at random
places, because scattered cells disturb a net in another way than one region.
References: Petsiuk et al. 2018, "RISE", section 4.3 (deletion).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.classes.figures import wilson_interval
from model_store.cores import usable_cores
from model_store.decoder.decoder import Decoder
from model_store.image import views
from model_store.image_files import find_images
from model_store.memory import return_freed_memory
from model_store.runtime.explainer import Explainer, Target
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore

SHARE = 0.2  # of the cells, that is removed
REPEATS = 4  # of the random removals
BATCH = 16


def median_ms(work: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the median time of each function, in milliseconds; they take turns, so that all see the same load."""
    seconds: list[list[float]] = [[] for _ in work]
    for _ in range(rounds):
        for function, times in zip(work, seconds, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return [float(np.median(times)) * 1000 for times in seconds]


def resident_mb() -> float:
    """Return the memory of this process, in megabytes."""
    return_freed_memory()
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1000


def measure_cost(artifact: Artifact) -> tuple[Runner, Explainer]:
    """Print the time and memory of both graphs, and return them."""
    options = RunnerOptions(device="cpu")
    runner = Runner(artifact, options)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    runner.warm_up()
    before = resident_mb()
    explainer = Explainer(artifact, options)
    near = runner.run(pixels).fc7[0]
    work = [
        lambda: runner.run(pixels),
        lambda: explainer.run(pixels, [Target(0)]),
        lambda: explainer.run(pixels, [Target(near=near)]),
    ]
    median_ms(work, 3)
    grown = resident_mb() - before
    classify, by_class, by_distance = median_ms(work, 40)
    print(f"{artifact.id}, {usable_cores()} cores, {runner.engine} {runner.arithmetic}; explanations in f32")
    print(f"one image: classify {classify:.1f} ms, explain a class {by_class:.1f} ms ({by_class / classify:.2f}x),")
    print(f"           explain a distance {by_distance:.1f} ms ({by_distance / classify:.2f}x)")
    print(f"memory of the graph for explanations, once it is used: {grown:.0f} MB")
    return runner, explainer


def without(pixels: NDArray[np.uint8], cells: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the crop, uint8 [224, 224, 3], with the marked cells, bool [height, width], in its mean color."""
    size = len(pixels)
    rows, columns = (np.arange(size) * count // size for count in cells.shape)
    marked = cells[np.ix_(rows, columns)]
    return np.where(marked[..., np.newaxis], pixels.mean(axis=(0, 1)).round(), pixels).astype(np.uint8)


def removals(heat: NDArray[np.float32], random: np.random.Generator) -> list[NDArray[np.bool_]]:
    """Return the masks: the hottest fifth, then `REPEATS` random ones, then `REPEATS` shifted ones."""
    count = round(SHARE * heat.size)
    order = np.lexsort((random.random(heat.size), -heat.ravel()))  # equal cells in random order
    hottest = np.zeros(heat.size, bool)
    hottest[order[:count]] = True
    scattered = [random.permutation(hottest).reshape(heat.shape) for _ in range(REPEATS)]
    region = hottest.reshape(heat.shape)
    places = [tuple(random.integers(1, size) for size in heat.shape) for _ in range(REPEATS)]
    return [region, *scattered, *(np.roll(region, place, (0, 1)) for place in places)]


def deletion_test(runner: Runner, explainer: Explainer, images: NDArray[np.uint8], seed: int) -> None:
    """Print how much each kind of removal lowers the probability of the most probable class."""
    random = np.random.default_rng(seed)
    drops = []
    for crop in views(images):
        found = explainer.run(crop[None], [Target()])
        index = int(found.explained[0])
        masks = removals(found.heat[0], random)
        rows = np.stack([crop, *(without(crop, mask) for mask in masks)])
        values = np.concatenate(
            [runner.run(rows[start : start + BATCH]).probabilities[:, index] for start in range(0, len(rows), BATCH)]
        )
        lost = values[0] - values[1:]
        drops.append([values[0], lost[0], lost[1 : 1 + REPEATS].mean(), lost[1 + REPEATS :].mean()])
    table = np.array(drops)
    print(f"deletion of {SHARE:.0%} of the cells on {len(table)} photographs, seed {seed}:")
    print(f"  mean probability of the most probable class: {table[:, 0].mean():.3f}")
    for name, column in (("the hottest cells", 1), ("random cells", 2), ("the same shape elsewhere", 3)):
        text = f"  lowered by {table[:, column].mean():.3f} without {name}"
        if column > 1:
            more = int((table[:, 1] > table[:, column]).sum())
            low, high = wilson_interval(more, len(table))
            text += f"; the hottest cells lower it more on {more / len(table):.0%} ({low:.0%} to {high:.0%})"
        print(text)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("var"))
    parser.add_argument("--model", help="default: the active version")
    parser.add_argument("--data", type=Path, help="photographs; without, only time and memory are measured")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    store = ModelStore(options.home)
    artifact = store.resolve(options.model) if options.model else store.active_artifact()
    runner, explainer = measure_cost(artifact)
    if options.data is not None:
        paths = list(find_images(options.data))
        chosen = np.random.default_rng(options.seed).permutation(len(paths))[: options.images]
        with Decoder() as decoder:
            images = np.stack([decoder.prepare(paths[number].read_bytes()) for number in chosen])
        deletion_test(runner, explainer, images, options.seed)


if __name__ == "__main__":
    main()
