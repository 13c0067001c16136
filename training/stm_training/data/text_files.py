"""Plain text, Markdown and HTML files as passages, through the standard library alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from stm_retriever.errors import DataError
from stm_training.data.records import Passage
from stm_training.data.rows import BadRows, decode

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".markdown", ".html", ".htm", ".xhtml"})

_HTML_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
_MARKDOWN_SUFFIXES = frozenset({".md", ".markdown"})
_SILENT = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object"})
_HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
_BLOCKS = frozenset(
    "address article aside blockquote body br caption dd div dl dt fieldset figcaption figure footer form "
    "header hr li main nav ol option p pre section table tbody tfoot thead tr ul".split()
)
_SPACES = re.compile(r"[^\S\n]+")
_MANY_BREAKS = re.compile(r"\n{3,}")
_FIRST_HEADING = re.compile(r"\A\s*#[ \t]+(?P<title>[^\n]+?)[ \t]*#*[ \t]*(?:\n|\Z)")


def read_text_file(file: Path, id_: str, bad: BadRows) -> Passage | None:
    """Read one file as one passage.

    The title is a Markdown file's first ``# heading`` (which then leaves the text), an HTML page's
    ``<title>`` or else its first ``<h1>``; a plain text file has none. HTML headings become lines of the
    text, marked as in Markdown, so that splitting sees them; scripts and styles are left out.

    Args:
        file: A file whose suffix is in :data:`TEXT_SUFFIXES`.
        id_: The passage's id.
        bad: Receives the problem if the file is empty or not UTF-8.

    Returns:
        The passage, or ``None`` if it was skipped.

    Raises:
        DataError: In raise mode, with file and line; and if the file cannot be opened.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        message = f"{file}: cannot be read ({error.strerror}). Check its permissions."
        raise DataError(message) from error
    text = decode(raw.removeprefix(b"\xef\xbb\xbf"), file, 1, bad)
    if text is None:
        return None
    suffix = file.suffix.lower()
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    title = ""
    if suffix in _HTML_SUFFIXES:
        title, text = html_to_text(text)
    elif suffix in _MARKDOWN_SUFFIXES:
        title, text = _markdown_title(text)
    if not text.strip():
        bad.report(file, 1, f"no text in {file.name!r} ({len(raw)} bytes)", "Fill the file or remove it.")
        return None
    return Passage(id=id_, text=text, title=title, metadata={"file": id_})


def html_to_text(html: str) -> tuple[str, str]:
    """Title and readable text of an HTML page.

    Args:
        html: The page's source.

    Returns:
        (title, text); headings are lines that begin with ``#`` marks, list items begin with ``-``.
    """
    parser = _PageText()
    parser.feed(html)
    parser.close()
    return parser.title, parser.text


def _markdown_title(text: str) -> tuple[str, str]:
    match = _FIRST_HEADING.match(text)
    if match is None or not text[match.end() :].strip():
        return "", text
    return match["title"].strip(), text[match.end() :].lstrip("\n")


class _PageText(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._title: list[str] = []
        self._first_h1: list[str] = []
        self._silent: list[str] = []
        self._inside: str = ""
        self._preformatted = 0

    @property
    def title(self) -> str:
        for parts in (self._title, self._first_h1):
            if title := " ".join("".join(parts).split()):
                return title
        return ""

    @property
    def text(self) -> str:
        lines = [line.strip() for line in _SPACES.sub(" ", "".join(self._parts)).split("\n")]
        # an empty heading or list item leaves only its mark behind
        lines = ["" if line in {"-", *_HEADINGS.values()} else line for line in lines]
        return _MANY_BREAKS.sub("\n\n", "\n".join(lines)).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self._silent.append(tag)
        elif tag == "title" and not self._title:
            self._inside = "title"
        elif tag in _HEADINGS:
            self._inside = "h1" if tag == "h1" and not self._first_h1 else ""
            self._parts.append(f"\n\n{_HEADINGS[tag]} ")
        elif tag == "li":
            self._parts.append("\n- ")
        elif tag in ("td", "th"):
            self._parts.append(" ")
        elif tag in _BLOCKS:
            self._parts.append("\n" if tag in ("br", "tr") else "\n\n")
        self._preformatted += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _SILENT:  # <script/> has no end tag to wait for in XHTML
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            if tag in self._silent:
                del self._silent[self._silent.index(tag) :]
            return
        if tag == "title" or tag in _HEADINGS:
            self._inside = ""
        if tag in _HEADINGS or (tag in _BLOCKS and tag not in ("li", "br", "tr")):
            self._parts.append("\n\n")
        if tag == "pre" and self._preformatted:
            self._preformatted -= 1

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        if self._inside == "title":
            self._title.append(data)
            return
        if self._inside == "h1":
            self._first_h1.append(data)
        self._parts.append(data if self._preformatted else " ".join(_edges(data)))


def _edges(data: str) -> list[str]:
    # source line breaks mean nothing in HTML, but a space at either edge does
    words = data.split()
    if not words:
        return ["", ""] if data else []
    if data[0].isspace():
        words.insert(0, "")
    if data[-1].isspace():
        words.append("")
    return words
