"""The served graph for batches on a CPU: its small 3x3 convolutions by Winograd's minimal filtering F(5x5, 3x3).

A 3x3 convolution of a 5x5 tile of outputs takes 225 multiplications for each pair of maps; where tile and kernel are
transformed first, 49 do. Transforms and products are matrix products over maps that lie last, which ONNX Runtime runs
at the speed of its direct convolution: for batches the paper's conv3 to conv5 take 4.3 ms of one core instead of 5.7.
A single image would lose: its few tiles do not pay for reading transformed kernels of five times the size.
Promises: the same answers as the other graph but for rounding (of these layers about 2e-6, in the mean).
Does not: larger maps or kernels, strides, edges (those are written as convolutions).
Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015; Barabasz and others, Error Analysis and
Improving the Accuracy of Winograd Convolution, 2018, for the points.
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
_LARGEST: Final = 3 * _TILE  # maps of more tiles are better off with direct convolutions
# Where the polynomials are evaluated, besides infinity: of all choices of small fractions one of those that lose least.
_POINTS: Final = (0, 1, 1 / 2, 2, -3 / 4, -4 / 3)

Matrix = NDArray[np.float64]


class BatchGraph(Graph):
    """The graph with `rewritten` of its layers in the other form."""

    rewritten = 0

    def convolution(self, layer: Conv, x: str, maps: MapSize) -> str:
        """As the other graph has it, where it is not small, 3x3 and of stride 1."""
        if (layer.size, layer.stride, layer.padding, layer.edge) != (_KERNEL, 1, 1, 0) or maps.size > _LARGEST:
            return super().convolution(layer, x, maps)
        self.rewritten += 1
        return self.filtered(layer, x, maps)

    def filtered(self, layer: Conv, x: str, maps: MapSize) -> str:
        """Transform rows and columns, multiply each of 7x7 places of all tiles with its kernels, transform back."""
        filtering, size, towers = Filtering.of(maps.size), maps.size, layer.towers
        weight = self.net.get_parameter(f"{layer.name}.weight").detach().numpy()
        below, places, tiles = weight.shape[1] * towers, filtering.places, filtering.tiles
        side = places * tiles

        def named(part: str) -> str:
            return f"{layer.name}.{part}"

        x = self.node("Transpose", [x], named("last"), perm=[0, 2, 3, 1])
        # Rows: [n, size, size * below] -> [n, side, size * below]. Columns: [n * side, size, below].
        into = self.tensor(named("into"), filtering.into)
        x = self.node("MatMul", [into, self.reshaped(x, [-1, size, size * below], named("rows"))], named("by_rows"))
        x = self.node("MatMul", [into, self.reshaped(x, [-1, size, below], named("columns"))], named("tiles"))
        # A product for each place and tower, whose rows are the tiles of all images.
        x = self.reshaped(x, [-1, places, tiles, places, tiles, towers, below // towers], named("apart"))
        x = self.node("Transpose", [x], named("places"), perm=[1, 3, 5, 0, 2, 4, 6])
        x = self.reshaped(x, [places**2, towers, -1, below // towers], named("together"))
        kernels = self.tensor(named("kernels"), filtering.kernels(weight, towers))
        x = self.node("MatMul", [x, kernels], named("product"))
        x = self.reshaped(x, [places, places, towers, -1, tiles, tiles, layer.kernels // towers], named("split"))
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
    """F(5x5, 3x3) over maps of `size`, padded by one: the matrices along one side.

    `into` float32 [places * tiles, size] cuts a row into overlapping tiles and transforms them, place by place; `out`
    float32 [size, places * tiles] is the way back; `kernel` [places, 3] transforms a kernel.
    """

    size: int
    tiles: int
    places: int
    into: NDArray[np.float32]
    out: NDArray[np.float32]
    kernel: Matrix

    @classmethod
    def of(cls, size: int) -> Filtering:
        """Return the matrices for maps of this size, in and out."""
        to_tile, from_tile, kernel = _one_tile()
        places, tiles = len(kernel), -(-size // _TILE)
        into = np.zeros((places, tiles, size), np.float32)
        out = np.zeros((size, places, tiles), np.float32)
        for tile in range(tiles):
            first = tile * _TILE
            for place in range(places):  # a tile's inputs begin one to the left of its outputs
                if 0 <= first + place - 1 < size:
                    into[:, tile, first + place - 1] = to_tile[:, place]
            rows = from_tile[: size - first]
            out[first : first + len(rows), :, tile] = rows
        return cls(size, tiles, places, into.reshape(-1, size), out.reshape(size, -1), kernel)

    def kernels(self, weight: NDArray[np.floating[Any]], towers: int) -> NDArray[np.float32]:
        """Return [out, in, 3, 3] transformed: float32 [places^2, towers, in, out / towers]. `in` is of one tower."""
        outputs, inputs = weight.shape[:2]
        there = np.einsum("ia,jb,ocab->ijco", self.kernel, self.kernel, weight.astype(np.float64))
        by_tower = there.reshape(self.places**2, inputs, towers, outputs // towers)
        return np.ascontiguousarray(by_tower.transpose(0, 2, 1, 3), np.float32)


def _one_tile() -> tuple[Matrix, Matrix, Matrix]:
    """Return the transforms of one tile's inputs [7, 7], to its outputs [5, 7], and of a kernel [7, 3].

    The product of two polynomials, found from its values at the points, is a full convolution; transposed, it is the
    convolution that nets have, and its inverse matrix is what inputs go through.
    """
    count = len(_POINTS) + 1

    def values(coefficients: int) -> Matrix:
        at_points = np.vander(_POINTS, coefficients, increasing=True)
        at_infinity = np.eye(coefficients)[-1:]
        return np.concatenate([at_points, at_infinity])

    to_tile, from_tile, kernel = np.linalg.inv(values(count)).T, values(_TILE).T, values(_KERNEL)
    # A place's factors may be shared out as one likes; alike in size they round least, powers of two not at all.
    inputs = 2.0 ** np.round(np.log2(np.linalg.norm(to_tile, axis=1)))
    outputs = 2.0 ** np.round(np.log2(np.linalg.norm(from_tile, axis=0)))
    return to_tile / inputs[:, None], from_tile / outputs, kernel * (inputs * outputs)[:, None]
