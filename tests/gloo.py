"""Run a function in several processes that share a gloo group."""

import os
import socket
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(function, *args, world_size=2):
    """``function(rank, *args)`` in every process; its results by rank.

    ``function`` must be importable, since the processes are spawned. What it returns must go
    through ``torch.save``.
    """
    context = mp.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(function, rank, world_size, port, queue, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    results = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    failures = [result for result in results.values() if isinstance(result, str)]
    if failures:
        raise RuntimeError("\n".join(failures))
    return [results[rank] for rank in range(world_size)]


def _work(function, rank, world_size, port, queue, args):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
        result = function(rank, *args)
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        result = traceback.format_exc()
    queue.put((rank, _plain(result)))


def _plain(result):
    """Numpy in place of tensors: a tensor in a queue dies with the process that sent it."""
    if isinstance(result, torch.Tensor):
        return result.detach().numpy()
    if isinstance(result, dict):
        return {key: _plain(value) for key, value in result.items()}
    return result
