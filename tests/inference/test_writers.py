"""What a run leaves behind: logs, pictures, weights with their card, and nothing that names a machine or a path."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import toys
from PIL import Image

from medssl import cli
from medssl.commands.pretrain import pretrain
from medssl.encoders.resenc import ResEnc
from medssl.encoders.weights import load_encoder
from medssl.training.configuration import as_data
from medssl.training.memory import bytes_in_words, count_activations
from medssl.training.metrics_log import is_row_of
from medssl.training.pictures import draw
from medssl.training.progress_display import duration
from medssl.training.settings import Loading, Output, SamplingChanges, Training
from medssl.types import UserError, ViewSpec

RECIPE = Path(__file__).parents[1] / "commands/toys.yaml"


HOST = "machine-nobody-may-name"  # a short true name would occur in packed bytes by chance


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of eight steps on a machine called `HOST`, and where its store lies."""
    folder = tmp_path_factory.mktemp("secret-place")
    store, run = toys.toy_store(folder / "store"), folder / "run"
    mask = os.umask(0o077)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: HOST)
            patch.setattr(platform, "node", lambda: HOST)
            assert cli.main(["pretrain", f"--config={RECIPE}", f"--store={store}", f"--run={run}"]) == 0
    finally:
        os.umask(mask)
    return run, store


def test_the_log_has_one_row_a_step(finished):
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    wanted = {"loss", "loss_smoothed", "hidden", "learning_rate", "weight_decay", "gradient_norm", "seconds", "waiting"}
    assert wanted | {"samples_per_second"} <= set(rows[0])
    smoothed = rows[0]["loss"]
    for row in rows[1:]:
        smoothed = 0.98 * smoothed + 0.02 * row["loss"]
        assert row["loss_smoothed"] == pytest.approx(smoothed)
        assert 0 <= row["waiting"] <= 1


def test_tensorboard_reads_the_same_numbers(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0] / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(r["step"], pytest.approx(r["loss"])) for r in rows]


def test_pictures_of_the_same_samples_over_time(finished):
    assert sorted(path.name for path in (finished[0] / "pictures").iterdir()) == [
        f"step_{step:06d}.png" for step in (1, 4, 8)
    ]


def test_nothing_names_the_machine_or_a_path(finished):
    run, store = finished
    for path in run.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for word in [str(store.parent), "secret-place", HOST]:
            assert word.encode() not in content, path.name
            assert word not in path.relative_to(run).as_posix()
        assert path.stat().st_mode & 0o077 == 0, f"{path.name} is open to others"


def test_the_encoder_comes_back_from_its_card(finished):
    run, _ = finished
    encoder, card = load_encoder(run)
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)["objective"]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[f"encoder.{name}"])
    assert (card.step, card.index_digest, len(card.subjects.known)) == (8, "toy", 5)
    assert card.objective.class_path == "commands.toys.ToyObjective"
    assert {"medssl", "torch"} <= set(card.versions)


def test_the_rest_of_the_objective_is_kept_for_continuing(finished):
    from safetensors.torch import load_file

    rest = load_file(finished[0] / "objective.safetensors")
    assert set(rest) == {"head.weight", "head.bias", "steps_seen"}
    assert int(rest["steps_seen"]) == 8  # after_step: once a step, not once a micro-batch


