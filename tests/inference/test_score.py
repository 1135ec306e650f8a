"""Scores of rows in every form: those of plain transformers, in order and in the shape of the rows."""

import logging
import math
import random

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_builders import conversation_rows, tiny_model
from plaudit import ConfigError, DataError, RewardModel
from plaudit.inference.engine import group_responses
from tolerances import REWARD

TOOLS = [{"type": "function", "function": {"name": "add"}}]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


TALK = [user("Add 1 and 1"), assistant("2")]
FORMS = {
    "text": ("The sky is blue.", ["The sky is blue."]),
    "conversation": (TALK, [TALK]),
    "messages": ({"messages": TALK, "prompt": "not read", "prompt_id": 3}, [TALK]),
    "prompt and response": ({"prompt": "2+2=", "response": "4"}, ["2+2=4"]),
    "rated": ({"prompt": TALK[:1], "response": TALK[1:], "score": 3}, [TALK]),
    "labelled": ({"response": TALK, "label": None}, [TALK]),
    "completion": ({"prompt": TALK[:1], "completion": TALK[1:]}, [TALK]),
    "ranked": ({"prompt": "2+2=", "responses": ["4", "5", "22"], "ranks": [1, 2, 2]}, ["2+2=4", "2+2=5", "2+2=22"]),
    "one of several": ({"responses": [TALK]}, [TALK]),
    "scored": (
        {"prompt": TALK[:1], "responses": [TALK[1:], [assistant("11")]], "scores": [1.0, 0.5]},
        [TALK, [TALK[0], assistant("11")]],
    ),
    "pair": ({"prompt": "2+2=", "chosen": "4", "rejected": "5", "margin": None}, ["2+2=4", "2+2=5"]),
    "pair with the prompt inside": (
        {"chosen": TALK, "rejected": [TALK[0], assistant("11")]},
        [TALK, [TALK[0], assistant("11")]],
    ),
    "null columns of other forms": (
        {"chosen": None, "rejected": None, "responses": None, "response": "4", "prompt": "2+2="},
        ["2+2=4"],
    ),
}
SHAPES = {"pair": tuple, "pair with the prompt inside": tuple, "ranked": list, "scored": list, "one of several": list}


def flat(scores):
    return [one for score in scores for one in (score if isinstance(score, list | tuple) else [score])]


@pytest.mark.parametrize("row_kind", FORMS)
def test_each_form_gets_the_rewards_of_plain_transformers_in_its_own_shape(scorer, plain, row_kind):
    row, responses = FORMS[row_kind]
    score = scorer.score(row)
    assert type(score) is SHAPES.get(row_kind, float)
    assert flat([score]) == REWARD.approx([plain(one) for one in responses])
    assert len(set(flat([score]))) == len(responses)


@pytest.mark.parametrize("tokens", [1, 40, 300, 100_000])
def test_all_forms_together_at_any_token_budget(folder, layout, plain, tokens):
    model = RewardModel.from_pretrained(folder, device="cpu", batch_layout=layout, max_tokens_per_batch=tokens)
    assert model.batch_layout == layout
    rows, responses = zip(*FORMS.values(), strict=True)
    scores = model.score(list(rows))
    assert [type(score) for score in scores] == [SHAPES.get(row_kind, float) for row_kind in FORMS]
    expected = [plain(one) for several in responses for one in several]
    assert flat(scores) == REWARD.approx(expected)


def test_tools_and_template_variables_reach_the_template(scorer, plain):
    row = {"prompt": TALK[:1], "response": TALK[1:], "tools": TOOLS}
    assert scorer.score(row) == REWARD.approx(plain(TALK, tools=TOOLS))
    assert scorer.score({**row, "tools": None}) == REWARD.approx(plain(TALK))
    template = "{% for message in messages %}{{ message['content'] + mark }}{% endfor %}"
    kwargs = {"chat_template": template, "mark": "!"}
    row = {"prompt": TALK[:1], "response": TALK[1:], "chat_template_kwargs": kwargs}
    assert scorer.score(row) == REWARD.approx(plain(TALK, **kwargs))


