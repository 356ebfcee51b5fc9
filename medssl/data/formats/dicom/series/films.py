"""Films: frames of one file without positions (ultrasound, XA, endoscopy, planar nuclear medicine)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from medssl.data.formats.base import picture_grid
from medssl.data.formats.dicom.slices import Slice, Stack
from medssl.types import Status

MOST_CHANNELS = 8


def stacks_of_films(
    films: Sequence[Slice], option: str, damaged: Mapping[str, str], same_frame: Callable[[Slice, Slice], bool]
) -> list[Stack]:
    """Images of films, as ``--files.frames`` says.

    Args:
        films: All films of a series.
        option: "refuse", "scans" or "channels".
        damaged: File whose pixels are damaged -> why.
        same_frame: Whether two frames hold equal pixels; asked only for files of one identifier.
    """
    unique: list[Slice] = []
    copies: dict[str, list[str]] = {}
    for one in sorted(films, key=lambda film: (film.turn["number"], film.path)):
        first = next((other for other in unique if _same(other, one, same_frame)), None)
        if first is None:
            unique.append(one)
        else:
            copies.setdefault(first.path, []).append(one.file_name)
    stacks = []
    met: dict[str, int] = {}
    for one in unique:
        number = met[one.instance] = met.get(one.instance, -1) + 1
        name = f"{one.instance}.{number}" if number else one.instance
        dropped = copies.get(one.path, [])
        note = f"{len(dropped)} copies dropped: {', '.join(dropped[:5])}" if dropped else ""
        stacks += _stacks(one, option, name, damaged.get(one.path, ""), note)
    return stacks


def _same(one: Slice, other: Slice, same_frame: Callable[[Slice, Slice], bool]) -> bool:
    """Whether two files are copies of one film."""
    alike = (one.instance, one.shape, one.turn, one.about) == (other.instance, other.shape, other.turn, other.about)
    frames = range(one.turn["frames"])
    return alike and all(same_frame(replace(one, frame=n), replace(other, frame=n)) for n in frames)


def _stacks(one: Slice, option: str, name: str, damage: str, note: str) -> list[Stack]:
    """The images of one film, or why there are none."""
    count = int(one.turn["frames"])
    time = f", {one.turn['frame_ms']:g} ms apart" if "frame_ms" in one.turn else ""
    if damage:
        return [Stack((one,), Status("failed", damage), name)]
    if option == "refuse" or (option == "channels" and count > MOST_CHANNELS):
        reason = (
            f"film: {count} frames without positions{time}; --files.frames scans takes each as an image, "
            f"--files.frames channels up to {MOST_CHANNELS} of them as the channels of one image"
        )
        return [Stack((one,), Status("rejected", reason), name)]
    grid = picture_grid(one.shape[0], one.shape[1], one.spacing_mm or (1.0, 1.0))
    frames = [replace(one, frame=number) for number in range(count)]
    end = f"; {note}" if note else ""
    if option == "channels":
        return [Stack(tuple(frames), Status("ok", f"film: {count} frames{time} as channels{end}"), name, grid)]
    return [
        Stack(
            (frame,),
            Status("ok", f"film: frame {number + 1} of {count}{time}{end}"),
            f"{name}.frame{number}",
            grid,
            (number + 1, count),
        )
        for number, frame in enumerate(frames)
    ]
