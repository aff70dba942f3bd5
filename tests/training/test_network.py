"""The network against the same computed naively, its start, its independence of padding, its saved form."""

import importlib
import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="install the extra train")
pytest.importorskip("transformers", reason="install the extra train")

import merger_plugins.training  # noqa: E402
from merger_plugins.errors import MissingExtraError  # noqa: E402
from merger_plugins.training import network  # noqa: E402
from merger_plugins.training.network import NAMED, RESIDUALS, Synthesizer, SynthesizerConfig  # noqa: E402
from tests.strategies import Array, normalised  # noqa: E402
from tests.synthesizers import KINDS, D, config, trained  # noqa: E402

LENGTHS = [5, 1, 3]


def batch(seed: int = 0, lengths: list[int] = LENGTHS) -> tuple[Any, Any, Any]:
    """Vectors (b, n, d), mask and masses (b, n); what is padded is not zero."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    vectors = torch.randn(*shape, D, generator=generator) + 0.5
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    return vectors, mask, torch.rand(*shape, generator=generator) * 90 + 10


def merged(model: Synthesizer, *inputs: Any, **options: Any) -> Array:
    with torch.no_grad():
        return model(*inputs, **options).pooler_output.float().numpy()


# -- the same, one token at a time, in float64 ---------------------------------------------------------


def naive(model: Synthesizer, vectors: Array, masses: Array) -> Array:
    """The merged vector of one sequence (n, d), from the weights alone."""
    c = model.config
    w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    units = normalised(vectors)
    n, d = units.shape
    shares = masses / masses.sum()

    def linear(name: str, x: Array) -> Array:
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)

    def norm(name: str, x: Array) -> Array:
        return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    activation = {
        "relu": lambda x: max(x, 0.0),
        "silu": lambda x: x / (1 + math.exp(-x)),
        "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    }[c.activation]

    tokens = []
    for i in range(n):
        token = units[i] * math.sqrt(d)
        tokens.append(token + math.log(shares[i] * n) * w["mass"] if c.use_masses else token)
    if c.positions == "learned":
        tokens = [token + w["places.weight"][i] for i, token in enumerate(tokens)]
    if c.positions == "ppe":
        half = c.ppe_dim // 2
        count = (half + 1) // 2
        firsts, seconds = [], []
        for i, token in enumerate(tokens):
            angles = [i / 10_000 ** (k / count) for k in range(count)]
            wave = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            first, second = token.copy(), token.copy()
            first[:half], second[d - half :] = wave[:half], wave[:half]
            firsts.append(first)
            seconds.append(second)
        tokens = firsts + seconds
    states = [w["cls"], *tokens]
    for layer in range(c.num_layers):
        name = f"layers.{layer}"
        if f"{name}.enter.weight" in w:
            states = [linear(f"{name}.enter", x) for x in states]
        heads, width = c.nhead_dims[layer], c.layer_dims[layer]
        size = width // heads
        split = [linear(f"{name}.attention_in", norm(f"{name}.attention_norm", x)) for x in states]
        attended = []
        for one in split:
            parts = []
            for head in range(heads):
                at = slice(head * size, (head + 1) * size)
                scores = np.array(
                    [one[:width][at] @ other[width : 2 * width][at] / math.sqrt(size) for other in split]
                )
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                parts.append(sum(a * o[2 * width :][at] for a, o in zip(weights, split, strict=True)))
            attended.append(linear(f"{name}.attention_out", np.concatenate(parts)))
        states = [x + y for x, y in zip(states, attended, strict=True)]
        for i, x in enumerate(states):
            hidden = linear(f"{name}.forward_in", norm(f"{name}.forward_norm", x))
            if c.use_glu:
                gate, hidden = np.split(hidden, 2)
                hidden = np.array([activation(g) for g in gate]) * hidden
            else:
                hidden = np.array([activation(h) for h in hidden])
            states[i] = x + linear(f"{name}.forward_out", hidden)
    states = [norm("norm", x) for x in states]
    if c.residual == "none":
        return normalised(linear("project", states[0]))
    spread = 1 - sum(share**2 for share in shares)
    if c.residual in ("weights", "both"):
        scores = [float(w["weigh.weight"][0] @ x) for x in states[1:]]
        scores = [np.mean(scores[i::n]) for i in range(n)]
        shares = shares * np.exp(scores)
        shares = shares / shares.sum()
    direction = sum(share * unit for share, unit in zip(shares, units, strict=True))
    if c.residual in ("vector", "both"):
        direction = direction + spread * linear("project", states[0])
    return normalised(direction)


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_computes_is_what_its_weights_say(kind: str) -> None:
    model = trained(kind)
    vectors, mask, masses = batch()
    found = merged(model, vectors, mask, masses)
    for row, length in enumerate(LENGTHS):
        expected = naive(model, vectors[row, :length].double().numpy(), masses[row, :length].double().numpy())
        np.testing.assert_allclose(found[row], expected, atol=2e-6)


# -- the start -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", network.POSITIONS)
@pytest.mark.parametrize("residual", [r for r in RESIDUALS if r != "none"])
def test_untrained_it_is_the_mass_weighted_mean(residual: str, positions: str) -> None:
    torch.manual_seed(1)
    model = Synthesizer(config(residual=residual, positions=positions)).eval()
    vectors, mask, masses = batch()
    weights = (masses * mask).double().numpy()
    expected = normalised((normalised(vectors.numpy()) * weights[..., None]).sum(1))
    np.testing.assert_allclose(merged(model, vectors, mask, masses), expected, atol=1e-6)
    plain = normalised((normalised(vectors.numpy()) * mask.numpy()[..., None]).sum(1))
    np.testing.assert_allclose(merged(model, vectors, mask), plain, atol=1e-6)


def test_in_mixed_precision_the_mean_is_exact_all_the_same() -> None:
    model = Synthesizer(config()).eval()
    vectors, mask, masses = batch()
    with torch.no_grad():
        exact = model(vectors, mask, masses).direction
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(vectors, mask, masses).direction
    np.testing.assert_allclose(mixed, exact, atol=1e-6)


def test_a_plain_one_starts_elsewhere() -> None:
    vectors, mask, _ = batch()
    mean = normalised((normalised(vectors.numpy()) * mask.numpy()[..., None]).sum(1))
    model = Synthesizer(config("the card's")).eval()
    assert np.sum(merged(model, vectors, mask) * mean, axis=1).max() < 0.99


# -- padding, batch-mates, masses ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batch_mates_change_nothing(kind: str) -> None:
    model = trained(kind)
    vectors, mask, masses = batch()
    together = merged(model, vectors, mask, masses)
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        alone = merged(model, vectors[one, :length], None, masses[one, :length])
        np.testing.assert_allclose(together[one], alone, atol=1e-5)
    np.testing.assert_allclose(
        merged(model, vectors.flip(0), mask.flip(0), masses.flip(0)), together[::-1], atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_padding_may_stand_anywhere_and_zeros_are_padding(kind: str) -> None:
    model = trained(kind)
    vectors, _, masses = batch(lengths=[3, 3])
    expected = merged(model, vectors, None, masses)
    spread = torch.zeros(2, 6, D)
    weights = torch.full((2, 6), 7.0)
    places = [1, 2, 5]
    spread[:, places], weights[:, places] = vectors, masses
    np.testing.assert_allclose(merged(model, spread, None, weights), expected, atol=1e-5)
    mask = torch.zeros(2, 6, dtype=torch.long)
    mask[:, places] = 1
    np.testing.assert_allclose(merged(model, spread, mask, weights), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_only_proportions_of_masses_and_directions_of_vectors_count(kind: str) -> None:
    model = trained(kind)
    vectors, mask, masses = batch()
    expected = merged(model, vectors, mask, masses)
    np.testing.assert_allclose(merged(model, vectors, mask, masses * 1e9), expected, atol=1e-5)
    np.testing.assert_allclose(merged(model, vectors * 300, mask, masses), expected, atol=1e-5)
    equal = torch.full_like(masses, 17.0)
    np.testing.assert_allclose(merged(model, vectors, mask, equal), merged(model, vectors, mask), atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if config(kind).residual != "none"])
def test_one_vector_comes_back_and_a_little_beside_much_moves_it_little(kind: str) -> None:
    model = trained(kind)
    vectors, _, _ = batch(lengths=[2, 2])
    units = normalised(vectors.numpy())
    alone = merged(model, vectors[:, :1], None, torch.full((2, 1), 30.0))
    np.testing.assert_allclose(alone, units[:, 0], atol=1e-6)
    moved = [
        np.linalg.norm(merged(model, vectors, None, torch.tensor([[mass, 1.0]] * 2)) - units[:, 0], axis=1)
        for mass in (1.0, 1e2, 1e4)
    ]
    assert (moved[0] > 10 * moved[1]).all()
    assert (moved[1] > 10 * moved[2]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_order_counts_where_there_are_positions(kind: str) -> None:
    model = trained(kind)
    vectors, _, masses = batch(lengths=[4, 4])
    turned = merged(model, vectors.flip(1), None, masses.flip(1))
    difference = np.abs(turned - merged(model, vectors, None, masses)).max()
    assert difference < 1e-5 if model.config.positions == "none" else difference > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_without_vectors_gives_zeros_and_no_nan(kind: str) -> None:
    model = trained(kind)
    vectors, mask, masses = batch()
    expected = merged(model, vectors, mask, masses)
    mask[1] = False
    found = model(vectors, mask, masses, reconstruct=True)
    found.direction.square().sum().backward()
    np.testing.assert_array_equal(found.pooler_output[1].detach(), np.zeros(D))
    np.testing.assert_allclose(found.pooler_output[0].detach(), expected[0], atol=1e-5)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -- what training uses --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_vector_is_not_seen(kind: str) -> None:
    model = trained(kind)
    vectors, mask, masses = batch()
    holes = torch.zeros_like(mask)
    holes[0, 2] = True
    first = merged(model, vectors, mask, masses, masked=holes)
    other = vectors.clone()
    other[0, 2] = -other[0, 2] + 3
    np.testing.assert_allclose(merged(model, other, mask, masses, masked=holes), first, atol=1e-6)
    assert np.abs(merged(model, vectors, mask, masses) - first)[0].max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_vectors_injected_give_the_unmasked_merge(kind: str) -> None:
    model = trained(kind)
    vectors, mask, masses = batch()
    holes = mask & torch.tensor([True, False, True, False, False])
    copies = 2 if model.config.positions == "ppe" else 1
    found = merged(model, vectors, mask, masses, masked=holes, injected=vectors.repeat(1, copies, 1) * 5)
    np.testing.assert_allclose(found, merged(model, vectors, mask, masses), atol=1e-5)
    with torch.no_grad():
        output = model(vectors, mask, masses, masked=holes, reconstruct=True)
    assert output.reconstructed.shape == (len(LENGTHS), copies * max(LENGTHS), D)
    assert merged(model, vectors, mask, masses, masked=holes, injected=output.reconstructed).shape == (3, D)


def test_every_weight_is_trained_by_some_objective() -> None:
    model = trained().train()
    vectors, mask, masses = batch()
    holes = mask & torch.tensor([True, False, False, False, False])
    output = model(vectors, mask, masses, masked=holes, reconstruct=True)
    loss = output.direction.sum() + output.reconstructed.square().sum()
    (loss + model.continuity(output.pooler_output).square().sum()).backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close(dtype: Any) -> None:
    model = trained()
    vectors, mask, masses = batch()
    expected = merged(model, vectors, mask, masses)
    output = model.to(dtype)(vectors, mask, masses)
    assert output.last_hidden_state.dtype == dtype
    cosines = np.sum(normalised(output.pooler_output.detach().float().numpy()) * expected, axis=1)
    assert cosines.min() > (0.9999 if dtype == torch.float16 else 0.998)


# -- configurations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"), [("small", 7.4), ("card-137m", 136.9), ("card-181m", 182.0), ("card-206m", 206.0)]
)
def test_named_configurations_have_the_weights_that_their_names_say(name: str, millions: float) -> None:
    assert name in NAMED
    with torch.device("meta"):
        model = Synthesizer(SynthesizerConfig.named(name, dropout=0.0))
    assert model.config.dropout == 0.0
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    d = model.config.d_model
    output = model(torch.empty(2, 7, d, device="meta"), torch.ones(2, 7, dtype=torch.bool, device="meta"))
    assert output.last_hidden_state.shape == (2, d)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer_dims": [8, 8], "num_layers": 3}, r"\[2\] entries for 3 layers"),
        ({"layer_dims": [8, 8], "ffn_dims": [8]}, r"\[1, 2\] entries for 2 layers"),
        ({"layer_dims": [10], "nhead": 4}, "width 10 cannot have 4 heads"),
        ({"ppe_dim": 7}, "ppe_dim is 7; .*even number from 2"),
        ({"ppe_dim": 14}, "d_model, which is 12"),
        ({"positions": "rotary"}, "'rotary'; it is one of ppe, learned, none"),
        ({"residual": True}, "residual is True"),
        ({"activation": "tanh"}, "'tanh'"),
        ({"window": 1}, "window is 1"),
        ({"positions": "learned", "max_positions": 4, "window": 5}, "window is 5, and there are 4"),
        ({"positions": "learned", "window": None}, "window is None"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynthesizerConfig(**{"d_model": 12, "nhead": 2, "ppe_dim": 4, **values})


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="no configuration 'large'; there is small, card-137m"):
        SynthesizerConfig.named("large")


def test_wrong_shapes_are_refused() -> None:
    model = trained("vector, learned positions")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 5\); expected \(b, n, 12\)"):
        model(torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match=r"shape \(3, 12\)"):
        model(torch.ones(3, 12))
    with pytest.raises(ValueError, match="31 vectors arrived, and 30 positions"):
        model(torch.ones(1, 31, D))


def test_without_torch_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"Training a merger .*'torch'.*'merger-plugins\[train\]'"):
        importlib.reload(merger_plugins.training)


# -- the saved form ------------------------------------------------------------------------------------


def test_a_saved_folder_loads_where_the_package_is_not_installed(tmp_path: Path) -> None:
    model = trained()
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    assert saved["auto_map"]["AutoModel"] == "network.Synthesizer"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "network.py"}
    vectors, mask, masses = batch()
    zeros = vectors * mask[..., None]
    expected = merged(model, vectors, mask, masses)
    (tmp_path / "inputs.json").write_text(json.dumps([zeros.tolist(), masses.tolist()]))
    script = f"""
        import json, sys
        sys.modules["merger_plugins"] = None
        import torch
        from transformers import AutoModel
        model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True).eval()
        vectors, masses = map(torch.tensor, json.load(open({str(tmp_path / "inputs.json")!r})))
        with torch.no_grad():
            output = model(vectors, masses=masses)
            assert torch.equal(output.last_hidden_state, output.pooler_output)
            assert torch.equal(model(vectors, masses=masses, return_dict=False)[0], output[0])
        print("merged", json.dumps(output.last_hidden_state.tolist()))
    """
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**environment, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("merged ")]
    np.testing.assert_allclose(json.loads(line.removeprefix("merged ")), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_survive_saving(kind: str, tmp_path: Path) -> None:
    model = trained(kind)
    model.save_pretrained(tmp_path)
    again, report = Synthesizer.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    inputs = batch()
    np.testing.assert_array_equal(merged(again.eval(), *inputs), merged(model, *inputs))
