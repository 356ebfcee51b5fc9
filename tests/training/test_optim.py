from __future__ import annotations

import copy
import math

import pytest
import torch
import yaml
from commands.toys import ToyEncoder
from torch import nn

from medssl.encoders.resenc import ResEnc
from medssl.encoders.timm2d import Timm2d
from medssl.io.configurations import config_folder
from medssl.training.optim import (
    FineTuning,
    Optimization,
    clip_gradients,
    decays,
    drop_unmoved,
    make_optimizer,
    set_rates,
)
from medssl.types import UserError


def test_norms_biases_and_tokens_do_not_decay():
    module = ToyEncoder()
    module.mask_token = nn.Parameter(torch.zeros(1, 8))
    module.head = nn.Linear(4, 4)
    kept = {name for name, parameter in module.named_parameters() if not decays(name, parameter)}
    assert kept == {
        "mask_token",
        "head.bias",
        *(f"{part}.1.{end}" for part in ("first", "second") for end in ("weight", "bias")),
    }


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars", "sgd"])
def test_each_trained_parameter_is_in_one_group(name):
    module = ToyEncoder()
    module.first[0].weight.requires_grad_(False)
    optimizer = make_optimizer(module, Optimization(name=name))
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars", "sgd"])
def test_state_survives_a_round_trip_without_unpickling(name, tmp_path):
    module = ToyEncoder()
    optimizer = make_optimizer(module, Optimization(name=name))
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = make_optimizer(module, Optimization(name=name))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    moment = "exp_avg" if name in ("adamw", "lamb") else "momentum_buffer"
    for parameter in module.parameters():
        assert torch.equal(again.state[parameter][moment], optimizer.state[parameter][moment])


def test_rates_follow_the_progress():
    settings = Optimization(learning_rate=2.0, warmup=0.2, weight_decay=(0.04, 0.2), final_share=0.001)
    optimizer = make_optimizer(ToyEncoder(), settings)
    rates = {p: set_rates(optimizer, settings, p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)}
    expected = {0.0: 0.01, 0.1: 1.005, 0.2: 2.0, 0.6: 1.001, 1.0: 0.002}
    assert {p: rate for p, (rate, _) in rates.items()} == pytest.approx(expected)
    assert rates[1.0][1] == pytest.approx(0.2)
    assert rates[0.1][1] == pytest.approx(0.04 + 0.16 * (0.5 - 0.5 * math.cos(0.1 * math.pi)))
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.0])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.002, 0.002])


@pytest.mark.parametrize("name", ["nnunet_warmup", "nnunet_sawtooth"])
def test_the_schedules_of_nnunet_for_pretrained_weights(name):
    """A tenth of warm-up, for the sawtooth after a tenth of the head alone; then a polynomial of power 0.9."""
    preset = yaml.safe_load((config_folder() / "optimizers" / f"{name}.yaml").read_text())
    preset["weight_decay"] = tuple(preset["weight_decay"])
    settings = FineTuning(**preset)
    assert (settings.name, settings.momentum, settings.keep, settings.clip) == ("sgd", 0.99, "final", 12.0)
    first = 0.1 if name == "nnunet_sawtooth" else 0.0
    expected = {first + 0.05: 0.5e-3, first + 0.1: 1e-3, 1.0: 0.0}
    left = 0.5 * (1 - first - 0.1)
    expected[1 - left] = 1e-3 * 0.5**0.9
    for progress, rate in expected.items():
        for encoder in (False, True):
            assert settings.rate(progress, encoder=encoder) == pytest.approx(rate, rel=0.01, abs=1e-6), progress
    if first:
        assert settings.rate(0.05, encoder=True) == 0.0
        assert settings.rate(0.05, encoder=False) == pytest.approx(0.5e-3, rel=0.01)


def test_rates_of_an_encoder_and_its_head():
    settings = FineTuning(learning_rate=2.0, warmup=0.5, head_first=0.2, encoder_rate=0.1, final_share=0.0)
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    optimizer = make_optimizer(module, settings)
    found = {}
    for progress in (0.0, 0.1, 0.2, 0.4, 0.6, 0.8):
        set_rates(optimizer, settings, progress)
        found[progress] = [
            {group["lr"] for group in optimizer.param_groups if group["encoder"] is e} for e in (False, True)
        ]
    head = {progress: rates[0].pop() for progress, rates in found.items()}
    encoder = {progress: rates[1].pop() for progress, rates in found.items()}
    # alone up to the peak within 20 % of the steps; then up within half of the rest, and down a cosine
    assert head == pytest.approx({0.0: 0.01, 0.1: 1.005, 0.2: 0.01, 0.4: 1.005, 0.6: 2.0, 0.8: 1.0})
    assert encoder == pytest.approx({0.0: 0, 0.1: 0, 0.2: 0.001, 0.4: 0.1005, 0.6: 0.2, 0.8: 0.1})


