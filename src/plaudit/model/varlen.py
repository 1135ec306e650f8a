"""The shared-prefix layout as one variable-length attention call per layer, for GPUs.

Each response is a problem of its own: the queries ``P+R1`` (for the first response) or ``Ri`` against the keys
``P+Ri``, causal and aligned at the bottom right; so too where prompts branch off from a common beginning. Queries lie
in the row in that order already; keys and values are gathered, a prompt once for each of its responses. Kernels of
flash attention take such problems of unequal lengths in one call. Outputs are never merged by their log-sum-exp:
`varlen_attn` ignores its gradient.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from plaudit.prefix_tree import PrefixTree

Kernel: TypeAlias = Callable[..., Tensor]
AttentionBackend: TypeAlias = Literal["auto", "sdpa", "varlen", "flash_attn", "flash_attn_3", "kernels", "flex"]


@dataclass(frozen=True)
class AttentionSettings:
    """What an attention layer asks for, whatever computes it."""

    scaling: float  # factor on the scores
    dropout: float = 0.0  # probability of dropping an attention weight
    sliding_window: int | None = None  # a query sees this many positions, its own included
    softcap: float | None = None  # scores become ``softcap * tanh(scores / softcap)`` (Gemma 2)
    sinks: Tensor | None = None  # one more score per head, (heads,), takes weight and gives no value (GPT-OSS)

    @property
    def kernel_window(self) -> tuple[int, int]:
        """The window as kernels count it: positions left of a query without its own (-1: all), and right of it."""
        return (-1 if self.sliding_window is None else self.sliding_window - 1, 0)


class VarlenPlan:
    """Index arithmetic of one batch, on its device; nothing is read back from there.

    >>> plan = VarlenPlan(PrefixTree(((2, -1, 2), (1, 0, 1), (2, 0, 1))), torch.device("cpu"))
    >>> plan.key_index.tolist(), plan.query_ends.tolist(), plan.key_ends.tolist()
    ([0, 1, 2, 0, 1, 3, 4], [0, 3, 5], [0, 3, 7])
    """

    def __init__(self, tree: PrefixTree, device: torch.device) -> None:
        key_index: list[int] = []  # which position of the row each gathered key is, shape (Tk,)
        queries: list[int] = []
        for path, own in zip(tree.paths, tree.own, strict=True):
            for node in path:
                key_index.extend(range(tree.starts[node], tree.starts[node] + tree.lengths[node]))
            queries.append(sum(tree.lengths[node] for node in path[-own:]))
        keys = tree.response_lengths
        self.key_index = torch.tensor(key_index).to(device, non_blocking=True)
        # Cumulative lengths from 0, shape (problems + 1,), int32. They end with the row: tensors longer than the last
        # give NaN gradients in `varlen_attn` (pytorch 176793). No problem is empty: every response has own tokens.
        self.query_ends, self.key_ends = (
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
            for lengths in (queries, keys)
        )
        self.longest_query, self.longest_key = max(queries), max(keys)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, settings: AttentionSettings
) -> Tensor:
    """Attends in one problem, (1, heads, Tq, D) against (1, heads, Tk, D), with all settings; no mask means causal."""
    scores = query @ key.transpose(2, 3) * settings.scaling
    if settings.softcap is not None:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    scores = scores + (torch.full_like(scores[0, 0], -math.inf).triu(1) if mask is None else mask)
    if settings.sinks is not None:
        sink_scores = settings.sinks.reshape(1, -1, 1, 1).expand(1, -1, query.shape[2], 1).to(scores.dtype)
        scores = torch.cat((scores, sink_scores), dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=wide).to(value.dtype)[..., : key.shape[2]]
    return nn.functional.dropout(weights, p=settings.dropout, training=settings.dropout > 0) @ value


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, kernel: Kernel, settings: AttentionSettings
) -> Tensor:
    """Attends within each response and its prompt in one call of a kernel; see `shared_prefix_attention` for shapes."""
    query_THD, key_THD, value_THD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    key_THD, value_THD = key_THD.index_select(0, plan.key_index), value_THD.index_select(0, plan.key_index)
    return kernel(query_THD, key_THD, value_THD, plan, settings)[None]


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, settings: AttentionSettings) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # Its signature changed between releases of torch.
    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"is_causal": True}
    if "window_size" in known:
        options = {"window_size": settings.kernel_window}
    if "scale" in known:
        options["scale"] = settings.scaling
    else:
        query = query * (settings.scaling * query.shape[-1] ** 0.5)
    if "enable_gqa" in known:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    elif query.shape[1] != key.shape[1]:
        key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in (key, value))
    ends = (plan.query_ends, plan.key_ends, plan.longest_query, plan.longest_key)
    return cast(Tensor, varlen_attn(query, key, value, *ends, **options))


def _flash(load_module: Callable[[], Any], *, has_dropout: bool = True) -> Kernel:
    """Returns the kernel of a module with FlashAttention's `flash_attn_varlen_func`, loaded at the first call."""

    def kernel(query: Tensor, key: Tensor, value: Tensor, plan: VarlenPlan, settings: AttentionSettings) -> Tensor:
        ends = (plan.query_ends, plan.key_ends, plan.longest_query, plan.longest_key)
        options = {"softmax_scale": settings.scaling, "causal": True, "window_size": settings.kernel_window}
        options |= {"dropout_p": settings.dropout} if has_dropout else {}
        output = load_module().flash_attn_varlen_func(query, key, value, *ends, **options)
        # Some releases of FlashAttention 3 return the sums of scores as well.
        return cast(Tensor, output[0] if isinstance(output, tuple) else output)

    return kernel


