"""Applies Preprocess to one scan: orientation, foreground crop, spacing, the user's transforms, integers to store."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medssl.data.formats.masks import whole_numbers
from medssl.data.store import coding, grid, stains
from medssl.types import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from medssl.data.formats.reading import Volume
    from medssl.data.store.coding import Coding
    from medssl.data.store.stains import StainFit
    from medssl.types import Imported, IntensityRule, Preprocess, StainRule, ValueDomain


@dataclass(frozen=True)
class Undo:
    """The way back: oriented grid of the source, where the foreground crop started in it, and its size there."""

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    crop_start: tuple[int, ...]
    crop_size: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """A scan as it is stored.

    Attributes:
        image: Codes [C, *s], uint8 or int16.
        affine: Stored voxel -> world mm.
        coding: What the codes mean.
        cells: Foreground map, one bool per cell in C order (see ``coding.cell_side``).
        undo: The way back to the source's grid.
        label: Classes [1, *s] in the smallest integer type, or None.
        stain: What the stains of the scan were normalized by; None where they were not.
    """

    image: NDArray[np.uint8] | NDArray[np.int16]
    affine: NDArray[np.float64]
    coding: Coding
    cells: NDArray[np.bool_]
    undo: Undo
    label: NDArray[np.integer] | None = None
    stain: StainFit | None = None

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between neighboring voxels per stored axis."""
        return grid.spacing_of(self.affine)


@dataclass
class _Work:
    """A scan on its way; every step replaces what it changes."""

    image: NDArray[Any]
    affine: NDArray[np.float64]
    label: NDArray[Any] | None = None
    excluded: NDArray[np.bool_] | None = None
    undo: Undo = field(default_factory=lambda: Undo((), (), (), ()))
    stain: StainFit | None = None

    def move(self, step: Callable[..., tuple[NDArray[Any], NDArray[np.float64]]], *arguments: object) -> None:
        """Takes image and masks through the same change of grid."""
        affine = self.affine
        nearest = {"nearest": True} if step in (grid.resample, grid.resize_image) else {}
        self.image, self.affine = step(self.image, affine, *arguments)
        if self.label is not None:
            self.label, _ = step(self.label, affine, *arguments, **nearest)
        if self.excluded is not None:
            self.excluded, _ = step(self.excluded, affine, *arguments, **nearest)

    def included(self) -> NDArray[np.bool_] | None:
        """The voxels [*s] that are not excluded; None where none is.

        Raises:
            UserError: All are.
        """
        if self.excluded is None or not self.excluded.any():
            return None
        if self.excluded.all():
            message = "all voxels of the scan are excluded"
            hint = "Leave the scan out, or repair its mask of excluded voxels"
            raise UserError(message, hint=hint)
        included: NDArray[np.bool_] = ~self.excluded[0]
        return included

    def foreground(self, preprocess: Preprocess, domain: ValueDomain) -> NDArray[np.bool_]:
        """The voxels [*s] that are not background; excluded ones are none of them."""
        included = self.included()
        mask = coding.foreground_mask(
            self.image, coding.thresholds(self.image, domain, preprocess.background, included)
        )
        return mask if included is None else mask & included


def check(preprocess: Preprocess) -> None:
    """Refuses rules that no scan can be prepared by, so that this is known before the first one is read.

    Raises:
        UserError: Names the key and what it takes.
    """
    axes, spacing, isotropic = preprocess.orientation, preprocess.spacing_mm, preprocess.isotropic
    if axes and (len(axes) != 3 or any(len(set(axes) & set(pair)) != 1 for pair in ("LR", "PA", "IS"))):
        message = "must name one of L/R, P/A and I/S for each axis, such as RAS"
        raise UserError(message, key="preprocess.orientation", got=axes)
    if isinstance(spacing, tuple) and (len(spacing) != 3 or not all(0 <= mm < np.inf for mm in spacing)):
        message = "must be three distances in mm (0 keeps an axis), median or nnunet"
        raise UserError(message, key="preprocess.spacing_mm", got=spacing)
    if isotropic is not None and not 0 < isotropic < np.inf:
        message = "must be a distance in mm above 0"
        raise UserError(message, key="preprocess.isotropic", got=isotropic)
    if isotropic is not None and spacing is not None:
        message = f"sets the spacing of all axes, and so does spacing_mm {spacing}"
        raise UserError(message, key="preprocess.isotropic", got=isotropic, hint="Leave one of them out")
    if preprocess.image_size is not None and min(preprocess.image_size) < 1:
        message = "must be height and width in pixels"
        raise UserError(message, key="preprocess.image_size", got=preprocess.image_size)
    for entry in fields(preprocess.intensity):
        _check_rule(getattr(preprocess.intensity, entry.name), f"preprocess.intensity.{entry.name}")
    stains.check_rule(preprocess.stain)
    _users(preprocess.transforms)


