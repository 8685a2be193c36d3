"""What the documentation says is so: commands parse, files exist, the worked examples run."""

import ast
import importlib.util
import re
import shlex
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from policy.networks import DitConfidence
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample
from samplers.names import REVISING, SELECTING
from tests.enumerable import RandomLM, fits
from training.compatibility import translated
from unmask.build import read_settings
from unmask.commands import sample as sample_command
from unmask.settings import SampleSettings

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text() for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
HYDRA = {f"train-{name}": f"train_{name}" for name in ("policy", "dlm", "rl", "reward", "preference", "twist")}
SCRIPTS = {"run_sample.py": "sample", "run_train_policy.py": "train-policy"}  # commands under their published names
# A command ends with its line, or with the backtick around it. What other systems call the same stands in the tables of
# docs/coming_from.md, in the first column.
COMMAND = re.compile(
    r"(?:python|torchrun [^\n`]*?) (run_sample\.py|run_train_policy\.py|-m unmask (?:sample|train-[a-z]+))(?![\w-])([^\n`]*)"
)
OTHER = re.compile(
    r"(\./demo|python -m (?:benchmarks|evaluation)\.\w+|python -m unmask (?:make-\w+|demo|perplexity|compare|plot|aup))(?![\w-])([^\n`]*)"
)
HARNESS = Path(importlib.util.find_spec("lm_eval").origin).parent


def text_of(page: str) -> str:
    """A page without the commands of other systems."""
    if page != "docs/coming_from.md":
        return PAGES[page]
    return re.sub(r"^\| `python run_[^|]*\|", "| |", PAGES[page], flags=re.MULTILINE)


def commands(pattern: re.Pattern) -> list[tuple[str, list[str]]]:
    found = [match.groups() for page in PAGES for match in pattern.finditer(text_of(page))]
    named = [(SCRIPTS.get(name, name.removeprefix("-m unmask ")), rest) for name, rest in found]
    return sorted({(name, tuple(shlex.split(rest, comments=True))) for name, rest in named})


def example(name: str):
    path = ROOT / "docs" / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------ commands and files


@pytest.mark.parametrize("script", ["sample", *HYDRA])
def test_every_command_fits_the_code(script):
    lines = [words for name, words in commands(COMMAND) if name == script and "--help" not in words]
    assert len(lines) > 5
    for words in lines:
        try:
            if script in HYDRA:
                with initialize_config_dir(str(ROOT / "configs"), version_base=None):
                    compose(HYDRA[script], translated(list(words)))
            else:
                read_settings(
                    SampleSettings, sample_command.build_config(list(words))
                )  # runs that a page names need not be here
        except Exception as error:
            raise AssertionError(f"python -m unmask {script} {shlex.join(words)} does not run: {error}") from error


def test_flags_of_the_other_commands_exist():
    for command, words in commands(OTHER):
        name = command.replace("./demo", "unmask demo").removeprefix("python ").removeprefix("-m ")
        name = name.replace("unmask ", "unmask.commands.").replace("-", "_")
        path = ROOT / (name.replace(".", "/") + ".py")
        for flag in [word for word in words if word.startswith("--")]:
            text = path.read_text()  # a parser's words, or, of the benchmarks, the fields of what is measured
            if name == "unmask.lm_eval":  # the harness's own words
                text += "".join(file.read_text() for file in HARNESS.rglob("_cli/*.py"))
            assert f'"{flag}"' in text or f"\n    {flag[2:]}: " in text, f"{command} has no {flag}"


def test_runs_that_the_page_on_twists_reads_are_made_by_its_commands():
    """RUN, in capitals, and dates stand for any."""
    (block, *_) = re.findall(r"```bash\n(.*?)```", PAGES["docs/twists.md"], re.DOTALL)
    made = set(re.findall(r"run_dir=(output/\w+)", block)) | set(re.findall(r"--out (output/\w+)", block))
    read = {name for name in re.findall(r"output/[a-z_]+\b", block)}
    assert {"output/ctl", "output/dpg", "output/sixo"} <= read <= made


VALUES = {  # that a flag of twisted-smc-lm takes: each is ours, or said not to be here
    "--rm_type": ["exp_beta_toxicity_class_logprob", "exp_beta_sentiment_class_logprob", "p_last_tokens", "toxicity_threshold",
                  "sentiment_threshold", "p_continuation", "hard_p_continuation", "exp_beta_rew_p_continuation",
                  "exp_beta_rew_p_continuation_divided_by_p", "sent_cond_twist"],
    "--hface_model_type": ["distilgpt2", "gpt2small", "gpt2medium", "gpt2large", "TinyStories"],
    "--twist_learn_type": ["ebm_one_sample", "ebm_reweight", "ebm_ml_jit_vmapped_over_condition_tokens", "rl_q_lsq_partial_jit",
                           "rl_qsigma_lsq", "sixo_partial_jit", "sixo", "bce_p", "bce_psigma", "one_total_kl_partial_jit", "one_total_kl",
                           "nvi_", "rl_q_gcd", "rl_q_multistep", "rl_mc", "one_total_kl_sample", "one_total_kl_with_rl",
                           "one_total_kl_with_sixo", "ebm_combined"],
}  # fmt: skip


@pytest.mark.parametrize("flag", VALUES)
def test_every_value_of_a_flag_of_twisted_smc_lm_is_mapped(flag):
    page = PAGES["docs/coming_from.md"]
    section = page[page.index("\n## twisted-smc-lm\n") : page.index("\n## PARGS: training")]
    theirs = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| "))
    for value in VALUES[flag]:
        assert re.search(rf"(?<![a-z_]){value}(?![a-z]|_[a-z])", theirs), value