@cache
def _hub_kernel() -> Any:
    from kernels import get_kernel  # type: ignore[import-not-found]

    # The same pairs of versions as in transformers' `modeling_flash_attention_utils`.
    newer = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 10)
    return get_kernel("kernels-community/flash-attn2", version=4 if newer else 3)


# By the name of their backend, the fastest first.
KERNELS: dict[str, Kernel] = {
    "flash_attn_3": _flash(lambda: importlib.import_module("flash_attn_interface"), has_dropout=False),
    "varlen": _torch_varlen,
    "flash_attn": _flash(lambda: importlib.import_module("flash_attn")),
    "kernels": _flash(_hub_kernel),
}
# "kernels" has to be asked for: it downloads compiled code.
AUTOMATIC = ("flash_attn_3", "varlen", "flash_attn")
# Where the module has another name than the backend.
_MODULES = {"flash_attn_3": "flash_attn_interface", "varlen": "torch.nn.attention.varlen"}


@cache
def _varlen_has_windows() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "window_size" in inspect.signature(varlen_attn).parameters


def why_not_varlen(backend: str, query: Tensor, settings: AttentionSettings) -> str | None:
    """Returns why one of `KERNELS` cannot compute a call; None if it can."""
    module, head_size = _MODULES.get(backend, backend), query.shape[-1]
    if query.device.type != "cuda":
        return f"{backend} needs a CUDA device"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"{backend} computes in float16 and bfloat16 only"
    if importlib.util.find_spec(module) is None:
        return f"{backend} needs {module}"
    if settings.softcap is not None or settings.sinks is not None:
        return f"{backend} has no soft cap and no sinks here"
    if head_size > 256 or head_size % 8:
        return f"{backend} needs heads of a multiple of 8, at most 256"
    if backend in ("varlen", "flash_attn_3") and settings.dropout > 0:
        return f"{backend} has no dropout"
    if backend == "flash_attn_3" and torch.cuda.get_device_capability(query.device)[0] != 9:
        return "flash_attn_3 needs a GPU of the Hopper generation"
    if backend == "varlen" and settings.sliding_window is not None and not _varlen_has_windows():
        return "varlen of this torch has no sliding windows"
    return None
