"""What goes wrong and the user can put right."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right: the command line prints it as one line and exits with 2."""
