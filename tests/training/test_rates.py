"""Learning rates: scaling with the batch, schedules, shares of layers and names, and what cannot be."""

from __future__ import annotations

import re

import pytest
import torch
from commands.toys import ToyEncoder, ToyObjective
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medssl.encoders.resenc import ResEnc
from medssl.ops.schedules import constant_then_decay, linear_warmup, polynomial
from medssl.training.checkpoint import RunFolder
from medssl.training.distributed import Layout
from medssl.training.hardware import thin_maps
from medssl.training.optim import FineTuning, Optimization, make_optimizer, set_rates
from medssl.training.rates import RateDecay, parameter_shares
from medssl.training.resolved import resolved as resolved_for
from medssl.training.settings import Training
from medssl.types import UserError, ViewSpec

LINE = "constant_then_decay"


def resolved(optimizer, training, folder, size=(8, 8, 8)):
    network = ToyObjective(ToyEncoder(), view=ViewSpec(size))
    return resolved_for(optimizer, training, folder, network, [size])


# --- the rate of a batch


@pytest.mark.parametrize(
    ("per", "batch", "rate"),
    [
        ((2.4e-3, 4096), 4096, 2.4e-3),
        ((2.4e-3, 4096), 1024, 1.2e-3),  # a quarter of the batch, half of the rate
        ((2.4e-3, 4096), 256, 6e-4),
        ((1e-3, 24), 96, 2e-3),
        ((3e-4, 8), 2, 1.5e-4),
    ],
)
def test_the_rate_follows_the_square_root_of_the_batch(per, batch, rate):
    settings = Optimization(learning_rate_per=per).resolved(batch, 100)
    assert settings.learning_rate == pytest.approx(rate, rel=1e-12)
    assert settings.peak == settings.learning_rate
    assert settings.resolved(batch, 100) == settings  # as config.yaml holds it


def test_a_rate_is_taken_as_it_is_and_without_any_it_is_the_former_default():
    assert Optimization(learning_rate=3e-4).resolved(512, 10).learning_rate == 3e-4
    assert Optimization().resolved(512, 10).learning_rate == 1e-3
    assert Optimization().resolved(512, 10).rate_decay.horizon is None


def test_the_batch_of_all_processes_and_micro_batches_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("medssl.training.resume.layout", lambda: Layout(rank=0, world_size=4, local_world_size=4))
    training = Training(batch_size=16, accumulate=2, accelerator="cpu")
    settings, _, notes = resolved(Optimization(learning_rate_per=(1e-3, 32)), training, RunFolder(tmp_path / "run"))
    assert settings.learning_rate == pytest.approx(2e-3)
    assert notes == [
        "adamw with betas 0.9, 0.95, learning rate 0.002 (0.001 for 32 samples, times the square root of 128 / 32)"
    ]


def test_two_rates_that_differ_are_refused_with_both():
    settings = Optimization(learning_rate=1e-3, learning_rate_per=(2.4e-3, 4096))
    message = re.escape(
        "optimizer.learning_rate: optimizer.learning_rate_per 0.0024,4096 gives 0.0006 for 256 samples (got 0.001). "
        "Give one of them and set the other to null."
    )
    with pytest.raises(UserError, match=message):
        settings.resolved(256, 10)
    with pytest.raises(RuntimeError, match="call resolved first"):
        _ = Optimization(learning_rate_per=(2.4e-3, 4096)).peak


@pytest.mark.parametrize(("name", "batch", "said"), [("lamb", 128, "adamw"), ("lars", 1023, "sgd or adamw")])
def test_optimizers_of_large_batches_are_told_of_small_ones(tmp_path, name, batch, said):
    folder = RunFolder(tmp_path / "run")
    notes = resolved(Optimization(name=name), Training(batch_size=batch), folder)[2]
    assert notes[1] == f"{name} is for steps of 1024 samples and more, this one has {batch}: {said} learns faster"
    assert len(resolved(Optimization(name=name), Training(batch_size=1024), folder)[2]) == 1


