"""Where in an expression libpcap stopped understanding it.

libpcap says "syntax error" and no more. Its parser is LALR(1): it finds a wrong word the moment it looks at it,
before the next one is read. That gives a test for every prefix of the expression. Put a word behind it that the
*scanner* refuses with a message of its own, here an address that can't be one. If the parser is content with the
prefix, it asks for the next word, and the message is the scanner's; if a word of the prefix is wrong, the parser has
stopped before, and the message is "syntax error". The shortest prefix of the second kind ends with the offending
word, and bisection finds it.

Other messages name what they are about ('unknown host "foo"'). There the name is looked for, and marked if it stands
in the expression exactly once. In all other cases nothing is marked: a wrong mark is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

# libpcap's scanner takes several of these words apart further (`0:2`), but joins none.
_TOKEN = re.compile(r"\\[^ !()\n\t]+|<<|>>|<=|>=|!=|==|&&|\|\||[()\[\]!<>=&|+*/%^]|[^ \t\r\n()\[\]!<>=&|+*/%^\\]+|\\")

# What a message says to be the matter: something in quotes, or a number that it begins with.
_NAMED = re.compile(r"""['"]([^'"]+)['"]|^(?:illegal port number|number) (\S+)""")

_BEACON = "7::5::3::1::"
_SYNTAX_ERROR = "syntax error"

_WIDTH = 100


class Span(NamedTuple):
    """From the first character to behind the last one."""

    start: int
    end: int


def tokens(expression: str) -> list[Span]:
    """The words of an expression, as far as libpcap's scanner certainly separates them."""
    return [Span(*match.span()) for match in _TOKEN.finditer(expression)]


def find(expression: str, message: str, complain: Callable[[str], str]) -> Span | None:
    """The place that `message` is about, or None where that isn't certain.

    Parameters
    ----------
    expression
        What libpcap refused.
    message
        What it said.
    complain
        What it says of another expression; empty where it's content.
    """
    words = tokens(expression)
    if _SYNTAX_ERROR in message:
        return _wrong_word(expression, words, complain)
    starts, ends = {word.start for word in words}, {word.end for word in words}
    for named in _NAMED.findall(message):
        found = [Span(*match.span()) for match in re.finditer(re.escape(named[0] or named[1]), expression)]
        found = [span for span in found if span.start in starts and span.end in ends]
        if len(found) == 1:
            return found[0]
    return None


def _wrong_word(expression: str, words: list[Span], complain: Callable[[str], str]) -> Span | None:
    def understood(count: int) -> bool:
        """Whether the parser wants more behind the first `count` words."""
        return _BEACON in complain(expression[: words[count - 1].end] + " " + _BEACON)

    if not words or _BEACON in expression:
        return None
    low, high = 0, len(words)  # understood(low) holds, as no words are no mistake; understood(high + 1) does not
    while low < high:
        middle = (low + high + 1) // 2
        if understood(middle):
            low = middle
        else:
            high = middle - 1
    if low == len(words):
        return Span(words[-1].end, words[-1].end + 1)  # the end came too early
    return words[low] if _SYNTAX_ERROR in complain(expression[: words[low].end] + " " + _BEACON) else None


def show(expression: str, span: Span | None) -> str:
    """The expression on one line, shortened where it is long, and the mark on a second."""
    # Whatever moves the cursor or has no sure width would put the mark in the wrong place.
    line = "".join(
        character if " " <= character <= "~" else " " if character.isspace() else "?" for character in expression
    )
    if span is None:
        return "    " + (line if len(line) <= _WIDTH else line[: _WIDTH - 4] + " ...")
    first = max(0, min(span.start - _WIDTH // 2, len(line) + 1 - _WIDTH))
    before = "... " if first else ""
    after = " ..." if first + _WIDTH < len(line) else ""
    width = max(1, min(span.end, first + _WIDTH) - span.start)
    indent = " " * (len(before) + span.start - first)
    return f"    {before}{line[first : first + _WIDTH]}{after}\n    {indent}{'^' * width}"
