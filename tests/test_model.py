"""The transformer against Hugging Face's, against the ungrouped computation, and sampling against scoring."""
import pytest
import torch
import torch._dynamo.testing
from torch.fx.experimental.proxy_tensor import make_fx

import model as model_module
from model import Model, ModelConfig, attend_causal, attend_group, attend_group_fused, choose, shifted, visible

V, EOS = 23, 22


def small(**changes):
    return Model(ModelConfig(**{**dict(vocab_size=V, block_size=64, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, look_back=True), **changes})).eval()


def lively(model, scale=2):
    """Larger weights, so that the distributions are far from uniform and mistakes show."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(scale if p is not model.embed.weight else 8 * scale)
    return model


def a_batch(B=3, P=7, G=4, R=5):
    prompt = torch.randint(0, EOS, (B, P))
    prompt_len = torch.tensor([P, 2, 5][:B])
    response = torch.randint(0, V, (B, G, R))
    length = torch.randint(1, R + 1, (B, G))
    return prompt, prompt_len, response, torch.arange(R) < length[..., None]


def naive_logprobs(model, prompt, prompt_len, response, temperature=1.0, legal=None):
    """Each prompt and response alone, unpadded, through the prompt path only: no grouping anywhere."""
    out = torch.zeros(response.shape)
    for b in range(len(prompt)):
        for g in range(response.size(1)):
            p = prompt[b, :prompt_len[b]]
            sequence = torch.cat([p, response[b, g]])[None]
            T = sequence.size(1)
            hidden = model.body(sequence, shifted(sequence), torch.arange(T)[None], T, 1)[0, len(p) - 1:-1]
            logprobs = model.logits(hidden, legal, temperature).log_softmax(-1)
            out[b, g] = logprobs.gather(-1, response[b, g][:, None])[:, 0]
    return out


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_same_logits_as_transformers(kind):
    transformers = pytest.importorskip("transformers", reason="needs transformers (requirements-dev.txt)")
    shape = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                 rope_theta=10000.0, rms_norm_eps=1e-6, tie_word_embeddings=kind == "qwen2", max_position_embeddings=64)
    theirs = (transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, attention_bias=False)) if kind == "llama"
              else transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape, use_sliding_window=False))).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.dim() > 1 else torch.nn.init.normal_(p, mean=1, std=0.2)
    ours = Model(ModelConfig(50, 64, 3, 4, 2, 32, n_inner=64, qkv_bias=kind == "qwen2", tie_embeddings=kind == "qwen2", norm_eps=1e-6)).eval()
    names = {"embed_tokens": "embed", "layers": "blocks", "self_attn": "attention", "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o",
             "input_layernorm": "norm1", "post_attention_layernorm": "norm2", "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
             "lm_head": "head", "model": None, "mlp": None}
    state = {}
    for key, value in theirs.state_dict().items():
        words = [names.get(word, word) for word in key.split(".")]
        state[".".join(word for word in words if word)] = value
    ours.load_state_dict(state)
    tokens = torch.randint(0, 50, (2, 20))
    prompt, response = tokens[:, :12], tokens[:, 12:]
    expected = theirs(tokens).logits
    got = ours.logits(ours.hidden(prompt, torch.tensor([12, 12]), response[:, None], torch.ones_like(response[:, None], dtype=torch.bool)))[:, 0]  # the grouped path, G = 1
    assert torch.allclose(got, expected[:, 11:-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_grouped_forward_and_gradient_equal_the_naive_ones(temperature):
    model = lively(small())
    prompt, prompt_len, response, mask = a_batch()
    weight = torch.randn(mask.shape)  # one weight per token, so that the loss is a generic function
    got, _ = model(prompt, prompt_len, response, mask, temperature=temperature)
    expected = naive_logprobs(model, prompt, prompt_len, response, temperature)
    assert torch.allclose(got[mask], expected[mask], atol=1e-5)
    assert (got[~mask] == 0).all()
    gradients = []
    for logprobs in (got, expected):
        model.zero_grad()
        (logprobs * weight * mask).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients):
        assert torch.allclose(a, b, atol=1e-4 * b.abs().max().item() + 1e-7)


def test_shared_first_token_gradient_adds_up_over_the_group():
    """Trap 27: all G first tokens hang on one logit row; its gradient is the sum over the group."""
    model = lively(small())
    prompt, prompt_len, response, _ = a_batch(B=1)
    first = torch.zeros_like(response, dtype=torch.bool)
    first[..., 0] = True
    model(prompt, prompt_len, response, first)[0].sum().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for g in range(response.size(1)):
        model(prompt, prompt_len, response[:, g:g + 1], first[:, g:g + 1])[0].sum().backward()  # gradients accumulate
    for a, p in zip(together, model.parameters()):
        assert torch.allclose(a, p.grad, atol=1e-4)
    assert together[0].abs().max() > 0


def test_padding_and_batch_mates_do_not_change_a_logprob():
    """Trap 5."""
    model = lively(small())
    prompt, prompt_len, response, mask = a_batch()
    whole, _ = model(prompt, prompt_len, response, mask)
    for b in range(3):
        alone, _ = model(prompt[b:b + 1, :prompt_len[b]], prompt_len[b:b + 1], response[b:b + 1, :2], mask[b:b + 1, :2])
        assert torch.allclose(alone, whole[b:b + 1, :2], atol=1e-5)
    noisy = torch.where(torch.arange(7) < prompt_len[:, None], prompt, 3)
    assert torch.equal(model(noisy, prompt_len, response, mask)[0], whole)


@pytest.mark.parametrize("setting", ["plain", "legal", "forced"])
def test_sampled_logprobs_equal_teacher_forced_ones(setting):
    """Trap 4: sampling and scoring use one distribution: temperature, legal mask and positions."""
    model = lively(small())
    prompt, prompt_len, _, _ = a_batch()
    R, legal, forced = 6, None, None
    if setting == "legal":
        legal = torch.rand(R, V) < 0.5
        legal[:, 0] = True
    if setting == "forced":
        forced = torch.full((3, R), -1)
        forced[:, 2] = torch.tensor([1, 2, 3])
    rollout = model.sample(prompt, prompt_len, 64, R, EOS, legal, forced, temperature=0.8, generator=torch.Generator().manual_seed(1))
    mask = rollout.mask()
    scored, _ = model(prompt, prompt_len, rollout.tokens, mask, legal, 0.8)
    assert torch.allclose(scored[mask], rollout.logprob[mask], atol=1e-4)
    if setting == "legal":
        assert all(legal[t, rollout.tokens[..., t][mask[..., t]]].all() for t in range(R))
    if setting == "forced":
        alive = rollout.length > 2
        assert (rollout.tokens[..., 2] == torch.tensor([1, 2, 3])[:, None])[alive].all() and alive.any()
    assert rollout.ended.any() and not rollout.ended.all()  # both ways of ending occur, or the test says little


@pytest.mark.parametrize("static", [False, True])
def test_batch_that_shrinks_while_sampling_still_matches_scoring(static):
    """Prompts whose whole group has ended are dropped from the batch; what remains must not be mixed up. static is the way of a GPU."""
    model = lively(small(), 3)
    prompt = torch.randint(0, EOS, (16, 7))
    prompt_len = torch.randint(1, 8, (16,))
    rollout = model.sample(prompt, prompt_len, 1, 40, EOS, generator=torch.Generator().manual_seed(2), static=static)
    scored, _ = model(prompt, prompt_len, rollout.tokens, rollout.mask())
    assert torch.allclose(scored, rollout.logprob, atol=1e-3)
    lengths = rollout.length.flatten().tolist()
    assert len(set(lengths)) > 4, lengths


def test_length_counts_the_end_token():
    """Traps 2 and 3: the mask comes from lengths and holds the sampled end token, even if the same id is the filler."""
    model = lively(small(), 2)
    rollout = model.sample(torch.randint(0, EOS, (4, 3)), torch.tensor([3, 3, 2, 1]), 8, 12, EOS, generator=torch.Generator().manual_seed(0))
    mask = rollout.mask()
    for b in range(4):
        for g in range(8):
            ids = rollout.tokens[b, g].tolist()
            expected = ids.index(EOS) + 1 if EOS in ids else 12
            assert mask[b, g].sum() == rollout.length[b, g] == expected
            assert rollout.ended[b, g] == (EOS in ids)
            assert (rollout.logprob[b, g, expected:] == 0).all() and (rollout.logprob[b, g, :expected] < 0).all()


def test_members_of_a_group_differ():
    """Trap 6: every row of a group draws its own random numbers."""
    rollout = small().sample(torch.randint(0, EOS, (2, 3)), torch.tensor([3, 3]), 16, 8, generator=torch.Generator().manual_seed(0))
    assert len({tuple(row) for row in rollout.tokens.flatten(0, 1).tolist()}) > 28


def test_choose_follows_the_distribution_and_top_k_top_p():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(40000, 4)
    def draw():
        return torch.rand(40000, 1, generator=generator)
    generator = torch.Generator().manual_seed(0)
    share = torch.bincount(choose(logits, 1.0, point=draw()), minlength=4) / 40000
    assert torch.allclose(share, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.01)
    share = torch.bincount(choose(logits, 1.0, top_k=2, point=draw()), minlength=4) / 40000
    assert torch.allclose(share, torch.tensor([0.625, 0.375, 0, 0]), atol=0.01)
    share = torch.bincount(choose(logits, 1.0, top_p=0.6, point=draw()), minlength=4) / 40000
    assert torch.allclose(share, torch.tensor([0.625, 0.375, 0, 0]), atol=0.01)
    assert (choose(logits, 0) == 0).all()


def test_choose_never_takes_an_id_of_probability_zero():
    """Not even where the random number is as large as it can be, or zero, at either end of a row."""
    logits = torch.full((50, 2000), float("-inf"))
    logits[:, 10:1990] = torch.randn(50, 1980)
    for number in (0.0, 1 - 2 ** -24):
        chosen = choose(logits, 1.0, point=torch.full((50, 1), number))
        assert ((chosen >= 10) & (chosen < 1990)).all()


@pytest.mark.parametrize("T", [1, 7, 600])
def test_causal_attention_in_bf16_is_that_of_torch_in_fp32(T):
    """Written out on a CPU in bf16, by torch's kernel otherwise and where it is long; output and gradients."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, heads, T, 8).to(torch.bfloat16).to(dtype).requires_grad_() for heads in (4, 2, 2))
        y = attend_causal(q, k, v) if dtype is torch.bfloat16 else torch.nn.functional.scaled_dot_product_attention(
            q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), is_causal=True)
        y.float().square().sum().backward()
        results.append([t.float() for t in (y, q.grad, k.grad, v.grad)])
    for wanted, got in zip(*results):
        assert (wanted - got).abs().max() <= 0.03 * wanted.abs().max().clamp(min=0.1)


