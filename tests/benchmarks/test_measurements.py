"""Shapes, FLOPs, shares, pictures: what the single measurements compute from what they see."""

import doctest
import random
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, Qwen3Config

from tolerances import REWARD


def tiny_model():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_labels=1,
        pad_token_id=0,
    )
    return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(
    "name",
    [
        "accuracy_worker",
        "drawing",
        "gemm_shapes",
        "gpu",
        "grid",
        "grid_cells",
        "model_flops",
        "profile_step",
        "reference_env",
        "scaling",
        "summary",
        "time_to_accuracy",
        "trainers",
    ],
)
def test_examples_in_docstrings_hold(benchmark_module, name):
    found = doctest.testmod(benchmark_module(name))
    assert found.attempted > 0
    assert found.failed == 0


class TestGemms:
    @pytest.fixture
    def seen(self, benchmark_module):
        shapes, trainers = benchmark_module("gemm_shapes"), benchmark_module("trainers")
        model, found = tiny_model(), []
        model.get_input_embeddings().requires_grad_(False)
        linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        with trainers.hooked(
            linear, lambda name, module, inputs, output: found.append(shapes.gemm_of(name, module, inputs[0]))
        ):
            model(input_ids=torch.ones(1, 5, dtype=torch.long))
        model(input_ids=torch.ones(1, 5, dtype=torch.long))
        return shapes, model, found

    def test_every_call_is_seen_with_the_gradients_it_needs(self, seen):
        shapes, _, found = seen
        assert len(found) == 2 * 7 + 1
        first = next(gemm for gemm in found if gemm.name.endswith("layers.0.self_attn.k_proj"))
        # Frozen embeddings and a trained norm: the norm's output has a gradient, so the projection's input has one.
        assert (first.rows, first.inputs, first.outputs, first.input_gradient) == (5, 8, 4, True)
        weights = 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16) + 8
        assert shapes.total_flops(found) == 6 * 5 * weights

    def test_a_frozen_input_or_weight_saves_its_product(self, benchmark_module):
        shapes = benchmark_module("gemm_shapes")
        layer = torch.nn.Linear(3, 2, bias=False).requires_grad_(False)
        assert shapes.gemm_of("l", layer, torch.ones(2, 4, 3)).flops == 2 * 8 * 3 * 2
        assert shapes.gemm_of("l", layer, torch.ones(2, 4, 3, requires_grad=True)).flops == 2 * 2 * 8 * 3 * 2

    def test_the_replay_computes_the_products_and_changes_no_weight(self, seen):
        shapes, model, found = seen
        before = {name: value.clone() for name, value in model.state_dict().items()}
        replay = shapes.GemmReplay(model, found)
        assert replay.run(found) > 0
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        last = found[-1]
        hidden = replay._room[last.rows, last.inputs, "read"]
        gradient = replay._room[last.rows, last.outputs, "read"]
        torch.testing.assert_close(
            replay._room[last.outputs, last.inputs, "written"], gradient.t() @ hidden, **REWARD.close
        )


def test_a_profile_is_shared_out_without_counting_twice(benchmark_module):
    breakdown = benchmark_module("profile_step").breakdown
    events = [
        SimpleNamespace(name=name, self_cpu_time_total=micros)
        for name, micros in (
            ("aten::mm", 400_000),
            ("aten::mm", 100_000),
            ("aten::_scaled_dot_product_flash_attention_for_cpu", 200_000),
            ("Optimizer.step#AdamW.step", 900_000),
            ("aten::_fused_adamw_", 100_000),
        )
    ]
    found = breakdown(events, wall_seconds=1.0)
    shares = {name: round(part["share"], 6) for name, part in found["parts"].items()}
    assert shares == {
        "matrix products": 0.5,
        "attention": 0.2,
        "optimizer and clipping": 0.1,
        "rest (Python, collating)": 0.2,
    }


class TestModelFlops:
    def test_linear_weights_are_those_of_a_real_model(self, benchmark_module):
        config = Qwen3Config(
            vocab_size=30,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            num_labels=1,
        )
        model = AutoModelForSequenceClassification.from_config(config)
        real = sum(
            module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "score"
        )
        assert benchmark_module("model_flops").linear_parameters(config) == real

    def test_sharing_sees_what_a_mask_would_show(self, benchmark_module):
        prefix, suffixes = 3, [2, 4]
        visible = 0
        for number, suffix in enumerate(suffixes):
            for query in range(prefix + suffix):
                if query >= prefix or number == 0:
                    visible += query + 1
        responses = [[7] * prefix + [10 + number] * suffix for number, suffix in enumerate(suffixes)]
        work = benchmark_module("model_flops").row_work(responses, prefix)
        assert work["shared_prefix"] == (9, visible)
        assert work["padded"] == (12, 15 + 28)

    def test_utilisation_of_known_seconds(self, benchmark_module):
        gpu, flops = benchmark_module("gpu"), benchmark_module("model_flops")
        config = Qwen3Config(vocab_size=30, **gpu.TINY)
        rows = [[[1, 2, 3], [1, 2, 4]]]
        tokens, pairs = 4, 9
        work = flops.training_flops(config, tokens, pairs)
        found = gpu.describe([2.0], rows, config, "shared_prefix", Namespace(peak=work))
        assert found["model_flop_utilisation"] == pytest.approx(0.5)
        assert (found["tokens_per_second"], found["computed_tokens_per_second"]) == (3.0, 2.0)

    def test_without_a_gpu_it_says_so(self, benchmark_module, capsys, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit):
            benchmark_module("gpu").parse_arguments([])
        assert "needs a CUDA GPU" in capsys.readouterr().err


