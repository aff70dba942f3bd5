"""Writes the tables of README.md, docs/ and onnx_export/EXPERIMENTS.md from the result files.

A table stands between ``<!-- name -->`` and ``<!-- /name -->``. With ``--check`` it only compares them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks import quality_tables, scaling_tables
from benchmarks.common import RESULTS, ROOT, table

PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "CONVERSATIONS.md",
    ROOT / "docs" / "FIGURES.md",
    ROOT / "docs" / "SCALE.md",
    ROOT / "onnx_export" / "EXPERIMENTS.md",
)

DOCUMENT_ROWS = (
    ("truncation", "the first 510 tokens, embedded (truncation)", "1 a document"),
    ("mean", "mean of the chunk vectors, by mass (what people do today)", "1 a document"),
    ("calibrated root, flat", "**calibrated root, merged at once**", "1 a document"),
    ("calibrated root, tree", "**calibrated root, through the tree: what the hook stores**", "1 a document"),
    ("mean of 10 chunks", "mean of every 10 chunks", "1/10 of the chunks"),
    ("calibrated sections, K = 10", "**calibrated sections of 10 chunks**", "1/10 of the chunks"),
    ("mean of 5 chunks", "mean of every 5 chunks", "1/5 of the chunks"),
    ("calibrated sections, K = 5", "**calibrated sections of 5 chunks**", "1/5 of the chunks"),
    ("raw chunks", "raw chunks, the best one (today's chunk search)", "every chunk"),
    ("raw chunks + mean", "raw chunks + means of 10 + mean of all, fused", "every chunk + 1/10"),
    ("raw chunks + root", "**raw chunks + section + root, fused**", "every chunk + 1/10"),
    ("calibrated chunks", "**calibrated chunks**", "every chunk"),
    ("calibrated chunks + root", "**calibrated chunks + section + root, fused**", "every chunk + 1/10"),
    ("contextual chunks", "**contextual chunks**", "every chunk"),
    ("contextual chunks + root", "**contextual chunks + section + root, fused**", "every chunk + 1/10"),
)
HEADLINE_ROWS = (
    "truncation",
    "mean",
    "calibrated root, tree",
    "raw chunks",
    "calibrated chunks + root",
    "contextual chunks",
)
PASSAGE_ROWS = (
    ("passages, whole paragraphs, raw", "paragraph embedded as one text, raw", "1 a paragraph"),
    ("passages, whole paragraphs, calibrated", "**the same, calibrated**", "1 a paragraph"),
    ("passages, whole paragraphs, contextual", "**the same, contextual**", "1 a paragraph"),
    ("passages, mean of their chunks", "mean of the paragraph's chunks", "1 a paragraph"),
    (
        "passages, calibrated merge of their chunks",
        "**calibrated merge of the paragraph's chunks**",
        "1 a paragraph",
    ),
    ("passages, best raw chunk", "raw chunks, the best one", "every chunk"),
    ("passages, best calibrated chunk", "**calibrated chunks**", "every chunk"),
    ("passages, best contextual chunk", "**contextual chunks**", "every chunk"),
)

LANGUAGES = {"xquad_de": "XQuAD-de", "xquad_es": "XQuAD-es", "xquad_ru": "XQuAD-ru", "xquad_zh": "XQuAD-zh"}
LANGUAGE_ROWS = (
    "truncation",
    "mean",
    "calibrated root, tree",
    "raw chunks",
    "calibrated chunks",
    "calibrated chunks + root",
    "contextual chunks",
)
LOOSE = {"convqa_mtragun": "MTRAG-UN", "convqa_trec_cast": "TREC CAsT"}
LOOSE_ROWS = (
    ("truncation", "the passage, embedded as one text (truncation)"),
    ("mean", "mean of its chunks"),
    ("calibrated root", "**calibrated root**"),
    ("raw chunks", "raw chunks, the best one"),
    ("calibrated chunks", "**calibrated chunks**"),
    ("raw chunks + mean", "raw chunks + means of 10 + mean of all, fused"),
    ("calibrated chunks + root", "**calibrated chunks + section + root, fused**"),
)
FOLLOW_UP_ROWS = (
    ("question alone", "the question alone"),
    ("0.7 question + 0.3 mean of the history", "0.7 question + 0.3 mean of the history"),
    ("weights halving back in time", "weights halving back in time"),
    ("human rewrite alone", "rewritten by a person to stand alone"),
    ("cosine gate", "`HistoryGate()`, `vector`"),
    ("cosine gate, both searched", "`HistoryGate()`, `queries`"),
    ("trained gate", "`load_gate()`, `vector`"),
    ("trained gate, both searched", "**`load_gate()`, `queries`**"),
    ("question alone, away from what was shown", "the question alone, away from what was shown"),
    (
        "trained gate, both searched, away from what was shown",
        "**`load_gate()`, `queries`, away from what was shown**",
    ),
    (
        "trained gate, both searched, what was shown left out of the results",
        "`load_gate()`, `queries`, what was shown left out of the results",
    ),
)
SELF_CONTAINED_ROWS = (
    ("cosine gate", "`HistoryGate()`, `vector`"),
    ("cosine gate, both searched", "`queries`"),
    ("trained gate", "`load_gate()`, `vector`"),
    ("trained gate, both searched", "**`queries`**"),
    ("trained gate, both searched, away from what was shown", "**away**"),
)
CHAT = {
    "convqa_trec_cast": "TREC CAsT",
    "convqa_mtragun": "MTRAG-UN",
    "topicalchat_train": "Topical-Chat",
}
CHAT_ROWS = (
    ("raw", "raw turns"),
    ("calibrated", "calibrated turns"),
    ("in context, neighbours alone", "in context, neighbours alone"),
    ("in context, root of the conversation", "in context, root of the whole conversation"),
    (
        "in context, root of the sitting: what the hook stores",
        "**in context, root of the sitting: what the hook stores**",
    ),
    ("the same without times", "the same where turns have no times"),
)
GAINS = "gain by calibrating on a subset"
MERGERS = ("mean", "calibrated", "synthesizer")
AGAINST = "calibrated, at once"
ONE_VECTOR = ("truncation", "mean", AGAINST, "synthesizer", "calibrated + synthesizer")
TEXTS = {"wikipedia": "Wikipedia, held out", "covidqa": "COVID-QA's papers"}


def load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def loose_rows(figures: dict[str, Any]) -> str:
    def cells(row: dict[str, float]) -> tuple[str, str]:
        gain = f"{row['gain']:+.3f} ± {row['standard error']:.3f}" if "gain" in row else ""
        return f"{row['ndcg@10']:.3f}", gain

    return table(
        ("what is stored", *(head for title in LOOSE.values() for head in (title, "gain"))),
        *(
            (what, *(cell for name in LOOSE for cell in cells(figures[name]["rows"][row])))
            for row, what in LOOSE_ROWS
        ),
    )


def loose_subsets(figures: dict[str, Any]) -> str:
    columns = [
        (name, row) for name in LOOSE for row in figures[name]["rows"] if "gain" in figures[name]["rows"][row]
    ]

    def cells(size: str) -> list[str]:
        gains = (figures[name][GAINS][size][row] for name, row in columns)
        return [f"{gain['least']:+.3f} ({gain['mean']:+.3f})" for gain in gains]

    return table(
        ("calibrated on", *(f"{LOOSE[name]}, {row.removeprefix('calibrated ')}" for name, row in columns)),
        *((size, *cells(size)) for size in figures[next(iter(LOOSE))][GAINS]),
    )


def follow_up_rows(figures: dict[str, Any]) -> str:
    def cells(rows: dict[str, Any], row: str) -> tuple[str, str]:
        if row not in rows:
            return "", ""
        gain = f"{rows[row]['gain']:+.3f} ± {rows[row]['standard error']:.3f}"
        return f"{rows[row]['mrr']:.3f}", "" if row == "question alone" else gain

    return table(
        ("what is searched with", *(head for title in LOOSE.values() for head in (title, "gain"))),
        *(
            (what, *(cell for name in LOOSE for cell in cells(figures[name]["rows"], row)))
            for row, what in FOLLOW_UP_ROWS
        ),
    )


def self_contained_rows(figures: dict[str, Any]) -> str:
    def gain(found: dict[str, float]) -> str:
        return f"{found['gain']:+.3f} ± {found['standard error']:.3f}"

    return table(
        ("questions and their history", "questions", "alone", *(head for _, head in SELF_CONTAINED_ROWS)),
        *(
            (
                name,
                str(row["questions"]),
                f"{row['question alone']:.3f}",
                *(gain(row["rows"][kind]) for kind, _ in SELF_CONTAINED_ROWS),
            )
            for name, row in figures.items()
        ),
    )


def chat_rows(figures: dict[str, Any]) -> str:
    def cells(name: str, row: str) -> str:
        return " / ".join(
            f"{figures[name][scope][row]['recall@10']:.3f}"
            for scope in ("among all chats", "in the chat alone")
        )

    def gain(name: str) -> str:
        against = "minus the root of the conversation"
        found = (
            figures[name][scope][CHAT_ROWS[-2][0]][against]
            for scope in ("among all chats", "in the chat alone")
        )
        return " / ".join(f"{one['gain']:+.3f} ± {one['standard error']:.3f}" for one in found)

    return table(
        ("what is stored", *CHAT.values()),
        *((what, *(cells(name, row) for name in CHAT)) for row, what in CHAT_ROWS),
        ("root of the sitting, minus that of the conversation", *(gain(name) for name in CHAT)),
    )


def synthesizer_rows(figures: dict[str, Any]) -> str:
    columns = [(texts, merger) for texts in TEXTS for merger in MERGERS]

    def row(what: str, cell: Callable[[dict[str, Any], str], str]) -> tuple[str, ...]:
        return what, *(cell(figures[texts], merger) for texts, merger in columns)

    def fidelity(part: dict[str, Any], merger: str, count: str) -> str:
        return f"{part['mergers'][merger]['by_chunks'][count]:.3f}"

    def kept(part: dict[str, Any], merger: str, way: str, length: str) -> str:
        return f"{part['lengths'][way][length][merger]['mean']:.3f}"

    def plus(value: float, error: float) -> str:
        return f"{value:.4f} ± {error:.4f}"

    return table(
        ("", *(f"{TEXTS[texts]}: {merger}" for texts, merger in columns)),
        row(
            "the teacher's vector, 2 to 10 chunks", lambda part, one: f"{part['mergers'][one]['teacher']:.3f}"
        ),
        *(row(f"{count} chunks", partial(fidelity, count=count)) for count in ("2", "5", "10")),
        *(
            row(f"the first ten chunks, of {length}, {way}", partial(kept, way=way, length=length))
            for way in ("tree", "chain")
            for length in ("10", "20", "50", "100")
        ),
        row(
            "a random tree of 100 and `merge`", lambda part, one: f"{part['associativity'][one]['mean']:.3f}"
        ),
        row(
            "lost by shuffling",
            lambda part, one: plus(part["mergers"][one]["order"], part["mergers"][one]["order_error"]),
        ),
        row(
            "a sequence, rather than its reverse",
            lambda part, one: plus(part["recognition"][one]["mean"], part["recognition"][one]["error"]),
        ),
    )


def one_vector_rows(figures: dict[str, Any]) -> str:
    def gain(found: dict[str, Any], row: str) -> str:
        value, error = found["against calibrated"][row]
        return f"{found['ndcg@10'][row]:.3f}" + ("" if row == AGAINST else f" ({value:+.3f} ± {error:.3f})")

    return table(
        ("set", *ONE_VECTOR),
        *((name, *(gain(found, row) for row in ONE_VECTOR)) for name, found in figures["retrieval"].items()),
    )


def passage_rows(figures: dict[str, Any]) -> str:
    names = (*MERGERS, "teacher")
    found = {title: figures[texts]["passages"] for texts, title in TEXTS.items()}
    cells = {
        title: [f"{row[name][0]:.3f} ± {row[name][1]:.3f}" for name in names] for title, row in found.items()
    }
    return table(("windows of", *names), *((title, *row) for title, row in cells.items()))


def inside_rows(figures: dict[str, Any]) -> str:
    rows = figures["ndcg@10"]
    sets = list(next(iter(rows.values())))
    return table(
        ("merger", *sets), *((name, *(f"{row[part]:.3f}" for part in sets)) for name, row in rows.items())
    )


def ablation_rows(rows: dict[str, Any]) -> str:
    def cells(found: dict[str, Any]) -> Iterator[str]:
        yield f"{found['teacher']:.3f}"
        yield f"{found['spread']:.4f}" if found.get("spread") is not None else ""
        yield f"{found['by_chunks']['10']:.3f}"
        yield f"{found['retrieval']:.3f}"
        yield f"{found['order']:.4f} ± {found['order_error']:.4f}"
        yield f"{found['associativity']:.4f}"

    head = (
        "training",
        "teacher",
        "between seeds",
        "10 chunks",
        "retrieval",
        "lost by shuffling",
        "tree and whole",
    )
    return table(head, *((name, *cells(found)) for name, found in rows.items()))


def synthesizer_beside(figures: dict[str, Any]) -> str:
    def fidelity(texts: str, count: str | None = None) -> list[str]:
        found = [figures[texts]["mergers"][merger] for merger in MERGERS]
        return [f"{row['by_chunks'][count] if count else row['teacher']:.3f}" for row in found]

    def retrieval(name: str) -> list[str]:
        rows = ("mean", AGAINST, "synthesizer")
        return [f"{figures['retrieval'][name]['ndcg@10'][row]:.3f}" for row in rows]

    return table(
        ("", *MERGERS),
        ("cosine with the teacher, Wikipedia, 2 to 10 chunks", *fidelity("wikipedia")),
        ("the same, 10 chunks", *fidelity("wikipedia", "10")),
        ("COVID-QA's papers, 2 to 10 chunks", *fidelity("covidqa")),
        ("the right document, nDCG@10: COVID-QA", *retrieval("covidqa")),
        ("XQuAD-en", *retrieval("xquad_en")),
    )


def trained() -> dict[str, str]:
    figures = load("synthesizer")["figures"]
    return {
        "synthesizer-beside": synthesizer_beside(figures),
        "ablations": ablation_rows(load("ablations")["figures"]["rows"]),
        "synthesizer": synthesizer_rows(figures),
        "one-vector": one_vector_rows(figures),
        "windows": passage_rows(figures),
        "inside": inside_rows(load("retrieval_training")["figures"]),
    }


def document_rows(
    covid: dict[str, float], xquad: dict[str, float], rows: tuple[tuple[str, str, str], ...]
) -> str:
    return table(
        ("what is stored", "vectors", "COVID-QA", "XQuAD-en"),
        *((what, vectors, f"{covid[row]:.3f}", f"{xquad[row]:.3f}") for row, what, vectors in rows),
    )


def closed_form() -> dict[str, str]:
    sets = load("retrieval")["figures"]
    covid, xquad = (sets[name]["ndcg@10"] for name in ("covidqa", "xquad_en"))
    gains = sets["covidqa"][GAINS]
    conversation = load("conversation")["figures"]
    languages, loose = load("retrieval-languages")["figures"], load("passages")["figures"]
    speed, parity = load("speed")["figures"]["ratios"], load("embedder_parity")
    return {
        "headline": document_rows(
            covid, xquad, tuple(row for row in DOCUMENT_ROWS if row[0] in HEADLINE_ROWS)
        ),
        "retrieval": document_rows(covid, xquad, DOCUMENT_ROWS),
        "passages": table(
            ("what is stored", "vectors", "COVID-QA"),
            *((what, vectors, f"{covid[row]:.3f}") for row, what, vectors in PASSAGE_ROWS),
        ),
        "subsets": table(
            ("calibrated on", *(f"{name}" for name in gains["uncalibrated"])),
            *(
                (size.replace("13760 vectors", "all 13,760"), *(f"{gain:+.3f}" for gain in row.values()))
                for size, row in gains.items()
                if size != "uncalibrated"
            ),
        ),
        "languages": table(
            ("what is stored", *LANGUAGES.values()),
            *(
                (what, *(f"{languages[name]['ndcg@10'][row]:.3f}" for name in LANGUAGES))
                for row, what, _ in DOCUMENT_ROWS
                if row in LANGUAGE_ROWS
            ),
            *(
                (
                    f"{what} calibrated on {size}, minus {without}",
                    *(f"{languages[name][GAINS][size][what]:+.3f}" for name in LANGUAGES),
                )
                for what, without in (("root", "the mean's"), ("chunks", "raw"))
                for size in ("20 vectors", "50 vectors", "200 vectors", "1000 vectors")
            ),
        ),
        "loose": loose_rows(loose),
        "loose-subsets": loose_subsets(loose),
        "follow-up": follow_up_rows(conversation["follow-up questions"]),
        "self-contained": self_contained_rows(conversation["self-contained questions"]),
        "chat": chat_rows(load("chat")["figures"]),
        "speed": table(
            ("ratio", "measured"),
            *((name, f"{value:.4f}" if value < 0.1 else f"{value:.2f}") for name, value in speed.items()),
        ),
        "parity": table(
            ("tokens", "texts", "least cosine", "mean cosine"),
            *(
                (str(group["tokens"]), str(group["texts"]), f"{group['min']:.5f}", f"{group['mean']:.5f}")
                for group in (*parity["by_length"], {"tokens": "all", **parity["cosine"]})
            ),
        ),
    }


def filled(text: str, name: str, content: str) -> str:
    block = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
    return re.sub(rf"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _: block, text, flags=re.DOTALL)


def main() -> int:
    tables = closed_form() | trained() | quality_tables.tables() | scaling_tables.tables()
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES}
    for name in tables:
        places = [page.name for page, text in pages.items() for _ in re.findall(f"<!-- {name} -->", text)]
        if len(places) != 1:
            raise SystemExit(f"The table {name} must stand in one place; it stands in {places or 'none'}.")
    status = 0
    for page, text in pages.items():
        fresh = text
        for name, content in tables.items():
            fresh = filled(fresh, name, content)
        if "--check" not in sys.argv:
            page.write_text(fresh, encoding="utf-8")
        elif fresh != text:
            wrong = f"{page.name} disagrees with benchmarks/results; run: python -m benchmarks.readme"
            print(wrong, file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
