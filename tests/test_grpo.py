"""The pure functions of GRPO against verl's values, closed forms and brute force, and one small loop that must learn."""
import itertools
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from model import Model, ModelConfig
from train_rlvr import Config, Experience, aggregate, equal_rewards, group_advantages, kl_estimate, policy_loss, process_advantages, update

CASES = range(8)


@pytest.fixture
def golden(shared):
    with np.load(shared / "golden" / "grpo_verl.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name].astype(np.float64) if file[name].dtype == np.float32 else file[name]) for name in file.files}


def close(a, b):
    return torch.allclose(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_advantages_of_verl(golden, case):
    rewards = golden[f"{case}/rewards"].view(-1, int(golden[f"{case}/group_size"]))
    mask = golden[f"{case}/mask"] > 0
    ours = group_advantages(rewards).flatten()[:, None].expand(mask.shape)
    kept = mask & ~equal_rewards(rewards).repeat_interleave(rewards.size(1))[:, None]  # verl's rounding gives equal rewards an advantage
    assert kept.any()
    assert torch.allclose(ours[kept].double(), golden[f"{case}/advantages"][kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case,kind", list(itertools.product(CASES, ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])))
def test_policy_loss_of_verl(golden, case, kind):
    g = {name.split("/")[1]: value for name, value in golden.items() if name.startswith(f"{case}/")}
    mask = g["mask"] > 0
    advantages = (g["advantages"] * g["mask"]).sum(-1) / g["mask"].sum(-1).clamp(min=1)
    loss, _, clipped = policy_loss(g["logprob"], g["old_logprob"], advantages, mask, 0.2, 0.28, 3.0)
    if kind == "seq-mean-token-sum":  # the sum over tokens per sequence: our "fixed" without its 1/R
        ours = aggregate(loss, mask, "fixed") * mask.size(-1)
    else:
        ours = aggregate(loss, mask, {"token-mean": "token", "seq-mean-token-mean": "sequence"}[kind])
    assert close(ours, g[f"pg_loss_{kind}"])
    assert close(clipped.sum() / mask.sum(), g["clipfrac"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind,name", [("k1", "kl"), ("k2", "mse"), ("k3", "low_var_kl")])
def test_kl_of_verl(golden, case, kind, name):
    logprob, ref = golden[f"{case}/logprob"], golden[f"{case}/ref_logprob"]
    inside = (ref - logprob).abs() <= 20
    assert close(kl_estimate(logprob, ref, kind)[inside], golden[f"{case}/kl_{name}"][inside])


def test_process_advantages_look_only_ahead():
    """Against a loop over tokens, and by what they are for: what happened before a token's frame does not matter to it."""
    torch.manual_seed(0)
    rewards, frame_of_token = torch.rand(2, 5, 3).double(), torch.tensor([0, 0, 1, 1, 2, 2])
    advantages = process_advantages(rewards, frame_of_token)
    for b, g, r in itertools.product(range(2), range(5), range(6)):
        to_go = rewards[b, :, frame_of_token[r]:].sum(-1).numpy()
        assert advantages[b, g, r].item() == pytest.approx((to_go[g] - to_go.mean()) / to_go.std(ddof=1), abs=1e-4)
    other = rewards.clone()
    other[..., 0] = torch.rand(2, 5)
    assert torch.equal(process_advantages(other, frame_of_token)[..., 2:], advantages[..., 2:])
    assert not torch.equal(process_advantages(other, frame_of_token)[..., :2], advantages[..., :2])
    assert torch.equal(process_advantages(rewards[..., :1], torch.zeros(6, dtype=torch.long)), group_advantages(rewards[..., 0])[..., None].expand(2, 5, 6))


def test_equal_rewards_have_no_advantage():
    """Traps 9 and 10: rounding in the mean must not become an advantage, and a group of one is no group."""
    assert (group_advantages(torch.full((2, 16), 1.3)) == 0).all()
    assert (group_advantages(torch.full((2, 7), 0.1) + 1e-9) == 0).all()
    assert (group_advantages(torch.tensor([[0.7]])) == 0).all()
    assert (group_advantages(torch.tensor([[0.0, 1.0, 1.0, 1.0]])) != 0).all()


def test_advantage_kinds_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0, 3.0]])
    assert torch.allclose(group_advantages(rewards, "mean"), torch.tensor([[-1.0, -1.0, 0.0, 2.0]]))
    assert torch.allclose(group_advantages(rewards, "loo"), torch.tensor([[-4 / 3, -4 / 3, 1 - 1.0, 3 - 1 / 3]]))
    assert torch.allclose(group_advantages(rewards), torch.tensor([[-1.0, -1.0, 0.0, 2.0]]) / math.sqrt(2), atol=1e-5)


def test_clip_for_both_signs_of_the_advantage():
    """Trap 13: loss and gradient on both sides of the clip range; c = 3 bounds the loss of bad samples that became likely."""
    for A, ratio, expected, moves in [(1, 1.5, -1.2, False), (1, 0.5, -0.5, True), (-1, 0.5, 0.8, False), (-1, 1.5, 1.5, True),
                                      (-1, 9.0, 3.0, False), (1, 1.1, -1.1, True), (-1, 0.9, 0.9, True)]:
        logprob = torch.tensor([[math.log(ratio)]], requires_grad=True)
        loss, rho, clipped = policy_loss(logprob, torch.zeros(1, 1), torch.tensor([float(A)]), torch.ones(1, 1, dtype=torch.bool))
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.sum().backward()
        assert (logprob.grad.abs().item() > 0) == moves
        assert clipped.item() == ((A, ratio) in [(1, 1.5), (-1, 0.5)])


def test_sequence_ratio_is_the_geometric_mean():
    logprob = torch.tensor([[0.3, -0.1, 5.0]])
    mask = torch.tensor([[True, True, False]])
    _, rho, _ = policy_loss(logprob, torch.zeros(1, 3), torch.tensor([1.0]), mask, ratio="sequence")
    assert torch.allclose(rho[mask], torch.full((2,), math.exp(0.1)))


def test_kl_sign_and_value_against_the_exact_kl():
    """Trap 14: averaged over samples of the policy, k1 and k3 are KL(policy || reference)."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = (p * (p / q).log()).sum()
    for kind in ("k1", "k3"):
        assert torch.allclose((p * kl_estimate(p.log(), q.log(), kind)).sum(), exact, atol=1e-6)
    assert (kl_estimate(p.log(), q.log(), "k3") >= 0).all()


def test_k3_near_zero():
    """Trap 15: exp(d) - 1 - d in fp32 is noise below 1e-3; expm1 keeps the digits."""
    d = torch.tensor([1e-3, 1e-2, -1e-3])
    assert torch.allclose(kl_estimate(-d, torch.zeros(3), "k3"), d.double().square().float() / 2, rtol=1e-2)


def test_no_nan_gradient_through_the_mask():
    """Trap 12: a wild log-probability under the mask must not reach exp."""
    logprob = torch.tensor([[0.0, 500.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    loss, *_ = policy_loss(logprob, torch.tensor([[0.0, -500.0]]), torch.tensor([1.0]), mask)
    (aggregate(loss, mask) + aggregate(kl_estimate(logprob, torch.tensor([[0.0, -500.0]])), mask)).backward()
    assert torch.isfinite(logprob.grad).all() and logprob.grad[0, 0] != 0 and logprob.grad[0, 1] == 0


# ---------------------------------------------------------------------------------------------------------------------
# The update on a small model

V, EOS = 11, 10


class NoLegal:
    """As much of a world as update() looks at."""
    response_len = 5

    def legal(self):
        return None


def small_model():
    torch.manual_seed(0)
    return Model(ModelConfig(V, 32, 2, 2, 2, 16)).eval()


def an_experience(model, B=6, G=4, R=5):
    prompt, prompt_len = torch.randint(0, EOS, (B, 4)), torch.tensor([4, 3, 2, 4, 1, 4][:B])
    r = model.sample(prompt, prompt_len, G, R, EOS, generator=torch.Generator().manual_seed(0))
    rewards = torch.rand(B, G)
    return Experience(prompt, prompt_len, r.tokens, r.mask(), r.ended, rewards, group_advantages(rewards), r.logprob,
                      r.logprob - 0.1 * torch.rand_like(r.logprob))


def one_update(experience, context=None, lr=1e-2, **changes):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    config = Config(**{**dict(kl=0.1, max_norm=1e9, micro_batch=6), **changes})
    row = update(model, model, optimizer, NoLegal(), experience, config, nullcontext(), 1)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), row


@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_micro_batches_do_not_change_the_gradient(aggregation):
    """Trap 11: means of means. Splits of 1, 2 and 4 prompts (the last uneven) against the whole mini-batch."""
    experience = an_experience(small_model())
    whole, row = one_update(experience, aggregation=aggregation)
    before = torch.cat([p.detach().flatten() for p in small_model().parameters()])
    assert (whole - before).abs().max() > 1e-5
    for micro in (1, 2, 4):
        split, split_row = one_update(experience, aggregation=aggregation, micro_batch=micro)
        assert torch.allclose(split, whole, atol=1e-6)
        for name in ("loss", "kl", "entropy", "ratio"):  # trap 21: logged values are those of all micro-batches
            assert split_row[name] == pytest.approx(row[name], abs=1e-5)


def test_an_advantage_of_every_token_is_that_of_the_answer_if_all_are_equal():
    experience = an_experience(small_model())
    experience.mask[..., 3:] = False
    whole, _ = one_update(experience)
    experience.advantages = experience.advantages[..., None].expand(experience.mask.shape).clone()
    assert torch.allclose(one_update(experience, micro_batch=2)[0], whole, atol=1e-6)  # also where micro-batches trim their answers
    experience.advantages[..., 1:] *= -1
    assert not torch.allclose(one_update(experience)[0], whole, atol=1e-4)


def test_first_update_has_ratio_one_and_no_loss():
    """Trap 7: nothing may differ between sampling and scoring; then the loss is 0 up to unequal lengths (aggregated per sequence: exactly)."""
    _, row = one_update(an_experience(small_model()), kl=0.0, aggregation="sequence")
    assert row["ratio"] == pytest.approx(1, abs=1e-5) and row["ratio_error"] < 1e-5 and row["clipped"] == 0
    assert abs(row["loss"]) < 1e-6


def test_update_raises_the_better_than_average():
    """Trap 16."""
    experience = an_experience(small_model())
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    update(model, model, optimizer, NoLegal(), experience, Config(kl=0.0, micro_batch=6), nullcontext(), 1)
    new, _ = model(experience.prompt, experience.prompt_len, experience.tokens, experience.mask)
    gain = ((new - experience.old_logprob) * experience.mask).sum(-1)
    assert gain[experience.advantages > 0].mean() > 0 > gain[experience.advantages < 0].mean()


def test_masked_tokens_have_no_gradient():
    """Trap 23: forced tokens (and padding) are outside the mask; what stands there must not matter to the update as a target."""
    experience = an_experience(small_model())
    experience.mask[..., 2] = False
    wild = Experience(**{**vars(experience), "old_logprob": experience.old_logprob.clone(), "ref_logprob": experience.ref_logprob.clone()})
    wild.old_logprob[..., 2], wild.ref_logprob[..., 2] = -50.0, 30.0
    assert torch.equal(one_update(experience)[0], one_update(wild)[0])


@pytest.mark.parametrize("change", [dict(kl=0.0), dict(kl_kind="k2"), dict(kl_kind="k1"), dict(entropy=0.1), dict(aggregation="fixed"),
                                    dict(aggregation="sequence"), dict(max_norm=1e-3), dict(temperature=0.7)])
def test_every_option_reaches_the_update(change):
    """Trap 17: an option that is parsed but never passed on."""
    experience = an_experience(small_model())
    assert not torch.equal(one_update(experience)[0], one_update(experience, **change)[0])


@pytest.mark.parametrize("change", [dict(clip_low=0.01, clip_high=0.01), dict(clip_high=0.5), dict(ratio="sequence"), dict(dual_clip=1.05, clip_high=9.0)])
def test_every_clip_option_reaches_the_update(change):
    experience = an_experience(small_model())
    experience.old_logprob = experience.old_logprob + 0.6 * torch.randn_like(experience.old_logprob)
    assert not torch.equal(one_update(experience)[0], one_update(experience, **change)[0])


def test_small_steps_survive():
    """Trap 19: master weights are fp32, so a step of 1e-6 changes them even under bf16 autocast."""
    model = small_model()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0)
    experience = an_experience(model)
    update(model, model, optimizer, NoLegal(), experience, Config(kl=0.0), torch.autocast("cpu", dtype=torch.bfloat16), 1)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after != before).float().mean() > 0.5
