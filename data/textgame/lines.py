"""
The compact language of text games: states and differences as a few short lines.

Both can be read back, without loss. A state is a list of objects {name, uuid, type, properties,
contains} with the score dict as last element. Written:

    game boil-water                         the kind of game
    score 0                                 and "over", "won"
    next #9                                 the first free uuid
    #1 kitchen : World >#0#3                uuid, name, type, contents; properties that equal
                                            the type's default are left out
    #3 stove : Stove isOn temperature=20    "isOn" is True, "!isOn" False, "~isOn" absent
                                            although the type's default has it

A difference is "same", or lines in this order, each saying only what changes:

    gone #10#11                             objects that cease to be; they leave their containers
    new #9 water : Water volume=20 ->#3     a whole object, in the form of the state, that
                                            appears in #3
    #6 ->#0                                 an object leaves what contains it and joins the
                                            contents of #0 at the end
    #3 !isOn color="red" temperature+=25    properties that change; numbers by how much, unless
                                            they become 0
    #5 connects["anode"]=null               one entry of a property that is a dictionary
    #8 @name="ice"                          the object is renamed
    #3 -#4 +#5                              contents that leave or join, where it cannot be said
                                            by moving
    score 1 over won

"take cup" so becomes "#6 ->#0": the model need not say where the cup was. "temperature+=25" is the
same at every temperature: it need not add.

"cup (ID: 3)" is written cup#3 everywhere, so a uuid is one token that the model can copy.
"""

import json
import re
from collections import Counter
from decimal import Decimal

SAME = "same"
# text that needs no quotes
PLAIN = re.compile(r"[A-Za-z][\w'./-]*(?: [\w'./-]+)*", re.A)
KEY = re.compile(r"[A-Za-z_]\w*", re.A)
# a uuid, or a quoted name that no object of the state has
CHILD = re.compile(r'#\d+|"(?:[^"\\\n]|\\.)*"', re.A)
UUID = re.compile(r"#(\d+)", re.A)
AMOUNT = re.compile(r"([+-])=(\d{1,15}(?:\.\d{1,15})?)(?= |$)", re.A)
SIMPLE = re.compile(r"-?\d+(?:\.\d+)?(?= |$)", re.A)
decode_json = json.JSONDecoder().raw_decode


def short_ids(text):
    """
    'cup (ID: 3)' -> 'cup#3'.

    A '#' that was there before is written as its JSON escape, so the way back is unique.
    """
    return re.sub(r" \(ID: (\d+)\)", r"#\1", text.replace("#", "\\u0023"))


def long_ids(text):
    """'cup#3' -> 'cup (ID: 3)'."""
    return re.sub(r"#(\d+)", r" (ID: \1)", text)


def renumber(texts, new_id):
    """
    Gives the uuids in the texts other numbers: '#3' -> f'#{new_id[3]}' (a list; larger uuids stay).

    It is a symmetry of every text game: the answer to the renumbered question is the renumbered
    answer, so it augments the training data.
    """

    def other(match):
        uuid = int(match[1])
        return f"#{new_id[uuid]}" if uuid < len(new_id) else match[0]

    return [re.sub(r"#(\d+)", other, text) for text in texts]


def dump(value):
    return short_ids(json.dumps(value, separators=(",", ":")))


# --------------------------------------------------------------------------------------------------
# Writing


def child_refs(children, names):
    """
    Names of children -> '#4', or the quoted name where no object is called so.

    names: {name: uuid}.
    """
    return [f"#{names[child]}" if child in names else dump(child) for child in children]


def write_property(key, value):
    if not KEY.fullmatch(key):
        raise ValueError(f"the property name {key!r} is not a plain word")
    if value is True:
        return f" {key}"
    if value is False:
        return f" !{key}"
    return f" {key}={dump(value)}"


def write_properties(properties, base, write=lambda key, value, old: write_property(key, value)):
    """
    The properties that differ from base, each by write, then those of base that are absent.

    True, 1 and 1.0 are kept apart.
    """
    text = ""
    for key, value in properties.items():
        if key not in base or json.dumps(value) != json.dumps(base[key]):
            text += write(key, value, base.get(key))
    return text + "".join(f" ~{key}" for key in base if key not in properties)


