"""Words for modalities, values that look like CT, and what the index says of both."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from data.make_scans import Series, noise, write_nifti, write_series

from medssl.cli import main
from medssl.data.formats.modality import modality_of, of_channels
from medssl.data.index.modality_notes import looks_like_ct
from medssl.data.index.scan_index import FileOptions
from medssl.types import UserError


@pytest.mark.parametrize(
    ("word", "term"),
    [
        ("MRI", "MR"), ("mr", "MR"), ("CT ", "CT"), ("ct", "CT"), ("PET", "PT"), ("pt", "PT"), ("US", "US"),
        ("ultrasound", "US"), ("XR", "DX"), ("X-RAY", "DX"), ("x ray", "DX"), ("DX", "DX"), ("cr", "CR"), ("MG", "MG"),
        ("Mammography", "MG"), ("SPECT", "NM"), ("", ""),
    ],
)  # fmt: skip
def test_usual_words_are_understood(word, term):
    assert modality_of(word) == term
    assert FileOptions(modality=word).modality == word


def test_an_unknown_word_is_refused_with_the_known_ones(tmp_path, capsys):
    with pytest.raises(UserError, match=r"^files\.modality: modality not known \(got 'CAT5'; expected one of CT"):
        modality_of("CAT5")
    assert main(["index", str(tmp_path), "--files.modality", "xyz"]) == 2
    assert "error: --files.modality: modality not known (got 'xyz'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "term"),
    [
        (["CT"], "CT"), (["ct_win1", "CT_bone"], "CT"), (["T1w", "FLAIR"], "MR"), (["MRI"], "MR"), (["PET"], "PT"),
        (["xray"], "DX"), (["CT", "PET"], ""), (["ES"], ""), (["noNormalization"], ""), ([], ""),
    ],
)  # fmt: skip
def test_names_of_channels_tell_the_modality_where_they_agree(names, term):
    assert of_channels(names) == term


def body(low: int = -1000, dtype: type = np.int16, seed: int = 0) -> np.ndarray:
    """A block of tissue in air."""
    values = noise((12, 12, 12), np.int16, seed=seed, high=300).astype(np.int32)
    values[:4] = low
    return values.astype(dtype)


def test_values_that_look_like_ct():
    padded = body()
    padded[0, 0] = -3024
    assert all(map(looks_like_ct, (body(), body(-1024), padded, body(dtype=np.float32))))
    noisy = noise((9, 9, 9)).astype(np.float32) / 7 - 1000
    assert not any(map(looks_like_ct, (noise((9, 9, 9)), noisy, body(24), noise((9, 9, 9)) - np.int16(1500))))


def index(tmp_path: Path, *words: str) -> int:
    key = ["--files.key", str(tmp_path / "keys" / "key"), "--files.workers", "0"]
    return main(["index", str(tmp_path / "d"), "--index", str(tmp_path / "x" / "i.sqlite"), *key, *words])


def test_a_ct_that_nobody_calls_one_is_said(tmp_path, capsys):
    for number in range(3):
        write_nifti(tmp_path / "d" / f"{number}.nii", body(seed=number))
    write_nifti(tmp_path / "d" / "m.nii", noise((9, 9, 9)))
    index(tmp_path)
    said = r"note: d: 3 of 4 files that were looked into look like CT \(.*\): say files\.modality CT"
    assert re.search(said, capsys.readouterr().out)
    index(tmp_path)  # nothing changed: nothing is read, and it is still said
    assert re.search(said, capsys.readouterr().out)
    index(tmp_path, "--files.modality", "ct ")
    assert "look like CT" not in capsys.readouterr().out


def test_a_ct_without_air_is_asked_about(tmp_path, capsys):
    for number in range(3):
        write_nifti(tmp_path / "d" / f"{number}.nii", body(24, seed=number))
    index(tmp_path, "--files.modality", "CT")
    assert re.search(
        r"note: d: 3 of 3 files .* have no air \(values 0 to 2\d\d\): .*were 1024 added", capsys.readouterr().out
    )
    index(tmp_path)
    assert "look like CT" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_modalities_of_dicom_are_read_in_any_case(tmp_path, capsys):
    write_series(tmp_path / "d", Series(extra={"Modality": "ct "}))
    index(tmp_path)
    assert "1 CT volume" in capsys.readouterr().out


def test_modalities_that_dicom_does_not_know_are_listed(tmp_path, capsys):
    write_series(tmp_path / "d", Series(extra={"Modality": "ZZ"}))
    index(tmp_path)
    assert "note: modalities that are not known: 'ZZ' (1 scans)" in capsys.readouterr().out


def test_what_was_guessed_is_counted_with_the_first_file(tmp_path, capsys):
    import nibabel

    (tmp_path / "d").mkdir()
    for name in "ab":
        image = nibabel.Nifti1Image(noise((4, 5, 6)), np.diag([50.0, 50.0, 100.0, 1.0]))
        image.header.set_xyzt_units("micron")
        nibabel.save(image, tmp_path / "d" / f"{name}.nii")
    index(tmp_path)
    assert re.search(
        r"notes on scans:\n(.*\n)*?  2: lengths converted to mm from \w+ \(first: a\.nii\)", capsys.readouterr().out
    )
