"""
Sampling: G responses to each prompt, one token at a time. The prompt is run once, and its keys and
values are read by all G.

    rollout = generate(model, batch, group_size=16, temperature=1.0, generator=generator)
    rollout = imagine(model, batch)  # greedily, each of G candidate actions behind one state

It is the one way to sample. The batch says what its world demands of answers: which ids may stand
where, which are given, what ends an answer, how long it may be. On a GPU a step is a CUDA graph.
"""

from dataclasses import dataclass

import torch

from model import shifted, visible, working_dtype

REACH = 128  # a recorded step reads keys up to the next multiple of this


@dataclass
class Rollout:
    """G sampled responses to each of B prompts."""

    tokens: torch.Tensor  # [B, G, R] sampled (or given) ids; behind the end token is filler
    logprob: torch.Tensor  # [B, G, R] of each token under the full legal distribution
    length: torch.Tensor  # [B, G] tokens up to and including the end token; R where there is none
    ended: torch.Tensor  # [B, G] whether the end token was sampled

    def mask(self):
        """[B, G, R], True up to and including the end token: by lengths, never by token values."""
        place = torch.arange(self.tokens.size(2), device=self.length.device)
        return place < self.length[..., None]


@torch.no_grad()
def generate(
    model, batch, group_size, temperature=1.0, generator=None, top_k=0, top_p=1.0, static=None
):
    """
    Samples group_size responses to each prompt of a Batch. Returns a Rollout.

    temperature 0 is greedy. top_k (0: off) and top_p (1: off) are for evaluation: the returned
    log-probabilities are always those of the full legal distribution. static: many steps have the
    same shapes, so that one can be recorded (None: on CUDA); else attention reads what is there.
    """
    shape = len(batch.prompt), group_size, batch.response_len
    # all random numbers at once: halving the batch, giving tokens or recording steps cannot change
    # which of them a token gets
    points = torch.rand(shape, device=batch.prompt.device, generator=generator)

    def choice(logits, rows, place):
        return choose(logits, temperature, top_k, top_p, points[rows, :, place][..., None])

    sampling = Sampling(model, batch, group_size, choice, temperature or 1.0, static)
    sampling.run_prompt()
    for t in range(1, batch.response_len):
        # looking at the flags makes the host wait, so it is not done at every token
        if batch.eos_id is not None and (t % 4 == 0 or t < 5) and sampling.drop_finished():
            break
        sampling.advance(t)
    return Rollout(sampling.line[:, :, 1:], sampling.logprob, sampling.length, sampling.ended)


def imagine(model, batch):
    """Greedy answers behind the candidate actions that batch.forced [B, G, R] gives: a Rollout."""
    return generate(model, batch, batch.forced.size(1), temperature=0.0)


