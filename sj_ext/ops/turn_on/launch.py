"""The variants of ``kernel.cu``, and what each is compiled with."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import cuda

__all__ = ["COLUMNS", "DTYPES", "SEGMENT", "Variant", "launch", "program", "source"]

#: dtypes of the input, in the order of KIND in kernel.cu
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: neurons per thread
COLUMNS = 8

#: steps whose potentials a thread holds, where a surrogate needs them
SEGMENT = 8


class Variant(NamedTuple):
    """What a compiled copy of ``kernel.cu`` is for."""

    dtype: torch.dtype
    aligned: bool
    block: int
    #: CUDA statements that assign a surrogate's gradient at ``above`` to ``window``; empty for a
    #: rectangular window, which is read from bits
    surrogate: str = ""
    #: whether a rectangular window has both its ends inside
    closed: bool = False

    @classmethod
    def of(
        cls, dtype: torch.dtype, columns: int, surrogate: str = "", closed: bool = False
    ) -> Variant:
        """The variant for rows of ``columns`` elements; bits written by it are read by it.

        Raises:
            ValueError: there are more neurons than the kernel can count.
        """
        if columns >= 2**31:
            raise ValueError(f"x_seq must have fewer than 2**31 elements per step, got {columns}")
        aligned = columns * dtype.itemsize % 16 == 0
        # small blocks spread a small job over more of the card
        return cls(dtype, aligned, 64 if columns < 2**19 else 256, surrogate, closed)

    def blocks(self, columns: int) -> int:
        """How many blocks carry ``columns`` neurons."""
        return -(-columns // (COLUMNS * self.block))


def source(variant: Variant) -> str:
    """CUDA C++ of a variant."""
    text = Path(__file__).with_name("kernel.cu").read_text(encoding="utf-8")
    return text.replace("    SURROGATE_CODE\n", f"    {variant.surrogate}\n")


@functools.cache
def program(variant: Variant) -> cuda.Program:
    """What is compiled for a variant."""
    defines: dict[str, int | None] = {
        "KIND": DTYPES.index(variant.dtype),
        "ALIGNED": int(variant.aligned),
        "BLOCK": variant.block,
        "CLOSED": int(variant.closed),
        "COLUMNS": COLUMNS,
        "SEGMENT": SEGMENT,
    }
    rectangular: dict[str, int | None] = {} if variant.surrogate else {"RECTANGULAR": None}
    return cuda.Program.of(source(variant), defines | rectangular)


def launch(variant: Variant, name: str, blocks: int, device: torch.device, *arguments: Any) -> None:
    """Run a kernel of ``kernel.cu`` on its arguments, as :func:`sj_ext.ops.cuda.launch` takes them.

    Raises:
        RuntimeError: CuPy is missing, or cannot compile the kernel here.
    """
    cuda.launch(program(variant), name, blocks, variant.block, device, *arguments)
