"""
Act in a text world: an agent proposes k actions, asks a world which of them leads nearer to its
goal, and takes that one.

    python use/plan.py                          the web shop, after runs/webnav.sh
    python use/plan.py --k=5 --steps=10         more actions to choose from, and more time
    python use/plan.py --world=textgame         text games, after runs/textgame.sh

The policy is the data's own; of some draws it proposes the k most frequent. Ties between actions
keep this order, so where none is said to change anything the first choice stands. The worlds: none
(always the first choice), one that says that nothing changes (worth nothing), models, greedily, and
the simulator. All have the same starts and, in the same state, the same proposals.
"""

import functools
import json
import random
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# common first: it says how torch's threads wait, before torch is imported
from common import OUT, BadInput, option, parse_config, run_main
from common import start_processes, work_behind

import numpy as np

from data import load_world
from data.textgame import games, lines
from data.textgame.task import Truth, read
from data.webnav import shop
from data.world import read_meta
from evaluate import Row, checkpoints, interval, load_model, markdown, open_checkpoint, provenance
from generate import imagine


@dataclass
class Config:
    world: str = "webnav"  # a folder, or its name under data/: the web shop or text games
    name: str = ""  # results go to out/<name>; empty: <world>-plan
    # runs, by name, or checkpoint files; of several the best on validation
    mle: str = ""  # stage 1; empty: <world>-mle
    more: str = ""  # MLE continued, separated by commas; empty: every <world>-mle-more-*
    rlvr: str = ""  # stage 2, separated by commas; empty: <world>-rlvr
    each: bool = False  # a row for each of the runs in --rlvr
    # the agent
    k: int = option(3, 1, 64)  # actions to choose from
    steps: int = option(5, 1, 1000)  # actions to reach the goal
    draws: int = option(20, 1, 10**4)  # of the policy; the most frequent k are proposed
    starts: int = option(540, 2, 10**6)  # the same for every row
    chance: float = option(0.5, 0.0, 1.0)  # text games: share of the starts with chance in them
    # the machine
    device: str = "auto"  # cpu, cuda, mps or auto
    threads: int = option(2, 1, 1024)  # of a CPU
    seed: int = option(0, 0, 2**31)  # of starts and proposals
    out: str = OUT  # the folder of all results


SMOKE = dict(starts=4, steps=2)
AT_ONCE = 64  # states that a model is asked about together

# ------------------------------------------------------------------------------------------------
# The web shop: a product shall get into the cart


@dataclass
class Visit:
    """A visit to the shop under way, and the product that is wanted."""

    shop: shop.Shop
    state: shop.State
    tree: dict
    product: str

    def text(self):
        return shop.observation(self.tree)

    def value(self):
        return shop.progress(shop.read_page(self.text()), self.product)

    def over(self):
        return self.value()[0]

    def draw(self, rng, n):
        """n actions, as the walks of the data draw them."""
        return [shop.random_action(self.shop, self.tree, rng) for _ in range(n)]

    def prompt(self, action):
        return f"> {action}\n"

    def after(self, action):
        state, tree, _ = shop.step(self.shop, self.state, self.tree, action)
        return replace(self, state=state, tree=tree)

    def promised(self, answer):
        """The value of the page that an answer leads to."""
        page = shop.apply_difference(shop.read_page(self.text()), answer)
        return shop.progress(page, self.product)


def visits(world, config):
    """The starts: first pages of visits with an empty cart, each with a product in stock."""
    if "shop" not in world.shared:
        raise BadInput(f"{world.folder} is no simulated shop; make one with data/webnav/prepare.py")
    this = shop.make_shop(world.shared["shop"])
    for number in range(config.starts):
        rng = random.Random(f"plan {config.seed} {number}")
        state = replace(shop.first_state(this, rng), cart=())
        wanted = rng.choice([p.name for p in this.products if not p.sold_out])
        yield Visit(this, state, shop.number(shop.render(this, state), {}), wanted)


# ------------------------------------------------------------------------------------------------
# Text games: the score shall say that they are won


