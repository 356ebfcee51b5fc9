"""Groups the slices of one DICOM series into volumes and images with correct affines, or states why this fails.

Slices are ordered by their position along the normal of the stack (DICOM PS3.3 C.7.6.2.1.1), never by number. Missing
slices are not replaced: a gap, two different slices in one place, or uneven steps make the volume fail.

1. Copies are removed (``copies``).
2. Slices of different patients, studies, frames of reference, modalities, shapes, orientations or pixel spacings never
   belong to the same volume. Fewer than three slices beside a larger group are strays; they do not affect the group.
3. Attributes separate volumes of one grid (``separation``).
4. A slice that cannot be read fails its volume. A file whose header cannot be read fails the volumes of its series.
   Unreadable files of unknown series in the same folders fail a volume only if they could fill each of its gaps, and
   nothing proves that there are no gaps (``steps.contiguous``).
5. Steps are checked against SpacingBetweenSlices and SliceThickness (``steps.skipped``). A volume of every second slice
   is refused; a gap between thin slices is noted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from medssl.data.formats.base import LPS_TO_RAS, make_grid, picture_grid
from medssl.data.formats.dicom.series.copies import Copies, SamePixels, dropped_note, without_copies
from medssl.data.formats.dicom.series.separation import by_contrast, by_moment
from medssl.data.formats.dicom.series.steps import (
    FEWEST_SLICES,
    contiguous,
    declared,
    line_of,
    normal_of,
    origins_of,
    places_of,
    ranks_of,
    same_place_mm,
    skipped,
    step_of,
    unevenness,
)
from medssl.data.formats.dicom.slices import Slice, Stack
from medssl.types import Grid, Status

SAME_DIRECTION = 1e-3  # difference of direction cosines that is rounding
_WIDE_GAP = 1.5  # of the thickness
_AS_IMAGES = "files.slices image takes each slice as an image"
_FACTS = {
    "subject": "PatientID", "issuer": "IssuerOfPatientID", "study": "StudyInstanceUID",
    "reference": "FrameOfReferenceUID", "modality": "Modality", "name": "PatientName",
}  # fmt: skip


@dataclass(frozen=True)
class SeriesFiles:
    """Facts about the files of a series, beside its slices.

    Attributes:
        damaged: Reason of the damage, by path of slices with damaged pixels.
        unreadable: Names and reasons of files of this series whose header could not be read.
        unassigned: Returns the names of unreadable files in the folders of this series that may belong to any series.
        as_images: Take every slice as an image.
        count: Number of files of the series; 0 if it is not known.
    """

    damaged: Mapping[str, str] = field(default_factory=dict)
    unreadable: tuple[tuple[str, str], ...] = ()
    unassigned: Callable[[], Sequence[str]] = tuple
    as_images: bool = False
    count: int = 0


def stacks_of(slices: Sequence[Slice], same_pixels: SamePixels, files: SeriesFiles | None = None) -> list[Stack]:
    """Groups the slices of one series into stacks.

    Args:
        slices: All slices of the series in any order, including those of damaged files.
        same_pixels: Whether two slices have equal pixels; called only for slices with equal headers in one place.
        files: Damaged files, and whether slices are taken as images.
    """
    files = files or SeriesFiles()
    ordered = sorted(
        slices, key=lambda slice_: (slice_.slice_attributes.get("number", 0.0), slice_.path, slice_.frame or 0)
    )
    equal_pixels = lambda a, b: not {a.path, b.path} & files.damaged.keys() and same_pixels(a, b)  # noqa: E731
    unique, copies = without_copies(ordered, equal_pixels)
    flat = [slice_ for slice_ in unique if slice_.kind == "image" or files.as_images]
    stacks = _pictures(flat, files)
    if not files.as_images:
        stacks += _Series(
            files, same_pixels, frozenset(slice_.slice_attributes.get("number", 0.0) for slice_ in slices)
        ).volumes([slice_ for slice_ in unique if slice_.kind == "volume"])
    return [_noted(stack, dropped_note(copies, stack.slices)) for stack in stacks]


def _noted(stack: Stack, note: str) -> Stack:
    """Appends a note to the reason of a stack."""
    if not note:
        return stack
    reason = f"{stack.status.reason}; {note}" if stack.status.reason else note
    return replace(stack, status=replace(stack.status, reason=reason))


def _pictures(slices: Sequence[Slice], files: SeriesFiles) -> list[Stack]:
    """Every slice as a separate image; shared identifiers get a number."""
    stacks, repeats = [], dict[str, int]()
    for slice_ in slices:
        number = repeats[slice_.instance] = repeats.get(slice_.instance, -1) + 1
        name = f"{slice_.instance}.{number}" if number else slice_.instance
        grid = picture_grid(slice_.shape[0], slice_.shape[1], slice_.spacing_mm or (1.0, 1.0))
        why = files.damaged.get(slice_.path)
        status = Status("failed", why) if why else Status()
        stacks.append(Stack((slice_,), status, name=name, grid=None if why else grid))
    return stacks


@dataclass(frozen=True)
class _Series:
    """Grouping of the slices of one series with a pose."""

    files: SeriesFiles
    same_pixels: SamePixels
    numbers: frozenset[float]

    def volumes(self, slices: list[Slice]) -> list[Stack]:
        """Volumes and strays: slices are split by grid, then by attributes, then checked."""
        unplaced = [slice_ for slice_ in slices if slice_.pose is None or slice_.spacing_mm is None]
        located = [slice_ for slice_ in slices if slice_.pose is not None and slice_.spacing_mm is not None]
        kinds = {str(slice_.attributes.get("ImageType")) for slice_ in located}
        if unplaced and located and not kinds & {str(slice_.attributes.get("ImageType")) for slice_ in unplaced}:
            reason = (
                f"stray image: without position or spacing, and of another ImageType than the {len(located)} slices"
            )
            stray = Stack(tuple(unplaced), Status("rejected", f"{reason}; {_AS_IMAGES}"), name="stray unplaced")
            return [*self.volumes(located), stray]
        if unplaced:
            message = f"no geometry: {len(unplaced)} of {len(slices)} slices without position or spacing"
            return [Stack(tuple(slices), Status("failed", f"{message} ({unplaced[0].file_name})"))]
        if not slices:
            return []
        clusters = _clusters(slices)
        problem = _no_volume(clusters)
        if problem:
            return [self._damaged(Stack(tuple(slices), problem))]
        stacks = []
        strays: list[list[Slice]] = []
        for number, cluster in enumerate(clusters):
            if len(cluster) < FEWEST_SLICES and len(clusters) > 1:
                strays.append(cluster)
                continue
            compared = clusters[1 if number == 0 else 0] if len(clusters) > 1 else []
            note = f"split by {_differing(cluster[0], compared[0])}" if len(compared) >= FEWEST_SLICES else ""
            stacks += [_noted(stack, note) for stack in self._of_grid(cluster, number)]
        stacks += [self._stray(cluster, clusters[0], n) for n, cluster in enumerate(strays)]
        issuers = {(slice_.facts["subject"], slice_.facts["issuer"]) for slice_ in slices if slice_.facts.get("issuer")}
        shared = Counter(subject for subject, _ in issuers)
        issuer_note = "IssuerOfPatientID differs in this series for one PatientID: one subject is taken for both"
        return [_noted(stack, issuer_note if shared[stack.slices[0].facts["subject"]] > 1 else "") for stack in stacks]

    def _of_grid(self, cluster: list[Slice], number: int) -> list[Stack]:
        """Volumes of slices that share shape, direction and spacing."""
        contrast = by_contrast(cluster)
        groups: list[tuple[list[Slice], str, str]] = []
        single_slices: list[list[Slice]] = []
        main = max(map(len, contrast.parts))
        if main < FEWEST_SLICES <= len(cluster):
            names = contrast.note.removeprefix("split by ")
            reason = f"no volume: of {len(cluster)} slices no {FEWEST_SLICES} agree ({names})"
            return [self._damaged(Stack(tuple(cluster), Status("failed", f"{reason}; {_AS_IMAGES}"), f"{number}.0"))]
        for part in contrast.parts:
            if len(part) == 1 and main >= FEWEST_SLICES:
                single_slices.append(part)
                continue
            split = by_moment(part)
            if split.problem:
                unique, copies = _repeated(part, self.same_pixels, self.files)
                second_split = by_moment(unique)
                if copies and not second_split.problem:
                    groups += [
                        (p, _joined(contrast.note, second_split.note, dropped_note(copies, p)), "")
                        for p in second_split.parts
                    ]
                    continue
            groups += [(p, _joined(contrast.note, split.note), split.problem) for p in split.parts]
        ranks = _ranks_by_slice(cluster)
        fullest = max((part for part, _, _ in groups), key=len, default=[])
        stacks = []
        for position, (part, note, problem) in enumerate(groups):
            stack = Stack(tuple(part), Status(), f"{number}.{position}", volume=(position + 1, len(groups)))
            problem = problem or _incomplete(stack, fullest, ranks)
            stacks.append(_noted(self._checked(stack, problem), note))
        return stacks + [self._stray(part, fullest, f"{number}.{n}") for n, part in enumerate(single_slices)]

    def _checked(self, stack: Stack, problem: str) -> Stack:
        """Sorts slices by place, checks the steps, and sets the grid of the stack, or its failure."""
        order = np.argsort(places_of(stack.slices), kind="stable")
        slices = tuple(stack.slices[index] for index in order)
        stack = replace(stack, slices=slices)
        damaged = self._damaged(stack)
        if damaged is not stack:
            return damaged
        if problem:
            return replace(stack, status=Status("failed", problem))
        if len(slices) < FEWEST_SLICES or len(set(_ranks_by_slice(slices).values())) < FEWEST_SLICES:
            reason = f"too few slices for a volume: {len(slices)} of at least {FEWEST_SLICES}"
            if len(slices) >= FEWEST_SLICES:
                reason = f"too few places for a volume: {len(slices)} slices in fewer than {FEWEST_SLICES} places"
            return replace(stack, status=Status("rejected", f"{reason}; {_AS_IMAGES}"))
        problem = unevenness(slices) or skipped(slices, self.numbers) or self._doubtful(slices)
        if problem:
            return replace(stack, status=Status("failed", problem))
        return _with_grid(stack)

    def _damaged(self, stack: Stack) -> Stack:
        """The stack, failed if one of its slices, or a file of its series, could not be read."""
        damaged_slices = sorted(
            {
                (slice_.file_name, self.files.damaged[slice_.path])
                for slice_ in stack.slices
                if slice_.path in self.files.damaged
            }
        )
        damaged_files = damaged_slices or sorted(self.files.unreadable)
        if not damaged_files:
            return stack
        name, why = damaged_files[0]
        count = (
            f"{len(damaged_files)} of {self.files.count} files" if self.files.count else f"{len(damaged_files)} files"
        )
        return replace(stack, status=Status("failed", f"damaged slice: {name} {why} ({count})"))

    def _doubtful(self, slices: Sequence[Slice]) -> str:
        """Why unreadable files may be missing slices of this stack; "" if they cannot be."""
        unassigned = () if contiguous(slices) else self.files.unassigned()
        if not unassigned or len(unassigned) < len(slices) - 1:
            return ""
        return (
            f"{len(unassigned)} files beside this series could not be read (first: {unassigned[0]}), and no header "
            f"says that its steps of {step_of(slices):.2f} mm hide no slice"
        )

    def _stray(self, slices: Sequence[Slice], main: Sequence[Slice], number: int | str) -> Stack:
        """A rejected stack of slices that belong to no volume."""
        names = _differing(slices[0], main[0])
        many = "1 slice that differs" if len(slices) == 1 else f"{len(slices)} slices that differ"
        reason = f"stray image: {many} from the other {len(main)} of its series in {names}; {_AS_IMAGES}"
        return self._damaged(Stack(tuple(slices), Status("rejected", reason), name=f"stray {number}"))


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _repeated(slices: Sequence[Slice], same_pixels: SamePixels, files: SeriesFiles) -> tuple[list[Slice], Copies]:
    """Removes slices that equal another one in their place, except for number or time, and have equal pixels."""
    ranks = _ranks_by_slice(slices)
    places: dict[int, list[Slice]] = {}
    copies: Copies = {}
    for slice_ in slices:
        group = places.setdefault(ranks[slice_.path, slice_.frame], [])
        readable = slice_.path not in files.damaged
        first = next((earlier for earlier in group if readable and same_pixels(earlier, slice_)), None)
        if first is None and group:
            return list(slices), {}  # different pictures in one place: nothing is dropped
        if first is None:
            group.append(slice_)
        else:
            copies.setdefault((first.path, first.frame), []).append(slice_.file_name)
    return [slice_ for group in places.values() for slice_ in group], copies


def _ranks_by_slice(slices: Sequence[Slice]) -> dict[tuple[str, int | None], int]:
    ranks = ranks_of(places_of(slices), same_place_mm(slices)).tolist()
    return {(slice_.path, slice_.frame): rank for slice_, rank in zip(slices, ranks, strict=True)}


def _incomplete(stack: Stack, fullest: Sequence[Slice], ranks: Mapping[tuple[str, int | None], int]) -> str:
    """Why a stack is incomplete: it has only some of the places of a larger one with its grid; "" if it is complete."""
    if len(stack.slices) >= len(fullest):
        return ""
    stack_ranks = {ranks[slice_.path, slice_.frame] for slice_ in stack.slices}
    if not stack_ranks < {ranks[slice_.path, slice_.frame] for slice_ in fullest}:
        return ""
    number, count = stack.volume
    return f"incomplete volume: number {number} of {count} has {len(stack.slices)} of {len(fullest)} slices"


# --- grids


def _clusters(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices of one patient and one grid (shape, direction, spacing), largest group first."""
    clusters: dict[tuple[Any, ...], list[list[Slice]]] = {}
    for slice_ in slices:
        same_header = clusters.setdefault((slice_.shape, *(slice_.facts.get(name, "") for name in _FACTS)), [])
        for cluster in same_header:
            first = cluster[0]
            if _close(_direction(slice_), _direction(first), SAME_DIRECTION) and _close(
                _spacing(slice_), _spacing(first), 1e-3 * max(_spacing(first))
            ):
                cluster.append(slice_)
                break
        else:
            same_header.append([slice_])
    all_clusters = [cluster for key in sorted(clusters, key=str) for cluster in clusters[key]]
    return sorted(all_clusters, key=lambda cluster: (-len(cluster), _direction(cluster[0]), _spacing(cluster[0])))


