"""The package's shape: no circle of imports, none that runs upward, short functions and files."""

import ast
import io
import re
import sys
import textwrap
import tokenize
from pathlib import Path

import pytest
import torch
from torch import nn

import sj_ext
from sj_ext.neuron import TurnOnNode
from sj_ext.pruning import MinimaxPruner

ROOT = Path(sj_ext.__file__).parent

#: from the ground up: a module imports from its own line and from those above it
LAYERS = (
    (
        "_version",
        "arguments",
        "checks",
        "inference",
        "late",
        "recomputation",
        "surroundings",
        "when_imported",
    ),
    ("host",),
    ("observe", "materialization"),
    ("ops", "surrogate"),
    ("functional",),
    ("neuron", "loss"),
    ("layer",),
    ("products",),
    ("analysis", "checkpoint", "explicit_state", "nir", "parameters", "swap"),
    ("model", "memory", "pruning", "ann2snn", "search"),
    ("registration",),
    ("__init__",),
)

#: tokens that are no code
NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)

#: what is known to reach over its line, and why
REACHES: dict[tuple[str, str], str] = {}


def modules():
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(ROOT.rglob("*.py"))
    }


def imports(name, path):
    """Modules of the package that a file imports when it is imported itself."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    if name == "__init__":
        package = []
    known = modules()
    for node in _run_at_import(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1]
        base += node.module.split(".") if node.module else []
        for alias in node.names:
            full = ".".join([*base, alias.name])
            target = full if full in known else ".".join(base) or "__init__"
            if target != name:
                yield target


def _run_at_import(tree):
    """Statements outside functions and outside ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run_at_import(node)


def test_no_circle_of_imports():
    graph = {name: set(imports(name, path)) for name, path in modules().items()}
    done, open_ = set(), []

    def visit(name):
        if name in open_:
            circle = [*open_[open_.index(name) :], name]
            # a package names its parts, and a part may name another part of the package
            pytest.fail(" -> ".join(circle))
        if name in done:
            return
        open_.append(name)
        for other in sorted(graph.get(name, ())):
            visit(other)
        done.add(open_.pop())

    for name in graph:
        visit(name)


def test_no_import_runs_upward():
    place = {part: index for index, line in enumerate(LAYERS) for part in line}
    wrong = []
    for name, path in modules().items():
        own = name.split(".")[0]
        assert own in place, f"{own} has no place in LAYERS"
        for other in imports(name, path):
            theirs = other.split(".")[0]
            if place[theirs] > place[own] and (own, theirs) not in REACHES:
                wrong.append(f"{name} imports {other}")
    assert not wrong, wrong


def lines_of_code(function, source):
    """Lines of a function on which code stands, its signature and what is nested in it included.

    Its docstring, comments and blank lines are none; a string over several lines is code on each.
    """
    lines = set()
    segment = "\n".join(source[function.lineno - 1 : function.end_lineno]) + "\n"
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(segment)).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    if ast.get_docstring(function, clean=False) is not None:
        first = function.body[0]
        start = function.lineno - 1
        lines -= set(range(first.lineno - start, first.end_lineno - start + 1))
    return len(lines)


def test_lines_of_code_are_signature_and_body():
    text = """
def function(
    a,
):
    \"\"\"Say what it does.

    In several lines.
    \"\"\"
    # a comment

    def inner():
        return a

    return inner
"""
    (function,) = ast.parse(text).body
    assert lines_of_code(function, text.splitlines()) == 6


def test_no_function_is_longer_than_60_lines_of_code():
    wrong = []
    for name, path in modules().items():
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = lines_of_code(node, text.splitlines())
                if count > 60:
                    wrong.append(f"{name}.{node.name}: {count}")
    assert not wrong, wrong


def test_no_file_is_longer_than_450_lines_without_a_reason_at_its_top():
    wrong = []
    for name, path in modules().items():
        text = path.read_text()
        docstring = ast.get_docstring(ast.parse(text)) or ""
        reason = re.search(r"one file, (for|because) ", docstring, re.IGNORECASE)
        if len(text.splitlines()) > 450 and not reason:
            wrong.append(f"{name}: {len(text.splitlines())}")
    assert not wrong, wrong


def frames_below(call):
    """Of each Python function that a call runs: how many frames of package and host hold it.

    The function itself counts, and so does the public one.
    """
    found = {}

    def trace(frame, event, argument):
        if event == "call" and "sj_ext" in frame.f_code.co_filename:
            name, depth, at = frame.f_code.co_name, 0, frame
            while at is not None:
                where = at.f_code.co_filename
                depth += str(ROOT) in where or "spikingjelly" in where
                at = at.f_back
            found[name] = max(depth, found.get(name, 0))

    before = sys.getprofile()
    sys.setprofile(trace)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


def test_from_the_turn_on_node_to_its_arithmetic_are_at_most_7_frames():
    node, x = TurnOnNode(step_mode="m"), torch.randn(3, 2, 4, requires_grad=True)
    seen = frames_below(lambda: node(x))
    assert seen["_leaky_sum"] <= 7, seen


def test_in_a_step_of_the_pruner_no_function_is_deeper_than_7_frames():
    net = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 40), nn.Linear(40, 4))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    pruner = MinimaxPruner(net, budget=0.5, schedule=8, optimizer=optimizer, last=True)
    while not pruner.finished:
        net(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        seen = frames_below(pruner.step)
        assert not {name: n for name, n in seen.items() if n > 7 and not name.startswith("<")}
        if pruner.steps_done == 1:  # the pass over the weights, and the zeros
            assert "_scan_numpy" in seen and "zero_below_" in seen
