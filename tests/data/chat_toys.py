"""Chat templates of the kinds that models have, and tokenizers that read them: all made on the spot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Toy:
    """A chat template with the tokens it writes."""

    template: str
    special: tuple[str, ...]  # added as special tokens; only the end of text has a name
    eos: str
    end: str  # what ends an answer
    plain: tuple[str, ...] = ()  # added, not special
    stripping: tuple[str, ...] = ()  # special, and swallow the blanks behind them
    kwargs: dict[str, Any] = field(default_factory=dict)
    bos: str | None = None


_EACH = "{% for m in messages %}"
_HEAD = "{% if add_generation_prompt %}"
_CHATML = _EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + _HEAD
_LLAMA3_TURNS = (
    _EACH + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}" + _HEAD
)
_QWEN3 = (
    "{% set last = namespace(user=0) %}" + _EACH + "{% if m.role == 'user' %}{% set last.user = loop.index0 %}"
    "{% endif %}{% endfor %}" + _EACH + "<|im_start|>{{ m.role }}\n{% set text = m.content %}"
    "{% if m.role == 'assistant' %}"
    "{% set thought = '' %}{% if '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1] "
    "%}{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}{% if loop.index0 > last.user %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}{% endif %}{{ text }}<|im_end|>\n{% endfor %}"
    + _HEAD + "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)  # fmt: skip

TOYS: dict[str, Toy] = {
    "chatml": Toy(
        _CHATML + "<|im_start|>assistant\n{% endif %}", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>",
        "<|im_end|>",
    ),
    "chatml whose end of text is another": Toy(
        _CHATML + "<|im_start|>assistant\n{% endif %}", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        "<|endoftext|>", "<|im_end|>",
    ),
    "chatml without special flags": Toy(
        _CHATML + "<|im_start|>assistant\n{% endif %}", ("<|endoftext|>",), "<|endoftext|>", "<|im_end|>",
        plain=("<|im_start|>", "<|im_end|>"),
    ),
    "newline before the marker": Toy(
        _EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}\n<|im_end|>\n{% endfor %}" + _HEAD
        + "<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>",
    ),
    "llama-3": Toy(
        "{{ bos_token }}" + _LLAMA3_TURNS + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>", "<|eot_id|>", bos="<|begin_of_text|>",
    ),
    "llama-3 with dates": Toy(
        "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday: {{ strftime_now('%d %b %Y %H:%M:%S') }}"
        "<|eot_id|>" + _LLAMA3_TURNS + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>", "<|eot_id|>", bos="<|begin_of_text|>",
    ),
    "gemma": Toy(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no such role') }}{% endif %}"
        + _EACH + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
        "<end_of_turn>\n{% endfor %}" + _HEAD + "<start_of_turn>model\n{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<end_of_turn>", plain=("\n\n", "  "),
        bos="<bos>",
    ),
    "phi-3": Toy(
        _EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}" + _HEAD + "<|assistant|>\n{% endif %}",
        ("<|endoftext|>",), "<|endoftext|>", "<|end|>",
        stripping=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "mistral": Toy(
        "{{ bos_token }}" + _EACH + "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}"
        "{{ raise_exception('no such role') }}{% endif %}{% endfor %}",
        ("<s>", "</s>"), "</s>", "</s>", bos="<s>",
    ),
    "mistral with tokens": Toy(
        "{{ bos_token }}" + _EACH + "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>"
        "{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>", bos="<s>",
    ),
    "llama-2": Toy(
        _EACH + "{% if m.role == 'assistant' %} {{ m.content }} </s>{% else %}<s>[INST] {{ m.content }} [/INST]"
        "{% endif %}{% endfor %}",
        ("<s>", "</s>"), "</s>", "</s>", bos="<s>",
    ),
    "qwen3": Toy(
        _QWEN3, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>", "<|im_end|>",
        plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ),
    "qwen3 without thinking": Toy(
        _QWEN3, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>", "<|im_end|>",
        plain=("<think>", "</think>", "<tool_call>", "</tool_call>"), kwargs={"enable_thinking": False},
    ),
    "header that opens a block": Toy(
        _EACH + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}" + _HEAD + "<|im_start|>assistant\n<think>{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<think>", "</think>"), "<|im_end|>", "<|im_end|>",
    ),
    "gpt-oss": Toy(
        _EACH + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
        "{{ m.content }}{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}" + _HEAD
        + "<|start|>assistant{% endif %}",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|endoftext|>"), "<|return|>",
        "<|return|>",
    ),
    "plain text": Toy(
        _EACH + "{{ m.role | capitalize }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{{ '\n' }}{% endfor %}" + _HEAD + "Assistant:{% endif %}",
        ("</s>",), "</s>", "</s>",
    ),
}  # fmt: skip

_CALLS = "{% for call in m.tool_calls %}"
#: As the families write tools, calls and what tools return.
TOOL_TOYS = {
    "hermes": Toy(
        "{% if tools %}<|im_start|>system\n# Tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>"
        "\n{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
        "{{ m.content }}\n</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}{% if m.content %}"
        "{{ '\n' + m.content }}{% endif %}" + _CALLS
        + "{{ '\n<tool_call>\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' }}"
        "{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        + _HEAD + "<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>", plain=("<tool_call>", "</tool_call>"),
    ),
    "llama": Toy(
        "{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{% if loop.first and tools %}{% for tool in tools %}"
        "{{ tool | tojson(indent=4) }}\n\n{% endfor %}{% endif %}{% if m.tool_calls %}"
        "{{ '{\"name\": \"' + m.tool_calls[0].function.name + '\", \"parameters\": ' }}"
        "{{ m.tool_calls[0].function.arguments | tojson }}{{ '}' }}{% else %}{{ m.content | trim }}{% endif %}<|eot|>"
        "{% endfor %}" + _HEAD + "<|start|>assistant<|end|>\n\n{% endif %}",
        ("<|start|>", "<|end|>", "<|eot|>"), "<|eot|>", "<|eot|>",
    ),
    "mistral, whose calls begin with a control token": Toy(
        "<s>{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}"
        "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}"
        "[/TOOL_RESULTS]{% elif m.tool_calls %}[TOOL_CALLS]{{ m.tool_calls | map(attribute='function') | list "
        "| tojson }}</s>{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
         "[TOOL_RESULTS]", "[/TOOL_RESULTS]"), "</s>", "</s>", bos="<s>",
    ),
}  # fmt: skip

#: Templates with which no answer can be learned, and why.
UNUSABLE: dict[str, Toy] = {
    "no end": Toy(
        _EACH + "{{ m.role }}: {{ m.content }}\n{% endfor %}" + _HEAD + "assistant: {% endif %}", ("</s>",), "</s>", "",
    ),
    "r1": Toy(
        "{{ bos_token }}" + _EACH + "{% if m.role == 'assistant' %}<|Assistant|>"
        "{{ m.content.split('</think>')[-1] }}</s>{% else %}"
        "<|User|>{{ m.content }}{% endif %}{% endfor %}" + _HEAD + "<|Assistant|><think>\n{% endif %}",
        ("<s>", "</s>"), "</s>", "</s>", plain=("<|User|>", "<|Assistant|>", "<think>", "</think>"), bos="<s>",
    ),
    "blank at the end of the header": Toy(
        _EACH + "{{ m.role }}: {{ m.content }}</s>\n{% endfor %}" + _HEAD + "assistant: {% endif %}", ("</s>",), "</s>",
        "</s>",
    ),
    "block in the header alone": Toy(
        _CHATML + "<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}", ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>", "<|im_end|>", plain=("<think>", "</think>"),
    ),
}  # fmt: skip

_CORPUS = [
    "User: what is 2 + 2?\n\nAssistant: 2 + 2 = 4.\n\nThe answer is 4.\n",
    "a nice day \n and the next. Hello\n\n",
] * 20


def _with_bytes() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_merges() -> Tokenizer:
    """Byte-level, with pieces of several characters: words with their blank, two newlines, a full stop with one."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _with_prefix_space(scheme: str) -> Tokenizer:
    """As sentencepiece has it: a blank before every text, unknown characters as bytes."""
    letters = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127))]
    merges = [("▁", "t"), ("▁", "B"), ("▁", "a"), ("▁B", "l"), ("▁", "▁"), ("h", "e"), ("▁t", "he")]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*letters, *(a + b for a, b in merges)]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    ending = [decoders.ByteFallback(), decoders.Fuse()]
    if scheme == "normalizer":  # the older layout: the blank comes from the normalizer
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *ending, decoders.Strip(" ", 1, 0)])
    return tokenizer


TOKENIZERS = {
    "bytes": _with_bytes,
    "byte-level pieces": _with_merges,
    "blank before the text": lambda: _with_prefix_space("first"),
    "blank before every part": lambda: _with_prefix_space("always"),
    "blank by the normalizer": lambda: _with_prefix_space("normalizer"),
}


def make(toy: Toy, tokenizer: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer with the tokens and the chat template of a toy."""
    backend = TOKENIZERS[tokenizer]()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in toy.special])
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=True) for t in toy.stripping])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in toy.plain])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, eos_token=toy.eos, bos_token=toy.bos
    )
    fast.chat_template = toy.template
    return fast
