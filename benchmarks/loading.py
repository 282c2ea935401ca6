"""Measure how fast images are loaded for training, and the share of its time that training waits for them.

    python -m benchmarks.loading --data DIR [--images 400] [--batch 64]

DIR has photographs in class folders (<root>/{train,val}/<class>/*). The benchmark prepares shards in a temporary folder
and measures, in one run: decoding of originals and of shards with threads and with processes; crops, flips and color
noise; and training the paper's net from class folders and from shards, with the share of the time spent waiting.
Out of scope: GPUs. The share depends on the speed of the device, so the images per second are the figures to compare.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from model_store.decoder.decoder import Decoder
from model_store.image import prepare
from model_store.training.data.augment import Augmenter
from model_store.training.data.image_file import ImageFile
from model_store.training.data.prepare import prepare_shards
from model_store.training.data.reader import open_dataset
from model_store.training.data.shards import open_shards
from model_store.training.data.sources import find_source
from model_store.training.device import environment_versions, keep_freed_memory
from model_store.training.loop import Resources, train
from model_store.training.recipe import load_recipe
from model_store.training.runs.run import read_metrics


def decode(sample: ImageFile) -> int:
    """Decode one image in a worker that keeps its pixels."""
    return int(prepare(sample.read())[0, 0, 0])


def decode_and_return(sample: ImageFile) -> np.ndarray:
    """Decode one image and hand its pixels back, as training needs them."""
    return prepare(sample.read())


def rate(pool: Executor, work: Callable[[ImageFile], object], samples: Sequence[ImageFile], chunk: int) -> float:
    """Return images a second, after a warm-up."""
    list(pool.map(work, samples[:32], chunksize=chunk))
    started = time.perf_counter()
    for _ in pool.map(work, samples, chunksize=chunk):
        pass
    return len(samples) / (time.perf_counter() - started)


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="class folders of photographs")
    parser.add_argument("--images", type=int, default=400, help="images per measurement")
    parser.add_argument("--batch", type=int, default=64, help="batch size")
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    keep_freed_memory()
    print(f"{cores} cores of {environment_versions()['processor']}, torch {torch.__version__}")
    print(f"load {os.getloadavg()[0]:.1f} before")
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        source = find_source(given.data)
        started = time.perf_counter()
        prepare_shards(source, shards, workers=cores)
        total = sum(len(items) for items in source.splits.values())
        size = sum(path.stat().st_size for path in shards.glob("*.tar"))
        print(
            f"prepare: {total / (time.perf_counter() - started):,.0f} images/s, {size / total / 1e3:.1f} kB per image"
        )
        with ThreadPoolExecutor(cores) as workers, Decoder() as decoder:
            opened = {
                "originals": open_dataset(find_source(given.data), memory_budget=0, workers=workers, decoder=decoder),
                "shards": open_shards(shards, memory_budget=0, workers=workers, decoder=decoder),
            }
            for name, data in opened.items():
                samples = data.train.images[: given.images]
                for count in sorted({1, cores}):
                    with ThreadPoolExecutor(count) as pool:
                        speed = rate(pool, decode_and_return, samples, 1)
                    print(f"decode {name}, {count} threads: {speed:,.0f} images/s")
                context = get_context("spawn")
                with ProcessPoolExecutor(cores, context) as processes:
                    alone = rate(processes, decode, samples, 8)
                    moved = rate(processes, decode_and_return, samples, 8)
                print(f"decode {name}, {cores} processes: {alone:,.0f} images/s; {moved:,.0f} with pixels returned")
            recipe = load_recipe("paper").with_settings([f"batch_size={given.batch}", "epochs=1"])
            augmenter = Augmenter(recipe, opened["shards"].statistics)
            pixels = opened["shards"].train.pixels(np.arange(given.batch))
            augmenter.training_batch(pixels, 0, 0, 0)
            started = time.perf_counter()
            for step in range(10):
                augmenter.training_batch(pixels, 0, 0, step)
            print(f"crops, flips, color noise: {10 * given.batch / (time.perf_counter() - started):,.0f} images/s")
        for name, data_folder in (("class folders", given.data), ("shards", shards)):
            run = train(data_folder, recipe, home=Path(folder), name="bench", resources=Resources(memory_budget=0)).run
            epoch = next(line for line in read_metrics(run) if line["kind"] == "epoch")
            print(
                f"training from {name}: {epoch['images_per_second']:.1f} images/s, "
                f"{epoch['wait_share']:.2%} of the time spent waiting for data"
            )
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
