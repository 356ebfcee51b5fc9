"""Pretraining that goes on from another run or file, in stages, and what fine-tuning takes over from them."""

from __future__ import annotations

import copy
import json
import os
import re

import pytest
import torch
import yaml
from commands import labeled, toys
from commands.toys import ToyEncoder
from safetensors.torch import load_file, save_file

from medssl import cli
from medssl.data.store.store import Store
from medssl.encoders.base import Encoder
from medssl.encoders.weights import load_card
from medssl.objectives.base import Objective
from medssl.objectives.global_local import LocalContrast
from medssl.training.continuing import WEIGHTS_OF_ENCODER, load_initial_weights
from medssl.types import Batch, Geometry, Imported, Loss, Preprocess, Step, UserError, ViewPlan, ViewSpec
from medssl.types.provenance import Provenance

ENCODER = {
    "class_path": "medssl.encoders.resenc.ResEnc",
    "init_args": {"in_channels": 1, "ndim": 3, "channels": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]], "blocks": [1, 1]},
}
VIEW = {"size": [16, 16, 8], "geometry": {"flip": "none"}, "intensity": {"noise": [1.0, 0.3]}}
GLOBAL = {
    "class_path": "medssl.objectives.global_local.GlobalContrast",
    "init_args": {"view": VIEW, "cues": {"parts": 2}, "projection": [8, 8]},
}
LOCAL = {
    "class_path": "medssl.objectives.global_local.LocalContrast",
    "init_args": {"view": VIEW, "cues": {"parts": 2}, "steps": 1, "regions": {"side": 3, "nearest": 5}},
}
STILL = Geometry(flip="none")
TRAINING = {"steps": 2, "batch_size": 4, "output": {"checkpoint_every": 2, "picture_every": 2, "log_every": 1}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store of labeled volumes, and a run of the global stage."""
    folder = tmp_path_factory.mktemp("continuing") / "place"
    labeled.volumes(folder / "scans")
    file = labeled.indexed(folder / "scans", folder / "index.sqlite", key=folder.parent / "key")
    labeled.stored(file, folder / "store", Preprocess(foreground_crop=False, orientation=None))
    code, said = pretrain(folder, folder / "global", GLOBAL)
    assert code == 0, said
    return folder


def pretrain(place, run, objective, *more, encoder=ENCODER, **training):
    recipe = {"encoder": encoder, "objective": objective, "training": {**TRAINING, **training}}
    recipe |= {"data": {"split": "train", "workers": 0}}
    file = place.parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    words = [f"--config={file}", f"--store={place / 'store'}", f"--run={run}", *map(str, more)]
    return call("pretrain", words)


def call(verb, words):
    import contextlib
    import io

    mask, threads, text = os.umask(0o077), torch.get_num_threads(), io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = cli.main([verb, *words])
    finally:
        os.umask(mask)
        torch.set_num_threads(threads)
    return code, text.getvalue()


def test_a_vision_transformer_of_dinov2_continues_with_heads_that_are_trained_first(place, tmp_path):
    """Random weights in timm's layout; in the first steps the encoder keeps them, then it moves."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm

        theirs = timm.create_model("vit_small_patch14_dinov2", embed_dim=64, depth=1, num_heads=1, img_size=42)
    save_file(theirs.state_dict(), tmp_path / "dinov2.safetensors")
    encoder = {
        "class_path": "medssl.encoders.vit.ViT",
        "init_args": {
            "in_channels": 1, "patch": [14, 14], "width": 64, "depth": 1, "layer_scale": 1.0e-5, "pool": "class",
            "place": "learned", "grid": [3, 3],
        },
    }  # fmt: skip
    small = {"size": [14, 14], "geometry": {"flip": "none"}, "kind": "local"}
    objective = {
        "class_path": "medssl.objectives.dinov2.DINOv2",
        "init_args": {
            "view": {"size": [28, 28], "geometry": {"flip": "none"}}, "local_view": small, "local_views": 1,
            "masks": {"ratio": [0.3, 0.5]}, "teaching": {"momentum": [0.0, 0.0]},
            "prototypes": {"count": 8, "width": 8, "hidden": 8, "frozen": 0.0, "head_first": 0.5},
        },
    }  # fmt: skip
    words = (f"--pretrained={tmp_path / 'dinov2.safetensors'}", "--optimizer.warmup=0")
    runs = {steps: tmp_path / f"run{steps}" for steps in (2, 4)}
    for steps, run in runs.items():
        extra = ("--objective.prototypes.head_first=1.0",) if steps == 2 else ()
        code, said = pretrain(place, run, objective, *words, *extra, encoder=encoder, steps=steps)
        assert code == 0, said
        assert "encoder: 95% of the keys filled: 17 loaded, 3 adapted, 1 missing (mask_token)" in said
    frozen, moved = (load_file(run / "encoder.safetensors") for run in runs.values())
    weights = theirs.state_dict()
    for key in ("blocks.0.attn.qkv.weight", "norm.weight", "blocks.0.mlp.fc1.weight"):
        assert torch.equal(frozen[key], weights[key])
        assert not torch.equal(moved[key], weights[key])


def test_of_the_same_objective_everything_is_taken_over(place, tmp_path):
    """One step of a rate near 0 leaves what was loaded where it was: encoder, head and their names."""
    code, said = pretrain(place, tmp_path / "more", GLOBAL, f"--pretrained={place / 'global'}",
                          "--optimizer.learning_rate=1e-12", steps=1)  # fmt: skip
    assert code == 0, said
    assert "encoder of step 2: 100% of the keys filled" in said
    for name in ("encoder.safetensors", "objective.safetensors"):
        before, after = (load_file(run / name) for run in (place / "global", tmp_path / "more"))
        assert before.keys() == after.keys()
        for key, value in before.items():
            if value.is_floating_point() and "running" not in key:
                torch.testing.assert_close(after[key], value, atol=1e-6, rtol=1e-5)
    assert re.search(r"(\d+) of \1 keys of the rest of the objective", said)
    config = yaml.safe_load((tmp_path / "more/config.yaml").read_text())
    assert re.fullmatch("[0-9a-f]{16}", config["pretrained"])
    assert yaml.safe_load((place / "global/config.yaml").read_text())["pretrained"] is None
    code, said = pretrain(place, tmp_path / "more", GLOBAL, steps=1)
    assert code == 2
    former = config["pretrained"]
    assert said == (
        "error: more/ is a run of another configuration: optimizer.learning_rate: 1e-12 there, 0.001 here; "
        f"pretrained: {former} there, None here; choose another run folder (the run's own folder as `pretrained` "
        "continues from its checkpoint)\n"
    )


def test_a_run_goes_on_without_the_weights_that_it_began_with(place, tmp_path):
    """They are in its checkpoint; weights that have changed since are refused, with how to go on."""
    import shutil

    source, run = shutil.copytree(place / "global", tmp_path / "source"), tmp_path / "run"
    words = (f"--pretrained={source}", "--data.split=val", "--training.extend=true")
    assert pretrain(place, run, GLOBAL, *words)[0] == 0
    config, seen = yaml.safe_load((run / "config.yaml").read_text()), load_card(run).subjects
    save_file({"other": torch.zeros(3)}, source / "encoder.safetensors")
    code, said = pretrain(place, run, GLOBAL, *words, steps=3)
    assert code == 2
    assert re.fullmatch(
        rf"error: --pretrained: the run run/ started from other weights \({config['pretrained']} there, "
        rf"[0-9a-f]{{16}} here\) \(got '{re.escape(str(source))}'\)\. Give {re.escape(str(run))} itself to "
        "continue from its own checkpoint, "
        r"or choose another run folder\.\n",
        said,
    )
    code, said = pretrain(place, run, GLOBAL, f"--pretrained={run}", *words[1:], steps=3)
    assert (code, "going on after step 2" in said) == (0, True), said
    shutil.rmtree(source)
    code, said = pretrain(place, run, GLOBAL, *words, steps=4)
    assert (code, "going on after step 3" in said) == (0, True), said
    assert f"; first weights: {config['pretrained']}" in said.splitlines()[0]
    assert load_card(run).subjects == seen == Provenance(tuple(sorted(seen.known)))
    assert yaml.safe_load((run / "config.yaml").read_text())["pretrained"] == config["pretrained"]


def test_weights_of_scans_that_other_rules_stored_are_noted(place, tmp_path):
    file = place.parent / "place/index.sqlite"
    labeled.stored(file, tmp_path / "store", Preprocess(foreground_crop=False))
    code, said = pretrain(place, tmp_path / "run", GLOBAL, f"--pretrained={place / 'global'}",
                          f"--store={tmp_path / 'store'}", steps=1)  # fmt: skip
    assert code == 0, said
    assert "; the first weights are of scans that other rules stored: orientation None -> RAS" in said
    assert (
        "other rules" not in pretrain(place, tmp_path / "same", GLOBAL, f"--pretrained={place / 'global'}", steps=1)[1]
    )


def test_every_key_of_the_rest_that_is_not_taken_over_is_named(place, tmp_path):
    """A wider head, a key that is not there, and one that nobody asked for."""
    import shutil

    shutil.copytree(place / "global", tmp_path / "former")
    file = tmp_path / "former/objective.safetensors"
    tensors = load_file(file)
    weights = [key for key in tensors if key.endswith("weight")]
    gone, other = weights[0], weights[-1]
    shape = list(tensors[other].shape)
    tensors[other] = torch.zeros(3, *shape)
    tensors.pop(gone)
    save_file({**tensors, "queue": torch.zeros(2)}, file)
    code, said = pretrain(place, tmp_path / "more", GLOBAL, f"--pretrained={tmp_path / 'former'}", steps=1)
    assert code == 0, said
    told = [line for line in said.splitlines() if " in the objective: " in line]
    assert sorted(told) == sorted([
        f"missing in the objective: {gone}",
        f"missing in the objective: {other} ({[3, *shape]} in the file, {shape} here)",
        "unexpected in the objective: queue",
    ])  # fmt: skip
    assert re.search(
        r"(\d+) of (\d+) keys of the rest of the objective: 2 missing, 1 of them of another shape, 1 unexp", said
    )


def test_stages_encoder_then_decoder_then_both_in_the_head(place, tmp_path):
    code, said = pretrain(place, tmp_path / "local", LOCAL, f"--pretrained={place / 'global'}")
    assert code == 0, said
    assert "nothing else is taken over: that run's objective was GlobalContrast" in said
    first, second = (load_file(run / "encoder.safetensors") for run in (place / "global", tmp_path / "local"))
    assert all(torch.equal(first[key], second[key]) for key in first)  # the second stage leaves the encoder alone
    decoder = load_file(tmp_path / "local/decoder.safetensors")
    words = [
        "--config=segment_3d_small", f"--store={place / 'store'}", f"--run={tmp_path / 'tuned'}",
        f"--pretrained={tmp_path / 'local'}", "--data.view.size=[16,16,8]", "--training.steps=1", "--labels=2",
        "--data.workers=0", "--optimizer.learning_rate=1e-12", "--training.output.validate_every=1",
    ]  # fmt: skip
    code, said = call("finetune", words)
    assert code == 0, said
    assert f"{len(decoder)} of the {len(decoder)} keys of the decoder too" in said
    head = load_file(tmp_path / "tuned/head.safetensors")
    for key, value in decoder.items():
        torch.testing.assert_close(head[f"decoder.{key}"], value, atol=1e-6, rtol=1e-5)
    code, said = call("finetune", [*words, "--head.norm=batch", f"--run={tmp_path / 'other'}"])
    assert code == 2
    assert re.search(
        r"of the \d+ keys of the pretrained decoder fit the head UNet: take the head unet with the norm", said
    )
    code, said = call("finetune", [*words, "--head=voxel_linear", f"--run={tmp_path / 'probe'}"])
    assert code == 0, said
    assert "the pretrained decoder is not used: this head has none" in said


SPARK = {
    "class_path": "medssl.objectives.spark.SparK",
    "init_args": {"view": {"size": [16, 16, 8]}, "cell": [4, 4, 4], "decoder": "unet"},
}


def test_fine_tuning_starts_from_the_decoder_of_spark(place, tmp_path):
    code, said = pretrain(place, tmp_path / "spark", SPARK)
    assert code == 0, said
    decoder = load_file(tmp_path / "spark/decoder.safetensors")
    words = [
        "--config=segment_3d_small", f"--store={place / 'store'}", f"--run={tmp_path / 'tuned'}",
        f"--pretrained={tmp_path / 'spark'}", "--data.view.size=[16,16,8]", "--training.steps=1", "--labels=2",
        "--data.workers=0", "--optimizer.learning_rate=1e-12", "--training.output.validate_every=1",
    ]  # fmt: skip
    code, said = call("finetune", words)
    assert code == 0, said
    assert f"{len(decoder)} of the {len(decoder)} keys of the decoder too" in said
    head = load_file(tmp_path / "tuned/head.safetensors")
    assert len(decoder) > 0
    for key, value in decoder.items():
        torch.testing.assert_close(head[f"decoder.{key}"], value, atol=1e-6, rtol=1e-5)


def test_a_decoder_is_not_trained_on_an_encoder_that_stays_random(place, tmp_path):
    code, said = pretrain(place, tmp_path / "local", LOCAL)
    assert code == 2
    assert re.search(
        r"--pretrained: LocalContrast does not train the encoder, and the encoder's weights are random\. Give",
        said,
    )
    assert not (tmp_path / "local").exists()


def test_an_encoder_that_was_made_with_weights_may_stay_as_it_is():
    frozen = LocalContrast(ToyEncoder().requires_grad_(False), view=ViewSpec((16, 16, 8), geometry=STILL), steps=1)
    initial = load_initial_weights(frozen, None, 0.9, Imported("Made", {"pretrained": True}))
    assert (initial.weights, initial.notes) == (None, (WEIGHTS_OF_ENCODER,))
    assert initial.provenance == Provenance(complete=False)
    for given in ({}, {"pretrained": False}):
        with pytest.raises(UserError, match="LocalContrast does not train the encoder, and the encoder's weights"):
            load_initial_weights(frozen, None, 0.9, Imported("Made", given))


class Bare(Objective):
    """A user's objective that has no weights but those of its encoder."""

    def __init__(self, encoder: Encoder, *, view: ViewSpec) -> None:
        super().__init__()
        self.encoder, self.needs = encoder, ViewPlan((view,))

    def forward(self, batch: Batch, step: Step) -> Loss:
        loss = self.encoder(batch.views[0].image).pooled.square().mean()
        return Loss(loss, {"loss": loss.detach()})


class Copied(Bare):
    """A user's objective whose teacher begins as a copy of the encoder."""

    def __init__(self, encoder: Encoder, *, view: ViewSpec) -> None:
        super().__init__(encoder, view=view)
        self.teacher = copy.deepcopy(encoder).requires_grad_(requires_grad=False)

    def after_load(self) -> None:
        self.teacher.load_state_dict(self.encoder.state_dict())


def test_a_teacher_can_begin_with_the_weights_that_were_loaded(place, tmp_path):
    copied = {"class_path": "commands.test_continuing.Copied", "init_args": {"view": VIEW}}
    words = (f"--pretrained={place / 'global'}", "--optimizer.learning_rate=1e-12")
    code, said = pretrain(place, tmp_path / "run", copied, *words, steps=1)
    assert code == 0, said
    teacher, former = load_file(tmp_path / "run/objective.safetensors"), load_file(place / "global/encoder.safetensors")
    assert all(torch.equal(teacher[f"teacher.{key}"], value) for key, value in former.items())
    former = load_file(tmp_path / "run/objective.safetensors")
    code, said = pretrain(place, tmp_path / "more", copied, f"--pretrained={tmp_path / 'run'}", words[1], steps=1)
    assert code == 0, said  # the teacher of a run of the same objective is its own
    after = load_file(tmp_path / "more/objective.safetensors")
    assert all(torch.equal(after[key], value) for key, value in former.items())


def test_an_objective_without_weights_of_its_own_is_continued(place, tmp_path):
    bare = {"class_path": "commands.test_continuing.Bare", "init_args": {"view": VIEW}}
    for run, *init in (("first",), ("more", f"--pretrained={tmp_path / 'first'}")):
        code, said = pretrain(place, tmp_path / run, bare, *init, steps=1)
        assert code == 0, said
    assert "encoder of step 1: 100% of the keys filled" in said
    assert "the objective has nothing but its encoder" in said


def test_whoever_the_first_weights_have_seen_counts_as_seen(place, tmp_path):
    code, said = pretrain(place, tmp_path / "val", GLOBAL, f"--pretrained={place / 'global'}", "--data.split=val")
    assert code == 0, said
    store = Store.open(place / "store")
    both = {*store.subjects_of_split("train"), *store.subjects_of_split("val")}
    assert load_card(tmp_path / "val").subjects == Provenance(tuple(sorted(both)))
    beside, _ = pretrain(place, tmp_path / "beside", GLOBAL, f"--pretrained={place / 'global/encoder.safetensors'}",
                         "--data.split=val")  # fmt: skip
    assert beside == 0
    assert load_card(tmp_path / "beside").subjects == load_card(tmp_path / "val").subjects
    last = place / "global/checkpoints/last.pt"
    checkpoint, _ = pretrain(place, tmp_path / "checkpoint", GLOBAL, f"--pretrained={last}", "--data.split=val")
    assert checkpoint == 0
    assert load_card(tmp_path / "checkpoint").subjects == Provenance(tuple(sorted(both)), complete=False)
    rest = [load_file(tmp_path / run / "objective.safetensors") for run in ("val", "beside")]
    assert all(torch.equal(rest[0][key], rest[1][key]) for key in rest[0])


def test_whom_a_run_itself_has_seen_is_known_whatever_its_first_weights_were(place, tmp_path):
    """Of first weights that tell nothing, only their own part stays unknown."""
    save_file(load_file(place / "global/encoder.safetensors"), tmp_path / "foreign.safetensors")
    code, said = pretrain(place, tmp_path / "all", GLOBAL, f"--pretrained={tmp_path / 'foreign.safetensors'}",
                          "--data.split=null")  # fmt: skip
    assert code == 0, said
    store = Store.open(place / "store")
    everyone = tuple(sorted(store.subjects_of_split(None)))
    assert load_card(tmp_path / "all").subjects == Provenance(everyone, complete=False)
    words = [
        "--config=segment_3d_small", f"--store={place / 'store'}", f"--run={tmp_path / 'tuned'}",
        f"--pretrained={tmp_path / 'all'}", "--data.view.size=[16,16,8]", "--training.steps=1", "--labels=2",
        "--data.workers=0", "--training.output.validate_every=1",
    ]  # fmt: skip
    code, said = call("finetune", words)
    assert (code, said) == (2, (
        "error: the encoder was pretrained on 3 of the 3 subjects of split 'test': their scores would be too good. "
        "Choose other weights or another split, or allow it (allow: seen) and report it with the scores\n"
    ))  # fmt: skip
    code, said = call("finetune", [*words, "--allow=seen"])
    assert code == 0, said
    assert "the encoder was pretrained on 3 of the 3 subjects of split 'test' (allowed): scores may be too good" in said
    assert "not all subjects that the encoder was pretrained on are known: some of the subjects" in said
    assert load_card(tmp_path / "tuned").subjects == Provenance(everyone, complete=False)


def test_heads_that_are_not_finite_are_refused(place, tmp_path):
    import shutil

    shutil.copytree(place / "global", tmp_path / "former")
    file = tmp_path / "former/objective.safetensors"
    tensors = load_file(file)
    weights = [key for key in tensors if tensors[key].is_floating_point()]
    save_file(tensors | {weights[-1]: tensors[weights[-1]] * torch.inf}, file)
    code, said = pretrain(place, tmp_path / "more", GLOBAL, f"--pretrained={tmp_path / 'former'}", steps=1)
    assert code == 2
    count = tensors[weights[-1]].numel()
    assert f"objective.safetensors: 1 of {len(tensors)} tensors are no weights, the first is {weights[-1]} (" in said
    assert re.search(rf"\((\d+) of {count} numbers are NaN or infinite\): expected dense, finite floating-point", said)


def test_a_run_without_the_rest_of_its_objective_says_so(place, tmp_path):
    import shutil

    shutil.copytree(place / "global", tmp_path / "former")
    (tmp_path / "former/objective.safetensors").unlink()
    code, said = pretrain(place, tmp_path / "more", GLOBAL, f"--pretrained={tmp_path / 'former'}", steps=1)
    assert code == 0, said
    assert "; nothing else is taken over: the run has no objective.safetensors" in said.splitlines()[0]


def test_kernels_of_images_and_other_channels_are_made_to_fit(place, tmp_path):
    """A volume encoder from a file of a 2D one: the report names each adapted key."""
    from medssl.encoders.resenc import ResEnc

    torch.manual_seed(3)
    flat = ResEnc(3, ndim=2, channels=(4, 8), strides=((1, 1), (2, 2)), blocks=(1, 1))
    torch.save(flat.state_dict(), tmp_path / "flat.pth")
    code, said = pretrain(place, tmp_path / "run", GLOBAL, f"--pretrained={tmp_path / 'flat.pth'}",
                          "--optimizer.learning_rate=1e-12", steps=1)  # fmt: skip
    assert code == 0, said
    assert "adapted: encoder.stem.convs.0.conv.weight" in said
    got = load_file(tmp_path / "run/encoder.safetensors")["encoder.stem.convs.0.conv.weight"]
    kernel = flat.state_dict()["encoder.stem.convs.0.conv.weight"]
    torch.testing.assert_close(got.sum(4)[:, 0], kernel.sum(1).mT, atol=1e-5, rtol=1e-4)


BAD = [
    ("no such run", ["--pretrained=nowhere"], r"--pretrained: there is no such folder or file \(got 'nowhere'\)"),
    ("an empty path", ["--pretrained="], r"card\.json: no card could be read"),
    ("no share", ["--pretrained_minimum=3"], r"minimum: no share \(got 3\.0; expected a share from 0 to 1\)"),
    ("too little fits", ["--pretrained={other}"], r"too few weights fit ResEnc: .*expected at least 90%"),
    ("a folder without a card", ["--pretrained={empty}"], r"no card could be read"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_one_line(place, tmp_path, words, message):
    save_file({"strange.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    words = [word.format(other=tmp_path / "other.safetensors", empty=tmp_path / "empty") for word in words]
    code, said = pretrain(place, tmp_path / "run", GLOBAL, *words)
    assert code == 2
    assert re.search(message, said), said
    assert said.startswith("error: ")


def test_less_may_be_enough_where_that_is_said(place, tmp_path):
    tensors = load_file(place / "global/encoder.safetensors")
    half = dict(list(tensors.items())[::2])
    save_file(half, tmp_path / "half.safetensors")
    words = (f"--pretrained={tmp_path / 'half.safetensors'}", "--pretrained_minimum=0.3")
    code, said = pretrain(place, tmp_path / "run", GLOBAL, *words)
    assert code == 0, said
    missing = [line.removeprefix("missing: ") for line in said.splitlines() if line.startswith("missing: ")]
    assert sorted(missing) == sorted(set(tensors) - set(half))


def test_a_resumed_run_does_not_start_from_init_again(tmp_path):
    """The checkpoint wins: the run ends as one that was never stopped."""
    store = toys.toy_store(tmp_path / "store")
    from pathlib import Path

    recipe = Path(__file__).with_name("toys.yaml")
    words = [f"--config={recipe}", f"--store={store}"]
    assert call("pretrain", [*words, f"--run={tmp_path / 'first'}", "--training.steps=2"])[0] == 0
    more = [*words, f"--pretrained={tmp_path / 'first'}", "--training.extend=true"]
    assert call("pretrain", [*more, f"--run={tmp_path / 'straight'}", "--training.steps=4"])[0] == 0
    for steps in (2, 4):
        code, said = call("pretrain", [*more, f"--run={tmp_path / 'broken'}", f"--training.steps={steps}"])
        assert code == 0, said
    rows = [
        [json.loads(line)["step"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("straight", "broken")
    ]
    assert rows[0] == rows[1]
    done = torch.load(tmp_path / "broken/checkpoints/last.pt", weights_only=True)
    assert int(done["objective"]["steps_seen"]) == 2 + 4  # two of the first run, four of its own
