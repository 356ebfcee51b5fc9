"""Films: files with frames without positions (ultrasound, XA, endoscopy, planar nuclear medicine)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from medssl.data.formats.base import picture_grid
from medssl.data.formats.dicom.slices import Slice, Stack
from medssl.types import Status

MAX_CHANNELS = 8


def stacks_of_films(
    films: Sequence[Slice], option: str, damaged: Mapping[str, str], same_frame: Callable[[Slice, Slice], bool]
) -> list[Stack]:
    """Images of films, by the key ``files.frames``.

    Args:
        films: All films of a series.
        option: "refuse", "scans" or "channels".
        damaged: Reason of the damage, by path of files with damaged pixels.
        same_frame: Whether two frames have equal pixels; called only for files with the same identifier.
    """
    unique: list[Slice] = []
    copies: dict[str, list[str]] = {}
    for film in sorted(films, key=lambda film: (film.slice_attributes["number"], film.path)):
        first = next((earlier for earlier in unique if _is_copy(earlier, film, same_frame)), None)
        if first is None:
            unique.append(film)
        else:
            copies.setdefault(first.path, []).append(film.file_name)
    stacks = []
    repeats: dict[str, int] = {}
    for film in unique:
        number = repeats[film.instance] = repeats.get(film.instance, -1) + 1
        name = f"{film.instance}.{number}" if number else film.instance
        dropped = copies.get(film.path, [])
        note = f"{len(dropped)} copies dropped: {', '.join(dropped[:5])}" if dropped else ""
        stacks += _stacks(film, option, name, damaged.get(film.path, ""), note)
    return stacks


def _is_copy(film: Slice, earlier: Slice, same_frame: Callable[[Slice, Slice], bool]) -> bool:
    """Whether two files are copies of one film."""
    same_header = (film.instance, film.shape, film.slice_attributes, film.facts) == (
        earlier.instance,
        earlier.shape,
        earlier.slice_attributes,
        earlier.facts,
    )
    frames = range(film.slice_attributes["frames"])
    return same_header and all(same_frame(replace(film, frame=n), replace(earlier, frame=n)) for n in frames)


def _stacks(film: Slice, option: str, name: str, damage: str, note: str) -> list[Stack]:
    """The images of one film, or the reason why there are none."""
    count = int(film.slice_attributes["frames"])
    time = f", {film.slice_attributes['frame_ms']:g} ms apart" if "frame_ms" in film.slice_attributes else ""
    if damage:
        return [Stack((film,), Status("failed", damage), name)]
    if option == "refuse" or (option == "channels" and count > MAX_CHANNELS):
        reason = (
            f"film: {count} frames without positions{time}; files.frames scans takes each as an image, "
            f"files.frames channels up to {MAX_CHANNELS} of them as the channels of one image"
        )
        return [Stack((film,), Status("rejected", reason), name)]
    grid = picture_grid(film.shape[0], film.shape[1], film.spacing_mm or (1.0, 1.0))
    frames = [replace(film, frame=number) for number in range(count)]
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
