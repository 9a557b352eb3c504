"""Records of ratios are compared ratio by ratio, and the command fails where one became worse."""

import copy
import sys

import pytest
from benchmarks.__main__ import main
from benchmarks.framework.compare import compare
from benchmarks.framework.record import Record


def record(path, values, table="speed", size="short", **environment):
    rows = [
        {"cell": {"ratio": name}, "figures": {"value": value, "tolerance": 0.25, "commit": "a"}}
        for name, value in values.items()
    ]
    return Record(path, table, size, "python ...", {"torch": "2.11", **environment}, rows)


@pytest.mark.parametrize(
    ("value", "fine", "word"),
    [
        (1.0, True, "as before"),
        (1.249, True, "as before"),
        (1.251, False, "WORSE"),
        (0.76, True, "as before"),
        (0.74, True, "better"),
        (float("nan"), False, "WORSE"),
    ],
)
def test_a_ratio_may_grow_by_its_tolerance(tmp_path, value, fine, word):
    old = record(tmp_path / "old.json", {"a": 1.0, "b": 2.0})
    new = record(tmp_path / "new.json", {"b": 2.0, "a": value})
    text, found = compare(old, new)
    assert found is fine
    lines = text.splitlines()
    assert lines[2].startswith("| a |") and word in lines[2]
    assert "as before" in lines[3]


def test_the_old_records_tolerance_counts(tmp_path):
    old, new = (record(tmp_path / f"{n}.json", {"a": v}) for n, v in (("old", 1), ("new", 1.2)))
    new.rows[0]["figures"]["tolerance"] = 0.01
    assert compare(old, new)[1]
    old.rows[0]["figures"]["tolerance"] = 0.1
    assert not compare(old, new)[1]


def test_missing_and_new_ratios(tmp_path):
    old = record(tmp_path / "old.json", {"a": 1.0, "b": 1.0})
    new = record(tmp_path / "new.json", {"b": 1.0, "c": 1.0}, torch="2.12")
    text, fine = compare(old, new)
    assert not fine and "MISSING" in text and "| c |  | 1 |" in text
    assert text.endswith("Made with another torch.")
    assert compare(new, copy.deepcopy(new))[1]


def test_records_that_cannot_be_compared(tmp_path):
    old = record(tmp_path / "old.json", {"a": 1.0})
    with pytest.raises(ValueError, match=r"another size: .*old.json has 'short'"):
        compare(old, record(tmp_path / "new.json", {"a": 1.0}, size="medium"))
    with pytest.raises(ValueError, match="another table"):
        compare(old, record(tmp_path / "new.json", {"a": 1.0}, table="memory"))
    for row in old.rows:
        row["figures"] = {"peak": 3}
    with pytest.raises(ValueError, match="holds no ratios: its rows have peak"):
        compare(old, old)


def test_the_command_fails_where_a_ratio_became_worse(tmp_path, monkeypatch, capsys):
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, value, status in ((paths[1], 1.3, 1), (paths[1], 1.2, 0)):
        record(paths[0], {"a": 1.0}).save()
        record(path, {"a": value}).save()
        monkeypatch.setattr(sys, "argv", ["benchmarks", "compare", *map(str, paths)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == status
        assert "| a | 1 | 1." in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "compare", str(paths[0])])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
