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
        figure(method, budget, seed, lost, stage="distilled")
        for method, lost in ((DEFAULT, (0.0, 6.0)), (Method("l1"), (4.0, 4.0)))
        for seed in (0, 1)
    ]
    said = {d.measure: d.said for d in verdict.duels(made)}
    assert said == {"mean": "wins", "worst task": "loses"}
    once = verdict.duels([f for f in made if f.seed == 0])
    assert {d.said for d in once} == {"undecided"}  # one seed has no spread


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
    assert "| morpho | after fine-tuning | 0.1 | slant | mean | random |" in text


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


# Work. ------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A parent of a few channels, its scores in a file, and the worker's functions."""
    from studies import parents, work

    from cutjax.data import digits_scenes

    sizes = {"train": 256, "calibration": 64, "validation": 64, "test": 128}
    root = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        recipe = parents.Recipe((8, 12), 2, 1, 64, 4e-3, 2)
        patch.setitem(parents.RECIPES, "digits", recipe)
        patch.setattr(real, "load", lambda name, cache: digits_scenes(sizes=sizes))
        patch.setattr(work, "CRITERIA", ("joint", "taylor", "l1", "random"))
        patch.setattr(work, "CALIBRATION", 64)
        assert work.scored("digits", root, 0)["seconds"] > 0
        assert work.scored("digits", root, 0)["seconds"] == 0  # found in the file
        assert work.scored("digits", root, 1)["seconds"] > 0
        yield work, root
        work.parent.cache_clear()
        work.taught.cache_clear()
        work.scores.cache_clear()


def cell(method, stage="cut", *, tasks=("left", "larger"), budget=0.4, seed=0):
    return grid.Cell("digits", stage, method, tasks, budget, seed)


@pytest.mark.slow
def test_a_masked_figure_is_that_of_the_cut_network(tiny):
    from cutjax.metrics import accuracy
    from cutjax.shrink import cut

    work, root = tiny
    chosen = cell(Method("taylor"))
    (found,) = work.unit([chosen], root)
    p = work.parent("digits", root)
    keep, info = work.planned(p, work.scores("digits", root, 0), chosen)
    apply, small = cut(p.apply, p.params, p.graph, keep, chosen.tasks)
    some = work.some(p.data.test, work.IMAGES)
    assert found["metrics"] == pytest.approx(accuracy(apply, small, some))
    assert found["params"] == info.cost.params <= 0.4 * found["full_params"]


@pytest.mark.slow
def test_every_stage_gives_rows_that_the_page_can_read(tiny):
    work, root = tiny
    stages = [
        cell(DEFAULT, "compensated"),
        cell(DEFAULT, "distilled"),
        cell(CONTROL, "distilled"),
        cell(Method("joint", fuse="worst_case")),
        cell(Method("joint", normalize="per_cost", allocate="threshold")),
    ]
    rows = [r for c in stages for r in work.unit([c], root)]
    reference = {"key": "p", "data": "digits", "stage": "parent"}
    parent = {**reference, **work.reference("digits", root)}
    _, found = figures.read(json.loads(json.dumps([parent, *rows])))
    assert [f.method for f in found] == [c.method for c in stages]
    assert all(set(f.lost) == {"left", "larger"} for f in found)
    assert rows[1]["metrics"] != rows[2]["metrics"]


@pytest.mark.slow
def test_equal_choices_of_two_seeds_are_evaluated_once(tiny, monkeypatch):
    work, root = tiny
    calls = []

    def counted(p, keep, cell, root):
        calls.append(cell.seed)
        return {"metrics": {"left": 1.0}}

    monkeypatch.setitem(work.STAGES, "cut", counted)
    both = [cell(Method("l1"), seed=0), cell(Method("l1"), seed=1)]
    assert [r["seed"] for r in work.unit(both, root)] == [0, 1]
    assert calls == [0]
    chance = [c._replace(method=Method("random")) for c in both]
    assert len(work.unit(chance, root)) == 2 and calls == [0, 0, 1]


@pytest.mark.slow
def test_a_budget_that_cannot_be_met_is_a_row_that_says_so(tiny):
    work, root = tiny
    (found,) = work.unit([cell(Method("l1"), budget=1e-4)], root)
    assert "cannot be met" in found["infeasible"] and "metrics" not in found


# Data. ------------------------------------------------------------------------------
