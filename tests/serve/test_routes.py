"""Each route gives the rewards of `RewardModel.score`, in the form that its clients expect."""

from __future__ import annotations

import json
import math

import pytest

from plaudit.model.calibration import RewardCalibration
from tolerances import REWARD

ASK = [{"role": "user", "content": "What color is the sky?"}]
BLUE, GREEN = ({"role": "assistant", "content": f"It is {color}."} for color in ("blue", "green"))
ROWS = [
    {"prompt": "2+2=", "response": "4"},
    {"prompt": "2+2=", "response": "4", "label": True, "other": 1},
    {"prompt": "2+2=", "completion": "5"},
    {"prompt": "2+2=", "chosen": "4", "rejected": "5", "margin": 1.0},
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    {"prompt": "2+2=", "responses": ["4", "5", "22"], "ranks": [1, 2, 3]},
    {"prompt": ASK, "response": [BLUE]},
    {"prompt": ASK, "chosen": [BLUE], "rejected": [GREEN]},
    {"prompt": ASK, "responses": [[BLUE], [GREEN]], "scores": [4.5, 1]},
    {"messages": [*ASK, BLUE]},
    {"messages": [*ASK, BLUE], "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"chosen_ids": [7, 8, 9], "rejected_ids": [7, 8]},
    {"response_ids": [[7, 8, 9], [10, 11]]},
    [*ASK, BLUE],
    "2+2=4",
]


def flat(rewards):
    return [one for row in rewards for one in (row if isinstance(row, list | tuple) else [row])]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row) if isinstance(row, dict) else type(row).__name__)
def test_a_single_row_of_every_form(client, reference, row):
    answer = client.post("/score", json=row)
    assert answer.status_code == 200
    expected = reference.score(row)
    assert flat([answer.json()["rewards"]]) == REWARD.approx(flat([expected]))
    assert isinstance(answer.json()["rewards"], list) == isinstance(expected, list | tuple)


def test_several_rows_keep_their_order_and_shape(serve, make_model, reference, layout):
    client = serve(make_model(batch_layout=layout, max_tokens_per_batch=64))
    answer = client.post("/score", json=ROWS).json()
    expected = reference.score(ROWS)
    assert answer["model"] == "tiny"
    assert [isinstance(one, list) for one in answer["rewards"]] == [isinstance(one, list | tuple) for one in expected]
    assert flat(answer["rewards"]) == REWARD.approx(flat(expected))
    assert "truncated" not in answer
    assert answer["tokens"] > 100


def test_rank(client, reference):
    responses = ["It is green.", "It is blue.", "It is blue.", "No."]
    answer = client.post("/rank", json={"prompt": ASK, "responses": responses}).json()
    ranked = reference.rank(ASK, responses)
    assert answer["order"] == [one.position for one in ranked]
    assert [one["response"] for one in answer["ranking"]] == [one.response for one in ranked]
    assert [one["reward"] for one in answer["ranking"]] == REWARD.approx([one.reward for one in ranked])
    one = client.post("/rank", json={"prompt": "2+2=", "responses": ["4"]}).json()
    assert one["order"] == [0]


def test_the_remote_reward_form_of_openrlhf(client, reference, tokenizer):
    conversation = [*ASK, BLUE]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    # A policy stops at its end token, before the line break of the template; and some end with eos after it.
    queries = [rendered, rendered.removesuffix("\n"), rendered.removesuffix("<|im_end|>\n"), "2+2=4", "2+2=4<|eos|>"]
    body = {"query": queries, "prompts": ["p"] * 5, "labels": [None] * 5}
    answer = client.post("/get_reward", json=body).json()
    chat, text = reference.score([conversation, "2+2=4"])
    assert answer["rewards"] == REWARD.approx([chat, chat, chat, text, text])
    assert answer["scores"] == answer["rewards"]
    assert answer["extra_logs"] == {}
    assert chat != pytest.approx(reference.score(rendered), abs=1e-3)
    assert client.post("/get_reward", json={"query": "2+2=4"}).json()["rewards"] == REWARD.approx([text])


def test_what_whole_texts_are_can_be_said(serve, reference, tokenizer):
    rendered = tokenizer.apply_chat_template([*ASK, BLUE], tokenize=False)
    plain = serve(texts="plain").post("/get_reward", json={"query": [rendered]}).json()["rewards"]
    assert plain == REWARD.approx([reference.score(rendered)])
    ids = tokenizer("2+2=4<|im_end|>\n")["input_ids"]
    forced = serve(texts="rendered").post("/get_reward", json={"query": ["2+2=4"]}).json()["rewards"]
    assert forced == REWARD.approx(reference.score({"response_ids": [ids]}))


