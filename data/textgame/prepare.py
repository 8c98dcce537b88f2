"""
Makes a text-game world: prompts (state and action), responses (what changes) and a vocabulary.

python data/textgame/prepare.py                                             procedural household games -> data/textgame
python data/textgame/prepare.py --source=bytesized32 --path=DIR             the real ByteSized32 transitions -> data/bytesized32
python data/textgame/prepare.py --source=bytesized32 --path=DIR --split=state   whole states held out -> data/bytesized32-state

DIR holds train.jsonl and test.jsonl (or .jsonl.gz) of cognitiveailab/GPT-simulator, or the compact form of the same transitions.
"""
import gzip
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from common import BadInput, numbered_lines, one_of, parse_config, run_main  # noqa: E402
from data.text import write_text_world  # noqa: E402
from data.textgame import games, lines  # noqa: E402


@dataclass
class Config:
    source: str = "procedural"  # procedural or bytesized32
    path: str = ""              # bytesized32: the folder with train.jsonl[.gz] and test.jsonl[.gz]
    out: str = ""               # the world's folder; empty: data/textgame, data/bytesized32 or data/bytesized32-<split>
    split: str = "official"     # bytesized32: official (over actions), state (whole states held out), game (whole games held out)
    instances: int = 100        # procedural: game instances for training, about 45 transitions each
    held_out: int = 21          # procedural: game instances for validation, and as many for test
    val_records: int = 1000     # bytesized32: validation records, cut from the training data game by game as in the test set
    vocab_size: int = 1024      # tokens of the byte-pair encoding, the 256 bytes and the end token included
    seed: int = 0               # of the procedural games and of every cut


PRESETS = {"smoke": {"instances": 10, "held_out": 7, "vocab_size": 512}}

# ---------------------------------------------------------------------------------------------------------------------
# ByteSized32: reading both forms


def read_transitions(folder, name):
    """The records of folder/name.jsonl[.gz] in the compact form, with "where" (file and line) for messages. Raises BadInput."""
    paths = [Path(folder) / (name + suffix) for suffix in (".jsonl", ".jsonl.gz")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise BadInput(f"there is no {name}.jsonl or {name}.jsonl.gz in {str(folder)!r}; --path must name the folder with the ByteSized32 files")
    records = []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in numbered_lines(file, path):
                records.append(compact(line, f"{path}, line {number}"))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} breaks off after line {len(records)} ({type(error).__name__}); copy it again from its source") from None
    if not records:
        raise BadInput(f"{path} is empty; copy it again from its source")
    return records


