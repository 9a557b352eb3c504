"""SNASNet's space: a cell of four nodes with operations on forward and backward edges."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ... import checks
from .space import Choice, Gene, Space

__all__ = ["BACKWARD", "CELLS", "FORWARD", "OPERATIONS", "matrix", "snasnet"]

#: operations by their number in the paper's matrices
OPERATIONS = ("zero", "identity", "conv1", "conv3", "pool")

#: edges i -> j in the order of their lists: forward within a step, backward to the next one
FORWARD = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
BACKWARD = ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (3, 2))

CELLS = ("forward", "backward")


def snasnet(cell: str = "backward") -> Space:
    """SNASNet's space: an operation on every edge of a cell of four nodes.

    In a backward cell each pair of nodes keeps one of its two directions, by a fair coin. A node
    that cannot be reached from the input, or from which the output cannot be, is cleaned up: all
    its edges become zero. The edge from input to output is never zero.

    Args:
        cell: ``'forward'`` or ``'backward'``, which has forward edges too.

    Raises:
        ValueError: ``cell`` is unknown.

    Source: Kim et al., "Neural Architecture Search for Spiking Neural Networks", ECCV 2022
    (arXiv 2201.10355).
    """
    checks.choice("cell", cell, CELLS)
    edges = FORWARD if cell == "forward" else FORWARD + BACKWARD
    slots = {f"{i}->{j}": Choice(OPERATIONS) for i, j in edges}
    return Space(
        f"snasnet/{cell}",
        slots,
        draw=_draw_both if cell == "backward" else None,
        repair=_cleaned,
        wrong=_wrong,
    )


def matrix(genes: Sequence[Gene]) -> list[list[int]]:
    """The paper's 4 x 4 matrix M: M[i][j] is the number of the operation on the edge i -> j."""
    found = [[0] * 4 for _ in range(4)]
    for (i, j), gene in zip(FORWARD + BACKWARD, genes, strict=False):
        found[i][j] = OPERATIONS.index(str(gene))
    return found


def genes_of(rows: Sequence[Sequence[int]], backward: bool = True) -> tuple[Gene, ...]:
    """The genes of a matrix, the inverse of :func:`matrix`."""
    edges = FORWARD + BACKWARD if backward else FORWARD
    return tuple(OPERATIONS[int(rows[i][j])] for i, j in edges)


def _draw_both(rng: random.Random) -> list[Gene]:
    genes: dict[tuple[int, int], Gene] = {e: rng.choice(OPERATIONS) for e in FORWARD + BACKWARD}
    for i, j in FORWARD:
        genes[(i, j) if rng.random() < 0.5 else (j, i)] = "zero"
    return list(genes.values())


def _cleaned(genes: tuple[Gene, ...]) -> tuple[Gene, ...]:
    """Nodes without a way from the input or to the output lose all edges, looked at once.

    Ways may use backward edges, of up to four edges in all, as in the public program.
    """
    rows = matrix(genes)
    reach, power = [[0] * 4 for _ in range(4)], [[int(i == j) for j in range(4)] for i in range(4)]
    for _ in range(4):
        power = _product(power, rows)
        reach = [
            [a + b for a, b in zip(*pair, strict=True)] for pair in zip(reach, power, strict=True)
        ]
    lost = {i for i in range(3) if not reach[i][3]} | {i for i in range(1, 4) if not reach[0][i]}
    for i in lost:
        for j in range(4):
            rows[i][j] = rows[j][i] = 0
    return genes_of(rows, len(genes) > len(FORWARD))


def _product(a: list[list[int]], b: list[list[int]]) -> list[list[int]]:
    return [[sum(a[i][k] * b[k][j] for k in range(4)) for j in range(4)] for i in range(4)]


def _wrong(genes: tuple[Gene, ...]) -> str | None:
    if genes[FORWARD.index((0, 3))] == "zero":
        return "0->3, the edge from input to output, must not be zero"
    for (i, j), back in zip(FORWARD + BACKWARD, genes, strict=False):
        if i > j and back != "zero" and genes[FORWARD.index((j, i))] != "zero":
            return f"{i}->{j} and {j}->{i} must not both be there"
    return None
