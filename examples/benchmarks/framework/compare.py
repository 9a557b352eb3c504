"""Two records of ratios, side by side: what became worse by more than its tolerance."""

from __future__ import annotations

from benchmarks.framework.record import Record, markdown


def compare(old: Record, new: Record) -> tuple[str, bool]:
    """A table of every ratio in both records, and whether all of the new ones may stand.

    A ratio is a row with ``value`` and ``tolerance``; smaller is better. It may grow by the
    tolerance that the old record gives it. One that the new record lacks may not stand.

    Raises:
        ValueError: the records are of different tables or sizes, or hold no ratios.
    """
    for name in ("table", "size"):
        if getattr(old, name) != getattr(new, name):
            raise ValueError(
                f"the records are of another {name}: {old.path} has {getattr(old, name)!r}, "
                f"{new.path} has {getattr(new, name)!r}"
            )
    found = {_name(row): row["figures"] for row in new.rows}
    lines: list[list[object]] = []
    fine = True
    for row in old.rows:
        name, before = _name(row), row["figures"]
        after = found.pop(name, None)
        if "value" not in before:
            raise ValueError(f"{old.path} holds no ratios: its rows have {', '.join(before)}")
        limit = f"{before['tolerance']:+.0%}"
        if after is None:
            fine = False
            lines.append([name, before["value"], "", "", limit, "MISSING"])
            continue
        change = after["value"] / before["value"] - 1
        worse = not change <= before["tolerance"]  # also where it is not a number
        fine &= not worse
        verdict = "WORSE" if worse else "better" if change < -before["tolerance"] else "as before"
        lines.append([name, before["value"], after["value"], f"{change:+.0%}", limit, verdict])
    lines += [[name, "", figures["value"], "", "", "new"] for name, figures in found.items()]
    differs = [k for k, v in old.environment.items() if new.environment.get(k) != v]
    note = f"\nMade with another {', '.join(differs)}." if differs else ""
    return markdown(["ratio", "old", "new", "change", "limit", ""], lines) + note, fine


def _name(row: dict) -> str:
    return " ".join(map(str, row["cell"].values()))
