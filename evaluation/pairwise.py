"""Two files of answers to the same prompts against each other, by a judge: who wins how often.

    python run_evaluate.py --task pairwise --red A/generation_pargs.json --blue A/generation_args.json --judge RUN --out DIR
    OPENAI_API_KEY=... python run_evaluate.py --task pairwise --red A.json --blue B.json --endpoint URL --judge gpt-4 --out DIR

A judge is a local reward, or a model behind an OpenAI-compatible endpoint (`evaluation/chat.py`). The endpoint judges every pair
in both orders, and the sums decide: to prefer what is read first wins nothing. Pairs whose scores cannot be read in one order are
counted as `unparsable` and are no tie. Each judgement is a line of DIR/RED_BLUE.judgements.jsonl as it comes: an evaluation that
was cut off goes on. The result, DIR/RED_BLUE.json, has the published schema (with `unparsable`, and an entry an order, where the
published script draws one).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from evaluation.chat import Chat, Judgement, JudgeUnreachable
from evaluation.report import print_table, write_json
from evaluation.reward_task import PREFIX, load_scorer, read_generations, scores
from training.files import append_line, make_directory, whole_lines, write_text
from training.ranges import ROWS, Number, Whole
from training.terminal import printable
from training.usage import device_of


def parser() -> argparse.ArgumentParser:
    """Flags of --task pairwise."""
    made = argparse.ArgumentParser(
        prog="run_evaluate.py --task pairwise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--red", "--run_name_red", dest="red", type=Path, required=True, help="generation_METHOD.json")
    made.add_argument("--blue", "--run_name_blue", dest="blue", type=Path, required=True, help="its opponent")
    made.add_argument("--judge", required=True, help="a reward (run, id, vader, ...); with --endpoint a model's name")
    made.add_argument("--endpoint", help="URL of an OpenAI-compatible service, up to /v1; its key is in OPENAI_API_KEY")
    made.add_argument("--retries", type=Whole(0, 1000), default=5, help="of a request that fails")
    made.add_argument("--temperature", type=Number(0, 100), default=0.0, help="of the judge (published: 0.7)")
    made.add_argument("--batch_size", type=ROWS, default=32)
    made.add_argument("--device", default="cpu")
    made.add_argument("--out", type=Path, required=True, help="directory")
    return made


def name_of(file: Path) -> str:
    """The name under which a file of generations is compared."""
    return file.stem.removeprefix(PREFIX)


def main(argv: list[str]) -> int:
    """Judge; 0, or 1 where the judge could not be reached."""
    arguments = parser().parse_args(argv)
    device = device_of(arguments.device)
    red, blue = read_generations(arguments.red), read_generations(arguments.blue)
    if [row["prompt"] for row in red] != [row["prompt"] for row in blue]:
        raise ValueError(f"{arguments.red} and {arguments.blue} answer different prompts; give two files of one run")
    names = {"run_name_red": name_of(arguments.red), "run_name_blue": name_of(arguments.blue)}
    make_directory(arguments.out, f"--out {arguments.out}")
    title = f"{names['run_name_red']}_{names['run_name_blue']}"
    log = arguments.out / f"{title}.judgements.jsonl"
    failed = None
    if arguments.endpoint is None:
        reward = load_scorer(arguments.judge, device)
        both = [scores(reward, rows, arguments.batch_size) for rows in (red, blue)]
        sides = ([None if math.isnan(score) else score for score in scored] for scored in both)
        found = [Judgement(row, 2, one, other, "") for row, (one, other) in enumerate(zip(*sides, strict=True))]
    else:
        chat = Chat(arguments.endpoint, arguments.judge, arguments.temperature, arguments.retries)
        texts = hashlib.sha256(json.dumps([red, blue]).encode()).hexdigest()[:16]
        settings = {"judge": arguments.judge, "temperature": arguments.temperature, "answers": texts}
        found = resumed(log, settings)
        done = {(one.row, one.blue) for one in found}
        try:
            for one in judged(chat, red, blue, done):
                found.append(one)
                append_line(log, json.dumps(vars(one)))
        except JudgeUnreachable as error:
            failed = error
    result = names | summary(found) | {"evaluations": entries(found, red, blue)}
    write_json(result, arguments.out / f"{title}.json")
    print_table([{key: value for key, value in result.items() if key != "evaluations"}], title=f"by {arguments.judge}")
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
    """Every pair in both orders but those done. Raises JudgeUnreachable."""
    for row, (one, other) in enumerate(zip(red, blue, strict=True)):
        for place in (2, 1):  # of blue
            if (row, place) not in done:
                answers = (one["result"], other["result"]) if place == 2 else (other["result"], one["result"])
                told, pair = chat.judge(one["prompt"], *answers)
                red_score, blue_score = (None, None) if pair is None else pair if place == 2 else pair[::-1]
                yield Judgement(row, place, red_score, blue_score, told)


def resumed(log: Path, settings: dict) -> list[Judgement]:
    """What is judged already. ValueError for judgements of other answers, or by another judge."""
    head = json.dumps(settings)
    lines = whole_lines(log)
    if not lines:
        write_text(log, head + "\n")
        return []
    if lines[0] != head:
        raise ValueError(f"{log} holds judgements of other answers or by another judge; give another --out")
    return [Judgement(**json.loads(line)) for line in lines[1:]]


def summary(found: list[Judgement]) -> dict[str, int]:
    """Pairs that red won, lost, tied; and those that cannot be told. A pair counts once, by the sum over its orders."""
    pairs: dict[int, list[Judgement]] = {}
    for one in found:
        pairs.setdefault(one.row, []).append(one)
    counts: dict[str, int] = {"win": 0, "tie": 0, "lose": 0, "unparsable": 0}
    for own in pairs.values():
        if any(one.red_score is None or one.blue_score is None for one in own):
            counts["unparsable"] += 1
            continue
        margin = sum(one.red_score - one.blue_score for one in own)  # pyright: ignore[reportOperatorIssue]
        counts["win" if margin > 0 else "lose" if margin < 0 else "tie"] += 1
    return counts


def entries(found: list[Judgement], red: list[dict[str, str]], blue: list[dict[str, str]]) -> list[dict]:
    """The published list. blue: the place at which its answer was shown; scores are null where they cannot be read."""
    return [{
        "blue": one.blue, "prompt": red[one.row]["prompt"], "red_answer": red[one.row]["result"],
        "blue_answer": blue[one.row]["result"], "red_score": one.red_score, "blue_score": one.blue_score, "result": one.told,
    } for one in sorted(found, key=lambda one: (one.row, -one.blue))]  # fmt: skip
