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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from plaudit.errors import ConfigError
from plaudit.model import find_file
from plaudit.model.head import initialize_head

FILE_NAME = "training_heads.safetensors"
ATTRIBUTE = "training_heads"
_SEED_OFFSET = 1_000_003  # a fresh reward head drawn from the same seed would equal one of the members
_CHUNK = 512  # positions whose scores over the vocabulary are in memory at the same time


class TrainingHeads(nn.Module):
    """What a reward model computes beside the reward while it is trained.

    That is a parameter for ties, a second head for what length explains (ODIN), and an ensemble of so many members
    around the reward head (0: none). The language-model head, with weight (V, H), is held fixed. Where the model ties
    it to its input embeddings, those are passed to `forward` instead.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        ties: bool = False,
        length: bool = False,
        ensemble_size: int = 0,
        seed: int = 0,
        language_model_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        # One dimension: FSDP2 cannot shard a scalar.
        self.tie_parameter = nn.Parameter(torch.zeros(1)) if ties else None
        self.length = nn.Linear(hidden_size, 1, bias=False) if length else None
        if self.length is not None:
            nn.init.zeros_(self.length.weight)
        self.ensemble = nn.Linear(hidden_size, ensemble_size, bias=False) if ensemble_size else None
        if self.ensemble is not None:
            # As large as a fresh reward head: where the data teach nothing, members stay what they are drawn to be.
            initialize_head(self.ensemble, seed + _SEED_OFFSET)
        self.register_buffer("language_model_weight", language_model_weight, persistent=False)

    def forward(
        self,
        pooled_NH: Tensor,
        states_TH: Tensor,
        score_weight: Tensor,
        text_positions: Tensor | None = None,
        text_targets: Tensor | None = None,
        embedding_weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns the outputs of the heads at hand, in float32.

        These are ``tie_parameter`` (1,), ``length_rewards`` (N,), ``head_overlap`` (a scalar, the product of the
        directions of reward head and length head), ``deviations`` (N, K) of the members from the reward, and
        ``text_losses`` (S,) of the states at ``text_positions`` (S,), which predict ``text_targets`` (S,).
        """
        outputs: dict[str, Tensor] = {}
        if self.tie_parameter is not None:
            # A copy: FSDP2 may free the parameter itself once the forward is over.
            outputs["tie_parameter"] = self.tie_parameter.float().clone()
        with torch.autocast(pooled_NH.device.type, enabled=False):
            if self.length is not None:
                weight = self.length.weight.float()
                outputs["length_rewards"] = (pooled_NH.float() @ weight.T)[:, 0]
                outputs["head_overlap"] = (weight * score_weight.float()).sum().abs()
            if self.ensemble is not None:
                # Members sum to 0, so that the reward is their mean. They learn from detached states: the backbone,
                # and with it the reward, stays what it would be without them.
                weight_KH = self.ensemble.weight.float()
                outputs["deviations"] = pooled_NH.detach().float() @ (weight_KH - weight_KH.mean(dim=0)).T
        if text_positions is not None and text_targets is not None:
            own: Any = self.language_model_weight
            vocabulary = embedding_weight if own is None else own
            chunks = zip(text_positions.split(_CHUNK), text_targets.split(_CHUNK), strict=True)
            losses = [
                checkpoint(_text_losses, states_TH.index_select(0, index), vocabulary, targets, use_reentrant=False)
                for index, targets in chunks
            ]
            outputs["text_losses"] = torch.cat(losses)
        return outputs


def _text_losses(states_SH: Tensor, weight_VH: Tensor, targets_S: Tensor) -> Tensor:
    return cross_entropy((states_SH @ weight_VH.to(states_SH.dtype).T).float(), targets_S, reduction="none")


