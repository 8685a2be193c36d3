"""The benchmark of stories: the bound, what a table says of several seeds, and a run that goes on where it was killed."""

import json
import math

import pytest
import torch

from benchmarks import stories
from samplers.heuristics import Leftmost, Random
from tests.enumerable import dependent_joint, from_joint

RECORD = {"steps": 8, "length": 4, "temperature": 1.0, "entropy": 1.0, "entropy_se": 0.1}


def test_the_bound_of_one_position_a_step_is_the_exact_log_probability_and_of_several_less():
    """A model of a known joint law: the chain rule holds in every order, and positions written together are taken as independent."""
    joint = dependent_joint(vocabulary=3, length=3, seed=1)
    model, text = from_joint(joint), torch.tensor([[0, 2, 1], [1, 1, 0]])
    exact = torch.tensor([-math.log(float(joint[tuple(row)])) / 3 for row in text.tolist()])
    for rule in (Leftmost(), Random()):
        torch.testing.assert_close(stories.bound(model, rule, text, 3), exact.float(), atol=1e-4, rtol=0)
    assert not torch.allclose(stories.bound(model, Leftmost(), text, 1), exact.float(), atol=1e-2)


def test_a_table_weighs_seeds_by_their_samples_and_divides_by_direct_of_the_same_setting():
    records = [
        {**RECORD, "rule": "direct", "seed": 0, "samples": 4, "causal_ppl": 50.0, "causal_ppl_se": 3.0},
        {**RECORD, "rule": "dilated", "seed": 0, "samples": 3, "causal_ppl": 20.0, "causal_ppl_se": 4.0},
        {**RECORD, "rule": "dilated", "seed": 1, "samples": 1, "causal_ppl": 40.0, "causal_ppl_se": 4.0},
        {**RECORD, "rule": "dilated", "seed": 0, "samples": 1, "causal_ppl": 99.0, "causal_ppl_se": 4.0, "steps": 16},
    ]
    direct, dilated, other = stories.summary(records)
    assert direct["causal_ppl_over_direct"] == 1
    assert dilated["samples"] == 4 and dilated["causal_ppl"] == 25.0 and dilated["causal_ppl_over_direct"] == 0.5
    assert dilated["causal_ppl_se"] == pytest.approx((3**2 + 1**2) ** 0.5)
    assert "causal_ppl_over_direct" not in other  # direct was not drawn with 16 steps


def test_records_that_are_there_are_not_made_again(tmp_path, monkeypatch, capsys):
    words = "--steps 2 --lengths 8 --temperatures 0.9 --samples 2 --rules direct dilated"
    monkeypatch.setattr("sys.argv", ["stories", *words.split(), "--out", str(tmp_path)])
    stories.main()
    file = tmp_path / "stories.jsonl"
    first = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["rule"] for record in first] == ["direct", "dilated"]
    assert all(0 < record["equivalent"] <= record["nfe"] + 1e-6 for record in first)  # nothing runs beside the model
    file.write_text(json.dumps(first[0]) + "\n")
    stories.main()
    again = [json.loads(line) for line in file.read_text().splitlines()]
    assert again[0] == first[0] and again[1]["causal_ppl"] == first[1]["causal_ppl"]
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["held-out text, 0 steps, length 8, T=1.0"] < said["direct, 2 steps, length 8, T=0.9"]
