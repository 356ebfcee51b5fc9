"""Label maps are recognized: they are held back with an option that works, and images are left alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from data.formats.test_masks import index, scans_of
from data.make_scans import noise, write_itk, write_nifti, write_picture

from medssl.data.index.label_maps import holds_classes, replacements
from medssl.data.index.label_sources import PathRule

SHAPE = (9, 8, 7)


def image(file: Path, seed: int = 0) -> None:
    if file.suffix in (".png", ".jpg"):
        write_picture(file, noise((30, 40), np.uint8, seed=seed, high=250))
    else:
        (write_itk if file.suffix == ".nrrd" else write_nifti)(file, noise(SHAPE, seed=seed))


def label(file: Path, seed: int = 0) -> None:
    if file.suffix in (".png", ".jpg"):
        mask = np.zeros((30, 40), np.uint8)
        mask[5 : 12 + seed % 9, 8:20] = 255
        write_picture(file, mask)
    else:
        (write_itk if file.suffix == ".nrrd" else write_nifti)(file, noise(SHAPE, np.uint8, seed=seed, high=3))


LAYOUTS = {
    "decathlon": ("imagesTr/a_{}.nii.gz", "labelsTr/a_{}.nii.gz", "imagesTr=labelsTr"),
    "nnU-Net": ("imagesTr/a_{}_0000.nii.gz", "labelsTr/a_{}.nii.gz", "imagesTr=labelsTr,_0000.nii.gz=.nii.gz"),
    "ACDC": ("p{0}/p{0}_frame01.nii.gz", "p{0}/p{0}_frame01_gt.nii.gz", ".nii.gz=_gt.nii.gz"),
    "LiTS": ("volume-{}.nii", "segmentation-{}.nii", "volume=segmentation"),
    "BTCV": ("img/img{}.nii.gz", "label/label{}.nii.gz", "img=label"),
    "polyps": ("train/images/{}.jpg", "train/masks/{}.jpg", "images=masks"),
    "BUSI": ("benign/benign ({}).png", "benign/benign ({})_mask.png", ".png=_mask.png"),
    "another ending": ("images/{}.jpg", "masks/{}.png", "images=masks,.jpg=.png"),
    "Slicer": ("{}.nrrd", "{}-label.nrrd", ".nrrd=-label.nrrd"),
    "ground truth": ("data/x{}.nii.gz", "ground_truth/x{}.nii.gz", "data=ground_truth"),
    "no word, folders": ("scans/x{}.nii.gz", "kidneys/x{}.nii.gz", "scans=kidneys"),
    "no word, names": ("x{}.nii.gz", "x{}_kidney.nii.gz", ".nii.gz=_kidney.nii.gz"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_label_maps_are_not_scans_and_the_proposed_option_works(name, tmp_path):
    images, labels, expected = LAYOUTS[name]
    for number in range(3):
        image(tmp_path / "d" / images.format(number), number)
        label(tmp_path / "d" / labels.format(number), number)
    file, notes = index(tmp_path / "d")
    assert len(scans_of(file)[0]) == 3
    held, _ = scans_of(file, "rejected")
    assert {scan.source.parts[0].path for scan in held} == {f"d/{labels.format(number)}" for number in range(3)}
    assert all(scan.status.reason.startswith("looks like a label map: use it with") for scan in held)
    (note,) = [note for note in notes if "look like label maps" in note]
    assert note.startswith(
        f"d: 3 files look like label maps and are not taken as scans (first: {labels.format(0)}). Use them with"
    )
    proposal = re.search(r"label\.masks (.*), or take them as scans with label\.masks none$", note).group(1)
    assert set(proposal.split(",")) == set(expected.split(","))
    file, notes = index(tmp_path / "d", masks=proposal)
    scans, _ = scans_of(file)
    assert {(scan.source.parts[0].path, scan.labels.mask[0].path) for scan in scans} == {
        (f"d/{images.format(number)}", f"d/{labels.format(number)}") for number in range(3)
    }
    assert not any("label maps" in note or "mask" in note for note in notes)
    file, notes = index(tmp_path / "d", masks="none")
    assert len(scans_of(file)[0]) == 6
    assert not any("label maps" in note for note in notes)


def test_one_label_map_of_several_images(tmp_path):
    for number in range(2):
        for contrast in ("flair", "t1", "t1ce", "t2"):
            image(tmp_path / "d" / f"B{number}" / f"B{number}_{contrast}.nii.gz", number)
        label(tmp_path / "d" / f"B{number}" / f"B{number}_seg.nii.gz", number)
    _, notes = index(tmp_path / "d")
    (note,) = [note for note in notes if "look like label maps" in note]
    proposal = re.search(r"label\.masks (\S*), or", note).group(1)
    scans, _ = scans_of(index(tmp_path / "d", masks=proposal)[0])
    assert len(scans) == 8
    assert all(scan.labels.mask[0].path.endswith("_seg.nii.gz") for scan in scans)


def test_a_proposal_can_be_pasted_into_a_shell(tmp_path):
    image(tmp_path / "d" / "my images" / "a.nii.gz")
    label(tmp_path / "d" / "my labels" / "a.nii.gz")
    _, notes = index(tmp_path / "d")
    assert any("label.masks 'my images=my labels', or" in note for note in notes)


def test_what_a_rule_leaves_over_is_proposed_beside_it(tmp_path):
    for half in ("Tr", "Ts"):
        image(tmp_path / "d" / f"images{half}" / f"{half}.nii.gz")
        label(tmp_path / "d" / f"labels{half}" / f"{half}.nii.gz")
    _, notes = index(tmp_path / "d", masks="imagesTr=labelsTr")
    assert any("with label.masks imagesTr=labelsTr,imagesTs=labelsTs, or" in note for note in notes)


def test_label_maps_without_images_are_not_scans(tmp_path):
    for number in range(2):
        label(tmp_path / "d" / "labels" / f"{number}.nii.gz", number)
    image(tmp_path / "d" / "other" / "x.nii.gz")
    file, notes = index(tmp_path / "d")
    assert len(scans_of(file)[0]) == 1
    assert any("Use them with label.masks TEXT=TEXT" in note for note in notes)


def test_the_intent_of_a_nifti_header_is_enough(tmp_path):
    import nibabel

    made = nibabel.Nifti1Image(noise(SHAPE, np.uint8, high=3), np.eye(4))
    made.header.set_intent("label")
    image(tmp_path / "d" / "x.nii.gz")
    nibabel.save(made, tmp_path / "d" / "organs.nii.gz")
    (scan,), _ = scans_of(index(tmp_path / "d")[0], "rejected")
    assert scan.source.parts[0].path == "d/organs.nii.gz"


@pytest.mark.parametrize(
    "names",
    [
        ("labels/a.nii.gz", "images/a.nii.gz"),  # a word alone says nothing where the pixels are an image
        ("t1/a.nii.gz", "t2/a.nii.gz"),
        ("a_t1.nii.gz", "a_t2.nii.gz"),
        ("HE/1.png", "IHC/1.png"),
        ("p1/T1.nii.gz", "p2/T1.nii.gz"),
    ],
)
def test_images_are_not_taken_as_label_maps(names, tmp_path):
    for number, name in enumerate(names):
        image(tmp_path / "d" / name, number)
    file, notes = index(tmp_path / "d")
    assert len(scans_of(file)[0]) == 2
    assert not any("label maps" in note for note in notes)


@pytest.mark.parametrize(
    ("array", "classes"),
    [
        (noise((1, 9, 8, 7), high=1000), False),
        (noise((1, 9, 8, 7), np.uint8, high=3), True),
        (noise((1, 9, 8, 7), np.uint8, high=3).astype(np.float32), True),
        (noise((1, 9, 8, 7), np.uint8, high=3) + np.float32(0.5), False),
        (noise((3, 30, 40), np.uint8, high=250), False),
        (np.eye(3, dtype=np.uint8)[noise((30, 40), np.uint8, high=3)].transpose(2, 0, 1) * 255, True),
        (noise((1, 30, 40), np.uint8, high=2) * 245 + noise((1, 30, 40), np.uint8, high=9), True),
        (noise((1, 64, 64), np.uint8, high=250), False),
    ],
)
def test_few_whole_numbers_are_classes(array, classes):
    assert holds_classes(array, named=False) == classes


@pytest.mark.parametrize(
    ("image", "mask", "pairs"),
    [
        ("images/a.png", "masks/a.png", ["images=masks"]),
        ("a_flair.nii.gz", "a_seg.nii.gz", ["_flair.nii.gz=_seg.nii.gz"]),
        ("p/t1.nii.gz", "p/truth.nii.gz", ["t1=truth"]),
        ("x/img1.png", "y/lab1.png", ["x=y", "img=lab"]),
    ],
)
def test_replacements_lead_from_image_to_mask(image, mask, pairs):
    assert replacements(image, mask) == pairs
    assert mask in PathRule("mask", "--label.masks", ",".join(pairs)).masks_of(image)


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "proposal", "count"),
    [("hippocampus", "imagesTr=labelsTr", 130), ("acdc", "images=labels", 50), ("polyp", "images=masks", 500)],
)
def test_real_folders_get_a_proposal_that_works(real_data, tmp_path, folder, proposal, count):
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder}")
    link = tmp_path / "d"
    link.symlink_to(real_data / folder)
    file, notes = index(link)
    assert any(f"{count} files look like label maps" in note and f" {proposal}, or" in note for note in notes)
    assert len(scans_of(file)[0]) == count
    scans, _ = scans_of(index(link, masks=proposal)[0])
    assert sum(bool(scan.labels.mask) for scan in scans) == count


@pytest.mark.data
def test_real_images_are_not_taken_as_label_maps(real_data, tmp_path):
    for folder, count in (("breast_ultrasound", 389), ("chest_xray", 264), ("stains", 5)):
        if (real_data / folder).is_dir():
            (tmp_path / folder).symlink_to(real_data / folder)
            file, notes = index(tmp_path / folder)
            assert not any("label maps" in note for note in notes)
            with_folder = [scan for scan in scans_of(file)[0] if scan.source.dataset == folder]
            assert len(with_folder) == count


def test_a_folder_of_label_maps_for_each_subject(tmp_path, monkeypatch):
    """However many subjects there are, and where the mask of one of them is empty."""
    monkeypatch.setattr("medssl.data.index.label_maps._READS", 8)
    for number in range(20):
        image(tmp_path / "d" / f"sub-{number}" / "image" / "scan.nii.gz", number)
        label(tmp_path / "d" / f"sub-{number}" / "seg" / "scan.nii.gz", number)
    write_nifti(tmp_path / "d" / "sub-7" / "seg" / "scan.nii.gz", np.zeros(SHAPE, np.uint8))
    file, notes = index(tmp_path / "d")
    assert {Path(scan.source.parts[0].path).parent.name for scan in scans_of(file)[0]} == {"image"}
    assert "20 files look like label maps and are not taken as scans" in notes[-1]


def test_folders_of_one_name_with_other_contents_are_distinguished(tmp_path):
    for number in range(3):
        label(tmp_path / "d" / "a" / "labels" / f"{number}.nii.gz", number)
        image(tmp_path / "d" / "b" / "labels" / f"{number}.nii.gz", number)
    file, _ = index(tmp_path / "d")
    assert {scan.source.parts[0].path[:10] for scan in scans_of(file)[0]} == {"d/b/labels"}
