"""A training process that is killed while it saves; started by test_kill.py.

Each file of a checkpoint can be left half written: the process cuts it in two, says so, and waits to be killed. Or it
kills itself some milliseconds after it begins a checkpoint, whatever it is doing then.
"""

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerState

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import ConfigError, RewardConfig, RewardTrainer
from plaudit.training.artifacts import newest_complete_checkpoint


def say(what):
    """Tell the parent, at once."""
    print(what, flush=True)


class StoppingAt:
    """Stops the process for good at one file of one checkpoint, which it cuts in two."""

    def __init__(self, step, name):
        self.step, self.name = step, name

    def begins(self, step):
        """A checkpoint begins: "after 20" kills the process 20 ms later."""
        if step == self.step and self.name.startswith("after "):
            delay = float(self.name.removeprefix("after ")) / 1000
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def wrote(self, path):
        """A file has been written."""
        path = Path(path)
        if path.name != self.name or path.parent.name != f"checkpoint-{self.step}":
            return
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        self.wait()

    def deletes(self, folder):
        """An old checkpoint is about to be deleted: take away its weights only."""
        if self.name == "deletion" and Path(folder).name == f"checkpoint-{self.step - 2}":
            (Path(folder) / "model.safetensors").unlink()
            self.wait()

    def wait(self):
        say("stopped")
        time.sleep(600)

    def install(self):
        """Listen to whatever writes and deletes."""
        save, to_json, rmtree = torch.save, TrainerState.save_to_json, shutil.rmtree

        def saving(value, file, *args, **kwargs):
            save(value, file, *args, **kwargs)
            self.wrote(str(file))

        def writing(state, path):
            to_json(state, path)
            self.wrote(path)

        def deleting(folder, *args, **kwargs):
            self.deletes(folder)
            rmtree(folder, *args, **kwargs)

        torch.save, TrainerState.save_to_json, shutil.rmtree = saving, writing, deleting


class SayingTrainer(RewardTrainer):
    """Says when it begins a checkpoint, and stops after the weights if told to."""

    stopping: StoppingAt

    def _save_checkpoint(self, model, trial):
        say(f"saving {self.state.global_step}")
        self.stopping.begins(self.state.global_step)
        super()._save_checkpoint(model, trial)
        if self.stopping.name.startswith("after "):
            time.sleep(0.02)  # at most three checkpoints further when the clock strikes

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        self.stopping.wrote(Path(output_dir) / "model.safetensors")


def main(folder, step, name):
    """Train to the end, from the newest checkpoint if there is one."""
    stopping = SayingTrainer.stopping = StoppingAt(step, name)
    stopping.install()
    tokenizer = tiny_tokenizer()
    config = RewardConfig(
        str(folder),
        use_cpu=True,
        max_steps=14,
        per_device_train_batch_size=2,
        logging_steps=3,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
    )
    dataset = Dataset.from_list(conversation_rows(11))
    trainer = SayingTrainer(tiny_model(tokenizer), config, train_dataset=dataset, processing_class=tokenizer)
    try:
        say(f"resuming {newest_complete_checkpoint(folder).name}")
    except ConfigError:  # nothing to resume from yet
        trainer.train()
    else:
        trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(folder / "final"))
    trainer.state.save_to_json(str(folder / "final" / "trainer_state.json"))
    say("finished")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