def test_token_ids_are_scored_as_they_are(scorer, tokenizer):
    one, other = (tokenizer(text)["input_ids"] for text in ("good answer", "good"))
    texts = {name: tokenizer.decode(ids) for name, ids in (("chosen", one), ("rejected", other))}
    score = scorer.score({"chosen_ids": one, "rejected_ids": other})
    assert isinstance(score, tuple)
    assert scorer.score({"response_ids": [one, other, one]}) == REWARD.approx([*score, score[0]])
    model = tiny_model(tokenizer, max_position_embeddings=512)
    with torch.no_grad():
        assert score == REWARD.approx([model(torch.tensor([ids])).logits.item() for ids in (one, other)])
    assert texts == {"chosen": "good answer", "rejected": "good"}


def test_data_sets_and_streams_are_rows(scorer):
    rows = conversation_rows(9)
    expected = REWARD.approx(flat(scorer.score(rows)))
    table = Dataset.from_list(rows)
    for same in (table, table.to_iterable_dataset(), iter(rows), IterableDataset.from_generator(lambda: iter(rows))):
        assert flat(scorer.score(same)) == expected
    assert flat(scorer.score_stream(table.to_iterable_dataset())) == expected
    assert scorer.score([]) == []
    assert scorer.score({"responses": [], "response": None, "chosen_ids": None}, errors="nan") == []


# ---- order and batches ----------------------------------------------------------------------------------------

ROWS = [
    {"prompt": f"{n % 3} plus {n}: ", "responses": [f"{n}" * k for k in range(1, 2 + n % 4)]} for n in range(17)
] + ["a text of its own", "a text of its own"]


def test_neither_order_nor_company_changes_a_reward(scorer):
    expected = scorer.score(ROWS)
    order = list(range(len(ROWS)))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        for row, score in zip(order, scorer.score([ROWS[row] for row in order]), strict=True):
            assert score == REWARD.approx(expected[row])
    for row, score in enumerate(expected):
        assert scorer.score(ROWS[row]) == REWARD.approx(score)


@pytest.mark.parametrize("window", [1, 2, 5, 100, None])
def test_windows_change_no_reward(scorer, window):
    expected = scorer.score(ROWS)
    for score, other in zip(scorer.score_stream(ROWS, window=window), expected, strict=True):
        assert score == REWARD.approx(other)


def test_a_stream_is_read_no_further_than_it_must_be(scorer):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield {"response": "x" * (len(taken) % 7 + 1)}

    stream = scorer.score_stream(endless(), window=8)
    assert taken == []
    for row in range(20):
        next(stream)
        assert len(taken) == 8 * (row // 8 + 1)


def test_a_window_closes_at_a_number_of_responses_and_of_characters(scorer, monkeypatch):
    rows = ({"responses": ["a", "b"] * 128} for _ in range(40))
    assert [len(window) for window in scorer._preparer.windows(rows)] == [4] * 10
    monkeypatch.setattr("plaudit.data.prepare._CHARACTERS_AT_ONCE", 1000)
    texts = ("x" * 400 for _ in range(7))
    assert [len(window) for window in scorer._preparer.windows(texts)] == [3, 3, 1]


def count_tokens(scorer):
    """Make a scorer note what it computes: its tokens with padding, batch by batch."""
    computed, forward = [], scorer._engine.forward

    def watched(model, batch, **options):
        computed.append(batch["input_ids"].numel())
        return forward(model, batch, **options)

    watched.layout = forward.layout
    scorer._engine.forward = watched
    return computed


def test_no_batch_has_more_tokens_than_allowed_and_prompts_are_computed_once(folder, layout):
    rows = [{"prompt": "x" * 50, "responses": [f"{n}{k}" for k in range(9)]} for n in range(8)]
    model = RewardModel.from_pretrained(folder, device="cpu", batch_layout=layout, max_tokens_per_batch=160)
    model.score("warm up: the layout is checked")
    computed = count_tokens(model)
    model.score(rows)
    assert max(computed) <= 160
    assert len(computed) > 1
    if layout == "padded":
        assert sum(computed) == 72 * 53
    else:  # 72 responses of 3 own tokens, with 50 shared ones a batch
        assert sum(computed) < 72 * 3 + 51 * len(computed)


def test_equal_responses_are_computed_once(scorer):
    scorer.score("warm up")
    computed = count_tokens(scorer)
    scores = scorer.score(["same"] * 50 + [{"prompt": "sa", "response": "me"}, {"responses": ["same", "same"]}])
    assert sum(computed) == len("same") + 1
    assert len(set(flat(scores))) == 1


def test_padded_batches_hold_responses_of_similar_length(folder):
    model = RewardModel.from_pretrained(folder, device="cpu", batch_layout="padded", max_tokens_per_batch=400)
    computed = count_tokens(model)
    texts = ["x" * random.Random(n).randrange(1, 200) + str(n) for n in range(120)]
    model.score(texts)
    assert sum(computed) < 1.1 * sum(len(text) + 1 for text in texts)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    responses=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=30),
    share=st.booleans(),
    tokens=st.integers(1, 40),
)
def test_groups_hold_every_response_once_and_fit(responses, share, tokens):
    found = {}
    for group in group_responses(responses, share=share, max_tokens=tokens):
        assert group.tokens <= tokens or len(group.responses) == 1
        for ids, places in zip(group.responses, group.places, strict=True):
            for place in places:
                assert place not in found
                found[place] = ids
    assert found == dict(enumerate(responses))


