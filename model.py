"""
The transformer: a Llama-style decoder (RMSNorm, RoPE, SwiGLU, grouped-query attention) for text and video tokens alike.

What is unusual is one thing, and the rest of the repository stands on it: A GROUP SHARES ITS PROMPT.
GRPO samples G responses to one prompt. They go through the network side by side, behind a single copy of the prompt:

    tokens of one row:    [ prompt: P ][ response 1: R ][ response 2: R ] ... [ response G: R ]

    who attends to whom:              prompt    resp. 1   resp. 2
                          prompt    [ causal  |         |         ]
                          resp. 1   [ all     | causal  |         ]
                          resp. 2   [ all     |         | causal  ]

so a forward pass costs P + G·R tokens, not G·(P + R), in sampling, in scoring and in the update. Nothing is approximated: each response
sees what it would see alone, at the positions it would have alone. Prompts are padded on the RIGHT and every response starts at its own
prompt's length. A response's first token is predicted by the prompt's last position, so that logit row is shared by the whole group.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


REACH = 128  # a recorded step of sampling reads keys up to the next multiple of this


@dataclass
class ModelConfig:
    vocab_size: int = 1024
    block_size: int = 1024      # longest sequence (prompt and response) the model is trained on
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4          # fewer than n_head: grouped-query attention
    n_embd: int = 128
    n_inner: int = 0            # width of the SwiGLU; 0: 8/3 of n_embd, rounded up to a multiple of 32 (as many parameters as a 4x GELU layer)
    qkv_bias: bool = False      # Qwen2 has it, LLaMA has not
    tie_embeddings: bool = True
    look_back: bool = False     # each token also sees the embedding of the one before it, through a matrix of its own: see Model.body
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        if self.n_inner == 0:
            self.n_inner = math.ceil(self.n_embd * 8 / 3 / 32) * 32
        if self.n_embd % self.n_head or self.n_head % self.n_kv_head or (self.n_embd // self.n_head) % 2:
            raise ValueError(f"n_embd={self.n_embd} must be an even multiple of n_head={self.n_head}, and n_head of n_kv_head={self.n_kv_head}")


def working_dtype(x):
    """What a linear layer makes of x: the dtype of autocast where that is on, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        """x [..., C], normed in fp32; under autocast the result is cast once, here, and not by each of the matrices that read it."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(working_dtype(x))


def rotate(x, cos, sin):
    """Rotary position embedding (RoFormer, arXiv 2104.09864), halves convention. x [N, heads, D]; cos, sin [N, 1, D], sin negative in the first half."""
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([b, a], dim=-1), sin)


def softmax(scores):
    """Over the last dimension. It computes in fp32 inside whatever comes in; autocast would also store fp32, and pass it on."""
    with torch.autocast(scores.device.type, enabled=False):
        return torch.softmax(scores, dim=-1)


def attend_causal(q, k, v):
    """Attention of plain sequences, each token to itself and to what stands before it. q [B, H, T, D]; k, v [B, K, T, D]. Returns [B, H, T, D]."""
    B, H, T, D = q.shape
    K = k.size(1)
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or T > 512:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
    # on a CPU in bf16 the fused kernel takes several times as long as writing it out, above all in its backward pass
    hide = torch.full((T, T), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    scores = ((q * D ** -0.5).reshape(B, K, H // K * T, D) @ k.transpose(-1, -2)).view(B, H, T, T).add_(hide)
    return (softmax(scores).view(B, K, H // K * T, T) @ v).view(B, H, T, D)


def attend_group(q, k, v, prompt_k, prompt_v, hide):
    """
    Attention of the responses: two blocks of scores, against the shared prompt and against themselves, under one softmax.

    q [B, K, G, H/K, R, D] (K key-value heads); k, v [B, K, G, S, D] the responses' own keys, of which the last R belong to the queries;
    prompt_k, prompt_v [B, K, P, D]; hide [B, R, P + S]: 0 where a query may look, -inf where not. Returns [B, K, G, H/K, R, D].
    """
    B, K, G, M, R, D = q.shape
    S, P = k.size(3), prompt_k.size(2)
    if q.is_cuda and R > 1:
        return attend_group_fused(q, k, v, prompt_k, prompt_v, hide)
    q = q * D ** -0.5  # rather the few queries than the many scores
    # G, M and R are folded into the query rows: the prompt's keys are read in place, once for the whole group
    to_prompt = (q.reshape(B, K, G * M * R, D) @ prompt_k.transpose(-1, -2)).view(B, K, G, M, R, P)
    to_self = (q.reshape(B, K, G, M * R, D) @ k.transpose(-1, -2)).view(B, K, G, M, R, S)
    weight = softmax(torch.cat([to_prompt, to_self], dim=-1).add_(hide[:, None, None, None]))  # [B, K, G, M, R, P + S]
    from_prompt = weight[..., :P].reshape(B, K, G * M * R, P) @ prompt_v
    from_self = weight[..., P:].reshape(B, K, G, M * R, S) @ v
    return from_prompt.view(B, K, G, M, R, D) + from_self.view(B, K, G, M, R, D)


def attend_group_fused(q, k, v, prompt_k, prompt_v, hide):
    """
    The same as attend_group by torch's fused kernels, which a GPU has: the prompt's keys are copied for each response, but the scores, which
    are larger and pass through memory several times, are never written to it.
    """
    B, K, G, M, R, D = q.shape
    k, v = (torch.cat([prompt[:, :, None].expand(-1, -1, G, -1, -1), own], dim=3).flatten(1, 2) for prompt, own in ((prompt_k, k), (prompt_v, v)))
    y = F.scaled_dot_product_attention(q.reshape(B, K * G, M * R, D), k, v, attn_mask=hide[:, None].repeat(1, 1, M, 1))  # [B, K·G, M·R, D]
    return y.view(B, K, G, M, R, D)


def visible(prompt_mask, seen, dtype):
    """prompt_mask [B, P], seen [R, S] bool, which response tokens each query may look at -> attend_group's hide [B, R, P + S]: 0 or -inf."""
    B, P = prompt_mask.shape
    seen = torch.cat([prompt_mask[:, None].expand(B, len(seen), P), seen.expand(B, *seen.shape)], dim=-1)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def spread(x, layout):
    """Tokens [N, heads, D] -> [B, T, heads, D], zeros where there is padding."""
    B, T, place = layout
    if place is not None:
        x = x.new_zeros(B * T, *x.shape[1:]).index_copy(0, place, x)
    return x.view(B, T, *x.shape[1:])


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.n_embd // config.n_head
        self.q = nn.Linear(config.n_embd, config.n_head * self.head_dim, bias=config.qkv_bias)
        self.k = nn.Linear(config.n_embd, config.n_kv_head * self.head_dim, bias=config.qkv_bias)
        self.v = nn.Linear(config.n_embd, config.n_kv_head * self.head_dim, bias=config.qkv_bias)
        self.o = nn.Linear(config.n_head * self.head_dim, config.n_embd, bias=False)

    def forward(self, x, cos, sin, layout, P, G, hide, cache):
        """
        x [N, C]: the tokens of B rows of T = P + G·R, prompt first (P may be 0 with a cache, R may be 0), without their padding; cos, sin
        [N, 1, D]; layout: (B, T, the place of each of the N tokens among the B·T, or None where there is no padding); hide: see visible();
        cache: None or this layer's LayerCache. Returns [N, C].
        """
        B, T, place = layout
        H, K, D = self.n_head, self.n_kv_head, self.head_dim
        q = spread(rotate(self.q(x).view(-1, H, D), cos, sin), layout)  # [B, T, H, D]
        k = spread(rotate(self.k(x).view(-1, K, D), cos, sin), layout)
        v = spread(self.v(x).view(-1, K, D), layout)
        parts = []
        if P:
            prompt_q, prompt_k, prompt_v = (t[:, :P].transpose(1, 2) for t in (q, k, v))  # [B, H or K, P, D]
            y = attend_causal(prompt_q, prompt_k, prompt_v)
            parts.append(y.transpose(1, 2).reshape(B, P, H * D))  # right padding needs no mask here: causal rows only look left
            if cache is not None:
                cache.begin(prompt_k, prompt_v)
        else:
            prompt_k, prompt_v = cache.prompt_k, cache.prompt_v
        if T > P:
            R = (T - P) // G
            q = q[:, P:].view(B, G, R, K, H // K, D).permute(0, 3, 1, 4, 2, 5)  # [B, K, G, H/K, R, D]
            k, v = (t[:, P:].view(B, G, R, K, D).permute(0, 3, 1, 2, 4) for t in (k, v))  # [B, K, G, R, D]
            if cache is not None:
                k, v = cache.append(k, v)
            y = attend_group(q, k, v, prompt_k, prompt_v, hide)
            parts.append(y.permute(0, 2, 4, 1, 3, 5).reshape(B, G * R, H * D))
        y = (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).view(B * T, H * D)
        return self.o(y if place is None else y.index_select(0, place))


class LayerCache:
    """
    Keys and values of one layer while sampling: the prompt's [B, K, P, D], once per prompt, and the responses' [B, K, G, R, D].

    place [1]: where the next token goes; end: how many response tokens the attention reads, either place + 1, all there are, or, where static,
    some more, so that a recorded step, in which place is a tensor and end a constant, can be replayed at other places.
    """

    def __init__(self, G, R, static):
        self.G, self.R, self.static = G, R, static
        self.place, self.end = None, 0

    def begin(self, prompt_k, prompt_v):
        """Takes the prompt's keys and values [B, K, P, D] and makes room for the responses'."""
        B, K, _, D = prompt_k.shape
        self.prompt_k, self.prompt_v = prompt_k.contiguous(), prompt_v.contiguous()
        self.k, self.v = (prompt_k.new_zeros(B, K, self.G, self.R, D) for _ in range(2))

    def append(self, k, v):
        """Stores k, v [B, K, G, 1, D] at `place` and returns the first `end` of all [B, K, G, end, D]."""
        if not self.static:  # place is end - 1, known without looking at the tensor: an assignment, which is faster on a CPU
            self.k[:, :, :, self.end - 1:self.end], self.v[:, :, :, self.end - 1:self.end] = k, v
        else:
            self.k.index_copy_(3, self.place, k)
            self.v.index_copy_(3, self.place, v)
        return self.k[:, :, :, :self.end], self.v[:, :, :, :self.end]

    def keep(self, rows):
        """Drops all prompts but rows [n] (indices into the batch)."""
        self.prompt_k, self.prompt_v, self.k, self.v = (t[rows] for t in (self.prompt_k, self.prompt_v, self.k, self.v))


class Recorded:
    """
    A function that changes tensors in place, its kernels recorded once as a CUDA graph and then replayed: the host launches one thing instead
    of hundreds. Recording runs it once, so that it must do no harm to run it again.
    """

    def __init__(self, function, *inputs):
        self.inputs = [x.clone() for x in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            function(*self.inputs)  # what is done only once, such as choosing kernels, may not be recorded
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # what NCCL's threads do meanwhile does not disturb it
            function(*self.inputs)

    def __call__(self, *inputs):
        for own, new in zip(self.inputs, inputs):
            own.copy_(new)
        self.graph.replay()


def record(function, *inputs):
    """The function as one CUDA graph; itself on other devices, where there is nothing to record."""
    return Recorded(function, *inputs) if inputs[0].is_cuda else function


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1, self.attention = RMSNorm(config.n_embd, config.norm_eps), Attention(config)
        self.norm2 = RMSNorm(config.n_embd, config.norm_eps)
        self.gate = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.up = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=False)

    def forward(self, x, *context):
        x = x + self.attention(self.norm1(x), *context)
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


@dataclass
class Rollout:
    """G sampled responses to each of B prompts."""
    tokens: torch.Tensor    # [B, G, R] sampled (or forced) ids; what lies behind the end token is filler
    logprob: torch.Tensor   # [B, G, R] log-probability of each token under the full legal distribution at the sampling temperature
    length: torch.Tensor    # [B, G]    tokens up to and including the end token; R where none was sampled
    ended: torch.Tensor     # [B, G]    whether the end token was sampled

    def mask(self):
        """[B, G, R], True up to and including the end token: from lengths, never from token values."""
        return torch.arange(self.tokens.size(2), device=self.length.device) < self.length[..., None]


class Model(nn.Module):
    """A language model over transitions. Called as model(prompt, prompt_len, response, mask), it returns log-probabilities and entropies."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, config.norm_eps)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        self.look_back = nn.Linear(config.n_embd, config.n_embd, bias=False) if config.look_back else None
        D = config.n_embd // config.n_head
        self.register_buffer("frequency", config.rope_theta ** (-torch.arange(0, D, 2).float() / D), persistent=False)  # [D/2]
        for name, parameter in self.named_parameters():
            if name.startswith(("embed", "head")):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.dim() == 2:  # unit gain at any width; residual outputs smaller (GPT-2), so that depth does not blow up the stream
                residual = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.size(1) * (2 * config.n_layer if residual else 1)))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def compile_blocks(self, **options):
        """torch.compile for forward and backward passes. What is compiled is a block: once for all layers, batch sizes and lengths."""
        for block in self.blocks:
            block.compile(dynamic=True, **options)

    def num_parameters(self):
        return sum(p.numel() for p in self.parameters())

    def body(self, tokens, before, position, P, G, hide=None, caches=None, real=None):
        """
        tokens, position [B, P + G·R], before (the token in front of each; -1: none) -> final hidden states [B, P + G·R, C].

        hide: where the responses may look, see visible(). caches: one LayerCache per layer while sampling. real [B, P + G·R]: False on padding,
        which then costs attention only; None: no padding.

        A world model copies a lot: it looks for the place where a name stood before and says what followed there. That takes two layers of
        attention that find each other late in training ("induction heads", arXiv 2209.11895). Where every token also carries the one before it
        (look_back), one layer does it, and it is learned sooner.
        """
        B, T = tokens.shape
        place = None if real is None else real.flatten().nonzero()[:, 0]  # [N]
        tokens, before, position = (t.flatten() if place is None else t.flatten()[place] for t in (tokens, before, position))  # [N]
        layout = B, T, place
        if G == 1 and caches is None:  # prompt and response are one plain sequence, put together without a gap
            layout, P = (B, T, None if place is None else place // T * T + position), T
        angle = position[:, None, None].float() * self.frequency  # [N, 1, D/2]
        cos, sin = (torch.cat(pair, dim=-1).to(working_dtype(self.embed.weight)) for pair in ([angle.cos()] * 2, [-angle.sin(), angle.sin()]))  # [N, 1, D]
        x = self.embed(tokens)  # [N, C]
        if self.look_back is not None:
            x = x + self.look_back(self.embed(before.clamp(min=0))).masked_fill(before[:, None] < 0, 0.0)
        for i, block in enumerate(self.blocks):
            # a step of sampling is recorded as a whole rather than compiled (block.compile changes what block() does, not block.forward())
            x = block(x, cos, sin, layout, P, G, hide, None) if caches is None else block.forward(x, cos, sin, layout, P, G, hide, caches[i])
        x = self.norm(x)
        return (x if place is None else x.new_zeros(B * T, x.size(1)).index_copy(0, place, x)).view(B, T, -1)

    def hidden(self, prompt, prompt_len, response, mask):
        """
        Hidden states that predict the response tokens, in one grouped pass.

        prompt [B, P] right-padded, prompt_len [B] (1..P), response, mask [B, G, R]: what stands behind the last True of mask is padding.
        Returns [B, G, R, C]: entry r predicts response token r; zeros where r is padding.
        """
        B, P = prompt.shape
        G, R = response.shape[1:]
        inputs = response[..., :-1].flatten(1)  # [B, G·(R-1)]: the last token predicts nothing we need
        arange = torch.arange(max(P, R), device=prompt.device)
        prompt_mask = arange[:P] < prompt_len[:, None]
        position = torch.cat([arange[:P].expand(B, P), (prompt_len[:, None] + arange[:R - 1]).repeat(1, G)], dim=1)
        last = prompt.gather(1, prompt_len[:, None] - 1)[:, None].expand(B, G, 1)  # what every response follows
        before = torch.cat([shifted(prompt), torch.cat([last, response[..., :-2]], dim=2)[..., :R - 1].flatten(1)], dim=1)
        needed = mask.flip(-1).cummax(-1).values.flip(-1)[..., 1:]  # [B, G, R - 1]: an input that something wanted comes after
        real = torch.cat([prompt_mask, needed.flatten(1)], dim=1)
        real = None if real.all() else real
        hide = None  # a single response goes with its prompt as one sequence, see body()
        if G > 1:
            hide = visible(prompt_mask, torch.ones(R - 1, R - 1, dtype=torch.bool, device=prompt.device).tril(), working_dtype(self.embed.weight))
        x = self.body(torch.cat([prompt, inputs], dim=1), before, position, P, G, hide, real=real)
        first = x[torch.arange(B, device=x.device), prompt_len - 1]  # [B, C]: the prompt's last position predicts the first token of all G
        rest = x[:, P:].view(B, G, R - 1, -1)
        return torch.cat([first[:, None, None].expand(B, G, 1, -1), rest], dim=2)

    def logits(self, hidden, legal=None, temperature=1.0):
        """hidden [..., C] -> fp32 logits [..., V] at a temperature; legal: bool, broadcastable to [..., V], False where an id may not stand."""
        logits = self.head(hidden).float() / temperature
        return logits if legal is None else logits.masked_fill(~legal, float("-inf"))

    def forward(self, prompt, prompt_len, response, mask, legal=None, temperature=1.0, entropy=True, chunk=2 ** 25):
        """
        Log-probability of every response token given its prompt and what stands before it, and the entropy of its distribution (nats).

        prompt [B, P], prompt_len [B], response [B, G, R], mask [B, G, R] (the positions wanted), legal [R, V] bool or None.
        Returns (logprob, entropy) [B, G, R] fp32, zero outside the mask; entropy=False leaves the second at zero and saves its time. The
        vocabulary-wide rows exist for so many positions at a time that they hold `chunk` numbers: where that is not all of them, they are
        recomputed in the backward pass rather than kept, and memory grows with the chunk, not with positions times vocabulary.
        """
        hidden = self.hidden(prompt, prompt_len, response, mask)[mask]  # [N, C]
        target = response[mask]  # [N]
        place = mask.nonzero()[:, 2] if legal is not None else None  # [N] response position of each

        def rows(hidden, target, place):
            logprobs = torch.log_softmax(self.logits(hidden, None if legal is None else legal[place], temperature), dim=-1)  # [n, V]
            chosen = logprobs.gather(-1, target[:, None])[:, 0]
            return chosen, -(logprobs.exp() * logprobs.masked_fill(logprobs == float("-inf"), 0)).sum(-1) if entropy else torch.zeros_like(chosen)

        parts, size = [], max(1, chunk // self.config.vocab_size)
        for i in range(0, len(target), size):
            piece = slice(i, i + size)
            arguments = hidden[piece], target[piece], None if place is None else place[piece]
            whole = len(target) <= size or not torch.is_grad_enabled()
            parts.append(rows(*arguments) if whole else checkpoint(rows, *arguments, use_reentrant=False))
        logprob, entropies = (torch.cat(p) for p in zip(*parts)) if parts else (hidden.sum(-1), hidden.sum(-1))
        zeros = torch.zeros(mask.shape, device=mask.device)
        return zeros.masked_scatter(mask, logprob), zeros.masked_scatter(mask, entropies)

    @torch.no_grad()
    def sample(self, prompt, prompt_len, G, R, eos_id=None, legal=None, forced=None, temperature=1.0, top_k=0, top_p=1.0, generator=None,
               static=None):
        """
        Samples G responses of at most R tokens to each prompt; the prompt is run once and its keys and values are read by all G.

        prompt [B, P] right-padded, prompt_len [B]; eos_id ends a response (None: all have R tokens); legal [R, V] bool or None;
        forced [B, R]: ids the world inserts (-1 where the model chooses) or None. temperature 0 is greedy. top_k (0: off) and top_p (1: off)
        are for evaluation: the returned log-probabilities are always those of the full legal distribution. static: many steps have the same
        shapes, so that one can be recorded and replayed (None: on CUDA); otherwise attention reads only what is there. Returns a Rollout.
        """
        B, P = prompt.shape
        device = prompt.device
        line = torch.full((B, G, 1 + R), eos_id or 0, device=device)  # the prompt's last token, then the response
        line[:, :, 0] = prompt.gather(1, prompt_len[:, None] - 1)
        logprob = torch.zeros(B, G, R, device=device)
        length = torch.full((B, G), R, device=device)
        ended = torch.zeros(B, G, dtype=torch.bool, device=device)
        static = device.type == "cuda" if static is None else static
        caches = [LayerCache(G, R, static) for _ in self.blocks]
        prompt_mask = torch.arange(P, device=device) < prompt_len[:, None]
        places, rows = torch.arange(R, device=device), torch.arange(B, device=device)  # rows: the prompts still being answered; a group that has ended drops out
        # all random numbers at once: halving the batch, forcing tokens or recording steps cannot change which of them an answer gets
        points = torch.rand(B, G, R, device=device, generator=generator)
        end, recorded = 0, None  # how many response tokens attention reads; the recorded step, good for one `end` and one set of rows

        def pick(hidden, place):
            """Chooses the tokens at `place` [1] from hidden states [b, G, C]. Done twice it leaves the same behind, as recording it needs."""
            logits = self.logits(hidden, None if legal is None else legal.index_select(0, place), temperature or 1.0)  # [b, G, V]
            choice = choose(logits, temperature, top_k, top_p, points[rows, :, place][..., None])  # [b, G]
            if forced is not None:
                given = forced[rows, place][:, None]
                choice = torch.where(given >= 0, given, choice)
            running = ~ended[rows]
            line[rows, :, place + 1] = torch.where(running, choice, line[rows, :, place + 1])
            chosen = logits.gather(-1, choice[..., None])[..., 0] - logits.logsumexp(-1)
            logprob[rows, :, place] = torch.where(running, chosen, logprob[rows, :, place])
            if eos_id is not None:
                stop = running & (choice == eos_id)
                length[rows] = torch.where(stop, place + 1, length[rows])
                ended[rows] |= stop

        def step(place):
            """Runs the tokens at place - 1 through the network and chooses those at `place` [1]: a tensor, since a replay is for another place."""
            for cache in caches:
                cache.place, cache.end = place - 1, end
            hide = visible(prompt_mask, places[None, :end] < place, working_dtype(self.embed.weight))
            position = (prompt_len[rows][:, None] + place - 1).expand(-1, G)
            pick(self.body(line[rows, :, place], line[rows, :, place - 1], position, 0, G, hide, caches), place)

        hidden = self.body(prompt, shifted(prompt), torch.arange(P, device=device).expand(B, P), P, G, caches=caches)
        pick(hidden[rows, prompt_len - 1][:, None].expand(B, G, -1), places[:1])
        for t in range(1, R):
            if eos_id is not None and (t % 4 == 0 or t < 5):  # looking at the flags makes the host wait, so not at every token
                done = ended[rows].all(1)
                still, size = int((~done).sum()), len(rows)
                if still == 0:
                    break
                while 2 * still <= size:  # halve the batch: short answers do not wait for the longest
                    size //= 2
                if size < len(rows):
                    kept = done.int().argsort(stable=True)[:size]
                    for cache in caches:
                        cache.keep(kept)
                    rows, prompt_mask, recorded = rows[kept], prompt_mask[kept], None
            reach = min(R, -(-t // REACH) * REACH) if static else t
            if reach > end:
                end, recorded = reach, None
            if static:
                recorded = recorded or record(step, places[t:t + 1])
            (recorded or step)(places[t:t + 1])
        return Rollout(line[:, :, 1:], logprob, length, ended)


def shifted(tokens):
    """The token in front of each of tokens [B, T]; -1 at the start."""
    return torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=-1)


def choose(logits, temperature, top_k=0, top_p=1.0, point=None):
    """
    Picks one id per row of logits [..., V] (already divided by the temperature): greedy at temperature 0, else by random numbers point [..., 1]
    in [0, 1). Returns [...].
    """
    if temperature == 0:
        return logits.argmax(-1)
    if 0 < top_k < logits.size(-1):
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability mass in front of each id; the first is always kept
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, float("-inf"))
    # the first id at which the running sum of the probabilities passes a random number: one number a row, and no host synchronisation.
    # It is kept a little below the whole sum, so that the id found is always one of positive probability
    share = logits.softmax(-1).cumsum(-1)  # [..., V]
    return torch.searchsorted(share, point * (1 - 1e-6) * share[..., -1:], right=True)[..., 0]
