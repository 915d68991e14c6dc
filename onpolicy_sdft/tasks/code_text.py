"""The programs in a text: fenced or not, in one piece or several."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from textwrap import dedent

from onpolicy_sdft.tasks.plain_text import without_thoughts
from onpolicy_sdft.tasks.syntax import parse_module

_FENCE = re.compile(r"[ \t]*(?:(?:[-*+>]|\d{1,3}[.)])[ \t]+)?(`{3,}|~{3,})[ \t]*([\w+.-]*)[^`\n]*$")
_PYTHON = frozenset({"", "python", "py", "python3", "ipython", "tool_code"})
_PRE = re.compile(r"<pre><code(?: class=\"(?:language-)?python\")?>([^<]*)</code></pre>")
#: What a text says of a block that is not its answer: "Don't do this:", "A common mistake:", "instead of".
_DENIED = re.compile(
    r"^(?!.*\b(?:fix|correct|solv|repair|without))[^\n]*\b"
    r"(?:do not|don['’]t|never|avoid|wrong|incorrect|mistake|bug|buggy|broken|instead of|rather than|not this)\b"
    r"[^.!?]*:?\s*$",
    re.IGNORECASE,
)
_PROMPT = re.compile(r"^(?:>>>|\.\.\.)(?: |$)")
_CODE_LINE = re.compile(r"[ \t]*(?:async def |def |class |import |from \w|@\w|\w+\s*=(?!=))")
_SAID = 200  # characters at the end of a line before a block that are read
_MAX_PROGRAMS = 4  # each is run
_MAX_CODE = 12_000  # characters; what is longer is no short program
_MAX_TRIES = 200  # lines at which unfenced code is looked for
_MAX_PARSED = 2  # times the length of a text that is parsed in the search

#: A piece of code with its tree, or with the line at which it goes wrong.
_Parsed = tuple[str, ast.Module | int]
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def programs(completion: str) -> list[str]:
    """Return the programs of a completion, in the order in which they are to be tried.

    A program may come in several ``` blocks marked as Python or not marked; all are joined, but those that only use
    what others define. Where a block defines a function anew (a common mistake, or its correction) the blocks up to it
    are a program, and those with it are another. Without fences the pieces are the runs of lines that parse.

    Args:
        completion: Text the model wrote.

    Returns:
        The programs; one that does not parse where none does, nothing where there is none.
    """
    text = _PRE.sub(r"```\n\1\n```", without_thoughts(completion).replace("<|python_tag|>", ""))
    fenced = [each for each in _fenced(text) if each[0].strip() and len(each[0]) <= _MAX_CODE]
    blocks = [block for block, is_denied in fenced if not is_denied] or [block for block, _ in fenced]
    if not blocks and _is_text(parse_module(text.strip()) if len(text) <= _MAX_CODE else 1):
        return []
    pieces = [(block, parse_module(block)) for block in blocks] or [
        _without_prose(piece, tree) for piece, tree in _unfenced(text[:_MAX_CODE])
    ]
    trees = [(piece, tree) for piece, tree in pieces if isinstance(tree, ast.Module)]
    if not trees:
        return [piece for piece, _ in pieces[:1]]
    defined = [_defined(tree) for _, tree in trees]
    everything = set().union(*defined)
    kept = [
        (piece, names)
        for (piece, tree), names in zip(trees, defined, strict=True)
        if names or not everything & _loaded(tree)
    ]
    return _in_order(kept or [(trees[0][0], set())])


def _is_text(tree: ast.Module | int) -> bool:
    """Whether a program is a string and nothing else."""
    return isinstance(tree, ast.Module) and all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in tree.body
    )


def _in_order(pieces: Sequence[tuple[str, set[str]]]) -> list[str]:
    found, known = list[str](), set[str]()
    for place, (_, names) in enumerate(pieces):
        if names & known:
            found.append("\n".join(piece for piece, _ in pieces[:place]))
        known |= names
    found.append("\n".join(piece for piece, _ in pieces))
    # A piece beside them may fail by itself, such as a main() that waits for input.
    found += [piece for piece, names in pieces if names]
    return list(dict.fromkeys(found))[:_MAX_PROGRAMS]


def _fenced(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the blocks of Python between fences, and whether the line before says that one is wrong.

    One that is not closed goes to the end.
    """
    fence, mark, lines, said = "", "", list[str](), ""
    is_denied = False
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if not fence and found:
            fence, mark, lines, is_denied = found[1], found[2].lower(), [], _DENIED.search(said) is not None
        elif fence and line.strip() and set(line.strip()) == {fence[0]} and len(line.strip()) >= len(fence):
            if _is_python(mark):
                yield _code([*lines, ""]), is_denied
            fence, said = "", ""
        elif fence and line.rstrip().endswith(fence) and len(line.split(fence)) == 2 and line.strip(" \t`~"):
            if _is_python(mark):  # "return x```"
                yield _code([*lines, line.rstrip().removesuffix(fence), ""]), is_denied
            fence, said = "", ""
        elif fence:
            lines.append(line)
        else:
            said = line[-_SAID:] if line.strip() else said
    if fence and _is_python(mark):
        yield _code(lines), is_denied


