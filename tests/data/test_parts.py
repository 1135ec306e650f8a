"""Contents as text parts: the same tokens and rewards as plain text, whatever the chat template does with parts."""

from __future__ import annotations

import pytest
from datasets import Dataset

from builders import CHATML, tiny_tokenizer
from model_builders import tiny_model
from plaudit import RewardModel
from plaudit.data.prepare import prepare_dataset
from plaudit.errors import DataError
from tolerances import REWARD

ONLY_TEXT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
ONLY_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
)
FIRST_PART = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0]['text'] }}<|im_end|>\n{% endfor %}"
BOTH = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
TEMPLATES = {"prints": CHATML, "only text": ONLY_TEXT, "only parts": ONLY_PARTS, "first part": FIRST_PART, "both": BOTH}


def message(role, *texts, parts):
    content = [{"type": "text", "text": text} for text in texts] if parts else "".join(texts)
    return {"role": role, "content": content}


def pair(parts):
    return {
        "prompt": [message("user", "2+", "2?", parts=parts)],
        "chosen": [message("assistant", "4", parts=parts)],
        "rejected": [message("assistant", "5", " or", " 6", parts=parts)],
    }


@pytest.mark.parametrize("template", TEMPLATES)
def test_parts_are_the_tokens_of_the_plain_text(template):
    tokenizer = tiny_tokenizer(TEMPLATES[template])
    for parts in (False, True):
        for count in (1, 40):
            prepared, _ = prepare_dataset(Dataset.from_list([pair(parts)] * count), tokenizer, max_length=None)
            assert tokenizer.decode(prepared[count - 1]["chosen_ids"]) == (
                "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
            )
            assert "\n5 or 6<" in tokenizer.decode(prepared[count - 1]["rejected_ids"])


@pytest.mark.parametrize("template", TEMPLATES)
def test_parts_have_the_reward_of_the_plain_text(template):
    tokenizer = tiny_tokenizer(TEMPLATES[template])
    model = RewardModel(tiny_model(tokenizer), tokenizer)
    text, parts = model.score([pair(False), pair(True)])
    assert parts == REWARD.approx(text)
    assert text[0] != text[1]


def test_images_are_refused_by_name():
    rows = [pair(True), pair(True)]
    rows[1]["prompt"][0]["content"] = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(DataError) as caught:
        prepare_dataset(Dataset.from_list(rows), tiny_tokenizer(), max_length=None)
    assert (caught.value.row, caught.value.field) == (1, "prompt[0].content[0].type")
    assert "image" in caught.value.message
