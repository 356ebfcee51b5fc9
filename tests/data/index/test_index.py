"""The index: what it finds, that it reads nothing twice, that a kill changes nothing, and that it names nobody."""

from __future__ import annotations

import csv
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from data.make_scans import Series, noise, write_itk, write_nifti, write_picture, write_series

from medssl.data.index import walk as walking
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.neighbors import mark_beside_unread, unread_beside
from medssl.data.index.pseudonyms import named_digest, patient_digest
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import Update, update
from medssl.types import UserError

KEY = b"k" * 32


def write_mixed(folder: Path) -> Path:
    """Nine scans of seven formats, a sidecar, a hidden file and a localizer."""
    write_series(folder / "a" / "b", Series(uid="1.2.3.1"))
    write_series(folder / "a" / "c", Series(uid="1.2.3.2", extra={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}))
    for number in range(3):
        write_nifti(folder / "n" / f"s{number}.nii.gz", noise((5, 6, 7 + number)))
    write_itk(folder / "i" / "x.nrrd", noise((5, 6, 7)))
    write_itk(folder / "i" / "x.mha", noise((5, 6, 7)))
    write_picture(folder / "p" / "x.png", noise((9, 8), np.uint8))
    write_picture(folder / "p" / "x.jpg", noise((9, 8, 3), np.uint8))
    write_picture(folder / "p" / "x.tif", noise((9, 8), np.uint16))
    (folder / "notes.txt").write_text("notes")
    (folder / ".hidden").write_text("x")
    (folder / "._x.nii").write_text("x")
    return folder


def run(file: Path, *folders: Path, key: bytes = KEY, **options) -> Update:
    with Index.open(file, create=True, root=folders[0].parent if folders else None) as index:
        return update(index, folders, IndexOptions(**options), key=key)


def content(file: Path) -> dict[str, list[tuple]]:
    """Everything an index says, without the numbers that depend on the order of writing."""
    connection = sqlite3.connect(file)
    queries = {
        "files": "SELECT path, dataset, size, modified_ns, state, reason, series, header FROM files ORDER BY path",
        "scans": "SELECT * FROM scans ORDER BY scan_id",
        "parts": "SELECT scan_id, role, number, path, frame FROM parts JOIN files ON id = file ORDER BY 1, 2, 3",
        "stale": "SELECT * FROM stale",
    }
    found = {name: connection.execute(query).fetchall() for name, query in queries.items()}
    connection.close()
    return found


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_mixed(tmp_path / "scans")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "index" / "index.sqlite"


def test_every_format_becomes_a_scan(scans, file):
    done = run(file, scans)
    assert (done.read, done.unchanged, done.gone) == (21, 0, 0)
    with Index.open(file) as index:
        found = list(index.scans())
        assert sorted(Path(scan.source.parts[0].path).suffix for scan in found) == sorted(
            ["", ".gz", ".gz", ".gz", ".nrrd", ".mha", ".png", ".jpg", ".tif"]
        )
        assert index.counts() == [
            ("ignored", "not an image: .txt file", 1),
            ("ignored", "not an image: AppleDouble file", 1),
            ("ignored", "not an image: hidden file", 1),
            ("rejected", "localizer", 1),
        ]
    by_suffix = {Path(scan.source.parts[0].path).suffix: scan for scan in found}
    assert by_suffix[".nrrd"].grid.shape == (5, 6, 7)
    np.testing.assert_allclose(by_suffix[".nrrd"].grid.affine[0], (-0.5, 0, 0, 0))
    assert by_suffix[".png"].grid.shape == (9, 8)
    assert by_suffix[".jpg"].source.value_domain == "rgb"
    assert by_suffix[""].source.value_domain == "mr"
    assert len(by_suffix[""].source.parts) == 5


def test_the_second_update_reads_nothing(scans, file):
    run(file, scans)
    before = content(file)
    done = run(file, scans)
    assert (done.read, done.unchanged, done.gone) == (0, 21, 0)
    assert content(file) == before


def test_only_changed_files_are_read_and_gone_ones_forgotten(scans, file):
    run(file, scans)
    with Index.open(file) as index:
        before = {scan.scan_id: scan for scan in index.scans()}
    write_nifti(scans / "n" / "s1.nii.gz", noise((5, 6, 20), seed=5))
    (scans / "p" / "x.png").unlink()
    done = run(file, scans)
    assert (done.read, done.unchanged, done.gone) == (1, 19, 1)
    with Index.open(file) as index:
        after = {scan.scan_id: scan for scan in index.scans()}
    changed = {scan_id for scan_id in after if after[scan_id] != before[scan_id]}
    assert [after[scan_id].grid.shape for scan_id in changed] == [(5, 6, 20)]
    assert len(before) - len(after) == 1


