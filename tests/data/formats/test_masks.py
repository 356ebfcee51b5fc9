"""Masks beside their images: turned to them, taken as they are, or refused with a line that says why."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from data.make_scans import AXIAL, Series, noise, slice_dataset, write_nifti, write_picture, write_series, write_slice
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from medssl.data.formats.base import make_grid
from medssl.data.formats.masks import MaskError, check_label, compare, reorientation_of, value_counts, whole_numbers
from medssl.data.formats.reading import ReadError, Volume, read
from medssl.data.index.label_sources import LabelOptions, PathRule
from medssl.data.index.scan_index import Index, IndexOptions
from medssl.data.index.update import update
from medssl.types import LabelSchema, UserError

AFFINE = np.array([[-0.9, 0.02, 0, 40], [0.01, 0.8, 0.1, -30], [0, -0.3, 2.5, 10], [0, 0, 0, 1.0]])
SHAPE = (6, 5, 4)
SCHEMA = LabelSchema("mask", ((0, "background"), (1, "organ")))


def index(folder: Path, **labels) -> tuple[Path, tuple[str, ...]]:
    """Index ``folder``; the index file and its notes."""
    file = folder.parent / "index" / "index.sqlite"
    with Index.open(file, create=True, root=folder.parent) as opened:
        done = update(opened, [folder], IndexOptions(labels=LabelOptions(**labels)), key=b"k" * 32)
    return file, done.notes


def scans_of(file: Path, status="ok"):
    with Index.open(file) as opened:
        return list(opened.scans(status=status)), opened.root


def read_one(folder: Path, **labels) -> Volume:
    (scan,), root = scans_of(index(folder, **labels)[0])
    return read(scan, root)


def pair(folder: Path, label: np.ndarray, affine: np.ndarray = AFFINE, name: str = "a.nii.gz") -> Path:
    write_nifti(folder / "images" / "a.nii.gz", noise(SHAPE), AFFINE)
    write_nifti(folder / "labels" / name, label, affine)
    return folder


def turned(label: np.ndarray, affine: np.ndarray, axes, flips) -> tuple[np.ndarray, np.ndarray]:
    """A label with other axes in the same place, by nibabel."""
    orientation = np.array([[axis, -1 if flip else 1] for axis, flip in zip(axes, flips, strict=True)])
    image = nibabel.Nifti1Image(label, affine).as_reoriented(orientation)
    return np.asarray(image.dataobj), image.affine


# --- grids


@settings(max_examples=25, deadline=None)
@given(axes=st.permutations([0, 1, 2]), flips=st.tuples(*[st.booleans()] * 3), seed=st.integers(0, 99))
def test_a_turned_grid_is_turned_back_exactly(axes, flips, seed):
    label = noise(SHAPE, np.uint8, seed=seed)
    other, affine = turned(label, AFFINE, axes, flips)
    match = compare(make_grid(SHAPE, AFFINE), make_grid(other.shape, affine))
    assert match.problem == match.note == ""
    np.testing.assert_array_equal(match.reorientation.apply(other[None])[0], label)


@settings(max_examples=25, deadline=None)
@given(
    codes=st.tuples(st.sampled_from("LR"), st.sampled_from("PA"), st.sampled_from("IS")).flatmap(st.permutations),
    seed=st.integers(0, 99),
)
def test_axis_codes_agree_with_nibabel(codes, seed):
    """A mask stored in any axis codes, oblique image: the turn is the one that nibabel finds from the affines."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * rng.uniform(0.5, 3, 3), rng.normal(size=3) * 50
    label = noise(SHAPE, np.uint8, seed=seed)
    steps = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    other = nibabel.orientations.apply_orientation(label, steps)
    match = compare(make_grid(SHAPE, affine), make_grid(other.shape, affine @ inv_ornt_aff(steps, SHAPE)))
    np.testing.assert_array_equal(match.reorientation.apply(other[None])[0], label)


