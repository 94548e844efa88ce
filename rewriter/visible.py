"""Text that shows what it holds: tensor names may hold escape sequences, line breaks, or turn the reading direction."""

from __future__ import annotations


def visible(text: str) -> str:
    r"""One line in which every character that does not print as itself is escaped: `\n`, `\x1b`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def visible_lines(text: str) -> list[str]:
    """The lines of a text that has line breaks of its own, each visible."""
    return [visible(line) for line in text.removesuffix("\n").split("\n")]
