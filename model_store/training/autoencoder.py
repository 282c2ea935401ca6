"""A deep autoencoder that turns vectors into short binary codes: fc7 for search, or raw pixels for comparison.

The layers are n-1024-256-bits and back, trained together. Bits are rounded in the forward pass, and the gradient passes
through the rounding unchanged. In the plain form, the loss is the squared reconstruction error, as in the reference.
Otherwise:
- Directions from the mean are reconstructed and compared, so that vectors of unusual length are not isolated.
- A second term makes Hamming distances rank the rows of a batch as Euclidean distances do, both among the nearest rows
  and, with a scale of its own, among more rows (Hinton and Roweis, Stochastic neighbor embedding, 2002; several scales
  as in Lee et al. 2015).
- The values before rounding are normalized over the batch (Ioffe and Szegedy 2015). This prevents bits that are nearly
  the same for all rows.

Guarantees: the same seed and vectors give the same net on the same machine. The bits of an exported encoder are
compared with those of the trained net.
References: Krizhevsky and Hinton, Using very deep autoencoders for content-based image retrieval, ESANN 2011. Section
6.1 of the paper proposes an autoencoder for the activations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from model_store.code_store import INPUT, OUTPUT
from model_store.training.device import autocast_dtype
from model_store.training.errors import NonFiniteLossError, ParityError
from model_store.training.export.graph import OPSET, PRODUCER

HIDDEN: Final = (1024, 256)
MAX_DIFFERENT_BITS: Final = 1e-4  # share of bits in which an exported encoder may differ, because of rounding
_CHECKED: Final = 1024  # vectors for which an exported encoder is compared
_SCALES: Final = ((10, 1.0), (100, 1.0))  # for each scale: its number of neighbors, and its weight in the loss
_DECAY: Final = 3.0  # the neighbors of a scale have, on average, exp(-3) of the weight of the nearest one
_INITIAL_SHARPNESS: Final = 32.0  # at first, weights fall by exp(-32) if all bits differ
_FAR: Final = 1e9  # replaces the distance of a row to itself

Progress = Callable[[int, int, float], None]  # (step, steps, loss)


@dataclass(frozen=True, slots=True)
class CodeOptions:
    """Options for training an autoencoder.

    learning_rate: the highest rate of Adam, in one cycle. plain: use only the reconstruction error as the loss.
    """

    bits: int
    epochs: int = 20
    batch_size: int = 1024
    learning_rate: float = 2e-3
    plain: bool = False
    seed: int = 0

    @classmethod
    def of_plain_form(cls, bits: int, *, epochs: int = 20, seed: int = 0) -> Self:
        """Return the options for the plain form."""
        return cls(bits, epochs, batch_size=256, learning_rate=1e-3, plain=True, seed=seed)


class AutoEncoder(nn.Module):
    """Turns vectors, float32 [n, inputs], into bits and back. `mean` and `scale` standardize them.

    balanced: normalize the values before rounding over the batch.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int, bits: int, *, balanced: bool = False) -> None:
        super().__init__()
        first, second = HIDDEN
        self.encoder = nn.Sequential(
            nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, bits)
        )
        self.decoder = nn.Sequential(
            nn.Linear(bits, second), nn.ReLU(), nn.Linear(second, first), nn.ReLU(), nn.Linear(first, inputs)
        )
        self.balance = nn.BatchNorm1d(bits, affine=False) if balanced else nn.Identity()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bits of standardized vectors, as -1 and 1, and the vectors reconstructed from them."""
        soft = torch.tanh(self.balance(self.encoder(x).float()))
        hard = torch.where(soft > 0, 1.0, -1.0)
        code = soft + (hard - soft).detach()
        return code, self.decoder(code)

    @torch.inference_mode()
    def bits(self, vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the bits of unstandardized vectors, float32 [n, inputs] -> bool [n, bits]. Use it in eval mode."""
        values = self.balance(self.encoder((torch.from_numpy(vectors) - self.mean) / self.scale))
        bits: NDArray[np.bool_] = (values > 0).numpy()
        return bits


@dataclass(frozen=True, slots=True)
class TrainedCodes:
    """A trained autoencoder. loss: the share of the variance that is not reconstructed, in the last epoch."""

    net: AutoEncoder
    loss: float


