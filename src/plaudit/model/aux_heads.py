"""Parameters beside the reward: a tie parameter, a length head, a language-model head, an ensemble.

They live inside the reward model, so that every engine trains and synchronises them like the rest, and outside the
weights that are saved: a server reads the reward model alone. What was learned is kept beside it, in
``training_heads.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from plaudit.errors import ConfigError
from plaudit.model.head import initialize_head

FILE_NAME = "training_heads.safetensors"
ATTRIBUTE = "training_heads"
_OTHER_SEED = 1_000_003  # a fresh reward head drawn from the same seed would be one of the members
_CHUNK = 512  # positions whose scores over the vocabulary are in memory at one time


class TrainingHeads(nn.Module):
    """What a reward model computes beside the reward while it is trained.

    Args:
        hidden_size: Width of the states under the head.
        ties: Whether a parameter for ties is learned.
        length: Whether a second head learns what length explains (ODIN).
        ensemble_size: Members of an ensemble around the reward head; 0 for none.
        seed: Seed of the members' beginnings; the global random state is left alone.
        language_model_weight: Weight (V, H) of the language-model head for the text-generation regulariser. It is
            held fixed; where the model ties it to its input embeddings, those are passed to `forward` instead.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        ties: bool = False,
        length: bool = False,
        ensemble_size: int = 0,
        seed: int = 0,
        language_model_weight: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        # One dimension: FSDP2 cannot shard a scalar.
        self.tie_parameter = nn.Parameter(torch.zeros(1)) if ties else None
        self.length = nn.Linear(hidden_size, 1, bias=False) if length else None
        if self.length is not None:
            nn.init.zeros_(self.length.weight)
        self.ensemble = nn.Linear(hidden_size, ensemble_size, bias=False) if ensemble_size else None
        if self.ensemble is not None:
            # As large as a fresh reward head. Where data say nothing, the members stay what they are drawn to be.
            initialize_head(self.ensemble, seed + _OTHER_SEED)
        self.register_buffer("language_model_weight", language_model_weight, persistent=False)

    def forward(
        self,
        pooled_NH: torch.Tensor,
        states_TH: torch.Tensor,
        score_weight: torch.Tensor,
        text_positions: torch.Tensor | None = None,
        text_targets: torch.Tensor | None = None,
        embedding_weight: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Everything that the heads at hand compute, in float32.

        Args:
            pooled_NH: States under the rewards, shape (N, H).
            states_TH: All states, shape (T, H).
            score_weight: Weight of the reward head, shape (1, H).
            text_positions: States that predict a token, shape (S,).
            text_targets: The tokens, shape (S,).
            embedding_weight: Weight (V, H) of the language-model head where there is none of its own.

        Returns:
            Those of ``tie_parameter`` (1,), ``length_rewards`` (N,), ``head_overlap`` (a scalar, the product of the
            two heads' directions), ``deviations`` (N, K) and ``text_losses`` (S,) that apply.
        """
        found: dict[str, torch.Tensor] = {}
        if self.tie_parameter is not None:
            # A copy: FSDP2 may free the parameter itself once the forward is over.
            found["tie_parameter"] = self.tie_parameter.float().clone()
        if self.length is not None:
            weight = self.length.weight.float()
            with torch.autocast(pooled_NH.device.type, enabled=False):
                found["length_rewards"] = (pooled_NH.float() @ weight.T)[:, 0]
                found["head_overlap"] = (weight * score_weight.float()).sum().abs()
        if self.ensemble is not None:
            found["deviations"] = self._deviations(pooled_NH)
        if text_positions is not None and text_targets is not None:
            own: Any = self.language_model_weight
            vocabulary = embedding_weight if own is None else own
            chunks = zip(text_positions.split(_CHUNK), text_targets.split(_CHUNK), strict=True)
            losses = [
                checkpoint(_text_losses, states_TH.index_select(0, places), vocabulary, targets, use_reentrant=False)
                for places, targets in chunks
            ]
            found["text_losses"] = torch.cat(losses)
        return found

    def _deviations(self, pooled_NH: torch.Tensor) -> torch.Tensor:
        """How far each member is from the reward, shape (N, K); of each response they sum to 0."""
        assert self.ensemble is not None
        weight_KH = self.ensemble.weight.float()
        with torch.autocast(pooled_NH.device.type, enabled=False):
            # Detached: members learn from the backbone without changing it, so the reward stays what it would be.
            return pooled_NH.detach().float() @ (weight_KH - weight_KH.mean(dim=0)).T


def _text_losses(states_SH: torch.Tensor, weight_VH: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    return cross_entropy((states_SH @ weight_VH.to(states_SH.dtype).T).float(), targets_S, reduction="none")


def install_training_heads(model: PreTrainedModel, heads: TrainingHeads) -> None:
    """Put heads into a reward model whose forward reads positions, and keep them out of its saved weights.

    Args:
        model: The reward model; changed in place.
        heads: The heads.
    """
    score: Any = model.score
    model.add_module(ATTRIBUTE, heads.to(next(score.parameters()).device))
    names = [f"{ATTRIBUTE}.{name}" for name in heads.state_dict()]
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *names}
    # It is held fixed: DDP would send it to all processes at each step. An adapter puts its own names in front.
    buffer = f"{ATTRIBUTE}.language_model_weight"
    ignored = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    model._ddp_params_and_buffers_to_ignore = [*ignored, buffer, f"base_model.model.{buffer}"]  # type: ignore[assignment]


def remove_training_heads(model: Any) -> None:
    """Take out the heads that another trainer has put into a reward model, if it has any.

    Args:
        model: The reward model, without wrapping; changed in place.
    """
    if heads_of(model) is not None:
        delattr(model, ATTRIBUTE)


def heads_of(model: Any) -> TrainingHeads | None:
    """The training heads of a reward model, if it has any.

    Args:
        model: The reward model, without wrapping.
    """
    heads = getattr(model, ATTRIBUTE, None)
    return heads if isinstance(heads, TrainingHeads) else None


def save_heads(heads: TrainingHeads, folder: Path, state: Mapping[str, torch.Tensor] | None, about: str) -> None:
    """Write what was learned beside the model; nothing where there is nothing.

    Args:
        heads: The heads.
        folder: Folder of the checkpoint.
        state: The state of the whole model where an engine has gathered it; None takes the heads' own.
        about: The objective they belong to.
    """
    names = list(heads.state_dict())
    if state is None:
        found = dict(heads.state_dict())
    else:
        ending = {name: [key for key in state if key.endswith(f"{ATTRIBUTE}.{name}")] for name in names}
        found = {name: state[keys[0]] for name, keys in ending.items() if keys}
    if found:
        tensors = {name: value.detach().cpu().contiguous() for name, value in found.items()}
        save_file(tensors, folder / FILE_NAME, metadata={"objective": about})


def load_heads(heads: TrainingHeads | None, folder: Path, about: str) -> None:
    """Read back what `save_heads` wrote, into heads of the same kind.

    Args:
        heads: The heads, filled in place; None where there are none.
        folder: Folder of the checkpoint.
        about: The objective that they are for.

    Raises:
        ConfigError: The checkpoint belongs to another objective or has no such file.
    """
    expected = {} if heads is None else heads.state_dict()
    path = folder / FILE_NAME
    state: dict[str, torch.Tensor] = {}
    learned_for = about
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            learned_for = file.metadata()["objective"]
    shapes = [{name: tuple(value.shape) for name, value in one.items()} for one in (state, expected)]
    # The parameter for ties means another thing to each objective.
    if shapes[0] != shapes[1] or ("tie_parameter" in state and learned_for != about):
        raise ConfigError(
            f"the checkpoint {str(folder)!r} has {_of_objective(state, learned_for)}, but this run learns "
            f"{_of_objective(expected, about)}",
            fix="Go on with the objective and regularisers that the checkpoint was trained with.",
        )
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(state[name])


def ensemble_in(path: Path) -> TrainingHeads | None:
    """The ensemble among what `save_heads` wrote, without the other heads; None where there is none.

    Args:
        path: The file.
    """
    with safe_open(path, framework="pt") as file:
        if "ensemble.weight" not in file.keys():  # noqa: SIM118 (no mapping)
            return None
        weight_KH = file.get_tensor("ensemble.weight").float()
    heads = TrainingHeads(weight_KH.shape[1], ensemble_size=len(weight_KH))
    assert heads.ensemble is not None
    with torch.no_grad():
        heads.ensemble.weight.copy_(weight_KH)
    return heads


def _of_objective(names: Mapping[str, torch.Tensor], objective: str) -> str:
    sizes = {name: f" of {len(value)} members" if name == "ensemble.weight" else "" for name, value in names.items()}
    return f"{', '.join(f'`{name}`{sizes[name]}' for name in names)} for {objective}" if names else "no training heads"


def language_model_weight(model: PreTrainedModel) -> torch.Tensor | None:
    """The language-model head of the model that a reward model was made from.

    Args:
        model: The reward model; its configuration says where it came from.

    Returns:
        The weight (V, H), or None where it is tied to the input embeddings.

    Raises:
        ConfigError: The head cannot be found.
    """
    config = model.config.get_text_config()
    if config.tie_word_embeddings:
        return None
    source = str(getattr(model.config, "name_or_path", "") or "")
    revision = getattr(model.config, "_commit_hash", None)
    name = SAFE_WEIGHTS_NAME
    index = _file_of(source, SAFE_WEIGHTS_INDEX_NAME, revision)
    if index is not None:
        name = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].get("lm_head.weight", name)
    path = _file_of(source, name, revision)
    if path is not None:
        with safe_open(path, framework="pt") as weights:
            if "lm_head.weight" in weights.keys():  # noqa: SIM118 (no mapping)
                return weights.get_tensor("lm_head.weight").to(model.dtype)
    raise ConfigError(
        f"the text-generation regulariser needs the language-model head, and {source or 'the model'} has none",
        fix="Start from a causal language model, or leave `lm_loss_coefficient` out.",
    )


def _file_of(source: str, name: str, revision: str | None) -> str | None:
    if not source:
        return None
    try:
        found: str | None = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:  # a folder that is gone, say
        return None
    return found
