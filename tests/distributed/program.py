"""A user's program with objects in memory and the options of ``sdft train``, to be launched as several processes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from onpolicy_sdft import SDFTTrainer
from onpolicy_sdft.config.load import kept_parser, parse
from onpolicy_sdft.runs.files import read_jsonl

config, _ = parse(kept_parser("program"), sys.argv[2:])
model, tokenizer = (kind.from_pretrained(config.model.name) for kind in (AutoModelForCausalLM, AutoTokenizer))
rows = read_jsonl(Path(config.data.path))
SDFTTrainer(model, tokenizer, rows, config=replace(config, data=replace(config.data, path=None))).train()
