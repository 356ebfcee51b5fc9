"""Data sets in common layouts are read as they are; a folder that is none is refused with what it lacks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from data.make_scans import Series, noise, write_nifti, write_series

from medssl.cli import main
from medssl.data.formats.reading import read
from medssl.data.index.scan_index import Index
from medssl.types import UserError

SHAPE = (6, 5, 4)


def run(folder: Path, layout: str, *words: str) -> tuple[Path, int]:
    file = folder.parent / "index" / "i.sqlite"
    options = ["--index", str(file), "--files.key", str(folder.parent / "key" / "key"), "--files.workers", "0"]
    return file, main(["index", str(folder), *options, "--layout", layout, *words])


def scans_of(file: Path, status="ok"):
    with Index.open(file) as opened:
        return list(opened.scans(status=status)), opened.root, opened.schema()


def image(file: Path, seed: int = 0) -> np.ndarray:
    return write_nifti(file, noise(SHAPE, seed=seed))


def label(file: Path, seed: int = 0) -> np.ndarray:
    return write_nifti(file, noise(SHAPE, np.uint8, seed=seed, high=3))


def name_of(scan) -> str:
    return Path(scan.source.parts[0].path).name


# --- nnU-Net


def nnunet(folder: Path, channels=("T1", "FLAIR"), **about) -> Path:
    for case in range(4):
        for channel in range(len(channels)):
            image(folder / "imagesTr" / f"brain_{case}_{channel:04d}.nii.gz", 10 * case + channel)
        label(folder / "labelsTr" / f"brain_{case}.nii.gz", case)
    for channel in range(len(channels)):
        image(folder / "imagesTs" / f"brain_9_{channel:04d}.nii.gz", 90 + channel)
    names = {str(number): name for number, name in enumerate(channels)}
    content = {"channel_names": names, "labels": {"background": 0, "edema": 1, "core": 2}, "numTraining": 4}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"} | about))
    return folder


def test_nnunet_cases_of_several_channels_are_one_scan(tmp_path, capsys):
    file, code = run(nnunet(tmp_path / "Dataset001_Brain"), "nnunet")
    assert code == 0
    out = capsys.readouterr().out
    assert "Dataset001_Brain: layout nnunet: 3 classes, 2 channels, modality MR, each case is a subject" in out
    scans, root, schema = scans_of(file)
    assert schema.classes == ((0, "background"), (1, "edema"), (2, "core"))
    assert len(scans) == 5
    for scan in scans:
        case = int(name_of(scan).split("_")[1])
        assert (scan.source.modality, scan.source.value_domain, len(scan.source.channels)) == ("MR", "mr", 2)
        volume = read(scan, root)
        expected = np.stack([noise(SHAPE, seed=10 * case + channel) for channel in range(2)])
        np.testing.assert_array_equal(volume.image, expected)
        if case == 9:
            assert (scan.subject.split, volume.label) == ("test", None)
        else:
            assert scan.subject.split in ("train", "val")
            np.testing.assert_array_equal(volume.label[0], noise(SHAPE, np.uint8, seed=case, high=3))
    assert len({scan.subject.subject_id for scan in scans}) == 5
    assert all(scan.subject.known for scan in scans)


def test_nnunet_is_stable_and_follows_changes(tmp_path):
    folder = nnunet(tmp_path / "d")
    file, _ = run(folder, "nnunet")
    before = {scan.scan_id: scan.digests.source for scan in scans_of(file)[0]}
    run(folder, "nnunet", "--label.ignore", "2")
    run(folder, "nnunet")
    assert {scan.scan_id: scan.digests.source for scan in scans_of(file)[0]} == before
    write_nifti(folder / "imagesTr" / "brain_1_0001.nii.gz", noise((6, 5, 4), np.int32, seed=5))
    run(folder, "nnunet")
    after = {scan.scan_id: scan.digests.source for scan in scans_of(file)[0]}
    assert sum(before[one] != after[one] for one in after) == 1
    main(["index", str(folder), "--index", str(file), "--files.key", str(tmp_path / "key" / "key")])
    scans = scans_of(file)[0]  # without the layout each file is a scan again
    assert {len(scan.source.channels) for scan in scans} == {1}
    assert {scan.source.modality for scan in scans} == {""}


def test_nnunet_missing_or_other_channels_fail(tmp_path):
    folder = nnunet(tmp_path / "d")
    (folder / "imagesTr" / "brain_0_0001.nii.gz").unlink()
    write_nifti(folder / "imagesTr" / "brain_1_0001.nii.gz", noise((6, 5, 5)))
    write_nifti(folder / "imagesTr" / "brain.nii.gz", noise(SHAPE))
    file, _ = run(folder, "nnunet")
    assert {scan.status.reason for scan in scans_of(file, "failed")[0]} == {
        "channel missing: brain_0_0001.nii.gz does not exist",
        "channel shape differs: brain_1_0001.nii.gz has 6x5x5, its image 6x5x4",
    }
    (odd,) = scans_of(file, "rejected")[0]
    assert odd.status.reason == "no channel number in its name: expected CASE_0000.nii.gz"


@pytest.mark.parametrize(
    ("channels", "modality", "domain"), [(("CT",), "CT", "hu"), (("noNorm",), "", "gray"), (("T1", "CT"), "", "gray")]
)
def test_nnunet_channel_names_give_the_modality(tmp_path, channels, modality, domain):
    file, _ = run(nnunet(tmp_path / "d", channels), "nnunet")
    assert {(scan.source.modality, scan.source.value_domain) for scan in scans_of(file)[0]} == {(modality, domain)}


def test_options_of_the_user_come_before_the_layout(tmp_path):
    words = ("--label.class_names", "0=a,1=b,2=c", "--files.modality", "CT", "--label.split", "train=1.0")
    file, _ = run(nnunet(tmp_path / "d"), "nnunet", *words, "--subject", r"(brain)_")
    scans, _, schema = scans_of(file)
    assert schema.classes == ((0, "a"), (1, "b"), (2, "c"))
    assert {scan.source.modality for scan in scans} == {"CT"}
    assert len({scan.subject.subject_id for scan in scans}) == 1


def test_nnunet_label_to_ignore(tmp_path):
    file, _ = run(nnunet(tmp_path / "d", labels={"background": 0, "edema": 1, "ignore": 2}), "nnunet")
    schema = scans_of(file)[2]
    assert (schema.classes, schema.ignore) == (((0, "background"), (1, "edema")), 2)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        (
            {"labels": {"background": 0, "whole": [1, 2]}},
            r"dataset\.json names regions of several values \(whole\) \(expected the value of each class",
        ),
        ({"channel_names": None}, r"dataset\.json has no channel_names"),
        ({"labels": {"background": 0, "a": "x"}}, r"label 'a' has no whole number"),
    ],
)
def test_nnunet_what_cannot_be_read_is_refused(tmp_path, capsys, about, says):
    _, code = run(nnunet(tmp_path / "d", **about), "nnunet")
    assert code == 2
    err = capsys.readouterr().err
    assert "layout nnunet: " in err
    assert re.search(says, err)


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("nnunet", "no dataset.json in d: expected the folder of the data set itself"),
        ("decathlon", "no dataset.json in d"),
        ("bids", "no dataset_description.json in d"),
        ("csv", "the layout reads its files from a table"),
    ],
)
def test_a_folder_without_the_layout_is_refused(tmp_path, capsys, layout, says):
    image(tmp_path / "d" / "x.nii.gz")
    file, code = run(tmp_path / "d", layout)
    assert code == 2
    assert f"layout {layout}: {says}" in capsys.readouterr().err
    assert not file.exists()


def test_a_single_file_has_no_layout(tmp_path, capsys):
    image(tmp_path / "d" / "x.nii.gz")
    _, code = run(tmp_path / "d" / "x.nii.gz", "nnunet")
    assert code == 2
    assert "layout nnunet reads whole folders" in capsys.readouterr().err


# --- Decathlon


def decathlon(folder: Path, volumes: int = 1) -> Path:
    shape = SHAPE if volumes == 1 else (*SHAPE, volumes)
    for case in range(3):
        write_nifti(folder / "imagesTr" / f"c_{case}.nii.gz", noise(shape, seed=case))
        label(folder / "labelsTr" / f"c_{case}.nii.gz", case)
        (folder / "imagesTr" / f"._c_{case}.nii.gz").write_bytes(b"x")
    write_nifti(folder / "imagesTs" / "c_7.nii.gz", noise(shape, seed=7))
    write_nifti(folder / "imagesTs" / "extra.nii.gz", noise(shape, seed=8))
    content = {
        "modality": {str(n): name for n, name in enumerate(("FLAIR", "T1w")[:volumes])} if volumes > 1 else {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": [{"image": f"./imagesTr/c_{n}.nii.gz", "label": f"./labelsTr/c_{n}.nii.gz"} for n in range(3)],
        "test": ["./imagesTs/c_7.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("volumes", [1, 2])
def test_decathlon(tmp_path, volumes, capsys):
    file, code = run(decathlon(tmp_path / "Task99", volumes), "decathlon")
    assert code == 0
    assert f"layout decathlon: 4 images, 3 classes, {volumes} channels, modality" in capsys.readouterr().out
    scans, root, schema = scans_of(file)
    assert [name for _, name in schema.classes] == ["background", "liver", "cancer"]
    assert sorted(map(name_of, scans)) == [f"c_{n}.nii.gz" for n in (0, 1, 2, 7)]
    for scan in scans:
        case = int(name_of(scan)[2])
        assert scan.source.modality == ("CT" if volumes == 1 else "MR")
        volume = read(scan, root)
        assert len(volume.image) == volumes
        assert (scan.subject.split == "test") == (case == 7)
        if case < 7:
            np.testing.assert_array_equal(volume.label[0], noise(SHAPE, np.uint8, seed=case, high=3))
    (extra,) = scans_of(file, "rejected")[0]
    assert extra.status.reason == "not listed in dataset.json"


def test_decathlon_files_of_fewer_channels_than_modalities_fail(tmp_path):
    folder = decathlon(tmp_path / "d", 2)
    content = json.loads((folder / "dataset.json").read_text())
    content["modality"]["2"] = "T2w"
    (folder / "dataset.json").write_text(json.dumps(content))
    file, _ = run(folder, "decathlon")
    assert not scans_of(file)[0]
    reasons = {scan.status.reason for scan in scans_of(file, "failed")[0]}
    assert reasons == {"2 channels where dataset.json names 3 modalities: correct either of them"}


def test_decathlon_files_that_are_missing_are_counted(tmp_path, capsys):
    folder = decathlon(tmp_path / "d")
    (folder / "imagesTr" / "c_1.nii.gz").unlink()
    run(folder, "decathlon")
    assert "1 rows of dataset.json name no readable file (first: imagesTr/c_1.nii.gz)" in capsys.readouterr().out


# --- BIDS


def bids(folder: Path) -> Path:
    for subject in ("01", "02"):
        for session in ("a", "b"):
            place = f"sub-{subject}/ses-{session}/anat"
            name = f"sub-{subject}_ses-{session}"
            image(folder / place / f"{name}_T1w.nii.gz")
            label(folder / "derivatives" / "manual" / place / f"{name}_desc-tumor_dseg.nii.gz")
        image(folder / f"sub-{subject}/ses-a/ct" / f"sub-{subject}_ses-a_CT.nii.gz")
        image(folder / "derivatives" / "prep" / f"sub-{subject}" / f"sub-{subject}_desc-preproc_T1w.nii.gz")
    image(folder / "sourcedata" / "x.nii.gz")
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    (folder / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t40\tF\nsub-02\t61\tM\n")
    return folder


def test_bids(tmp_path, capsys):
    file, code = run(bids(tmp_path / "d"), "bids", "--label.columns", "age")
    assert code == 0
    assert "layout bids: 2 subjects, columns age of participants.tsv" in capsys.readouterr().out
    scans, root, _ = scans_of(file)
    assert len(scans) == 6
    assert len({scan.subject.subject_id for scan in scans}) == 2
    assert len({scan.subject.study_id for scan in scans}) == 4
    for scan in scans:
        anatomy = name_of(scan).endswith("T1w.nii.gz")
        assert (scan.source.modality, scan.source.value_domain) == (("MR", "mr") if anatomy else ("CT", "hu"))
        assert bool(scan.labels.mask) == anatomy
        assert dict(scan.labels.values) == {"age": "40" if "sub-01" in name_of(scan) else "61"}
        assert (read(scan, root).label is not None) == anatomy
    reasons = sorted(scan.status.reason for scan in scans_of(file, "rejected")[0])
    assert reasons == ["derivative of BIDS, not a raw scan"] * 2 + ["outside of the subjects of BIDS"]


def test_bids_lists_the_columns_of_the_table(tmp_path, capsys):
    run(bids(tmp_path / "d"), "bids")
    assert "keep columns of participants.tsv with label.columns (age, sex)" in capsys.readouterr().out


def test_bids_labels_that_fit_several_images_are_not_guessed(tmp_path, capsys):
    folder = bids(tmp_path / "d")
    image(folder / "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz")
    file, _ = run(folder, "bids")
    assert "1 label files of derivatives belong to several images" in capsys.readouterr().out
    assert sum(bool(scan.labels.mask) for scan in scans_of(file)[0]) == 3


# --- CSV


def table(folder: Path, text: str) -> str:
    (folder / "list.csv").write_text(text)
    return str(folder / "list.csv")


def test_csv(tmp_path, capsys):
    folder = tmp_path / "d"
    for number in range(3):
        image(folder / "x" / f"{number}.nii.gz", number)
    label(folder / "y" / "organ0.nii.gz")
    write_series(folder / "dicom", Series())
    rows = "x/0.nii.gz,y/organ0.nii.gz,ann,train,CT,7\nx/1.nii.gz,y/lost.nii.gz,bob,test,,8\ndicom,,ann,train,,9\n"
    rows += "x/5.nii.gz,y/none.nii.gz,bob,test,,1\n"
    words = (
        "--label.values",
        table(folder, f"image,mask,subject,split,modality,grade\n{rows}"),
        "--label.columns",
        "grade",
    )
    file, code = run(folder, "csv", *words)
    assert code == 0
    out = capsys.readouterr().out
    assert "layout csv: 4 rows of list.csv, 3 with a mask, 2 subject values, 2 split values, 1 modality value" in out
    assert "1 rows of list.csv name no readable file (first: x/5.nii.gz)" in out
    assert "1 files named as mask do not exist (first: y/lost.nii.gz for x/1.nii.gz)" in out
    scans, root, _ = scans_of(file)
    found = {name_of(scan): scan for scan in scans if name_of(scan).endswith("gz")}
    assert sorted(found) == ["0.nii.gz", "1.nii.gz"]
    assert len(scans) == 3
    first, second = found["0.nii.gz"], found["1.nii.gz"]
    assert (first.subject.split, first.source.modality, first.source.value_domain) == ("train", "CT", "hu")
    assert second.subject.split == "test"
    assert dict(first.labels.values) == {"grade": "7"}
    np.testing.assert_array_equal(read(first, root).label[0], noise(SHAPE, np.uint8, high=3))
    assert len({scan.subject.subject_id for scan in scans}) == 2  # the DICOM series and 0.nii.gz are of one subject
    (other,) = scans_of(file, "rejected")[0]
    assert (name_of(other), other.status.reason) == ("2.nii.gz", "not listed in list.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,mask\na,b\n", "list.csv has no column 'image'; its columns are file, mask"),
        ("image\nnone.nii.gz\n", "no image that list.csv names is in d (first: none.nii.gz)"),
        ("image\nx.nii.gz\nx.nii.gz\n", "list.csv has two rows of the image 'x.nii.gz'"),
        ("image\n../x.nii.gz\n", "list.csv: x.nii.gz lies outside of d"),
    ],
)
def test_wrong_csv_tables_are_refused(tmp_path, capsys, text, says):
    image(tmp_path / "d" / "x.nii.gz")
    _, code = run(tmp_path / "d", "csv", "--label.values", table(tmp_path / "d", text))
    assert code == 2
    assert f"layout csv: {says}" in capsys.readouterr().err


def test_a_changed_table_is_read_again(tmp_path):
    image(tmp_path / "d" / "x.nii.gz")
    file, _ = run(tmp_path / "d", "csv", "--label.values", table(tmp_path / "d", "image,split\nx.nii.gz,train\n"))
    table(tmp_path / "d", "image,split\nx.nii.gz,validation\n")
    assert (
        main(["index", "--index", str(file), "--files.key", str(tmp_path / "key" / "key"), "--files.workers", "0"]) == 0
    )
    (scan,), _, _ = scans_of(file)
    assert scan.subject.split == "validation"


def test_a_changed_table_gives_what_a_new_index_gives(tmp_path):
    """What a mask was under the former table, an image with a mask and a modality of its own, leaves no trace."""
    folder = tmp_path / "d"
    for name in "abcdef":
        label(folder / "x" / f"{name}.nii.gz", ord(name))
        label(folder / "y" / f"{name}.nii.gz", 1 + ord(name))
    former = "image,mask,modality\n" + "".join(f"y/{name}.nii.gz,x/{name}.nii.gz,MRI\n" for name in "abcdef")
    later = "image,mask,modality\n" + "".join(f"x/{name}.nii.gz,y/{name}.nii.gz,mr\n" for name in "abcdef")
    run(folder, "csv", "--label.values", table(folder, former))
    file, _ = run(folder, "csv", "--label.values", table(folder, later))
    changed = scans_of(file)[0]
    file.unlink()
    run(folder, "csv", "--label.values", table(folder, later))
    assert changed == scans_of(file)[0]


def test_words_for_modalities_are_understood_in_tables(tmp_path):
    image(tmp_path / "d" / "x.nii.gz")
    values = table(tmp_path / "d", "image,modality\nx.nii.gz,MRI\n")
    file, _ = run(tmp_path / "d", "csv", "--label.values", values)
    (scan,), _, _ = scans_of(file)
    assert (scan.source.modality, scan.source.value_domain) == ("MR", "mr")


def test_a_table_of_values_still_needs_its_key():
    from medssl.data.index.label_sources import LabelOptions
    from medssl.data.index.scan_index import IndexOptions

    with pytest.raises(
        UserError, match=r"^label\.key: no column of .* \(expected the column that names the scan or the subject\)$"
    ):
        IndexOptions(labels=LabelOptions(values="x.csv"))


@pytest.mark.data
def test_real_decathlon_folder(real_data, tmp_path):
    """The real folder has no dataset.json: a list made from its names gives all pairs."""
    source = real_data / "hippocampus"
    if not source.is_dir():
        pytest.skip("no hippocampus")
    folder = tmp_path / "Task04"
    folder.mkdir()
    names = sorted(path.name for path in (source / "imagesTr").iterdir())
    for part in ("imagesTr", "labelsTr"):
        (folder / part).symlink_to(source / part)
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    labels = {"0": "background", "1": "anterior", "2": "posterior"}
    content = {"modality": {"0": "MRI"}, "labels": labels, "training": training, "test": []}
    (folder / "dataset.json").write_text(json.dumps(content))
    file, _ = run(folder, "decathlon")
    scans, root, _ = scans_of(file)
    assert len(scans) == len(names) == sum(bool(scan.labels.mask) for scan in scans)
    assert set(np.unique(read(scans[0], root).label)) <= {0, 1, 2}


def test_lists_with_an_image_twice_are_refused(tmp_path, capsys):
    folder = decathlon(tmp_path / "d")
    about = json.loads((folder / "dataset.json").read_text())
    first = dict(about["training"][0])
    about["training"].append(first | {"label": about["training"][1]["label"]})
    (folder / "dataset.json").write_text(json.dumps(about))
    assert run(folder, "decathlon")[1] == 2
    assert "twice, with two labels: remove one" in capsys.readouterr().err


def test_csv_headers_may_have_spaces_and_must_not_repeat(tmp_path, capsys):
    folder = tmp_path / "d"
    image(folder / "a.nii.gz")
    label(folder / "b.nii.gz")
    text = "image, mask\na.nii.gz, b.nii.gz\n"
    names = ("--label.class_names", "0=x,1=y,2=z")
    file, code = run(folder, "csv", "--label.values", table(tmp_path, text), *names)
    ((scan,), root, _) = scans_of(file)
    assert code == 0
    assert read(scan, root).label is not None
    assert run(folder, "csv", "--label.values", table(tmp_path, "image,mask,mask\na.nii.gz,b.nii.gz,\n"))[1] == 2
    assert "has two columns 'mask'" in capsys.readouterr().err


def test_a_list_of_files_in_the_json_of_nnunet_is_refused(tmp_path, capsys):
    folder = nnunet(tmp_path / "d", dataset={"brain_0": {"images": ["imagesTr/x"], "label": "labelsTr/y"}})
    assert run(folder, "nnunet")[1] == 2
    assert "lists its files under 'dataset', which is not read" in capsys.readouterr().err


def test_masks_among_raw_files_of_bids_are_no_scans(tmp_path):
    folder = bids(tmp_path / "d")
    for suffix in ("T1w_mask", "T1w_defacemask", "dseg"):
        label(folder / f"sub-01/ses-a/anat/sub-01_ses-a_{suffix}.nii.gz")
    file, _ = run(folder, "bids")
    assert len(scans_of(file)[0]) == 6
    reasons = [scan.status.reason for scan in scans_of(file, "rejected")[0]]
    assert sum("label map among raw files of BIDS" in reason for reason in reasons) == 3
