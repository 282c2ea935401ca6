"""The deep auto-encoder that makes short binary codes of vectors: fc7 for search, raw pixels to compare with.

Promises: n-1024-256-bits and back, squared reconstruction error, all layers at once; bits are rounded on the way
forward and the gradient passes straight through; the same seed and vectors give the same net on one machine; the bits
of an exported encoder were compared with the trained one's.
Does not: read an index, search, choose the number of bits.
Source: Krizhevsky and Hinton, Using very deep autoencoders for content-based image retrieval, ESANN 2011; the paper's
section 6.1 proposes it for the activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from model_store.codes import INPUT, OUTPUT
from model_store.errors import NonFiniteLossError, ParityError
from model_store.training.served import OPSET, PRODUCER

HIDDEN: Final = (1024, 256)
DIFFERENT_BITS: Final = 1e-4  # the share of bits in which an exported encoder may differ: those on the very edge
_CHECKED: Final = 1024

Progress = Callable[[int, int, float], None]  # (step, steps, loss)


@dataclass(frozen=True, slots=True)
class CodeOptions:
    """How an auto-encoder is trained. learning_rate: Adam's highest, in one cycle."""

    bits: int
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3
    seed: int = 0


class AutoEncoder(nn.Module):
    """Vectors, float32 [n, inputs], to bits and back. `mean` and `scale` are of the training vectors."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int, bits: int) -> None:
        super().__init__()
        first, second = HIDDEN
        self.encoder = nn.Sequential(
            nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, bits)
        )
        self.decoder = nn.Sequential(
            nn.Linear(bits, second), nn.ReLU(), nn.Linear(second, first), nn.ReLU(), nn.Linear(first, inputs)
        )
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction of standardised vectors, through bits of -1 and 1."""
        soft = torch.tanh(self.encoder(x))
        hard = torch.where(soft > 0, 1.0, -1.0)
        reconstruction: Tensor = self.decoder(soft + (hard - soft).detach())
        return reconstruction

    @torch.inference_mode()
    def bits(self, vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the bits of vectors as they come: float32 [n, inputs] -> bool [n, bits]."""
        values: NDArray[np.bool_] = (self.encoder((torch.from_numpy(vectors) - self.mean) / self.scale) > 0).numpy()
        return values


@dataclass(frozen=True, slots=True)
class TrainedCodes:
    """A trained auto-encoder. loss: the share of the vectors' variance that the reconstruction leaves, of the end."""

    net: AutoEncoder
    loss: float


def train_codes(
    vectors: NDArray[np.float16] | NDArray[np.float32], options: CodeOptions, progress: Progress | None = None
) -> TrainedCodes:
    """Train on vectors, [n, inputs], n >= 1. Raises NonFiniteLossError."""
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        net = AutoEncoder(vectors.shape[1], options.bits)
    net.mean.copy_(torch.from_numpy(vectors.mean(axis=0, dtype=np.float64)))
    sample = vectors[: 4 * _CHECKED].astype(np.float32) - net.mean.numpy()
    net.scale.fill_(max(float(sample.std()), 1e-6))
    each = max(1, len(vectors) // options.batch_size)
    steps = each * options.epochs
    optimiser = torch.optim.Adam(net.parameters(), options.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, total_steps=steps)
    recent: list[float] = []
    for step in range(steps):
        if step % each == 0:
            order = torch.randperm(len(vectors), generator=generator).numpy()
        start = (step % each) * options.batch_size
        chosen = torch.from_numpy(vectors[np.sort(order[start : start + options.batch_size])].astype(np.float32))
        x = (chosen - net.mean) / net.scale
        loss = nn.functional.mse_loss(net(x), x)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(step, None)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        recent = [*recent[1 - each :], loss.item()] if each > 1 else [loss.item()]
        if progress is not None:
            progress(step + 1, steps, recent[-1])
    return TrainedCodes(net.eval(), float(np.mean(recent)))


def export_codes(net: AutoEncoder, sample: NDArray[np.float16] | NDArray[np.float32]) -> bytes:
    """Return the encoder as ONNX: `fc7` float32 [n, inputs] -> `code` float32 [n, bits], a bit where it is above 0.

    sample: vectors to compare both on. Raises ParityError when more than one bit in 10,000 differs.
    """
    import onnxruntime  # noqa: PLC0415

    nodes, tensors, below = [], [], INPUT
    layers = [layer for layer in net.encoder if isinstance(layer, nn.Linear)]
    for number, layer in enumerate(layers):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        if number == 0:  # so that nobody can standardise wrongly
            weight = weight / net.scale.numpy()
            bias = bias - weight @ net.mean.numpy()
        last = number == len(layers) - 1
        name = OUTPUT if last else f"layer{number + 1}"
        tensors += [numpy_helper.from_array(weight, f"{name}.weight"), numpy_helper.from_array(bias, f"{name}.bias")]
        nodes.append(
            helper.make_node(
                "Gemm", [below, f"{name}.weight", f"{name}.bias"], [name if last else f"{name}.sum"], transB=1
            )
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"{name}.sum"], [name]))
        below = name
    graph = helper.make_graph(
        nodes,
        "codes",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", layers[0].in_features])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", layers[-1].out_features])],
        tensors,
    )
    model = helper.make_model(graph, producer_name=PRODUCER, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    rows = sample[:_CHECKED].astype(np.float32)
    [found] = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run([OUTPUT], {INPUT: rows})
    different = float(np.mean((found > 0) != net.bits(rows)))
    if not different <= DIFFERENT_BITS:
        raise ParityError(different, DIFFERENT_BITS, "bits of the code, as a share of all")
    return content