def test_a_mirrored_mask_is_turned_when_read_and_counted(tmp_path):
    label = noise(SHAPE, np.uint8, high=3)
    other, affine = turned(label, AFFINE, (2, 0, 1), (True, False, True))
    assert other.shape != SHAPE
    file, notes = index(pair(tmp_path / "d", other, affine), masks="images=labels")
    (scan,), root = scans_of(file)
    np.testing.assert_array_equal(read(scan, root).label[0], label)
    assert "d: 1 masks have other axes than their images and are turned to them" in notes


def test_a_mirrored_mask_of_excluded_voxels_is_turned(tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[0, :2, 3] = 1
    volume = read_one(
        pair(tmp_path / "d", *turned(mask, AFFINE, (0, 1, 2), (True, True, False))), excluded="images=labels"
    )
    np.testing.assert_array_equal(volume.excluded[0], mask != 0)


@pytest.mark.parametrize(
    ("shift", "problem", "note"), [(0.0005, False, False), (0.05, False, True), (0.5, True, False)]
)
def test_rounding_is_taken_and_half_a_voxel_refused(shift, problem, note):
    """Corners move by ``shift`` voxels along one axis, as an offset or by a rounded spacing."""
    moved = AFFINE.copy()
    moved[:, 3] += AFFINE[:, 1] * shift
    stretched = AFFINE.copy()
    stretched[:, 1] *= 1 + shift / (SHAPE[1] - 1)
    for affine in (moved, stretched):
        match = compare(make_grid(SHAPE, AFFINE), make_grid(SHAPE, affine))
        assert match.reorientation.offset_voxels == pytest.approx(shift, rel=1e-6)
        assert (bool(match.problem), bool(match.note)) == (problem, note)


def test_another_grid_is_refused_and_both_are_named(tmp_path):
    file, _ = index(pair(tmp_path / "d", np.ones(SHAPE, np.uint8), np.diag([2, 2, 2, 1.0])), masks="images=labels")
    (scan,), _ = scans_of(file, "failed")
    assert scan.status.reason.startswith(
        "label on another grid: a.nii.gz has 6x5x4 voxels (RAS) of 2x2x2 mm from 0, 0, 0, its image 6x5x4 voxels "
        "(LAS) of 0.9001x0.8546x2.502 mm from 40, -30, 10; "
    )
    assert scan.status.reason.endswith(
        "resample it to its image, or take equal shapes as equal grids with label.grid trust"
    )


def test_a_mask_without_position_is_taken_only_where_the_user_trusts_it(tmp_path):
    label = noise(SHAPE, np.uint8, high=3)
    folder = pair(tmp_path / "d", label, np.eye(4))
    file, _ = index(folder, masks="images=labels")
    (scan,), _ = scans_of(file, "failed")
    assert "its header gives no position" in scan.status.reason
    file, notes = index(folder, masks="images=labels", grid="trust")
    (scan,), root = scans_of(file)
    volume = read(scan, root)
    np.testing.assert_array_equal(volume.label[0], label)
    assert volume.notes == (
        "label a.nii.gz is taken to lie on its image's grid, which its header does not say (grid trust)",
    )
    assert any("1 masks have another position in their headers" in note for note in notes)


def test_trust_does_not_stretch_to_other_shapes(tmp_path):
    file, _ = index(pair(tmp_path / "d", np.ones((6, 5, 5), np.uint8)), masks="images=labels", grid="trust")
    (scan,), _ = scans_of(file, "failed")
    assert scan.status.reason == "label shape differs: a.nii.gz has 6x5x5, its image 6x5x4"


def test_options_of_masks_change_the_digest(tmp_path):
    """A store must not keep labels that were read by other options."""
    folder = pair(tmp_path / "d", noise(SHAPE, np.uint8, high=2))
    digests = set()
    for options in ({}, {"threshold": 1.0}, {"threshold": 2.0}, {"grid": "trust"}):
        (scan,), _ = scans_of(index(folder, masks="images=labels", **options)[0])
        digests.add(scan.digests.source)
    assert len(digests) == 4


def test_equal_shapes_are_the_grid_of_pictures():
    square = make_grid((5, 5), np.diag([0.2, 0.2, 1]))
    assert compare(square, make_grid((5, 5), np.eye(3))).problem == ""
    assert compare(square, make_grid((5, 4), np.eye(3))).problem == "shape differs: {name} has 5x4, its image 5x5"
    assert np.isinf(reorientation_of(square, make_grid((5, 5, 5), np.eye(4))).offset_voxels)


def test_a_mirrored_mask_of_one_slice_is_refused(tmp_path):
    """Pictures have no axes in the world, but a NIfTI of one slice has."""
    label = noise((6, 5, 1), np.uint8, high=3)
    mirrored, affine = turned(label, AFFINE, (0, 1, 2), (True, False, False))
    for name, array, where in (("same", label, AFFINE), ("mirrored", mirrored, affine)):
        write_nifti(tmp_path / "d" / "images" / f"{name}.nii.gz", noise((6, 5, 1)), AFFINE)
        write_nifti(tmp_path / "d" / "labels" / f"{name}.nii.gz", array, where)
    file, _ = index(tmp_path / "d", masks="images=labels")
    (scan,), _ = scans_of(file)
    assert scan.source.parts[0].path.endswith("same.nii.gz")
    (scan,), _ = scans_of(file, "failed")
    assert scan.status.reason == (
        "label on another grid: mirrored.nii.gz is one slice that lies otherwise than its image: turn it"
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_series_of_dicom_is_a_mask_unless_its_axes_run_otherwise(tmp_path, mirrored):
    series = Series(shape=(8, 6, 5))
    write_series(tmp_path / "d" / "images" / "a", series)
    direction = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0) if mirrored else AXIAL
    other = Series(shape=(8, 6, 5), uid="1.2.3.4", dtype=np.uint8, orientation=direction)
    label = noise((5, 6, 8), np.uint8, high=3)
    for number in range(5):
        dataset = slice_dataset(other, number, label[number])
        corner = [-7 + (0.6 * 7 if mirrored else 0), -7, -7 + 2.5 * number]
        dataset.ImagePositionPatient = [round(value, 6) for value in corner]
        write_slice(tmp_path / "d" / "labels" / "a" / f"IM{(number * 7 + 3) % 101:03d}", dataset)
    file, _ = index(tmp_path / "d", masks="images=labels")
    (scan,), root = scans_of(file, "failed" if mirrored else "ok")
    if mirrored:
        assert re.search(r"^label on another grid: \w+ is DICOM with other axes .*: convert it$", scan.status.reason)
    else:
        np.testing.assert_array_equal(read(scan, root).label[0], label.transpose(2, 1, 0))


@pytest.mark.parametrize("frames", ["scans", "channels"])
def test_masks_of_time_series(tmp_path, frames):
    """Volumes of a 4D file pair with the volumes of a 4D mask; any other number is refused."""
    from medssl.data.index.scan_index import FileOptions

    write_nifti(tmp_path / "d" / "images" / "a.nii.gz", noise((*SHAPE, 3)), AFFINE)
    label = write_nifti(tmp_path / "d" / "labels" / "a.nii.gz", noise((*SHAPE, 3), np.uint8, high=3), AFFINE)
    options = IndexOptions(labels=LabelOptions(masks="images=labels"), files=FileOptions(frames=frames))
    file = tmp_path / "i.sqlite"

    def run():
        with Index.open(file, create=True, root=tmp_path) as opened:
            update(opened, [tmp_path / "d"], options, key=b"k" * 32)

    run()
    scans, root = scans_of(file)
    if frames == "scans":
        assert len(scans) == 3
        for scan in scans:
            np.testing.assert_array_equal(read(scan, root).label[0], label[..., scan.source.parts[0].frame])
    else:
        (scan,), _ = scans_of(file, "failed")
        assert scan.status.reason == "label with several channels: a.nii.gz has 3, expected one"
    write_nifti(tmp_path / "d" / "labels" / "a.nii.gz", label[..., 0], AFFINE)
    run()
    if frames == "scans":
        scans, _ = scans_of(file, "failed")
        reason = "label with another number of volumes: a.nii.gz has 1, its image 3"
        assert [scan.status.reason for scan in scans] == [reason] * 3
    else:
        (scan,), root = scans_of(file)
        np.testing.assert_array_equal(read(scan, root).label[0], label[..., 0])


# --- values


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.uint64, np.float32, np.float64])
def test_whole_numbers_of_every_type_are_taken(dtype):
    label = noise((1, 5, 4), np.uint8, high=2).astype(dtype)
    taken = whole_numbers(label)
    assert taken.dtype.kind in "iu"
    np.testing.assert_array_equal(taken, label)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [0, 0.9882, 2.0235],
            r"^label x holds values that are not whole numbers \(0\.9882, 2\.0235\): a slope in its header",
        ),
        (np.linspace(0, 1, 50), r"probabilities become classes 0 and 1 with label\.threshold 0\.5$"),
        (np.linspace(0, 3000, 5001), r"resample masks to the nearest voxel$"),
        ([0, np.nan, 1], r"^label x holds 1 voxels that are no number \(NaN or infinite\)$"),
        ([0, 2.0**40], r"a class is a number of at most 32 bits$"),
    ],
)
def test_values_that_are_no_classes_are_refused(values, message):
    with pytest.raises(MaskError, match=message):
        whole_numbers(np.array([values]), "label x")


