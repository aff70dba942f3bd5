"""The objectives of the synthesizer, as functions of tensors.

vMLM, vNSP and the teacher's vectors follow the article of enzoescipy's sequence-merger (2025); associativity
is ours; retrieval is InfoNCE (van den Oord et al. 2018) with the other documents of the batch as negatives.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from merger_plugins.training.network import Synthesizer


def distance(merged: Tensor, target: Tensor, kind: str = "cosine") -> Tensor:
    """How far unit vectors (b, d) are from unit vectors (b, d), averaged over the batch.

    Args:
        merged: where the network arrived.
        target: where it should be.
        kind: ``"cosine"``: 1 - cosine; or ``"l1"``: the L1 distance over the square root of d, which compares
            with the Euclidean distance whatever d is.

    Raises:
        ValueError: another kind.
    """
    if kind == "cosine":
        return 1 - (merged.float() * target.float()).sum(-1).mean()
    if kind == "l1":
        return (merged.float() - target.float()).abs().mean() * math.sqrt(merged.shape[-1])
    raise ValueError(f"kind is {kind!r}; it is 'cosine' or 'l1'.")


def vmlm(
    network: Synthesizer, vectors: Tensor, mask: Tensor, masses: Tensor, masked: Tensor, merged: Tensor
) -> Tensor:
    """Masked vectors: predict them, put the predictions in their place, and merge as if nothing was missing.

    Args:
        network: run twice: once to predict what is masked, in both copies, once with the predictions.
        vectors: (b, n, d).
        mask: (b, n) True where there is a vector.
        masses: (b, n).
        masked: (b, n) True for vectors that are hidden.
        merged: (b, d) what the network makes of the unmasked sequence: the target, not trained through, as
            both would else agree on a constant.

    Returns:
        The L1 distance between the two merged vectors; see `distance`.
    """
    predicted = network(vectors, mask, masses, masked=masked, reconstruct=True).reconstructed
    injected = network(vectors, mask, masses, masked=masked, injected=predicted)
    return distance(injected.pooler_output, merged.detach(), "l1")


def vnsp(network: Synthesizer, merged: Tensor, follows: Tensor) -> Tensor:
    """False histories: two-way cross-entropy of whether the second half of a sequence follows its first.

    Args:
        network: its head `continuity` reads merged vectors.
        merged: (b, d) unit vectors.
        follows: (b,) 1 where the sequence is of one piece, 0 where its second half begins another article.
    """
    logits = network.continuity(merged * math.sqrt(merged.shape[-1]))
    return F.cross_entropy(logits.float(), follows)


def merge_parts(network: Synthesizer, vectors: Tensor, mask: Tensor, masses: Tensor, parts: Tensor) -> Tensor:
    """Merge the parts of each sequence, then the merged parts with their summed masses.

    Args:
        network: merges.
        vectors: (b, n, d).
        mask: (b, n) True where there is a vector.
        masses: (b, n).
        parts: (b, g, k) places of each part's vectors in its sequence, -1 where padded.

    Returns:
        (b, d) unit vectors. A sequence of one part has that part's.
    """
    b, g, k = parts.shape
    places = parts.clamp_min(0).flatten(1)  # (b, g k)
    inside = (parts >= 0).flatten(1) & mask.gather(1, places)
    members = vectors.gather(1, places[..., None].expand(-1, -1, vectors.shape[-1]))
    weights = masses.gather(1, places) * inside
    filled = inside.view(b * g, k).any(-1)
    merged = network(
        members.view(b * g, k, -1)[filled], inside.view(b * g, k)[filled], weights.view(b * g, k)[filled]
    ).pooler_output
    nodes = merged.new_zeros(b * g, merged.shape[-1]).masked_scatter(filled[:, None], merged).view(b, g, -1)
    present = filled.view(b, g)
    whole = network(nodes, present, weights.view(b, g, k).sum(-1)).pooler_output
    return torch.where(present.sum(-1, keepdim=True) == 1, nodes[:, 0], whole)


def associativity(
    network: Synthesizer, vectors: Tensor, mask: Tensor, masses: Tensor, parts: Tensor, other: Tensor
) -> Tensor:
    """1 - cosine between merging merged parts and merging the whole, or other parts of it.

    Args:
        network: merges.
        vectors: (b, n, d).
        mask: (b, n).
        masses: (b, n).
        parts: (b, g, k) a division; see `merge_parts`.
        other: (b, g', k') another one; (b, 1, n) for the whole at once.
    """
    one = merge_parts(network, vectors, mask, masses, parts)
    return distance(one, merge_parts(network, vectors, mask, masses, other))


def retrieval(queries: Tensor, merged: Tensor, articles: Tensor, temperature: float) -> Tensor:
    """InfoNCE: each query must find its document among those of the batch.

    Args:
        queries: (b, d) unit vectors of queries, as the base embedder makes them.
        merged: (b, d) their documents, merged.
        articles: (b,) which article each is of: others of the same one are no negatives.
        temperature: cosines are divided by it.
    """
    scores = queries.float() @ merged.float().T / temperature
    same = articles[:, None] == articles[None, :]
    same.fill_diagonal_(False)
    targets = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores.masked_fill(same, -math.inf), targets)
