"""A byte tokenizer and tiny random models, made on the spot: no download, no GPU. Pictures only where they count.

Libraries that take seconds are imported where they are used: the process that only hands out tests needs none.
"""

from __future__ import annotations

import base64
import gc
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from onpolicy_sdft.log import LineFormatter

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, plus the markers of a chat template; padding is the terminator, as in many models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    fast.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    fast.pad_token = "<|im_end|>"
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(
    dtype: torch.dtype | None = None, seed: int = 0, vocab_size: int = 264, head_dim: int = 8
) -> LlamaForCausalLM:
    """Two small layers, in float32 unless asked; weights large enough that its distribution is not flat."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=vocab_size - 8,
        eos_token_id=vocab_size - 7,
        pad_token_id=vocab_size - 7,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(dtype or torch.float32)
    return model


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="where tests marked gpu run; cpu rehearses them without one")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave so many cases of each test marked ``few`` in the default run, always the same; make the others slow."""
    families: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("slow"):
            families.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in families.values():
        marker = cases[0].get_closest_marker("few")
        assert marker is not None
        # At random: every so-manieth would be alike in one of several parameters.
        for case in random.Random(0).sample(cases, max(0, len(cases) - marker.args[0])):
            case.add_marker("slow")


def pytest_collection_finish() -> None:
    """Let the collector of garbage look at what tests make, not at the libraries and tests that are there for good."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test marked gpu runs."""
    import torch

    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device; --device cpu rehearses this test")
    return torch.device(name)


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True)
def _pictures_cost_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a pixel for a picture, but where pictures count: drawing takes longer than a tiny run trains."""
    draws = Path(__file__).with_name("report") in request.path.parents or request.node.get_closest_marker("draws")
    if not draws:
        from matplotlib.figure import Figure

        def save(self: Figure, file: BinaryIO, **options: Any) -> None:
            file.write(PIXEL)

        monkeypatch.setattr(Figure, "savefig", save)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What the package logs, as lines that a terminal would show."""
    package, handler = logging.getLogger("onpolicy_sdft"), _Lines()
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    yield handler.lines
    package.removeHandler(handler)
    package.setLevel(level)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def tiny_model() -> Callable[..., LlamaForCausalLM]:
    return make_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, as ``model.name`` takes it."""
    directory = tmp_path_factory.mktemp("tiny-model")
    make_model().save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory
