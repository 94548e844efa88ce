"""The errors a user can meet, each with the exit code the command line gives it."""

from __future__ import annotations


class RewriterError(Exception):
    """An error whose message is one clear sentence for the user: what, where, what to do."""

    exit_code = 4


class BadInput(RewriterError):
    """The input file, option or combination of options cannot be used (exit code 2)."""

    exit_code = 2


class Different(RewriterError):
    """The rewritten model does not compute what the original computes; nothing was written (exit code 1)."""

    exit_code = 1


class NotVerified(RewriterError):
    """Equivalence could neither be shown nor refuted; nothing was written (exit code 3)."""

    exit_code = 3
