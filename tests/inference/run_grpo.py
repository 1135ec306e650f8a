"""Two steps of TRL's GRPO trainer with a `RewardModel` as its reward function: ``python run_grpo.py FOLDER KIND``.

FOLDER holds ``policy`` and ``reward``. Prints, as JSON, the rewards that the trainer logged and those of each call.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from datasets import Dataset

from plaudit import RewardModel


def prompts(kind):
    texts = [f"Add {n} and {n}" for n in range(8)]
    return [[{"role": "user", "content": text}] for text in texts] if kind == "conversations" else texts


def main():
    from trl import GRPOConfig, GRPOTrainer  # here: the tests are collected where there is no TRL

    folder, kind = Path(sys.argv[1]), sys.argv[2]
    reward_model = RewardModel.from_pretrained(folder / "reward", device="cpu")
    calls = []
    score = reward_model.score

    def watched(rows, **options):
        calls.append({"rows": rows, "rewards": score(rows, **options)})
        return calls[-1]["rewards"]

    reward_model.score = watched
    config = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=6,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    dataset = Dataset.from_dict({"prompt": prompts(kind)})
    trainer = GRPOTrainer(str(folder / "policy"), reward_funcs=reward_model, args=config, train_dataset=dataset)
    trainer.train()
    name = reward_model.__name__
    logs = [log[f"rewards/{name}/mean"] for log in trainer.state.log_history if f"rewards/{name}/mean" in log]
    print("RESULT " + json.dumps({"logged": logs, "calls": calls, "steps": trainer.state.global_step}))


if __name__ == "__main__":
    main()
