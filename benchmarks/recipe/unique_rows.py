"""Make the files of openfunctions.yaml:   python -m benchmarks.recipe.unique_rows TRAIN TEST OUTPUT_DIR

Prompts that stand twice are kept once (the first row). The last rows of the training file are asked beside those of the
test file, which are 112, and left out of training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NUM_QUESTIONS = 300


def main(train: str, test: str, output: str) -> None:
    asked = _read(train)
    questions = _read(test)
    held_back = NUM_QUESTIONS - len(questions)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.jsonl", asked[:-held_back])
    _write(folder / "test.jsonl", [*questions, *asked[-held_back:]])
    print(f"{len(asked) - held_back} rows to train on, {NUM_QUESTIONS} questions in {folder}")


def _read(path: str) -> list[str]:
    lines, seen = list[str](), set[str]()
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["prompt"]
        if prompt not in seen:
            lines.append(line)
        seen.add(prompt)
    return lines


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
