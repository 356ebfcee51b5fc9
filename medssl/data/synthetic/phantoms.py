"""Synthetic patients: abdomens of random anatomy, seen by an MR or a CT scanner, with labels of three organs.

They serve the demo and the tests, where no patient may be. An anatomy is a set of structures, each a union of
ellipsoids, drawn around a plan of the abdomen and bent by a smooth random deformation; it is a function of place in
millimeters, so that any sampling of one patient shows the same organs. Organs share their range of intensities with
the bowel, muscle and vessels around them: place, shape and texture tell them apart, a threshold does not.

World axes are RAS+: x to the patient's right, y to the front, z to the head; the middle of the patient is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from medssl.ops.draws import keyed_generator
from medssl.types import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

Modality = Literal["MR", "CT"]

PHANTOMS = "phantoms"  # what cards and scores call synthetic scans
VERSION = 2  # raise it when the same arguments give other voxels

CLASSES: tuple[tuple[int, str], ...] = ((0, "background"), (1, "liver"), (2, "spleen"), (3, "kidneys"))
PATIENT_MM = (340.0, 260.0, 280.0)  # the mean patient's width, depth and scanned height
_SHAPE_LEAST = 8
_SLICE_MM = 5.0  # thickness of a picture


class Phantom(NamedTuple):
    """One synthetic scan.

    ``image`` is int16 (MR: 0 to about 1200; CT: Hounsfield units), array axes right, front, head; for 2D it is a
    uint16 picture, rows to the back, columns to the patient's left. ``label`` is uint8 with the values of `CLASSES`.
    """

    image: NDArray[np.int16] | NDArray[np.uint16]
    label: NDArray[np.uint8]
    spacing_mm: tuple[float, ...]


class _Tissue(NamedTuple):
    """Mean and spread between patients, and how coarse and how strong its texture is, per modality."""

    mr: tuple[float, float]
    hu: tuple[float, float]
    fine: float = 0.3
    coarse: float = 0.3


# MR in thousandths of the brightest tissue; the spread is as wide as the gap between neighbors, so organs overlap
_AIR = _Tissue((15, 5), (-1000, 0), 0.0, 0.0)
_FAT = _Tissue((880, 60), (-100, 10), 0.3, 0.6)
_MUSCLE = _Tissue((360, 60), (55, 8), 0.9, 0.3)
_MESENTERY = _Tissue((690, 60), (-55, 20), 0.8, 1.0)
_LUNG = _Tissue((80, 20), (-780, 40), 1.0, 1.5)
_BONE = _Tissue((380, 110), (280, 60), 1.6, 1.0)
_VESSEL = _Tissue((480, 180), (120, 60), 0.2, 0.2)
_BOWEL = _Tissue((470, 130), (55, 35), 0.9, 0.9)
_LIVER = _Tissue((430, 50), (75, 18), 1.1, 0.5)
_SPLEEN = _Tissue((530, 65), (75, 20), 0.5, 0.2)
_CORTEX = _Tissue((590, 70), (90, 30), 0.7, 0.4)
_PELVIS = _Tissue((640, 120), (45, 30), 0.4, 0.6)
_LESION = _Tissue((520, 170), (45, 30), 0.6, 0.8)


Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class _Structure:
    """Ellipsoids (center and radii as shares of the half patient) of one tissue.

    ``floor`` structures lie below the organs, which share disputed ground by depth; a structure ``within`` a label is
    painted over that label only and keeps it.
    """

    tissue: _Tissue
    ellipsoids: tuple[Ellipsoid, ...]
    label: int = 0
    floor: bool = False
    within: bool = False


_BODY = (
    _Structure(_FAT, (((0, 0, 0), (0.94, 0.92, 3.0)),), floor=True),
    _Structure(_MUSCLE, (((0, -0.02, 0), (0.84, 0.80, 3.0)),), floor=True),
    _Structure(_MESENTERY, (((0, 0.0, 0), (0.74, 0.70, 3.0)),), floor=True),
)
_PLAN = (
    _Structure(_LUNG, (((0.40, 0.0, 1.15), (0.34, 0.56, 0.50)), ((-0.40, 0.0, 1.15), (0.34, 0.56, 0.50)))),
    _Structure(_BONE, (((0, -0.58, 0), (0.17, 0.17, 3.0)), ((0, -0.80, 0), (0.05, 0.12, 3.0)))),
    _Structure(_VESSEL, (((-0.07, -0.32, 0), (0.07, 0.09, 3.0)), ((0.12, -0.30, 0), (0.07, 0.08, 3.0)))),
    _Structure(_BOWEL, (((-0.28, 0.30, 0.34), (0.30, 0.24, 0.26)), ((-0.05, 0.34, 0.14), (0.26, 0.20, 0.16)))),
    _Structure(_LIVER, (((0.40, 0.08, 0.34), (0.32, 0.50, 0.42)), ((0.08, 0.34, 0.44), (0.34, 0.26, 0.24))), 1),
    _Structure(_SPLEEN, (((-0.52, -0.22, 0.40), (0.22, 0.36, 0.34)), ((-0.48, -0.08, 0.30), (0.18, 0.22, 0.22))), 2),
    _Structure(_CORTEX, (((0.36, -0.36, -0.34), (0.20, 0.23, 0.36)), ((-0.37, -0.36, -0.26), (0.19, 0.22, 0.36))), 3),
)


def phantom(
    seed: int,
    shape: tuple[int, ...],
    *,
    number: int = 0,
    modality: Modality = "MR",
    spacing_mm: tuple[float, ...] | None = None,
) -> Phantom:
    """Scan patient ``number`` of the population ``seed``; the same arguments give the same voxels.

    Args:
        seed: Names the population.
        shape: Voxels per axis: three for a volume, two (rows, columns) for an axial picture.
        number: Which patient.
        modality: "MR" (bias field, Rician noise, a contrast of its own in every patient) or "CT" (Hounsfield units).
        spacing_mm: Distance between voxels per axis, so thick slices are a large last number; None fits the patient
            into the shape.

    Raises:
        UserError: The shape has not two or three axes of at least 8 voxels, or the spacing does not fit to it.
    """
    _check(shape, spacing_mm)
    anatomy = keyed_generator(seed, number, "phantom anatomy")
    scanner = keyed_generator(seed, number, f"phantom scanner {modality}")
    build = anatomy.uniform(0.9, 1.1, size=3)
    patient = [float(width * share) for width, share in zip(PATIENT_MM, build, strict=True)]
    height = float(anatomy.uniform(-0.35, 0.4))  # where a picture cuts through the patient
    begun = float(anatomy.uniform(-0.3, 0.3))  # a volume does not begin at the same vertebra in every patient
    flat = len(shape) == 2
    grid = (shape[1], shape[0], 1) if flat else shape
    if spacing_mm is None:
        spacing = [width / count for width, count in zip(patient, grid, strict=True)]
    else:
        spacing = [spacing_mm[1], spacing_mm[0], 0.0] if flat else [float(step) for step in spacing_mm]
    if flat:
        spacing[2] = _SLICE_MM
    places = [
        ((np.arange(count) - (count - 1) / 2) * step * 2 / width).astype(np.float32)
        for count, step, width in zip(grid, spacing, patient, strict=True)
    ]
    places[2] = places[2] + np.float32(height if flat else begun)
    structures = _draw_structures(anatomy)
    owner = _owners(_bend(places, anatomy), structures)
    values = _render(owner, structures, spacing, modality, scanner)
    values = _expose(values, places, modality, scanner)
    label = np.asarray([s.label for s in structures], np.uint8)[owner]
    if not flat:
        return Phantom(np.rint(values).astype(np.int16), label, tuple(spacing))
    shift = 1024 if modality == "CT" else 0  # pictures have no negative numbers
    picture = np.rint(values[::-1, ::-1, 0].T + shift).clip(0).astype(np.uint16)
    label = label[::-1, ::-1, 0].T
    return Phantom(np.ascontiguousarray(picture), np.ascontiguousarray(label), (spacing[1], spacing[0]))


def _check(shape: tuple[int, ...], spacing_mm: tuple[float, ...] | None) -> None:
    """Refuse what cannot be a phantom."""
    if len(shape) not in (2, 3) or min(shape) < _SHAPE_LEAST:
        message = f"a phantom's shape is {list(shape)}: give two or three axes of at least {_SHAPE_LEAST} voxels"
        raise UserError(message)
    if spacing_mm is not None and (len(spacing_mm) != len(shape) or min(spacing_mm) <= 0):
        message = (
            f"spacing_mm {list(spacing_mm)} does not fit to shape {list(shape)}: give one positive number per axis"
        )
        raise UserError(message)


def _draw_structures(generator: np.random.Generator) -> tuple[_Structure, ...]:
    """The plan with every ellipsoid moved and resized, and with loops of bowel and lesions that no plan foresees."""
    drawn = [_Structure(_AIR, (), floor=True), *_BODY]
    for structure in _PLAN:
        shared = generator.normal(0, (0.06, 0.07, 0.11))  # ellipsoids of one structure move together
        size = generator.uniform(0.75, 1.25)
        ellipsoids = []
        for center, radii in structure.ellipsoids:
            moved = np.asarray(center) + shared + generator.normal(0, 0.02, size=3)
            grown = np.asarray(radii) * size * generator.uniform(0.85, 1.15, size=3)
            ellipsoids.append((_triple(moved), _triple(grown)))
        drawn.append(_Structure(structure.tissue, tuple(ellipsoids), structure.label))
    for _ in range(int(generator.integers(9, 15))):  # the lower belly is full of bowel
        middle = generator.uniform((-0.55, -0.15, -1.3), (0.55, 0.5, -0.05))
        drawn.append(_Structure(_BOWEL, ((_triple(middle), _triple(generator.uniform(0.1, 0.26, size=3))),)))
    inner = [part for structure in drawn if structure.label for part in _draw_inner(structure, generator)]
    return (*drawn, *inner)


def _draw_inner(organ: _Structure, generator: np.random.Generator) -> list[_Structure]:
    """What lies within an organ and belongs to it: the hollow middle of each kidney, and a lesion here and there."""
    drawn = []
    if organ.tissue is _CORTEX:
        hollow = tuple((center, _triple(np.multiply(radii, (0.5, 0.45, 0.55)))) for center, radii in organ.ellipsoids)
        drawn.append(_Structure(_PELVIS, hollow, organ.label, within=True))
    for _ in range(int(generator.integers(0, 4))):
        center, radii = organ.ellipsoids[int(generator.integers(len(organ.ellipsoids)))]
        place = np.asarray(center) + generator.uniform(-0.6, 0.6, size=3) * radii
        ball = (_triple(place), _triple(generator.uniform(0.04, 0.1, size=3)))
        drawn.append(_Structure(_LESION, (ball,), organ.label, within=True))
    return drawn


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Three plain numbers."""
    return float(values[0]), float(values[1]), float(values[2])