class TestScaling:
    def test_theory_is_what_the_collators_compute(self, benchmark_module):
        from plaudit.data.collate import PaddedCollator, SharedPrefixCollator

        scaling = benchmark_module("scaling")
        for point in (scaling.Point(), scaling.Point(rows=1, prompt=9, response=2, responses=5)):
            rows = scaling.make_rows(point, vocabulary=100, seed=0)
            padded, shared = (
                collator(rows)["input_ids"].numel() for collator in (PaddedCollator(0), SharedPrefixCollator())
            )
            assert padded / shared == pytest.approx(point.theory)

    def test_the_picture_is_the_same_for_the_same_result(self, benchmark_module, tmp_path):
        draw = benchmark_module("scaling_picture").draw_picture
        layouts = {name: {"median_seconds": 1.0, "memory_bytes": None} for name in ("padded", "shared_prefix")}
        points = [{"rows": n, "theory": 1.5, "layouts": layouts} for n in (1, 2)]
        result = {"sweeps": {"batch": {"varied": "rows", "points": points}}}
        for name in ("a.svg", "b.svg"):
            draw(result, tmp_path / name)
        assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


class TestTimeToAccuracy:
    def test_margins_do_not_depend_on_padding_or_order(self, benchmark_module):
        worker = benchmark_module("accuracy_worker")
        model, generator = tiny_model(), random.Random(0)
        pairs = [
            {
                side: [generator.randrange(1, 50) for _ in range(generator.randrange(2, 9))]
                for side in ("chosen_ids", "rejected_ids")
            }
            for _ in range(20)
        ]
        together = worker.held_out_margins(model, pairs)
        alone = [worker.held_out_margins(model, [pair])[0] for pair in pairs]
        assert together == REWARD.approx(alone)
        swapped = [{"chosen_ids": pair["rejected_ids"], "rejected_ids": pair["chosen_ids"]} for pair in pairs]
        assert worker.held_out_margins(model, swapped) == REWARD.approx([-margin for margin in together])
        assert model.training

    def test_a_split_of_the_data_is_kept(self, benchmark_module):
        split = benchmark_module("time_to_accuracy").split_rows
        rows = [{"prompt": str(n), "split": "validation" if n % 2 else "train"} for n in range(20)]
        train, held_out = split(rows, 5, 4, seed=0)
        assert {row["split"] for row in train} == {"train"}
        assert {row["split"] for row in held_out} == {"validation"}
        with pytest.raises(SystemExit, match="10 rows to train on"):
            split(rows, 11, 4, seed=0)


def test_peak_memory_can_start_again(benchmark_module):
    memory = benchmark_module("memory")
    if not memory.forget_peak():
        pytest.skip("the system cannot forget a peak")
    before = memory.peak_memory()
    large = torch.ones(64 * 2**20 // 4)
    assert memory.peak_memory() - before > 50 * 2**20
    del large
    memory.return_free_memory()
    memory.forget_peak()
    assert memory.peak_memory() - before < 30 * 2**20


def test_adapters_start_alike_whatever_was_drawn_before(benchmark_module):
    peft = pytest.importorskip("peft")
    trainers = benchmark_module("trainers")
    digests = []
    for wasted in (0, 5):
        torch.manual_seed(0)
        model = tiny_model()
        torch.rand(wasted)
        adapted = peft.get_peft_model(model, trainers.lora_config())
        trainers.draw_adapter_weights(adapted, seed=3)
        digests.append(trainers.describe_weights(adapted))
    assert digests[0] == digests[1]


def test_sorted_rows_have_the_longest_first(benchmark_module):
    from datasets import Dataset

    trainers = benchmark_module("trainers")
    rows = Dataset.from_list(
        [{"chosen_ids": [1], "rejected_ids": [2, 3]}, {"chosen_ids": [1] * 5, "rejected_ids": [2]}]
    )
    assert trainers.sorted_by_length(rows)[0]["chosen_ids"] == [1] * 5
