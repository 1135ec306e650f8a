"""One of several processes of a distributed run; started by test_processes.py. Writes what it saw as JSON."""

import json
import sys
from pathlib import Path

from datasets import Dataset

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import RewardConfig, RewardTrainer


def train(folder, layout, batch_size, **settings):
    """Train a tiny model and return logs, an evaluation, predictions and the final weights' sums."""
    tokenizer = tiny_tokenizer()
    dataset = Dataset.from_list([{**row, "margin": 0.1 * n} for n, row in enumerate(conversation_rows(11))])
    config = RewardConfig(
        str(folder),
        use_cpu=True,
        batch_layout=layout,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        num_train_epochs=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        optim="sgd",
        learning_rate=0.1,
        center_rewards_coefficient=0.05,
        **settings,
    )
    trainer = RewardTrainer(
        tiny_model(tokenizer), config, train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer
    )
    trainer.train()
    metrics = trainer.evaluate()
    predictions = trainer.predict(dataset).predictions
    return {
        "logs": [log for log in trainer.state.log_history if "loss" in log],
        "metrics": {name: value for name, value in metrics.items() if not name.endswith(("second", "runtime"))},
        "predictions": predictions.tolist(),
        "weights": [parameter.double().sum().item() for parameter in trainer.model.parameters()],
    }


if __name__ == "__main__":
    target, rank = Path(sys.argv[1]), sys.argv[2]
    results = {
        "padded": train(target / "padded", "padded", 2),
        "shared_prefix": train(target / "shared", "shared_prefix", 2),
        "accumulated": train(target / "accumulated", "shared_prefix", 1, gradient_accumulation_steps=2),
    }
    (target / f"{rank}.json").write_text(json.dumps(results))
