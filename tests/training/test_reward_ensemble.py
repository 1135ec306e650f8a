"""An ensemble around the reward head: the reward does not notice it, and each member learns from its own sample."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from test_objectives import CASES, DATA, pair_rows
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification

from model_builders import tiny_model
from plaudit import ConfigError, DataCollatorForPreference
from plaudit.data.collate import PaddedCollator, SharedPrefixCollator, content_of
from plaudit.model.aux_heads import FILE_NAME, heads_of
from plaudit.schema import EncodedExample, Label
from plaudit.training.loss import bootstrap_weights
from tolerances import GRADIENT, REWARD, SUMMED, weights_after

MASK = 2**64 - 1


def rows_of(name):
    return Dataset.from_list(DATA[name])


def learned(trainer):
    """Losses, weights of the model, and weights of the members."""
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    state = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    members = heads_of(trainer._base_model)
    return losses, state, None if members is None or members.ensemble is None else members.ensemble.weight.detach()


# --- the reward


@pytest.mark.parametrize(("objective", "data"), CASES)
def test_the_reward_is_trained_as_without_an_ensemble(objective, data, tokenizer, make_trainer):
    runs = []
    for members in (0, 5):
        trainer = make_trainer(
            tiny_model(tokenizer),
            rows_of(data),
            objective=objective,
            ensemble_size=members,
            center_rewards_coefficient=0.1,
            max_grad_norm=0.0,
            max_steps=4,
        )
        beginning = None if not members else heads_of(trainer._base_model).ensemble.weight.detach().clone()
        runs.append(learned(trainer))
    (losses, state, _), (other_losses, other_state, weights) = runs
    assert losses == other_losses
    assert all(torch.equal(value, other_state[name]) for name, value in state.items())
    assert other_state.keys() - state.keys() == {"training_heads.ensemble.weight"}
    # Every member has learned, and no two are alike.
    moved = (weights - beginning).abs().amax(dim=1)
    assert (moved > 1e-4).all()
    assert torch.pdist(weights).min() > 0.1


@pytest.mark.parametrize("data", ["pairs", "scores", "ratings"])
def test_evaluation_is_that_of_the_reward(data, tokenizer, make_trainer):
    found = []
    for members in (0, 3):
        trainer = make_trainer(tiny_model(tokenizer), rows_of(data), eval_dataset=rows_of(data), ensemble_size=members)
        metrics = trainer.evaluate()
        found.append({name: value for name, value in metrics.items() if not name.endswith(("second", "time"))})
    assert found[0] == found[1]


def test_what_is_saved_is_a_stock_model(tokenizer, make_trainer, tmp_path):
    trainer = make_trainer(tiny_model(tokenizer), rows_of("pairs"), ensemble_size=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    plain, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(plain.score.weight, trainer.model.score.weight)
    beside = load_file(tmp_path / "saved" / FILE_NAME)
    assert torch.equal(beside["ensemble.weight"], heads_of(trainer.model).ensemble.weight)
    assert beside.keys() == {"ensemble.weight"}


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_the_mean_of_the_members_is_the_reward_after_every_step(layout, tokenizer, make_trainer, monkeypatch):
    trainer = make_trainer(
        tiny_model(tokenizer), rows_of("pairs"), ensemble_size=4, batch_layout=layout, learning_rate=0.05, max_steps=5
    )
    seen, forward = [], trainer._forward

    def watched(*args, **kwargs):
        rewards = forward(*args, **kwargs)
        seen.append((rewards.rewards_N.detach(), rewards.extras["deviations"].detach()))
        return rewards

    watched.layout = forward.layout
    trainer._forward = watched
    trainer.train()
    assert len(seen) == 5
    for rewards_N, deviations_NK in seen:
        members_NK = rewards_N[:, None] + deviations_NK
        assert members_NK.std(dim=1).min() > 0.01
        torch.testing.assert_close(members_NK.mean(dim=1), rewards_N, **SUMMED.close)


# --- what members learn


def weights_by_hand(content, member, seed):
    """A Poisson number of mean 1 from a 64-bit hash, in plain Python integers."""

    def mixed(value):
        for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            value = ((value ^ (value >> 33)) * multiplier) & MASK
        return value ^ (value >> 33)

    state = mixed((((member + 1) * 0x9E3779B97F4A7C15) + seed) & MASK)
    uniform = (mixed((content & MASK) ^ state) >> 40) / 2**24
    count, below = 0, math.exp(-1)
    while uniform >= np.float32(below):
        count += 1
        below += math.exp(-1) / math.factorial(count)
    return count


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31])
def test_bootstrap_weights_are_those_computed_by_hand(seed):
    contents = torch.randint(-(2**63), 2**63 - 1, (200,), generator=torch.Generator().manual_seed(3))
    found = bootstrap_weights(contents, 3, seed)
    expected = [[weights_by_hand(one, member, seed) for one in contents.tolist()] for member in range(3)]
    assert found.tolist() == expected


def test_bootstrap_weights_are_poisson_and_independent_between_members_and_seeds():
    # Contents that differ by little must not give weights that have anything to do with each other.
    draws = torch.cat([bootstrap_weights(torch.arange(40_000), 4, seed) for seed in (0, 1)]).double()
    for count in range(4):
        share = (draws == count).double().mean(dim=1)
        assert share == pytest.approx(math.exp(-1) / math.factorial(count), abs=0.01)
    assert draws.mean(dim=1) == pytest.approx(1.0, abs=0.02)
    assert draws.var(dim=1) == pytest.approx(1.0, abs=0.05)
    correlations = torch.corrcoef(draws) - torch.eye(8)
    assert correlations.abs().max() < 0.025
    assert abs(torch.corrcoef(torch.stack((draws[0, 1:], draws[0, :-1])))[0, 1]) < 0.025


def test_the_same_judgement_has_the_same_number_in_any_batch_and_layout():
    rows = [
        {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8]},
        {"chosen_ids": [5, 8], "rejected_ids": [5, 6, 7]},
        {"chosen_ids": [5, 6], "rejected_ids": [7, 5, 8]},
        {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8], "preference_prob": 0.75},
        {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8], "weight": 2.0},
    ]
    padded, shared = PaddedCollator(0, content=True), SharedPrefixCollator(content=True)
    together = shared(rows)["content"].tolist()
    assert together == padded(rows)["content"].tolist()
    assert together == [shared([row])["content"].item() for row in rows]
    # What is said of responses makes another label of them; how much the row counts does not.
    assert len(set(together)) == 4
    assert together[0] == together[4]
    assert "content" not in SharedPrefixCollator()(rows)


def test_the_number_does_not_depend_on_how_ids_are_held():
    judged = Label((1.0, 0.0))
    held = [[5, 6, 300], np.array([5, 6, 300], dtype=np.int32), torch.tensor([5, 6, 300])]
    assert len({content_of(EncodedExample((ids, [7]), judged)) for ids in held}) == 1


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_losses_and_gradients_of_members_are_those_computed_by_hand(layout, tokenizer, make_trainer):
    """In plain torch: each member's own logistic loss, each pair times its bootstrap weight, over the pairs."""
    members, rows = 3, DATA["weights"]
    settings = {"ensemble_size": members, "batch_layout": layout, "seed": 7}
    trainer = make_trainer(tiny_model(tokenizer), Dataset.from_list(rows), **settings)
    plain = tiny_model(tokenizer)
    prepared = list(trainer.train_dataset)
    with torch.no_grad():
        states = {}
        for kind in ("chosen_ids", "rejected_ids"):
            hidden = [plain.model(torch.tensor([row[kind]])).last_hidden_state[0, -1] for row in prepared]
            states[kind] = torch.stack(hidden)
    heads = heads_of(trainer.model)
    theirs = heads.ensemble.weight.detach().clone().requires_grad_()
    counts = torch.tensor(
        [
            [weights_by_hand(content_of(EncodedExample((row["chosen_ids"], row["rejected_ids"]))), k, 7)
             for row in prepared]
            for k in range(members)
        ]
    )  # fmt: skip
    assert len(set(counts.flatten().tolist())) > 2
    total = 0.0
    for k in range(members):
        weight = plain.score.weight[0].detach() + theirs[k] - theirs.mean(dim=0)
        margin = (states["chosen_ids"] - states["rejected_ids"]) @ weight
        row_weights = torch.tensor([row["weight"] for row in prepared])
        total = total + (counts[k] * row_weights * -logsigmoid(margin)).sum() / members
    (total / len(prepared)).backward()
    batch = trainer._prepare_inputs(trainer.data_collator(prepared))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    torch.testing.assert_close(heads.ensemble.weight.grad, theirs.grad, **GRADIENT.close)
    own = torch.stack([(states[kind] @ plain.score.weight[0]) for kind in ("chosen_ids", "rejected_ids")])
    weights = torch.tensor([row["weight"] for row in prepared])
    expected = (weights * -logsigmoid(own[0] - own[1])).sum() / len(prepared)
    assert loss.item() == REWARD.approx(expected.item())


