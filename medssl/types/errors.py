"""Errors that the user can put right."""

from __future__ import annotations

from typing import Any

ERROR_FILE = "MEDSSL_ERROR_FILE"  # environment variable: where a process writes the error that ends it


class UserError(ValueError):
    """A mistake that the user can put right; the command line prints it as one line and exits with 2.

    ``str(error)`` is ``key: message (got ...; expected ...). hint``, without the parts that are empty.

    Attributes:
        message: What is wrong, in plain words: no flag and no verb of the command line.
        key: Dotted key of the configuration that is wrong, such as "data.validation_labels"; "" where none is.
        got: The value that was given; None where there is none to show.
        expected: What a right value looks like.
        hint: What to do, as a sentence in the imperative.
    """

    def __init__(self, message: str, *, key: str = "", got: object = None, expected: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message, self.key, self.got, self.expected, self.hint = message, key, got, expected, hint

    def __str__(self) -> str:
        return self.text(self.key)

    def text(self, name: str = "") -> str:
        """The error as text.

        Args:
            name: Stands in the place of the key: the command line gives its option.
        """
        values = [f"got {self.got!r}"] if self.got is not None else []
        values += [f"expected {self.expected}"] if self.expected else []
        about = f"{name}: {self.message}" if name else self.message
        about += f" ({'; '.join(values)})" if values else ""
        return f"{about.rstrip('.')}. {self.hint}" if self.hint else about

    def changed(self, **parts: Any) -> UserError:
        """The same error with other parts: ``error.changed(key="probe.subjects", hint="...")``."""
        now: dict[str, Any] = {"key": self.key, "got": self.got, "expected": self.expected, "hint": self.hint}
        return UserError(parts.pop("message", self.message), **now | parts)
