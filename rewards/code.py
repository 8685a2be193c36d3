"""Extraction of Python code from a model's text, and its test program: HumanEval, MBPP, KodCode.

As in "Learning Unmasking Policies" (2512.09106) the code is the longest piece that parses, and it passes if all tests run
without an error (pass@1 of one sample). What differs: pieces are found by cutting at the line that the parser reports, not
by trying all pairs of lines; programs run in a sandbox (rewards/sandbox.py), not only under a time limit.
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
# Besides START, how the first line of a part may begin. The contents of a fence are code.
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
    """Reference of a code question.

    before: code that the answer continues, already in the prompt; entry: the name that must be defined; tests: run after
    the code; packages: tests may import more than the standard library; collect: tests are functions and classes for pytest
    or unittest; is_class: `entry` is the name of a class.
    """

    before: str
    entry: str
    tests: str
    packages: bool = False
    collect: bool = False
    is_class: bool = False

    def dumps(self) -> str:
        """Return it as text, the `truth` of a question."""
        return json.dumps(asdict(self))


def lines_of(text: str) -> list[str]:
    """Split into lines as Python and Markdown do. (`str.splitlines` also splits at form feeds and Unicode separators,
    which occur in strings.)
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def before_end(text: str) -> str:
    """Return the text before the first end of sequence."""
    return END.split(text, maxsplit=1)[0]


def program_before_end(text: str) -> str:
    """Return the text before the first end of sequence that is not inside a string: programs may contain such marks."""
    ends = (match.start() for match in END_OR_STRING.finditer(text) if match["end"])
    return text[: next(ends, len(text))]


def parsable_head(source: str) -> str:
    """Return the longest part, from the first line on, that parses; found by cutting above the line of each error."""
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
    """Return whether code may begin with this line, from the line alone, so that prose is skipped without parsing."""
    try:
        if start.match(line):
            codeop.compile_command(line, symbol="exec")
            return True
    except NOT_CODE:
        pass
    return False


def is_label(line: str) -> bool:
    """Return whether a line that parses only names something, such as `python`, `solution.py` or `Note: this`."""
    try:
        body = ast.parse(line).body
    except NOT_CODE:
        return False
    named = (ast.Name, ast.Attribute, ast.expr_context, ast.Expr, ast.AnnAssign)
    return len(body) == 1 and "=" not in line and all(isinstance(node, named) for node in ast.walk(body[0]))


def pieces(text: str, first: re.Pattern = START) -> list[str]:
    """Return all pieces of a text that parse, each as long as possible, in order.

    A piece begins at the left margin with a definition, an import, a decorator or an assignment; at the first line of the
    text also with what `first` allows.
    """
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
    """Return whether code that parses defines a name at its top level."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == entry:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == entry for t in node.targets):
            return True
    return False


def code_in(text: str, entry: str, before: str = "") -> str:
    """Return the code of an answer; "" if none defines `entry`.

    Args:
        before: code at the end of the prompt (HumanEval, KodCode). The answer may continue it (its fence is open), start in
            a fence of its own, or be in prose without a fence.
    """
    kept = program_before_end(text)
    return code_of(kept, entry, before) or (code_of(cut, entry, before) if (cut := before_end(text)) != kept else "")


def code_of(text: str, entry: str, before: str) -> str:
    """Return the code of a text without its end. Of several programs the last is the answer, those in fences first.

    If a stray quote turns the end mark into a string, the first mark ends the text.
    """
    return (
        last_program(sections(text, strings=True), entry, before)
        or last_program(sections(text), entry, before)
        or last_program(sections(unindented(text)), entry, before)
    )


def unindented(text: str) -> str:
    """Move indented parts to the left margin: Markdown's other notation of code."""
    parts = groupby(lines_of(text), lambda line: not line.strip() or line[0] in " \t")
    return "\n".join(dedent("\n".join(part)) for _, part in parts)


@dataclass(frozen=True)
class Section:
    """Text between two fences. named: the first fence names a language, so it opens."""

    text: str
    named: bool = False


def sections(text: str, strings: bool = False) -> list[Section]:
    """Split a text at its fences; with `strings`, not inside strings of three quotes, where fences belong to a program."""
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
    """Return whether a string of three quotes is open at the end of a source."""
    return any(match["open"] for match in OPEN_STRING.finditer(source))


def last_program(parts: list[Section], entry: str, before: str) -> str:
    """Return the last program of a text that defines `entry`; "" if there is none."""
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
    """Prepend the definitions of the prompt to a program that starts anew."""
    return f"{head}\n{code}" if (head := parsable_head(before)) else code


def code_program(text: str, truth: str) -> Program:
    """Return the program that judges an answer. truth: CodeTruth.dumps()."""
    checks = CodeTruth(**json.loads(truth))
    code = code_in(text, checks.entry, checks.before)
    functions = () if checks.is_class else (checks.entry,)
    return Program(
        code or f"raise NameError('no code that defines {checks.entry}')",
        checks.tests, checks.packages, checks.collect, checks.entry, functions,
    )  # fmt: skip


def is_right_code(text: str, truth: str, unsandboxed: bool = False) -> bool:
    """Return whether the code in a text passes its tests. truth: CodeTruth.dumps(). SandboxError without a sandbox."""
    return run_programs([code_program(text, truth)], unsandboxed)[0].passed


def given_functions(source: str, entry: str) -> str:
    """Return imports and functions of the prompt's code, without the requested one. Tests use these instead of the
    answer's versions.
    """
    kept = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)
            or (isinstance(node, ast.FunctionDef) and node.name != entry)]  # fmt: skip
    return "\n".join(map(ast.unparse, kept))
