"""Why channels are coupled: through which lines of the user, in words and pictures."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.library import CJ
from laws.tools import graph_of
from nets import NETS
from nets.turns import by_turns

import cutjax as cj
from cutjax.dot import arrows, listed, to_svg
from cutjax.errors import KeepError
from cutjax.unify import WINDOW

HERE = "test_explain.py"


def line(comment: str) -> str:
    with open(__file__) as file:
        numbers = [
            n for n, text in enumerate(file, 1) if text.rstrip().endswith(comment)
        ]
    assert len(numbers) == 1, comment
    return f"{HERE}:{numbers[0]}"


def model(p: Any, x: jax.Array) -> dict[str, jax.Array]:
    x = x @ p["encoder"]["stem"]["kernel"]
    h = jnp.tanh(x @ p["encoder"]["up"]["kernel"])
    h = h * p["encoder"]["scale"]  # the scale
    y = h @ p["encoder"]["down"]["kernel"]  # the reader
    x = x + y  # the residual
    order = jnp.sort(x @ p["sorted"]["kernel"])  # the sort
    return {"age": x @ p["age"], "order": order @ p["order"]}


PARAMS = {
    "encoder": {
        "stem": {"kernel": jnp.ones((3, 6))},
        "up": {"kernel": jnp.ones((6, 9))},
        "scale": jnp.ones(9),
        "down": {"kernel": jnp.ones((9, 6))},
    },
    "sorted": {"kernel": jnp.ones((6, 5))},
    "age": jnp.ones((6, 1)),
    "order": jnp.ones((5, 2)),
}


@pytest.fixture(scope="module")
def graph() -> cj.Graph:
    return cj.trace(model, PARAMS, jnp.ones((2, 3)))


def test_each_place_hangs_on_another_by_lines_of_the_users_code(
    graph: cj.Graph,
) -> None:
    said = graph.explain("up/kernel")
    assert "encoder/up/kernel [6, 9], 54 parameters" in said
    scale = re.search(r"encoder/scale:0, with encoder/up/kernel:1 by (.*)", said)
    assert (
        scale and scale[1].startswith("`mul` at ") and line("# the scale") in scale[1]
    )
    down = re.search(r"encoder/down/kernel:0, with encoder/.*:\d by (.*)", said)
    assert down and "`dot_general`" in down[1] and line("# the reader") in down[1]
    stream = graph.explain("encoder/stem/kernel:1")
    added = re.search(
        r"encoder/down/kernel:1, with encoder/stem/kernel:1 by (.*)", stream
    )
    assert added and line("# the residual") in added[1]
    assert "made by: encoder/stem/kernel, encoder/down/kernel" in stream
    assert "read by: encoder/up/kernel, sorted/kernel, age" in stream


def test_a_pin_has_a_reason_and_a_line(graph: cj.Graph) -> None:
    pinned = graph["sorted/kernel:1"].pinned
    assert pinned is not None and pinned.startswith("sorted, ")
    assert line("# the sort") in pinned
    assert pinned in graph.explain("order"), "the other end of the pinned axis"


def test_explaining_what_is_not_there_says_what_is_near(graph: cj.Graph) -> None:
    with pytest.raises(KeepError, match="encoder/scale"):
        graph.explain("encoder/scal")
    with pytest.raises(KeepError, match="several parameters end in 'kernel'"):
        graph.explain("kernel")


def unproven(graph: cj.Graph) -> list[str]:
    """Places that hang on nothing, besides the first of each group."""
    out = []
    for group in graph.groups:
        places = {m.place for m in group.members}
        bare = [m for m in group.members if not m.tie]
        out += [f"{group.name}: {m.place}" for m in bare[1:]]
        for m in group.members:
            if m.tie:
                to = re.match(r"with (\S+:\d+)", m.tie)
                assert to and to[1] in places - {m.place}, f"{group.name}: {m.tie}"
    return out


@pytest.mark.parametrize("name", by_turns(NETS, 4))
def test_every_coupling_is_proven(name: str) -> None:
    assert not unproven(graph_of(CJ, NETS[name]()))


def test_saboteur_a_lost_link_is_a_lost_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["cutjax.trace"]
    good = module.ties_of
    monkeypatch.setattr(module, "ties_of", lambda links, *a: good(links[:-4], *a))
    assert unproven(cj.trace(model, PARAMS, jnp.ones((2, 3))))


NEEDS_NO_LINE = (
    "an input",
    "the output of task",
    "not used here",
    "pinned by the caller",
)


@pytest.mark.parametrize("name", by_turns(NETS, 4, 1))
def test_every_pin_has_a_line(name: str) -> None:
    for group in graph_of(CJ, NETS[name]()).groups:
        if group.pinned and not group.pinned.startswith(NEEDS_NO_LINE):
            assert re.search(r"\w+\.py:\d+ \(.*\)$", group.pinned), group.pinned


# Pictures. --------------------------------------------------------------------------


def test_arrows_go_from_what_is_read_to_what_is_made(graph: cj.Graph) -> None:
    found = {(a.source, a.target): a.by for a in arrows(graph)}
    stream, hidden = "encoder/stem/kernel:1", "encoder/up/kernel:1"
    assert found == {
        ("encoder/stem/kernel:0", stream): ("encoder/stem/kernel",),
        (stream, hidden): ("encoder/up/kernel",),
        (hidden, stream): ("encoder/down/kernel",),
        (stream, "sorted/kernel:1"): ("sorted/kernel",),
        ("sorted/kernel:1", "order:1"): ("order",),
    }


def test_dot_has_a_box_per_group_and_an_arrow_per_reader(graph: cj.Graph) -> None:
    text = graph.to_dot()
    boxes = re.findall(r'^  "([^"]*)" \[label=', text, re.M)
    assert boxes == [group.name for group in graph.groups]
    ends = re.findall(r'^  "([^"]*)" -> "([^"]*)" \[label=', text, re.M)
    assert ends == [(a.source, a.target) for a in arrows(graph)]


def test_names_with_quotes_are_escaped() -> None:
    params = {'a"<b>\\': jnp.ones((3, 4)), "c": jnp.ones((4, 2))}
    graph = cj.trace(lambda p, x: x @ p['a"<b>\\'] @ p["c"], params, jnp.ones((1, 3)))
    assert '"a\\"<b>\\\\:1" [label=' in graph.to_dot()
    assert "<b>" not in graph._repr_html_()
    ET.fromstring(to_svg(graph))


@pytest.mark.parametrize("name", ["resnet18", "vit_fused", "unet"])
def test_a_notebook_shows_a_table_and_a_picture(name: str) -> None:
    graph = graph_of(CJ, NETS[name]())
    page = graph._repr_html_()
    assert page.count("<tr") == len(listed(graph)) + 1
    svg = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    space = "{http://www.w3.org/2000/svg}"
    boxes = [
        tuple(float(box.get(key, "nan")) for key in ("x", "y", "width", "height"))
        for box in svg.iter(f"{space}rect")
    ]
    assert len(boxes) == len(listed(graph))
    curves = [p for p in svg.iter(f"{space}path") if p.get("marker-end")]
    assert len(curves) == len(arrows(graph)) > 0
    for i, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x and x + w <= float(svg.get("width", 0)), (
            "a box out of the picture"
        )
        assert 0 <= y and y + h <= float(svg.get("height", 0)), (
            "a box out of the picture"
        )
        for a, b, c, d in boxes[:i]:
            apart = x + w <= a or a + c <= x or y + h <= b or b + d <= y
            assert apart, "two boxes overlap"


def test_a_keep_that_a_function_does_not_allow_names_the_line(graph: cj.Graph) -> None:
    def folded(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ p["encoder"]["stem"]["kernel"])
        h = h.reshape(-1, 2, 3).sum(1)  # the fold
        return h @ jnp.ones((3, 1))

    keep = {"encoder/stem/kernel:1": np.arange(6) != 4}
    small = cj.cut_params(PARAMS, graph, keep)
    with pytest.raises(KeepError) as caught:
        cj.shrink(folded, graph, keep)(small, jnp.ones((2, 3)))
    assert line("# the fold") in str(caught.value)


def test_windows_of_convolutions_are_explained_but_not_listed():
    net = NETS["vgg"]()
    graph = cj.trace(net.apply, net.params, *net.inputs)
    windows = [g.name for g in graph.groups if (g.pinned or "").startswith(WINDOW)]
    assert windows and all(WINDOW in graph.explain(name) for name in windows)
    for text in (str(graph), graph._repr_html_(), graph.to_dot()):
        assert WINDOW not in text
        assert all(g.name in text for g in graph.groups if g.name not in windows)
