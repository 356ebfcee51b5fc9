"""Synthetic slides as files: pyramidal TIFF in the layout of SVS, or DICOM whole slides, tile by tile.

Beside them lie the truth (tumor masks and outlines) and a table of labels. The same arguments write the same bytes.
"""

from __future__ import annotations

import io
import json
import mmap
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medssl.data.synthetic.outlines import outlines
from medssl.data.synthetic.phantoms import PHANTOMS
from medssl.data.synthetic.slides import CELL, MPP, OBJECTIVE, STAINS, Stain, SyntheticSlide
from medssl.io.atomic_write import atomic_files
from medssl.ops.draws import keyed_generator
from medssl.types import UserError

VERSION = 1  # raise it when the same arguments give other pixels
TILE = 256
STEP = 4  # a level is so much smaller than the one before
_LEAST, _MOST = 256, 200_000
_QUALITY = 85
_TAG = "Aperio Image Library v12.0.0 medssl phantom"


@dataclass(frozen=True)
class SlideRecipe:
    """What a folder of synthetic slides holds.

    Attributes:
        patients: Number of patients.
        labeled: Patients, from the first on, whose slides have a label in the table.
        size: Rows and columns of a slide in pixels.
        seed: Names the population.
        shuffle_labels: Give each labeled patient the label of the next one: a control.
        per_patient: Slides of each patient and stain.
        stains: Stains with commas, of "HE" and "IHC". Stains of one slide are registered.
        layout: "svs", "dicom", or "both" in turns.
    """

    patients: int = 8
    labeled: int = 8
    size: tuple[int, int] = (4096, 4096)
    seed: int = 0
    shuffle_labels: bool = False
    per_patient: int = 1
    stains: str = "HE"
    layout: Literal["svs", "dicom", "both"] = "svs"


def write_slides(folder: Path, recipe: SlideRecipe, *, written: Callable[[str], object] | None = None) -> int:
    """Write the slides of a recipe into ``slides/``, leaving those that are already there.

    ``masks/NAME.png`` is the tumor (0 and 1) at 1/32 of the size, ``truth/NAME.geojson`` its outlines in pixels of
    level 0, and ``slides.csv`` a table with the columns slide, patient, stain, mpp and tumor (of the slide).

    Args:
        folder: Where to write; made when absent.
        recipe: What to write.
        written: Called with the name of each slide.

    Returns:
        How many slides were written now.

    Raises:
        UserError: The recipe cannot be, or the folder holds something else.
    """
    stains = _check(recipe)
    _claim(folder, recipe)
    for part in (folder / "slides").glob(".*.part"):  # of a call that was killed
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    new = 0
    rows = [("slide", "patient", "stain", "mpp", "tumor")]
    for patient in range(recipe.patients):
        labels = _labels(recipe, patient)
        for number in range(recipe.per_patient):
            for stain in stains:
                name = f"PHANTOM-{patient:04d}-{number + 1}-{stain}"
                index = patient * recipe.per_patient + number
                new += _write(folder, name, recipe, index, stain, tumor=_has_tumor(recipe, patient))
                rows.append((name, f"PHANTOM-{patient:04d}", stain, f"{MPP:g}", labels))
                if written is not None:
                    written(name)
    text = "".join(",".join(row) + "\n" for row in rows)
    _put(folder / "slides.csv", text.encode())
    return new


def _check(recipe: SlideRecipe) -> tuple[Stain, ...]:
    """Stains of a recipe.

    Raises:
        UserError: The recipe cannot be.
    """
    stains = tuple(word.strip() for word in recipe.stains.split(",") if word.strip())
    if not stains or len(set(stains)) < len(stains) or set(stains) - set(STAINS):
        expected = "HE, IHC or HE,IHC"
        message = "no list of stains"
        raise UserError(message, key="slides.stains", got=recipe.stains, expected=expected)
    if len(recipe.size) != 2 or not all(_LEAST <= length <= _MOST for length in recipe.size):
        message = "size of a slide"
        expected = f"rows and columns from {_LEAST} to {_MOST:,} pixels"
        raise UserError(message, key="shape", got=list(recipe.size), expected=expected)
    if recipe.per_patient < 1:
        message = "no slide for a patient"
        raise UserError(message, key="slides.per_patient", got=recipe.per_patient, expected="1 or more")
    if recipe.patients < 1 or not 0 <= recipe.labeled <= recipe.patients or recipe.seed < 0:
        message = (
            f"count {recipe.patients}, labeled {recipe.labeled}, seed {recipe.seed}: give at least one patient, "
            "not more labeled patients than patients, and a seed of 0 or more"
        )
        raise UserError(message)
    return tuple(stain for stain in STAINS if stain in stains)


