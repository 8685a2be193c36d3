"""`sample --prompts FILE` and `--html FILE`."""

import json

import pytest

import unmask
from tests.test_run_sample import models  # noqa: F401
from tests.test_run_smc import twists  # noqa: F401
from unmask.commands.sample import main

LINES = [
    {"prompt": "The dog"},
    {"template": "Once [MASK:2] a [MASK:1]."},
    {"prompt": "A cat sat on"},
    {"template": "[MASK:3]."},
]
QUICK = ["--steps", "2", "--no-eval", "--device", "cpu"]


def written(folder, lines, name="prompts.jsonl"):
    file = folder / name
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(file)


@pytest.mark.parametrize(
    "how",
    [
        ["--strategy", "confidence"],
        ["--strategy", "leftmost"],
        ["--strategy", "best_of_n", "--reward", "brevity", "sampler.guide.samples=2"],
        ["--strategy", "fk", "--reward", "brevity", "--particles", "2"],
    ],
    ids=lambda how: how[1],
)
def test_samples_come_in_the_order_of_the_file(models, tmp_path, capsys, how):  # noqa: F811
    file = written(tmp_path, LINES)
    command = ["--model", models["text"], *how, *QUICK, "--num_samples", "2", "--batch_size", "3", "--seed", "5"]
    main([*command, "--prompts", file])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["sample"] for row in rows] == list(range(8))
    assert [row["prompt"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    starts = ["The dog", "Once", "A cat sat on", ""]
    assert all(row["text"].startswith(starts[row["prompt"]]) for row in rows)
    assert all(row["nfe"] >= 1 for row in rows)
    main([*command, "--prompts", file, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "record.json")])
    kept = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in rows[0]} for row in kept] == rows and len(kept[2]["tokens"]) < len(
        kept[0]["tokens"]
    )
    assert json.loads((tmp_path / "record.json").read_text())["samples"] == 8


@pytest.mark.parametrize("name", ["causal twist", "state", "vocabulary", "dpg", "infill"])
def test_a_twist_takes_a_file_of_prompts(twists, tmp_path, capsys, name):  # noqa: F811
    """In the order of the file, with the length of the twist behind each prompt; a prompt alone is the command without a file."""
    how = ["--strategy", "twisted_smc", "--twist", twists[name], "--particles", "3", "--no-eval", "--device", "cpu"]
    how += ["--resample", "never"] if name == "dpg" else []
    how += ["--suffix", " ball"] if name == "infill" else []
    prompts = ["The cat", "The", "The cat"]
    main([*how, "--batch_size", "2", "--prompts", written(tmp_path, prompts, "three.txt")])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["sample"], row["prompt"]) for row in rows] == [(0, 0), (1, 1), (2, 2)]
    assert all(row["text"].startswith(prompt) for row, prompt in zip(rows, prompts, strict=True))
    model = unmask.load(twists["masked" if name in ("state", "vocabulary") else "causal"], device="cpu")
    smc = {"twist": twists[name], "particles": 3} | ({"resample": "never"} if name == "dpg" else {})
    suffix = " ball" if name == "infill" else None
    out = unmask.sample(model, prompts, strategy="twisted_smc", smc=smc, suffix=suffix)
    assert [row["text"] for row in rows] == out.texts and out.log_z.shape == (3,)
    assert ((out.unmasked_at >= 0).sum(1) == 4).all() and out.samples.lengths is not None
    assert [len(response) for response in out.responses] == [
        len(text) - len(prompt) for text, prompt in zip(out.texts, prompts, strict=True)
    ]
    one = written(tmp_path, [prompts[0]], "one.txt")
    main([*how, "--prompts", one, "--out", str(tmp_path / "file")])
    main([*how, "--prompt", prompts[0], "--out", str(tmp_path / "prompt")])
    by_file, by_prompt = (
        json.loads((tmp_path / folder / "samples.jsonl").read_text())["tokens"] for folder in ("file", "prompt")
    )
    assert by_file == by_prompt
    assert unmask.sample(model, strategy="twisted_smc", smc=smc, suffix=suffix).texts[0].startswith("The cat")


def test_a_policy_takes_a_file_of_prompts(models, tmp_path, capsys):  # noqa: F811
    file = written(tmp_path, ["The dog", "A cat sat on"], "prompts.txt")
    main(["--model", models["text"], "--strategy", "policy", "--policy", models["dit"], *QUICK, "--prompts", file])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = unmask.load(models["text"], device="cpu")
    policy = unmask.load_policy(models["dit"], model)
    assert [row["text"] for row in rows] == unmask.sample(
        model, ["The dog", "A cat sat on"], strategy=policy, steps=2
    ).texts


def test_the_command_and_the_function_write_the_same(models, tmp_path, capsys):  # noqa: F811
    file = written(tmp_path, ["The dog", "", "A cat sat on"], "prompts.txt")
    main(["--model", models["text"], "--strategy", "confidence", *QUICK, "--prompts", file, "--seed", "3"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = unmask.load(models["text"], device="cpu")
    out = unmask.sample(model, ["The dog", "A cat sat on"], strategy="confidence", steps=2, seed=3)
    assert [row["text"] for row in rows] == out.texts and [row["response"] for row in rows] == out.responses
    assert repr(out).startswith("<Generation of 2 samples, 2.0 NFE: 'The dog") and len(repr(out)) < 120


@pytest.mark.parametrize(
    ("name", "lines", "more", "message"),
    [
        ("none.jsonl", None, [], "none.jsonl is no file; give a .txt or .jsonl file"),
        ("a.csv", ["x"], [], "is neither .txt"),
        ("a.txt", ["", " "], [], "has no prompts; write one a line"),
        ("a.jsonl", [{"text": "x"}], [], r'line 1: expected {"prompt": "..."}'),
        ("a.jsonl", [{"prompt": "x"}, {"prompt": 3}], [], "line 2: expected"),
        ("a.jsonl", [{"prompt": "x", "template": "y"}], [], "line 1: expected"),
        ("a.jsonl", ["{"], [], "line 1"),
        ("a.txt", ["x"], ["--prompt", "y"], "prefix would do nothing with --prompts"),
        ("a.txt", ["x"], ["--show"], "show would do nothing with --prompts"),
        ("a.txt", ["x"], ["--json", "-"], "--json - and --prompts both print on stdout"),
        ("a.txt", ["x"], ["--html", "page.html"], "--html replays the samples of one prompt"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(models, tmp_path, monkeypatch, name, lines, more, message):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    file = name if lines is None else written(tmp_path, lines, name)
    with pytest.raises(ValueError, match=message):
        main(["--model", models["text"], *QUICK, "--prompts", file, *more])


def test_the_replay_page(models, tmp_path):  # noqa: F811
    page = tmp_path / "new" / "page.html"
    main(["--model", models["text"], "--strategy", "confidence", *QUICK, "--num_samples", "3", "--html", str(page)])
    text = page.read_text()
    assert "<html" in text and "confidence" in text
    with pytest.raises(ValueError, match=r"--html .* is a directory; give a file"):
        main(["--model", models["text"], *QUICK, "--html", str(tmp_path)])
