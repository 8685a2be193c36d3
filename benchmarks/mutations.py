"""Mutation testing: each line below makes the code wrong on purpose, and the tests named beside it must fail.

    python -m benchmarks.mutations [--only samplers/smc.py] [--jobs 1]

The working tree is copied to a temporary directory; a child process applies one mutation there, runs the named tests and reports
killed (a test failed), survived (all passed) or stale (the text to replace is not there, or there more than once). Third-party
packages are imported once, before the children are forked. Prints the survivors, ends with one line of JSON; exit status 1 for a
survivor that is not in KNOWN or a stale mutation.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What the tests import besides the project: imported once, by the parent.
PRELOADED = ("torch", "transformers", "hydra", "omegaconf", "scipy.stats", "einops", "rich",
             "safetensors.torch", "huggingface_hub", "datasets", "matplotlib.figure")  # fmt: skip
OPTIONS = ("-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
SECONDS = 300  # after which a mutation counts as killed: it made a test hang


@dataclass(frozen=True)
class Mutation:
    """Replace `old`, which stands in `file` exactly once, by `new`; `tests` are pytest's arguments."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()!r} -> {self.new.strip()!r}"


def m(file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(file, old, new, tests)


AGREEMENT, COST = "tests/policy/test_agreement.py", "tests/evaluation/test_cost.py"
MUTATIONS: tuple[Mutation, ...] = (
    # policy
    m("policy/agreement.py", "agreement * others,\n", "agreement,\n", AGREEMENT),
    m("policy/agreement.py", "agreement * ~others", "agreement * others", AGREEMENT),
    m("policy/agreement.py", "torch.log1p(-agreement", "torch.log1p(agreement", AGREEMENT),
    m("policy/agreement.py", "self.confidence_scale * self.log_odds", "self.log_odds", AGREEMENT),
    m("policy/agreement.py", "where(masked[..., None], readout.top_tokens", "where(~masked[..., None], readout.top_tokens",
      AGREEMENT),
    # evaluation
    m("evaluation/cost.py", "1, length), model.mask_id", "1, length // 2), model.mask_id", COST),
    m("evaluation/cost.py", "canvas.shape[1] - start[rows]", "canvas.shape[1] + 0 * start[rows]", COST),
    m("evaluation/intervals.py", "rows[:, 0].sum() / rows[:, 1].sum(), resamples", "(rows[:, 0] / rows[:, 1]).sum(), resamples",
      "tests/benchmarks/test_sudoku.py"),
)  # fmt: skip
KNOWN: dict[str, str] = {}  # survivors (by str(mutation)) and why no test can see them


def copy_tree(to: Path) -> None:
    """The tracked and the new files of the working tree, not what is ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)


def run_tests(tree: Path, tests: tuple[str, ...], log: Path) -> int:
    """Run pytest in a forked child whose project modules are those of `tree`; return its exit status, 124 after SECONDS."""
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        os.chdir(tree)
        sys.path[:] = [str(tree), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
        for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "tests")]:
            del sys.modules[name]
        status = 3
        try:
            status = int(importlib.import_module("pytest").main([*OPTIONS, *tests]))
        finally:  # whatever happens, the child ends here and not in the parent's loop
            if status == 3:
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return 124


def judge(tree: Path, mutation: Mutation, log: Path) -> str:
    """killed, survived, stale, or broken (the tests did not run)."""
    path = tree / mutation.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        return "stale"
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        status = run_tests(tree, mutation.tests, log)
    finally:
        path.write_text(source, encoding="utf-8")
    return {0: "survived", 1: "killed", 2: "killed", 124: "killed"}.get(status, "broken")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose file begins so")
    arguments = parser.parse_args()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a mutated file's bytecode must not outlive it
    sys.dont_write_bytecode = True
    for name in PRELOADED:
        importlib.import_module(name)
    chosen = [mutation for mutation in MUTATIONS if mutation.file.startswith(arguments.only)]
    with tempfile.TemporaryDirectory() as directory:
        tree, log = Path(directory) / "tree", Path(directory) / "log"
        copy_tree(tree)
        verdicts = []
        for mutation in chosen:
            verdicts.append(judge(tree, mutation, log))
            print(f"{verdicts[-1]:9} {mutation}", flush=True)
            if verdicts[-1] == "broken":
                print(log.read_text(encoding="utf-8", errors="replace")[-2000:])
    counts = Counter(verdicts)
    left = [str(one) for one, verdict in zip(chosen, verdicts, strict=True) if verdict == "survived"]
    for name in left:
        print(f"survivor: {name}: {KNOWN.get(name, 'no reason known')}")
    share = counts["killed"] / max(1, len(chosen))
    print(json.dumps({"mutations": len(chosen), **counts, "killed_share": round(share, 4)}))
    return int(bool(set(left) - KNOWN.keys()) or counts["stale"] + counts["broken"] > 0)


if __name__ == "__main__":
    sys.exit(main())
