"""Networks of masked twins: no leak, the context of a forward, recomputation, and what ``sparsify`` refuses."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nn.masked import network, spread
from torch import nn

from medssl.nn.sparse import NEUTRAL, TWINS, checkpoint, sparsify, visible
from medssl.nn.visibility import Masked
from medssl.types import UserError


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**16), st.sampled_from([2, 3]), st.sampled_from(["batch", "instance"]), st.booleans())
def test_networks_do_not_see_hidden_cells(seed, ndim, norm, training):
    net = sparsify(network(ndim, norm)).train(training)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 1, *(16, 8, 8)[:ndim], generator=generator)
    hidden = torch.rand(2, *(4, 2, 4)[:ndim], generator=generator) < 0.5
    cover = spread(hidden, x)
    results = []
    for value in (0.0, 1e6):
        own = copy.deepcopy(net)
        leaf = x.masked_fill(cover, value).requires_grad_()
        with visible(own, hidden):
            y = own(leaf.masked_fill(cover, 0))
        y.square().sum().backward()
        assert (leaf.grad[cover] == 0).all()
        results.append(y)
    assert torch.equal(*results)
    assert (results[0][spread(hidden, results[0])] == 0).all()


def test_uses_nest_and_end():
    net = sparsify(network()).eval()
    x, hidden = torch.randn(2, 1, 8, 8), torch.tensor([[[True, False], [False, False]]]).repeat(2, 1, 1)
    dense = net(x)
    with visible(net, hidden):
        outer = net(x)
        with visible(net, ~hidden):
            inner = net(x)
        with visible(net, None):
            assert torch.equal(net(x), dense)
        assert torch.equal(net(x), outer)
    assert not torch.equal(inner, outer)
    with pytest.raises(ZeroDivisionError, match="on purpose"), visible(net, hidden):
        raise ZeroDivisionError("on purpose")
    assert torch.equal(net(x), dense)


def test_one_module_is_hidden_without_its_neighbor():
    a, b = (sparsify(network()).eval() for _ in range(2))
    x, hidden = torch.randn(2, 1, 8, 8), torch.ones(2, 2, 2, dtype=torch.bool)
    with visible(a, hidden):
        assert (a(x) == 0).all()
        assert (b(x) != 0).any()
    with visible(nn.ModuleList([a, b]), hidden):
        assert (a(x) == 0).all()
        assert (b(x) == 0).all()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_have_a_context_of_their_own(clone):
    net = sparsify(network()).eval()
    x, hidden = torch.randn(2, 1, 8, 8), torch.ones(2, 2, 2, dtype=torch.bool)
    with visible(net, hidden):
        other = clone(net)
        assert (other(x) != 0).any()
        with visible(other, hidden):
            assert (other(x) == 0).all()
    with visible(other, hidden):
        assert (net(x) != 0).any()
        assert len({id(m.visibility) for m in other.modules() if isinstance(m, Masked)}) == 1


def test_a_mask_that_does_not_fit():
    net, x = sparsify(network()), torch.randn(2, 1, 8, 8)
    for shape, error, words in (
        ((3, 2, 2), ValueError, r"do not fit a mask of \(3, 2, 2\)"),
        ((2, 2, 2, 2), ValueError, r"\(B C \*s\) do not fit a mask"),
        ((2, 3, 3), UserError, "does not nest"),
    ):
        with visible(net, torch.zeros(shape, dtype=torch.bool)), pytest.raises(error, match=words):
            net(x)
    with pytest.raises(UserError, match="Sequential has no masked layers"), visible(network(), torch.zeros(2, 2, 2)):
        pass
    with visible(network(), None):
        pass


# --- recomputation


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("masked", [True, False])
def test_recomputing_changes_nothing(norm, masked):
    plain, saving = sparsify(network(2, norm)), sparsify(network(2, norm))
    x = torch.randn(2, 1, 16, 16)
    masks = [torch.rand(2, 4, 4) < 0.5 for _ in range(2)] if masked else [None, None]
    for net in (plain, saving):
        total = 0
        for hidden in masks:  # two masks wait for one backward
            with visible(net, hidden):
                y = x
                for stage in net:
                    y = checkpoint(stage, y) if net is saving else stage(y)
                total = total + y.square().sum()
        total.backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name, rtol=1e-6, atol=1e-7)
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputing_by_another_road_is_refused(reentrant):
    net = sparsify(network())
    x, hidden = torch.randn(2, 1, 8, 8, requires_grad=True), torch.eye(2, dtype=torch.bool).repeat(2, 1, 1)
    with visible(net, hidden):
        y = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match=r"recompute through medssl\.nn\.sparse\.checkpoint"):
        y.sum().backward()
    with visible(net, None):
        y = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=reentrant)
    y.sum().backward()  # dense: any road will do


# --- sparsify


def test_sparsify_keeps_what_a_module_is():
    net = network()
    before, parts = net.state_dict(), list(net.modules())
    assert sparsify(net) is net
    assert list(net.modules()) == parts
    assert isinstance(net[0][0], nn.Conv2d)
    network().load_state_dict(net.state_dict(), strict=True)
    net.load_state_dict(before, strict=True)
    context = net[0][0].visibility
    sparsify(nn.Sequential(net, nn.Conv2d(8, 8, 1)))
    assert net[0][0].visibility is not context
    assert net[0][0].visibility is net[1][0].visibility


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.MultiheadAttention(4, 2), r"1\.q \(MultiheadAttention: has parameters or buffers\)"),
        (nn.ConvTranspose2d(4, 4, 2), r"1\.q \(ConvTranspose2d: has parameters"),
        (Scale(), r"1\.q \(Scale: has parameters"),
        (nn.Upsample(2), r"1\.q \(Upsample: is not known to keep zeros\)"),
        (nn.MaxPool2d(2, return_indices=True), r"1\.q \(MaxPool2d: returns indices\)"),
        (nn.InstanceNorm2d(4, track_running_stats=True), r"1\.q \(InstanceNorm2d: tracks running statistics\)"),
        (nn.LayerNorm((4, 8, 8)), r"1\.q \(LayerNorm: normalizes over positions\)"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), r"1\.q \(ParametrizedConv2d"),
    ],
)
def test_a_layer_without_twin_is_refused_by_name(layer, words):
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ModuleDict({"q": layer}))
    with pytest.raises(UserError, match=words):
        sparsify(net)
    assert type(net[0]) is nn.Conv2d


def test_own_twins():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), Scale(), Scale(), Scale(), Scale())
    with pytest.raises(UserError, match=r"1 \(Scale: .*\), 2 .*, 3 .* and 1 more: .* sparsify\(twins="):
        sparsify(net)
    sparsify(net, twins={Scale: Scale})
    assert isinstance(net[0], Masked)


def test_every_twin_is_its_layer():
    for kind, twin in TWINS.items():
        assert issubclass(twin, kind)
        assert issubclass(twin, Masked)
    assert not NEUTRAL & set(TWINS)


CONTAINERS = {nn.Sequential, nn.ModuleList, nn.ModuleDict}


@pytest.mark.parametrize("kind", sorted(NEUTRAL - CONTAINERS, key=str))
def test_neutral_layers_keep_zeros(kind):
    shape = {nn.Dropout1d: (2, 3, 4), nn.Dropout3d: (2, 3, 4, 4, 4)}.get(kind, (2, 3, 4, 4))
    assert (kind()(torch.zeros(shape)) == 0).all()
