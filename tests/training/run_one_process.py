"""One of several processes of a distributed run; started by test_processes.py. Writes what it saw as JSON."""

import json
import os
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import RewardConfig, RewardTrainer


def margin_rows():
    """Pairs with margins."""
    return [{**row, "margin": 0.1 * n} for n, row in enumerate(conversation_rows(11))]


def ranked_rows():
    """Rows of one to four responses, some of them tied, and weights."""
    rows = []
    for n, row in enumerate(conversation_rows(11)):
        responses = [
            *row["chosen"],
            *row["rejected"],
            *({**row["chosen"][0], "content": text} for text in ("fine", "so so")),
        ]
        k = 2 + n % 3
        scores = [float((2 * place + n) % 3) for place in range(k)]
        rows.append(
            {
                "prompt": row["prompt"],
                "responses": [[one] for one in responses[:k]],
                "scores": scores,
                "weight": 0.5 + n % 2,
            }
        )
    return rows


def graded_rows():
    """Single responses with ratings."""
    return [
        {"prompt": row["prompt"], "response": row["chosen" if n % 2 else "rejected"], "score": 0.1 * (n % 4)}
        for n, row in enumerate(conversation_rows(11))
    ]


LEARNING_RATE = 0.1
CASES = {
    "padded": (margin_rows, {"batch_layout": "padded"}),
    "shared_prefix": (margin_rows, {"batch_layout": "shared_prefix"}),
    "accumulated": (margin_rows, {"batch_layout": "shared_prefix"}),
    "ties": (ranked_rows, {"objective": "davidson"}),
    "rankings": (ranked_rows, {"objective": "plackett_luce", "batch_layout": "padded"}),
    "ratings": (graded_rows, {}),
    "ensemble": (ranked_rows, {"ensemble_size": 3}),
}
"""Rows and settings of each case."""


def train(folder, case, batch_size, **settings):
    """Train a tiny model and return logs, an evaluation, predictions and some 64 final weights of each parameter."""
    tokenizer = tiny_tokenizer()
    rows, own_settings = CASES[case]
    dataset = Dataset.from_list(rows())
    config = RewardConfig(
        str(folder),
        use_cpu=True,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        num_train_epochs=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        optim="sgd",
        learning_rate=LEARNING_RATE,
        center_rewards_coefficient=0.05,
        **own_settings,
        **settings,
    )
    trainer = RewardTrainer(
        tiny_model(tokenizer), config, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer
    )
    trainer.train()
    metrics = trainer.evaluate()
    output = trainer.predict(dataset)
    return {
        "labels": np.nan_to_num(np.array(output.label_ids, dtype=float), nan=-1).tolist(),
        "logs": [log for log in trainer.state.log_history if "loss" in log],
        "metrics": {name: value for name, value in metrics.items() if not name.endswith(("second", "runtime"))},
        "predictions": np.nan_to_num(output.predictions, nan=-1).tolist(),
        "weights": [
            parameter.flatten()[:: max(1, parameter.numel() // 64)].tolist() for parameter in trainer.model.parameters()
        ],
    }


if __name__ == "__main__":
    target, rank = Path(sys.argv[1]), sys.argv[2]
    results = {case: train(target / case, case, 2) for case in CASES if case != "accumulated"}
    results["accumulated"] = train(target / "accumulated", "accumulated", 1, gradient_accumulation_steps=2)
    (target / f"{rank}.json").write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)  # while Python shuts down, torch's gloo may abort a process that has finished