def write_step(value, old):
    """'+=25' for a number that was another, if that is exact and the new one is not 0; else ''."""
    if type(value) not in (int, float) or type(old) not in (int, float) or value == 0:
        return ""
    try:
        amount = Decimal(repr(value)) - Decimal(repr(old))
        text = f"{'-' if amount < 0 else '+'}={abs(amount):f}"
        if amount == 0 or not AMOUNT.fullmatch(text):
            return ""
        exact = json.dumps(add_step(old, text)) == json.dumps(value)
    except (ArithmeticError, ValueError):  # infinities and the like
        return ""
    return text if exact else ""


def add_step(old, text):
    """
    old plus '+=25' or minus '-=0.5': a whole number if both are.

    Raises ValueError if old is no number.
    """
    if type(old) not in (int, float):
        raise ValueError(f"{old!r} is no number that could be changed by {text}")
    sign, amount = AMOUNT.match(text).groups()
    value = Decimal(repr(old)) + Decimal(sign + amount)
    return int(value) if type(old) is int and "." not in amount else float(value)


def write_property_change(key, value, old):
    """What a property becomes, told from what it was."""
    if type(value) is dict and type(old) is dict and list(value) == list(old):
        text = ""
        for name in value:
            if json.dumps(value[name]) != json.dumps(old[name]):
                change = write_step(value[name], old[name]) or f"={dump(value[name])}"
                text += f" {key}[{dump(name)}]{change}"
        return text
    step = write_step(value, old)
    return f" {key}{step}" if step else write_property(key, value)


def write_object(item, names, defaults):
    """One whole object: '#3 stove : Stove isOn >#4'."""
    suffix = f" (ID: {item['uuid']})"
    name = item["name"].removesuffix(suffix)
    name = name if name != item["name"] and PLAIN.fullmatch(name) else dump(item["name"])
    if type(item["uuid"]) is not int or not KEY.fullmatch(item["type"]):
        raise ValueError(
            f"the object {item['name']!r} needs a whole number as uuid and a plain word as type"
        )
    line = f"#{item['uuid']} {name} : {item['type']}"
    line += write_properties(item["properties"], defaults.get(item["type"], {}))
    if item["contains"]:
        line += " >" + "".join(child_refs(item["contains"], names))
    return line


def write_change(item, old, children, old_children, arrow):
    """
    What changes in one object: '#3 !isOn -#4 +#5 ->#7', or '' if nothing does.

    children, old_children: its refs after and before; arrow: ' ->#7' or ''.
    """
    line = ""
    for key in ("name", "type"):
        if item[key] != old[key]:
            line += f" @{key}={dump(item[key])}"
    line += write_properties(item["properties"], old["properties"], write_property_change)
    gone = list((Counter(old_children) - Counter(children)).elements())
    joined = list((Counter(children) - Counter(old_children)).elements())
    # another order: take all out and put all in again
    if without(old_children, gone) + joined != children:
        gone = old_children
        joined = children
    line += "".join(f" -{child}" for child in gone)
    line += "".join(f" +{child}" for child in joined)
    line += arrow
    return f"#{item['uuid']}{line}" if line else ""


def without(children, gone):
    rest = list(children)
    for child in gone:
        rest.remove(child)
    return rest


def write_score(score):
    flags = score.get("gameOver"), score.get("gameWon")
    usual = set(score) == {"score", "gameOver", "gameWon"}
    if not usual or not all(type(flag) is bool for flag in flags):
        return f"score {dump(score)}"
    if isinstance(score["score"], (dict, list)):
        return f"score {dump(score)}"
    return f"score {dump(score['score'])}" + " over" * flags[0] + " won" * flags[1]


def names_of(items):
    """{name: uuid}; of equal names the first counts."""
    return {item["name"]: item["uuid"] for item in reversed(list(items))}


def write_state(game, state, next_id, defaults):
    """
    The whole state as text, ending in a newline.

    state: objects with the score dict last; defaults: {type: {property: value}}.
    """
    names = names_of(state[:-1])
    lines = [f"game {game}", write_score(state[-1]), f"next #{next_id}"]
    lines += [write_object(item, names, defaults) for item in state[:-1]]
    return "\n".join(lines) + "\n"