def test_one_response_is_one_of_a_group():
    """A single response goes with its prompt as one sequence, without a gap: the same log-probabilities and gradients as beside others."""
    model = lively(small())
    prompt, prompt_len, response, mask = a_batch()
    mask = mask.clone()
    mask[:, 0, -2:] = False
    group = model(prompt, prompt_len, response, mask)[0][:, :1]
    wanted = torch.autograd.grad(group.sum(), list(model.parameters()))
    alone = model(prompt, prompt_len, response[:, :1], mask[:, :1])[0]
    got = torch.autograd.grad(alone.sum(), list(model.parameters()))
    assert torch.allclose(group, alone, atol=1e-4) and (prompt_len < prompt.size(1)).any()
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(wanted, got))


def test_bf16_sampling_tells_the_logprobs_of_bf16_scoring():
    """Up to rounding, which is why they are recomputed by default; and both are near fp32's."""
    model = lively(small(), 1)
    prompt, prompt_len = torch.randint(0, EOS, (6, 9)), torch.randint(1, 10, (6,))
    with torch.autocast("cpu", torch.bfloat16):
        rollout = model.sample(prompt, prompt_len, 16, 12, EOS, generator=torch.Generator().manual_seed(0))
        scored, _ = model(prompt, prompt_len, rollout.tokens, rollout.mask())
    exact, _ = model(prompt, prompt_len, rollout.tokens, rollout.mask())
    for logprob in (rollout.logprob, scored):
        assert (logprob - exact)[rollout.mask()].abs().mean() < 0.02
    assert (rollout.logprob - scored)[rollout.mask()].abs().mean() < 0.02


