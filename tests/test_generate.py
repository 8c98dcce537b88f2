"""Sampling: against scoring, against the distribution itself, and against other ways to do it."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import generate as generate_module
from generate import Sampling, choose, generate
from tests.test_model import EOS, V, a_batch, lively, questions, sequence_logits, small


def seeded(seed, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def prompts(B=16, P=7):
    return torch.randint(0, EOS, (B, P)), torch.randint(1, P + 1, (B,))


# --------------------------------------------------------------------------------------------------
# What is sampled is what is scored


@pytest.mark.parametrize("setting", ["plain", "legal", "forced"])
def test_sampled_logprobs_equal_teacher_forced_ones(setting):
    """
    Guards against two distributions: sampling and scoring must agree in temperature, in what is
    allowed and in positions.
    """
    model = lively(small())
    prompt, prompt_len, _, _ = a_batch()
    R = 6
    allowed = None
    forced = None
    if setting == "legal":
        allowed = torch.rand(R, V) < 0.5
        allowed[:, 0] = True
    if setting == "forced":
        forced = torch.full((3, R), -1)
        forced[:, 2] = torch.tensor([1, 2, 3])
    batch = questions(prompt, prompt_len, R, allowed_ids=allowed, forced=forced)
    rollout = generate(model, batch, 64, 0.8, seeded(1))
    mask = rollout.mask()
    scored, _ = model(prompt, prompt_len, rollout.tokens, mask, allowed, 0.8)
    assert torch.allclose(scored[mask], rollout.logprob[mask], atol=1e-4)
    if setting == "legal":
        for t in range(R):
            assert allowed[t, rollout.tokens[..., t][mask[..., t]]].all()
    if setting == "forced":
        alive = rollout.length > 2
        given = rollout.tokens[..., 2] == torch.tensor([1, 2, 3])[:, None]
        assert given[alive].all() and alive.any()
    # both ways of ending occur, or the test says little
    assert rollout.ended.any() and not rollout.ended.all()


@pytest.mark.parametrize("static", [False, True])
def test_batch_that_shrinks_while_sampling_still_matches_scoring(static):
    """
    Prompts whose whole group has ended are dropped from the batch; what remains must not be mixed
    up. static is the way of a GPU.
    """
    model = lively(small(), 3)
    prompt, prompt_len = prompts()
    batch = questions(prompt, prompt_len, 40)
    rollout = generate(model, batch, 1, generator=seeded(2), static=static)
    scored, _ = model(prompt, prompt_len, rollout.tokens, rollout.mask())
    assert torch.allclose(scored, rollout.logprob, atol=1e-3)
    lengths = rollout.length.flatten().tolist()
    assert len(set(lengths)) > 4, lengths


def test_bf16_sampling_tells_the_logprobs_of_bf16_scoring():
    """Up to rounding, which is why they are recomputed; and both are near fp32's."""
    model = lively(small(), 1)
    prompt, prompt_len = prompts(6, 9)
    with torch.autocast("cpu", torch.bfloat16):
        rollout = generate(model, questions(prompt, prompt_len, 12), 16, generator=seeded(0))
        scored, _ = model(prompt, prompt_len, rollout.tokens, rollout.mask())
    mask = rollout.mask()
    exact, _ = model(prompt, prompt_len, rollout.tokens, mask)
    for logprob in (rollout.logprob, scored):
        assert (logprob - exact)[mask].abs().mean() < 0.02
    assert (rollout.logprob - scored)[mask].abs().mean() < 0.02


def test_length_counts_the_end_token():
    """
    Guards against a mask made from token values: it comes from lengths and holds the sampled end
    token, even if the same id is the filler.
    """
    model = lively(small(), 2)
    prompt = torch.randint(0, EOS, (4, 3))
    batch = questions(prompt, torch.tensor([3, 3, 2, 1]), 12)
    rollout = generate(model, batch, 8, generator=seeded(0))
    mask = rollout.mask()
    for b in range(4):
        for g in range(8):
            ids = rollout.tokens[b, g].tolist()
            expected = ids.index(EOS) + 1 if EOS in ids else 12
            assert mask[b, g].sum() == rollout.length[b, g] == expected
            assert rollout.ended[b, g] == (EOS in ids)
            assert (rollout.logprob[b, g, expected:] == 0).all()
            assert (rollout.logprob[b, g, :expected] < 0).all()