class Sampling:
    """A rollout under way. `rows` are the prompts still being answered; those done drop out."""

    def __init__(self, model, batch, G, choice, temperature, static):
        B, P = batch.prompt.shape
        R = batch.response_len
        device = batch.prompt.device
        self.model = model
        self.batch = batch
        self.G = G
        self.choice = choice  # (logits [b, G, V], rows, place) -> ids [b, G]
        self.temperature = temperature
        self.static = device.type == "cuda" if static is None else static
        self.caches = [LayerCache(G, R, self.static) for _ in model.blocks]
        self.forced = batch.forced
        if self.forced is not None and self.forced.dim() == 2:
            self.forced = self.forced[:, None].expand(B, G, R)
        self.rows = torch.arange(B, device=device)
        self.places = torch.arange(R, device=device)
        self.prompt_mask = torch.arange(P, device=device) < batch.prompt_len[:, None]
        # the prompt's last token, then the response
        self.line = torch.full((B, G, 1 + R), batch.eos_id or 0, device=device)
        self.line[:, :, 0] = batch.prompt.gather(1, batch.prompt_len[:, None] - 1)
        self.logprob = torch.zeros(B, G, R, device=device)
        self.length = torch.full((B, G), R, device=device)
        self.ended = torch.zeros(B, G, dtype=torch.bool, device=device)
        self.end = 0  # how many response tokens attention reads
        self.recorded = None  # the step, good for one `end` and one set of rows

    def run_prompt(self):
        """Runs the prompts through the network, keeps their keys, and chooses the first tokens."""
        prompt = self.batch.prompt
        B, P = prompt.shape
        position = torch.arange(P, device=prompt.device).expand(B, P)
        hidden = self.model.body(prompt, shifted(prompt), position, P, self.G, caches=self.caches)
        last = hidden[self.rows, self.batch.prompt_len - 1]  # [B, C]
        self.pick(last[:, None].expand(B, self.G, -1), self.places[:1])

    def advance(self, t):
        """Chooses the tokens at place t (from 1 on)."""
        R = self.batch.response_len
        reach = min(R, -(-t // REACH) * REACH) if self.static else t
        if reach > self.end:
            self.end = reach
            self.recorded = None
        place = self.places[t : t + 1]
        if self.static and self.recorded is None:
            self.recorded = record(self.step, place)
        (self.recorded or self.step)(place)

    def step(self, place):
        """Runs the tokens at place - 1, chooses those at `place` [1], a tensor for replays."""
        for cache in self.caches:
            cache.place = place - 1
            cache.end = self.end
        dtype = working_dtype(self.model.embed.weight)
        hide = visible(self.prompt_mask, self.places[None, : self.end] < place, dtype)
        position = (self.batch.prompt_len[self.rows][:, None] + place - 1).expand(-1, self.G)
        token = self.line[self.rows, :, place]  # [b, G]
        before = self.line[self.rows, :, place - 1]
        hidden = self.model.body(token, before, position, 0, self.G, hide, self.caches)
        self.pick(hidden, place)

    def pick(self, hidden, place):
        """Chooses tokens from hidden states [b, G, C]. Done twice, it leaves the same behind."""
        rows = self.rows
        allowed = self.batch.allowed_ids
        allowed = None if allowed is None else allowed.index_select(0, place)
        logits = self.model.logits(hidden, allowed, self.temperature)  # [b, G, V]
        choice = self.choice(logits, rows, place)  # [b, G]
        if self.forced is not None:
            given = self.forced[rows, :, place]
            choice = torch.where(given >= 0, given, choice)
        running = ~self.ended[rows]
        kept = self.line[rows, :, place + 1]
        self.line[rows, :, place + 1] = torch.where(running, choice, kept)
        chosen = logits.gather(-1, choice[..., None])[..., 0] - logits.logsumexp(-1)
        kept = self.logprob[rows, :, place]
        self.logprob[rows, :, place] = torch.where(running, chosen, kept)
        if self.batch.eos_id is not None:
            stop = running & (choice == self.batch.eos_id)
            self.length[rows] = torch.where(stop, place + 1, self.length[rows])
            self.ended[rows] |= stop

    def drop_finished(self):
        """Halves the batch as often as running groups allow. Returns whether none is left."""
        done = self.ended[self.rows].all(1)
        still = int((~done).sum())
        size = len(self.rows)
        while 0 < 2 * still <= size:
            size //= 2
        if still and size < len(self.rows):
            kept = done.int().argsort(stable=True)[:size]
            for cache in self.caches:
                cache.keep(kept)
            self.rows = self.rows[kept]
            self.prompt_mask = self.prompt_mask[kept]
            self.recorded = None
        return still == 0


def choose(logits, temperature, top_k=0, top_p=1.0, point=None):
    """
    Picks one id per row of logits [..., V] (already divided by the temperature): greedy at
    temperature 0, else by random numbers point [..., 1] in [0, 1). Returns [...].
    """
    if temperature == 0:
        return logits.argmax(-1)
    if 0 < top_k < logits.size(-1):
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(-1)
        before = share.cumsum(-1) - share  # the mass in front of each id; the first is always kept
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, float("-inf"))
    # The first id at which the running sum of the probabilities passes a random number: one number
    # a row, and no host synchronisation. It is kept a little below the whole sum, so that the id
    # found is always one of positive probability.
    share = logits.softmax(-1).cumsum(-1)  # [..., V]
    return torch.searchsorted(share, point * (1 - 1e-6) * share[..., -1:], right=True)[..., 0]


class LayerCache:
    """
    Keys and values of one layer while sampling: the prompt's [B, K, P, D], once per prompt, and the
    responses' [B, K, G, R, D]. place [1]: where the next token goes; end: how many response tokens
    the attention reads, place + 1 or, where static, some more, so that a recorded step, in which
    place is a tensor and end a constant, can be replayed at other places.
    """

    def __init__(self, G, R, static):
        self.G = G
        self.R = R
        self.static = static
        self.place = None
        self.end = 0

    def begin(self, prompt_k, prompt_v):
        """Takes the prompt's keys and values [B, K, P, D], makes room for the responses'."""
        B, K, _, D = prompt_k.shape
        self.prompt_k = prompt_k.contiguous()
        self.prompt_v = prompt_v.contiguous()
        self.k = prompt_k.new_zeros(B, K, self.G, self.R, D)
        self.v = prompt_k.new_zeros(B, K, self.G, self.R, D)

    def append(self, k, v):
        """Stores k, v [B, K, G, 1, D] at `place`; returns the first `end` of all of them."""
        if self.static:
            self.k.index_copy_(3, self.place, k)
            self.v.index_copy_(3, self.place, v)
        else:  # place is end - 1, known without looking at the tensor: faster on a CPU
            self.k[:, :, :, self.end - 1 : self.end] = k
            self.v[:, :, :, self.end - 1 : self.end] = v
        return self.k[:, :, :, : self.end], self.v[:, :, :, : self.end]

    def keep(self, rows):
        """Drops all prompts but rows [n] (indices into the batch)."""
        for name in ("prompt_k", "prompt_v", "k", "v"):
            setattr(self, name, getattr(self, name)[rows])


class Recorded:
    """
    A function that changes tensors in place, recorded once as a CUDA graph and then replayed: the
    host launches one thing instead of hundreds. It is run twice on the way, which must do no harm.
    """

    def __init__(self, function, *inputs):
        self.inputs = [x.clone() for x in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            # what is done only once, such as choosing kernels, may not be recorded
            function(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # what NCCL's threads do meanwhile does not disturb it
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            function(*self.inputs)

    def __call__(self, *inputs):
        for own, new in zip(self.inputs, inputs):
            own.copy_(new)
        self.graph.replay()


def record(function, *inputs):
    """The function as one CUDA graph; itself on other devices, where there is nothing to record."""
    return Recorded(function, *inputs) if inputs[0].is_cuda else function
