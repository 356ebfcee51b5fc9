"""Arrays of NumPy and HDF5: stated axes, spacing and names; nothing is unpickled, no link is followed."""

from __future__ import annotations

import io
import re
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from data.make_scans import noise, write_picture
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.data.formats import array as formats_array
from medssl.data.formats.base import FormatError, Reading
from medssl.data.formats.reading import ReadError, read
from medssl.data.index.label_sources import LabelOptions
from medssl.data.index.scan_index import ArrayOptions, FileOptions, Index, IndexOptions
from medssl.data.index.update import update
from medssl.types import Scan, UserError

ARRAY = noise((4, 5, 6))


def scans_of(folder: Path, labels: LabelOptions | None = None, frames: str = "refuse", **arrays: str) -> list[Scan]:
    options = FileOptions(workers=0, frames=frames, arrays=ArrayOptions(**arrays))
    with Index.open(folder.parent / "i.sqlite", create=True, root=folder.parent) as index:
        update(index, [folder], IndexOptions(files=options, labels=labels or LabelOptions()), key=b"k" * 32)
        return [*index.scans(), *index.scans(status="rejected"), *index.scans(status="failed")]


def reason_of(folder: Path, **arrays: str) -> str:
    (scan,) = scans_of(folder, **arrays)
    assert scan.status.code in ("rejected", "failed")
    return scan.status.reason