def test_the_classify_form_of_vllm(client, reference, tokenizer):
    answer = client.post("/classify", json={"model": "tiny", "input": ["2+2=4", "2+2=5"]}).json()
    assert answer["object"] == "list"
    assert answer["model"] == "tiny"
    assert [one["index"] for one in answer["data"]] == [0, 1]
    assert {one["num_classes"] for one in answer["data"]} == {1}
    assert [one["probs"][0] for one in answer["data"]] == REWARD.approx(reference.score(["2+2=4", "2+2=5"]))
    assert answer["usage"]["prompt_tokens"] == 12
    ids = tokenizer("2+2=4<|eos|>")["input_ids"]
    for given in ("2+2=4", ids, [ids]):
        (only,) = client.post("/classify", json={"input": given}).json()["data"]
        assert only["probs"] == REWARD.approx([reference.score("2+2=4")])
    (chat,) = client.post("/classify", json={"messages": [*ASK, BLUE]}).json()["data"]
    assert chat["probs"] == REWARD.approx([reference.score([*ASK, BLUE])])
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_rewards_are_raw_and_a_client_that_wants_others_is_told(client):
    answer = client.post("/classify", json={"input": "a", "use_activation": True})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "use_activation"
    assert client.post("/classify", json={"input": "a", "use_activation": False}).status_code == 200
    assert client.post("/classify", json={"input": "a", "model": "gpt"}).status_code == 404


def test_the_calibration_counts_everywhere(serve, make_model, reference):
    client = serve(make_model(calibration=RewardCalibration(2.0, -0.5, 1.5)))
    expected = [2 * reference.score("2+2=4") - 0.5]
    assert [client.post("/score", json="2+2=4").json()["rewards"]] == REWARD.approx(expected)
    assert client.post("/get_reward", json={"query": ["2+2=4"]}).json()["rewards"] == REWARD.approx(expected)


def test_health_and_docs(client):
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert health["batch_layout"] == "shared_prefix"
    assert health["queued_responses"] == 0
    assert client.get("/docs").status_code == 200


def test_every_example_of_the_openapi_page_can_be_sent(client):
    page = client.get("/openapi.json").json()
    sent = 0
    for path in ("/score", "/rank", "/get_reward", "/classify"):
        route = page["paths"][path]["post"]
        body = route["requestBody"]["content"]["application/json"]
        for name, example in body["examples"].items():
            answer = client.post(path, json=example["value"])
            assert answer.status_code == 200, (path, name)
            sent += 1
        told = route["responses"]["200"]["content"]["application/json"]["example"]
        assert client.post(path, json=next(iter(body["examples"].values()))["value"]).json().keys() == told.keys()
        assert {"401", "413", "422", "429", "503"} <= route["responses"].keys()
    assert sent == 10


def test_no_number_leaves_as_null_or_an_error_never_as_nan(serve, make_model):
    model = make_model()
    client = serve(model)

    def broken(rows, **options):
        return [[math.nan if index else 0.5 for index in range(len(row["response_ids"]))] for row in rows]

    model.score = broken
    answer = client.post("/score", json={"prompt": "a", "responses": ["b", "c"]})
    assert json.loads(answer.text, parse_constant=pytest.fail)["rewards"] == [0.5, None]
    answer = client.post("/rank", json={"prompt": "a", "responses": ["b", "c", "d"]}).json()
    assert answer["order"] == [0, 1, 2]
    model.score = lambda rows: [[math.inf] for _ in rows]
    for path, body in (("/get_reward", {"query": ["a"]}), ("/classify", {"input": "a"})):
        answer = client.post(path, json=body)
        assert answer.status_code == 500
        assert "no finite number" in answer.json()["error"]["message"]


def test_cut_rows_are_said(serve, make_model, reference):
    client = serve(make_model(max_length=10, overlong="truncate_left"))
    answer = client.post("/score", json=["short", "much longer than ten tokens"]).json()
    assert answer["truncated"] == [1]
    assert "plaudit_truncated_rows_total 1.0" in client.get("/metrics").text


def test_a_response_that_truncation_would_remove_is_refused(serve, make_model):
    client = serve(make_model(max_length=10, overlong="truncate_right"))
    answer = client.post("/score", json=[{"prompt": "0123456789", "response": "abc"}])
    assert answer.status_code == 422
    assert "has nothing left of itself" in answer.json()["error"]["message"]
    assert client.post("/score", json=[{"prompt": "012345678", "response": "abc"}]).status_code == 200


def test_public_rows_are_read_by_their_schema(client, reference):
    conversations = [[*ASK, BLUE], [*ASK, GREEN]]
    battle = {"model_a": "a", "model_b": "b", "winner": "model_b"}
    battle |= dict(zip(("conversation_a", "conversation_b"), conversations[::-1], strict=True))
    answer = client.post("/score", json=[battle]).json()
    assert answer["rewards"] == [REWARD.approx(reference.score(conversations))]


def test_a_question_that_nothing_reads_is_refused(client):
    answer = client.post("/score", json=[{"question": "2+2?", "response": "4"}])
    assert answer.status_code == 422
    assert "question" in answer.json()["error"]["field"]
