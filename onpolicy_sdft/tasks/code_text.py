"""The programs in a text: fenced or not, in one piece or several."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from textwrap import dedent

from onpolicy_sdft.tasks.plain_text import without_thoughts
from onpolicy_sdft.tasks.syntax import parse_module

_FENCE = re.compile(r"[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+|(?:>[ \t]*)++)?(`{3,}+|~{3,}+)[ \t]*+([\w+.-]*+)[^`\n]*+$")
_PYTHON = frozenset({"", "python", "py", "python3", "ipython", "tool_code"})
_PRE = re.compile(
    r"<pre><code(?: class=\"(?:language-)?python\")?>([^<]*+)</code></pre>"
    r"|<code(?: class=\"(?:language-)?python\")?>(?=[^<]*\b(?:def|class|lambda)\b)([^<]*+)</code>"
)
#: Other marks around code, where there is no fence: three quotes, or a single backtick in a sentence.
_QUOTED = re.compile(
    r"^(?:'''|\"\"\")(?:python3?|py)[ \t]*\n((?:(?!'''|\"\"\").*\n)*+)(?:'''|\"\"\")[ \t]*$", re.MULTILINE
)
_INLINE = re.compile(r"`((?:async def|def|class) [^`\n]+|\w+ = lambda [^`\n]+)`")
_NAME_OF_LANGUAGE = re.compile(r"\s*(?:python3?|py)\s*", re.IGNORECASE)
_BARE_FENCE = re.compile(r"^```[ \t]*$", re.MULTILINE)
#: A whole line that says of a block that it is not the answer: "Don't do this:", "A common mistake:".
_DENIED = re.compile(
    r"\W*(?:(?:so )?(?:please )?(?:do not|don['’]t|never|avoid)"
    r"(?: (?:do|doing|use|using|write|writing))?(?: (?:this|it|that))?"
    r"|(?:(?:this|that|here|it) is )?(?:an? |the )?(?:(?:common|usual|typical|first) )?"
    r"(?:wrong|incorrect|mistaken?|bug|buggy|broken|bad|not this)"
    r"(?: (?:too|way|version|code|program|answer|solution|one))?"
    r"|instead of(?: this| that)?|rather than(?: this| that)?)\W*",
    re.IGNORECASE,
)
#: One that may say so, or something else: "To avoid overflow, use this:".
_DOUBTED = re.compile(
    r"^(?!.*\b(?:fix|correct|solv|repair|without))[^\n]*\b"
    r"(?:do not|don['’]t|never|avoid|wrong|incorrect|mistake|bug|buggy|broken|instead of|rather than|not this)\b"
    r"[^.!?]*:?\s*$",
    re.IGNORECASE,
)
_QUOTE = re.compile(r"[ \t]*>(?!>)[ ]?")
_NO_BREAK = "\u00a0"
#: Blanks of other kinds that stand for an indentation.
_INDENT = re.compile(r"^[ \t]*[\u00a0\u2000-\u200a\u202f\u3000][ \t\u00a0\u2000-\u200a\u202f\u3000]*", re.MULTILINE)
_GLUED = re.compile(r"^([ \t]*```(?:python3?|py))[ \t]+(?=(?:async def|def|class|from|import|@)\b)", re.MULTILINE)
_ONE_LINE = re.compile(r"^[ \t]*```(?:python3?|py)?[ \t]*+(?=[^`\n]*[ (:=])([^`\n]++)```[ \t]*$", re.MULTILINE)
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
    are a program, and those with it are another. Without fences the pieces are what is typed into a session, or the
    runs of lines that parse. Blocks of which the text may say that they are wrong are tried last.

    Args:
        completion: Text the model wrote.

    Returns:
        The programs; one that does not parse where none does, nothing where there is none.
    """
    text = _PRE.sub(
        lambda code: f"```\n{code[1] or code[2]}\n```", without_thoughts(completion).replace("<|python_tag|>", "")
    )
    text = _INDENT.sub(lambda blanks: " " * len(blanks[0]), text.replace("\ufeff", ""))
    text = _GLUED.sub(r"\1\n", _ONE_LINE.sub(r"```\n\1\n```", text))
    if "```" not in text:
        text = _QUOTED.sub(r"```\n\1```", text)
        text = text.strip().strip("`") if text.count("`") == 2 and text.strip().startswith("`") else text
    elif text.count("```") == 1 and (end := _BARE_FENCE.search(text)) and _is_closing(text, end):
        text = text[: end.start()]  # the fence that opens the code is part of the prompt
    fenced = [each for each in _fenced(text) if each[0].strip() and len(each[0]) <= _MAX_CODE]
    if not fenced:
        return _of_pieces(_without_fences(text) or [_parsed(code) for code in _INLINE.findall(text)])
    standing = [each for each in fenced if not _DENIED.fullmatch(each[1])] or fenced
    parsed = [_parsed(block) for block, _ in standing]
    first = [piece for piece, (_, said) in zip(parsed, standing, strict=True) if not _DOUBTED.search(said)]
    found = _of_pieces(first)[: _MAX_PROGRAMS - 1] if len(first) < len(parsed) else []
    return list(dict.fromkeys([*found, *_of_pieces(parsed)]))[:_MAX_PROGRAMS]


