"""JSON that is checked while it comes."""

from __future__ import annotations

import re
from enum import Enum, auto

MAX_DEPTH = 100

_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_BEGUN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_WORD_RUN = re.compile(r"[-+.0-9A-Za-z]+")
_WORD = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_SPACE_RUN = re.compile(r"[ \t\n\r]+")
_CLOSING = {"{": "}", "[": "]"}


class State(Enum):
    """What may come next."""

    VALUE = auto()
    FIRST_ITEM = auto()  # a value, or the end of the list
    FIRST_KEY = auto()  # a key, or the end of the object
    KEY = auto()
    COLON = auto()
    NEXT = auto()  # a comma, or the end of list or object
    DONE = auto()
    WRONG = auto()


class JsonScanner:
    """Follows one JSON value (RFC 8259) through text that comes in pieces.

    Two faults that models make are mended: control characters inside a string are escaped, and
    Python's True, False and None become JSON's words.
    """

    def __init__(self) -> None:
        self.state = State.VALUE
        self._closing: list[str] = []  # the brackets that are due, innermost last
        self._in_string = False

    def scan(self, text: str, at: int) -> tuple[int, str]:
        """Read on from `at`; returns how far, and the JSON up to there.

        It ends before what is not whole yet: call again with more text, from there. It also
        ends with the value (`State.DONE`), and before the first character that cannot belong
        to it (`State.WRONG`).
        """
        written: list[str] = []
        while at < len(text) and self.state not in (State.DONE, State.WRONG):
            end, piece = (self._string if self._in_string else self._token)(text, at)
            if end == at and not piece and self.state not in (State.DONE, State.WRONG):
                break
            at = end
            written.append(piece)
        return at, "".join(written)

    def _string(self, text: str, at: int) -> tuple[int, str]:
        if run := _STRING_RUN.match(text, at):
            return run.end(), run[0]
        if text[at] == '"':
            self._in_string = False
            self._value_ended()
            return at + 1, '"'
        if text[at] != "\\":
            return at + 1, f"\\u{ord(text[at]):04x}" if text[at] != "\n" else "\\n"
        if escape := _ESCAPE.match(text, at):
            return escape.end(), escape[0]
        if not _BEGUN_ESCAPE.fullmatch(text, at):
            self.state = State.WRONG
        return at, ""

    def _token(self, text: str, at: int) -> tuple[int, str]:
        if space := _SPACE_RUN.match(text, at):
            return space.end(), space[0]
        char = text[at]
        state = self.state
        if self._closing and char == self._closing[-1] and state in _MAY_CLOSE[char]:
            self._closing.pop()
            self.state = State.NEXT if self._closing else State.DONE
        elif char == "," and state is State.NEXT:
            self.state = State.KEY if self._closing[-1] == "}" else State.VALUE
        elif char == ":" and state is State.COLON:
            self.state = State.VALUE
        elif char == '"' and state in (State.KEY, State.FIRST_KEY):
            self._in_string, self.state = True, State.KEY
        elif state not in (State.VALUE, State.FIRST_ITEM):
            self.state = State.WRONG
            return at, ""
        elif char == '"':
            self._in_string, self.state = True, State.VALUE
        elif char in _CLOSING and len(self._closing) < MAX_DEPTH:
            self._closing.append(_CLOSING[char])
            self.state = State.FIRST_KEY if char == "{" else State.FIRST_ITEM
        else:
            return self._word(text, at)
        return at + 1, char

    def _word(self, text: str, at: int) -> tuple[int, str]:
        run = _WORD_RUN.match(text, at)
        if run and run.end() == len(text):
            return at, ""  # it may go on
        word = _PYTHON_WORDS.get(run[0], run[0]) if run else ""
        if not run or not _WORD.fullmatch(word):
            self.state = State.WRONG
            return at, ""
        self._value_ended()
        return run.end(), word

    def _value_ended(self) -> None:
        if self.state is State.KEY:
            self.state = State.COLON
        else:
            self.state = State.NEXT if self._closing else State.DONE


_MAY_CLOSE = {
    "}": (State.FIRST_KEY, State.NEXT),
    "]": (State.FIRST_ITEM, State.NEXT),
}
