"""Train on conversations with tools: which call is better, and which response to the result of a tool.

    python examples/tool_calling.py

A row has `tools` (JSON schemas, as JSON text or as a list), messages with `tool_calls`, and messages of the role
`tool`. A data set gives all calls the same keys, with None where a call lacks a key; these are removed again before the
chat template renders the row. Prints the first row as the model reads it, with its own chat template:

    <|im_start|>system
    ...
    <tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call><|im_end|>
"""

import argparse
import json

from datasets import Dataset
from transformers.utils import get_json_schema

from plaudit import RewardConfig, RewardTrainer
from plaudit.demo import embedded_model_path


def get_weather(city: str) -> str:
    """Look up the weather of today.

    Args:
        city: Name of the city.
    """
    return f"12 degrees in {city}, light rain"


def convert_money(amount: float, currency: str) -> str:
    """Convert an amount from euros.

    Args:
        amount: Amount in euros.
        currency: Three letters, such as NOK.
    """
    return f"{amount * 11.5:.2f} {currency}"


def call(name: str, **arguments: str | float) -> dict:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


TOOLS = json.dumps([get_json_schema(get_weather), get_json_schema(convert_money)])
WEATHER = {"role": "user", "content": "Do I need a coat in Oslo?"}
ROWS = [
    {  # Which call?
        "tools": TOOLS,
        "prompt": [WEATHER],
        "chosen": [call("get_weather", city="Oslo")],
        "rejected": [call("convert_money", amount=1.0, currency="NOK")],
    },
    {  # Which response to the tool's result?
        "tools": TOOLS,
        "prompt": [WEATHER, call("get_weather", city="Oslo"), {"role": "tool", "content": get_weather("Oslo")}],
        "chosen": [{"role": "assistant", "content": "Yes: it rains a little, at 12 degrees."}],
        "rejected": [{"role": "assistant", "content": "No, Oslo is hot and dry today."}],
    },
    {  # Which arguments?
        "tools": TOOLS,
        "prompt": [{"role": "user", "content": "What are 20 euros in Norway?"}],
        "chosen": [call("convert_money", amount=20.0, currency="NOK")],
        "rejected": [call("convert_money", amount=20.0, currency="SEK")],
    },
]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or model id (default: the embedded chat model)")
    parser.add_argument("--output_dir", default="runs/tool_calling")
    parser.add_argument("--max_steps", type=int, default=5)
    args = parser.parse_args(arguments)

    config = RewardConfig(args.output_dir, max_steps=args.max_steps, gradient_checkpointing="auto", save_strategy="no")
    model = args.model or str(embedded_model_path())
    trainer = RewardTrainer(model, config, train_dataset=Dataset.from_list(ROWS))
    print(trainer.processing_class.decode(trainer.train_dataset[0]["chosen_ids"]))
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
