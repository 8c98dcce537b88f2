"""
Drive: a video world as one goes through it, a frame a step: the truth, what the tokenizer makes of
it, and the models, which from the last set on see only their own frames.

    place = Drive(world, models, number, config)  # models {label: model}
    place.step({"move": [1, 0, 0, -1]})           # what use/play.py shows, as JSON has it

The truth is the simulator or, in worlds of your own, an episode for as long as one follows it.
"""

import base64
import copy
import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from common import BadInput
from data.robot import sim
from data.video import OLDEST, REPEATS
from data.world import Batch
from generate import Sampling, choose, generate
from tokenizer_vq import to_frames


def asked(world, prompt, **more):
    """One prompt (ids [1, P]) as a Batch without a record."""
    none = prompt[:, :0]
    length = torch.tensor([prompt.size(1)], device=world.device)
    return Batch(prompt, length, none, none.bool(), world.response_len, world.eos_id, **more)


# ------------------------------------------------------------------------------------------------
# Video: models that drive by themselves


class OneFrame:
    """A model of a single-step world, and the frames and actions behind it, as tokens."""

    def __init__(self, world, model, config):
        self.world = world
        self.model = model
        self.config = config

    def set(self, images, actions):
        """True images uint8 [K, H, W, 3], and the K - 1 actions between them."""
        device = self.world.device
        self.random = torch.Generator(device).manual_seed(self.config.seed)
        self.frames = list(self.world.tokenizer.encode(to_frames(np.stack(images), device)))
        self.actions = [self.world.action_ids(action).to(device) for action in actions]

    def step(self, action):
        """The frame [3, H, W] that an action leads to."""
        K = self.world.K
        self.actions.append(self.world.action_ids(action).to(self.world.device))
        pairs = zip(self.frames[-K:], self.actions[-K:])
        prompt = torch.cat([torch.cat(pair) for pair in pairs])[None]
        batch = asked(self.world, prompt, allowed_ids=self.world.allowed_ids)
        tokens = generate(self.model, batch, 1, self.config.temperature, self.random).tokens
        self.frames.append(tokens[0, 0])
        return self.world.decode(batch, tokens)[0, 0, 0]


class ManyFrames(OneFrame):
    """
    The same of a multi-step world. One Sampling of `horizon` frames goes on by a frame a step: its
    cache stays, and so an answer is bit for bit what generate() would have given.
    """

    def set(self, images, actions):
        self.random = torch.Generator(self.world.device).manual_seed(self.config.seed)
        self.look(to_frames(images[-1], self.world.device))

    def look(self, frame):
        """Makes a frame [3, H, W] the context and the last frame."""
        encoder = self.world.tokenizer
        self.context = encoder.encode(frame[None])  # [1, N]
        self.last = encoder.encode_dynamics(frame[None, None], self.context)[0, 0]  # [m]
        self.age = 0  # of the context, at the frame with which the sampling began
        self.t = 0  # frames that the sampling has given

    @torch.no_grad()
    def step(self, action):
        world = self.world
        ids = world.action_ids(action).to(world.device)
        size = world.m + world.A
        if self.t == world.horizon:  # once more, from the last frame's tokens
            self.age += self.t
            self.t = 0
            if self.age > OLDEST:
                self.look(self.frame)
        first = self.t * size
        if self.t == 0:
            self.begin(ids)
        else:
            self.given[..., first - world.A : first] = ids
            for place in range(first - world.A, first):
                self.sampling.advance(place)
        for place in range(max(1, first), first + world.m):
            self.sampling.advance(place)
        self.last = self.sampling.line[0, 0, 1 + first : 1 + first + world.m]
        self.t += 1
        self.frame = world.tokenizer.decode_dynamics(self.last[None, None], self.context)[0, 0]
        return self.frame

    def begin(self, ids):
        """A Sampling behind context, last frame and an action, as generate() begins it."""
        world = self.world
        prompt = torch.cat([self.context[0] + world.context_base, self.last, ids])[None]
        shape = 1, 1, world.response_len
        self.given = torch.full(shape, -1, device=world.device)
        batch = asked(world, prompt, allowed_ids=world.allowed_ids, forced=self.given)
        points = torch.rand(shape, device=world.device, generator=self.random)
        T = self.config.temperature

        def choice(logits, rows, place):
            return choose(logits, T, point=points[rows, :, place][..., None])

        self.sampling = Sampling(self.model, batch, 1, choice, T or 1.0, None)
        self.sampling.run_prompt()


