"""The error of a store whose disk is full."""

from medssl.types import UserError


class DiskFull(UserError):
    """No room for another file in the store."""

    def __init__(self, message: str = "the store's disk is full: make room and run the same command again") -> None:
        super().__init__(message)
