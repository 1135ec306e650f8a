"""Rows of public data sets as their authors publish them, with short texts, and how they are read."""

import json


def user(text, system=None):
    return ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def pair(prompt, chosen, rejected, **columns):
    return {"prompt": prompt, "chosen": assistant(chosen), "rejected": assistant(rejected), **columns}


CHAT_A, CHAT_B = user("2+2?") + assistant("4"), user("2+2?") + assistant("5")
# schema: a row as it is published (texts shortened), and the columns that it is read as.
ROWS = {
    "ultrafeedback": (
        {
            "source": "sharegpt",
            "instruction": "2+2?",
            "models": ["a", "b", "c"],
            "completions": [
                {"model": "a", "response": "4", "overall_score": 8.5, "critique": "good", "annotations": {}},
                {"model": "b", "response": "5", "overall_score": 2.0, "critique": "bad", "annotations": {}},
                {"model": "c", "response": "?", "overall_score": None, "critique": "none", "annotations": {}},
            ],
            "correct_answers": ["None"],
        },
        {"prompt": user("2+2?"), "responses": [assistant("4"), assistant("5")], "scores": [8.5, 2.0]},
    ),
    "reward_bench": (
        {
            "id": 1,
            "prompt": "2+2?",
            "chosen": "4",
            "chosen_model": "a",
            "rejected": "5",
            "rejected_model": "b",
            "subset": "math",
        },
        pair(user("2+2?"), "4", "5"),
    ),
    "binarized": (
        {
            "prompt": "2+2?",
            "prompt_id": "x",
            "chosen": CHAT_A,
            "rejected": CHAT_B,
            "messages": CHAT_A,
            "score_chosen": 8.5,
            "score_rejected": 2.0,
        },
        {"chosen": CHAT_A, "rejected": CHAT_B},
    ),
    "ultrafeedback_argilla": (
        {"instruction": "2+2?", "chosen_response": "4", "rejected_response": "5", "chosen_avg_rating": 5.0},
        pair(user("2+2?"), "4", "5"),
    ),
    "hh": (
        {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
        {"chosen": CHAT_A, "rejected": CHAT_B},
    ),
    "json": (
        {"prompt": "", "chosen": json.dumps(CHAT_A), "rejected": json.dumps(CHAT_B), "margin": 1.0},
        {"chosen": CHAT_A, "rejected": CHAT_B, "margin": 1.0},
    ),
    "helpsteer2": (
        {"prompt": "2+2?", "response": "4", "helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 0},
        {"prompt": user("2+2?"), "response": assistant("4"), "scores": 4.0},
    ),
    "helpsteer2_preference": (
        {"prompt": "2+2?", "response_1": "4", "response_2": "5", "preference_strength": -2, "split": "train"},
        pair(user("2+2?"), "4", "5", tie=False),
    ),
    "helpsteer3": (
        {"domain": "x", "context": user("2+2?"), "response1": "5", "response2": "4", "overall_preference": 2},
        pair(user("2+2?"), "4", "5", tie=False),
    ),
    "nectar": (
        {
            "prompt": "\n\nHuman: 2+2?\n\nAssistant: ",
            "answers": [{"answer": "5", "model": "a", "rank": 2.0}, {"answer": "4", "model": "b", "rank": 1.0}],
            "turns": 1,
            "num_responses": 2,
            "source": ["x"],
        },
        {"prompt": user("2+2?"), "responses": [assistant("5"), assistant("4")], "ranks": [2, 1]},
    ),
    "arena": (
        {"model_a": "a", "model_b": "b", "winner": "model_b", "conversation_a": CHAT_B, "conversation_b": CHAT_A},
        {"chosen": CHAT_A, "rejected": CHAT_B, "tie": False},
    ),
    "arena_55k": (
        {
            "id": 1,
            "prompt": '["2+2?"]',
            "response_a": '["4"]',
            "response_b": '["5"]',
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        {"chosen": CHAT_A, "rejected": CHAT_B, "tie": False},
    ),
    "safe_rlhf": (
        {"prompt": "2+2?", "response_0": "5", "response_1": "4", "better_response_id": 1, "safer_response_id": 0},
        pair(user("2+2?"), "4", "5", tie=False),
    ),
    "webgpt": (
        {
            "question": {"dataset": "eli5", "id": "1", "full_text": "2+2?"},
            "answer_0": "4",
            "answer_1": "5",
            "score_0": 0.5,
            "score_1": -0.5,
        },
        pair(user("2+2?"), "4", "5", tie=False),
    ),
    "summaries": (
        {
            "info": {"id": "x", "post": "I add.", "title": "Sums", "subreddit": "math", "site": None, "article": None},
            "summaries": [{"text": "5", "policy": "a"}, {"text": "4", "policy": "b"}],
            "choice": 1,
            "worker": "w",
        },
        pair(user("SUBREDDIT: r/math\nTITLE: Sums\nPOST: I add.\nTL;DR:"), "4", "5", tie=False),
    ),
    "shp": (
        {"post_id": "x", "history": "2+2?", "human_ref_A": "5", "human_ref_B": "4", "labels": 0, "score_A": 1},
        pair(user("2+2?"), "4", "5", tie=False),
    ),
    "openai": (
        {
            "input": {"messages": user("2+2?"), "tools": [], "parallel_tool_calls": True},
            "preferred_output": assistant("4"),
            "non_preferred_output": assistant("5"),
        },
        pair(user("2+2?"), "4", "5", tools=""),
    ),
    "dpo": (
        {"system": "Be exact.", "question": "2+2?", "chosen": "4", "rejected": "5"},
        pair(user("2+2?", "Be exact."), "4", "5"),
    ),
    "dpo alpaca": (
        {"instruction": "Add.", "input": "2+2?", "chosen": "4", "rejected": "5"},
        pair(user("Add.\n2+2?"), "4", "5"),
    ),
    "dpo input": (
        {"system": "Be exact.", "input": "2+2?", "chosen": "4", "rejected": "5", "generations": ["4", "5"]},
        pair(user("2+2?", "Be exact."), "4", "5"),
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        pair(user("2+2?"), "4", "5"),
    ),
    "continuations": (
        {"messages": user("2+2?"), "chosen": assistant("4")[0], "rejected": assistant("5")[0]},
        pair(user("2+2?"), "4", "5"),
    ),
    "swift": ({"messages": CHAT_A, "rejected_messages": CHAT_B}, {"chosen": CHAT_A, "rejected": CHAT_B}),
    "swift response": ({"messages": CHAT_A, "rejected_response": "5"}, {"chosen": CHAT_A, "rejected": CHAT_B}),
    "nemo": (
        {
            "context": user("2+2?"),
            "completions": [{"rank": 0, "completion": assistant("4")}, {"rank": 1, "completion": assistant("5")}],
        },
        {"prompt": user("2+2?"), "responses": [assistant("4"), assistant("5")], "ranks": [1, 2]},
    ),
    "kto": (
        {"prompt": "2+2?", "completion": "4", "label": True},
        {"prompt": "2+2?", "response": "4", "label": True},
    ),
    "stack_exchange": (
        {"qid": 1, "question": "2+2?", "answers": [{"answer_id": 1, "text": "4", "pm_score": 3, "selected": True}]},
        {"prompt": user("2+2?"), "responses": [assistant("4")], "scores": [3.0]},
    ),
    "stack_exchange_paired": (
        {"qid": 1, "question": "2+2?", "response_j": "4", "response_k": "5", "date": "x"},
        pair(user("2+2?"), "4", "5"),
    ),
    "reward_bench_2": (
        {"id": "x", "prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "6"], "num_correct": 1, "subset": "Math"},
        {
            "prompt": user("2+2?"),
            "responses": [assistant("4"), assistant("5"), assistant("6")],
            "scores": [1.0, 0.0, 0.0],
        },
    ),
}
