"""Build the served graph for batches on a CPU: small 3x3 convolutions by Winograd's minimal filtering F(5x5, 3x3).

A 3x3 convolution of a 5x5 output tile takes 225 multiplications per pair of maps, but only 49 after tile and kernel are
transformed. Transforms and products are matrix products over channels-last maps, which ONNX Runtime runs as fast as its
direct convolution. For batches, the paper's conv3 to conv5 take 4.3 ms of one core instead of 5.7 ms. A single image
would be slower, because reading the transformed kernels, which are five times larger, does not pay for its few tiles.

Guarantees: outputs equal those of the other graph except for rounding (about 2e-6 on average in these layers).
Out of scope: larger maps or kernels, strides and edges; they stay direct convolutions.
References: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015. Barabasz and others, Error Analysis
and Improving the Accuracy of Winograd Convolution, 2018 (choice of the points).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.training.export.graph import Graph
from model_store.training.nets.alexnet import Conv, MapSize

_KERNEL: Final = 3
_TILE: Final = 5  # outputs of a tile, along one side
_LARGEST: Final = 3 * _TILE  # direct convolutions are faster for larger maps
# Points at which the polynomials are evaluated, besides infinity. Few other small fractions lose as little precision.
_POINTS: Final = (0, 1, 1 / 2, 2, -3 / 4, -4 / 3)

Matrix = NDArray[np.float64]


class BatchGraph(Graph):
    """A graph whose small convolutions use minimal filtering; `rewritten` counts them."""

    rewritten = 0

    def convolution(self, layer: Conv, x: str, maps: MapSize) -> str:
        """Append a convolution: filtered if it is 3x3 with stride 1 over small maps, otherwise direct."""
        if (layer.size, layer.stride, layer.padding, layer.edge) != (_KERNEL, 1, 1, 0) or maps.size > _LARGEST:
            return super().convolution(layer, x, maps)
        self.rewritten += 1
        return self.filtered_convolution(layer, x, maps)

    def filtered_convolution(self, layer: Conv, x: str, maps: MapSize) -> str:
        """Transform rows and columns, multiply each of the 7x7 positions by its kernels, and transform back."""
        filtering, size, towers = Filtering.of(maps.size), maps.size, layer.towers
        weight = self.net.get_parameter(f"{layer.name}.weight").detach().numpy()
        channels, positions, tiles = weight.shape[1] * towers, filtering.positions, filtering.tiles
        side = positions * tiles

        def named(part: str) -> str:
            return f"{layer.name}.{part}"

        x = self.node("Transpose", [x], named("last"), perm=[0, 2, 3, 1])
        # Rows: [n, size, size * channels] -> [n, side, size * channels]. Columns: [n * side, size, channels].
        into = self.tensor(named("into"), filtering.into)
        x = self.node("MatMul", [into, self.reshaped(x, [-1, size, size * channels], named("rows"))], named("by_rows"))
        x = self.node("MatMul", [into, self.reshaped(x, [-1, size, channels], named("columns"))], named("tiles"))
        # One product for each position and tower. Its rows are the tiles of all images.
        x = self.reshaped(x, [-1, positions, tiles, positions, tiles, towers, channels // towers], named("apart"))
        x = self.node("Transpose", [x], named("positions"), perm=[1, 3, 5, 0, 2, 4, 6])
        x = self.reshaped(x, [positions**2, towers, -1, channels // towers], named("together"))
        kernels = self.tensor(named("kernels"), filtering.kernels(weight, towers))
        x = self.node("MatMul", [x, kernels], named("product"))
        x = self.reshaped(x, [positions, positions, towers, -1, tiles, tiles, layer.kernels // towers], named("split"))
        x = self.node("Transpose", [x], named("back"), perm=[3, 0, 4, 1, 5, 2, 6])
        out = self.tensor(named("out"), filtering.out)
        x = self.node("MatMul", [out, self.reshaped(x, [-1, side, layer.kernels], named("wide"))], named("outputs"))
        rows = self.reshaped(x, [-1, side, size * layer.kernels], named("tall"))
        x = self.node("MatMul", [out, rows], named("sums"))
        x = self.reshaped(x, [-1, size, size, layer.kernels], named("maps"))
        bias = self.tensor(named("bias"), self.net.get_parameter(named("bias")).detach().numpy())
        x = self.node("Relu", [self.node("Add", [x, bias], named("linear"))], named("rectified"))
        return self.node("Transpose", [x], layer.name, perm=[0, 3, 1, 2])


@dataclass(frozen=True, slots=True)
class Filtering:
    """The matrices of F(5x5, 3x3) along one side, for maps of `size` padded by one.

    `into`, float32 [positions * tiles, size], cuts a row into overlapping tiles and transforms them. `out`, float32
    [size, positions * tiles], transforms back. `kernel`, [positions, 3], transforms a kernel.
    """

    tiles: int
    positions: int
    into: NDArray[np.float32]
    out: NDArray[np.float32]
    kernel: Matrix

    @classmethod
    def of(cls, size: int) -> Filtering:
        """Return the matrices for input and output maps of this size."""
        to_tile, from_tile, kernel = _one_tile()
        positions, tiles = len(kernel), -(-size // _TILE)
        into = np.zeros((positions, tiles, size), np.float32)
        out = np.zeros((size, positions, tiles), np.float32)
        for tile in range(tiles):
            first = tile * _TILE
            for position in range(positions):  # the inputs of a tile start one to the left of its outputs
                if 0 <= first + position - 1 < size:
                    into[:, tile, first + position - 1] = to_tile[:, position]
            rows = from_tile[: size - first]
            out[first : first + len(rows), :, tile] = rows
        return cls(tiles, positions, into.reshape(-1, size), out.reshape(size, -1), kernel)

    def kernels(self, weight: NDArray[np.floating[Any]], towers: int) -> NDArray[np.float32]:
        """Return [out, in, 3, 3] transformed, float32 [positions^2, towers, in, out / towers].

        `in` counts the inputs of one tower.
        """
        outputs, inputs = weight.shape[:2]
        transformed = np.einsum("ia,jb,ocab->ijco", self.kernel, self.kernel, weight.astype(np.float64))
        by_tower = transformed.reshape(self.positions**2, inputs, towers, outputs // towers)
        return np.ascontiguousarray(by_tower.transpose(0, 2, 1, 3), np.float32)


def _one_tile() -> tuple[Matrix, Matrix, Matrix]:
    """Return the transforms of one tile's inputs [7, 7], to its outputs [5, 7], and of a kernel [7, 3].

    The product of two polynomials, interpolated from its values at the points, is a full convolution. Its transpose is
    the convolution that nets use, and the inverse matrix transforms the inputs.
    """
    count = len(_POINTS) + 1

    def values(coefficients: int) -> Matrix:
        at_points = np.vander(_POINTS, coefficients, increasing=True)
        at_infinity = np.eye(coefficients)[-1:]
        return np.concatenate([at_points, at_infinity])

    to_tile, from_tile, kernel = np.linalg.inv(values(count)).T, values(_TILE).T, values(_KERNEL)
    # The factors of a position can be distributed freely. Rounding is least if they have similar sizes, and
    # multiplying by powers of two is exact.
    inputs = 2.0 ** np.round(np.log2(np.linalg.norm(to_tile, axis=1)))
    outputs = 2.0 ** np.round(np.log2(np.linalg.norm(from_tile, axis=0)))
    return to_tile / inputs[:, None], from_tile / outputs, kernel * (inputs * outputs)[:, None]
