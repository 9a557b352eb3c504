"""Spiking transformers: one backbone, one file a family, published weights by name."""

from . import (
    attention_free,
    autost,
    dista,
    meta_spikeformer,
    sglformer,
    spikeformer,
    spikformer,
    spiking_resformer,
    spikingformer,
    sts,
    swformer,
)
from .backbone import Head, SpikingTransformer
from .published import PublishedNames, load_published, published_names

__all__ = [
    "Head",
    "PublishedNames",
    "SpikingTransformer",
    "attention_free",
    "autost",
    "dista",
    "load_published",
    "meta_spikeformer",
    "published_names",
    "sglformer",
    "spikeformer",
    "spikformer",
    "spiking_resformer",
    "spikingformer",
    "sts",
    "swformer",
]
