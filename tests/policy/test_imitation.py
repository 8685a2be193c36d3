"""Learning from answers: what the teacher writes, the loss as a plain loop, what is learned, what is refused."""

import pytest
import torch
import torch.nn.functional as F

from data.tasks import Prompts, TextTask
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from policy import train as loops
from policy.imitation import Answers, Expert, InBlocks, check_teacher, learn_answers, teacher_loss
from policy.networks import DitConfidence
from policy.settings import PolicyTrainingSettings, TeachingSettings
from rewards.rules import RewardOutput
from samplers.heuristics import Threshold
from samplers.loop import Strategy, sample
from tests.enumerable import from_joint, inconsistent
from tests.helpers.rewards import SamplesReward
from training.optim import MovingAverage, Optimiser
from training.processes import Processes
from training.settings import OptimSettings

LENGTH, V = 6, 2
MODEL = inconsistent(vocabulary=V, length=LENGTH, seed=4)
SURE = (0.52, 0.62, 0.75, 0.9, 0.98)  # of the best token at each position, whatever stands at the others
OPTIM = {
    "lr": 1e-2,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "warmup": 0,
    "grad_clip": 1.0,
    "schedule": "constant",
}


def network_of(seed=0, **settings):
    torch.manual_seed(seed)
    return DitConfidence(hidden_dim=16, feedforward_dim=16, time_embed_dim=4, confidences_top_p=2, **settings)


def random_prompts(rows, seed=0):
    """Some positions given; the answer there is what is given."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(V, (rows, LENGTH), generator=generator)
    given = torch.rand(rows, LENGTH, generator=generator) < 0.2
    return Prompts(torch.where(given, text, V), {}, text)


def taught(rows=400, network=None):
    """The teacher's own rollouts, with what the policy reads."""
    network = network or network_of()
    prompts = random_prompts(rows)
    teacher = Answers(prompts.text, network.inputs)
    record = lambda observation: {"right": teacher.right(observation), **network.inputs(observation)}
    strategy = Strategy(teacher, TokenRule(0.0))
    return prompts, sample(UnmaskingEnvironment(MODEL, DecodeOptions(LENGTH)), strategy, prompts, seed=5, record=record)


# ---------------------------------------------------------------------------------------- what the teacher writes


def test_the_teacher_writes_right_tokens_while_there_is_one_and_finishes_every_canvas():
    """Each step of each row, against the table: a part of the right ones; none right: the most probable, wrong as it is."""
    prompts, samples = taught()
    assert not (samples.tokens == V).any() and torch.equal(samples.evaluations, samples.steps)
    table, written = MODEL.table.detach(), {"stuck": 0, "all": 0, "some": 0}
    for row in range(len(prompts.text)):
        canvas, text = prompts.canvas[row].clone(), prompts.text[row]
        for step in range(int(samples.steps[row])):
            probabilities = table[int(MODEL.state(canvas[None]))]
            best, masked = probabilities.argmax(-1), canvas == V
            right, picks = masked & (best == text), samples.unmasked_at[row] == step
            if right.any():
                assert picks.any() and not (picks & ~right).any()
                written["all" if torch.equal(picks, right) else "some"] += int(right.sum()) >= 3
            else:
                surest = probabilities.amax(-1).masked_fill(~masked, -torch.inf).argmax()
                assert picks.nonzero().flatten().tolist() == [int(surest)]
                written["stuck"] += 1
            canvas[picks] = best[picks]
        assert torch.equal(samples.tokens[row], canvas)
    assert min(written.values()) > 15, written  # the part written is random, and both cases come up


def test_what_is_recorded_says_which_best_tokens_are_right():
    prompts, samples = taught()
    trajectory = samples.trajectory
    assert len(trajectory.row) == int(samples.steps.sum())
    for index, (row, step) in enumerate(zip(trajectory.row, trajectory.step, strict=True)):
        before = (samples.unmasked_at[row] >= 0) & (samples.unmasked_at[row] < step)
        canvas = torch.where(before, samples.tokens[row], prompts.canvas[row])
        best = MODEL.table.detach()[int(MODEL.state(canvas[None]))].argmax(-1)
        assert torch.equal(trajectory.writable[index], canvas == V)
        assert torch.equal(trajectory.inputs["right"][index], (canvas == V) & (best == prompts.text[row]))


