"""Voxel-to-world affine of a NIfTI or Analyze header in mm, with notes about guesses and contradictions."""

from __future__ import annotations

import numpy as np

from medssl.data.formats.base import FormatError
from medssl.data.formats.nifti.header import NiftiHeader
from medssl.data.formats.placement import check_affine, converted_note, millimeters

_UNITS = {0: "mm", 1: "meters", 2: "mm", 3: "micrometers"}  # 0: unknown
_SPACES = {1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI", 5: "template"}
_SAME_DIRECTION = 0.5  # cosine of the angle between two directions of one axis that are still the same direction


def affine_of(header: NiftiHeader) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine (4, 4) in RAS mm, and notes for the user.

    Raises:
        FormatError: The geometry cannot be used, or sform and qform contradict each other.
    """
    factor, notes = _factor(header)
    sform, qform, unusable = _forms(header)
    if sform is not None:
        affine = sform
        notes += unusable + _spacing_notes(sform, header)
        notes += _compare_forms(sform, qform, header, factor) if qform is not None else ()
    elif qform is not None:
        affine = qform
        notes += unusable
    elif unusable:
        raise FormatError(unusable[0])
    else:
        affine = _guessed_affine(header)
        if header.kind == "nifti":
            notes += ("orientation is a guess: qform_code and sform_code are 0 (first axis to the left taken)",)
    notes += check_affine(_without_unit_axes(affine, header), "the affine")
    affine = affine.copy()
    affine[:3] *= factor
    return affine, notes


def _factor(header: NiftiHeader) -> tuple[float, tuple[str, ...]]:
    """Millimeters in the unit of the header, and notes."""
    units = header.fields["units"]
    if header.kind == "analyze":
        name = units.split(b"\0")[0].decode("ascii", "replace").strip()
        factor = millimeters(name) if name else 1.0
        if factor is None:
            return 1.0, (f"unit of length {name!r} is not known: mm assumed",)
        return factor, converted_note([name])
    code = units & 7
    if code not in _UNITS:
        return 1.0, (f"unit of length {code} (xyzt_units) is not defined: mm assumed",)
    return millimeters(_UNITS[code]) or 1.0, converted_note([_UNITS[code]])


def _forms(header: NiftiHeader) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, ...]]:
    """The sform and the qform if their codes are above 0, and the reasons why one of them cannot be used."""
    qform_code, sform_code = header.fields["codes"]
    sform = qform = None
    problems: tuple[str, ...] = ()
    if sform_code > 0:
        sform = np.vstack([np.array(header.fields["sform"], np.float64).reshape(3, 4), [0, 0, 0, 1]])
        try:
            check_affine(_without_unit_axes(sform, header), "the sform")
        except FormatError as error:
            sform, problems = None, (str(error),)
    if qform_code > 0:
        qform, problem = _qform(header)
        problems += (problem,) if problem else ()
    return sform, qform, problems


def _qform(header: NiftiHeader) -> tuple[np.ndarray | None, str]:
    """The qform: rotation by a quaternion, with pixdim as steps; pixdim[0] < 0 inverts the third axis."""
    b, c, d = (float(value) for value in header.fields["quaternion"])
    offset = np.array(header.fields["offset"], np.float64)
    pixdim = np.array(header.fields["pixdim"], np.float64)
    steps = pixdim[1:4].copy()
    steps[[axis for axis in range(3) if header.shape[axis] == 1 and not steps[axis] > 0]] = 1.0
    square = b * b + c * c + d * d
    if not np.isfinite([b, c, d, *offset, *steps]).all():
        return None, "geometry unusable: the qform has values that are no finite numbers"
    if square > 1.001:
        return None, f"geometry unusable: the qform's quaternion has length {square**0.5:.4g}: expected at most 1"
    if not (steps > 0).all():
        shown = " x ".join(f"{step:g}" for step in steps)
        return None, f"geometry unusable: voxel sizes {shown} in pixdim: expected positive lengths"
    a = max(0.0, 1.0 - square) ** 0.5
    if not a:
        b, c, d = (value / square**0.5 for value in (b, c, d))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * steps * [1, 1, -1 if pixdim[0] < 0 else 1]
    affine[:3, 3] = offset
    return affine, ""


def _spacing_notes(sform: np.ndarray, header: NiftiHeader) -> tuple[str, ...]:
    """Note if pixdim and sform have different voxel sizes."""
    axes = [axis for axis in range(3) if header.shape[axis] > 1]
    sform_steps = np.linalg.norm(sform[:3, axes], axis=0)
    pixdim = np.array(header.fields["pixdim"], np.float64)[1:4][axes]
    if np.allclose(pixdim, sform_steps, rtol=1e-2):
        return ()
    shown = [" x ".join(f"{step:.4g}" for step in steps) for steps in (pixdim, sform_steps)]
    return (f"voxel sizes disagree: {shown[0]} in pixdim, {shown[1]} in the sform: sform used",)


def _compare_forms(sform: np.ndarray, qform: np.ndarray, header: NiftiHeader, factor: float) -> tuple[str, ...]:
    """Note if sform and qform place voxels differently; the sform is used.

    Raises:
        FormatError: They differ in left and right, front and back, or up and down.
    """
    sform_axes, qform_axes = (form[:3, : 3 if header.shape[2] > 1 else 2] for form in (sform, qform))
    cosines = (
        np.sum(sform_axes * qform_axes, axis=0)
        / np.linalg.norm(sform_axes, axis=0)
        / np.linalg.norm(qform_axes, axis=0)
    )
    if sform_axes.shape[1] == 3 and np.linalg.det(sform_axes) * np.linalg.det(qform_axes) < 0:
        message = "qform and sform disagree: one is the mirror image of the other; repair one, or set its code to 0"
        raise FormatError(message)
    if (cosines < _SAME_DIRECTION).any():
        axis = int(np.argmin(cosines)) + 1
        degrees = np.degrees(np.arccos(np.clip(cosines.min(), -1, 1)))
        message = (
            f"qform and sform disagree: axis {axis} points to different sides ({degrees:.0f} degrees apart); repair "
            "one, or set its code to 0"
        )
        raise FormatError(message)
    ends = np.array(header.shape[:3]) - 1
    corners = np.array([[i, j, k, 1] for i in (0, ends[0]) for j in (0, ends[1]) for k in (0, ends[2])], np.float64).T
    distance = float(np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max())
    extent = float(np.linalg.norm(sform[:3, :3] @ ends))
    if distance <= 0.1 * float(np.linalg.norm(sform_axes, axis=0).min()) + 1e-3 * extent:
        return ()
    names = [_SPACES.get(code, f"code {code}") for code in header.fields["codes"]]
    return (f"qform ({names[0]}) and sform ({names[1]}) disagree by up to {distance * factor:.3g} mm: sform used",)


def _guessed_affine(header: NiftiHeader) -> np.ndarray:
    """Assumed affine: steps of pixdim, first axis to the left; centered, or with the origin that SPM writes."""
    steps = np.array(header.fields["pixdim"][1:4], np.float64)
    steps[[axis for axis in range(3) if header.shape[axis] == 1 and not steps[axis] > 0]] = 1.0
    if not np.isfinite(steps).all() or not (steps > 0).all():
        shown = " x ".join(f"{step:g}" for step in steps)
        message = f"geometry unusable: voxel sizes {shown} in pixdim: expected positive lengths"
        raise FormatError(message)
    shape = np.array(header.shape[:3])
    center = (shape - 1) / 2.0
    origin = np.array(header.fields.get("origin", (0, 0, 0)))
    if origin.any() and (origin > -shape).all() and (origin < 2 * shape).all():
        center = origin - 1.0
    steps[0] *= -1
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = -center * steps
    return affine


def _without_unit_axes(affine: np.ndarray, header: NiftiHeader) -> np.ndarray:
    """The affine without a third axis of length 1: pictures often have no third step."""
    if header.shape[2] > 1:
        return affine
    steps = affine[:3, :2]
    lengths = np.linalg.norm(steps, axis=0)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        return affine
    plane, _ = np.linalg.qr(steps)
    flat = np.eye(3)
    flat[:2, :2] = plane.T @ steps
    return flat
