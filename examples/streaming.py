"""Train on a stream: rows are read when they are needed, so the data may be larger than memory and disk.

    python examples/streaming.py
    python examples/streaming.py --dataset trl-lib/ultrafeedback_binarized --max_steps 1000

A stream has no length, so `max_steps` sets the end. The stream is shuffled within a buffer; every row is checked and
counted when it is read. Prints (one batch is read ahead):

    trained 10 steps of 8 pairs; 88 rows were kept of 88 read
"""

import argparse

from plaudit import RewardConfig, RewardTrainer
from plaudit.data.load import load_preference_dataset
from plaudit.demo import embedded_model_path, load_preferences


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or model id (default: the embedded chat model)")
    parser.add_argument("--dataset", help="file, folder or name on the Hub (default: the bundled preferences)")
    parser.add_argument("--output_dir", default="runs/streaming")
    parser.add_argument("--max_steps", type=int, default=10)
    args = parser.parse_args(arguments)

    if args.dataset:
        stream = load_preference_dataset(args.dataset, streaming=True)
    else:
        stream = load_preferences("train").to_iterable_dataset()
    config = RewardConfig(
        args.output_dir,
        max_steps=args.max_steps,
        per_device_train_batch_size=8,
        gradient_checkpointing="auto",
        save_strategy="no",
    )
    trainer = RewardTrainer(
        args.model or str(embedded_model_path()),
        config,
        # A larger buffer shuffles better and takes longer to fill.
        train_dataset=stream.shuffle(seed=config.seed, buffer_size=1000),
    )
    trainer.train()
    trainer.save_model()
    report = trainer.data_reports["train"]
    print(
        f"trained {trainer.state.global_step} steps of {config.per_device_train_batch_size} pairs; "
        f"{report.rows_kept} rows were kept of {report.rows_read} read"
    )


if __name__ == "__main__":
    main()
