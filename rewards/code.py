"""Python out of what a model wrote, and the program that tests it: HumanEval, MBPP, KodCode.

As in "Learning Unmasking Policies" (2512.09106) the code is the longest piece that parses, and it has passed when all tests run
through (pass@1 of one sample). What differs: a piece is found by cutting at the line that the parser names, not by trying all
pairs of lines, and programs run in a sandbox (rewards/sandbox.py), not under a time limit alone.
"""

from __future__ import annotations

import ast
import codeop
import json
import re
import warnings
from dataclasses import asdict, dataclass

from rewards.sandbox import Program, run_programs

END = re.compile(r"<\|[\w ]+\|>|</s>|<eos>")  # a model's end of sequence or of turn, written out
FENCE = re.compile(r"^[ \t]*```[^\n]*$", re.MULTILINE)
NOT_CODE = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)  # null bytes; nested too deep
START = re.compile(r"(?:async\s+def|def|class|import|from|@|[A-Za-z_]\w*\s*(?::[^=]+)?=)(?:\s|\w)")
# Besides START, how the first line of a part may begin. What stands in a fence is code.
IN_FENCE = re.compile(r"\S")
# Other parts are prose, or a fence that the prompt opened, which moves all that follow by one. No prose begins like this.
OPEN = re.compile(r"(?:try|if|for|while|with)\b")
STRING = r"\"{3}[\s\S]*?\"{3}|'{3}[\s\S]*?'{3}|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
# A quote inside a word is an apostrophe and opens no string.
END_OR_STRING = re.compile(rf"(?<!\w)[rbfuRBFU]{{0,2}}(?:{STRING})|(?P<end>{END.pattern})")


@dataclass(frozen=True)
class CodeTruth:
    """What a code question is judged by. before: code that the answer goes on from, already written into the prompt; entry: the
    name that has to be defined; tests: run after the code; packages: whether tests import more than the standard library."""

    before: str
    entry: str
    tests: str
    packages: bool = False

    def dumps(self) -> str:
        """As the `truth` of a question, which is text."""
        return json.dumps(asdict(self))


def before_end(text: str) -> str:
    """What stands before the first end of sequence."""
    return END.split(text, maxsplit=1)[0]


def program_before_end(text: str) -> str:
    """What stands before the first end of sequence that is not inside a string: programs may well be about such marks."""
    ends = (match.start() for match in END_OR_STRING.finditer(text) if match["end"])
    return text[: next(ends, len(text))]


def parsable_head(source: str) -> str:
    """The longest part, from the first line on, that parses; found by cutting above the line of each error."""
    lines = source.splitlines()
    while lines:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes and the like are the model's affair
                ast.parse("\n".join(lines))
            return "\n".join(lines)
        except SyntaxError as error:
            lines = lines[: min(max(error.lineno or 1, 1), len(lines)) - 1]
        except NOT_CODE:
            return ""
    return ""


def may_begin(line: str, start: re.Pattern = START) -> bool:
    """Whether code may begin with a line, told by it alone, so that prose is passed over without parsing all that follows."""
    try:
        if start.match(line):
            codeop.compile_command(line, symbol="exec")
            return True
    except NOT_CODE:
        pass
    return False


def is_label(line: str) -> bool:
    """Whether a line that parses does nothing but name something, as `python`, `solution.py` or `Note: this` do."""
    try:
        body = ast.parse(line).body
    except NOT_CODE:
        return False
    named = (ast.Name, ast.Attribute, ast.expr_context, ast.Expr, ast.AnnAssign)
    return len(body) == 1 and "=" not in line and all(isinstance(node, named) for node in ast.walk(body[0]))


def pieces(text: str, first: re.Pattern = START) -> list[str]:
    """All pieces of a text that parse, each as long as can be, in order. A piece begins at the left margin, with a definition, an
    import, a decorator or an assignment; at the first line of the text also with what `first` allows."""
    lines, found = text.strip("\n").splitlines(), []
    start = place = int(bool(lines) and is_label(lines[0]))
    while place < len(lines):
        begins = may_begin(lines[place]) or (place == start and may_begin(lines[place], first))
        piece = parsable_head("\n".join(lines[place:])) if begins else ""
        if piece:
            found.append(piece)
        place += piece.count("\n") + 1
    return found


def defines(source: str, entry: str) -> bool:
    """Whether code that parses defines a name at its top level."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == entry:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == entry for t in node.targets):
            return True
    return False


def code_in(text: str, entry: str, before: str = "") -> str:
    """The code of an answer; "" where none defines `entry`.

    before: code that the prompt ends in (HumanEval, KodCode). The answer may go on from it, the fence being open already, or
    start anew in a fence of its own, or stand in prose without any.
    """
    kept = program_before_end(text)
    return code_of(kept, entry, before) or (code_of(cut, entry, before) if (cut := before_end(text)) != kept else "")


def code_of(text: str, entry: str, before: str) -> str:
    """The same of a text without what follows its end. (A stray quote can make a string of the mark of an end: then the first
    mark ends it.)"""
    parts = FENCE.split(text)
    whole = parsable_head(before + parts[0])
    if before and len(whole.rstrip()) > len(before.rstrip()) and defines(whole, entry):
        return whole
    fences, others = [(part, IN_FENCE) for part in parts[1::2]], [(part, OPEN) for part in parts[::2]]
    for part, first in fences + others:
        code = "\n".join(pieces(part, first))
        if defines(code, entry):
            return f"{head}\n{code}" if (head := parsable_head(before)) else code
    return ""


def code_program(text: str, truth: str) -> Program:
    """What is run to judge an answer. truth: CodeTruth.dumps()."""
    told = CodeTruth(**json.loads(truth))
    code = code_in(text, told.entry, told.before)
    return Program(code or f"raise NameError('no code that defines {told.entry}')", told.tests, told.packages)


def is_right_code(text: str, truth: str, unsandboxed: bool = False) -> bool:
    """Whether the code in a text passes its tests. truth: CodeTruth.dumps(). Raises SandboxError where there is no sandbox."""
    return run_programs([code_program(text, truth)], unsandboxed)[0].passed


def with_calls(tests: str) -> str:
    """Tests written for pytest, with calls of every `test_*` that takes no argument, also of classes; "" where there is none."""
    calls = []
    for node in ast.parse(tests).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not needed(node):
            calls.append(f"{node.name}()")
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            calls += [f"{node.name}().{own.name}()" for own in node.body
                      if isinstance(own, ast.FunctionDef) and own.name.startswith("test_") and needed(own) == 1]  # fmt: skip
    return "\n".join([tests, *calls]) if calls else ""


def needed(function: ast.FunctionDef) -> int:
    """How many arguments have to be given."""
    return len(function.args.posonlyargs + function.args.args) - len(function.args.defaults)
