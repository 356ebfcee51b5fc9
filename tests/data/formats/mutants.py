"""Files with random damage: each must be read, or refused with one line that a user understands."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from medssl.data.formats.base import FormatError

_JARGON = re.compile(r"Traceback|object at 0x|NoneType|dtype\(|<class|not subscriptable|positional argument|_Layout")


def mutant(content: bytes, generator: random.Random, header: int) -> bytes:
    """``content`` with some bytes of its header changed, or a piece cut out, doubled or cut off."""
    data = bytearray(content)
    kind = generator.randrange(6)
    first = generator.randrange(min(header, len(data)))
    if kind == 0:
        return bytes(data[: generator.randrange(len(data))])
    if kind == 1:
        del data[first : first + generator.randrange(1, 20)]
    elif kind == 2:
        data[first:first] = data[first : first + generator.randrange(1, 20)]
    elif kind == 3:
        data[first : first + 4] = generator.choice(
            [b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\0\0\x80\x7f", b"9999"]
        )
    else:
        for _ in range(generator.choice([1, 1, 2, 8])):
            data[generator.randrange(min(header, len(data)))] = generator.randrange(256)
    return bytes(data)


def check_mutants(contents: Sequence[bytes], read: Callable[[bytes], None], count: int, header: int = 560) -> None:
    """Read ``count`` damaged files; only ``FormatError`` and ``OSError`` may leave ``read``, each in one clear line."""
    generator = random.Random(14)
    refused = []
    for number in range(count):
        data = mutant(contents[number % len(contents)], generator, header)
        try:
            read(data)
        except (FormatError, OSError) as error:
            refused.append(str(error))
    assert [line for line in refused if "\n" in line or len(line) > 400 or _JARGON.search(line)] == []
    assert len(refused) > count // 20