@pytest.mark.parametrize("settings", [{}, {"hidden_size": 2}, {"read_all": True}], ids=str)
def test_the_teacher_and_the_policy_read_one_evaluation(settings):
    _, samples = taught(rows=20, network=network_of(**settings))
    assert torch.equal(samples.evaluations, samples.steps)


# ---------------------------------------------------------------------------------------- what is learned from it


def test_the_loss_is_a_cross_entropy_over_every_mask_in_which_wrong_ones_count_more():
    network = network_of()
    _, samples = taught(rows=12, network=network)
    trajectory, wrong = samples.trajectory, 7.0
    inputs = {name: value for name, value in trajectory.inputs.items() if name != "right"}
    scores, right = network.scores(**inputs).double(), trajectory.inputs["right"]
    terms = [
        -F.logsigmoid(scores[i, j]) if right[i, j] else -wrong * F.logsigmoid(-scores[i, j])
        for i, j in trajectory.writable.nonzero().tolist()
    ]
    expected = torch.stack(terms).mean()
    loss = learn_answers(network, trajectory, float(len(terms)), wrong)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)


def config_of(chunk=1000, temperature=1.0, **algorithm):
    return PolicyTrainingSettings.of({
        "seed": 0, "algorithm": {"name": "imitation", "action": "bernoulli", "block_length": None, "only_correct": False, **algorithm},
        "sampler": {"temperature": temperature, "steps": 3, "budgets": None},
        "training": {"chunk": chunk, "batch_size": 6, "accum": 1},
    })  # fmt: skip


