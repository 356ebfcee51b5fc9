"""Classes that files of others name: what is built from them, checked by name before any import and by type before use.

What you type (on the command line, in a recipe of yours, in Python) is yours and is run as it stands. What is read from
a folder (the card of a run, its ``config.yaml``) may have been handed over: of it only classes of a fixed list are
built. Other classes need their import path in the key ``trust`` or in the environment variable ``MEDSSL_TRUST``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from importlib import import_module
from typing import Any

from medssl.types import Imported, UserError

VARIABLE = "MEDSSL_TRUST"
NETWORKS = ("medssl.encoders", "medssl.heads", "medssl.objectives", "medssl.nn", "torch.nn")  # rooms of modules
CLASS_KEYS = frozenset({"class_path", "_target_"})
IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

# deterministic transforms of MONAI that neither read nor write files, nor import, nor call what their arguments name
CROPS = """BorderPad BoundingRect CenterScaleCrop CenterSpatialCrop Crop CropForeground DivisiblePad Pad
    ResizeWithPadOrCrop SpatialCrop SpatialPad"""
SPATIAL = "Affine Flip GridDistortion Orientation Resize Rotate Rotate90 Spacing SpatialResample Zoom"
INTENSITY = """AdjustContrast ClipIntensityPercentiles ForegroundMask GaussianSharpen GaussianSmooth GibbsNoise
    HistogramNormalize KSpaceSpikeNoise MaskIntensity MedianSmooth NormalizeIntensity SavitzkyGolaySmooth
    ScaleIntensity ScaleIntensityRange ScaleIntensityRangePercentiles ShiftIntensity StdShiftIntensity
    ThresholdIntensity"""
POST = """AsDiscrete DistanceTransformEDT FillHoles KeepLargestConnectedComponent LabelFilter LabelToContour
    RemoveSmallObjects SobelGradients"""
UTILITY = """AddCoordinateChannels AsChannelLast CastToType ConcatItems ConvertToMultiChannelBasedOnBratsClasses
    CopyItems DeleteItems EnsureChannelFirst EnsureType Identity LabelToMask MapLabelValue RemoveRepeatedChannel
    RepeatChannel SelectItems SplitDim SqueezeDim ToNumpy ToTensor Transpose"""
ROOMS = {"croppad": CROPS, "spatial": SPATIAL, "intensity": INTENSITY, "post": POST, "utility": UTILITY}
TRANSFORMS = {
    f"{name}{end}": f"monai.transforms.{room}.dictionary"
    for room, names in ROOMS.items()
    for name in names.split()
    for end in ("d", "D", "Dict")
}


def names(text: str, option: str = "trust") -> frozenset[str]:
    """Import paths in a value of the key ``trust``, separated by commas.

    Raises:
        UserError: One of them is no import path of a class.
    """
    found = frozenset(filter(None, map(str.strip, text.split(","))))
    for name in sorted(found):
        if not IMPORT_PATH.fullmatch(name):
            message = f"{option} {name!r}: expected the import path of a class, such as package.module.Class"
            raise UserError(message)
    return found


def is_trusted(path: str, trust: Collection[str]) -> bool:
    """Whether somebody has named this class: the command, or the environment."""
    return path in trust or path in names(os.environ.get(VARIABLE, ""), VARIABLE)


def named_in(content: Any) -> Iterator[str]:
    """Import paths of all classes that nested plain data name."""
    if isinstance(content, dict):
        yield from (str(content[key]) for key in sorted(CLASS_KEYS & content.keys()))
        content = list(content.values())
    if isinstance(content, list | tuple):
        for item in content:
            yield from named_in(item)


def others_in(content: Any) -> frozenset[str]:
    """Import paths in nested plain data that lie outside medssl: whoever typed them trusts them."""
    return frozenset(path for path in named_in(content) if not path.startswith(tuple(f"{room}." for room in NETWORKS)))


def network_class(described: Imported, where: str, trust: Collection[str] = ()) -> type:
    """The class of a network (encoder, head, objective, layer), not yet called.

    Args:
        described: Import path and arguments.
        where: What names it, for messages.
        trust: Import paths of other classes that may be imported.

    Raises:
        UserError: It is not on the list, cannot be imported, or is no class of a network; or its arguments name a
            class that is not on the list.
    """
    path = described.class_path
    room = next((room for room in NETWORKS if path.startswith(f"{room}.")), "")
    trusted = is_trusted(path, trust)
    if not trusted and (not room or not IMPORT_PATH.fullmatch(path)):
        refuse(path, where)
    kind = _imported(path, where)
    if not trusted and not _is_module(kind):
        refuse(path, where)
    for inner in named_in(described.init_args):
        if not is_trusted(inner, trust):
            refuse(inner, f"{where}, init_args")
    if not isinstance(kind, type):
        message = f"{where}: {path} is no class"
        raise UserError(message)
    return kind


def refuse_transforms(transforms: Collection[Imported], where: str, trust: Collection[str] = ()) -> None:
    """Refuses transforms of a file that are not on the list: nothing of them is imported or called.

    Raises:
        UserError: Names the class and where it stands.
    """
    for number, step in enumerate(transforms):
        place = f"{where}: preprocess.transforms[{number}]"
        if is_trusted(step.class_path, trust):
            continue
        module, _, name = step.class_path.rpartition(".")
        if module not in {"monai.transforms", TRANSFORMS.get(name)} or name not in TRANSFORMS:
            refuse(step.class_path, place)
        if not _is_plain_transform(_imported(step.class_path, place)):
            refuse(step.class_path, place)
        for text in _texts(step.init_args):
            if IMPORT_PATH.fullmatch(text) or text.startswith(("$", "@", "%")):
                refuse(text, f"{place}, an argument of {name},")


def refuse_config(config: Any, where: str, trust: Collection[str] = ()) -> None:
    """Refuses a configuration of another's run that names classes which are not on the list.

    Raises:
        UserError: Names the class.
    """
    if isinstance(config, list | tuple):
        for item in config:
            refuse_config(item, where, trust)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        given = value if isinstance(value, str) and IMPORT_PATH.fullmatch(value) else None
        if key in CLASS_KEYS or (given and key in {"encoder", "objective", "head"}):
            network_class(Imported(str(value)), where, trust)
        elif key == "transforms":
            steps = value if isinstance(value, list) else [value]
            refuse_transforms([_step(step) for step in steps if step], where, trust)
        else:
            refuse_config(value, where, trust)


def refuse(path: str, where: str) -> None:
    """Says what would run, and how to have it run.

    Raises:
        UserError: Always.
    """
    message = (
        f"{where} names {path[:200]!r}, which is not on the list of classes that are built from files of others: "
        f"its code would run; if you know it, add to trust: {path[:200]}"
    )
    raise UserError(message)


def _step(content: Any) -> Imported:
    if isinstance(content, dict):
        return Imported(str(content.get("class_path", "")), content.get("init_args") or {})
    return Imported(str(content))


def _imported(path: str, where: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"{where}: {path} cannot be imported ({error})"
        raise UserError(message) from error


def _is_module(kind: Any) -> bool:
    """Whether this is a class of networks that stands in one of their rooms, not one that was imported there."""
    from torch.nn import Module

    home = getattr(kind, "__module__", "")
    return (
        isinstance(kind, type)
        and issubclass(kind, Module)
        and any(home == room or home.startswith(f"{room}.") for room in NETWORKS)
    )


def _is_plain_transform(kind: Any) -> bool:
    """Whether this is a class of MONAI's deterministic transforms of dictionaries, from the module of its name."""
    from monai.transforms import MapTransform, Randomizable

    return (
        isinstance(kind, type)
        and issubclass(kind, MapTransform)
        and not issubclass(kind, Randomizable)
        and TRANSFORMS.get(kind.__name__) == kind.__module__
    )


def _texts(content: Any) -> Iterator[str]:
    """All texts in nested plain data, keys too."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield from _texts([*content.keys(), *content.values()])
    elif isinstance(content, list | tuple):
        for item in content:
            yield from _texts(item)