def _spline(positions: Array, controls: int) -> Array:
    """Weights [positions, controls] of a uniform cubic B-spline over -1.5 to 1.5; beyond, the last value holds."""
    reach = np.clip((positions + 1.5) / 3.0, 0.0, 1.0) * (controls - 3)
    cell = np.minimum(reach.astype(int), controls - 4)
    t = reach - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    matrix = np.zeros((len(positions), controls), np.float32)
    for offset in range(4):
        matrix[np.arange(len(positions)), cell + offset] = weights[:, offset]
    return matrix


def _smooth_field(places: list[Array], controls: int, generator: np.random.Generator) -> Array:
    """A smooth random function of place, about unit deviation, on the grid of the three position axes."""
    lattice = generator.normal(0, 1.0 / 0.33, size=(controls,) * 3).astype(np.float32)  # splines take off two thirds
    x, y, z = (_spline(axis, controls) for axis in places)
    field = np.einsum("ia,jb,kc,abc->ijk", x, y, z, lattice, optimize=True)
    return np.asarray(field, np.float32)


def _bend(places: list[Array], generator: np.random.Generator) -> list[Array]:
    """Coordinates [i, j, k] after a smooth deformation: a broad one, and a finer one that makes outlines uneven."""
    bent = []
    for axis, amplitude in enumerate((0.05, 0.05, 0.07)):
        straight = places[axis].reshape([-1 if a == axis else 1 for a in range(3)])
        broad = _smooth_field(places, 7, generator)
        fine = _smooth_field(places, 16, generator)
        bent.append(straight + np.float32(amplitude) * broad + np.float32(0.018) * fine)
    return bent