def _claim(folder: Path, recipe: SlideRecipe) -> None:
    """Note the recipe in the folder, or refuse a folder that has another one or something else in it."""
    wanted = json.loads(json.dumps({"version": VERSION, "kind": "slides", **asdict(recipe)}))
    file = folder / f"{PHANTOMS}.json"
    if file.is_file():
        present = json.loads(file.read_text())
        other = [f"{key} {present.get(key)}" for key in wanted if present.get(key) != wanted[key]]
        if other:
            message = f"{folder} holds phantoms of another recipe ({', '.join(other)}): take another folder"
            raise UserError(message)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        message = f"{folder} is not an empty folder: phantoms are written into a folder of their own"
        raise UserError(message)
    content = json.dumps(wanted, indent=1).encode()
    for place in (folder, folder / "slides"):  # the folder that is indexed says that its slides are synthetic, too
        _put(place / file.name, content)


def _has_tumor(recipe: SlideRecipe, patient: int) -> bool:
    """Half of the patients, in pairs, so that few patients have both labels."""
    first = bool(keyed_generator(recipe.seed, patient // 2, "slide label").integers(2))
    return first ^ bool(patient % 2)


def _labels(recipe: SlideRecipe, patient: int) -> str:
    if patient >= recipe.labeled:
        return ""
    shown = (patient + 1) % recipe.labeled if recipe.shuffle_labels else patient
    return str(int(_has_tumor(recipe, shown)))


def _write(folder: Path, name: str, recipe: SlideRecipe, number: int, stain: Stain, *, tumor: bool) -> bool:
    """Write one slide and its truth; the slide comes last. Returns whether it was not there."""
    as_dicom = recipe.layout == "dicom" or (recipe.layout == "both" and number % 2 == 1)
    place = folder / "slides" / (name if as_dicom else f"{name}.svs")
    if place.exists():
        return False
    slide = SyntheticSlide(recipe.seed, number, recipe.size, stain, tumor=tumor)
    truth = slide.truth()
    _put(folder / "masks" / f"{name}.png", _png(truth.astype(np.uint8)))
    features = [
        {"type": "Feature", "properties": {"classification": {"name": "tumor"}},
         "geometry": {"type": "Polygon", "coordinates": rings}}
        for rings in outlines(truth, CELL, recipe.size)
    ]  # fmt: skip
    text = json.dumps({"type": "FeatureCollection", "features": features})
    _put(folder / "truth" / f"{name}.geojson", text.encode())
    part = place.with_name(f".{place.name}.part")
    if as_dicom:
        from medssl.data.synthetic.slide_dicom import write_dicom

        part.mkdir()
        write_dicom(part, slide, name, (recipe.seed, number))
    else:
        write_svs(part, slide)
    part.replace(place)
    return True


def write_svs(file: Path, slide: SyntheticSlide) -> None:
    """Write a pyramidal TIFF in the layout of SVS, with a thumbnail, a label of bars and a macro image."""
    import tifffile

    rows, columns = slide.size
    about = f"|AppMag = {OBJECTIVE}|MPP = {MPP:.4f}"
    with Pyramid(slide, file) as levels, tifffile.TiffWriter(file, bigtiff=rows * columns > 2**31) as writer:
        for number, (shape, tiles) in enumerate(levels):
            size = f"{columns}x{rows} [0,0 {columns}x{rows}] ({TILE}x{TILE})"
            size += f" -> {shape[1]}x{shape[0]}" if number else ""
            writer.write(
                (jpeg(tile, "420") for tile in tiles), shape=(*shape, 3), dtype=np.uint8, tile=(TILE, TILE),
                photometric="ycbcr", subsampling=(2, 2), compression="jpeg", subfiletype=int(number > 0),
                description=f"{_TAG}\n{size} JPEG/RGB Q={_QUALITY}{about}", metadata=None, software=False,
            )  # fmt: skip
            if not number:
                _write_beside(writer, (rows, columns), about)


def _write_beside(writer: Any, size: tuple[int, int], about: str) -> None:
    """The pictures that scanners add after level 0: readers of slides must leave them alone."""
    thumbnail = np.full((max(1, 256 * size[0] // max(size)), max(1, 256 * size[1] // max(size)), 3), 244, np.uint8)
    shown = f"{size[1]}x{size[0]} -> {thumbnail.shape[1]}x{thumbnail.shape[0]} -"
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False, "compression": "deflate"}
    writer.write(thumbnail, description=f"{_TAG}\n{shown} {about}", subfiletype=0, **options)
    bars = np.repeat(np.array([[0, 255, 0, 0, 255, 255, 0, 255] * 8], np.uint8), 64, 0)
    label = np.repeat(bars[..., None], 3, 2)
    writer.write(label, description=f"{_TAG}\nlabel 64x64", subfiletype=1, **options)
    writer.write(label[:32], description=f"{_TAG}\nmacro 64x32", subfiletype=9, **options)


class Pyramid:
    """Levels of a slide, each as its shape and an iterator over its tiles; they must be taken in order.

    While a level is taken, the next one is averaged from it: level 1 into a file beside the slide, since it may not fit
    into memory, and later ones as well.

    Args:
        slide: The slide.
        file: The file or folder that is written.
    """

    def __init__(self, slide: SyntheticSlide, file: Path) -> None:
        self._slide = slide
        self._maps: list[mmap.mmap] = []
        self._beside = [file.with_name(f"{file.name}.{number}") for number in (0, 1)]

    def __enter__(self) -> Pyramid:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._beside:
            file.unlink(missing_ok=True)

    def __iter__(self) -> Iterator[tuple[tuple[int, int], Iterator[np.ndarray]]]:
        rows, columns = self._slide.size
        source: np.ndarray | None = None
        for number in range(16):
            if number and max(rows, columns) <= TILE * 2:
                return
            if number:
                rows, columns = rows // STEP, columns // STEP
            following = (rows // STEP, columns // STEP)
            reduced = None
            if max(rows, columns) > TILE * 2 and min(following) > 0:
                place = self._beside[number % 2]
                place.unlink(missing_ok=True)
                reduced = self._mapped(place, (*following, 3))
            yield (rows, columns), self._tiles((rows, columns), source, reduced)
            if reduced is None:
                return
            source = reduced

    def _mapped(self, file: Path, shape: tuple[int, int, int]) -> np.ndarray:
        """An array in a file."""
        size = int(np.prod(shape))
        with file.open("w+b") as stream:
            stream.truncate(size)
            self._maps = [*self._maps[-1:], mmap.mmap(stream.fileno(), size)]
        return np.frombuffer(self._maps[-1], np.uint8).reshape(shape)

    def _tiles(
        self, shape: tuple[int, int], source: np.ndarray | None, reduced: np.ndarray | None
    ) -> Iterator[np.ndarray]:
        """Tiles of a level, row by row; the mean of ``STEP`` x ``STEP`` pixels goes to ``reduced``."""
        for row in range(0, shape[0], TILE):
            for mapped in self._maps if hasattr(mmap, "MADV_DONTNEED") else ():
                mapped.madvise(mmap.MADV_DONTNEED)  # the file has them
            for column in range(0, shape[1], TILE):
                if source is None:
                    tile = self._slide.tile(row, column, TILE, TILE)
                else:
                    part = source[row : row + TILE, column : column + TILE]
                    around = ((0, TILE - part.shape[0]), (0, TILE - part.shape[1]), (0, 0))
                    tile = np.pad(part, around, mode="edge") if any(pair[1] for pair in around) else np.asarray(part)
                if reduced is not None:
                    small = _reduced(tile)
                    place = reduced[
                        row // STEP : row // STEP + len(small), column // STEP : column // STEP + len(small)
                    ]
                    place[...] = small[: place.shape[0], : place.shape[1]]
                yield tile


def _reduced(tile: np.ndarray) -> np.ndarray:
    """Mean of ``STEP`` x ``STEP`` pixels."""
    from PIL import Image

    return np.asarray(Image.fromarray(tile).reduce(STEP))


def jpeg(tile: np.ndarray, subsampling: str) -> bytes:
    """A tile as JPEG in YCbCr."""
    import imagecodecs

    return bytes(
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(tile), level=_QUALITY, colorspace="RGB", outcolorspace="YCBCR", subsampling=subsampling
        )
    )


def _png(array: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def _put(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files(file) as (stream,):
        stream.write(content)