def write(file: Path, array: np.ndarray, name: str = "image") -> Path:
    """One array by the ending of the name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, array)
    elif file.suffix == ".npz":
        np.savez_compressed(file, **{name: array})
    else:
        with h5py.File(file, "w") as opened:
            opened.create_dataset(f"group/{name}", data=array, compression="gzip", fletcher32=True)
    return file


@settings(max_examples=30, deadline=None)
@given(
    axes=st.permutations("ijkct").map("".join).flatmap(lambda text: st.sampled_from([text, text.replace("t", "")])),
    flat=st.booleans(),
    dtype=st.sampled_from(["<i2", ">u2", "<f4", ">f8", "u1", "?", "<i8", "<f2"]),
    fortran=st.booleans(),
    ending=st.sampled_from([".npy", ".npz", ".h5"]),
)
def test_stated_axes_put_every_value_in_its_place(tmp_path_factory, axes, flat, dtype, fortran, ending):
    axes = axes.replace("k", "") if flat else axes
    length = dict(zip("ijkct", (2, 3, 4, 5, 2), strict=True))
    values = noise(tuple(length[letter] for letter in axes), np.int16, high=200).astype(dtype)
    stored = np.asfortranarray(values) if fortran else values
    file = write(tmp_path_factory.mktemp("a") / f"x{ending}", stored)
    spatial = [letter for letter in axes if letter in "ijk"]
    spacing = {letter: 0.5 + number for number, letter in enumerate(spatial)}
    stated = ",".join(str(spacing[letter]) for letter in spatial)
    arrays = formats_array.read_header(file).details["arrays"]
    header, _ = formats_array.lay_out(arrays, {"axes": axes, "spacing_mm": stated})
    order = "ji" if flat else "ijk"
    assert header.grid.spacing_mm == tuple(spacing[letter] for letter in order)
    assert header.frames.count == length["t"] if "t" in axes else header.frames.count == 1
    for frame in range(header.frames.count):
        found, grid = formats_array.read_pixels(file, frame, Reading(axes=axes, spacing_mm=stated))
        assert (grid, found.dtype.name, len(found)) == (header.grid, header.dtype, 5)
        place = {letter: length[letter] - 1 for letter in axes} | {"t": frame}
        for channel in range(5):
            here = place | {"c": channel}
            expected = values[tuple(here[letter] for letter in axes)]
            assert found[(channel, *(here[letter] for letter in order))] == expected
    everything, _ = formats_array.read_pixels(file, None, Reading(axes=axes, spacing_mm=stated))
    assert len(everything) == 5 * header.frames.count


@pytest.mark.parametrize("ending", [".npy", ".npz", ".h5", ".hdf5"])
def test_an_array_is_indexed_and_read_as_stated(tmp_path, ending):
    write(tmp_path / "d" / f"x{ending}", ARRAY)
    (scan,) = scans_of(tmp_path / "d", axes="kji", spacing_mm="2.5,0.8,0.7")
    volume = read(scan, tmp_path)
    np.testing.assert_array_equal(volume.image[0], ARRAY.transpose(2, 1, 0))
    np.testing.assert_array_equal(volume.affine, np.diag([0.7, 0.8, 2.5, 1.0]))
    assert (scan.source.kind, scan.status.reason) == ("volume", "its orientation is not known")


def test_a_picture_of_three_channels_of_8_bits_is_colors(tmp_path):
    values = noise((7, 9, 3), np.uint8, high=255)
    write(tmp_path / "d" / "x.npy", values)
    (scan,) = scans_of(tmp_path / "d", axes="jic")
    assert (scan.source.kind, scan.source.value_domain) == ("image", "rgb")
    np.testing.assert_array_equal(read(scan, tmp_path).image, values.transpose(2, 0, 1))


def test_points_in_time_are_frames(tmp_path):
    write(tmp_path / "d" / "x.npy", noise((3, 4, 5, 6)))
    assert re.search(r"3 arrays along the axis t; take them as scans", reason_of(tmp_path / "d", axes="tkji"))
    scans = scans_of(tmp_path / "d", frames="scans", axes="tkji")
    seen = {read(scan, tmp_path).image[0].tobytes() for scan in scans}
    assert seen == {np.ascontiguousarray(one.transpose(2, 1, 0)).tobytes() for one in noise((3, 4, 5, 6))}


def test_other_axes_make_another_scan_of_the_same_files(tmp_path):
    write(tmp_path / "d" / "x.npy", ARRAY)
    assert reason_of(tmp_path / "d").startswith("arrays without stated axes: state them with files.arrays.axes")
    (first,) = scans_of(tmp_path / "d", axes="kji")
    (second,) = scans_of(tmp_path / "d", axes="ijk")
    (again,) = scans_of(tmp_path / "d", axes="kji")
    assert first.scan_id == second.scan_id
    assert first.digests != second.digests
    assert first == again
    np.testing.assert_array_equal(read(second, tmp_path).image[0], ARRAY)


@pytest.mark.parametrize("ending", [".npz", ".h5"])
def test_several_arrays_need_a_choice(tmp_path, ending):
    (tmp_path / "d").mkdir()
    values = {"scan": ARRAY, "mask": np.ones((4, 5, 6), np.uint8), "note": np.zeros(3)}
    if ending == ".npz":
        np.savez(tmp_path / "d" / "x.npz", **values)
    else:
        with h5py.File(tmp_path / "d" / "x.h5", "w") as opened:
            for name, value in values.items():
                opened[name] = value
    reason = reason_of(tmp_path / "d", axes="kji")
    assert reason.startswith("several arrays: choose one with files.arrays.member: ")
    assert {"scan (4x5x6)", "mask (4x5x6)"} == set(reason.rsplit(": ", 1)[1].split(", "))
    reason = reason_of(tmp_path / "d", axes="kji", member="other")
    assert reason.startswith("no array named other (files.arrays.member), only ")
    (scan,) = scans_of(tmp_path / "d", axes="kji", member="missing,scan")
    np.testing.assert_array_equal(read(scan, tmp_path).image[0], ARRAY.transpose(2, 1, 0))


@pytest.mark.parametrize("ending", [".npy", ".h5"])
def test_masks_are_arrays_too(tmp_path, ending):
    write(tmp_path / "d" / "images" / f"x{ending}", ARRAY)
    label = write_label = noise((4, 5, 6), np.uint8, high=3)
    write(tmp_path / "d" / "labels" / f"x{ending}", write_label)
    (scan,) = scans_of(tmp_path / "d", LabelOptions(masks="images=labels"), axes="kji", spacing_mm="2,1,1")
    volume = read(scan, tmp_path)
    np.testing.assert_array_equal(volume.label[0], label.transpose(2, 1, 0))
    np.testing.assert_array_equal(volume.image[0], ARRAY.transpose(2, 1, 0))


def test_a_mask_has_no_axis_of_channels(tmp_path):
    write(tmp_path / "d" / "images" / "x.npz", noise((2, 4, 5, 6)))
    label = noise((4, 5, 6), np.uint8, high=3)
    write(tmp_path / "d" / "labels" / "x.npz", label, "mask")
    labels = LabelOptions(masks="images=labels")
    scans = scans_of(tmp_path / "d", labels, axes="ckji", spacing_mm="2,1,1", member="image,mask")
    volume = read(scans[0], tmp_path)
    np.testing.assert_array_equal(volume.label[0], label.transpose(2, 1, 0))
    assert volume.image.shape == (2, 6, 5, 4)
    assert volume.notes == ()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"axes": "kjj"}, r"^files\.arrays\.axes: wrong axes \(got 'kjj'; expected each axis once: i and j"),
        ({"axes": "zyx"}, r"^files\.arrays\.axes: wrong axes \(got 'zyx'; expected each axis once"),
        (
            {"axes": "kji", "spacing_mm": "1,2"},
            r"^files\.arrays\.spacing_mm: .* \(got '1,2'; expected 3 lengths",
        ),
        ({"axes": "ji", "spacing_mm": "1,-2"}, r"expected 2 lengths above 0 with commas, one for each of j, i"),
        ({"axes": "ji", "spacing_mm": "1,x"}, r"expected 2 lengths"),
        ({"spacing_mm": "1"}, r"one for each of the axes of files\.arrays\.axes"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        ArrayOptions(**options)


def test_axes_that_do_not_fit_are_refused(tmp_path):
    write(tmp_path / "d" / "x.npy", ARRAY)
    expected = "axes that do not fit: 4x5x6 has 3, files.arrays.axes tckji states 5"
    assert reason_of(tmp_path / "d", axes="tckji") == expected


# --- what is not read


def test_objects_are_never_unpickled(tmp_path):
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "x.npy", np.array([[{"a": 1}, None]], dtype=object), allow_pickle=True)
    reason = reason_of(tmp_path / "d", axes="ji")
    assert reason == "Python objects, which are never loaded: only whole and real numbers are read"


@pytest.mark.parametrize("dtype", ["c16", "U3", "M8[s]", [("a", "i4")], "f16"])
def test_other_values_are_refused(tmp_path, dtype):
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "x.npy", np.zeros((3, 4), dtype))
    assert reason_of(tmp_path / "d", axes="ji").endswith(": only whole and real numbers are read")


@pytest.mark.parametrize(("change", "says"), [(-7, "truncated: 361 of 368 bytes"), (9, "9 bytes behind the array")])
def test_a_length_that_does_not_fit_is_refused(tmp_path, change, says):
    file = write(tmp_path / "d" / "x.npy", ARRAY)
    content = file.read_bytes()
    file.write_bytes(content[:change] if change < 0 else content + bytes(change))
    assert reason_of(tmp_path / "d", axes="kji").startswith(says)


SUMS = {
    ".npz": "the checksum of an array in the ZIP file does not match its content",
    ".h5": "the checksum of a chunk of the array does not match, or its compressed data are damaged",
}


@pytest.mark.parametrize("ending", SUMS)
def test_damage_is_seen_by_the_check_sum(tmp_path, ending):
    values = np.zeros((4, 5, 6), np.int16)
    file = tmp_path / "d" / f"x{ending}"
    file.parent.mkdir()
    if ending == ".npz":
        np.savez(file, image=values)
    else:
        with h5py.File(file, "w") as opened:
            opened.create_dataset("image", data=values, fletcher32=True, chunks=(4, 5, 6))
    (scan,) = scans_of(tmp_path / "d", axes="kji")
    content = bytearray(file.read_bytes())
    start = content.index(bytes(200)) if ending == ".npz" else content.rindex(bytes(200))
    content[start + 50] ^= 1
    file.write_bytes(content)
    with pytest.raises(ReadError, match=rf"^x\{ending}: truncated or damaged: {SUMS[ending]}$"):
        read(scan, tmp_path)


def test_a_cut_file_of_hdf5_and_zip_is_refused(tmp_path):
    for ending in (".npz", ".h5"):
        file = write(tmp_path / ending[1:] / "d" / f"x{ending}", noise((20, 20, 20)))
        file.write_bytes(file.read_bytes()[:-500])
        assert reason_of(file.parent, axes="kji").startswith("not readable as an array: ")


def test_links_and_numbers_in_other_files_are_not_followed(tmp_path):
    (tmp_path / "d").mkdir()
    write(tmp_path / "secret.h5", ARRAY)
    with h5py.File(tmp_path / "d" / "a.h5", "w") as opened:
        opened["image"] = h5py.ExternalLink("../secret.h5", "group/image")
    assert reason_of(tmp_path / "d", axes="kji") == "no array of numbers with at least two axes"
    with h5py.File(tmp_path / "d" / "a.h5", "w") as opened:
        opened["image"] = ARRAY + 1
        opened["soft"] = h5py.SoftLink("/image")
    (scan,) = scans_of(tmp_path / "d", axes="ijk")
    np.testing.assert_array_equal(read(scan, tmp_path).image[0], ARRAY + 1)
    with h5py.File(tmp_path / "d" / "a.h5", "w") as opened:
        opened.create_dataset("image", (4, 5, 6), "i2", external=[(str(tmp_path / "secret.h5"), 0, 240)])
    (scan,) = scans_of(tmp_path / "d", axes="kji")
    with pytest.raises(ReadError, match=r"image keeps its numbers in other files, which are not followed"):
        read(scan, tmp_path)


def test_without_h5py_the_reason_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "d" / "x.h5", ARRAY)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert reason_of(tmp_path / "d", axes="kji") == "HDF5 needs h5py: pip install 'medssl[hdf5]'"


def test_other_zip_files_are_no_arrays(tmp_path):
    write_picture(tmp_path / "d" / "p.png", noise((9, 8), np.uint8))
    with zipfile.ZipFile(tmp_path / "d" / "x.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    (scan,) = scans_of(tmp_path / "d", axes="kji")
    assert scan.source.kind == "image"


def reasons(folder: Path, count: int) -> list[str]:
    """Read damaged files: each gives an array or a reason, and nothing else is raised."""
    originals = {}
    for ending in (".npy", ".npz", ".h5"):
        originals[ending] = write(folder / f"x{ending}", ARRAY).read_bytes()
    stream = io.BytesIO()
    np.savez(stream, a=ARRAY, b=ARRAY)
    originals[".NPZ"] = stream.getvalue()
    random, found = np.random.default_rng(7), []
    for number in range(count):
        ending = list(originals)[number % 4]
        content = bytearray(originals[ending])
        for _ in range(random.integers(1, 4)):
            content[int(random.integers(min(len(content), 400 if number % 3 else len(content))))] = random.integers(256)
        file = folder / f"y{ending}"
        file.write_bytes(content[: random.integers(1, len(content) + 1)] if number % 5 == 0 else content)
        try:
            arrays = formats_array.read_header(file).details["arrays"]
            formats_array.lay_out(arrays, {"axes": "kji", "member": "" if ending != ".NPZ" else "b"})
            formats_array.read_pixels(file, None, Reading(axes="kji", member="" if ending != ".NPZ" else "b"))
        except FormatError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_have_a_reason(tmp_path, count):
    found = reasons(tmp_path, count)
    assert len(found) > count // 4
    for reason in found:
        assert re.fullmatch(r"[^\n]{8,300}", reason)
        assert not re.search(r"object at|<class|NoneType|Traceback|\bself\b|subscriptable|argument", reason), reason