def test_layers_near_the_image_move_less():
    settings = FineTuning(learning_rate=1.0, warmup=0.0, layer_decay=0.5)
    encoder = ResEnc(ndim=2, channels=(4, 8), strides=((1, 1), (2, 2)), blocks=(1, 2))
    module = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(2, 2)})
    optimizer = make_optimizer(module, settings)
    set_rates(optimizer, settings, 0.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(1 for _ in module.parameters())
    found = {name: rates[id(p)] for name, p in module.named_parameters()}
    expected = {"encoder.encoder.stem.": 1 / 16, "encoder.encoder.stages.0.blocks.0.": 1 / 8}
    expected |= {"encoder.encoder.stages.1.blocks.0.": 1 / 4, "encoder.encoder.stages.1.blocks.1.": 1 / 2, "head.": 1}
    for start, rate in expected.items():
        assert {value for name, value in found.items() if name.startswith(start)} == {rate}
    assert all(any(name.startswith(start) for start in expected) for name in found)


def test_layers_start_to_move_one_after_the_other_the_last_first():
    settings = FineTuning(learning_rate=1.0, warmup=0.0, head_first=0.2, unfreeze=0.6, schedule="constant_then_decay")
    encoder = ResEnc(ndim=2, channels=(4, 8), strides=((1, 1), (2, 2)), blocks=(1, 2))
    module = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(2, 2)})
    optimizer = make_optimizer(module, settings)
    layers = {"encoder.encoder.stem.": 0.8, "encoder.encoder.stages.0.blocks.0.": 0.6}
    layers |= {"encoder.encoder.stages.1.blocks.0.": 0.4, "encoder.encoder.stages.1.blocks.1.": 0.2, "head.": 0.0}
    seen = set()
    for progress in (0.0, 0.19, 0.2, 0.39, 0.4, 0.59, 0.6, 0.79, 0.8, 0.99):
        set_rates(optimizer, settings, progress)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in module.named_parameters():
            start = next(start for prefix, start in layers.items() if name.startswith(prefix))
            assert (rates[id(parameter)] > 0) == (progress >= start - 1e-9), (progress, name)
            seen.add((start, rates[id(parameter)] > 0))
    assert len(seen) == 9  # all but a head that does not move
    with pytest.raises(
        UserError, match=r"optimizer\.unfreeze: must be from 0 to what head_first leaves of 1 \(got 0.9\)"
    ):
        FineTuning(head_first=0.2, unfreeze=0.9)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_layers_of_timm_rise_from_the_image(name):
    encoder = Timm2d(name, in_channels=1)
    layers = encoder.layers()
    assert layers.keys() == {key for key, _ in encoder.named_parameters()}
    assert sorted(set(layers.values())) == list(range(max(layers.values()) + 1))
    order = list(layers.values())
    assert order[0] == 0
    assert max(layers.values()) >= 8


def test_a_frozen_encoder_has_no_rate_and_the_head_its_usual_one():
    frozen, usual = FineTuning(head_first=1.0), Optimization()
    for progress in (0.0, 0.02, 0.5, 1.0):
        assert frozen.rate(progress, encoder=True) == 0
        assert frozen.rate(progress, encoder=False) == usual.rate(progress, encoder=False)


def test_what_does_not_move_has_neither_gradient_nor_moments():
    settings = FineTuning(head_first=0.5)
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    optimizer = make_optimizer(module, settings)
    for progress in (0.0, 0.5):
        module["head"](module["encoder"](torch.ones(1, 2))).sum().backward()
        set_rates(optimizer, settings, progress)
        drop_unmoved(optimizer)
        optimizer.step()
        assert all((p.grad is None) == (progress == 0) for p in module["encoder"].parameters())
        assert all((p in optimizer.state) == (progress == 0.5) for p in module["encoder"].parameters())
        assert all(p in optimizer.state for p in module["head"].parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"head_first": 1.5},
            r"optimizer\.head_first: must be from 0 to 1 \(1 leaves the encoder as it is\) \(got 1\.5\)",
        ),
        ({"encoder_rate": 0.0}, r"optimizer\.encoder_rate: must be above 0 .*head_first 1 leaves .* \(got 0\.0\)"),
        ({"layer_decay": 1.5}, r"optimizer\.layer_decay: must be above 0, 1 at most \(got 1\.5\)"),
        ({"average": 1.0}, r"optimizer\.average: must be from 0 to below 1 \(got 1\.0\)"),
        ({"warmup": 2.0}, r"optimizer\.warmup: must be from 0 to 1 \(got 2\.0\)"),
    ],
)
def test_rates_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        FineTuning(**arguments)


