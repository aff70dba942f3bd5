"""The synthesizer: a transformer encoder that merges a sequence of vectors into one.

A learned CLS vector goes before the sequence, and what becomes of it is the merged vector. The order of the
sequence comes in by Paired Positional Encoding (PPE): the sequence is written twice, and the position vector
overwrites the first ppe_dim / 2 dimensions of the first copy and the last ppe_dim / 2 of the second, so that
nothing of a vector is lost and nothing is added to it. CLS, PPE, widths and gates a layer and the objectives
of pre-training follow the model card and article of enzoescipy's sequence-merger (2025); the residual forms,
the masses and the pooling weights are ours.

This file is saved beside the weights, and ``AutoModel.from_pretrained(folder, trust_remote_code=True)`` runs
it where the package is not installed: it imports torch and transformers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
POSITIONS = ("ppe", "learned", "none")
RESIDUALS = ("none", "vector", "weights", "both")

WAVELENGTH = 10_000.0
"""The longest wave of the position vectors is 2π times that many places (Vaswani et al. 2017)."""

_BASE = {"nhead": 6, "ppe_dim": 16, "residual": "both", "use_masses": True}
_CARD = {"d_model": 768, "residual": "none", "use_masses": False, "ppe_dim": 16}

NAMED: dict[str, dict[str, Any]] = {
    "small": {**_BASE, "d_model": 384, "num_layers": 4},
    "card-137m": {
        **_CARD,
        "layer_dims": [3072, 1536, 768, 768],
        "ffn_dims": [7168, 6144, 4096, 4096],
        "nhead_dims": [4, 3, 2, 2],
    },
    "card-181m": {
        **_CARD,
        "layer_dims": [3840, 1920, 768],
        "ffn_dims": [8192, 6144, 4096],
        "nhead_dims": [4, 3, 2],
    },
    "card-206m": {
        **_CARD,
        "use_glu": True,
        "layer_dims": [3072, 1536, 768, 768, 768],
        "ffn_dims": [8192, 8192, 4352, 4096, 4096],
        "nhead_dims": [4, 3, 2, 2, 2],
    },
}
"""Configurations by name. The card gives ranges and examples of its parameters and 137M to 206M weights, not
which belong together: ``card-181m`` has its examples of `layer_dims` and `ffn_dims`, the other two lie at the
ends of its range."""


class SynthesizerConfig(PretrainedConfig):
    """What a `Synthesizer` is made of.

    Args:
        d_model: d, the dimension of the vectors.
        num_layers: number of encoder layers; None for that of `layer_dims`, or 4.
        nhead: attention heads of a layer.
        layer_dims: width of each layer; None for `d_model` everywhere. Descending widths are the bottleneck.
        ffn_dims: hidden width of each layer's feed-forward part; None for four times the layer's width.
        nhead_dims: heads of each layer; None for `nhead` everywhere.
        use_glu: gate the feed-forward parts (Shazeer 2020), which makes them half as large again.
        activation: ``"gelu"``, ``"relu"`` or ``"silu"``.
        dropout: of attention and of what each part adds, in training.
        positions: ``"ppe"``; ``"learned"``, a trained vector a place, added; or ``"none"``.
        ppe_dim: how many dimensions PPE overwrites, half of them in either copy: 384 of 768 in
            self-supervised training, 16 afterwards. It holds no weights, so it may differ between stages.
        residual: how the merged vector is made. ``"none"``: from the projected CLS state alone. ``"vector"``:
            the mean of the vectors and that, times how evenly the mass is spread: 1 - Σ g_i² for shares g_i,
            so that one vector gives itself. ``"weights"``: a mean with a learned weight a vector. ``"both"``.
            All but the first equal the mass-weighted mean before training.
        use_masses: tell the layers each vector's share of the mass. The means are mass-weighted anyway.
        max_positions: how many places ``"learned"`` knows.
        window: how many vectors a merger gives the network at once; more go through the tree. None for any
            number.
        initializer_range: standard deviation of the weights before training.

    Raises:
        ValueError: a value is out of range, or the lists disagree.
    """

    model_type = "merger_plugins_synthesizer"

    def __init__(
        self,
        d_model: int = 384,
        num_layers: int | None = None,
        nhead: int = 8,
        layer_dims: list[int] | None = None,
        ffn_dims: list[int] | None = None,
        nhead_dims: list[int] | None = None,
        use_glu: bool = False,
        activation: str = "gelu",
        dropout: float = 0.1,
        positions: str = "ppe",
        ppe_dim: int = 16,
        residual: str = "both",
        use_masses: bool = True,
        max_positions: int = 512,
        window: int | None = 10,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        stated = {len(given) for given in (layer_dims, ffn_dims, nhead_dims) if given is not None}
        if num_layers is None:
            num_layers = max(stated, default=4)
        if num_layers < 1 or stated - {num_layers}:
            raise ValueError(
                f"layer_dims, ffn_dims and nhead_dims have {sorted(stated)} entries for {num_layers} layers; "
                "give each one entry a layer, or leave it out."
            )
        self.d_model = d_model
        self.num_layers = num_layers
        self.nhead = nhead
        self.layer_dims = list(layer_dims or [d_model] * num_layers)
        self.ffn_dims = list(ffn_dims or [4 * width for width in self.layer_dims])
        self.nhead_dims = list(nhead_dims or [nhead] * num_layers)
        self.use_glu = use_glu
        self.activation = activation
        self.dropout = dropout
        self.positions = positions
        self.ppe_dim = ppe_dim
        self.residual = residual
        self.use_masses = use_masses
        self.max_positions = max_positions
        self.window = window
        self.initializer_range = initializer_range
        self._check()
        super().__init__(**kwargs)

    @classmethod
    def named(cls, name: str, **changes: Any) -> SynthesizerConfig:
        """A configuration of `NAMED`, with some values changed.

        Raises:
            ValueError: there is no such name.
        """
        if name not in NAMED:
            raise ValueError(f"There is no configuration {name!r}; there is {', '.join(NAMED)}.")
        return cls(**{**NAMED[name], **changes})

    def _check(self) -> None:
        for name, allowed in (
            ("activation", tuple(ACTIVATIONS)),
            ("positions", POSITIONS),
            ("residual", RESIDUALS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is one of {', '.join(allowed)}.")
        for width, heads in zip(self.layer_dims, self.nhead_dims, strict=True):
            if width < 1 or heads < 1 or width % heads:
                raise ValueError(
                    f"A layer of width {width} cannot have {heads} heads: one must divide the other."
                )
        if self.positions == "ppe" and not (0 < self.ppe_dim <= self.d_model and self.ppe_dim % 2 == 0):
            raise ValueError(
                f"ppe_dim is {self.ppe_dim}; it is an even number from 2 to d_model, which is {self.d_model}."
            )
        if self.window is not None and self.window < 2:
            raise ValueError(f"window is {self.window}; it is a number from 2 on, or None.")
        if self.positions == "learned" and (self.window or self.max_positions + 1) > self.max_positions:
            raise ValueError(
                f"window is {self.window}, and there are {self.max_positions} learned positions; "
                "it must be a number up to that."
            )


@dataclass
class SynthesizerOutput(ModelOutput):
    """What a `Synthesizer` gives; c is the number of copies of the sequence, 2 with PPE, else 1.

    Attributes:
        last_hidden_state: (b, d) the merged vectors, unit length. The card's users read them here,
        pooler_output: and those of FINESSE here: the same tensor.
        direction: (b, d) the merged vectors before their lengths became 1.
        reconstructed: (b, c n, d) for each place of each copy the vector that the layers expect there; None
            unless asked for.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    direction: Tensor | None = None
    reconstructed: Tensor | None = None


