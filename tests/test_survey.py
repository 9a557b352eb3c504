"""Every name of the documentation's table of methods: there, and running, on the hosts it names."""

import pytest
import torch
from survey import METHODS, OURS, Name

from sj_ext import host

NAMES = [name for method in METHODS for name in method.names]


def absent(name: Name) -> bool:
    """Whether the present host lacks a name."""
    try:
        name.resolve()
    except (AttributeError, ImportError):
        return True
    return False


@pytest.mark.parametrize("name", NAMES, ids=[name.path for name in NAMES])
def test_a_name_of_the_table_runs_where_it_is_and_is_missing_elsewhere(name):
    if name.where != OURS and host.GENERATION not in name.where:
        assert absent(name), (
            f"the table says that {name.path} is not on SpikingJelly {host.VERSION}"
        )
        return
    if name.where != OURS and host.GENERATION in name.broken:
        with pytest.raises((AttributeError, NotImplementedError)):
            name.run(name.resolve())
        return
    output = name.run(name.resolve())
    output = output[0] if isinstance(output, tuple) else output
    assert isinstance(output, torch.Tensor)
    assert output.numel() > 0
    assert bool(output.isfinite().all())


def test_every_method_stands_in_the_table_once():
    titles = [method.title for method in METHODS]
    assert len(titles) == len(set(titles))
