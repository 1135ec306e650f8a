"""Finds the last layer of a reward model where it is a plain linear one, and folds a scale and a shift into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from plaudit.model.adapters import base_model_of
from plaudit.scoring.scorer import Scorer

_CLOSE = 1e-5


@dataclass(frozen=True)
class PlainHead:
    """A linear layer whose output is the reward.

    Attributes:
        name: Its name in the model.
        layer: The layer.
    """

    name: str
    layer: nn.Linear

    @property
    def has_bias(self) -> bool:
        """Whether a shift can be folded into it."""
        return self.layer.bias is not None

    def fold(self, scale: float, shift: float) -> None:
        """Make rewards ``scale * reward + shift``, in place.

        Args:
            scale: The factor.
            shift: The summand; 0 where there is no bias.
        """
        with torch.no_grad():
            self.layer.weight.copy_((self.layer.weight.double() * scale).float())
            if self.layer.bias is not None:
                self.layer.bias.copy_((self.layer.bias.double() * scale + shift).float())


def score_ids(scorer: Scorer, ids: Sequence[Sequence[int]]) -> list[float]:
    """Raw rewards of tokenised responses.

    Args:
        scorer: A reward model without a calibration.
        ids: Token ids of each response, prompt included.
    """
    rewards: list[float] = scorer.score([{"response_ids": [list(one) for one in ids]}])[0]
    return rewards


def plain_head(scorer: Scorer, ids: Sequence[Sequence[int]]) -> PlainHead | None:
    """The linear layer that a model reads its rewards from, whatever it is called; None where something follows it.

    It is found by watching a forward pass: names differ (`score`, `classifier`, `out_proj`), and so does what comes
    after them.

    Args:
        scorer: A reward model in float32.
        ids: Token ids of some responses.
    """
    seen: dict[str, list[torch.Tensor]] = {}
    layers = {
        name: layer
        for name, layer in base_model_of(scorer.model).named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == 1
    }

    def watch(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            seen.setdefault(name, []).append(output.detach().float().flatten().cpu())

        return keep

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        rewards_N = torch.tensor(score_ids(scorer, ids))
    finally:
        for handle in handles:
            handle.remove()
    fitting = [name for name, outputs in seen.items() if _holds_all(torch.cat(outputs), rewards_N)]
    return PlainHead(fitting[0], layers[fitting[0]]) if len(fitting) == 1 else None


def _holds_all(outputs: torch.Tensor, rewards_N: torch.Tensor) -> bool:
    distances_N = (outputs[None, :] - rewards_N[:, None]).abs().min(dim=1).values
    return bool((distances_N <= _CLOSE * rewards_N.abs().clamp(min=1.0)).all())
