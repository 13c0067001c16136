"""How deep in the model a parameter lies, and weights that change with the depth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Where transformers puts its layers: decoders and ModernBERT "layers.3.", BERT's family "encoder.layer.3.",
# GPT-2's "h.3.", T5's "block.3.".
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_INPUT = re.compile(r"(?:^|\.)(?:embed\w*|wte|wpe|tok_embeddings)\.")
_HEAD = "embed_out."  # GPT-NeoX's name for what turns states into words


def layer_of(name: str) -> int | None:
    """Number of the layer that a parameter belongs to, counted from 0; ``None`` outside of the layers."""
    found = _LAYER.search(name)
    return None if found is None else int(found[1])


def count_layers(names: Iterable[str]) -> int:
    """Count of layers among a model's parameter names; at least 1."""
    return 1 + max((layer for name in names if (layer := layer_of(name)) is not None), default=0)


def depth_of(name: str, layers: int) -> float:
    """Depth of a parameter in the model.

    Args:
        name: The parameter's name, as transformers gives it.
        layers: Count of the model's layers.

    Returns:
        0 for the embeddings and the first layer, 1 for the last layer and what follows it, evenly spaced
        between.
    """
    layer = layer_of(name)
    if layer is None:
        return 0.0 if _INPUT.search(name) and _HEAD not in name else 1.0
    return min(1.0, layer / max(1, layers - 1))


def curve_at(points: Sequence[float], depth: float) -> float:
    """Value of a curve at a depth.

    Args:
        points: Control points, evenly spaced from depth 0 to depth 1; straight lines between them.
        depth: In [0, 1].
    """
    place = depth * (len(points) - 1)
    left = min(int(place), len(points) - 1)
    right = min(left + 1, len(points) - 1)
    share = place - left
    # Exact at the control points and where both ends are equal.
    return points[left] if share == 0 else points[left] + share * (points[right] - points[left])


def knots(curves: Iterable[Sequence[float]]) -> list[float]:
    """All depths at which one of the curves has a control point; between them every curve is straight."""
    lengths = {len(points) for points in curves} | {2}
    return sorted({place / (length - 1) for length in lengths if length > 1 for place in range(length)})
