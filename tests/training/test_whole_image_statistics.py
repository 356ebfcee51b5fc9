"""Batch-norm statistics of whole images against those of recorded activations; what must not change; two processes."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import ddp
import pytest
import torch
import yaml
from commands import toys
from objectives.small import CONFIGS, encoder, from_config, mae, spark
from safetensors.torch import load_file
from torch.nn.modules.batchnorm import _BatchNorm

from medssl import cli
from medssl.data.store.store import Store
from medssl.objectives.mae import UNetMAE
from medssl.probing.online_probe import OnlineProbeListener
from medssl.training.batch_source import batches_of_store
from medssl.training.settings import Training
from medssl.training.whole_image_statistics import WholeImageStatistics
from medssl.types import UserError, ViewSpec

BATCHES = 3
VIEW = ViewSpec((16, 16, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toys.toy_store(tmp_path_factory.mktemp("statistics") / "store")


def unet_mae(norm: str = "batch") -> UNetMAE:
    torch.manual_seed(0)
    return UNetMAE(encoder(3, norm=norm), view=VIEW, cell=(4, 4, 4), norm=norm)


def setting(folder: Path, objective, *, batch_size: int = 4, rank: int = 0, world_size: int = 1):
    """The statistics of an objective on a store, and what they need to know of a loop."""
    store = Store.open(folder)
    source = batches_of_store(store, objective.needs, Training(batch_size=batch_size), workers=0, split=None)
    loop = SimpleNamespace(
        objective=objective, rank=rank, world_size=world_size, device=torch.device("cpu"), autocast=nullcontext,
        progress=SimpleNamespace(step=1),
    )  # fmt: skip
    return WholeImageStatistics(objective, source, BATCHES), loop


def layers_of(objective) -> dict[str, _BatchNorm]:
    return {name: layer for name, layer in objective.named_modules() if isinstance(layer, _BatchNorm)}


def expected(folder: Path, objective) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance of what enters each layer when every layer normalizes by its batch; hooks and plain sums."""
    statistics, loop = setting(folder, objective)
    entered = {name: [] for name in layers_of(objective)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: entered[name].append(inputs[0].detach().double()))
        for name, layer in layers_of(objective).items()
    ]
    crops = iter(statistics.source.crops(0, 0, 1))
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    with torch.no_grad():
        for _ in range(BATCHES):
            image = statistics.source.batch(next(crops), loop.device).views[0].image
            objective.decoder(objective.train().encoder(image).maps)
    objective.load_state_dict(state)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, values in entered.items():
        rows = [x.movedim(1, 0).flatten(1) for x in values]  # one row for each channel
        mean = torch.stack([x.mean(1) for x in rows]).mean(0)
        square = torch.stack([x.var(1) + x.mean(1) ** 2 for x in rows]).mean(0)
        found[name] = mean, square - mean**2
    return found


def test_statistics_are_those_of_whole_images(folder):
    objective = unet_mae()
    wanted = expected(folder, objective)
    statistics, loop = setting(folder, objective)
    assert len(statistics.layers) == len(wanted) > 8  # of encoder and decoder
    with statistics.applied(loop):
        for name, layer in layers_of(objective).items():
            mean, variance = wanted[name]
            torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-4, atol=1e-6)


def test_nothing_of_the_training_changes(folder):
    objective = unet_mae().train()
    objective.encoder.eval()
    objective.decoder.requires_grad_(False)
    for layer in layers_of(objective).values():
        layer.running_mean.normal_()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    modes = {name: module.training for name, module in objective.named_modules()}
    momenta = {name: layer.momentum for name, layer in layers_of(objective).items()}
    statistics, loop = setting(folder, objective)
    inside = {}

    def fail():
        with statistics.applied(loop):
            inside.update((name, layer.running_mean.clone()) for name, layer in layers_of(objective).items())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert all(not torch.equal(value, before[f"{name}.running_mean"]) for name, value in inside.items())
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    assert modes == {name: module.training for name, module in objective.named_modules()}
    assert momenta == {name: layer.momentum for name, layer in layers_of(objective).items()}


def test_a_step_is_measured_once_and_later_steps_on_the_same_samples(folder, monkeypatch):
    objective = unet_mae()
    statistics, loop = setting(folder, objective)
    calls, measure = [], statistics.measure
    monkeypatch.setattr(statistics, "measure", lambda loop: (calls.append(loop.progress.step), measure(loop))[1])
    means = []
    for step in (1, 1, 7):
        loop.progress.step = step
        with statistics.applied(loop):
            means.append([layer.running_mean.clone() for layer in statistics.layers])
    assert calls == [1, 7]
    for first, second, third in zip(*means, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)  # the weights are the same, and so are the samples


@pytest.mark.parametrize(
    ("make", "needed"),
    [
        (unet_mae, True),
        (partial(unet_mae, "instance"), False),
        (partial(spark, 3, norm="batch", encoder_norm="batch"), False),
        (partial(spark, 3, norm="batch", decoder="unet", decoder_width=None), True),
        (partial(mae, 3), False),
    ],
    ids=["UNetMAE", "instance norm", "SparK", "SparK with a U-Net", "MAE"],
)
def test_only_batch_norms_of_filled_images_are_measured(folder, make, needed):
    objective = make()
    statistics, _ = setting(folder, objective)
    assert statistics.needed == needed
    assert bool(statistics.notes) == needed
    assert not WholeImageStatistics(objective, statistics.source, 0).needed