def test_memory_that_runs_out_halves_the_batch_and_says_so(folder, caplog):
    model = RewardModel.from_pretrained(folder, device="cpu", max_tokens_per_batch=1000)
    expected = model.score(ROWS)
    forward = model._engine.forward

    def small_memory(called, batch, **options):
        if batch["input_ids"].numel() > 100:
            raise torch.OutOfMemoryError("out of memory")
        return forward(called, batch, **options)

    small_memory.layout = forward.layout
    model._engine.forward = small_memory
    with caplog.at_level(logging.WARNING, "plaudit"):
        assert flat(model.score(ROWS)) == REWARD.approx(flat(expected))
    assert "Out of memory at" in caplog.text
    assert model.max_tokens_per_batch < 1000
    with pytest.raises(torch.OutOfMemoryError):
        model.score("x" * 200)


# ---- rows that cannot be scored -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        (None, None, "null"),
        (3, None, "3"),
        ({}, None, "no columns"),
        ({"text": "a"}, None, "`text`"),
        ([], "messages", "list"),
        ([user("a"), {"role": "assistant", "content": None}], "messages[1].content", "null"),
        ({"response": None}, "response", "null"),
        ({"completion": 3, "prompt": "a"}, "completion", "3"),
        ({"prompt": None, "response": "a"}, "prompt", "null"),
        ({"prompt": "a", "response": TALK}, "prompt", "`response`"),
        ({"chosen": "a", "rejected": None}, "rejected", "null"),
        ({"responses": ["a", None]}, "responses[1]", "null"),
        ({"responses": "a"}, "responses", "text"),
        ({"responses": []}, "responses", "empty"),
        ({"response_ids": [[1], []]}, "response_ids[1]", "empty"),
        ({"response_ids": [[1], [2, 99_999]]}, "response_ids[1]", "token id 99999"),
        ({"chosen_ids": [99_999], "rejected_ids": [1]}, "chosen_ids", "token id 99999"),
        ({"response": TALK, "tools": "{"}, "tools", "JSON"),
        ({"response": "x" * 600}, "response", "has 601 tokens, more than `max_length` 512"),
        ({"chosen": "a", "rejected": "x" * 600}, "rejected", "601"),
    ],
)
def test_a_broken_row_is_named_before_anything_is_computed(folder, row, field, value):
    model = RewardModel.from_pretrained(folder, device="cpu")
    computed = count_tokens(model)
    with pytest.raises(DataError) as caught:
        model.score(["fine"] * 1500 + [row])
    assert (caught.value.row, caught.value.field) == (1500, field)
    assert value in caught.value.message
    assert caught.value.fix
    assert computed == []


