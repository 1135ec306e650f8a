"""Every example, run for two steps on tiny data: what it prints, and what it leaves behind."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plaudit.data.load import load_preference_dataset
from tolerances import REWARD

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ("--max_steps", 2)
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def matched(pattern, lines):
    """The groups of the one line that matches."""
    (found,) = [match for line in lines if (match := re.fullmatch(pattern, line))]
    return found.groups()


def reward_of(model, tokenizer, question="Add 1", answer="good"):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model.eval()(**inputs).logits.item()


class TestQuickStart:
    def test_prints_an_accuracy_and_the_rewards_of_the_saved_model(self, run, pairs):
        lines = run("quick_start", "--dataset", pairs, "--output_dir", "out", *QUICK)
        accuracy, count = matched(r"held-out accuracy: ([01]\.\d{3}) \((\d+) pairs\)", lines)
        assert 0 <= float(accuracy) <= 1
        assert count == "4"
        tokenizer = AutoTokenizer.from_pretrained("out")
        model = AutoModelForSequenceClassification.from_pretrained("out")
        reward, answer = matched(r"reward (-?\d+\.\d\d): (It is .*)", lines)
        assert float(reward) == pytest.approx(reward_of(model, tokenizer, "What color is the sky?", answer), abs=0.006)

    @pytest.mark.slow
    def test_needs_no_options(self, run):
        lines = run("quick_start", *QUICK)
        assert matched(r"held-out accuracy: .* \((\d+) pairs\)", lines) == ("54",)


def vote(prompts, a, b, winner):
    columns = {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 0, winner: 1}
    texts = {"prompt": prompts, "response_a": a, "response_b": b}
    return {"id": 1, "model_a": "one", "model_b": "two", **{k: json.dumps(v) for k, v in texts.items()}, **columns}


class TestArena:
    @pytest.fixture
    def votes(self, tmp_path):
        rows = [
            vote(["What color is the sky?"], ["Blue."], ["Green."], "winner_model_a"),
            vote(["What color is grass?"], ["Blue."], ["Green."], "winner_model_b"),
            vote(["Hi"], ["Hello"], ["Hello!"], "winner_tie"),
            vote(["Hi", "Bye"], ["Hello", "Bye"], ["Hello!", "No."], "winner_model_b"),
            vote(["Hi", "Bye"], ["Hello", None], ["Hello!", "No."], "winner_model_b"),
            vote(["Smile \ud83d"], ["\U0001f600"], ["No."], "winner_model_a"),
        ]
        path = tmp_path / "votes.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    def test_votes_become_pairs_of_whole_conversations(self, run, votes):
        lines = run("arena_to_pairs", "--dataset", votes, "--output", "arena.jsonl")
        assert lines == ["6 votes; dropped: 1 without a winner, 1 with a missing turn; 4 pairs in arena.jsonl"]
        pairs = list(load_preference_dataset("arena.jsonl"))

        def texts(side):
            return [[message["content"] for message in pair[side]] for pair in pairs]

        assert texts("chosen") == [
            ["What color is the sky?", "Blue."],
            ["What color is grass?", "Green."],
            ["Hi", "Hello!", "Bye", "No."],
            ["Smile ?", "\U0001f600"],
        ]
        assert texts("rejected") == [
            ["What color is the sky?", "Green."],
            ["What color is grass?", "Blue."],
            ["Hi", "Hello", "Bye", "Bye"],
            ["Smile ?", "No."],
        ]
        assert [message["role"] for message in pairs[2]["chosen"]] == ["user", "assistant"] * 2
        assert list(pairs[0]) == ["chosen", "rejected"]

    def test_a_conversation_with_an_answer_too_few_is_left_out(self, run, tmp_path):
        rows = [
            vote(["a", "b"], ["c"], ["d", "e"], "winner_model_b"),
            vote(["a"], ["c"], ["d"], "winner_model_b"),
        ]
        (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
        lines = run("arena_to_pairs", "--dataset", "votes.jsonl")
        assert lines == ["2 votes; dropped: 0 without a winner, 1 with a missing turn; 1 pairs in arena.jsonl"]

    @pytest.mark.slow
    def test_the_pairs_can_be_trained_on(self, run, votes):
        run("arena_to_pairs", "--dataset", votes, "--output", "arena.jsonl")
        lines = run("quick_start", "--dataset", "arena.jsonl", *QUICK)
        assert matched(r"held-out accuracy: .* \((\d+) pairs\)", lines) == ("1",)


class TestAdapters:
    @pytest.fixture
    def adapter(self, run, pairs):
        return run("train_adapter", "--dataset", pairs, "--output_dir", "adapter", *QUICK)

    @pytest.mark.slow
    def test_adapter_and_merged_model_give_the_same_reward(self, adapter):
        trained, total = map(float, matched(r"trained: (\S+) of (\S+) million parameters", adapter))
        assert 0 <= trained <= total
        assert matched(r"held-out accuracy: [01]\.\d\d \((\d+) pairs\)", adapter) == ("4",)
        tokenizer = AutoTokenizer.from_pretrained("adapter/merged")
        merged = AutoModelForSequenceClassification.from_pretrained("adapter/merged")
        loaded = AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=1)
        assert reward_of(loaded, tokenizer) == REWARD.approx(reward_of(merged, tokenizer))

    @pytest.mark.slow
    def test_going_on_starts_from_what_was_saved(self, adapter, run, pairs):
        lines = run("continue_adapter", "--adapter", "adapter", "--dataset", pairs, "--output_dir", "continued", *QUICK)
        before, after = map(float, matched(r"held-out accuracy: (\S+) before, (\S+) after", lines))
        assert 0 <= before <= 1
        assert 0 <= after <= 1
        first, second = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("adapter", "continued"))
        assert first.keys() == second.keys()
        moved = {name: (first[name] - second[name]).abs().max().item() for name in first}
        heads = [name for name in moved if "score" in name]
        assert len(heads) == 1
        # Two steps of Adam at 1e-4 move a weight by 2e-4 at most; a fresh head would be far away.
        assert all(0 < distance < 3e-4 for distance in moved.values()), moved


@pytest.mark.slow
def test_tool_calls_reach_the_template_without_empty_arguments(run):
    text = "\n".join(run("tool_calling", "--output_dir", "out", *QUICK))
    assert '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>' in text
    for expected in ("Look up the weather of today.", "Three letters, such as NOK.", "Do I need a coat in Oslo?"):
        assert expected in text
    assert "null" not in text
    assert "None" not in text
    assert AutoModelForSequenceClassification.from_pretrained("out").config.num_labels == 1


@pytest.mark.parametrize(
    ("precision", "stored"), [("float32", "float32"), ("mixed", "float32"), ("bfloat16", "bfloat16")]
)
@pytest.mark.slow
def test_rewards_are_exact_in_every_precision(run, pairs, precision, stored):
    lines = run("precision", "--precision", precision, "--dataset", pairs, "--output_dir", "out", *QUICK)
    assert matched(r"weights: (\w+), \d+ MB", lines) == (stored,)
    kind, different, total = matched(r"rewards: (\w+), (\d+) different ones of (\d+) \(rounded .*\)", lines)
    assert (kind, different, total) == ("float32", "4", "4")
    assert {str(weight.dtype) for weight in load_file("out/model.safetensors").values()} == {f"torch.{stored}"}


class TestRankings:
    @pytest.mark.slow
    def test_needs_no_options_and_ranks_the_responses_of_a_held_out_prompt(self, run):
        lines = run("rankings", "--output_dir", "out", *QUICK)
        objective, rows, responses = matched(r"objective: (\w+), (\d+) rows of up to (.*) responses", lines)
        assert (objective, int(rows), responses) == ("bradley_terry", 468, "4")
        held_out, *metrics = matched(
            r"held out, (\d+) rows: accuracy (\S+), Kendall's tau (\S+), best of N (\S+)", lines
        )
        assert held_out == "52"
        assert all(-1 <= float(value) <= 1 for value in metrics)
        found = [re.fullmatch(r"  reward +(-?\d+\.\d\d), rank (\d): (.*)", line) for line in lines[-4:]]
        rewards = [float(one[1]) for one in found]
        assert rewards == sorted(rewards, reverse=True)
        assert sorted(one[2] for one in found) == ["1", "2", "3", "3"]
        tokenizer = AutoTokenizer.from_pretrained("out")
        model = AutoModelForSequenceClassification.from_pretrained("out")
        again = reward_of(model, tokenizer, lines[-5], found[0][3])
        assert rewards[0] == pytest.approx(again, abs=0.006)

    @pytest.mark.slow
    def test_scored_responses_of_a_file_with_plackett_luce(self, run, tmp_path):
        rows = [
            {"prompt": f"Add {n}. ", "responses": [f"so {'!' * k}" for k in range(2 + n % 2)], "scores": [1, 0, 0.5]}
            for n in range(20)
        ]
        rows = [row | {"scores": row["scores"][: len(row["responses"])]} for row in rows]
        (tmp_path / "rankings.jsonl").write_text("\n".join(map(json.dumps, rows)))
        lines = run("rankings", "--dataset", "rankings.jsonl", "--objective", "plackett_luce", *QUICK)
        assert matched(r"objective: (\w+), 18 rows of up to (.*) responses", lines) == ("plackett_luce", "3")
        assert len([line for line in lines if re.match(r"  reward .*, score (0|0.5|1): so", line)]) in (2, 3)


class TestStreaming:
    @pytest.mark.slow
    def test_reads_no_more_rows_than_it_needs(self, run, pairs):
        lines = run("streaming", "--dataset", pairs, "--output_dir", "out", *QUICK)
        steps, size, kept, read = map(
            int, matched(r"trained (\d+) steps of (\d+) pairs; (\d+) rows were kept of (\d+) read", lines)
        )
        assert (steps, size) == (2, 8)
        assert 16 <= kept == read < 40

    @pytest.mark.slow
    def test_needs_no_options(self, run):
        assert matched(r"trained (\d+) steps of .*", run("streaming", *QUICK)) == ("2",)


class TestMultiProcess:
    @pytest.mark.slow
    def test_runs_alone_and_reads_every_setting(self, run, pairs):
        lines = run(
            *("multi_process", "--dataset", pairs, "--output_dir", "out", *QUICK),
            *("--gradient_accumulation_steps", 3, "--center_rewards_coefficient", 0.01),
        )
        assert lines[0] == "1 processes, 12 pairs per step"
        assert 0 <= float(matched(r"held-out accuracy: (.*)", lines)[0]) <= 1
        settings = torch.load("out/training_args.bin", weights_only=False)
        assert (settings.center_rewards_coefficient, settings.max_steps) == (0.01, 2)


class TestPage:
    def test_every_script_is_in_the_table_and_says_how_to_run_it(self):
        page = (EXAMPLES / "README.md").read_text()
        for name in SCRIPTS:
            docstring = (EXAMPLES / f"{name}.py").read_text().split('"""')[1]
            assert f"[{name}.py]({name}.py)" in page
            assert re.search(rf"^    (python|torchrun .*) examples/{name}\.py", docstring, flags=re.MULTILINE), name
            assert re.search(r"[Pp]rints", docstring), name

    def test_help_is_the_docstring(self, run, capsys):
        for name in SCRIPTS:
            with pytest.raises(SystemExit) as stopped:
                run(name, "--help")
            assert stopped.value.code == 0, name
            assert "--output" in capsys.readouterr().out, name

    def test_every_configuration_and_link_is_there(self):
        page = (EXAMPLES / "README.md").read_text()
        for path in (EXAMPLES / "accelerate").glob("*.yaml"):
            assert f"[{path.name}](accelerate/{path.name})" in page
        for target in re.findall(r"\]\(([^)]+)\)", page):
            assert (EXAMPLES / target).exists(), target
