"""2D and 3D: encoder, view and store that do not go together are called that, before their rules are compared."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from commands import toys

from medssl import cli
from medssl.data.labels.selection import schema_of
from medssl.data.store.store import Store
from medssl.encoders.weights import read_card
from medssl.reporting.parts import read_part
from medssl.training.axes import misfit, open_store
from medssl.training.initial_weights import InitialWeights
from medssl.types import Card, Imported, IntensityRule, IntensityRules, UserError
from medssl.types.provenance import Provenance

SMALL = {"channels": [4, 8], "blocks": [1, 1]}
FLAT = Imported("medssl.encoders.resenc.ResEnc", SMALL | {"ndim": 2, "strides": [[1, 1], [2, 2]]})
SOLID = Imported("medssl.encoders.resenc.ResEnc", SMALL | {"ndim": 3, "strides": [[1, 1, 1], [2, 2, 2]]})


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return toys.toy_store(tmp_path_factory.mktemp("axes") / "store")


def initial(encoder, preprocess=None):
    if preprocess is None:
        return InitialWeights(encoder, None, None, "random")
    card = Card(encoder, preprocess, None, "d", Provenance(()), 1, {})
    return InitialWeights(encoder, None, card, "random")


def other(store):
    rules = Store.open(store).preprocess
    return replace(rules, intensity=IntensityRules(mr=IntensityRule("none")))


def test_a_2d_encoder_of_other_rules_is_told_of_volumes_and_not_of_preprocess(volumes):
    with pytest.raises(UserError, match="takes 2D images, the store store holds volumes that other rules") as refused:
        open_store(volumes, initial(FLAT, other(volumes)), ())
    message = str(refused.value)
    assert (
        "take an encoder of a 3D recipe; or cache the volumes by the encoder's rules, and take a 2D recipe" in message
    )
    assert "data.sampling.slice_axis" in message


def test_a_3d_encoder_of_other_rules_is_told_of_the_rules(volumes):
    with pytest.raises(UserError, match=r"another Preprocess.*intensity\.mr"):
        open_store(volumes, initial(SOLID, other(volumes)), ())
    assert len(open_store(volumes, initial(SOLID, other(volumes)), ("preprocess",))) == 5


def test_a_2d_encoder_and_a_3d_view_name_both_ways_out(volumes):
    wanted = "takes 2D, data.view.size [8, 8, 8] has 3 axes, the store holds volumes: choose a 3D encoder, or a 2D"
    with pytest.raises(UserError, match=re.escape(wanted)):
        open_store(volumes, initial(FLAT, other(volumes)), (), size=(8, 8, 8), key="data.view.size")
    assert len(open_store(volumes, initial(FLAT), (), size=(8, 8), key="data.view.size")) == 5


def test_axes_in_words():
    said = misfit({3}, {2}, None, "")
    assert said == "the encoder takes 3D, the store holds images (2D): choose a 2D encoder and a 2D recipe"
    assert "has 2 axes, the store holds volumes: choose a 3D recipe, or a 2D encoder" in misfit({3}, {3}, (8, 8), "x")
    assert misfit({2}, {2, 3}, (8, 8), "x") == ""
    assert misfit(set(), {3}, (8, 8), "x") == ""


@pytest.mark.parametrize("key", ["--data.target", "--target", "--probe.target"])
def test_a_store_without_masks_names_the_option_of_the_verb_only_where_there_are_values(volumes, key, monkeypatch):
    store = Store.open(volumes)
    with pytest.raises(UserError, match=r"has no masks \(got 'mask'\)\. Index with label\.masks and cache again$"):
        schema_of(store, "mask", key=key)
    store.records.facts["text"][:] = True
    monkeypatch.setattr(type(store.records), "values", lambda self, number: {"grade": "2", "age": "50"})
    with pytest.raises(UserError, match=rf"^{key}: .* cache again, or choose a value of whole scans: age, grade$"):
        schema_of(store, "mask", key=key)


def test_a_file_in_the_place_of_a_folder_is_called_a_file(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match="file is a file: expected a folder that pretraining wrote"):
        read_card(file)
    with pytest.raises(UserError, match="file: is a file, no folder: expected"):
        read_part("a", file)
    assert cli.main(["index", "--index", str(tmp_path), "--show=failed"]) == 2
    assert "is a folder: give the index file itself, such as" in capsys.readouterr().err
    assert cli.main(["cache", str(tmp_path), str(tmp_path / "store")]) == 2
    assert "is a folder: give the index file" in capsys.readouterr().err
    assert cli.main(["phantoms", str(file / "below"), "--count=1", "--labeled=1", "--shape=[32,32]"]) == 2
    assert capsys.readouterr().err.endswith(f"error: {file} is a file, a folder is expected: choose another name\n")
