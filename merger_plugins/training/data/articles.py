"""Texts to train on: read, freed of doubles, balanced over languages, some of them held out."""

from __future__ import annotations

import gzip
import hashlib
import heapq
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from merger_plugins._extras import require
from merger_plugins.errors import DocumentError, InputError

HUB = "hf:"
"""What a source begins with that names a dataset of the Hugging Face hub: hf:NAME[:CONFIG][:SPLIT]."""

FEWEST = 10
"""Texts that a training needs at the least: some of them are held out for the final table."""

_JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_TEXTS = (".txt", ".text", ".md", ".markdown")
_SHORTEST_PARAGRAPH = 80  # characters: shorter ones, such as headings, may repeat
_COMMON_SHARE = 0.5
_OTHERS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Article:
    """One text, which becomes one sequence.

    Attributes:
        id: where it came from; what messages call it.
        language: as its source states it; else the script that it is written in.
        title: empty where it has none.
        text: all of it, paragraphs separated by blank lines.
    """

    id: str
    language: str
    title: str
    text: str

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits over the letters and digits of the text, case and spaces ignored."""
        return hashlib.blake2b(_letters(self.text).encode(), digest_size=16).hexdigest()


@dataclass
class Chosen:
    """The texts of a training, in an order whose every beginning is balanced over languages.

    Attributes:
        training: what is trained on.
        held_out: what is never trained on.
        read: how many texts the sources held; the next two of them were left out.
        doubles: those that repeat another text, or most of whose paragraphs others hold.
        short: those of fewer characters than asked for.
        shares: what each language is worth among the examples of a training; only proportions count.
    """

    training: list[Article] = field(default_factory=list)
    held_out: list[Article] = field(default_factory=list)
    read: int = 0
    doubles: int = 0
    short: int = 0
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def languages(self) -> Counter[str]:
        """How many training texts each language has."""
        return Counter(article.language for article in self.training)


def choose_articles(
    articles: Iterable[Article],
    *,
    seed: int,
    max_articles: int | None = None,
    balance: float = 0.5,
    held_out: float = 0.1,
    min_characters: int = 400,
) -> Chosen:
    """Leave out doubles and short texts, draw at the most `max_articles`, and hold some out.

    Which texts are drawn depends on the seed and the texts alone, not on their order, doubles aside, of which
    the first one stays. At most `max_articles` texts a language are in memory at once.

    Args:
        articles: all there are.
        seed: of the draw.
        max_articles: None for all.
        balance: a language of n texts gets a share in proportion to n ** balance: 1 leaves the languages as
            they come, 0 gives all the same.
        held_out: share of each language that is not trained on.
        min_characters: shorter texts are left out.

    Raises:
        InputError: a setting is out of range, or fewer than `FEWEST` texts are left.
    """
    if not (0 <= balance <= 1 and 0 < held_out < 1):
        raise InputError(
            f"balance is {balance} and held_out {held_out}; balance goes from 0 to 1, and held_out is a "
            "share between 0 and 1."
        )
    if max_articles is not None and max_articles < FEWEST:
        raise InputError(f"max_articles is {max_articles}; a training needs at least {FEWEST} texts.")
    chosen = Chosen()
    available: Counter[str] = Counter()
    drawn: dict[str, list[tuple[int, str, Article]]] = {}
    for article in _distinct(articles, min_characters, chosen):
        lot = _lot(seed, article)
        available[article.language] += 1
        heap = drawn.setdefault(article.language, [])
        heapq.heappush(heap, (-lot, article.id, article))
        if max_articles is not None and len(heap) > max_articles:
            heapq.heappop(heap)
    chosen.shares = {name: count**balance for name, count in available.items()}
    counts = _counts(chosen.shares, {name: len(heap) for name, heap in drawn.items()}, max_articles)
    groups = {
        name: [article for _, _, article in sorted(heap, key=lambda row: -row[0])][: counts[name]]
        for name, heap in drawn.items()
    }
    total = sum(map(len, groups.values()))
    if total < FEWEST:
        raise InputError(
            f"{total} texts are left to train on, of {chosen.read} read ({chosen.doubles} doubles, "
            f"{chosen.short} shorter than {min_characters} characters); at least {FEWEST} are needed, and a "
            "thousand are a good beginning. Name more or longer texts."
        )
    for name, group in groups.items():
        outside = round(held_out * len(group))
        chosen.held_out += group[:outside]
        groups[name] = group[outside:]
    if len(chosen.held_out) < 2:  # many languages of a few texts each
        largest = max(groups, key=lambda name: len(groups[name]))
        needed = 2 - len(chosen.held_out)
        chosen.held_out += groups[largest][:needed]
        groups[largest] = groups[largest][needed:]
    chosen.training = list(_woven(groups))
    return chosen


def _distinct(articles: Iterable[Article], min_characters: int, chosen: Chosen) -> Iterator[Article]:
    texts: set[str] = set()
    paragraphs: set[bytes] = set()
    for article in articles:
        chosen.read += 1
        if len(article.text) < min_characters:
            chosen.short += 1
            continue
        key = article.key
        own = {
            hashlib.blake2b(_letters(part).encode(), digest_size=8).digest(): len(part)
            for part in article.text.split("\n\n")
            if len(part) >= _SHORTEST_PARAGRAPH
        }
        common = sum(size for digest, size in own.items() if digest in paragraphs)
        if key in texts or common > _COMMON_SHARE * len(article.text):
            chosen.doubles += 1
            continue
        texts.add(key)
        paragraphs.update(own)
        yield article


def _letters(text: str) -> str:
    return _OTHERS.sub("", text.casefold())


def _lot(seed: int, article: Article) -> int:
    digest = hashlib.blake2b(f"{seed} {article.key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _counts(shares: dict[str, float], most: dict[str, int], total: int | None) -> dict[str, int]:
    """How many texts of each language; what a small language cannot fill goes to the others."""
    if total is None or total >= sum(most.values()):
        return most
    counts: dict[str, int] = {}
    for name in sorted(most, key=lambda name: (most[name] / shares[name], name)):  # scarce ones first
        weight = sum(shares[other] for other in most if other not in counts)
        counts[name] = min(round((total - sum(counts.values())) * shares[name] / weight), most[name])
    return counts


def _woven(groups: dict[str, list[Article]]) -> Iterator[Article]:
    """All articles, each language spread evenly over the whole."""
    placed = [
        ((index + 0.5) / len(group), name, article)
        for name, group in groups.items()
        for index, article in enumerate(group)
    ]
    for _, _, article in sorted(placed, key=lambda row: row[:2]):
        yield article


# -- sources -----------------------------------------------------------------------------------------------


def read_articles(sources: Sequence[str | Path]) -> Iterator[Article]:
    """The texts of files, folders and datasets.

    Args:
        sources: of each kind any number:
            JSON lines (``.jsonl``, also ``.gz``), objects with a ``text`` and optionally ``id``, ``title``,
            ``lang``; a plain text or Markdown file; a folder of such files; a folder that Hugging Face
            ``datasets`` saved; ``hf:NAME[:CONFIG][:SPLIT]``, a dataset of the hub, read in a stream.

    Raises:
        DocumentError: a source is missing, cannot be read as text, or a line is no such object.
        MissingExtraError: a dataset is named and ``datasets`` is not installed.
    """
    if not sources:
        raise DocumentError("No texts are named. Name files or folders of text to train on.")
    for source in sources:
        if str(source).startswith(HUB):
            yield from _hub(str(source))
            continue
        path = Path(source).expanduser()
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            yield from _saved_dataset(path)
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if _kind(file) and not _hidden(file, path))
            if not files:
                known = ", ".join((*_TEXTS, *_JSON_LINES))
                raise DocumentError(f"{path}: this folder holds no text. Read are: {known}.")
            for file in files:
                yield from _file(file, file.relative_to(path).as_posix())
        elif path.is_file():
            yield from _file(path, path.name)
        else:
            raise DocumentError(f"{path}: there is no such file or folder. Check the path.")


def _kind(path: Path) -> str:
    return next((suffix for suffix in (*_TEXTS, *_JSON_LINES) if path.name.lower().endswith(suffix)), "")


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _file(path: Path, name: str) -> Iterator[Article]:
    try:
        if _kind(path) in _JSON_LINES:
            with _opened(path) as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _article(_object(line, f"{path}, line {number}"), f"{name}:{number}")
        else:
            text = path.read_text(encoding="utf-8-sig")
            first = text.lstrip().partition("\n")[0]
            title = first.lstrip("# ").strip() if first.startswith("#") else ""
            yield _article({"text": text, "title": title, "id": name}, name)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DocumentError(
            f"{path}: cannot be read as UTF-8 text ({error}). Convert it or leave it out."
        ) from error


def _opened(path: Path) -> IO[str]:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{place}: not JSON ({error}). Repair the line or take it out.") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DocumentError(f'{place}: expected an object with a "text", such as {{"text": "..."}}.')
    return row


def _article(row: dict[str, Any], name: str) -> Article:
    text = row["text"].strip().replace("\r\n", "\n")
    language = row.get("lang") or row.get("language") or script_of(text)
    identity = row.get("id")
    return Article(
        name if identity is None else str(identity), str(language), str(row.get("title") or ""), text
    )


def script_of(text: str) -> str:
    """The script of most letters among the first thousand characters, such as 'latin' or 'hangul'."""
    scripts = Counter(
        unicodedata.name(letter, "unknown").partition(" ")[0].lower()
        for letter in text[:1000]
        if letter.isalpha()
    )
    return scripts.most_common(1)[0][0] if scripts else "unknown"


def _hub(source: str) -> Iterator[Article]:
    datasets = _datasets()
    name, *rest = source.removeprefix(HUB).split(":")
    config = rest[0] if len(rest) > 1 else None
    split = rest[-1] if rest else "train"
    try:
        rows = datasets.load_dataset(name, config or None, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise DocumentError(
            f"{source}: the dataset cannot be opened ({error}). The form is hf:NAME, hf:NAME:SPLIT or "
            "hf:NAME:CONFIG:SPLIT."
        ) from error
    yield from _rows(rows, source)


def _saved_dataset(path: Path) -> Iterator[Article]:
    saved = _datasets().load_from_disk(str(path))
    for part in saved.values() if isinstance(saved, dict) else [saved]:
        yield from _rows(part, path.name)


def _rows(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Article]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("text"), str):
            raise DocumentError(f"{name}: row {number} has no text in a column 'text', only {sorted(row)}.")
        yield _article(row, f"{name}:{number}")


def _datasets() -> Any:
    return require("datasets", extra="train", purpose="Reading a Hugging Face dataset")
