"""Everything that samples and every trainer, on the emulated CUDA device (tests/helpers/emulated_cuda.py): what runs on the CPU runs
there, and gives the same tokens and the same metrics.

tests/test_emulated_cuda.py runs this file in a process of its own, since a process cannot give the device up again.
"""

import argparse
import copy
import io
import json

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

import dlm.draws
from dlm.draws import Draws
from dlm.environment import UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from load_model import load_model
from policy.actions import FixedCount
from samplers.heuristics import Confident
from samplers.live import LiveView
from samplers.loop import Strategy, sample
from samplers.names import GUIDED, POSITIONS, PREDICTORS, STRATEGIES
from samplers.scores import ScoreDecoder
from samplers.settings import IN_STEPS
from tests import tiny_text
from tests.enumerable import random_sedd
from tests.helpers.emulated_cuda import watch
from tests.policy_runs import DIT, GROUPS, REPELLING, ROOT, RULE, WARM
from tests.preference_pairs import tiny as tiny_language_model
from tests.preference_pairs import write_pairs
from tests.test_run_guide import rewards, words  # noqa: F401
from tests.test_run_sample import models  # noqa: F401
from tests.test_run_smc import twists  # noqa: F401
from tests.test_run_train_rl import write_pairs as write_chain_pairs
from tests.twist import tiny as tiny_twist
from training.devices import device_of
from training.usage import composed
from unmask.commands import evaluate as evaluate_command
from unmask.commands import make_preferences as make_preferences_command
from unmask.commands import sample as sample_command
from unmask.runs import demo as demo_run
from unmask.runs import make_stories as make_stories_run
from unmask.runs import perplexity as perplexity_run
from unmask.runs import sample as sample_run
from unmask.runs import train_dlm, train_policy, train_preference, train_reward, train_rl, train_twist
from unmask.runs.guide import run as guide

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)  # TRL's
VECTORS = ROOT / "tests" / "vectors"
DEVICES = ("cpu", "cuda")


# ------------------------------------------------------------------------------------------------------------ the device


@pytest.fixture
def x():
    return torch.arange(12.0).view(3, 4).to("cuda")


def counted(call):
    """(launches, waits) of a call."""
    with watch() as seen:
        call()
    return seen.launches.total(), seen.waits.total()


def test_tensors_are_on_the_device_and_modules_move_to_it(x):
    assert x.is_cuda and x.device == torch.device("cuda", 0) and torch.cuda.is_available()
    module = copy.deepcopy(torch.nn.Linear(4, 2).to("cuda"))
    assert module.weight.is_cuda and module(x).is_cuda
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    assert torch.load(file)["weight"].is_cuda


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x + torch.ones(4), "found at least two devices, cuda:0 and cpu"),
        (lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.long)), "got index is on cpu"),
        (lambda x: x @ torch.ones(4, 2), "got mat2 is on cpu"),
        (lambda x: torch.cat((x, torch.ones(1, 4))), "on the same device"),
        (lambda x: torch.rand(2, device="cuda", generator=torch.Generator()), "Expected a 'cuda' device type for generator"),
        (lambda x: x.long() @ x.long().T, "not implemented for 'Long'"),
        (lambda x: torch.empty(1, device="cuda:1"), "invalid device ordinal"),
    ],
)  # fmt: skip
def test_what_cuda_refuses_is_refused(x, call, message):
    with pytest.raises(RuntimeError, match=message):
        call(x)
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    assert (x + torch.tensor(1.0)).is_cuda and x[torch.tensor([0, 2])].is_cuda  # a number and an index are taken


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x: x + 1, (1, 0)),
        (lambda x: x.view(-1)[2:].unsqueeze(0), (0, 0)),
        (lambda x: float(x[0, 0]), (0, 1)),
        (lambda x: bool((x > 3).any()), (2, 1)),
        (lambda x: x.tolist(), (0, 1)),
        (lambda x: torch.tensor([1, 2], device="cuda"), (0, 1)),
        (lambda x: x.nonzero(), (1, 1)),
        (lambda x: x[x > 3], (3, 1)),
        (lambda x: x.__setitem__(x > 3, 0.0), (2, 0)),  # a masked_fill
        (lambda x: x[[0, 1]], (1, 1)),
        (lambda x: torch.unique(x), (1, 1)),
        (lambda x: F.layer_norm(x, (4,)), (1, 0)),
        (lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]), (1, 0)),
    ],
)
def test_launches_and_waits_are_counted(x, call, expected):
    assert counted(lambda: call(x)) == expected


