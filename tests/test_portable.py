"""The same on every machine: files are UTF-8 whatever the locale is, and what POSIX alone has is imported where it is used."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    file for file in ROOT.rglob("*.py") if not {".venv", "tests", "output"} & set(file.relative_to(ROOT).parts)
)
POSIX = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
INSIDE_SANDBOX = {"rewards/sandbox_runner.py"}  # runs on Linux alone, as a program of its own


def text_mode(call: ast.Call, first: int) -> bool:
    """Whether a call of `open` is in text mode: its mode is the positional argument number `first`, or named."""
    given = call.args[first : first + 1] + [word.value for word in call.keywords if word.arg == "mode"]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else "r"
    return "b" not in str(mode)


def reads_by_locale(call: ast.Call) -> bool:
    """Whether a call opens a file as text and names no encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if any(word.arg == "encoding" for word in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) <= (name == "write_text")  # the encoding may be the positional argument behind the text
    if name == "open" and owner in ("", "io"):
        return text_mode(call, 1)
    if name == "open" and owner == "gzip":
        return "t" in "".join(arg.value for arg in call.args[1:2] if isinstance(arg, ast.Constant))
    if name == "open" and owner not in ("os", "tarfile", "zipfile", "archive", "webbrowser", "Image"):
        return text_mode(call, 0)
    if name in ("NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"):  # binary unless a mode is given
        return bool(call.args or any(word.arg == "mode" for word in call.keywords)) and text_mode(call, 0)
    return name == "fdopen" and text_mode(call, 1)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("open(p)", True), ("open(p, 'a')", True), ("open(p, mode='w')", True), ("open(p, 'rb')", False), ("p.open()", True),
        ("p.open('wb')", False), ("p.open('a', encoding='utf-8')", False), ("p.read_text()", True), ("p.write_text(t)", True),
        ("p.write_text(t, 'utf-8')", False), ("gzip.open(p)", False), ("gzip.open(p, 'rt')", True), ("os.open(p, f)", False),
        ("p.read_text(encoding='utf-8-sig')", False), ("os.fdopen(3, 'w')", True), ("TemporaryFile()", False), ("TemporaryFile('w')", True),
    ],
)  # fmt: skip
def test_what_reads_by_locale_is_told(line, found):
    assert reads_by_locale(ast.parse(line, mode="eval").body) is found


def test_every_text_file_is_opened_with_an_encoding():
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and reads_by_locale(node)
    ]
    assert not found


def test_what_posix_alone_has_is_imported_where_it_is_used():
    found = []
    for file in SOURCES:
        if str(file.relative_to(ROOT)) in INSIDE_SANDBOX:
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found += [f"{file.relative_to(ROOT)}: {name}" for name in names if name.partition(".")[0] in POSIX]
    assert not found
