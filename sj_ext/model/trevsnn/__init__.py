"""T-RevSNN: the network, and the weights of the paper's own program."""

from .model import TRevSNN, trevsnn_dvs, trevsnn_small, trevsnn_tiny
from .published import (
    load_published,
    published_arguments,
    published_state_dict,
    published_to_ours,
)

__all__ = [
    "TRevSNN",
    "load_published",
    "published_arguments",
    "published_state_dict",
    "published_to_ours",
    "trevsnn_dvs",
    "trevsnn_small",
    "trevsnn_tiny",
]
