"""Fine-tuning: best weights by validation, the twin from scratch, killed and resumed, and one line for bad input."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from commands import labeled
from data.make_scans import write_nifti

from medssl import cli
from medssl.commands import finetune
from medssl.data.store.store import Store
from medssl.encoders.resenc import ResEnc
from medssl.encoders.timm2d import Timm2d
from medssl.encoders.weights import load_card, save_encoder
from medssl.heads.segmentation import UNet
from medssl.heads.weights import load_network
from medssl.io.older_keys import with_present_options
from medssl.training.checkpoint import differing
from medssl.training.initial_weights import InitialWeights, read_initial_weights, weights_in_words
from medssl.training.supervised import StoredScan
from medssl.types import Card, Imported, LabelSchema, Preprocess, UserError
from medssl.types.provenance import Provenance

TESTS = Path(__file__).parent.parent
ENCODER = {"in_channels": 1, "ndim": 3, "channels": (4, 8), "strides": ((1, 1, 1), (2, 2, 2)), "blocks": (1, 1)}
TIMED = {"seconds", "waiting", "samples_per_second"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Labeled volumes and pictures, their stores, and encoders for both with cards."""
    folder = tmp_path_factory.mktemp("finetune")
    for name, write in (("volumes", labeled.volumes), ("pictures", labeled.pictures)):
        below = folder / name
        write(below / "scans")
        file = labeled.indexed(below / "scans", below / "index.sqlite", key=folder / "key")
        labeled.stored(file, below / "store", Preprocess(foreground_crop=False, orientation=None))
    encoder_for(folder / "volumes")
    encoder_for(folder / "pictures", ndim=2, strides=((1, 1), (2, 2)))
    return folder


def encoder_for(below: Path, *, name: str = "pretrained", subjects=None, **changes) -> Path:
    store = Store.open(below / "store")
    arguments = ENCODER | changes
    torch.manual_seed(5)
    seen = store.subjects_of_split("train") if subjects is None else subjects
    described = Imported("medssl.encoders.resenc.ResEnc", arguments)
    card = Card(described, store.preprocess, None, "digest", Provenance(seen), 7, {})
    save_encoder(below / name, ResEnc(**arguments), card)
    return below / name


@pytest.fixture
def call(place, tmp_path, capsys):
    """Calls the verb with short runs; gives the exit code and everything it said."""

    def run(*words: object, data: str = "volumes", folder: Path | None = None):
        mask, threads = os.umask(0o077), torch.get_num_threads()
        recipe, size = ("segment_3d_small", "[16,16,8]") if data == "volumes" else ("classify_2d_small", "[32,32]")
        given = {
            "--config": recipe, "--store": place / data / "store", "--run": folder or tmp_path / "run",
            "--pretrained": place / data / "pretrained", "--data.view.size": size, "--training.steps": 2,
            "--data.workers": 0, "--training.output.validate_every": 2, "--training.output.log_every": 1,
        }  # fmt: skip
        rest = list(map(str, words))
        named = {word.partition("=")[0] for word in rest}
        given = {key: value for key, value in given.items() if key not in named or key == "--config"}
        try:
            code = cli.main(["finetune", *(f"{key}={value}" for key, value in given.items()), *rest])
        finally:
            os.umask(mask)
            torch.set_num_threads(threads)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_the_best_weights_are_the_ones_written(call, place, tmp_path):
    code, said = call(
        "--labels=4", "--training.steps=60", "--training.output.validate_every=10", "--optimizer.learning_rate=0.01",
        "--data.workers=1", "--optimizer.keep=best", "--optimizer.average=0",
    )  # fmt: skip
    assert code == 0, said
    assert "weights of step 7: 100% of the keys filled" in said
    assert "4 labeled subjects (4 scans) to learn from; 2 (2) to validate with" in said
    dice = {row["step"]: row["validation_dice"] for row in rows(tmp_path / "run") if "validation_dice" in row}
    assert list(dice) == [10, 20, 30, 40, 50, 60]
    top = max(dice, key=dice.get)
    assert dice[top] > 0.6
    assert f"validation dice {dice[top]:.4f} at step {top}, whose weights are written" in said
    network, card = load_network(tmp_path / "run")
    best = torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)
    assert card.step == best["progress"]["step"] == top
    assert best["progress"]["best"] == pytest.approx(1 - dice[top])
    for name, value in network.state_dict().items():
        assert torch.equal(value, best["objective"][name]), name