def test_the_saved_configuration_runs_again_to_the_same_weights(finished, tmp_path):
    run, store = finished
    words = ["pretrain", f"--config={run / 'config.yaml'}", f"--store={store}", f"--run={tmp_path / 'again'}"]
    mask = os.umask(0o077)
    try:
        assert cli.main(words) == 0
    finally:
        os.umask(mask)
    assert (tmp_path / "again/config.yaml").read_text() == (run / "config.yaml").read_text()
    first, second = (
        torch.load(folder / "checkpoints/last.pt", weights_only=True)["objective"]
        for folder in (run, tmp_path / "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_from_python_as_from_the_command_line(finished, tmp_path):
    run, store = finished
    mask = os.umask(0o077)
    try:
        done = pretrain(
            store=store,
            run=tmp_path / "run",
            encoder=functools.partial(toys.ToyEncoder, in_channels=1, width=4, norm="batch", dropout=0.2),
            objective=functools.partial(toys.ToyObjective, view=ViewSpec(size=(8, 8, 6))),
            training=Training(steps=8, batch_size=2, accumulate=2, output=Output(checkpoint_every=2)),
            data=Loading(workers=0),
        )
    finally:
        os.umask(mask)
    assert done.exit_code == 0
    states = [torch.load(f / "checkpoints/last.pt", weights_only=True)["objective"] for f in (run, tmp_path / "run")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["encoder"] == {
        "class_path": "commands.toys.ToyEncoder",
        "init_args": {"in_channels": 1, "width": 4, "norm": "batch", "dropout": 0.2},
    }


def test_what_cannot_be_written_down_is_refused():
    with pytest.raises(UserError, match=r"encoder cannot be written into config\.yaml: give a class"):
        as_data({"encoder": lambda: None})


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_keeps_single_precision_weights(finished, tmp_path, precision):
    run = tmp_path / "run"
    words = [f"--config={RECIPE}", f"--store={finished[1]}", f"--run={run}", f"--training.precision={precision}"]
    mask = os.umask(0o077)
    try:
        assert cli.main(["pretrain", *words, "--training.steps=3"]) == 0
    finally:
        os.umask(mask)
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)["objective"]
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    exact = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] != exact[0]["loss"]
    assert rows[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)


def test_rows_of_lost_steps_and_half_rows_are_not_kept():
    assert is_row_of('{"step": 4}', 4)
    assert not is_row_of('{"step": 5}', 4)
    assert not is_row_of('{"step": 4, "lo', 4)
    assert not is_row_of("", 4)


def test_durations_for_people():
    assert [duration(s) for s in (3.4, 600, 3600 * 3 + 300)] == ["3 s", "10 min", "3 h 05 min"]


def test_activations_are_counted_without_computing():
    encoder = toys.ToyEncoder(width=4)
    by_hand = 3 * 4 * 8 * 8 * 6 + 3 * 4 * 4 * 4 * 3  # conv, norm, dropout; conv, norm, relu
    assert count_activations(encoder, (8, 8, 6)) == by_hand
    assert all(parameter.device.type == "cpu" for parameter in encoder.parameters())


def test_a_view_of_one_position_is_counted_or_refused_before_the_first_step():
    def small(norm):
        return ResEnc(1, ndim=2, channels=(4, 8), strides=((2, 2), (4, 4)), blocks=(1, 1), norm=norm)

    assert count_activations(small("batch"), (8, 8)) > 0  # a batch of views has statistics, one view has none
    with pytest.raises(UserError, match="the coarsest map has one position, too few for instance norm: larger views"):
        count_activations(small("instance"), (8, 8))


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 * 2**30, "3 GiB")])
def test_bytes_for_people(value, text):
    assert bytes_in_words(value) == text


def test_a_drawing_has_a_row_a_sample_and_a_column_a_plane(tmp_path):
    volume = torch.zeros(6, 1, 8, 12, 10)
    volume[..., :6, :] = 1.0
    draw(tmp_path / "a.png", {"input": volume, "masked": volume * math.nan})
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    times = 128 // 12
    assert picture.shape == (14 + 4 * (12 * times + 4), 6 * (12 * times + 4), 3)
    color = torch.rand(1, 3, 200, 160)
    draw(tmp_path / "b.png", {"input": color})
    shown = np.asarray(Image.open(tmp_path / "b.png"))[14:214, :160]
    assert len(np.unique(shown[..., 0] - shown[..., 1])) > 1, "colors stay colors"


def test_the_patients_right_lies_on_the_left(tmp_path):
    """Axis 0 grows to the right; what is bright there shows on the left of the axial and the coronal plane."""
    volume = torch.zeros(1, 1, 8, 8, 8)
    volume[:, :, 4:] = 1.0
    halves = {}
    for mirrored in (False, True):
        draw(tmp_path / "a.png", {"input": volume}, mirrored=mirrored)
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L"), float)[14:142]
        halves[mirrored] = [(pixels[:, x : x + 64].mean(), pixels[:, x + 64 : x + 128].mean()) for x in (0, 132)]
    assert all(left < right for left, right in halves[False])
    assert all(left > right for left, right in halves[True])


def test_thick_slices_are_drawn_as_thick_as_they_are(tmp_path):
    volume = torch.rand(1, 1, 128, 128, 8)
    for name, spacing_mm, thickness in (("true", (1.5, 1.5, 8.0), 8 * 5), ("voxels", None, 8)):
        draw(tmp_path / f"{name}.png", {"input": volume}, spacing_mm)
        second = np.asarray(Image.open(tmp_path / f"{name}.png"))[14:, 132:260]
        assert second.any(axis=(1, 2)).sum() == thickness


class Watching(toys.ToyObjective):
    """Remembers which scans it was shown."""

    seen: tuple[str, ...] = ()

    def forward(self, batch, step):
        Watching.seen += batch.origin.scan_ids
        return super().forward(batch, step)


def test_sampling_of_the_user_goes_before_that_of_the_objective(tmp_path):
    mask = os.umask(0o077)
    try:
        pretrain(
            store=toys.toy_store(tmp_path / "store"),
            run=tmp_path / "run",
            encoder=functools.partial(toys.ToyEncoder, width=4),
            objective=functools.partial(Watching, view=ViewSpec(size=(8, 8, 6))),
            training=Training(steps=4, batch_size=4),
            data=Loading(workers=0, sampling=SamplingChanges(regions_per_scan=4)),
        )
    finally:
        os.umask(mask)
    shown = [set(Watching.seen[first : first + 4]) for first in range(0, 16, 4)]
    assert all(len(scans) == 1 for scans in shown), "four crops of one scan follow each other"
    assert len(set.union(*shown)) > 1