@pytest.mark.parametrize(("objective", "data"), CASES)
def test_members_learn_the_same_in_both_layouts_and_any_accumulation(objective, data, tokenizer, make_trainer):
    runs = []
    for layout, batch, steps in (("shared_prefix", 4, 1), ("padded", 4, 1), ("shared_prefix", 1, 4)):
        trainer = make_trainer(
            tiny_model(tokenizer),
            rows_of(data),
            objective=objective,
            batch_layout=layout,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=3,
            optim="sgd",
            learning_rate=0.05,
            ensemble_size=3,
        )
        runs.append(learned(trainer)[2])
    for weights in runs[1:]:
        torch.testing.assert_close(weights, runs[0], **weights_after(3, 0.05).close)


def test_members_see_the_same_sample_in_every_epoch(tokenizer, make_trainer):
    """A member whose sample lacks a row never learns from it, however often it comes by."""
    rows = [row for n, row in enumerate(pair_rows(40)) if n % 5 == 0]
    trainer = make_trainer(
        tiny_model(tokenizer), Dataset.from_list(rows), ensemble_size=2, num_train_epochs=3, max_steps=-1
    )
    seen = {}
    compute = trainer.compute_loss

    def watched(model, batch, *args, **kwargs):
        for content, weight in zip(
            batch["content"].tolist(), bootstrap_weights(batch["content"], 2, 42).T.tolist(), strict=True
        ):
            seen.setdefault(content, []).append(tuple(weight))
        return compute(model, batch, *args, **kwargs)

    trainer.compute_loss = watched
    trainer.train()
    assert len(seen) == 8
    assert all(len(weights) == 3 and len(set(weights)) == 1 for weights in seen.values())


