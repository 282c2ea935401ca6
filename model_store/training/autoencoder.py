"""The deep auto-encoder that makes short binary codes of vectors: fc7 for search, raw pixels to compare with.

Promises: n-1024-256-bits and back, all layers at once; bits are rounded on the way forward and the gradient passes
straight through; the same seed and vectors give the same net on one machine; the bits of an exported encoder were
compared with the trained one's.
Does not: read an index, search, choose the number of bits.
Source: Krizhevsky and Hinton, Using very deep autoencoders for content-based image retrieval, ESANN 2011; the paper's
section 6.1 proposes it for the activations.

In the plain form the loss is the squared reconstruction error alone, as there. Otherwise
- what is reconstructed and compared are directions from the mean: rows of unusual length are no longer apart from all;
- a second term asks that the differing bits order the rows of a batch as their distances do, among the nearest and, by
  a scale of its own, more widely (Hinton and Roweis, Stochastic neighbor embedding, 2002, with Hamming distances in
  place of the map's; several scales as in Lee and others, 2015);
- the values before rounding are normalised over the batch (Ioffe and Szegedy, 2015), so that no bit is nearly the same
  for all rows.
"""

from __future__ import annotations

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
from model_store.errors import NonFiniteLossError, ParityError
from model_store.training.device import autocast_dtype
from model_store.training.export.graph import OPSET, PRODUCER

HIDDEN: Final = (1024, 256)
DIFFERENT_BITS: Final = 1e-4  # the share of bits in which an exported encoder may differ: those on the very edge
_CHECKED: Final = 1024
_SCALES: Final = ((10, 1.0), (100, 1.0))  # rows of a batch that weigh as neighbours of each, and the term's weight
_STEEP: Final = 3.0  # how much less a scale's rows weigh, on average, than the nearest: exp(-3)
_SHARPNESS: Final = 32.0  # of the first codes: the neighbours' weight falls by exp(-32) over all bits
_APART: Final = 1e9  # in place of a row's distance to itself

Progress = Callable[[int, int, float], None]  # (step, steps, loss)


@dataclass(frozen=True, slots=True)
class CodeOptions:
    """How an auto-encoder is trained. learning_rate: Adam's highest, in one cycle.

    plain: reconstruction alone.
    """

    bits: int
    epochs: int = 20
    batch_size: int = 1024
    learning_rate: float = 2e-3
    plain: bool = False
    seed: int = 0

    @classmethod
    def of_plain_form(cls, bits: int, *, epochs: int = 20, seed: int = 0) -> Self:
        """Return the options of the plain form."""
        return cls(bits, epochs, batch_size=256, learning_rate=1e-3, plain=True, seed=seed)


class AutoEncoder(nn.Module):
    """Vectors, float32 [n, inputs], to bits and back. `mean` and `scale` are of the training vectors.

    balanced: normalise the values before rounding, by a batch's mean and variance while training.
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
        """Return the bits of standardised vectors, as -1 and 1, and what is reconstructed from them."""
        soft = torch.tanh(self.balance(self.encoder(x).float()))
        hard = torch.where(soft > 0, 1.0, -1.0)
        code = soft + (hard - soft).detach()
        return code, self.decoder(code)

    @torch.inference_mode()
    def bits(self, vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the bits of vectors as they come: float32 [n, inputs] -> bool [n, bits]. Of a net in eval mode."""
        values = self.balance(self.encoder((torch.from_numpy(vectors) - self.mean) / self.scale))
        bits: NDArray[np.bool_] = (values > 0).numpy()
        return bits


@dataclass(frozen=True, slots=True)
class TrainedCodes:
    """A trained auto-encoder. loss: the share of the vectors' variance that the reconstruction leaves, of the end."""

    net: AutoEncoder
    loss: float


def train_codes(
    vectors: NDArray[np.float16] | NDArray[np.float32], options: CodeOptions, progress: Progress | None = None
) -> TrainedCodes:
    """Train on vectors, [n, inputs], n >= 2. Where the processor has bfloat16, it multiplies in that.

    Raises NonFiniteLossError.
    """
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        net = AutoEncoder(vectors.shape[1], options.bits, balanced=not options.plain)
    net.mean.copy_(torch.from_numpy(vectors.mean(axis=0, dtype=np.float64)))
    sample = vectors[: 4 * _CHECKED].astype(np.float32) - net.mean.numpy()
    net.scale.fill_(max(float(sample.std()), 1e-6))
    sharpness = nn.Parameter(torch.full((len(_SCALES),), _SHARPNESS / options.bits).log())
    dtype = autocast_dtype("auto", torch.device("cpu"))
    each = max(1, len(vectors) // options.batch_size)
    steps = each * options.epochs
    optimiser = torch.optim.Adam([*net.parameters(), sharpness], options.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, total_steps=steps)
    recent: list[float] = []
    for step in range(steps):
        if step % each == 0:
            order = torch.randperm(len(vectors), generator=generator).numpy()
        start = (step % each) * options.batch_size
        chosen = torch.from_numpy(vectors[np.sort(order[start : start + options.batch_size])].astype(np.float32))
        x = (chosen - net.mean) / net.scale
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            code, reconstruction = net(x)
        if options.plain:
            loss = left = nn.functional.mse_loss(reconstruction.float(), x)
        else:
            lengths = x.norm(dim=1, keepdim=True).clamp_min(1e-6)
            directions = x / lengths
            left = nn.functional.mse_loss(reconstruction.float(), directions * lengths.mean())
            loss = left + _neighbours_lost(directions, code, sharpness.exp())
        if not torch.isfinite(loss):
            raise NonFiniteLossError(step, None)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        recent = [*recent[1 - each :], left.item()] if each > 1 else [left.item()]
        if progress is not None:
            progress(step + 1, steps, recent[-1])
    return TrainedCodes(net.eval(), float(np.mean(recent)))


def _neighbours_lost(rows: Tensor, code: Tensor, sharpness: Tensor) -> Tensor:
    """Return how far the neighbours by bits are from those by distance: Kullback-Leibler divergences, mean of rows.

    rows: of unit length, float32 [n, inputs]; code: their bits, -1 or 1, [n, bits]. A row's neighbours are the other
    rows, each with a weight that falls with its squared distance, or by `sharpness`, [scales], with each differing bit.
    """
    own = _APART * torch.eye(len(rows))
    squared = 2 - 2 * rows @ rows.T + own
    differing = (code.shape[1] - code @ code.T) / 2
    nearest = squared.topk(min(max(count for count, _ in _SCALES), len(rows) - 1), largest=False).values
    near = nearest[:, :1]
    lost = torch.zeros(())
    for (count, weight), steep in zip(_SCALES, sharpness, strict=True):
        spread = (nearest[:, :count].mean(dim=1, keepdim=True) - near).clamp_min(1e-6)
        wanted = torch.log_softmax(-_STEEP * (squared - near) / spread, dim=1)
        found = torch.log_softmax(-steep * differing - own, dim=1)
        lost = lost + weight * nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return lost


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
        if last and isinstance(net.balance, nn.BatchNorm1d) and net.balance.running_mean is not None:
            bias = bias - net.balance.running_mean.numpy()  # what is left of it, where only the sign counts
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
