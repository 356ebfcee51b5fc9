"""Files of DICOM whole slides (PS3.3 2024e A.32.8, C.8.12): which level they hold, and whether all of its tiles.

Free text and identifiers are not kept.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from medssl.data.formats.dicom import fields
from medssl.data.formats.dicom.elements import DicomError

if TYPE_CHECKING:
    from pydicom import Dataset

CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
TAGS = (
    "SOPClassUID", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated",
    "PhotometricInterpretation", "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "DimensionOrganizationType",
    "NumberOfOpticalPaths", "TotalPixelMatrixFocalPlanes", "OpticalPathSequence", "SpecimenDescriptionSequence",
    "ConcatenationUID", "InConcatenationNumber", "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber",
    "InstanceNumber", "Manufacturer", "ManufacturerModelName", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "SpecimenLabelInImage",
)  # fmt: skip
_LARGEST_TILE = 1 << 26  # pixels
_FLAVORS = ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")
_MAKERS = ("Leica Biosystems", "Leica", "Aperio", "Hamamatsu", "Philips", "Roche", "Ventana", "3DHISTECH", "Motic",
           "Olympus", "Evident", "Zeiss", "Sectra", "Huron", "Grundium", "medssl")  # fmt: skip
_MODEL = re.compile(r"(NanoZoomer [\w. -]{1,8}|SCN400F?|UFS|SG\d{2,3}|DP ?\d{3}|(Aperio )?GT ?450( DX)?|(Aperio )?AT2)")
# stains by the codes of SNOMED CT (PS3.16, CID 8112)
_STAINS = {
    "12710003": "hematoxylin", "36879007": "eosin", "83600004": "eosin", "255808002": "PAS", "406989007": "trichrome",
    "406951002": "silver", "373646006": "giemsa", "45106005": "Congo red", "406452004": "Prussian blue",
    "406957003": "Van Gieson", "40808006": "oil red O", "255800009": "immunofluorescence",
}  # fmt: skip


@dataclass(frozen=True)
class SlideFile:
    """What one file of a slide holds.

    Attributes:
        flavor: "VOLUME" for a level; "LABEL", "OVERVIEW", "THUMBNAIL" or "LOCALIZER" for pictures that are never read.
        size: Rows and columns of the level.
        spacing_mm: Distance of rows and of columns; None if it is not stated.
        resampled: Whether the level was computed from another one.
        number: Instance number.
        concatenation: Number of this file and of all files that the level is cut into, and the first frame.
        problem: Why the level cannot be used; "" if it can.
        about: Scanner, objective (text of a number, or "") and stain.
    """

    flavor: str
    size: tuple[int, int]
    spacing_mm: tuple[float, float] | None = None
    resampled: bool = False
    number: int = 0
    concatenation: tuple[int, int, int] = (1, 1, 0)
    problem: str = ""
    about: tuple[str, str, str] = ("", "", "")

    @property
    def scanner(self) -> str:
        """Manufacturer and model."""
        return self.about[0]

    @property
    def objective(self) -> float | None:
        """Power of the objective."""
        return float(self.about[1]) if self.about[1] else None

    @property
    def stain(self) -> str:
        """Stain."""
        return self.about[2]


class WholeSlideFound(Exception):
    """Raised by the reader of headers: the file is one of a whole slide, not of slices.

    Attributes:
        series: Digest of the series.
        file: What it holds.
        facts: Facts of the patient and the study, as of slices.
    """

    def __init__(self, series: str, file: SlideFile, facts: dict[str, Any]) -> None:
        super().__init__("a file of a whole slide")
        self.series, self.file, self.facts = series, file, facts


def is_whole_slide(dataset: Dataset) -> bool:
    """Whether a header is that of a file of a whole slide."""
    return str(dataset.get("SOPClassUID", "")) == CLASS


def describe(dataset: Dataset) -> SlideFile:
    """What a file holds.

    Raises:
        DicomError: The size of the level is missing.
    """
    flavor = _flavor(dataset)
    tile = (int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0))
    size = tuple(int(dataset.get(f"TotalPixelMatrix{axis}") or 0) for axis in ("Rows", "Columns"))
    if flavor != "VOLUME":
        return SlideFile(flavor, (size[0] or tile[0], size[1] or tile[1]), number=_number(dataset))
    if min(*size, *tile) < 1:
        message = "whole slide without TotalPixelMatrixRows or TotalPixelMatrixColumns, or without Rows or Columns"
        raise DicomError(message)
    concatenation = tuple(
        int(dataset.get(name) or default)
        for name, default in (
            ("InConcatenationNumber", 1), ("InConcatenationTotalNumber", 1), ("ConcatenationFrameOffsetNumber", 0),
        )
    )  # fmt: skip
    words = [word.upper() for word in fields.texts(dataset, 0x00080008)]
    return SlideFile(
        flavor, (size[0], size[1]), _spacing(dataset), "RESAMPLED" in words, _number(dataset),
        (concatenation[0], concatenation[1], concatenation[2]), _problem(dataset, size, tile, concatenation[1]),
        (_scanner(dataset), _objective(dataset), _stain(dataset)),
    )  # fmt: skip


def tile_places(dataset: Dataset, about: SlideFile) -> dict[tuple[int, int], int]:
    """First row and column in the level of each tile, and its frame in the file; the first focal plane counts.

    Raises:
        DicomError: Tiles in no fixed order, without their places.
    """
    frames = int(dataset.get("NumberOfFrames") or 1)
    tall, wide = int(dataset.Rows), int(dataset.Columns)
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    places: dict[tuple[int, int], int] = {}
    if str(dataset.get("DimensionOrganizationType", "")).upper() != "TILED_FULL" and len(groups) == frames:
        for frame, group in enumerate(groups):
            position = group.get("PlanePositionSlideSequence")
            if not position:
                message = f"frame {frame + 1} has no place in the slide (PlanePositionSlideSequence)"
                raise DicomError(message)
            row = int(position[0].RowPositionInTotalImagePixelMatrix) - 1
            column = int(position[0].ColumnPositionInTotalImagePixelMatrix) - 1
            places.setdefault((row, column), frame)
        return places
    across, down = -(-about.size[1] // wide), -(-about.size[0] // tall)
    for frame in range(frames):
        number = frame + about.concatenation[2]
        if number >= across * down:
            break  # further focal planes or optical paths
        places[number // across * tall, number % across * wide] = frame
    return places


def to_dict(file: SlideFile) -> dict[str, Any]:
    """As JSON values."""
    return asdict(file)


def from_dict(values: dict[str, Any]) -> SlideFile:
    """Inverse of ``to_dict``."""
    fields_of: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return SlideFile(**fields_of)


def _flavor(dataset: Dataset) -> str:
    """Kind of picture by ImageType; a picture that shows the label counts as one."""
    words = [word.upper() for word in fields.texts(dataset, 0x00080008)]
    for flavor in _FLAVORS:
        if flavor in words:
            return flavor
    return "VOLUME"


def _problem(dataset: Dataset, size: tuple[int, ...], tile: tuple[int, int], files: int) -> str:
    """Why a level cannot be used."""
    samples, bits = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("BitsAllocated") or 8)
    paths = int(dataset.get("NumberOfOpticalPaths") or 1)
    if samples != 3 or bits != 8 or paths > 1:
        noun = f"{samples * paths} channels of {bits} bits"
        return f"a slide of {noun} (fluorescence or gray): a slide is read as three colors of 8 bits"
    if tile[0] * tile[1] > _LARGEST_TILE:
        return f"frames of {tile[0]}x{tile[1]} pixels: expected tiles"
    frames = int(dataset.get("NumberOfFrames") or 1)
    needed = -(-size[0] // tile[0]) * -(-size[1] // tile[1]) * int(dataset.get("TotalPixelMatrixFocalPlanes") or 1)
    sparse = str(dataset.get("DimensionOrganizationType", "")).upper() == "TILED_SPARSE"
    if files == 1 and frames < needed and not sparse:
        return (
            f"frames are missing: {frames:,} of {needed:,} tiles of {tile[0]}x{tile[1]} that {size[0]}x{size[1]} need"
        )
    return ""


def _number(dataset: Dataset) -> int:
    return int(fields.number(dataset, 0x00200013) or 0)


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """PixelSpacing of the functional groups that all frames share."""
    for group in fields.items(dataset, 0x52009229)[:1]:
        for measures in fields.items(group, 0x00289110)[:1]:
            values = fields.numbers(measures, 0x00280030, 2)
            if values is not None:
                return values[0], values[1]
    return None


def _scanner(dataset: Dataset) -> str:
    maker = fields.text(dataset, 0x00080070).casefold()
    known = next((name for name in _MAKERS if name.casefold() in maker), "")
    model = _MODEL.fullmatch(fields.text(dataset, 0x00081090).strip())
    return " ".join(filter(None, (known, model[0] if model else "")))


def _objective(dataset: Dataset) -> str:
    for item in fields.items(dataset, 0x00480105)[:1]:
        power = fields.number(item, 0x00480112)
        if power is not None and 0 < power <= 200:
            return f"{power:g}"
    return ""


def _stain(dataset: Dataset) -> str:
    """Stains by their codes, in the order of the preparation; text without a known code is left out."""
    codes: list[str] = []
    for specimen in fields.items(dataset, 0x00400560)[:1]:
        for step in fields.items(specimen, 0x00400610):
            for content in fields.items(step, 0x00400612):
                for code in fields.items(content, 0x0040A168):
                    codes += fields.texts(code, 0x00080100)[:1]
    names = list(dict.fromkeys(_STAINS[code] for code in codes if code in _STAINS))
    return "HE" if set(names) == {"hematoxylin", "eosin"} else "+".join(names)