def test_launches_and_waits_are_recorded_by_line(x):
    with watch() as seen:
        total = (x * 2).sum()
        float(total)
    ((file, line), operation), count = seen.waits.most_common(1)[0]
    assert (file, operation, count) == ("tests/emulated_cuda_cases.py", "aten::_local_scalar_dense", 1)
    assert sum(count for (at, _), count in seen.launches.items() if at == (file, line - 1)) == 2
    assert f"{file}:{line}" in seen.table()


def test_gradients_and_updates_are_those_of_the_cpu(x):
    torch.manual_seed(0)
    mine = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.RMSNorm(8), torch.nn.Linear(8, 1))
    theirs = copy.deepcopy(mine).to("cuda")
    for model, data in ((mine, x.cpu()), (theirs, x)):
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(data).square().mean().backward()
        optimiser.step()
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other.cpu(), atol=1e-5, rtol=1e-4)


def test_a_device_that_is_not_there_is_refused():
    assert device_of("auto") == torch.device("cuda") and device_of("cuda:0").index == 0
    with pytest.raises(
        ValueError, match="device=cuda:1 but this machine offers only cuda:0; choose a device that exists"
    ):
        device_of("cuda:1")


# ------------------------------------------------------------------------------------------------------------ costs


def test_draws_of_a_large_vocabulary_need_little_memory_and_are_the_cpu_s(monkeypatch):
    """In one piece they would need some 25 bytes for each logit."""
    monkeypatch.setitem(dlm.draws.TOKENS_PER_CHUNK, "cuda", 40_000)
    logits = torch.randn(100, 4_000, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(100)
    expected = Draws(0).categorical(logits, rows, rows, rows)
    logits, rows = logits.to("cuda"), rows.to("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    drawn = Draws(0).categorical(logits, rows, rows, rows)
    assert torch.cuda.max_memory_allocated() - before < 5 * logits.numel()
    assert torch.equal(drawn.cpu(), expected)


def test_each_repelled_pick_takes_ten_launches():
    generator = torch.Generator().manual_seed(0)
    logits, writable = torch.randn(4, 64, generator=generator), torch.ones(4, 64, dtype=torch.bool)
    uniforms = torch.rand(4, 64, generator=generator, dtype=torch.double)

    def picks(count):
        of = (logits, writable, uniforms, torch.full((4,), count), torch.tensor([4.0, 1.0]))
        expected, given = FixedCount().sample(*of), [tensor.to("cuda") for tensor in of]
        with watch() as seen:
            drawn = FixedCount().sample(*given)
        assert torch.equal(drawn.cpu(), expected) and seen.waits.total() == 1
        return seen.launches.total()

    assert picks(16) - picks(4) <= 12 * 10 and picks(4) < 80


def waits(model, show=None, quiet=False):
    """Waits of a decoding of 4 steps, with a live view or without."""
    canvas = torch.full((2, 12), model.mask_id, device="cuda")
    environment, strategy = UnmaskingEnvironment(model, DecodeOptions(4)), Strategy(Confident(), TokenRule())
    with LiveView(24, show, quiet=quiet, console=Console(file=io.StringIO(), force_terminal=True)) as view:
        view.next_batch(canvas, model.mask_id)
        with watch() as seen:
            sample(environment, strategy, Prompts(canvas), on_step=view.on_step)
    return seen.waits.total()


def test_the_live_view_waits_once_for_each_step_that_it_displays(models, monkeypatch):  # noqa: F811
    model = load_model(models["text"], "cuda")[0]
    plain = waits(model, quiet=True)
    monkeypatch.setattr("samplers.live.sleep", lambda seconds: None)
    monkeypatch.setattr("samplers.live.INTERVAL", 1e9)
    assert waits(model) == plain + 1  # the bar
    assert waits(model, str) == plain + 4  # the canvas: every step is displayed
    monkeypatch.setattr("samplers.live.INTERVAL", 0.0)
    assert waits(model) == plain + 4


# ------------------------------------------------------------------------------------------------------------ sampling


def both(*argv: str) -> dict:
    """The record of a decoding whose tokens are the same on either device."""
    config, found = sample_command.build_config([*argv, "--no-eval"]), []
    for device in DEVICES:
        config.device = device
        batches, texts, record = sample_run.draw_samples(config.copy())
        found.append((torch.cat([batch.tokens for batch in batches]).cpu(), texts, record))
    (mine, texts, record), (theirs, same, of_device) = found
    assert torch.equal(mine, theirs) and texts == same
    for key in ("nfe", "forwards", "generated", "log_z", "drift", "exact"):
        assert of_device.get(key) == (pytest.approx(record[key], rel=1e-4) if record.get(key) else record.get(key)), key
    assert of_device["machine"]["device"] == "Emulated CUDA device"
    return of_device


MORE = {  # settings that no strategy is
    "nucleus": ["sampler.top_p=0.9", "sampler.top_k=50", "sampler.temperature=0.8"],
    "greedy": ["sampler.temperature=0"],
    "blocks": ["sampler.block_length=6", "--strategy", "confidence"],
    "budget": ["sampler.budget=3", "--strategy", "threshold"],
    "guidance": ["sampler.guidance=1", "--prompt", "The", "--steps", "4"],
    "ends": ["sampler.stop=true", "sampler.confidence_eos_eot_inf=true", "--strategy", "confidence", "--steps", "4"],
    "template": ["--template", "The [MASK:3] was [MASK:2].", "--steps", "4"],
}


@pytest.mark.parametrize("strategy", [*STRATEGIES, *MORE])
def test_every_strategy(models, strategy):  # noqa: F811
    steps = ["--steps", "4"] if strategy in (*IN_STEPS, "policy") else []
    how = MORE.get(strategy, ["--strategy", strategy, *steps])
    more = ["--policy", models["dit"]] if strategy == "policy" else []
    both("--model", models["text"], "--num_samples", "3", "--batch_size", "2", *how, *more)


@pytest.mark.parametrize("action", ["bernoulli_argmax", "plackett_luce", "threshold"])
def test_every_action_of_a_policy(models, action):  # noqa: F811
    both("--model", models["text"], "--strategy", "policy", "--policy", models["dit"], f"sampler.policy.action={action}",
         "--num_samples", "2", "--batch_size", "2")  # fmt: skip


def test_other_kinds_of_models_and_policies(models):  # noqa: F811
    both("--model", models["causal"], "--num_samples", "3", "--batch_size", "3", "--prompt", "The")
    both("--model", models["text"], "--strategy", "policy", "--policy", models["mlp"], "--steps", "3")
    both("--model", models["sudoku"], "--strategy", "policy", "--policy", models["dit"], "--prompt", "1..." + "." * 12)
    both("--model", str(VECTORS / "mdlm-tiny"), "--strategy", "confidence", "--length", "16", "--steps", "4")


@pytest.mark.parametrize("strategy", [*PREDICTORS, "confidence"])
def test_sedd(strategy):
    both("--model", str(VECTORS / "sedd-tiny"), "--strategy", strategy, "--length", "16", "--steps", "4")


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_sedd_on_the_uniform_graph(predictor):
    model = random_sedd("uniform", vocabulary=9, length=12)
    canvas = torch.full((3, 12), model.mask_id)
    expected = ScoreDecoder(predictor).decode(model, Prompts(canvas), DecodeOptions(4)).tokens
    assert torch.equal(
        ScoreDecoder(predictor).decode(model.to("cuda"), Prompts(canvas.to("cuda")), DecodeOptions(4)).tokens.cpu(),
        expected,
    )


@pytest.mark.parametrize("cache", ["null", "prefix", "dual"])
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_every_cache(name, cache, tmp_path):
    model = tiny_text.backbone(name, tmp_path / name)
    drift = [] if cache == "null" else ["--drift", "sampler.refresh=2"]
    record = both("--model", str(model), "--prompt", "1+1=", "--length", "20", "--strategy", "confidence", "--steps", "8",
                  "--num_samples", "2", "--batch_size", "2", "sampler.block_length=8", f"sampler.cache={cache}", *drift)  # fmt: skip
    assert record["exact"] == (cache == "null") and (record["drift"] is None) == (cache == "null")


@pytest.mark.parametrize("name", ["llada", "dream", "mdlm"])
def test_prompts_of_different_lengths(name):
    model = load_model(VECTORS / f"{name}-tiny")[0]
    canvas = torch.full((3, 20), model.mask_id)
    canvas[:, :9] = torch.tensor([[1], [2], [3]])
    start, found = torch.tensor([0, 6, 4]), []
    for device in DEVICES:
        environment = UnmaskingEnvironment(model.to(device), DecodeOptions(4))
        strategy = Strategy(Confident(), TokenRule())
        found.append(
            sample(
                environment, strategy, Prompts(canvas.to(device), prompt_length=9, start=start.to(device))
            ).tokens.cpu()
        )
    assert torch.equal(*found)


FITTING = {"args": "full", "args_stochastic": "full", "pargs": "prefix", "pargs_g": "prefix", "best_of_n": "brevity"}


@pytest.mark.parametrize("name", ["causal", "text"])
@pytest.mark.parametrize("strategy", GUIDED)
def test_every_guided_decoder(models, rewards, strategy, name):  # noqa: F811
    reward = f"head_{name}" if strategy == "value_head" else FITTING.get(strategy)
    more = [] if reward is None else ["--reward", rewards.get(reward, reward)]
    steps = [] if name == "causal" else ["--steps", "4"]
    both("--model", models[name], "--strategy", strategy, *more, "--k", "4", "--prompt", "The", *steps,
         "--num_samples", "2", "--batch_size", "2")  # fmt: skip


@pytest.mark.parametrize("positions", POSITIONS)
def test_guidance_of_several_positions(models, rewards, positions):  # noqa: F811
    both("--model", models["text"], "--strategy", "pargs", "--reward", rewards["mask"], "--positions", positions, "--k", "3",
         "--steps", "3", "--num_samples", "2", "--batch_size", "2", "--beta", "0.5")  # fmt: skip


PARTICLES = {
    "causal twist": [],
    "infill": ["--suffix", " ball"],
    "class": ["sampler.smc.label=2", "sampler.smc.scheme=residual"],
    "vocabulary": ["--particles", "3"],
    "state": ["--steps", "2", "--resample", "every"],
}


@pytest.mark.parametrize("name", PARTICLES)
def test_every_kind_of_twist(twists, name):  # noqa: F811
    both(
        "--strategy",
        "twisted_smc",
        "--twist",
        twists[name],
        "--num_samples",
        "2",
        "--batch_size",
        "2",
        *PARTICLES[name],
    )


@pytest.mark.parametrize("model", ["masked", "causal"])
def test_steered_particles(twists, model):  # noqa: F811
    both("--strategy", "fk", "--model", twists[model], "--reward", "brevity", "--length", "10", "--num_samples", "2",
         "--batch_size", "2", "--particles", "3", "sampler.smc.completions=2")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ training

TRAINERS = {"policy": train_policy, "dlm": train_dlm, "preference": train_preference, "reward": train_reward,
            "rl": train_rl, "twist": train_twist}  # fmt: skip
ONE = [
    "wandb.mode=disabled",
    "training.n_iters=1",
    "training.snapshot_freq=1",
    "training.eval_freq=1",
    "training.log_freq=1",
]
CLOCKS = ("second", "time", "tokens_per")


def metrics(directory) -> dict[tuple[int, str], float]:
    """Figures of metrics.jsonl by step and name, without clocks."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], name): value for line in lines for name, value in line.items()
            if isinstance(value, int | float) and not any(clock in name for clock in CLOCKS)}  # fmt: skip


def trained_on_both(command: str, directory, *overrides: str):
    """The run on the emulated device; what it measures is what the run on the CPU measures."""
    config, measured = composed(f"train_{command}", [*overrides]), []
    for device in DEVICES:
        config.device, config.run_dir = device, str(directory / device)
        TRAINERS[command].run(config.copy(), [*overrides])
        measured.append(metrics(directory / device))
    if "preference.algorithm=rloo" in overrides:  # TRL's answers come from the device's own generator
        measured = [measured[0].keys(), measured[1].keys()]
        assert measured[0] == measured[1]
    else:
        assert measured[1] == pytest.approx(measured[0], rel=1e-3, abs=1e-4, nan_ok=True) and measured[0]
    return directory / "cuda"


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    file = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    file.write_text('{"text": "One day a fox met a hen. They ate a pie and were glad."}\n' * 8)
    return [f"data.{split}={file}" for split in ("train", "valid")]


SMALL = ["model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2", "model.length=24"]
DLM = [*ONE, "training.batch_size=4", "eval.samples=2", "eval.steps=3", "eval.batch_size=4", "optim.warmup=1",
       "training.snapshot_freq_for_preemption=1"]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["loss=t_DCE", *SMALL], ["loss=k_DCE", "model.learned_positions=true", *SMALL],
        ["model=sedd", "loss=DSE", "model.cond_dim=8", *SMALL], ["model=causal", "loss=ar", *SMALL],
        ["experiment=chain", "model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2", "data.valid_rows=4"],
        ["init=CAUSAL", "loss=masked_CE", "adapt.length=24", "lora.rank=2", "lora.target_modules=[q_proj,v_proj]"],
    ],
    ids=lambda words: words[0] + words[1],
)  # fmt: skip
def test_a_step_of_pre_training(words, stories, tiny, tmp_path):
    causal = tiny["causal"][0].removeprefix("dlm.path=")
    data = [] if "experiment=chain" in words else stories
    trained_on_both("dlm", tmp_path, *data, *(word.replace("CAUSAL", causal) for word in words), *DLM)


POLICY = [*ONE, "eval.batch_size=2"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("small", [*GROUPS, WARM, *DIT, "algorithm=grpo", "policy=dit_confidence", "sampler.steps=4"]),
        ("small", ["algorithm=ppo", "training.batch_size=4", *DIT, "policy=dit_confidence", "sampler.steps=4"]),
        ("small", ["algorithm=imitation", "policy=dit_hidden", "policy.num_blocks=1", "policy.num_heads=2", "policy.mlp_size=32", "training.batch_size=4"]),
        ("small", ["algorithm=variational", "training.batch_size=4", "sampler.steps=4"]),
        ("opinion", REPELLING),
        ("opinion", ["algorithm=imitation", *RULE, *DIT, "policy=dit_confidence", "training.batch_size=4", "sampler.length=8"]),
        ("unjudged", ["experiment=policy_learned_reward", *GROUPS, "reward.model=brevity", "sampler.length=8", WARM, *DIT]),
        ("text", ["experiment=stories_grpo", "training.batch_size=4", "algorithm.group_size=2", "sampler.length=8", WARM, *DIT]),
        ("sedd", ["experiment=policy_sedd", *GROUPS, "sampler.length=8", WARM, *DIT]),
        ("chain", ["experiment=chain_expert_steering", *GROUPS, WARM, "algorithm.experts.thresholds=[0.4,0.9]", *DIT]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
def test_a_step_of_policy_learning(model, words, tiny, tmp_path):
    trained_on_both("policy", tmp_path, *words, *tiny[model], *POLICY)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 24)


REWARD = [*ONE, "training.batch_size=4", "eval.batch_size=4", "data.valid_count=4", "data.canvas=24", "encoder.hidden_size=16",
          "encoder.intermediate_size=32", "encoder.num_layers=1", "encoder.num_heads=2"]  # fmt: skip
HEAD = ["reward.head=vocabulary", "reward.kind=mask", "init=example/stories"]


@pytest.mark.parametrize("words", [["reward.kind=full"], ["reward.kind=mask"], HEAD], ids=str)
def test_a_step_of_reward_learning(words, pairs, tmp_path):
    run = trained_on_both("reward", tmp_path, *REWARD, f"data.train={pairs}", *words)
    if words == HEAD:  # a head that was trained there decodes there
        both(
            "--model",
            "example/stories",
            "--strategy",
            "value_head",
            "--reward",
            str(run),
            "--length",
            "8",
            "--steps",
            "2",
        )


RLOO = ["preference.reward=brevity", "preference.group_size=2", "preference.answer_length=8"]


@pytest.mark.parametrize("algorithm", ["dpo", "kto", "rloo"])
def test_a_step_of_preference_learning(algorithm, pairs, tmp_path):
    model = tiny_language_model("llama", tmp_path / "llama")
    more = RLOO if algorithm == "rloo" else []
    trained_on_both("preference", tmp_path, *ONE, f"init={model}", f"data.train={pairs}", "training.batch_size=4", "eval.batch_size=4",
                    "data.valid_count=4", "data.max_length=32", "lora.rank=4", f"preference.algorithm={algorithm}", *more)  # fmt: skip


RL = [
    *ONE,
    "eval.batch_size=4",
    "eval.samples=2",
    "rl.batch_size=8",
    "rl.group_size=4",
    "rl.num_sigma_samples=2",
    "sampler.steps=3",
]
CHAIN = ["data.answer_length=4", "data.steps=2"]


@pytest.mark.parametrize(
    "words",
    [
        ["rl.algorithm=grpo", "rl.estimator=elbo", *CHAIN], ["rl.algorithm=ppo", "rl.estimator=trajectory", "rl.ratio=token", *CHAIN],
        ["rl.algorithm=grpo", "rl.estimator=sandwich", *CHAIN], ["rl.algorithm=grpo", "rl.estimator=coupled", *CHAIN],
        ["rl.algorithm=vrpo", "data=pairs", "data.pairs=PAIRS", "data.valid_pairs=PAIRS", "data.length=12"],
    ],
    ids=lambda words: " ".join(words[:2]),
)  # fmt: skip
def test_a_step_of_reinforcement_learning(words, tmp_path):
    pairs = write_chain_pairs(tmp_path / "pairs.jsonl", 12, 0)
    trained_on_both("rl", tmp_path, *RL, *(word.replace("PAIRS", str(pairs)) for word in words))


TWIST = ["wandb.mode=disabled", "length=3", "training.batch_size=8", "training.epochs=1", "training.updates_per_epoch=1",
         "training.log_freq=1", "posterior.count=4", "posterior.batch=16", "eval.samples=4", "eval.particles=[2]", "eval.sweeps=1",
         "eval.texts=2", "twist.layers=2"]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "model"),
    [*((method, "causal") for method in ("ctl", "rl", "sixo", "fudge", "dpg", "ppo")), ("ctl", "masked")],
)
def test_a_step_of_twist_learning(method, model, tmp_path):
    language = getattr(tiny_twist, model)(tmp_path / model)
    target = [
        "target=sentiment",
        "target.classes=2",
        f"target.classifier={tiny_twist.classifier(tmp_path / 'two', 2)}",
        "prompt=I b",
    ]
    run = trained_on_both("twist", tmp_path, *TWIST, f"dlm.path={language}", f"method={method}", *target)
    if method == "ctl":
        both(
            "--strategy",
            "twisted_smc",
            "--twist",
            str(run),
            "--num_samples",
            "2",
            "--batch_size",
            "2",
            "--particles",
            "3",
        )


# ------------------------------------------------------------------------------------------------------------ other commands


def test_evaluation_of_a_policy(tmp_path):
    tables = []
    for device in DEVICES:
        out = tmp_path / device
        argv = [
            "--policy",
            "example/chain_policy",
            "--datasets",
            "chain",
            "--n_test",
            "8",
            "--device",
            device,
            "--out",
            str(out),
        ]
        assert evaluate_command.main(argv) == 0
        lines = [json.loads(line) for line in next(out.glob("*/generations.jsonl")).read_text().splitlines()]
        tables.append([[line["generation"], line["nfe"], line["right"]] for line in lines])
    assert tables[0] == tables[1]


def test_guided_answers_over_a_prompt_file(models, rewards, tmp_path):  # noqa: F811
    for device in DEVICES:
        guide(composed("guide", [*words(models, rewards, tmp_path / device), f"device={device}"]))
    answers = [
        {file.name: file.read_text() for file in (tmp_path / device).glob("generation_*.json")} for device in DEVICES
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 6


def test_perplexity_and_preferences(capsys, tmp_path):
    arguments = {"model": "example/stories", "data": ["stories"], "split": "valid", "rows": 2, "length": 16, "noises": 2,
                 "batch_size": 2, "seed": 0, "cache_dir": None}  # fmt: skip
    found = []
    for device in DEVICES:
        perplexity_run.run(argparse.Namespace(**arguments, device=device))
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        make_preferences_command.main(["--count", "4", "--samples", "2", "--length", "8", "--words", "4", "--steps", "2", "--model",
                                   "example/stories", "--prefer", "brevity", "--device", device, "--out", str(tmp_path / device)])  # fmt: skip
        found.append((record["perplexity"], (tmp_path / device / "train.jsonl").read_text()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][1] == found[1][1]


def test_stories_are_made(tmp_path, monkeypatch):
    model = tiny_language_model("llama", tmp_path / "llama")
    monkeypatch.setattr(make_stories_run, "repetitive", lambda text: False)
    make_stories_run.make_stories(str(model), tmp_path / "stories.jsonl.gz", 2, 2, 0, "cuda", 8)
    assert len(make_stories_run.read_stories(tmp_path / "stories.jsonl.gz")) == 2


@pytest.mark.slow
def test_the_demo_runs(tmp_path, monkeypatch):
    """Without its judge."""
    monkeypatch.setattr(demo_run, "default_judge", lambda device: None)
    demo_run.run(argparse.Namespace(out=str(tmp_path), iterations=1, puzzles=2, stories=1))
    assert next(tmp_path.glob("*/table.json")).stat().st_size