def steps_of(settings, reference, *, count=4):
    """Weights after some steps of our optimizer, and of ``reference`` (a function of a module's two groups)."""
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    other = copy.deepcopy(module)
    optimizers = make_optimizer(module, settings), reference(other)
    inputs = torch.randn(count, 7, 5)
    for x in inputs:
        set_rates(optimizers[0], settings, 0.0)
        for network, optimizer in zip((module, other), optimizers, strict=True):
            optimizer.zero_grad()
            network(x).pow(2).mean().backward()
            optimizer.step()
    return module, other


def groups_of(module, decay):
    return [{"params": [module.weight], "weight_decay": decay}, {"params": [module.bias], "weight_decay": 0.0}]


@pytest.mark.parametrize(("given", "momentum"), [(None, 0.9), (0.99, 0.99), (0.0, 0.0)])
def test_sgd_is_that_of_torch_with_nesterov_momentum(given, momentum):
    settings = Optimization(name="sgd", learning_rate=0.05, warmup=0.0, weight_decay=(0.1, 0.1), momentum=given)

    def reference(module):
        nesterov = momentum > 0
        return torch.optim.SGD(groups_of(module, 0.1), lr=0.05, momentum=momentum, nesterov=nesterov)

    for ours, theirs in zip(*(m.parameters() for m in steps_of(settings, reference)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_is_that_of_timm_with_the_norms_of_weights_alone(decay):
    """Against You et al. 2017 by hand: weights move by 0.001 |w| / |g| of the rate, biases by the rate itself."""
    settings = Optimization(name="lars", learning_rate=2.0, warmup=0.0, weight_decay=(decay, decay))

    class ByHand:
        def __init__(self, module):
            self.module, self.buffers = module, {}

        def zero_grad(self):
            self.module.zero_grad()

        @torch.no_grad()
        def step(self):
            for name, p in self.module.named_parameters():
                gradient = p.grad.clone()
                if p.ndim > 1:
                    trust = 0.001 * p.norm() / (gradient.norm() + decay * p.norm() + 1e-8)
                    gradient = (gradient + decay * p) * trust
                self.buffers[name] = self.buffers.get(name, 0) * 0.9 + gradient
                p -= 2.0 * self.buffers[name]

    for ours, theirs in zip(*(m.parameters() for m in steps_of(settings, ByHand)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_lamb_is_that_of_timm():
    from timm.optim import Lamb

    settings = Optimization(name="lamb", learning_rate=0.01, warmup=0.0, weight_decay=(0.1, 0.1))

    def reference(module):
        return Lamb(groups_of(module, 0.1), lr=0.01, betas=(0.9, 0.95), max_grad_norm=None)

    for ours, theirs in zip(*(m.parameters() for m in steps_of(settings, reference)), strict=True):
        assert torch.equal(ours, theirs)


def test_clipping_of_each_parameter_and_of_all_together():
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4]), torch.tensor([6.0, 8.0])]

    def clipped(**settings):
        parameters = [nn.Parameter(torch.zeros(2)) for _ in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        norm = clip_gradients(parameters, Optimization(**settings))
        assert norm == pytest.approx(math.sqrt(25 + 0.25 + 100))  # before clipping
        return [parameter.grad.norm().item() for parameter in parameters]

    assert clipped(clip=1.0, clip_per="parameter") == pytest.approx([1.0, 0.5, 1.0], rel=1e-5)
    total = math.sqrt(125.25)
    assert clipped(clip=1.0, clip_per="all") == pytest.approx([5 / total, 0.5 / total, 10 / total], rel=1e-5)
    assert clipped(clip=None, clip_per="parameter") == pytest.approx([5.0, 0.5, 10.0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Optimization(), "adamw with betas 0.9, 0.95"),
        (Optimization(name="sgd"), "sgd with Nesterov momentum 0.9"),
        (Optimization(name="lars", momentum=0.95), "lars with momentum 0.95"),
    ],
)
def test_an_optimizer_is_named_with_the_numbers_that_it_uses(settings, said):
    assert settings.in_words() == said
