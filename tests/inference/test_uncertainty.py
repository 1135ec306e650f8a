"""How sure rewards are: std and lower bound of what an ensemble says, for rows of every shape, files and models."""

import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from model_builders import conversation_rows, tiny_model
from plaudit import ConfigError, RewardConfig, RewardModel, RewardTrainer
from plaudit.cli.main import main
from plaudit.inference.engine import UncertainReward
from plaudit.inference.files import score_file
from plaudit.model.aux_heads import FILE_NAME, TrainingHeads, heads_of, save_heads
from plaudit.model.calibration import RewardCalibration
from tolerances import REWARD, SUMMED

MEMBERS = 5
ROWS = [
    {"prompt": "2+2=", "response": "4"},
    {"prompt": "2+2=", "responses": ["4", "5", "twenty-two"]},
    {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
]


@pytest.fixture(scope="session")
def ensemble():
    """Weights of the members, as they were drawn."""
    return TrainingHeads(32, ensemble_size=MEMBERS, seed=3).ensemble.weight.detach()


@pytest.fixture(scope="session")
def uncertain_folder(folder, ensemble, tmp_path_factory):
    """Folder of a reward model with an ensemble beside it."""
    path = tmp_path_factory.mktemp("uncertain") / "model"
    shutil.copytree(folder, path)
    save_heads(TrainingHeads(32, ties=True, ensemble_size=MEMBERS, seed=3), path, None, "davidson")
    return path


@pytest.fixture(scope="session")
def by_hand(tokenizer, ensemble):
    """What each member says of a text or conversation: a stock model, alone in its batch, with another head."""
    model = tiny_model(tokenizer, max_position_embeddings=512)

    def members(response):
        if isinstance(response, str):
            ids = tokenizer(response + tokenizer.eos_token)["input_ids"]
        else:
            text = tokenizer.apply_chat_template(response, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            state_H = model.model(torch.tensor([ids])).last_hidden_state[0, -1].double()
            weights_KH = model.score.weight.double() + ensemble.double() - ensemble.double().mean(dim=0)
            return (weights_KH @ state_H).numpy()

    return members


@pytest.fixture
def model(uncertain_folder, layout):
    return RewardModel.from_pretrained(uncertain_folder, device="cpu", batch_layout=layout, max_tokens_per_batch=300)


def flat(values):
    return [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]


def expected(by_hand):
    texts = ["2+2=4", "2+2=4", "2+2=5", "2+2=twenty-two", "2+2=4", "2+2=5", ROWS[3]]
    return np.stack([by_hand(one) for one in texts])


# --- numbers


def test_mean_spread_and_lower_bound_are_those_computed_by_hand(model, by_hand):
    found = model.score(ROWS, uncertainty=True, k=2.0)
    members_NK = expected(by_hand)
    assert flat(found.mean) == REWARD.approx(members_NK.mean(axis=1))
    assert flat(found.std) == REWARD.approx(members_NK.std(axis=1, ddof=1))
    assert flat(found.lower_bound) == REWARD.approx(members_NK.mean(axis=1) - 2 * members_NK.std(axis=1, ddof=1))
    assert np.concatenate([np.atleast_2d(one) for one in found.members]) == REWARD.approx(members_NK)
    assert min(flat(found.std)) > 0.05


def test_the_mean_is_the_reward_and_has_the_shape_of_the_rows(model):
    found = model.score(ROWS, uncertainty=True)
    assert found.mean == model.score(ROWS)
    for name in ("mean", "std", "lower_bound"):
        one, several, pair, talk = getattr(found, name)
        assert isinstance(one, float)
        assert isinstance(talk, float)
        assert isinstance(several, list)
        assert len(several) == 3
        assert isinstance(pair, tuple)
        assert len(pair) == 2
    alone = model.score(ROWS[0], uncertainty=True)
    assert alone.mean == REWARD.approx(found.mean[0])
    assert alone.std == REWARD.approx(found.std[0])
    assert alone.members.shape == (MEMBERS,)
    assert "members" not in repr(alone)


def test_a_stream_says_it_row_by_row(model):
    rows = [{"prompt": "2+2=", "response": str(n)} for n in range(7)]
    together = model.score(rows, uncertainty=True, k=0.5)
    stream = list(model.score_stream(iter(rows), window=3, uncertainty=True, k=0.5))
    assert all(isinstance(one, UncertainReward) for one in stream)
    assert [one.mean for one in stream] == REWARD.approx(together.mean)
    assert [one.lower_bound for one in stream] == REWARD.approx(together.lower_bound)


def test_a_margin_is_as_sure_as_members_agree_about_the_difference(model, by_hand):
    chosen, rejected = by_hand("2+2=4"), by_hand("2+2=5")
    difference_K = chosen - rejected
    found = model.margin(ROWS[2], uncertainty=True, k=1.5)
    assert found.mean == REWARD.approx(difference_K.mean())
    assert found.mean == REWARD.approx(model.margin(ROWS[2]))
    assert found.std == REWARD.approx(difference_K.std(ddof=1))
    assert found.lower_bound == REWARD.approx(difference_K.mean() - 1.5 * difference_K.std(ddof=1))
    several = model.margin([ROWS[2]] * 2, uncertainty=True)
    assert several.std == [found.std] * 2
    # Members disagree less about a difference than about its ends, which share a prompt.
    ends = model.score(ROWS[2], uncertainty=True).std
    assert found.std < math.hypot(*ends)


def test_a_calibration_scales_the_spread_and_moves_the_bound(uncertain_folder):
    plain = RewardModel.from_pretrained(uncertain_folder, device="cpu")
    scaled = RewardModel.from_pretrained(
        uncertain_folder, device="cpu", calibration=RewardCalibration(scale=3.0, shift=-2.0)
    )
    before, after = (one.score(ROWS[1], uncertainty=True, k=2.0) for one in (plain, scaled))
    assert after.mean == scaled.score(ROWS[1])
    assert after.std == SUMMED.approx([3 * one for one in before.std])
    assert after.lower_bound == SUMMED.approx([3 * one - 2 for one in before.lower_bound])
    assert after.members == SUMMED.approx(3 * before.members - 2)
    margins = [one.margin(ROWS[2], uncertainty=True).std for one in (plain, scaled)]
    assert margins[1] == SUMMED.approx(3 * margins[0])


def test_rows_that_cannot_be_scored_are_nan_in_every_field(model):
    rows = [ROWS[0], {"prompt": "2+2=", "responses": ["4", None]}, {"chosen": "a", "rejected": None}, 3]
    found = model.score(rows, uncertainty=True, errors="nan")
    for name in ("mean", "std", "lower_bound"):
        good, *lost = getattr(found, name)
        assert not math.isnan(good)
        assert [len(one) for one in lost[:2]] == [2, 2]
        assert all(math.isnan(one) for one in flat(lost))


# --- choosing


def test_responses_are_ranked_by_a_lower_bound_of_what_tells_them_apart(model, by_hand):
    responses = ["4", "5", "twenty-two", "I do not know"]
    members_NK = np.stack([by_hand(f"2+2={one}") for one in responses])
    k = 20.0
    std_N = (members_NK - members_NK.mean(axis=0)).std(axis=1, ddof=1)
    ranked = model.rank("2+2=", responses, uncertainty=True, k=k)
    lower_N = members_NK.mean(axis=1) - k * std_N
    assert [one.position for one in ranked] == np.argsort(-lower_N).tolist()
    assert [one.response for one in ranked] == [responses[n] for n in np.argsort(-lower_N)]
    assert [one.std for one in ranked] == REWARD.approx(std_N[np.argsort(-lower_N)])
    assert [one.lower_bound for one in ranked] == REWARD.approx(np.sort(lower_N)[::-1])
    # Caution decides: it is not the order of rewards.
    assert [one.position for one in ranked] != [one.position for one in model.rank("2+2=", responses)]
    assert model.best_of_n("2+2=", responses, uncertainty=True, k=k) == ranked[0]
    heedless = model.rank("2+2=", responses, uncertainty=True, k=0.0)
    assert [one[:3] for one in heedless] == model.rank("2+2=", responses)


def test_a_response_that_cannot_be_scored_comes_last(uncertain_folder):
    model = RewardModel.from_pretrained(uncertain_folder, device="cpu", max_length=20, overlong="nan")
    ranked = model.rank("2+2=", ["4", "5" * 50], uncertainty=True)
    assert all(math.isnan(one.lower_bound) for one in ranked)  # all responses of a row share its fate


# --- models


def test_a_model_without_an_ensemble_says_how_to_get_one(scorer, tmp_path):
    for ask in (
        lambda: scorer.score(ROWS, uncertainty=True),
        lambda: scorer.score_stream(ROWS, uncertainty=True),
        lambda: scorer.margin(ROWS[2], uncertainty=True),
        lambda: scorer.rank("2+2=", ["4", "5"], uncertainty=True),
        lambda: score_file(scorer, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", uncertainty=True),
    ):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert caught.value.field == "uncertainty"
        assert "ensemble_size" in caught.value.fix
        assert FILE_NAME in caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("k", [-1.0, math.nan, math.inf, "much", True])
def test_caution_is_a_number_of_spreads(model, k):
    with pytest.raises(ConfigError) as caught:
        model.score(ROWS[0], uncertainty=True, k=k)
    assert caught.value.field == "k"


def test_heads_without_an_ensemble_and_ensembles_of_other_models(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "ties")
    save_heads(TrainingHeads(32, ties=True), tmp_path / "ties", None, "davidson")
    assert heads_of(RewardModel.from_pretrained(tmp_path / "ties", device="cpu").model) is None
    shutil.copytree(folder, tmp_path / "wide")
    save_heads(TrainingHeads(64, ensemble_size=3), tmp_path / "wide", None, "bradley_terry")
    with pytest.raises(ConfigError, match="64"):
        RewardModel.from_pretrained(tmp_path / "wide", device="cpu")


def train(tokenizer, folder, **settings):
    trainer = RewardTrainer(
        tiny_model(tokenizer),
        RewardConfig(
            str(folder),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            max_steps=2,
            save_strategy="no",
            ensemble_size=3,
        ),
        train_dataset=Dataset.from_list(conversation_rows()),
        processing_class=tokenizer,
        **settings,
    )
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.mark.parametrize("adapter", [False, True])
def test_what_training_saves_is_what_scoring_reads(tokenizer, tmp_path, adapter):
    settings = {}
    if adapter:
        peft = pytest.importorskip("peft")
        base = tmp_path / "base"
        tiny_model(tokenizer).save_pretrained(base)
        settings["peft_config"] = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])
    trainer = train(tokenizer, tmp_path / "run", **settings)
    if adapter:
        path = tmp_path / "run" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))
    rows = conversation_rows(4)
    inside = RewardModel(trainer.model, tokenizer).score(rows, uncertainty=True)
    loaded = RewardModel.from_pretrained(tmp_path / "run", device="cpu").score(rows, uncertainty=True)
    assert flat(loaded.mean) == REWARD.approx(flat(inside.mean))
    assert flat(loaded.std) == REWARD.approx(flat(inside.std))
    assert min(flat(loaded.std)) > 0.05
    if adapter:
        merged = RewardModel.from_pretrained(tmp_path / "run", device="cpu", merge_adapter=True)
        assert flat(merged.score(rows, uncertainty=True).std) == REWARD.approx(flat(loaded.std))