def rank(score):
    """(Whether the game is won, its score)."""
    return bool(score["gameWon"]), float(score["score"])


@dataclass
class Play:
    """A game under way."""

    game: games.Game
    defaults: dict  # {type: {property: value}}, which the lines leave out
    habit: Counter  # the data's actions, with types in place of names

    def text(self):
        game = self.game
        return lines.write_state(game.kind, game.state(), game.uuid_base, self.defaults)

    def value(self):
        return rank(self.game.score)

    def over(self):
        return self.game.score["gameOver"]

    def draw(self, rng, n):
        """n actions: what is done to which type of thing is drawn as often as the data has it."""
        return games.random_actions(self.game, rng, n, self.habit)

    def prompt(self, action):
        return lines.write_action(action[0].format(*action[1:]))

    def after(self, action):
        return replace(self, game=games.step(self.game, action)[0])

    def promised(self, answer):
        """The value of the state that an answer leads to. ValueError and so on: to none."""
        truth = Truth(self.game.state(), None, self.defaults)
        return rank(read(answer, truth).next_state[-1])


def plays(world, config):
    """The starts: places on walks like the data's, through games of other seeds."""
    habits = defaultdict(Counter)  # of each kind of game
    for record in world.records["train"]:
        deed = lines.long_ids(record["prompt"][2:].rstrip("\n"))
        for item in world.shared["states"][record["truth"]["state"]][:-1]:
            deed = deed.replace(item["name"], item["type"])
        habits[record["kind"]][deed] += 1
    if not habits.keys() <= {kind.__name__.lower() for kind in games.KINDS}:
        raise BadInput(f"{world.folder} is not of the procedural games: name a world that is")
    for number in range(config.starts):
        walk = games.walk(number, f"plan {config.seed}", config.chance)
        game = random.Random(f"plan {config.seed} {number}").choice(walk)
        yield Play(game, world.shared["defaults"].get(game.kind, {}), habits[game.kind])


# ------------------------------------------------------------------------------------------------
# The worlds that can be asked: (places [n], their candidates) -> the values that these promise


def promise(place, answer):
    """What an answer is worth; one that never ends (None) or cannot be read is no prediction."""
    try:
        return place.value() if answer is None else place.promised(answer)
    except (ValueError, TypeError, KeyError):
        return place.value()


def one_by_one(value):
    """The world in which an action is worth value(place, action)."""
    return lambda places, candidates: [
        [value(place, action) for action in own] for place, own in zip(places, candidates)
    ]


def learned(model, world, places, candidates):
    """The world as a model has learned it; the candidates of a place share its state."""
    prompts = [[p.prompt(action) for action in own] for p, own in zip(places, candidates)]
    values = []
    for i in range(0, len(places), AT_ONCE):
        part = slice(i, i + AT_ONCE)
        batch = world.candidates([place.text() for place in places[part]], prompts[part])
        texts = world.decode(batch, imagine(model, batch).tokens)
        for place, own, row in zip(places[part], prompts[part], texts):
            # an answer begins with its action; repeats of the last candidate are left out
            told = [text and text.removeprefix(prompt) for prompt, text in zip(own, row)]
            values.append([promise(place, answer) for answer in told])
    return values


# ------------------------------------------------------------------------------------------------
# Acting


def propose(place, rng, config):
    """The most frequent k of the policy's draws, in order of frequency; ties: the first drawn."""
    drawn = Counter(place.draw(rng, config.draws))
    return [action for action, _ in drawn.most_common(config.k)]


def act(places, ask, config):
    """
    Acts from all starts, a step everywhere at a time. Returns ([N] whether the goal was reached,
    Counter {(whether the world says that a candidate leads nearer to it, whether it does)}).
    """
    places = list(places)
    nearer = Counter()
    for step in range(config.steps):
        going = [n for n, place in enumerate(places) if not place.over()]
        seeds = [f"policy {config.seed} {n} {step}" for n in going]
        candidates = [propose(places[n], random.Random(s), config) for n, s in zip(going, seeds)]
        promised = ask([places[n] for n in going], candidates)
        for n, actions, values in zip(going, candidates, promised):
            now = places[n].value()
            futures = [places[n].after(action) for action in actions]
            for value, future in zip(values, futures):
                nearer[value > now, future.value() > now] += 1
            places[n] = futures[values.index(max(values))]  # the first of the best
    return np.array([float(place.value()[0]) for place in places]), nearer