def test_scaling_that_rounds_keeps_classes():
    """1/255 as a slope in single precision makes 1.0000001 of 255."""
    scaled = np.array([[0, 1.0000001, 2.000001]])
    np.testing.assert_array_equal(whole_numbers(scaled), [[0, 1, 2]])


@pytest.mark.parametrize(
    ("values", "schema", "message"),
    [
        ([0, 255], SCHEMA, r"0 and 255 only: label\.class_names 0=background,255=organ$"),
        ([0, 1, 7, 7], SCHEMA, r"class map 0=background, 1=organ: 7 \(2 voxels\); name it with label\.class_names"),
        ([0, 1, 2, 3, 250, 251, 252, 255], SCHEMA, r"and 1 more values; many values .* label\.threshold 128"),
        (
            [0, -1, -1],
            None,
            r"^negative label value: -1 \(2 voxels\); name all values with label\.class_names, and .*$",
        ),
        ([0, -1], SCHEMA, r"class map .*: -1 \(1 voxels\)"),
    ],
)
def test_values_outside_the_class_map_are_named(values, schema, message):
    with pytest.raises(MaskError, match=message):
        check_label(np.array([values]), schema)


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 5), min_size=1, max_size=40))
def test_counts_agree_with_numpy(values):
    found, counts = np.unique(values, return_counts=True)
    assert value_counts(np.array(values)) == dict(zip(found.tolist(), counts.tolist(), strict=True))


