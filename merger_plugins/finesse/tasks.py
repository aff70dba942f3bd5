"""The data that axes measure on, as frozen records: what it is, where it lies, under which licence.

The files are never part of the package. A new set takes part with a `Task` in `TASKS`; its ``revision`` is
what `merger_plugins.finesse.embedding.revision` gives for its files, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from merger_plugins.chunking import Chunk, Chunker, SentenceChunker
from merger_plugins.errors import DataError, DocumentError, InputError
from merger_plugins.finesse.collections import Collection, Ints, Text
from merger_plugins.finesse.embedding import Embeddings, read_jsonl, revision
from merger_plugins.finesse.follow_ups import FollowUps, load_follow_ups, with_evidence
from merger_plugins.finesse.metrics import DEPTH
from merger_plugins.finesse.probes import Article, read_articles
from merger_plugins.finesse.rows import Row, checked_rows, numbered

LEAST_ARTICLES: Final = 16
"""What the smallest run of FINESSE needs."""

Kind = Literal["retrieval", "loose passages", "follow-ups", "articles"]


@dataclass(frozen=True, eq=False)
class Source:
    """Where tasks come from, and how their texts become vectors.

    Attributes:
        data: the folder that `Task.files` are relative to.
        embed: the base embedder.
        chunker: cuts documents; sentences packed to about 50 tokens by default.
    """

    data: Path
    embed: Embeddings
    chunker: Chunker = field(default_factory=SentenceChunker)

    def cut_by(self, chunker: Chunker) -> Source:
        """The same with other chunks."""
        return replace(self, chunker=chunker)


@dataclass(frozen=True)
class Task:
    """One set of data.

    Attributes:
        name: what tables call it.
        kind: what it asks for: ``"retrieval"``: the document, and the passage inside, that answers a
            self-contained question; ``"loose passages"``: documents are passages, of which several may
            answer; ``"follow-ups"``: passages for a question that belongs to a conversation; ``"articles"``:
            nothing, FINESSE makes its probes of them.
        files: under the data folder, in the order of the revision.
        revision: 16 hexadecimal digits over the files.
        split: the part of the original set.
        metric: the main one.
        language: of the texts.
        licence: of the data.
        source: the original set.
    """

    name: str
    kind: Kind
    files: tuple[str, ...]
    revision: str
    split: str
    metric: str
    language: str
    licence: str
    source: str

    def missing(self, data: Path) -> str | None:
        """Why it cannot be measured with this data folder; None where it can."""
        absent = [name for name in self.files if not (data / name).is_file()]
        if not absent:
            return None
        return f"{self.name} needs {', '.join(absent)}, which {data} does not hold"

    def paths(self, data: Path) -> list[Path]:
        """Its files, checked.

        Raises:
            DataError: a file is missing, or they are of another revision.
        """
        if reason := self.missing(data):
            raise DataError(f"{reason}. Pass the folder that holds them, or leave this task out.")
        paths = [data / name for name in self.files]
        if (found := revision(paths)) != self.revision:
            raise DataError(
                f"The files of {self.name} in {data} are of revision {found}, and figures of this task are "
                f"for {self.revision}. Get that revision, or add a task for the other one."
            )
        return paths

    def load(self, source: Source) -> Collection | FollowUps | list[Article]:
        """Read, cut and embed it; articles are only read.

        Raises:
            DataError: as `paths`.
            DocumentError: a file cannot be read, or a row of it lacks a field or names what there is not.
        """
        try:
            return _LOADERS[self.kind](self, source)
        except KeyError as error:
            raise DocumentError(
                f"The files of {self.name} have no {error} where one is needed: a row lacks that field, or "
                "names a document, passage or turn that is not there."
            ) from error

    def collection(self, source: Source) -> Collection:
        """As `load`, of a task that is a collection of documents.

        Raises:
            InputError: it is none.
        """
        loaded = self.load(source)
        if not isinstance(loaded, Collection):
            raise InputError(f"{self.name} is of the kind {self.kind!r}, no collection of documents.")
        return loaded


def available(data: Path, tasks: Iterable[Task] | None = None) -> tuple[list[Task], list[str]]:
    """The tasks whose files are there, and for each other one a sentence that says what is missing."""
    here, reasons = [], []
    for task in TASKS.values() if tasks is None else tasks:
        if reason := task.missing(data):
            reasons.append(f"skipped: {reason}")
        else:
            here.append(task)
    return here, reasons


def tasks_of_folder(folder: Path) -> list[Task]:
    """The tasks of somebody's own data: ``docs``, ``queries`` and ``qrels``, each .jsonl or .jsonl.gz.

    A document is ``{"id", "text"}``, its paragraphs parted by an empty line; a question ``{"id", "text"}``; a
    row of qrels ``{"query_id", "doc_id", "passage"}``, one a question, the passage being the number of the
    paragraph that answers, from 0. Ids are texts or whole numbers.

    Returns:
        Their retrieval; before it, where there are at least `LEAST_ARTICLES` documents, these as articles.

    Raises:
        DataError: a file is missing.
        DocumentError: the documents cannot be read.
    """
    paths = []
    for part in ("docs", "queries", "qrels"):
        present = [path for ending in ("", ".gz") if (path := folder / f"{part}.jsonl{ending}").is_file()]
        if not present:
            raise DataError(
                f"{folder} holds no {part}.jsonl or {part}.jsonl.gz; a data set is docs, queries and qrels."
            )
        paths.append(present[0].absolute())
    name, about = folder.absolute().name, ("unknown", "unknown", "a folder")
    files = tuple(map(str, paths))
    found = Task(name, "retrieval", files, revision(paths), "all", "ndcg@10", *about)
    if len(read_jsonl(paths[0])) < LEAST_ARTICLES:
        return [found]
    articles = replace(
        found,
        name=f"{name}-articles",
        kind="articles",
        files=files[:1],
        revision=revision(paths[:1]),
        metric="finesse",
    )
    return [articles, found]


def load_retrieval(task: Task, source: Source) -> Collection:
    """Documents with passages (paragraphs), and questions that each have one right passage.

    Raises:
        DocumentError: a row that cannot be used; says which, what arrived and what was expected.
    """
    documents, queries, qrels = (list(checked_rows(path)) for path in task.paths(source.data))
    texts = [row.text("text").replace("\r\n", "\n") for row in documents]
    inside = [text.split("\n\n") for text in texts]
    first = np.cumsum([0, *(len(passages) for passages in inside)])
    gold, right = _answers(documents, queries, qrels, [len(passages) for passages in inside])
    split = [source.chunker.split(text) for text in texts]
    passage = []
    for start, passages, chunks in zip(first.tolist(), inside, split, strict=False):
        ends = np.cumsum([len(text) + 2 for text in passages])
        passage += [start + int(np.searchsorted(ends, chunk.start, side="right")) for chunk in chunks]
    return Collection(
        **_chunked(task, source, texts, split, [row.text("text") for row in queries]),
        relevant=gold[:, None] == np.arange(len(documents)),
        group=gold,
        passage=np.array(passage, np.int64),
        relevant_passage=first[gold] + right,
        passages=int(first[-1]),
    )


def _answers(
    documents: list[Row], queries: list[Row], qrels: list[Row], passages: list[int]
) -> tuple[Ints, Ints]:
    """(q,) the document that answers each question, and (q,) which of its passages.

    Raises:
        DocumentError: a row names what there is not, or a question has not one line of qrels.
    """
    document, question = numbered(documents, "id"), numbered(queries, "id")
    gold, right = np.full(len(queries), -1), np.zeros(len(queries), np.int64)
    numbered(qrels, "query_id")
    for row in qrels:
        number, named = row.name("query_id"), row.name("doc_id")
        if named not in document:
            raise row.wrong(f'"doc_id" is {named!r:.60}, and no document has that id')
        if number not in question:
            raise row.wrong(f'"query_id" is {number!r:.60}, and no question has that id')
        asked = question[number]
        gold[asked] = document[named]
        right[asked] = row.number("passage", passages[gold[asked]], f"passages in {named}")
    if (gold < 0).any():
        alone = queries[int(gold.argmin())]
        raise alone.wrong(f"no line of qrels names the question {alone.name('id')!r:.60}")
    return gold, right


def load_passages(task: Task, source: Source) -> Collection:
    """Passages as documents, and the questions that have evidence among them.

    A question is asked in its self-contained form where the set has one, otherwise as it stood in the
    conversation. Questions of one conversation are a group.
    """
    passages, conversations = (read_jsonl(path) for path in task.paths(source.data))
    asked, relevant = with_evidence(conversations, passages)
    texts = [row["text"] for row in passages]
    questions = [question["rewrite"] or question["question"] for _, question in asked]
    return Collection(
        **_chunked(task, source, texts, [source.chunker.split(text) for text in texts], questions),
        relevant=relevant,
        group=np.array([i for i, _ in asked], np.int64),
    )


def _chunked(
    task: Task, source: Source, texts: list[str], split: list[list[Chunk]], queries: list[str]
) -> dict[str, Any]:
    """What every `Collection` is made of."""
    chunks = [chunk for parts in split for chunk in parts]
    return {
        "name": task.name,
        "revision": task.revision,
        "chunks": source.embed(f"{task.name}-chunks", [chunk.text for chunk in chunks]),
        "document": np.repeat(np.arange(len(split)), [len(parts) for parts in split]),
        "masses": np.array([chunk.tokens for chunk in chunks], np.float32),
        "queries": source.embed.queries(f"{task.name}-queries", queries),
        "text": Text(
            tuple(texts),
            np.array([(chunk.start, chunk.end) for chunk in chunks], np.int64),
            tuple(queries),
            source.embed,
        ),
    }


def _load_follow_ups(task: Task, source: Source) -> FollowUps:
    passages, conversations = task.paths(source.data)
    return load_follow_ups(task.name, task.revision, passages, conversations, source.embed)


def _load_articles(task: Task, source: Source) -> list[Article]:
    return list(read_articles(task.paths(source.data)))


_LOADERS: Final[dict[Kind, Callable[[Task, Source], Collection | FollowUps | list[Article]]]] = {
    "retrieval": load_retrieval,
    "loose passages": load_passages,
    "follow-ups": _load_follow_ups,
    "articles": _load_articles,
}


def _retrieval(name: str, revision: str, language: str, licence: str, source: str) -> Task:
    files = tuple(f"eval/{name}/{part}.jsonl.gz" for part in ("docs", "queries", "qrels"))
    return Task(name, "retrieval", files, revision, "all", "ndcg@10", language, licence, source)


def _conversations(name: str, revision: str, licence: str, source: str) -> tuple[Task, Task]:
    """Its passages as a collection, and its questions with their histories."""
    files = (f"conv/{name}_passages.jsonl.gz", f"conv/{name}.jsonl.gz")
    loose = Task(name, "loose passages", files, revision, "all", "ndcg@10", "en", licence, source)
    asked = replace(loose, name=f"{name}-follow-ups", kind="follow-ups", metric=f"mrr@{DEPTH}")
    return loose, asked


_XQUAD = ("CC BY-SA 4.0", "XQuAD (Artetxe et al. 2020), articles put together again")

TASKS: Final[dict[str, Task]] = {
    task.name: task
    for task in (
        _retrieval(
            "covidqa",
            "5fd384985b289325",
            "en",
            "Apache-2.0 (papers CC BY)",
            "COVID-QA (Möller et al. 2020), full papers",
        ),
        _retrieval("xquad_en", "cc22fc3f86e2c180", "en", *_XQUAD),
        _retrieval("xquad_de", "470d00196489cade", "de", *_XQUAD),
        _retrieval("xquad_es", "afe0c9ccb071d5e7", "es", *_XQUAD),
        _retrieval("xquad_ru", "7b45c03b382b47d3", "ru", *_XQUAD),
        _retrieval("xquad_zh", "28c05831dfa7bb86", "zh", *_XQUAD),
        *_conversations("convqa_mtragun", "c2ea456f3da0fc04", "Apache-2.0", "MTRAG-UN"),
        *_conversations("convqa_trec_cast", "a9ed76432562b50c", "MIT (topics)", "TREC CAsT"),
        Task(
            "wiki_en",
            "articles",
            ("train/wiki_en_articles.jsonl.gz",),
            "5a07df1a65f01ff2",
            "all",
            "finesse",
            "en",
            "CC BY-SA 3.0",
            "Wikipedia, whole articles",
        ),
    )
}
"""By name, in the order of the tables."""
