import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import Document
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import NodeRelationship, TextNode

from merger_plugins.llama_index.documents import common_metadata, in_reading_order, joined_text, tells_order
from tests.llama_index import apps  # noqa: F401 - where LlamaIndex's splitter finds its data

WORDS = st.lists(
    st.sampled_from(["reef", "lamp", "oil.", "honey", "queen.", "rent"]), min_size=1, max_size=80
)


def split(text: str, overlap: int) -> list[TextNode]:
    splitter = SentenceSplitter(chunk_size=12, chunk_overlap=overlap, tokenizer=str.split)
    return splitter.get_nodes_from_documents([Document(text=text, id_="one")])


@given(WORDS, st.sampled_from([0, 3, 6]), st.randoms(use_true_random=False))
def test_split_nodes_in_any_order_make_the_text_again(
    words: list[str], overlap: int, rng: random.Random
) -> None:
    text = " ".join(words)
    nodes = split(text, overlap)
    shuffled = rng.sample(nodes, len(nodes))
    assert in_reading_order(shuffled) == nodes
    assert tells_order(shuffled)
    # The host finds offsets by searching for a node's text, and is misled where it occurs twice.
    if all(text.find(node.text) == text.rfind(node.text) for node in nodes):
        assert joined_text(nodes) == text


@given(WORDS, st.randoms(use_true_random=False))
def test_where_offsets_are_missing_links_tell_the_order(words: list[str], rng: random.Random) -> None:
    nodes = split(" ".join(words), 0)
    for node in nodes:
        node.start_char_idx = None
    shuffled = rng.sample(nodes, len(nodes))
    assert in_reading_order(shuffled) == nodes
    assert tells_order(shuffled)


def test_where_nothing_tells_the_order_it_stays() -> None:
    nodes = [TextNode(text=text) for text in "cab"]
    assert in_reading_order(nodes) == nodes
    assert not tells_order(nodes)
    assert tells_order(nodes[:1])


def test_links_in_a_circle_lose_no_node() -> None:
    nodes = split("reef lamp oil honey queen rent " * 8, 0)
    for node in nodes:
        node.start_char_idx = None
    nodes[-1].relationships[NodeRelationship.NEXT] = nodes[0].as_related_node_info()
    assert sorted(node.node_id for node in in_reading_order(nodes)) == sorted(node.node_id for node in nodes)


@pytest.mark.parametrize(
    ("spans", "texts", "expected"),
    [
        ([(0, 4), (4, 8)], ["abcd", "efgh"], "abcdefgh"),
        ([(0, 4), (5, 9)], ["abcd", "efgh"], "abcd efgh"),
        ([(0, 4), (2, 6)], ["abcd", "cdef"], "abcdef"),
        ([(0, 4), (2, 6)], ["abcd", "XYef"], "abcd\n\nXYef"),
        ([(0, 4), (90, 94)], ["abcd", "efgh"], "abcd\n\nefgh"),
        ([(0, 4), (0, 4)], ["abcd", "abcd"], "abcd"),
    ],
)
def test_joining(spans: list[tuple[int, int]], texts: list[str], expected: str) -> None:
    nodes = [
        TextNode(text=text, start_char_idx=start, end_char_idx=end)
        for (start, end), text in zip(spans, texts, strict=True)
    ]
    assert joined_text(nodes) == expected


def test_metadata_that_all_have() -> None:
    nodes = [
        TextNode(text="", metadata={"a": 1, "b": number, "merger_level": "section"}) for number in (1, 2)
    ]
    assert common_metadata(nodes) == {"a": 1}
