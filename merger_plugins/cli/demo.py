"""``merger-plugins demo``: what merging changes, on the sample documents or on your own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merger_plugins.cli import options
from merger_plugins.cli.output import Output, running, table
from merger_plugins.cli.readers import Conversation, Document, find_sources, read_source
from merger_plugins.cli.search import snippet
from merger_plugins.errors import DocumentError, EmptyInputError

if TYPE_CHECKING:
    from merger_plugins.demo.comparison import ChatComparison, DocumentComparison


def command(
    docs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Your own files, in place of the sample documents.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(metavar="Q", help="Ask this, and see what each way of searching finds.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compare ways of searching on the sample documents and chat, or ask your own files a question.

    No network, nothing written to disk. Without --question, shows the ranks of the right answers to the
    sample questions.
    """
    if docs is not None and question is None:
        raise typer.BadParameter(
            "--docs needs --question, as there are no right answers to rank in your files."
        )
    with running("demo", as_json=as_json, interrupted="Nothing is left behind.") as output:
        from merger_plugins.demo.questions import CORPUS

        contents = _read(docs or CORPUS, output)
        if question is None:
            _compare(contents, output)
        else:
            _ask(contents, question, output)


def _read(folder: Path, output: Output) -> list[Document | Conversation]:
    found = find_sources([folder])
    for error in found.errors:
        output.problem(error)
    contents = []
    for source in found.sources:
        try:
            contents.append(read_source(source))
        except DocumentError as error:
            output.problem(str(error))
    return contents


def _compare(contents: Sequence[Document | Conversation], output: Output) -> None:
    """The sample questions."""
    from merger_plugins.demo.comparison import compare_documents, compare_turns
    from merger_plugins.demo.methods import cut, embed, embed_corpus
    from merger_plugins.demo.questions import CHAT, load_questions
    from merger_plugins.embedders import load_embedder
    from merger_plugins.mergers.loading import load_merger

    embedder, merger = load_embedder(), load_merger()
    texts = {content.id: content.text for content in contents if isinstance(content, Document)}
    (chat,) = (c for c in contents if isinstance(c, Conversation) and c.id == CHAT)
    turns = [(turn.turn_id or "", turn.spoken) for turn in chat.turns]
    about_documents, about_chat = load_questions()
    began = time.perf_counter()
    chunks = cut(list(texts.values()), embedder)
    total = sum(map(len, chunks)) + len(texts) + len(turns)
    with output.progress("embedding", total, "texts") as advance:
        corpus = embed_corpus(list(texts.items()), chunks, embedder, advance)
        turn_vectors = embed([text for _, text in turns], embedder, advance)
    seconds = time.perf_counter() - began
    with output.waiting("merging, storing and searching"):
        documents = compare_documents(corpus, texts, about_documents, merger, embedder)
        conversation = compare_turns(turns, turn_vectors, about_chat, merger, embedder)
    output.document.update(
        documents=asdict(documents), chat=asdict(conversation), seconds={"embed": round(seconds, 2)}
    )
    report_documents(documents, output)
    output.print(f"{_steps({'embed': seconds} | documents.seconds)}; {total:,} texts embedded", "")
    report_turns(conversation, output)
    output.print(_steps(conversation.seconds), "", *_lessons(documents, conversation))


def _ask(contents: Sequence[Document | Conversation], question: str, output: Output) -> None:
    """One question, by every method side by side."""
    from merger_plugins.demo.methods import METHODS, Methods, cut, embed_corpus
    from merger_plugins.embedders import load_embedder
    from merger_plugins.mergers.loading import load_merger

    if not question.strip():
        raise EmptyInputError("The question is empty; there is nothing to search for.")
    if not contents:
        raise EmptyInputError("No file could be read, so there is nothing to search in.")
    embedder = load_embedder()
    documents = [(content.id, content.text) for content in contents]
    began = time.perf_counter()
    chunks = cut([text for _, text in documents], embedder)
    with output.progress("embedding", sum(map(len, chunks)) + len(documents), "texts") as advance:
        corpus = embed_corpus(documents, chunks, embedder, advance)
    seconds = {"embed": time.perf_counter() - began}
    with output.waiting("merging, storing and searching"), Methods(corpus, load_merger()) as methods:
        found = methods.search(embedder.embed_query(question))
        seconds |= methods.seconds
    passages = [(name, chunk) for name, own in zip(corpus.ids, chunks, strict=True) for chunk in own]
    tops = {
        name: [
            {"document": corpus.ids[index], "score": score, "passage": None}
            for index, score in best(one.documents, _SHOWN)
        ]
        if one.chunks is None
        else [
            {"document": passages[index][0], "score": score, "passage": passages[index][1].text}
            for index, score in best(one.chunks, _SHOWN)
        ]
        for name, one in found.items()
    }
    output.document.update(
        question=question,
        methods={name: {"description": METHODS[name], "results": tops[name]} for name in tops},
        documents=len(documents),
        chunks=len(passages),
        seconds=seconds,
    )
    for title, names in (("Documents", _DOCUMENTS), ("Passages", _PASSAGES)):
        output.print(_side_by_side(title, {name: tops[name] for name in names}), "")
    output.print(f"{len(documents):,} documents, {len(passages):,} chunks. {_steps(seconds)}")


