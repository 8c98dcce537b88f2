"""The transformer against Hugging Face's, and against the computation without groups."""

import pytest
import torch
import torch._dynamo.testing

import model as model_module
from data.world import Batch
from generate import generate
from model import Model, ModelConfig, attend_causal, attend_group, attend_group_fused
from model import shifted, visible

V = 23
EOS = 22


def small(**changes):
    shape = dict(vocab_size=V, block_size=64, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
    return Model(ModelConfig(**{**shape, "look_back": True, **changes})).eval()


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


def questions(prompt, prompt_len, R, eos_id=EOS, **demands):
    """Prompts as a Batch without true answers: what generate() looks at."""
    nothing = torch.zeros(len(prompt), 0, dtype=torch.long)
    return Batch(prompt, prompt_len, nothing, nothing.bool(), R, eos_id, **demands)


def sequence_logits(model, prompt, response):
    """
    fp32 logits [R, V] of one response [R] to one prompt [P], alone, through the prompt path only:
    no grouping anywhere.
    """
    sequence = torch.cat([prompt, response])[None]
    T = sequence.size(1)
    hidden = model.body(sequence, shifted(sequence), torch.arange(T)[None], T, 1)
    return model.logits(hidden[0, len(prompt) - 1 : -1])


def naive_logprobs(model, prompt, prompt_len, response, temperature=1.0):
    """Each prompt and response alone and unpadded."""
    out = torch.zeros(response.shape)
    for b in range(len(prompt)):
        for g in range(response.size(1)):
            logits = sequence_logits(model, prompt[b, : prompt_len[b]], response[b, g])
            logprobs = (logits / temperature).log_softmax(-1)
            out[b, g] = logprobs.gather(-1, response[b, g][:, None])[:, 0]
    return out


def theirs_and_ours(kind):
    """A model of Hugging Face's with random weights, and ours with the same."""
    transformers = pytest.importorskip("transformers", reason="needs requirements-dev.txt")
    shape = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3)
    shape.update(num_attention_heads=4, num_key_value_heads=2, rope_theta=10000.0)
    shape.update(rms_norm_eps=1e-6, max_position_embeddings=64)
    shape.update(tie_word_embeddings=kind == "qwen2")
    if kind == "llama":
        config = transformers.LlamaConfig(**shape, attention_bias=False)
        theirs = transformers.LlamaForCausalLM(config).eval()
    else:
        config = transformers.Qwen2Config(**shape, use_sliding_window=False)
        theirs = transformers.Qwen2ForCausalLM(config).eval()
    for p in theirs.parameters():
        mean, std = (0, 0.3) if p.dim() > 1 else (1, 0.2)
        torch.nn.init.normal_(p, mean=mean, std=std)
    options = dict(qkv_bias=kind == "qwen2", tie_embeddings=kind == "qwen2")
    ours = Model(ModelConfig(50, 64, 3, 4, 2, 32, n_inner=64, norm_eps=1e-6, **options)).eval()
    return theirs, ours


