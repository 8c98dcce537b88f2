"""
The pure functions of GRPO against verl's values, closed forms and brute force, the algorithms of
the table against their formulas, and one small update that must learn.
"""

import itertools
import math
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from generate import Rollout, generate
from model import Model, ModelConfig
from tests.test_model import questions
from train_rlvr import ALGORITHMS, Algorithm, Config, Experience, aggregate, cispo_loss
from train_rlvr import equal_rewards, group_advantages, judge, kl_estimate, policy_loss
from train_rlvr import process_advantages, update

CASES = range(8)
VERL_KINDS = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]


@pytest.fixture
def golden(shared):
    """{name: tensor}, those of numbers in fp64."""
    values = {}
    with np.load(shared / "golden" / "grpo_verl.npz", allow_pickle=False) as file:
        for name in file.files:
            array = file[name]
            array = array.astype(np.float64) if array.dtype == np.float32 else array
            values[name] = torch.from_numpy(array)
    return values


def close(a, b):
    a = torch.as_tensor(a).double()
    return torch.allclose(a, torch.as_tensor(b).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_advantages_of_verl(golden, case):
    rewards = golden[f"{case}/rewards"].view(-1, int(golden[f"{case}/group_size"]))
    mask = golden[f"{case}/mask"] > 0
    ours = group_advantages(rewards).flatten()[:, None].expand(mask.shape)
    # verl's rounding gives equal rewards an advantage
    equal = equal_rewards(rewards).repeat_interleave(rewards.size(1))
    kept = mask & ~equal[:, None]
    assert kept.any()
    wanted = golden[f"{case}/advantages"][kept]
    assert torch.allclose(ours[kept].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case,kind", list(itertools.product(CASES, VERL_KINDS)))
def test_policy_loss_of_verl(golden, case, kind):
    g = {}
    for name, value in golden.items():
        number, _, what = name.partition("/")
        if number == str(case):
            g[what] = value
    mask = g["mask"] > 0
    advantages = (g["advantages"] * g["mask"]).sum(-1) / g["mask"].sum(-1).clamp(min=1)
    sampled = g["logprob"], g["old_logprob"], advantages, mask
    loss, _, clipped = policy_loss(*sampled, 0.2, 0.28, 3.0)
    if kind == "seq-mean-token-sum":  # a sum over tokens: our "fixed" without its 1/R
        ours = aggregate(loss, mask, "fixed") * mask.size(-1)
    else:
        ours = aggregate(loss, mask, "token" if kind == "token-mean" else "sequence")
    assert close(ours, g[f"pg_loss_{kind}"])
    assert close(clipped.sum() / mask.sum(), g["clipfrac"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind,name", [("k1", "kl"), ("k2", "mse"), ("k3", "low_var_kl")])
def test_kl_of_verl(golden, case, kind, name):
    logprob = golden[f"{case}/logprob"]
    ref = golden[f"{case}/ref_logprob"]
    inside = (ref - logprob).abs() <= 20
    assert close(kl_estimate(logprob, ref, kind)[inside], golden[f"{case}/kl_{name}"][inside])


def test_process_advantages_look_only_ahead():
    """
    Against a loop over tokens, and by what they are for: what happened before a token's frame does
    not matter to it.
    """
    rewards = torch.rand(2, 5, 3).double()
    frame_of_token = torch.tensor([0, 0, 1, 1, 2, 2])
    advantages = process_advantages(rewards, frame_of_token)
    for b, g, r in itertools.product(range(2), range(5), range(6)):
        to_go = rewards[b, :, frame_of_token[r] :].sum(-1).numpy()
        by_hand = (to_go[g] - to_go.mean()) / to_go.std(ddof=1)
        assert advantages[b, g, r].item() == pytest.approx(by_hand, abs=1e-4)
    other = rewards.clone()
    other[..., 0] = torch.rand(2, 5)
    again = process_advantages(other, frame_of_token)
    assert torch.equal(again[..., 2:], advantages[..., 2:])
    assert not torch.equal(again[..., :2], advantages[..., :2])
    one_frame = process_advantages(rewards[..., :1], torch.zeros(6, dtype=torch.long))
    assert torch.equal(one_frame, group_advantages(rewards[..., 0])[..., None].expand(2, 5, 6))


def test_equal_rewards_have_no_advantage():
    """
    Guards against rounding in the mean that becomes an advantage of 1, and against a group of one,
    which is no group.
    """
    assert (group_advantages(torch.full((2, 16), 1.3)) == 0).all()
    assert (group_advantages(torch.full((2, 7), 0.1) + 1e-9) == 0).all()
    assert (group_advantages(torch.tensor([[0.7]])) == 0).all()
    assert (group_advantages(torch.tensor([[0.0, 1.0, 1.0, 1.0]])) != 0).all()


def test_advantage_kinds_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0, 3.0]])
    mean = torch.tensor([[-1.0, -1.0, 0.0, 2.0]])
    others = torch.tensor([[-4 / 3, -4 / 3, 1 - 1.0, 3 - 1 / 3]])
    assert torch.allclose(group_advantages(rewards, "mean"), mean)
    assert torch.allclose(group_advantages(rewards, "loo"), others)
    assert torch.allclose(group_advantages(rewards), mean / math.sqrt(2), atol=1e-5)
    assert group_advantages(rewards, "best").tolist() == [[0, 0, 0, 4]]
    assert group_advantages(1 - rewards, "best").tolist() == [[2, 2, 0, 0]]


@pytest.mark.parametrize(
    "A,ratio,expected,moves",
    [
        (1, 1.5, -1.2, False),
        (1, 0.5, -0.5, True),
        (-1, 0.5, 0.8, False),
        (-1, 1.5, 1.5, True),
        (-1, 9.0, 3.0, False),
        (1, 1.1, -1.1, True),
        (-1, 0.9, 0.9, True),
    ],
)
def test_clip_for_both_signs_of_the_advantage(A, ratio, expected, moves):
    """
    Guards against a clip that holds on one side only, or for one sign: loss and gradient on both
    sides of the range; c = 3 bounds the loss of bad samples that became likely.
    """
    logprob = torch.tensor([[math.log(ratio)]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, _, clipped = policy_loss(logprob, torch.zeros(1, 1), torch.tensor([float(A)]), mask)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.sum().backward()
    assert (logprob.grad.abs().item() > 0) == moves
    assert clipped.item() == ((A, ratio) in [(1, 1.5), (-1, 0.5)])


def test_sequence_ratio_is_the_geometric_mean():
    logprob = torch.tensor([[0.3, -0.1, 5.0]])
    mask = torch.tensor([[True, True, False]])
    A = torch.tensor([1.0])
    _, rho, _ = policy_loss(logprob, torch.zeros(1, 3), A, mask, ratio="sequence")
    assert torch.allclose(rho[mask], torch.full((2,), math.exp(0.1)))


def test_kl_sign_and_value_against_the_exact_kl():
    """
    Guards against the KL of the other direction: averaged over samples of the policy, k1 and k3 are
    KL(policy || reference).
    """
    p = torch.tensor([0.5, 0.3, 0.2])
    q = torch.tensor([0.2, 0.2, 0.6])
    exact = (p * (p / q).log()).sum()
    for kind in ("k1", "k3"):
        assert torch.allclose((p * kl_estimate(p.log(), q.log(), kind)).sum(), exact, atol=1e-6)
    assert (kl_estimate(p.log(), q.log(), "k3") >= 0).all()


def test_k3_near_zero():
    """Guards against exp(d) - 1 - d, noise in fp32 below 1e-3; expm1 keeps the digits."""
    d = torch.tensor([1e-3, 1e-2, -1e-3])
    wanted = d.double().square().float() / 2
    assert torch.allclose(kl_estimate(-d, torch.zeros(3), "k3"), wanted, rtol=1e-2)


@pytest.mark.parametrize("loss_of", [policy_loss, cispo_loss])
def test_no_nan_gradient_through_the_mask(loss_of):
    """Guards against a wild log-probability under the mask that reaches exp."""
    logprob = torch.tensor([[-0.1, 500.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    old = torch.tensor([[0.0, -500.0]])
    loss, *_ = loss_of(logprob, old, torch.tensor([1.0]), mask, 0.2, 0.2, 3.0, "token")
    (aggregate(loss, mask) + aggregate(kl_estimate(logprob, old), mask)).backward()
    assert torch.isfinite(logprob.grad).all()
    assert logprob.grad[0, 0] != 0 and logprob.grad[0, 1] == 0


# --------------------------------------------------------------------------------------------------
# The update on a small model

V = 11
EOS = 10


class NoLegal:
    """As much of a world as update() looks at: every id may stand everywhere."""

    response_len = 5
    allowed_ids = None


def small_model():
    torch.manual_seed(0)
    return Model(ModelConfig(V, 32, 2, 2, 2, 16)).eval()


def an_experience(model, B=6, G=4, R=5):
    prompt = torch.randint(0, EOS, (B, 4))
    prompt_len = torch.tensor([4, 3, 2, 4, 1, 4][:B])
    batch = questions(prompt, prompt_len, R, EOS)
    r = generate(model, batch, G, generator=torch.Generator().manual_seed(0))
    rewards = torch.rand(B, G)
    answers = r.tokens, r.mask(), r.length, r.ended
    reference = r.logprob - 0.1 * torch.rand_like(r.logprob)
    advantages = group_advantages(rewards)
    return Experience(prompt, prompt_len, *answers, rewards, advantages, r.logprob, reference)


def one_update(experience, algorithm=None, lr=1e-2, **changes):
    """The weights after one step of SGD with an Algorithm (default: grpo), and what is logged."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    given = dict(kl_coef=0.1, max_grad_norm=1e9, micro_batch_size=6, algorithm="on trial")
    config = Config(**{**given, **changes})
    with patch.dict(ALGORITHMS, {"on trial": algorithm or ALGORITHMS["grpo"]}):
        row = update(model, optimizer, NoLegal(), experience, config, nullcontext())
    return torch.cat([p.detach().flatten() for p in model.parameters()]), row


@pytest.mark.parametrize("average", ["token", "sequence", "fixed"])
def test_micro_batches_do_not_change_the_gradient(average):
    """
    Guards against means of means: splits of 1, 2 and 4 prompts (the last uneven) against the whole
    mini-batch. What is logged must be that of all micro-batches, too, and not of the last.
    """
    experience = an_experience(small_model())
    algorithm = Algorithm(average=average)
    whole, row = one_update(experience, algorithm)
    before = torch.cat([p.detach().flatten() for p in small_model().parameters()])
    assert (whole - before).abs().max() > 1e-5
    for size in (1, 2, 4):
        split, split_row = one_update(experience, algorithm, micro_batch_size=size)
        assert torch.allclose(split, whole, atol=1e-6)
        for name in ("loss", "kl", "entropy", "ratio"):
            assert split_row[name] == pytest.approx(row[name], abs=1e-5)


def test_an_advantage_of_every_token_is_that_of_the_answer_if_all_are_equal():
    experience = an_experience(small_model())
    experience.mask[..., 3:] = False
    whole, _ = one_update(experience)
    every = experience.advantages[..., None].expand(experience.mask.shape)
    experience.advantages = every.clone()
    # also where micro-batches trim their answers
    assert torch.allclose(one_update(experience, micro_batch_size=2)[0], whole, atol=1e-6)
    experience.advantages[..., 1:] *= -1
    assert not torch.allclose(one_update(experience)[0], whole, atol=1e-4)


def test_first_update_has_ratio_one_and_no_loss():
    """
    Guards against anything that differs between sampling and scoring: without it the first loss is
    0 up to unequal lengths (averaged per sequence: exactly).
    """
    algorithm = Algorithm(average="sequence")
    _, row = one_update(an_experience(small_model()), algorithm, kl_coef=0.0)
    assert row["ratio"] == pytest.approx(1, abs=1e-5) and row["ratio_error"] < 1e-5
    assert row["clipped"] == 0 and abs(row["loss"]) < 1e-6


def test_update_raises_the_better_than_average():
    """Guards against a loss of the wrong sign."""
    experience = an_experience(small_model())
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    config = Config(kl_coef=0.0, micro_batch_size=6)
    update(model, optimizer, NoLegal(), experience, config, nullcontext())
    e = experience
    new, _ = model(e.prompt, e.prompt_len, e.tokens, e.mask)
    gain = ((new - e.old_logprob) * e.mask).sum(-1)
    assert gain[e.advantages > 0].mean() > 0 > gain[e.advantages < 0].mean()


def test_masked_tokens_have_no_gradient():
    """
    Given tokens (and padding) are outside the mask: guards against what stands there reaching the
    update as a target.
    """
    experience = an_experience(small_model())
    experience.mask[..., 2] = False
    old = experience.old_logprob.clone()
    reference = experience.ref_logprob.clone()
    old[..., 2] = -50.0
    reference[..., 2] = 30.0
    wild = replace(experience, old_logprob=old, ref_logprob=reference)
    assert torch.equal(one_update(experience)[0], one_update(wild)[0])


@pytest.mark.parametrize(
    "change",
    [
        dict(kl_coef=0.0),
        dict(kl_estimator="k2"),
        dict(kl_estimator="k1"),
        dict(entropy_coef=0.1),
        dict(algorithm=Algorithm(average="fixed")),
        dict(algorithm=Algorithm(average="sequence")),
        dict(max_grad_norm=1e-3),
        dict(temperature=0.7),
    ],
)
def test_every_option_reaches_the_update(change):
    """Guards against an option that is parsed but never passed on."""
    experience = an_experience(small_model())
    assert not torch.equal(one_update(experience)[0], one_update(experience, **change)[0])


def test_the_likelihood_term_is_that_of_maximum_likelihood():
    """Guards against a term with another temperature, mask or denominator, however it is split."""
    experience = an_experience(small_model())
    B = len(experience.prompt)
    experience.truth = torch.randint(0, EOS, (B, 1, 5))
    length = torch.randint(1, 6, (B, 1, 1))
    experience.truth_mask = torch.arange(5) < length
    model = small_model()
    prompt = experience.prompt, experience.prompt_len
    logprob, _ = model(*prompt, experience.truth, experience.truth_mask, entropy=False)
    loss = -(logprob * experience.truth_mask).sum() / experience.truth_mask.sum()
    loss.backward()
    slope = torch.cat([p.grad.flatten() for p in model.parameters()])
    without, _ = one_update(experience, temperature=0.7)
    for size in (6, 4):
        given = dict(temperature=0.7, mle_coef=0.3, micro_batch_size=size)
        moved = one_update(experience, **given)[0] - without
        assert torch.allclose(moved, -0.3e-2 * slope, atol=1e-6), size


@pytest.mark.parametrize(
    "algorithm",
    [
        Algorithm(clip=(0.01, 0.01, 3.0)),
        Algorithm(clip=(0.2, 0.5, 3.0)),
        Algorithm(ratio="sequence"),
        Algorithm(clip=(0.2, 9.0, 1.05)),
    ],
)
def test_every_part_of_an_algorithm_reaches_the_update(algorithm):
    experience = an_experience(small_model())
    noise = 0.6 * torch.randn_like(experience.old_logprob)
    experience.old_logprob = experience.old_logprob + noise
    assert not torch.equal(one_update(experience)[0], one_update(experience, algorithm)[0])


def test_small_steps_survive():
    """
    Guards against weights in bf16, which a step of 1e-6 leaves as they are: they are fp32, also
    under autocast.
    """
    model = small_model()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0)
    experience = an_experience(model)
    precision = torch.autocast("cpu", dtype=torch.bfloat16)
    update(model, optimizer, NoLegal(), experience, Config(kl_coef=0.0), precision)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after != before).float().mean() > 0.5


# --------------------------------------------------------------------------------------------------
# The table of algorithms: what judge() and update() make of it, against formulas


class Table(torch.nn.Module):
    """A "network" whose log-probabilities are its parameters: their gradients are seen directly."""

    def __init__(self, logprob):
        super().__init__()
        self.logprob = torch.nn.Parameter(logprob.clone())

    def forward(self, prompt, prompt_len, response, mask, allowed_ids, temperature, entropy):
        """The prompt's only token is the number of its row."""
        own = self.logprob[prompt[:, 0], :, : response.size(-1)]
        return own.masked_fill(~mask, 0.0), torch.zeros(mask.shape)


class Judged:
    """A world whose rewards are known; its longest answer has 9 tokens, its prompts have one."""

    response_len = 9
    max_prompt = 1
    allowed_ids = None

    def __init__(self, rewards):
        self.rewards = rewards

    def compute_reward(self, batch, tokens, terms, by_frame=False):
        return self.rewards


def by_hand(name, rho, s, A, n):
    """
    (loss, its derivative by the log-probability) of a token, before the average over tokens or
    sequences: rho its ratio, s that of its response, A a dictionary of advantages, n the tokens of
    its response. Each formula as its paper has it.
    """
    if name == "cispo":  # REINFORCE with a weight between 0 and 5 that is a constant
        return None, -min(max(rho, 0.0), 5.0) * A["standardized"]
    if name == "raft":  # likelihood of the best, of the same weight in every group
        return None, -A["of the best"]
    if name == "gspo":  # one ratio for the response, clipped to [1 - 3e-4, 1 + 4e-4]
        a = A["standardized"]
        inside = s < 1 + 4e-4 if a > 0 else s > 1 - 3e-4
        # each of the n tokens of the response moves s by s / n, and each of n losses with it
        return -min(s * a, min(max(s, 1 - 3e-4), 1 + 4e-4) * a), -s * a * inside
    a = A[{"rloo": "others", "dr_grpo": "mean"}.get(name, "standardized")]
    inside = rho < 1.2 if a > 0 else rho > 0.8
    loss = -min(rho * a, min(max(rho, 0.8), 1.2) * a)
    bounded = name != "grpo_single_clip" and a < 0 and rho > 3
    return (-3 * a, 0.0) if bounded else (loss, -rho * a * inside)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_are_their_formulas(name):
    """
    Guards against an entry of the table that is another algorithm: a wrong advantage, clip, ratio
    or average, a gradient through cispo's weight. Loss and gradient token by token, in loops.
    """
    B, G, R = 3, 4, 6
    old = -torch.rand(B, G, R) - 0.1
    difference = torch.randn(B, G, R)
    difference[2, 0, :3] = torch.tensor([2.0, -3.0, 1.8])  # beyond all clips
    length = torch.tensor([[6, 2, 3, 1], [1, 4, 4, 6], [3, 2, 5, 6]])
    rewards = torch.tensor([[0.0, 1.0, 0.5, 0.2], [3.0, 1.0, 1.0, 0.0], [0.1, 0.9, 0.8, 0.7]])
    # near gspo's clip: beyond the lower end, within the upper one, beyond it, within the lower one
    for g, mean in enumerate((-3.5e-4, 3.5e-4, 5e-4, -2e-4)):
        own = 1e-3 * difference[0, g, : length[0, g]]
        difference[0, g, : length[0, g]] = own - own.mean() + mean
    batch = questions(torch.arange(B)[:, None], torch.ones(B, dtype=torch.long), 9)
    rollout = Rollout(torch.zeros(B, G, R, dtype=torch.long), old, length, length < 6)
    world = Judged(rewards)
    config = Config(algorithm=name, kl_coef=0.0, max_grad_norm=1e9, micro_batch_size=2)
    experience = judge(world, batch, rollout, [(1.0, "known")], config)
    network = Table(old + difference)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    row = update(network, optimizer, world, experience, config, nullcontext())
    got = (old + difference - network.logprob.detach()).double()

    wanted = np.zeros((B, G, R))
    total = 0.0
    cut = 0
    for b, g in itertools.product(range(B), range(G)):
        r = rewards[b].double().numpy()
        A = {
            "standardized": (r[g] - r.mean()) / (r.std(ddof=1) + 1e-6),
            "mean": r[g] - r.mean(),
            "others": r[g] - np.delete(r, g).mean(),
            "of the best": G * (r[g] == r.max()) / (r == r.max()).sum(),
        }
        n = int(length[b, g])
        own = difference[b, g, :n].double().numpy()
        divisor = length.sum().item()
        if name == "dr_grpo":
            divisor = B * G * 9
        if name in ("gspo", "raft"):
            divisor = B * G * n
        for t in range(n):
            loss, slope = by_hand(name, np.exp(own[t]), np.exp(own.mean()), A, n)
            if loss is None:
                loss = slope * (old + difference)[b, g, t].item()
            wanted[b, g, t] = slope / divisor
            total += loss / divisor
            cut += slope == 0
    assert np.abs(got.numpy() - wanted).max() < 1e-6
    assert row["loss"] == pytest.approx(total, abs=1e-5)
    assert (cut > 2) == (name != "cispo") and (got != 0).sum() > (4 if name == "raft" else 10)


@pytest.mark.parametrize("of_each", [False, True])
def test_given_tokens_are_outside_the_mask_of_an_experience(of_each):
    """Guards against given tokens that are learned from, also where each answer has its own."""
    B, G, R = 2, 3, 5
    forced = torch.full((B, G, R), -1) if of_each else torch.full((B, R), -1)
    forced[0, ..., 1] = 4
    if of_each:
        forced[1, 2, :3] = 7
    prompt = torch.arange(B)[:, None]
    batch = questions(prompt, torch.ones(B, dtype=torch.long), R, EOS, forced=forced)
    length = torch.tensor([[5, 2, 3], [4, 5, 3]])
    tokens = torch.zeros(B, G, R, dtype=torch.long)
    rollout = Rollout(tokens, torch.zeros(B, G, R), length, length < 5)
    experience = judge(Judged(torch.rand(B, G)), batch, rollout, [(1.0, "known")], Config())
    wanted = torch.arange(R) < length[..., None]
    wanted[0, :, 1] = False
    if of_each:
        wanted[1, 2, :3] = False
    assert torch.equal(experience.mask, wanted)


def test_cispos_weight_has_no_gradient():
    """Guards against a gradient through rho: what the old policy said is a constant."""
    logprob = torch.tensor([[-0.5, -1.0, -2.0]], requires_grad=True)
    old = torch.tensor([[-0.7, -4.0, -0.1]], requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    A = torch.tensor([-2.0])
    loss, rho, clipped = cispo_loss(logprob, old, A, mask, 1.0, 4.0, 0.0, "token")
    slope, of_old = torch.autograd.grad(loss.sum(), (logprob, old), allow_unused=True)
    assert of_old is None
    weight = torch.tensor([[math.exp(0.2), 5.0, math.exp(-1.9)]])
    assert torch.allclose(slope, 2 * weight) and clipped.tolist() == [[False, True, False]]