# --- runs


def test_equal_runs_are_equal_and_a_resumed_one_too(tokenizer, make_trainer):
    def run(folder, **settings):
        return make_trainer(
            tiny_model(tokenizer),
            rows_of("pairs"),
            folder=folder,
            ensemble_size=3,
            max_steps=6,
            save_strategy="steps",
            save_steps=3,
            **settings,
        )

    whole = run("whole")
    losses, state, _ = learned(whole)
    again_losses, again, _ = learned(run("again"))
    assert losses == again_losses
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    resumed = run("resumed")
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    assert [log["loss"] for log in resumed.state.log_history if "loss" in log] == losses
    assert all(torch.equal(value, state[name]) for name, value in resumed.model.state_dict().items())


def test_other_seeds_draw_other_members(tokenizer, make_trainer):
    one, other = (
        heads_of(make_trainer(tiny_model(tokenizer), rows_of("pairs"), ensemble_size=3, seed=seed).model)
        for seed in (0, 1)
    )
    assert not torch.allclose(one.ensemble.weight, other.ensemble.weight)
    # A fresh reward head of the same seed is not one of them.
    assert torch.cdist(one.ensemble.weight, tiny_model(tokenizer).score.weight).min() > 0.1


def test_weight_decay_does_not_draw_members_together(tokenizer, make_trainer):
    trainer = make_trainer(tiny_model(tokenizer), rows_of("pairs"), ensemble_size=2, weight_decay=0.5)
    group = next(
        group
        for group in trainer.create_optimizer().param_groups
        if any(one is heads_of(trainer.model).ensemble.weight for one in group["params"])
    )
    assert group["weight_decay"] == 0
    assert len(group["params"]) == 1
    everywhere = [id(one) for group in trainer.optimizer.param_groups for one in group["params"]]
    assert len(everywhere) == len(set(everywhere)) == len(list(trainer.model.parameters()))