def test_precision_auto_stays_what_it_was_when_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.setattr("medssl.training.hardware.processor_computes_in_bf16", lambda: False)
    folder, auto = RunFolder(tmp_path / "run"), Training(precision="auto", accelerator="cpu")
    _, training, notes = resolved(Optimization(), auto, folder)
    assert (training.precision, notes[-1]) == ("fp32", "training.precision auto: fp32")
    (folder.checkpoints).mkdir(parents=True)
    (folder.path / "config.yaml").write_text("training: {precision: bf16}\n")
    assert resolved(Optimization(), auto, folder)[1].precision == "fp32"  # no checkpoint: nothing has been trained
    (folder.checkpoints / "last.pt").touch()
    assert resolved(Optimization(), auto, folder)[1].precision == "bf16"


def test_half_precision_whose_gradients_are_wrong_is_refused_on_a_processor(tmp_path, monkeypatch):
    """Maps of 4 voxels, at stride 2, have 2 along the first axis."""
    monkeypatch.setattr("medssl.training.hardware.processor_computes_in_bf16", lambda: True)
    folder, half = RunFolder(tmp_path / "run"), Training(precision="bf16", accelerator="cpu")
    with pytest.raises(
        UserError, match=r"precision: processors compute wrong gradients in bf16 .* Set it to fp32 or auto"
    ):
        resolved(Optimization(), half, folder, size=(4, 8, 8))
    assert resolved(Optimization(), half, folder, size=(8, 4, 4))[1].precision == "bf16"
    auto = Training(precision="auto", accelerator="cpu")
    assert resolved(Optimization(), auto, folder, size=(4, 8, 8))[1].precision == "fp32"
    assert resolved(Optimization(), auto, folder, size=(8, 8, 8))[1].precision == "bf16"


def test_layers_that_do_not_look_at_neighbors_have_right_gradients():
    network = ToyObjective(ToyEncoder(), view=ViewSpec((4, 4, 4)))
    assert thin_maps(network, [(4, 4, 4)])
    assert not thin_maps(network, [(4, 4)])
    for module in (network.encoder.first, network.encoder.second):
        module[0] = nn.Conv3d(1, 4, 1)
    assert not thin_maps(network, [(4, 4, 4)])


# --- schedules


@given(st.floats(0, 1), st.floats(0.1, 3))
def test_polynomial_against_its_formula(progress, power):
    expected = 0.2 + (2.0 - 0.2) * (1 - progress) ** power
    assert polynomial(progress, 2.0, 0.2, power) == pytest.approx(expected, abs=1e-12)
    assert (polynomial(-1, 2.0, 0.2, power), polynomial(2, 2.0, 0.2, power)) == (2.0, 0.2)


def test_polynomial_is_that_of_nnunet_without_a_warm_up():
    settings = Optimization(name="sgd", learning_rate=1e-2, warmup=0.0, final_share=0.0, schedule="polynomial")
    for step in range(0, 1000, 100):
        expected = 1e-2 * (1 - step / 1000) ** 0.9
        assert settings.rate(step / 1000, encoder=True) == pytest.approx(expected, rel=1e-12)


@given(st.floats(0, 1), st.floats(0, 1))
def test_constant_then_a_line(progress, share):
    expected = 3.0 if 1 - progress >= share else 1.0 + 2.0 * (1 - progress) / share
    assert constant_then_decay(progress, 3.0, 1.0, share) == pytest.approx(expected, abs=1e-9)


def test_a_schedule_that_is_wrong_is_refused():
    with pytest.raises(ValueError, match="power must be above 0, got 0"):
        polynomial(0.5, 1.0, 0.0, 0)
    with pytest.raises(ValueError, match=r"share must be a share of the training between 0 and 1, got 1\.5"):
        constant_then_decay(0.5, 1.0, 0.0, 1.5)
    with pytest.raises(ValueError, match=r"warmup must be a share of the training between 0 and 1, got 2\.0"):
        linear_warmup(0.5, 1.0, lambda share: share, warmup=2.0)


