"""What training refuses before any work, damaged files, and runs that must not be mixed."""

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from dlm.environment import TokenRule
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from load_model import load_model
from policy.checkpoints import load_policy
from samplers.heuristics import Threshold
from tests.training.test_run import TINY, train
from training.devices import device_of
from training.processes import device_of_rank
from training.usage import check_overrides, composed
from unmask.build import read_settings
from unmask.runs import train_policy
from unmask.settings import COMMANDS


@pytest.mark.parametrize("script", ["train_policy", "train_dlm"])
def test_the_shipped_defaults_pass(script):
    read_settings(COMMANDS[script], composed(script, []))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.n_iters=abc", "training.n_iters=abc must be a whole number"),
        ("training.n_iters=0", "at least 1"),
        ("training.accum=0", "training.accum=0"),
        ("training.log_freq=true", "training.log_freq=true"),
        ("eval.batch_size=0", "eval.batch_size=0"),
        ("sampler.length=5.5", "sampler.length=5.5"),
        ("optim.lr=abc", "optim.lr=abc must be a finite number"),
        ("optim.lr=nan", "optim.lr=nan"),
        ("optim.schedule=foo", "one of constant, linear, cosine"),
        ("model.dtype=foo", "one of float32"),
        ("device=foo", "use auto, cpu or cuda"),
        ("seed=abc", "seed=abc must be a whole number"),
        ("seed=99999999999999999999", "must be a whole number"),
        ("sampler.budgets=3", "must be a list of at least 1 in brackets"),
        ("sampler.budgets=[]", "must be a list of at least 1 in brackets"),
        ("sampler.budgets=[0]", "must be a list of at least 1 in brackets"),
        ("eval.temperature=-1", "eval.temperature=-1 must be a finite number of at least 0"),
    ],
)
def test_settings_that_no_run_could_have(override, message):
    with pytest.raises(ValueError, match=message):
        train_policy.run(composed("train_policy", [override]), [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.functions=correct", r"reward.functions=correct must be a list of at least 1 in brackets"),
        ("reward.weights=1.0", "reward.weights=1.0 must be a list of at least 1"),
        ("reward.weights=[a]", "must be a list of at least 1"),
        ("reward.weights=[.nan]", "must be a list of at least 1"),
        ("data.datasets=gsm8k", "must be a list of at least 1"),
        ("data.answer_length=0", "data.answer_length=0 must be a whole number of at least 1"),
        ("data.max_prompt_length=1.5", "data.max_prompt_length=1.5 must be a whole number"),
    ],
)
def test_settings_of_questions(override, message):
    words = ["experiment=llada_bl32", override]
    with pytest.raises(ValueError, match=message):
        train_policy.run(composed("train_policy", words), words)


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean training\.n_iters"):
        composed("train_policy", ["training.n_itrs=2"])
    with pytest.raises(ValueError, match="algorithm=zzz is no file .* use one of grpo, imitation, ppo, variational$"):
        composed("train_policy", ["algorithm=zzz"])


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (
            "train_dlm",
            ["seed=1", "expirement=stories"],
            r"^'expirement=stories' names no key .* did you mean experiment\?$",
        ),
        ("train_policy", ["polcy=dit_confidence"], r"did you mean policy\?$"),
        ("train_dlm", ["nosuchkey=1"], r"it has adapt, data, .*, wandb$"),
        ("train_dlm", ["optim.foo=1"], "optim has betas, eps, .*, weight_decay$"),
        ("train_dlm", ["experiment=sudoku6_budget"], "it belongs to train-policy$"),
        ("train_dlm", ["experiment=none_such"], "look there for what exists$"),
        ("train_policy", ["dlm=[chain,stories]"], "dlm takes the name of one file of configs/dlm; give one$"),
        ("train_policy", ["+experiment=[1]"], "experiment takes the name of one file of configs/experiment; give one$"),
    ],
)
def test_a_word_that_does_not_fit_is_named_alone_with_what_does(name, words, message):
    with pytest.raises(ValueError, match=message):
        composed(name, words)


@pytest.mark.parametrize(
    ("name", "word", "near"),
    [
        ("train_policy", "policy=dit_confidense", "policy=dit_confidence"),
        ("train_dlm", "experiment=sudoku", "experiment=sudoku[69]"),
        ("sample", "dlm=storys", "dlm=stories"),
    ],
)
def test_an_unknown_choice_of_a_group_names_the_nearest(name, word, near):
    with pytest.raises(ValueError, match=rf"did you mean {near}\?$"):
        composed(name, [word])


def test_a_key_written_as_a_flag_is_refused():
    for word in ("--experiment", "--experiment=sudoku6"):
        with pytest.raises(ValueError, match="'--experiment' is no flag of this command; write experiment=VALUE"):
            check_overrides("train_policy", [word])
    check_overrides("train_policy", ["--cfg", "job"])