def test_an_adapter_trains_an_ensemble_and_keeps_it_beside(tokenizer, make_trainer, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])
    trainer = make_trainer(tiny_model(tokenizer), rows_of("pairs"), ensemble_size=3, peft_config=config)
    before = heads_of(trainer._base_model).ensemble.weight.detach().clone()
    _, _, after = learned(trainer)
    assert not torch.equal(before, after)
    trainer.save_model(str(tmp_path / "adapter"))
    assert torch.equal(load_file(tmp_path / "adapter" / FILE_NAME)["ensemble.weight"], after)
    kept = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not [name for name in kept if "ensemble" in name]


def test_it_goes_together_with_the_other_heads(tokenizer, make_trainer):
    runs = []
    for members in (0, 3):
        trainer = make_trainer(
            tiny_model(tokenizer),
            rows_of("ties"),
            objective="davidson",
            length_head_coefficient=1.0,
            length_penalty_coefficient=0.1,
            ensemble_size=members,
            max_grad_norm=0.0,
        )
        runs.append(learned(trainer))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


def test_a_collator_of_your_own_is_no_hindrance(tokenizer, make_trainer):
    found = []
    for collator in (None, DataCollatorForPreference(pad_token_id=0)):
        trainer = make_trainer(
            tiny_model(tokenizer), rows_of("pairs"), ensemble_size=3, data_collator=collator, batch_layout="padded"
        )
        found.append(learned(trainer)[2])
    torch.testing.assert_close(found[0], found[1])


def test_fillers_teach_nothing(tokenizer, make_trainer):
    trainer = make_trainer(tiny_model(tokenizer), rows_of("pairs"), ensemble_size=3)
    rows = list(trainer.train_dataset)[:3]
    gradients = []
    for extra in ([], [{**rows[0], "example_weight": 0.0}]):
        heads = heads_of(trainer.model)
        heads.ensemble.weight.grad = None
        batch = trainer._prepare_inputs(
            trainer.data_collator([*({**row, "example_weight": 1.0} for row in rows), *extra])
        )
        trainer.compute_loss(trainer.model, batch).backward()
        gradients.append(heads.ensemble.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], **SUMMED.close)


# --- refusals


def test_models_without_a_linear_score_head_are_refused(tokenizer, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(tiny_model(tokenizer, "bert"), rows_of("pairs"), ensemble_size=3)
    assert error.value.field == "ensemble_size"


def test_an_ensemble_of_another_size_is_not_resumed(tokenizer, make_trainer):
    first = make_trainer(tiny_model(tokenizer), rows_of("pairs"), ensemble_size=3, save_strategy="steps", save_steps=1)
    first.train()
    for size in (2, 0):
        other = make_trainer(tiny_model(tokenizer), rows_of("pairs"), ensemble_size=size, folder="other")
        with pytest.raises(ConfigError) as error:
            other.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-1")
        assert "`ensemble.weight` of 3 members" in error.value.message
