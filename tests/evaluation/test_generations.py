"""The files of an evaluation: written as samples finish, gone on with after a kill, by one process or several, and what is refused."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import samplers.loop
from evaluation.generations import merge, read_records
from unmask.commands.evaluate import main
from unmask.runs import evaluate as evaluate_run

ROOT = Path(__file__).parents[2]
TINY = ["--n_test", "6", "--batch_size", "4", "--length", "24"]


def read(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


def strip(file):
    """The records of a file without their times."""
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "cpu_seconds")}
        for line in file.read_text().splitlines()
    ]


def test_an_evaluation_that_was_cut_goes_on(tmp_path, monkeypatch):
    argv = ["--strategy", "confidence", *TINY, "--out"]
    main([*argv, str(tmp_path / "whole")])
    main([*argv, str(tmp_path / "cut")])
    file = tmp_path / "cut" / "confidence_chain_seed42" / "generations.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:4]) + "\n" + lines[4][:50])  # killed within a line
    asked = []
    sample = samplers.loop.sample

    def watched(*arguments):
        if arguments[-1] is not None:  # not where the cost of a few is counted
            asked.append(len(arguments[2].canvas))
        return sample(*arguments)

    monkeypatch.setattr(samplers.loop, "sample", watched)
    main([*argv, str(tmp_path / "cut")])
    assert asked == [2]
    assert strip(file) == strip(tmp_path / "whole" / "confidence_chain_seed42" / "generations.jsonl")


def test_the_same_evaluation_twice_is_no_second_one(tmp_path):
    argv = ["--strategy", "threshold", "--settings", "0.5,0.50", "--seeds", "42,42", "--datasets", "chain,chain"]
    assert main([*argv, *TINY, "--out", str(tmp_path)]) == 0
    (row,) = read(tmp_path / "summary_statistics.csv")
    assert (row["num_seeds"], row["exact"], row["drift"]) == ("1", "True", "")


def test_a_sample_is_written_as_soon_as_it_is_finished(tmp_path, monkeypatch):
    """One batch: what is finished is there while the others are still being written."""
    written = []
    file = tmp_path / "threshold-0.5_chain_seed42" / "generations.jsonl"

    class Watched(evaluate_run.Writer):
        def __call__(self, observation, places):
            super().__call__(observation, places)
            written.append(len(file.read_text().splitlines()) if file.exists() else 0)

    monkeypatch.setattr(evaluate_run, "Writer", Watched)
    argv = ["--strategy", "threshold", "--settings", "0.5", "--n_test", "8", "--batch_size", "8", "--block_length", "4"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    assert len(written) == max(r["nfe"] for r in read_records(file.parent)) and written[-1] == 8
    assert any(0 < count < 8 for count in written)
    for record in read_records(file.parent):
        assert record["row"] in range(8) and 0 < record["seconds"] < 60 and 0 < record["cpu_seconds"] < 60


def nudged(directory):
    """example/chain after one more step of training, so to speak."""
    shutil.copytree(ROOT / "example" / "chain", directory)
    weights = load_file(directory / "model.safetensors")
    save_file({name: 1.01 * tensor for name, tensor in weights.items()}, directory / "model.safetensors")
    return directory


def test_a_kill_ends_an_evaluation_at_once(tmp_path, monkeypatch):
    """Its lines are there, and nothing else is to be saved."""
    heard = []

    def answering(*arguments):
        heard.append(signal.getsignal(signal.SIGTERM))
        raise ValueError("enough")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(evaluate_run, "evaluate", answering)
    assert main(["--strategy", "confidence", *TINY, "--out", str(tmp_path)]) == 1
    assert heard == [before]


def test_another_evaluation_in_the_same_directory_is_refused(tmp_path, capsys):
    argv = ["--strategy", "confidence", *TINY, "--n_test", "2", "--out", str(tmp_path)]
    assert main(argv) == 0
    before = strip(tmp_path / "confidence_chain_seed42" / "generations.jsonl")
    assert main([*argv, "--block_length", "4"]) == 1
    assert "holds an evaluation with block_length=None (now 4); give another --out" in capsys.readouterr().err
    assert strip(tmp_path / "confidence_chain_seed42" / "generations.jsonl") == before
    assert main([*argv, "--batch_size", "1"]) == 0  # changes nothing
    assert main([*argv, "--model", str(nudged(tmp_path / "model"))]) == 1
    assert re.search(r"model_weights=\w{16} \(now \w{16}\)", capsys.readouterr().err)  # and the other's directory
    (tmp_path / "confidence_chain_seed42" / "settings.json").unlink()
    assert main(argv) == 1
    assert "holds generations without settings.json" in capsys.readouterr().err


def names_of(directory) -> list[tuple[str, str, str]]:
    return [(row["name"], row["dataset"], row["seed"]) for row in read(directory / "detailed_results.csv")]


def test_a_rule_and_a_policy_of_two_commands_stand_in_one_table(tmp_path, monkeypatch):
    plotted = []
    monkeypatch.setattr(
        evaluate_run, "plot_pareto", lambda points, *_, **__: plotted.append([p["name"] for p in points])
    )
    common = ["--length", "24", "--n_test", "2", "--out", str(tmp_path)]
    rule = ["--strategy", "random", "--steps", "2,3", *common]
    assert main([*rule, "--seeds", "1"]) == 0
    assert main(["--policy", "example/chain_policy", "--seeds", "1", *common]) == 0
    random = [("random-K2", "chain", "1"), ("random-K3", "chain", "1")]
    assert names_of(tmp_path) == [*random, ("chain_policy-T1", "chain", "1")]
    assert set(plotted[-1]) == {"random chain", "chain_policy bernoulli-argmax chain"}
    assert main([*rule, "--seeds", "2", "--steps", "2"]) == 0  # another seed of a row, beside the first
    summary = {row["name"]: row for row in read(tmp_path / "summary_statistics.csv")}
    assert [summary[name]["seeds"] for name in ("random-K2", "random-K3", "chain_policy-T1")] == ["1 2", "1", "1"]
    before = names_of(tmp_path)
    assert main([*rule, "--seeds", "1", "--steps", "3"]) == 0  # the same again replaces its row
    assert sorted(names_of(tmp_path)) == sorted(before) and len(before) == 4


def test_evaluations_that_cannot_be_compared_do_not_share_a_table(tmp_path, capsys):
    common = ["--n_test", "2", "--length", "24", "--out", str(tmp_path)]
    assert main(["--strategy", "random", "--steps", "2", *common]) == 0
    table = (tmp_path / "detailed_results.csv").read_text()
    for words, differing in (
        (["--n_test", "3"], r"questions=\w+ \(now \w+\), n_test=2 \(now 3\)"),
        (["--length", "20"], r"length=24 \(now 20\)"),
        (["--dtype", "bfloat16"], r"dtype=float32 \(now bfloat16\)"),
        (["--token_temperature", "0.5"], r"token_temperature=0.0 \(now 0.5\)"),
        (["--guidance", "1"], r"guidance=0.0 \(now 1.0\)"),
        (["--model", str(nudged(tmp_path.parent / "other"))], r"model_weights=\w{16} \(now \w{16}\)"),
    ):
        assert main(["--strategy", "leftmost", "--steps", "2", *common, *words]) == 1
        said = capsys.readouterr().err
        assert re.search(
            rf"holds random-K2_chain_seed42 with {differing}, which does not belong into one table", said
        ), said
        assert (tmp_path / "detailed_results.csv").read_text() == table and not list(tmp_path.glob("leftmost*"))


def test_damaged_lines_are_named(tmp_path):
    (tmp_path / "generations.jsonl").write_text('{"row": 0}\nrow 1\n{"row": 2}\n')
    with pytest.raises(ValueError, match=r"generations.jsonl line 2 cannot be read as JSON"):
        read_records(tmp_path)
    (tmp_path / "generations.jsonl").write_text('{"row": 1}\n{"ro')
    (tmp_path / "generations.rank0.jsonl").write_text('{"row": 2}\n')
    (tmp_path / "generations.rank1.jsonl").write_text('{"row": 0, "text": "\u2028"}\n')
    assert [record["row"] for record in merge(tmp_path)] == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["generations.jsonl"]
    assert [record["row"] for record in read_records(tmp_path)] == [0, 1, 2]


def test_two_processes_answer_what_one_does(tmp_path):
    argv = [
        "--strategy",
        "random",
        "--steps",
        "6",
        *TINY,
        "--n_test",
        "5",
        "--device",
        "cpu",
        "--token_temperature",
        "1",
    ]
    main([*argv, "--out", str(tmp_path / "one")])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
               "-m", "unmask", "evaluate", *argv, "--out", str(tmp_path / "two")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name = "random-K6_chain_seed42"
    assert strip(tmp_path / "two" / name / "generations.jsonl") == strip(tmp_path / "one" / name / "generations.jsonl")
    assert not list((tmp_path / "two" / name).glob("*rank*"))
    same = [
        {k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds")}
        for row in read(tmp_path / "two" / "detailed_results.csv")
    ]
    assert same == [
        {k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds")}
        for row in read(tmp_path / "one" / "detailed_results.csv")
    ]


def test_one_process_goes_on_where_several_stopped(tmp_path, monkeypatch):
    argv = ["--strategy", "confidence", *TINY, "--out", str(tmp_path)]
    main(argv)
    directory = tmp_path / "confidence_chain_seed42"
    whole, lines = strip(directory / "generations.jsonl"), (directory / "generations.jsonl").read_text().splitlines()
    (directory / "generations.jsonl").unlink()
    for rank in range(3):
        (directory / f"generations.rank{rank}.jsonl").write_text("\n".join(lines[rank:5:3]) + "\n")
    asked = []
    sample = samplers.loop.sample

    def watched(*arguments):
        if arguments[-1] is not None:
            asked.append(arguments[4].tolist())
        return sample(*arguments)

    monkeypatch.setattr(samplers.loop, "sample", watched)
    main(argv)
    assert asked == [[5]] and strip(directory / "generations.jsonl") == whole
