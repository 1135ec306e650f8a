"""Servers: ours for real, and others as their documentation says they answer; with traps, keys and broken answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

import plaudit
from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import ConfigError, RewardModel
from plaudit.model.calibration import RewardCalibration
from plaudit.verification.servers import Server, kind_of_server
from serve.conftest import LiveServer
from verification.conftest import by_path, train, traps


def verify(folder, url, **options):
    return plaudit.verify(folder, url=url, **{"device": "cpu", "export": False, "local": False, **options})


def sigmoid(rewards):
    return (1 / (1 + np.exp(-np.array(rewards)))).tolist()


# ---- ours -----------------------------------------------------------------------------------------------------


def test_our_server_in_all_its_forms(folder):
    with LiveServer(RewardModel.from_pretrained(folder, device="cpu"), api_key="k") as live:
        url = f"http://127.0.0.1:{live.port}"
        found = verify(folder, url, api_key="k")
        locked_out = verify(folder, url, server="plaudit")
    assert found.passed, str(found)
    assert {path: one.verdict for path, one in by_path(found).items()} == {
        "plaudit /score, token ids": "same",
        "plaudit /score, messages or text": "same",
        "plaudit /classify, token ids": "same",
        "plaudit /get_reward, texts": "same",
    }
    assert not locked_out.passed
    assert "401" in str(locked_out)


def test_a_calibration_that_one_side_does_not_know(folder):
    calibrated = RewardModel.from_pretrained(folder, device="cpu", calibration=RewardCalibration(scale=2, shift=1))
    with LiveServer(calibrated) as live:
        url = f"http://127.0.0.1:{live.port}/"
        assert traps(verify(folder, url)) == {"rescaled"}
        RewardCalibration(scale=2, shift=1).save(folder)
        assert verify(folder, url).passed
        RewardCalibration(scale=3).save(folder)
        assert traps(verify(folder, url)) == {"rescaled"}


def test_a_server_that_cuts_long_rows(folder):
    lengths = sorted(len(row.ids) for row in plaudit.model.golden.load_golden_rows(str(folder)).rows)
    cutting = RewardModel.from_pretrained(folder, device="cpu", max_length=lengths[-2], overlong="truncate_left")
    with LiveServer(cutting) as live:
        found = verify(folder, f"http://127.0.0.1:{live.port}")
    assert by_path(found)["plaudit /classify, token ids"].finding.trap == "truncated"


def test_another_model_is_served(folder):
    other = RewardModel(tiny_model(tiny_tokenizer(), seed=5), tiny_tokenizer())
    with LiveServer(other) as live:
        found = verify(folder, f"http://127.0.0.1:{live.port}")
    assert not found.passed
    assert traps(found) <= {"lost_head", "unknown"}


# ---- others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vllm", "sglang", "openrlhf"])
def test_others_are_recognised_and_give_the_same(folder, start, kind):
    url, server = start(folder, kind)
    assert kind_of_server(Server(url)) == kind
    found = verify(folder, url)
    assert found.passed, str(found)
    assert {one.verdict for one in found.results} == {"same"}
    assert all(path.startswith(kind) for path in by_path(found))
    assert verify(folder, url, server=kind).passed
    sent = [body.get("input") or body.get("input_ids") or body.get("text") or body["query"] for _, body in server.asked]
    assert all(sent)


def test_vllm_with_an_activation(folder, start):
    url, server = start(folder, "vllm", read=sigmoid)
    found = verify(folder, url)
    assert traps(found) == {"sigmoid"}
    assert "use_activation" in str(found)
    assert [body.get("use_activation") for _, body in server.asked][:2] == [None, False]


@pytest.mark.parametrize("read", [lambda rewards: [1.0] * len(rewards), lambda rewards: [7.0] * len(rewards)])
def test_the_same_number_for_all(folder, start, read):
    url, _ = start(folder, "vllm", read=read)
    assert traps(verify(folder, url)) <= {"softmax", "constant"}


def test_a_second_bos_of_texts_alone(tmp_path, start):
    tokenizer = tiny_tokenizer(chat_template="{{ bos_token }}" + tiny_tokenizer().chat_template, bos=True)
    train(tmp_path / "run", tokenizer, conversation_rows())
    url, _ = start(tmp_path / "run", "vllm", special=True)
    found = by_path(verify(tmp_path / "run", url, local=True))
    assert found["vllm /classify, token ids"].verdict == "same"
    wrong = found["vllm /classify, texts, use_activation false"]
    assert (wrong.verdict, wrong.finding.trap) == ("differs", "second_bos")
    url, _ = start(tmp_path / "run", "sglang")
    found = by_path(verify(tmp_path / "run", url))
    assert found["sglang /classify, texts"].verdict == "skipped"
    assert found["sglang /classify, token ids"].verdict == "same"


@pytest.mark.parametrize(
    ("change", "trap"),
    [
        (lambda ids: ids[:-1], "pad_is_eos"),
        (lambda ids: [*ids, 2], "added_eos"),
        (lambda ids: [1, *ids], "second_bos"),
        (lambda ids: ids[1:], "missing_bos"),
    ],
)
def test_servers_that_change_token_ids(text_folder, start, change, trap):
    url, _ = start(text_folder, "vllm", change=change)
    found = verify(text_folder, url, local=True)
    assert by_path(found)["vllm /classify, token ids"].finding.trap == trap
    assert by_path(found)["transformers, one by one"].verdict == "same"


def test_a_generation_prompt_at_the_end(folder, start):
    tokenizer = tiny_tokenizer()
    more = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    url, _ = start(folder, "sglang", change=lambda ids: [*ids, *more])
    found = verify(folder, url, local=True)
    assert by_path(found)["sglang /classify, token ids"].finding.trap == "generation_prompt"


def test_openrlhf_that_normalises(folder, start):
    url, _ = start(folder, "openrlhf", read=lambda rewards: [(one - 0.7) / 1.9 for one in rewards])
    assert traps(verify(folder, url)) == {"rescaled"}


# ---- trouble --------------------------------------------------------------------------------------------------


def test_servers_that_are_not_there_or_unknown(folder, start):
    unknown = start(folder, "unknown")[0]
    for url, options, value in (
        ("http://127.0.0.1:9", {}, "http://127.0.0.1:9/openapi.json"),
        (unknown, {}, "/generate"),
        ("127.0.0.1:8000", {}, "127.0.0.1:8000"),
        ("http://127.0.0.1:9", {"server": "triton"}, "triton"),
    ):
        with pytest.raises(ConfigError) as error:
            verify(folder, url, **options)
        assert value in error.value.message
        assert error.value.fix


@pytest.mark.parametrize(
    ("read", "note"),
    [
        (lambda rewards: rewards[:-1], "7 rewards came for 8 rows"),
        (lambda rewards: ["much"] * 8, "another form"),
        (lambda rewards: [None, *rewards[1:]], "no finite number"),
    ],
)
def test_answers_that_make_no_sense(folder, start, read, note):
    url, _ = start(folder, "openrlhf", read=read)
    found = verify(folder, url)
    assert not found.passed
    assert note in str(found)


def test_a_route_that_fails_does_not_hide_the_others(folder, start):
    url, server = start(folder, "vllm")
    answer = server.post
    server.post = lambda path, body: None if "use_activation" in body else answer(path, body)
    found = by_path(verify(folder, url))
    assert found["vllm /classify, token ids"].verdict == "same"
    assert found["vllm /classify, token ids, use_activation false"].verdict == "failed"
    assert "404" in found["vllm /classify, token ids, use_activation false"].note


def test_what_is_found_is_plain_values_too(folder, start):
    url, _ = start(folder, "openrlhf", read=sigmoid)
    values = json.loads(json.dumps(verify(folder, url).to_dict()))
    assert values["passed"] is False
    assert values["results"][0]["trap"] == "sigmoid"
    assert values["results"][0]["largest"] > 0.1