def _code(lines: Sequence[str]) -> str:
    """Return the code of a block; of a session, what was typed in."""
    code = dedent("\n".join(lines))
    if not code.lstrip().startswith(">>>"):
        return code
    typed = [line for line in code.split("\n") if _PROMPT.match(line)]
    return "\n".join([*(line[4:] for line in typed), ""])


def _is_python(mark: str) -> bool:
    return mark in _PYTHON or re.fullmatch(r"(?:python|py)[\d.]+", mark) is not None


def _unfenced(text: str) -> list[_Parsed]:
    """Return the runs of lines that parse and begin with a line that looks like code; else the first that does not."""
    lines, found, failed = text.split("\n"), list[_Parsed](), list[_Parsed]()
    start, unread = 0, _MAX_PARSED * len(text)
    for _ in range(_MAX_TRIES):
        start = next((n for n in range(start, len(lines)) if _CODE_LINE.match(lines[n])), len(lines))
        if start == len(lines) or unread < 0:
            break
        whole = list(_run(lines, start))
        num_lines = len(whole)
        while num_lines > 0 and unread >= 0:
            piece = "\n".join(whole[:num_lines])
            unread -= len(piece)
            parsed = parse_module(piece)
            if isinstance(parsed, ast.Module):
                found.append((piece, parsed))
                break
            failed = failed or [(piece, parsed)]
            num_lines = min(num_lines, parsed) - 1  # what stands before the error may do
        start += max(1, num_lines)
    return found or failed


def _run(lines: Sequence[str], start: int) -> Iterator[str]:
    """Yield the lines from one on that are indented as it is, or further, without that indentation."""
    indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
    for line in lines[start:]:
        if line.strip() and not line.startswith(indent):
            return
        yield line.removeprefix(indent)


def _without_prose(piece: str, tree: ast.Module | int) -> _Parsed:
    """Leave out the statements of a piece that are words of prose: a lone name, ``Note: this``."""
    if isinstance(tree, int) or not any(map(_is_prose, tree.body)):
        return piece, tree
    lines = piece.split("\n")
    kept = [node for node in tree.body if not _is_prose(node)]
    parts = ["\n".join(lines[_first_line(node) - 1 : node.end_lineno]) for node in kept]
    return "\n".join(parts), ast.Module(kept, [])


def _is_prose(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Name | ast.Tuple | ast.Attribute | ast.Compare | ast.BinOp)
    return isinstance(node, ast.AnnAssign) and node.value is None


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, _Definition) else []
    return min([node.lineno, *(each.lineno for each in decorators)])


def _defined(tree: ast.Module) -> set[str]:
    """Return the functions and classes that a program defines, those of ``f = lambda x: x`` among them."""
    found = {node.name for node in tree.body if isinstance(node, _Definition)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _loaded(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
