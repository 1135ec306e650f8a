"""The page of data: its rows are read as what the page says they are."""

import json
import re
from pathlib import Path

from plaudit.data.parse import read_example
from plaudit.schema import RAW_COLUMNS, TOKENIZED_COLUMNS, TOKENIZED_LIST_COLUMNS

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_rows_at_its_top_are_read():
    texts = re.search(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)[1].strip().split("\n\n")
    examples = [read_example(json.loads(text), row_number=n) for n, text in enumerate(texts)]
    assert [example.row_kind for example in examples] == ["pairs"] * 4 + ["ranks", "scores", "labels"]
    assert [example.conversational for example in examples] == [False, False, True, True, False, True, False]
    assert examples[4].responses[0] == "The sky is blue."


def test_its_table_has_every_column():
    table = PAGE.split("| column |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:])))
    assert named == {*RAW_COLUMNS, *TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS}
