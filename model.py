"""
The transformer: a Llama-style decoder (RMSNorm, RoPE, SwiGLU, grouped-query attention) for text and
video tokens alike.

What is unusual is one thing, and the rest of the repository stands on it: A GROUP SHARES ITS
PROMPT. GRPO samples G responses to one prompt. They go through the network side by side, behind a
single copy of the prompt:

    tokens of one row:    [ prompt: P ][ response 1: R ][ response 2: R ] ... [ response G: R ]

    who attends to whom:              prompt    resp. 1   resp. 2
                          prompt    [ causal  |         |         ]
                          resp. 1   [ all     | causal  |         ]
                          resp. 2   [ all     |         | causal  ]

so a forward pass costs P + G·R tokens, not G·(P + R), in sampling, in scoring and in the update.
Nothing is approximated: each response sees what it would see alone, at the same positions. Prompts
are padded on the RIGHT and every response starts at its own prompt's length. A response's first
token is predicted by the prompt's last position, so that logit row is shared by the whole group.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# how many numbers of vocabulary-wide rows exist at a time, see Model.forward
ROWS_AT_ONCE = 2**25


@dataclass
class ModelConfig:
    vocab_size: int = 1024
    block_size: int = 1024  # longest sequence (prompt and response) the model is trained on
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4  # fewer than n_head: grouped-query attention
    n_embd: int = 128
    n_inner: int = 0  # width of the SwiGLU; 0: 8/3 of n_embd, rounded up to a multiple of 32
    qkv_bias: bool = False  # Qwen2 has it, LLaMA has not
    tie_embeddings: bool = True
    look_back: bool = False  # each token also sees the embedding of the one before: Model.body
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    head_dim: int = 0  # width of a head; 0: n_embd / n_head
    qk_norm: bool = False  # queries and keys are normed, as in Qwen3
    rope_scaling: tuple = ()  # Llama 3's (factor, low, high, length): frequencies()

    def __post_init__(self):
        if self.n_inner == 0:
            self.n_inner = math.ceil(self.n_embd * 8 / 3 / 32) * 32
        head_dim = self.head_dim or self.n_embd / self.n_head
        if head_dim % 2 or self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_embd={self.n_embd} must be an even multiple of n_head={self.n_head} (or "
                f"head_dim={self.head_dim} even), and n_head of n_kv_head={self.n_kv_head}"
            )
        self.head_dim = int(head_dim)


def working_dtype(x):
    """What a linear layer makes of x: the dtype of autocast where that is on, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        """x [..., C], normed in fp32; under autocast the result is cast once, here."""
        normed = F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)
        return normed.to(working_dtype(x))


