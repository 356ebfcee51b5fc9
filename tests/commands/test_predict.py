"""Predictions as files: on the scan's own grid, for every format; resumed, named, and what is skipped."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from commands import fitted
from commands.fitted import KINDS, RAW, TISSUES, bands
from data.make_scans import Series, noise, truncate, write_itk, write_nifti, write_picture, write_series

from medssl.cli import run_verb
from medssl.commands.predict import predict
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.data.store import coding
from medssl.data.store.preprocess import prepare
from medssl.heads.base import Network
from medssl.heads.weights import save_network
from medssl.inference import prediction
from medssl.inference.predictor import Windows, load_fitted, reader, segment
from medssl.inference.requested_scans import private_index
from medssl.metrics import tables
from medssl.metrics.calibration import Scaling
from medssl.metrics.cases import ClassificationRow
from medssl.types import Card, Imported, LabelSchema, Preprocess, Tuned, UserError
from medssl.types.provenance import Provenance

TURN = np.linalg.qr(np.array([[-1.0, 0.2, 0.1], [0.1, 1.0, 0.3], [0.0, -0.3, 1.0]]))[0]
OBLIQUE = np.block([[TURN * (0.8, 0.9, 2.5), np.array([[30.0], [-12.0], [7.0]])], [np.zeros((1, 3)), np.ones((1, 1))]])


@pytest.fixture(autouse=True)
def own_umask():
    mask = os.umask(0o077)
    yield
    os.umask(mask)


@pytest.fixture
def files(tmp_path) -> FileOptions:
    return FileOptions(workers=0, key=tmp_path / "key" / "key")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def scan_ids(out: Path) -> dict[str, str]:
    """Identifier of the scan of each file, by the name of the file or of the folder of a series."""
    with Index.open(private_index(out)) as index:
        return {
            name: scan.scan_id
            for scan in index.scans()
            for part in scan.source.parts
            for name in (Path(part.path).name, Path(part.path).parent.name)
        }


def test_every_format_comes_back_on_its_own_grid(tmp_path, files, out):
    scans = tmp_path / "scans"
    arrays = {
        "a.nii.gz": write_nifti(scans / "a.nii.gz", noise((9, 12, 7), seed=1), OBLIQUE),
        "b.nrrd": write_itk(scans / "b.nrrd", noise((9, 8, 5), seed=2)),
        "c.mha": write_itk(scans / "c.mha", noise((19, 8, 5), seed=3)),
    }
    series, _ = write_series(scans / "series")
    arrays["series"] = series.pixels().transpose(2, 1, 0)
    run = fitted.save(tmp_path / "run")
    assert predict(run, (scans,), out=out, files=files).exit_code == 0
    ids = scan_ids(out)
    for name, array in arrays.items():
        image = nibabel.load(out / f"{ids[name]}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), bands(array))
        with Index.open(private_index(out)) as index:
            np.testing.assert_allclose(image.affine, index.scan(ids[name]).grid.affine, atol=1e-4)
        header = image.header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
        np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)
        assert header.get_xyzt_units()[0] == "mm"
        assert header.get_intent()[0] == "label"
        (extension,) = header.extensions
        assert extension.get_code() == 6
        assert json.loads(extension.get_content())["classes"][1] == {"value": 5, "name": "tissue"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in out.rglob("*"))
    assert json.loads((out / "classes.json").read_text())["classes"][2]["name"] == "bone"
    lines = (out / "classes.txt").read_text().splitlines()
    assert lines[1] == '0 0 0 0 0 0 0 "background"'
    assert lines[3].startswith("9 ")
    assert lines[3].endswith(' 1 1 1 "bone"')


def test_a_prediction_lies_where_simpleitk_reads_the_scan(tmp_path, files, out):
    import SimpleITK

    array = noise((9, 12, 7), seed=1)
    write_nifti(tmp_path / "scans" / "a.nii.gz", array, OBLIQUE @ np.diag([-1.0, 1.0, 1.0, 1.0]))
    assert (
        predict(fitted.save(tmp_path / "run"), (tmp_path / "scans",), out=out, files=files, names="file").exit_code == 0
    )
    scan, found = (SimpleITK.ReadImage(str(f)) for f in (tmp_path / "scans" / "a.nii.gz", out / "a.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found), bands(SimpleITK.GetArrayFromImage(scan)))
    for fact in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        np.testing.assert_allclose(getattr(found, fact)(), getattr(scan, fact)(), atol=1e-4)


def test_a_resampled_scan_comes_back_smooth_and_on_its_grid(tmp_path):
    from data.stores import volume

    grid = np.stack(np.meshgrid(*map(np.arange, (60, 50, 12)), indexing="ij"), -1) * (0.7, 0.7, 5.0)
    truth = np.square((grid - (20, 17, 28)) / (15, 12, 20)).sum(-1) < 1
    image = np.where(truth, 400, 20).astype(np.int16)[None]
    run = fitted.save(tmp_path / "run", preprocess=Preprocess(None, (1.0, 1.0, 3.0), intensity=RAW.intensity))
    held = volume(image, np.diag([0.7, 0.7, 5.0, 1.0]), label=np.full_like(image, 3))
    found = segment(load_fitted(run, torch.device("cpu")), held, "mr") > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95


def test_the_network_sees_what_it_saw_in_training():
    from data.stores import PLAIN, numbered, volume

    prepared = prepare(volume(numbered((6, 5, 4), channels=2)), PLAIN, domain="mr")
    values = coding.decode(prepared.image, prepared.coding.intensity)
    read = reader(prepared)
    np.testing.assert_allclose(read((1, 2, 0), (4, 3, 4)).numpy(), values[:, 1:5, 2:5], atol=1e-6)
    padded = read((-2, 1, 0), (9, 3, 6)).numpy()
    np.testing.assert_allclose(padded[:, 2:8, :, :4], values[:, :, 1:4], atol=1e-6)
    low, shift, divisor = (prepared.coding.intensity[:, column] for column in (2, 4, 5))
    lowest = ((low - shift) / divisor)[:, None, None, None]
    for outside in (padded[:, :2], padded[:, 8:], padded[..., 4:]):  # the padding of views
        np.testing.assert_allclose(outside, np.broadcast_to(lowest, outside.shape))


def test_images_become_pictures(tmp_path, files, out):
    from PIL import Image

    array = noise((20, 30, 3), np.uint8, high=255)
    write_picture(tmp_path / "scans" / "x.png", array)
    run = fitted.save(tmp_path / "run", window=(16, 16), channels=3)
    assert predict(run, (tmp_path / "scans",), out=out, files=files, names="file").exit_code == 0
    found = np.asarray(Image.open(out / "x.png"))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, bands(array.mean(2)))


def test_slices_are_seen_as_in_training(tmp_path, files, out):
    write_nifti(tmp_path / "scans" / "a.nii", noise((8, 8, 3)), np.diag([-1.0, 1.0, 2.0, 1.0]))
    write_nifti(tmp_path / "scans" / "b.nii", noise((8, 8, 3)), np.diag([1.0, 1.0, 2.0, 1.0])[[1, 0, 2, 3]])
    run = fitted.save(tmp_path / "run", fitted.Sides, window=(8, 8), preprocess=RAW)
    assert predict(run, (tmp_path / "scans",), out=out, files=files, names="file").exit_code == 0
    right = np.zeros((8, 8, 3), int)
    right[4:] = 5  # columns run to the right of the patient (RAS)
    np.testing.assert_array_equal(np.asarray(nibabel.load(out / "a.nii.gz").dataobj), right[::-1])
    np.testing.assert_array_equal(np.asarray(nibabel.load(out / "b.nii.gz").dataobj), right.transpose(1, 0, 2))


def test_slices_across_another_axis(tmp_path, files, out):
    array = write_nifti(tmp_path / "scans" / "a.nii", noise((5, 9, 10)), np.eye(4))
    run = fitted.save(tmp_path / "run", window=(4, 4), slice_axis=0)
    assert predict(run, (tmp_path / "scans" / "a.nii",), out=out, files=files, names="file").exit_code == 0
    np.testing.assert_array_equal(np.asarray(nibabel.load(out / "a.nii.gz").dataobj), bands(array))


def test_a_real_network_of_encoder_and_decoder(tmp_path, files, out):
    from medssl.encoders.resenc import ResEnc
    from medssl.heads.segmentation import UNet

    arguments = {"ndim": 3, "channels": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]], "blocks": [1, 1]}
    torch.manual_seed(0)
    encoder = ResEnc(**arguments)
    tuned = Tuned(Imported("medssl.heads.segmentation.UNet"), TISSUES, (8, 8, 8), 2, ())
    card = Card(
        Imported("medssl.encoders.resenc.ResEnc", arguments), Preprocess(), None, "", Provenance(), 1, {}, tuned
    )
    save_network(tmp_path / "run", Network(encoder, UNet(encoder, TISSUES)), card)
    write_nifti(tmp_path / "scans" / "a.nii", noise((11, 9, 10)), OBLIQUE)
    windows = Windows(overlap=0.25, batch_size=3, precision="bf16")
    assert (
        predict(tmp_path / "run", (tmp_path / "scans",), out=out, files=files, names="file", windows=windows).exit_code
        == 0
    )
    found = np.asarray(nibabel.load(out / "a.nii.gz").dataobj)
    assert found.shape == (11, 9, 10)
    assert set(np.unique(found)) <= {0, 5, 9}


def test_a_classification_is_a_table(tmp_path, files, out):
    scans = tmp_path / "scans"
    for name, value in (("dark", 40), ("bright", 300)):
        write_nifti(scans / f"{name}.nii", np.full((8, 8, 4), value, np.int16))
    run = fitted.save(tmp_path / "run", fitted.Mean, schema=KINDS, window=(8, 8))
    for names in ("scan_id", "file"):
        assert predict(run, (scans,), out=out, files=files, names=names).exit_code == 0
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert list(rows[0]) == ["name", "predicted", "probability:dark", "probability:bright"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["dark"]["predicted"] == "dark"
    assert float(by_name["bright"]["probability:bright"]) == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    assert not (out / "classes.json").exists()


# --- going on


def test_a_name_that_is_a_formula_is_kept_out_of_the_table(tmp_path, files, out):
    for name in ("=1+1", "-3", "good"):
        write_nifti(tmp_path / "scans" / f"{name}.nii", np.full((8, 8, 4), 40, np.int16))
    run = fitted.save(tmp_path / "run", fitted.Mean, schema=KINDS, window=(8, 8))
    with pytest.raises(UserError, match=r"the file '=1\+1' would be a formula in predictions.csv: rename it, or set n"):
        predict(run, (tmp_path / "scans",), out=out, files=files, names="file")
    assert not (out / "predictions.csv").exists()
    assert predict(run, (tmp_path / "scans",), out=out, files=files).exit_code == 0
    (tmp_path / "scans" / "=1+1.nii").unlink()
    other = out.with_name("other")
    assert predict(run, (tmp_path / "scans",), out=other, files=files, names="file").exit_code == 0
    assert probabilities(other).keys() == {"-3", "good"}


def scores(folder: Path, run: Path, scaling: Scaling | None) -> Path:
    """What an evaluation of a run leaves in a folder."""
    rows = [ClassificationRow(f"s{n}", f"p{n}", "dark", "dark", (0.9, 0.1)) for n in range(3)]
    by = {"weights": load_fitted(run, torch.device("cpu")).digest}
    folder.mkdir()
    tables.write_summary(
        folder / "summary.json", tables.summarize_classification(rows, ["dark", "bright"], by=by, scaling=scaling)
    )
    return folder


def probabilities(out: Path) -> dict[str, tuple[str, float, float]]:
    rows = csv.DictReader((out / "predictions.csv").read_text().splitlines())
    return {
        row["name"]: (row["predicted"], *(float(row[f"probability:{n}"]) for n in ("dark", "bright"))) for row in rows
    }


def test_probabilities_at_the_temperature_of_an_evaluation(tmp_path, files, out, capsys):
    for name, value in (("a", 40), ("b", 180), ("c", 250)):
        write_picture(tmp_path / "scans" / f"{name}.png", np.full((9, 8), value, np.uint8))
    run = fitted.save(tmp_path / "run", fitted.Mean, schema=KINDS, window=(8, 8))
    fit = scores(tmp_path / "scores", run, Scaling(2.0, "val", 6, 5))
    asked = {"files": files, "names": "file"}
    assert predict(run, (tmp_path / "scans",), out=out, **asked).exit_code == 0
    plain = probabilities(out)
    assert "temperature" not in capsys.readouterr().out
    for number, place in enumerate((fit, fit / "summary.json")):
        other = out.with_name(f"other{number}")
        assert predict(run, (tmp_path / "scans",), out=other, scaling=place, **asked).exit_code == 0
        assert "probabilities at temperature 2, fitted on 6 scans of split val" in capsys.readouterr().out
        assert probabilities(other).keys() == {"a", "b", "c"}
        for name, (predicted, dark, bright) in probabilities(other).items():
            assert predicted == plain[name][0]
            odds = np.sqrt(plain[name][2] / plain[name][1])  # half of the logarithm
            assert (dark, bright) == pytest.approx((1 / (1 + odds), odds / (1 + odds)))
    with pytest.raises(
        UserError, match=r"other settings \(temperature None there, 2.0 here\): choose another folder for results"
    ):
        predict(run, (tmp_path / "scans",), out=out, scaling=fit, **asked)
    bare = scores(tmp_path / "bare", run, None)
    with pytest.raises(UserError, match=r"^scaling: .*bare holds no temperature\. Evaluate with calibrate val first"):
        predict(run, (tmp_path / "scans",), out=out, scaling=bare, **asked)
    with pytest.raises(UserError, match=r"nowhere cannot be read .*: evaluate again"):
        predict(run, (tmp_path / "scans",), out=out, scaling=tmp_path / "nowhere", **asked)
    second = fitted.save(tmp_path / "second", fitted.Mean, schema=KINDS, window=(8, 8), subjects=("x",))
    with pytest.raises(UserError, match=r"is of the weights \w{16}, the network has \w{16}\. Give the scores of this"):
        predict(second, (tmp_path / "scans",), out=out, scaling=fit, **asked)
    with pytest.raises(
        UserError,
        match=r"^scaling: a temperature is for class probabilities, the network is a seg",
    ):
        predict(fitted.save(tmp_path / "third"), (tmp_path / "scans",), out=out, scaling=fit, **asked)


def test_finished_predictions_are_not_made_again(tmp_path, files, out, monkeypatch, capsys):
    scans = tmp_path / "scans"
    for number in range(3):
        write_nifti(scans / f"s{number}.nii.gz", noise((8, 8, 4), seed=number))
    run = fitted.save(tmp_path / "run")
    assert predict(run, (scans,), out=out, files=files).exit_code == 0
    made = sorted(out.glob("*.nii.gz"))
    content = made[1].read_bytes()
    made[1].unlink()
    asked = []
    monkeypatch.setattr(prediction, "segment", lambda *a: (asked.append(1), segment(*a))[1])
    assert predict(run, (scans,), out=out, files=files).exit_code == 0
    assert len(asked) == 1
    assert made[1].read_bytes() == content
    assert "3 scans predicted (1 new, 2 already present), 0 skipped" in capsys.readouterr().out
    write_nifti(scans / "s0.nii.gz", noise((8, 8, 5), seed=7))
    assert predict(run, (scans,), out=out, files=files).exit_code == 0
    assert len(asked) == 2  # a scan whose file has changed


def test_a_kill_in_the_middle_of_a_line_loses_that_line_only(tmp_path, files, out):
    for number in range(2):
        write_nifti(tmp_path / "scans" / f"s{number}.nii", noise((8, 8, 4), seed=number))
    run = fitted.save(tmp_path / "run")
    assert predict(run, (tmp_path / "scans",), out=out, files=files).exit_code == 0
    kept = (out / "finished.jsonl").read_bytes()
    (out / "finished.jsonl").write_bytes(kept[:-9])
    assert predict(run, (tmp_path / "scans",), out=out, files=files).exit_code == 0
    assert (out / "finished.jsonl").read_bytes() == kept


def test_results_of_other_weights_or_settings_are_not_mixed(tmp_path, files, out):
    write_nifti(tmp_path / "scans" / "a.nii", noise((8, 8, 4)))
    run = fitted.save(tmp_path / "run")
    assert predict(run, (tmp_path / "scans",), out=out, files=files).exit_code == 0
    other = fitted.save(tmp_path / "other", level=2.0)
    with pytest.raises(UserError, match=r"another network or other settings \(weights \w+ there, \w+ here\): choose"):
        predict(other, (tmp_path / "scans",), out=out, files=files)
    with pytest.raises(UserError, match=r"other settings \(overlap 0.5 there, 0.25 here\)"):
        predict(run, (tmp_path / "scans",), out=out, files=files, windows=Windows(overlap=0.25))


# --- what is skipped, what is refused


def test_what_fails_is_listed_and_the_rest_is_done(tmp_path, files, out, capsys):
    scans = tmp_path / "scans"
    write_nifti(scans / "good.nii.gz", noise((8, 8, 4)))
    write_nifti(scans / "bad.nii", noise((8, 8, 4)))
    truncate(scans / "bad.nii")
    write_picture(scans / "image.png", noise((9, 8), np.uint8))
    write_picture(scans / "color.png", noise((9, 8, 3), np.uint8))
    bad = np.full((8, 8, 4), np.nan, np.float32)
    write_nifti(scans / "nan.nii", bad)
    assert predict(fitted.save(tmp_path / "run"), (scans,), out=out, files=files).exit_code == 0
    told = capsys.readouterr().out
    assert "1 scans predicted (1 new, 0 already present), 4 skipped" in told
    assert "(bad.nii): truncated" in told
    assert "the network was trained on 3D windows, the scan is a 2D image: choose a 2D network" in told
    assert "the network takes 1 channel(s), the scan has 3: choose another scan or network" in told
    assert "256 of 256 voxels are NaN or infinite" in told
    assert len(list(out.glob("*.nii.gz"))) == 1


def test_a_folder_without_a_readable_scan_is_one_line(tmp_path, files, out, capsys):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "notes.txt").write_text("no scan")
    assert predict(fitted.save(tmp_path / "run"), (tmp_path / "scans",), out=out, files=files).exit_code == 1
    assert capsys.readouterr().err.endswith("error: no scan could be predicted: none was found, 0 were skipped\n")


def test_scores_that_are_not_finite_are_a_reason(tmp_path, files, out, capsys):
    write_nifti(tmp_path / "scans" / "a.nii", noise((8, 8, 4)))
    run = fitted.save(tmp_path / "run", level=float("nan"))
    assert predict(run, (tmp_path / "scans",), out=out, files=files).exit_code == 1
    assert "scores are not finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scans": ()}, "say what to predict: files or folders, or else an index"),
        ({"index": Path("index.sqlite")}, "say what to predict: files or folders, or else an index"),
        ({"scans": (Path("nowhere"),)}, "no such file or folder: nowhere"),
        ({"out": "scans/out"}, "^out: the folder lies inside .*scans, whose scans are to be predicted"),
        ({"run": "empty"}, "card.json: no card could be read"),
    ],
)
def test_commands_that_cannot_be_meant_are_refused(tmp_path, files, change, message):
    write_nifti(tmp_path / "scans" / "a.nii", noise((8, 8, 4)))
    given = {"run": fitted.save(tmp_path / "run"), "scans": (tmp_path / "scans",), "out": tmp_path / "out"} | change
    given |= {name: tmp_path / given[name] for name in ("run", "out") if isinstance(given[name], str)}
    with pytest.raises(UserError, match=message):
        predict(given.pop("run"), given.pop("scans"), files=files, **given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap": 1.0}, "windows.overlap: must be from 0 to below 1"),
        ({"batch_size": 0}, r"windows.batch_size: must be at least 1 \(got 0\)"),
    ],
)
def test_windows_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        Windows(**settings)


def test_a_gpu_that_is_not_there_is_refused(tmp_path, files, out, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"windows.accelerator is gpu, but torch sees none"):
        predict(tmp_path, (tmp_path,), out=out, files=files, windows=Windows(accelerator="gpu"))


def test_classes_that_a_picture_cannot_hold_are_refused(tmp_path, files, out):
    write_picture(tmp_path / "scans" / "x.png", noise((8, 8), np.uint8, high=255))
    schema = LabelSchema("mask", ((0, "background"), (-5, "tissue"), (9, "bone")))
    run = fitted.save(tmp_path / "run", window=(8, 8), schema=schema)
    with pytest.raises(UserError, match="classes have values from -5 to 0: a PNG holds 0 to 65535"):
        predict(run, (tmp_path / "scans",), out=out, files=files)


# --- which scans, which names


def test_a_file_stands_for_its_scan_and_its_folder_is_not_searched_below(tmp_path, files, out):
    scans = tmp_path / "scans"
    for name in ("a", "b", "deep/c"):
        write_nifti(scans / f"{name}.nii.gz", noise((8, 8, 4)))
    series, slices = write_series(scans / "series", Series(shape=(8, 8, 5)))
    asked = (scans / "a.nii.gz", slices[2])
    assert predict(fitted.save(tmp_path / "run"), asked, out=out, files=files, names="file").exit_code == 0
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["a.nii.gz", "series.nii.gz"]
    found = np.asarray(nibabel.load(out / "series.nii.gz").dataobj)
    np.testing.assert_array_equal(found, bands(series.pixels().transpose(2, 1, 0)))
    with Index.open(private_index(out)) as index:
        assert not list(index.connection.execute("SELECT path FROM files WHERE path LIKE '%deep%'"))


def test_a_file_that_is_no_scan_is_told(tmp_path, files, out, capsys):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "notes.txt").write_text("no scan")
    assert (
        predict(fitted.save(tmp_path / "run"), (tmp_path / "scans" / "notes.txt",), out=out, files=files).exit_code == 1
    )
    told = capsys.readouterr()
    assert "skipped notes.txt: not an image" in told.out
    assert told.err.endswith("error: no scan could be predicted, 1 were skipped\n")


def test_equal_names_have_the_identifier_behind_them(tmp_path, files, out):
    for folder in ("one", "two"):
        write_nifti(tmp_path / "scans" / folder / "brain.nii.gz", noise((8, 8, 4)))
    assert (
        predict(fitted.save(tmp_path / "run"), (tmp_path / "scans",), out=out, files=files, names="file").exit_code == 0
    )
    with Index.open(private_index(out)) as index:
        wanted = sorted(f"brain-{scan.scan_id}.nii.gz" for scan in index.scans())
    assert sorted(path.name for path in out.glob("*.nii.gz")) == wanted


def test_scans_of_an_index_by_condition_and_no_name_in_any_file(tmp_path, files, out):
    scans, file = tmp_path / "secret-place", tmp_path / "index" / "index.sqlite"
    for name, size in (("miller", 4), ("jones", 5)):
        write_nifti(scans / f"{name}.nii.gz", noise((8, 8, size)))
    with Index.open(file, create=True, root=tmp_path) as index:
        update(index, [scans], IndexOptions(), key=b"k" * 32)
    run = fitted.save(tmp_path / "run")
    assert predict(run, out=out, index=file, where="size_k = 5").exit_code == 0
    assert len(list(out.glob("*.nii.gz"))) == 1
    for path in out.iterdir():
        for word in ("secret-place", "miller", "jones"):
            assert word not in path.name
            assert word.encode() not in path.read_bytes()


def test_the_command_line_reads_its_arguments(tmp_path, files, out):
    write_nifti(tmp_path / "scans" / "a.nii.gz", noise((8, 8, 4)))
    words = [str(fitted.save(tmp_path / "run")), str(tmp_path / "scans"), f"--out={out}", f"--files.key={files.key}"]
    assert run_verb(predict, "predict", [*words, "--names", "file", "--windows.overlap", "0.25"]) == 0
    assert (out / "a.nii.gz").exists()


@pytest.mark.data
def test_a_prediction_lies_on_its_real_series(real_data, tmp_path, files, out):
    import SimpleITK

    (folder,) = (real_data / "dicom_brain_mr").glob("36468*")
    run = fitted.save(tmp_path / "run", window=(64, 64, 16))
    assert predict(run, (folder,), out=out, files=files, names="file").exit_code == 0
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    series, found = reader.Execute(), SimpleITK.ReadImage(str(out / f"{folder.name}.nii.gz"))
    for fact in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        np.testing.assert_allclose(getattr(found, fact)(), getattr(series, fact)(), atol=1e-4)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found), bands(SimpleITK.GetArrayFromImage(series)))
