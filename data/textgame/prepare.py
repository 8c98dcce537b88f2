"""
Makes a text-game world: prompts (state and action), responses (what changes) and a vocabulary.

    python data/textgame/prepare.py
        procedural household games -> data/textgame
    python data/textgame/prepare.py --source=bytesized32 --path=DIR
        the real ByteSized32 transitions -> data/bytesized32
    python data/textgame/prepare.py --source=bytesized32 --path=DIR --split=state
        whole states held out -> data/bytesized32-state

DIR holds train.jsonl and test.jsonl (or .jsonl.gz) of cognitiveailab/GPT-simulator, or the compact
form of the same transitions.
"""

import functools
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from common import BadInput, option, parse_config, run_main
from data.text import json_lines, write_text_world
from data.textgame import games, lines
from data.textgame.task import TASK
from data.textgame_json.task import TASK as JSON_TASK
from data.world import home


@dataclass
class Config:
    source: str = option("procedural", "procedural", "bytesized32")
    path: str = ""  # bytesized32: the folder with train.jsonl[.gz] and test.jsonl[.gz]
    out: str = ""  # a name under data/ or a path; empty: textgame or bytesized32[-<split>]
    form: str = option("lines", "lines", "json")  # json: the paper's, several times as long
    # bytesized32: official (over actions), state (whole states held out), game (whole games)
    split: str = option("official", "official", "state", "game")
    instances: int = option(500, 1, 10**6)  # procedural: for training, 47 transitions each
    held_out: int = option(40, 1, 10**5)  # procedural: for validation, and as many for test
    chance: float = option(0.5, 0.0, 1.0)  # procedural: share of transitions that are uncertain
    # bytesized32: validation records, cut from the training data game by game as in the test set
    val_records: int = option(1000, 1, 10**6)
    vocab_size: int = option(1024, 258, 2**17)  # tokens, the 256 bytes and the end token included
    tokenizer: str = ""  # folder of a pretrained model: its vocabulary in place of one of our own
    template: str = option("none", "none", "chat")  # chat: prompts in its chat form
    longest: int = option(0, 0, 10**6)  # leave out records with longer answers, in tokens (0: none)
    seed: int = option(0, 0, 2**29)  # of the procedural games and of every cut


SMOKE = {"instances": 8, "held_out": 4, "val_records": 60}

# ------------------------------------------------------------------------------------------------
# ByteSized32: reading both forms


