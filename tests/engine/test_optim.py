from __future__ import annotations

import math

import pytest
import torch
from engine.toys import ToyEncoder
from torch import nn

from medssl.engine.optim import Optimization, decays, make_optimizer, set_rates


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


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_each_trained_parameter_is_in_one_group(name):
    module = ToyEncoder()
    module.first[0].weight.requires_grad_(False)
    optimizer = make_optimizer(module, Optimization(name=name))
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_state_survives_a_round_trip_without_unpickling(name, tmp_path):
    module = ToyEncoder()
    optimizer = make_optimizer(module, Optimization(name=name))
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = make_optimizer(module, Optimization(name=name))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for parameter in module.parameters():
        assert torch.equal(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


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