def test_cache_is_fresh_after_a_weight_update():
    """
    Guards against keys kept from old weights: sampling after an update equals sampling from a model
    that was born with the new ones.
    """
    model = lively(small())
    other = small()
    batch = questions(torch.randint(0, EOS, (2, 4)), torch.tensor([4, 3]), 5, None)
    generate(model, batch, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    other.load_state_dict(model.state_dict())
    a, b = (generate(m, batch, 2, generator=seeded(3)) for m in (model, other))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.logprob, b.logprob)


# --------------------------------------------------------------------------------------------------
# Random numbers


def test_members_of_a_group_differ():
    """Guards against a group whose rows draw the same random numbers."""
    batch = questions(torch.randint(0, EOS, (2, 3)), torch.tensor([3, 3]), 8, None)
    rollout = generate(small(), batch, 16, generator=seeded(0))
    assert len({tuple(row) for row in rollout.tokens.flatten(0, 1).tolist()}) > 28


def test_every_token_is_where_its_own_number_of_the_table_falls():
    """
    Guards against a number of the table that goes to another token, also where groups have dropped
    out: each token is looked up by hand in its own distribution, computed alone.
    """
    model = lively(small(), 3)
    prompt, prompt_len = prompts(8)
    rollout = generate(model, questions(prompt, prompt_len, 30), 2, 0.8, seeded(5))
    table = torch.rand(8, 2, 30, generator=seeded(5))
    checked = 0
    for b in range(8):
        for g in range(2):
            ids = rollout.tokens[b, g, : rollout.length[b, g]]
            logits = sequence_logits(model, prompt[b, : prompt_len[b]], ids)
            share = (logits / 0.8).softmax(-1).cumsum(-1)
            for t, i in enumerate(ids.tolist()):
                below = share[t, i - 1] if i else 0.0
                assert below - 1e-4 <= table[b, g, t] <= share[t, i] + 1e-4
                checked += 1
    assert checked > 100 and rollout.length.amax(1).unique().numel() > 3


@pytest.mark.parametrize("static", [False, True])
def test_a_prompts_tokens_do_not_depend_on_its_batch_mates(static):
    """
    Guards against random numbers drawn step by step for the rows that are left: mates that end at
    once, or never, left a prompt with other tokens.
    """
    model = lively(small(), 3)
    prompt, prompt_len = prompts(8)
    R = 24
    forced = torch.full((8, 3, R), -1)
    runs = []
    for mates_say in (EOS, 3, -1):
        forced[torch.arange(8) != 5] = mates_say
        batch = questions(prompt, prompt_len, R, forced=forced)
        rollout = generate(model, batch, 3, generator=seeded(9), static=static)
        runs.append((rollout.tokens[5], rollout.logprob[5], rollout.length[5]))
    assert runs[0][2].max() > 4  # it goes on behind the step at which mates are dropped
    for tokens, logprob, length in runs[1:]:
        assert torch.equal(tokens, runs[0][0]) and torch.equal(length, runs[0][2])
        assert torch.allclose(logprob, runs[0][1], atol=1e-4)


def test_dropping_and_recording_steps_change_no_token(monkeypatch):
    """Guards against the same, with the ways of sampling that a machine may choose."""
    model = lively(small(), 3)
    prompt, prompt_len = prompts()
    batch = questions(prompt, prompt_len, 60)
    widths = {}
    step = Sampling.step
    drop = Sampling.drop_finished

    def watched(self, place):
        widths.setdefault((self.static, keeps), set()).add(len(self.rows))
        step(self, place)

    monkeypatch.setattr(Sampling, "step", watched)
    runs = []
    for keeps in (False, True):
        never = lambda self: bool(self.ended.all())  # a sampler that drops no group
        monkeypatch.setattr(Sampling, "drop_finished", never if keeps else drop)
        for static in (False, True):
            runs.append(generate(model, batch, 2, generator=seeded(7), static=static))
    assert all(len(seen) > 2 for (_, kept), seen in widths.items() if not kept)
    assert all(seen == {16} for (_, kept), seen in widths.items() if kept) and len(widths) == 4
    for other in runs[1:]:
        assert torch.equal(other.tokens, runs[0].tokens)
        assert torch.equal(other.length, runs[0].length)
        assert torch.equal(other.ended, runs[0].ended)
        assert torch.allclose(other.logprob, runs[0].logprob, atol=1e-4)


