"""Damaged and malicious files: models, runs, policies and data.

`HOSTILE` names them. Each case makes its files in a folder and names the command that reads them. benchmarks/robustness.py runs
them.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from dlm.board import BoardTokenizer
from dlm.checkpoints.saving import save_model
from dlm.checkpoints.table import build_model
from training.usage import composed
from unmask.commands import evaluate as evaluate_command
from unmask.commands import sample as sample_command
from unmask.runs import train_dlm, train_policy

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {"hidden_size": 16, "n_blocks": 1, "n_heads": 2, "dropout": 0.0}
NOISE = {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20}


@dataclass(frozen=True)
class Bench:
    """Tiny models and data: text and board are masked models, causal a Llama, pairs a file of preferences, run a training run."""

    text: Path
    board: Path
    causal: Path
    pairs: Path
    run: Path


@dataclass(frozen=True)
class Case:
    """work: the command that reads the files; may_pass: it may read them without an error; forbidden: text that must not
    appear."""

    work: Callable[[], Any]
    may_pass: bool = False
    forbidden: list[Path] = field(default_factory=list)


def make_bench(folder: Path) -> Bench:
    """Write the tiny models and data."""
    folder.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "stories" / "tokenizer", trust_remote_code=False)
    causal = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
        "bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    board = {"tokens": 4, "model": SHAPE | {"length": 16}, "puzzle": {"box": [2, 2]}, "noise": NOISE}
    made: list[tuple[str, dict, Any]] = [
        ("text", {"tokens": len(tokenizer), "model": SHAPE | {"length": 32}, "noise": NOISE}, tokenizer),
        ("causal", causal, tokenizer),
        ("board", board, BoardTokenizer((2, 2))),
    ]
    for name, config, words in made:
        torch.manual_seed(0)
        model = build_model(config, "float32", words)[0]
        save_model(model, config, folder / name, torch.float32)
    draw = random.Random(0)
    chosen = [f" the {draw.choice(['cat', 'dog'])} ran home happy." for _ in range(24)]
    rows = [{"prompt": "One day", "chosen": text, "rejected": " sad and awful tree."} for text in chosen]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bench = Bench(folder / "text", folder / "board", folder / "causal", folder / "pairs.jsonl", folder / "run")
    train(f"run_dir={bench.run}", "experiment=sudoku6", "model.hidden_size=16", "model.n_blocks=1",
          "model.n_heads=2", "data.base_grids=3", "data.valid_grids=2", "training.batch_size=2",
          "training.n_iters=1", "eval.samples=1", "eval.steps=1")  # fmt: skip
    return bench


def train(*overrides: str) -> None:
    words = [*overrides, "device=cpu", "wandb.mode=disabled"]
    train_dlm.run(composed("train_dlm", words), words)


def sample(*argv: str) -> None:
    sample_command.main([*argv, "--no-eval"])


def evaluate(*argv: str) -> None:
    if status := evaluate_command.main(
        [*argv, "--datasets", "chain", "--seeds", "1", "--n_test", "2", "--device", "cpu"]
    ):
        raise SystemExit(status)


HOSTILE: dict[str, Callable[[Bench, Path], Case]] = {}


def hostile(name: str, may_pass: bool = False) -> Callable:
    """Register a function that makes one case and returns its command; may_pass as in Case."""

    def register(make: Callable[[Bench, Path], Callable[[], Any] | Case]) -> Callable:
        def case(bench: Bench, folder: Path) -> Case:
            made = make(bench, folder)
            return made if isinstance(made, Case) else Case(made, may_pass)

        HOSTILE[name] = case
        return make

    return register


# ------------------------------------------------------------------------------------------------------------- safetensors


def weights_case(name: str, change: Callable[[bytes], bytes], may_pass: bool = False) -> None:
    """Make a model whose model.safetensors is the original one, changed by `change`."""

    @hostile(f"weights: {name}", may_pass)
    def make(bench: Bench, folder: Path) -> Callable[[], Any]:
        model = shutil.copytree(bench.text, folder / "model")
        file = model / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))
        return lambda: sample("--model", str(model))


def header(content: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(content: bytes, change: Callable[[dict], Any]) -> bytes:
    fields, data = header(content)
    change(fields)
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def first(fields: dict) -> dict:
    return next(value for name, value in fields.items() if name != "__metadata__")


weights_case("empty", lambda content: b"")
weights_case("half", lambda content: content[: len(content) // 2])
weights_case("eight bytes", lambda content: content[:8])
weights_case("a header of 2^60 bytes", lambda content: struct.pack("<Q", 1 << 60) + content[8:])
weights_case("a header of 2^31 bytes", lambda content: struct.pack("<Q", 1 << 31) + content[8:])
weights_case("no JSON in the header", lambda content: content[:8] + b"x" * 100 + content[108:])
weights_case("a deep header", lambda content: struct.pack("<Q", 100_000) + b"[" * 100_000)
weights_case(
    "offsets behind the end", lambda content: with_header(content, lambda t: first(t).update(data_offsets=[0, 1 << 40]))
)
weights_case(
    "offsets that overlap", lambda content: with_header(content, lambda t: first(t).update(data_offsets=[0, 4]))
)
weights_case(
    "a shape of 2^62", lambda content: with_header(content, lambda t: first(t).update(shape=[1 << 31, 1 << 31]))
)
weights_case("an unknown type", lambda content: with_header(content, lambda t: first(t).update(dtype="F1024")))
weights_case(
    "a missing tensor", lambda content: with_header(content, lambda t: t.pop(next(n for n in t if n != "__metadata__")))
)
weights_case("a pickle", lambda content: pickle.dumps({"a": 1}))


def tensors_case(name: str, change: Callable[[dict[str, torch.Tensor]], Any], may_pass: bool = False) -> None:
    """Make a model whose tensors are changed in place by `change`."""

    @hostile(f"weights: {name}", may_pass)
    def make(bench: Bench, folder: Path) -> Callable[[], Any]:
        model = shutil.copytree(bench.text, folder / "model")
        tensors = dict(load_file(model / "model.safetensors"))
        change(tensors)
        save_file(tensors, model / "model.safetensors")
        return lambda: sample("--model", str(model))


tensors_case(
    "another shape", lambda tensors: tensors.update({name: value[:1].clone() for name, value in tensors.items()})
)
tensors_case("one more", lambda tensors: tensors.update(more=torch.zeros(1)))
tensors_case("whole numbers", lambda tensors: tensors.update({n: v.long() for n, v in tensors.items()}), may_pass=True)
tensors_case("not a number", lambda tensors: [value.fill_(float("nan")) for value in tensors.values()])
tensors_case("infinite", lambda tensors: [value.fill_(float("inf")) for value in tensors.values()])


def place_case(name: str, file: str, make_it: Callable[[Path], Any]) -> None:
    """Make a model in which a file is replaced by another kind of object."""

    @hostile(f"{file}: {name}")
    def make(bench: Bench, folder: Path) -> Callable[[], Any]:
        model = shutil.copytree(bench.text, folder / "model")
        (model / file).unlink()
        make_it(model / file)
        return lambda: sample("--model", str(model))


for _file in ("model.safetensors", "config.json"):
    place_case("a directory", _file, Path.mkdir)
    place_case("a link to itself", _file, lambda path: path.symlink_to(path))
    place_case("a pipe", _file, os.mkfifo)


# ----------------------------------------------------------------------------------------------------- config.json and index


def config_case(name: str, change: Callable[[dict], Any] | bytes, may_pass: bool = False, model: str = "text") -> None:
    """Make a model whose config.json is changed in place, or is these bytes."""

    @hostile(f"config.json of {model}: {name}", may_pass)
    def make(bench: Bench, folder: Path) -> Callable[[], Any]:
        copy = shutil.copytree(getattr(bench, model), folder / "model")
        file = copy / "config.json"
        if isinstance(change, bytes):
            file.write_bytes(change)
        else:
            config = json.loads(file.read_text(encoding="utf-8"))
            change(config)
            file.write_text(json.dumps(config), encoding="utf-8")
        return lambda: sample("--model", str(copy))


config_case("empty", b"")
config_case("a list", b"[1, 2]")
config_case("deep", b'{"a": ' + b"[" * 100_000)
config_case("not UTF-8", b'{"tokens": "\xff\xfe"}')
config_case("100 MB", b'{"a": "' + b"x" * 100_000_000 + b'"}')
config_case("words for numbers", lambda config: config.update(tokens="many"))
config_case("no number", lambda config: config.update(tokens=float("nan")))
config_case("a model of 10^9", lambda config: config["model"].update(hidden_size=10**9))
config_case("10^9 blocks", lambda config: config["model"].update(n_blocks=10**9))
config_case("10^12 tokens", lambda config: config.update(tokens=10**12))
config_case("fewer than no blocks", lambda config: config["model"].update(n_blocks=-1))
config_case("no heads", lambda config: config["model"].update(n_heads=0))
config_case("a list for the model", lambda config: config.update(model=[1]))
config_case("length 10^12", lambda config: config["model"].update(length=10**12))
config_case("an unknown family", lambda config: config.update(model_type="../../x"))
config_case(
    "code of its own",
    lambda config: config.update(auto_map={"AutoModel": "x.Y"}, trust_remote_code=True),
    True,
    "causal",
)
config_case("10^9 layers", lambda config: config.update(num_hidden_layers=10**9), model="causal")
config_case("words for numbers", lambda config: config.update(hidden_size="wide"), model="causal")
config_case("a box of 10^9", lambda config: config.update(puzzle={"box": [10**9, 10**9]}), model="board")


def index_case(name: str, index: Any) -> None:
    """Make a model in shards, by an index that names `index`."""

    @hostile(f"index: {name}")
    def make(bench: Bench, folder: Path) -> Callable[[], Any]:
        model = shutil.copytree(bench.text, folder / "model")
        shutil.copy(model / "model.safetensors", folder / "outside.safetensors")
        (model / "model.safetensors").unlink()
        (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        return lambda: sample("--model", str(model))


index_case("a file outside", {"weight_map": {"a": "../outside.safetensors"}})
index_case("an absolute path", {"weight_map": {"a": "/etc/passwd"}})
index_case("numbers", {"weight_map": {"a": 1}})
index_case("a list", [1])
index_case("no map", {})
index_case("itself", {"weight_map": {"a": "model.safetensors.index.json"}})


def tokenizer_case(name: str, content: bytes) -> None:
    @hostile(f"tokenizer.json: {name}", may_pass=True)  # a model may come without a tokenizer
    def make(bench: Bench, folder: Path) -> Callable[[], Any]:
        model = shutil.copytree(bench.text, folder / "model")
        (model / "tokenizer.json").write_bytes(content)
        return lambda: sample("--model", str(model))


tokenizer_case("half", b'{"version": "1.0", "model": {')
tokenizer_case("deep", b"[" * 100_000)
tokenizer_case("of nothing", b"{}")


# -------------------------------------------------------------------------------------------------------------------- runs


def run_case(name: str, change: Callable[[Path], Any], may_pass: bool = False) -> None:
    """Make a run with a changed part, to be resumed."""

    @hostile(f"run: {name}", may_pass)
    def make(bench: Bench, folder: Path) -> Case:
        run = shutil.copytree(bench.run, folder / "run")
        (folder / "precious").write_text("mine\n", encoding="utf-8")
        change(run)

        def resume() -> None:
            train(f"resume={run}", "training.n_iters=2")
            assert (folder / "precious").read_text(encoding="utf-8") == "mine\n"

        return Case(resume, may_pass, [folder / "stolen"])


def text_in(file: str, text: str) -> Callable[[Path], Any]:
    return lambda run: (run / file).write_text(text, encoding="utf-8")


def line_in(run: Path, key: str, value: str) -> None:
    """Set a key of the top level."""
    file = run / ".hydra" / "config.yaml"
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith(f"{key}:")]
    file.write_text("\n".join([*lines, f"{key}: {value}"]) + "\n", encoding="utf-8")


def aliases() -> str:
    return "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in pairwise("abcdefgh")
    )


def checkpoint(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    def changed(run: Path) -> None:
        file = run / "checkpoints-meta" / "checkpoint.pth"
        state = torch.load(file, weights_only=True)
        change(state)
        torch.save(state, file)

    return changed


def checkpoint_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    def changed(run: Path) -> None:
        file = run / "checkpoints-meta" / "checkpoint.pth"
        file.write_bytes(change(file.read_bytes()))

    return changed


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def deflated_bomb(run: Path) -> None:
    """Return a checkpoint of 10 MB whose only entry is 4 GB of zeros."""
    file = run / "checkpoints-meta" / "checkpoint.pth"
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data.pkl", "w", force_zip64=True) as entry,
    ):
        for _ in range(64):
            entry.write(bytes(1 << 26))


def evil_checkpoint(run: Path) -> None:
    torch.save({"model": Evil(f"touch {run.parent}/stolen")}, run / "checkpoints-meta" / "checkpoint.pth")


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


CONFIG = ".hydra/config.yaml"
run_case("a bomb of aliases", text_in(CONFIG, aliases()))
run_case("deep YAML", text_in(CONFIG, "[" * 10_000))
run_case("a tag of Python", text_in(CONFIG, "a: !!python/object/apply:os.system ['touch stolen']"))
run_case("an empty configuration", text_in(CONFIG, ""))
run_case("a configuration of 50 MB", text_in(CONFIG, "a: " + "x" * 50_000_000))
run_case(
    "a secret in a place", lambda run: line_in(run, "run_dir", f"'file://{run.parent}/stolen/${{oc.env:HOME}}'"), True
)
run_case("a secret in a value", lambda run: line_in(run, "init", "'${oc.env:HOME}'"))
run_case("a cycle of references", lambda run: (line_in(run, "init", "'${loss}'"), line_in(run, "loss", "'${init}'")))
run_case("a storage", lambda run: line_in(run, "init", "'s3://bucket/model'"))
run_case("a word for a group", lambda run: line_in(run, "training", "fast"))
run_case("a list for a group", lambda run: line_in(run, "optim", "[1, 2]"))
run_case("words for numbers", lambda run: line_in(run, "seed", "many"))
run_case(
    "overrides that search elsewhere",
    text_in(".hydra/overrides.yaml", "['hydra.searchpath=[file:///tmp]', '+x=${oc.env:HOME}']"),
    True,
)
run_case("overrides that are no list", text_in(".hydra/overrides.yaml", "{a: 1}"), True)
run_case("half a checkpoint", checkpoint_bytes(lambda content: content[: len(content) // 2]))
run_case("a flipped byte", checkpoint_bytes(flipped), True)
run_case("a pickle that runs a command", evil_checkpoint)
run_case("a checkpoint that unpacks to 4 GB", deflated_bomb)
run_case("a checkpoint of a list", lambda run: torch.save([1], run / "checkpoints-meta" / "checkpoint.pth"))
run_case("step -5", checkpoint(lambda state: state.update(step=-5)))
run_case("step 'last'", checkpoint(lambda state: state.update(step="last")))
run_case("no state of the optimiser", checkpoint(lambda state: state.update(optimizer={})))
run_case("tensors for names", checkpoint(lambda state: state.update(model=torch.zeros(3))))
run_case(
    "metrics that lead elsewhere",
    lambda run: ((run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").symlink_to(run.parent / "precious")),
)
run_case("logs that lead elsewhere", lambda run: (shutil.rmtree(run / "logs"), (run / "logs").symlink_to(run.parent)))
run_case("metrics that are no lines of JSON", text_in("metrics.jsonl", "step 1\n[1]\n"))
run_case("a lock of another host", text_in("lock", '{"host": "elsewhere", "process": 1}'))


# -------------------------------------------------------------------------------------------------------------------- data


def data_case(name: str, file: str, write: Callable[[Path], Any], may_pass: bool = False) -> None:
    """Make a training file."""

    @hostile(f"data: {name}", may_pass)
    def make(bench: Bench, folder: Path) -> Callable[[], Any]:
        write(folder / file)
        data = [f"data.train={folder / file}", f"data.valid={folder / file}"]
        return lambda: train(f"run_dir={folder / 'run'}", "experiment=stories", "training.n_iters=1", "model.n_blocks=1",
                             "model.hidden_size=16", "model.n_heads=2", "model.length=32", "eval.samples=1", *data)  # fmt: skip


def gzipped(path: Path, parts: Iterator[bytes]) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in parts:
            file.write(part)


data_case("a line of 800 MB", "x.jsonl.gz", lambda path: gzipped(path, (b" " * (1 << 23) for _ in range(100))))
data_case("empty lines without end", "x.jsonl.gz", lambda path: gzipped(path, (b"\n" * (1 << 23) for _ in range(100))))
data_case("half a gz", "x.jsonl.gz", lambda path: path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:60]))
data_case("a gz that is none", "x.jsonl.gz", lambda path: path.write_bytes(b"plain"))
data_case("deep JSON", "x.jsonl", lambda path: path.write_bytes(b"[" * 100_000 + b"\n"))
data_case("numbers for texts", "x.jsonl", lambda path: path.write_text('{"text": 1}\n', encoding="utf-8"))
data_case("lists", "x.jsonl", lambda path: path.write_text("[1]\n", encoding="utf-8"))
data_case("bytes", "x.txt", lambda path: path.write_bytes(bytes(range(256)) * 100))
data_case("nothing", "x.txt", Path.touch)
data_case("a directory", "x.txt", Path.mkdir)
data_case("a pipe", "x.jsonl", os.mkfifo)


# ------------------------------------------------------------------------------------------------- policies and evaluations


@hostile("policy: a pickle that runs a command")
def _(bench: Bench, folder: Path) -> Case:
    torch.save({"policy_model": Evil(f"touch {folder}/stolen")}, folder / "policy.pth")
    return Case(lambda: sample("--model", str(bench.board), "--strategy", "policy", "--policy", str(folder / "policy.pth")),
                forbidden=[folder / "stolen"])  # fmt: skip


@hostile("policy: words for sizes")
def _(bench: Bench, folder: Path) -> Callable[[], Any]:
    policy = shutil.copytree(ROOT / "example" / "sudoku6_budget", folder / "policy")
    config = json.loads((policy / "config.json").read_text(encoding="utf-8"))
    (policy / "config.json").write_text(
        json.dumps(dict.fromkeys(config, "wide") | {"policy_type": config["policy_type"]}), encoding="utf-8"
    )
    return lambda: sample("--model", "example/sudoku6", "--strategy", "policy", "--policy", str(policy))


@hostile("policy: a configuration that is a list")
def _(bench: Bench, folder: Path) -> Callable[[], Any]:
    policy = shutil.copytree(ROOT / "example" / "sudoku6_budget", folder / "policy")
    (policy / "config.json").write_text("[1]", encoding="utf-8")
    return lambda: sample("--model", "example/sudoku6", "--strategy", "policy", "--policy", str(policy))


@hostile("twist: a configuration that is a list")
def _(bench: Bench, folder: Path) -> Callable[[], Any]:
    twist = shutil.copytree(ROOT / "example" / "twist_infilling", folder / "twist")
    for file in twist.rglob("config.json"):
        file.write_text("[1]", encoding="utf-8")
    return lambda: sample("--strategy", "twisted_smc", "--twist", str(twist))


@hostile("twist: words for settings")
def _(bench: Bench, folder: Path) -> Callable[[], Any]:
    twist = shutil.copytree(ROOT / "example" / "twist_infilling", folder / "twist")
    for file in twist.rglob("config.json"):
        file.write_text(
            json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"twist": "x", "target": [], "length": "y"}),
            encoding="utf-8",
        )
    return lambda: sample("--strategy", "twisted_smc", "--twist", str(twist))


@hostile("reward: a head of words")
def _(bench: Bench, folder: Path) -> Callable[[], Any]:
    (folder / "vocabulary_head.json").write_text('{"hidden_size": "x"}', encoding="utf-8")
    return lambda: sample("--model", str(bench.causal), "--strategy", "value_head", "--reward", str(folder))


def answers_case(name: str, file: str, content: bytes) -> None:
    @hostile(f"evaluation: {name}")
    def make(bench: Bench, folder: Path) -> Callable[[], Any]:
        argv = ["--strategy", "threshold", "--settings", "0.9", "--out", str(folder / "out")]

        def work() -> None:
            evaluate(*argv)
            for found in (folder / "out").rglob(file):
                found.write_bytes(content)
            evaluate(*argv)

        return work


answers_case("settings that are a list", "settings.json", b"[1]")
answers_case("half of settings", "settings.json", b'{"dataset": ')
answers_case("records without rows", "generations.jsonl", b"[1]\n{}\n")
answers_case("records that are not UTF-8", "generations.jsonl", b"\xff\xfe\n")


@hostile("evaluation: a run whose configuration asks for a secret")
def _(bench: Bench, folder: Path) -> Callable[[], Any]:
    (folder / "run" / ".hydra").mkdir(parents=True)
    (folder / "run" / ".hydra" / "config.yaml").write_text(
        "dlm: {path: 'http://localhost:9/${oc.env:HOME}'}\nmodel: {dtype: float32}\n", encoding="utf-8"
    )
    return lambda: evaluate(str(folder / "run"), "--out", str(folder / "out"))


@hostile("evaluation: a configuration of 10^9 aliases")
def _(bench: Bench, folder: Path) -> Callable[[], Any]:
    (folder / "settings.yaml").write_text(aliases(), encoding="utf-8")
    return lambda: evaluate(
        "--strategy", "threshold", "--config", str(folder / "settings.yaml"), "--out", str(folder / "out")
    )


@hostile("names: a run_dir of 5000 characters")
def _(bench: Bench, folder: Path) -> Callable[[], Any]:
    return lambda: train(f"run_dir={folder}/{'x' * 5000}", "experiment=sudoku6")


@hostile("names: a run_dir below a file")
def _(bench: Bench, folder: Path) -> Callable[[], Any]:
    (folder / "file").touch()
    return lambda: train(f"run_dir={folder}/file/run", "experiment=sudoku6")


@hostile("names: a data set of ..")
def _(bench: Bench, folder: Path) -> Callable[[], Any]:
    words = ["device=cpu", "wandb.mode=disabled", "data.train=../../../etc", f"run_dir={folder}/run"]
    return lambda: train_policy.run(composed("train_policy", words), words)