def test_of_spark_with_a_unet_the_decoder_alone_is_measured(folder):
    objective = spark(3, norm="batch", encoder_norm="batch", decoder="unet", decoder_width=None)
    statistics, _ = setting(folder, objective)
    assert set(statistics.layers) == set(layers_of(objective.decoder).values())


@pytest.mark.parametrize("path", sorted((CONFIGS / "objectives").glob("*.yaml")), ids=lambda path: path.stem)
def test_whole_images_reach_every_layer_of_what_is_written(path):
    objective = from_config(str(path), 2)
    modules = objective.filled_modules()
    written = [*objective.exported().values()]
    assert all(any(module is other for other in written) for module in modules)
    reached = []
    layers = [layer for module in modules for layer in layers_of(module).values()]
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: reached.append(module))
    if modules:
        objective.encode_whole(torch.randn(2, 1, *objective.needs.views[0].size))
    assert set(reached) == set(layers)


def measured(folder: Path, rank: int = 0, world_size: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    statistics, loop = setting(folder, unet_mae(), batch_size=4 // world_size, rank=rank, world_size=world_size)
    return statistics.measure(loop)


def in_two(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return measured(folder, torch.distributed.get_rank(), 2)


@pytest.mark.ddp
def test_two_processes_measure_what_one_does(folder):
    for results in ddp.run_two(in_two, folder):
        for (mean, variance), (one_mean, one_variance) in zip(results, measured(folder), strict=True):
            torch.testing.assert_close(mean, one_mean, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(variance, one_variance, rtol=1e-4, atol=1e-6)


# --- a run

RECIPE = {
    "encoder": {
        "class_path": "medssl.encoders.resenc.ResEnc",
        "init_args": {
            "in_channels": 1, "ndim": 3, "channels": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]], "blocks": [1, 1],
            "norm": "batch",
        },
    },
    "objective": {
        "class_path": "medssl.objectives.mae.UNetMAE",
        "init_args": {"view": {"size": [16, 16, 8]}, "cell": [4, 4, 4]},
    },
    "training": {"steps": 4, "batch_size": 4, "output": {"checkpoint_every": 2, "log_every": 1}},
    "data": {"workers": 0},
}  # fmt: skip


def pretrain(folder: Path, run: Path, *words: str) -> int:
    recipe = run.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    return cli.main(["pretrain", "--config", str(recipe), "--store", str(folder), "--run", str(run), *words])


def test_a_run_writes_them_and_says_so(folder, tmp_path, capsys, monkeypatch):
    assert pretrain(folder, tmp_path / "run") == 0
    assert "batch norm is written with statistics of 50 micro-batches of whole images" in capsys.readouterr().out
    card = json.loads((tmp_path / "run/card.json").read_text())
    assert card["objective"]["whole_image_batches"] == 50
    written = load_file(tmp_path / "run/encoder.safetensors")
    trained = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["objective"]
    means = [name for name in written if name.endswith("running_mean")]
    assert len(means) == 12  # some layers have several names
    assert all(not torch.allclose(written[name], trained[f"encoder.{name}"]) for name in means)
    others = [name for name in written if "running" not in name]
    assert all(torch.equal(written[name], trained[f"encoder.{name}"]) for name in others)

    assert pretrain(folder, tmp_path / "left", "--training.output.whole_image_batches=0") == 0
    assert "batch norm is written with statistics of images with hidden cells" in capsys.readouterr().out
    assert json.loads((tmp_path / "left/card.json").read_text())["objective"]["whole_image_batches"] == 0
    left = load_file(tmp_path / "left/encoder.safetensors")
    assert all(torch.equal(left[name], trained[f"encoder.{name}"]) for name in left)  # training is the same

    export = WholeImageStatistics.applied

    def stopped(self, loop):
        if loop.progress.step == 4:
            raise KeyboardInterrupt
        return export(self, loop)

    monkeypatch.setattr(WholeImageStatistics, "applied", stopped)
    assert pretrain(folder, tmp_path / "broken") == 130
    monkeypatch.setattr(WholeImageStatistics, "applied", export)
    assert pretrain(folder, tmp_path / "broken") == 0
    again = load_file(tmp_path / "broken/encoder.safetensors")
    assert all(torch.equal(again[name], written[name]) for name in written)


def test_fewer_than_no_batches_are_refused():
    from medssl.training.settings import Output

    with pytest.raises(UserError, match=r"training\.output\.whole_image_batches: must be at least 0 \(got -1\)"):
        Output(whole_image_batches=-1)


def test_the_online_probe_sees_what_is_written(folder):
    """The probe looks within the block in which the statistics of whole images are set."""
    objective = unet_mae()
    statistics, loop = setting(folder, objective)
    loop.as_exported = lambda: statistics.applied(loop)
    loop.steps = 1
    listener = object.__new__(OnlineProbeListener)
    listener.every, listener.start, looks = 1, {}, []
    listener.measure = lambda objective: looks.append([x.running_mean.clone() for x in statistics.layers]) or {}
    listener.report = lambda step, values: None
    loop.progress.step = 0
    listener.on_start(loop)
    loop.progress.step = 1
    listener.on_step(loop, SimpleNamespace(step=1))
    wanted = [mean for mean, _ in statistics.measure(loop)]
    for seen in looks:
        for one, other in zip(seen, wanted, strict=True):
            torch.testing.assert_close(one, other.float(), rtol=1e-6, atol=1e-7)
    assert len(looks) == 2
