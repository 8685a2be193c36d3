"""Pairwise comparison of answers to the same prompts, by a local reward or a model behind an endpoint
(`evaluation/chat.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from evaluation.chat import Chat, Judgement, JudgeUnreachable
from evaluation.report import print_table, write_json
from evaluation.reward_task import PREFIX, load_scorer, read_generations, scores
from training.devices import device_of
from training.files import append_line, make_directory, whole_lines, write_text
from training.terminal import printable


def name_of(file: Path) -> str:
    """Return the name of a file of generations in the comparison."""
    return file.stem.removeprefix(PREFIX)


def run(
    red: Path,
    blue: Path,
    judge: str,
    endpoint: str | None,
    retries: int,
    temperature: float,
    batch_size: int,
    device: str,
    out: Path,
) -> int:
    """Judge all pairs. Returns 0, or 1 if the judge could not be reached."""
    red_rows, blue_rows = read_generations(red), read_generations(blue)
    if [row["prompt"] for row in red_rows] != [row["prompt"] for row in blue_rows]:
        raise ValueError(f"{red} and {blue} answer different prompts; give two files of one run")
    names = {"run_name_red": name_of(red), "run_name_blue": name_of(blue)}
    make_directory(out, f"--out {out}")
    title = f"{names['run_name_red']}_{names['run_name_blue']}"
    log = out / f"{title}.judgements.jsonl"
    failed = None
    if endpoint is None:
        reward = load_scorer(judge, device_of(device))
        both = [scores(reward, rows, batch_size) for rows in (red_rows, blue_rows)]
        sides = ([None if math.isnan(score) else score for score in scored] for scored in both)
        found = [Judgement(row, 2, one, other, "") for row, (one, other) in enumerate(zip(*sides, strict=True))]
    else:
        chat = Chat(endpoint, judge, temperature, retries)
        texts = hashlib.sha256(json.dumps([red_rows, blue_rows]).encode()).hexdigest()[:16]
        settings = {"judge": judge, "temperature": temperature, "answers": texts}
        found = resumed(log, settings)
        done = {(one.row, one.blue) for one in found}
        try:
            for one in judged(chat, red_rows, blue_rows, done):
                found.append(one)
                append_line(log, json.dumps(vars(one)))
        except JudgeUnreachable as error:
            failed = error
    result = names | summary(found) | {"evaluations": entries(found, red_rows, blue_rows)}
    write_json(result, out / f"{title}.json")
    print_table([{key: value for key, value in result.items() if key != "evaluations"}], title=f"by {judge}")
    if failed:
        print(
            f"error: {printable(str(failed))}; {len(found)} judgements are kept in {log}, and the same command goes on",
            file=sys.stderr,
        )
        return 1
    return 0


def judged(
    chat: Chat, red: list[dict[str, str]], blue: list[dict[str, str]], done: set[tuple[int, int]]
) -> Iterator[Judgement]:
    """Yield judgements of every pair in both orders, except those in `done`. Raises JudgeUnreachable."""
    for row, (one, other) in enumerate(zip(red, blue, strict=True)):
        for place in (2, 1):  # of blue
            if (row, place) not in done:
                answers = (one["result"], other["result"]) if place == 2 else (other["result"], one["result"])
                reply, pair = chat.judge(one["prompt"], *answers)
                red_score, blue_score = (None, None) if pair is None else pair if place == 2 else pair[::-1]
                yield Judgement(row, place, red_score, blue_score, reply)


def resumed(log: Path, settings: dict) -> list[Judgement]:
    """Return the existing judgements. ValueError if they are of other answers or of another judge."""
    head = json.dumps(settings)
    lines = whole_lines(log)
    if not lines:
        write_text(log, head + "\n")
        return []
    if lines[0] != head:
        raise ValueError(f"{log} holds judgements of other answers or by another judge; give another --out")
    return [Judgement(**json.loads(line)) for line in lines[1:]]


def summary(found: list[Judgement]) -> dict[str, int]:
    """Return the number of pairs that red won, lost and tied, and of unparsable ones. A pair counts once, by the sum over
    its orders.
    """
    pairs: dict[int, list[Judgement]] = {}
    for one in found:
        pairs.setdefault(one.row, []).append(one)
    counts: dict[str, int] = {"win": 0, "tie": 0, "lose": 0, "unparsable": 0}
    for own in pairs.values():
        margins = [one.red_score - one.blue_score for one in own
                   if one.red_score is not None and one.blue_score is not None]  # fmt: skip
        if len(margins) < len(own):
            counts["unparsable"] += 1
            continue
        margin = sum(margins)
        counts["win" if margin > 0 else "lose" if margin < 0 else "tie"] += 1
    return counts


def entries(found: list[Judgement], red: list[dict[str, str]], blue: list[dict[str, str]]) -> list[dict]:
    """Return the list in the published format. blue: place of its answer; scores are null if unparsable."""
    return [{
        "blue": one.blue, "prompt": red[one.row]["prompt"], "red_answer": red[one.row]["result"],
        "blue_answer": blue[one.row]["result"], "red_score": one.red_score, "blue_score": one.blue_score, "result": one.reply,
    } for one in sorted(found, key=lambda one: (one.row, -one.blue))]  # fmt: skip
