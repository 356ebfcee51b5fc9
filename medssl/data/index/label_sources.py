"""Rules that say where a scan's mask, values and split are."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from medssl.data.split import parse_shares
from medssl.io.csv_text import is_formula
from medssl.types import LabelSchema, UserError

_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_FOLDERS |= {"test": "test", "testing": "test"}
NOUNS = {"mask": "label", "excluded": "mask of excluded voxels"}
NONE = "none"  # in place of a pair: files that look like label maps are scans
MOST_PATHS = 64  # that a rule of many pairs may lead to
EXAMPLES = {"mask": "labels", "excluded": "excluded"}


@dataclass(frozen=True)
class PathRule:
    """Leads from an image's path to that of a mask of its own, and back (paths below the data set).

    Attributes:
        role: What the mask is: "mask" (of classes) or "excluded".
        option: Key of the rule.
        text: The rule: TEXT=TEXT, several with commas.
    """

    role: Literal["mask", "excluded"]
    option: str
    text: str

    @property
    def noun(self) -> str:
        """What messages call such a mask."""
        return NOUNS[self.role]

    def pairs(self) -> list[tuple[str, str]]:
        """The replacements, in order.

        Raises:
            UserError: A side is missing, or both are the same.
        """
        words = (pair for pair in self.text.split(",") if pair and pair.strip().lower() != NONE)
        pairs = [(left, right) for left, _, right in (pair.partition("=") for pair in words)]
        if any(not left or not right or left == right for left, right in pairs):
            expected = f"TEXT=TEXT, as in images={EXAMPLES[self.role]}"
            message = "a replacement lacks a side, or changes nothing"
            raise UserError(message, key=self.option, got=self.text, expected=expected)
        return pairs

    def masks_of(self, path: str) -> list[str]:
        """Paths that the mask of the image at ``path`` may have, likeliest first; none where the rule does not fit.

        Pairs apply where their left side occurs. Whole folder names come before other text. Of the pairs without a dot
        at least one must occur (they are alternatives); one with a dot (an ending) may be left out.
        """
        return _replaced(path, self.pairs(), all_optional=False)

    def images_of(self, path: str) -> list[str]:
        """Paths that the image of the mask at ``path`` may have; none where it cannot be a mask."""
        turned = [(right, left) for left, right in reversed(self.pairs())]
        return _replaced(path, turned, all_optional=True)

    def names_image(self, path: str) -> bool:
        """Whether a folder of ``path`` is the left side of a pair: such a file is an image, never a lost mask."""
        folders = PurePosixPath(path).parts[:-1]
        return any(left.strip("/") in folders for left, _ in self.pairs())


def _replaced(path: str, pairs: Sequence[tuple[str, str]], *, all_optional: bool) -> list[str]:
    """Every path that the pairs lead to, those with most replacements first."""
    needed = any("." not in left for left, _ in pairs)
    states: dict[tuple[str, bool], int] = {(path, not needed): 0}  # path, whether a needed pair was applied -> how many
    for left, right in pairs:
        after: dict[tuple[str, bool], int] = {}
        for (text, met), count in states.items():
            for changed in _variants(text, left, right):
                after.setdefault((changed, met or "." not in left), count + 1)
            if left not in text or all_optional or "." in left:
                after.setdefault((text, met), count)
        states = dict(list(after.items())[:MOST_PATHS])
    ordered = sorted((item for item in states.items() if item[0][1] and item[1]), key=lambda item: -item[1])
    return [text for text in dict.fromkeys(text for (text, _), _ in ordered) if text != path]


def _variants(path: str, left: str, right: str) -> list[str]:
    """``left`` replaced where it is whole folders (all of them, the last), then wherever it stands."""
    folders, old, new = path.split("/"), left.strip("/").split("/"), right.strip("/").split("/")
    size = len(old)
    places = [n for n in range(len(folders) - size + 1) if folders[n : n + size] == old]
    variants = []
    for chosen in (places, places[-1:]) if places else ():
        parts = list(folders)
        for place in reversed(chosen):
            parts[place : place + size] = new
        variants.append("/".join(parts))
    return list(dict.fromkeys([*variants, *([path.replace(left, right)] if left in path else [])]))


@dataclass(frozen=True)
class MaskOptions:
    """Which files are masks of which images.

    Attributes:
        masks: Replacements that turn the path of an image into the path of its mask: TEXT=TEXT, several with commas,
            such as "images=labels" or "imagesTr=labelsTr,_0000.nii.gz=.nii.gz". A pair applies where its left side
            occurs. "none" takes files that look like label maps as scans.
        excluded: The same for masks of voxels to leave out of the loss (defaced, burned-in text). All voxels that are
            not 0 are left out.
        grid: "check" refuses a mask on another grid than its image; "trust" accepts masks of the same shape.
        threshold: Turn values of at least this into class 1 and all others into class 0, for JPEG masks and
            probabilities.
        objects: Take DICOM segmentations and structure sets in the folders as masks of the scans that they refer to.
            Segments are matched by the names in ``class_names``.
        other_segments: Segments without a class: "refuse" the scan, or take them as "background".
    """

    masks: str = ""
    excluded: str = ""
    grid: Literal["check", "trust"] = "check"
    threshold: float | None = None
    objects: bool = False
    other_segments: Literal["refuse", "background"] = "refuse"

    @property
    def all_scans(self) -> bool:
        """Whether files that look like label maps are taken as scans."""
        return NONE in (word.strip().lower() for word in self.masks.split(","))

    def rules(self, also: Iterable[str] = ()) -> tuple[PathRule, ...]:
        """The rules that were given, and those of the roles in ``also``, each with its role."""
        given: tuple[PathRule, ...] = (
            PathRule("mask", "label.masks", self.masks),
            PathRule("excluded", "label.excluded", self.excluded),
        )
        return tuple(rule for rule in given if rule.role in also or rule.pairs())


@dataclass(frozen=True)
class SlideOptions:
    """What a table says about whole slides; its rows are found by ``label.key``.

    Attributes:
        mpp: Column of ``label.values`` with the size of a pixel in micrometers, which goes before what the file says.
            Empty takes the column "mpp" if the table has one.
        stain: Column of ``label.values`` with the stain. Empty takes the column "stain" if the table has one.
    """

    mpp: str = ""
    stain: str = ""


@dataclass(frozen=True)
class LabelOptions(MaskOptions):
    """Where the labels of a data set are.

    Attributes:
        classes: "folder" takes the name of the folder that holds a file as its value "class".
        values: Table with a header row, CSV or with tabs (.tsv), that holds values of scans or subjects.
        key: Column of the table that names the scan (file name with or without ending, or path) or the subject.
        columns: Columns of the table to keep, with commas. No other column enters the index.
        class_names: Values of the mask and their names, such as "0=background,1=tumor".
        ignore: Value of the mask to leave out of the loss.
        split: Shares of subjects, such as "train=0.8,val=0.1,test=0.1"; "folder" (folders named train, val, test); or
            "column:NAME" of the table.
    """

    classes: Literal["", "folder"] = ""
    values: str = ""
    key: str = ""
    columns: str = ""
    class_names: str = ""
    ignore: int | None = None
    split: str = "train=0.8,val=0.1,test=0.1"

    def __post_init__(self) -> None:
        self.rules()
        self.schema()
        if self.split != "folder" and not self.split.startswith("column:"):
            parse_shares(self.split)

    def schema(self) -> LabelSchema | None:
        """The class map of the masks, or None where no names were given."""
        if not self.class_names:
            return None
        named = [pair for pair in sorted(self.named_values()) if pair[0] != self.ignore]  # "ignore" is nothing to learn
        return LabelSchema("mask", tuple(named), self.ignore)

    def named_values(self) -> list[tuple[int, str]]:
        """All values that have a name, that of ``ignore``, too."""
        classes = []
        for pair in self.class_names.split(",") if self.class_names else ():
            value, separator, name = pair.partition("=")
            if not separator or not name.strip() or not value.strip().lstrip("-").isdigit():
                message, expected = "no class with its value", "VALUE=NAME, as in 0=background,1=tumor"
                raise UserError(message, key="label.class_names", got=pair, expected=expected)
            refuse_formula(name.strip(), "label.class_names")
            classes.append((int(value), name.strip()))
        if len({value for value, _ in classes}) < len(classes):
            message = "two classes have the same value"
            raise UserError(message, key="label.class_names", got=self.class_names, hint="Remove one of them")
        return classes


def refuse_without_effect(labels: LabelOptions, *, laid_out: bool) -> None:
    """Refuses options that mean nothing without another one, so that nobody trusts in them.

    Args:
        labels: As the user and the layout give them.
        laid_out: A layout names masks that no option does.

    Raises:
        UserError: Names the option and what it needs.
    """
    masks = bool(labels.masks or labels.excluded or labels.objects) or laid_out
    needs = (
        (labels.ignore is not None and not labels.class_names, "ignore", "label.class_names 0=background,1=tumor"),
        (bool(labels.key) and not labels.values, "key", "label.values FILE.csv"),
        (bool(labels.columns) and not labels.values, "columns", "label.values FILE.csv"),
        (labels.threshold is not None and not masks, "threshold", "label.masks TEXT=TEXT"),
        (labels.grid == "trust" and not masks, "grid", "label.masks TEXT=TEXT"),
        (labels.other_segments != "refuse" and not labels.objects, "other_segments", "label.objects true"),
    )
    for idle, name, missing in needs:
        if idle:
            message = f"has no effect without {missing}"
            raise UserError(message, key=f"label.{name}", hint="Give both, or leave it out")


def refuse_formula(name: str, key: str, place: str = "") -> None:
    """Refuses a name that a spreadsheet would run as a formula when it opens a table of scores or predictions.

    Args:
        name: Of a class, a column or a folder.
        key: Option that leads to it.
        place: Where it is; "" where the option itself holds it.

    Raises:
        UserError: The name begins like a formula.
    """
    if is_formula(name):
        message = f"{place}: " if place else ""
        message += f"{name!r} begins with {name[0]!r}, which spreadsheets take for a formula"
        raise UserError(message, key=key, hint="Rename it")


@dataclass
class Table:
    """A CSV table of values by scan or by subject; counts which rows were used."""

    rows: dict[str, dict[str, str]]
    columns: tuple[str, ...]
    used: set[str] = field(default_factory=set)

    def row(self, names: Sequence[str]) -> Mapping[str, str]:
        """The first row that one of ``names`` points to; empty where there is none."""
        for name in names:
            if name in self.rows:
                self.used.add(name)
                return self.rows[name]
        return {}

    @property
    def unused(self) -> int:
        """Number of rows that belong to no scan."""
        return len(self.rows) - len(self.used)


def read_table(options: LabelOptions, *, also: Sequence[str] = ()) -> Table:
    """Read the table of values.

    Args:
        options: Names the file, its key and the columns to keep.
        also: Columns that another rule needs (subject, split).

    Raises:
        UserError: No such file or column, no column chosen, a value that is a formula, or a key that stands twice with
            different values.
    """
    if not options.values:
        if also:
            message = f"column:{also[0]} needs a table of values"
            raise UserError(message, key="label.values", hint="Give label.values FILE.csv and label.key COLUMN")
        return Table({}, ())
    file = Path(options.values).expanduser()
    keep = tuple(name.strip() for name in options.columns.split(",") if name.strip())
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            names = list(reader.fieldnames or ())
            for name in (options.key, *keep, *also):
                if name not in names:
                    message = f"{file.name} has no column {name!r}; its columns are {', '.join(names) or 'none'}"
                    raise UserError(message, key="label.values")
            if not keep and not also:
                message = f"no column of {file.name} is chosen"
                raise UserError(message, key="label.columns", expected=f"some of {', '.join(names)}")
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"{file.name} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UserError(message, key="label.values") from error
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        key = (line[options.key] or "").strip()
        row = {name: (line[name] or "").strip() for name in dict.fromkeys((*keep, *also))}
        for name in keep:
            refuse_formula(row[name], "label.columns", f"{file.name}, column {name!r}")
        if rows.setdefault(key, row) != row:
            same = [name for name in keep if rows[key][name] == row[name]]
            message = (
                f"{file.name} has two rows of {options.key} {key!r} with different values (equal columns: "
                f"{', '.join(same) or 'none'})"
            )
            raise UserError(message, key="label.values", hint="Remove one")
    rows.pop("", None)
    return Table(rows, keep)


def names_of(path: str) -> list[str]:
    """How a table may call the scan at ``path``: by path, by file name, or without its ending."""
    name = PurePosixPath(path).name
    stem = (
        name[: -len("".join(PurePosixPath(name).suffixes[-2:]))] if name.endswith(".gz") else PurePosixPath(name).stem
    )
    return [path, name, stem]


def folder_split(path: str) -> str:
    """Split that a folder of the path is named after, or nothing."""
    for folder in PurePosixPath(path).parts[:-1]:
        if folder.lower() in _FOLDERS:
            return _FOLDERS[folder.lower()]
    return ""