class Layer(nn.Module):
    """Attention and a feed-forward part, each normalised before and added after (Xiong et al. 2020)."""

    def __init__(self, config: SynthesizerConfig, index: int) -> None:
        super().__init__()
        width, hidden = config.layer_dims[index], config.ffn_dims[index]
        before = config.layer_dims[index - 1] if index else config.d_model
        self.heads = config.nhead_dims[index]
        self.use_glu = config.use_glu
        self.activation = ACTIVATIONS[config.activation]
        self.enter = nn.Linear(before, width) if before != width else nn.Identity()
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.forward_norm = nn.LayerNorm(width)
        self.forward_in = nn.Linear(width, (2 if config.use_glu else 1) * hidden)
        self.forward_out = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        """(b, s, before) states, (b, s) which are no padding -> (b, s, width)."""
        states = self.enter(states)
        states = states + self.dropout(self._attend(self.attention_norm(states), present))
        return states + self.dropout(self._transform(self.forward_norm(states)))

    def _attend(self, states: Tensor, present: Tensor) -> Tensor:
        split = self.attention_in(states).unflatten(
            -1, (3, self.heads, -1)
        )  # (b, s, 3, heads, width / heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # (b, heads, s, width / heads)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=present[:, None, None, :],
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return self.attention_out(attended.transpose(1, 2).flatten(2))

    def _transform(self, states: Tensor) -> Tensor:
        hidden = self.forward_in(states)
        if self.use_glu:
            gate, hidden = hidden.chunk(2, dim=-1)
            return self.forward_out(self.activation(gate) * hidden)
        return self.forward_out(self.activation(hidden))


