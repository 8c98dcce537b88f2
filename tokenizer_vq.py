"""
Frames <-> tokens: a small convolutional autoencoder with a discrete bottleneck, and its training.

per-frame tokens      python tokenizer_vq.py --world=robot                 (after: python data/robot/prepare.py)
for multi-step        python tokenizer_vq.py --preset=robot-large-multi  (after: python data/robot/prepare.py --preset=robot-large)
a laptop test         python tokenizer_vq.py --preset=smoke
go on                 python tokenizer_vq.py --world=robot --resume

    frame [3, H, W] --encoder--> [d, H/f, W/f] --quantize--> ids [H/f · W/f] --decoder--> frame

For multi-step prediction a frame that differs little from one seen before need not be spelled out again. The CONTEXT-CONDITIONAL tokenizer
(iVideoGPT, arXiv 2405.15223) gives one context frame all its tokens and every later frame a few "dynamics" tokens only: encoder and decoder of
the dynamics look at the context frame's features through cross-attention, and pixels that have not changed are taken from it.

The loss is L1 + L2 + an optional perceptual term (LPIPS). The paper adds a GAN term, which is left out here: pictures come out softer, training
never falls over. What to watch: PSNR (the floor of everything that is predicted in these tokens), and the share of the codebook in use.
"""
import hashlib
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

import rewards
from common import (BadInput, Guard, MetricsLog, autocast, load_checkpoint, newest_checkpoint, one_of, parse_config, random_states,
                    refuse_other_options, resume_command, run_main, save_checkpoint, set_random_states, start_processes, watch_signals)
from data.episodes import read_world_episodes

# ---------------------------------------------------------------------------------------------------------------------
# Quantizers: continuous features -> ids -> the vectors that the decoder sees