def test_the_card_says_what_the_network_is(call, place, tmp_path):
    code, said = call("--labels=2", "--data.validation_labels=1")
    assert code == 0, said
    card, former = load_card(tmp_path / "run"), load_card(place / "volumes/pretrained")
    assert card.encoder == former.encoder
    assert card.subjects == former.subjects
    assert card.preprocess == former.preprocess
    assert card.tuned is not None
    assert card.tuned.schema == LabelSchema("mask", ((0, "background"), (1, "left"), (4, "right")))
    assert card.tuned.window == (16, 16, 8)
    store = Store.open(place / "volumes/store")
    assert set(card.tuned.subjects) < {*store.subjects_of_split("train"), *store.subjects_of_split("val")}
    assert len(card.tuned.subjects) == 3
    text = "".join(
        path.read_text() for path in (tmp_path / "run").glob("*.*") if path.suffix in {".yaml", ".jsonl", ".json"}
    )
    assert str(place) not in text
    assert str(tmp_path) not in text


def test_the_twin_has_the_same_recipe_and_head_but_random_weights(place):
    with_weights = read_initial_weights(place / "volumes/pretrained", None, from_scratch=False)
    twin = read_initial_weights(place / "volumes/pretrained", None, from_scratch=True)
    assert (twin.encoder, twin.digest, twin.provenance) == (with_weights.encoder, "random", Provenance())
    schema = LabelSchema("mask", ((0, "background"), (1, "left")))
    networks = [finetune.build(initial, UNet, schema, 3)[0] for initial in (with_weights, twin, twin)]
    states = [network.state_dict() for network in networks]
    heads = [name for name in states[0] if name.startswith("head.")]
    assert heads
    assert all(torch.equal(states[0][name], states[1][name]) for name in heads)
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[0])
    stem = next(name for name, value in states[0].items() if value.ndim == 5)
    assert not torch.equal(states[0][stem], states[1][stem])


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "encoder.safetensors")


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_frozen_encoder_stays_bit_for_bit_as_it_was(call, place, tmp_path, norm):
    start = encoder_for(place / "volumes", name=f"frozen_{norm}", norm=norm)
    code, said = call("--pretrained", start, "--optimizer=frozen", "--training.steps=3", "--head=voxel_linear")
    assert code == 0, said
    before, after = weights_of(start), weights_of(tmp_path / "run")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "(0 M encoder)" in said  # nothing of it is trained


def test_the_head_moves_first_then_the_encoder_too(call, place, tmp_path):
    start = encoder_for(place / "volumes", name="sawtooth", norm="batch")
    words = ("--pretrained", start, "--optimizer=sawtooth", "--optimizer.head_first=0.5", "--training.steps=4")
    code, said = call(*words, "--training.output.keep_every=1", "--training.output.checkpoint_every=1")
    assert code == 0, said
    before = {f"encoder.{key}": value for key, value in weights_of(start).items()}
    kept = sorted((tmp_path / "run/checkpoints").glob("step*.pt"))
    states = [torch.load(path, weights_only=True)["objective"] for path in kept]
    still = [[torch.equal(before[key], state[key]) for key in before] for state in states]
    assert [all(row) for row in still] == [True, True, False, False]
    head = [key for key in states[0] if key.startswith("head.") and key.endswith("weight")]
    assert not any(torch.equal(states[0][key], states[1][key]) for key in head)


