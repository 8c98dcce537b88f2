"""
A table top seen from above, simulated and drawn: a gripper, three objects, a drawer.

Coordinates are those of the picture, 0..1, y downwards.

    table = Table(rng); frame = table.render(); table.step(action); table.success("push")

An action is four numbers in [-1, 1]: dx, dy (STEP table widths at most), dz (up is positive) and
grip (closed if positive). The gripper pushes what it meets while it is low; if it closes around an
object, the object goes with it, up and across, until it opens; if it closes on the drawer's handle,
the drawer follows it. All of the state is known, so success of a task is known exactly.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

# pixels of a frame; it is drawn FINE times larger and averaged down, so edges are soft
SIZE = 64
FINE = 3

# largest move of one action: across, and up
STEP = 0.10
LIFT = 0.5

# radius of the gripper's fingers
REACH = 0.055

# margin of the table, where it begins under the drawer, and how far the drawer opens
WALL = 0.06
TOP = 0.20
SLIDE = 0.22

SHAPES = ("disc", "square", "triangle")
TASKS = ("reach", "push", "grasp", "drawer")


class Table:
    """
    One table.

    rng: a numpy Generator; it fixes objects, colours, light and the goal of each task.
    """

    def __init__(self, rng):
        self.kinds = list(SHAPES)
        self.radius = rng.uniform(0.065, 0.095, 3)
        self.place = np.zeros((3, 2))
        low = [WALL + 0.1, TOP + 0.32]
        high = [1 - WALL - 0.1, 1 - WALL - 0.1]
        for i in range(3):
            # not on top of one another
            apart = False
            while not apart:
                self.place[i] = rng.uniform(low, high)
                apart = True
                for j in range(i):
                    distance = np.hypot(*(self.place[i] - self.place[j]))
                    if distance <= self.radius[i] + self.radius[j] + 0.02:
                        apart = False
        hues = [[210, 60, 50], [60, 110, 215], [60, 165, 80], [225, 180, 50], [150, 80, 185]]
        hues = rng.permutation(hues)[:3]
        self.colors = np.clip(hues + rng.uniform(-20, 20, (3, 3)), 0, 255).astype(int)
        self.ground = np.array([188, 178, 160]) + rng.uniform(-18, 18, 3)
        self.gripper = rng.uniform([0.2, 0.4], [0.8, 0.8])
        self.height = 1.0
        self.closed = False
        self.held = -1  # number of the object in the gripper (-1: none)
        self.drawer = 0.0  # how far it is open, 0..1
        self.pulls = False  # whether the gripper pulls the drawer
        # light from one side, [64, 64, 3], multiplies the picture
        angle = rng.uniform(0, 2 * math.pi)
        strength = rng.uniform(0.0, 0.25)
        y, x = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
        light = rng.uniform(0.8, 1.1) * (1 + strength * (x * math.cos(angle) + y * math.sin(angle)))
        self.light = (light[..., None] * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
        # where push is to bring its object, and the object of push, grasp and reach
        self.goal = rng.uniform([WALL + 0.1, TOP + 0.3], high)
        self.target = int(rng.integers(3))

    def handle(self):
        """Where the drawer's handle is, [2]."""
        return np.array([0.5, TOP - 0.02 + SLIDE * self.drawer])

    def step(self, action):
        """One action, [4] in [-1, 1]."""
        dx, dy, dz, grip = np.clip(np.asarray(action, dtype=float), -1, 1)
        before = self.gripper.copy()
        self.gripper = np.clip(self.gripper + STEP * np.array([dx, dy]), [WALL, 0.12], 1 - WALL)
        self.height = min(1.0, max(0.0, self.height + LIFT * dz))
        closing = grip > 0 and not self.closed
        self.closed = grip > 0
        low = self.height < 0.5
        if not self.closed:
            self.held = -1
            self.pulls = False
        # have the fingers closed on something?
        if closing and low:
            far = np.hypot(*(self.place - self.gripper).T)
            if np.hypot(*(self.handle() - self.gripper)) < 0.09:
                self.pulls = True
            elif far.min() < 0.09:
                self.held = int(far.argmin())
        if self.pulls and not low:
            self.pulls = False
        if self.pulls:
            pulled = self.drawer + (self.gripper[1] - before[1]) / SLIDE
            self.drawer = min(1.0, max(0.0, pulled))
            self.gripper = np.array([self.handle()[0], self.handle()[1]])
        if self.held >= 0:
            self.place[self.held] = self.gripper
        self.collide(low, math.dist(before, self.gripper) < 0.03)

    def collide(self, low, still):
        """
        Pushes objects out of the low gripper, of each other, of the drawer's front and the walls.

        The gripper comes first. low: whether it is low; still: whether it hardly moved.
        """
        # an object in the air touches nothing
        lifted = self.held if self.held >= 0 and not low else -1
        for _ in range(6):
            before = self.place.copy()
            for i in range(3):
                if i == self.held:
                    continue
                radius = self.radius[i]
                # the open fingers may stand on both sides of it
                near = math.dist(self.place[i], self.gripper) < 0.04
                between = still and not self.closed and near
                if low and not between:
                    self.part(i, self.gripper, REACH + radius)
                for j in range(3):
                    if j != i and j != lifted:
                        self.part(i, self.place[j], radius + self.radius[j])
                # the drawer's front pushes too
                top = TOP + SLIDE * self.drawer + radius
                self.place[i, 0] = min(max(self.place[i, 0], WALL + radius), 1 - WALL - radius)
                self.place[i, 1] = min(max(self.place[i, 1], top), 1 - WALL - radius)
            if (self.place == before).all():
                break

    def part(self, i, center, distance):
        """Moves object i straight away from a center until it is `distance` away."""
        x = float(self.place[i, 0] - center[0])
        y = float(self.place[i, 1] - center[1])
        length = math.hypot(x, y)
        if length >= distance:
            return
        x, y = (x / length, y / length) if length > 1e-6 else (1.0, 0.0)
        self.place[i] = center[0] + x * distance, center[1] + y * distance

    def state(self):
        """
        Everything that moves, float32 [12].

        Gripper x, y, height, closed; x, y of the three objects; drawer; number of the held object.
        """
        gripper = [*self.gripper, self.height, self.closed]
        return np.array([*gripper, *self.place.flatten(), self.drawer, self.held], dtype=np.float32)

    def success(self, task):
        """
        Whether a task is done.

        reach: the gripper is over its target object; push: that object lies within 0.1 of the goal,
        on the table; grasp: it is held in the air; drawer: the drawer is at least 0.8 open.
        ValueError for another task.
        """
        if task == "reach":
            return bool(np.hypot(*(self.gripper - self.place[self.target])) < 0.06)
        if task == "push":
            near = np.hypot(*(self.place[self.target] - self.goal)) < 0.1
            return bool(near and self.held != self.target)
        if task == "grasp":
            return bool(self.held == self.target and self.height >= 0.5)
        if task == "drawer":
            return bool(self.drawer >= 0.8)
        raise ValueError(f"there is no task {task!r}; there are {', '.join(TASKS)}")

    def render(self):
        """The picture, uint8 [64, 64, 3]."""
        scale = SIZE * FINE
        image = Image.new("RGB", (scale, scale), tuple(int(c) for c in self.ground))
        pen = ImageDraw.Draw(image)

        def box(x0, y0, x1, y1, color):
            corners = [x0 * scale, y0 * scale, x1 * scale - 1, y1 * scale - 1]
            pen.rectangle(corners, fill=tuple(int(c) for c in color))

        def shadow(x, y, radius):
            corners = [x - radius, y - radius, x + radius, y + radius]
            color = tuple(int(c * 0.72) for c in self.ground)
            pen.ellipse([corner * scale for corner in corners], fill=color)

        # the chest at the far side of the table; of its drawer the inside, the front and the handle
        wood = self.ground * [0.62, 0.52, 0.42]
        front = TOP + SLIDE * self.drawer - 0.04
        box(0, 0, 1, TOP - 0.06, wood * 0.8)
        box(0.24, TOP - 0.06, 0.76, front, wood * 0.45)
        box(0.22, front - 0.05, 0.78, front + 0.02, wood * 1.25)
        box(0.42, front + 0.02, 0.58, front + 0.05, [60, 60, 65])
        # objects on the table first, then the one in the air
        in_air = self.held if self.height >= 0.5 else -1
        for i in range(3):
            if i != in_air:
                self.draw_object(pen, i, scale, 1.0)
        if in_air >= 0:
            shadow(*(self.place[in_air] + 0.05 * self.height), 0.07)
            self.draw_object(pen, in_air, scale, 1.15)
        else:
            # the gripper's shadow moves away as it rises
            shadow(*(self.gripper + 0.05 * self.height), 0.05)
        # two fingers, and what joins them
        x, y = self.gripper
        size = 0.045 + 0.018 * self.height
        gap = (0.035 if self.closed else 0.075) * (1 + 0.3 * self.height)
        box(x - gap - size / 2, y - size, x - gap + size / 2, y + size, [40, 42, 52])
        box(x + gap - size / 2, y - size, x + gap + size / 2, y + size, [40, 42, 52])
        box(x - gap, y - size / 2.2, x + gap, y + size / 2.2, [95, 98, 110])
        array = np.asarray(image.reduce(FINE), dtype=np.float32) * self.light
        return np.clip(array + 0.5, 0, 255).astype(np.uint8)

    def draw_object(self, pen, i, scale, grow):
        x, y = self.place[i] * scale
        r = self.radius[i] * scale * grow
        color = tuple(self.colors[i].tolist())
        if self.kinds[i] == "disc":
            pen.ellipse([x - r, y - r, x + r, y + r], fill=color)
        elif self.kinds[i] == "square":
            r *= 0.88
            pen.rectangle([x - r, y - r, x + r, y + r], fill=color)
        else:
            pen.polygon([(x, y - r * 1.1), (x + r, y + r * 0.8), (x - r, y + r * 0.8)], fill=color)


