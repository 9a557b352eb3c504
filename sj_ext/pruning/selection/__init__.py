"""The smallest weights of many tensors, exactly, without gathering or sorting them.

Weights are ordered by (magnitude, tensor, index), so that ties have one order everywhere, and the
``k`` smallest are exactly ``k`` in number. A sample brackets the wanted ranks; one pass over the
tensors then counts what lies below the bracket, sums its squares, and takes out the few weights
inside, among which the ranks are found. If the ranks lie outside the bracket it is widened and the
pass repeated, so that the sample decides the time and never the result. Many equal weights at the
lower end of the bracket are counted and not taken out.

The pass goes over blocks that stay in the processor's cache. Results do not depend on the number of
threads: each block's sum is formed alone and the blocks are added in order.
"""

from .cut import Cut, cut_mask_, cut_mask_one_, flat, hold_, scale_between_, zero_below_
from .ranking import NotFinite, Ranking
from .smallest import smallest_count

__all__ = [
    "Cut",
    "NotFinite",
    "Ranking",
    "cut_mask_",
    "cut_mask_one_",
    "flat",
    "hold_",
    "scale_between_",
    "smallest_count",
    "zero_below_",
]