def compact(line, where):
    """One line of either form -> {"game", "state", "next_id", "action", "difference", "changed", "where"}; states have the score dict last."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput(f"{where}: not a complete JSON object; the file may be cut short, copy it again from its source") from None
    try:
        if "current_state" in raw:  # the official form: three whole states
            state = raw["current_state"]["objects"] + [raw["current_score_state"]]
            next_state = raw["tick_state"]["objects"] + [raw["next_score_state"]]
            next_id, action = raw["current_state"]["max_UUID"], raw["tick_state"]["lastAction"]
            difference = compare(state, next_state)
        else:
            state, next_id = raw["game_state"] + [raw["score"]], raw["uuid_base"]
            action, difference = raw["action"], raw["diff"]
        changed = bool(difference["modified"] or difference["removed"] or difference["score"])
        for item in state[:-1] + difference["modified"]:
            item["uuid"], item["name"], item["type"], item["properties"], item["contains"]  # KeyError if one is missing
        return {"game": raw["game"], "state": state, "next_id": next_id, "action": action, "difference": difference, "changed": changed, "where": where}
    except KeyError as error:
        raise BadInput(f"{where}: the record lacks {error}; expected a ByteSized32 transition (official or compact form)") from None
    except (TypeError, AttributeError, IndexError):
        raise BadInput(f"{where}: the record is not a ByteSized32 transition (a field has the wrong type)") from None


def compare(state, next_state):
    """The difference between two states: whole objects that changed or are new, uuids that are gone, the score if it changed."""
    before = {item["uuid"]: item for item in state[:-1]}
    after = {item["uuid"]: item for item in next_state[:-1]}
    return {"modified": [item for uuid, item in after.items() if item != before.get(uuid)],
            "removed": [uuid for uuid in before if uuid not in after],
            "score": next_state[-1] if next_state[-1] != state[-1] else {}}


# ---------------------------------------------------------------------------------------------------------------------
# Transitions -> records


def type_defaults(transitions, agree=0.8):
    """{game: {type: {property: value}}}: the value a property has in at least `agree` of the objects of its type, over distinct states."""
    counts, seen = defaultdict(lambda: defaultdict(lambda: defaultdict(Counter))), set()
    for t in transitions:
        for item in t["state"][:-1]:
            key = t["game"], item["type"], item["uuid"], json.dumps(item["properties"])
            if key not in seen:
                seen.add(key)
                for name, value in item["properties"].items():
                    counts[t["game"]][item["type"]][name][json.dumps(value)] += 1
                counts[t["game"]][item["type"]][None][""] += 1
    defaults = {}
    for game, types in counts.items():
        defaults[game] = {}
        for type_, properties in types.items():
            total = properties.pop(None)[""]
            common = {name: values.most_common(1)[0] for name, values in properties.items()}
            defaults[game][type_] = {name: json.loads(value) for name, (value, n) in common.items() if n >= agree * total}
    return defaults


def to_record(t, defaults, contexts):
    """A transition as {"context", "prompt", "response", "kind", "changed"}. contexts caches the text of states by their identity."""
    try:
        key = t["game"], t["next_id"], json.dumps(t["state"])
        if key not in contexts:
            contexts[key] = lines.write_state(t["game"], t["state"], t["next_id"], defaults.get(t["game"], {}))
        response = lines.write_difference(t["difference"], t["state"], defaults.get(t["game"], {}))
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{t['where']}: the transition cannot be written down ({error}); remove the record or mend it") from None
    return {"context": contexts[key], "prompt": lines.write_action(t["action"]), "response": response, "kind": t["game"], "changed": t["changed"]}


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def cut_validation(train, like, n, rng, most=0.15):
    """
    Takes about n records out of train, kind by kind, changed and unchanged in the proportions of the records `like` (the test set), but never
    more than the share `most` of what a kind has. Half of them are whole effects: all records of a state with the same response, so that
    training never shows this effect in this state (as for half of the test set's changes). Returns (train, val).
    """
    quota = Counter((record["kind"], record["changed"]) for record in like)
    pools = defaultdict(list)
    for i in rng.permutation(len(train)).tolist():
        pools[train[i]["kind"], train[i]["changed"]].append(i)
    taken = set()
    for key, count in sorted(quota.items()):
        pool, effects, mine = pools[key], defaultdict(list), []
        limit = min(round(n * count / len(like)), int(most * len(pool)))
        for i in pool:
            effects[train[i]["context"], train[i]["response"]].append(i)
        for effect in effects.values():
            if len(mine) + len(effect) <= limit / 2:
                mine += effect
        taken.update(mine)
        taken.update([i for i in pool if i not in taken][:limit - len(mine)])
    return [r for i, r in enumerate(train) if i not in taken], [train[i] for i in sorted(taken)]


def hold_out(keys_by_game, share, rng):
    """A share of each game's keys (at least one where there are three or more)."""
    held = set()
    for game, keys in sorted(keys_by_game.items()):
        keys = sorted(keys)
        count = max(1, round(share * len(keys))) if len(keys) >= 3 else 0
        held.update(keys[i] for i in rng.permutation(len(keys))[:count])
    return held


def split_by(train, test, key, share, rng):
    """
    Holds out whole states or games: test is what the official test set has of the held-out ones, validation is cut from the training
    records of other held-out ones, and neither's states are trained on.
    """
    keys = defaultdict(set)
    for record in train + test:
        keys[record["kind"] if key == "context" else ""].add(record[key])
    for_test = hold_out(keys, share, rng)
    for_val = hold_out({game: members - for_test for game, members in keys.items()}, share / 2, rng)
    pool = [r for r in train if r[key] in for_val]
    return ([r for r in train if r[key] not in for_test | for_val], pool, [r for r in test if r[key] in for_test])


def bytesized32(config, rng):
    """Splits of the real data and their type defaults."""
    raw = {name: read_transitions(config.path, name) for name in ("train", "test")}
    defaults = type_defaults(raw["train"])
    contexts = {}
    train, test = ([to_record(t, defaults, contexts) for t in raw[name]] for name in ("train", "test"))
    if config.split == "official":
        train, val = cut_validation(train, test, config.val_records, rng)
    else:
        train, pool, test = split_by(train, test, "context" if config.split == "state" else "kind", 0.2, rng)
        _, val = cut_validation(pool, pool if config.split == "game" else test, config.val_records, rng, most=1.0)
    return {"train": train, "val": val, "test": test}, defaults


def procedural(config):
    """Splits of the procedural games by instance: every split has its own instances, so no test state is ever trained on."""
    sizes = {"train": config.instances, "val": config.held_out, "test": config.held_out}
    raw, seen = {}, set()
    for number, (split, size) in enumerate(sizes.items()):
        raw[split] = []
        for t in games.transitions(size, seed=3 * config.seed + number):
            state = t["game_state"] + [t["score"]]
            if split == "train":
                seen.add(json.dumps(state))
            elif json.dumps(state) in seen:
                continue  # an instance of another seed came out the same: keep it out of validation and test
            raw[split].append(compact(json.dumps(t), f"procedural {split} transition {len(raw[split])}"))
    defaults = type_defaults(raw["train"])
    contexts = {}
    return {split: [to_record(t, defaults, contexts) for t in raw[split]] for split in raw}, defaults


def main(argv):
    config = parse_config(Config, argv, PRESETS)
    one_of("source", config.source, ("procedural", "bytesized32"))
    one_of("split", config.split, ("official", "state", "game"))
    name = "textgame" if config.source == "procedural" else "bytesized32" + ("" if config.split == "official" else f"-{config.split}")
    if config.source == "bytesized32" and not config.path:
        raise BadInput("--source=bytesized32 needs --path=DIR, the folder with train.jsonl and test.jsonl of cognitiveailab/GPT-simulator")
    splits, defaults = procedural(config) if config.source == "procedural" else bytesized32(config, np.random.default_rng(config.seed))
    folder = Path(config.out) if config.out else Path(__file__).resolve().parents[1] / name
    write_text_world(folder, "textgame", splits, config.vocab_size, defaults=defaults)


if __name__ == "__main__":
    run_main(main)
