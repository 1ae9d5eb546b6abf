"""The README's code runs as it stands; only data and training are made small."""

import re
from pathlib import Path

import jax

import cutjax.data
import cutjax.models.reference as reference
from cutjax.cli import COMMANDS
from cutjax.models import init

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_fifteen_lines_run(monkeypatch, capsys):
    scenes = cutjax.data.digits_scenes
    sizes = {"train": 64, "calibration": 125, "validation": 8, "test": 8}
    monkeypatch.setattr(cutjax.data, "digits_scenes", lambda: scenes(sizes=sizes))

    def untrained(data, checkpoint):
        model = reference.reference(data)
        return model, init(model, data.train.x[:1]), None

    monkeypatch.setattr(reference, "train_reference", untrained)
    code, *_ = BLOCKS
    found: dict = {}
    exec(compile(code, "README.md", "exec"), found)
    small, full = found["small"], found["params"]
    assert set(found["small_apply"](small, found["data"].test.x)) == {"left", "larger"}
    leaves = jax.tree.leaves
    count = sum(a.size for a in leaves(small)) / sum(a.size for a in leaves(full))
    assert count <= 0.32
    assert "parameters" in capsys.readouterr().out


def test_the_other_lines_run():
    found: dict = {}
    for code in BLOCKS[1:]:
        exec(compile(code, "README.md", "exec"), found)
    model, compact, state = (found[name] for name in ("model", "compact", "state"))
    assert model.layers[0].out_features == 8, "the user's module was changed"
    assert compact.apply({"params": state.params}, found["x"]).shape == (2, 2)
    assert [group.size for group in found["graph"].free] == [8]


def test_the_commands_named_exist():
    for command in re.findall(r"`cutjax (\w+)`", README):
        assert command in COMMANDS
    root = Path(__file__).parent.parent
    for script in re.findall(r"scripts/\w+(?:\.py)?", README):
        assert (root / script).exists(), script
