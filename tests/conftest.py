"""Fresh random inputs for every run, with a seed that is printed and can be given back.

``SJ_EXT_SEED=123 pytest ...`` repeats a run; without it every run draws a new seed.
"""

import os
import random
import sys
import zlib

import numpy
import pytest
import torch
from hypothesis import settings

RUN_SEED = int(os.environ.setdefault("SJ_EXT_SEED", str(random.SystemRandom().randrange(2**31))))

settings.register_profile("sj_ext", deadline=None, max_examples=25, print_blob=True)
settings.load_profile("sj_ext")
torch.set_num_threads(1)


def pytest_report_header(config):
    import spikingjelly

    from sj_ext import host

    where = os.path.basename(os.path.dirname(os.path.dirname(spikingjelly.__file__)))
    return (
        f"SJ_EXT_SEED={RUN_SEED}; spikingjelly {host.VERSION} ({where}); torch {torch.__version__}"
    )


@pytest.fixture(autouse=True)
def seed(request):
    """One seed per test, from the run's seed and the test's name, for torch, numpy and random."""
    value = zlib.crc32(f"{RUN_SEED} {request.node.nodeid}".encode())
    torch.manual_seed(value)
    numpy.random.seed(value)
    random.seed(value)
    print(f"seed {value} (SJ_EXT_SEED={RUN_SEED})")
    return value


@pytest.fixture(autouse=True)
def nothing_stays_compiled():
    """PyTorch compiles one function a few times only, and tests share ``nn.Sequential.forward``."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def pytest_ignore_collect(collection_path, config):
    """Folders ``generation1`` and ``generation2`` are about what one host alone has."""
    from sj_ext import host

    other = f"generation{3 - host.GENERATION}"
    return True if other in collection_path.parts else None
