"""Range checks of settings, with one wording for all of them."""

from __future__ import annotations

from medssl.types import UserError


def expect(holds: bool, name: str, value: object, expected: str) -> None:
    """Refuses a setting that is out of range.

    >>> expect(0.1 > 0, "temperature", 0.1, "above 0")

    Args:
        holds: Whether the setting is in range.
        name: Name of the setting.
        value: Its value.
        expected: The range, such as "above 0".

    Raises:
        UserError: Names the setting, the range and the value.
    """
    if not holds:
        message = f"must be {expected}"
        raise UserError(message, key=name, got=value)
