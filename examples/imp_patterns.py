"""Which spike trains an IF neuron can fire, and how initial potentials widen the choice.

    python examples/imp_patterns.py [--output runs/imp_patterns]

Prints the firing patterns under a constant current for nine initial potentials, and how many of the
16 x 16 (output, input) pairs of T = 4 are reachable with V[0] = 0, with 0.25, and with V[0] in
[-1, 1]; saves both as plots. Takes seconds.

Source: Shen et al., "Rethinking the Membrane Dynamics and Optimization Objectives of Spiking Neural
Networks", NeurIPS 2024.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from sj_ext.analysis import (
    firing_patterns,
    pattern_mapping,
    plot_firing_patterns,
    plot_pattern_mapping,
)

CURRENT = 0.25
#: name, initial potentials, weights
MAPPINGS = [
    ("V[0] = 0", [0.0], torch.linspace(0, 1, 17)),
    ("V[0] = 0.25", [0.25], torch.linspace(0, 1, 17)),
    ("V[0] in [-1, 1]", torch.linspace(-1, 1, 9), torch.linspace(0, 1, 9)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the same: it is short")
    parser.add_argument("--output", type=Path, default=Path("runs/imp_patterns"))
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)

    potentials = torch.linspace(-1, 1, 9)
    patterns = firing_patterns(CURRENT, potentials, num_steps=8)
    print(f"IF neuron, threshold 1, soft reset, constant current {CURRENT}")
    for potential, train in zip(potentials.tolist(), patterns.T.int().tolist(), strict=True):
        print(f"  V[0] = {potential:5.2f}   {''.join(map(str, train))}")
    ax = plot_firing_patterns(patterns, [f"{potential:.2f}" for potential in potentials])
    ax.set_ylabel("V[0]")
    ax.figure.savefig(output / "firing_patterns.png", dpi=150)

    figure = Figure(figsize=(13, 5), layout="constrained")
    print("\nReachable (output, input) pairs of 256, T = 4")
    for ax, (name, v_init, weights) in zip(figure.subplots(1, 3), MAPPINGS, strict=True):
        reachable = pattern_mapping(v_init, weights)
        print(f"  {name:18}{len(weights):3} weights in [0, 1]  {int(reachable.sum()):4}")
        plot_pattern_mapping(reachable, ax)
        ax.set_title(f"{name}: {ax.get_title()}")
    figure.savefig(output / "pattern_mapping.png", dpi=150)
    print(f"\nfiring_patterns.png and pattern_mapping.png are in {output}")


if __name__ == "__main__":
    main()