def _check_rule(rule: IntensityRule, key: str) -> None:
    """Refuses an intensity rule whose numbers are out of order or out of range."""
    outside = rule.clip in ("percentile", "collection") and not 0 <= rule.low <= rule.high <= 100
    if outside or (rule.clip == "range" and rule.low >= rule.high):
        what = "percentiles from 0 to 100" if outside else "values"
        message = f"clips from {rule.low} to {rule.high}"
        raise UserError(message, key=key, expected=f"two {what} in ascending order")
    if rule.normalize == "fixed" and not (rule.deviation > 0 and np.isfinite([rule.mean, rule.deviation]).all()):
        message = "must be above 0, with a finite mean"
        raise UserError(message, key=f"{key}.deviation", got=rule.deviation)


def prepare(volume: Volume, preprocess: Preprocess, *, domain: ValueDomain) -> Prepared:
    """Applies every rule of ``preprocess`` to a scan that was read.

    Args:
        volume: Image [C, *s] in its own type, affine, label [1, *s] or None, and excluded voxels [1, *s] or None; two
            spatial axes are an image. What excluded voxels hold reaches nothing: not even what is interpolated.
        preprocess: The rules.
        domain: What the values are, which decides the intensity rule and the foreground.

    Returns:
        Codes, geometry and the numbers to decode them.

    Raises:
        UserError: The scan is empty, holds NaN or infinite voxels or excluded ones alone, or a rule does not fit it.
    """
    if not preprocess.is_resolved:
        message = "names a median or a collection, which are measured when scans are cached: take the rules of a store"
        raise UserError(message, key="preprocess")
    image = _plain_type(np.asarray(volume.image))
    coding.refuse_unusable(image)
    source_whole = image.dtype == np.uint8 or domain == "hu"
    work = _Work(image, np.asarray(volume.affine, np.float64))
    work.label = None if volume.label is None else whole_numbers(volume.label)
    work.excluded = volume.excluded
    if (included := work.included()) is not None:
        work.image = coding.blanked(image, included)
    if preprocess.stain.method != "none":
        _normalize_stains(work, preprocess.stain, domain)
    if image.ndim == 4 and preprocess.orientation:
        work.move(grid.orient, preprocess.orientation)
    _crop_foreground(work, preprocess, domain)
    if image.ndim == 4 and isinstance(preprocess.spacing_mm, tuple):
        work.move(grid.resample, preprocess.spacing_mm)
    elif image.ndim == 3 and preprocess.image_size:
        work.move(grid.resize_image, tuple(preprocess.image_size))
    if preprocess.transforms:
        _apply_users(work, preprocess.transforms)
        source_whole = False
    if source_whole and image.dtype == np.uint8 and work.image.dtype != np.uint8:
        work.image = np.clip(np.rint(work.image), 0, 255).astype(np.uint8)
        return _finish(work, preprocess, domain, whole=True, error=0.5)
    return _finish(work, preprocess, domain, whole=source_whole)


def as_monai(preprocess: Preprocess) -> Any:
    """Returns the geometry of ``preprocess`` for volumes as a MONAI ``Compose`` over the keys "image" and "label".

    For use in other tools' pipelines: orientation, spacing, the user's transforms. ``prepare`` gives the same voxels.
    """
    from monai import transforms

    steps: list[Any] = []
    both = {"keys": ("image", "label"), "allow_missing_keys": True}
    if preprocess.orientation:
        steps.append(transforms.Orientationd(**both, axcodes=preprocess.orientation, labels=None))
    if isinstance(preprocess.spacing_mm, tuple):
        pixdim = [mm if mm > 0 else float("nan") for mm in preprocess.spacing_mm]  # NaN: MONAI keeps that axis
        steps.append(transforms.Spacingd(**both, pixdim=pixdim, mode=("bilinear", "nearest")))
    return transforms.Compose([*steps, *map(make_transform, preprocess.transforms)])


def make_transform(imported: Imported, key: str = "preprocess.transforms") -> Any:
    """Makes the object that a configuration names by import path.

    Args:
        imported: Import path of the class, and its arguments.
        key: Key of the configuration that holds it, for errors.

    Raises:
        UserError: The path does not lead to anything, or its arguments are refused.
    """
    module, _, name = imported.class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)(**imported.init_args)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        message = f"cannot make {imported.class_path}: {error}"
        hint = "Give an import path and arguments that it accepts"
        raise UserError(message, key=key, hint=hint) from error


def _plain_type(image: NDArray[Any]) -> NDArray[Any]:
    if image.dtype == np.bool_:
        return image.astype(np.uint8)
    if image.dtype == np.float16:
        return image.astype(np.float32)
    return image