def test_a_conversation_that_the_template_refuses_is_named(tokenizer, folder):
    picky = "{% if messages|length > 2 %}{{ raise_exception('too long a talk') }}{% endif %}" + tokenizer.chat_template
    rows = [TALK, {"prompt": TALK, "responses": [TALK, TALK]}, TALK]
    tokenizer = type(tokenizer).from_pretrained(folder)
    tokenizer.chat_template = picky
    model = RewardModel.from_pretrained(folder, device="cpu", processing_class=tokenizer)
    with pytest.raises(DataError, match="too long a talk") as caught:
        model.score(rows)
    assert (caught.value.row, caught.value.field) == (1, "responses[0]")
    first, middle, last = model.score(rows, errors="nan")
    assert first == last == model.score(TALK)
    assert len(middle) == 2
    assert all(map(math.isnan, middle))


def test_nan_where_asked_counted_and_said(scorer, caplog):
    rows = ["a", None, {"chosen": None, "rejected": "b"}, {"responses": ["a", 3, "c"]}, {"response": "b"}, "x" * 600]
    with caplog.at_level(logging.WARNING, "plaudit"):
        scores = scorer.score(rows, errors="nan")
    assert list(map(math.isnan, flat(scores))) == [False, True, True, True, True, True, True, False, True]
    assert [type(score) for score in scores] == [float, float, tuple, list, float, float]
    assert "6 rows read, 2 scored; not scored: 1 over-long (> 512 tokens; row 5)" in caplog.text
    assert "(rows 1, 2, 3; the first: row 1: is null" in caplog.text
    assert [scores[0], scores[4]] == REWARD.approx([scorer.score("a"), scorer.score("b")])
    streamed = flat(scorer.score_stream(rows, errors="nan", window=2))
    assert streamed == REWARD.approx(flat(scores))


def test_token_ids_beyond_the_vocabulary_are_nan_where_asked(scorer, tokenizer):
    last = scorer.model.get_input_embeddings().num_embeddings - 1
    known, unknown = scorer.score([{"response_ids": [[last]]}, {"response_ids": [[1], [last + 1]]}], errors="nan")
    assert not math.isnan(known[0])
    assert [math.isnan(reward) for reward in unknown] == [True, True]


@pytest.mark.parametrize("rows", [7, None, 2.5, object()])
def test_what_holds_no_rows_is_refused(scorer, rows):
    for field, call in (("rows", scorer.score), ("rows", scorer.score_stream), ("pairs", scorer.margin)):
        with pytest.raises(DataError) as caught:
            call(rows)
        assert caught.value.field == field
        assert "a mapping" in caught.value.fix
    with pytest.raises(DataError) as caught:
        scorer.rank("a", rows)
    assert caught.value.field == "responses"


def test_the_columns_of_a_table_are_not_taken_for_rows(scorer):
    table = Dataset.from_list(conversation_rows(2))
    with pytest.raises(DataError) as caught:
        scorer.score(table.data.table)
    assert caught.value.field == "rows"
    assert "`datasets.Dataset`" in caught.value.fix
    assert len(scorer.score(table)) == 2


def test_a_stream_raises_where_the_broken_row_is_reached(scorer):
    stream = scorer.score_stream(["a", "b", "c", {"response": 3}], window=2)
    assert [next(stream), next(stream)] == REWARD.approx(scorer.score(["a", "b"]))
    with pytest.raises(DataError) as caught:
        next(stream)
    assert (caught.value.row, caught.value.field) == (3, "response")


@pytest.mark.parametrize("overlong", ["error", "nan", "truncate_left", "truncate_right"])
def test_what_is_too_long(folder, layout, plain, caplog, overlong):
    model = RewardModel.from_pretrained(folder, device="cpu", batch_layout=layout, max_length=10, overlong=overlong)
    rows = ["short", {"prompt": "0123456789", "responses": ["abc", "ab"]}]
    if overlong == "error":
        with pytest.raises(DataError, match=r"14 tokens.* 10"):
            model.score(rows)
        return
    if overlong == "truncate_right":
        # The prompt alone fills the limit.
        with pytest.raises(DataError) as caught:
            model.score(rows)
        assert (caught.value.row, caught.value.field) == (1, "responses[0]")
        rows[1]["prompt"] = "01234567"
    with caplog.at_level(logging.WARNING, "plaudit"):
        short, several = model.score(rows)
    assert short == REWARD.approx(plain("short"))
    if overlong == "nan":
        assert all(map(math.isnan, several))
        assert "2 rows read, 1 scored; not scored: 1 over-long (> 10 tokens; row 1)" in caplog.text
        with pytest.raises(DataError) as caught:
            model.score([*rows, {"response": None}])
        assert caught.value.row == 2
        return
    side = overlong.removeprefix("truncate_")
    assert f"1 over-long, truncated on the {side} (> 10 tokens; row 1)" in caplog.text
    if side == "left":
        assert several == REWARD.approx([plain("456789abc"), plain("3456789ab")])