# --------------------------------------------------------------------------------------------------
# Policies


def policy(table, task, skill, rng):
    """
    The next action of a scripted hand that tries a task ("wander": none), float32 [4].

    skill 0..1: how much of it is plan, the rest is noise.
    """
    noise = rng.uniform(-1, 1, 4)
    if task == "wander":
        plan = noise
    else:
        plans = dict(reach=reach_plan, push=push_plan, grasp=grasp_plan, drawer=drawer_plan)
        plan = plans[task](table)
    action = skill * np.asarray(plan) + (1 - skill) * noise
    if skill > 0.5:
        action[3] = plan[3]  # a skilled hand does not let go by chance
    return np.clip(action, -1, 1).astype(np.float32)


def towards(table, place):
    """(dx, dy) of the action that goes to a place, or as far as one step goes, and the distance."""
    away = place - table.gripper
    longest = max(abs(away).max(), 1e-6)
    return away / max(longest, STEP), math.hypot(*away)


def reach_plan(table):
    move, _ = towards(table, table.place[table.target])
    return [*move, 1.0, -1.0]


def push_plan(table):
    """Goes behind the object, lowers the gripper, then walks to the goal through the object."""
    thing = table.place[table.target]
    way = (table.goal - thing) / max(math.hypot(*(table.goal - thing)), 1e-6)
    behind = thing - way * (REACH + table.radius[table.target] + 0.03)
    move, far = towards(table, behind)
    if table.success("push"):
        return [0.0, 0.0, 1.0, -1.0]
    if table.height > 0.5 and far > 0.03:
        return [*move, 0.5, -1.0]
    if table.height > 0.4:
        return [0.0, 0.0, -1.0, -1.0]
    if np.dot(table.gripper - thing, way) > 0:  # the object slipped aside: up, and round again
        return [0.0, 0.0, 1.0, -1.0]
    return [*(0.8 * towards(table, table.goal)[0]), -0.5, -1.0]


