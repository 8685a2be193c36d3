"""Count constructs that make code hard to read (long functions, probes, ignored types, repeated class names), and measure start
times.

    python -m benchmarks.structure
    python -m benchmarks.structure --list --no-start

The counts come from the source text. Start times run each command several times and take the least CPU seconds. Tests are not
counted.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from evaluation.report import print_table
from training.ranges import Whole
from training.usage import exit_on_bad_input

ROOT = Path(__file__).parents[1]
ROOMS = ("model", "training", "dlm", "rewards", "data", "samplers", "policy", "rl", "twist", "evaluation", "unmask")
LONGEST, MOST_COMPLEX = 60, 15  # lines of a function, its cyclomatic complexity
CONFIGURED = ("unmask/commands/", "unmask/build.py", "training/run.py")  # where configurations and flags may be read
# These examine objects of an unknown program, which have no class of ours to give them an attribute.
OF_USERS = tuple(f"rewards/sandbox_{name}.py" for name in ("judge", "program", "pytest", "wire"))
BRANCHES = (ast.If, ast.For, ast.While, ast.IfExp, ast.ExceptHandler, ast.comprehension, ast.match_case, ast.Assert)
STARTS = {
    "import torch": ["-c", "import torch"],
    "import unmask": ["-c", "import unmask"],
    "python -m unmask --help": ["-m", "unmask", "--help"],
    "run_sample.py --help": ["run_sample.py", "--help"],
    "run_sample.py --no-eval --steps 2 --length 16": ["run_sample.py", "--no-eval", "--steps", "2", "--length", "16"],
}


@dataclass(frozen=True)
class Found:
    """One place in the source: a file, a line, and the construct there."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.text}"


def sources() -> list[Path]:
    """Return every module of the product: those of the packages, and those at the root."""
    return sorted([*(path for room in ROOMS for path in (ROOT / room).rglob("*.py")), *ROOT.glob("*.py")])


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return every function and method, including nested ones."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def complexity(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the cyclomatic complexity: one, plus one for each branch and each further operand of `and` and `or`. Nested
    functions are counted separately."""
    total, left = 1, list(ast.iter_child_nodes(function))
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        total += isinstance(node, BRANCHES)
        total += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        left += ast.iter_child_nodes(node)
    return total


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function without its docstring and signature."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return 0 if not body else (body[-1].end_lineno or 0) - body[0].lineno + 1


def is_probe(node: ast.AST) -> TypeGuard[ast.Call]:
    """Return whether an expression asks an object for its kind: `getattr` with a constant name and a default, or `hasattr`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    named = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
    return named and (node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3))


COUNTS = (
    "functions over 60 lines", "functions of complexity above 15", "functions that take a configuration",
    "functions that take a configuration in unmask/runs", "getattr probes", "pyright: ignore", "raise ValueError",
    "public names without a docstring", "classes that share a name",
)  # fmt: skip


def takes_configuration(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a parameter is a whole configuration or parsed flags."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return any(
        one.annotation is not None and re.search(r"\b(DictConfig|Namespace)\b", ast.unparse(one.annotation))
        for one in arguments
    )


def survey() -> dict[str, list[Found]]:
    """Return all found places by the name of the count."""
    found: dict[str, list[Found]] = {name: [] for name in COUNTS}
    classes: dict[str, list[Found]] = defaultdict(list)
    for path in sources():
        file, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        for function in functions(tree):
            here = Found(file, function.lineno, function.name)
            if (lines := code_lines(function)) > LONGEST:
                found["functions over 60 lines"].append(Found(file, function.lineno, f"{function.name} ({lines})"))
            if (branches := complexity(function)) > MOST_COMPLEX:
                found["functions of complexity above 15"].append(
                    Found(file, function.lineno, f"{function.name} ({branches})")
                )
            if takes_configuration(function) and not file.startswith(CONFIGURED):
                within = " in unmask/runs" if file.startswith("unmask/runs/") else ""
                found[f"functions that take a configuration{within}"].append(here)
        found["getattr probes"] += [
            Found(file, node.lineno, ast.unparse(node)[:60])
            for node in ast.walk(tree)
            if is_probe(node) and file not in OF_USERS
        ]
        found["pyright: ignore"] += [
            Found(file, number, "") for number, line in enumerate(text.splitlines(), 1) if "pyright: ignore" in line
        ]
        found["raise ValueError"] += [
            Found(file, number, "") for number, line in enumerate(text.splitlines(), 1) if "raise ValueError" in line
        ]
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            if not node.name.startswith("_") and ast.get_docstring(node) is None:
                found["public names without a docstring"].append(Found(file, node.lineno, node.name))
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(Found(file, node.lineno, node.name))
    found["classes that share a name"] = [place for places in classes.values() if len(places) > 1 for place in places]
    return found


def lines_per_room() -> dict[str, int]:
    """Return the lines of source of each package, and of the modules at the root."""
    counted: Counter[str] = Counter()
    for path in sources():
        part = path.relative_to(ROOT).parts
        counted[part[0] if len(part) > 1 else "root"] += len(path.read_text(encoding="utf-8").splitlines())
    return dict(counted)


def cpu_seconds(arguments: list[str], times: int) -> float:
    """Return the least CPU seconds of a new process over several runs. ChildProcessError if it fails."""
    import resource  # of POSIX

    taken = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        if run.returncode:
            raise ChildProcessError(
                f"python {' '.join(arguments)} ended with status {run.returncode}: {run.stderr[-200:]!r}"
            )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def main() -> None:
    """Print all counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print every place that is counted")
    parser.add_argument("--no-start", dest="start", action="store_false", help="leave the start-up times out")
    parser.add_argument("--times", type=Whole(1, 100), default=3, help="runs of each command (3)")
    options = parser.parse_args()
    found = survey()
    if options.list:
        for name, places in found.items():
            if name not in ("raise ValueError", "pyright: ignore"):
                print(f"\n{name}\n" + "\n".join(f"  {place}" for place in places))
    print_table([{"count": name, "places": len(places)} for name, places in found.items()], title="structure")
    print_table([{"room": room, "lines": lines} for room, lines in lines_per_room().items()], title="lines of source")
    if options.start:
        seconds = {name: cpu_seconds(arguments, options.times) for name, arguments in STARTS.items()}
        rows = [{"command": name, "CPU s": round(own, 2), "of import torch": round(own / seconds["import torch"], 2)}
                for name, own in seconds.items()]  # fmt: skip
        print_table(rows, title="start")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
