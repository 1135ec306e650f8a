"""The settings of commands that load a reward model: declared once, so that they mean the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from plaudit.cli.flags import about

if TYPE_CHECKING:
    from plaudit.scoring.reward_model import RewardModel

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass
class DeviceArguments:
    """Where a reward model is computed."""

    title: ClassVar[str] = "Model"

    device: str | None = field(
        default=None, metadata=about("Where it runs, such as cuda:1. Default: the accelerator, or the CPU.")
    )
    max_tokens_per_batch: int | None = field(
        default=None, metadata=about("Tokens of a batch, as computed. Default: 2,048 on a CPU, else 32,768.")
    )
    trust_remote_code: bool = field(default=False, metadata=about("Allow code that comes with a model."))


@dataclass
class ComputeArguments(DeviceArguments):
    """How a reward model is run."""

    dtype: str | None = field(
        default=None,
        metadata=about("Precision of its weights. Default: float32 on a CPU, else the checkpoint's.", choices=DTYPES),
    )
    batch_layout: str = field(
        default="auto",
        metadata=about(
            "shared_prefix computes each prompt once; same rewards.", choices=("auto", "shared_prefix", "padded")
        ),
    )
    max_length: int | None = field(
        default=None,
        metadata=about("Limit for one response with its prompt, in tokens. Default: what the model was made to read."),
    )


@dataclass
class LoadArguments(ComputeArguments):
    """How the reward model is loaded and run."""

    model_revision: str | None = field(
        default=None, metadata=about("Branch, tag or commit of a model on the Hub.", aliases=["--revision"])
    )
    merge_adapter: bool = field(default=False, metadata=about("Merge an adapter into the weights: faster."))
    calibrated: bool = field(
        default=True,
        metadata=about(
            "Apply the calibration beside the model, if there is one; false: raw rewards. Also `--calibration none`.",
            aliases=["--calibration"],
            stored=True,
            none=False,
        ),
    )

    def load(self, model: str, overlong: str = "error") -> RewardModel:
        """Load a reward model with these settings.

        Args:
            model: Folder or id.
            overlong: What happens to rows beyond the limit; see `RewardModel.from_pretrained`.

        Raises:
            ConfigError: There is no reward model there, or a setting cannot work.
        """
        from plaudit.scoring.reward_model import RewardModel  # it imports torch, which --help need not wait for

        return RewardModel.from_pretrained(
            model,
            device=self.device,
            dtype=self.dtype,
            batch_layout=cast(Any, self.batch_layout),
            max_tokens_per_batch=self.max_tokens_per_batch,
            max_length=self.max_length,
            overlong=cast(Any, overlong),
            calibration="stored" if self.calibrated else None,
            merge_adapter=self.merge_adapter,
            revision=self.model_revision,
            trust_remote_code=self.trust_remote_code,
        )
