"""One command for every table of the results page.

    python examples/benchmarks list
    python examples/benchmarks memory                        # short form: minutes on two cores
    python examples/benchmarks memory --size medium          # up to an hour on two cores
    python examples/benchmarks memory --size full --device cuda
    python examples/benchmarks all --size short
    python examples/benchmarks page docs/results             # tables and plots from the records
    python examples/benchmarks compare OLD.json NEW.json     # fails where a ratio became worse

A run writes ``OUTPUT/TABLE-SIZE.json`` after every cell and goes on from there when it is started
again. Both sides of a comparison are cells of one record, or are interleaved within one cell.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent)]

from benchmarks.framework.compare import compare  # noqa: E402
from benchmarks.framework.record import SIZES, AnotherRecord, Context, Record, render  # noqa: E402
from command_line import DATA, Command, cifar10_folder, device, new_folder  # noqa: E402


def names() -> list[str]:
    """The tables, a module each in ``tables/``."""
    return sorted(p.stem for p in (FOLDER / "tables").glob("*.py") if not p.stem.startswith("_"))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.tables.{name}")


def run(name: str, context: Context, output: Path) -> Record:
    """Measure what the record still lacks, print the table and save the plot."""
    table = load(name)
    path = output / f"{name}-{context.size}.json"
    record = Record.open(path, name, context, images=getattr(table, "IMAGES", True))
    cells = table.cells(context.size)
    missing = [cell for cell in cells if cell not in record]
    print(f"\n{table.TITLE} ({context.size}): {len(missing)} cells to measure", flush=True)
    for cell in tqdm(missing, desc=name, disable=None):
        record.measure(cell, lambda cell=cell: table.measure(cell, context))
    record.sort(cells)
    record.save()
    print(table.table(record.rows))
    render(table, record, output)
    return record


WORDS = ("all", "list", "page", "compare")


def make_parser() -> Command:
    parser = Command(__doc__)
    add = parser.add_argument
    add("table", choices=[*names(), *WORDS], metavar="TABLE", help=", ".join([*names(), *WORDS]))
    add("paths", nargs="*", type=Path, help="'page': folder, 'compare': two records")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", choices=SIZES, default="short", help="medium: minutes to hours")
    sizes.add_argument(
        "--short", action="store_const", dest="size", const="short", help="the same as --size short"
    )
    add("--device", type=device, default="cpu", help="of PyTorch")
    add("--data-dir", type=cifar10_folder, help=f"{DATA}; without it, scikit-learn's digits")
    add("--output", type=new_folder, default="runs/benchmarks", help="folder of records")
    return parser


def parse(argv: list[str] | None = None) -> tuple[Command, argparse.Namespace]:
    """The parser and the arguments, checked."""
    parser = make_parser()
    arguments = parser.parse(argv)
    paths = arguments.paths
    if arguments.table == "compare" and len(paths) != 2:
        parser.error(f"compare takes two records, got {len(paths)}")
    if arguments.table == "page" and (len(paths) > 1 or not all(path.is_dir() for path in paths)):
        parser.error(f"page takes one folder of records, got {', '.join(map(str, paths))}")
    if arguments.table not in ("compare", "page") and paths:
        parser.error(f"{arguments.table} takes no paths, got {', '.join(map(str, paths))}")
    for path in paths if arguments.table == "compare" else ():
        if not path.is_file():
            parser.error(f"compare takes two records, but {path} is no file")
    return parser, arguments


def main(argv: list[str] | None = None) -> None:
    parser, arguments = parse(argv)
    if arguments.table == "list":
        for name in names():
            print(f"{name:20} {load(name).TITLE}")
    elif arguments.table == "page":
        folder = arguments.paths[0] if arguments.paths else arguments.output
        for path in sorted(folder.glob("*.json")):
            record = Record.read(path)
            render(load(record.table), record, folder)
            print(f"{path.with_suffix('.md')}")
    elif arguments.table == "compare":
        text, fine = compare(*map(Record.read, arguments.paths))
        print(text)
        sys.exit(not fine)
    else:
        context = Context(arguments.size, arguments.device, arguments.data_dir)
        for name in names() if arguments.table == "all" else [arguments.table]:
            try:
                run(name, context, arguments.output)
            except AnotherRecord as error:
                parser.error(f"--output: {error}")


if __name__ == "__main__":
    main()