def read_transitions(folder, name):
    """
    The records of folder/name.jsonl[.gz] in the compact form, with "where" (file and line) for
    messages. Raises BadInput.
    """
    paths = [Path(folder) / (name + suffix) for suffix in (".jsonl", ".jsonl.gz")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise BadInput(
            f"there is no {name}.jsonl or {name}.jsonl.gz in {str(folder)!r}; --path must name the "
            f"folder with the ByteSized32 files"
        )
    return [compact(raw, where) for where, raw in json_lines(path, "copy it again from its source")]


def compact(raw, where):
    """
    A transition of either form -> {"game", "state", "next_id", "action", "difference", "outcomes",
    "changed", "where"}; states have the score dict last. outcomes: None where they are not known.
    Raises BadInput.
    """
    try:
        if "current_state" in raw:  # the official form: three whole states
            state = raw["current_state"]["objects"] + [raw["current_score_state"]]
            next_state = raw["tick_state"]["objects"] + [raw["next_score_state"]]
            next_id = raw["current_state"]["max_UUID"]
            action = raw["tick_state"]["lastAction"]
            difference = compare(state, next_state)
        else:
            state = raw["game_state"] + [raw["score"]]
            next_id = raw["uuid_base"]
            action = raw["action"]
            difference = raw["diff"]
        changed = bool(difference["modified"] or difference["removed"] or difference["score"])
        for item in state[:-1] + difference["modified"]:
            for key in ("uuid", "name", "type", "properties", "contains"):
                item[key]  # KeyError if it is missing
        return {
            "game": raw["game"],
            "state": state,
            "next_id": next_id,
            "action": action,
            "difference": difference,
            "outcomes": raw.get("outcomes"),
            **({"instance": raw["instance"]} if "instance" in raw else {}),
            "changed": changed,
            "where": where,
        }
    except KeyError as error:
        raise BadInput(
            f"{where}: the record lacks {error}; expected a ByteSized32 transition (official or "
            f"compact form)"
        ) from None
    except (TypeError, AttributeError, IndexError):
        raise BadInput(
            f"{where}: the record is not a ByteSized32 transition (a field has the wrong type)"
        ) from None


def compare(state, next_state):
    """
    The difference between two states: whole objects that changed or are new, uuids that are gone,
    the score if it changed.
    """
    before = {item["uuid"]: item for item in state[:-1]}
    after = {item["uuid"]: item for item in next_state[:-1]}
    return {
        "modified": [item for uuid, item in after.items() if item != before.get(uuid)],
        "removed": [uuid for uuid in before if uuid not in after],
        "score": next_state[-1] if next_state[-1] != state[-1] else {},
    }


# ------------------------------------------------------------------------------------------------
# Transitions -> records


def type_defaults(transitions, agree=0.8):
    """
    {game: {type: {property: value}}}: the value a property has in at least `agree` of the objects
    of its type, over distinct states.
    """
    # {game: {type: {property: how often each value}}}; None counts the objects
    counts = defaultdict(lambda: defaultdict(lambda: defaultdict(Counter)))
    seen = set()
    for t in transitions:
        for item in t["state"][:-1]:
            key = t["game"], item["type"], item["uuid"], json.dumps(item["properties"])
            if key in seen:
                continue
            seen.add(key)
            properties = counts[t["game"]][item["type"]]
            for name, value in item["properties"].items():
                properties[name][json.dumps(value)] += 1
            properties[None][""] += 1
    defaults = {}
    for game, types in counts.items():
        defaults[game] = {}
        for type_, properties in types.items():
            total = properties.pop(None)[""]
            defaults[game][type_] = {}
            for name, values in properties.items():
                value, n = values.most_common(1)[0]
                if n >= agree * total:
                    defaults[game][type_][name] = json.loads(value)
    return defaults


class Writer:
    """Turns transitions into records, and collects the states that they share."""

    def __init__(self, defaults, form="lines"):
        self.defaults = defaults
        self.form = form
        self.numbers = {}  # {(game, next id, state as JSON): its number}
        self.states = []
        self.texts = []

    def record(self, t):
        """
        {"state", "prompt", "response", "truth", "kind", "changed", "unit"} of a transition and,
        where it is known, "outcomes": all that could have happened, [[probability, response], ...],
        the likeliest first.
        """
        defaults = self.defaults.get(t["game"], {})
        try:
            key = t["game"], t["next_id"], json.dumps(t["state"])
            write = functools.partial(lines.write_difference, state=t["state"], defaults=defaults)
            action = lines.write_action(t["action"])
            if self.form == "json":
                write = json.dumps
                action = json.dumps({"action": t["action"]}) + "\n"
            if key not in self.numbers:
                text = lines.write_state(t["game"], t["state"], t["next_id"], defaults)
                if self.form == "json":
                    *objects, score = t["state"]
                    whole = {"game": t["game"], "uuid_base": t["next_id"], "score": score}
                    text = json.dumps({**whole, "game_state": objects}) + "\n"
                self.numbers[key] = len(self.states)
                self.states.append(t["state"])
                self.texts.append(text)
            response = write(t["difference"])
            outcomes = [[p, write(difference)] for p, difference in t["outcomes"] or ()]
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput(
                f"{t['where']}: the transition cannot be written down ({str(error)[:300]}); remove "
                f"the record or mend it"
            ) from None
        number = self.numbers[key]
        record = {
            "state": self.texts[number],
            "prompt": action,
            "response": response,
            "truth": {"state": number, "difference": t["difference"]},
            "kind": t["game"],
            "changed": t["changed"],
            # records of one game are not independent; ByteSized32 does not say which game it was
            "unit": f"game {t['instance']}" if "instance" in t else f"state {number}",
        }
        return record | ({"outcomes": outcomes} if outcomes else {})


# ------------------------------------------------------------------------------------------------
# Splits


def cut_validation(train, like, n, rng, most=0.15):
    """
    Takes about n records out of train, kind by kind, changed and unchanged in the proportions of
    the records `like` (the test set), but never more than the share `most` of what a kind has. Half
    of them are whole effects: all records of a state with the same response, so that training never
    shows this effect in this state (as for half of the test set's changes). Returns (train, val).
    """
    quota = Counter((record["kind"], record["changed"]) for record in like)
    pools = defaultdict(list)
    for i in rng.permutation(len(train)).tolist():
        pools[train[i]["kind"], train[i]["changed"]].append(i)
    taken = set()
    for key, count in sorted(quota.items()):
        pool = pools[key]
        effects = defaultdict(list)
        mine = []
        limit = min(round(n * count / len(like)), int(most * len(pool)))
        for i in pool:
            effects[train[i]["state"], train[i]["response"]].append(i)
        for effect in effects.values():
            if len(mine) + len(effect) <= limit / 2:
                mine += effect
        taken.update(mine)
        others = [i for i in pool if i not in taken]
        taken.update(others[: limit - len(mine)])
    kept = [record for i, record in enumerate(train) if i not in taken]
    return kept, [train[i] for i in sorted(taken)]


def hold_out(keys_by_game, share, rng):
    """A share of each game's keys (at least one where there are three or more)."""
    held = set()
    for _, keys in sorted(keys_by_game.items()):
        keys = sorted(keys)
        count = max(1, round(share * len(keys))) if len(keys) >= 3 else 0
        held.update(keys[i] for i in rng.permutation(len(keys))[:count])
    return held


def split_by(train, test, key, share, rng):
    """
    Holds out whole states or games: test is what the official test set has of the held-out ones,
    validation is cut from the training records of other held-out ones, and neither's states are
    trained on. Returns (train, records to cut validation from, test).
    """
    keys = defaultdict(set)
    for record in train + test:
        keys[record["kind"] if key == "state" else ""].add(record[key])
    for_test = hold_out(keys, share, rng)
    others = {game: members - for_test for game, members in keys.items()}
    for_val = hold_out(others, share / 2, rng)
    held = for_test | for_val
    pool = [record for record in train if record[key] in for_val]
    test = [record for record in test if record[key] in for_test]
    train = [record for record in train if record[key] not in held]
    return train, pool, test


def bytesized32(config, rng):
    """Splits of the real data, and what their records share."""
    raw = {name: read_transitions(config.path, name) for name in ("train", "test")}
    writer = Writer(type_defaults(raw["train"]), config.form)
    train = [writer.record(t) for t in raw["train"]]
    test = [writer.record(t) for t in raw["test"]]
    if config.split == "official":
        train, val = cut_validation(train, test, config.val_records, rng)
    else:
        key = "state" if config.split == "state" else "kind"
        train, pool, test = split_by(train, test, key, 0.2, rng)
        like = pool if config.split == "game" else test
        _, val = cut_validation(pool, like, config.val_records, rng, most=1.0)
    return {"train": train, "val": val, "test": test}, writer


def procedural(config):
    """
    Splits of the procedural games by instance: every split has its own instances, so no test state
    is ever trained on. Training sees what happened; validation and test also know what could have.
    """
    sizes = {"train": config.instances, "val": config.held_out, "test": config.held_out}
    raw = {}
    seen = set()
    for number, (split, size) in enumerate(sizes.items()):
        raw[split] = []
        told = dict(chance=config.chance, all_outcomes=split != "train")
        for t in games.transitions(size, seed=3 * config.seed + number, **told):
            state = json.dumps(t["game_state"] + [t["score"]])
            if split == "train":
                seen.add(state)
            elif state in seen:
                continue  # an instance of another seed came out the same: keep it out
            t = json.loads(json.dumps(t))  # as it would be read from a file
            raw[split].append(compact(t, f"procedural {split} transition {len(raw[split])}"))
    writer = Writer(type_defaults(raw["train"]), config.form)
    return {split: [writer.record(t) for t in raw[split]] for split in raw}, writer


def main(argv):
    config = parse_config(Config, argv, SMOKE)
    name = "textgame"
    if config.source == "bytesized32":
        name = "bytesized32" + ("" if config.split == "official" else f"-{config.split}")
        if not config.path:
            raise BadInput(
                "--source=bytesized32 needs --path=DIR, the folder with train.jsonl and test.jsonl "
                "of cognitiveailab/GPT-simulator"
            )
        splits, writer = bytesized32(config, np.random.default_rng(config.seed))
    else:
        splits, writer = procedural(config)
    shared = {"states": writer.states, "defaults": writer.defaults}
    folder = home(config.out or name)
    sizes = dict(vocab_size=config.vocab_size, longest=config.longest)
    sizes.update(tokenizer=config.tokenizer, template=config.template)
    task = TASK if config.form == "lines" else JSON_TASK
    domain = "textgame" if config.form == "lines" else "textgame_json"
    write_text_world(folder, domain, task, splits, shared=shared, **sizes)


if __name__ == "__main__":
    run_main(main)