def write_action(action):
    """The action line, behind which the difference is to be written."""
    return f"> {short_ids(action)}\n"


def write_difference(difference, state, defaults):
    """
    A difference relative to state as text ("same" if empty).

    difference: {"modified": [whole objects], "removed": [uuids], "score": {} or the whole dict}.
    Raises ValueError where the compact language cannot say it: what is written has been read back.
    """
    for arrows in (True, False):
        text = write_lines(difference, state, defaults, arrows)
        try:
            if essence(read_difference(text, state, defaults), state) == essence(difference, state):
                return text
        except ValueError:
            pass  # an arrow that came too late for its line
    raise ValueError(f"a difference that the compact language cannot express: {text[:80]!r}")


def essence_of(item):
    return json.dumps(item, sort_keys=True)


def essence(difference, state):
    """What a difference says, in a form that can be compared: True, 1 and 1.0 are kept apart."""
    current = {item["uuid"]: essence_of(item) for item in state[:-1]}
    removed = set(difference["removed"])
    modified = {}
    for item in difference["modified"]:
        if item["uuid"] not in removed:
            modified[item["uuid"]] = essence_of(item)
    changed = {uuid: text for uuid, text in modified.items() if text != current.get(uuid)}
    return changed, removed, json.dumps(difference["score"], sort_keys=True)


def find_arrows(before, after):
    """
    {child ref: parent uuid} of the children that move, which an arrow can say.

    They left at most one parent's contents and joined exactly one other's.
    before, after: {uuid: refs}.
    """
    left = {}
    joined = {}
    for uuid in after:
        for child in (Counter(before.get(uuid, [])) - Counter(after[uuid])).elements():
            left.setdefault(child, []).append(uuid)
        for child in (Counter(after[uuid]) - Counter(before.get(uuid, []))).elements():
            joined.setdefault(child, []).append(uuid)
    arrows = {}
    for child, parents in joined.items():
        if child[0] == "#" and len(parents) == 1 and len(left.get(child, [])) <= 1:
            arrows[child] = parents[0]
    return arrows


def write_lines(difference, state, defaults, arrows):
    """
    The lines of a difference.

    With arrows, children that move are written as '#6 ->#0', else by what leaves and joins each
    parent.
    """
    current = {item["uuid"]: item for item in state[:-1]}
    new = {item["uuid"]: item for item in difference["modified"] if item["uuid"] not in current}
    after = {**current, **{item["uuid"]: item for item in difference["modified"]}}
    names = names_of(after.values())
    old_names = names_of(state[:-1])
    gone = {f"#{uuid}" for uuid in difference["removed"]}
    before = {}
    for uuid, item in current.items():
        refs = child_refs(item["contains"], old_names)
        before[uuid] = [ref for ref in refs if ref not in gone]
    children = {uuid: child_refs(item["contains"], names) for uuid, item in after.items()}
    # a new object is written with its contents
    whole = {uuid: children[uuid] for uuid in new}
    target = find_arrows({**before, **whole}, children) if arrows else {}
    # what the arrows say need not be said again
    for child, parent in target.items():
        for uuid in before:
            if child in before[uuid]:
                before[uuid] = without(before[uuid], [child])
        before.get(parent, []).append(child)

    def arrow(uuid):
        return f" ->#{target[f'#{uuid}']}" if f"#{uuid}" in target else ""

    lines = []
    if gone:
        lines.append("gone " + "".join(f"#{uuid}" for uuid in difference["removed"]))
    for uuid, item in new.items():
        lines.append("new " + write_object(item, names, defaults) + arrow(uuid))
    moved = [int(child[1:]) for child in target if int(child[1:]) in current]
    changed = [item["uuid"] for item in difference["modified"] if item["uuid"] in current]
    for uuid in dict.fromkeys(moved + changed):
        refs = children[uuid], before[uuid]
        lines.append(write_change(after[uuid], current[uuid], *refs, arrow(uuid)))
    if difference["score"]:
        lines.append(write_score(difference["score"]))
    return "\n".join(filter(None, lines)) or SAME


