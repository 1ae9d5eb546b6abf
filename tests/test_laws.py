"""Every law on every specimen net (design, section 11); see also test_keeps.py."""

import jax
import laws
import pytest
from jax.extend.core import Primitive
from laws import CJ
from nets import NETS
from nets.turns import by_turns
from saboteurs import PRIMES

BN_NETS = ("vgg", "resnet18", "preact_resnet", "option_a", "mobilenet", "resnext")
TRAINED = (
    *BN_NETS,
    *("densenet", "inception", "shuffle_once", "dropout_batchnorm", "efficientnet"),
)
STATISTIC = (
    *("groupnorm", "mixer", "swiglu", "channel_mean", "vit_linen", "vit_fused"),
    *("vit_split", "decoder", "primes", "llama", "gptj", "t5", "albert"),
    *("stacked_layers", "swin", "convnext", "weight_standard"),
    *("nnx_transformer", "equinox_conv", "force", "fast_weights"),
    "root_norm",
)

# The scope orders the tests by net, so that what they share is computed once.
every = pytest.mark.parametrize("name", list(NETS), scope="module")


def some(every: int, first: int) -> pytest.MarkDecorator:
    nets = by_turns(NETS, every, first)
    return pytest.mark.parametrize("name", nets, scope="module")


third = some(3, 0)


@every
def test_groups_are_those_found_on_paper(name: str) -> None:
    laws.check_groups(CJ, NETS[name]())


@every
def test_members_are_what_a_cut_touches(name: str) -> None:
    laws.check_members(CJ, NETS[name]())


@some(6, 1)
@pytest.mark.parametrize("how", ["jit", "remat", "shapes", "order", "vmap"])
def test_graph_is_the_same(name: str, how: str) -> None:
    if (name, how) == ("branches", "vmap"):
        pytest.skip("vmap turns cond into select: other equations run, in other order")
    laws.check_graph_stable(CJ, NETS[name](), how)


@some(2, 1)
def test_shrink_equals_mask(name: str) -> None:
    laws.check_shrink_equals_mask(CJ, NETS[name](), 0)


@pytest.mark.parametrize("name", STATISTIC)
def test_shrink_equals_narrow(name: str) -> None:
    laws.check_shrink_equals_narrow(CJ, NETS[name](), 0)


def test_every_statistic_has_an_oracle() -> None:
    assert set(STATISTIC) == {name for name in NETS if not NETS[name]().exact}
    assert set(TRAINED) <= {name for name in NETS if NETS[name]().train_apply}


@third
def test_mask_is_zero_where_the_cut_removes(name: str) -> None:
    laws.check_mask(CJ, NETS[name](), 0)


@some(6, 2)
def test_full_keep_changes_nothing(name: str) -> None:
    laws.check_full_keep(CJ, NETS[name]())


@some(6, 3)
def test_permutation_changes_nothing(name: str) -> None:
    if not NETS[name]().permutable:
        pytest.skip("its members hold a group twice")
    laws.check_permutation(CJ, NETS[name](), 0)


@third
def test_cut_for_a_task(name: str) -> None:
    laws.check_tasks(CJ, NETS[name](), 0)


@some(6, 3)
def test_gates(name: str) -> None:
    laws.check_gates(CJ, NETS[name](), 0)


@some(12, 0)
def test_gate_gradient_is_the_finite_difference(name: str) -> None:
    if not NETS[name]().true_derivative:
        pytest.skip("the activation's derivative is not its slope")
    laws.check_gate_gradient(CJ, NETS[name](), 0)


@some(6, 0)
def test_gate_gradient_is_that_of_the_readers(name: str) -> None:
    if not (NETS[name]().by_weights and NETS[name]().exact):
        pytest.skip("read by something else than a kernel's axis -2")
    laws.check_gate_scale(CJ, NETS[name]())


@third
@pytest.mark.parametrize("seed", [None, 0])
def test_cost_is_what_is_counted(name: str, seed: int | None) -> None:
    laws.check_cost(CJ, NETS[name](), seed)


@pytest.mark.parametrize("name", ["mlp_tasks", "resnet18", "decoder", "scanned"])
def test_two_batches_compile_once(name: str) -> None:
    laws.check_compiles_once(CJ, NETS[name](), 0)


@some(6, 1)
def test_another_batch_size(name: str) -> None:
    laws.check_other_batch(CJ, NETS[name](), 0)


@some(12, 1)
def test_gradient_of_the_small_function(name: str) -> None:
    if not NETS[name]().reverse:
        pytest.skip("a while loop has no reverse mode")
    laws.check_grad(CJ, NETS[name](), 0)


@pytest.mark.parametrize(
    "name", [*by_turns(STATISTIC, 8), "option_a", "gated_mlp", "unet"]
)
def test_gradient_within_the_function(name: str) -> None:
    laws.check_inner_grad(CJ, NETS[name](), 0)


@some(6, 2)
def test_vmap_of_the_small_function(name: str) -> None:
    laws.check_vmap(CJ, NETS[name](), 0)


@some(12, 5)
def test_second_cut(name: str) -> None:
    laws.check_second_cut(CJ, NETS[name](), 0)


@pytest.mark.parametrize("name", TRAINED)
def test_train_mode(name: str) -> None:
    laws.check_train(CJ, NETS[name](), 0)


def test_compiled_program_holds_no_full_size() -> None:
    laws.check_program(CJ, NETS["primes"](), PRIMES)


strange = Primitive("strange")
strange.def_abstract_eval(lambda x: x)


def with_unknown(params, x):
    return strange.bind(x @ params["first"]) @ params["last"]


def test_unknown_primitive_raises_with_a_source_line() -> None:
    params = {"first": jax.numpy.ones((3, 5)), "last": jax.numpy.ones((5, 2))}
    with pytest.raises(Exception, match=r"(?s)strange.*test_laws\.py:\d+"):
        CJ.trace(with_unknown, params, jax.numpy.ones((1, 3)))


def test_unknown_primitive_can_be_pinned() -> None:
    params = {"first": jax.numpy.ones((3, 5)), "last": jax.numpy.ones((5, 2))}
    x = jax.numpy.ones((1, 3))
    graph = CJ.trace(with_unknown, params, x, on_unknown="pin")
    assert not laws.free(graph)
    assert any("strange" in group.pinned for group in graph.groups)