def pictures(folder: Path, name: str, mask: np.ndarray, **save) -> Path:
    from PIL import Image

    write_picture(folder / "images" / name.replace(".jpg", ".png"), noise(mask.shape[:2], np.uint8))
    (folder / "masks").mkdir()
    Image.fromarray(mask).save(folder / "masks" / name, **save)
    return folder


def disk() -> np.ndarray:
    rows, columns = np.mgrid[:40, :48]
    return (((rows - 18) ** 2 + (columns - 25) ** 2) < 150).astype(np.uint8)


@pytest.mark.parametrize("colors", [1, 3])
def test_jpeg_masks_need_a_threshold(tmp_path, colors):
    mask = np.stack([disk() * 255] * 3, axis=2) if colors == 3 else disk() * 255
    folder = pictures(tmp_path / "d", "a.jpg", mask, quality=60)
    rule = "images=masks,.png=.jpg"
    with pytest.raises(
        ReadError, match=r"label a\.jpg is a JPEG picture with \d+ values near 0 and 255: .* 128; others"
    ):
        read_one(folder, masks=rule)
    label = read_one(folder, masks=rule, threshold=128).label
    np.testing.assert_array_equal(label[0], disk())
    assert set(np.unique(label)) == {0, 1}
    with pytest.raises(ReadError, match=r"mask of excluded voxels a\.jpg is a JPEG picture .* save it as PNG$"):
        read_one(folder, excluded=rule)