def test_a_slice_that_comes_later_joins_its_series(tmp_path, file):
    _, files = write_series(tmp_path / "scans", Series(shape=(4, 4, 6)))
    last = files[-1].read_bytes()
    files[-1].unlink()
    run(file, tmp_path / "scans")
    with Index.open(file) as index:
        (before,) = index.scans()
    files[-1].write_bytes(last)
    assert run(file, tmp_path / "scans").read == 1
    with Index.open(file) as index:
        (after,) = index.scans()
    assert (before.grid.shape, after.grid.shape) == ((4, 4, 5), (4, 4, 6))
    assert before.scan_id == after.scan_id
    assert before.digests != after.digests


def test_processes_find_the_same(scans, tmp_path, monkeypatch):
    monkeypatch.setattr("medssl.data.index.update._FILES_AT_ONCE", 4)
    run(tmp_path / "x" / "one", scans, files=FileOptions(workers=0))
    run(tmp_path / "x" / "two", scans, files=FileOptions(workers=2))
    assert content(tmp_path / "x" / "one") == content(tmp_path / "x" / "two")


@pytest.mark.parametrize("after", [1, 3, 5, 7])
def test_killed_and_started_again_equals_uninterrupted(scans, tmp_path, after):
    run(tmp_path / "x" / "whole", scans)
    file = tmp_path / "x" / "killed"
    program = f"""
        import os, signal
        from pathlib import Path
        from medssl.data.index import update as module
        from medssl.data.index.scan_index import Index, IndexOptions
        module._FILES_AT_ONCE, module._SERIES_AT_ONCE = 4, 3
        calls = []
        def progress(what, count, size):
            calls.append(what)
            if len(calls) == {after}:
                os.kill(os.getpid(), signal.SIGKILL)
        with Index.open({str(file)!r}, create=True, root=Path({str(scans.parent)!r})) as index:
            module.update(index, [Path({str(scans)!r})], IndexOptions(), key={KEY!r}, progress=progress)
    """
    done = subprocess.run([sys.executable, "-c", dedent(program)], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    again = run(file, scans)
    assert again.read < 21 or after == 1
    assert content(file) == content(tmp_path / "x" / "whole")


def test_an_error_during_an_update_leaves_valid_tables(scans, tmp_path, monkeypatch):
    run(tmp_path / "x" / "whole", scans)
    file = tmp_path / "x" / "broken"

    def fail(*_args):
        raise KeyboardInterrupt("stopped here")

    with monkeypatch.context() as patched:
        patched.setattr("medssl.data.index.update.regroup", fail)
        with pytest.raises(KeyboardInterrupt, match="stopped here"):
            run(file, scans)
    assert run(file, scans).read == 0
    assert content(file) == content(tmp_path / "x" / "whole")


def test_only_the_owner_can_read_the_index(scans, file):
    run(file, scans)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_one_update_at_a_time(scans, file):
    run(file, scans)
    with Index.open(file, create=True) as index:

        def progress(_what, _count, _size):
            with pytest.raises(UserError, match="being updated by another process"):
                run(file, scans)

        update(index, [scans], IndexOptions(), key=KEY, progress=progress)


def test_moved_scans_keep_their_identifiers(scans, tmp_path):
    run(tmp_path / "x" / "one", scans)
    scans.rename(tmp_path / "elsewhere")
    run(tmp_path / "x" / "two", tmp_path / "elsewhere", files=FileOptions(dataset="scans"))
    with Index.open(tmp_path / "x" / "one") as one, Index.open(tmp_path / "x" / "two") as two:
        assert [scan.scan_id for scan in one.scans()] == [scan.scan_id for scan in two.scans()]
        assert one.digest() == two.digest()


def test_another_key_gives_other_identifiers_and_is_noticed(scans, tmp_path):
    run(tmp_path / "x" / "one", scans)
    run(tmp_path / "x" / "two", scans, key=b"other" * 6)
    with Index.open(tmp_path / "x" / "one") as one, Index.open(tmp_path / "x" / "two") as two:
        assert not {scan.scan_id for scan in one.scans()} & {scan.scan_id for scan in two.scans()}
    with pytest.raises(UserError, match="made with another key"):
        run(tmp_path / "x" / "one", scans, key=b"other" * 6)


def test_the_table_of_scans_holds_no_names(tmp_path, file):
    folder = tmp_path / "scans" / "Doe_Jane"
    write_series(folder)
    write_nifti(folder / "Doe.nii", noise((4, 4, 4)))
    run(file, tmp_path / "scans", subject=r"(Doe)_")
    with Index.open(file) as index:
        text = str([tuple(row) for row in index.connection.execute("SELECT * FROM scans")])
        text += str([tuple(row) for row in index.rows()]) + str(index.columns())
        index.export(tmp_path / "table.csv")
    text += (tmp_path / "table.csv").read_text()
    for secret in ("Doe", "Jane", "4711", "1.2.826"):
        assert secret not in text


# --- questions


def test_conditions_and_splits_select(scans, file):
    run(file, scans, labels=LabelOptions(split="train=1"))
    with Index.open(file) as index:
        assert [scan.grid.shape for scan in index.scans("modality = 'MR'")] == [(8, 6, 5)]
        assert len(list(index.scans("size_k >= 8 -- a comment"))) == 2
        assert len(list(index.scans(split="train"))) == 9
        assert list(index.scans(split="test")) == []
        assert [scan.status.reason for scan in index.scans(status="rejected")] == ["localizer"]


@pytest.mark.parametrize("where", ["1; DROP TABLE scans", "(", "'"])
def test_a_condition_can_only_select(scans, file, where):
    run(file, scans)
    before = content(file)
    with (
        Index.open(file, create=True) as index,
        pytest.raises(
            UserError, match=r"^where: not a valid condition \(.*\) \(expected an SQL condition on the columns scan_id"
        ),
    ):
        list(index.scans(where))
    assert content(file) == before


def test_export_writes_both_formats(scans, file, tmp_path):
    from pyarrow import parquet

    run(file, scans)
    with Index.open(file) as index:
        assert index.export(tmp_path / "x.csv", "kind = 'volume'") == 6
        assert index.export(tmp_path / "x.parquet", "kind = 'volume'") == 6
        columns = index.columns()
        with pytest.raises(UserError, match=r"expected a name that ends in \.csv or \.parquet"):
            index.export(tmp_path / "x.xlsx")
    with (tmp_path / "x.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    table = parquet.read_table(tmp_path / "x.parquet")
    assert list(rows[0]) == columns == table.column_names
    assert [row["scan_id"] for row in rows] == table["scan_id"].to_pylist()


def test_a_scan_is_found_by_the_beginning_of_its_identifier(scans, file):
    run(file, scans)
    with Index.open(file) as index:
        first = next(index.scans())
        assert index.scan(first.scan_id[:10]) == first
        with pytest.raises(UserError, match="no scan 'zz'"):
            index.scan("zz")


# --- subjects, labels, splits


def write_labeled(folder: Path) -> Path:
    for subject in range(6):
        for visit in range(2):
            write_nifti(folder / "images" / f"p{subject}_v{visit}.nii.gz", noise((4, 5, 6), seed=subject))
            write_nifti(folder / "labels" / f"p{subject}_v{visit}.nii.gz", noise((4, 5, 6), np.uint8, high=3))
    rows = [f"p{subject},{'sick' if subject % 2 else 'well'},secret{subject}" for subject in range(6)]
    folder.with_suffix(".csv").write_text("\n".join(["patient,state,name", *rows, "p99,well,secret99"]))
    return folder


def test_masks_values_and_subjects_come_together(tmp_path, file):
    folder = write_labeled(tmp_path / "d")
    labels = LabelOptions(
        masks="images=labels", values=str(tmp_path / "d.csv"), key="patient", columns="state",
        class_names="0=background,1=a,2=b", ignore=9,
    )  # fmt: skip
    done = run(file, folder, subject=r"(p\d+)_v", labels=labels)
    with Index.open(file) as index:
        scans = list(index.scans())
        assert len(scans) == 12
        assert len({scan.subject.subject_id for scan in scans}) == 6
        for scan in scans:
            image, mask = scan.source.parts[0].path, scan.labels.mask[0].path
            assert mask == image.replace("images", "labels")
            number = int(Path(image).name[1])
            assert scan.labels.values == (("state", "sick" if number % 2 else "well"),)
            assert scan.subject.subject_id == named_digest(KEY, "d", f"p{number}")
        by_subject = {}
        for scan in scans:
            assert by_subject.setdefault(scan.subject.subject_id, scan.subject.split) == scan.subject.split
        assert index.schema().classes == ((0, "background"), (1, "a"), (2, "b"))
        assert index.schema().ignore == 9
        assert len(list(index.scans("label_state = 'sick'"))) == 6
        assert "secret" not in str(content(file))
    assert done.notes == ("d: 1 rows of d.csv fit no scan",)


def test_rules_can_be_changed_without_reading_again(tmp_path, file):
    folder = write_labeled(tmp_path / "d")
    run(file, folder)
    with Index.open(file) as index:
        assert len(list(index.scans())) == 12  # label maps are held back until a rule names them
    done = run(file, folder, subject=r"(p\d+)_v", labels=LabelOptions(masks="images=labels"))
    assert done.read == 0
    run(tmp_path / "fresh" / "x", folder, subject=r"(p\d+)_v", labels=LabelOptions(masks="images=labels"))
    assert content(file) == content(tmp_path / "fresh" / "x")


def test_a_changed_mask_changes_the_digest_of_its_scan(tmp_path, file):
    folder = write_labeled(tmp_path / "d")
    options = {"subject": r"(p\d+)_v", "labels": LabelOptions(masks="images=labels")}
    run(file, folder, **options)
    with Index.open(file) as index:
        before = {scan.scan_id: scan.digests.source for scan in index.scans()}
    write_nifti(folder / "labels" / "p3_v1.nii.gz", noise((4, 5, 6), np.uint8, seed=8, high=3))
    os.utime(folder / "labels" / "p3_v1.nii.gz", ns=(1, 1))
    run(file, folder, **options)
    with Index.open(file) as index:
        after = {scan.scan_id: scan.digests.source for scan in index.scans()}
    assert sum(before[scan_id] != after[scan_id] for scan_id in after) == 1


def write_excluded(folder: Path) -> Path:
    """Labeled scans, four of which have a mask of excluded voxels."""
    write_labeled(folder)
    for number in range(4):
        mask = noise((4, 5, 6), np.uint8, seed=number, high=2)
        write_nifti(folder / "labels" / "excluded" / f"p{number}_v0.nii.gz", mask)
    return folder


EXCLUDED = {
    "subject": r"(p\d+)_v",
    "labels": LabelOptions(masks="images=labels", excluded="images/=labels/excluded/"),
}


def test_masks_of_excluded_voxels_belong_to_their_images(tmp_path, file):
    done = run(file, write_excluded(tmp_path / "d"), **EXCLUDED)
    (note,) = done.notes
    assert note.startswith(
        "d: 8 scans have no usable mask of excluded voxels: none of their voxels is excluded (first: images/p"
    )
    with Index.open(file) as index:
        scans = list(index.scans())
        assert len(scans) == 12  # none of the masks is a scan
        for scan in scans:
            name = Path(scan.source.parts[0].path).name
            masked = name[1] in "0123" and name.endswith("v0.nii.gz")
            assert [part.path for part in scan.labels.excluded] == ([f"d/labels/excluded/{name}"] if masked else [])
            assert [part.path for part in scan.labels.mask] == [f"d/labels/{name}"]


def test_a_mask_of_excluded_voxels_leaves_digests_of_other_scans_alone(tmp_path, file):
    """Whatever comes, changes or goes is seen at the scan that it belongs to, and nowhere else."""
    folder = write_labeled(tmp_path / "d")
    place = folder / "labels" / "excluded" / "p3_v1.nii.gz"

    def digests():
        with Index.open(file) as index:
            return {Path(s.source.parts[0].path).name: s.digests.source for s in index.scans()}, index.digest()

    def changed(one, other):
        return {name for name in one[0] if one[0][name] != other[0][name]}

    run(file, folder, subject=r"(p\d+)_v", labels=LabelOptions(masks="images=labels"))
    without = digests()
    run(file, folder, **EXCLUDED)
    assert digests() == without  # a rule that fits no file changes nothing
    write_nifti(place, noise((4, 5, 6), np.uint8, high=2))
    run(file, folder, **EXCLUDED)
    there = digests()
    assert changed(without, there) == {"p3_v1.nii.gz"}
    assert there[1] != without[1]
    write_nifti(place, noise((4, 5, 6), np.uint8, seed=3, high=2))
    os.utime(place, ns=(1, 1))
    run(file)  # by the rules that the index keeps
    assert changed(there, digests()) == {"p3_v1.nii.gz"}
    place.unlink()
    run(file)
    assert digests() == without


def test_a_mask_of_excluded_voxels_without_an_image_is_rejected(tmp_path, file):
    folder = write_excluded(tmp_path / "d")
    write_nifti(folder / "labels" / "excluded" / "p9_v0.nii.gz", noise((4, 5, 6), np.uint8))
    write_nifti(folder / "labels" / "p9_v1.nii.gz", noise((4, 5, 6), np.uint8))
    run(file, folder, **EXCLUDED)
    with Index.open(file) as index:
        reasons = sorted(scan.status.reason for scan in index.scans(status="rejected"))
        assert reasons == ["label without an image"] * 2  # by the rule that is asked first
        assert len(list(index.scans())) == 12
    run(file, folder, subject=r"(p\d+)_v", labels=LabelOptions("none", "images/=labels/excluded/"))
    with Index.open(file) as index:
        (one,) = index.scans(status="rejected")
        assert one.status.reason == "mask of excluded voxels without an image"


def test_an_index_of_before_masks_of_excluded_voxels_is_read(tmp_path, file):
    folder = write_labeled(tmp_path / "d")
    run(file, folder, subject=r"(p\d+)_v", labels=LabelOptions(masks="images=labels"))
    before = content(file)["scans"]
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE datasets SET options = replace(options, '\"excluded\": \"\", ', '')")
        assert "excluded" not in connection.execute("SELECT options FROM datasets").fetchone()[0]
        connection.execute("DELETE FROM meta WHERE name = 'ruled'")
    run(file)
    assert content(file)["scans"] == before
    with Index.open(file) as index:
        assert all(scan.labels.excluded == () for scan in index.scans())


def test_folders_name_classes_and_splits(tmp_path, file):
    for split in ("train", "validation"):
        for name in ("benign", "malignant"):
            write_picture(tmp_path / "d" / split / name / "x.png", noise((4, 4), np.uint8))
    run(file, tmp_path / "d", labels=LabelOptions(classes="folder", split="folder"))
    with Index.open(file) as index:
        found = sorted((scan.subject.split, *scan.labels.values) for scan in index.scans())
    assert found == [(s, ("class", c)) for s in ("train", "val") for c in ("benign", "malignant")]


def test_scans_without_a_subject_are_noted(tmp_path, file):
    for number in range(3):
        write_picture(tmp_path / "d" / f"{number}.png", noise((4, 4), np.uint8))
    done = run(file, tmp_path / "d")
    assert "by scan, leaks are possible" in done.notes[0]
    with Index.open(file) as index:
        assert all(not scan.subject.known and scan.subject.subject_id == scan.scan_id for scan in index.scans())


def test_patients_are_the_same_in_every_data_set(tmp_path, file):
    write_series(tmp_path / "one", Series(uid="1.2.3.4"))
    write_series(tmp_path / "two", Series(uid="1.2.3.5"))
    run(file, tmp_path / "one", tmp_path / "two")
    with Index.open(file) as index:
        assert {scan.subject.subject_id for scan in index.scans()} == {patient_digest(KEY, "MRN-4711")}
        assert len({scan.scan_id for scan in index.scans()}) == 2


def test_a_table_finds_dicom_scans_by_patient(tmp_path, file):
    write_series(tmp_path / "d")
    (tmp_path / "t.csv").write_text("id,state\nMRN-4711,sick\n")
    run(file, tmp_path / "d", labels=LabelOptions(values=str(tmp_path / "t.csv"), key="id", columns="state"))
    with Index.open(file) as index:
        (scan,) = index.scans()
    assert scan.labels.values == (("state", "sick"),)


def test_numbers_signs_and_words_are_no_formulas(tmp_path, file):
    told = {"a": "-1", "b": "+", "c": "-2.5e3", "d": "- none", "e": "", "f": "++"}
    for name in told:
        write_nifti(tmp_path / "d" / f"{name}.nii", noise((4, 4, 4), seed=ord(name)))
    (tmp_path / "t.csv").write_text("id,state,note\n" + "".join(f"{name},{value},=1\n" for name, value in told.items()))
    run(file, tmp_path / "d", labels=LabelOptions(values=str(tmp_path / "t.csv"), key="id", columns="state"))
    with Index.open(file) as index:
        assert sorted(dict(scan.labels.values)["state"] for scan in index.scans()) == sorted(told.values())
    options = LabelOptions(values=str(tmp_path / "t.csv"), key="id", columns="state,note")
    with pytest.raises(
        UserError, match=r"t.csv, column 'note': '=1' begins with '=', which spreadsheets take for a form"
    ):
        run(file, tmp_path / "d", labels=options)


def test_a_subject_in_two_splits_is_noted(tmp_path, file):
    for split in ("train", "test"):
        write_nifti(tmp_path / "d" / split / "p1.nii", noise((4, 4, 4)))
    done = run(file, tmp_path / "d", subject=r"(p\d)", labels=LabelOptions(split="folder"))
    assert "leak: 1 subjects are in more than one split" in done.notes


def test_4d_files_are_channels_only_with_the_option(tmp_path, file):
    write_nifti(tmp_path / "d" / "x.nii.gz", noise((4, 5, 6, 3)))
    run(file, tmp_path / "d")
    with Index.open(file) as index:
        assert [scan.status.reason[:35] for scan in index.scans(status="rejected")] == [
            "several frames in a file: 3 volumes"
        ]
    run(file, tmp_path / "d", files=FileOptions(frames="channels"))
    with Index.open(file) as index:
        (scan,) = index.scans()
    assert scan.source.channels == ("0", "1", "2")


def test_burned_in_text_is_rejected_without_the_option(tmp_path, file):
    write_series(tmp_path / "d", Series(extra={"BurnedInAnnotation": "YES"}))
    run(file, tmp_path / "d")
    with Index.open(file) as index:
        assert index.counts() == [("rejected", "burned-in annotation", 1)]
    run(file, tmp_path / "d", files=FileOptions(burned_in=True))
    with Index.open(file) as index:
        assert len(list(index.scans())) == 1


# --- folders


def test_links_back_and_broken_links_and_pipes_do_no_harm(scans, file):
    (scans / "loop").symlink_to(scans)
    (scans / "broken.nii").symlink_to(scans / "nowhere")
    os.mkfifo(scans / "pipe")
    run(file, scans)
    with Index.open(file) as index:
        assert len(list(index.scans())) == 9
        assert {"broken link", "not a regular file"} <= {reason for _, reason, _ in index.counts()}


def test_a_folder_that_cannot_be_opened_is_unknown_not_gone(scans, file, monkeypatch):
    run(file, scans)
    original = os.scandir

    def closed(path):
        if Path(path).name == "n":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(walking.os, "scandir", closed)
    done = run(file, scans)
    assert done.gone == 0
    with Index.open(file) as index:
        assert len(list(index.scans())) == 9
        assert ("failed", "folder cannot be opened", 1) in index.counts()
    monkeypatch.undo()
    run(file, scans)
    with Index.open(file) as index:
        assert "failed" not in {status for status, _, _ in index.counts()}


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ("scans", "scans/n", {}, "lie inside each other"),
        ("scans", "other/scans", {}, "data set scans is already"),
        ("scans", "scans", {"files": FileOptions(dataset="again")}, "is already the data set scans"),
        ("scans", "nowhere", {}, "no such file or folder"),
    ],
)
def test_every_file_belongs_to_one_data_set(scans, tmp_path, file, first, second, options, message):
    write_mixed(tmp_path / "other" / "scans")
    run(file, tmp_path / first)
    with pytest.raises(UserError, match=message):
        run(file, tmp_path / second, **options)


