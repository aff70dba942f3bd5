"""The objectives against values by hand, and what their gradients may not do."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

F = torch.nn.functional
losses = pytest.importorskip("merger_plugins.training.losses")

from merger_plugins.training.network import Synthesizer, SynthesizerConfig  # noqa: E402

D = 16


def network(**settings: object) -> Synthesizer:
    torch.manual_seed(0)
    made = Synthesizer(SynthesizerConfig(d_model=D, num_layers=1, nhead=2, dropout=0.0, **settings))
    for parameter in made.parameters():  # away from the beginning, at which it is the mean
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def sequences(b: int = 4, n: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([n, n - 1, n - 2, 4])[:b]
    mask = torch.arange(n) < lengths[:, None]
    vectors = F.normalize(torch.randn(b, n, D, generator=generator), dim=-1) * mask[..., None]
    return vectors, mask, (torch.rand(b, n, generator=generator) + 0.5) * mask


def test_distances_by_hand() -> None:
    one, other = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    assert losses.distance(one, other).item() == pytest.approx(0.5)
    assert losses.distance(one, other, "l1").item() == pytest.approx(2 / 4 * math.sqrt(2))
    with pytest.raises(ValueError, match="'l2'"):
        losses.distance(one, other, "l2")


def test_masked_vectors_are_seen_by_nobody_but_the_target() -> None:
    model, (vectors, mask, masses) = network(), sequences()
    masked = torch.zeros_like(mask)
    masked[:, 1] = True
    merged = model(vectors, mask, masses).pooler_output
    loss = losses.vmlm(model, vectors, mask, masses, masked, merged)
    changed = torch.where(masked[..., None], torch.randn_like(vectors), vectors)
    assert losses.vmlm(model, changed, mask, masses, masked, merged).item() == pytest.approx(
        loss.item(), abs=1e-6
    )
    loss.backward()
    assert model.reconstruct.weight.grad.abs().sum() > 0  # trained through what was injected
    assert losses.vmlm(model, vectors, mask, masses, torch.zeros_like(mask), merged).item() < 1e-6


def test_the_target_of_masked_vectors_is_not_trained_through() -> None:
    model, (vectors, mask, masses) = network(), sequences()
    masked = mask & (torch.arange(mask.shape[1]) == 2)
    target = model(vectors, mask, masses).pooler_output
    target.retain_grad()
    losses.vmlm(model, vectors, mask, masses, masked, target).backward()
    assert target.grad is None


def test_false_histories_are_a_cross_entropy_of_two() -> None:
    model = network()
    merged, follows = F.normalize(torch.randn(6, D), dim=-1), torch.tensor([0, 1, 0, 1, 1, 0])
    logits = (merged * math.sqrt(D)) @ model.continuity.weight.T + model.continuity.bias
    by_hand = -logits.log_softmax(-1)[torch.arange(6), follows].mean()
    assert losses.vnsp(model, merged, follows).item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_merging_parts_is_merging_each_and_then_the_merged() -> None:
    model, (vectors, mask, masses) = network().eval(), sequences(2)
    parts = torch.tensor([[[0, 1, 2], [3, 4, -1], [5, 6, -1]], [[0, 1, 2], [3, 4, 5], [-1, -1, -1]]])
    found = losses.merge_parts(model, vectors, mask, masses, parts)
    for row, division in enumerate([[[0, 1, 2], [3, 4], [5, 6]], [[0, 1, 2], [3, 4, 5]]]):
        merged = [
            model(vectors[None, row, part], None, masses[None, row, part]).pooler_output for part in division
        ]
        sums = torch.stack([masses[row, part].sum() for part in division])
        by_hand = model(torch.stack(merged, 1), None, sums[None]).pooler_output[0]
        torch.testing.assert_close(found[row], by_hand, atol=1e-5, rtol=0)
    everything = torch.arange(7).expand(2, 1, 7).clone()
    everything[1, 0, 6] = -1
    once = losses.merge_parts(model, vectors, mask, masses, everything)
    torch.testing.assert_close(once, model(vectors, mask, masses).pooler_output, atol=1e-5, rtol=0)


def test_associativity_of_a_mean_by_hand() -> None:
    vectors, mask, masses = sequences(2)
    one = [[[0, 1, 2], [3, 4], [5, 6]], [[0, 1, 2], [3, 4, 5]]]
    other = [[[0, 1], [2, 3, 4, 5, 6]], [[0], [1, 2, 3, 4, 5]]]
    torch.manual_seed(0)
    fresh = Synthesizer(SynthesizerConfig(d_model=D, num_layers=1, nhead=2)).eval()  # equals the mean

    def nested(row: int, division: list[list[int]]) -> torch.Tensor:
        merged = [F.normalize(masses[row, part] @ vectors[row, part], dim=-1) for part in division]
        total = sum(masses[row, part].sum() * node for part, node in zip(division, merged, strict=True))
        return F.normalize(total, dim=-1)

    def padded(rows: list[list[list[int]]]) -> torch.Tensor:
        stacked = torch.full((2, 3, 5), -1)
        for row, division in enumerate(rows):
            for group, part in enumerate(division):
                stacked[row, group, : len(part)] = torch.tensor(part)
        return stacked

    by_hand = torch.stack([1 - nested(row, one[row]) @ nested(row, other[row]) for row in range(2)]).mean()
    found = losses.associativity(fresh, vectors, mask, masses, padded(one), padded(other))
    assert by_hand > 1e-4  # a mean of unit vectors is not associative once its nodes are made unit vectors
    assert found.item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_retrieval_by_hand() -> None:
    queries = F.normalize(torch.randn(3, D), dim=-1)
    merged = F.normalize(torch.randn(3, D), dim=-1)
    articles = torch.tensor([5, 6, 5])
    scores = queries @ merged.T / 0.1
    by_hand = -torch.stack(
        [
            scores[0, 0] - scores[0, [0, 1]].logsumexp(0),  # the third is the same article: no negative
            scores[1, 1] - scores[1].logsumexp(0),
            scores[2, 2] - scores[2, [1, 2]].logsumexp(0),
        ]
    ).mean()
    assert losses.retrieval(queries, merged, articles, 0.1).item() == pytest.approx(by_hand.item(), abs=1e-5)
