"""
VideoWorld: robot video, frames and actions <-> tokens, and the scores of decoded frames. It knows
no domain by name: what is particular to one is in its task.py.

On disk a video world is a folder with meta.json and train/, val/, test/ of .npz episodes (see
data/episodes.py); meta.json may name another folder's episodes, so that one data set serves several
worlds. Two kinds of sequence (N tokens a frame, m dynamics tokens, A action numbers):

    single-step (horizon 1)   f1 a1 f2 a2 … fK aK | f(K+1)
    multi-step  (horizon T)   ctx(fc) dyn(f0) a0 | dyn(f1) a1* dyn(f2) a2* … dyn(fT) aT*

    prompt: K·(N + A) and N + m + A tokens; response: N and T·(m + A) tokens

Left of the bar is the prompt. * is put in by the world while sampling: the true action of the
episode. Only frames are predicted, trained and scored. fc is f0 or one of the 15 frames before it.
Ids: frame codes (or dynamics codes) first, then context codes, then 256 action bins.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import rewards
from common import OUT, BadInput
from data.episodes import read_world_episodes, write_arrays
from data.world import SPLITS, Batch, Metric, World
from tokenizer_vq import fingerprint, load_tokenizer, to_frames

ACTION_BINS = 256
OLDEST = 15  # frames: no context frame of a segment is older
# Decoding and scoring go in pieces of so many frames of 64x64 pixels; on a GPU of so many, or it
# has little to do at a time.
FRAMES_AT_ONCE = {"cpu": 256, "cuda": 4096}

# Metrics of any video. Those of pixels compare frames a, b [n, 3, H, W]; "_moving" counts only
# pixels that change. Those of tokens say which frames repeat the one before.
PIXELS = {
    "mae": Metric(rewards.mae, better=-1),
    "mse": Metric(rewards.mse, better=-1),
    "psnr": Metric(rewards.psnr, scale=1),
    "ssim": Metric(rewards.ssim),
    "lpips": Metric(rewards.lpips, better=-1),
}
MOVING = {
    "mae_moving": Metric(rewards.mae, better=-1),
    "mse_moving": Metric(rewards.mse, better=-1),
    "psnr_moving": Metric(rewards.psnr, scale=1),
}
REPEATS = {
    "repetition": Metric(rewards.frame_repeats, better=-1),
    "last_repeats": Metric(rewards.frame_repeats, better=-1),
}
# a metric's name may end in one of them: "mae_last"; otherwise it is the mean over the frames
AGGREGATIONS = ("last", "discount")


class VideoWorld(World):
    """
    A video domain; see data/world.py for what every world has. Records are segments: (episode,
    first frame, context frame). eos_id is None: every response has full length.
    """

    foreign_options = ("branches", "changed_fraction", "kind_power", "prompt_loss", "permute_ids")

    def __init__(self, folder, meta, task, make, device="cpu", lpips_weights=""):
        self.folder = Path(folder)
        self.name = self.folder.name
        self.task = task
        self.device = torch.device(device)
        try:
            self.reward = meta["reward"]
            self.K = meta["context_frames"]
            self.horizon = meta["horizon"]
            self.low = np.array(meta["action_low"], dtype=np.float32)
            self.high = np.array(meta["action_high"], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            where = self.folder / "meta.json"
            raise BadInput(
                f"{where} is damaged ({error}); make the world again with {make}"
            ) from None
        self.load_tokenizer()
        self.multi = self.horizon > 1
        self.eos_id = None
        self.N = self.tokenizer.tokens
        self.m = self.tokenizer.dynamics_tokens
        self.A = len(self.low)
        codes = self.tokenizer.codes
        self.context_base = codes
        self.action_base = codes * (2 if self.multi else 1)
        self.vocab_size = self.action_base + ACTION_BINS
        # tokens of a predicted frame, of a response and of a prompt
        self.predicted = self.m if self.multi else self.N
        self.response_len = self.horizon * (self.m + self.A) if self.multi else self.N
        self.max_prompt = self.K * (self.N + self.A)
        if self.multi:
            self.max_prompt = self.N + self.m + self.A
        self.block_size = self.max_prompt + self.response_len

        length = self.horizon + 1 if self.multi else self.K + 1  # frames of a segment
        self.episodes = {split: read_world_episodes(self.folder, split, length) for split in SPLITS}
        height, width = self.episodes["train"][0].image.shape[1:3]
        made_for = self.tokenizer.config.height, self.tokenizer.config.width
        if (height, width) != made_for:
            raise BadInput(
                f"{self.tokenizer_path} is for frames of {made_for[0]}x{made_for[1]}, the episodes "
                f"have {height}x{width}; train it again"
            )
        self.frame_shape = 3, height, width
        # {split: number of frames in front of each episode}
        self.offsets = {
            split: np.cumsum([0] + [len(e.image) for e in self.episodes[split]]) for split in SPLITS
        }
        self.records = {split: self.segments(split, length) for split in SPLITS}
        frames = 0 if self.multi else self.K
        self.fingerprint = f"video {fingerprint(self.tokenizer)} {frames} {self.horizon} {self.A}"
        self.tokens = self.cached_tokens()
        self.allowed_ids = self.legal_ids()
        self.load_metrics(lpips_weights)

    def load_tokenizer(self):
        """The tokenizer of this world's frames, which must be of the right kind."""
        self.tokenizer_path = f"{OUT}/{self.name}-tokenizer/best.pt"
        dynamics = " --dynamics=16" if self.horizon > 1 else ""
        make = f"python tokenizer_vq.py --world={self.in_commands()}{dynamics}"
        self.tokenizer = load_tokenizer(self.tokenizer_path, self.device, make)
        if bool(self.tokenizer.dynamics_tokens) != (self.horizon > 1):
            kind = "is for multi-step prediction" if self.horizon == 1 else "has no dynamics tokens"
            raise BadInput(f"{self.tokenizer_path} {kind}; train the one for this world: {make}")

    def load_metrics(self, lpips_weights):
        """metrics {name: Metric}, those of any video and the task's, and their variants."""
        self.lpips = None
        if lpips_weights:
            try:
                self.lpips = rewards.load_lpips(lpips_weights).to(self.device)
            except ValueError as error:
                raise BadInput(f"--lpips_weights: {error}") from None
        known = {**PIXELS, **REPEATS, **MOVING, **self.task.metrics}
        absent = ("lpips",) * (self.lpips is None) + ("last_repeats",) * (not self.multi)
        self.metrics = {name: metric for name, metric in known.items() if name not in absent}
        self.variants = tuple(
            f"{name}_{how}" for name in self.metrics if name not in REPEATS for how in AGGREGATIONS
        )
        if self.multi:
            self.of_frames = tuple(name for name in self.metrics if name != "last_repeats")
        self.terms(self.reward)
        self.headline = self.terms(self.reward)[0][1]

    def segments(self, split, length):
        """Every (episode, first frame, context frame) with `length` frames from the first on."""
        rng = np.random.default_rng(0)
        found = []
        for e, episode in enumerate(self.episodes[split]):
            for start in range(len(episode.image) - length + 1):
                found.append((e, start, int(rng.integers(max(0, start - OLDEST), start + 1))))
        return found

    # --------------------------------------------------------------------------------------------
    # Tokens

    def cached_tokens(self):
        """
        {split: ids}: made once per tokenizer and kept beside meta.json, where that can be written;
        with another tokenizer they are made again.
        """
        path = self.folder / f"tokens-{self.fingerprint.replace(' ', '-')}.npz"
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    found = {s: torch.from_numpy(file[s].astype(np.int64)) for s in SPLITS}
                if all(len(found[split]) == self.rows(split) for split in SPLITS):
                    return found
            except (OSError, ValueError, KeyError, EOFError):
                pass  # torn: make it again
        made = {split: self.tokenize(split) for split in SPLITS}
        try:
            for old in self.folder.glob("tokens-*.npz"):
                old.unlink(missing_ok=True)
            write_arrays(path, **{s: ids.numpy().astype(np.int32) for s, ids in made.items()})
        except (OSError, BadInput):
            pass  # a folder that cannot be written to: they are made again next time
        return made

    def rows(self, split):
        """How many rows of ids tokenize() makes of a split."""
        return len(self.records[split]) if self.multi else int(self.offsets[split][-1])

    @torch.no_grad()
    def tokenize(self, split):
        """
        Single-step: ids [frames of the split, N]. Multi-step: ids [segments, N + (1 + T)·m],
        context and dynamics of each segment.
        """
        rows = []
        if not self.multi:
            for episode in tqdm(self.episodes[split], desc=f"tokens of {split}", leave=False):
                for piece in np.array_split(episode.image, -(-len(episode.image) // 64)):
                    rows.append(self.tokenizer.encode(to_frames(piece, self.device)).cpu())
            return torch.cat(rows)
        starts = range(0, len(self.records[split]), 8)
        for first in tqdm(starts, desc=f"tokens of {split}", leave=False):
            context = []
            later = []
            for e, start, c in self.records[split][first : first + 8]:
                image = self.episodes[split][e].image
                context.append(image[c])
                later.append(image[start : start + self.horizon + 1])
            ids = self.tokenizer.encode(to_frames(np.stack(context), self.device))
            later = to_frames(np.stack(later), self.device)
            dynamics = self.tokenizer.encode_dynamics(later, ids)
            rows.append(torch.cat([ids, dynamics.flatten(1)], dim=1).cpu())
        return torch.cat(rows)

    def action_ids(self, action):
        """
        action [..., A] float -> ids [..., A]: 256 uniform bins between the smallest and the largest
        value of the training split.
        """
        span = np.maximum(self.high - self.low, 1e-8)
        place = (action - self.low) / span * ACTION_BINS
        bins = np.clip(place, 0, ACTION_BINS - 1).astype(np.int64)
        return torch.from_numpy(bins) + self.action_base

    def sequence(self, split, index):
        """One segment as ids (prompt [P], response [R]), and where the response holds actions."""
        e, start, _ = self.records[split][index]
        action = self.episodes[split][e].action
        if not self.multi:
            offset = self.offsets[split][e] + start
            frames = self.tokens[split][offset : offset + self.K + 1]  # [K + 1, N]
            actions = self.action_ids(action[start : start + self.K])
            prompt = torch.cat([frames[:-1], actions], dim=1).flatten()
            return prompt, frames[-1], torch.zeros(self.N, dtype=torch.bool)
        ids = self.tokens[split][index]
        dynamics = ids[self.N :].view(self.horizon + 1, self.m)
        actions = self.action_ids(action[start : start + self.horizon + 1])
        steps = torch.cat([dynamics, actions], dim=1)  # [T + 1, m + A]
        prompt = torch.cat([ids[: self.N] + self.context_base, steps[0]])
        is_action = torch.arange(self.m + self.A) >= self.m
        return prompt, steps[1:].flatten(), is_action.repeat(self.horizon)

    def legal_ids(self):
        """[R, V]: codes where a frame is predicted, action bins where an action is put in."""
        ids = torch.arange(self.vocab_size, device=self.device)
        place = torch.arange(self.response_len, device=self.device)
        place = place % (self.response_len // self.horizon)
        is_code = (place < self.predicted)[:, None]
        return torch.where(is_code, ids < self.tokenizer.codes, ids >= self.action_base)

    def frame_of_token(self):
        """[R]: the predicted frame of each token; an action belongs to the frame before it."""
        place = torch.arange(self.response_len, device=self.device)
        return place // (self.response_len // self.horizon)

    # --------------------------------------------------------------------------------------------
    # Batches

    def draw(self, split, n, rng, changed_fraction=-1.0, kind_power=1.0):
        """
        n segment numbers, drawn uniformly with replacement: every segment moves and all are of one
        kind, so the last two mean nothing.
        """
        return rng.integers(len(self.records[split]), size=n).tolist()

    def prompt_length(self, split, index):
        """All prompts have the same length."""
        return self.max_prompt

    def batch(self, split, indices, permute_ids=0.0, rng=None):
        """Segments as a Batch. There are no uuids to permute."""
        rows = [self.sequence(split, i) for i in indices]
        columns = [torch.stack(column).to(self.device) for column in zip(*rows)]
        prompt, response, is_action = columns
        length = torch.full((len(rows),), prompt.size(1), device=self.device)
        return Batch(
            prompt,
            length,
            response,
            ~is_action,
            self.response_len,
            allowed_ids=self.allowed_ids,
            forced=torch.where(is_action, response, -1) if self.multi else None,
            split=split,
            indices=list(indices),
        )

    def mle_batches(self, n, rng, micro_batch_size=0, **of_text):
        """
        One training step's worth of n segments, as TextWorld.mle_batches; what has no meaning for
        video is refused by the training script.
        """
        indices = self.draw("train", n, rng)
        size = micro_batch_size or n
        pieces = [self.batch("train", indices[i : i + size]) for i in range(0, n, size)]
        return [
            (b.prompt, b.prompt_len, b.response[:, None], b.response_mask[:, None].float())
            for b in pieces
        ]

    # --------------------------------------------------------------------------------------------
    # Frames

    def truth(self, split, indices):
        """
        (last frame before the prediction [B, 3, H, W], true frames [B, F, 3, H, W]), in [0, 1]: raw
        pixels, not their reconstructions.
        """
        last = []
        true = []
        for i in indices:
            e, first = self.first_predicted(split, i)
            image = self.episodes[split][e].image
            last.append(image[first - 1])
            true.append(image[first : first + self.horizon])
        return to_frames(np.stack(last), self.device), to_frames(np.stack(true), self.device)

    def first_predicted(self, split, index):
        """(episode, number of the first frame that is predicted) of a segment."""
        e, start, _ = self.records[split][index]
        return e, start + (1 if self.multi else self.K)

    def true_state(self, split, indices):
        """What the episodes recorded of the true frames beside their pixels [B, F, S], or None."""
        rows = []
        for i in indices:
            e, first = self.first_predicted(split, i)
            state = self.episodes[split][e].state
            if state is None:
                return None
            rows.append(state[first : first + self.horizon])
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def actions_shown(self, split, indices):
        """
        [predicted frames, 2]: the first two numbers of the action that leads to each of them,
        scaled to [-1, 1], for arrows in pictures; a single number is one arrow's length.
        """
        rows = []
        for i in indices:
            e, first = self.first_predicted(split, i)
            rows.append(self.episodes[split][e].action[first - 1 : first - 1 + self.horizon, :2])
        largest = np.maximum(np.abs(self.low[:2]), np.abs(self.high[:2]))
        shown = np.concatenate(rows) / np.maximum(largest, 1e-8)
        return np.pad(shown, [(0, 0), (0, 2 - shown.shape[1])])

    def frame_ids(self, tokens):
        """tokens [..., R] -> ids of predicted frames [..., F, tokens of one], without actions."""
        if not self.multi:
            return tokens[..., None, :]
        return tokens.unflatten(-1, (self.horizon, self.m + self.A))[..., : self.m]

    def last_ids(self, batch):
        """Ids [B, tokens of a frame] of the last frame before the prediction."""
        if not self.multi:
            return batch.prompt[:, -(self.N + self.A) : -self.A]
        return batch.prompt[:, self.N : self.N + self.m]

    @torch.no_grad()
    def decode(self, batch, tokens):
        """tokens [B, G, R] -> frames [B, G, F, 3, H, W] in [0, 1], fp32."""
        ids = self.frame_ids(tokens)  # [B, G, F, n]
        if not self.multi:
            frames = self.tokenizer.decode(ids.flatten(0, 2))
        else:
            # the context is run once for the whole group
            context = batch.prompt[:, : self.N] - self.context_base  # [B, N]
            frames = self.tokenizer.decode_dynamics(ids.flatten(1, 2), context)
        return frames.view(*ids.shape[:3], *self.frame_shape)

    # --------------------------------------------------------------------------------------------
    # Scores

    def score(self, batch, tokens, names, by_frame=False):
        """
        tokens [B, G, R] -> {name: [B, G] fp32}: every named metric of the decoded frames, in pieces
        of bounded memory, on the device. by_frame: [B, G, F], not yet aggregated over the frames.
        """
        B, G, _ = tokens.shape
        last, true = self.truth(batch.split, batch.indices)
        state = self.true_state(batch.split, batch.indices)
        shape = B, G, self.horizon
        scores = {name: torch.zeros(shape, device=tokens.device) for name in names}
        ids = self.frame_ids(tokens)
        before = self.last_ids(batch)
        for part in self.parts(B, G):
            predicted = self.decode(batch.rows(part), tokens[part])
            truth = last[part], true[part], None if state is None else state[part]
            values = self.frame_scores(predicted, truth, names)
            before_all = before[part].repeat_interleave(G, 0)
            repeats = rewards.frame_repeats(ids[part].flatten(0, 1), before_all)
            repeats = repeats.unflatten(0, (-1, G))
            for name in names:
                scores[name][part] = repeats if name in REPEATS else values[name]
        return scores if by_frame else self.over_frames(scores)

    def agreement(self, batch, tokens, terms):
        """
        tokens [B, G, R] -> [B, G]: each answer's mean reward against the other G - 1, each taken as
        the truth, by those terms that look at pixels alone (mae+0.5*ssim if none does).
        """
        pixels = [(w, name) for w, name in terms if self.plain_name(name) in {**PIXELS, **MOVING}]
        terms = pixels or self.terms("mae+0.5*ssim")
        names = [name for _, name in terms]
        last, _ = self.truth(batch.split, batch.indices)
        B, G, _ = tokens.shape
        total = torch.zeros(B, G, device=tokens.device)
        for part in self.parts(B, G):
            predicted = self.decode(batch.rows(part), tokens[part])
            for g in range(G):
                truth = last[part], predicted[:, g], None
                scores = self.over_frames(self.frame_scores(predicted, truth, names))
                reward = self.weighted_sum(terms, scores)
                reward[:, g] = 0  # itself
                total[part] += reward / max(1, G - 1)
        return total

    def median(self, batch, tokens, names):
        """
        tokens [B, G, R] -> {name: [B, 1]}: the metrics of a picture that no sample is, the median
        of all G of them at each pixel. It has no tokens, so none of the metrics of repetition: nan.
        """
        last, true = self.truth(batch.split, batch.indices)
        state = self.true_state(batch.split, batch.indices)
        found = []
        B, G, _ = tokens.shape
        for part in self.parts(B, G):
            predicted = self.decode(batch.rows(part), tokens[part])
            # of an even number the mean of the two in the middle, which torch.median does not take
            middle = predicted.sort(1).values[:, (G - 1) // 2 : G // 2 + 1].mean(1, keepdim=True)
            truth = last[part], true[part], None if state is None else state[part]
            scores = self.frame_scores(middle, truth, names)
            missing = torch.full(middle.shape[:3], float("nan"), device=middle.device)
            scores.update({name: missing for name in names if name in REPEATS})
            found.append(self.over_frames(scores))
        return {name: torch.cat([scores[name] for scores in found]) for name in names}

    def parts(self, B, G):
        """Slices of B prompts with G answers each, as many as may be decoded at once."""
        pixels = self.frame_shape[1] * self.frame_shape[2]
        frames = FRAMES_AT_ONCE.get(self.device.type, 256) * 64 * 64 // pixels
        size = max(1, frames // (G * self.horizon))
        return [slice(i, i + size) for i in range(0, B, size)]

    @torch.no_grad()
    def frame_scores(self, predicted, truth, names):
        """
        predicted [B, G, F, 3, H, W], truth (last [B, 3, H, W], true [B, F, 3, H, W], state
        [B, F, S] or None) -> {name: [B, G, F]} of the metrics that do not look at tokens; each is
        computed once, whatever its name ends in.
        """
        B, G, F = predicted.shape[:3]
        last, true, state = truth
        a = predicted.flatten(0, 2)
        b = true[:, None].expand(B, G, F, *self.frame_shape).flatten(0, 2)
        plain = {name: self.plain_name(name) for name in names if name not in REPEATS}
        moving = None
        if any(name in MOVING for name in plain.values()):
            mask = rewards.moving(true, last[:, None])  # [B, F, 1, H, W]
            moving = mask[:, None].expand(B, G, *mask.shape[1:]).flatten(0, 2)
        done = {}
        for name in set(plain.values()):
            function = self.metrics[name].function
            if name in self.task.metrics:
                done[name] = function(predicted, true, state)
            elif name in MOVING:
                done[name] = function(a, b, moving)
            elif name == "lpips":
                done[name] = function(a, b, self.lpips)
            else:
                done[name] = function(a, b)
        return {name: done[plain[name]].view(B, G, F) for name in plain}

    def plain_name(self, name):
        """'mae_last' -> 'mae': the metric that a variant aggregates."""
        return name.rpartition("_")[0] if name in self.variants else name

    def better(self, name):
        """1 if more of a metric (or a variant of it) is better, -1 if less is."""
        return self.metrics[self.plain_name(name)].better

    def over_frames(self, scores):
        """
        {name: [B, G, F]} -> {name: [B, G]}: each metric's mean over the predicted frames, or what
        the end of its name says.
        """
        aggregated = {}
        for name, values in scores.items():
            how = name.rpartition("_")[2] if name in self.variants else "mean"
            if name == "last_repeats":
                how = "last"
            flat = rewards.aggregate_frames(values.flatten(0, 1), how)
            aggregated[name] = flat.unflatten(0, values.shape[:2])
        return aggregated

    # --------------------------------------------------------------------------------------------
    # The results table

    def references(self, split, indices):
        """
        Rows of the table that need no model: repeating the last frame, and the tokenizer's own
        error on the true frames.
        """
        rows = {"copy (last frame again)": [], "tokenizer floor": []}
        names = list(self.metrics)
        for i in range(0, len(indices), 16):
            batch = self.batch(split, indices[i : i + 16])
            last, true = self.truth(split, batch.indices)
            state = self.true_state(split, batch.indices)
            again = last[:, None, None].expand(-1, 1, *true.shape[1:])
            copied = self.frame_scores(again, (last, true, state), names)
            copied.update({n: torch.ones(len(true), 1, self.horizon) for n in REPEATS})
            rows["copy (last frame again)"].append(self.over_frames(copied))
            rows["tokenizer floor"].append(self.score(batch, batch.response[:, None], names))
        joined = []
        for label, parts in rows.items():
            values = {n: torch.cat([part[n].cpu() for part in parts]) for n in names}
            joined.append((label, values))
        return joined

    def columns(self, split, indices):
        """
        Columns of the table: [(heading, metric, weight [N])]; a column is a weighted mean over the
        records.
        """
        return [(name, name, torch.ones(len(indices))) for name in self.metrics]

    def units(self, split, indices):
        """[N]: the episode of each segment; segments of one overlap."""
        return [f"episode {self.records[split][i][0]}" for i in indices]