@pytest.mark.data
def test_a_mixed_folder_is_grouped_and_other_files_are_listed(real_data, file):
    run(file, real_data / "dicom_epi_mixed", files=FileOptions(workers=0))
    with Index.open(file) as index:
        scans = list(index.scans())
        shapes = [scan.grid.shape for scan in scans]
        assert (shapes.count((64, 64, 15)), shapes.count((72, 72, 5)), len(shapes)) == (40, 8, 48)  # GE, mosaics
        assert index.counts() == [("ignored", "not an image: .txt file", 10)]


def test_unread_files_in_the_root_of_the_index_lie_beside_its_series(file):
    """Paths of files that lie in the root of the index have no folder."""
    with Index.open(file, create=True, root=file.parent) as index:
        rows = [("1.dcm", "slice", "s"), ("2.dcm", "failed", "t"), ("below/3.dcm", "failed", "u")]
        for path, state, series in rows:
            values = (path, "d", 1, 1, state, "", series, "", 1)
            index.connection.execute(
                "INSERT INTO files (path, dataset, size, modified_ns, state, reason, series, header, walk) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
        assert unread_beside(index.connection, "d", ["1.dcm"]) == ["2.dcm"]
        mark_beside_unread(index.connection)
        assert [tuple(row) for row in index.connection.execute("SELECT * FROM stale")] == [("s",)]
