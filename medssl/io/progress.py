"""A progress bar that counts files and bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]  # what is done, number of files, their bytes


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Counts files and their bytes with a rate; nobody knows beforehand how many there are.

    In the log of a batch job the first line comes after ten seconds.
    """
    from tqdm.auto import tqdm

    total = 0
    delay = 0 if sys.stderr.isatty() else 10
    with tqdm(unit=" files", dynamic_ncols=True, delay=delay) as bar:

        def tell(what: str, count: int, size: int) -> None:
            nonlocal total
            total += size
            seconds = max(bar.format_dict["elapsed"], 1e-3)
            bar.set_description_str(what, refresh=False)
            shown = f"{bar.format_sizeof(total, 'B')} of files, {bar.format_sizeof(total / seconds, 'B')}/s"
            bar.set_postfix_str(shown if total else "", refresh=False)
            bar.update(count)

        yield tell
