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
from itertools import groupby
from textwrap import dedent

from rewards.sandbox import Program, run_programs

END = re.compile(r"<\|[\w ]+\|>|</s>|<eos>|<end_of_turn>")  # a model's end of sequence or of turn, written out
FENCE = re.compile(r"[ \t]*(?:`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)")
GLUED = re.compile(r"(?P<code>[^`]*[^`\s])`{3,}[ \t]*")  # a fence that closes behind the last statement
NOT_CODE = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)  # null bytes; nested too deep
START = re.compile(r"(?:async\s+def|def|class|import|from|@|[A-Za-z_]\w*\s*(?::[^=]+)?=)(?:\s|\w)")
# Besides START, how the first line of a part may begin. What stands in a fence is code.
IN_FENCE = re.compile(r"\S")
# Other parts are prose, or a fence that the prompt opened, which moves all that follow by one. No prose begins like this.
OPEN = re.compile(r"(?:try|if|for|while|with)\b")
THREE = r"\"{3}[\s\S]*?\"{3}|'{3}[\s\S]*?'{3}"
ONE = r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
# A quote inside a word is an apostrophe and opens no string.
OPEN_STRING = re.compile(
    rf"{THREE}|(?P<open>\"{{3}}|'{{3}})|{ONE}|#[^\n]*"
)  # closed strings and comments are passed over
END_OR_STRING = re.compile(rf"(?<!\w)[rbfuRBFU]{{0,2}}(?:{THREE}|{ONE})|(?P<end>{END.pattern})")


@dataclass(frozen=True)
class CodeTruth:
    """What a code question is judged by.

    before: code that the answer goes on from, already written into the prompt; entry: the name that has to be defined; tests: run
    after the code; packages: tests may import more than the standard library; collect: tests are functions and classes for pytest
    or unittest; is_class: `entry` is the name of a class.
    """

    before: str
    entry: str
    tests: str
    packages: bool = False
    collect: bool = False
    is_class: bool = False

    def dumps(self) -> str:
        """As the `truth` of a question, which is text."""
        return json.dumps(asdict(self))


def lines_of(text: str) -> list[str]:
    """Lines as Python and Markdown count them. (`str.splitlines` also cuts at form feeds and at Unicode separators, which may
    well stand in a string.)"""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def before_end(text: str) -> str:
    """What stands before the first end of sequence."""
    return END.split(text, maxsplit=1)[0]


def program_before_end(text: str) -> str:
    """What stands before the first end of sequence that is not inside a string: programs may well be about such marks."""
    ends = (match.start() for match in END_OR_STRING.finditer(text) if match["end"])
    return text[: next(ends, len(text))]


def parsable_head(source: str) -> str:
    """The longest part, from the first line on, that parses; found by cutting above the line of each error."""
    lines = lines_of(source)
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
    lines, found = lines_of(text.strip("\n")), []
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
    mark ends it.) Of several programs the last one is the answer, those in fences before others."""
    return (
        last_program(sections(text, strings=True), entry, before)
        or last_program(sections(text), entry, before)
        or last_program(sections(unindented(text)), entry, before)
    )


def unindented(text: str) -> str:
    """A text whose indented parts begin at the left margin: Markdown's other way of writing code."""
    parts = groupby(lines_of(text), lambda line: not line.strip() or line[0] in " \t")
    return "\n".join(dedent("\n".join(part)) for _, part in parts)


@dataclass(frozen=True)
class Section:
    """What stands between two fences. named: the first of them names a language, so it opens."""

    text: str
    named: bool = False


def sections(text: str, strings: bool = False) -> list[Section]:
    """A text cut at its fences; with `strings` not at those inside a string of three quotes, where they are part of a program."""
    found, named, own = [], False, []
    for line in lines_of(text):
        fence, glued = FENCE.fullmatch(line), GLUED.fullmatch(line) if named else None
        if (fence or glued) and not (strings and in_string("\n".join(own))):
            own += [glued["code"]] if glued else []
            found.append(Section("\n".join(own), named))
            named, own = bool(fence and fence["info"].strip()), []
        else:
            own.append(line)
    return [*found, Section("\n".join(own), named)]


def in_string(source: str) -> bool:
    """Whether a string of three quotes is still open at the end of a source."""
    return any(match["open"] for match in OPEN_STRING.finditer(source))


def last_program(parts: list[Section], entry: str, before: str) -> str:
    """The last program of a text that defines `entry`; "" where there is none."""
    whole = parsable_head(before + parts[0].text)
    goes_on = before and len(whole.rstrip()) > len(before.rstrip()) and defines(whole, entry)
    code = whole if goes_on else "\n".join(pieces(parts[0].text, OPEN))
    # Where the text begins with the program, the prompt has opened a fence: the first one of the text closes it.
    inside = defines(code, entry)
    fenced, others = [], [code if goes_on else with_head(before, code)] if inside else []
    for part in parts[1:]:
        inside = part.named or not inside
        code = "\n".join(pieces(dedent(part.text), IN_FENCE) if inside else pieces(part.text, OPEN))
        if defines(code, entry):
            (fenced if inside else others).append(with_head(before, code))
    return [*others, *fenced][-1] if others or fenced else ""


def with_head(before: str, code: str) -> str:
    """A program that starts anew, behind what the prompt has defined."""
    return f"{head}\n{code}" if (head := parsable_head(before)) else code


def code_program(text: str, truth: str) -> Program:
    """What is run to judge an answer. truth: CodeTruth.dumps()."""
    told = CodeTruth(**json.loads(truth))
    code = code_in(text, told.entry, told.before)
    functions = () if told.is_class else (told.entry,)
    return Program(
        code or f"raise NameError('no code that defines {told.entry}')",
        told.tests, told.packages, told.collect, told.entry, functions,
    )  # fmt: skip


def is_right_code(text: str, truth: str, unsandboxed: bool = False) -> bool:
    """Whether the code in a text passes its tests. truth: CodeTruth.dumps(). Raises SandboxError where there is no sandbox."""
    return run_programs([code_program(text, truth)], unsandboxed)[0].passed


def given_functions(source: str, entry: str) -> str:
    """Imports and functions of the code that a prompt shows, without the one that is asked for: the tests use these, not what an
    answer makes of them."""
    kept = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)
            or (isinstance(node, ast.FunctionDef) and node.name != entry)]  # fmt: skip
    return "\n".join(map(ast.unparse, kept))