def _owners(bent: list[Array], structures: tuple[_Structure, ...]) -> NDArray[np.uint8]:
    """Number of the structure that each voxel belongs to."""
    owner = np.zeros(bent[0].shape, np.uint8)
    depth = np.zeros(bent[0].shape, np.float32)
    labels = np.asarray([structure.label for structure in structures], np.uint8)
    for number, structure in enumerate(structures):
        score = np.full(bent[0].shape, -1, np.float32)
        for center, radii in structure.ellipsoids:
            inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(bent, center, radii, strict=True))
            np.maximum(score, 1 - inside, out=score)
        if structure.within:
            taken = (score > 0) & (labels[owner] == structure.label)
        else:
            taken = score > (0 if structure.floor else depth)
        owner[taken] = number
        if not structure.floor and not structure.within:
            np.maximum(depth, score, out=depth)
    return owner


def _texture(shape: tuple[int, ...], sigma: list[float], generator: np.random.Generator) -> Array:
    """Blurred noise of unit deviation; ``sigma`` in voxels."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(generator.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)


def _render(
    owner: NDArray[np.uint8],
    structures: tuple[_Structure, ...],
    spacing: list[float],
    modality: Modality,
    generator: np.random.Generator,
) -> Array:
    """Tissue values without the scanner's faults: a mean of this patient's own per structure, texture, soft edges."""
    from scipy import ndimage

    draws: dict[_Tissue, float] = {}
    means = np.zeros(len(structures), np.float32)
    for number, structure in enumerate(structures):
        center, spread = structure.tissue.mr if modality == "MR" else structure.tissue.hu
        shared = draws.setdefault(structure.tissue, float(generator.normal(center, spread)))
        own = float(generator.normal(center, spread)) if structure.tissue in (_BOWEL, _LESION) else shared
        means[number] = max(own, -1000.0 if modality == "CT" else 5.0)
    strength = 45.0 if modality == "MR" else 22.0
    values = means[owner]
    for name, width_mm in (("fine", 2.5), ("coarse", 9.0)):
        amount = np.asarray([getattr(structure.tissue, name) for structure in structures], np.float32)
        texture = _texture(owner.shape, [width_mm / step for step in spacing], generator)
        values += strength * amount[owner] * texture
    return np.asarray(ndimage.gaussian_filter(values, [1.6 / step for step in spacing]), np.float32)


def _expose(values: Array, places: list[Array], modality: Modality, generator: np.random.Generator) -> Array:
    """What the scanner adds: a bias field and Rician noise (MR), or Gaussian noise and the detector's range (CT)."""
    if modality == "CT":
        noise = generator.uniform(12, 25) * generator.standard_normal(values.shape, dtype=np.float32)
        return (values + noise).clip(-1024, 3071)
    field = np.exp(np.float32(generator.uniform(0.1, 0.25)) * _smooth_field(places, 5, generator))
    sigma = float(generator.uniform(20, 45))
    real = values * field + sigma * generator.standard_normal(values.shape, dtype=np.float32)
    imaginary = sigma * generator.standard_normal(values.shape, dtype=np.float32)
    gain = np.float32(generator.uniform(0.7, 1.3))  # MR has no unit
    return np.asarray(gain * np.hypot(real, imaginary), np.float32)
