"""How many wrong labels `fc7 data check` finds: the demo photographs with some labels exchanged at random.

    python -m benchmarks.wrong_labels [--home DIR --model NAME:VERSION] [--share 0.05] [--seeds 0 1 2]

Prints, for each seed, the share of the exchanged labels among the first 5 %, 10 % and 20 % of the ranking, and how many
of the suspected labels are exchanged ones: with pictures compared by their colors, and with --model also by its fc7.
The model must have been trained on other pictures. A net that was trained on the true labels knows the answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from model_store.cores import usable_cores
from model_store.decoder.decoder import Decoder
from model_store.image import views
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.check.check import NO_MODEL, Embed, check_source
from model_store.training.check.findings import Report
from model_store.training.data.demo import copy_demo
from model_store.training.data.image_file import ALL, Source
from model_store.training.data.sources import find_source


def exchange_labels(source: Source, share: float, seed: int) -> tuple[Source, set[str]]:
    """Return all images in one split, some with another label, and the names of these."""
    random = np.random.default_rng(seed)
    images = [image for found in source.splits.values() for image in found]
    changed = set(random.choice(len(images), round(share * len(images)), replace=False).tolist())
    labeled = [
        replace(image, label=str(random.choice([label for label in source.classes if label != image.label])))
        if number in changed
        else image
        for number, image in enumerate(images)
    ]
    return replace(source, splits={ALL: tuple(labeled)}), {images[number].name for number in changed}


def shares_found(report: Report, wrong: set[str], parts: Sequence[float]) -> list[float]:
    """Return the share of `wrong` in each first part of the ranking."""
    names = [item.picture.image.name for item in report.labels.ranking]
    return [len(wrong & set(names[: round(part * report.labels.judged)])) / len(wrong) for part in parts]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("var"))
    parser.add_argument("--model")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    runner = Runner(ModelStore(given.home).resolve(given.model), RunnerOptions()) if given.model else None

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert runner is not None
        return runner.run(views(pixels)).fc7

    compared: list[tuple[str, Embed | None]] = [(NO_MODEL, None), *([(given.model, embed)] if runner else [])]
    with TemporaryDirectory() as folder, ThreadPoolExecutor(usable_cores()) as workers, Decoder() as decoder:
        source = find_source(copy_demo(Path(folder)).folder)
        for (name, used), seed in product(compared, given.seeds):
            changed, wrong = exchange_labels(source, given.share, seed)
            report = check_source(changed, decoder=decoder, workers=workers, embed=used)
            found = shares_found(report, wrong, (0.05, 0.1, 0.2))
            suspected = {item.picture.image.name for item in report.labels.wrong}
            right = len(suspected & wrong)
            print(
                f"seed {seed}, {name}: the first 5, 10 and 20 % have "
                f"{', '.join(f'{share:.0%}' for share in found)} of {len(wrong)} exchanged labels; {len(suspected)} "
                f"suspected, {right} of them exchanged; the classifier agrees with {report.labels.accuracy:.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
