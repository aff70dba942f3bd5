"""Files as text: plain text, Markdown, HTML, PDF, and chats as JSON lines."""

from __future__ import annotations

import codecs
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from merger_plugins._extras import require
from merger_plugins.errors import DocumentError


@dataclass(frozen=True)
class Source:
    """A file to ingest.

    Attributes:
        id: its path relative to the folder that was named, with forward slashes.
        path: where it lies.
        size: in bytes.
    """

    id: str
    path: Path
    size: int


@dataclass(frozen=True)
class Document:
    """The text of a file, markup removed."""

    id: str
    text: str


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; in a file, `turn_id` is unique and by default the number of its line."""

    text: str
    turn_id: str | None = None
    speaker: str | None = None
    session: str | None = None
    time: float | str | None = None

    @property
    def spoken(self) -> str:
        """The text after its speaker, as it is embedded."""
        return f"{self.speaker}: {self.text}" if self.speaker else self.text


@dataclass(frozen=True)
class Conversation:
    """A chat in reading order."""

    id: str
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """All turns, one a line."""
        return "\n".join(turn.spoken for turn in self.turns)


@dataclass(frozen=True)
class Found:
    """What `find_sources` found.

    Attributes:
        sources: files of a kind that can be read, in the order of their ids.
        errors: a line for each path that cannot be used.
        others: how many files of other kinds folders held, by suffix.
    """

    sources: list[Source]
    errors: list[str]
    others: Counter[str]


def find_sources(paths: Iterable[Path]) -> Found:
    """The readable files under these paths; hidden files, and folders that are links, are left out.

    Args:
        paths: files and folders. A file's id is its path inside the folder that was named, or its name.
    """
    found = Found([], [], Counter())
    by_id: dict[str, Source] = {}
    for root in paths:
        if root.is_dir():
            candidates = _walk(root, found)
        elif root.exists():
            candidates = [root]
        else:
            found.errors.append(f"{root}: there is no such file or folder. Check the path.")
            continue
        for path in candidates:
            name = path.relative_to(root).as_posix() if path != root else path.name
            try:
                source = Source(name, path, path.stat().st_size)
            except OSError as error:
                found.errors.append(_unreadable(path, error))
                continue
            other = by_id.setdefault(name, source)
            if other is not source and other.path.resolve() != path.resolve():
                found.errors.append(
                    f"{path}: {other.path} has the same id, {name!r}. Ingest the folder that holds both, so "
                    "that their ids differ."
                )
    found.sources.extend(by_id[name] for name in sorted(by_id))
    return found


def read_source(source: Source) -> Document | Conversation:
    """Read a file by its suffix.

    Raises:
        DocumentError: it cannot be read as text, or holds none; the message names the file and the remedy.
        MissingExtraError: the parser is not installed.
    """
    path = source.path
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DocumentError(
            f"{path}: files of the kind {path.suffix or 'without a suffix'!r} are not read. "
            f"Convert it to one of: {', '.join(_READERS)}."
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DocumentError(_unreadable(path, error)) from error
    if not data.strip():
        raise DocumentError(f"{path}: the file is empty. Fill it or leave it out.")
    content = reader(path, data)
    if isinstance(content, tuple):
        return Conversation(source.id, content)
    if not content.strip():
        raise DocumentError(f"{path}: the file holds markup but no text. Fill it or leave it out.")
    return Document(source.id, content)


def parse_turns(lines: Iterable[str], *, name: str) -> list[Turn]:
    """Turns from lines, each a JSON object or plain text (``speaker: text`` or just text).

    Args:
        lines: blank ones are left out.
        name: what to call them in an error.

    Raises:
        DocumentError: a JSON object that is no turn; names the line.
    """
    turns = []
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("{"):
            turns.append(_turn(line, f"{name}, line {number}"))
        elif line.strip():
            speaker, text = _spoken(line.strip())
            turns.append(Turn(text, speaker=speaker))
    return turns


def _walk(root: Path, found: Found) -> list[Path]:
    paths = []
    walk = os.walk(root, onerror=lambda error: found.errors.append(_unreadable(Path(error.filename), error)))
    for folder, folders, names in walk:
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in _READERS:
                paths.append(Path(folder, name))
            else:
                found.others[suffix or "no suffix"] += 1
    if not paths:
        found.errors.append(
            f"{root}: no file in this folder can be read. Readable are: {', '.join(_READERS)}."
        )
    return paths


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: {error.strerror or error}. Check that it exists and that you may read it."


# -- one reader a format -----------------------------------------------------------------------------------


_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def _decode(path: Path, data: bytes) -> str:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        raise DocumentError(f"{path}: this is a binary file, not text. Leave it out, or convert it to text.")
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{path}: not valid {encoding.upper()} at byte {error.start}. Convert it to UTF-8, for example: "
            "iconv -f WINDOWS-1252 -t UTF-8."
        ) from error


_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)


def _markdown(path: Path, data: bytes) -> str:
    markdown_it = require("markdown_it", extra="cli", purpose="Reading Markdown", package="markdown-it-py")
    text = _FRONT_MATTER.sub("", _decode(path, data), count=1)
    blocks: list[str] = []
    row: list[str] | None = None
    for token in markdown_it.MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            blocks.append(" | ".join(row or []))
            row = None
        elif token.type == "inline":
            (blocks if row is None else row).append(_inline(token.children or []))
        elif token.type in ("fence", "code_block"):
            blocks.append(token.content.rstrip("\n"))
        elif token.type == "html_block":
            blocks.append(_text_of_html(token.content))
    return "\n\n".join(block for block in blocks if block.strip())


def _inline(tokens: Sequence[Any]) -> str:
    breaks = {"softbreak": " ", "hardbreak": "\n"}
    return "".join(
        breaks.get(token.type, token.content if token.type in ("text", "code_inline", "image") else "")
        for token in tokens
    )


_UNSEEN = ("script", "style", "template", "noscript", "head", "svg")
_BLOCKS = re.compile(
    "address|article|aside|blockquote|body|d[dlt]|details|div|fieldset|figcaption|figure|footer|form|h[1-6]|"
    "header|hr|li|main|nav|ol|p|pre|section|summary|table|tr|ul"
)


def _html(path: Path, data: bytes) -> str:
    if b"\0" in data and not data.startswith(tuple(_BYTE_ORDER_MARKS)):
        raise DocumentError(f"{path}: this is a binary file, not HTML. Leave it out, or convert it to text.")
    return _text_of_html(data)


def _text_of_html(markup: str | bytes) -> str:
    bs4 = require("bs4", extra="cli", purpose="Reading HTML", package="beautifulsoup4")
    soup = bs4.BeautifulSoup(markup, "html.parser")
    title = soup.title.get_text() if soup.title else ""
    for element in soup(_UNSEEN):
        element.decompose()
    for element in soup.find_all(string=lambda text: isinstance(text, bs4.element.PreformattedString)):
        element.extract()  # comments, declarations
    for element in soup.find_all(string=True):
        if not element.find_parent("pre"):
            element.replace_with(re.sub(r"\s+", " ", element))
    for element in soup.find_all(True):
        if element.name == "br":
            element.replace_with("\n")
        elif _BLOCKS.fullmatch(element.name):
            element.insert_before("\n\n")
            element.insert_after("\n\n")
        elif element.name in ("td", "th") and element.find_next_sibling(("td", "th")):
            element.insert_after(" | ")
    lines = [line.strip() for line in f"{title}\n\n{soup.get_text()}".split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _pdf(path: Path, data: bytes) -> str:
    pypdf = require("pypdf", extra="cli", purpose="Reading PDF")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every oddity that it reads past
    try:
        reader = pypdf.PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError(f"{path}: the PDF is locked by a password. Save it without one.")
        pages = [page.extract_text() for page in reader.pages]
    except DocumentError:
        raise
    except Exception as error:  # a damaged PDF makes the parser fail in any way there is
        raise DocumentError(
            f"{path}: the PDF is damaged ({error or type(error).__name__}). Open it in a viewer and save it "
            "again, or export it as text."
        ) from error
    text = "\n\n".join(_unwrapped(page) for page in pages if page.strip())
    if not text:
        raise DocumentError(f"{path}: the PDF holds no text, only images. Run it through OCR first.")
    return text


_FULL_LINE = 0.75


def _unwrapped(page: str) -> str:
    """A page's lines joined, as far as the edge of the page broke them."""
    lines = [line.strip() for line in page.splitlines()]
    full = _FULL_LINE * max(map(len, lines))
    text = ""
    for line in lines:
        text += line
        if len(line) < full:
            text += "\n"
        elif text.endswith("-") and text[-2:-1].isalpha():
            text = text[:-1]
        else:
            text += " "
    return text.strip()