class FSQ(nn.Module):
    """
    Finite scalar quantization (arXiv 2309.15505): each of d numbers is squashed and rounded to one of its few levels; the id counts the
    combinations. There is no codebook to learn, none to collapse.
    """

    def __init__(self, levels):
        super().__init__()
        self.width, self.codes = len(levels), math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)  # [d]
        self.register_buffer("basis", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]), persistent=False)

    def forward(self, z):
        """z [..., d] -> (quantized [..., d] in [-1, 1], ids [...], loss 0). The gradient goes straight through the rounding."""
        half = (self.levels - 1) * (1 + 1e-3) / 2  # the outermost levels can be reached
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)  # an even number of levels has none at zero
        bounded = (z.float() + (offset / half).atanh()).tanh() * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        ids = ((rounded.detach().round().long() + self.levels // 2) * self.basis).sum(-1)
        return rounded / (self.levels // 2), ids, z.new_zeros(())

    def lookup(self, ids):
        """ids [...] -> vectors [..., d]."""
        digits = ids[..., None] // self.basis % self.levels
        return (digits - self.levels // 2) / (self.levels // 2)


class EMA(nn.Module):
    """
    Vector quantization whose codebook follows the features by exponential moving averages (VQ-VAE, arXiv 1711.00937, appendix A.1). A code
    that has gone unused is moved onto a random feature of the batch, or it would stay dead for ever.
    """

    def __init__(self, codes, width, decay=0.98, revive_below=0.02):
        super().__init__()
        self.width, self.codes, self.decay, self.revive_below = width, codes, decay, revive_below
        self.register_buffer("codebook", torch.randn(codes, width))  # [codes, d]
        self.register_buffer("count", torch.ones(codes))             # running number of features that fall to each code
        self.register_buffer("total", self.codebook.clone())         # running sum of them

    def forward(self, z):
        """z [..., d] -> (quantized [..., d], ids [...], commitment loss). In training mode the codebook moves."""
        flat = z.float().reshape(-1, self.width)
        ids = torch.cdist(flat, self.codebook).argmin(-1)
        if self.training:
            with torch.no_grad():
                self.count.lerp_(torch.bincount(ids, minlength=self.codes).to(flat.dtype), 1 - self.decay)
                self.total.lerp_(torch.zeros_like(self.total).index_add_(0, ids, flat.detach()), 1 - self.decay)
                dead = self.count < self.revive_below
                fresh = flat[torch.randint(len(flat), (self.codes,), device=flat.device)].detach()
                self.count.masked_fill_(dead, 1.0)
                self.total.copy_(torch.where(dead[:, None], fresh, self.total))
                self.codebook.copy_(self.total / self.count[:, None])
        quantized = self.codebook[ids].view(z.shape)
        loss = F.mse_loss(z.float(), quantized.detach())
        return z + (quantized - z).detach(), ids.view(z.shape[:-1]), loss

    def lookup(self, ids):
        """ids [...] -> vectors [..., d]."""
        return self.codebook[ids]


# ---------------------------------------------------------------------------------------------------------------------
# The autoencoder. Feature maps are [N, C, h, w]; "stage s" has 1/2^s of the frame's height and width


@dataclass
class TokenizerConfig:
    height: int = 64
    width: int = 64
    factor: int = 8             # a frame has height/factor x width/factor tokens
    dynamics: int = 0           # a later frame has height/dynamics x width/dynamics tokens besides those of its context frame (0: there are none)
    channels: int = 32          # at stage 1; twice as many at stage 2, four times from stage 3 on
    depth: int = 1              # residual blocks per stage, from stage 2 on
    quantizer: str = "fsq"      # fsq or ema
    levels: str = "8,5,5,5"     # of fsq; their product is the number of codes
    codes: int = 1024           # of ema

    def __post_init__(self):
        for name, factor in (("factor", self.factor), ("dynamics", self.dynamics or self.factor)):
            if factor < 4 or factor & (factor - 1):
                raise ValueError(f"--{name}={factor} must be a power of two, 4 or more")
            if self.height % factor or self.width % factor:
                raise ValueError(f"frames of {self.height}x{self.width} cannot be cut into cells of {factor}x{factor}; choose another --{name}, "
                                 f"or resize the frames")
        try:
            if min(map(int, self.levels.split(","))) < 2:
                raise ValueError
        except ValueError:
            raise ValueError(f"--levels={self.levels!r} must be whole numbers from 2 on, separated by commas, such as 8,5,5,5") from None


def channels_at(config, stage):
    return config.channels * min(2 ** (stage - 1), 4)


def stages_of(factor):
    return int(math.log2(factor))


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # starts as the identity
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x):
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def grid(height, width, channels, device):
    """Sines and cosines of the place of each cell, [h·w, C], C a multiple of 4: how attention knows where things are."""
    frequency = 100.0 ** (-torch.arange(channels // 4, device=device) / (channels // 4))
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    angles = torch.stack([y, x], dim=-1).flatten(0, 1)[..., None] * frequency  # [h·w, 2, C/4]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


class CrossAttention(nn.Module):
    """Every cell of x looks at all cells of the context's feature map and adds what it found."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_context = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, context):
        """x [N·T, C, h, w], context [N, C, h, w], read by the T frames that follow one another in x. Returns the shape of x."""
        N, C, h, w = context.shape
        place = grid(h, w, C, x.device)
        rows = self.norm(x).view(N, -1, C, h * w).transpose(2, 3)  # [N, T, h·w, C]
        seen = self.norm_context(context).flatten(2).transpose(1, 2)  # [N, h·w, C]

        def split(t):
            return t.float().reshape(N, -1, self.heads, C // self.heads).transpose(1, 2)  # [N, heads, T·h·w or h·w, C/heads]
        q, k, v = split(self.q(rows + place)), split(self.k(seen + place)), split(self.v(seen))
        with torch.autocast(x.device.type, enabled=False):  # a CPU's backward pass in bf16 takes six times as long as in fp32
            found = F.scaled_dot_product_attention(q, k, v)
        found = self.o(found.transpose(1, 2).reshape(N, -1, h * w, C))
        return x + found.transpose(2, 3).reshape(x.shape)


class Encoder(nn.Module):
    """Frames [N, 3, H, W] in [0, 1] -> features [N, d, H/factor, W/factor]. With attend, it looks at a context's features at stage `attend`."""

    def __init__(self, config, factor, out, attend=0):
        super().__init__()
        self.attend = attend
        self.down, self.blocks = nn.ModuleList(), nn.ModuleList()
        width = 3
        for stage in range(1, stages_of(factor) + 1):
            self.down.append(nn.Conv2d(width, channels_at(config, stage), 3, stride=2, padding=1))
            width = channels_at(config, stage)
            self.blocks.append(nn.Sequential(*(ResidualBlock(width) for _ in range(config.depth if stage > 1 else 0))))
            if stage == attend:
                self.cross = CrossAttention(width)
        self.norm, self.out = nn.GroupNorm(8, width), nn.Conv2d(width, out, 1)

    def forward(self, frames, context=None):
        x = frames * 2 - 1
        for stage, (down, blocks) in enumerate(zip(self.down, self.blocks), 1):
            x = down(x if stage == 1 else F.silu(x))
            if stage == self.attend:
                x = self.cross(x, context)
            x = blocks(x)
        return self.out(F.silu(self.norm(x)))


class Decoder(nn.Module):
    """
    Features [N, d, H/factor, W/factor] -> (frames [N, 3, H, W], the feature map at stage `tap`, which others may look at).

    With attend it makes frames [N·T, 3, H, W] that follow N context frames: it looks at their features, and says for every pixel how much of it
    is new; the rest is the context frame's pixel.
    """

    def __init__(self, config, factor, width_in, tap, attend=False):
        super().__init__()
        self.tap, self.attend, self.stages = tap, attend, stages_of(factor)
        self.enter = nn.Conv2d(width_in, channels_at(config, self.stages), 3, padding=1)
        self.blocks, self.up = nn.ModuleList(), nn.ModuleList()
        for stage in range(self.stages, 0, -1):
            width = channels_at(config, stage)
            self.blocks.append(nn.Sequential(*(ResidualBlock(width) for _ in range(config.depth if stage > 1 else 0))))
            self.up.append(nn.Conv2d(width, 4 * (channels_at(config, stage - 1) if stage > 1 else 3 + attend), 3, padding=1))
        if attend:
            self.cross = CrossAttention(channels_at(config, tap))

    def forward(self, z, context=None):
        """context: the pair (frames, features) that a decoder without attend has made of the N context frames."""
        x = self.enter(z)
        for stage, blocks, up in zip(range(self.stages, 0, -1), self.blocks, self.up):
            if stage == self.tap and self.attend:
                x = self.cross(x, context[1])
            x = blocks(x)
            if stage == self.tap:
                features = x
            x = F.pixel_shuffle(up(F.silu(x)), 2)  # each cell becomes 2x2
        x = x.float().sigmoid()
        if not self.attend:
            return x, features.float()
        drawn, new = x.unflatten(0, (len(context[0]), -1)).split([3, 1], dim=2)  # [N, T, 3, H, W], [N, T, 1, H, W]
        return torch.lerp(context[0][:, None], drawn, new).flatten(0, 1), features.float()


class Tokenizer(nn.Module):
    """
    encode / decode: whole frames <-> ids. encode_dynamics / decode_dynamics: later frames <-> a few ids, given the ids of a context frame.
    Dynamics ids and frame ids are both counted from 0; the world gives them different places in its vocabulary.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        levels = [int(level) for level in config.levels.split(",")]

        def quantizer():
            return FSQ(levels) if one_of("quantizer", config.quantizer, ("fsq", "ema")) == "fsq" else EMA(config.codes, 8)
        tap = stages_of(config.factor)
        self.quantizer = quantizer()
        self.encoder = Encoder(config, config.factor, self.quantizer.width)
        self.decoder = Decoder(config, config.factor, self.quantizer.width, tap)
        self.codes = self.quantizer.codes
        self.tokens = config.height // config.factor * (config.width // config.factor)  # of a whole frame
        self.dynamics_tokens = 0
        if config.dynamics:
            if config.dynamics < config.factor:
                raise ValueError(f"--dynamics={config.dynamics} must be at least --factor={config.factor}: later frames have fewer tokens, not more")
            self.dynamics_quantizer = quantizer()
            self.dynamics_encoder = Encoder(config, config.dynamics, self.quantizer.width, attend=tap)
            self.dynamics_decoder = Decoder(config, config.dynamics, self.quantizer.width, tap, attend=True)
            self.dynamics_tokens = config.height // config.dynamics * (config.width // config.dynamics)

    def quantize(self, z, quantizer):
        """Features [N, d, h, w] -> (quantized [N, d, h, w], ids [N, h·w] row by row, loss)."""
        quantized, ids, loss = quantizer(z.permute(0, 2, 3, 1))
        return quantized.permute(0, 3, 1, 2), ids.flatten(1), loss

    def vectors(self, ids, quantizer, factor):
        """ids [N, h·w] -> [N, d, h, w]."""
        h, w = self.config.height // factor, self.config.width // factor
        return quantizer.lookup(ids).view(len(ids), h, w, -1).permute(0, 3, 1, 2)

    def encode(self, frames):
        """Frames [N, 3, H, W] in [0, 1] -> ids [N, tokens]."""
        return self.quantize(self.encoder(frames), self.quantizer)[1]

    def decode(self, ids):
        """ids [N, tokens] -> frames [N, 3, H, W] in [0, 1]."""
        return self.context(ids)[0]

    def context(self, ids):
        """ids [N, tokens] of context frames -> (frames [N, 3, H, W], feature maps [N, C, h, w]), which the dynamics look at."""
        return self.decoder(self.vectors(ids, self.quantizer, self.config.factor))

    def encode_dynamics(self, frames, context_ids):
        """Later frames [N, T, 3, H, W] and their context frames' ids [N, tokens] -> ids [N, T, dynamics_tokens]."""
        ids = self.quantize(self.dynamics_encoder(frames.flatten(0, 1), self.context(context_ids)[1]), self.dynamics_quantizer)[1]
        return ids.view(*frames.shape[:2], -1)

    def decode_dynamics(self, ids, context_ids):
        """ids [N, T, dynamics_tokens], context_ids [N, tokens] -> frames [N, T, 3, H, W] in [0, 1]."""
        z = self.vectors(ids.flatten(0, 1), self.dynamics_quantizer, self.config.dynamics)
        return self.dynamics_decoder(z, self.context(context_ids))[0].view(*ids.shape[:2], 3, self.config.height, self.config.width)

    def forward(self, frames):
        """
        A training pass. frames [N, 1 + T, 3, H, W], the context frame first, T = 0 where there are no dynamics.
        Returns (reconstructions of the same shape, quantizer loss, ids of the context frames, ids of the dynamics or None).
        """
        quantized, ids, loss = self.quantize(self.encoder(frames[:, 0]), self.quantizer)
        context = self.decoder(quantized)  # frames, features
        if frames.size(1) == 1:
            return context[0][:, None], loss, ids, None
        z = self.dynamics_encoder(frames[:, 1:].flatten(0, 1), context[1])
        quantized, dynamics_ids, dynamics_loss = self.quantize(z, self.dynamics_quantizer)
        later = self.dynamics_decoder(quantized, context)[0].view(len(frames), -1, *frames.shape[2:])
        return torch.cat([context[0][:, None], later], dim=1), loss + dynamics_loss, ids, dynamics_ids


def fingerprint(tokenizer):
    """Twelve letters that change with any weight or setting: tokens are good for one tokenizer only."""
    digest = hashlib.sha256(repr(sorted(asdict(tokenizer.config).items())).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def load_tokenizer(path, device="cpu", make="python tokenizer_vq.py"):
    """The tokenizer of a checkpoint, frozen, on a device. Raises BadInput if there is none or if it is something else."""
    checkpoint = load_checkpoint(path, device, make)
    if checkpoint.get("stage") != "tokenizer":
        raise BadInput(f"{path} is no tokenizer's checkpoint (but of stage {checkpoint.get('stage')!r}); make one with: {make}")
    tokenizer = Tokenizer(TokenizerConfig(**checkpoint["model_config"])).to(device)
    tokenizer.load_state_dict(checkpoint["model"])
    return tokenizer.eval().requires_grad_(False)


def to_frames(images, device="cpu"):
    """uint8 images [..., H, W, 3] (numpy) -> fp32 frames [..., 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).movedim(-1, -3).float() / 255


# ---------------------------------------------------------------------------------------------------------------------
# Training


@dataclass
class Config:
    world: str = "robot"        # a folder of episodes, or its name under data/
    name: str = ""              # results go to out/<name>; empty: <world>-tokenizer
    resume: bool = False        # go on with out/<name>/last.pt
    factor: int = 8             # a frame has height/factor x width/factor tokens
    dynamics: int = 0           # for multi-step prediction: a later frame has height/dynamics x width/dynamics tokens (0: no such frames)
    channels: int = 32          # at half resolution; doubled twice on the way down
    depth: int = 1              # residual blocks per stage
    quantizer: str = "fsq"      # fsq or ema
    levels: str = "8,5,5,5"     # levels of fsq; their product is the number of codes (the paper: 7,5,5,5,5)
    codes: int = 1024           # codes of ema
    batch_size: int = 12        # frames a step (with dynamics: context frames, each with `later` later ones)
    later: int = 2              # later frames per context frame
    perceptual: float = 0.0     # weight of LPIPS in the loss; needs lpips_weights
    lpips_weights: str = ""     # folder of the public VGG16 and LPIPS weights; the README says where they are published
    lr: float = 2e-3            # of AdamW; constant after warm-up, falling to 0 over the last 40 % of the run
    warmup: int = 50            # steps of linear warm-up
    steps: int = 0              # stop after this many steps (0: no limit)
    seconds: float = 150.0      # stop after this much training time, validation not counted (0: no limit)
    eval_every: int = 250       # steps between validations
    eval_frames: int = 128      # validation frames
    dtype: str = "auto"         # float32, bfloat16 (autocast) or auto
    device: str = "auto"        # cpu, cuda, mps or auto
    seed: int = 0
    wandb: str = ""             # wandb project to log to as well


PAPER = dict(levels="7,5,5,5,5", channels=64, depth=2, perceptual=1.0, seconds=0, steps=200000, lr=5e-4, batch_size=16, eval_every=5000)
PRESETS = {
    "robot": dict(world="robot", seconds=200),
    "robot-large": dict(world="robot-large", batch_size=32, seconds=400),
    "robot-large-multi": dict(world="robot-large-multi", dynamics=16, lr=1e-3, seconds=1800),
    "smoke": dict(channels=8, steps=4, seconds=0, eval_every=2, eval_frames=8, batch_size=4, warmup=1),
    "paper-single": dict(PAPER, world="paper", factor=16),
    "paper-multi": dict(PAPER, world="paper-multi", factor=8, dynamics=32),
}


def draw_frames(episodes, n, later, rng):
    """n context frames and, for each, `later` frames of the same episode: uint8 [n, 1 + later, H, W, 3]."""
    images = []
    for e in rng.integers(len(episodes), size=n):
        image = episodes[e][0]
        images.append(image[rng.integers(len(image), size=1 + later)])
    return np.stack(images)


@torch.no_grad()
def validate(tokenizer, frames, codes):
    """frames [N, 1 + T, 3, H, W] -> (reconstructions, {psnr, ssim, codebook: share of codes in use, perplexity} for context and dynamics)."""
    tokenizer.eval()
    parts = [tokenizer(piece) for piece in frames.split(16)]
    tokenizer.train()
    made = torch.cat([part[0] for part in parts])
    scores = {}
    for prefix, place, ids in (("", slice(0, 1), [p[2] for p in parts]), ("dynamics_", slice(1, None), [p[3] for p in parts])):
        if ids[0] is None:
            continue
        a, b = made[:, place].flatten(0, 1), frames[:, place].flatten(0, 1)
        share = torch.bincount(torch.cat([i.flatten() for i in ids]), minlength=codes).float()
        share = share / share.sum()
        scores.update({prefix + "psnr": rewards.psnr(a, b).mean().item(), prefix + "ssim": rewards.ssim(a, b).mean().item(),
                       prefix + "codebook": (share > 0).float().mean().item(),
                       prefix + "perplexity": share[share > 0].log().mul(share[share > 0]).sum().neg().exp().item()})
    return made, scores


def picture(frames, made, path):
    """Writes original | reconstruction | difference (times 4, grey is none), one row a frame. frames, made [n, 3, H, W]."""
    difference = ((made - frames) * 2 + 0.5).clamp(0, 1)
    rows = torch.stack([frames, made, difference], dim=1).mul(255).round().byte().cpu().permute(0, 3, 1, 4, 2)  # [n, H, 3, W, 3]
    image = Image.fromarray(rows.flatten(2, 3).flatten(0, 1).numpy())
    scale = max(1, 192 // frames.size(-1))
    image.resize((image.width * scale, image.height * scale), Image.NEAREST).save(path)


def main(argv):
    config = parse_config(Config, argv, PRESETS)
    device, _, world_size = start_processes(config.device, config.seed)
    if world_size > 1:
        raise BadInput("the tokenizer trains in one process; it is small: start it with python, not torchrun")
    folder = Path("out") / (config.name or f"{Path(config.world).name}-tokenizer")
    train, val = (read_world_episodes(config.world, split) for split in ("train", "val"))
    height, width = train[0][0].shape[1:3]
    perceptual = None
    if config.perceptual:
        try:
            perceptual = rewards.load_lpips(config.lpips_weights).to(device)
        except ValueError as error:
            raise BadInput(f"--perceptual={config.perceptual}: {error}; or train without it: --perceptual=0") from None
    later = config.later if config.dynamics else 0

    try:
        tokenizer_config = TokenizerConfig(height, width, config.factor, config.dynamics, config.channels, config.depth, config.quantizer,
                                           config.levels, config.codes)
        tokenizer = Tokenizer(tokenizer_config).to(device)
    except ValueError as error:
        raise BadInput(str(error)) from None
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=device.type != "mps")
    step, trained, best, evaluated, losses = 0, 0.0, -math.inf, -1, []
    if config.resume:
        checkpoint = newest_checkpoint(folder / "last.pt", device, make=f"python tokenizer_vq.py --world={config.world}")
        if checkpoint["model_config"] != asdict(tokenizer_config):
            different = [k for k, v in asdict(tokenizer_config).items() if checkpoint["model_config"].get(k) != v]
            raise BadInput(f"{folder / 'last.pt'} is of another tokenizer ({', '.join(different)} differ); give the same options, or another --name")
        tokenizer.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        refuse_other_options(config, checkpoint, ("seed",))
        step, trained, best, evaluated, losses = checkpoint["progress"]
        set_random_states(checkpoint["random"])
    context = autocast(device, config.dtype)
    log = MetricsLog(folder, asdict(config), config.wandb, checkpoint["log_position"] if config.resume else 0)
    guard, asked = Guard(folder / "last.pt"), watch_signals()
    shown = to_frames(draw_frames(val, max(1, config.eval_frames // (1 + later)), later, np.random.default_rng(0)), device)
    print(f"{sum(p.numel() for p in tokenizer.parameters()):,} parameters, {tokenizer.codes:,} codes, {tokenizer.tokens} tokens a frame"
          + (f", {tokenizer.dynamics_tokens} a later frame" if config.dynamics else "") + f", {sum(len(i) for i, _ in train):,} training frames")

    def save(name):
        save_checkpoint(folder / name, {"model": tokenizer.state_dict(), "optimizer": optimizer.state_dict(), "config": asdict(config),
                                        "model_config": asdict(tokenizer_config), "stage": "tokenizer", "random": random_states(),
                                        "seconds": trained, "progress": (step, trained, best, evaluated, losses), "log_position": log.position()},
                        keep=name == "last.pt")

    bar = tqdm(unit="step", initial=step, total=config.steps or None)
    while True:
        finished = (config.steps and step >= config.steps) or (config.seconds and trained >= config.seconds)
        if evaluated != step and (finished or (step and step % config.eval_every == 0)):
            made, scores = validate(tokenizer, shown, tokenizer.codes)
            value = scores["psnr"] + scores.get("dynamics_psnr", 0.0)
            if value > best:
                best = value
                save("best.pt")
            picture(shown[:6].flatten(0, 1)[:9], made[:6].flatten(0, 1)[:9], folder / "reconstruction.png")
            log.write(step, train_seconds=trained, train_loss=sum(losses) / max(1, len(losses)), **{f"val_{k}": v for k, v in scores.items()})
            tqdm.write(f"step {step}: loss {sum(losses) / max(1, len(losses)):.4f}, validation: "
                       + ", ".join(f"{k} {v:.4g}" for k, v in scores.items()) + f", {trained:.0f} s")
            losses, evaluated = [], step
            save("last.pt")
        if finished:
            break
        if asked():
            save("last.pt")
            break
        start = time.perf_counter()
        rng = np.random.default_rng([config.seed, step])  # the data of a step depend on nothing but its number
        frames = to_frames(draw_frames(train, config.batch_size, later, rng), device)
        done = max(step / config.steps if config.steps else 0.0, trained / config.seconds if config.seconds else 0.0)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / config.warmup) * min(1.0, max(0.01, (1 - done) / 0.4))
        with context:
            made, quantizer_loss, *_ = tokenizer(frames)
        error = made - frames
        error = (error.abs() + error.square()).mean((2, 3, 4))  # [N, 1 + T]
        loss = error[:, 0].mean() + 0.25 * quantizer_loss
        if later:  # context frames count as much as all that is built on them
            loss = loss + error[:, 1:].mean()
        if perceptual:
            loss = loss + config.perceptual * rewards.lpips(made.flatten(0, 1), frames.flatten(0, 1), perceptual).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0).item()
        if guard.finite(step, {"loss": loss.item(), "gradient norm": norm}, lambda: [f"as drawn by seed {config.seed} at step {step}"]):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        trained += time.perf_counter() - start
        bar.update()
        bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    bar.close()
    if not finished:
        print(f"stopped after step {step}, all is saved; go on with: {resume_command(argv)}")
        return
    print(f"done: {step} steps in {trained:.0f} s; best validation in {folder / 'best.pt'}, {folder / 'reconstruction.png'} shows what the tokens keep")


if __name__ == "__main__":
    run_main(main)
