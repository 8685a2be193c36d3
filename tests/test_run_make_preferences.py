"""make-preferences: pairs whose truth is known, of different prompts, the same every time."""

import json
from collections import Counter
from pathlib import Path

import pytest

from data.preferences import load_preferences
from unmask.commands import make_preferences as make_preferences_command
from unmask.runs import make_preferences as make_preferences_run
from unmask.runs.make_preferences import SPLITS, Continuation, ranked

FEW = ["--count", "10", "--samples", "4", "--length", "16", "--words", "4"]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("model", ["example/stories_causal", "example/stories"])
def test_pairs_are_ranked_by_what_is_preferred_and_files_share_no_prompt(model, tmp_path):
    more = [*FEW, "--model", model, "--steps", "4", "--prefer", "brevity", "--device", "cpu"]
    counts = make_preferences_run.run(
        make_preferences_command.parser().parse_args([*more, "--out", str(tmp_path / "one")])
    )
    pairs = {name: lines(tmp_path / "one" / f"{name}.jsonl") for name in SPLITS}
    assert {name: len(found) for name, found in pairs.items()} == {name: counts[name] for name in SPLITS}
    assert sum(counts.values()) == 20  # 10 prompts, 2 pairs each, those that were dropped among them
    for pair in (pair for found in pairs.values() for pair in found):
        words = {side: len(pair[side].split()) for side in ("chosen", "rejected")}
        assert words["chosen"] < words["rejected"] and pair["chosen_score"] == -words["chosen"]
        assert len(pair["prompt"].split()) == 4
    prompts = [{pair["prompt"] for pair in found} for found in pairs.values()]
    assert prompts[0] and not prompts[0] & (prompts[1] | prompts[2]) and not prompts[1] & prompts[2]
    assert load_preferences(str(tmp_path / "one" / "train.jsonl"), "train")[0][0].chosen == pairs["train"][0]["chosen"]
    make_preferences_command.main([*more, "--batch", "7", "--out", str(tmp_path / "again")])
    assert all(lines(tmp_path / "again" / f"{name}.jsonl") == found for name, found in pairs.items())


def test_equal_texts_and_equal_scores_are_dropped_and_counted():
    dropped: Counter[str] = Counter()
    found = [
        Continuation(" a", True, 3.0),
        Continuation(" b", False, 1.0),
        Continuation(" c", True, 2.0),
        Continuation(" d", True, 2.0),
    ]
    pairs = ranked("p", found, dropped)
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [(" a", " b")] and dropped == {"tied": 1}
    assert pairs[0]["chosen_ends"] and not pairs[0]["rejected_ends"]
    assert (
        not ranked("p", [Continuation(" a", True, 1.0), Continuation(" a ", True, 1.0)], dropped)
        and dropped["identical"] == 1
    )


@pytest.mark.parametrize(
    "more, message",
    [
        (["--prefer", "vaader"], r"the reward .vaader. is no directory and no hub id; did you mean vader"),
        (["--count", "100000"], "different beginnings of 4 words and --count is 100000; lower it"),
        (["--model", "example/sudoku6"], "--model example/sudoku6 writes no texts that end"),
    ],
)
def test_bad_input_is_refused(more, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_preferences_command.main([*FEW, "--out", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()
