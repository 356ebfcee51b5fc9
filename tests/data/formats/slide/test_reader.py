"""Regions of slides at any pixel size, from the best level, through a bounded number of open files."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from data.slide_files import area_mean, halved, picture, write_svs

from medssl.data.formats.base import FormatError
from medssl.data.formats.slide import handles, open_slide

openslide = pytest.importorskip("openslide")

IMAGE = picture(401, 515)


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("slides") / "one.svs"
    write_svs(file, IMAGE)
    return file


def test_describes_the_slide_as_openslide_does(svs: Path):
    slide, reference = open_slide(svs), openslide.OpenSlide(svs)
    assert slide.shape == (401, 515)
    assert slide.spacing_mm == (0.0005, 0.0005)
    assert [level.shape[::-1] for level in slide.levels] == list(reference.level_dimensions)
    assert [level.downsample for level in slide.levels] == pytest.approx(reference.level_downsamples)
    assert [level.factor for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
    assert (slide.details.scanner, slide.details.objective) == ("Aperio", 20.0)


@pytest.mark.parametrize("step", [1.0, 1.3, 1.7])
def test_reads_the_mean_color_of_the_area_of_each_pixel(svs: Path, step: float):
    part = open_slide(svs).read((11, 23), (100, 120), (step * 0.0005, step * 0.0005))
    assert part.dtype == np.uint8
    assert part.shape == (3, 100, 120)
    assert np.abs(part.transpose(1, 2, 0) - area_mean(IMAGE, (11, 23), (100, 120), step)).max() <= 0.51


def test_takes_the_coarsest_level_that_is_fine_enough(svs: Path):
    image, slide = IMAGE, open_slide(svs)
    for times in (1, 2):
        spacing = 0.0005 * 2**times
        expected = halved(image, times)[5:55, 7:67]
        assert np.array_equal(slide.read((5, 7), (50, 60), (spacing, spacing)).transpose(1, 2, 0), expected)
    half_coarser = slide.read((3, 4), (40, 50), (0.0015, 0.0015)).transpose(1, 2, 0)
    assert np.abs(half_coarser - area_mean(halved(image), (3, 4), (40, 50), 1.5)).max() <= 0.51


def test_rows_and_columns_may_have_different_spacings(svs: Path):
    part = open_slide(svs).read((4, 5), (60, 30), (0.0005, 0.001)).transpose(1, 2, 0)
    expected = IMAGE[4:64, 10:70].reshape(60, 30, 2, 3).mean(2)
    assert np.abs(part - expected).max() <= 0.51


def test_finer_than_the_slide_interpolates_between_centers(svs: Path):
    part = open_slide(svs).read((20, 20), (40, 40), (0.00025, 0.00025)).transpose(1, 2, 0).astype(float)
    between = IMAGE[9:31, 9:31].astype(float)
    quarter = 0.25 * between[:-1] + 0.75 * between[1:]
    rows = np.stack([quarter[:-1], 0.75 * between[1:-1] + 0.25 * between[2:]], 1).reshape(40, 22, 3)
    expected = 0.25 * rows[:, :-1] + 0.75 * rows[:, 1:]
    assert np.abs(part[:, 0::2] - expected[:, :-1]).max() <= 1.0


def test_outside_of_the_slide_is_white(svs: Path):
    slide = open_slide(svs)
    part = slide.read((-10, -20), (30, 40), (0.0005, 0.0005)).transpose(1, 2, 0)
    assert (part[:10] == 255).all()
    assert (part[:, :20] == 255).all()
    assert np.array_equal(part[10:, 20:], IMAGE[:20, :20])
    assert (slide.read((5000, 0), (8, 8), (0.0005, 0.0005)) == 255).all()


def test_a_large_region_in_blocks_equals_its_parts(svs: Path, monkeypatch: pytest.MonkeyPatch):
    whole = open_slide(svs).read((0, 0), (300, 390), (0.00066, 0.00066))
    monkeypatch.setattr("medssl.data.formats.slide.reader._BLOCK_PIXELS", 5000)
    monkeypatch.setattr("medssl.data.formats.slide.reader._BLOCK_COLUMNS", 70)
    assert np.array_equal(open_slide(svs).read((0, 0), (300, 390), (0.00066, 0.00066)), whole)


def test_a_reader_is_picklable_before_and_after_the_first_read(svs: Path):
    slide = open_slide(svs)
    fresh = pickle.loads(pickle.dumps(slide))
    first = slide.read((0, 0), (32, 32), (0.0005, 0.0005))
    used = pickle.loads(pickle.dumps(slide))
    assert np.array_equal(fresh.read((0, 0), (32, 32), (0.0005, 0.0005)), first)
    assert np.array_equal(used.read((0, 0), (32, 32), (0.0005, 0.0005)), first)


def test_at_most_32_files_are_open_with_10000_readers(svs: Path, tmp_path: Path):
    links = []
    for number in range(40):
        link = tmp_path / f"{number}.svs"
        link.hardlink_to(svs)
        links.append(link)
    readers = [open_slide(links[number % 40]) for number in range(10_000)]
    open_before = files_of_this_process()
    for reader in readers[:100]:
        reader.read((0, 0), (8, 8), (0.0005, 0.0005))
        assert len(handles.HANDLES) <= handles.MOST_OPEN
    assert files_of_this_process() <= open_before + handles.MOST_OPEN


def files_of_this_process() -> int:
    """Open files, where the system lists them."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_a_forked_process_opens_files_of_its_own(svs: Path):
    slide = open_slide(svs)
    expected = slide.read((0, 0), (64, 64), (0.0005, 0.0005))
    assert len(handles.HANDLES) > 0
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        opened = len(handles.HANDLES)
        same = np.array_equal(slide.read((0, 0), (64, 64), (0.0005, 0.0005)), expected)
        os.write(writing, bytes([opened, same, len(handles.HANDLES)]))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 3) == bytes([0, 1, 1])


def test_threads_share_one_file(svs: Path):
    slide = open_slide(svs)
    parts: list[np.ndarray] = []
    read = lambda: parts.append(slide.read((16, 16), (128, 128), (0.0005, 0.0005)))  # noqa: E731
    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(parts) == 8
    assert all(np.array_equal(part, IMAGE[16:144, 16:144].transpose(2, 0, 1)) for part in parts)


def test_a_slide_without_spacing_is_read_at_none(tmp_path: Path):
    write_svs(tmp_path / "one.svs", IMAGE, mpp=None)
    slide = open_slide(tmp_path / "one.svs")
    assert slide.spacing_mm is None
    with pytest.raises(FormatError, match="no spacing: no pixel size in the file"):
        slide.read((0, 0), (8, 8), (0.0005, 0.0005))
    given = open_slide(tmp_path / "one.svs", spacing_mm=(0.001, 0.001))
    assert np.array_equal(given.read((0, 0), (8, 8), (0.001, 0.001)), IMAGE[:8, :8].transpose(2, 0, 1))


@pytest.mark.data
def test_real_slide_at_half_and_one_micrometer(real_data: Path):
    file = real_data / "slides" / "small_HE.svs"
    whole = np.asarray(openslide.OpenSlide(file).read_region((0, 0), 0, (2220, 2967)).convert("RGB"))
    slide = open_slide(file)
    for mpp in (0.5, 1.0):
        part = slide.read((7, 13), (200, 200), (mpp / 1000, mpp / 1000)).transpose(1, 2, 0)
        assert np.abs(part - area_mean(whole, (7, 13), (200, 200), mpp / 0.499)).max() <= 0.51
