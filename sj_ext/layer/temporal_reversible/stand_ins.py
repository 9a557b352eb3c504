"""Stand-ins for the parameters and buffers of modules, so that a second run leaves no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

# private to PyTorch, whose functional_call is made of it; modules that two levels share need
# stack_weights, which functional_call does not pass on
from torch.nn.utils.stateless import _reparametrize_module

from ... import host

__all__ = ["StandIns", "foreign_leaves"]


class StandIns:
    """Stand-ins for the parameters and buffers of modules while levels are run again.

    A level that is run again reads leaves that share the parameters' memory and are nobody else's:
    the gradient of one step can be asked for without calling hooks that users and DDP put on the
    parameters, which see the sum over all steps once. Its buffers are copies that are thrown away,
    so that running statistics move once per forward pass. Memories of host modules go back to what
    they were after every run, which also lets go of the graph that they may hold.

    Args:
        modules: the level modules; one may stand there many times.
        parameters: their parameters, each once.
        values: what the parameters were when the levels ran. Where saved tensors are kept
            elsewhere meanwhile (offloaded, say) these are other tensors.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        parameters: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
    ):
        self._modules = list(dict.fromkeys(modules))
        place = {id(p): i for i, p in enumerate(parameters)}
        self._of = {m: [place[id(p)] for p in m.parameters()] for m in self._modules}
        self._place = place
        self._holders = {
            m: [part for part in m.modules() if isinstance(part, host.base.MemoryModule)]
            for m in self._modules
        }
        self.leaves = [
            nn.Parameter(value.detach(), p.requires_grad)
            for p, value in zip(parameters, values, strict=True)
        ]

    @contextlib.contextmanager
    def in_place(self, buffers: bool = True) -> Iterator[StandIns]:
        """Put the stand-ins into the modules, and the originals back at the end.

        Args:
            buffers: whether buffers have stand-ins too.
        """
        copies: dict[int, torch.Tensor] = {}
        tensors = [self._named(level, copies, buffers) for level in self._modules]
        with contextlib.ExitStack() as stack:
            for level, named in zip(self._modules, tensors, strict=True):
                stack.enter_context(_reparametrize_module(level, named, stack_weights=True))
            yield self

    def _named(
        self, level: nn.Module, copies: dict[int, torch.Tensor], buffers: bool
    ) -> dict[str, torch.Tensor]:
        """A level's stand-ins by name; a tensor of several names has one."""
        named: dict[str, torch.Tensor] = {
            name: self.leaves[self._place[id(p)]]
            for name, p in level.named_parameters(remove_duplicate=False)
        }
        for name, buffer in level.named_buffers(remove_duplicate=False) if buffers else ():
            if id(buffer) not in copies:
                copies[id(buffer)] = buffer.clone()
            named[name] = copies[id(buffer)]
        return named

    def of(self, level: nn.Module) -> list[int]:
        """Places, among all parameters, of those of a level that need a gradient."""
        return [index for index in self._of[level] if self.leaves[index].requires_grad]

    @contextlib.contextmanager
    def memories_kept(self, level: nn.Module) -> Iterator[None]:
        """Leave the memories of host modules in a level as they are."""
        kept = [(holder, dict(holder._memories)) for holder in self._holders[level]]
        try:
            yield
        finally:
            for holder, memories in kept:
                holder._memories.update(memories)


def foreign_leaves(output: torch.Tensor, known: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Leaves that a graph would send a gradient to and that are not among ``known``."""
    allowed = {id(x) for x in known}
    stack, seen, foreign = [output.grad_fn], set(), []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, torch.Tensor) and id(variable) not in allowed:
            foreign.append(variable)
        stack.extend(parent for parent, _ in node.next_functions)
    return foreign