def train_codes(
    vectors: NDArray[np.float16] | NDArray[np.float32], options: CodeOptions, progress: Progress = lambda *_: None
) -> TrainedCodes:
    """Train on vectors, [n, inputs], n >= 2. Uses bfloat16 if the processor supports it. Raises NonFiniteLossError."""
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        net = AutoEncoder(vectors.shape[1], options.bits, balanced=not options.plain)
    net.mean.copy_(torch.from_numpy(vectors.mean(axis=0, dtype=np.float64)))
    sample = vectors[: 4 * _CHECKED].astype(np.float32) - net.mean.numpy()
    net.scale.fill_(max(float(sample.std()), 1e-6))
    sharpness = nn.Parameter(torch.full((len(_SCALES),), _INITIAL_SHARPNESS / options.bits).log())
    dtype = autocast_dtype("auto", torch.device("cpu"))
    steps_per_epoch = max(1, len(vectors) // options.batch_size)
    steps = steps_per_epoch * options.epochs
    optimizer = torch.optim.Adam([*net.parameters(), sharpness], options.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=steps)
    recent: deque[float] = deque(maxlen=steps_per_epoch)  # errors
    for step in range(steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(vectors), generator=generator).numpy()
        start = (step % steps_per_epoch) * options.batch_size
        batch = torch.from_numpy(vectors[np.sort(order[start : start + options.batch_size])].astype(np.float32))
        x = (batch - net.mean) / net.scale
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            code, reconstruction = net(x)
        if options.plain:
            loss = error = nn.functional.mse_loss(reconstruction.float(), x)
        else:
            lengths = x.norm(dim=1, keepdim=True).clamp_min(1e-6)
            directions = x / lengths
            error = nn.functional.mse_loss(reconstruction.float(), directions * lengths.mean())
            loss = error + _neighbor_loss(directions, code, sharpness.exp())
        if not torch.isfinite(loss):
            raise NonFiniteLossError(step, None)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        recent.append(error.item())
        progress(step + 1, steps, recent[-1])
    return TrainedCodes(net.eval(), float(np.mean(recent)))


def _neighbor_loss(rows: Tensor, code: Tensor, sharpness: Tensor) -> Tensor:
    """Return how much the neighbors by bits differ from those by distance: KL divergences, averaged over rows.

    rows: of unit length, float32 [n, inputs]. code: their bits, -1 or 1, [n, bits]. Each row has a distribution over
    the other rows, which decreases with the squared distance, or with the number of differing bits times `sharpness`
    [scales].
    """
    own = _FAR * torch.eye(len(rows))
    squared = 2 - 2 * rows @ rows.T + own
    differing = (code.shape[1] - code @ code.T) / 2
    nearest = squared.topk(min(max(count for count, _ in _SCALES), len(rows) - 1), largest=False).values
    first = nearest[:, :1]
    total = torch.zeros(())
    for (count, weight), factor in zip(_SCALES, sharpness, strict=True):
        spread = (nearest[:, :count].mean(dim=1, keepdim=True) - first).clamp_min(1e-6)
        by_distance = torch.log_softmax(-_DECAY * (squared - first) / spread, dim=1)
        by_bits = torch.log_softmax(-factor * differing - own, dim=1)
        total = total + weight * nn.functional.kl_div(by_bits, by_distance, reduction="batchmean", log_target=True)
    return total


def export_codes(net: AutoEncoder, sample: NDArray[np.float16] | NDArray[np.float32]) -> bytes:
    """Return the encoder as ONNX: `fc7` float32 [n, inputs] -> `code` float32 [n, bits]. Values above 0 are 1 bits.

    sample: vectors for comparing the graph with `net`. Raises ParityError if more than one bit in 10,000 differs.
    """
    import onnxruntime  # noqa: PLC0415

    nodes, tensors, previous = [], [], INPUT
    layers = [layer for layer in net.encoder if isinstance(layer, nn.Linear)]
    for number, layer in enumerate(layers):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        if number == 0:  # the graph takes vectors that are not standardized
            weight = weight / net.scale.numpy()
            bias = bias - weight @ net.mean.numpy()
        last = number == len(layers) - 1
        if last and isinstance(net.balance, nn.BatchNorm1d) and net.balance.running_mean is not None:
            bias = bias - net.balance.running_mean.numpy()  # dividing by the deviation would not change the signs
        name = OUTPUT if last else f"layer{number + 1}"
        tensors += [numpy_helper.from_array(weight, f"{name}.weight"), numpy_helper.from_array(bias, f"{name}.bias")]
        inputs, total = [previous, f"{name}.weight", f"{name}.bias"], name if last else f"{name}.sum"
        nodes.append(helper.make_node("Gemm", inputs, [total], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [total], [name]))
        previous = name
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
    if not different <= MAX_DIFFERENT_BITS:
        raise ParityError(different, MAX_DIFFERENT_BITS, "bits (share of all bits)")
    return content