def grasp_plan(table):
    """Over the object, down, close, up, to the goal, open."""
    move, far = towards(table, table.place[table.target])
    if table.held == table.target:
        move, far = towards(table, table.goal)
        return [*move, 1.0, 1.0 if far > 0.03 else -1.0]
    if far > 0.02:
        return [*move, 1.0 if far > 0.15 else 0.0, -1.0]
    return [0.0, 0.0, -1.0, 1.0 if table.height < 0.5 else -1.0]


def drawer_plan(table):
    """To the handle, down, close, pull; once it is open: let go and rise."""
    move, far = towards(table, table.handle())
    if table.drawer >= 0.95:
        return [0.0, 0.3, 1.0, -1.0]
    if table.pulls:
        return [0.0, 0.7, -1.0, 1.0]
    if far > 0.03:
        return [*move, 1.0 if far > 0.1 else 0.0, -1.0]
    return [0.0, 0.0, -1.0, 1.0 if table.height < 0.5 else -1.0]


def episode(seed, frames):
    """
    One seeded episode of T = frames: (image, action, state, task, success).

    image uint8 [T, 64, 64, 3], action float32 [T, 4], state float32 [T, 12]; success: whether the
    task was ever done.
    """
    rng = np.random.default_rng(seed)
    table = Table(rng)
    task = (*TASKS, "wander")[rng.integers(5)]
    skill = float(rng.choice([0.4, 0.8, 1.0]))
    images = []
    actions = []
    states = []
    done = False
    for _ in range(frames):
        images.append(table.render())
        states.append(table.state())
        actions.append(policy(table, task, skill, rng))
        table.step(actions[-1])
        done = done or (task != "wander" and table.success(task))
    return np.stack(images), np.stack(actions), np.stack(states), task, done
