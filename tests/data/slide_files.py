"""Slides as files for tests, written by tifffile, independent of the package: SVS layout and other pyramids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

APERIO = "Aperio Image Library v12.0.15\r\n{width}x{height} [0,0 {width}x{height}] ({tile}x{tile}) JPEG/RGB Q=80"


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Smooth colors with some detail, uint8 [rows, columns, 3]."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(60, 240, (rows // 16 + 2, columns // 16 + 2, 3))
    fine = np.kron(coarse, np.ones((16, 16, 1)))[:rows, :columns]
    return (fine + generator.integers(-20, 20, (rows, columns, 1))).clip(0, 255).astype(np.uint8)


def halved(image: np.ndarray, times: int = 1) -> np.ndarray:
    """Mean of 2 x 2 pixels, ``times`` times; an odd last row or column is dropped, as scanners do."""
    for _ in range(times):
        rows, columns = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        blocks = image[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, 3).astype(float)
        image = np.rint(blocks.mean((1, 3))).astype(np.uint8)
    return image


def write_pyramid(
    file: Path, image: np.ndarray, *, levels: int = 3, description: str = "", tile: int = 64,
    compression: str = "deflate", **tags: object,
) -> None:  # fmt: skip
    """A tiled pyramid of pages, each half as large; ``tags`` such as ``resolution`` go to the first page."""
    with tifffile.TiffWriter(file) as writer:
        for level in range(levels):
            writer.write(
                halved(image, level), tile=(tile, tile), photometric="rgb", compression=compression, metadata=None,
                subfiletype=int(level > 0), description=description if not level else None,
                **(tags if not level else {}),
            )  # fmt: skip


def write_svs(file: Path, image: np.ndarray, *, mpp: str | None = "0.5000", levels: int = 3, more: str = "") -> None:
    """A slide as Aperio lays it out; None leaves MPP out."""
    text = APERIO.format(height=image.shape[0], width=image.shape[1], tile=64) + "|AppMag = 20" + more
    write_pyramid(file, image, levels=levels, description=text + (f"|MPP = {mpp}" if mpp is not None else ""))


def area_mean(image: np.ndarray, start: tuple[int, int], size: tuple[int, int], step: float) -> np.ndarray:
    """Mean of the exact area of each new pixel, float [*size, 3], by differences of the integral."""
    result = image.astype(float)
    for axis in (0, 1):
        result = np.moveaxis(result, axis, 0)
        total = np.concatenate([np.zeros((1, *result.shape[1:])), np.cumsum(result, 0)])
        edges = (start[axis] + np.arange(size[axis] + 1)) * step
        low = np.clip(np.floor(edges).astype(int), 0, len(total) - 2)
        share = (edges - low)[:, None, None]
        result = np.diff(total[low] * (1 - share) + total[low + 1] * share, axis=0) / step
        result = np.moveaxis(result, 0, axis)
    return result


SERIES = "1.2.826.0.1.3680043.10.5.1"


def write_level(
    file: Path, image: np.ndarray, *, number: int = 1, spacing: tuple[float, float] | None = (0.0005, 0.0005),
    flavor: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "VOLUME", "NONE"), patient: str = "P1", tile: int = 64,
    frames: range | None = None, sparse: bool = False, **elements: object,
) -> None:  # fmt: skip
    """One file of a DICOM slide, uncompressed; ``frames`` are those of its tiles that are written."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    rows, columns = -(-image.shape[0] // tile), -(-image.shape[1] // tile)
    padded = np.full((rows * tile, columns * tile, 3), 255, np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    tiles = padded.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    chosen = list(range(len(tiles)) if frames is None else frames)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID = f"{SERIES}.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slide = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    slide.SOPClassUID, slide.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    slide.SeriesInstanceUID, slide.StudyInstanceUID = SERIES, "1.2.826.0.1.3680043.10.5"
    slide.FrameOfReferenceUID = "1.2.826.0.1.3680043.10.6"
    slide.PatientID, slide.PatientName, slide.Modality = patient, "Doe^Jane", "SM"
    slide.Manufacturer, slide.InstanceNumber, slide.ImageType = "Leica Biosystems", number, list(flavor)
    slide.TotalPixelMatrixRows, slide.TotalPixelMatrixColumns = image.shape[:2]
    slide.Rows = slide.Columns = tile
    slide.NumberOfFrames, slide.SamplesPerPixel, slide.PlanarConfiguration = len(chosen), 3, 0
    slide.PhotometricInterpretation, slide.BitsAllocated, slide.BitsStored = "RGB", 8, 8
    slide.HighBit, slide.PixelRepresentation = 7, 0
    slide.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    shared = Dataset()
    if spacing is not None:
        measures = Dataset()
        measures.PixelSpacing = list(spacing)
        shared.PixelMeasuresSequence = [measures]
    slide.SharedFunctionalGroupsSequence = [shared]
    if sparse:
        slide.PerFrameFunctionalGroupsSequence = [_place(number, columns, tile) for number in chosen]
    for name, value in elements.items():
        setattr(slide, name, value)
    slide.PixelData = tiles[chosen].tobytes()
    slide.save_as(file, enforce_file_format=True)


def _place(number: int, columns: int, tile: int) -> object:
    """Functional group of a tile with its place in the level."""
    from pydicom.dataset import Dataset

    place, group = Dataset(), Dataset()
    place.RowPositionInTotalImagePixelMatrix = number // columns * tile + 1
    place.ColumnPositionInTotalImagePixelMatrix = number % columns * tile + 1
    group.PlanePositionSlideSequence = [place]
    return group


def write_dicom_slide(folder: Path, image: np.ndarray, *, levels: int = 3) -> list[Path]:
    """A DICOM slide with a label picture beside its levels."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for level in range(levels):
        files.append(folder / f"level{level}.dcm")
        kind = "RESAMPLED" if level else "NONE"
        spacing = (0.0005 * 2**level, 0.0005 * 2**level)
        flavor = ("DERIVED" if level else "ORIGINAL", "PRIMARY", "VOLUME", kind)
        write_level(files[-1], halved(image, level), number=level + 1, spacing=spacing, flavor=flavor)
    label = np.zeros((64, 64, 3), np.uint8)
    write_level(folder / "label.dcm", label, number=levels + 1, flavor=("ORIGINAL", "PRIMARY", "LABEL", "NONE"))
    return files


TISSUE = slice(128, 512), slice(192, 640)  # rows and columns of level 0
RULES = (
    "--preprocess=slides", "--tier=slides", "--preprocess.tiles.mpp=1.0", "--preprocess.tiles.size=32",
    "--preprocess.tissue.mpp=4", "--preprocess.tissue.smallest_mm2=0.001",
    "--preprocess.tissue.smooth_um=0",
)  # fmt: skip


def tissue_slide(seed: int) -> np.ndarray:
    """A white slide of 640 x 768 pixels with pink tissue of some structure."""
    rng = np.random.default_rng(seed)
    image = np.full((640, 768, 3), 245, np.uint8)
    rows, columns = (part.stop - part.start for part in TISSUE)
    structure = np.kron(rng.integers(-30, 30, (rows // 8, columns // 8, 1)), np.ones((8, 8, 1)))
    image[TISSUE] = (np.array([200, 120, 170]) + structure).clip(0, 255).astype(np.uint8)
    return image