# -- tables ------------------------------------------------------------------------------------------------

_SHOWN = 5
_DOCUMENTS = ("truncation", "mean", "root")
_PASSAGES = ("chunks", "contextual", "chunks+root")
_HEADINGS = {
    "truncation": "first\n510\ntokens",
    "mean": "mean",
    "root": "calib.\nroot",
    "chunks": "chunks",
    "chunks+mean": "chunks\n+ mean",
    "contextual": "in con-\ntext",
    "chunks+root": "chunks\n+ root",
}


def report_documents(comparison: DocumentComparison, output: Output) -> None:
    """Ranks question by question, then each method over all of them."""
    from merger_plugins.demo.methods import METHODS
    from merger_plugins.demo.questions import SHOWN

    count = len(comparison.questions)
    ranks = table(
        "every third question",
        *_HEADINGS.values(),
        right=_HEADINGS.values(),
        title="Rank of the right document/passage",
    )
    for row in comparison.questions[SHOWN]:
        cells = [
            f"{one.document}" if one.passage is None else f"{one.document}/{one.passage}"
            for one in row.ranks.values()
        ]
        ranks.add_row(row.question.question, *cells)
    ranks.add_section()
    documents = [f"{one.document:.3f}" for one in comparison.summary.values()]
    passages = ["" if one.passage is None else f"{one.passage:.3f}" for one in comparison.summary.values()]
    ranks.add_row(f"all {count}: mean of 1 / rank, document", *documents, style="bold")
    ranks.add_row(f"all {count}: mean of 1 / rank, passage", *passages, style="bold")
    numbers = ("vectors a document", "kB a document")
    storage = table("what is searched", *numbers, right=numbers, title="Storage")
    for name, one in comparison.summary.items():
        storage.add_row(METHODS[name], f"{one.vectors:.1f}", f"{one.kilobytes:,.1f}")
    output.print(ranks, "", storage, "")


def report_turns(comparison: ChatComparison, output: Output) -> None:
    """Ranks of the turn that answers, question by question, and over all of them."""
    columns = ("raw", "contextual")
    ranks = table("question about the chat", *columns, right=columns, title="Rank of the turn that answers")
    for row in comparison.questions:
        ranks.add_row(row.question.question, str(row.raw), str(row.contextual))
    ranks.add_section()
    for label, figures in (
        ("mean reciprocal rank", comparison.reciprocal),
        ("among the first ten", comparison.first_ten),
    ):
        ranks.add_row(label, *(f"{figures[column]:.3f}" for column in columns), style="bold")
    output.print(ranks, "")


def best(scores: Any, count: int) -> list[tuple[int, float]]:
    """(index, score) of the `count` best, best first."""
    order = (-scores).argsort(kind="stable")[:count]
    return [(int(index), float(scores[index])) for index in order]


def _side_by_side(title: str, tops: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    from merger_plugins.demo.methods import METHODS

    shown = table("#", *(METHODS[name] for name in tops), right=("#",), title=title)
    for number, results in enumerate(zip_longest(*tops.values()), 1):
        shown.add_row(str(number), *(_result(result) for result in results))
    return shown


def _result(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    head = f"{result['document']} ({result['score']:.2f})"
    return head if result["passage"] is None else f"{head}\n{snippet(result['passage'], 90)}\n"


def _steps(seconds: Mapping[str, float]) -> str:
    return "Seconds: " + ", ".join(f"{step} {spent:.2f}" for step, spent in seconds.items())


def _lessons(documents: DocumentComparison, chat: ChatComparison) -> list[str]:
    """What to look at, in figures."""
    mean, root, chunks, fused = (
        documents.summary[name] for name in ("mean", "root", "chunks", "chunks+root")
    )
    return [
        "What to look at, in means of 1 / rank:",
        f"1. One vector a document: calibrated root {root.document:.3f}, mean {mean.document:.3f}.",
        f"2. Chunks + root, against chunks: passages {fused.passage:.3f} and {chunks.passage:.3f}, "
        f"documents {fused.document:.3f} and {chunks.document:.3f}.",
        f"3. Turns in context, against raw turns: {chat.reciprocal['contextual']:.3f} and "
        f"{chat.reciprocal['raw']:.3f}; in the first ten {chat.first_ten['contextual']:.0%} and "
        f"{chat.first_ten['raw']:.0%}.",
    ]
