"""
Frames <-> tokens: a small convolutional autoencoder with a discrete bottleneck, and its training.

    python tokenizer_vq.py --world=robot                        per-frame tokens
    python tokenizer_vq.py --world=robot-multi --dynamics=16    for multi-step prediction
    python tokenizer_vq.py --world=robot --resume               go on after a stop

    frame [3, H, W] --encoder--> [d, H/f, W/f] --quantize--> ids [H/f · W/f] --decoder--> frame

For multi-step prediction a frame that differs little from one seen before need not be spelled out
again. The CONTEXT-CONDITIONAL tokenizer (iVideoGPT, arXiv 2405.15223) gives one context frame all
its tokens and every later frame a few "dynamics" tokens only: encoder and decoder of the dynamics
look at the context frame's features through cross-attention, and pixels that have not changed are
taken from it.

The loss is L1 + L2 + an optional perceptual term (LPIPS). The paper adds a GAN term, which is left
out here: pictures come out softer, training never falls over. What to watch: PSNR (the floor of
everything that is predicted in these tokens), and the share of the codebook in use.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path

# common first: it says how torch's threads wait, before torch is imported
from common import OUT, BadInput, Run, load_checkpoint, one_of, option, parse_config
from common import run_main, start_processes

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import rewards
from data.episodes import read_world_episodes

# ------------------------------------------------------------------------------------------------
# Quantizers: continuous features -> ids -> the vectors that the decoder sees


class FSQ(nn.Module):
    """
    Finite scalar quantization (arXiv 2309.15505): each of d numbers is squashed and rounded to one
    of its few levels; the id counts the combinations. There is no codebook to learn, none to
    collapse.
    """

    def __init__(self, levels):
        super().__init__()
        self.width = len(levels)
        self.codes = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)  # [d]
        # how much one step of each number adds to the id, [d]
        basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, z):
        """
        z [..., d] -> (quantized [..., d] in [-1, 1], ids [...], loss 0). The gradient goes straight
        through the rounding.
        """
        half = (self.levels - 1) * (1 + 1e-3) / 2  # the outermost levels can be reached
        # an even number of levels has none at zero
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = (z.float() + (offset / half).atanh()).tanh() * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = rounded.detach().round().long() + self.levels // 2
        ids = (digits * self.basis).sum(-1)
        return rounded / (self.levels // 2), ids, z.new_zeros(())

    def lookup(self, ids):
        """ids [...] -> vectors [..., d]."""
        digits = ids[..., None] // self.basis % self.levels
        return (digits - self.levels // 2) / (self.levels // 2)


class EMA(nn.Module):
    """
    Vector quantization whose codebook follows the features by exponential moving averages (VQ-VAE,
    arXiv 1711.00937, appendix A.1). A code that has gone unused is moved onto a random feature of
    the batch, or it would stay dead for ever.
    """

    def __init__(self, codes, width, decay=0.98, revive_below=0.02):
        super().__init__()
        self.width = width
        self.codes = codes
        self.decay = decay
        self.revive_below = revive_below
        self.register_buffer("codebook", torch.randn(codes, width))  # [codes, d]
        # running number of features that fall to each code, and running sum of them
        self.register_buffer("count", torch.ones(codes))
        self.register_buffer("total", self.codebook.clone())

    def forward(self, z):
        """
        z [..., d] -> (quantized [..., d], ids [...], commitment loss). In training mode the
        codebook moves.
        """
        flat = z.float().reshape(-1, self.width)
        ids = torch.cdist(flat, self.codebook).argmin(-1)
        if self.training:
            self.follow(flat.detach(), ids)
        quantized = self.codebook[ids].view(z.shape)
        loss = F.mse_loss(z.float(), quantized.detach())
        return z + (quantized - z).detach(), ids.view(z.shape[:-1]), loss

    @torch.no_grad()
    def follow(self, flat, ids):
        """Moves the codebook towards the features flat [n, d], whose nearest codes are ids [n]."""
        count = torch.bincount(ids, minlength=self.codes).to(flat.dtype)
        total = torch.zeros_like(self.total).index_add_(0, ids, flat)
        self.count.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        dead = self.count < self.revive_below
        fresh = flat[torch.randint(len(flat), (self.codes,), device=flat.device)]
        self.count.masked_fill_(dead, 1.0)
        self.total.copy_(torch.where(dead[:, None], fresh, self.total))
        self.codebook.copy_(self.total / self.count[:, None])

    def lookup(self, ids):
        """ids [...] -> vectors [..., d]."""
        return self.codebook[ids]


# ------------------------------------------------------------------------------------------------
# The autoencoder. Feature maps are [N, C, h, w]; "stage s" has 1/2^s of the frame's height and
# width


@dataclass
class TokenizerConfig:
    height: int = 64
    width: int = 64
    factor: int = 8  # a frame has height/factor x width/factor tokens
    # a later frame has height/dynamics x width/dynamics tokens besides those of its context frame
    # (0: there are none)
    dynamics: int = 0
    channels: int = 32  # at stage 1; twice as many at stage 2, four times from stage 3 on
    depth: int = 1  # residual blocks per stage, from stage 2 on
    quantizer: str = "fsq"  # fsq or ema
    levels: str = "8,5,5,5"  # of fsq; their product is the number of codes
    codes: int = 1024  # of ema

    def __post_init__(self):
        dynamics = self.dynamics or self.factor
        if min(self.height, self.width) < 16:
            raise ValueError(
                f"frames of {self.height}x{self.width} are too small: 16x16 is the least, SSIM's "
                f"window is 11 wide; resize them: prepare.py --height=64 --width=64"
            )
        for name, factor in (("factor", self.factor), ("dynamics", dynamics)):
            if factor < 4 or factor & (factor - 1):
                raise ValueError(f"--{name}={factor} must be a power of two, 4 or more")
            if self.height % factor or self.width % factor:
                raise ValueError(
                    f"frames of {self.height}x{self.width} cannot be cut into cells of "
                    f"{factor}x{factor}; choose another --{name}, or resize the frames"
                )
        try:
            if min(map(int, self.levels.split(","))) < 2:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"--levels={self.levels!r} must be whole numbers from 2 on, separated by commas, "
                f"such as 8,5,5,5"
            ) from None


def channels_at(config, stage):
    """The number of channels of a feature map at a stage, counted from 1."""
    return config.channels * min(2 ** (stage - 1), 4)


def stages_of(factor):
    """The number of stages, each of which halves height and width, that make 1/factor of both."""
    return int(math.log2(factor))


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        # starts as the identity
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return x + h


def residual_blocks(config, stage):
    """The residual blocks of a stage, one behind another; none at stage 1."""
    width = channels_at(config, stage)
    depth = config.depth if stage > 1 else 0
    return nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))


def grid(height, width, channels, device):
    """
    Sines and cosines of the place of each cell, [h·w, C], C a multiple of 4: how attention knows
    where things are.
    """
    frequency = 100.0 ** (-torch.arange(channels // 4, device=device) / (channels // 4))
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    angles = torch.stack([y, x], dim=-1).flatten(0, 1)[..., None] * frequency  # [h·w, 2, C/4]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


class CrossAttention(nn.Module):
    """Every cell of x looks at all cells of the context's feature map and adds what it found."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.norm_context = nn.GroupNorm(8, width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)

    def forward(self, x, context):
        """
        x [N·T, C, h, w], context [N, C, h, w], read by the T frames that follow one another in x.
        Returns the shape of x.
        """
        N, C, h, w = context.shape
        place = grid(h, w, C, x.device)
        rows = self.norm(x).view(N, -1, C, h * w).transpose(2, 3)  # [N, T, h·w, C]
        seen = self.norm_context(context).flatten(2).transpose(1, 2)  # [N, h·w, C]

        # -> [N, heads, T·h·w or h·w, C/heads]
        def split(t):
            return t.float().reshape(N, -1, self.heads, C // self.heads).transpose(1, 2)

        q = split(self.q(rows + place))
        k = split(self.k(seen + place))
        v = split(self.v(seen))
        # without autocast: a CPU's backward pass in bf16 takes six times as long as in fp32
        with torch.autocast(x.device.type, enabled=False):
            found = F.scaled_dot_product_attention(q, k, v)
        found = self.o(found.transpose(1, 2).reshape(N, -1, h * w, C))
        return x + found.transpose(2, 3).reshape(x.shape)


class Encoder(nn.Module):
    """
    Frames [N, 3, H, W] in [0, 1] -> features [N, d, H/factor, W/factor]. With attend, it looks at
    a context's features at stage `attend`.
    """

    def __init__(self, config, factor, out, attend=0):
        super().__init__()
        self.attend = attend
        self.down = nn.ModuleList()
        self.blocks = nn.ModuleList()
        width = 3
        for stage in range(1, stages_of(factor) + 1):
            self.down.append(nn.Conv2d(width, channels_at(config, stage), 3, stride=2, padding=1))
            width = channels_at(config, stage)
            self.blocks.append(residual_blocks(config, stage))
            if stage == attend:
                self.cross = CrossAttention(width)
        self.norm = nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, out, 1)

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
    Features [N, d, H/factor, W/factor] -> (frames [N, 3, H, W], the feature map at stage `tap`,
    which others may look at).

    With attend it makes frames [N·T, 3, H, W] that follow N context frames: it looks at their
    features, and says for every pixel how much of it is new; the rest is the context frame's pixel.
    """

    def __init__(self, config, factor, width_in, tap, attend=False):
        super().__init__()
        self.tap = tap
        self.attend = attend
        self.stages = stages_of(factor)
        self.enter = nn.Conv2d(width_in, channels_at(config, self.stages), 3, padding=1)
        self.blocks = nn.ModuleList()
        self.up = nn.ModuleList()
        for stage in range(self.stages, 0, -1):
            width = channels_at(config, stage)
            # at the end the three colours and, with attend, how much is new
            out = channels_at(config, stage - 1) if stage > 1 else 3 + attend
            self.blocks.append(residual_blocks(config, stage))
            self.up.append(nn.Conv2d(width, 4 * out, 3, padding=1))
        if attend:
            self.cross = CrossAttention(channels_at(config, tap))

    def forward(self, z, context=None):
        """
        context: the pair (frames, features) that a decoder without attend has made of the N context
        frames.
        """
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
        x = x.unflatten(0, (len(context[0]), -1))  # [N, T, 4, H, W]
        drawn, new = x.split([3, 1], dim=2)
        made = torch.lerp(context[0][:, None], drawn, new)  # [N, T, 3, H, W]
        return made.flatten(0, 1), features.float()


class Tokenizer(nn.Module):
    """
    encode / decode: whole frames <-> ids. encode_dynamics / decode_dynamics: later frames <-> a few
    ids, given the ids of a context frame. Dynamics ids and frame ids are both counted from 0; the
    world gives them different places in its vocabulary.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        levels = [int(level) for level in config.levels.split(",")]

        kind = one_of("quantizer", config.quantizer, ("fsq", "ema"))

        def quantizer():
            return FSQ(levels) if kind == "fsq" else EMA(config.codes, 8)

        tap = stages_of(config.factor)
        self.quantizer = quantizer()
        self.encoder = Encoder(config, config.factor, self.quantizer.width)
        self.decoder = Decoder(config, config.factor, self.quantizer.width, tap)
        self.codes = self.quantizer.codes
        # of a whole frame, and of a later one
        self.tokens = (config.height // config.factor) * (config.width // config.factor)
        self.dynamics_tokens = 0
        if config.dynamics:
            if config.dynamics < config.factor:
                raise ValueError(
                    f"--dynamics={config.dynamics} must be at least --factor={config.factor}: "
                    f"later frames have fewer tokens, not more"
                )
            factor = config.dynamics
            width = self.quantizer.width
            self.dynamics_quantizer = quantizer()
            self.dynamics_encoder = Encoder(config, factor, width, attend=tap)
            self.dynamics_decoder = Decoder(config, factor, width, tap, attend=True)
            self.dynamics_tokens = (config.height // factor) * (config.width // factor)

    def quantize(self, z, quantizer):
        """Features [N, d, h, w] -> (quantized [N, d, h, w], ids [N, h·w] row by row, loss)."""
        quantized, ids, loss = quantizer(z.permute(0, 2, 3, 1))
        return quantized.permute(0, 3, 1, 2), ids.flatten(1), loss

    def vectors(self, ids, quantizer, factor):
        """ids [N, h·w] -> [N, d, h, w]."""
        h = self.config.height // factor
        w = self.config.width // factor
        return quantizer.lookup(ids).view(len(ids), h, w, -1).permute(0, 3, 1, 2)

    def encode(self, frames):
        """Frames [N, 3, H, W] in [0, 1] -> ids [N, tokens]."""
        return self.quantize(self.encoder(frames), self.quantizer)[1]

    def decode(self, ids):
        """ids [N, tokens] -> frames [N, 3, H, W] in [0, 1]."""
        return self.context(ids)[0]

    def context(self, ids):
        """
        ids [N, tokens] of context frames -> (frames [N, 3, H, W], feature maps [N, C, h, w]), which
        the dynamics look at.
        """
        return self.decoder(self.vectors(ids, self.quantizer, self.config.factor))

    def encode_dynamics(self, frames, context_ids):
        """
        Later frames [N, T, 3, H, W] and their context frames' ids [N, tokens] -> ids
        [N, T, dynamics_tokens].
        """
        _, features = self.context(context_ids)
        z = self.dynamics_encoder(frames.flatten(0, 1), features)
        _, ids, _ = self.quantize(z, self.dynamics_quantizer)
        return ids.view(*frames.shape[:2], -1)

    def decode_dynamics(self, ids, context_ids):
        """
        ids [N, T, dynamics_tokens], context_ids [N, tokens] -> frames [N, T, 3, H, W] in [0, 1].
        """
        z = self.vectors(ids.flatten(0, 1), self.dynamics_quantizer, self.config.dynamics)
        frames, _ = self.dynamics_decoder(z, self.context(context_ids))
        return frames.view(*ids.shape[:2], 3, self.config.height, self.config.width)

    def forward(self, frames):
        """
        A training pass. frames [N, 1 + T, 3, H, W], the context frame first, T = 0 where there are
        no dynamics. Returns (reconstructions of the same shape, quantizer loss, ids of the context
        frames, ids of the dynamics or None).
        """
        quantized, ids, loss = self.quantize(self.encoder(frames[:, 0]), self.quantizer)
        context = self.decoder(quantized)  # frames, features
        first = context[0][:, None]
        if frames.size(1) == 1:
            return first, loss, ids, None
        z = self.dynamics_encoder(frames[:, 1:].flatten(0, 1), context[1])
        quantized, dynamics_ids, dynamics_loss = self.quantize(z, self.dynamics_quantizer)
        later, _ = self.dynamics_decoder(quantized, context)
        later = later.view(len(frames), -1, *frames.shape[2:])
        made = torch.cat([first, later], dim=1)
        return made, loss + dynamics_loss, ids, dynamics_ids


def fingerprint(tokenizer):
    """
    Twelve letters that change with any weight or setting: tokens are good for one tokenizer only.
    """
    digest = hashlib.sha256(repr(sorted(asdict(tokenizer.config).items())).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def load_tokenizer(path, device="cpu", make="python tokenizer_vq.py"):
    """
    The tokenizer of a checkpoint, frozen, on a device. Raises BadInput if there is none or if it is
    something else.
    """
    checkpoint = load_checkpoint(path, device, make, ("tokenizer",))
    tokenizer = Tokenizer(TokenizerConfig(**checkpoint["model_config"])).to(device)
    tokenizer.load_state_dict(checkpoint["model"])
    return tokenizer.eval().requires_grad_(False)


def to_frames(images, device="cpu"):
    """uint8 images [..., H, W, 3] (numpy) -> fp32 frames [..., 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).movedim(-1, -3).float() / 255


# ------------------------------------------------------------------------------------------------
# Training


@dataclass
class Config:
    world: str = "robot"  # a folder of episodes, or its name under data/
    name: str = ""  # results go to out/<name>; empty: <world>-tokenizer
    resume: bool = False  # go on with out/<name>/last.pt
    # the autoencoder
    factor: int = option(8, 4, 64)  # a frame has height/factor x width/factor tokens
    # for multi-step prediction: a later frame has height/dynamics x width/dynamics tokens (0: none)
    dynamics: int = option(0, 0, 256)
    channels: int = option(32, 8, 1024)  # at half resolution; doubled twice on the way down
    depth: int = option(1, 0, 16)  # residual blocks per stage
    quantizer: str = option("fsq", "fsq", "ema")
    levels: str = "8,5,5,5"  # of fsq; their product is the number of codes (the paper: 7,5,5,5,5)
    codes: int = option(1024, 2, 2**17)  # of ema
    # a step
    batch_size: int = option(12, 1, 4096)  # frames (with dynamics: context frames)
    later: int = option(2, 1, 64)  # with dynamics: later frames per context frame
    perceptual: float = option(0.0, 0.0, 1e3)  # weight of LPIPS in the loss; needs lpips_weights
    lpips_weights: str = ""  # folder of the public VGG16 and LPIPS weights
    # the optimizer: AdamW
    lr: float = option(2e-3, 0.0, 10.0)
    warmup: int = option(50, 1, 10**6)  # steps of linear warm-up
    decay: float = option(0.4, 0.0, 1.0)  # the rate falls to 0 over this last part of the run
    # how long
    steps: int = option(5000, 1, 10**9)
    seconds: float = option(0.0, 0.0, 1e9)  # a cap on training time, if you want one (0: none)
    eval_every: int = option(250, 1, 10**9)  # steps between validations
    eval_frames: int = option(128, 1, 10**6)  # validation frames
    # the machine
    dtype: str = option("auto", "auto", "float32", "bfloat16")  # bfloat16 by autocast
    device: str = "auto"  # cpu, cuda, mps or auto
    threads: int = option(2, 1, 1024)  # of a CPU
    seed: int = option(0, 0, 2**31)
    out: str = OUT  # the folder of all results
    wandb: str = ""  # wandb project to log to as well


SMOKE = dict(channels=8, depth=1, steps=4, eval_every=2, eval_frames=8, batch_size=4, warmup=1)
SMOKE.update(perceptual=0.0)


def draw_frames(episodes, n, later, rng):
    """
    n context frames and, for each, `later` frames of the same episode: uint8
    [n, 1 + later, H, W, 3].
    """
    images = []
    for e in rng.integers(len(episodes), size=n):
        image = episodes[e].image
        images.append(image[rng.integers(len(image), size=1 + later)])
    return np.stack(images)


@torch.no_grad()
def validate(tokenizer, frames):
    """
    frames [N, 1 + T, 3, H, W] -> (reconstructions, {psnr, ssim, codebook: share of codes in use,
    perplexity} for context and dynamics).
    """
    tokenizer.eval()
    parts = [tokenizer(piece) for piece in frames.split(16)]
    tokenizer.train()
    made = torch.cat([part[0] for part in parts])
    scores = {}
    for prefix, place, number in (("", slice(0, 1), 2), ("dynamics_", slice(1, None), 3)):
        if parts[0][number] is None:
            continue
        a = made[:, place].flatten(0, 1)
        b = frames[:, place].flatten(0, 1)
        ids = torch.cat([part[number].flatten() for part in parts])
        share = torch.bincount(ids, minlength=tokenizer.codes).float()
        used = share[share > 0] / share.sum()
        scores[prefix + "psnr"] = rewards.psnr(a, b).mean().item()
        scores[prefix + "ssim"] = rewards.ssim(a, b).mean().item()
        scores[prefix + "codebook"] = len(used) / len(share)
        scores[prefix + "perplexity"] = (-(used * used.log()).sum()).exp().item()
    return made, scores


def picture(frames, made, path):
    """
    Writes original | reconstruction | difference (times 4, grey is none), one row a frame. frames,
    made [n, 3, H, W].
    """
    difference = ((made - frames) * 2 + 0.5).clamp(0, 1)
    rows = torch.stack([frames, made, difference], dim=1).mul(255).round().byte().cpu()
    rows = rows.permute(0, 3, 1, 4, 2)  # [n, H, 3, W, 3]
    image = Image.fromarray(rows.flatten(2, 3).flatten(0, 1).numpy())
    scale = max(1, 192 // frames.size(-1))
    image.resize((image.width * scale, image.height * scale), Image.NEAREST).save(path)


def loss_of(made, frames, quantizer_loss, perceptual, weight):
    """
    The training loss of reconstructions made [N, 1 + T, 3, H, W] of frames: L1 + L2 + the
    quantizer's own + weight times LPIPS (perceptual: its network, or None).
    """
    error = made - frames
    error = (error.abs() + error.square()).mean((2, 3, 4))  # [N, 1 + T]
    loss = error[:, 0].mean() + 0.25 * quantizer_loss
    if frames.size(1) > 1:  # context frames count as much as all that is built on them
        loss = loss + error[:, 1:].mean()
    if perceptual:
        distance = rewards.lpips(made.flatten(0, 1), frames.flatten(0, 1), perceptual)
        loss = loss + weight * distance.mean()
    return loss


def main(argv):
    config = parse_config(Config, argv, SMOKE)
    device, _, world_size, precision = start_processes(config)
    if world_size > 1:
        raise BadInput("the tokenizer trains in one process: start it with python, not torchrun")

    # --------------------------------------------------------------------------------------------
    # frames
    train = read_world_episodes(config.world, "train")
    val = read_world_episodes(config.world, "val")
    height, width = train[0].image.shape[1:3]
    later = config.later if config.dynamics else 0
    n_shown = min(config.eval_frames, sum(len(e.image) for e in val)) // (1 + later)
    shown = draw_frames(val, max(1, n_shown), later, np.random.default_rng(0))
    shown = to_frames(shown, device)  # [n, 1 + later, 3, H, W]

    # --------------------------------------------------------------------------------------------
    # tokenizer and optimizer
    perceptual = None
    try:
        shape = TokenizerConfig(
            height,
            width,
            config.factor,
            config.dynamics,
            config.channels,
            config.depth,
            config.quantizer,
            config.levels,
            config.codes,
        )
        tokenizer = Tokenizer(shape).to(device)
        if config.perceptual:
            perceptual = rewards.load_lpips(config.lpips_weights).to(device)
    except ValueError as error:
        raise BadInput(str(error)) from None
    optimizer = torch.optim.AdamW(
        tokenizer.parameters(),
        lr=config.lr,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        fused=device.type != "mps",
    )
    world = Path(config.world).name
    run = Run("tokenizer", config, f"{world}-tokenizer")
    if run.resumed:
        names = ("factor", "dynamics", "channels", "depth", "quantizer", "levels", "codes", "seed")
        run.refuse_other_options(names)
    run.keep(shape, model=tokenizer, optimizer=optimizer)
    parameters = sum(p.numel() for p in tokenizer.parameters())
    more = f", {tokenizer.dynamics_tokens} a later frame" if config.dynamics else ""
    run.tell(
        f"{parameters:,} parameters, {tokenizer.codes:,} codes, {tokenizer.tokens} tokens a frame"
        f"{more}, {sum(len(e.image) for e in train):,} training frames"
    )

    def validation():
        made, scores = validate(tokenizer, shown)
        frames = [frames[:6].flatten(0, 1)[:9] for frames in (shown, made)]
        picture(*frames, run.folder / "reconstruction.png")
        return scores["psnr"] + scores.get("dynamics_psnr", 0.0), scores

    # --------------------------------------------------------------------------------------------
    # the loop
    for _ in run.steps(validation):
        run.set_rate(optimizer, config.lr)
        frames = draw_frames(train, config.batch_size, later, run.rng())
        frames = to_frames(frames, device)  # [N, 1 + later, 3, H, W]
        with precision:
            made, quantizer_loss, *_ = tokenizer(frames)
        loss = loss_of(made, frames, quantizer_loss, perceptual, config.perceptual)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0).item()
        numbers = {"loss": loss.item(), "norm": norm}
        if run.finite(numbers, lambda: [f"drawn by seed {config.seed} at step {run.step}"]):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens = made.size(0) * made.size(1) * tokenizer.tokens
        run.work += 3 * tokens
        run.log(("loss",), tokens, **numbers, lr=config.lr * run.rate())


if __name__ == "__main__":
    run_main(main)
