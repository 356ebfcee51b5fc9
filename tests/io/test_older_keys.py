"""Keys of earlier versions in files: read as those of today, told on the command line."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import yaml

from medssl.cli.messages import renamed
from medssl.data.store.store import Store
from medssl.encoders.weights import read_card
from medssl.io.documents import read_yaml
from medssl.io.older_keys import with_present_keys

FILES = Path(__file__).parent.parent / "files_of_0_1_0" / "files.tar.gz"


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """Files that 0.1.0 wrote."""
    folder = tmp_path_factory.mktemp("older_keys")
    with tarfile.open(FILES) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_keys_are_renamed_at_every_depth_and_values_are_not():
    data = {"data": [{"labelled": 0.5, "name": "labelled"}], "normalise": "zscore"}
    assert with_present_keys(data) == {"data": [{"labeled": 0.5, "name": "labelled"}], "normalize": "zscore"}
    assert with_present_keys({"labelled": 1, "labeled": 2}) == {"labelled": 1, "labeled": 2}


@pytest.mark.parametrize("tier", ["store", "raw"])
def test_an_older_store_keeps_the_digest_of_its_rules(older, tier):
    description = json.loads((older / tier / "store.json").read_text())
    assert "normalise" in description["preprocess"]["intensity"]["mr"]
    store = Store.open(older / tier)
    assert store.preprocess.digest() == description["digest"]
    assert store.preprocess.intensity.mr.normalize == description["preprocess"]["intensity"]["mr"]["normalise"]
    Store.open(older / tier, preprocess=store.preprocess)  # the same rules


def test_an_older_configuration_and_card_have_the_keys_of_today(older):
    file = older / "runs" / "pretrained" / "config.yaml"
    then = yaml.safe_load(file.read_text())
    assert "normalise_target" in json.dumps(then)
    now = read_yaml(file)
    assert json.dumps(now) == json.dumps(then).replace("normalise_target", "normalize_target").replace(
        '"labelled"', '"labeled"'
    ).replace('"centred"', '"centered"').replace('"init"', '"pretrained"')
    assert "normalise" not in str(read_card(file.parent))


def test_an_older_option_names_that_of_today():
    assert renamed("objective.normalise_target") == "objective.normalize_target"
    assert renamed("labelled") == "labeled"
    assert renamed("data.sampling.centred") == "data.sampling.centered"
