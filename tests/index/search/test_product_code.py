"""The code of `fast`: its memory is what FAISS expects, and its estimates order rows as exact distances do."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.search.product_code import COMPONENTS, ProductCode
from index.search.segment import SEGMENT_ROWS, CodeBlock
from tests.index.helpers import activations

_faiss: Any = faiss


def block_of(code: ProductCode, rows: NDArray[np.float16], capacity: int) -> CodeBlock:
    """Return a block to which the rows were added in uneven parts."""
    block = CodeBlock(code, capacity)
    for part in np.split(rows, [5, 33, 64, 400]):
        block.append(part)
    return block


def test_blocks_are_packed_as_faiss_packs_them(rows: NDArray[np.float16], code: ProductCode) -> None:
    reference = _faiss.IndexPQFastScan(COMPONENTS, COMPONENTS, 4)
    _faiss.copy_array_to_vector(code.levels.reshape(-1), reference.pq.centroids)
    reference.is_trained = True
    numbers = code.encode(rows[:1500])
    # A row of level values is encoded as these levels.
    reference.add(code.levels[np.arange(COMPONENTS), numbers])
    packed = np.empty(reference.codes.size(), np.uint8)
    _faiss.memcpy(_faiss.swig_ptr(packed), reference.codes.get(), packed.size)
    block = block_of(code, rows[:1500], 2048)
    assert np.array_equal(block.memory.reshape(-1)[: packed.size], packed)
    chosen = np.array([3, 16, 17, 40, 1499])
    assert np.array_equal(code.read(block.memory, chosen), numbers[chosen])
    selected = CodeBlock.of([(block, chosen)])
    assert np.array_equal(code.read(selected.memory, np.arange(5)), numbers[chosen])


def test_only_live_rows_of_the_part_are_found(rows: NDArray[np.float16], code: ProductCode) -> None:
    blocks = [block_of(code, rows[start : start + 500], 512) for start in (0, 500, 1000)]
    alive = [np.arange(500) % 3 > 0 for _ in blocks]
    scanner = code.scanner(blocks)
    queries = code.query(rows[1500:1504].astype(np.float32))
    distances, numbers, found = scanner.search(queries, 600, range(1, 3), alive)
    assert distances.shape == (4, 600)
    assert set(numbers.ravel().tolist()) == {1, 2}
    assert (found % 3 > 0).all()
    assert found.max() < 500
    assert all(len(np.unique(row)) == 600 for row in numbers * 512 + found)


def test_estimated_distances_include_what_the_components_do_not_cover(
    rows: NDArray[np.float16], code: ProductCode
) -> None:
    block = block_of(code, rows[:1000], 1024)
    query = rows[1500:1501].astype(np.float32)
    estimated, _, found = code.scanner([block]).search(code.query(query), 1000, range(1), [np.ones(1000, np.bool_)])
    exact = np.linalg.norm(rows[found[0]].astype(np.float32) - query, axis=1) ** 2
    assert np.corrcoef(estimated[0], exact)[0, 1] > 0.95
    nearest, by_estimate = found[0][np.argsort(exact)[:10]], found[0][np.argsort(estimated[0], kind="stable")[:60]]
    assert np.isin(nearest, by_estimate).mean() > 0.95
    # These rows differ from the query only in directions that no component covers.
    noise = np.random.default_rng(0).standard_normal((500, 4096)).astype(np.float32)
    noise -= noise @ code.axes @ np.linalg.pinv(code.axes)
    far = block_of(code, (query + noise).astype(np.float16), 512)
    outside, _, _ = code.scanner([far]).search(code.query(query), 500, range(1), [np.ones(500, np.bool_)])
    true = (noise**2).sum(axis=1).mean()
    assert 0.5 * true < outside.min() <= outside.max() < 1.5 * true


def test_few_rows_can_be_learned() -> None:
    rows = activations(3)
    code = ProductCode.train(rows)
    assert code is not None
    block = CodeBlock(code, 16)
    block.append(rows)
    queries = code.query(rows.astype(np.float32))
    _, _, found = code.scanner([block]).search(queries, 1, range(1), [np.ones(3, np.bool_)])
    assert found.ravel().tolist() == [0, 1, 2]


def test_numbers_of_unused_blocks_are_used_again(rows: NDArray[np.float16], code: ProductCode) -> None:
    kept = block_of(code, rows[:500], 512)
    for _ in range(50):
        block = block_of(code, rows[500:1000], 512)
        scanner = code.scanner([kept, block])
        query = code.query(rows[700:701].astype(np.float32))
        _, numbers, found = scanner.search(query, 1, range(2), [np.ones(500, np.bool_)] * 2)
        assert (numbers.tolist(), found.tolist()) == ([[1]], [[200]])
        del scanner
    largest = max(int(_faiss.rev_swig_ptr(each.holder.get_ids(0), 1)[0]) for each in (kept, block))
    assert largest <= 8 * SEGMENT_ROWS, "a search allocates memory for each number up to the greatest one"