def test_what_runs_with_python_c_is_python():
    lines = re.findall(r'python -c "([^"\n]*)"', "\n".join(PAGES.values()))
    assert lines
    for line in lines:
        ast.parse(line)
    for page, text in PAGES.items():
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            assert page == "docs/adding.md" or ast.parse(block)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for image, target in re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("http://", "https://", "#")):
            continue
        path = ROOT / Path(page).parent / target.partition("#")[0]
        if image and not path.exists():  # pictures are made by commands
            continue
        assert path.exists(), f"{page} links to {target}"
        assert not image or path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n", f"{target} is no picture"


def test_every_name_in_configs_exists():
    for page, text in PAGES.items():
        text = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL)  # keyword arguments are no settings of a command
        for group in ("experiment", "algorithm", "policy", "reward", "dlm", "target"):
            for name in re.findall(rf"(?<![\w./]){group}=([a-z]\w*)\b(?!/)", text):
                if (group, name, page) != ("reward", "palindrome", "docs/adding.md"):
                    assert (ROOT / "configs" / group / f"{name}.yaml").is_file(), f"{page}: {group}={name}"


def test_every_strategy_is_documented():
    for name in REVISING:
        assert f"`{name}`" in PAGES["docs/sampling.md"], name
        assert f"\n## {name}\n" in PAGES["docs/methods/revision.md"], name
    for name in (*UNMASKING_RULES, "policy"):
        assert f"| `{name}`" in PAGES["docs/sampling.md"], name
        assert name == "policy" or f"| `{name}` |" in PAGES["docs/methods/unmasking_rules.md"], name
    for name in SELECTING:
        assert f"| `{name}`" in PAGES["docs/sampling.md"], name
        assert f"\n## {name}\n" in PAGES["docs/methods/selection.md"], name


# ------------------------------------------------------------------------------------------ the worked examples


def test_the_page_shows_what_the_examples_say():
    sources = "\n".join(path.read_text() for path in (ROOT / "docs" / "examples").glob("*.py"))
    blocks = [
        block for block in re.findall(r"```python\n(.*?)```", PAGES["docs/adding.md"], re.DOTALL) if block[0] == " "
    ]
    assert len(blocks) == 3
    for block in blocks:
        assert block in sources, block


def test_the_rule_writes_from_both_ends():
    model = RandomLM(vocabulary=5)
    canvas = torch.full((2, 7), model.mask_id)
    canvas[1, 0] = 3
    strategy = Strategy(example("leftright_alternating").LeftRight(), TokenRule())
    one = sample(UnmaskingEnvironment(model, DecodeOptions(steps=7)), strategy, Prompts(canvas))
    assert one.unmasked_at[0].tolist() == [0, 2, 4, 6, 5, 3, 1]
    assert one.unmasked_at[1].tolist() == [-1, 0, 2, 4, 5, 3, 1]
    few = sample(UnmaskingEnvironment(model, DecodeOptions(steps=3)), strategy, Prompts(canvas))
    assert few.unmasked_at[0].tolist() == [0, 0, 1, 2, 2, 1, 0]
    assert few.evaluations.tolist() == [3, 3] and (few.tokens < 5).all() and few.tokens[1, 0] == 3


def test_the_reward_scores_finished_samples():
    model = RandomLM(vocabulary=3)
    strategy = Strategy(example("leftright_alternating").LeftRight(), TokenRule())
    samples = sample(
        UnmaskingEnvironment(model, DecodeOptions(steps=2)), strategy, Prompts(torch.full((4, 4), model.mask_id))
    )
    output = example("reward_palindrome").PalindromeReward(alpha=1.0)(samples)
    same = (samples.tokens == samples.tokens.flip(1)).float().mean(1)
    torch.testing.assert_close(output.total, same * 3 / 4)
    assert set(output.terms) == {"mirrored", "speed"}


@pytest.mark.parametrize("rule", ["random", "confidence", "leftmost"])
def test_the_backbone_samples_its_chain(rule):
    start = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    transition = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6], [0.3, 0.5, 0.2]], dtype=torch.float64)
    model = example("bigram_backbone").BigramLM(start, transition, max_length=3)
    law = {(a, b, c): float(start[a] * transition[a, b] * transition[b, c]) for a, b, c in product(range(3), repeat=3)}
    canvas = torch.full((4000, 3), model.mask_id)
    samples = sample(
        UnmaskingEnvironment(model, DecodeOptions(steps=3)),
        Strategy(UNMASKING_RULES[rule](), TokenRule()),
        Prompts(canvas),
    )
    fits(samples.tokens, law)


# ------------------------------------------------------------------------------------------ what the pages promise


def test_expected_evaluations_of_direct():
    steps, length = 12, 6
    model = RandomLM(vocabulary=5)
    canvas = torch.full((4000, length), model.mask_id)
    samples = sample(
        UnmaskingEnvironment(model, DecodeOptions(steps)),
        Strategy(UNMASKING_RULES["direct"](), TokenRule()),
        Prompts(canvas),
    )
    expected = steps * (1 - (1 - 1 / steps) ** length)
    spread = float(samples.evaluations.double().std()) / len(canvas) ** 0.5
    assert abs(float(samples.evaluations.double().mean()) - expected) < 4.5 * spread


def test_a_step_that_picks_nothing_is_not_evaluated():
    model = RandomLM(vocabulary=5)
    torch.manual_seed(0)
    network = DitConfidence(hidden_dim=16, feedforward_dim=16, time_embed_dim=8, smart_init=-2.0)
    canvas = torch.full((64, 4), model.mask_id)
    strategy = Strategy(PolicyUnmasker(network, "bernoulli"), TokenRule())
    samples = sample(UnmaskingEnvironment(model, DecodeOptions(steps=4, patience=5)), strategy, Prompts(canvas))
    assert (samples.evaluations <= 4).all() and samples.steps.max() > 4
