"""Compare the speed of a training step with a plain torch loop, and with the arithmetic limit of the cores.

    python -m benchmarks.training [--batch 64] [--steps 6] [--rounds 3] [--precision bfloat16] [--profile] [--json FILE]

The plain loop is the paper's net written with torch's modules: nn.LocalResponseNorm, nn.Dropout, images in NCHW layout,
and SGD with default options. Both nets start from the same weights, and their outputs are compared before the timing.
Each measurement runs in its own process (fc7's memory settings apply to a whole process). The two alternate, so that a
change in the load of the machine affects both. The limit is the rate of large matrix products in the same precision,
measured in the same rounds. The share of it counts only the multiply-adds that a step cannot do without: those of the
convolutions, the fully-connected layers and the normalization, forward and backward.
Out of scope: reading images (both nets get a batch in memory), accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_store.training.device import environment_versions, keep_freed_memory
from model_store.training.nets.alexnet import AlexNet, Architecture, Conv, Hidden, Norm, initialise
from model_store.training.optim import build_optimizer, set_rate
from model_store.training.recipe import Recipe

CLASSES = 1000
SIDE = 2048  # of the matrices whose product gives the limit
RATE = 1e-4  # so small that the loss stays finite on noise
# Parts of operator names, by kind of work. An operator counts for the first kind that matches.
KINDS = {
    "optimiser": ("_fused_sgd", "_foreach", "aten::sgd"),
    "convolution, backward": ("convolution_backward", "mkldnn_convolution_backward"),
    "convolution": ("convolution", "mkldnn_conv"),
    "pooling": ("pool",),
    "fully connected": ("addmm", "aten::mm", "linear"),
    "powers and roots": ("pow", "sqrt"),
    "copies and conversions": ("copy_", "clone", "contiguous", "aten::cat", "constant_pad", "fill_", "zero_"),
    "element by element": ("mul", "add", "div", "threshold", "relu", "clamp", "sub", "bernoulli", "dropout", "neg"),
}


def plain_net() -> nn.Sequential:
    """Return the paper's net in torch's own modules. Padding with 3 zeros makes 224 pixels the original 227."""

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

    def relu() -> nn.Module:
        return nn.ReLU(inplace=True)

    return nn.Sequential(
        nn.ZeroPad2d((0, 3, 0, 3)),
        *(nn.Conv2d(3, 96, 11, stride=4), relu(), norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), relu(), norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), relu()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), relu()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), relu(), nn.MaxPool2d(3, 2), nn.Flatten()),
        *(nn.Linear(9216, 4096), relu(), nn.Dropout()),
        *(nn.Linear(4096, 4096), relu(), nn.Dropout()),
        nn.Linear(4096, CLASSES),
    )


def our_net() -> AlexNet:
    """Return fc7's net with random weights."""
    net = AlexNet(Architecture(CLASSES, dropout="inverted"))
    initialise(net, "he", torch.Generator().manual_seed(0))
    return net