def _is_closing(text: str, fence: re.Match[str]) -> bool:
    """Whether code stands before the only fence of a text and not behind it."""
    behind = text[fence.end() :].split("\n")
    return _CODE_LINE.match(text.lstrip()) is not None and not any(map(_CODE_LINE.match, behind))


def _parsed(code: str) -> _Parsed:
    tree = parse_module(code)
    if isinstance(tree, int) and _NO_BREAK in code:
        code = code.replace(_NO_BREAK, " ")
        tree = parse_module(code)
    return code, tree


def _without_fences(text: str) -> list[_Parsed]:
    if _is_text(parse_module(text.strip()) if len(text) <= _MAX_CODE else 1):
        return []
    if ">>> " in text:
        typed = _parsed(_typed(text[:_MAX_CODE]))
        if isinstance(typed[1], ast.Module) and _defined(typed[1]):  # else it shows how the program is used
            return [typed]
    return [_without_prose(piece, tree) for piece, tree in _unfenced(text[:_MAX_CODE])]


def _of_pieces(pieces: Sequence[_Parsed]) -> list[str]:
    """Return the programs that pieces of code may be together."""
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
    whole = _in_order(kept or [(trees[0][0], set())])
    # What stands below a function may fail by itself: unittest.main(), a loop over input().
    return list(dict.fromkeys([*whole[: _MAX_PROGRAMS - 1], _without_end(whole[0]), *whole]))[:_MAX_PROGRAMS]


def _without_end(program: str) -> str:
    """Leave out what stands below the last function or class of a program."""
    tree = parse_module(program)
    ends = [node.end_lineno or 0 for node in getattr(tree, "body", []) if isinstance(node, _Definition)]
    lines = program.split("\n")
    return "\n".join(lines[: ends[-1]]) if ends and "".join(lines[ends[-1] :]).strip() else program


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


def _fenced(text: str) -> Iterator[tuple[str, str]]:
    """Yield the blocks of Python between fences, and the line before each; one that is not closed goes to the end."""
    fence, mark, lines, said, is_quoted, indent, num_quotes = "", "", list[str](), "", False, 0, 0
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if fence and is_quoted:
            line = _QUOTE.sub("", line, count=1) if _QUOTE.match(line) else line
        if not fence and found:
            fence, mark, lines, is_quoted = found[1], found[2].lower(), [], line.lstrip().startswith(">")
            indent, num_quotes = found.start(1), 0
        elif fence and num_quotes % 2 and len(line) - len(line.lstrip()) > indent and line.lstrip().startswith(fence):
            lines.append(line)  # in a docstring
        elif fence and line.strip() and set(line.strip()) == {fence[0]} and len(line.strip()) >= len(fence):
            if _is_python(mark):
                yield _code([*lines, ""]), said
            fence, said = "", ""
        elif fence and line.rstrip().endswith(fence) and len(line.split(fence)) == 2 and line.strip(" \t`~"):
            if _is_python(mark):  # "return x```"
                yield _code([*lines, line.rstrip().removesuffix(fence), ""]), said
            fence, said = "", ""
        elif fence:
            lines.append(line)
            num_quotes += line.count('"""') + line.count("'''")
        else:
            said = line[-_SAID:] if line.strip() else said
    if fence and _is_python(mark):
        yield _code(lines), said


def _code(lines: Sequence[str]) -> str:
    """Return the code of a block; of a session, what was typed in."""
    code = dedent("\n".join(lines[1:] if lines and _NAME_OF_LANGUAGE.fullmatch(lines[0]) else lines))
    if not code.lstrip().startswith(">>>"):
        return code
    return _typed(code)


def _typed(session: str) -> str:
    lines = [line.strip() for line in session.split("\n") if _PROMPT.match(line.strip())]
    return "\n".join([*(line[4:] for line in lines), ""])


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
