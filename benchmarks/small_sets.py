"""Train on small sets of photographs in the same minutes: fc7's recipe beside torchvision's nets from scratch.

    python -m benchmarks.small_sets --archives ../shared/data --work /tmp/sets --minutes 5 --seeds 0,1,2

Each result is appended to WORK/results.jsonl, and a repeated call skips the runs that are in it. `--table` prints the
table of docs/training.md from the file. torchvision is not a dependency: install it to a folder of its own (pip install
--no-deps --target DIR torchvision), and add that to PYTHONPATH. Without it, only fc7 is trained.
Sets: imagenet (323 photographs in 8 coarse classes), elpv (the demo), cifar-1000, cifar-5000, clothing (10 uneven
classes). A set whose archive is missing is skipped. "fc7" starts from the starter, which has seen CIFAR-10, so it is
left out there; "fc7-scratch" starts from random weights.
torchvision's nets get the same images, crops, jitter, flips, balance and schedule, with batches of 32 and their highest
rate at 0.05.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import sys
import tarfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from model_store.classes.figures import FigureCounter, Figures
from model_store.cores import usable_cores
from model_store.decoder.decoder import Decoder
from model_store.training.data.augment import Augmenter, epoch_order
from model_store.training.data.dataset import Dataset
from model_store.training.data.demo import copy_demo
from model_store.training.data.reader import open_dataset
from model_store.training.data.sources import find_source
from model_store.training.device import autocast_dtype, keep_freed_memory
from model_store.training.loop import train
from model_store.training.optim import build_schedule
from model_store.training.recipe import load_recipe
from model_store.training.recipes.sizing import sized

SETS: Final = ("imagenet", "elpv", "cifar-1000", "cifar-5000", "clothing")
NETS: Final = ("fc7", "fc7-scratch", "resnet18", "mobilenet_v3_small")
TORCHVISION_RATE: Final = 0.05
# Ranges of WordNet numbers, which are ordered by subject.
COARSE: Final = {
    "bird": ((1514668, 1622779), (1795545, 1860187), (2002556, 2056570)),
    "fish or reptile": ((1440764, 1496331), (1629819, 1755581), (2526121, 2655020)),
    "invertebrate": ((1770081, 1776000), (1910747, 1986214), (2165105, 2317335)),
    "dog": ((2085000, 2113799),),
    "mammal": ((1872401, 1882714), (2066245, 2077923), (2114548, 2134418), (2325366, 2510000)),
    "food or plant": ((7565083, 7930000), (11939491, 13060000)),
}
VEHICLES: Final = (
    "airship ambulance balloon bobsled canoe container_ship dogsled electric_locomotive fire_engine freight_car "
    "golfcart harvester jinrikisha lifeboat limousine moped motor_scooter moving_van oxcart passenger_car pickup plow "
    "schooner recreational_vehicle snowmobile space_shuttle sports_car steam_locomotive tank trailer_truck tricycle "
    "unicycle warplane"
)
PHOTOGRAPHS: Final = 323


def coarse_class(name: str) -> str | None:
    """Return the coarse class of an ImageNet photograph ("n01440764_tench"), or None if it belongs to none."""
    number, _, words = name.partition("_")
    value = int(number[1:])
    for label, ranges in COARSE.items():
        if any(low <= value <= high for low, high in ranges):
            return label
    return "vehicle" if words in VEHICLES.split() else "thing" if value < 5_000_000 else None


def make_set(name: str, archives: Path, work: Path) -> Path | None:
    """Write the class folders of a set below `work`, unless they exist. Returns None if its archive is missing."""
    folder = work / name
    archive = archives / {"imagenet": "imagenet-400.tar", "clothing": "clothing.tar"}.get(name, "cifar10.tar")
    if name == "elpv":
        copy_demo(folder)
    elif not archive.is_file():
        return None
    elif not folder.is_dir():
        unpacked = work / f"{name}.unpacked"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        if name == "clothing":
            (unpacked / "clothing").rename(folder)
        elif name == "imagenet":
            _split_photographs(sorted(unpacked.rglob("*.JPEG")), folder)
        else:
            _take_cifar(unpacked / "cifar10", folder, int(name.removeprefix("cifar-")))
    return folder


def _split_photographs(files: Sequence[Path], folder: Path) -> None:
    by_class: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        if label := coarse_class(file.stem):
            by_class[label].append(file)
    by_class["thing"] = by_class["thing"][: PHOTOGRAPHS - sum(map(len, by_class.values()))]  # the extra ones are cut
    random = np.random.default_rng(0)
    for label, members in by_class.items():
        order = random.permutation(len(members))
        held_out = round(0.2 * len(members))
        for rank, position in enumerate(order):
            _link(members[position], folder / ("val" if rank < held_out else "train") / label)


def _take_cifar(source: Path, folder: Path, images: int) -> None:
    for split, count in (("train", images // 10), ("test", 100)):
        for label in sorted(path for path in (source / split).iterdir() if path.is_dir()):
            for file in sorted(label.iterdir())[:count]:
                _link(file, folder / split.replace("test", "val") / label.name)


def _link(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file.name).hardlink_to(file)


def train_fc7(data: Path, work: Path, seed: int, minutes: float, *, starter: bool) -> Figures:
    """Train fc7's net with the recipe for small sets."""
    result = train(
        data,
        replace(load_recipe("small"), starter=starter),
        home=work / "home",
        name=data.name,
        seed=seed,
        minutes=minutes,
    )
    if result.figures is None:
        raise SystemExit("the run was stopped")
    return result.figures


