"""The benchmark of chain arithmetic: a plan is climbed to as far as one change helps, and the command writes what it prints."""

import json

import pytest
import torch

from benchmarks import chain
from load_model import load_model
from training.hub import ROOT


@torch.no_grad()
def test_no_change_of_one_position_betters_the_plan():
    model, _ = load_model(ROOT / "example" / "chain")
    problems = chain.problems(24, 1)
    record, setting = chain.climbed(model, problems, 0)
    first = setting.rule.first
    assert record["nfe"] == 2 and setting.setting == " ".join(str(int(p)) for p in first.nonzero())

    def right(plan):
        return chain.measure(model, chain.Setting("plan", "", chain.Planned(plan), 2), [problems])["right"]

    assert record["right"] == right(first) >= right(torch.arange(chain.LENGTH) < 8)
    for place in range(chain.LENGTH):
        changed = first.clone()
        changed[place] ^= True
        assert right(changed) <= record["right"]


def test_the_command_with_few_rules_and_problems(tmp_path, monkeypatch, capsys):
    words = "--problems 6 --tuning 6 --seeds 1 --rules leftmost --plans 1 --policies example/chain_budget"
    monkeypatch.setattr("sys.argv", ["chain", *words.split(), "--out", str(tmp_path)])
    chain.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = json.loads((tmp_path / "chain.json").read_text())
    assert written["result"] == result and {"heuristic_4", "policy_4", "gate_step"} <= result.keys()
    assert {record["method"] for record in written["records"]} == {"leftmost", "chain_budget"}
    assert [plan["nfe"] for plan in written["plans"]] == [2]
    assert all(record["tpf_low"] <= record["tpf"] <= record["tpf_high"] for record in written["records"])
    series = {row["series"]: row for row in written["aup"]}
    assert series.keys() == {"leftmost, block 24", "chain_budget, block 24, example/chain_budget"}
    assert all(row["aup"] is None or row["aup_low"] <= row["aup"] <= row["aup_high"] for row in series.values())
    assert (tmp_path / "chain_tpf.png").is_file()
    assert (tmp_path / "chain.png").is_file() and (tmp_path / "chain.csv").is_file()
    monkeypatch.setattr("sys.argv", ["chain", "--rules", "treshold"])
    with pytest.raises(SystemExit):
        chain.main()