def percent(values):
    """One value a start -> (mean, low, high) in percent."""
    return [100 * float(x) for x in interval(values, np.ones(len(values)), range(len(values)))]


def judge(world, starts, config):
    """Lets the agent act in every world, and writes the table to out/<name>."""
    nothing = world.task.nothing_changes
    asked = {
        "no model": one_by_one(lambda place, action: place.value()),
        "nothing changes": one_by_one(lambda place, action: promise(place, nothing)),
    }
    trained = []
    for label, paths in checkpoints(world, config).items():
        if label == "MLE" and not config.mle and not paths[0].is_file():
            print(f"(no row 'MLE': there is no checkpoint {paths[0]})", file=sys.stderr)
            continue
        best = max(paths, key=lambda path: open_checkpoint(path, world, "cpu")["progress"]["best"])
        model, checkpoint = load_model(best, world, world.device)
        how = "{dtype}, {threads} threads".format(**checkpoint["config"])
        trained.append(Row(label, {}, *work_behind(checkpoint).values(), how))
        asked[label] = functools.partial(learned, model, world)
    asked["simulator"] = one_by_one(lambda place, action: place.after(action).value())

    columns = "true nearer", "false nearer", "missed nearer", "shown", "seconds"
    rows = {}
    for label, ask in asked.items():
        begun = time.perf_counter()
        reached, nearer = act(starts, ask, config)
        counts = [nearer[key] for key in ((True, True), (True, False), (False, True))]
        counts += nearer.total(), time.perf_counter() - begun
        rows[label] = {"success": percent(reached), **dict(zip(columns, counts)), "each": reached}
        print(f"{label}: {100 * reached.mean():.1f} %", flush=True)

    # every row against the rivals, start by start
    rivals = [label for label in ("no model", "MLE continued") if label in rows]
    table = []
    for label, row in rows.items():
        cells = [label, "{:.1f} ({:.1f} to {:.1f})".format(*row["success"])]
        for rival in rivals:
            row[f"− {rival}"] = gap = percent(row["each"] - rows[rival]["each"])
            cells.append("{:+.1f} ({:.1f} to {:.1f})".format(*gap) if rival != label else "")
        table.append([*cells, *(round(row[name]) for name in columns)])
    header = ["", "success %", *(f"− {rival}" for rival in rivals), *columns]
    text = (
        f"{world.name}, {config.k} candidates, {config.steps} steps, {len(starts)} paired starts "
        f"(95 % intervals over starts; nearer to the goal: of all candidates shown, of how many a "
        f"world says so rightly, wrongly, or does not say so)\n\n"
        f"{markdown(header, table)}\n"
    )
    folder = Path(config.out) / (config.name or f"{world.name}-plan")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("results.*"):
        old.replace(old.with_stem("results-before"))
    (folder / "results.md").write_text(text, encoding="utf-8")
    results = {"config": asdict(config), **provenance(world, trained), "rows": rows}
    (folder / "results.json").write_text(json.dumps(results, indent=1, default=np.ndarray.tolist))
    print(f"\n{text}\nwritten to {folder / 'results.md'} and results.json")


def main(argv):
    config = parse_config(Config, argv, SMOKE)
    start_of = {"webnav": visits, "textgame": plays}
    domain = read_meta(config.world)[1]["domain"]
    if domain not in start_of:
        raise BadInput(f"--world={config.world}: an agent acts in the web shop and in text games")
    device, *_ = start_processes(config)
    world = load_world(config.world, device)
    judge(world, list(start_of[domain](world, config)), config)


if __name__ == "__main__":
    run_main(main)
