"""Python that a model wrote, as a syntax tree."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Literal

#: A name for what is parsed here, so that a filter can tell its warnings ("\d" in a model's string is no news) from
#: others. It is set once: changing filters for a moment is not safe beside other threads.
COMPLETION = "<completion>"
warnings.filterwarnings("ignore", module=re.escape(COMPLETION))


def parse_module(text: str) -> ast.Module | int:
    """Return the tree of a program; where it is no Python, the line at which it goes wrong, counted from 1."""
    tree = _parse(text, "exec")
    return tree if isinstance(tree, ast.Module) else getattr(tree, "lineno", None) or 1


def is_python(text: str) -> bool:
    """Whether a text is a program."""
    return isinstance(parse_module(text), ast.Module)


def parse_expression(text: str) -> ast.expr | None:
    """Return the tree of one expression; None where it is none."""
    tree = _parse(text, "eval")
    return tree.body if isinstance(tree, ast.Expression) else None


def _parse(text: str, mode: Literal["exec", "eval"]) -> ast.AST | Exception:
    try:
        return ast.parse(text, COMPLETION, mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return error
