"""Rules that are measured on a collection: spacings, and intensities, which the store and later scans keep."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from data import stores
from data.make_scans import write_nifti, write_picture

from medssl.cli import main
from medssl.commands.cache import cache
from medssl.data.formats.reading import Volume
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.data.store import fingerprint
from medssl.data.store.preprocess import check, prepare
from medssl.data.store.spacing import Spacings
from medssl.data.store.store import Store
from medssl.types import IntensityRule, IntensityRules, Preprocess, UserError

PRESETS = Path(__file__).parents[3] / "configs" / "data"
COLLECTION = Preprocess(
    foreground_crop=False, intensity=IntensityRules(hu=IntensityRule("collection", 0.5, 99.5, "collection"))
)
STEPS = ((0.7, 0.7, 5.0), (0.8, 0.8, 2.5), (0.9, 0.6, 1.25), (0.5, 0.75, 5.0), (1.0, 1.0, 5.0))


def affine_of(steps, codes="RAS"):
    """Voxel -> world of a volume with this spacing along the axes named by the codes."""
    change = nibabel.orientations.axcodes2ornt(tuple(codes))
    out = np.eye(4)
    out[:3, :3] = 0
    for axis, (to, sign) in enumerate(change):
        out[int(to), axis] = sign * steps[int(to)]
    return out


def values_of(k, shape):
    """Hounsfield units of scan k: air, and a body of another mean in each scan."""
    generator = np.random.default_rng(k)
    image = np.full(shape, -1000, np.int16)
    image[2:-2, 2:-2] = generator.normal(40 + 10 * k, 30, (shape[0] - 4, shape[1] - 4, shape[2])).astype(np.int16)
    return image


def indexed(
    tmp_path, *, steps=STEPS, codes=("RAS",), masks=(), modality="CT", split="train=1", shape=(20, 18, 6)
) -> Path:
    """Indexes one volume for each spacing; those of ``masks`` have a label map."""
    folder, file = tmp_path / "scans", tmp_path / "index.sqlite"
    for k, spacing in enumerate(steps):
        axes = codes[k % len(codes)]
        order = [int(to) for to, _ in nibabel.orientations.axcodes2ornt(tuple(axes))]
        image = values_of(k, shape).transpose(order)
        write_nifti(folder / "images" / f"s{k}.nii.gz", image, affine_of(spacing, axes))
        if k in masks:
            label = np.zeros(shape, np.uint8)
            label[4:8, 4:9, 1:4] = 1
            label[10:12, 4:9, 1:4] = 9
            write_nifti(folder / "labels" / f"s{k}.nii.gz", label.transpose(order), affine_of(spacing, axes))
    options = IndexOptions(
        subject=r"(\w+)\.",
        labels=LabelOptions(
            **({"masks": "images=labels", "class_names": "0=a,1=b", "ignore": 9} if masks else {}), split=split
        ),
        files=FileOptions(modality=modality, workers=0),
    )
    with Index.open(file, create=True) as index:
        update(index, [folder], options, key=b"k" * 32)
    return file


def rules_in(store: Path) -> dict:
    """The rules that a store holds."""
    return json.loads((store / "store.json").read_text())["preprocess"]


# --- spacing


def test_the_median_is_that_of_the_stored_axes(tmp_path, capsys):
    index = indexed(tmp_path, codes=("RAS", "SRA", "LPI"))
    assert (
        main(["cache", str(index), str(tmp_path / "store"), "--workers", "0", "--preprocess.spacing_mm", "median"]) == 0
    )
    expected = np.median(np.array(STEPS), axis=0)
    stored = Store.open(tmp_path / "store")
    assert stored.preprocess.spacing_mm == pytest.approx(expected, rel=1e-6)
    for number in range(len(stored)):
        assert np.linalg.norm(stored.affine(number)[:3, :3], axis=0) == pytest.approx(expected, rel=1e-5)
    said = capsys.readouterr().out
    assert "note: preprocess.spacing_mm median: 0.8 x 0.75 x 5 mm, of 5 volumes (0.5-1 x 0.6-1 x 1.25-5 mm)" in said
    assert stored.preprocess.digest() == json.loads((tmp_path / "store/store.json").read_text())["digest"]
    assert stored.requested is not None
    assert stored.requested.spacing_mm == "median"


def test_the_median_is_of_the_selected_scans(tmp_path):
    index = indexed(tmp_path)
    cache(index, tmp_path / "some", preprocess=Preprocess(spacing_mm="median"), where="spacing_k_mm < 3", workers=0)
    chosen = np.array([steps for steps in STEPS if steps[2] < 3])
    assert Store.open(tmp_path / "some").preprocess.spacing_mm == pytest.approx(np.median(chosen, axis=0), rel=1e-6)


def test_very_thick_slices_take_the_tenth_percentile(tmp_path):
    index = indexed(tmp_path, shape=(60, 58, 6))
    with Index.open(index) as opened:
        spacings = Spacings(opened.scans(), "RAS")
        median, nnunet = spacings.target("median"), spacings.target("nnunet")
    assert median[2] == 5.0
    assert nnunet[:2] == median[:2]
    assert nnunet[2] == pytest.approx(np.percentile([s[2] for s in STEPS], 10), rel=1e-6)
    for changed in (spacings.mm / (1, 1, 3), np.column_stack([spacings.mm[:, :2], np.full(5, 0.1)])):
        few = Spacings((), "RAS")
        few.mm, few.shapes = changed, spacings.shapes
        assert few.target("nnunet") == few.target("median")  # not very thick
    spacings.shapes = spacings.shapes * (1, 1, 4)  # many voxels across the slices
    assert spacings.target("nnunet") == median
    fine = Spacings((), "RAS")
    fine.mm, fine.shapes = np.array([[1.0, 1.0, 0.2]] * 2 + [[1.0, 1.0, 4.0]] * 3), np.full((5, 3), (90.0, 90.0, 9.0))
    assert fine.target("nnunet") == (1.0, 1.0, 1.0)  # no finer than in the plane


def test_the_median_leaves_images_alone(tmp_path):
    folder = tmp_path / "pictures"
    write_picture(folder / "one.png", np.arange(12 * 9, dtype=np.uint8).reshape(12, 9))
    write_nifti(folder / "volume.nii.gz", values_of(0, (20, 18, 6)), affine_of((2.0, 3.0, 4.0)))
    with Index.open(tmp_path / "index.sqlite", create=True) as index:
        update(index, [folder], IndexOptions(subject=r"(\w+)\.", files=FileOptions(workers=0)), key=b"k" * 32)
    cache(
        tmp_path / "index.sqlite",
        tmp_path / "store",
        preprocess=Preprocess(None, "median", foreground_crop=False),
        workers=0,
    )
    store = Store.open(tmp_path / "store")
    assert store.preprocess.spacing_mm == (2.0, 3.0, 4.0)
    flat = next(n for n in range(len(store)) if len(store.shape(n)) == 2)
    assert store.shape(flat) == (12, 9)


def test_one_spacing_for_all_axes(tmp_path):
    index = indexed(tmp_path)
    cache(index, tmp_path / "store", preprocess=Preprocess(isotropic=2.0), workers=0)
    stored = Store.open(tmp_path / "store", preprocess=Preprocess(isotropic=2.0))
    assert stored.preprocess.spacing_mm == (2.0, 2.0, 2.0)
    assert stored.preprocess.isotropic is None
    assert np.linalg.norm(stored.affine(0)[:3, :3], axis=0) == pytest.approx([2.0] * 3)


def test_a_spread_of_spacings_is_said(tmp_path, capsys):
    index = indexed(tmp_path)
    assert main(["cache", str(index), str(tmp_path / "store"), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "note: spacing as stored: 0.5-1 x 0.6-1 x 1.25-5 mm in 5 volumes, median 0.8 x 0.75 x 5 mm" in said
    assert "preprocess.spacing_mm median" in said
    (tmp_path / "alike").mkdir()
    alike = indexed(tmp_path / "alike", steps=((0.8, 0.8, 2.0), (0.9, 0.8, 2.2)))
    assert main(["cache", str(alike), str(tmp_path / "alike/store"), "--workers", "0"]) == 0
    assert "spacing as stored" not in capsys.readouterr().out


def test_scans_that_come_later_keep_the_numbers(tmp_path, capsys):
    index = indexed(tmp_path)
    rules = Preprocess(spacing_mm="median", intensity=COLLECTION.intensity)
    cache(index, tmp_path / "store", preprocess=rules, where="spacing_k_mm < 3", workers=0)
    before = rules_in(tmp_path / "store")
    capsys.readouterr()
    arguments = ["cache", str(index), str(tmp_path / "store"), "--workers=0", "--preprocess.spacing_mm=median"]
    keys = [
        f"--preprocess.intensity.hu.{key}={value}"
        for key, value in (("clip", "collection"), ("low", 0.5), ("high", 99.5), ("normalize", "collection"))
    ]
    assert main([*arguments, *keys]) == 0
    said = capsys.readouterr().out
    assert "preprocess.spacing_mm median: 0.85 x 0.7 x 1.875 mm, as measured when the store was made" in said
    assert "the present selection has 0.8 x 0.75 x 5 mm" in said
    assert "preprocess.intensity.hu: clip range" in said
    assert "(3 new, 2 stored before, 0 skipped)" in said
    assert rules_in(tmp_path / "store") == before
    assert Store.open(tmp_path / "store").requested is not None
    cache(index, tmp_path / "store", preprocess=Store.open(tmp_path / "store").preprocess, workers=0)
    assert Store.open(tmp_path / "store").requested is not None  # numbers given by hand do not end it


def test_a_store_of_other_rules_is_refused(tmp_path):
    index = indexed(tmp_path)
    cache(index, tmp_path / "store", preprocess=Preprocess(spacing_mm=(1.0, 1.0, 1.0)), workers=0)
    with pytest.raises(UserError, match=r"spacing_mm \[1.0, 1.0, 1.0\] -> \[0.8, 0.75, 5.0\]"):
        cache(index, tmp_path / "store", preprocess=Preprocess(spacing_mm="median"), workers=0)


# --- intensities


def foreground(k, shape=(20, 18, 6)):
    values = values_of(k, shape)
    return values[values > -500].astype(float)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_fingerprint_is_that_of_the_foreground(tmp_path, workers, capsys):
    index = indexed(tmp_path)
    cache(index, tmp_path / "store", preprocess=COLLECTION, workers=workers)
    rule = Store.open(tmp_path / "store").preprocess.intensity.hu
    pooled = np.concatenate([np.resize(foreground(k), 1344) for k in range(5)])  # each scan weighs the same
    assert (rule.clip, rule.normalize) == ("range", "fixed")
    assert rule.mean == pytest.approx(pooled.mean(), abs=0.8)
    assert rule.deviation == pytest.approx(pooled.std(), rel=0.02)
    assert [rule.low, rule.high] == pytest.approx(np.percentile(pooled, [0.5, 99.5]), abs=3)
    assert "of 50,000 foreground voxels in 5 scans" in capsys.readouterr().out
    assert not (tmp_path / "store" / fingerprint.FOLDER).exists()


def test_labeled_voxels_count_alone_where_there_are_masks(tmp_path, capsys):
    index = indexed(tmp_path, masks=(1, 3))
    cache(index, tmp_path / "store", preprocess=COLLECTION, workers=0)
    rule = Store.open(tmp_path / "store").preprocess.intensity.hu
    inside = [values_of(k, (20, 18, 6))[4:8, 4:9, 1:4].astype(float) for k in (1, 3)]  # without the ignored value
    assert rule.mean == pytest.approx(np.mean(inside), abs=1.5)
    assert [rule.low, rule.high] == pytest.approx(np.percentile(inside, [0.5, 99.5]), abs=6)
    assert "of 20,000 labeled voxels in 2 scans" in capsys.readouterr().out


def test_scans_of_the_test_split_are_left_out(tmp_path):
    index = indexed(tmp_path, steps=STEPS * 3, split="train=0.5,test=0.5")
    with Index.open(index) as opened:
        scans, _ = fingerprint.sampling_of(opened.scans(), "hu")
        assert {scan.scan_id for scan in scans} == {s.scan_id for s in opened.scans() if s.subject.split == "train"}
        assert 0 < len(scans) < 15
        only = fingerprint.sampling_of((s for s in opened.scans() if s.subject.split == "test"), "hu")[0]
        assert len(only) == 15 - len(scans)


def test_samples_do_not_depend_on_other_scans_and_are_not_drawn_twice(tmp_path, monkeypatch):
    index = indexed(tmp_path)
    with Index.open(index) as opened:
        scans = list(opened.scans())
        made = []
        for name, chosen in (("all", scans), ("two", scans[3:1:-1])):
            (tmp_path / name).mkdir()
            plain = fingerprint.rules_of_sample(COLLECTION)
            sampling = fingerprint.Sampling(opened.root, tmp_path / name, plain, {}, is_labeled=False)
            assert fingerprint.draw_samples(sampling, chosen) == 0
            made.append({scan.scan_id: sampling.file(scan).read_bytes() for scan in chosen})
        assert all(made[0][scan_id] == sample for scan_id, sample in made[1].items())
        monkeypatch.setattr(fingerprint, "_sample", lambda *_: pytest.fail("drawn twice"))
        fingerprint.draw_samples(sampling, scans[3:1:-1])


def test_later_scans_are_prepared_by_the_same_numbers(tmp_path):
    index = indexed(tmp_path)
    cache(index, tmp_path / "store", preprocess=COLLECTION, workers=0)
    stored = Store.open(tmp_path / "store")
    rule = stored.preprocess.intensity.hu
    other = Volume(values_of(77, (9, 9, 9))[None], np.eye(4), (1.0,) * 3, None, (), None)
    numbers = prepare(other, stored.preprocess, domain="hu").coding.intensity
    assert numbers[0, 2:] == pytest.approx([rule.low, rule.high, rule.mean, rule.deviation], rel=1e-6)
    assert all(stored.intensity(n)[0, 2:] == pytest.approx(numbers[0, 2:]) for n in range(len(stored)))


def test_a_scan_that_cannot_be_read_is_counted(tmp_path, capsys):
    index = indexed(tmp_path)
    (tmp_path / "scans/images/s2.nii.gz").unlink()
    cache(index, tmp_path / "store", preprocess=COLLECTION, workers=0)
    assert "of 40,000 foreground voxels in 4 scans; 1 scans could not be read" in capsys.readouterr().out


# --- presets and bad input


def test_presets_like_nnunet(tmp_path, capsys):
    for modality, preset in (("CT", "nnunet_like"), ("MR", "nnunet_like_mr")):
        place = tmp_path / modality
        place.mkdir()
        index = indexed(place, modality=modality)
        assert main(["cache", str(index), str(place / "store"), "--workers=0", f"--preprocess={preset}"]) == 0
        stored = Store.open(place / "store")
        assert isinstance(stored.preprocess.spacing_mm, tuple)
        assert (stored.preprocess.intensity.hu.normalize == "fixed") == (modality == "CT")
        assert stored.preprocess.is_resolved
        assert yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())["mirror"] == "safe"
        other = {"nnunet_like": "nnunet_like_mr", "nnunet_like_mr": "nnunet_like"}[preset]
        capsys.readouterr()
        assert main(["cache", str(index), str(place / "other"), "--workers=0", f"--preprocess={other}"]) == 2
        assert "5 of 5 scans are" in capsys.readouterr().err


BAD = {
    "no volume": (Preprocess(spacing_mm="median"), "no volume among the selected scans"),
    "no CT": (
        COLLECTION,
        "preprocess.intensity.hu: is measured on the collection, and none of the selected scans is CT",
    ),
}


@pytest.mark.parametrize(("rules", "words"), BAD.values(), ids=BAD)
def test_nothing_to_measure_is_refused(tmp_path, rules, words):
    write_picture(tmp_path / "pictures" / "one.png", np.arange(108, dtype=np.uint8).reshape(12, 9))
    with Index.open(tmp_path / "index.sqlite", create=True) as index:
        update(
            index,
            [tmp_path / "pictures"],
            IndexOptions(subject=r"(\w+)\.", files=FileOptions(workers=0)),
            key=b"k" * 32,
        )
    with pytest.raises(UserError, match=words):
        cache(tmp_path / "index.sqlite", tmp_path / "store", preprocess=rules, workers=0)
    assert not (tmp_path / "store").exists()


def test_a_folder_of_other_files_is_left_as_it_is(tmp_path):
    index = indexed(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("other")
    with pytest.raises(UserError, match="is a folder with other files"):
        cache(index, tmp_path / "mine", preprocess=COLLECTION, workers=0)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_empty_selection_is_refused(tmp_path):
    index = indexed(tmp_path)
    with pytest.raises(UserError, match="has no usable scan that meets the condition"):
        cache(
            index, tmp_path / "store", preprocess=Preprocess(spacing_mm="median"), where="spacing_k_mm > 99", workers=0
        )


def test_masks_without_a_labeled_voxel_are_refused(tmp_path):
    index = indexed(tmp_path, masks=(1,))
    write_nifti(tmp_path / "scans/labels/s1.nii.gz", np.zeros((20, 18, 6), np.uint8), affine_of(STEPS[1]))
    with Index.open(index, create=True) as opened:
        options = IndexOptions(
            subject=r"(\w+)\.",
            labels=LabelOptions(masks="images=labels", class_names="0=a,1=b"),
            files=FileOptions(modality="CT", workers=0),
        )
        update(opened, [tmp_path / "scans"], options, key=b"k" * 32)
    with pytest.raises(UserError, match="no labeled voxel in 1 of the scans"):
        cache(index, tmp_path / "store", preprocess=COLLECTION, workers=0)


OUT_OF_RANGE = {
    "isotropic of 0": (Preprocess(isotropic=0.0), r"preprocess.isotropic: must be a distance in mm above 0 \(got 0.0"),
    "isotropic below 0": (Preprocess(isotropic=-1.0), "above 0"),
    "isotropic not finite": (Preprocess(isotropic=float("inf")), "above 0"),
    "a spacing not finite": (Preprocess(spacing_mm=(1.0, float("nan"), 1.0)), "three distances in mm"),
    "two spacings": (Preprocess(isotropic=1.0, spacing_mm="median"), "sets the spacing of all axes, and so does"),
    "percentiles": (
        Preprocess(intensity=IntensityRules(hu=IntensityRule("collection", 0.5, 120.0))), "percentiles from 0 to 100",
    ),
    "deviation": (
        Preprocess(intensity=IntensityRules(mr=IntensityRule(normalize="fixed", deviation=0.0))),
        "preprocess.intensity.mr.deviation: must be above 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rules", "words"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_rules_out_of_range_are_refused(rules, words):
    with pytest.raises(UserError, match=words):
        check(rules)


def test_rules_that_are_not_measured_yet_prepare_nothing():
    scan = Volume(values_of(0, (9, 9, 9))[None], np.eye(4), (1.0,) * 3, None, (), None)
    for rules in (Preprocess(spacing_mm="median"), COLLECTION):
        with pytest.raises(UserError, match="take the rules of a store"):
            prepare(scan, rules, domain="hu")


def test_digests_of_former_rules_stay():
    """Of 0.1.0; stores and cards hold them."""
    assert Preprocess().digest() == "d359546ea9c9dbb5"
    assert Preprocess(spacing_mm=(1.0, 2.0, 0.0)).digest() == "5f313d6f8e31968f"
    assert Preprocess(mirror="all").digest() == Preprocess().digest()


def test_excluded_voxels_are_not_measured(tmp_path, monkeypatch):
    image = values_of(3, (20, 18, 6))
    excluded = np.zeros((1, *image.shape), bool)
    excluded[:, 5:15] = True
    image[5:15] = 3000
    held = stores.volume(image[None], None, None, excluded)
    monkeypatch.setattr(fingerprint, "read", lambda *_: held)
    scan = stores.scan_of("one", held, domain="hu")
    sampling = fingerprint.Sampling(tmp_path, tmp_path, fingerprint.rules_of_sample(COLLECTION), {}, is_labeled=False)
    fingerprint.draw_samples(sampling, [scan])
    values = np.frombuffer(sampling.file(scan).read_bytes(), "<f4")
    assert len(values) == fingerprint.VOXELS
    assert -500 < values.min() <= values.max() < 300