def install_training_heads(model: Any, heads: TrainingHeads) -> None:
    """Adds heads to a reward model whose forward reads positions, and keeps them out of its saved weights."""
    model.add_module(ATTRIBUTE, heads.to(next(model.score.parameters()).device))
    names = [f"{ATTRIBUTE}.{name}" for name in heads.state_dict()]
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *names}
    # DDP would send the fixed weight to all processes at each step. An adapter puts its own names in front.
    buffer = f"{ATTRIBUTE}.language_model_weight"
    ignored = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    model._ddp_params_and_buffers_to_ignore = [*ignored, buffer, f"base_model.model.{buffer}"]


def heads_of(model: Any) -> TrainingHeads | None:
    """Returns the training heads of a reward model (without wrapping), if it has any."""
    heads = getattr(model, ATTRIBUTE, None)
    return heads if isinstance(heads, TrainingHeads) else None


def save_heads(heads: TrainingHeads, folder: Path, state: Mapping[str, Tensor] | None, objective: str) -> None:
    """Writes what was learned beside the model, if anything."""
    learned = dict(heads.state_dict())
    if state is not None:  # that of the whole model, where an engine has gathered it
        keys = {name: [key for key in state if key.endswith(f"{ATTRIBUTE}.{name}")] for name in learned}
        learned = {name: state[found[0]] for name, found in keys.items() if found}
    if learned:
        tensors = {name: value.detach().cpu().contiguous() for name, value in learned.items()}
        save_file(tensors, folder / FILE_NAME, metadata={"objective": objective})


def load_heads(heads: TrainingHeads | None, folder: Path, objective: str) -> None:
    """Reads what `save_heads` wrote into heads of the same kind; raises `ConfigError` where it is of another run."""
    expected = {} if heads is None else heads.state_dict()
    path = folder / FILE_NAME
    state: dict[str, Tensor] = {}
    learned_for = objective
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            learned_for = file.metadata()["objective"]
    same_shapes = {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
    # The parameter for ties means something else to each objective.
    if not same_shapes or ("tie_parameter" in state and learned_for != objective):
        raise ConfigError(
            f"the checkpoint {str(folder)!r} has {_describe(state, learned_for)}, but this run learns "
            f"{_describe(expected, objective)}",
            fix="Resume with the objective and regularisers that the checkpoint was trained with.",
        )
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(state[name])


def _describe(state: Mapping[str, Tensor], objective: str) -> str:
    sizes = {name: f" of {len(value)} members" if name == "ensemble.weight" else "" for name, value in state.items()}
    return f"{', '.join(f'`{name}`{sizes[name]}' for name in state)} for {objective}" if state else "no training heads"


def ensemble_in(path: Path) -> TrainingHeads | None:
    """Reads the ensemble, without the other heads, from a file of `save_heads`; None where there is none."""
    weight_KH = load_file(path).get("ensemble.weight")
    if weight_KH is None:
        return None
    heads = TrainingHeads(weight_KH.shape[1], ensemble_size=len(weight_KH))
    heads.load_state_dict({"ensemble.weight": weight_KH})
    return heads


def language_model_weight(model: PreTrainedModel) -> Tensor | None:
    """Returns the head (V, H) of the language model under a reward model; None where it is tied to the embeddings."""
    if model.config.get_text_config().tie_word_embeddings:
        return None
    source = str(getattr(model.config, "name_or_path", "") or "")
    revision = getattr(model.config, "_commit_hash", None)
    path = None
    if source:
        name = SAFE_WEIGHTS_NAME
        if index := find_file(source, SAFE_WEIGHTS_INDEX_NAME, revision):
            name = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].get("lm_head.weight", name)
        path = find_file(source, name, revision)
    if path is not None:
        with safe_open(path, framework="pt") as weights:
            if "lm_head.weight" in weights.keys():  # noqa: SIM118 (no mapping)
                return weights.get_tensor("lm_head.weight").to(model.dtype)
    message = f"`lm_loss_coefficient` needs the language-model head, and {source or 'the model'} has none"
    fix = "Start from a causal language model, or remove `lm_loss_coefficient`."
    raise ConfigError(message, field="lm_loss_coefficient", fix=fix)
