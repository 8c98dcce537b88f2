"""
VideoWorld: robot video, frames and actions <-> tokens, and the metrics of decoded frames.

On disk a video world is a folder with meta.json and train/, val/, test/ of .npz episodes (data/episodes.py); meta.json may name another folder's
episodes, so that one data set serves several worlds. Two kinds of sequence (N tokens a frame, m dynamics tokens, A action numbers):

    single-step (horizon 1)   f1 a1 f2 a2 … fK aK | f(K+1)                                  K·(N + A) prompt, N response
    multi-step  (horizon T)   ctx(fc) dyn(f0) a0 | dyn(f1) a1* dyn(f2) a2* … dyn(fT) aT*    N + m + A prompt, T·(m + A) response

Left of the bar is the prompt. * is put in by the world while sampling: the true action of the episode. Only frames are predicted, trained and
scored. fc is f0 or one of the 15 frames before it. Ids: frame codes (or dynamics codes) first, then context codes, then 256 action bins.
"""
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import rewards
from common import BadInput
from data.episodes import read_world_episodes, write_arrays
from data.text import Batch
from tokenizer_vq import fingerprint, load_tokenizer, to_frames

SPLITS = ("train", "val", "test")
ACTION_BINS = 256
FRAMES_AT_ONCE = 256, 4096  # of 64x64 pixels: decoding and scoring go in pieces of so many frames, on a GPU of so many, or it has little to do at a time
SIGNS = {"mae": -1, "mse": -1, "psnr": 1, "ssim": 1, "lpips": -1, "repetition": -1, "last_repeats": -1, "mae_moving": -1, "mse_moving": -1, "psnr_moving": 1}
REPEATS = ("repetition", "last_repeats")  # these look at tokens, the others at pixels
AGGREGATIONS = ("last", "discount")  # a metric's name may end in one of them: "mae_last"; otherwise it is the mean over the predicted frames


