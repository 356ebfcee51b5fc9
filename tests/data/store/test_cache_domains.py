"""Rules for one kind of values on scans of another: refused where none fits, told where some do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from data.make_scans import Series, noise, write_nifti, write_series

from medssl.cli import main
from medssl.data.store.store import Store
from medssl.types import Preprocess


def prepared(tmp_path: Path, capsys, *, modality: str = "", series: bool = False, words: tuple[str, ...] = ()):
    """Index three NIfTI volumes, and a CT series where asked; cache them with the preset for CT."""
    for number in range(3):
        write_nifti(tmp_path / "d" / f"{number}.nii", noise((8, 8, 8), seed=number))
    if series:
        write_series(tmp_path / "d" / "s", Series(extra={"Modality": "CT"}))
    index, key = str(tmp_path / "x" / "i.sqlite"), ["--files.key", str(tmp_path / "k" / "key")]
    assert (
        main(
            ["index", str(tmp_path / "d"), "--index", index, *key, "--files.workers", "0", "--files.modality", modality]
        )
        == 0
    )
    capsys.readouterr()
    code = main(["cache", index, str(tmp_path / "store"), "--workers", "0", "--preprocess", "ct", *words])
    return code, capsys.readouterr()


def test_rules_for_ct_on_values_without_a_unit_are_refused(tmp_path, capsys):
    code, said = prepared(tmp_path, capsys)
    assert code == 2
    assert re.search(
        r"^error: --preprocess: sets rules for hu; 3 of 3 scans are gray. Index with files\.modality CT, or set "
        r"preprocess\.domains \[gray\]",
        said.err,
    )
    assert not (tmp_path / "store").exists()


def test_the_domains_can_be_set(tmp_path, capsys):
    code, said = prepared(tmp_path, capsys, words=("--preprocess.domains", "[gray]"))
    assert (code, "sets rules" in said.out) == (0, False)


def test_scans_that_get_the_default_rule_are_noted(tmp_path, capsys):
    code, said = prepared(tmp_path, capsys, series=True)
    assert code == 0
    assert (
        "note: preprocess sets rules for hu; 3 of 4 scans are gray and get the default rule (gray: clipped by "
        "percentile 0 to 99.9, zscore)"
    ) in said.out


@pytest.mark.parametrize("modality", ["CT", "ct"])
def test_rules_that_fit_all_scans_give_no_note(tmp_path, capsys, modality):
    code, said = prepared(tmp_path, capsys, modality=modality)
    assert (code, "sets rules" in said.out) == (0, False)
    assert Store.open(tmp_path / "store").preprocess.domains == ("hu",)


def test_domains_do_not_change_digests_of_stores():
    assert Preprocess().digest() == Preprocess(domains=("hu",)).digest() == "d359546ea9c9dbb5"
