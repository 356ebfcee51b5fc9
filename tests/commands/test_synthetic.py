"""Phantoms are known as synthetic data from the folder to the store, the cards and the scores."""

from __future__ import annotations

import shutil

import pytest

from medssl.cli import main
from medssl.data.store.store import Store
from medssl.training.versions import package_versions


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "drawn"
    assert main(["phantoms", str(folder), "--count=3", "--labeled=3", "--shape=[24,24]"]) == 0
    return folder


def cached(folder, scans):
    index = folder / f"{scans.name}.sqlite"
    key = scans.parent.with_name("key_of_synthetic")
    key.write_text("0" * 64)
    key.chmod(0o600)
    files = ["--files.modality=XR", "--subject=(PHANTOM-[0-9]+)", f"--files.key={key}"]
    assert main(["index", str(scans), "--index", str(index), *files]) == 0
    assert main(["cache", str(index), str(folder / "store"), "--preprocess=image", "--workers=0"]) == 0
    return Store.open(folder / "store").synthetic


def test_a_store_of_phantoms_says_so_until_other_scans_join(scans, tmp_path):
    assert cached(tmp_path, scans)
    assert cached(tmp_path, scans)
    others = tmp_path / "others"
    shutil.copytree(scans, others)
    (others / "phantoms.json").unlink()
    assert not cached(tmp_path, others)
    assert not cached(tmp_path, scans)


def test_cards_and_scores_name_phantoms():
    assert package_versions(synthetic=True)["phantoms"] == "2"
    assert "phantoms" not in package_versions()
