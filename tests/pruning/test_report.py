"""The report has what happened."""

import csv

import pytest
from pruning.nets import mlp, move

from sj_ext.pruning import MinimaxPruner


class Writer:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))


@pytest.fixture
def finished():
    model, writer = mlp(), Writer()
    pruner = MinimaxPruner(
        model, budget=0.1, first=True, schedule=30, writer=writer, log_every=1, layerwise=True
    )
    densities = []
    while not pruner.finished:
        move(model)
        pruner.step()
        densities.append(pruner.density)
    return pruner, writer, densities


def test_rows_hold_density_resource_multipliers_and_layers(finished):
    pruner, _, densities = finished
    rows = pruner.history.rows
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["density"] for row in rows] == densities
    assert rows[-1]["resource/params"] == pruner.resource
    assert rows[-1]["z/params"] == pruner.z["params"]
    assert [rows[-1][f"y/{name}"] for name in pruner.kept_shares] == pruner.y
    assert {n: rows[-1][f"kept/{n}"] for n in pruner.kept_shares} == pruner.kept_shares


def test_table_and_csv_show_the_same(finished, tmp_path):
    pruner, _, _ = finished
    lines = pruner.history.table().splitlines()
    assert len(lines) == 31 and len({len(line) for line in lines}) == 1
    assert lines[0].split()[:4] == ["step", "stage", "phase", "density"]
    assert "kept/0" in pruner.history.table(["step", "kept/0"])
    pruner.history.save_csv(tmp_path / "run.csv")
    with open(tmp_path / "run.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["density"]) for row in rows] == [r["density"] for r in pruner.history.rows]


def test_a_pruner_is_shown_as_a_table():
    model = mlp()
    pruner = MinimaxPruner(model, budget=0.4, schedule=30)
    move(model)
    pruner.step()
    head, budgets, layers = repr(pruner).split("\n\n")
    assert head == "MinimaxPruner: compress, step 1 of 30, stage 1 of 1"
    titles, row = (line.split() for line in budgets.splitlines())
    assert titles == ["resource", "now", "level", "budget"]
    assert row == ["params", f"{pruner.resource:.5g}", "0.4", "0.4"]
    rows = [line.split() for line in layers.splitlines()]
    assert rows[1] == ["0", "480", "480", "1", "left", "dense"]
    assert [row[0] for row in rows] == ["layer", "0", "2", "4", "all"]
    assert int(rows[-1][2]) == pruner.kept == sum(int(row[2]) for row in rows[1:-1])


def test_scalars_go_to_the_writer(finished):
    _, writer, densities = finished
    assert [v for tag, v, _ in writer.scalars if tag == "pruning/density"] == densities
    tags = {tag for tag, _, _ in writer.scalars}
    assert {"pruning/z/params", "pruning/kept/0", "pruning/resource/params"} <= tags


def test_plot_shows_every_layer(finished, tmp_path):
    pruner, _, densities = finished
    figure = pruner.history.plot()
    top, middle, bottom = figure.axes
    assert list(top.lines[0].get_ydata()) == densities
    assert len(middle.lines) == 4 and len(bottom.lines) == 3
    figure.savefig(tmp_path / "run.png")
