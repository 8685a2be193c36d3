"""Two evaluations against each other: McNemar's test, the paired bootstrap, and the command on real directories."""

import json
from itertools import product
from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest

from evaluation.compare import compare, disagreements, evaluations_in, mcnemar, report
from evaluation.intervals import paired_difference


def records(right, nfe=None, question="q"):
    """Of one seed."""
    return [{"row": row, "question": f"{question}{row}", "right": bool(hit), "nfe": n}
            for row, (hit, n) in enumerate(zip(right, nfe or [8] * len(right), strict=True))]  # fmt: skip


def test_mcnemar_against_scipy_and_by_hand():
    for only_first, only_second in product(range(9), repeat=2):
        if only_first + only_second:
            expected = binomtest(only_first, only_first + only_second).pvalue
            assert mcnemar(only_first, only_second) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(0, 0) == 1 and mcnemar(5, 5) == 1
    assert mcnemar(1, 6) == 2 * (comb(7, 0) + comb(7, 1)) / 2**7
    assert 0 < mcnemar(300, 900) < 1e-60  # more tosses than a double has exponents for


def test_the_bootstrap_against_all_resamples():
    ours, theirs = np.array([1, 0, 1, 1, 0.5]), np.array([0, 0, 1, 0, 1])
    every = np.array([(ours - theirs)[list(rows)].mean() for rows in product(range(5), repeat=5)])
    found = paired_difference(ours, theirs, resamples=20_000)
    assert found.value == pytest.approx((ours - theirs).mean())
    for bound, share in ((found.low, 0.025), (found.high, 0.975)):
        assert (every < bound - 1e-9).mean() <= share + 0.01 and (every <= bound + 1e-9).mean() >= share - 0.01


def test_one_seed_is_mcnemar_and_seeds_are_averaged():
    first, second = records([1, 1, 1, 0, 1, 1], [4, 4, 4, 4, 4, 6]), records([0, 1, 0, 1, 0, 0])
    found = compare([first], [second])
    assert (found["only_a_right"], found["only_b_right"]) == (4, 1)
    assert found["mcnemar_p"] == pytest.approx(binomtest(4, 5).pvalue)
    assert found["accuracy_difference"] == pytest.approx(5 / 6 - 2 / 6)
    assert found["evaluations_difference"] == pytest.approx(26 / 6 - 8)
    assert found["evaluations_difference_high"] < 0
    again = records([1, 0, 1, 0, 1, 1])
    two = compare([first, again], [second])
    assert two["accuracy_a"] == pytest.approx((5 + 4) / 12) and two["seeds_a"] == 2
    assert (two["mcnemar_seeds"], two["only_a_right"], two["only_b_right"]) == (1, 4, 1)  # as many seeds as both have
    both = compare([first, again], [second, records([0, 1, 1, 0, 1, 0])])
    assert (both["mcnemar_seeds"], both["only_a_right"], both["only_b_right"]) == (2, 4, 2)
    assert both["mcnemar_p"] == pytest.approx(binomtest(4, 6).pvalue)


def test_tokens_per_forward_are_compared_question_by_question():
    first, second = records([1, 1, 0], [2, 4, 2]), records([1, 0, 0], [4, 8, 4])
    assert "tpf_a" not in compare([first], [second])  # records of before tokens were counted
    counted = [[record | {"tokens": 8} for record in one] for one in (first, second)]
    found = compare([counted[0]], [counted[1]])
    assert (found["tpf_a"], found["tpf_b"], found["tpf_difference"]) == (3, 1.5, 1.5)
    assert 0 < found["tpf_difference_low"] <= 1.5 <= found["tpf_difference_high"]
    assert found["tpf_a_low"] == 2 and found["tpf_a_high"] == 4


def test_more_seeds_of_the_same_thing_are_no_difference():
    draw, repeated = np.random.default_rng(0), 400
    low = 0
    for _ in range(repeated):
        seeds = [records(draw.random(60) < 0.8) for _ in range(4)]
        _, better, worse = disagreements(seeds[:3], seeds[3:])
        low += mcnemar(better, worse) < 0.05
    assert low <= 0.05 * repeated + 4.5 * (0.05 * 0.95 * repeated) ** 0.5


def test_other_questions_are_refused():
    with pytest.raises(ValueError, match="the questions differ"):
        compare([records([1, 0])], [records([1, 0], question="other")])
    with pytest.raises(ValueError, match=r"the questions differ \(2 and 3\)"):
        compare([records([1, 0])], [records([1, 0, 1])])
    with pytest.raises(ValueError, match="seeds of an evaluation saw different questions"):
        compare([records([1, 0]), records([1])], [records([1, 0])])


def write(base, name, right, seed=1, dataset="chain"):
    directory = base / f"{name}_{dataset}_seed{seed}"
    directory.mkdir(parents=True)
    (directory / "settings.json").write_text(json.dumps({"name": name, "dataset": dataset, "seed": seed}))
    (directory / "generations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(right)))


def test_the_command_reads_what_an_evaluation_wrote(tmp_path, capsys):
    write(tmp_path / "a", "policy", [1, 1, 0, 1], 1)
    write(tmp_path / "a", "policy", [1, 1, 1, 1], 2)
    write(tmp_path / "b", "threshold-0.9", [0, 1, 0, 0])
    write(tmp_path / "b", "threshold-0.5", [0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"several rules; give one of .*threshold-0.5, .*threshold-0.9"):
        evaluations_in(tmp_path / "b")
    (found,) = report(tmp_path / "a", tmp_path / "b" / "threshold-0.9")
    assert found["seeds_a"] == 2 and found["only_a_right"] == 2 and found["mcnemar_p"] == 0.5
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["comparisons"] == [found]
    alone = evaluations_in(tmp_path / "b" / "threshold-0.9_chain_seed1")
    assert list(alone) == ["chain"] and len(alone["chain"]) == 1
    with pytest.raises(ValueError, match="no evaluation of unmask evaluate"):
        evaluations_in(tmp_path / "nowhere")
    write(tmp_path / "c", "random", [1], dataset="gsm8k")
    with pytest.raises(ValueError, match="no data set is in both: chain and gsm8k"):
        report(tmp_path / "a", tmp_path / "c")
