"""The study's machinery: cells, results on disk, figures, verdict, page."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from studies import figures, grid, methods, page, real, store, tables, verdict  # noqa: E402, I001
from studies.methods import BASELINES, CONTROL, DEFAULT, Method  # noqa: E402


# Cells. -----------------------------------------------------------------------------


@pytest.mark.parametrize("data", real.NAMES)
def test_cells_are_distinct_and_larger_sizes_hold_the_smaller_ones_stages(data):
    found = {size: grid.cells(data, size=size) for size in ("quick", "default", "full")}
    for cells in found.values():
        assert len({c.key for c in cells}) == len(cells)
        assert {c.stage for c in cells} == {"cut", "compensated", "distilled"}
    assert set(found["default"]) <= set(found["full"])
    assert len(found["quick"]) < 30 < len(found["default"]) < len(found["full"])


def test_units_hold_all_seeds_of_a_choice():
    cells = grid.cells("morpho", size="default")
    groups = grid.units(cells)
    assert sum(map(len, groups)) == len(cells)
    for group in groups:
        assert [c.seed for c in group] == list(methods.SEEDS)
        assert len({c._replace(seed=0) for c in group}) == 1


def test_every_method_names_what_cutjax_has():
    from cutjax import allocate, criteria, fuse, normalize, pareto

    for data in real.NAMES:
        for method in {c.method for c in grid.cells(data, size="full")}:
            assert method.criterion in criteria.ALL
            assert hasattr(normalize, method.normalize)
            assert hasattr(allocate, method.allocate)
            assert hasattr(fuse, method.fuse) or hasattr(pareto, method.fuse)
    assert set(methods.CRITERIA) == set(criteria.ALL)


def test_the_verdict_finds_the_cells_it_compares():
    """Default, baselines and control are there at both budgets, wherever compared."""
    for data in real.NAMES:
        cells = grid.cells(data, size="default")
        for budget in methods.AT_STAKE[data]:
            for method in BASELINES.values():
                for stage, wanted in (
                    ("cut", method),
                    ("compensated", method._replace(compensate=True)),
                    ("distilled", method),
                    ("distilled", CONTROL),
                    ("distilled", DEFAULT),
                ):
                    at = {
                        (c.tasks, c.seed)
                        for c in cells
                        if (c.stage, c.method, c.budget) == (stage, wanted, budget)
                    }
                    assert {(grid.TASKS[data], s) for s in methods.SEEDS} <= at


# Results on disk. -------------------------------------------------------------------


def test_a_line_cut_short_is_lost_alone(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    store.append(path, {"key": "a", "x": 1.5})
    store.append(path, {"key": "b"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "c", "x"')
    assert [row["key"] for row in store.read(path)] == ["a", "b"]
    store.append(path, {"key": "d"})
    assert [row["key"] for row in store.read(path)] == ["a", "b", "d"]
    assert store.read(tmp_path / "nothing.jsonl") == []


# Figures. ---------------------------------------------------------------------------


def figure(method, budget, seed, lost, *, tasks=("a", "b"), stage="cut", data="morpho"):
    """A finished cell in which task after task loses these points."""
    values = dict(zip(tasks, lost, strict=True))
    return figures.Figure(
        data, stage, method, tasks, budget, seed, values, 0.1, 0.1, 1.0
    )


def test_a_level_averages_subsets_first_and_seeds_afterwards():
    made = [
        figure(DEFAULT, 0.1, 0, (1.0, 3.0)),
        figure(DEFAULT, 0.1, 0, (6.0,), tasks=("a",)),
        figure(DEFAULT, 0.1, 1, (2.0, 4.0)),
        figure(DEFAULT, 0.1, 1, (9.0,), tasks=("a",)),
        figure(DEFAULT, 0.1, 2, (100.0, 100.0)),  # lacks a subset: does not count
    ]
    subsets = [("a", "b"), ("a",)]
    found = figures.level(made, subsets, figures.mean_lost)
    assert found.seeds == (0, 1)
    assert found.mean == np.mean([np.mean([2, 6]), np.mean([3, 9])])
    assert found.spread == pytest.approx(np.std([4, 6], ddof=1))
    worst = figures.level(made, subsets, figures.worst_lost)
    assert worst.mean == np.mean([np.mean([3, 6]), np.mean([4, 9])])
    assert figures.level(made, [("c",)], figures.mean_lost) is None
    alone = figures.level(made[:1], [("a", "b")], figures.mean_lost)
    assert alone.spread == 0


def row(method, stage, tasks, budget, seed, metrics):
    cell = grid.Cell("morpho", stage, method, tasks, budget, seed)
    return {
        **{"key": cell.key, **cell._asdict(), "method": method._asdict()},
        **{"metrics": metrics, "params": 10, "full_params": 100},
        **{"flops": 2, "full_flops": 10, "seconds": 1.0},
    }


PARENT = {
    **{"key": "morpho|parent", "data": "morpho", "stage": "parent"},
    "metrics": dict.fromkeys(grid.TASKS["morpho"], 90.0),
    "some": dict.fromkeys(grid.TASKS["morpho"], 92.0),
    **{"params": 100, "flops": 10, "seconds": 60.0, "steps": 1000, "distil": 93},
    "sizes": {"train": 6000, "test": 2000},
}


def test_points_are_lost_against_the_parent_on_the_same_images():
    rows = [
        PARENT,
        row(Method("l1"), "cut", ("slant",), 0.1, 0, {"slant": 80.0}),
        row(Method("l1"), "distilled", ("slant",), 0.1, 0, {"slant": 80.0}),
        {**row(Method("l1"), "cut", ("slant",), 0.01, 0, {}), "infeasible": "no"},
    ]
    _, (masked, tuned) = figures.read(json.loads(json.dumps(rows)))
    assert masked.lost == {"slant": 12.0} and tuned.lost == {"slant": 10.0}
    assert masked.method == Method("l1") and masked.params == 0.1
    with pytest.raises(ValueError, match="no row of the parent"):
        figures.read(rows[1:])


# The verdict. -----------------------------------------------------------------------


def duel(ours, theirs):
    """The default against l1 after fine-tuning, from points lost per seed."""
    budget = methods.AT_STAKE["morpho"][0]
    made = [
        figure(method, budget, seed, (points, points), stage="distilled")
        for method, found in ((DEFAULT, ours), (Method("l1"), theirs))
        for seed, points in enumerate(found)
    ]
    found = [d for d in verdict.duels(made) if d.measure == "mean"]
    (one,) = found
    return one


def test_a_win_is_a_win_only_beyond_the_spread():
    clear = duel((1.0, 1.2, 0.8), (5.0, 5.2, 4.8))
    assert clear.rival == "l1" and clear.said == "wins"
    assert clear.margin == pytest.approx(4) and clear.spread == pytest.approx(
        0.2828, 1e-3
    )
    assert duel((5.0, 5.2, 4.8), (1.0, 1.2, 0.8)).said == "loses"
    assert duel((1.0, 3.0, 5.0), (2.0, 4.0, 6.0)).said == "undecided"
    assert duel((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)).said == "undecided"


def test_the_worst_task_is_compared_apart_from_the_mean():
    budget = methods.AT_STAKE["morpho"][0]
    made = [
        figure(DEFAULT, budget, 0, (0.0, 6.0), stage="distilled"),
        figure(Method("l1"), budget, 0, (4.0, 4.0), stage="distilled"),
    ]
    said = {d.measure: d.said for d in verdict.duels(made)}
    assert said == {"mean": "wins", "worst task": "loses"}


# The page. --------------------------------------------------------------------------


def results():
    """A small study with planted points: the default loses 1, the others 5 and more."""
    tasks = grid.TASKS["morpho"]
    rows = [PARENT, {"key": "run|1", "minutes": 3.0}]
    planted = {DEFAULT: 1.0, CONTROL: 9.0}
    planted |= {method: 5.0 + i for i, method in enumerate(BASELINES.values())}
    for subset in (tasks, *((t,) for t in tasks)):
        for seed in (0, 1):
            for method, lost in planted.items():
                for budget in methods.AT_STAKE["morpho"]:
                    whole = dict.fromkeys(subset, 90.0 - lost - 0.1 * seed)
                    rows.append(row(method, "distilled", subset, budget, seed, whole))
            for name in ("joint", "taylor"):
                for budget in (0.5, 0.1):
                    lost = 2.0 * len(subset) + (name == "taylor")
                    some = dict.fromkeys(subset, 92.0 - lost)
                    rows.append(row(Method(name), "cut", subset, budget, seed, some))
    return json.loads(json.dumps(rows))


def test_the_page_says_what_was_planted(tmp_path):
    written = page.write(results(), tmp_path)
    assert [p.name for p in written] == ["study.md", "study-morpho.png"]
    text = written[0].read_text()
    assert "**default** (joint, compensated) | **1.0** ± 0.1 | **1.0** ± 0.1 |" in text
    assert "| l1 | 7.0 ± 0.1 | 7.0 ± 0.1 |" in text
    # One task alone loses 2, as one of four 8: fewer tasks pay.
    assert "| cut | joint | 0.5 | 2.0 → 8.0 |" in text
    assert "| after fine-tuning | random | mean | 10 | 0 | 0 | +4.0 | +4.0 |" in text
    assert "The default beats every baseline in every comparison." in text
    assert written[1].stat().st_size > 10_000


def test_the_page_names_what_was_not_won(tmp_path):
    rows = results()
    for entry in rows:
        ours = entry.get("method") == DEFAULT._asdict()
        if ours and len(entry["tasks"]) == 1:
            entry["metrics"] = {t: v - 30 for t, v in entry["metrics"].items()}
    text = page.write(rows, tmp_path)[0].read_text()
    assert "in every comparison" not in text and "Not won:" in text
    assert "| morpho | after fine-tuning | 0.2 | slant | mean | random |" in text


def test_methods_of_a_table_share_its_subsets():
    made = [
        figure(Method("joint"), 0.1, 0, (1.0, 1.0)),
        figure(Method("joint"), 0.1, 0, (50.0,), tasks=("a",)),
        figure(Method("l1"), 0.1, 0, (2.0, 2.0)),
    ]
    text = tables.levels("t", made)
    assert "| joint | **1.0** |" in text and "| l1 | 2.0 |" in text
    only = tables.varied(made, "fuse")
    assert only == []  # one fusion is nothing to compare


# Data. ------------------------------------------------------------------------------


def test_data_that_are_not_there_are_left_out_with_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "SHARED", tmp_path / "nowhere")
    with pytest.raises(real.Absent, match="set_cards is left out: no folder"):
        real.load("set_cards", tmp_path)
    with pytest.raises(real.Absent, match="nowhere/mnist"):
        real.load("morpho", tmp_path)


@pytest.mark.skipif(not real.SHARED.is_dir(), reason=f"no {real.SHARED}")
def test_morpho_is_split_by_index_and_standardised_on_training_rows(tmp_path):
    data = real.load("morpho", tmp_path)
    assert [len(getattr(data, s).x) for s in real.SPLITS] == [6000, 1000, 1000, 2000]
    assert data.tasks == {"digit": 10, "thickness": 0, "slant": 0, "width": 0}
    for task in real.NUMBERS:
        train = data.train.y[task]
        assert abs(train.mean()) < 1e-4 and train.std() == pytest.approx(1, abs=1e-4)
        assert abs(data.test.y[task].mean()) > 1e-3  # not by its own mean
    ink = data.test.x.sum((1, 2, 3))
    assert np.corrcoef(ink, data.test.y["thickness"])[0, 1] > 0.6


@pytest.mark.slow
@pytest.mark.skipif(not real.SHARED.is_dir(), reason=f"no {real.SHARED}")
def test_cards_of_one_photo_stay_in_one_split(tmp_path):
    import csv

    from cutjax.data.arrays import split_rows

    data = real.load("set_cards", tmp_path)
    with open(real.SHARED / "set_cards" / "labels.csv", newline="") as file:
        photos = [row["photo"] for row in csv.DictReader(file)]
    rows = split_rows(photos, real.FRACTIONS, 0)
    owners = [{photos[i] for i in rows[s]} for s in real.SPLITS]
    assert sum(map(len, owners)) == len(set(photos))
    assert [len(rows[s]) for s in real.SPLITS] == [
        len(getattr(data, s).x) for s in real.SPLITS
    ]
    assert data.train.x.shape[1:] == (64, 40, 3) and 0.2 < data.train.x.mean() < 0.9