def test_entropy_can_be_left_out():
    model = lively(small())
    batch = a_batch()
    with_entropy, without = model(*batch), model(*batch, entropy=False)
    assert torch.equal(with_entropy[0], without[0]) and (without[1] == 0).all() and (with_entropy[1] > 0).any()


def test_entropy_is_that_of_the_legal_distribution():
    model = lively(small())
    prompt, prompt_len, response, mask = a_batch()
    legal = torch.ones(5, V, dtype=torch.bool)
    legal[:, 5:] = False
    response = response % 5
    _, entropy = model(prompt, prompt_len, response, mask, legal, 0.9)
    hidden = model.hidden(prompt, prompt_len, response, mask)
    expected = torch.distributions.Categorical(logits=model.head(hidden)[..., :5] / 0.9).entropy()
    assert torch.allclose(entropy[mask], expected[mask], atol=1e-5)


def test_chunked_vocabulary_rows_give_the_same_gradient():
    model = lively(small())
    prompt, prompt_len, response, mask = a_batch()
    gradients = []
    for chunk in (4096, 3):
        model.zero_grad()
        model(prompt, prompt_len, response, mask, chunk=chunk)[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*gradients, atol=1e-4)


def test_static_steps_have_few_shapes_and_sample_the_same(monkeypatch):
    """What a GPU records and replays: shapes change where the batch is halved or attention reaches further, and nothing else changes."""
    monkeypatch.setattr(model_module, "REACH", 16)
    model = lively(small(), 3)
    prompt, prompt_len = torch.randint(0, EOS, (16, 7)), torch.randint(1, 8, (16,))
    shapes, body = [], model.body

    def watched(tokens, before, position, P, G, hide=None, caches=None, real=None):
        shapes.append((tuple(tokens.shape), None if hide is None else tuple(hide.shape)))
        return body(tokens, before, position, P, G, hide, caches, real)
    model.body = watched
    growing, static = (model.sample(prompt, prompt_len, 4, 40, EOS, generator=torch.Generator().manual_seed(2), static=way) for way in (False, True))
    assert torch.equal(growing.tokens, static.tokens) and torch.allclose(growing.logprob, static.logprob, atol=1e-5)
    grew, same = shapes[:len(shapes) // 2], shapes[len(shapes) // 2:]
    assert len(set(grew)) == len(grew) and len(set(same)) <= 2 + 4 + 2  # the prompt, 16 rows, at most log2(16) halvings and reaches of 32 and 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_step_can_be_replayed(monkeypatch, dtype):
    """
    What a CUDA graph does, done on a CPU: the step's operations are traced once, with every number that Python knew baked in, and repeated on
    the same memory with other inputs. An operation that would make the host wait ends the trace with an error.
    """
    recorded = []

    class Repeated:
        def __init__(self, function, *inputs):
            self.inputs = [x.clone() for x in inputs]
            function(*self.inputs)
            self.graph = make_fx(function)(*self.inputs)
            kinds = {str(node.target) for node in self.graph.graph.nodes}
            assert not any(word in kind for kind in kinds for word in ("nonzero", "_local_scalar_dense", "masked_select", "unique"))
            recorded.append(0)

        def __call__(self, *inputs):
            for own, new in zip(self.inputs, inputs):
                own.copy_(new)
            recorded[-1] += 1
            return self.graph(*self.inputs)
    model = lively(small(), 3)
    prompt, prompt_len = torch.randint(0, EOS, (16, 7)), torch.randint(1, 8, (16,))
    rollouts = []
    monkeypatch.setattr(model_module, "REACH", 32)
    for way in (model_module.record, Repeated):
        monkeypatch.setattr(model_module, "record", way)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            rollouts.append(model.sample(prompt, prompt_len, 2, 60, EOS, generator=torch.Generator().manual_seed(2), static=True))
    assert torch.equal(rollouts[0].tokens, rollouts[1].tokens) and torch.equal(rollouts[0].logprob, rollouts[1].logprob)
    assert 3 <= len(recorded) <= 6 and sum(recorded) > 30  # once per size of the batch and reach of the attention, and then replayed


def test_two_compilations_serve_all_layers_and_lengths():
    """Blocks are compiled with free lengths: eight batches of other shapes, and sampling in between, compile nothing anew and change nothing."""
    counter = torch._dynamo.testing.CompileCounter()
    plain, compiled = lively(small()), small()
    compiled.load_state_dict(plain.state_dict())
    compiled.compile_blocks(backend=counter)
    for i in range(8):
        B, P, G, R = 2 + i % 3, 5 + i, 2 + i % 4, 5 + i % 3
        prompt, prompt_len = torch.randint(0, EOS, (B, P)), torch.randint(1, P + 1, (B,))
        response, mask = torch.randint(0, EOS, (B, G, R)), torch.arange(R) < torch.randint(1, R + 1, (B, G, 1))
        a, b = (model(prompt, prompt_len, response, mask)[0] for model in (plain, compiled))
        a.sum().backward()
        b.sum().backward()
        assert torch.allclose(a, b, atol=1e-5) and counter.frame_count <= 2, counter.frame_count  # with padding and without
        assert all(torch.allclose(x.grad, y.grad, atol=1e-4) for x, y in zip(plain.parameters(), compiled.parameters()))
        compiled.sample(prompt, prompt_len, 2, 4, EOS)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_fused_attention_of_a_group_is_the_one_written_out(kv_heads):
    """What a GPU computes with torch's kernels, with padded prompts; outputs and all gradients."""
    B, G, R, P, D = 3, 2, 5, 7, 8
    hide = visible(torch.arange(P) < torch.tensor([[7], [3], [1]]), torch.ones(R, R, dtype=torch.bool).tril(), torch.float32)
    results = []
    for attend in (attend_group, attend_group_fused):
        torch.manual_seed(0)
        shapes = (B, kv_heads, G, 4 // kv_heads, R, D), *[(B, kv_heads, G, R, D)] * 2, *[(B, kv_heads, P, D)] * 2
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        y = attend(*inputs, hide)
        (y * torch.randn(y.shape)).sum().backward()
        results.append([y, *(x.grad for x in inputs)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: there is none")
def test_recorded_steps_on_cuda(monkeypatch):
    """CUDA graphs of the step, of which several are recorded, sample what the step itself samples."""
    monkeypatch.setattr(model_module, "REACH", 16)
    model = lively(small(), 3).cuda()
    prompt, prompt_len = torch.randint(0, EOS, (16, 7)).cuda(), torch.randint(1, 8, (16,)).cuda()
    a, b = (model.sample(prompt, prompt_len, 4, 40, EOS, generator=torch.Generator("cuda").manual_seed(2), static=way) for way in (False, True))
    scored, _ = model(prompt, prompt_len, b.tokens, b.mask())
    assert torch.allclose(scored, b.logprob, atol=1e-3) and (a.tokens == b.tokens).float().mean() > 0.9


def test_cache_is_fresh_after_a_weight_update():
    """Trap 8: sampling after an update equals sampling from a model that was born with the new weights."""
    model, other = lively(small()), small()
    prompt = torch.randint(0, EOS, (2, 4))
    model.sample(prompt, torch.tensor([4, 3]), 2, 5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    other.load_state_dict(model.state_dict())
    a, b = (m.sample(prompt, torch.tensor([4, 3]), 2, 5, generator=torch.Generator().manual_seed(3)) for m in (model, other))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.logprob, b.logprob)


@pytest.mark.parametrize("vocab_size,parameters", [(4633, 120_381_696), (9008, 127_101_696)])
def test_the_papers_video_models_have_as_many_parameters(vocab_size, parameters):
    """The released configurations, counted (PAPER.md): LLaMA, 12 layers of 768, SwiGLU 3072, untied."""
    with torch.device("meta"):
        assert Model(ModelConfig(vocab_size, 2048, 12, 12, 12, 768, 3072, tie_embeddings=False)).num_parameters() == parameters