def _chat(path: Path, data: bytes) -> tuple[Turn, ...]:
    turns: dict[str, Turn] = {}
    for number, line in enumerate(_decode(path, data).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        turn = _turn(line, place)
        turn_id = str(number) if turn.turn_id is None else turn.turn_id
        if turn_id in turns:
            raise DocumentError(f"{place}: the turn_id {turn_id!r} is there twice. {_REPAIR}")
        turns[turn_id] = replace(turn, turn_id=turn_id)
    return tuple(turns.values())


_REPAIR = "Repair the line or take it out; nothing of this chat was stored."


def _turn(line: str, place: str) -> Turn:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DocumentError(f"{place}: not valid Unicode ({error.reason}). {_REPAIR}") from error
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{place}: not JSON ({error}). {_REPAIR}") from error
    text = row.get("text", row.get("content")) if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DocumentError(
            f"{place}: not a turn; expected an object with a 'text', such as "
            f'{{"speaker": "Ann", "text": "Hello."}}. {_REPAIR}'
        )

    def field(name: str, alias: str) -> str | None:
        value = row.get(name, row.get(alias))
        return None if value is None else str(value)

    time = row.get("time", row.get("timestamp"))
    numeric = isinstance(time, int | float) and not isinstance(time, bool) and abs(time) < 1e15
    return Turn(
        text.strip(),
        field("turn_id", "id"),
        field("speaker", "role"),
        field("session", "session_id"),
        time if numeric else field("time", "timestamp"),
    )


_SPEAKER = re.compile(r"([^\W\d][\w .'-]{0,30}):\s+(\S.*)", re.DOTALL)


def _spoken(line: str) -> tuple[str | None, str]:
    match = _SPEAKER.fullmatch(line)
    return (match[1], match[2]) if match else (None, line)


_READERS: dict[str, Callable[[Path, bytes], str | tuple[Turn, ...]]] = {
    ".txt": _decode,
    ".text": _decode,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".jsonl": _chat,
}