def multiply_adds() -> int:
    """Return the multiply-adds of a training step per image: forward, gradients of the inputs, and of the weights."""
    architecture = Architecture(CLASSES)
    total, channels, size, first = 0, 3, 224, True
    for layer, output in zip((*architecture.layers, None), architecture.maps(), strict=True):
        pixels = output.size**2
        match layer:
            case Conv():
                products = pixels * layer.kernels * (channels // layer.towers) * layer.size**2
                total += products * (2 if first else 3)  # the images need no gradient
                first = False
            case Norm():
                total += 2 * pixels * channels * channels  # a banded matrix, forward and backward
            case Hidden() | None:
                total += 3 * output.channels * channels * size**2
        channels, size = output.channels, output.size
    return total


def product_rate(precision: str) -> float:
    """Return the multiply-adds per second of large matrix products, the median of ten."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    times = []
    for _ in range(11):
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return SIDE**3 / statistics.median(times[1:])


def output_difference() -> float:
    """Return the largest difference between the logits of the two nets, relative to the largest logit."""
    ours, plain = our_net(), plain_net()
    layers = [module for module in plain if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer, name in zip(layers, ours.parameter_counts(), strict=True):
        layer.load_state_dict(ours.get_submodule(name).state_dict())
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 60
    with torch.no_grad():
        our_logits, plain_logits = ours.eval()(x), plain.eval()(x)
    return float((our_logits - plain_logits).abs().max() / plain_logits.abs().max())


def stepper(which: str, precision: str, batch: int) -> Callable[[], None]:
    """Return a function that performs one training step with `batch` images. which: "ours" or "plain"."""
    random = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, CLASSES, (batch,), generator=random)
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    x = ((pixels.float() - 127.5) / 64).permute(0, 3, 1, 2)
    if which == "plain":
        net: nn.Module = plain_net()
        optimiser: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=0.0005)
        x = x.contiguous()
    else:
        keep_freed_memory()
        net = our_net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = build_optimizer(net, Recipe(update="torch"))
        set_rate(optimiser, RATE)
    net.train()

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits: Tensor = net(x)
        loss = functional.cross_entropy(logits.float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        loss.item()

    return step


def measure(which: str, precision: str, batch: int, steps: int) -> tuple[float, float]:
    """Return images per second, and images per second of CPU time: medians of `steps` steps, after a warm-up step.

    CPU time is the sum over all threads. On a machine with other load, it is the more reliable figure.
    """
    step = stepper(which, precision, batch)
    step()
    times, cpu_times = [], []
    for _ in range(steps):
        started, cpu_started = time.perf_counter(), time.process_time()
        step()
        times.append(time.perf_counter() - started)
        cpu_times.append(time.process_time() - cpu_started)
    return batch / statistics.median(times), batch / statistics.median(cpu_times)


def profile(which: str, precision: str, batch: int) -> dict[str, float]:
    """Return the share of a step's time for each kind of work, from torch's profiler, largest first."""
    step = stepper(which, precision, batch)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        step()
    shares: dict[str, float] = {}
    for event in recorded.key_averages():
        kind = next((kind for kind, marks in KINDS.items() if any(mark in event.key for mark in marks)), "other")
        shares[kind] = shares.get(kind, 0) + event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: share / total for kind, share in sorted(shares.items(), key=lambda item: -item[1])}


def in_own_process(*task: str) -> Any:
    """Run a task of this module in its own process, and return the JSON that it prints."""
    command = [sys.executable, "-m", "benchmarks.training", "--task", *task]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare_with_limit(precision: str, speeds: list[float], limits: list[float]) -> dict[str, Any]:
    """Print and return the share of the limit. speeds: images per second. limits: multiply-adds per second."""
    rates = [speed * multiply_adds() for speed in speeds]
    share = statistics.median(rate / limit for rate, limit in zip(rates, limits, strict=True))
    reached, limit = (statistics.median(values) / 1e9 for values in (rates, limits))
    print(f"{precision}, billion multiply-adds per second: fc7 {reached:.0f}, limit {limit:.0f}; share {share:.2f}")
    return {"multiply_adds_per_image": multiply_adds(), "multiply_adds_per_second": limits, "share": share}


def run_task(kind: str, which: str, precision: str, *numbers: str) -> Any:
    """Run a measurement of this process: "limit", "profile" (batch) or "measure" (batch, steps)."""
    if kind == "limit":
        return product_rate(precision)
    if kind == "profile":
        return profile(which, precision, int(numbers[0]))
    return measure(which, precision, int(numbers[0]), int(numbers[1]))


def main() -> None:
    """Measure both loops alternately and print the results."""
    parser = argparse.ArgumentParser(description="Training speed compared with a plain torch loop.")
    parser.add_argument("--batch", type=int, default=64, help="batch size")
    parser.add_argument("--steps", type=int, default=6, help="timed steps per measurement")
    parser.add_argument("--rounds", type=int, default=3, help="alternating measurements of each loop")
    parser.add_argument(
        "--precision", choices=("bfloat16", "float32"), action="append", help="may be repeated; both by default"
    )
    parser.add_argument("--profile", action="store_true", help="also print the shares of a step's time")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        print(json.dumps(run_task(*given.task)))
        return
    difference = output_difference()
    print(f"relative difference of the logits for the same weights: {difference:.1e}")
    if difference > 1e-4:
        raise SystemExit("the two nets are not the same: nothing was measured")
    versions = environment_versions()
    print(
        f"{versions['processor']}, {versions['threads']} threads, torch {versions['torch']}, batch {given.batch}, ",
        end="",
    )
    print(f"load {os.getloadavg()[0]:.1f} before")
    results: dict[str, Any] = {"machine": versions, "batch": given.batch, "load_before": os.getloadavg()[0]}
    for precision in given.precision or ("bfloat16", "float32"):
        found: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
        limits = []
        for _ in range(given.rounds):
            limits.append(in_own_process("limit", "", precision))
            for which, speeds in found.items():
                speeds.append(in_own_process("measure", which, precision, str(given.batch), str(given.steps)))
        results[precision] = {}
        for index, clock in enumerate(("wall time", "CPU time")):
            plain, ours = ([speeds[index] for speeds in found[which]] for which in ("plain", "ours"))
            ratios = [mine / theirs for theirs, mine in zip(plain, ours, strict=True)]
            ratio = statistics.median(ratios)
            results[precision][clock] = {"plain": plain, "ours": ours, "ratios": ratios, "ratio": ratio}
            print(f"{precision}, {clock}: plain {statistics.median(plain):.1f}, ", end="")
            print(f"fc7 {statistics.median(ours):.1f} images/s; ratio {ratio:.2f} ", end="")
            print(f"(rounds: {', '.join(f'{each:.2f}' for each in ratios)})", flush=True)
        results[precision]["limit"] = compare_with_limit(precision, [speeds[0] for speeds in found["ours"]], limits)
        if given.profile:
            for which in found:
                shares = in_own_process("profile", which, precision, str(given.batch))
                results[precision][f"{which}_profile"] = shares
                print(f"  {which}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()))
    results["load_after"] = os.getloadavg()[0]
    print(f"load {results['load_after']:.1f} after (about {versions['threads']} of it from this benchmark)")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
