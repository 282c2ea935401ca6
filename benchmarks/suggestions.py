"""Whether suggested images teach more than random ones: labels are given in rounds, and the rest is classified.

    python -m benchmarks.suggestions --data DIR [--home DIR] [--model NAME:VERSION] [--rounds 6] [--batch 20]

data: class folders with train and val. The labels of train are hidden, and revealed for the suggested images or for as
many random ones. After each round, val is classified by the nearest labeled images, as with by=neighbours. Printed is
the accuracy averaged over the classes (balanced) and how many classes have a label; random: mean and standard deviation
over the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.labels import VOTERS
from index.search.suggestions import choose
from index.voting import weights_of
from model_store.decoder.decoder import Decoder
from model_store.image import views
from model_store.image_files import find_images
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore

BATCH = 16
SEEDS = 5


def embed(runner: Runner, folder: Path) -> tuple[NDArray[np.float16], list[str]]:
    """Return the vectors of the images in class folders, float16 [n,4096], and their labels."""
    paths = sorted(find_images(folder))
    vectors = []
    with Decoder() as decoder:
        for start in range(0, len(paths), BATCH):
            crops = [views(decoder.prepare(path.read_bytes())) for path in paths[start : start + BATCH]]
            vectors.append(runner.run(np.concatenate(crops)).fc7.astype(np.float16))
    return np.concatenate(vectors), [path.parent.name for path in paths]


def balanced_accuracy(
    labeled: NDArray[np.float16], labels: Sequence[str], queries: NDArray[np.float16], truth: Sequence[str]
) -> float:
    """Return the accuracy of a vote of the nearest labeled images, averaged over the classes."""
    names, codes = np.unique(labels, return_inverse=True)
    sizes = np.bincount(codes)
    known, asked = labeled.astype(np.float32), queries.astype(np.float32)
    squares = (asked**2).sum(1)[:, None] + (known**2).sum(1) - 2 * np.matmul(asked, known.T)
    distances = np.sqrt(np.maximum(squares, 0))
    nearest = np.argsort(distances, axis=1)[:, :VOTERS]
    weights = weights_of(np.take_along_axis(distances, nearest, 1), sizes[codes[nearest]])
    votes = np.zeros((len(asked), len(names)))
    np.add.at(votes, (np.arange(len(asked))[:, None], codes[nearest]), weights)
    right = names[votes.argmax(1)] == np.array(truth)
    return float(np.mean([right[np.array(truth) == name].mean() for name in set(truth)]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("var"))
    parser.add_argument("--model", help="default: the active version")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=20)
    options = parser.parse_args()
    store = ModelStore(options.home)
    runner = Runner(
        store.resolve(options.model) if options.model else store.active_artifact(), RunnerOptions(device="cpu")
    )
    vectors, labels = embed(runner, options.data / "train")
    queries, truth = embed(runner, options.data / "val")
    print(f"{runner.artifact.id}: {len(labels)} images to label, {len(truth)} to classify, {len(set(truth))} classes")
    orders = [np.random.default_rng(seed).permutation(len(labels)) for seed in range(SEEDS)]
    chosen: list[int] = []
    for _ in range(options.rounds):
        rest = np.setdiff1d(np.arange(len(labels)), chosen)
        found = choose(vectors[rest], vectors[chosen], [labels[row] for row in chosen], options.batch)
        chosen += [int(rest[choice.row]) for choice in found]
        count = len(chosen)
        ours = balanced_accuracy(vectors[chosen], [labels[row] for row in chosen], queries, truth)
        by_chance = [
            balanced_accuracy(vectors[order[:count]], [labels[row] for row in order[:count]], queries, truth)
            for order in orders
        ]
        classes = [len({labels[row] for row in order[:count]}) for order in orders]
        print(
            f"{count:4} labels: suggested {ours:.1%}, {len({labels[row] for row in chosen})} classes; "
            f"random {np.mean(by_chance):.1%} +- {np.std(by_chance):.1%}, {np.mean(classes):.1f} classes"
        )


if __name__ == "__main__":
    main()