# --------------------------------------------------------------------------------------------------
# Reading. A reader raises ValueError at the first character it does not understand.


def read_value(text, start):
    """The JSON value at text[start:], with long ids. Returns (value, end)."""
    simple = SIMPLE.match(text, start)
    if simple:
        return json.loads(simple[0]), simple.end()
    end = decode_json(text, start)[1]
    return json.loads(long_ids(text[start:end])), end


def read_items(text, start):
    """
    Yields (kind, key, value) for each item of a line from start on.

    An item is one of ' isOn', ' !isOn', ' ~isOn', ' key=JSON', ' key+=2', ' @name=JSON', ' -#4',
    ' +#5', ' >#4#5' and ' ->#7'. The key of an entry of a dictionary, as in ' key["name"]=JSON' or
    ' key["name"]+=2', is the pair (key, name).
    """
    while start < len(text):
        if text[start] != " " or start + 1 == len(text):
            raise ValueError(f"unexpected text {text[start : start + 20]!r}")
        mark = text[start + 1]
        if text.startswith("->", start + 1):
            parent = expect(UUID.match(text, start + 3), text)
            yield ">", int(parent[1]), None
            start = parent.end()
        elif mark in "-+>":  # " >" is followed by all children
            start += 2
            while start < len(text):
                child = expect(CHILD.match(text, start), text)
                yield ("-" if mark == "-" else "+"), child[0], None
                start = child.end()
                if mark != ">":
                    break
        else:
            match = expect(KEY.match(text, start + (mark in "!~@") + 1), text)
            key = match[0]
            start = match.end()
            if text.startswith('["', start) and mark not in "!~@":
                name, start = read_value(text, start + 1)
                if type(name) is not str or not text.startswith("]", start):
                    raise ValueError(f"cannot read {text[:60]!r}")
                key = (key, name)
                start = start + 1
            amount = AMOUNT.match(text, start)
            if mark in "!~":
                yield "~" if mark == "~" else "=", key, False
            elif text[start : start + 1] == "=":
                value, start = read_value(text, start + 1)
                yield ("@" if mark == "@" else "="), key, value
            elif amount and mark != "@":
                start = amount.end()
                yield "+=", key, amount[0]
            else:
                yield "=", key, True


def expect(match, text):
    if not match:
        raise ValueError(f"cannot read {text[:60]!r}")
    return match


def read_object(line, defaults, items):
    """
    Reads '#3 stove : Stove isOn >#4' and puts the object into items {uuid: object}.

    Its contains are still refs.
    """
    head = r'#(\d+) ("(?:[^"\\\n]|\\.)*"|[^":\n]+) : ([A-Za-z_]\w*)'
    match = expect(re.match(head, line, re.A), line)
    uuid = int(match[1])
    name = match[2]
    if uuid in items:
        raise ValueError(f"the uuid of object #{uuid} is taken")
    items[uuid] = {
        "name": json.loads(long_ids(name)) if name[0] == '"' else f"{name} (ID: {uuid})",
        "uuid": uuid,
        "type": match[3],
        "properties": dict(defaults.get(match[3], {})),
        "contains": [],
    }
    change_object(uuid, line, match.end(), items)


def change_object(uuid, line, start, items):
    """
    Applies the rest of a line, in place, to one of items {uuid: object}.

    Their contains are refs.
    """
    properties = items[uuid]["properties"]
    contains = items[uuid]["contains"]
    for kind, key, value in read_items(line, start):
        if kind in ("=", "+="):
            target = properties
            # an entry of a dictionary, which is copied: others may hold the same one
            if isinstance(key, tuple):
                properties[key[0]] = target = dict(properties[key[0]])
                key = key[1]
                target[key]  # KeyError if it is not there: malformed
            target[key] = value if kind == "=" else add_step(target[key], value)
        elif kind == "~":
            del properties[key]  # KeyError if it is not there: malformed
        elif kind == "+":
            contains.append(key)
        elif kind == "-":
            contains.remove(key)  # ValueError if it is not there: malformed
        elif kind == ">":
            leave(f"#{uuid}", items)
            items[key]["contains"].append(f"#{uuid}")
        elif key in ("name", "type") and isinstance(value, str):
            items[uuid][key] = value
        else:
            raise ValueError(f"unknown attribute @{key}")


