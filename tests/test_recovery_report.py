"""Reports of recoveries: rows, tables, JSON lines, pictures."""

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

from cutjax.errors import DataError
from cutjax.plot.recovery import recovery
from cutjax.recover.report import Report, lost, read, step, table, timed, write


def example() -> Report:
    report = step(Report(), "parent", {"a": 90, "b": 80}, params=1000, flops=2_000_000)
    report = step(report, "cut", {"a": 10, "b": 40}, 0.25, params=100, flops=300_000)
    return step(report, "distilled", {"a": 89.5, "b": 80.25}, 61.5)


def test_rows_gather_and_nothing_is_changed():
    first = step(Report(), "parent", {"a": np.float32(90)})
    second = step(first, "cut", {"a": 50})
    assert len(first.rows) == 1 and len(second.rows) == 2
    assert type(first.rows[0].metrics["a"]) is float
    assert example().rows[2].params == 100 and example().rows[2].flops == 300_000


def test_points_lost_are_counted_from_the_first_row():
    assert lost(example(), "cut") == pytest.approx((80 + 40) / 2)
    assert lost(example(), "distilled") == pytest.approx((0.5 - 0.25) / 2)
    some = step(example(), "only b", {"b": 70})
    assert lost(some, "only b") == pytest.approx(10)
    with pytest.raises(DataError, match="no step 'tuned'"):
        lost(example(), "tuned")


def test_the_table_says_all_of_it():
    lines = str(example()).splitlines()
    assert lines[0].split() == [
        *("step", "a", "b", "mean", "lost", "params", "MFLOPs", "seconds")
    ]
    assert lines[1].split() == ["parent", "90.0", "80.0", "85.0", "1,000", "2.00"]
    assert lines[3].split() == [
        *("distilled", "89.5", "80.2", "84.9", "0.1", "100", "0.30", "61.50")
    ]
    ends = {len(line) for line in lines if not line.startswith("parent")}
    assert len(ends) == 1 and table(Report()) == "no steps yet"


def test_json_lines_come_back(tmp_path):
    write(example(), tmp_path / "report.jsonl")
    assert read(tmp_path / "report.jsonl") == example()
    lines = (tmp_path / "report.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [
        *("parent", "cut", "distilled")
    ]


def test_timed_waits_for_the_result():
    def work():
        time.sleep(0.02)
        return jnp.ones(3)

    result, took = timed("slept", work)
    assert result.sum() == 3 and took["name"] == "slept"
    assert 0.02 <= took["seconds"] < 5
    row = step(Report(), metrics={"a": 1.0}, **took).rows[0]
    assert row.name == "slept" and row.seconds == took["seconds"]


def test_bad_rows_are_refused():
    with pytest.raises(DataError, match="no metrics"):
        step(Report(), "parent", {})
    with pytest.raises(DataError, match="'cut' already"):
        step(example(), "cut", {"a": 1})
    with pytest.raises(DataError, match=r"tasks \['c'\]"):
        step(example(), "other", {"c": 1})


def test_the_picture_has_a_line_per_task_and_the_parents_level_dashed():
    (ax,) = recovery(step(example(), "only b", {"b": 70})).axes
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [90, 80]
    a, b = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert [*a.get_ydata()] == [10, 89.5] and [*b.get_ydata()] == [40, 80.25, 70]
    assert [*b.get_xdata()] == [0, 1, 2]
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels[1] == "distilled\n+0.1 lost\n61.5 s"
    with pytest.raises(DataError, match="at least one step"):
        recovery(Report(example().rows[:1]))
