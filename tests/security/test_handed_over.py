"""Cards, stores and configurations of others that name code: nothing of it runs, and the message says what would."""

from __future__ import annotations

import inspect
import json
import re
import sys
import typing

import numpy as np
import pytest
import yaml
from commands import fitted
from data.make_scans import noise, write_nifti
from data.stores import fill_store, volume
from security.planted import Canary, change_card, named

from medssl import cli
from medssl.encoders.weights import load_card
from medssl.heads.weights import load_network
from medssl.io import configurations, trust
from medssl.types import Imported, Preprocess, UserError

LISTED = "which is not on the list of classes that are built from files of others: its code would run; if you know it, "


@pytest.fixture
def canary(tmp_path, monkeypatch):
    planted = Canary(tmp_path)
    monkeypatch.syspath_prepend(str(planted.path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    monkeypatch.setenv("MEDSSL_TRUST", "commands.fitted.Plain,commands.fitted.Bands")
    yield planted
    sys.modules.pop("stranger", None)


@pytest.fixture
def run(tmp_path):
    return fitted.save(tmp_path / "run")


def transforms(*steps):
    return lambda card: card["preprocess"].update(transforms=list(steps))


ATTACKS = {
    "os.system as a transform": ("os.system", "preprocess.transforms[0]", transforms(named("os.system", command="x"))),
    "a callable of another package": ("stranger.call", "preprocess.transforms[0]", transforms(named("stranger.call"))),
    "the second transform": (
        "stranger.call", "preprocess.transforms[1]",
        transforms(named("monai.transforms.Flipd", keys="image"), named("stranger.call")),
    ),
    "an encoder": ("stranger.Network", "encoder", lambda card: card.update(encoder=named("stranger.Network"))),
    "a head": ("stranger.Answer", "tuned.head", lambda card: card["tuned"].update(head=named("stranger.Answer"))),
    "a function as a head": (
        "stranger.call", "tuned.head", lambda card: card["tuned"].update(head=named("stranger.call")),
    ),
    "a class within the arguments": (
        "stranger.Network", "encoder, init_args",
        lambda card: card["encoder"].update(init_args={"layer": [named("stranger.Network")]}),
    ),
    "a target within the arguments": (
        "stranger.call", "tuned.head, init_args",
        lambda card: card["tuned"]["head"].update(init_args={"a": {"_target_": "stranger.call"}}),
    ),
    "a function of a listed package": (
        "medssl.encoders.weights.load_card", "encoder",
        lambda card: card.update(encoder=named("medssl.encoders.weights.load_card")),
    ),
    "a module that a listed one imports": (
        "medssl.encoders.weights.json", "encoder",
        lambda card: card.update(encoder=named("medssl.encoders.weights.json")),
    ),
    "a class that a listed one imports": (
        "medssl.heads.weights.Card", "tuned.head",
        lambda card: card["tuned"].update(head=named("medssl.heads.weights.Card")),
    ),
    "an objective's room with a verb": (
        "medssl.commands.predict.predict", "encoder",
        lambda card: card.update(encoder=named("medssl.commands.predict.predict")),
    ),
    "a name that only begins like a listed one": (
        "medssl.encoders_.x", "encoder", lambda card: card.update(encoder=named("medssl.encoders_.x"))
    ),
    "torch.load": ("torch.load", "tuned.head", lambda card: card["tuned"].update(head=named("torch.load"))),
    "torch.hub": ("torch.hub.load", "encoder", lambda card: card.update(encoder=named("torch.hub.load"))),
    "builtins": ("builtins.eval", "encoder", lambda card: card.update(encoder=named("builtins.eval"))),
    "no name at all": ("", "encoder", lambda card: card.update(encoder=named(""))),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_card_runs_nothing_that_is_not_listed(attack, canary, run):
    path, where, change = ATTACKS[attack]
    change_card(run, change)
    said = f"run/card.json: {where} names {path!r}, {LISTED}add to trust: {path}"
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        load_network(run)
    assert canary.sings
    assert "stranger" not in sys.modules


MONAI = (
    "monai.transforms.Lambdad", "monai.transforms.LoadImaged", "monai.transforms.SaveImaged",
    "monai.transforms.TorchVisiond", "monai.transforms.CuCIMd", "monai.transforms.TorchIOd",
    "monai.transforms.DataStatsd", "monai.transforms.SimulateDelayd", "monai.transforms.Invertd",
    "monai.transforms.RandFlipd", "monai.transforms.Compose", "monai.transforms.WriteFileMappingd",
    "monai.transforms.SaveClassificationd", "monai.bundle.ConfigParser", "monai.bundle.download",
    "monai.data.load_decathlon_datalist", "monai.apps.download_url", "monai.transforms.utility.array.Lambda",
    "monai.transforms.io.dictionary.LoadImaged", "monai.transforms.croppad.dictionary.LoadImaged",
    "monai.transforms.croppad.dictionary.Flipd",
)  # fmt: skip


@pytest.mark.parametrize("path", MONAI)
def test_transforms_that_read_write_or_take_code_are_refused(path, canary, run):
    change_card(run, transforms(named(path, keys="image")))
    with pytest.raises(UserError, match=rf"preprocess\.transforms\[0\] names '{re.escape(path)}', {LISTED}"):
        load_card(run)


@pytest.mark.parametrize("text", ["os.system", "$import os", "@other", "stranger.call"])
@pytest.mark.parametrize("nest", [lambda text: text, lambda text: [text], lambda text: {"a": text}])
def test_arguments_that_would_be_imported_or_evaluated_are_refused(text, nest, canary, run):
    change_card(run, transforms(named("monai.transforms.CropForegroundd", keys="image", select_fn=nest(text))))
    with pytest.raises(UserError, match=rf"an argument of CropForegroundd, names '{re.escape(text)}', which"):
        load_card(run)
    assert canary.sings


def test_every_listed_transform_is_deterministic_and_of_its_room():
    from monai import transforms as monai
    from monai.transforms import Randomizable

    for name, module in trust.TRANSFORMS.items():
        kind = getattr(monai, name)
        assert kind.__module__ == module
        assert issubclass(kind, monai.MapTransform)
        assert not issubclass(kind, Randomizable)
        source = inspect.getsource(inspect.unwrap(kind.__call__)) + inspect.getsource(kind.__init__)
        assert not re.search(r"\b(open|eval|exec|optional_import|locate|instantiate|import_module|load|save)\(", source)
    trust.refuse_transforms(
        [Imported(f"monai.transforms.{name}", {"keys": ["image"]}) for name in trust.TRANSFORMS], "card.json"
    )


def test_listed_transforms_are_built_and_trusted_ones_run(canary, run):
    change_card(run, transforms(named("monai.transforms.Flipd", keys=["image"], spatial_axis=0)))
    assert load_card(run).preprocess.transforms[0].class_path == "monai.transforms.Flipd"
    change_card(run, transforms(named("stranger.call")))
    assert load_card(run, {"stranger.call"}).preprocess.transforms[0].class_path == "stranger.call"


def test_an_encoder_that_would_fetch_weights_is_refused(canary, run):
    change_card(
        run, lambda card: card.update(encoder=named("medssl.encoders.timm2d.Timm2d", model="resnet18", pretrained=True))
    )
    with pytest.raises(UserError, match="encoder has pretrained true, but its weights lie beside the card"):
        load_card(run)


@pytest.mark.parametrize("model", ["hf-hub:stranger/model", "local-dir:model", "../model"])
def test_timm_models_are_taken_by_name_alone(model, canary, run):
    change_card(run, lambda card: card.update(encoder=named("medssl.encoders.timm2d.Timm2d", model=model)))
    with pytest.raises(UserError, match=f'timm has no model "{model}"'):
        load_network(run)


def test_the_objective_of_a_card_is_never_built(canary, run):
    change_card(run, lambda card: card.update(objective=named("stranger.call")))
    assert load_network(run)[1].objective.class_path == "stranger.call"
    assert canary.sings


# --- the verbs


def said_by(capsys, *words) -> str:
    code = cli.main(list(map(str, words)))
    shown = capsys.readouterr()
    assert code == 2, shown.out + shown.err
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.fixture
def verbs(tmp_path, run, monkeypatch):
    """The words of every verb that reads a card to build what it describes."""
    write_nifti(tmp_path / "scans" / "a.nii.gz", noise((8, 8, 4)))
    fill_store(tmp_path / "store", {"0" * 16: volume(np.ones((1, 8, 8, 8), np.int16))}, monkeypatch)
    store, index, out = f"--store={tmp_path / 'store'}", f"--index={tmp_path / 'index.sqlite'}", tmp_path / "out"
    return {
        "predict": (run, tmp_path / "scans", f"--out={out}", f"--files.key={tmp_path / 'key'}"),
        "evaluate": (run, index, f"--out={out}"),
        "finetune": ("--config=segment_3d_small", f"--pretrained={run}", store, f"--run={out}"),
        "probe": (run, store, f"--out={out}"),
        "compare": (run, "--config=segment_3d_small", store, index, f"--out={out}", "--labels=[2]"),
        "pseudolabel": (run, store, f"--out={out}"),
    }


@pytest.mark.parametrize("verb", ["predict", "evaluate", "finetune", "probe", "compare", "pseudolabel"])
def test_every_verb_refuses_a_card_in_one_line_and_takes_trust(verb, verbs, canary, run, capsys):
    change_card(run, lambda card: card.update(encoder=named("stranger.Network")))
    said = said_by(capsys, verb, *verbs[verb])
    assert f"run/card.json: encoder names 'stranger.Network', {LISTED}add to trust: stranger.Network" in said
    assert canary.sings
    if verb in {"predict", "pseudolabel", "evaluate"}:
        with pytest.raises(Exception, match=r"."):  # whatever happens then: it runs, as was asked for
            cli.run_verb(cli.find_verb(verb), verb, [*map(str, verbs[verb]), "--trust", "stranger.Network"])
        assert canary.mark.read_text() == "called"


@pytest.mark.parametrize("verb", ["predict", "evaluate", "pseudolabel"])
def test_transforms_of_a_card_are_refused_by_every_verb_that_prepares_scans(verb, verbs, canary, run, capsys):
    change_card(run, transforms(named("stranger.call")))
    said = said_by(capsys, verb, *verbs[verb])
    assert f"run/card.json: preprocess.transforms[0] names 'stranger.call', {LISTED}add to trust: stranger.call" in said
    assert canary.sings


def test_the_transforms_of_a_store_are_not_run_under_the_digest_of_others(tmp_path, verbs, canary, run, capsys):
    """A store whose description keeps the digest of honest rules, so that ``finetune`` would take it for these."""
    file = tmp_path / "store" / "store.json"
    description = json.loads(file.read_text())
    description["preprocess"]["transforms"] = [named("stranger.call")]
    description["digest"] = fitted.RAW.digest()
    file.write_text(json.dumps(description))
    said = said_by(capsys, "pseudolabel", *verbs["pseudolabel"])
    assert "was made by another Preprocess" in said
    assert "stranger.call" in said
    assert canary.sings


def test_what_trust_takes(canary, run, capsys):
    said = said_by(capsys, "predict", run, "x", "--out=y", "--trust", "rm -rf")
    assert said == "error: trust 'rm -rf': expected the import path of a class, such as package.module.Class\n"
    assert trust.names(" a.B, c.d.E ,") == {"a.B", "c.d.E"}
    assert trust.is_trusted("commands.fitted.Plain", ())  # of the environment
    assert not trust.is_trusted("commands.fitted", ())


# --- config.yaml of a run


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({"encoder": named("stranger.Network")}, "stranger.Network"),
        ({"encoder": "stranger.Network"}, "stranger.Network"),
        ({"objective": named("medssl.objectives.spark.SparK", layer=named("stranger.call"))}, "stranger.call"),
        ({"data": {"preprocess": {"transforms": [named("stranger.call")]}}}, "stranger.call"),
        ({"data": {"preprocess": {"transforms": ["stranger.call"]}}}, "stranger.call"),
        ({"data": {"preprocess": {"transforms": "stranger.call"}}}, "stranger.call"),
        ({"head": {"class_path": "os.system"}}, "os.system"),
        ({"mixing": [{"class_path": "stranger.call"}]}, "stranger.call"),
    ],
)
@pytest.mark.parametrize("name", ["config.yaml", "recipe.yaml", "mine.yaml"])
def test_the_configuration_of_a_run_is_not_run(content, path, name, canary, run, capsys):
    (run / name).write_text(yaml.safe_dump(content))
    for verb in ("pretrain", "finetune"):
        said = said_by(capsys, verb, f"--config={run / name}", "--store=s", "--run=r")
        assert f"{name}" in said
        assert f"names {path!r}, " in said
        assert f"add to trust: {path}" in said
    assert canary.sings


def test_a_recipe_of_ones_own_is_run_as_it_stands(canary, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"encoder": named("stranger.Network")}))
    assert configurations.load_recipe(str(tmp_path / "mine.yaml"))["encoder"]["class_path"] == "stranger.Network"
    (tmp_path / "mine.yaml").rename(tmp_path / "recipe.yaml")
    assert configurations.load_recipe(str(tmp_path / "recipe.yaml"))["encoder"]["class_path"] == "stranger.Network"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"encoder": named("stranger.Network")}))
    with pytest.raises(UserError, match=r"^config\.yaml names 'stranger\.Network', which"):
        configurations.load_recipe(str(tmp_path / "config.yaml"))
    told = configurations.load_recipe(str(tmp_path / "config.yaml"), frozenset({"stranger.Network"}))
    assert told["encoder"]["class_path"] == "stranger.Network"


def test_shipped_recipes_name_listed_classes_alone():
    for kind in ("recipes", *set(configurations.FRAGMENTS.values())):
        for name in configurations.config_names(kind):
            trust.refuse_config(configurations.load_config(name, kind), name)


def test_every_verb_that_reads_a_card_takes_trust():
    for verb in ("predict", "evaluate", "finetune", "probe", "compare", "pseudolabel"):
        assert typing.get_type_hints(cli.find_verb(verb))["trust"] is str


def test_preprocess_by_python_is_ones_own():
    from medssl.data.store.preprocess import make_transform

    assert make_transform(Imported("fractions.Fraction", {"numerator": 3, "denominator": 4})) == 0.75
    assert Preprocess(transforms=(Imported("a.b"),)).transforms[0].class_path == "a.b"