class Table:
    """The truth of the robot: its simulator."""

    follows = True

    def __init__(self, world, number, seed):
        self.table = sim.Table(np.random.default_rng([seed, number, 1]))  # none of the data's
        self.spare = np.zeros(world.A - 4)

    def look(self):
        return self.table.render(), self.table.state()

    def step(self, move):
        """Returns the action that it made of a move, four numbers in [-1, 1]."""
        self.table.step(move)
        return np.concatenate([move, self.spare]).astype(np.float32)


def gripper_errors(frames, table):
    """
    How far the gripper in each frame is from where a Table has it: n distances in pixels, None
    where none is to be seen. frames [n, 3, H, W] in [0, 1].

    The simulator draws the gripper, high and low, open and closed. It is at the shift at which it
    is the most alike, if that is nearer than the table without a gripper. Nothing is learned here,
    so no reward was made to please it.
    """

    def drawn(**changes):
        other = copy.copy(table)
        vars(other).update(changes)
        return to_frames(other.render(), frames.device)

    bare = drawn(gripper=np.array([9.0, 9.0]))  # far outside
    states = [drawn(height=h, closed=c) for h in (0.0, 0.5, 1.0) for c in (False, True)]
    grippers = torch.stack(states)  # [S, 3, H, W]
    there = (grippers != bare).any(1)  # [S, H, W]
    rows = there.any(0).any(1).nonzero()[:, 0]
    columns = there.any(0).any(0).nonzero()[:, 0]
    y, x = int(rows[0]), int(columns[0])
    box = slice(y, int(rows[-1]) + 1), slice(x, int(columns[-1]) + 1)
    mask = there[:, None, *box].float().expand(-1, 3, -1, -1)  # [S, 3, h, w]
    grippers = grippers[:, :, *box] * mask
    h, w = mask.shape[2:]
    edges = w // 2, w // 2, h // 2, h // 2  # part of a gripper may be outside
    frames = F.pad(frames, edges, mode="replicate")
    bare = F.pad(bare[None], edges, mode="replicate")
    # at each shift the squared distance to a gripper less that to the table without: [n, S, ...]
    worse = F.conv2d(2 * frames * bare - bare.square(), mask) - 2 * F.conv2d(frames, grippers)
    worse = worse + grippers.square().sum((1, 2, 3))[:, None, None]
    least, place = worse.amin(1).flatten(1).min(1)
    found = []
    for value, at in zip(least.tolist(), place.tolist()):
        down, right = divmod(at, worse.size(3))
        off = math.hypot(down - h // 2 - y, right - w // 2 - x)
        found.append(off if value < 0 else None)
    return found


class Record:
    """The truth of any video: a test episode, as long as nobody moves otherwise."""

    def __init__(self, world, number, seed):
        self.world = world
        self.episode = world.episodes["test"][number % len(world.episodes["test"])]
        self.t = 0
        self.follows = True

    def look(self):
        state = self.episode.state
        return self.episode.image[self.t], None if state is None else state[self.t]

    def step(self, move):
        """move: None goes on with the record; its first numbers are those of the action."""
        if move is not None:
            self.follows = False
            low = self.world.low
            high = self.world.high
            given = np.resize(move, len(low)) * (np.arange(len(low)) < len(move))
            return np.clip(given * np.maximum(abs(low), abs(high)), low, high)
        if not self.follows or self.t + 1 == len(self.episode.image):
            raise BadInput(
                "the record ends here or was left: T sets all to it again, R opens another"
            )
        self.t += 1
        return self.episode.action[self.t - 1]


def is_simulated(world):
    """Whether the episodes are the simulator's: their heights move as it moves them."""
    image, action, state = world.episodes["test"][0]
    alike = image.shape[1:3] == (sim.SIZE, sim.SIZE) and action.shape[1] >= 4
    if not alike or state is None or state.shape[1] != 12:
        return False
    height = np.clip(state[:-1, 2] + sim.LIFT * action[:-1, 2], 0, 1)
    return np.allclose(height, state[1:, 2], atol=1e-4)


class Drive:
    """A place in a video world: the truth, the tokenizer and the models, side by side."""

    def __init__(self, world, domain, models, number, config):
        self.world = world
        lane = ManyFrames if world.multi else OneFrame
        self.lanes = {label: lane(world, model, config) for label, model in models.items()}
        simulated = domain == "robot" and is_simulated(world)
        self.truth = (Table if simulated else Record)(world, number, config.seed)
        self.images = [self.truth.look()[0]]
        self.actions = []
        while len(self.images) < world.K and not world.multi:  # what the first prompt needs
            self.actions.append(self.truth.step(np.array([0, 0, 0, -1]) if simulated else None))
            self.images.append(self.truth.look()[0])
        self.set()

    def set(self):
        """Sets all to the truth."""
        self.truth.follows = True
        K = 1 if self.world.multi else self.world.K
        for lane in self.lanes.values():
            lane.set(self.images[-K:], self.actions[len(self.actions) - K + 1 :])
        self.since = 0
        frame = to_frames(self.images[-1], self.world.device)
        self.frames = {label: frame for label in self.lanes}
        return self.view()

    def step(self, request):
        """request["move"]: four numbers in [-1, 1], or None to follow a record."""
        move = request.get("move")
        if move is not None:
            kinds = isinstance(move, list) and all(type(x) in (int, float) for x in move)
            if not kinds or len(move) != 4 or not all(-1 <= x <= 1 for x in move):
                raise BadInput("a move is four numbers from -1 to 1")
            move = np.array(move, dtype=np.float32)
        elif isinstance(self.truth, Table):
            raise BadInput("the simulator has no record to follow: move")
        action = self.truth.step(move)
        self.since += 1
        if self.truth.follows:
            self.images = [*self.images, self.truth.look()[0]][-self.world.K - 1 :]
            self.actions = [*self.actions, action][-self.world.K :]
        self.frames = {label: lane.step(action) for label, lane in self.lanes.items()}
        return self.view()

    def view(self):
        """What the page shows; once the truth is left, the models alone and no scores."""
        world = self.world
        shown = dict(self.frames)
        scores = {}
        simulated = isinstance(self.truth, Table)
        if self.truth.follows:
            image, state = self.truth.look()
            last = self.images[-2] if self.since else image
            last, truth = to_frames(np.stack([last, image]), world.device)
            state = None if state is None else torch.from_numpy(state).to(world.device)[None, None]
            judged = {"tokenizer": self.reconstruction(truth), **self.frames}
            shown = {"truth": truth, **judged}
            true = last[None], truth[None, None], state
            scores = {label: self.scores(frame, true) for label, frame in judged.items()}
            if simulated:
                errors = gripper_errors(torch.stack([*judged.values()]), self.truth.table)
                for label, error in zip(judged, errors):
                    scores[label]["gripper error"] = error
        return dict(
            frames={label: png(frame) for label, frame in shown.items()},
            scores=scores,
            since=self.since,
            hand=self.truth.table.gripper.tolist() if simulated else None,
            record=not simulated,
        )

    @torch.no_grad()
    def reconstruction(self, frame):
        """What the tokenizer makes of a true frame [3, H, W]."""
        encoder = self.world.tokenizer
        if not self.world.multi:
            return encoder.decode(encoder.encode(frame[None]))[0]
        if self.since % self.world.horizon == 0:  # as often as models begin anew
            self.context = encoder.encode(frame[None])
        ids = encoder.encode_dynamics(frame[None, None], self.context)
        return encoder.decode_dynamics(ids, self.context)[0, 0]

    def scores(self, frame, true):
        """{"reward", "psnr" and what the task measures: value} of one frame."""
        world = self.world
        terms = [
            (weight, name) for weight, name in world.terms(world.reward) if name not in REPEATS
        ]
        names = ["psnr", *world.task.metrics]
        wanted = [*names, *(name for _, name in terms)]
        found = world.frame_scores(frame[None, None, None], true, wanted)
        found["reward"] = world.weighted_sum(terms, found)
        return {name: found[name].item() for name in ("reward", *names)}


def png(frame):
    """A frame [3, H, W] in [0, 1] as the address of a picture."""
    array = frame.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