def _normalize_stains(work: _Work, rule: StainRule, domain: ValueDomain) -> None:
    """Fits the rule to the scan, at its full resolution, and gives it the colors of the reference."""
    if domain != "rgb" or len(work.image) != 3 or work.image.dtype != np.uint8:
        message = "normalizes color images of 8 bits, and the scan is none"
        hint = "Set it to none, or choose color images"
        raise UserError(message, key="preprocess.stain.method", got=rule.method, hint=hint)
    work.stain = stains.fit(work.image, rule)
    work.image = stains.normalize(work.image, work.stain, rule)


def _crop_foreground(work: _Work, preprocess: Preprocess, domain: ValueDomain) -> None:
    """Cuts the background border away; a labeled voxel counts as foreground, so no label that is learned is lost."""
    shape = tuple(work.image.shape[1:])
    start, stop = (0,) * len(shape), shape
    if preprocess.foreground_crop:
        mask, included = work.foreground(preprocess, domain), work.included()
        if work.label is not None:
            mask |= work.label[0] > 0 if included is None else (work.label[0] > 0) & included
        start, stop = coding.bounding_box(mask)
    affine = tuple(tuple(float(x) for x in row) for row in work.affine)
    work.undo = Undo(shape, affine, start, tuple(b - a for a, b in zip(start, stop, strict=True)))
    work.move(grid.crop, start, stop)


def _users(imported: tuple[Imported, ...]) -> list[Any]:
    """The user's transforms; random ones are refused."""
    if not imported:
        return []
    from monai.transforms import Randomizable

    made = [make_transform(step) for step in imported]
    for step, transform in zip(imported, made, strict=True):
        if isinstance(transform, Randomizable):
            message = f"{step.class_path} is random, but preprocessing is done once"
            hint = "Use a transform without random draws; random changes belong to the views"
            raise UserError(message, key="preprocess.transforms", hint=hint)
    return made


def _apply_users(work: _Work, imported: tuple[Imported, ...]) -> None:
    """Runs the user's MONAI dictionary transforms on MetaTensors."""
    import torch
    from monai.data import MetaTensor

    items = {"image": work.image} | ({} if work.label is None else {"label": work.label})
    data: dict[str, Any] = {
        key: MetaTensor(torch.from_numpy(np.ascontiguousarray(x)), affine=torch.from_numpy(work.affine.copy()))
        for key, x in items.items()
    }
    for step, transform in zip(imported, _users(imported), strict=True):
        try:
            data = transform(data)
        except MemoryError:
            raise
        except Exception as error:  # whatever the user's own code raises
            message = f"{step.class_path} failed: {type(error).__name__}: {error}"
            raise UserError(message, key="preprocess.transforms") from error
    shape, affine = work.image.shape, work.affine
    work.image = np.asarray(data["image"])
    work.affine = np.asarray(getattr(data["image"], "affine", work.affine), np.float64)
    work.label = None if work.label is None else whole_numbers(np.asarray(data["label"]))
    if work.image.ndim != len(shape) or (work.label is not None and work.label.shape != (1, *work.image.shape[1:])):
        label = "" if work.label is None else f" and a label of shape {work.label.shape}"
        message = f"they leave an image of shape {work.image.shape}{label}"
        expected = "channel first, as many axes as before, and the same grid for both keys, image and label"
        raise UserError(message, key="preprocess.transforms", expected=expected)
    if work.included() is not None and (work.image.shape[1:] != shape[1:] or not np.allclose(work.affine, affine)):
        message = "they move the voxels of a scan of which some are excluded"
        hint = (
            "Change the grid with preprocess.orientation, preprocess.spacing_mm or preprocess.image_size: these move "
            "the mask of excluded voxels too"
        )
        raise UserError(message, key="preprocess.transforms", hint=hint)
    coding.refuse_unusable(work.image)


def _finish(work: _Work, preprocess: Preprocess, domain: ValueDomain, *, whole: bool, error: float = 0.0) -> Prepared:
    mask, rule = work.foreground(preprocess, domain), getattr(preprocess.intensity, domain)
    codes, numbers = coding.encode(work.image, rule, mask, whole=whole, included=work.included())
    return Prepared(
        image=codes,
        affine=work.affine,
        coding=replace(numbers, error=max(error, numbers.error)),
        cells=coding.foreground_cells(mask),
        undo=work.undo,
        label=None if work.label is None else _smallest(work.label),
        stain=work.stain,
    )


def _smallest(label: NDArray[Any]) -> NDArray[np.integer]:
    kinds = (np.min_scalar_type(int(label.min())), np.min_scalar_type(int(label.max())))
    return np.ascontiguousarray(label, dtype=np.result_type(*kinds))