def test_equal_channels_are_one_and_said(tmp_path):
    volume = read_one(pictures(tmp_path / "d", "a.png", np.stack([disk() * 2] * 3, axis=2)), masks="images=masks")
    np.testing.assert_array_equal(volume.label[0], disk() * 2)
    assert volume.notes == ("label a.png has three equal channels: the first is taken",)


def test_colored_masks_are_refused_with_the_number_of_colors(tmp_path):
    mask = np.stack([disk() * 200, disk() * 10, 1 - disk()], axis=2)
    with pytest.raises(
        ReadError, match=r"^label a\.png is a colored picture \(2 colors\): expected one channel, holding the"
    ):
        read_one(pictures(tmp_path / "d", "a.png", mask), masks="images=masks")


def test_one_hot_masks_are_refused_with_a_hint():
    from medssl.data.formats.masks import one_channel

    hot = np.eye(4, dtype=np.uint8)[noise((6, 5, 4), np.uint8, high=4)].transpose(3, 0, 1, 2)
    with pytest.raises(
        MaskError, match=r"^label x has 4 channels: expected one, .* \(one-hot\): store the number of the class"
    ):
        one_channel(hot, "label x", "the number of the class", [])


def test_a_mask_with_nan_is_refused_when_read(tmp_path):
    label = np.zeros(SHAPE, np.float32)
    label[0, 0, 0] = np.nan
    with pytest.raises(ReadError, match=r"^label a\.nii\.gz holds 1 voxels that are no number \(NaN or infinite\)"):
        read_one(pair(tmp_path / "d", label), masks="images=labels")


def test_fractions_of_a_slope_are_refused_when_read(tmp_path):
    folder = pair(tmp_path / "d", noise(SHAPE, np.uint8, high=3), name="a.nii")
    raw = bytearray((folder / "labels" / "a.nii").read_bytes())
    raw[112:116] = np.float32(0.9882).tobytes()  # scl_slope
    (folder / "labels" / "a.nii").write_bytes(raw)
    with pytest.raises(ReadError, match=r"^label a\.nii holds values that are not whole numbers \(0\.9882.*scl_slope"):
        read_one(folder, masks="images=labels,.nii.gz=.nii")


# --- rules of paths


@pytest.mark.parametrize(
    ("rule", "path", "masks"),
    [
        ("images=labels", "images/a.nii.gz", ["labels/a.nii.gz"]),
        ("images=labels", "images_old/images/a.png", ["images_old/labels/a.png", "labels_old/labels/a.png"]),
        ("images=labels", "b/images/c/images/a.png", ["b/labels/c/labels/a.png", "b/images/c/labels/a.png"]),
        ("images=labels", "labels/a.nii.gz", []),
        ("img=label", "img/img0001.nii.gz", ["label/img0001.nii.gz", "label/label0001.nii.gz"]),
        ("imagesTr=labelsTr,imagesTs=labelsTs", "imagesTs/a.nii.gz", ["labelsTs/a.nii.gz"]),
        (
            "imagesTr=labelsTr,_0000.nii.gz=.nii.gz",
            "imagesTr/a_0000.nii.gz",
            ["labelsTr/a.nii.gz", "labelsTr/a_0000.nii.gz"],
        ),
        ("imagesTr=labelsTr,_0000.nii.gz=.nii.gz", "other/a_0000.nii.gz", []),
        ("images=masks,.jpg=.png", "images/a.png", ["masks/a.png"]),
        ("_t1.nii.gz=_seg.nii.gz,_t2.nii.gz=_seg.nii.gz", "x/p_t2.nii.gz", ["x/p_seg.nii.gz"]),
        (".nii.gz=_seg.nii.gz", "a.nii.gz", ["a_seg.nii.gz"]),
        ("images/=labels/excluded/", "images/a.png", ["labels/excluded/a.png"]),
        ("none", "images/a.png", []),
    ],
)
def test_pairs_are_alternatives_and_prefer_whole_folders(rule, path, masks):
    rule = PathRule("mask", "--label.masks", rule)
    assert rule.masks_of(path) == masks
    for mask in masks[:1]:
        assert path in rule.images_of(mask)