def test_a_cut_response_has_the_reward_that_it_has_alone(folder, layout):
    model = RewardModel.from_pretrained(
        folder, device="cpu", batch_layout=layout, max_length=40, overlong="truncate_left"
    )
    prompt = TALK[:1]
    responses = [[assistant("11")], [assistant("so " * 40)], [assistant("it is four, and " * 2)]]
    together = model.score({"prompt": prompt, "responses": responses})
    assert together == REWARD.approx([model.score([*prompt, *response]) for response in responses])


@pytest.mark.parametrize("errors", ["raise", "nan"])
def test_a_response_that_truncation_would_remove_is_no_reward(folder, layout, caplog, errors):
    model = RewardModel.from_pretrained(
        folder, device="cpu", batch_layout=layout, max_length=8, overlong="truncate_right"
    )
    rows = ["short", {"prompt": "0123456789", "response": "abc"}]
    if errors == "raise":
        with pytest.raises(DataError) as caught:
            model.score(rows)
        assert (caught.value.row, caught.value.field) == (1, "response")
        assert "max_length" in caught.value.fix
        return
    with caplog.at_level(logging.WARNING, "plaudit"):
        short, lost = model.score(rows, errors="nan")
    assert math.isfinite(short)
    assert math.isnan(lost)
    assert "not scored: 1 with a response of which truncation would leave nothing (> 8 tokens; row 1)" in caplog.text


def test_empty_answers_and_unfinished_talks_are_said_once(folder, caplog):
    model = RewardModel.from_pretrained(folder, device="cpu")
    rows = [TALK, [*TALK, user("And?")], {"prompt": TALK[:1], "response": [assistant(" ")]}]
    with caplog.at_level(logging.WARNING, "plaudit"):
        model.score(rows)
        model.score(rows)
    assert caplog.text.count("1 whose last message is not the assistant's (row 1)") == 1
    assert caplog.text.count("1 with an empty response (row 2)") == 1


def test_plain_text_beside_a_chat_template_is_said_once(folder, caplog):
    model = RewardModel.from_pretrained(folder, device="cpu")
    with caplog.at_level(logging.WARNING, "plaudit"):
        model.score(TALK)
        assert "Plain text is scored as it is" not in caplog.text
        model.score("a")
        model.score("b")
    assert caplog.text.count("Plain text is scored as it is, without the chat template") == 1


def test_unknown_settings_are_refused(scorer):
    for field, call in (
        ("errors", lambda: scorer.score("a", errors="ignore")),
        ("errors", lambda: scorer.score("a", errors=None)),
        ("window", lambda: scorer.score_stream(["a"], window=0)),
        ("rows", lambda: scorer.score_stream("a")),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.field == field


def test_nothing_passed_in_is_changed(scorer):
    import copy

    rows = [row for row, _ in FORMS.values()]
    before = copy.deepcopy(rows)
    scorer.score(rows)
    assert rows == before


def test_scoring_leaves_no_gradients_and_draws_no_random_numbers(scorer):
    before = torch.random.get_rng_state()
    scorer.score(ROWS)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())


def test_a_progress_bar_counts_responses(scorer, capsys):
    scorer.score(ROWS, progress=True)
    total = sum(len(row["responses"]) for row in ROWS[:-2]) + 2
    assert f"{total}/{total}" in capsys.readouterr().err
    list(scorer.score_stream(ROWS, progress=True))
    assert f"{total} responses" in capsys.readouterr().err
    scorer.score(ROWS)
    assert capsys.readouterr().err == ""