@pytest.mark.parametrize("keep", ["average", "best"])
def test_averaged_weights_are_judged_and_written(call, place, tmp_path, keep):
    """Reference: the average followed in NumPy over the checkpoints of every step."""
    words = ("--optimizer.average=0.5", "--training.steps=4", "--training.output.keep_every=1")
    code, said = call(*words, "--training.output.validate_every=4", f"--optimizer.keep={keep}")
    assert code == 0, said
    assert re.search(r"validation dice 0\.\d+ at step 4(; its averaged weights are|, whose weights are) written", said)
    kept = sorted((tmp_path / "run/checkpoints").glob("step*.pt"))
    states = [torch.load(path, weights_only=True)["objective"] for path in kept]
    written = weights_of(tmp_path / "run")
    expected = {key: value.double() for key, value in weights_of(place / "volumes/pretrained").items()}
    for step, state in enumerate(states):
        share = min(0.5, (1 + step) / (10 + step))
        expected = {k: share * v + (1 - share) * state[f"encoder.{k}"].double() for k, v in expected.items()}
    assert all(torch.allclose(written[key].double(), expected[key], atol=1e-6) for key in written)
    assert not torch.equal(written[key := next(iter(written))], states[-1][f"encoder.{key}"])


@pytest.mark.parametrize("keep", ["final", "average"])
def test_the_last_weights_are_written_however_they_validate(call, tmp_path, keep):
    """A learning rate that grows past all reason: the validation of the last step is not the best."""
    words = ("--training.steps=6", "--training.output.validate_every=1", "--optimizer.learning_rate=1.0")
    more = ("--optimizer.warmup=1.0", "--optimizer.average=0.5", "--training.output.checkpoint_every=2")
    code, said = call(*words, *more, f"--optimizer.keep={keep}")
    assert code == 0, said
    dice = [row["validation_dice"] for row in rows(tmp_path / "run")]
    assert max(dice) > dice[-1], dice
    network, card = load_network(tmp_path / "run")
    last = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert card.step == last["progress"]["step"] == 6
    prefix = "averaged." if keep == "average" else ""
    for name, value in network.state_dict().items():
        assert torch.equal(value, last["objective"][prefix + name]), name
    assert any(key.startswith("averaged.") for key in last["objective"]) == (keep == "average")
    assert f"at step 6; its {'averaged ' if keep == 'average' else ''}weights are written" in said


def test_a_linear_head_starts_from_the_probe_of_the_frozen_encoder(call, place, tmp_path):
    """Reference: scikit-learn's logistic regression on pooled features, at the penalty that was chosen."""
    from sklearn.linear_model import LogisticRegression

    words = ("--optimizer.probe.start=true", "--optimizer.learning_rate=1e-30", "--training.steps=1")
    code, said = call(*words, data="pictures")
    assert code == 0, said
    penalty = float(re.search(r"head fitted to the frozen encoder on (\d+) scans; penalty (\S+)", said)[2])
    network, card = load_network(tmp_path / "run")
    store = Store.open(place / "pictures/store")
    names = [name for _, name in card.tuned.schema.classes]
    numbers = [n for n in range(len(store)) if store.subjects([n])[0] in store.subjects_of_split("train")]
    features, truth = [], []
    for number in numbers:
        scan = StoredScan(store, number, (32, 32), 2)
        assert scan.shape == (32, 32)
        with torch.no_grad():
            features.append(network.encoder(scan.read((0, 0), (32, 32))[None]).pooled[0].double().numpy())
        truth.append(names.index(store.values(number)["class"]))
    x = np.stack(features)
    x = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=1 / (penalty * len(x)), max_iter=100_000, tol=1e-10).fit(x, truth)
    layer = network.head.linear
    found = layer(torch.from_numpy(np.stack(features)).float()).softmax(1).detach().numpy()
    np.testing.assert_allclose(found, reference.predict_proba(x), atol=2e-3)