def leave(ref, items):
    """Takes a ref out of whatever contains it."""
    for item in items.values():
        if ref in item["contains"]:
            item["contains"].remove(ref)


def read_score(line):
    value, end = read_value(line, len("score "))
    if isinstance(value, dict) and end == len(line):
        return value
    flags = line[end:]
    if isinstance(value, (dict, list)) or flags not in ("", " over", " won", " over won"):
        raise ValueError(f"cannot read the score {line[:60]!r}")
    return {"score": value, "gameOver": " over" in flags, "gameWon": " won" in flags}


def resolve(refs, names):
    """'#4' -> the name of object 4 in names {uuid: name}; a quoted name -> that name."""
    return [names[int(ref[1:])] if ref[0] == "#" else json.loads(long_ids(ref)) for ref in refs]


def read_state(text, defaults):
    """
    Text of write_state -> (game, state, next_id).

    Raises ValueError if it is not of that form.
    """
    try:
        lines = text.rstrip("\n").split("\n")
        begins = lines[0].startswith("game ") and lines[1].startswith("score ")
        if not (begins and lines[2].startswith("next #")):
            raise ValueError("a state begins with its game, its score and the next uuid")
        items = {}
        for line in lines[3:]:
            read_object(line, defaults, items)
        names = {uuid: item["name"] for uuid, item in items.items()}
        for item in items.values():
            item["contains"] = resolve(item["contains"], names)
        return lines[0][5:], [*items.values(), read_score(lines[1])], int(lines[2][6:])
    except (KeyError, IndexError, RecursionError) as error:
        raise ValueError(f"malformed state ({type(error).__name__})") from None


def read_difference(text, state, defaults):
    """
    Text of write_difference -> {"modified", "removed", "score"} relative to state, which is not
    changed.

    Raises ValueError for anything else: an object the state does not have, a child that is not
    there, an object mentioned twice, any extra text.
    """
    if text == SAME:
        return {"modified": [], "removed": [], "score": {}}
    try:
        return read_lines(text.split("\n"), state, defaults)
    except (KeyError, IndexError, RecursionError) as error:
        raise ValueError(f"malformed difference ({type(error).__name__})") from None


def read_lines(lines, state, defaults):
    names = names_of(state[:-1])
    items = {}
    for item in state[:-1]:
        own = {
            "properties": dict(item["properties"]),
            "contains": child_refs(item["contains"], names),
        }
        items[item["uuid"]] = {**item, **own}
    removed = []
    score = {}
    seen = set()
    for line in lines:
        what = line.split(" ", 1)[0]
        if what in seen:
            raise ValueError(f"{what} stands there twice")
        if what == "gone":
            listed = expect(re.fullmatch(r"gone ((?:#\d+)+)", line, re.A), line)[1]
            removed = [int(uuid) for uuid in listed[1:].split("#")]
            if len(set(removed)) < len(removed) or not set(removed) <= set(items):
                raise ValueError("'gone' names an object that is not there, or one twice")
            for uuid in removed:
                leave(f"#{uuid}", items)
        elif what == "score":
            score = read_score(line)
        elif what == "new":
            read_object(line[4:], defaults, items)
        elif UUID.fullmatch(what) and len(what) < len(line):
            change_object(int(what[1:]), line, len(what), items)
        else:
            raise ValueError(f"cannot read the line {line[:60]!r}")
        if what != "new":
            seen.add(what)
    names = {uuid: item["name"] for uuid, item in items.items()}
    current = {item["uuid"]: item for item in state[:-1]}
    for item in items.values():
        item["contains"] = resolve(item["contains"], names)
    modified = []
    for uuid, item in items.items():
        old = current.get(uuid)
        # False == 0, but what a line has said of an object is kept apart
        said = f"#{uuid}" in seen and essence_of(item) != essence_of(old)
        if (said or item != old) and uuid not in removed:
            modified.append(item)
    return {"modified": modified, "removed": removed, "score": score}