def test_logging_online_without_a_key_is_refused_before_any_work(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    online = composed("train_policy", ["wandb.mode=online"])
    with pytest.raises(ValueError, match="wandb.mode=online needs a key"):
        read_settings(COMMANDS["train_policy"], online)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password KEY")
    read_settings(COMMANDS["train_policy"], online)
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "KEY")
    read_settings(COMMANDS["train_policy"], online)
    with pytest.raises(ValueError, match="wandb.mode=on must be one of online, offline, disabled"):
        read_settings(COMMANDS["train_policy"], composed("train_policy", ["wandb.mode=on"]))


@pytest.mark.parametrize("temperature", [float("inf"), float("nan"), 1e-40, -1.0])
def test_a_temperature_that_overflows_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature="):
        TokenRule(temperature)


def test_a_directory_that_holds_a_run_is_not_started_in_again(tmp_path):
    train(*TINY, f"run_dir={tmp_path}")
    with pytest.raises(ValueError, match="holds a run; resume="):
        train(*TINY, f"run_dir={tmp_path}", "seed=7")


def test_a_run_from_before_a_key_was_added_goes_on_and_the_other_script_refuses_it(tmp_path, capsys):
    train(*TINY, f"run_dir={tmp_path}")
    file = tmp_path / ".hydra" / "config.yaml"
    saved = OmegaConf.load(file)
    del saved.data.keep_clues
    OmegaConf.save(saved, file)
    checkpoint = tmp_path / "checkpoints-meta" / "checkpoint.pth"
    state = torch.load(checkpoint, weights_only=True)
    del state["run"], state["checksum"]  # so old a run has no digest of its configuration
    torch.save(state, checkpoint)
    train(f"resume={tmp_path}")
    assert "already at step 6 of 6" in capsys.readouterr().out
    asked = [f"resume={tmp_path}"]
    with pytest.raises(ValueError, match="other training script"):
        train_policy.run(composed("train_policy", asked), asked)
    (tmp_path / "checkpoints-meta" / "checkpoint.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"checkpoint\.pth cannot be read"):
        train(f"resume={tmp_path}")


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "config.json").write_text('{"tokens": 3, "model": {"hidden_size": 4}}')
    save_file({"head": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load_model(tmp_path)
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.pth cannot be read"):
        load_policy(tmp_path / "junk.pth")


def test_what_a_rule_picks_at_once_has_no_order_of_position():
    """Ranks of picks made together are a random order: as often downwards as upwards."""
    from dlm.draws import Draws
    from dlm.environment import UnmaskingEnvironment
    from tests.enumerable import RandomLM

    model = RandomLM(4, seed=1)
    observation = UnmaskingEnvironment(model, DecodeOptions(4)).reset(Prompts(torch.full((400, 3), model.mask_id)))
    order, _ = Threshold(0.0).choose(observation, Draws(0))
    assert (order.sort(1).values == torch.tensor([1, 2, 3])).all()
    assert 150 < int((order[:, 0] < order[:, 2]).sum()) < 250


@pytest.fixture
def cards(monkeypatch):
    """`cards(n)`: a machine with n CUDA devices."""

    def machine(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return machine


@pytest.mark.parametrize(
    ("count", "device", "message"),
    [
        (0, "cuda", "device=cuda but this machine offers no CUDA device; use cpu"),
        (0, "cuda:0", "device=cuda:0 but this machine offers no CUDA device; use cpu"),
        (1, "cuda:1", "device=cuda:1 but this machine offers only cuda:0; choose a device that exists"),
        (4, "cuda:4", "device=cuda:4 but this machine offers cuda:0 to cuda:3; choose a device that exists"),
        (1, "cuda:", "device=cuda: is unknown; use auto, cpu or cuda"),
        (1, "cuda:-1", "device=cuda:-1 is unknown"),
        (1, "cuda:one", "device=cuda:one is unknown"),
        (1, "cpu:1", "device=cpu:1 is unknown"),
        (1, "auto:0", "device=auto:0 is unknown"),
    ],
)
def test_a_device_that_is_not_there_is_refused(cards, count, device, message):
    cards(count)
    with pytest.raises(ValueError, match=message):
        device_of(device)


def test_a_device_that_is_there_is_taken(cards):
    cards(2)
    assert [str(device_of(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    cards(0)
    assert device_of("auto").type == "cpu"


def test_each_process_has_a_card_of_its_own(cards):
    """Two on one card would share its memory, and their group would be one of the CPU."""
    cards(4)
    assert [str(device_of_rank("auto", 4, local)) for local in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert str(device_of_rank("cuda:1", 1, 0)) == "cuda:1" and str(device_of_rank("cpu", 2, 1)) == "cpu"
    with pytest.raises(ValueError, match="device=cuda:1 names one card for 2 processes; use device=cuda"):
        device_of_rank("cuda:1", 2, 0)
    with pytest.raises(
        ValueError, match="this machine has 4 for more processes; start at most 4 on it, or use device=cpu"
    ):
        device_of_rank("cuda", 8, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.accum=3", "a process's batch of 4 is not divisible by training.accum=3"),
        ("loss=foo", "loss='foo' is unknown"),
        ("loss=DSE", "loss=DSE is for SEDD"),
    ],
)
def test_what_is_refused_leaves_no_run_directory(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(*TINY, f"run_dir={tmp_path / 'run'}", override)
    assert not (tmp_path / "run").exists()
