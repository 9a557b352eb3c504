"""The commands of the examples have one style."""

import argparse
import importlib
import inspect
from pathlib import Path

import command_line
import pytest

EXAMPLES = Path(command_line.__file__).parent
SCRIPTS = [
    path
    for path in sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("benchmarks/*.py")])
    if 'if __name__ == "__main__":' in path.read_text("utf-8")
]
#: what one thing is called everywhere, and names it may not have
OTHER_NAMES = {"--steps", "--T", "--batch", "--bs", "--data", "--data-path", "--root", "--out"}


def parser_of(path):
    name = ".".join(path.relative_to(EXAMPLES).with_suffix("").parts)
    module = importlib.import_module(name)
    if name == "train_trevsnn":
        return importlib.import_module("trevsnn_recipe").make_parser(module.__doc__)
    return module.make_parser()


def options(parser):
    return [a for a in parser._actions if a.help != argparse.SUPPRESS and a.dest != "help"]


def test_the_scripts_are_found():
    assert {"demo", "prune_cifar10", "train_trevsnn", "run_short", "__main__", "turn_on"} <= {
        path.stem for path in SCRIPTS
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_tells_every_option_and_its_default(path):
    parser = parser_of(path)
    text = " ".join(parser.format_help().split())
    for action in options(parser):
        assert action.help, f"{action.dest} has no help"
        shown = action.default not in (None, False, "", [])
        if action.option_strings and shown and "default" not in action.help:
            assert f"(default: {action.default})" in text, action.dest
    names = {name for action in options(parser) for name in action.option_strings}
    assert not names & OTHER_NAMES


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_wrong_numbers_are_refused_by_the_parser(path, capsys):
    parser = parser_of(path)
    counted = ("--batch-size", "--num-steps", "--epochs", "--repeats", "--seeds", "--images")
    found = [name for a in options(parser) for name in a.option_strings if name in counted]
    if isinstance(parser, command_line.Command):
        for name in found:
            with pytest.raises(SystemExit):
                parser.parse_args([name, "0"])
            assert name in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["--no-such-option"])


def test_short_gives_way_to_what_is_said_beside_it():
    parser = importlib.import_module("key_neurons").make_parser()
    found = parser.parse(["--short", "--width", "5"])
    assert (found.width, found.blocks, found.epochs) == (5, 1, 1)
    assert (
        parser.parse(["--short"]).width,
        parser_of(EXAMPLES / "key_neurons.py").parse([]).width,
    ) == (
        8,
        16,
    )
    assert "--width 8" in " ".join(parser.format_help().split())


def test_former_names_are_taken():
    parser = importlib.import_module("prune_cifar10").make_parser()
    found = parser.parse(["--short", "--batch", "7", "--steps", "3"])
    assert (found.batch_size, found.num_steps) == (7, 3)
    assert "--steps" not in parser.format_help()


def test_nothing_is_made_before_arguments_are_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for script, argv in (
        ("demo", ["--output", "made", "--epochs", "0"]),
        ("demo", ["--output", "file"]),
        ("key_neurons", ["--data-dir", "missing"]),
        ("search_cifar10", ["--output", "made", "--size", "6"]),
        ("train_transformer", ["--output", "made"]),
        ("prune_cifar10", ["--checkpoint", "missing/a.pt", "--short"]),
        ("benchmarks.__main__", ["memory", "--output", "made", "--data-dir", "."]),
        ("benchmarks.__main__", ["memory", "more"]),
        ("benchmarks.__main__", ["compare", "a", "b"]),
        ("run_short", ["nothing"]),
    ):
        with pytest.raises(SystemExit) as stop:
            importlib.import_module(script).main(argv)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert "error:" in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_both_copies_of_cifar10_are_taken(tmp_path):
    with pytest.raises(argparse.ArgumentTypeError, match="neither"):
        command_line.cifar10_folder(str(tmp_path))
    inner = tmp_path / "cifar-10-batches-py"
    inner.mkdir()
    assert command_line.cifar10_folder(str(tmp_path)) == tmp_path
    assert command_line.cifar10_folder(str(inner)) == tmp_path
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "train.npz").touch()
    assert command_line.cifar10_folder(str(packed)) == packed


def test_every_main_takes_arguments():
    for path in SCRIPTS:
        name = ".".join(path.relative_to(EXAMPLES).with_suffix("").parts)
        main = importlib.import_module(name).main
        assert list(inspect.signature(main).parameters) == ["argv"], name
