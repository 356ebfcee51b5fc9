"""Files that look like label maps of files beside them: they are listed, and not taken as scans without a note.

Names and headers say which files are looked at, and the pixels of a few of them whether they hold classes. A word in
the path ("labelsTr", "case_seg") is one sign, a partner of the same name and size in the next folder is another.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from medssl.data.formats.base import FormatError, Reading
from medssl.data.formats.masks import value_counts
from medssl.data.formats.recognition import FORMATS, format_of
from medssl.data.index.label_sources import PathRule

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE = 4  # files of a group whose pixels are looked at
_WIDE_SAMPLE = 16  # of folders of one name
_READS = 64  # files of a data set after which no other group is looked at
_VARIANTS = 8  # more files of one name and place are subjects or time points, no image with its masks
_PAIRS = 6  # replacements that a proposal may have
_WORD = r"(?:labels?|labelmaps?|masks?|segs?|dseg|segmentations?|annot(?:ation)?s?|gts?|ground[-_ ]?truths?|manual\d?)"
_FOLDER = re.compile(rf"(?:^|[-_ ]){_WORD}(?:[-_ ]?(?:tr|ts|val|train|test|training|validation))?$", re.IGNORECASE)
_END = re.compile(rf"[-_. ]{_WORD}(?:[-_ ]?\d+)?$", re.IGNORECASE)
_START = re.compile(rf"^{_WORD}(?=[-_ ]?\d|$)", re.IGNORECASE)
_IMAGE_END = re.compile(r"(?:_0000|[-_ ](?:img|image|scan|orig|volume))$", re.IGNORECASE)
_LETTERS = re.compile(r"^[A-Za-z]+(?=[-_ ]?\d)")


@dataclass(frozen=True)
class CandidateFile:
    """A file that is a scan by itself: its path below the data set, its sizes, and what its header says."""

    path: str
    shape: tuple[int, ...]
    real: bool = False  # the header says that its values are real numbers
    intent: bool = False  # the header says that it is a label map


@dataclass
class Recognized:
    """Paths of label maps, and the replacements (with counts) that lead from images to them."""

    paths: set[str] = field(default_factory=set)
    pairs: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)  # image, mask

    def proposal(self, given: str) -> str:
        """A value of ``label.masks`` that works for the examples, or nothing; ``given`` is the present value."""
        best = [pair for pair, _ in self.pairs.most_common(_PAIRS + 1)]
        if not best or len(best) > _PAIRS or any(pair.count("=") != 1 or "," in pair for pair in best):
            return ""
        text = ",".join(dict.fromkeys([*(word for word in given.split(",") if word), *best]))
        rule = PathRule("mask", "label.masks", text)
        return text if all(mask in rule.masks_of(image) for image, mask in self.examples) else ""


def recognize(entries: Sequence[CandidateFile], root: Path) -> Recognized:
    """Find the label maps among the files of a data set.

    Args:
        entries: All files that are scans by themselves and that no rule of masks names.
        root: Folder of the data set.
    """
    recognized, pixels = Recognized(), _Pixels(root)
    for entry in entries:
        if entry.intent:
            recognized.paths.add(entry.path)
    others = [entry for entry in entries if not _word(entry.path)]
    partners = _Partners(others)
    groups: dict[str, list[CandidateFile]] = defaultdict(list)
    for entry in entries:
        if word := _word(entry.path):
            groups[word].append(entry)
    for entry in pixels.named_label_maps(groups):
        _add_label_map(recognized, entry, partners.of(entry))
    rest = [entry for entry in others if entry.path not in recognized.paths]
    for group, images in _unnamed(rest):
        if pixels.are_label_maps(group, named=False) and not pixels.are_label_maps(images[:1], named=True):
            for entry in group:
                _add_label_map(recognized, entry, [image for image in images if _beside(image.path, entry.path)])
    return recognized


def _add_label_map(recognized: Recognized, entry: CandidateFile, images: Iterable[CandidateFile]) -> None:
    recognized.paths.add(entry.path)
    for image in images:
        recognized.pairs.update(replacements(image.path, entry.path))
        if len(recognized.examples) < 2 * _VARIANTS:
            recognized.examples.append((image.path, entry.path))


def _word(path: str) -> str:
    """What in a path says "label map": its folder (with all above), or the word in its name; nothing where nothing."""
    folder, _, name = path.rpartition("/")
    if place := _word_folder(folder):
        return place
    stem = _stem(name)
    word = _END.search(stem) or _START.search(stem)
    return f"name {re.sub(r'[0-9]+', '', word.group())}" if word else ""


@lru_cache(maxsize=4096)  # files of a folder follow each other
def _word_folder(folder: str) -> str:
    """The lowest folder that says "label map", with all above it."""
    parts = folder.split("/")
    for depth in range(len(parts) - 1, -1, -1):
        if _FOLDER.search(parts[depth]):
            return "/".join(parts[: depth + 1])
    return ""


def _stem(name: str) -> str:
    name = name[:-3] if name.lower().endswith(".gz") else name
    return name.rsplit(".", 1)[0]


def _names(stem: str) -> list[str]:
    """What may be left of a file's name without the words that tell images and masks apart."""
    bare = _END.sub("", _IMAGE_END.sub("", stem))
    bare = _START.sub("", bare) or bare
    return list(dict.fromkeys([stem, bare, _LETTERS.sub("", bare).strip("-_ ")]))


