"""A scan that is unlike those of the training is not predicted in silence."""

from __future__ import annotations

import re

import numpy as np
import pytest
from commands import fitted, labeled
from data.make_scans import noise, write_nifti

from medssl.commands.index import index
from medssl.commands.predict import predict
from medssl.data.index.scan_index import FileOptions, Index
from medssl.data.labels.trained_on import differences, missing_note, trained_on
from medssl.data.store.store import Store
from medssl.encoders.weights import load_card
from medssl.types import LabelSchema, Preprocess, TrainedOn, UserError

MR = TrainedOn(("MR",), ("mr",), ((1.0, 1.0), (1.5, 1.5), (2.0, 4.0)))
OTHERS = [
    (MR, "CT", "is CT, the network was trained on MR; has values of domain hu, the network was trained on mr",
     "modality,domain"),
    (TrainedOn(("PT",), ("mr",)), "MR", "is MR, the network was trained on PT", "modality"),
    (TrainedOn((), ("rgb", "gray"), ()), "MR", "has values of domain mr, the network was trained on rgb, gray",
     "domain"),
    (TrainedOn((), ("mr",), ((1.0, 1.0), (1.0, 1.5), (6.1, 8.0))), "MR",
     "has a spacing of 1 x 1.5 x 3 mm, the network was trained on 1 x 1-1.5 x 6.1-8 mm", "spacing"),
]  # fmt: skip


@pytest.fixture
def scans(tmp_path):
    write_nifti(tmp_path / "scans" / "a.nii.gz", noise((9, 12, 7)), np.diag([1.0, 1.5, 3.0, 1.0]))
    return tmp_path / "scans"


def run(tmp_path, scans, known, capsys, *, modality="MR", allow=()):
    """Exit code and what was printed."""
    network = tmp_path / "run"
    if not network.exists():
        fitted.save(network, trained_on=known)
    files = FileOptions(workers=0, key=tmp_path / "key" / "key", modality=modality)
    result = predict(network, (scans,), out=tmp_path / "out", files=files, allow=allow)
    said = capsys.readouterr()
    return result.exit_code, said.out + said.err


def test_a_scan_like_those_of_the_training_is_predicted(tmp_path, scans, capsys):
    assert run(tmp_path, scans, MR, capsys)[0] == 0


@pytest.mark.parametrize(("known", "modality", "message", "names"), OTHERS)
def test_one_that_differs_is_skipped_until_it_is_allowed(tmp_path, scans, capsys, known, modality, message, names):
    code, said = run(tmp_path, scans, known, capsys, modality=modality)
    assert code == 1
    assert f"{message} (allow: {names} takes it)" in said
    code, said = run(tmp_path, scans, known, capsys, modality=modality, allow=tuple(names.split(",")))
    assert code == 0
    assert "1 scans predicted" in said


def test_a_spacing_within_twice_the_range_is_taken(tmp_path, scans, capsys):
    known = TrainedOn(("MR",), ("mr",), ((2.0, 2.0), (3.0, 3.0), (1.5, 1.5)))
    assert run(tmp_path, scans, known, capsys)[0] == 0


def test_a_card_of_an_older_version_says_that_nothing_is_compared(tmp_path, scans, capsys):
    code, said = run(tmp_path, scans, None, capsys, modality="CT")
    assert code == 0
    assert "the card does not say which scans the network was trained on" in said


def test_names_that_are_none_are_refused(tmp_path, scans, capsys):
    with pytest.raises(
        UserError, match=re.escape("allow: unknown difference (got 'mood'; expected modality, domain, spacing)")
    ):
        run(tmp_path, scans, MR, capsys, allow=("modality", "mood"))


def test_axes_are_compared_as_they_are_stored(tmp_path):
    """Coronal slices of 5 mm: the thick axis of the file is the second of the store."""
    affine = np.array([[0.8, 0, 0, 0], [0, 0, 5.0, 0], [0, 0.8, 0, 0], [0, 0, 0, 1.0]])
    write_nifti(tmp_path / "scans" / "a.nii.gz", noise((9, 12, 7)), affine)
    files = FileOptions(workers=0, key=tmp_path / "key" / "key", modality="MR")
    assert index((tmp_path / "scans",), index=tmp_path / "i" / "i.sqlite", files=files).exit_code == 0
    with Index.open(tmp_path / "i" / "i.sqlite") as opened:
        (scan,) = opened.scans()
    like = TrainedOn(("MR",), ("mr",), ((0.8, 0.8), (5.0, 5.0), (0.8, 0.8)))
    assert differences(scan, like, Preprocess()) == {}
    assert set(differences(scan, like, Preprocess(orientation=None))) == {"spacing"}


def test_classes_that_no_scan_has_are_known(tmp_path):
    (tmp_path / "data").mkdir()
    place = labeled.indexed(
        labeled.volumes(tmp_path / "data" / "scans"),
        tmp_path / "data" / "i.sqlite",
        classes="0=background,1=left,4=right,7=tail",
        key=tmp_path / "key",
    )
    store = Store.open(labeled.stored(place, tmp_path / "store"))
    known = trained_on(store, range(3), store.schema)
    assert known.missing_classes == ("tail",)
    (note,) = missing_note(known)
    assert note.kind == "missing"
    assert str(note) == "no training scan has tail: the network will hardly ever predict that"
    assert missing_note(trained_on(store, range(3))) == missing_note(None) == []


def test_scan_level_classes_that_no_scan_has_are_known(tmp_path):
    (tmp_path / "data").mkdir()
    place = labeled.indexed(
        labeled.pictures(tmp_path / "data" / "scans"), tmp_path / "data" / "i.sqlite", key=tmp_path / "key"
    )
    store = Store.open(labeled.stored(place, tmp_path / "store"))
    left = [n for n in range(len(store)) if store.values(n)["class"] == "left"]
    schema = LabelSchema("class", ((0, "left"), (1, "none"), (2, "right")))
    assert trained_on(store, left, schema).missing_classes == ("none", "right")


def test_predict_notes_classes_without_training_scans(tmp_path, scans, capsys):
    known = TrainedOn(("MR",), ("mr",), missing_classes=("bone",))
    assert "note: no training scan has bone" in run(tmp_path, scans, known, capsys)[1]


def test_a_fine_tuned_network_says_what_its_scans_are_like(tmp_path):
    (tmp_path / "data").mkdir()
    place = labeled.indexed(
        labeled.volumes(tmp_path / "data" / "scans"), tmp_path / "data" / "i.sqlite", key=tmp_path / "key"
    )
    store = Store.open(labeled.stored(place, tmp_path / "store"))
    known = trained_on(store, range(3))
    assert known == TrainedOn(("MR",), ("mr",), ((1.0, 1.0), (1.0, 1.0), (1.5, 1.5)))
    assert load_card(fitted.save(tmp_path / "run", trained_on=known)).tuned.trained_on == known