def test_without_the_file_beside_it_a_model_is_a_single_head(tokenizer, uncertain_folder, tmp_path):
    """What is exported is the folder as it is, less one file; any server reads it either way."""
    shutil.copytree(uncertain_folder, tmp_path / "single")
    (tmp_path / "single" / FILE_NAME).unlink()
    with_members = RewardModel.from_pretrained(uncertain_folder, device="cpu")
    single = RewardModel.from_pretrained(tmp_path / "single", device="cpu")
    assert single.score(ROWS) == with_members.score(ROWS)
    _, report = AutoModelForSequenceClassification.from_pretrained(uncertain_folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


# --- files


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [*ROWS[:3], {"messages": ROWS[3]}, {"prompt": "2+2=", "responses": ["4", None]}]
    path.write_text("\n".join(json.dumps({"id": n, **row}) for n, row in enumerate(rows)))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files_get_spread_and_lower_bound_of_what_can_be_told(uncertain_folder, source, tmp_path):
    model = RewardModel.from_pretrained(uncertain_folder, device="cpu")
    result = score_file(
        model, source, tmp_path / "out.jsonl", uncertainty=True, k=2.0, errors="nan", chunk_size=2, column="r"
    )
    one, several, pair, talk, lost = lines(tmp_path / "out.jsonl")
    for row, found in ((ROWS[0], one), (ROWS[1], several), (ROWS[3], talk)):
        said = model.score(row, uncertainty=True, k=2.0)
        for name, value in (("r", said.mean), ("r_std", said.std), ("r_lower_bound", said.lower_bound)):
            assert found[name] == REWARD.approx(value)
    said = model.margin(ROWS[2], uncertainty=True, k=2.0)
    assert pair["chosen_r"] - pair["rejected_r"] == REWARD.approx(said.mean)
    assert pair["r_margin_std"] == REWARD.approx(said.std)
    assert pair["r_margin_lower_bound"] == REWARD.approx(said.lower_bound)
    assert "r_std" not in pair
    assert (lost["r"], lost["r_std"], lost["r_lower_bound"]) == (None, None, None)
    assert result.columns[-3:] == ("rejected_r", "r_margin_std", "r_margin_lower_bound")
    assert (result.rows, result.responses, result.unscored) == (5, 7, 1)


def test_parquet_has_types_for_them(uncertain_folder, tmp_path):
    rows = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]} for row in conversation_rows(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = RewardModel.from_pretrained(uncertain_folder, device="cpu")
    score_file(model, tmp_path / "rows.jsonl", tmp_path / "out.parquet", uncertainty=True)
    table = pq.read_table(tmp_path / "out.parquet")
    assert [str(table.schema.field(name).type) for name in ("reward", "reward_std", "reward_lower_bound")] == [
        "list<element: double>"
    ] * 3
    assert table["reward_std"].to_pylist() == [REWARD.approx(one) for one in model.score(rows, uncertainty=True).std]


def test_an_interrupted_run_goes_on_only_with_the_same_question(uncertain_folder, tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "2+2=", "response": str(n)}) for n in range(6)))
    model = RewardModel.from_pretrained(uncertain_folder, device="cpu")
    ask = {"chunk_size": 2, "uncertainty": True}
    whole = score_file(model, path, tmp_path / "whole.jsonl", **ask)
    compute, calls = model._engine.score, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(model._engine, "score", dies)
    with pytest.raises(KeyboardInterrupt):
        score_file(model, path, tmp_path / "out.jsonl", **ask)
    monkeypatch.undo()
    for other in ({}, {"uncertainty": True, "k": 2.0}):
        with pytest.raises(ConfigError, match=r"`uncertainty` or `k` \(1.0, now (None|2.0)\) changed since"):
            score_file(model, path, tmp_path / "out.jsonl", chunk_size=2, **other)
    result = score_file(model, path, tmp_path / "out.jsonl", **ask)
    assert result.resumed == 4
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert whole.columns == result.columns == ("reward", "reward_std", "reward_lower_bound")


def test_the_command_writes_them(uncertain_folder, source, tmp_path, capsys):
    target = tmp_path / "scored.jsonl"
    arguments = [str(uncertain_folder), str(source), "--output", str(target), "--errors", "nan", "--device", "cpu"]
    assert main(["score", *arguments, "--uncertainty", "--k", "2"]) == 0, capsys.readouterr().err
    one = lines(target)[0]
    assert one["reward_lower_bound"] == pytest.approx(one["reward"] - 2 * one["reward_std"], abs=1e-9)
    assert "`reward_std`" in capsys.readouterr().err


def test_the_command_refuses_a_model_without_an_ensemble(folder, source, tmp_path, capsys):
    arguments = [str(folder), str(source), "--output", str(tmp_path / "scored.jsonl"), "--device", "cpu"]
    assert main(["score", *arguments, "--uncertainty"]) != 0
    assert "has no ensemble" in capsys.readouterr().err
    assert not (tmp_path / "scored.jsonl").exists()