@pytest.mark.parametrize("steps", [7, 10, 1000, 99_999])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1 / 3, 0.7, 1.0])
def test_the_rate_falls_from_the_step_that_is_kept(steps, share):
    settings = Optimization(schedule=LINE, warmup=0.0, rate_decay=RateDecay(share=share)).resolved(1, steps)
    start = settings.decay_start(steps)
    assert abs(start - (1 - share) * steps) < 1
    for step in range(max(0, start - 2), start):
        assert settings.rate(step / steps, encoder=True) == pytest.approx(1e-3, rel=1e-9)
    if start + 1 < steps:
        assert settings.rate((start + 1) / steps, encoder=True) < 1e-3


def test_the_head_may_come_first_in_a_run_that_can_be_prolonged():
    """Both lengths have the same rates up to the fall of the shorter."""
    settings = FineTuning(schedule=LINE, head_first=0.2, warmup=0.5, learning_rate=1.0).resolved(1, 20)
    for step in range(16):
        for encoder in (False, True):
            short, long = (settings.rate(step / n, encoder=encoder, early=step / 20) for n in (20, 60))
            assert short == long
    head = [settings.rate(step / 20, encoder=False, early=step / 20) for step in (0, 2, 4, 8, 12, 18)]
    assert head == pytest.approx([0.005, 0.5025, 0.005, 0.5025, 1.0, 0.5005])
    assert settings.rate(0.1, encoder=True, early=0.1) == 0


# --- shares of layers and names


def network() -> nn.ModuleDict:
    encoder = ResEnc(ndim=2, channels=(4, 8), strides=((1, 1), (2, 2)), blocks=(1, 2))
    return nn.ModuleDict({"encoder": encoder, "decoder": nn.Linear(2, 2), "teacher": nn.Linear(2, 2)})


def rates_of(module: nn.Module, settings: Optimization) -> dict[str, float]:
    optimizer = make_optimizer(module, settings)
    set_rates(optimizer, settings, 0.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rates[id(p)] for name, p in module.named_parameters() if p.requires_grad}


def test_layers_move_less_in_pretraining_too():
    found = rates_of(network(), Optimization(learning_rate=1.0, warmup=0.0, layer_decay=0.5))
    assert {v for k, v in found.items() if k.startswith("encoder.encoder.stem.")} == {1 / 16}
    assert {v for k, v in found.items() if k.startswith("decoder.")} == {1.0}


def test_names_have_shares_of_the_rate_and_the_last_pattern_counts():
    rates = {"encoder.*": 0.5, "encoder.encoder.stem.*": 0.1, "*.bias": 2.0}
    found = rates_of(network(), Optimization(learning_rate=1.0, warmup=0.0, rates=rates, layer_decay=0.5))
    assert found["encoder.encoder.stem.convs.0.conv.weight"] == pytest.approx(0.1 / 16)
    assert found["encoder.encoder.stem.convs.0.conv.bias"] == pytest.approx(2 / 16)
    assert found["decoder.weight"] == 1.0
    assert found["decoder.bias"] == 2.0


def test_an_objective_gives_names_a_share():
    objective = ToyObjective(ToyEncoder(), view=ViewSpec((8, 8, 6)))
    assert parameter_shares(objective, Optimization()) == {}
    objective.rate_of = lambda name: 0.25 if name.startswith("head.") else 1.0
    assert parameter_shares(objective, Optimization()) == {"head.weight": 0.25, "head.bias": 0.25}
    shares = parameter_shares(objective, Optimization(rates={"head.weight": 0.5}))
    assert shares == {"head.weight": 0.125, "head.bias": 0.25}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "encoder.encoder.stm.*",
            r"matches no parameter that is trained \(did you mean 'encoder\.encoder\.stem\.\*'\?\)",
        ),
        ("xyz", r"matches no parameter that is trained \(got 'xyz'; expected a pattern .*decoder\.\*, encoder\.\*\)"),
        ("teacher.*", r"matches no parameter that is trained"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern, message):
    module = network()
    module["teacher"].requires_grad_(False)
    with pytest.raises(UserError, match=message) as error:
        make_optimizer(module, Optimization(rates={"decoder.*": 0.5, pattern: 0.1}))
    assert (error.value.key, error.value.got) == ("optimizer.rates", pattern)