NAMES = {
    "embed_tokens": "embed",
    "layers": "blocks",
    "self_attn": "attention",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "o_proj": "o",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "lm_head": "head",
    "model": None,
    "mlp": None,
}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_same_logits_as_transformers(kind):
    theirs, ours = theirs_and_ours(kind)
    state = {}
    for key, value in theirs.state_dict().items():
        words = [NAMES.get(word, word) for word in key.split(".")]
        state[".".join(word for word in words if word)] = value
    ours.load_state_dict(state)
    tokens = torch.randint(0, 50, (2, 20))
    prompt = tokens[:, :12]
    response = tokens[:, None, 12:]
    expected = theirs(tokens).logits
    # the grouped path, G = 1
    mask = torch.ones_like(response, dtype=torch.bool)
    got = ours.logits(ours.hidden(prompt, torch.tensor([12, 12]), response, mask))[:, 0]
    assert torch.allclose(got, expected[:, 11:-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_grouped_forward_and_gradient_equal_the_naive_ones(temperature):
    model = lively(small())
    prompt, prompt_len, response, mask = a_batch()
    weight = torch.randn(mask.shape)  # one per token, so that the loss is a generic function
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
    """
    All G first tokens hang on one logit row: its gradient must be the sum over the group, not that
    of one of them.
    """
    model = lively(small())
    prompt, prompt_len, response, _ = a_batch(B=1)
    first = torch.zeros_like(response, dtype=torch.bool)
    first[..., 0] = True
    model(prompt, prompt_len, response, first)[0].sum().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for g in range(response.size(1)):
        own = response[:, g : g + 1], first[:, g : g + 1]
        model(prompt, prompt_len, *own)[0].sum().backward()  # gradients accumulate
    for a, p in zip(together, model.parameters()):
        assert torch.allclose(a, p.grad, atol=1e-4)
    assert together[0].abs().max() > 0


def test_padding_and_batch_mates_do_not_change_a_logprob():
    """Guards against responses that attend to padding, or to the other rows of their batch."""
    model = lively(small())
    prompt, prompt_len, response, mask = a_batch()
    whole, _ = model(prompt, prompt_len, response, mask)
    for b in range(3):
        one = slice(b, b + 1)
        own = response[one, :2], mask[one, :2]
        alone, _ = model(prompt[one, : prompt_len[b]], prompt_len[one], *own)
        assert torch.allclose(alone, whole[one, :2], atol=1e-5)
    noisy = torch.where(torch.arange(7) < prompt_len[:, None], prompt, 3)
    assert torch.equal(model(noisy, prompt_len, response, mask)[0], whole)


@pytest.mark.parametrize("T", [1, 7, 600])
def test_causal_attention_in_bf16_is_that_of_torch_in_fp32(T):
    """
    Written out on a CPU in bf16, by torch's kernel otherwise and where it is long; output and
    gradients.
    """
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        rows = [torch.randn(2, heads, T, 8).to(torch.bfloat16) for heads in (4, 2, 2)]
        q, k, v = (t.to(dtype).requires_grad_() for t in rows)
        if dtype is torch.bfloat16:
            y = attend_causal(q, k, v)
        else:
            keys = k.repeat_interleave(2, 1)
            values = v.repeat_interleave(2, 1)
            y = torch.nn.functional.scaled_dot_product_attention(q, keys, values, is_causal=True)
        y.float().square().sum().backward()
        results.append([t.float() for t in (y, q.grad, k.grad, v.grad)])
    for wanted, got in zip(*results):
        assert (wanted - got).abs().max() <= 0.03 * wanted.abs().max().clamp(min=0.1)


def test_one_response_is_one_of_a_group():
    """
    A single response goes with its prompt as one sequence, without a gap: the same
    log-probabilities and gradients as beside others.
    """
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


def test_entropy_can_be_left_out():
    model = lively(small())
    batch = a_batch()
    logprob, entropy = model(*batch)
    same, nothing = model(*batch, entropy=False)
    assert torch.equal(logprob, same) and (nothing == 0).all() and (entropy > 0).any()
    trained = model(*batch, entropy="gradient")[1]
    assert torch.equal(trained, entropy) and not entropy.requires_grad
    trained.sum().backward()
    assert model.norm.weight.grad.abs().max() > 0


def test_entropy_is_that_of_the_legal_distribution():
    model = lively(small())
    prompt, prompt_len, response, mask = a_batch()
    allowed = torch.ones(5, V, dtype=torch.bool)
    allowed[:, 5:] = False
    response = response % 5
    _, entropy = model(prompt, prompt_len, response, mask, allowed, 0.9)
    hidden = model.hidden(prompt, prompt_len, response, mask)
    expected = torch.distributions.Categorical(logits=model.head(hidden)[..., :5] / 0.9).entropy()
    assert torch.allclose(entropy[mask], expected[mask], atol=1e-5)


def test_chunked_vocabulary_rows_give_the_same_gradient(monkeypatch):
    model = lively(small())
    batch = a_batch()
    gradients = []
    for rows in (4096, 3):
        monkeypatch.setattr(model_module, "ROWS_AT_ONCE", rows * V)
        model.zero_grad()
        model(*batch)[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert batch[3].sum() > 9 and torch.allclose(*gradients, atol=1e-4)


def test_two_compilations_serve_all_layers_and_lengths():
    """
    Blocks are compiled with free lengths: eight batches of other shapes, and sampling in between,
    compile nothing anew and change nothing.
    """
    counter = torch._dynamo.testing.CompileCounter()
    plain = lively(small())
    compiled = small()
    compiled.load_state_dict(plain.state_dict())
    compiled.compile_blocks(backend=counter)
    for i in range(8):
        B, P, G, R = 2 + i % 3, 5 + i, 2 + i % 4, 5 + i % 3
        prompt = torch.randint(0, EOS, (B, P))
        prompt_len = torch.randint(1, P + 1, (B,))
        response = torch.randint(0, EOS, (B, G, R))
        mask = torch.arange(R) < torch.randint(1, R + 1, (B, G, 1))
        a, b = (m(prompt, prompt_len, response, mask)[0] for m in (plain, compiled))
        a.sum().backward()
        b.sum().backward()
        # with padding and without
        assert torch.allclose(a, b, atol=1e-5) and counter.frame_count <= 2, counter.frame_count
        for x, y in zip(plain.parameters(), compiled.parameters()):
            assert torch.allclose(x.grad, y.grad, atol=1e-4)
        generate(compiled, questions(prompt, prompt_len, 4), 2)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_fused_attention_of_a_group_is_the_one_written_out(kv_heads):
    """What a GPU computes with torch's kernels, with padded prompts; outputs and all gradients."""
    B, G, R, P, D = 3, 2, 5, 7, 8
    prompt_mask = torch.arange(P) < torch.tensor([[7], [3], [1]])
    hide = visible(prompt_mask, torch.ones(R, R, dtype=torch.bool).tril(), torch.float32)
    own = B, kv_heads, G, R, D
    prompts = B, kv_heads, P, D
    results = []
    for attend in (attend_group, attend_group_fused):
        torch.manual_seed(0)
        shapes = (B, kv_heads, G, 4 // kv_heads, R, D), own, own, prompts, prompts
        inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
        y = attend(*inputs, hide)
        (y * torch.randn(y.shape)).sum().backward()
        results.append([y, *(x.grad for x in inputs)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results))


@pytest.mark.parametrize("vocab_size,parameters", [(4633, 120_381_696), (9008, 127_101_696)])
def test_the_papers_video_models_have_as_many_parameters(vocab_size, parameters):
    """
    The released configurations, counted in the paper: LLaMA, 12 layers of 768, SwiGLU 3072, untied.
    """
    config = ModelConfig(vocab_size, 2048, 12, 12, 12, 768, 3072, tie_embeddings=False)
    with torch.device("meta"):
        assert Model(config).num_parameters() == parameters
