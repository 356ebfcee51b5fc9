"""Segmentation objects and structure sets as labels of the scans of an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from data.formats.dicom.label_objects import contour, grid_of, segmentation, structure_set, write_scan
from data.make_scans import Series

from medssl.data.formats.reading import ReadError, read
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.types import UserError

SHAPE = (12, 10, 5)  # columns, rows, slices
CLASSES = "0=background,1=liver,2=Lesion"


def parts_of(count: int = 2, seed: int = 1) -> np.ndarray:
    """Numbers of segments (slice, row, column)."""
    return np.random.default_rng(seed).integers(0, count + 1, SHAPE[::-1]).astype(np.uint8)


def write_segmentation(file: Path, sources: list[Any], numbers: np.ndarray, names: list[str], **extra: Any) -> None:
    pytest.importorskip("highdicom")
    dataset = segmentation(sources, numbers, names, "BINARY")
    dataset.save_as(file)
    if extra:
        dataset = pydicom.dcmread(file)
        for name, value in extra.items():
            setattr(dataset, name, value)
        dataset.save_as(file)


def write_structures(file: Path, sources: list[Any], series: Series, boxes: dict[str, tuple[float, float]]) -> None:
    """Regions of squares on slices 1 and 2."""
    grid = grid_of(series)
    regions = {}
    for name, (low, high) in boxes.items():
        square = [[low, low], [high, low], [high, high], [low, high]]
        regions[name] = [("CLOSED_PLANAR", contour(grid, square, index)) for index in (1, 2)]
    structure_set(sources, regions).save_as(file)


def run(folder: Path, *, class_names: str = CLASSES, objects: bool = True, **labels: Any) -> tuple[Index, Any]:
    """Index ``folder``; returns the open index and what was done."""
    options = IndexOptions(
        labels=LabelOptions(objects=objects, class_names=class_names, **labels), files=FileOptions(workers=0)
    )
    file = folder.parent / "index" / "i.sqlite"
    file.parent.mkdir(exist_ok=True)
    index = Index.open(file, create=True)
    return index, update(index, [folder], options, key=b"k" * 32)


def only_reason(index: Index, status: str = "failed") -> str:
    (scan,) = index.scans(status=status)
    return scan.status.reason


@pytest.fixture
def scans(tmp_path) -> Path:
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


def test_objects_label_the_series_that_they_name(scans):
    first, second = Series(SHAPE), Series(SHAPE, uid="1.2.826.0.1.3680043.8.498.2", seed=3)
    sources = write_scan(scans / "a", first)
    write_scan(scans / "b", second)
    numbers = parts_of()
    write_segmentation(scans / "s.dcm", sources, numbers, ["LIVER ", "lesion"])
    index, done = run(scans)
    labeled = {scan.source.parts[0].path.split("/")[-2]: scan for scan in index.scans()}
    assert not labeled["b"].labels.mask
    volume = read(labeled["a"], index.root)
    np.testing.assert_array_equal(volume.label[0], numbers.transpose(2, 1, 0))
    assert volume.label.shape == volume.image.shape
    assert index.counts() == []  # the object is a label, no scan that was left out
    assert not any("fit no scan" in note for note in done.notes)


def test_structure_sets_label_the_series_that_they_name(scans):
    series = Series(SHAPE)
    sources = write_scan(scans, series)
    write_structures(scans / "rs.dcm", sources, series, {"Liver": (1.5, 8.5), "lesion": (3.5, 5.5)})
    index, _ = run(scans)
    (scan,) = index.scans()
    volume = read(scan, index.root)
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:9, 2:9, 1:3], expected[4:6, 4:6, 1:3] = 1, 2
    np.testing.assert_array_equal(volume.label[0], expected)
    assert volume.notes == ("label rs.dcm: regions overlap at 8 voxels: the class with the higher value is taken",)


def test_without_the_option_objects_are_rejected_with_its_name(scans):
    sources = write_scan(scans, Series(SHAPE))
    write_segmentation(scans / "s.dcm", sources, parts_of(), ["liver", "lesion"])
    write_structures(scans / "rs.dcm", sources, Series(SHAPE), {"liver": (1, 5)})
    index, _ = run(scans, objects=False)
    assert index.counts() == [("rejected", "segmentation object", 1), ("rejected", "structure set", 1)]
    reasons = {scan.status.reason for scan in index.scans(status="rejected")}
    assert all("label.objects true" in reason for reason in reasons)
    index.close()
    index, _ = run(scans)  # both hold the liver
    assert "class 1 is in rs.dcm and s.dcm: leave one of them in the folder" in only_reason(index)
    index.close()
    index, _ = run(scans, objects=False)
    assert len(index.counts()) == 2
    (scan,) = index.scans()
    assert not scan.labels.mask


def test_objects_without_class_names_propose_them(scans):
    sources = write_scan(scans, Series(SHAPE))
    write_segmentation(scans / "s.dcm", sources, parts_of(), ["liver", "=cmd|x"])
    with pytest.raises(
        UserError, match=r"^label\.class_names: .*\(expected their classes, as in '0=background,1=liver'\)$"
    ) as caught:
        run(scans, class_names="")
    assert "'liver' (1), '=cmd|x' (1)" in str(caught.value)  # what a spreadsheet would run is not proposed


def test_the_type_of_a_segment_names_its_class_too(scans):
    sources, numbers = write_scan(scans, Series(SHAPE)), parts_of(1)
    write_segmentation(scans / "s.dcm", sources, numbers, ["Segment_1"])  # its property type is Liver
    index, _ = run(scans)
    (scan,) = index.scans()
    np.testing.assert_array_equal(read(scan, index.root).label[0], numbers.transpose(2, 1, 0))


def test_segments_without_a_class_are_refused_or_background(scans):
    sources, numbers = write_scan(scans, Series(SHAPE)), parts_of(3)
    write_segmentation(scans / "s.dcm", sources, numbers, ["liver", "lesion", "Doe^Jane couch"])
    index, done = run(scans)
    assert "1 of 3 segments of s.dcm have no class: add them to label.class_names, or" in only_reason(index)
    assert "Doe" not in only_reason(index)
    assert any("make their scans fail: 'Doe^Jane couch' (1)" in note for note in done.notes)
    index.close()
    index, done = run(scans, other_segments="background")
    (scan,) = index.scans()
    np.testing.assert_array_equal(
        read(scan, index.root).label[0], np.where(numbers == 3, 0, numbers).transpose(2, 1, 0)
    )
    index.close()
    index, _ = run(scans, class_names="0=background,1=spleen", other_segments="background")
    assert "no segment of s.dcm has the name of a class" in only_reason(index)


def test_names_of_segments_are_in_no_table(scans, tmp_path):
    sources = write_scan(scans, Series(SHAPE))
    write_segmentation(scans / "s.dcm", sources, parts_of(3), ["liver", "lesion", "Doe^Jane couch"])
    index, _ = run(scans)
    index.export(tmp_path / "table.csv")
    assert "Doe" not in (tmp_path / "table.csv").read_text()


def test_objects_of_different_classes_are_joined(scans):
    sources, numbers = write_scan(scans, Series(SHAPE)), parts_of()
    for number, name in ((1, "liver"), (2, "lesion")):
        write_segmentation(scans / f"{name}.dcm", sources, (numbers == number).astype(np.uint8), [name])
    index, _ = run(scans, class_names="0=background,7=liver,300=lesion")
    (scan,) = index.scans()
    label = read(scan, index.root).label
    np.testing.assert_array_equal(label[0], np.array([0, 7, 300])[numbers].transpose(2, 1, 0))


def test_objects_that_overlap_are_refused(scans):
    sources, numbers = write_scan(scans, Series(SHAPE)), np.ones(SHAPE[::-1], np.uint8)
    for name in ("part", "lesion"):
        write_segmentation(scans / f"{name}.dcm", sources, numbers, [name])
    index, _ = run(scans, class_names="0=background,1=part,2=lesion")
    (scan,) = index.scans()
    with pytest.raises(ReadError, match=r"label part.dcm: overlaps another object of the scan at 600 voxels"):
        read(scan, index.root)


def test_without_a_series_the_place_decides(scans):
    sources, numbers = write_scan(scans, Series(SHAPE)), parts_of()
    write_segmentation(scans / "s.dcm", sources, numbers, ["liver", "lesion"], ReferencedSeriesSequence=[])
    index, done = run(scans)
    (scan,) = index.scans()
    np.testing.assert_array_equal(read(scan, index.root).label[0], numbers.transpose(2, 1, 0))
    assert any("1 scans are labeled by objects that name no series" in note for note in done.notes)


def test_an_object_of_another_patient_fits_no_scan(scans):
    sources = write_scan(scans, Series(SHAPE))
    write_segmentation(scans / "s.dcm", sources, parts_of(), ["liver", "lesion"], PatientID="other")
    index, done = run(scans)
    (scan,) = index.scans()
    assert not scan.labels.mask
    assert any("1 of 1 segmentation objects and structure sets fit no scan (first: s.dcm)" in n for n in done.notes)
    assert index.counts() == [("rejected", "segmentation object", 1)]


def test_another_frame_of_reference_is_refused(scans):
    sources = write_scan(scans, Series(SHAPE))
    write_segmentation(scans / "s.dcm", sources, parts_of(), ["liver", "lesion"], FrameOfReferenceUID="1.2.3")
    index, _ = run(scans)
    assert only_reason(index) == "label unusable: s.dcm has another frame of reference than its series"


@pytest.mark.parametrize("names", ["slices of both volumes", "no slices", "slices of one volume"])
def test_of_several_volumes_that_with_the_named_slices_is_labeled(scans, names):
    sources = write_scan(scans / "a", Series(SHAPE, extra={"EchoTime": 10.0, "EchoNumbers": 1}))
    second = Series(SHAPE, extra={"EchoTime": 20.0, "EchoNumbers": 2}, seed=5)
    for number, dataset in enumerate(write_scan(scans / "b", second)):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
        dataset.save_as(scans / "b" / f"{number:03d}.dcm")
    numbers = parts_of()
    write_segmentation(scans / "s.dcm", sources, numbers, ["liver", "lesion"])
    dataset = pydicom.dcmread(scans / "s.dcm")
    if names == "no slices":
        del dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    elif names == "slices of both volumes":
        more = pydicom.Dataset()
        more.ReferencedSOPInstanceUID = "1.2.3.4.0"
        dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence.append(more)
    dataset.save_as(scans / "s.dcm")
    index, _ = run(scans)
    labeled = [scan for scan in index.scans() if scan.labels.mask]
    reasons = {scan.status.reason for scan in index.scans(status="failed")}
    if names == "no slices":
        assert reasons == {"label unusable: s.dcm labels a series of 2 volumes and does not say which one"}
        return
    assert not reasons
    assert len(labeled) == (1 if names == "slices of one volume" else 2)
    assert any("/a/" in scan.source.parts[0].path for scan in labeled)
    np.testing.assert_array_equal(read(labeled[0], index.root).label[0], numbers.transpose(2, 1, 0))


def test_a_replaced_object_and_other_classes_make_another_scan(scans):
    sources = write_scan(scans, Series(SHAPE))
    digests = []
    for seed, names in ((1, CLASSES), (1, CLASSES), (2, CLASSES), (2, "0=background,1=lesion,2=liver")):
        if not digests or seed == 2:
            write_segmentation(scans / "s.dcm", sources, parts_of(seed=seed), ["liver", "lesion"])
        index, _ = run(scans, class_names=names)
        digests += [scan.digests.source for scan in index.scans()]
        index.close()
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_file_and_an_object_for_one_scan_are_refused(scans):
    sources = write_scan(scans / "images", Series(SHAPE))
    write_scan(scans / "labels", Series(SHAPE, uid="1.2.826.0.1.3680043.8.498.2"))
    write_segmentation(scans / "s.dcm", sources, parts_of(), ["liver", "lesion"])
    index, _ = run(scans, masks="images=labels")
    assert only_reason(index).startswith("two labels: a file by label.masks and an object by label.objects")


def test_single_images_take_no_objects(scans):
    sources = write_scan(scans, Series((12, 10, 5), extra={"Modality": "CR"}))
    for number, dataset in enumerate(sources):
        del dataset.ImagePositionPatient
        dataset.save_as(scans / f"{number:03d}.dcm")
    write_structures(scans / "rs.dcm", sources, Series(SHAPE), {"liver": (1, 5)})
    index, _ = run(scans)
    reasons = {scan.status.reason for scan in index.scans(status="failed")}
    assert reasons == {"label unusable: rs.dcm labels a series of single images: only volumes have a place in space"}


def test_a_damaged_object_names_its_file(scans):
    sources = write_scan(scans, Series(SHAPE))
    write_segmentation(scans / "s.dcm", sources, parts_of(), ["liver", "lesion"], PixelData=b"\0" * 4)
    index, _ = run(scans)
    (scan,) = index.scans()
    with pytest.raises(ReadError, match=r"label s\.dcm: truncated: 4 of"):
        read(scan, index.root)
    (scans / "s.dcm").unlink()
    with pytest.raises(ReadError, match=r"label s\.dcm: No such file or directory: index the scans again"):
        read(scan, index.root)


def test_what_the_index_notes_of_an_object_names_nobody(scans):
    sources = write_scan(scans, Series(SHAPE))
    write_segmentation(scans / "s.dcm", sources, parts_of(), ["liver", "lesion"])
    index, _ = run(scans)
    (text,) = (row[0] for row in index.connection.execute("SELECT header FROM files WHERE header LIKE '{%form%'"))
    assert json.loads(text)["segments"] == [[1, "liver", "Liver"], [2, "lesion", "Tissue"]]
    for secret in ("MRN-4711", "Doe", "1.2.826"):
        assert secret not in text