def test_where_a_start_is_not_possible_the_recipe_trains_without(call, tmp_path):
    code, said = call("--head=attentive", "--head.attention_heads=2", data="pictures")
    assert code == 0, said
    assert "fitted to the frozen encoder" not in said
    assert "floor" not in said
    probe = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["optimizer"]["probe"]
    assert probe == {"start": False, "floor": False}


@pytest.mark.parametrize("keep", ["average", "final", "best"])
def test_the_frozen_encoder_is_written_where_fine_tuning_ends_worse(call, place, tmp_path, keep):
    words = ("--optimizer.probe.start=true", "--optimizer.probe.floor=true", "--optimizer.learning_rate=3.0")
    more = ("--optimizer.warmup=0.0", "--training.steps=4", "--optimizer.average=0.5", f"--optimizer.keep={keep}")
    code, said = call(*words, *more, data="pictures")
    assert code == 0, said
    floor = float(re.search(r"frozen encoder: validation auroc (\S+), the floor of this fine-tuning", said)[1])
    final = [row["validation_auroc"] for row in rows(tmp_path / "run") if "validation_auroc" in row]
    assert final[-1] < floor
    assert f"below {floor:.4f} of the frozen encoder: that network is written" in said
    before, after = weights_of(place / "pictures/pretrained"), weights_of(tmp_path / "run")
    assert all(torch.equal(before[key], after[key]) for key in before)
    # where fine-tuning does not end worse, it is what is written
    code, said = call(*words[:2], "--optimizer.learning_rate=1e-30", *more[1:], data="pictures", folder=tmp_path / "b")
    assert code == 0, said
    assert "of the frozen encoder" not in said.rpartition("steps done")[2]


def test_the_floor_of_a_segmentation_is_the_end_of_head_first(call, place, tmp_path):
    words = ("--optimizer.head_first=0.5", "--optimizer.probe.floor=true", "--training.steps=4", "--optimizer.warmup=0")
    code, said = call(*words, "--training.output.validate_every=4", "--optimizer.encoder_rate=1e4")
    assert code == 0, said
    table = [row["step"] for row in rows(tmp_path / "run") if "validation_dice" in row]
    assert table == [2, 4]  # the floor is validated as well
    assert "frozen encoder: validation dice" in said
    state = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["objective"]
    floor, last = float(state["floor_score"]), rows(tmp_path / "run")[-1]["validation_dice"]
    assert floor == 1 - next(row["validation_dice"] for row in rows(tmp_path / "run") if row["step"] == 2)
    before, after = weights_of(place / "volumes/pretrained"), weights_of(tmp_path / "run")
    assert all(torch.equal(before[key], state[f"floor.encoder.{key}"]) for key in before)
    assert all(torch.equal(before[key], after[key]) for key in before) == (1 - last > floor)


def test_a_run_that_is_older_than_keep_goes_on_with_the_best_step():
    held = {"average": 0.0, "lora": {"rank": 0}}
    stored = with_present_options({"optimizer": dict(held)})
    now = {"optimizer": held | {"keep": "best", "probe": {"start": False, "floor": False}}}
    assert differing(stored, now, []) == ""
    now["optimizer"]["keep"] = "average"
    assert differing(stored, now, []) == "optimizer.keep: best there, average here"


