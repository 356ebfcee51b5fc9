"""Masked twins against references that look at the visible positions one by one."""

import copy

import pytest
import torch
from nn.masked import spread
from torch import nn

from medssl.nn.sparse import ChannelNorm, sparsify, visible, visible_mean
from medssl.ops.masking import at_resolution
from medssl.types import UserError

CHANNELS = 6
LAYERS = {
    "conv2d": (lambda: nn.Conv2d(6, 6, 3, padding=1), 2),
    "conv2d strided grouped": (lambda: nn.Conv2d(6, 12, 2, 2, groups=2), 2),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, 2, padding=1), 1),
    "conv3d per axis": (lambda: nn.Conv3d(6, 4, (3, 3, 1), (2, 2, 1), padding=(1, 1, 0)), 3),
    "batch norm 1d": (lambda: nn.BatchNorm1d(6), 1),
    "batch norm": (lambda: nn.BatchNorm2d(6), 2),
    "batch norm cumulative": (lambda: nn.BatchNorm3d(6, momentum=None), 3),
    "batch norm plain": (lambda: nn.BatchNorm2d(6, affine=False, track_running_stats=False), 2),
    "instance norm": (lambda: nn.InstanceNorm3d(6, affine=True), 3),
    "instance norm plain": (lambda: nn.InstanceNorm2d(6), 2),
    "group norm": (lambda: nn.GroupNorm(3, 6), 3),
    "group norm plain": (lambda: nn.GroupNorm(2, 6, affine=False), 2),
    "channel norm": (lambda: ChannelNorm(6), 3),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), 2),
    "max pool 3d": (lambda: nn.MaxPool3d(2), 3),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1), 2),
    "average pool without padding": (lambda: nn.AvgPool3d(3, 2, 1, count_include_pad=False), 3),
    "global average": (lambda: nn.AdaptiveAvgPool2d(1), 2),
    "adaptive average": (lambda: nn.AdaptiveAvgPool3d((2, 4, 2)), 3),
    "adaptive maximum": (lambda: nn.AdaptiveMaxPool2d(2), 2),
    "sigmoid": (nn.Sigmoid, 2),
    "softplus": (nn.Softplus, 3),
}


@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_of_one_position_is_refused(training):
    layer = sparsify(nn.InstanceNorm3d(6)).train(training)
    message = "the coarsest map has one position, too few for instance norm: larger views, or norm batch"
    with pytest.raises(UserError, match=message):
        layer(torch.randn(2, 6, 1, 1, 1))
    assert layer(torch.randn(2, 6, 1, 1, 2)).shape == (2, 6, 1, 1, 2)


def test_batch_norm_of_one_position_of_one_crop_is_refused():
    layer = sparsify(nn.BatchNorm2d(6))
    message = "one crop whose coarsest map has one position: set training.batch_size to 2 or more"
    with pytest.raises(UserError, match=message):
        layer(torch.randn(1, 6, 1, 1))
    assert layer(torch.randn(2, 6, 1, 1)).shape == (2, 6, 1, 1)
    assert layer.eval()(torch.randn(1, 6, 1, 1)).shape == (1, 6, 1, 1)


