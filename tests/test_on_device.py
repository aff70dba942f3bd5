"""Texts to merged vectors on one device: what embedding and merging one after the other gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merger_plugins import CalibratedMerger, MeanMerger, load_embedder, load_merger, on_device
from merger_plugins._session import CPU, DeviceArray
from merger_plugins.embedders import MiniLMEmbedder
from merger_plugins.errors import EmptyInputError, InputError, NoMemoryError, NonFiniteError, ProviderError
from merger_plugins.mergers.loading import SYNTHESIZER
from merger_plugins.mergers.onnx import OnnxMerger
from merger_plugins.on_device import GATHER, TextMerger, _Plan

pytest.importorskip("onnxruntime")

WORDS = ("river", "stone", "bridge", "winter", "harvest", "copper", "engine", "lantern", "orchard", "harbour")


def texts(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [[" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(size)] for size in sizes]


def one_after_the_other(merger, documents, masses=None):
    embedder = load_embedder()
    vectors = [embedder.embed_documents(one) for one in documents]
    if masses is None:
        masses = [[max(embedder.count_tokens(text), 1) for text in one] for one in documents]
    return merger.merge_many(vectors, masses=masses)


@pytest.fixture(scope="module")
def synthesizer():
    return TextMerger(load_merger(SYNTHESIZER, providers=(CPU,)))


@given(st.lists(st.integers(1, 130), min_size=1, max_size=6), st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_it_gives_what_embedding_and_merging_give(synthesizer, sizes, seed):
    documents = texts(sizes, seed)
    expected = one_after_the_other(synthesizer.merger, documents)
    np.testing.assert_allclose(synthesizer.merge_many(documents), expected, atol=2e-6)


def test_masses_may_be_given_and_parts_do_not_matter(synthesizer, monkeypatch):
    documents = texts([3, 1, 25, 12])
    masses = [np.arange(1, len(one) + 1) for one in documents]
    monkeypatch.setattr("merger_plugins.on_device._CHUNKS_AT_ONCE", 20)
    monkeypatch.setattr(synthesizer.merger, "_items_per_run", 20)
    found = synthesizer.merge_many(documents, masses=masses)
    np.testing.assert_allclose(found, one_after_the_other(synthesizer.merger, documents, masses), atol=2e-6)
    again = synthesizer.merge_many(documents[:2], masses=[None, masses[1]])
    np.testing.assert_allclose(again, one_after_the_other(synthesizer.merger, documents[:2]), atol=2e-6)


@pytest.mark.parametrize("window", [None, 4], ids=["any number at once", "a fixed number"])
def test_graphs_of_others_are_merged_as_they_state(tmp_path, window):
    onnx = pytest.importorskip("onnx")
    documents = texts([1, 5, 33])
    folder = MeanMerger().export(tmp_path / "mean", dimension=384)
    if window:
        model = onnx.load(folder / "model.onnx")
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[1].dim_value = window
        path = tmp_path / "fixed.onnx"
        onnx.save(model, path)
        merger = OnnxMerger(path, providers=(CPU,))
        assert merger.window == window
    else:
        merger = OnnxMerger(folder, providers=(CPU,))
    found = TextMerger(merger).merge_many(documents)
    np.testing.assert_allclose(found, one_after_the_other(merger, documents), atol=2e-6)


def test_a_calibrated_merger_merges_all_chunks_at_once(tmp_path):
    pytest.importorskip("onnx")
    documents = texts([2, 14, 30])
    calibrated = load_merger().calibrated([load_embedder().embed_documents(one) for one in documents])
    assert isinstance(calibrated, CalibratedMerger)
    merger = OnnxMerger(calibrated.export(tmp_path / "calibrated"), providers=(CPU,))
    found = TextMerger(merger).merge_many(documents)
    np.testing.assert_allclose(found, one_after_the_other(merger, documents), atol=1e-4)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.integers(2, 11), st.integers(1, 64))
@settings(deadline=None)
def test_a_plan_merges_every_chunk_into_its_own_root_once(sizes, window, items):
    plan = _Plan([np.ones(size, np.float32) for size in sizes], window, items)
    inside = {row: [row] for row in range(sum(sizes))}
    for merge in plan.merges:
        assert merge.places.shape[1] <= window
        for row, (places, masses) in enumerate(zip(merge.places, merge.masses, strict=True)):
            chunks = [chunk for place in places[masses > 0].tolist() for chunk in inside[place]]
            assert chunks == sorted(chunks)
            inside[merge.into + row] = chunks
    assert len(inside) == plan.rows
    bounds = np.cumsum([0, *sizes])
    for root, start, stop in zip(plan.roots.tolist(), bounds, bounds[1:], strict=False):
        assert inside[root] == list(range(start, stop))


@pytest.mark.parametrize(
    ("documents", "kind", "said"),
    [
        ([], EmptyInputError, "documents is empty"),
        ([["a"], []], EmptyInputError, r"documents\[1\] is empty"),
        ("text", InputError, r"pass \[\[text\]\]"),
        (["text"], InputError, r"pass \[\[text\]\]"),
        ([["a", 3]], InputError, "int arrived"),
        ([["a", "\ud800"]], InputError, "not valid Unicode"),
    ],
)
def test_bad_documents_are_errors(synthesizer, documents, kind, said):
    with pytest.raises(kind, match=said):
        synthesizer.merge_many(documents)


def test_masses_that_do_not_fit_are_errors(synthesizer):
    with pytest.raises(InputError, match="2 masses arrived for 1 documents"):
        synthesizer.merge_many([["a"]], masses=[[1], [2]])
    with pytest.raises(InputError, match="masses"):
        synthesizer.merge_many([["a"]], masses=[[1, 2]])


def test_only_graphs_of_the_bundled_embedders_dimension_are_taken(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(InputError, match="no ONNX graph"):
        TextMerger(MeanMerger())
    other = OnnxMerger(MeanMerger().export(tmp_path / "mean", dimension=8))
    with pytest.raises(InputError, match="dimension 8"):
        TextMerger(other)
    with pytest.raises(InputError, match="only the bundled one"):
        TextMerger(load_merger(SYNTHESIZER), embedder=object())


def test_a_device_without_room_says_how_to_go_on(synthesizer, monkeypatch):
    def full(*_):
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1")

    monkeypatch.setattr(MiniLMEmbedder, "_run_into", full)
    with pytest.raises(NoMemoryError, match="fewer documents"):
        synthesizer.merge_many([["a"]])


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_a_graph_that_gives_no_direction_is_an_error_that_names_the_document(tmp_path, factor):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(MeanMerger().export(tmp_path / "mean", dimension=384) / "model.onnx")
    (last,) = (node for node in model.graph.node if "merged" in node.output)
    last.output[list(last.output).index("merged")] = "before"
    model.graph.initializer.append(onnx.helper.make_tensor("factor", onnx.TensorProto.FLOAT, [], [factor]))
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], ["merged"]))
    onnx.save(model, tmp_path / "broken.onnx")
    merger = TextMerger(OnnxMerger(tmp_path / "broken.onnx", providers=(CPU,)))
    with pytest.raises(NonFiniteError, match="2 of 2 documents, such as one that begins with 'stone'"):
        merger.merge_many([["stone", "bridge"], ["river"]])


def test_only_merged_vectors_leave_the_device(synthesizer, monkeypatch):
    kept = []

    class Seen:
        def __init__(self, value):
            self.value = value

        def numpy(self):
            kept.append(self.value.shape())
            return self.value.numpy()

    def seen(gather, nodes, places, mask):
        found = laid_out(gather, nodes, places, mask)
        return Seen(found) if places.shape[1] == 1 and len(places) == 3 else found

    laid_out = on_device._laid_out
    monkeypatch.setattr(on_device, "_laid_out", seen)
    synthesizer.merge_many(texts([30, 2, 12]))
    assert kept == [[3, 1, 384]]


def test_an_embedder_elsewhere_is_an_error(synthesizer, monkeypatch):
    session = synthesizer.merger._graph().session
    monkeypatch.setattr(on_device, "device_of", lambda asked: "cuda" if asked is session else "cpu")
    with pytest.raises(ProviderError, match="merger runs on cuda and the embedder on cpu"):
        synthesizer.merge_many([["a"]])


def test_rows_outside_an_array_are_refused(synthesizer):
    session = synthesizer.merger._graph().session
    with pytest.raises(ValueError, match="rows 2 to 4 of 3"):
        DeviceArray(3, 384, session).bind_rows(session.io_binding(), "merged", 2, 2)


def test_the_graph_that_ships_is_the_one_that_is_written(tmp_path):
    pytest.importorskip("onnx")
    from onnx_export.gather import release

    assert release(tmp_path / "gather.onnx").read_bytes() == GATHER.read_bytes()
