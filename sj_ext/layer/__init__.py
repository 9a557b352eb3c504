"""Layers: the temporally reversible multi-level cell and weight-standardised convolution."""
