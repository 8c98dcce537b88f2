"""
Read: a text world as one goes through it: what models say an action leads to, beside what it does
lead to, and a group of samples as GRPO compares it.

    place = Read(world, domain, models, number, config)  # models {label: model}
    place.step({"line": "take cup#6"})                   # what use/play.py shows, as JSON has it

The truth is the game or the shop and, in worlds of your own, a test record.
"""

import random

import torch

from common import BadInput
from data.text import EXPECTED, marked, score_answer
from data.textgame import games, lines
from data.textgame.task import Truth
from data.webnav import shop
from generate import generate
from rewards import apply_difference
from train_rlvr import group_advantages
from use.drive import asked

GROUP = 5  # samples of a group that is shown
SPARE = 256  # tokens: places may be longer than those of the data


class Game:
    """A text game under way."""

    def __init__(self, world, number, seed):
        self.game, _ = games.begin(number, f"play {seed}", 0.5)
        self.defaults = world.shared["defaults"].get(self.game.kind, {})

    def text(self):
        game = self.game
        return lines.write_state(game.kind, game.state(), game.uuid_base, self.defaults)

    def actions(self):
        """Those that change something, and to wait."""
        now = self.game.objects
        working = [a for a in games.actions(self.game) if self.game.copy().act(a).objects != now]
        return [lines.short_ids(a[0].format(*a[1:])) for a in [("wait",), *working]]

    def prompt(self, line):
        return lines.write_action(lines.long_ids(line))

    def step(self, line):
        """(The true answer, what predictions are compared with), or None for what is no action."""
        known = {a[0].format(*a[1:]): a for a in games.actions(self.game)}
        action = known.get(lines.long_ids(line))
        if action is None:
            return None
        state = self.game.state()
        self.game, told = games.step(self.game, action)
        answer = lines.write_difference(told["diff"], state, self.defaults)
        return answer, Truth(state, apply_difference(state, told["diff"]), self.defaults)


class Visit:
    """A visit to the web shop under way."""

    def __init__(self, world, number, seed):
        self.world = world
        self.shop = this = shop.make_shop(world.shared["shop"])
        self.now = shop.first_state(this, random.Random(f"play {seed} {number}"))
        self.tree = shop.number(shop.render(this, self.now), {})

    def text(self):
        return shop.observation(self.tree)

    def actions(self):
        """All that the page offers; into boxes anything may be typed."""
        found = ["go_back"]
        for i, node in self.tree.items():
            found += [f"click [{i}]"] * bool(node.click) + [f"hover [{i}]"] * bool(node.hover)
            found += [f"select [{i}] [{choice}]" for choice in node.options or ()]
            found += [f"type [{i}] [red] [1]"] * bool(node.box)
        return found

    def prompt(self, line):
        return f"> {line}\n"

    def step(self, line):
        record = dict(state=self.text(), prompt=self.prompt(line))
        try:
            self.now, self.tree, answer = shop.step(self.shop, self.now, self.tree, line)
        except (ValueError, IndexError):
            return None
        return answer, self.world.task.truth({**record, "response": answer}, self.world.shared)


class Page:
    """A test record of any text world, and those of the same state."""

    def __init__(self, world, number):
        records = world.records["test"]
        first = number % len(records)
        self.world = world
        self.state = records[first].get("state", "")
        same = [i for i, r in enumerate(records) if r.get("state") == self.state and self.state]
        self.known = {records[i]["prompt"]: i for i in [first, *same]}

    def text(self):
        return self.state

    def actions(self):
        return list(self.known)

    def prompt(self, line):
        return line

    def step(self, line):
        i = self.known.get(line)
        if i is not None:
            return self.world.records["test"][i]["response"], self.world.truth("test", i)


class Read:
    """A place in a text world, and what models say happens there."""

    def __init__(self, world, domain, models, number, config):
        self.world = world
        self.models = models
        self.random = torch.Generator(world.device).manual_seed(config.seed)
        self.temperature = config.temperature
        terms = world.terms(world.reward)
        self.terms = [(weight, name.removeprefix(EXPECTED)) for weight, name in terms]
        self.place = self.start(domain, number, config.seed)
        self.last = None  # (prompt ids, true answer, what is compared with) of the last step

    def start(self, domain, number, seed):
        kinds = {kind.__name__.lower() for kind in games.KINDS}
        if domain == "textgame" and self.world.strata["train"].keys() <= kinds:
            return Game(self.world, number, seed)
        if domain == "webnav" and "shop" in self.world.shared:
            return Visit(self.world, number, seed)
        return Page(self.world, number)

    def view(self):
        return dict(state=self.place.text(), actions=self.place.actions())

    def step(self, request):
        """request["line"]: an action. What it leads to, as the models and the truth say."""
        line = request.get("line")
        if not isinstance(line, str) or not line.strip():
            raise BadInput("an action is a line of text")
        encode = self.world.encode
        before = self.place.text()
        prompt = self.place.prompt(line)
        ids = encode(prompt, "whole")
        if before:
            ids = encode(before, "first") + encode(prompt, "last")
        most = self.world.max_prompt + SPARE
        if len(ids) > most:
            raise BadInput(
                f"state and action have {len(ids)} tokens, of {most} at most: shorten it"
            )
        answer, truth = self.place.step(line) or (None, None)
        self.last = torch.tensor([ids], device=self.world.device), answer, truth
        said = {label: self.ask(label, 1, self.temperature)[0] for label in self.models}
        last = dict(before=before, line=line, truth=answer, said=said)
        return dict(last=last, **self.view())

    def group(self, request):
        """request["label"]: a model, of which GRPO's group of samples to the last step is shown."""
        if self.last is None or request.get("label") not in self.models:
            raise BadInput("there is nothing to sample yet: act first")
        samples = self.ask(request["label"], GROUP, 1.0)
        if self.last[1] is not None:
            rewards = torch.tensor([[sample["reward"] for sample in samples]])
            for sample, advantage in zip(samples, group_advantages(rewards)[0].tolist()):
                sample["advantage"] = advantage
        return dict(samples=samples)

    def ask(self, label, n, temperature):
        """n answers of a model to the last step: [{"lines": [(mark, line)], "reward"}]."""
        prompt, response, truth = self.last
        batch = asked(self.world, prompt)
        rollout = generate(self.models[label], batch, n, temperature, self.random)
        (answers,) = self.world.decode(batch, rollout.tokens)
        if response is None:  # nobody knows what happens
            told = (["(no end)"] if answer is None else answer.split("\n") for answer in answers)
            return [dict(lines=[("", line) for line in said]) for said in told]
        return [self.judge(answer, response, truth) for answer in answers]

    def judge(self, answer, response, truth):
        """Marks the lines of an answer as right, wrong or missing, however they are put."""
        task = self.world.task
        first = next(iter(task.metrics))
        names = [first, *(name for _, name in self.terms)]
        best = score_answer(task, response, truth, [first])[first]
        own = {name: task.metrics[name].worst for name in names}
        if answer is not None:
            own = score_answer(task, answer, truth, names)
        perfect = answer is not None and own[first] >= best
        reward = sum(w * self.world.better(name) * own[name] for w, name in self.terms)
        return dict(lines=marked(answer, response, perfect), reward=reward)
