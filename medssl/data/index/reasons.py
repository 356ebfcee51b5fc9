"""Why a scan was left out, without a name: what leaves the institution says the kind of a reason alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

CUT = re.compile(r"[:;(\"'`=\[<{]")  # behind these stands what a file is called or holds
DRIVE = re.compile(r"\b[A-Za-z]:[\\/]\S*")
PLACE = re.compile(r"\S*[/\\]\S*|\S*\.[A-Za-z]\S*|\S*\d{3,}\S*")  # paths, names with endings, numbers of patients


def kind_of_reason(reason: str, paths: Iterable[str] = ()) -> str:
    """The beginning of a reason, which says its kind, without any name of a file or folder.

    >>> kind_of_reason("mask shape differs: sub-07.nii.gz has 3x3, its image 4x4")
    'mask shape differs'
    >>> kind_of_reason("sub-07/scan.nii.gz cannot be opened (Permission denied)")
    'a file cannot be opened'

    Args:
        reason: As the index keeps it.
        paths: Of the scan's files, whose names may stand in the reason.
    """
    text = PLACE.sub("a file", CUT.split(DRIVE.sub("a file", reason), maxsplit=1)[0])
    for name in sorted({part for path in paths for part in _names(path)}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "a file", text)
    return " ".join(text.split())


def _names(path: str) -> Iterable[str]:
    """Names of a file, with and without endings, and of its folders."""
    parts = path.replace("\\", "/").split("/")
    stems = [part.split(".")[0] for part in parts[-1:]]
    return [part for part in (*parts, *stems) if len(part) > 1 and part != ".."]