def _close(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    """Whether all numbers are equal within a tolerance; plain Python is fastest for few numbers."""
    return a == b or all(abs(left - right) <= tolerance for left, right in zip(a, b, strict=True))


def _direction(slice_: Slice) -> tuple[float, ...]:
    return (slice_.pose or ())[:6]


def _spacing(slice_: Slice) -> tuple[float, float]:
    return slice_.spacing_mm or (0.0, 0.0)


def _differing(first: Slice, second: Slice) -> str:
    """Keywords of the attributes in which two slices differ."""
    names = [word for name, word in _FACTS.items() if first.facts.get(name, "") != second.facts.get(name, "")]
    names += ["Rows or Columns"] if first.shape != second.shape else []
    names += [] if _close(_direction(first), _direction(second), SAME_DIRECTION) else ["ImageOrientationPatient"]
    names += [] if _close(_spacing(first), _spacing(second), 1e-3 * max(_spacing(second))) else ["PixelSpacing"]
    if not names:
        names = by_contrast([first, second]).note.removeprefix("split by ").split(", ")
    return ", ".join(names)


def _no_volume(clusters: Sequence[Sequence[Slice]]) -> Status | None:
    """Status of a localizer (three planes of few slices), or of slices of which no three share a grid; else None."""
    if len(clusters) < 2:
        return None
    largest = max(map(len, clusters))
    normals = [normal_of(cluster[0]) for cluster in clusters]
    upright = sum(abs(float(a @ b)) < 0.3 for a, b in combinations(normals[:12], 2))
    if upright >= 3 and largest < 12:
        return Status("rejected", f"localizer: {len(clusters)} directions of at most {largest} slices")
    if largest < FEWEST_SLICES:
        names = _differing(clusters[1][0], clusters[0][0])
        reason = f"too few slices for a volume: at most {largest} of at least {FEWEST_SLICES} that agree in {names}"
        return Status("rejected", f"{reason}; {_AS_IMAGES}")
    return None


def _with_grid(stack: Stack) -> Stack:
    """Sets the grid of a stack, and notes gantry tilt and gaps."""
    slices = stack.slices
    start, step = line_of(origins_of(slices))
    stack = replace(stack, grid=_grid(slices, start, step))
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal_of(slices[0]) / np.linalg.norm(step), -1, 1))))
    if tilt > 0.5:
        stack = _noted(stack, f"gantry tilt of {tilt:.1f} degrees: the affine is sheared")
    thickness, length = declared(slices, "SliceThickness"), step_of(slices)
    if thickness is not None and length > _WIDE_GAP * thickness and not contiguous(slices):
        stack = _noted(stack, f"gaps between slices: {thickness:.4g} mm thick, {length:.4g} mm apart")
    return stack


def _grid(slices: Sequence[Slice], origin: np.ndarray, step: np.ndarray) -> Grid:
    """Grid of the array (column, row, slice) in RAS+, converted from DICOM's LPS."""
    direction = np.array(_direction(slices[0]))
    between_rows, between_columns = _spacing(slices[0])
    affine = np.eye(4)
    affine[:3] = np.column_stack([direction[:3] * between_columns, direction[3:] * between_rows, step, origin])
    affine[:3] *= np.array(LPS_TO_RAS)[:, None]
    rows, columns, _ = slices[0].shape
    return make_grid((columns, rows, len(slices)), affine)