def frequencies(config):
    """
    Of the rotation, fp32 [D/2]. rope_scaling: what turns less than `low` times in `length` tokens
    is slowed down by `factor`, what turns more than `high` times stays, and between it is mixed.
    """
    D = config.head_dim
    frequency = config.rope_theta ** (-torch.arange(0, D, 2).float() / D)
    if config.rope_scaling:
        factor, low, high, length = config.rope_scaling
        stays = ((frequency * length / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (stays + (1 - stays) / factor)
    return frequency


def rotate(x, cos, sin):
    """
    Rotary position embedding (RoFormer, arXiv 2104.09864), halves convention. x [N, heads, D];
    cos, sin [N, 1, D], sin negative in the first half.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([b, a], dim=-1), sin)


def softmax(scores):
    """Over the last dimension, fp32 inside only; autocast would store fp32 and pass it on."""
    with torch.autocast(scores.device.type, enabled=False):
        return torch.softmax(scores, dim=-1)


def attend_causal(q, k, v):
    """Attention of plain sequences: q [B, H, T, D]; k, v [B, K, T, D]. Returns [B, H, T, D]."""
    B, H, T, D = q.shape
    K = k.size(1)
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or T > 512:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
    # on a CPU in bf16 the fused kernel takes several times as long as writing it out, above all in
    # its backward pass
    hide = torch.full((T, T), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    rows = (q * D**-0.5).reshape(B, K, H // K * T, D)
    scores = (rows @ k.transpose(-1, -2)).view(B, H, T, T).add_(hide)
    return (softmax(scores).view(B, K, H // K * T, T) @ v).view(B, H, T, D)


def attend_group(q, k, v, prompt_k, prompt_v, hide):
    """
    Attention of the responses: two blocks of scores, against the prompt and against themselves.

    q [B, K, G, M, R, D] (K key-value heads, M queries to each); k, v [B, K, G, S, D] the responses'
    own keys, of which the last R belong to the queries; prompt_k, prompt_v [B, K, P, D];
    hide [B, R, P + S]: 0 where a query may look, -inf where not. Returns [B, K, G, M, R, D].
    """
    B, K, G, M, R, D = q.shape
    S = k.size(3)
    P = prompt_k.size(2)
    if q.is_cuda and R > 1:
        return attend_group_fused(q, k, v, prompt_k, prompt_v, hide)
    q = q * D**-0.5  # rather the few queries than the many scores
    # G, M and R are folded into the query rows: the prompt's keys are read in place, once for the
    # whole group
    to_prompt = q.reshape(B, K, G * M * R, D) @ prompt_k.transpose(-1, -2)
    to_self = q.reshape(B, K, G, M * R, D) @ k.transpose(-1, -2)
    scores = [to_prompt.view(B, K, G, M, R, P), to_self.view(B, K, G, M, R, S)]
    hide = hide[:, None, None, None]
    weight = softmax(torch.cat(scores, dim=-1).add_(hide))  # [B, K, G, M, R, P + S]
    from_prompt = weight[..., :P].reshape(B, K, G * M * R, P) @ prompt_v
    from_self = weight[..., P:].reshape(B, K, G, M * R, S) @ v
    return from_prompt.view(B, K, G, M, R, D) + from_self.view(B, K, G, M, R, D)


def attend_group_fused(q, k, v, prompt_k, prompt_v, hide):
    """
    The same by torch's fused kernels, which a GPU has: the prompt's keys are copied for each
    response, but the scores, which are larger, are never written to memory.
    """
    B, K, G, M, R, D = q.shape

    def joined(prompt, own):
        copies = prompt[:, :, None].expand(-1, -1, G, -1, -1)
        return torch.cat([copies, own], dim=3).flatten(1, 2)  # [B, K·G, P + S, D]

    q = q.reshape(B, K * G, M * R, D)
    mask = hide[:, None].repeat(1, 1, M, 1)
    y = F.scaled_dot_product_attention(q, joined(prompt_k, k), joined(prompt_v, v), mask)
    return y.view(B, K, G, M, R, D)


def visible(prompt_mask, seen, dtype):
    """
    attend_group's hide [B, R, P + S], 0 or -inf, from prompt_mask [B, P] and seen [R, S] bool:
    which response tokens each query may look at.
    """
    B, P = prompt_mask.shape
    prompt_seen = prompt_mask[:, None].expand(B, len(seen), P)
    seen = torch.cat([prompt_seen, seen.expand(B, *seen.shape)], dim=-1)
    hide = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return hide.masked_fill_(~seen, float("-inf"))


def spread(x, layout):
    """Tokens [N, ...] -> [B, T, ...], zeros where there is padding."""
    B, T, place = layout
    if place is not None:
        x = x.new_zeros(B * T, *x.shape[1:]).index_copy(0, place, x)
    return x.view(B, T, *x.shape[1:])


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        C, H, K, D = config.n_embd, config.n_head, config.n_kv_head, config.head_dim
        self.shape = H, K, D
        self.q = nn.Linear(C, H * D, bias=config.qkv_bias)
        self.k = nn.Linear(C, K * D, bias=config.qkv_bias)
        self.v = nn.Linear(C, K * D, bias=config.qkv_bias)
        self.o = nn.Linear(H * D, C, bias=False)
        self.q_norm = RMSNorm(D, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(D, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x, cos, sin, layout, P, G, hide, cache):
        """
        x [N, C]: the tokens of B rows of T = P + G·R, prompt first (P may be 0 with a cache, R may
        be 0), without their padding; cos, sin [N, 1, D]; layout: (B, T, the place of each of the N
        tokens among the B·T, or None where there is no padding); hide: see visible(); cache: None,
        or what keeps this layer's keys while sampling. Returns [N, C].
        """
        B, T, place = layout
        H, K, D = self.shape
        q = spread(rotate(self.q_norm(self.q(x).view(-1, H, D)), cos, sin), layout)  # [B, T, H, D]
        k = spread(rotate(self.k_norm(self.k(x).view(-1, K, D)), cos, sin), layout)
        v = spread(self.v(x).view(-1, K, D), layout)
        parts = []
        if P:
            prompt_q, prompt_k, prompt_v = (t[:, :P].transpose(1, 2) for t in (q, k, v))
            # right padding needs no mask here: causal rows only look left
            y = attend_causal(prompt_q, prompt_k, prompt_v)  # [B, H, P, D]
            parts.append(y.transpose(1, 2).reshape(B, P, H * D))
            if cache is not None:
                cache.begin(prompt_k, prompt_v)
        else:
            prompt_k, prompt_v = cache.prompt_k, cache.prompt_v
        if T > P:
            R = (T - P) // G
            q = q[:, P:].view(B, G, R, K, H // K, D).permute(0, 3, 1, 4, 2, 5)  # [B, K, G, M, R, D]
            k, v = (t[:, P:].view(B, G, R, K, D).permute(0, 3, 1, 2, 4) for t in (k, v))
            if cache is not None:
                k, v = cache.append(k, v)
            y = attend_group(q, k, v, prompt_k, prompt_v, hide)
            parts.append(y.permute(0, 2, 4, 1, 3, 5).reshape(B, G * R, H * D))
        y = (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).view(B * T, H * D)
        return self.o(y if place is None else y.index_select(0, place))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1 = RMSNorm(config.n_embd, config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = RMSNorm(config.n_embd, config.norm_eps)
        self.gate = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.up = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=False)

    def forward(self, x, *place):
        """x [N, C] -> [N, C]; place: the other arguments of Attention.forward."""
        x = x + self.attention(self.norm1(x), *place)
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    """A language model over transitions; calling it scores responses, see forward()."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, config.norm_eps)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        C = config.n_embd
        self.look_back = nn.Linear(C, C, bias=False) if config.look_back else None
        self.recompute = False  # blocks again in the backward pass: less memory, a third more time
        self.register_buffer("frequency", frequencies(config), persistent=False)
        for name, parameter in self.named_parameters():
            if name.startswith(("embed", "head")):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.dim() == 2:
                # unit gain at any width; residual outputs smaller with depth, as in GPT-2
                depth = 2 * config.n_layer if name.endswith(("o.weight", "down.weight")) else 1
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.size(1) * depth))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def compile_blocks(self, **options):
        """torch.compile of a block, once for all layers, batch sizes and lengths."""
        for block in self.blocks:
            block.compile(dynamic=True, **options)

    def num_parameters(self):
        return sum(p.numel() for p in self.parameters())

    def body(self, tokens, before, position, P, G, hide=None, caches=None, real=None):
        """
        tokens, position [B, T = P + G·R], before (the token in front of each; -1: none) -> final
        hidden states [B, T, C].

        hide: where the responses may look, see visible(). caches: they keep each layer's keys in
        sampling. real [B, T]: False on padding, which then costs attention only; None: no padding.

        A world model copies a lot: it finds where a name stood before and says what followed. That
        takes two layers that find each other late in training ("induction heads", arXiv
        2209.11895). Where each token carries the one before it (look_back), one does, and sooner.
        """
        B, T = tokens.shape
        place = None if real is None else real.flatten().nonzero()[:, 0]  # [N]
        flat = [t.flatten() for t in (tokens, before, position)]
        tokens, before, position = flat if place is None else [t[place] for t in flat]  # [N]
        layout = B, T, place
        if G == 1 and caches is None:
            # prompt and response are one plain sequence, put together without a gap
            layout = B, T, None if place is None else place // T * T + position
            P = T
        angle = position[:, None, None].float() * self.frequency  # [N, 1, D/2]
        dtype = working_dtype(self.embed.weight)
        cos = torch.cat([angle.cos(), angle.cos()], dim=-1).to(dtype)  # [N, 1, D]
        sin = torch.cat([-angle.sin(), angle.sin()], dim=-1).to(dtype)
        x = self.embed(tokens)  # [N, C]
        if self.look_back is not None:
            seen = self.look_back(self.embed(before.clamp(min=0)))
            x = x + seen.masked_fill(before[:, None] < 0, 0.0)
        recompute = self.recompute and torch.is_grad_enabled()
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks)):
            # a step of sampling is recorded rather than compiled, which block() may be
            run = block if cache is None else block.forward
            given = x, cos, sin, layout, P, G, hide, cache
            x = checkpoint(run, *given, use_reentrant=False) if recompute else run(*given)
        return spread(self.norm(x), (B, T, place))

    def hidden(self, prompt, prompt_len, response, mask):
        """
        Hidden states [B, G, R, C] that predict the response tokens, in one grouped pass; zeros at
        padding. prompt [B, P] right-padded, prompt_len [B] (1..P), response, mask [B, G, R]: what
        stands behind the last True of mask is padding.
        """
        B, P = prompt.shape
        G, R = response.shape[1:]
        inputs = response[..., :-1].flatten(1)  # [B, G·(R-1)]: the last token predicts nothing
        arange = torch.arange(max(P, R), device=prompt.device)
        prompt_mask = arange[:P] < prompt_len[:, None]
        own = (prompt_len[:, None] + arange[: R - 1]).repeat(1, G)
        position = torch.cat([arange[:P].expand(B, P), own], dim=1)
        # what every response follows is the prompt's last token
        last = prompt.gather(1, prompt_len[:, None] - 1)[:, None].expand(B, G, 1)
        ahead = torch.cat([last, response[..., :-2]], dim=2)[..., : R - 1]
        before = torch.cat([shifted(prompt), ahead.flatten(1)], dim=1)
        # an input is needed if something that is wanted comes after it
        needed = mask.flip(-1).cummax(-1).values.flip(-1)[..., 1:]  # [B, G, R - 1]
        real = torch.cat([prompt_mask, needed.flatten(1)], dim=1)
        real = None if real.all() else real
        hide = None  # a single response goes with its prompt as one sequence, see body()
        if G > 1:
            causal = torch.ones(R - 1, R - 1, dtype=torch.bool, device=prompt.device).tril()
            hide = visible(prompt_mask, causal, working_dtype(self.embed.weight))
        x = self.body(torch.cat([prompt, inputs], dim=1), before, position, P, G, hide, real=real)
        # the prompt's last position predicts the first token of all G
        first = x[torch.arange(B, device=x.device), prompt_len - 1]  # [B, C]
        rest = x[:, P:].reshape(B, G, R - 1, x.size(2))
        return torch.cat([first[:, None, None].expand(B, G, 1, -1), rest], dim=2)

    def logits(self, hidden, allowed_ids=None, temperature=1.0):
        """hidden [..., C] -> fp32 logits [..., V]; allowed_ids bool, broadcastable to [..., V]."""
        logits = self.head(hidden).float() / temperature
        return logits if allowed_ids is None else logits.masked_fill(~allowed_ids, float("-inf"))

    def forward(
        self, prompt, prompt_len, response, mask, allowed_ids=None, temperature=1.0, entropy="value"
    ):
        """
        Log-probability of every response token given its prompt and what stands before it, and the
        entropy of its distribution (nats).

        prompt [B, P], prompt_len [B], response [B, G, R], mask [B, G, R] (the positions wanted),
        allowed_ids [R or more, V] bool or None. Returns (logprob, entropy) [B, G, R] fp32, zero
        outside the mask. entropy: False leaves it at zero, only "gradient" can be trained on.

        Vocabulary-wide rows exist for so many positions at a time that they hold ROWS_AT_ONCE
        numbers; where that is not all, they are recomputed in the backward pass rather than kept.
        """
        wanted = mask.nonzero(as_tuple=True)  # rows, responses and places [N]
        hidden = self.hidden(prompt, prompt_len, response, mask)[wanted]  # [N, C]
        target = response[wanted]  # [N]

        def rows(hidden, target, place):
            allowed = None if allowed_ids is None else allowed_ids[place]
            logprobs = self.logits(hidden, allowed, temperature).log_softmax(-1)  # [n, V]
            chosen = logprobs.gather(-1, target[:, None])[:, 0]
            if not entropy:
                return chosen, torch.zeros_like(chosen)
            with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
                finite = logprobs.masked_fill(logprobs == float("-inf"), 0)
                return chosen, -(logprobs.exp() * finite).sum(-1)

        parts = []
        size = max(1, ROWS_AT_ONCE // self.config.vocab_size)
        keep = len(target) <= size or not torch.is_grad_enabled()
        # where nothing is wanted, a part of nothing, for its gradient must exist
        for own in zip(hidden.split(size), target.split(size), wanted[2].split(size)):
            parts.append(rows(*own) if keep else checkpoint(rows, *own, use_reentrant=False))
        logprob, entropies = (torch.cat(part) for part in zip(*parts))
        zeros = torch.zeros(mask.shape, device=mask.device)
        return zeros.masked_scatter(mask, logprob), zeros.masked_scatter(mask, entropies)


def shifted(tokens):
    """The token in front of each of tokens [B, T]; -1 at the start."""
    return F.pad(tokens[:, :-1], (1, 0), value=-1)
