"""Fading masses, and a question merged with its conversation, against the formula written out."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from merger_plugins import (
    ConversationQuery,
    HistoryGate,
    MeanMerger,
    MergerError,
    QuestionNeed,
    fading_masses,
    load_embedder,
    load_gate,
    merge_question,
    shown_passages,
)
from merger_plugins._artefact import open_artefact, write_artefact
from merger_plugins.errors import (
    ArtefactError,
    DimensionError,
    EmptyInputError,
    InputError,
    NonFiniteError,
    ZeroVectorError,
)
from tests.strategies import DIMENSION, chunk_vectors, cosine, masses_for, normalised, sequences

pytestmark = pytest.mark.filterwarnings("error")

WIDE = 64
seeds = st.integers(0, 2**32 - 1)
questions = seeds.map(lambda seed: chunk_vectors(seed, 1)[0])
ages_of = st.floats(0, 1e4, width=32)


@st.composite
def conversations(draw, min_size=1):
    history = draw(sequences(min_size=min_size, max_size=12))
    masses = draw(masses_for(len(history)))
    ages = np.array(draw(st.lists(ages_of, min_size=len(history), max_size=len(history))), np.float32)
    return history, masses, ages


def towards(first, second, wanted):
    """A unit vector at the cosine `wanted` with `first`, in the plane of the two."""
    first = normalised(first)
    rest = normalised(second - (second @ first) * first)
    return wanted * first + np.sqrt(1 - wanted**2) * rest


# -- masses that fade ------------------------------------------------------------------------------------


def test_masses_halve_with_every_half_life():
    faded = fading_masses([8, 8, 8, 5], [0, 3, 6, 1.5], 3)
    assert faded.dtype == np.float32
    np.testing.assert_allclose(faded, [8, 4, 2, 5 / np.sqrt(2)], rtol=1e-6)


@given(conversations(), st.floats(0.01, 1e6))
def test_faded_masses_stay_positive_and_never_grow(conversation, half_life):
    _, masses, ages = conversation
    faded = fading_masses(masses, ages, half_life)
    assert (faded > 0).all()
    assert (faded <= masses).all()
    oldest_first = np.argsort(-ages)
    assert (np.diff((faded / masses)[oldest_first]) >= -1e-6).all()


def test_without_fading_masses_are_themselves():
    np.testing.assert_array_equal(fading_masses([3, 4], [0, 1e6], np.inf), np.float32([3, 4]))
    assert fading_masses([], [], 1).shape == (0,)


def test_a_merger_takes_faded_masses():
    vectors = chunk_vectors(1, 5)
    faded = fading_masses(np.ones(5), [400, 300, 200, 100, 0], 1)
    np.testing.assert_allclose(MeanMerger().merge(vectors, masses=faded), normalised(vectors[-1]), atol=1e-5)


@pytest.mark.parametrize(
    ("masses", "ages", "half_life", "error"),
    [
        ([1, 2], [0], 1, DimensionError),
        ([1, 0], [0, 1], 1, InputError),
        ([1, np.nan], [0, 1], 1, NonFiniteError),
        ([1, 1], [0, np.inf], 1, NonFiniteError),
        ([1, 1], [0, -1], 1, InputError),
        ([1, 1], [0, 1], 0, InputError),
        ([1, 1], [0, 1], -3, InputError),
        ([1, 1], [0, 1], np.nan, InputError),
        ([1, 1], ["a", 1], 1, DimensionError),
    ],
)
def test_bad_masses_and_ages_are_refused(masses, ages, half_life, error):
    with pytest.raises(error) as raised:
        fading_masses(masses, ages, half_life)
    assert isinstance(raised.value, MergerError)


# -- the question -----------------------------------------------------------------------------------------


@given(questions, st.sampled_from([1.0, 1e-4, 300.0]))
def test_without_history_the_question_stays_as_it_is(question, scale):
    for history in ([], np.zeros((0, DIMENSION), np.float32)):
        query = merge_question(question * np.float32(scale), history, question_mass=3)
        np.testing.assert_allclose(query.vector, normalised(question), atol=1e-6)
        assert (query.weight, query.cosine, query.turns.shape) == (0, 0, (0,))
    unit = normalised(question).astype(np.float32)
    exact = unit / np.sqrt(np.einsum("d,d->", unit, unit))
    np.testing.assert_array_equal(merge_question(unit).vector, exact)


@given(questions, conversations(), st.floats(1, 500))
def test_the_merge_is_the_question_and_its_weighted_history(question, conversation, mass):
    history, masses, ages = conversation
    query = merge_question(question, history, question_mass=mass, masses=masses, ages=ages)
    fading = 0.5 ** np.minimum((ages.astype(float) - ages.min()) / 3, 40)
    turns = np.sqrt(masses.astype(float)) * fading
    turns /= turns.sum()
    direction = turns @ normalised(history)
    assume(np.linalg.norm(direction) > 1e-2)
    asked, direction = normalised(question.astype(float)), normalised(direction)
    near = asked @ direction
    stands_alone = np.clip((0.7 - near) / 0.55, 0, 1)
    trusted = 0.5 + 0.5 * np.clip((near - 0.05) / 0.1, 0, 1)
    length = 0.6 * stands_alone * trusted * (10 / np.clip(mass, 2.5, 40)) ** 0.25
    np.testing.assert_allclose(query.vector, normalised(asked + length * direction), atol=2e-5)
    np.testing.assert_allclose(query.turns, turns, atol=1e-6)
    assert query.cosine == pytest.approx(near, abs=1e-5)
    assert query.weight == pytest.approx(length / (1 + length), abs=1e-4)
    assert query.vector.dtype == np.float32
    assert np.linalg.norm(query.vector) == pytest.approx(1, abs=1e-5)


@given(questions, conversations(min_size=2), st.randoms(use_true_random=False))
def test_with_ages_the_order_of_the_history_does_not_matter(question, conversation, random):
    history, masses, ages = conversation
    order = list(range(len(history)))
    random.shuffle(order)
    query = merge_question(question, history, masses=masses, ages=ages)
    shuffled = merge_question(question, history[order], masses=masses[order], ages=ages[order])
    np.testing.assert_allclose(shuffled.vector, query.vector, atol=1e-5)


def test_without_ages_the_last_turn_counts_most():
    question, turns = chunk_vectors(0, 1, WIDE)[0], np.eye(4, WIDE, dtype=np.float32)
    parts = merge_question(question, turns).turns
    np.testing.assert_allclose(parts[1:] / parts[:-1], 2 ** (1 / 3), rtol=1e-5)
    assert parts.sum() == pytest.approx(1)


@given(questions, conversations(), st.floats(0.01, 100))
def test_only_proportions_of_masses_and_differences_of_ages_matter(question, conversation, scale):
    history, masses, ages = conversation
    query = merge_question(question, history, masses=masses, ages=ages)
    moved = merge_question(question, history * 7, masses=masses * scale, ages=ages + 100)
    np.testing.assert_allclose(moved.vector, query.vector, atol=1e-4)


def test_the_gate_closes_on_a_question_that_stands_alone_and_doubts_a_foreign_history():
    gate = HistoryGate()
    assert gate.weight(0.7) == gate.weight(0.95) == 0
    assert gate.weight(0.15) == pytest.approx(0.6)
    assert gate.weight(0.0) == gate.weight(-0.5) == pytest.approx(0.3)
    assert gate.weight(0.3, 10) == pytest.approx(gate.weight(0.3))
    assert gate.weight(0.3, 1) == gate.weight(0.3, 2.5) > gate.weight(0.3, 10) > gate.weight(0.3, 40)
    history = chunk_vectors(3, 1, WIDE)
    question = towards(history[0], chunk_vectors(4, 1, WIDE)[0], 0.8)
    alone = merge_question(question, history)
    assert alone.weight == 0
    np.testing.assert_allclose(alone.vector, question, atol=1e-6)


def test_turns_that_cancel_out_leave_the_question_alone():
    question, turn = chunk_vectors(5, 2)
    query = merge_question(question, [turn, -turn], ages=[0, 0])
    np.testing.assert_allclose(query.vector, normalised(question), atol=1e-6)
    assert query.weight == 0


@given(questions, conversations())
def test_the_queries_are_the_merge_and_the_question_alone(question, conversation):
    history, masses, ages = conversation
    query = merge_question(question, history, masses=masses, ages=ages)
    np.testing.assert_array_equal(query.queries[0], query.vector)
    np.testing.assert_allclose(query.queries[-1], normalised(question), atol=1e-6)
    assert len(query.queries) == (2 if query.weight else 1)
    assert query.queries.dtype == np.float32


def test_the_better_of_two_scores_keeps_what_the_question_finds_by_itself():
    topic, subject = np.eye(2, WIDE, dtype=np.float32)
    passages = np.array([towards(topic, subject, 0.99), towards(subject, topic, 0.8)])
    query = merge_question(topic, [subject], gate=HistoryGate(share=1, foreign=1))
    assert (query.vector @ passages.T).argmax() == 1
    assert query.scores(passages).argmax() == 0


@given(questions, conversations(), st.floats(0, 1))
def test_scores_are_the_better_cosines_less_what_a_foreign_history_is_doubted(question, conversation, doubt):
    history, masses, ages = conversation
    gate = HistoryGate(share=1, foreign=1, doubt=doubt, trusted=(-0.2, 0.4))
    query = merge_question(question, history, masses=masses, ages=ages, gate=gate)
    passages = chunk_vectors(23, 20)
    cosines = query.queries @ normalised(passages).T
    if query.weight:
        assert query.doubt == pytest.approx(doubt * np.clip((0.4 - query.cosine) / 0.6, 0, 1), abs=1e-5)
        cosines[0] -= query.doubt
    else:
        assert query.doubt == 0
    assert query.doubts == (query.doubt, 0.0)[-len(query.queries) :]
    np.testing.assert_allclose(query.scores(passages * 5), cosines.max(axis=0), atol=1e-5)
    assert query.scores([]).shape == (0,)


# -- the trained gate -------------------------------------------------------------------------------------


@given(questions, conversations(), st.floats(-5, 5), st.booleans())
def test_a_need_scales_the_weight_by_its_probability(question, conversation, bias, squared):
    history, masses, ages = conversation
    weights = chunk_vectors(21, 1)[0].astype(np.float32)
    products = chunk_vectors(24, DIMENSION).astype(np.float32) if squared else None
    need = QuestionNeed(weights, bias, "some model", products)
    unit = normalised(question.astype(float))
    logit = unit @ weights + bias + (unit @ products @ unit if squared else 0)
    assert need(question * np.float32(3)) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    plain = HistoryGate(share=1, foreign=1, covered=(0.9, 1.0), brevity=0)
    both = [
        merge_question(question, history, masses=masses, ages=ages, gate=gate).weight
        for gate in (plain, HistoryGate(share=1, foreign=1, covered=(0.9, 1.0), brevity=0, need=need))
    ]
    lengths = [weight / (1 - weight) for weight in both]
    assert lengths[1] == pytest.approx(lengths[0] * need(question), abs=1e-4)


@pytest.mark.filterwarnings("default")
def test_the_bundled_gate_tells_what_needs_its_conversation():
    embedder, gate = load_embedder(), load_gate()
    leaning = ["Is it treatable?", "What about the second one?", "Why not?", "And how much do they cost?"]
    standing = [
        "Is throat cancer treatable?",
        "What is the second law of thermodynamics?",
        "Why do cats purr when they sleep?",
        "How much do electric cars cost in Norway?",
    ]
    assert gate.need is not None
    for first, second in zip(leaning, standing, strict=True):
        assert gate.need(embedder.embed_query(first)) > gate.need(embedder.embed_query(second)) + 0.1
    history = embedder.embed_documents(["What is throat cancer?", "Throat cancer is a kind of cancer."])
    passages = embedder.embed_documents(
        ["Throat cancer is treated by surgery, radiation and chemotherapy.", "A treaty was signed in 1648."]
    )
    query = merge_question(embedder.embed_query(leaning[0]), history, gate=gate)
    assert query.weight > 0.2
    assert query.scores(passages).argmax() == 0


def test_a_gate_is_kept_in_a_folder(tmp_path):
    vectors = chunk_vectors(22, DIMENSION + 1).astype(np.float32)
    need = QuestionNeed(vectors[0], 0.25, "some model", vectors[1:])
    gate = HistoryGate(
        half_life=np.inf, share=0.4, related=(-0.5, 0.25), brevity=0, doubt=0.125, trusted=(0, 1), need=need
    )
    gate.save(tmp_path / "gate", card="A gate.")
    assert (tmp_path / "gate" / "README.md").read_text() == "A gate."
    found = load_gate(tmp_path / "gate")
    np.testing.assert_array_equal(found.need.weights, need.weights)
    np.testing.assert_array_equal(found.need.products, need.products)
    assert (found.need.bias, found.need.embedder) == (0.25, "some model")
    for name in (field.name for field in fields(HistoryGate) if field.name != "need"):
        assert getattr(found, name) == getattr(gate, name)
    for path in (gate.save(tmp_path / "gate"), str(tmp_path / "gate")):
        assert merge_question(QUESTION, HISTORY, gate=load_gate(path)).weight == pytest.approx(
            merge_question(QUESTION, HISTORY, gate=gate).weight
        )


def test_a_damaged_or_missing_gate_is_refused(tmp_path):
    need = QuestionNeed(np.ones(4, np.float32), 0.0, "some model", np.ones((4, 4), np.float32))
    folder = HistoryGate(need=need).save(tmp_path / "gate")
    with pytest.raises(ArtefactError, match="no model folder"):
        load_gate(tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match="'calibrated'"):
        load_gate("calibrated-all-MiniLM-L6-v2")
    config, tensors = open_artefact(folder).config, (folder / "need.safetensors").read_bytes()
    for change, says in (({"settings": {"share": 3}}, "no gate's"), ({"dimension": 5}, "5 weights")):
        write_artefact(folder, {**config, **change}, {"need.safetensors": tensors})
        with pytest.raises(ArtefactError, match=says):
            load_gate(folder)
    other = QuestionNeed(need.weights, 0.0, "some model", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(ArtefactError, match="products"):
        load_gate(HistoryGate(need=other).save(tmp_path / "other"))
    (folder / "need.safetensors").write_bytes(b"")
    with pytest.raises(ArtefactError, match="damaged"):
        load_gate(folder)


def test_a_need_of_another_embedding_model_and_a_gate_without_are_refused():
    with pytest.raises(DimensionError, match="all-MiniLM-L6-v2"):
        merge_question(QUESTION, HISTORY, gate=load_gate())
    with pytest.raises(InputError, match="question="):
        load_gate().weight(0.3)
    with pytest.raises(InputError, match="no need"):
        HistoryGate().save("nowhere")


# -- what was shown ---------------------------------------------------------------------------------------


@given(seeds, st.integers(0, 6))
def test_the_merge_turns_away_from_what_was_shown(seed, count):
    question, *turns = chunk_vectors(seed, count + 2, WIDE)
    shown = np.array(turns[:count], np.float32).reshape(count, WIDE)
    query = merge_question(question, turns, shown=shown)
    assert np.linalg.norm(query.vector) == pytest.approx(1, abs=1e-5)
    if count:
        assert (query.queries @ normalised(shown).T).max() <= 0.4 + 2e-3
    else:
        np.testing.assert_allclose(query.vector, merge_question(question, turns).vector, atol=1e-6)


def test_turning_away_from_one_passage_is_the_nearest_vector_that_is_allowed():
    question, other = chunk_vectors(6, 2, WIDE)
    passage = towards(question, other, 0.9)
    query = merge_question(question, shown=passage[None]).vector
    assert cosine(query, passage) == pytest.approx(0.4, abs=1e-5)
    nearest = np.cos(np.arccos(0.4) - np.arccos(0.9))  # in the plane of question and passage
    assert cosine(query, question) == pytest.approx(nearest, abs=1e-5)


def test_what_is_far_already_changes_nothing_and_a_question_that_is_the_passage_stays():
    question, other = chunk_vectors(7, 2, WIDE)
    far = towards(question, other, 0.2)
    np.testing.assert_allclose(merge_question(question, shown=[far]).vector, normalised(question), atol=1e-6)
    np.testing.assert_allclose(
        merge_question(question, shown=[question]).vector, normalised(question), atol=1e-6
    )


def test_passages_that_a_turn_repeats_are_found():
    turns, passages = chunk_vectors(8, 3, WIDE, 3.0), chunk_vectors(9, 5, WIDE, 3.0)
    passages[3] = towards(turns[1], passages[3], 0.97)
    passages[1] = towards(turns[2], passages[1], 0.9)
    assert shown_passages(turns, passages).tolist() == [3]
    assert shown_passages(turns, passages, least_cosine=0.85).tolist() == [1, 3]
    assert shown_passages(turns[:1] * 9, passages).tolist() == []
    for nothing in (shown_passages([], passages), shown_passages(turns, [])):
        assert (nothing.shape, nothing.dtype) == ((0,), np.int64)


# -- bad input --------------------------------------------------------------------------------------------

QUESTION, HISTORY = chunk_vectors(10, 1)[0], chunk_vectors(11, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"question": []}, EmptyInputError, "question"),
        ({"question": np.full(DIMENSION, np.nan)}, NonFiniteError, "question"),
        ({"question": np.zeros(DIMENSION)}, ZeroVectorError, "question"),
        ({"question": HISTORY}, DimensionError, "question"),
        ({"question_mass": 0}, InputError, "mass"),
        ({"question_mass": np.inf}, NonFiniteError, "mass"),
        ({"history": HISTORY[:, :-1]}, DimensionError, "history"),
        ({"history": HISTORY[0]}, DimensionError, "history"),
        ({"history": HISTORY * np.nan}, NonFiniteError, "history"),
        ({"history": HISTORY * 0}, ZeroVectorError, "history"),
        ({"masses": [1, 2]}, DimensionError, "masses"),
        ({"masses": [1, 2, -1]}, InputError, "masses"),
        ({"ages": [1, 2]}, DimensionError, "ages"),
        ({"ages": [1, 2, -1]}, InputError, "ages"),
        ({"ages": [1, 2, np.nan]}, NonFiniteError, "ages"),
        ({"shown": HISTORY[:, :-1]}, DimensionError, "shown"),
        ({"shown": HISTORY * np.inf}, NonFiniteError, "shown"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, error, says):
    with pytest.raises(error, match=says) as raised, np.errstate(all="ignore"):
        merge_question(**{"question": QUESTION, "history": HISTORY} | arguments)
    assert isinstance(raised.value, MergerError)


@pytest.mark.parametrize(
    "settings",
    [
        {"half_life": 0},
        {"half_life": -1},
        {"half_life": np.nan},
        {"share": -0.1},
        {"share": np.nan},
        {"foreign": 1.5},
        {"brevity": -1},
        {"shown": 2},
        {"doubt": -0.1},
        {"trusted": (0.5, 0.5)},
        {"related": (0.3, 0.1)},
        {"covered": (0.2, 0.2)},
        {"covered": (np.nan, 0.2)},
    ],
)
def test_a_gate_out_of_range_is_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings)).replace("_", ".")):
        HistoryGate(**settings)


def test_the_result_can_be_looked_at():
    query = merge_question(QUESTION, HISTORY)
    assert isinstance(query, ConversationQuery)
    assert 0 <= query.weight < 1
    assert -1 <= query.cosine <= 1