def test_several_images_share_a_mask(tmp_path):
    for name in ("t1", "t2", "seg"):
        write_nifti(tmp_path / "d" / f"p1_{name}.nii.gz", noise(SHAPE, np.uint8, high=3 if name == "seg" else 200))
    file, _ = index(tmp_path / "d", masks="_t1.nii.gz=_seg.nii.gz,_t2.nii.gz=_seg.nii.gz")
    scans, _ = scans_of(file)
    assert [scan.labels.mask[0].path for scan in scans] == ["d/p1_seg.nii.gz"] * 2


def test_both_halves_of_a_challenge_are_paired(tmp_path):
    for half in ("Tr", "Ts"):
        write_nifti(tmp_path / "d" / f"images{half}" / f"{half}.nii.gz", noise(SHAPE))
        write_nifti(tmp_path / "d" / f"labels{half}" / f"{half}.nii.gz", noise(SHAPE, np.uint8, high=3))
    file, notes = index(tmp_path / "d", masks="imagesTr=labelsTr,imagesTs=labelsTs")
    scans, _ = scans_of(file)
    assert [bool(scan.labels.mask) for scan in scans] == [True, True]
    assert not any("mask" in note for note in notes)


def test_a_rule_that_leads_nowhere_fails_and_loses_nothing(tmp_path):
    folder = pair(tmp_path / "d", noise(SHAPE, np.uint8, high=3))
    message = r"^label\.masks: d: leads to no file: tried segs/a\.nii\.gz for images/a\.nii\.gz \(got 'images=segs'\)$"
    for _ in range(2):  # the error repeats until the rule is corrected
        with pytest.raises(UserError, match=message):
            index(folder, masks="images=segs")
    with pytest.raises(
        UserError, match=r"fits no path: 'imagesTr' is not in .*images/a\.nii\.gz \(got 'imagesTr=labelsTr'\)$"
    ):
        index(folder, masks="imagesTr=labelsTr")
    (scan,), _ = scans_of(index(folder, masks="images=labels")[0])
    assert scan.labels.mask


def test_the_first_scan_without_a_mask_is_named(tmp_path):
    folder = pair(tmp_path / "d", noise(SHAPE, np.uint8, high=3))
    write_nifti(folder / "images" / "b.nii.gz", noise(SHAPE), AFFINE)
    _, notes = index(folder, masks="images=labels")
    assert "d: 1 scans have no usable mask (first: images/b.nii.gz, tried labels/b.nii.gz)" in notes


def test_a_split_by_folders_that_are_not_there_fails(tmp_path):
    folder = pair(tmp_path / "d", noise(SHAPE, np.uint8, high=3))
    with pytest.raises(UserError, match=r"no folder is named train, val or test; the folders are images \(got"):
        index(folder, masks="images=labels", split="folder")


def test_masks_of_turned_pictures_are_said_to_be_taken_as_turned(tmp_path, capsys):
    from PIL import Image

    image = Image.fromarray(disk())
    exif = image.getexif()
    exif[274] = 3
    for name in ("images", "labels"):
        (tmp_path / "in" / name).mkdir(parents=True)
    image.save(tmp_path / "in" / "images" / "a.png", exif=exif)
    Image.fromarray(disk()).save(tmp_path / "in" / "labels" / "a.png")
    index(tmp_path / "in", masks="images=labels")
    (note,) = [note for note in index(tmp_path / "in", masks="images=labels")[1] if "Orientation" in note]
    assert "1 pictures are turned as their tag Orientation says, their masks have no such tag" in note


def test_a_jpeg_mask_of_small_numbers_is_refused():
    from medssl.data.formats.masks import refuse_lossy

    refuse_lossy(np.array([[0, 255]], np.uint8), "a.jpg", advice="")
    with pytest.raises(MaskError, match=r"a\.jpg is a JPEG picture with 2 values near 0 and 255"):
        refuse_lossy(np.array([[0, 1]], np.uint8), "a.jpg", advice="")
