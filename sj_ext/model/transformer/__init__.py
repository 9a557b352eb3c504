"""Spiking transformers: one backbone, one file a family, published weights by name."""

from . import meta_spikeformer, spikeformer, spikformer, spiking_resformer, spikingformer
from .backbone import Head, SpikingTransformer
from .published import PublishedNames, load_published, published_names

__all__ = [
    "Head",
    "PublishedNames",
    "SpikingTransformer",
    "load_published",
    "meta_spikeformer",
    "published_names",
    "spikeformer",
    "spikformer",
    "spiking_resformer",
    "spikingformer",
]