class _Partners:
    """Finds the images that a label map may belong to: same size, same name, same folder or the next."""

    def __init__(self, images: Sequence[CandidateFile]) -> None:
        self.images = images
        self.by_key: dict[tuple[object, ...], list[CandidateFile]] = defaultdict(list)
        self.made: set[int] = set()

    def of(self, entry: CandidateFile) -> list[CandidateFile]:
        """The images of a label map; none where nothing fits."""
        parts = PurePosixPath(entry.path).parts
        depths = [n for n in range(len(parts) - 1) if _FOLDER.search(parts[n])]
        for depth in [*reversed(depths), len(parts)]:  # the label folder replaced; then its own folder
            if depth not in self.made:
                self._make(depth)
            for name in _names(_stem(parts[-1])):
                key = (parts[:depth], parts[depth + 1 : -1], name) if depth < len(parts) else (parts[:-1], name)
                same = [one for one in self.by_key.get(key, ()) if sorted(one.shape) == sorted(entry.shape)]
                if same and name:
                    return same[:_VARIANTS]
        return []

    def _make(self, depth: int) -> None:
        self.made.add(depth)
        for one in self.images:
            parts = PurePosixPath(one.path).parts
            names = _names(_stem(parts[-1]))
            if depth == len(parts):
                names += [
                    names[-1].rsplit(sign, 1)[0] for sign in "-_ " if sign in names[-1]
                ]  # case_flair and case_seg
            for name in dict.fromkeys(names):
                if depth < len(parts) - 1:
                    self.by_key[parts[:depth], parts[depth + 1 : -1], name].append(one)
                elif depth == len(parts):
                    self.by_key[parts[:-1], name].append(one)


def _unnamed(entries: Sequence[CandidateFile]) -> list[tuple[list[CandidateFile], list[CandidateFile]]]:
    """Groups of files of whole numbers, each with the files of the same name and size beside them."""
    places: dict[tuple[str, ...], list[tuple[str, CandidateFile]]] = defaultdict(list)
    for entry in entries:
        *folders, name = entry.path.split("/")
        stem = _stem(name)
        for depth in range(max(0, len(folders) - 2), len(folders)):
            others = "/".join((*folders[:depth], "*", *folders[depth + 1 :]))
            places[(others, stem)].append((folders[depth], entry))
        base, _, end = stem.rpartition("_")
        for key, variant in ((stem, ""), (base, end)):
            if key and not variant.isdigit():
                places[("/".join(folders), key, "name")].append((variant, entry))
    groups: dict[tuple[str, str], tuple[list[CandidateFile], list[CandidateFile]]] = defaultdict(lambda: ([], []))
    for place, members in places.items():
        if not 2 <= len(members) <= _VARIANTS:
            continue
        for variant, entry in members:
            beside = [other for _, other in members if other is not entry and len(other.shape) == len(entry.shape)]
            beside = [other for other in beside if sorted(other.shape) == sorted(entry.shape)]
            if beside and not entry.real:
                group = groups[(place[0] if len(place) == 2 else "name", variant)]
                group[0].append(entry)
                group[1].extend(beside)
    return list(groups.values())


def _beside(image: str, mask: str) -> bool:
    """Whether two paths differ in one folder alone, or in the end of the name alone."""
    a, b = PurePosixPath(image).parts, PurePosixPath(mask).parts
    if len(a) != len(b) or sum(x != y for x, y in zip(a, b, strict=True)) != 1:
        return _stem(a[-1]) == _stem(b[-1]) and len(a) == len(b)
    one, other = sorted((_stem(a[-1]), _stem(b[-1])), key=len)
    return a[-1] == b[-1] or other.startswith(f"{one}_") or one.rpartition("_")[0] == other.rpartition("_")[0] != ""


