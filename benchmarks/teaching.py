"""How well a net recognizes classes that it was not trained for, from a few labeled images of each.

    python -m benchmarks.teaching --data DIR [--home DIR] [--model NAME:VERSION] [--counts 5,10,20] [--seeds 3]

data: class folders of other classes than the net's. For each count, so many random images of each class are labeled,
and up to `--images` others are classified: by a vote of the nearest labeled images, as with by=neighbours, and by a new
head, as with `fc7 head fit`. Printed is the accuracy averaged over the classes: mean and standard deviation over the
seeds, and what the head's cross-validation said. The time is that of the fit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.suggestions import balanced_accuracy, embed
from model_store.head.fit import fit_head
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("var"))
    parser.add_argument("--model", help="default: the active version")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--counts", default="5,10,20")
    parser.add_argument("--images", type=int, default=400, help="to classify, at most")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    store = ModelStore(options.home)
    artifact = store.resolve(options.model) if options.model else store.active_artifact()
    vectors, names = embed(Runner(artifact, RunnerOptions(device="cpu")), options.data)
    labels = np.array(names)
    print(f"{artifact.id}: {len(labels)} images of {len(set(names))} classes")
    for count in (int(text) for text in options.counts.split(",")):
        votes, heads, said, seconds = [], [], [], []
        for seed in range(options.seeds):
            order = np.random.default_rng(seed).permutation(len(labels))
            taught = np.concatenate([order[labels[order] == name][:count] for name in sorted(set(names))])
            asked = order[~np.isin(order, taught)][: options.images]
            truth = labels[asked]
            votes.append(balanced_accuracy(vectors[taught], labels[taught].tolist(), vectors[asked], truth.tolist()))
            started = time.perf_counter()
            fitted = fit_head(vectors[taught], labels[taught].tolist())
            seconds.append(time.perf_counter() - started)
            scores = vectors[asked].astype(np.float32) @ fitted.head.weights.T + fitted.head.biases
            right = np.array(fitted.head.labels)[scores.argmax(axis=1)] == truth
            heads.append(np.mean([right[truth == name].mean() for name in np.unique(truth)]))
            said.append(fitted.figures.balanced_accuracy)
        columns = (("votes", votes), ("head", heads), ("its cross-validation", said))
        figures = "; ".join(f"{name} {np.mean(values):.1%} +- {np.std(values):.1%}" for name, values in columns)
        print(f"{count:3} images of each class: {figures}; fit {np.mean(seconds):.1f} s")


if __name__ == "__main__":
    main()
