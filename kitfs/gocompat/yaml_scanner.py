r"""Scan YAML as yaml.v3's scannerc.go (v3.0.1) does, with a changed loader of PyYAML and limits on its nodes.

scannerc.go and PyYAML's scanner are both ports of libyaml. PyYAML's scanner differs in four ways: it forbids tabs
between tokens and inside plain scalars, ends a flow scalar at ``:]``, accepts the escape ``\/`` but not ``\'``, and
rejects an anchor that is defined again. The changed loader is PyYAML's loader in Python and not its loader in C,
because deep nesting raises an exception in Python and crashes in C. Threading: only one thread may use a loader.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import yaml
from yaml.scanner import ScannerError
from yaml.tokens import ScalarToken

from kitfs.errors import KitfileError

MAX_DEPTH: Final = 100  # levels of nesting, which fit on Python's stack with room to spare
MAX_NODES: Final = 200_000  # nodes of a document: enough for ten thousand entries, and read in a few seconds
BREAKS: Final = "\r\n\x85\u2028\u2029"
BLANKS: Final = " \t"
ENDS: Final = f"\0{BLANKS}{BREAKS}"


# In a double-quoted scalar yaml.v3 accepts the escape \' and rejects \/.
GO_ESCAPES: Final = {c: v for c, v in yaml.BaseLoader.ESCAPE_REPLACEMENTS.items() if c != "/"} | {"'": "'"}


class Loader(yaml.BaseLoader):
    """A loader that composes nodes. A scalar without a tag has the tag ``""``, so ``!!str 1`` and ``1`` differ."""

    DEFAULT_SCALAR_TAG = ""  # type: ignore[misc]  # the stubs call final what PyYAML reads from the class
    ESCAPE_REPLACEMENTS: ClassVar = GO_ESCAPES  # type: ignore[misc]
    depth = nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node and everything below it. An anchor that is defined again replaces the earlier one.

        Raises KitfileError if there are too many nodes, or too many levels.
        """
        self.nodes += 1
        if self.depth >= MAX_DEPTH:
            raise KitfileError("yaml: nested too deeply")
        if self.nodes > MAX_NODES:
            raise KitfileError(f"yaml: too many values (limit {MAX_NODES})")
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if not isinstance(event, yaml.AliasEvent):
            self.anchors.pop(event.anchor, None)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def scan_to_next_token(self) -> None:
        """Skip white space, comments and line breaks. A tab is white space wherever no block key can begin.

        Port of yaml_parser_scan_to_next_token (scannerc.go:1535).
        """
        if self.index == 0 and self.peek() == "\ufeff":
            self.forward()
        while True:
            while self.peek() == " " or (self.peek() == "\t" and (self.flow_level or not self.allow_simple_key)):
                self.forward()
            self._skip_comment()
            if not self._line_break():
                return
            if not self.flow_level:
                self.allow_simple_key = True

    def scan_block_scalar_ignored_line(self, start_mark: Any) -> None:
        """Skip the rest of a block scalar's first line. Port of a part of scannerc.go:2190."""
        while self.peek() in BLANKS:
            self.forward()
        self._skip_comment()
        if self.peek() not in f"\0{BREAKS}":
            raise ScannerError(
                "while scanning a block scalar",
                start_mark,
                "did not find expected comment or line break",
                self.get_mark(),
            )
        self._line_break()

    def scan_flow_scalar_non_spaces(self, double: Any, start_mark: Any) -> Any:
        """Scan characters and escapes of a quoted scalar.

        An escape for a surrogate or for a number beyond Unicode is an error, as in scannerc.go:2435.
        """
        try:
            chunks = super().scan_flow_scalar_non_spaces(double, start_mark)
        except (ValueError, OverflowError):
            chunks = ["\ud800"]
        if any("\ud800" <= chunk <= "\udfff" for chunk in chunks):
            raise ScannerError(
                "while parsing a quoted scalar",
                start_mark,
                "found invalid Unicode character escape code",
                self.get_mark(),
            )
        return chunks

    def scan_plain(self) -> Any:
        """Scan a plain scalar: lines are folded and tabs are kept. Port of scannerc.go:2691."""
        start = end = self.get_mark()
        chunks: list[str] = []
        between = ""  # the text between the previous word and the next
        broken = False
        while not self._at_document_mark() and self.peek() != "#":
            length = 0
            while not self._ends_plain(length):
                length += 1
            if length:
                chunks += between, self.prefix(length)
                self.forward(length)
                end, broken = self.get_mark(), False
            if self.peek() == "\0" or self.peek() not in ENDS:
                break
            between, broken = self._plain_spaces(start)
            if not self.flow_level and self.column <= self.indent:
                break
        if broken:
            self.allow_simple_key = True
        return ScalarToken("".join(chunks), True, start, end)

    def _ends_plain(self, at: int) -> bool:
        char = self.peek(at)
        return (
            char in ENDS or (char == ":" and self.peek(at + 1) in ENDS) or (bool(self.flow_level) and char in ",?[]{}")
        )

    def _plain_spaces(self, start: Any) -> tuple[str, bool]:
        """Skip white space and line breaks. Return (the string to which they fold, whether there was a line break)."""
        spaces: list[str] = []
        breaks: list[str] = []
        while self.peek() != "\0" and self.peek() in ENDS:
            if self.peek() in BREAKS:
                breaks.append(self._line_break())
                continue
            if breaks and self.column <= self.indent and self.peek() == "\t":
                raise ScannerError(
                    "while scanning a plain scalar",
                    start,
                    "found a tab character that violates indentation",
                    self.get_mark(),
                )
            if not breaks:
                spaces.append(self.peek())
            self.forward()
        if not breaks:
            return "".join(spaces), False
        first = "" if breaks[0] == "\n" else breaks[0]
        return first + "".join(breaks[1:]) or " ", True

    def _line_break(self) -> str:
        return str(self.scan_line_break())  # type: ignore[no-untyped-call]

    def _skip_comment(self) -> None:
        if self.peek() == "#":
            while self.peek() not in f"\0{BREAKS}":
                self.forward()

    def _at_document_mark(self) -> bool:
        return self.column == 0 and self.prefix(3) in ("---", "...") and self.peek(3) in ENDS