def layer_of(name):
    """A layer whose parameters are neither one nor zero, its twin, an input and a mask of 4 cells a side."""
    torch.manual_seed(0)
    make, ndim = LAYERS[name]
    dense = make()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(3, CHANNELS, *(8, 8, 16)[:ndim]) * 3 - 2
    hidden = torch.rand(3, *(4,) * ndim) < 0.6
    hidden[1] = False  # unequal counts, and one sample of which nothing is seen
    hidden[2] = True
    return dense, sparsify(copy.deepcopy(dense)), x, hidden


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_all_visible_is_dense(name, training):
    dense, twin, x, hidden = layer_of(name)
    for layer in (dense, twin):
        layer.train(training)
    for _ in range(2):
        with visible(twin, torch.zeros_like(hidden)):
            torch.testing.assert_close(twin(x), dense(x), rtol=1e-5, atol=1e-5)
    assert list(dense.state_dict()) == list(twin.state_dict())
    for (key, a), b in zip(dense.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", LAYERS)
def test_outside_a_twin_is_its_dense_layer(name):
    dense, twin, x, _ = layer_of(name)
    assert torch.equal(dense(x), twin(x))
    for a, b in zip(dense.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_leaks_and_zeros_stay_zeros(name, training):
    _, twin, x, hidden = layer_of(name)
    # a twin is fed what another twin left: zeros where hidden, and passes no gradient back there
    x = x.masked_fill(spread(hidden, x), 0).requires_grad_()
    with visible(twin.train(training), hidden):
        y = twin(x)
    assert y.isfinite().all()
    assert (y[spread(hidden, y)] == 0).all()
    assert (y[~spread(hidden, y)] != 0).any()
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    if not isinstance(twin, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.AvgPool2d | nn.AvgPool3d):
        assert (x.grad[spread(hidden, x)] == 0).all()


PER_POSITION = ("conv", "channel norm", "sigmoid", "softplus")
STATISTICS = [name for name in LAYERS if not name.startswith(PER_POSITION)]


@pytest.mark.parametrize("name", STATISTICS)
def test_norms_and_pools_do_not_see_what_is_hidden(name):
    """Their own input may hold anything where it is hidden: no value changes, no gradient goes there."""
    _, twin, x, hidden = layer_of(name)
    results = []
    for value in (0.0, 1e6, torch.nan):
        leaf = x.masked_fill(spread(hidden, x), value).requires_grad_()
        own = copy.deepcopy(twin)
        with visible(own, hidden):
            y = own(leaf)
        y.square().sum().backward()
        assert (leaf.grad[spread(hidden, x)] == 0).all()
        results.append((y.detach(), *own.state_dict().values()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# --- references


@pytest.mark.parametrize("momentum", [1.0, 0.1, None])
def test_batch_norm_by_hand(momentum):
    _, twin, x, hidden = layer_of("batch norm")
    twin.momentum = momentum
    seen = ~at_resolution(hidden, x.shape[2:])
    vectors = x.movedim(1, -1)[seen].double()  # one visible vector a row
    mean, variance = vectors.mean(0), vectors.var(0, unbiased=False)
    for repeat in (1, 2):
        with visible(twin, hidden):
            y = twin(x)
        share = {1.0: 1.0, 0.1: 1 - 0.9**repeat, None: 1.0}[momentum]
        torch.testing.assert_close(twin.running_mean, (share * mean).float())
        torch.testing.assert_close(twin.running_var, (share * vectors.var(0) + 1 - share).float())
    assert twin.num_batches_tracked == 2
    want = (vectors - mean) / (variance + twin.eps).sqrt() * twin.weight + twin.bias
    torch.testing.assert_close(y.movedim(1, -1)[seen], want.float(), rtol=1e-5, atol=1e-5)
    with visible(twin.eval(), hidden):
        y = twin(x)
    want = (vectors - twin.running_mean) / (twin.running_var + twin.eps).sqrt() * twin.weight + twin.bias
    torch.testing.assert_close(y.movedim(1, -1)[seen], want.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["instance norm", "group norm"])
def test_norms_per_sample_by_hand(name):
    _, twin, x, hidden = layer_of(name)
    with visible(twin, hidden):
        y = twin(x)
    groups = twin.num_groups if name == "group norm" else CHANNELS
    for sample in (0, 1):
        mask = ~at_resolution(hidden, x.shape[2:])[sample]
        values = x[sample][:, mask].double().reshape(groups, -1)
        variance = values.var(1, unbiased=False, keepdim=True)
        normal = (values - values.mean(1, keepdim=True)) / (variance + twin.eps).sqrt()
        want = normal.reshape(CHANNELS, -1) * twin.weight[:, None] + twin.bias[:, None]
        torch.testing.assert_close(y[sample][:, mask], want.float(), rtol=1e-5, atol=1e-5)


def test_pools_look_at_visible_positions():
    x = torch.tensor([[[[-1.0, -5.0, 9.0, 9.0], [-3.0, -7.0, 9.0, 9.0]]]])
    hidden = torch.tensor([[[False, True, True, True], [False, False, True, True]]])
    for layer, want in ((nn.MaxPool2d(2), -1.0), (nn.AvgPool2d(2), -11 / 3), (nn.AdaptiveAvgPool2d((1, 2)), -11 / 3)):
        with visible(sparsify(layer), hidden):
            assert layer(x).flatten().tolist() == pytest.approx([want, 0.0])


def test_a_hidden_position_takes_nothing_from_its_neighbors():
    x = torch.ones(1, 1, 1, 4)
    hidden = torch.tensor([[[False, False, True, True]]])
    for layer in (nn.MaxPool2d((1, 3), 1, (0, 1)), nn.AvgPool2d((1, 3), 1, (0, 1), count_include_pad=False)):
        with visible(sparsify(layer), hidden):
            assert layer(x).flatten().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("kind", [nn.Linear, nn.LayerNorm])
def test_channels_last(kind):
    torch.manual_seed(0)
    dense = nn.Linear(6, 4) if kind is nn.Linear else nn.LayerNorm(6)
    nn.init.constant_(dense.bias, 0.5)
    twin = sparsify(copy.deepcopy(dense))
    x, hidden = torch.randn(2, 4, 8, 6), torch.tensor([[[True, False]], [[False, False]]])
    with visible(twin, hidden):
        y, pooled = twin(x), twin(x[:, 0, 0])
    assert (y[0, :, :4] == 0).all()
    assert torch.equal(y[0, :, 4:], dense(x)[0, :, 4:])
    assert torch.equal(y[1], dense(x)[1])
    assert torch.equal(pooled, dense(x[:, 0, 0]))  # pooled features have no positions


def test_visible_mean():
    x = torch.tensor([[[[1.0, 2.0], [3.0, torch.nan]]], [[[1.0, 2.0], [3.0, 4.0]]]]).repeat(1, 2, 1, 1)
    hidden = torch.tensor([[[False, False], [False, True]], [[True, True], [True, True]]])
    assert visible_mean(x, hidden).tolist() == [[2.0, 2.0], [0.0, 0.0]]
    assert visible_mean(x[1:]).tolist() == [[2.5, 2.5]]
    many = torch.full((1, 1, 4096), 0.1, dtype=torch.bfloat16)
    assert visible_mean(many, torch.zeros(1, 4096, dtype=torch.bool)) == many[0, 0, 0]


# --- statistics in hard cases


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d, lambda n: nn.GroupNorm(n, n)])
@pytest.mark.parametrize("seen", [0, 1])
def test_next_to_nothing_visible_gives_finite_zeros(kind, seen):
    layer = sparsify(kind(3))
    hidden = torch.ones(2, 4, 4, dtype=torch.bool)
    hidden[0].view(-1)[:seen] = False
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    before = copy.deepcopy(layer.state_dict())
    with visible(layer, hidden):
        y = layer(x)
    assert (y == 0).all()
    y.sum().backward()
    assert (x.grad == 0).all()
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["batch norm", "instance norm", "group norm"])
def test_statistics_far_from_zero_keep_their_digits(name):
    _, twin, x, hidden = layer_of(name)
    with visible(twin, hidden):
        near, far = twin(x), twin(x + 1000)
    torch.testing.assert_close(near, far, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["batch norm", "instance norm", "group norm"])
def test_half_precision_takes_statistics_in_float32(name, dtype):
    _, twin, x, hidden = layer_of(name)
    x = (x * 100).to(dtype)  # squares overflow float16
    with visible(twin, hidden), torch.autocast("cpu", dtype):
        half = twin(x)
    assert half.dtype == dtype
    with visible(twin, hidden):
        full = twin(x.float())
    torch.testing.assert_close(half.float(), full, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["batch norm", "instance norm", "group norm", "max pool", "average pool"])
def test_gradients(name):
    _, twin, x, hidden = layer_of(name)
    twin, x = twin.double(), x[..., :4].double()[:, :, :4].requires_grad_()

    def masked(x):
        with visible(twin, hidden):
            return twin(x)

    assert torch.autograd.gradcheck(masked, (x,), fast_mode=True)


def test_dense_and_masked_forward_before_one_backward():
    _, twin, x, hidden = layer_of("batch norm")
    dense = twin(x.requires_grad_())
    with visible(twin, hidden):
        masked = twin(x)
    (dense.square().sum() + masked.square().sum()).backward()
    assert x.grad.isfinite().all()
