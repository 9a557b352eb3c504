"""Mutation testing of the arithmetic core: a random sample of small changes that tests must notice.

    python tests/mutants.py                    (or: make mutants)
    python tests/mutants.py --sample 60 --seed 7 --group losses

A mutant is one file with one change: a comparison, an operator, a number, a condition or a
statement. Each runs the tests of its group in a process of its own, which is forked after PyTorch
has been loaded; the change exists in that process only. A mutant is killed when a test fails, or
when the tests take far longer than on the unchanged package. Ends with an error when fewer than
85 % are killed, not counting those listed in ``EQUIVALENT``, which compute the same.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.machinery
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CELL = "sj_ext/layer/temporal_reversible"
CELL_MODULES = "anchors dynamics fingerprints needs randomness recorder replay stand_ins undo"
CELL_TESTS = "gradients once autograd rebuild streaming chunk faults bad_input memory"
#: patterns of the files that are changed, and the tests that are to notice, in their order
GROUPS: dict[str, tuple[list[str], list[str]]] = {
    "reversible": (
        [f"{CELL}/{name}.py" for name in CELL_MODULES.split()],
        [f"tests/layer/test_temporal_reversible_{name}.py" for name in CELL_TESTS.split()],
    ),
    "selection": (
        ["sj_ext/pruning/selection/*.py"],
        [
            f"tests/pruning/test_{name}.py"
            for name in ("selection", "selection_mass", "selection_fuzz", "minimax_step")
        ],
    ),
    "losses": (
        ["sj_ext/functional/loss*.py", "sj_ext/loss.py"],
        [
            "tests/functional/test_loss.py",
            "tests/functional/test_loss_options.py",
            "tests/test_loss.py",
        ],
    ),
}
#: mutants that compute the same as the original: (file, line before, line after), and why
EQUIVALENT: dict[tuple[str, str, str], str] = {}

LEAST = 0.85
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    group: str
    file: str
    #: the line, before and after, as ``ast.unparse`` writes them
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}\n      - {self.before}\n      + {self.after}"


def places(file: str) -> list[tuple[int, int]]:
    """Every change that a file offers: which node, and which of the node's changes."""
    nodes = _of_interest(ast.parse((ROOT / file).read_text("utf-8")))
    return [(i, j) for i, node in enumerate(nodes) for j in range(len(list(_changes(node))))]


def mutant(group: str, file: str, place: tuple[int, int]) -> Mutant:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    original = ast.unparse(tree)
    list(_changes(_of_interest(tree)[place[0]]))[place[1]]()
    source = ast.unparse(ast.fix_missing_locations(tree))
    lines = list(difflib.ndiff(original.splitlines(), source.splitlines()))
    before = " / ".join(line[2:].strip() for line in lines if line.startswith("- "))
    after = " / ".join(line[2:].strip() for line in lines if line.startswith("+ "))
    return Mutant(group, file, before, after, source)


def _of_interest(tree: ast.Module) -> list[ast.AST]:
    """Nodes that may be changed: no annotations, no messages, nothing outside of functions."""
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        found.append(node)
        if isinstance(node, ast.Raise | ast.JoinedStr):
            return
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases"):
                continue
            if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: a check of itself
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            visit(statement)
    return found


def _changes(node: ast.AST) -> Iterator[Callable[[], object]]:
    """Functions that change the node, one for each mutant."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            yield partial(node.ops.__setitem__, i, SWAPS[type(operator)]())
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
        yield partial(setattr, node, "op", SWAPS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp):
        yield partial(setattr, node, "operand", ast.UnaryOp(node.op, node.operand))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield partial(setattr, node, "value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield partial(setattr, node, "value", node.value + 1)
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        yield partial(setattr, node, "test", ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.With):
        for i, statement in enumerate(node.body):
            if _removable(statement):
                yield partial(node.body.__setitem__, i, ast.Pass())


def _removable(statement: ast.stmt) -> bool:
    """Statements without which the rest still runs."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.Assign):
        return all(isinstance(t, ast.Attribute | ast.Subscript) for t in statement.targets)
    return isinstance(statement, ast.Raise | ast.AugAssign)


# ---- running


def start(tests: list[str], changed: Mutant | None, log: Path) -> int:
    """Fork a process that runs the tests on the package, with the change if there is one."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = 70
    try:
        if changed is not None:
            _replace_source(ROOT / changed.file, changed.source)
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT)]
        status = int(pytest.main([*options, *(str(ROOT / test) for test in tests)]))
    finally:
        sys.stdout.flush()
        os._exit(status)


def _replace_source(path: Path, source: str) -> None:
    loader = importlib.machinery.SourceFileLoader
    get_code = loader.get_code

    def changed(self, name):
        if Path(self.path).resolve() == path:
            return compile(source, self.path, "exec")
        return get_code(self, name)

    loader.get_code = changed


def wait(child: int, seconds: float) -> int | None:
    """The exit status of a process; None if it had to be ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def load_everything_else() -> None:
    """Import what takes long and is not changed, once for all mutants."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    sys.path[:0] = [str(ROOT)]
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import torch._dynamo
    import torch.nn.utils.parametrize
    from spikingjelly.activation_based import functional, layer, neuron, surrogate  # noqa: F401

    torch.set_num_threads(1)
    assert not any(name.split(".")[0] == "sj_ext" for name in sys.modules)


def choose(groups: list[str], sample: int, seed: int) -> list[Mutant]:
    """The same number from every group."""
    draw = random.Random(seed)
    chosen = []
    for number, group in enumerate(groups):
        share = sample * (number + 1) // len(groups) - sample * number // len(groups)
        files = sorted(
            path.relative_to(ROOT).as_posix()
            for pattern in GROUPS[group][0]
            for path in ROOT.glob(pattern)
        )
        every = [(file, place) for file in files for place in places(file)]
        print(f"{group}: {share} of {len(every)} mutants")
        for file, place in draw.sample(every, min(share, len(every))):
            chosen.append(mutant(group, file, place))
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=24)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument("--group", choices=GROUPS, action="append")
    parser.add_argument("--list", action="store_true", help="print the sample and run nothing")
    arguments = parser.parse_args()
    groups = arguments.group or list(GROUPS)
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}")
    chosen = choose(groups, arguments.sample, seed)
    if arguments.list:
        print(*chosen, sep="\n")
        return 0
    load_everything_else()

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        limit = {}
        for group in groups:
            begin = time.monotonic()
            if wait(start(GROUPS[group][1], None, log), 600) != 0:
                print(log.read_text("utf-8")[-5000:])
                print(f"the tests of {group} fail on the unchanged package")
                return 2
            limit[group] = 20 + 3 * (time.monotonic() - begin)
            print(f"{group}: {(limit[group] - 20) / 3:.1f} s on the unchanged package", flush=True)
        killed, survivors, same = 0, [], 0
        for one in chosen:
            begin = time.monotonic()
            status = wait(start(GROUPS[one.group][1], one, log), limit[one.group])
            words = {0: "SURVIVED", 1: "killed", None: "killed (time)"}
            word = words.get(status, f"killed (status {status})")
            if status == 0 and (one.file, one.before, one.after) in EQUIVALENT:
                word, same = "same", same + 1
            killed += status != 0
            survivors += [one] * (word == "SURVIVED")
            print(f"{word:10} {time.monotonic() - begin:5.1f} s  {one}", flush=True)
    rate = killed / max(1, len(chosen) - same)
    print(f"\n{killed} of {len(chosen) - same} killed ({rate:.0%}), {same} compute the same")
    return int(rate < LEAST)


if __name__ == "__main__":
    sys.exit(main())