class VideoWorld:
    """
    All that the training scripts know of a video domain; see data/text.py's TextWorld for the interface.

    Records are segments: (episode, first frame, context frame). eos_id is None: every response has full length.
    """

    domain = "video"

    def __init__(self, folder, device="cpu", lpips_weights=""):
        self.folder, self.device = Path(folder), torch.device(device)
        try:
            self.meta = json.loads((self.folder / "meta.json").read_text())
            self.K, self.horizon, self.reward = self.meta["context_frames"], self.meta["horizon"], self.meta["reward"]
            self.low, self.high = np.array(self.meta["action_low"], dtype=np.float32), np.array(self.meta["action_high"], dtype=np.float32)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{self.folder / 'meta.json'} is damaged ({error}); make the world again with python data/robot/prepare.py") from None
        multi = self.horizon > 1
        name = self.folder.name
        self.tokenizer = load_tokenizer(f"out/{name}-tokenizer/best.pt", self.device, make=f"python tokenizer_vq.py --world={name}"
                                        + " --dynamics=16" * multi)
        if multi != bool(self.tokenizer.dynamics_tokens):
            raise BadInput(f"out/{name}-tokenizer/best.pt " + ("has no dynamics tokens, which multi-step prediction needs; train it with --dynamics=16"
                           if multi else "is for multi-step prediction; train one without --dynamics"))
        self.N, self.m, self.A, codes = self.tokenizer.tokens, self.tokenizer.dynamics_tokens, len(self.low), self.tokenizer.codes
        self.context_base, self.action_base = codes, codes * (2 if multi else 1)
        self.vocab_size, self.eos_id = self.action_base + ACTION_BINS, None
        self.predicted = self.m if multi else self.N  # tokens of a predicted frame
        self.response_len = self.horizon * (self.m + self.A) if multi else self.N
        self.max_prompt = self.N + self.m + self.A if multi else self.K * (self.N + self.A)
        self.block_size = self.max_prompt + self.response_len
        frames_needed = self.horizon + 1 if multi else self.K + 1
        self.episodes = {split: read_world_episodes(self.folder, split, frames_needed) for split in SPLITS}
        height, width = self.episodes["train"][0][0].shape[1:3]
        config = self.tokenizer.config
        if (height, width) != (config.height, config.width):
            raise BadInput(f"out/{name}-tokenizer/best.pt is for frames of {config.height}x{config.width}, the episodes have {height}x{width}; train it again")
        self.records = {split: self.segments(split, frames_needed) for split in SPLITS}
        self.fingerprint = f"video {fingerprint(self.tokenizer)} {self.K if not multi else 0} {self.horizon} {self.A}"  # what a model depends on
        self.tokens = self.cached_tokens()
        self.lpips = None
        if lpips_weights:
            try:
                self.lpips = rewards.load_lpips(lpips_weights).to(self.device)
            except ValueError as error:
                raise BadInput(f"--lpips_weights: {error}") from None
        self.metrics = tuple(n for n in SIGNS if (n != "lpips" or self.lpips is not None) and (n != "last_repeats" or multi))
        self.variants = tuple(f"{name}_{how}" for name in self.metrics for how in AGGREGATIONS if not name.endswith("repeats") and name != "repetition")
        self.signs = {name: SIGNS[name.removesuffix("_last").removesuffix("_discount")] for name in (*self.metrics, *self.variants)}
        self.scale = {name: 1 if name.startswith("psnr") else 100 for name in self.metrics}  # of the table: dB, the others times 100
        self.headline = self.reward  # checkpoints and decodings are chosen by this weighted sum of metrics

    def segments(self, split, length):
        """Every (episode, first frame, context frame) of a split with `length` frames from the first on."""
        rng = np.random.default_rng(0)
        return [(e, start, int(rng.integers(max(0, start - 15), start + 1))) for e, (image, _) in enumerate(self.episodes[split])
                for start in range(len(image) - length + 1)]

    # -----------------------------------------------------------------------------------------------------------------
    # Tokens

    def cached_tokens(self):
        """{split: ids}: made once per tokenizer and kept beside meta.json; with another tokenizer they are made again."""
        path = self.folder / f"tokens-{self.fingerprint.replace(' ', '-')}.npz"
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    found = {split: torch.from_numpy(file[split].astype(np.int64)) for split in SPLITS}
                if all(len(found[split]) == self.rows(split) for split in SPLITS):
                    return found
            except (OSError, ValueError, KeyError, EOFError):
                pass  # torn: make it again
        made = {split: self.tokenize(split) for split in SPLITS}
        for old in self.folder.glob("tokens-*.npz"):
            old.unlink(missing_ok=True)
        write_arrays(path, **{split: ids.numpy().astype(np.int32) for split, ids in made.items()})
        return made

    def rows(self, split):
        return len(self.records[split]) if self.horizon > 1 else sum(len(image) for image, _ in self.episodes[split])

    @torch.no_grad()
    def tokenize(self, split):
        """Single-step: ids [frames of the split, N]. Multi-step: ids [segments, N + (1 + T)·m], context and dynamics of each segment."""
        rows = []
        if self.horizon == 1:
            for image, _ in tqdm(self.episodes[split], desc=f"tokens of {split}", leave=False):
                rows += [self.tokenizer.encode(to_frames(piece, self.device)).cpu() for piece in np.array_split(image, -(-len(image) // 64))]
            return torch.cat(rows)
        for first in tqdm(range(0, len(self.records[split]), 8), desc=f"tokens of {split}", leave=False):
            segments = self.records[split][first:first + 8]
            images = [self.episodes[split][e][0] for e, *_ in segments]
            context = to_frames(np.stack([image[c] for image, (_, _, c) in zip(images, segments)]), self.device)
            later = to_frames(np.stack([image[s:s + self.horizon + 1] for image, (_, s, _) in zip(images, segments)]), self.device)
            ids = self.tokenizer.encode(context)
            rows.append(torch.cat([ids, self.tokenizer.encode_dynamics(later, ids).flatten(1)], dim=1).cpu())
        return torch.cat(rows)

    def action_ids(self, action):
        """action [..., A] float -> ids [..., A]: 256 uniform bins between the smallest and the largest value of the training split."""
        span = np.maximum(self.high - self.low, 1e-8)
        return torch.from_numpy(np.clip((action - self.low) / span * ACTION_BINS, 0, ACTION_BINS - 1).astype(np.int64)) + self.action_base

    def sequence(self, split, index):
        """One segment as (prompt [P], response [R], is_action [R]): ids, and where the response holds actions."""
        e, start, _ = self.records[split][index]
        action = self.episodes[split][e][1]
        if self.horizon == 1:
            offset = self.offsets[split][e] + start
            frames = self.tokens[split][offset:offset + self.K + 1]  # [K + 1, N]
            prompt = torch.cat([frames[:-1], self.action_ids(action[start:start + self.K])], dim=1).flatten()
            return prompt, frames[-1], torch.zeros(self.N, dtype=torch.bool)
        ids = self.tokens[split][index]
        dynamics = ids[self.N:].view(self.horizon + 1, self.m)
        steps = torch.cat([dynamics, self.action_ids(action[start:start + self.horizon + 1])], dim=1)  # [T + 1, m + A]
        is_action = torch.arange(self.m + self.A) >= self.m
        return torch.cat([ids[:self.N] + self.context_base, steps[0]]), steps[1:].flatten(), is_action.repeat(self.horizon)

    @property
    def offsets(self):
        """{split: number of frames in front of each episode}."""
        if not hasattr(self, "_offsets"):
            self._offsets = {s: np.cumsum([0] + [len(image) for image, _ in self.episodes[s]]) for s in SPLITS}
        return self._offsets

    def legal(self):
        """[R, V]: codes where a frame is predicted, action bins where an action is put in."""
        ids = torch.arange(self.vocab_size, device=self.device)
        place = torch.arange(self.response_len, device=self.device) % (self.m + self.A if self.horizon > 1 else self.N)
        return torch.where((place < self.predicted)[:, None], ids < self.tokenizer.codes, ids >= self.action_base)

    def frame_of_token(self):
        """[R]: the number of the predicted frame that each token of a response belongs to; an action belongs to the frame before it."""
        return torch.arange(self.response_len, device=self.device) // (self.response_len // self.horizon)

    # -----------------------------------------------------------------------------------------------------------------
    # Batches

    def draw(self, split, n, rng, changed=-1.0, power=1.0):
        """n segment numbers, drawn uniformly with replacement: every segment moves and all are of one kind, so changed and power mean nothing."""
        return rng.integers(len(self.records[split]), size=n).tolist()

    def prompt_length(self, split, index):
        """All prompts have the same length."""
        return self.max_prompt

    def batch(self, split, indices, renumber=0.0, rng=None):
        """Segments as a Batch; truth: (last frame before the prediction, true frames) is looked up by score(). There is nothing to renumber."""
        rows = [self.sequence(split, i) for i in indices]
        prompt, response, is_action = (torch.stack(column).to(self.device) for column in zip(*rows))
        length = torch.full((len(rows),), prompt.size(1), device=self.device)
        forced = torch.where(is_action, response, -1) if self.horizon > 1 else None
        return Batch(prompt, length, response, ~is_action, forced, list(indices), split)

    def mle_batches(self, n, rng, micro_batch=0, branches=1, changed=-1.0, power=1.0, renumber=0.0, prompt_loss=0.0):
        """One training step's worth of n segments, as TextWorld.mle_batches. What has no meaning for video is refused by refuse_foreign_options."""
        numbers = self.draw("train", n, rng)
        size = micro_batch or n
        batches = [self.batch("train", numbers[i:i + size]) for i in range(0, n, size)]
        return [(b.prompt, b.prompt_len, b.response[:, None], b.response_mask[:, None].float()) for b in batches]

    # -----------------------------------------------------------------------------------------------------------------
    # Frames

    def truth(self, split, indices):
        """(last frame before the prediction [B, 3, H, W], true frames [B, F, 3, H, W]), in [0, 1]: the raw pixels, not their reconstructions."""
        last, true = [], []
        for i in indices:
            e, start, _ = self.records[split][i]
            first = start + (self.K if self.horizon == 1 else 1)
            image = self.episodes[split][e][0]
            last.append(image[first - 1])
            true.append(image[first:first + self.horizon])
        return to_frames(np.stack(last), self.device), to_frames(np.stack(true), self.device)

    def frame_ids(self, tokens):
        """tokens [..., R] -> ids of the predicted frames [..., F, tokens of a frame], the actions between them left out."""
        if self.horizon == 1:
            return tokens[..., None, :]
        return tokens.unflatten(-1, (self.horizon, self.m + self.A))[..., :self.m]

    def last_ids(self, batch):
        """Ids [B, tokens of a frame] of the last frame before the prediction."""
        if self.horizon == 1:
            return batch.prompt[:, -(self.N + self.A):-self.A]
        return batch.prompt[:, self.N:self.N + self.m]

    @torch.no_grad()
    def decode(self, batch, tokens):
        """tokens [B, G, R] -> frames [B, G, F, 3, H, W] in [0, 1], fp32."""
        ids = self.frame_ids(tokens)  # [B, G, F, n]
        if self.horizon == 1:
            return self.tokenizer.decode(ids.flatten(0, 2)).view(*ids.shape[:3], *self.frame_shape)
        context = (batch.prompt[:, :self.N] - self.context_base)  # [B, N]: the context is run once for the whole group
        frames = self.tokenizer.decode_dynamics(ids.flatten(1, 2), context)
        return frames.view(*ids.shape[:3], *self.frame_shape)

    @property
    def frame_shape(self):
        return 3, self.tokenizer.config.height, self.tokenizer.config.width

    def score(self, batch, tokens, names, per_frame=False):
        """
        tokens [B, G, R] -> {name: [B, G] fp32}: every named metric of the decoded frames, in pieces of bounded memory, on the device.
        per_frame: [B, G, F] instead, not yet aggregated over the predicted frames.
        """
        B, G, _ = tokens.shape
        last, true = self.truth(batch.split, batch.truth)
        pixels = self.frame_shape[1] * self.frame_shape[2]
        size = max(1, FRAMES_AT_ONCE[self.device.type == "cuda"] * 64 * 64 // (G * self.horizon * pixels))  # prompts at a time
        scores = {name: torch.zeros(B, G, self.horizon, device=tokens.device) for name in names}
        ids, before = self.frame_ids(tokens), self.last_ids(batch)
        for i in range(0, B, size):
            part = slice(i, i + size)
            piece = Batch(batch.prompt[part], batch.prompt_len[part], batch.response[part], batch.response_mask[part], None, batch.truth[part], batch.split)
            predicted = self.decode(piece, tokens[part])
            values = self.frame_scores(predicted, last[part], true[part], names)
            repeats = rewards.frame_repeats(ids[part].flatten(0, 1), before[part].repeat_interleave(G, 0)).unflatten(0, (-1, G))
            for name in names:
                scores[name][part] = repeats if name in REPEATS else values[name]
        return scores if per_frame else self.over_frames(scores)

    def over_frames(self, scores):
        """{name: [B, G, F]} -> {name: [B, G]}: each metric's mean over the predicted frames, or what the end of its name says."""
        how = {name: "last" if name == "last_repeats" else name.rpartition("_")[2] if name.endswith(AGGREGATIONS) else "mean" for name in scores}
        return {name: rewards.aggregate_frames(values.flatten(0, 1), how[name]).unflatten(0, values.shape[:2]) for name, values in scores.items()}

    def actions_shown(self, batch):
        """[predicted frames, 2]: the first two numbers of the action that leads to each of them, scaled to [-1, 1], for arrows in pictures."""
        rows = []
        for i in batch.truth:
            e, start, _ = self.records[batch.split][i]
            first = start + (self.K - 1 if self.horizon == 1 else 0)
            rows.append(self.episodes[batch.split][e][1][first:first + self.horizon, :2])
        return np.concatenate(rows) / np.maximum(np.maximum(abs(self.low[:2]), abs(self.high[:2])), 1e-8)

    def references(self, split, indices):
        """Rows of the table that need no model: repeating the last frame, and the tokenizer's own error on the true frames."""
        rows = {"copy (last frame again)": [], "tokenizer floor": []}
        for i in range(0, len(indices), 16):
            batch = self.batch(split, indices[i:i + 16])
            last, true = self.truth(split, batch.truth)
            predicted = last[:, None, None].expand(-1, 1, *true.shape[1:])
            copied = self.frame_scores(predicted, last, true, self.metrics)
            copied.update({name: torch.ones(len(true), 1, self.horizon) for name in REPEATS})
            rows["copy (last frame again)"].append(self.over_frames(copied))
            rows["tokenizer floor"].append(self.score(batch, batch.response[:, None], self.metrics))
        return [(label, {name: torch.cat([part[name].cpu() for part in parts]) for name in self.metrics}) for label, parts in rows.items()]

    def columns(self, split, indices):
        """Columns of the table: [(heading, metric, how)]; how maps scores [N, seeds] to one number per seed [seeds]."""
        return [(name, name, lambda values: values.mean(0)) for name in self.metrics]

    @torch.no_grad()
    def frame_scores(self, predicted, last, true, names):
        """predicted [B, G, F, 3, H, W], last [B, 3, H, W], true [B, F, 3, H, W] -> {name: [B, G, F]} of the metrics that look at pixels."""
        B, G, F = predicted.shape[:3]
        a = predicted.flatten(0, 2)
        b = true[:, None].expand(B, G, F, *self.frame_shape).flatten(0, 2)
        moving = None
        if any("_moving" in name for name in names):
            moving = rewards.moving(true, last[:, None])[:, None].expand(B, G, F, 1, *self.frame_shape[1:]).flatten(0, 2)
        values, done = {}, {}
        for name in names:
            if name in REPEATS:
                continue
            metric = name.rpartition("_")[0] if name.endswith(AGGREGATIONS) else name
            if metric not in done:
                kind = metric.removesuffix("_moving")
                if kind == "lpips":
                    done[metric] = rewards.lpips(a, b, self.lpips)
                elif kind == "ssim":
                    done[metric] = rewards.ssim(a, b)
                else:
                    function = {"mae": rewards.mae, "mse": rewards.mse, "psnr": rewards.psnr}[kind]
                    done[metric] = function(a, b, moving) if metric != kind else function(a, b)
            values[name] = done[metric].view(B, G, F)
        return values
