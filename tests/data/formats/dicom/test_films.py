"""Frames without positions: images, channels or a refusal, as the option says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from data.make_scans import Series, slice_dataset, write_slice
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.formats.reading import read
from medssl.data.index.scan_index import FileOptions, Index, IndexOptions
from medssl.data.index.update import update

US = "1.2.840.10008.5.1.4.1.1.3.1"


def write_film(file: Path, frames: np.ndarray, **extra: Any) -> np.ndarray:
    """A film of (frame, row, column[, color])."""
    color = frames.ndim == 4
    series = Series((frames.shape[2], frames.shape[1], 1), dtype=frames.dtype)
    dataset = slice_dataset(series, 0, frames[0, ..., 0] if color else frames[0])
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = US
    dataset.Modality, dataset.NumberOfFrames, dataset.FrameTime = "US", len(frames), "33.3"
    if color:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.PixelData = frames.tobytes() + b"\0" * (frames.nbytes % 2)
    dataset["PixelData"].VR = "OW" if frames.dtype.itemsize > 1 else "OB"
    for name, value in extra.items():
        setattr(dataset, name, value)
    write_slice(file, dataset)
    return frames


def noise(count: int = 5, shape: tuple[int, ...] = (6, 7), dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 250, (count, *shape)).astype(dtype)


def run(folder: Path, frames: Any) -> Index:
    (folder.parent / "index").mkdir(exist_ok=True)
    index = Index.open(folder.parent / "index" / f"{frames}.sqlite", create=True)
    update(index, [folder], IndexOptions(files=FileOptions(workers=0, frames=frames)), key=b"k" * 32)
    return index


def images_of(index: Index) -> list[np.ndarray]:
    """Images in the order of their frames."""
    scans = sorted(index.scans(), key=lambda scan: (scan.source.parts[0].path, scan.source.parts[0].frame))
    return [read(scan, index.root).image for scan in scans]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_frames_of_a_film_become_what_the_option_says(tmp_path, dtype):
    film = write_film(tmp_path / "scans" / "f.dcm", noise(dtype=dtype))
    with run(tmp_path / "scans", "refuse") as index:
        (scan,) = index.scans(status="rejected")
        assert scan.status.reason.startswith("film: 5 frames without positions, 33.3 ms apart; files.frames scans")
        assert index.counts() == [("rejected", "film", 1)]
    with run(tmp_path / "scans", "scans") as index:
        np.testing.assert_array_equal(images_of(index), film[:, None])
        scans = list(index.scans())
        assert {scan.source.kind for scan in scans} == {"image"}
        assert len({scan.subject.subject_id for scan in scans}) == 1
        assert {scan.status.reason for scan in scans} == {f"film: frame {n} of 5, 33.3 ms apart" for n in range(1, 6)}
    with run(tmp_path / "scans", "channels") as index:
        (image,) = images_of(index)
        np.testing.assert_array_equal(image, film)


@settings(max_examples=10, deadline=None)
@given(
    count=st.integers(2, 8),
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    color=st.booleans(),
    wide=st.booleans(),
)
def test_any_film_agrees_with_pydicom(tmp_path_factory, count, shape, color, wide):
    folder = tmp_path_factory.mktemp("film")
    dtype = np.uint16 if wide and not color else np.uint8
    write_film(folder / "scans" / "f.dcm", noise(count, (*shape, 3) if color else shape, dtype))
    expected = pydicom.dcmread(folder / "scans" / "f.dcm").pixel_array
    with run(folder / "scans", "scans") as index:
        images = np.stack(images_of(index))
    np.testing.assert_array_equal(images, expected.transpose(0, 3, 1, 2) if color else expected[:, None])


def test_frames_keep_their_colors(tmp_path):
    film = write_film(tmp_path / "scans" / "f.dcm", noise(3, (6, 7, 3)))
    with run(tmp_path / "scans", "scans") as index:
        assert {scan.source.channels for scan in index.scans()} == {("red", "green", "blue")}
        np.testing.assert_array_equal(images_of(index), film.transpose(0, 3, 1, 2))
    with run(tmp_path / "scans", "channels") as index:
        (image,) = images_of(index)
        np.testing.assert_array_equal(image, film.transpose(0, 3, 1, 2).reshape(9, 6, 7))


def test_a_film_of_many_frames_is_no_image_of_many_channels(tmp_path):
    write_film(tmp_path / "scans" / "f.dcm", noise(9))
    with run(tmp_path / "scans", "channels") as index:
        (scan,) = index.scans(status="rejected")
        assert "up to 8 of them as the channels of one image" in scan.status.reason


def test_compressed_frames_are_read_each(tmp_path):
    film = write_film(tmp_path / "scans" / "f.dcm", noise())
    dataset = pydicom.dcmread(tmp_path / "scans" / "f.dcm")
    dataset.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom", generate_instance_uid=False)
    dataset.save_as(tmp_path / "scans" / "f.dcm")
    with run(tmp_path / "scans", "scans") as index:
        np.testing.assert_array_equal(images_of(index), film[:, None])


def test_copies_of_a_film_are_dropped_and_films_that_differ_late_are_not(tmp_path):
    film = write_film(tmp_path / "scans" / "a.dcm", noise())
    write_film(tmp_path / "scans" / "b.dcm", film)
    other = film.copy()
    other[4] += 1
    write_film(tmp_path / "scans" / "c.dcm", other)  # its identifier is that of the others
    with run(tmp_path / "scans", "scans") as index:
        np.testing.assert_array_equal(images_of(index), np.concatenate([film, other])[:, None])
        assert sum("1 copies dropped: b.dcm" in scan.status.reason for scan in index.scans()) == 5


def test_video_streams_are_rejected(tmp_path):
    write_film(tmp_path / "scans" / "f.dcm", noise())
    data = (tmp_path / "scans" / "f.dcm").read_bytes()
    dataset = pydicom.dcmread(tmp_path / "scans" / "f.dcm")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    from pydicom.encaps import encapsulate

    dataset.PixelData = encapsulate([data[:64]])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "scans" / "f.dcm")
    with run(tmp_path / "scans", "scans") as index:
        (scan,) = index.scans(status="rejected")
        assert scan.status.reason == "film of 5 frames as a video stream (MPEG): export its frames as pictures"


def test_frames_with_functional_groups_but_no_positions_are_a_film(tmp_path):
    groups = [pydicom.Dataset() for _ in range(5)]  # as enhanced XA has them
    film = write_film(tmp_path / "scans" / "f.dcm", noise(), Modality="XA", PerFrameFunctionalGroupsSequence=groups)
    with run(tmp_path / "scans", "refuse") as index:
        assert index.counts() == [("rejected", "film", 1)]
    with run(tmp_path / "scans", "scans") as index:
        np.testing.assert_array_equal(images_of(index), film[:, None])


def test_frames_that_share_one_position_are_a_film(tmp_path):
    write_film(tmp_path / "scans" / "f.dcm", noise(), ImagePositionPatient=[0, 0, 0], Modality="MR")
    with run(tmp_path / "scans", "refuse") as index:
        assert index.counts() == [("rejected", "film", 1)]


@pytest.mark.parametrize("count", [-3, 2_000_000_000])
def test_impossible_numbers_of_frames_are_named(tmp_path, count):
    write_film(tmp_path / "scans" / "f.dcm", noise(), NumberOfFrames=count)
    with run(tmp_path / "scans", "scans") as index:
        (scan,) = index.scans(status="failed")
        assert scan.status.reason == f"{count:,} frames: expected 1 to 100,000"