def test_giving_a_token_that_would_be_chosen_changes_nothing():
    """Guards against given tokens that use up, or leave over, a random number."""
    model = lively(small())
    prompt, prompt_len = prompts(4)
    free = generate(model, questions(prompt, prompt_len, 8, None), 3, generator=seeded(6))
    forced = torch.full((4, 3, 8), -1)
    forced[..., 1::3] = free.tokens[..., 1::3]
    batch = questions(prompt, prompt_len, 8, None, forced=forced)
    given = generate(model, batch, 3, generator=seeded(6))
    assert torch.equal(given.tokens, free.tokens)
    assert torch.allclose(given.logprob, free.logprob, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# Given tokens


@pytest.mark.parametrize("static", [False, True])
def test_candidates_behind_one_prompt_are_continued_as_each_alone(static):
    """
    Guards against a group that shares one row of given tokens: each candidate [B, G, R] goes on
    greedily as if it were alone, or the end of a prompt.
    """
    model = lively(small())
    B, G, R = 3, 4, 12
    prompt, prompt_len, _, _ = a_batch(B)
    size = torch.tensor([[1, 4, 2, 3], [5, 1, 1, 2], [2, 3, 6, 4]])
    candidate = torch.randint(0, EOS, (B, G, R))
    forced = torch.where(torch.arange(R) < size[..., None], candidate, -1)
    batch = questions(prompt, prompt_len, R, forced=forced)
    together = generate(model, batch, G, 0.0, static=static)
    goes_on = 0
    for b in range(B):
        own = prompt[b : b + 1, : prompt_len[b]]
        for g in range(G):
            n = int(size[b, g])
            end = int(together.length[b, g])
            tokens = together.tokens[b, g, :end]
            alone = questions(own, prompt_len[b : b + 1], R, forced=forced[b, g][None])
            alone = generate(model, alone, 1, 0.0, static=static)
            assert alone.length.item() == end and torch.equal(alone.tokens[0, 0, :end], tokens)
            logprob = together.logprob[b, g, :end]
            assert torch.allclose(alone.logprob[0, 0, :end], logprob, atol=1e-4)
            assert torch.equal(tokens[:n], candidate[b, g, :n])
            # and where the candidate is nothing but the end of a prompt
            longer = torch.cat([own, candidate[b, g, None, :n]], dim=1)
            as_prompt = questions(longer, torch.tensor([longer.size(1)]), R - n)
            as_prompt = generate(model, as_prompt, 1, 0.0)
            assert torch.equal(as_prompt.tokens[0, 0, : end - n], tokens[n:])
            assert torch.allclose(as_prompt.logprob[0, 0, : end - n], logprob[n:], atol=1e-4)
            goes_on += end - n
    assert goes_on > 40 and len({tuple(row) for row in together.tokens[0].tolist()}) == G


# --------------------------------------------------------------------------------------------------
# Choosing one token


def test_choose_follows_the_distribution_and_top_k_top_p():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(40000, 4)
    generator = seeded(0)

    def shares(**cut):
        point = torch.rand(40000, 1, generator=generator)
        return torch.bincount(choose(logits, 1.0, **cut, point=point), minlength=4) / 40000

    assert torch.allclose(shares(), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.01)
    assert torch.allclose(shares(top_k=2), torch.tensor([0.625, 0.375, 0, 0]), atol=0.01)
    assert torch.allclose(shares(top_p=0.6), torch.tensor([0.625, 0.375, 0, 0]), atol=0.01)
    assert (choose(logits, 0) == 0).all()


def test_choose_never_takes_an_id_of_probability_zero():
    """Not even where the random number is as large as it can be, or zero, at an end of a row."""
    logits = torch.full((50, 2000), float("-inf"))
    logits[:, 10:1990] = torch.randn(50, 1980)
    for number in (0.0, 1 - 2**-24):
        chosen = choose(logits, 1.0, point=torch.full((50, 1), number))
        assert ((chosen >= 10) & (chosen < 1990)).all()


# --------------------------------------------------------------------------------------------------
# Steps that can be recorded


def test_static_steps_have_few_shapes_and_sample_the_same(monkeypatch):
    """
    What a GPU records and replays: shapes change where the batch is halved or attention reaches
    further, and nothing else changes.
    """
    monkeypatch.setattr(generate_module, "REACH", 16)
    model = lively(small(), 3)
    batch = questions(*prompts(), 40)
    shapes = []
    body = model.body

    def watched(tokens, before, position, P, G, hide=None, caches=None, real=None):
        shapes.append((tuple(tokens.shape), None if hide is None else tuple(hide.shape)))
        return body(tokens, before, position, P, G, hide, caches, real)

    model.body = watched
    growing, static = (
        generate(model, batch, 4, generator=seeded(2), static=way) for way in (False, True)
    )
    assert torch.equal(growing.tokens, static.tokens)
    assert torch.allclose(growing.logprob, static.logprob, atol=1e-5)
    grew = shapes[: len(shapes) // 2]
    same = shapes[len(shapes) // 2 :]
    # the prompt, 16 rows, at most log2(16) halvings and reaches of 32 and 40
    assert len(set(grew)) == len(grew) and len(set(same)) <= 2 + 4 + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_step_can_be_replayed(monkeypatch, dtype):
    """
    What a CUDA graph does, done on a CPU: the step's operations are traced once, with every number
    that Python knew baked in, and repeated on the same memory with other inputs. An operation that
    would make the host wait ends the trace with an error.
    """
    recorded = []
    waits = ("nonzero", "_local_scalar_dense", "masked_select", "unique")

    class Repeated:
        def __init__(self, function, *inputs):
            self.inputs = [x.clone() for x in inputs]
            function(*self.inputs)
            self.graph = make_fx(lambda place: function(place))(*self.inputs)
            kinds = {str(node.target) for node in self.graph.graph.nodes}
            assert not any(word in kind for kind in kinds for word in waits)
            recorded.append(0)

        def __call__(self, *inputs):
            for own, new in zip(self.inputs, inputs):
                own.copy_(new)
            recorded[-1] += 1
            return self.graph(*self.inputs)

    model = lively(small(), 3)
    batch = questions(*prompts(), 60)
    rollouts = []
    monkeypatch.setattr(generate_module, "REACH", 32)
    for way in (generate_module.record, Repeated):
        monkeypatch.setattr(generate_module, "record", way)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            rollouts.append(generate(model, batch, 2, generator=seeded(7), static=True))
    assert torch.equal(rollouts[0].tokens, rollouts[1].tokens)
    assert torch.equal(rollouts[0].logprob, rollouts[1].logprob)
    # once per size of the batch and reach of the attention, and then replayed
    assert 3 <= len(recorded) <= 6 and sum(recorded) > 30


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: there is none")
def test_recorded_steps_on_cuda(monkeypatch):
    """CUDA graphs of the step, of which several are recorded, sample what the step samples."""
    monkeypatch.setattr(generate_module, "REACH", 16)
    model = lively(small(), 3).cuda()
    prompt, prompt_len = (t.cuda() for t in prompts())
    batch = questions(prompt, prompt_len, 40)
    a, b = (generate(model, batch, 4, 1.0, seeded(2, "cuda"), static=way) for way in (False, True))
    scored, _ = model(prompt, prompt_len, b.tokens, b.mask())
    assert torch.allclose(scored, b.logprob, atol=1e-3)
    assert (a.tokens == b.tokens).float().mean() > 0.9