class _Pixels:
    """Looks at the pixels of a few files of a group."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reads = 0

    def named_label_maps(self, groups: Mapping[str, Sequence[CandidateFile]]) -> list[CandidateFile]:
        """The label maps among files that a word tells.

        Args:
            groups: Files by what tells them: a word, or a folder with all above it ("sub-07/seg"). Folders of one name
                are judged together, since each subject may have its own; one by one where they differ.
        """
        alike: dict[str, list[Sequence[CandidateFile]]] = defaultdict(list)
        for word in sorted(groups):
            alike[word.rpartition("/")[2].casefold()].append(groups[word])
        label_maps: list[CandidateFile] = []
        for some in alike.values():
            together = [entry for group in some for entry in group]
            if len(some) > 1 and self.are_label_maps(together, named=True, sample=_WIDE_SAMPLE):
                label_maps += together
            else:
                label_maps += [entry for group in some if self.are_label_maps(group, named=True) for entry in group]
        return label_maps

    def are_label_maps(self, group: Sequence[CandidateFile], *, named: bool, sample: int = SAMPLE) -> bool:
        """Whether all files that are looked at hold few whole numbers, and one of them more than a constant.

        Where too many files were read already, files with such a word are taken as label maps without reading: they
        are listed then, while label maps that are taken as scans are not.
        """
        if self.reads >= _READS:
            return named
        step = max(1, len(group) // sample)
        ordered = sorted(group, key=lambda entry: entry.path)
        classes = 0
        for entry in ordered[::step][:sample]:
            array = self._read(entry)
            if array is None or not holds_classes(array, named=named):
                return False
            classes = max(classes, len(np.unique(array)))
        return classes > 1 or (named and classes == 1 and len(group) > 1)

    def _read(self, entry: CandidateFile) -> NDArray[np.generic] | None:
        self.reads += 1
        file = self.root / entry.path
        try:
            form, problem = format_of(file)
            if problem or form not in FORMATS:
                return None
            array: NDArray[np.generic] = FORMATS[form].read_pixels(file, None, Reading(label=True))[0]
        except (FormatError, OSError):
            return None
        return array


def holds_classes(array: NDArray[np.generic], *, named: bool) -> bool:
    """Whether an array [C, *s] holds few whole numbers, few colors, or values that lie near 0 and 255 alone."""
    picture = array.ndim == 3
    if len(array) > 1:
        if not picture or len(array) not in (3, 4) or array.dtype.kind not in "iu":
            return False
        values = array[:3].astype(np.int64)
        array = (values[0] * 2**32 + values[1] * 2**16 + values[2])[None] if (values != values[:1]).any() else array[:1]
        if array.dtype == np.int64:
            return len(np.unique(array)) <= 32
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or not np.array_equal(np.rint(array), array):
            return False
        array = array.astype(np.float64)
    if array.dtype.kind not in "iufb" or not array.size:
        return False
    counts = value_counts(array.astype(np.uint8) if array.dtype.kind == "b" else array)
    if len(counts) <= min(256 if named and not picture else 32, max(4, array.size // 20)):
        return True
    near = sum(count for value, count in counts.items() if value <= 24 or value >= 231)
    return picture and min(counts) >= 0 and max(counts) <= 255 and near >= 0.97 * array.size and min(counts) < 24


def replacements(image: str, mask: str) -> list[str]:
    """The TEXT=TEXT that lead from the path of an image to that of its mask: folders, then the name's end or start."""
    a, b = PurePosixPath(image).parts, PurePosixPath(mask).parts
    if len(a) != len(b):
        return []
    pairs = [f"{one}={other}" for one, other in zip(a[:-1], b[:-1], strict=True) if one != other]
    if a[-1] == b[-1]:
        return pairs
    one, other = a[-1], b[-1]
    same = next((n for n, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    while same and one[same - 1].isalnum() and (one[same : same + 1].isalnum() or other[same : same + 1].isalnum()):
        same -= 1  # back to the last sign between words
    same -= bool(same) and one[same - 1] in "-_."
    if same:
        return [*pairs, f"{one[same:]}={other[same:]}"]
    end = next((n for n, (x, y) in enumerate(zip(one[::-1], other[::-1], strict=False)) if x != y), 0)
    while end and (one[-end - 1 : -end].isalpha() or other[-end - 1 : -end].isalpha()) and one[-end].isalpha():
        end -= 1
    return [*pairs, f"{one[: len(one) - end]}={other[: len(other) - end]}"] if end else [*pairs, f"{one}={other}"]