def test_the_batch_dice_of_two_micro_batches_trains_as_one_batch(call, tmp_path):
    """Losses and weights after two steps, in float32."""
    found = []
    for words in (["--training.batch_size=2"], ["--training.batch_size=1", "--training.accumulate=2"]):
        folder = tmp_path / str(len(found))
        code, said = call("--head.batch_dice=true", "--optimizer.clip=null", *words, folder=folder)
        assert code == 0, said
        found.append((weights_of(folder), [row["loss"] for row in rows(folder)]))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    for name, value in found[0][0].items():
        if not name.endswith((".conv.bias", ".all_modules.0.bias")):  # the norm undoes it: Adam on rounding errors
            torch.testing.assert_close(value, found[1][0][name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("data", ["volumes", "pictures"])
def test_samples_are_mixed_where_that_is_asked_for(call, tmp_path, data):
    losses = []
    for mixing in ([], ["--mixing.mixup=0.4", "--mixing.cutmix=1.0"]):
        target = ["--data.target=class"] if data == "pictures" else []
        code, said = call(*target, *mixing, data=data, folder=tmp_path / str(len(losses)))
        assert code == 0, said
        losses.append([row["loss"] for row in rows(tmp_path / str(len(losses)))])
    assert losses[0] != losses[1]


def test_a_file_of_weights_reports_every_key(call, place, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(place / "volumes/pretrained/encoder.safetensors")
    dropped = sorted(tensors)[0]
    tensors["extra.weight"] = torch.zeros(3)
    save_file({name: value for name, value in tensors.items() if name != dropped}, tmp_path / "some.safetensors")
    (tmp_path / "encoder.yaml").write_text(
        json.dumps({"class_path": "medssl.encoders.resenc.ResEnc", "init_args": ENCODER})
    )
    code, said = call(f"--pretrained={tmp_path / 'some.safetensors'}", f"--encoder={tmp_path / 'encoder.yaml'}")
    assert code == 0, said
    assert f"missing: {dropped}" in said
    assert "unexpected: extra.weight" in said
    assert (
        "not all subjects that the encoder was pretrained on are known: some of the subjects of split 'test' may"
        in said
    )
    assert load_card(tmp_path / "run").subjects == Provenance(complete=False)


TIMM = Imported("medssl.encoders.timm2d.Timm2d", {"model": "resnet10t", "in_channels": 1, "pretrained": True})


def test_weights_that_an_encoder_brings_are_not_called_random(place):
    initial = read_initial_weights(None, functools.partial(Timm2d, **TIMM.init_args), from_scratch=False)
    assert initial == InitialWeights(TIMM, None, None, "pretrained")
    assert initial.provenance == Provenance(complete=False)
    assert weights_in_words(initial) == "the encoder's own pretrained weights"
    message = "from_scratch, and encoder.pretrained true: the encoder would bring weights; leave one of them out"
    for run in (None, place / "pictures/pretrained"):
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            read_initial_weights(run, functools.partial(Timm2d, **TIMM.init_args), from_scratch=True)


def test_a_key_that_is_gone_says_what_does_its_work(call, tmp_path):
    code, said = call(
        "--encoder=timm_resnet18", "--encoder.pretrained_file=some.pth", "--data.target=class", data="pictures"
    )
    assert (code, said) == (2, (
        "error: unknown key 'encoder.pretrained_file': leave it out; --pretrained FILE loads weights of a file\n"
    ))  # fmt: skip
    older = {"encoder": {"init_args": {"model": "resnet18", "pretrained_file": None}}}
    now = {"encoder": {"init_args": {"model": "resnet18"}}}
    assert differing(older, now, ()) == ""


def test_labels_that_were_seen_are_known_where_the_subjects_of_pretraining_are_not(call, place, tmp_path):
    """A run that was fine-tuned from foreign weights, and is gone on from."""
    assert call("--labels=1", folder=tmp_path / "first")[0] == 0
    card = json.loads((tmp_path / "first/card.json").read_text()) | {"subjects": None}
    (tmp_path / "first/card.json").write_text(json.dumps(card))
    code, said = call(f"--pretrained={tmp_path / 'first'}", "--training.seed=1", folder=tmp_path / "second")
    assert code == 0, said
    assert (
        "not all subjects that the encoder was pretrained on are known: some of the subjects of split 'test' may"
        in said
    )
    assert set(card["tuned"]["subjects"]) <= set(load_card(tmp_path / "second").tuned.subjects)

    card["tuned"]["subjects"] = list(Store.open(place / "volumes/store").subjects_of_split("test"))
    (tmp_path / "first/card.json").write_text(json.dumps(card))
    code, said = call(f"--pretrained={tmp_path / 'first'}", folder=tmp_path / "third")
    assert code == 2
    assert "the encoder was pretrained on 3 of the 3 subjects of split 'test'" in said


def test_classification_is_judged_by_auroc(call, tmp_path):
    code, said = call(
        "--training.steps=40", "--training.output.validate_every=20", "--optimizer.learning_rate=0.01",
        "--optimizer.probe.start=false", "--optimizer.probe.floor=false", data="pictures",
    )  # fmt: skip
    assert code == 0, said
    found = [row["validation_auroc"] for row in rows(tmp_path / "run") if "validation_auroc" in row]
    assert len(found) == 2
    assert max(found) > 0.8
    assert load_card(tmp_path / "run").tuned.schema.classes == ((0, "left"), (1, "none"), (2, "right"))


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(place, tmp_path):
    """Kills while a checkpoint is written, after the row of a step, and after the last row."""
    child = [sys.executable, Path(__file__).with_name("finetune_child.py")]
    done = subprocess.run(
        [*child, place / "volumes/store", place / "volumes/pretrained", tmp_path],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["codes"], result["kills"]) == ([0, -9, -9, -9, 0], 3), done.stdout + done.stderr
    assert result["straight"] == result["broken"]
    a, b = (load_network(tmp_path / run)[0].state_dict() for run in ("straight", "broken"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    tables = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in rows(tmp_path / r)] for r in ("straight", "broken")
    ]
    assert tables[0] == tables[1]
    assert [row["step"] for row in tables[0] if "validation_dice" in row] == [2, 4, 6]


@pytest.mark.ddp
def test_two_processes_equal_one_with_the_whole_batch(place, tmp_path):
    """Weights and validation after three steps; tolerance 1e-5 of float32."""

    def start(processes: int, batch: int):
        together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "--"]
        words = {
            "--config": "segment_3d_small", "--store": place / "volumes/store", "--run": tmp_path / str(processes),
            "--pretrained": place / "volumes/pretrained", "--data.view.size": "[16,16,8]", "--training.steps": 3,
            "--training.batch_size": batch, "--training.output.validate_every": 3, "--data.workers": 0,
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, *(together if processes > 1 else ["-m"]), "medssl", "finetune"]
            + [f"{key}={value}" for key, value in words.items()],
            env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    running = [start(1, 4), start(2, 2)]
    said = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    one, two = (torch.load(tmp_path / run / "checkpoints/last.pt", weights_only=True) for run in ("1", "2"))
    for name, value in one["objective"].items():
        if not name.endswith((".conv.bias", ".all_modules.0.bias")):  # the norm undoes it: Adam on rounding errors
            assert torch.allclose(value, two["objective"][name], atol=1e-5), name
    dice = [rows(tmp_path / run)[-1]["validation_dice"] for run in ("1", "2")]
    assert dice[0] == pytest.approx(dice[1], abs=2e-3)


BAD = [
    ("empty training split", ["--data.train=nowhere"], r"no scan with 3 axes in split 'nowhere'.*6 'train', 2 'val'"),
    ("more subjects than there are", ["--labels=9"], r"labels: there are 6 labeled subjects to choose from \(got 9\)"),
    ("more to validate than there are", ["--data.validation_labels=9"], r"split 'val', which validates.*there are 2"),
    ("one split for both", ["--data.validation=train"], r"--data.validation: must be another split than data.train"),
    ("nothing to average", ["--optimizer.average=0"], r"optimizer\.average 0 averages none.*such as 0\.99"),
    (
        "a probe of another head", ["--optimizer.probe.start=true"],
        r"optimizer\.probe\.start: UNet is no linear layer .*expected the head linear .*optimizer\.head_first trains",
    ),
    (
        "a floor of nothing", ["--optimizer.probe.floor=true"],
        r"optimizer\.probe\.floor: nothing is trained on the frozen encoder .*head_first above 0",
    ),
    (
        "deep supervision of one scale", ["--head.deep_supervision=true"],
        r"head\.deep_supervision: the decoder has too few steps: .* one scale is left .*expected a decoder of 3 steps",
    ),
    ("batch Dice of classes", ["--head=linear", "--head.batch_dice=true"], r"unknown key 'head\.batch_dice'"),
    ("a seed below zero", ["--training.seed=-1"], r"training\.seed: must be at least 0 \(got -1\)"),
    ("a seed of labels below zero", ["--data.label_seed=-2"], r"data\.label_seed: must be at least 0 \(got -2\)"),
    ("no such value", ["--data.target=grade"], r"has a value 'grade'$"),
    ("head of another task", ["--head=linear"], r"data\.target: the head is for classification \(got 'mask'\)"),
    ("another dimension", ["--data.view.size=[16,16]"], r"takes 3D, data.view.size \[16, 16\] has 2 axes"),
    ("size beside the stride", ["--data.view.size=[16,15,8]"], r"15 is not a multiple of .* stride 2; 14 and 16"),
    ("nothing to start from", ["--pretrained=null"], r"nothing to start from: give pretrained, or an encoder"),
    ("no such run", ["--pretrained=nowhere"], r"pretrained: there is no such folder or file \(got 'nowhere'\)"),
    ("unknown word to allow", ["--allow=all"], r"--allow: the value has the wrong type .*one of seen, channels"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_one_line(call, words, message):
    code, said = call(*words)
    assert code == 2
    assert re.search(message, said), said
    assert said.count("\n") == 1
    assert said.startswith("error: ")


def test_a_store_that_was_never_filled(call, place, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(place / "volumes/store", bare)
    (bare / "checksums.json").unlink()
    with closing(sqlite3.connect(bare / "records.sqlite")) as table:
        table.execute("DELETE FROM scans")
        table.commit()
    code, said = call(f"--store={bare}")
    assert code == 2
    assert said == f"error: {bare} holds no scan: cache the index again, which lists what it skips\n"


def test_one_sample_cannot_be_mixed(call):
    code, said = call("--mixing.mixup=0.4", "--training.batch_size=1")
    assert code == 2
    assert "mixing takes samples of one micro-batch: set training.batch_size to 2 or more" in said


def test_crops_around_labels_need_masks(call):
    code, said = call("--data.target=class", "--data.sampling.labeled=0.5", data="pictures")
    assert code == 2
    assert "error: data.sampling.labeled is 0.5, but no masks are read here" in said


def test_test_subjects_that_pretraining_saw_are_counted_and_refused(call, place):
    store = Store.open(place / "volumes/store")
    test = store.subjects_of_split("test")
    seen = encoder_for(place / "volumes", name="saw", subjects=(*store.subjects_of_split("train"), *test[:2]))
    code, said = call(f"--pretrained={seen}")
    assert code == 2
    assert re.search(r"the encoder was pretrained on 2 of the 3 subjects of split 'test'.*allow: seen", said)
    code, said = call(f"--pretrained={seen}", "--allow=seen")
    assert code == 0, said
    assert "the encoder was pretrained on 2 of the 3 subjects of split 'test' (allowed)" in said
    code, said = call(f"--pretrained={seen}", "--from-scratch", f"--run={seen}-twin")
    assert code == 0, said  # random weights have seen nobody


def test_a_test_subject_among_those_to_learn_from(place, call, tmp_path):
    """Splits by folder or column go by scan: the same subject can be in two of them."""
    scans = labeled.volumes(tmp_path / "scans")
    for part in ("images", "labels"):
        (scans / part / "p09.nii.gz").rename(scans / part / "p01-again.nii.gz")
    labeled.table(tmp_path / "splits.csv", [f"p{n:02d}.nii.gz" if n != 9 else "p01-again.nii.gz" for n in range(11)])
    file = labeled.indexed(scans, tmp_path / "index.sqlite", key=place / "key")
    store = labeled.stored(file, tmp_path / "store", Preprocess(foreground_crop=False, orientation=None))
    code, said = call(f"--store={store}")
    assert code == 2
    assert re.search(r"1 of the 6 subjects to learn from are in split 'test' too: give each subject one split", said)


def test_another_number_of_channels(call, place, tmp_path):
    three = encoder_for(place / "volumes", name="three", in_channels=3)
    code, said = call(f"--pretrained={three}")
    assert code == 2
    assert re.search(r"the encoder takes 3 channel\(s\), the scans of the store have 1.*set allow to channels", said)
    code, said = call(f"--pretrained={three}", "--allow=channels")
    assert code == 0, said
    assert re.search(r"adapted: encoder\.stem", said)
    assert load_network(tmp_path / "run")[1].encoder.init_args["in_channels"] == 1


def test_another_preprocess(call, place, tmp_path):
    store = labeled.stored(place / "volumes/index.sqlite", tmp_path / "store", Preprocess(spacing_mm=(2.0, 2.0, 2.0)))
    code, said = call(f"--store={store}")
    assert code == 2
    assert re.search(r"made by another Preprocess.*spacing_mm", said)
    code, said = call(f"--store={store}", "--allow=preprocess")
    assert code == 0, said
    assert load_card(tmp_path / "run").preprocess.spacing_mm == (2.0, 2.0, 2.0)


def test_a_run_folder_without_a_card(call, place, tmp_path):
    (tmp_path / "bare").mkdir()
    code, said = call(f"--pretrained={tmp_path / 'bare'}")
    assert code == 2
    assert re.search(r"card\.json: no card could be read .*expected a folder that pretraining wrote", said)


def test_a_label_value_outside_the_class_list(place, tmp_path, capsys):
    """Caught when the store is made: the scan is left out, with the value and the classes."""
    scans = labeled.volumes(tmp_path / "scans", strange=True)
    file = labeled.indexed(scans, tmp_path / "index.sqlite", key=place / "key")
    labeled.stored(file, tmp_path / "store")
    shown = capsys.readouterr()
    assert re.search(
        r"label value not in the class map 0=background, 1=left, 4=right: 9 \(1 voxels\)", shown.out + shown.err
    )
    assert len(Store.open(tmp_path / "store")) == 10


def test_one_class_only(place, tmp_path, call):
    scans = labeled.volumes(tmp_path / "scans")
    for mask in (scans / "labels").iterdir():
        write_nifti(mask, np.zeros(labeled.SHAPE, np.uint8), np.diag([1, 1, 1.5, 1]))
    file = labeled.indexed(scans, tmp_path / "index.sqlite", classes="0=background", key=place / "key")
    store = labeled.stored(file, tmp_path / "store", Preprocess(foreground_crop=False, orientation=None))
    code, said = call(f"--store={store}")
    assert code == 2
    assert "'mask' has one class only (background): there is nothing to distinguish" in said


def test_weights_that_do_not_fit_are_refused(call, place, tmp_path):
    wider = encoder_for(place / "volumes", name="wider", channels=(6, 12))
    (tmp_path / "encoder.yaml").write_text(
        json.dumps({"class_path": "medssl.encoders.resenc.ResEnc", "init_args": ENCODER})
    )
    code, said = call(f"--pretrained={wider}", f"--encoder={tmp_path / 'encoder.yaml'}")
    assert code == 2
    assert re.search(r"too few weights fit ResEnc: .*% of the keys filled.*expected at least 90%", said)
