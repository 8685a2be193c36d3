"""The work of `make-stories`: sample stories from a causal model, drop repetitive ones, and hold out a part."""

import argparse
import gzip
import hashlib
import json
import re
from pathlib import Path
from random import Random

import torch

from data.text import json_lines
from evaluation.text import Judge, load_judge
from training.devices import device_of
from training.files import append, check_place, make_directory, replacing

VALID_SHARE = 0.08
OVERLAP = 0.5  # a held-out story that shares more of its eight-word runs with the training stories is a near duplicate


def runs(text: str, words: int) -> list[tuple[str, ...]]:
    """Return every run of `words` consecutive words, in lower case."""
    split = text.lower().split()
    return list(zip(*(split[start:] for start in range(words)), strict=False))


def split_stories(texts: list[str]) -> tuple[list[str], list[str]]:
    """Split stories into training and held-out stories. The side of a story depends on its text only, so additional stories
    move none."""
    texts = list(dict.fromkeys(texts))
    held_out = {text for text in texts if int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) < VALID_SHARE * 2**32}
    train = [text for text in texts if text not in held_out]
    seen = {run for text in train for run in runs(text, 8)}
    shared = {text: sum(run in seen for run in runs(text, 8)) / max(1, len(runs(text, 8))) for text in held_out}
    return train, [text for text in texts if text in held_out and shared[text] <= OVERLAP]


def to_lines(stories: list[dict]) -> bytes:
    """Return one line of JSON per story, as a gzip member without a time stamp, so that equal stories give equal bytes."""
    lines = "".join(json.dumps(story, ensure_ascii=False) + "\n" for story in stories)
    return gzip.compress(lines.encode(), mtime=0)


def read_stories(path: Path) -> list[dict]:
    """Return the records of a file of stories. ValueError for another kind of file."""
    if not path.is_file():
        raise ValueError(f"{path} is no file; give a .jsonl.gz file of stories")
    stories = list(json_lines(path))
    if wrong := [
        place for place, story in stories if not isinstance(story, dict) or not isinstance(story.get("text"), str)
    ]:
        raise ValueError(f'{wrong[0]} has no text "text"; give a file that this command wrote')
    return [story for _, story in stories]


SUBJECTS = """a baby bear|a baker|a boy named Max|a boy named Tom|a brave rabbit|a cat named Mia|a duck|a fisherman|a fox|a frog|
a girl named Sara and her brother Ben|a grandmother|a kind teacher|a little boat captain|a little girl named Lily|a new student|
a puppy named Spot|a robot|a sleepy turtle|a small dog|a squirrel|a tiny mouse|a young bird|an old farmer|two friends"""
THINGS = """bakes a cake|builds a house from blocks|climbs a tree|draws a picture|feeds the birds|finds a key|finds a red ball|
fixes a broken bike|gets caught in the rain|gets lost in the park|goes on a picnic|has a birthday party|hears a strange noise|
helps a friend|is afraid of the dark|learns to share|learns to swim|looks for treasure|loses a favorite toy|
makes a mistake and says sorry|meets someone new|plants a seed|saves some coins|sees the ocean for the first time|sings a song|
tells the truth|visits the zoo|wants to fly"""
PLACES = """at home|at night|at school|by the sea|in a big city|in a small village|in the forest|in the garden|in the kitchen|
in the summer|near a river|on a farm|on a hill|on a snowy day"""
PROMPT = "Write a very short story for a young child about {subject} who {thing} {place}. Use simple words."


def random_prompt(random: Random) -> str:
    """Return a prompt for one story, drawn by `random`."""
    subject, thing, place = (random.choice(words.split("|")).strip() for words in (SUBJECTS, THINGS, PLACES))
    return PROMPT.format(subject=subject, thing=thing, place=place)


def tidy(text: str) -> str:
    """Return the text up to its last full sentence, including a closing quotation mark; "" without a full sentence."""
    ends = [match.end() for match in re.finditer(r'[.!?]["”]?(?=\s|$)', text)]
    return text[: ends[-1]].strip() if ends else ""


def repetitive(text: str) -> bool:
    """Return whether a text repeats more than 30 % of its runs of four words, or has fewer than forty words."""
    fours = runs(text, 4)
    return len(fours) < 37 or len(set(fours)) < 0.7 * len(fours)


def sample_stories(judge: Judge, prompts: list[str], tokens: int) -> list[str]:
    """Return one continuation per prompt at temperature 0.6 and top-p 0.9. Chat models get the prompt in their own template."""
    tokenizer = judge.tokenizer
    if tokenizer.chat_template is not None:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)  # pyright: ignore
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(judge.model.device)
    written = judge.model.generate(
        **encoded,
        max_new_tokens=tokens,
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(written[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)


def make_stories(model: str, out: Path, count: int, batch: int, seed: int, device: str, tokens: int) -> None:
    """Append stories to `out` until it holds `count`."""
    if out.suffix != ".gz":
        raise ValueError(f"--out {out} must end in .jsonl.gz; change it")
    check_place(out.parent, f"--out {out}")
    done = len(read_stories(out)) if out.exists() else 0
    make_directory(out.parent, f"--out {out}")
    judge = load_judge(model, device)
    while done < count:
        # Seeded by what is done, so a run that was stopped draws new stories, not the first ones again.
        random = Random(f"{seed}-{done}")
        torch.manual_seed(random.getrandbits(63))
        prompts = [random_prompt(random) for _ in range(batch)]
        stories = zip(prompts, map(tidy, sample_stories(judge, prompts, tokens)), strict=True)
        kept = [{"prompt": prompt, "text": text} for prompt, text in stories if not repetitive(text)][: count - done]
        if not kept:
            seed += 1  # all were dropped: the same seed would draw the same ones for ever
        append(out, to_lines(kept))  # a whole gzip member: a run that is killed leaves a file that reads
        done += len(kept)
        print(f"{done} of {count} stories", flush=True)


def run(options: argparse.Namespace) -> None:
    """Write stories, or split a file of stories."""
    if options.split is None:
        device = str(device_of(options.device))
        make_stories(options.model, options.out, options.count, options.batch, options.seed, device, options.tokens)
        return
    check_place(options.out, f"--out {options.out}")
    train, valid = split_stories([story["text"].strip() for story in read_stories(options.split)])
    make_directory(options.out, f"--out {options.out}")
    for name, texts in (("train", train), ("valid", valid)):
        with replacing(options.out / f"{name}.jsonl.gz") as part:
            part.write_bytes(to_lines([{"text": text} for text in texts]))
    print(f"{len(train)} training and {len(valid)} held-out stories in {options.out}")