# --- what cannot be


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, r"optimizer\.learning_rate: must be above 0 \(got 0\.0\)"),
        ({"learning_rate": -1e-3}, r"optimizer\.learning_rate: must be above 0 \(got -0\.001\)"),
        ({"learning_rate": float("nan")}, r"optimizer\.learning_rate: must be above 0 \(got nan\)"),
        (
            {"learning_rate_per": (0.0, 256)},
            r"learning_rate_per: must be a rate above 0 and a batch of at least 1 \(got",
        ),
        (
            {"learning_rate_per": (1e-3, 0)},
            r"learning_rate_per: must be a rate above 0 and a batch of at least 1 \(got",
        ),
        ({"rates": {"head.*": 0.0}}, r"optimizer\.rates: must be shares above 0 \(got \{'head\.\*': 0\.0\}\)"),
        ({"layer_decay": 0.0}, r"optimizer\.layer_decay: must be above 0, 1 at most \(got 0\.0\)"),
        (
            {"momentum": 0.9},
            r"optimizer\.momentum: adamw has no momentum, but two moments \(got 0\.9\)\. Set optimizer\.",
        ),
        ({"momentum": 0.9, "name": "lamb"}, r"optimizer\.momentum: lamb has no momentum"),
        ({"momentum": 1.0, "name": "sgd"}, r"optimizer\.momentum: must be from 0 to below 1 \(got 1\.0\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Optimization(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"power": 0.0}, r"optimizer\.rate_decay\.power: must be above 0 \(got 0\.0\)"),
        ({"power": -1.0}, r"optimizer\.rate_decay\.power: must be above 0 \(got -1\.0\)"),
        ({"share": 1.5}, r"optimizer\.rate_decay\.share: must be from 0 to 1 \(got 1\.5\)"),
        ({"share": -0.1}, r"optimizer\.rate_decay\.share: must be from 0 to 1 \(got -0\.1\)"),
        ({"horizon": 0}, r"optimizer\.rate_decay\.horizon: must be at least 1 \(got 0\)"),
        (
            {"power": 0.9},
            r'power: is a number of the schedule "polynomial", and optimizer\.schedule is "cosine" \(got 0\.9\)\. Set',
        ),
        ({"share": 0.2}, r'rate_decay\.share: is a number of the schedule "constant_then_decay"'),
        ({"horizon": 9}, r'rate_decay\.horizon: is a number of the schedule "constant_then_decay"'),
    ],
)
def test_numbers_of_a_schedule_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Optimization(rate_decay=RateDecay(**arguments))


def test_a_checkpoint_of_an_older_configuration_is_of_the_same_run():
    """Keys that came later count as what they were before."""
    from medssl.training.checkpoint import differing
    from medssl.training.configuration import as_data

    now = {"optimizer": as_data(Optimization().resolved(4, 10)), "training": as_data(Training())}
    older = {
        "optimizer": {
            "name": "adamw", "learning_rate": 0.001, "final_share": 0.001, "warmup": 0.05,
            "weight_decay": [0.05, 0.05], "betas": [0.9, 0.95], "clip": 5.0,
        },
        "training": {key: value for key, value in now["training"].items() if key != "recompute"},
    }  # fmt: skip
    assert differing(older, now, []) == ""
    changed = {**now, "optimizer": now["optimizer"] | {"schedule": LINE}}
    assert "optimizer.schedule: cosine there, constant_then_decay here" in differing(older, changed, [])


def test_settings_that_are_older_than_the_new_keys_make_the_same_optimizer():
    """The numbers of a step of the former default, from torch alone."""
    module = nn.Linear(3, 2)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(module.state_dict())
    settings = Optimization(learning_rate=0.1, warmup=0.0)
    optimizer = make_optimizer(module, settings)
    groups = [{"params": [twin.weight], "weight_decay": 0.05}, {"params": [twin.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95))
    for _ in range(3):
        set_rates(optimizer, settings, 0.0)
        for one, steps in ((module, optimizer), (twin, reference)):
            steps.zero_grad()
            one(torch.ones(4, 3)).pow(2).mean().backward()
            steps.step()
    assert torch.equal(module.weight, twin.weight)
    assert torch.equal(module.bias, twin.bias)
