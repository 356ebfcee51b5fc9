"""Settings that are out of range are refused where they enter, all in the same words."""

from __future__ import annotations

from medssl.types import UserError


def expect(holds: bool, name: str, value: object, expected: str) -> None:
    """Refuses a setting that does not keep to its range.

    >>> expect(0.1 > 0, "temperature", 0.1, "above 0")

    Raises:
        UserError: Says what was expected, and what it is.
    """
    if not holds:
        message = f"{name} must be {expected}, got {value}"
        raise UserError(message)