@pytest.mark.parametrize("expert, setting", [("answers", 3.0), ("confidence_noisy", 1.0)])
def test_chunks_leave_the_loss_and_its_gradient(expert, setting):
    made = []
    for chunk in (1000, 7):
        network, config = network_of(), config_of(chunk, expert=expert, setting=setting)
        loss = teacher_loss(MODEL, network, random_prompts(12), config.algorithm, config, seed=3)
        made.append((loss, [p.grad for p in network.parameters() if p.grad is not None]))
    assert made[0][0] == pytest.approx(made[1][0], rel=1e-5) and made[0][0] > 0
    for whole, parts in zip(made[0][1], made[1][1], strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


class SureTask(TextTask):
    """Blank canvases; the answer at a position is token 0 with the probability that the model gives it."""

    def __init__(self):
        pass

    def prompts(self, count, seed):
        generator = torch.Generator().manual_seed(seed % 2**31)
        text = (torch.rand(count, len(SURE), generator=generator) > torch.tensor(SURE)).long()
        return Prompts(torch.full_like(text, 2), {}, text)


def sure_model():
    joint = torch.ones([], dtype=torch.float64)
    for sure in SURE:
        joint = joint[..., None] * torch.tensor([sure, 1 - sure], dtype=torch.float64)
    return from_joint(joint)


def separation(model, network):
    """Over masks of other canvases: the chance that a right best token scores above a wrong one."""
    prompts = SureTask().prompts(300, 10**6)
    teacher = Answers(prompts.text, network.inputs)
    record = lambda observation: {"right": teacher.right(observation), **network.inputs(observation)}
    trajectory = sample(
        UnmaskingEnvironment(model, DecodeOptions(5)), Strategy(teacher, TokenRule(0.0)), prompts, 1, record=record
    ).trajectory
    right = trajectory.inputs.pop("right")
    with torch.no_grad():
        scores = network.scores(**trajectory.inputs)
    better, worse = scores[right], scores[trajectory.writable & ~right]
    return float((better[:, None] > worse).double().mean())


def test_learning_from_answers_raises_the_scores_of_right_best_tokens_over_those_of_wrong_ones():
    model, network = sure_model(), network_of()
    parameters = list(network.parameters())
    optimiser = Optimiser(parameters, OptimSettings(**OPTIM), 1)
    learner = loops.Learner(network, optimiser, MovingAverage(parameters, 0.9), Processes(0, 1, torch.device("cpu")))
    config, before = config_of(expert="answers", setting=2.0), separation(model, network)
    config.training.batch_size = 48
    made = loops.Imitation(model, learner, SureTask(), SamplesReward(lambda *_: None), config)
    losses = [made.iteration(step)["loss"] for step in range(30)]
    assert learner.updates == 30 and sum(losses[-5:]) < sum(losses[:5])
    assert separation(model, network) > max(0.75, before + 0.2)


# ---------------------------------------------------------------------------------------- what is refused


def test_an_unknown_teacher_and_answers_that_nobody_knows_are_refused():
    puzzles = random_prompts(2)
    text = Prompts(puzzles.canvas, {})
    teaching = lambda expert: TeachingSettings(expert=expert, setting=1.0)
    for expert in ("answers", "leftmost", "threshold", "factor", "entropy_bound", "confidence_noisy"):
        check_teacher(teaching(expert), puzzles)
    check_teacher(teaching("threshold"), text)
    with pytest.raises(ValueError, match="expert='random' is unknown; use one of threshold, .*, answers"):
        check_teacher(teaching("random"), puzzles)
    with pytest.raises(ValueError, match=r"expert=answers needs data that knows the right text \(data=puzzles\)"):
        check_teacher(teaching("answers"), text)


def test_a_rule_held_to_blocks_writes_one_after_the_other_while_everything_is_writable():
    canvas, first = torch.full((20, LENGTH), V), LENGTH % 2
    canvas[:, :first] = 0
    environment = UnmaskingEnvironment(MODEL, DecodeOptions(LENGTH))
    strategy = Strategy(InBlocks(Threshold(0.3), 2), TokenRule(0.0))
    samples = sample(environment, strategy, Prompts(canvas, prompt_length=first), record=lambda seen: {})
    blocks = samples.unmasked_at[:, first:].unflatten(1, (-1, 2))
    assert (blocks[:, 1:].amin(2) > blocks[:, :-1].amax(2)).all()
    assert samples.trajectory.writable.shape[1] == LENGTH - first
    assert (samples.trajectory.writable.sum(1) > 2).any()


@pytest.mark.parametrize("settings", [{}, {"hidden_size": 2}, {"read_all": True}], ids=str)
def test_a_rule_in_blocks_and_the_policy_read_one_evaluation(settings):
    """Else the time that is imitated runs twice as fast as the policy's own will."""
    network, canvas = network_of(**settings), torch.full((20, LENGTH), V)
    expert = Expert(network, InBlocks(Threshold(0.3), 2))
    samples = sample(
        UnmaskingEnvironment(MODEL, DecodeOptions(LENGTH)),
        Strategy(expert, TokenRule(0.0)),
        Prompts(canvas),
        record=network.inputs,
    )
    assert torch.equal(samples.evaluations, samples.steps)
    torch.testing.assert_close(samples.trajectory.inputs["time"], samples.trajectory.step / LENGTH)


def test_only_rewarded_rollouts_are_learnt_from_and_without_any_nothing_is():
    config, made = config_of(temperature=0.0, expert="threshold", setting=0.5), []
    prompts = random_prompts(12)
    right = torch.arange(12) % 3 == 0
    some = SamplesReward(lambda samples, rows: RewardOutput(right.float()))
    for asked, reward in ((prompts, some), (prompts.take(right.nonzero().squeeze(1)), None), (prompts, None)):
        network = network_of()
        loss = teacher_loss(MODEL, network, asked, config.algorithm, config, seed=3, reward=reward)
        made.append((loss, network.output_proj.weight.grad))
    assert made[0][0] == pytest.approx(made[1][0], rel=1e-5) != pytest.approx(made[2][0], rel=1e-3)
    torch.testing.assert_close(made[0][1], made[1][1], atol=1e-6, rtol=1e-4)
    network = network_of()
    parameters = list(network.parameters())
    learner = loops.Learner(
        network, Optimiser(parameters, OptimSettings(**OPTIM), 1), MovingAverage(parameters, 0.9),
        Processes(0, 1, torch.device("cpu")),
    )  # fmt: skip
    nothing = SamplesReward(lambda samples, rows: RewardOutput(torch.zeros(len(samples.tokens))))
    config.algorithm.only_correct = True
    metrics = loops.Imitation(sure_model(), learner, SureTask(), nothing, config).iteration(0)
    assert metrics == {"loss": 0.0} and learner.updates == 0