def train_torchvision(net_name: str, data: Path, seed: int, minutes: float) -> Figures:
    """Train one of torchvision's nets on the same inputs, and return its figures on the validation images."""
    models = _torchvision_models()
    torch.manual_seed(seed)
    with ThreadPoolExecutor(usable_cores()) as workers, Decoder() as decoder:
        dataset = open_dataset(find_source(data), memory_budget=4 << 30, workers=workers, decoder=decoder)
        net = getattr(models, net_name)(num_classes=len(dataset.classes)).to(memory_format=torch.channels_last)
        return _train_net(net, dataset, seed, minutes)


def _torchvision_models() -> Any:
    if "torchvision" not in sys.modules:
        for operator in ("nms", "qnms"):  # its import requires them, but its own library is not for this build of torch
            torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return importlib.import_module("torchvision.models")


def _train_net(net: nn.Module, dataset: Dataset, seed: int, minutes: float) -> Figures:
    recipe = replace(load_recipe("small"), learning_rate=TORCHVISION_RATE)
    optimizer = torch.optim.SGD(net.parameters(), 0.0, 0.9, weight_decay=recipe.weight_decay, fused=True)
    counts = dataset.class_counts()
    shares = torch.from_numpy(np.log(counts / counts.sum())).float()
    dtype = autocast_dtype("auto", torch.device("cpu"))

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits: torch.Tensor = net(x / 64)
        return logits.float()

    def run(steps: int, rate: Callable[[int], float], augmenter: Augmenter) -> None:
        images, batch = len(dataset.train), recipe.batch_size
        batches = max(1, images // batch)  # no batch of a few images, for batch normalization
        for step in range(steps):
            at = epoch_order(images, seed, step // batches)[step % batches * batch :][:batch]
            x = augmenter.training_batch(dataset.train.pixels(at), seed, step // batches, step % batches)
            labels = torch.from_numpy(dataset.train.labels[at])
            loss = functional.cross_entropy(forward(x) + shares, labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.step()

    chosen = sized(recipe, len(dataset.train))
    started = time.perf_counter()
    run(5, lambda _: 0.0, Augmenter(chosen, dataset.statistics))
    speed = 5 * recipe.batch_size / (time.perf_counter() - started)
    chosen = sized(recipe, len(dataset.train), minutes=minutes, speed=speed)
    steps = math.ceil(chosen.epochs * (chosen.epoch_images or len(dataset.train)) / recipe.batch_size)
    run(steps, build_schedule(chosen, steps).rate, Augmenter(chosen, dataset.statistics))
    return _validate(forward, net, dataset)


@torch.no_grad()
def _validate(forward: Callable[[torch.Tensor], torch.Tensor], net: nn.Module, dataset: Dataset) -> Figures:
    net.eval()
    counter = FigureCounter(len(dataset.classes))
    augmenter = Augmenter(load_recipe("paper"), dataset.statistics)
    for first in range(0, len(dataset.val), 64):
        at = np.arange(first, min(first + 64, len(dataset.val)))
        confidence, best = forward(augmenter.center_batch(dataset.val.pixels(at))).softmax(1).max(1)
        counter.add(dataset.val.labels[at], best.numpy(), confidence.numpy())
    return counter.figures(dataset.classes)


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """Print the mean over the seeds of each set and net, as a table in Markdown."""
    print("| set | net | accuracy | balanced accuracy | macro F1 | majority class | seeds | minutes |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["set"], result["net"], result["minutes"]].append(result)
    for (name, net, minutes), runs in sorted(groups.items()):
        columns = []
        for key in ("accuracy", "balanced_accuracy"):
            values = [100 * run[key] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            columns.append(f"{statistics.mean(values):.1f}{spread} %")
        columns.append(f"{statistics.mean(run['macro_f1'] for run in runs):.2f}")
        columns.append(f"{100 * runs[0]['majority']:.1f} %")
        print(f"| {name} | {net} | {' | '.join(columns)} | {len(runs)} | {minutes:g} |")


def main() -> None:
    """Train every net on every set with every seed, or print the table of the results."""
    parser = argparse.ArgumentParser(description="fc7 beside other nets on small sets.")
    parser.add_argument("--archives", type=Path, default=Path("../shared/data"), help="folder of the archives")
    parser.add_argument("--work", type=Path, required=True, help="folder for sets, runs and results.jsonl")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--table", action="store_true", help="print the results, and train nothing")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    log: Path = given.work / "results.jsonl"
    results = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if given.table:
        print_table(results)
        return
    keep_freed_memory()
    done = {(result["set"], result["net"], result["seed"], result["minutes"]) for result in results}
    runs = [
        (n, net, int(seed))
        for seed in given.seeds.split(",")
        for n in given.sets.split(",")
        for net in given.nets.split(",")
        if net != "fc7" or not n.startswith("cifar")
    ]
    for name, net, seed in runs:
        data = make_set(name, given.archives, given.work)
        if data is None or (name, net, seed, given.minutes) in done:
            print(f"{name}, {net}, seed {seed}: {'no archive' if data is None else 'done already'}", flush=True)
            continue
        started = time.perf_counter()
        if net.startswith("fc7"):
            figures = train_fc7(data, given.work, seed, given.minutes, starter=net == "fc7")
        else:
            figures = train_torchvision(net, data, seed, given.minutes)
        low, high = figures.top1_interval
        result = {"set": name, "net": net, "seed": seed, "minutes": given.minutes} | {
            "accuracy": figures.top1_accuracy,
            "interval": [low, high],
            "majority": figures.majority_accuracy,
            "balanced_accuracy": figures.balanced_accuracy,
            "macro_f1": figures.macro_f1,
            "recalls": [entry.recall for entry in figures.per_class()],
            "seconds": time.perf_counter() - started,
        }
        with log.open("a") as stream:
            stream.write(json.dumps(result) + "\n")
        print(f"{name}, {net}, seed {seed}: {figures.summary()}; {result['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