class Synthesizer(PreTrainedModel):
    """Merges sequences of vectors, in reading order, into one unit vector each.

    Three heads read the last layer: `project` the merged vector's part, `weigh` the weights of the mean, and
    `reconstruct` what belongs in a place that was masked. A fourth, `continuity`, tells from merged vectors
    whether a sequence is of one piece; the objectives call it.
    """

    config_class = SynthesizerConfig
    base_model_prefix = "synthesizer"
    main_input_name = "vectors"

    def __init__(self, config: SynthesizerConfig) -> None:
        super().__init__(config)
        width, d = config.layer_dims[-1], config.d_model
        self.cls = nn.Parameter(torch.empty(d))
        self.masked = nn.Parameter(torch.empty(d))
        self.mass = nn.Parameter(torch.empty(d)) if config.use_masses else None
        self.places = nn.Embedding(config.max_positions, d) if config.positions == "learned" else None
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, d) if config.residual != "weights" else None
        self.weigh = nn.Linear(width, 1, bias=False) if config.residual in ("weights", "both") else None
        self.reconstruct = nn.Linear(width, d)
        self.continuity = nn.Linear(d, 2)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Synthesizer):
            nn.init.normal_(module.cls)
            nn.init.normal_(module.masked)
            if module.mass is not None:
                nn.init.zeros_(module.mass)
            if module.weigh is not None:
                nn.init.zeros_(module.weigh.weight)
            if module.project is not None and self.config.residual != "none":
                nn.init.zeros_(module.project.weight)

    def forward(
        self,
        vectors: Tensor,
        attention_mask: Tensor | None = None,
        masses: Tensor | None = None,
        *,
        masked: Tensor | None = None,
        injected: Tensor | None = None,
        reconstruct: bool = False,
        return_dict: bool | None = None,
    ) -> SynthesizerOutput | tuple[Tensor, ...]:
        """Merge.

        Args:
            vectors: (b, n, d) of any length and floating type; only their directions count.
            attention_mask: (b, n) True or 1 for vectors, False or 0 for padding, which may stand anywhere.
                None takes rows of zeros for padding.
            masses: (b, n) how much text each vector stands for; only proportions count. None for equal ones.
            masked: (b, n) True where the network must do without the vector: a learned one replaces it.
            injected: (b, c n, d) what replaces masked vectors in each copy instead, such as `reconstructed`.
            reconstruct: give `reconstructed` as well.
            return_dict: False for a tuple.

        Returns:
            A `SynthesizerOutput`. A sequence without any vector gives zeros.

        Raises:
            ValueError: another shape, or more vectors than there are learned positions.
        """
        d, dtype = self.config.d_model, self.cls.dtype
        if vectors.dim() != 3 or vectors.shape[-1] != d:
            raise ValueError(f"vectors have the shape {tuple(vectors.shape)}; expected (b, n, {d}).")
        if attention_mask is None:
            attention_mask = (vectors != 0).any(-1)
        present = attention_mask.to(torch.bool)  # (b, n)
        shares = _shares(present, masses)  # (b, n) float32
        content = _unit(vectors.float().masked_fill(~present[..., None], 0))  # (b, n, d) float32
        copies = [content] * (2 if self.config.positions == "ppe" else 1)
        if masked is not None:
            if injected is None:
                stand_ins = [self.masked.float().div(math.sqrt(d)).expand_as(content)] * len(copies)
            else:
                stand_ins = list(_unit(injected.float()).chunk(len(copies), dim=1))
            copies = [
                torch.where(masked[..., None], stand_in, copy)
                for copy, stand_in in zip(copies, stand_ins, strict=True)
            ]
            content = torch.stack(copies).mean(0)
        states = self._encode(copies, present, shares, dtype)  # (b, 1 + c n, width)
        direction = self._direction(states, content, present, shares)
        merged = _unit(direction).to(dtype)
        output = SynthesizerOutput(
            last_hidden_state=merged,
            pooler_output=merged,
            direction=direction,
            reconstructed=self.reconstruct(states[:, 1:]) if reconstruct else None,
        )
        return output.to_tuple() if return_dict is False else output

    def _encode(self, copies: list[Tensor], present: Tensor, shares: Tensor, dtype: torch.dtype) -> Tensor:
        """c copies (b, n, d) of unit vectors -> (b, 1 + c n, width): CLS, the first copy, the second."""
        scale = math.sqrt(self.config.d_model)  # entries of about 1, as those of the position vectors are
        copies = [copy * scale for copy in copies]
        if self.mass is not None:
            counts = present.sum(-1, keepdim=True)
            relative = (shares * counts).clamp_min(1e-6).log().masked_fill(~present, 0)  # 0 for the mean mass
            copies = [copy + relative[..., None] * self.mass.float() for copy in copies]
        places = (present.cumsum(-1) - 1).clamp_min(0)  # padding counts nowhere
        if self.config.positions == "ppe":
            half = self.config.ppe_dim // 2
            waves = _waves(places, half)
            first, second = copies
            copies = [torch.cat([waves, first[..., half:]], -1), torch.cat([second[..., :-half], waves], -1)]
        elif self.places is not None:
            if places.shape[-1] > self.config.max_positions:
                raise ValueError(
                    f"{places.shape[-1]} vectors arrived, and {self.config.max_positions} positions were "
                    "learned; merge them through the tree, or train with a larger max_positions."
                )
            copies = [copies[0] + self.places(places).float()]
        cls = self.cls.float().expand(present.shape[0], 1, -1)  # len() would fix b in an exported graph
        states = torch.cat([cls, *copies], 1).to(dtype)
        present = F.pad(present.repeat(1, len(copies)), (1, 0), value=True)
        for layer in self.layers:
            states = layer(states, present)
        return self.norm(states)

    def _direction(self, states: Tensor, content: Tensor, present: Tensor, shares: Tensor) -> Tensor:
        """(b, d) float32, of any length."""
        if self.config.residual == "none":
            assert self.project is not None  # only "weights" has none
            # A sequence without any vector leaves the CLS state alone, which stands for nothing.
            return self.project(states[:, 0]).float() * present.any(-1, keepdim=True)
        # 0 where one vector has all the mass or there is none: merging little into much changes it little,
        # and a chain of merges does not add up corrections.
        spread = 1 - shares.square().sum(-1, keepdim=True)
        spread = spread * present.any(-1, keepdim=True)
        if self.weigh is not None:
            scores = self.weigh(states[:, 1:]).float().squeeze(-1)  # (b, c n)
            scores = scores.unflatten(1, (-1, content.shape[1])).mean(1)  # (b, n)
            scores = scores.masked_fill(~present, -math.inf)
            weights = (scores - scores.amax(-1, keepdim=True).clamp_min(-1e4)).exp() * shares
            shares = weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)
        mean = (shares[..., None] * content).sum(
            1
        )  # a product of matrices would be half precision in autocast
        if self.project is None:
            return mean
        return mean + spread * self.project(states[:, 0]).float()


def _shares(present: Tensor, masses: Tensor | None) -> Tensor:
    """(b, n) each vector's share of the mass of its sequence, float32; 0 where padded."""
    masses = present.float() if masses is None else masses.float().masked_fill(~present, 0)
    masses = masses / masses.amax(-1, keepdim=True).clamp_min(1e-30)  # no sum leaves the range of float32
    return masses / masses.sum(-1, keepdim=True).clamp_min(1e-30)


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays."""
    return vectors / vectors.square().sum(-1, keepdim=True).clamp_min(1e-30).sqrt()


def _waves(places: Tensor, size: int) -> Tensor:
    """(b, n) places -> (b, n, size) sines, then cosines, of waves from short to long."""
    count = (size + 1) // 2
    steps = torch.arange(count, device=places.device, dtype=torch.float32)
    angles = places[..., None].float() * torch.exp(steps * (-math.log(WAVELENGTH) / count))
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :size]


SynthesizerConfig.register_for_auto_class()
Synthesizer.register_for_auto_class("AutoModel")
