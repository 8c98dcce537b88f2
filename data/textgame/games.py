"""
Eight kinds of household text games, made up on the spot, in the state format of ByteSized32.

One step reads from top to bottom of this file: act() carries out the action if the rules of the
house allow it, tick() lets time pass (ovens heat, timers run, plants drink), chance() says what may
happen besides, judge() counts the sub-goals, and step() compares the state before and after: the
difference to predict. outcomes() tells all that can happen instead, with probabilities.
transitions() builds instances of each kind, walks through them with their hint(), tries several
actions in every state and writes down what happens.

Every kind has instances without chance and with it; prepare.py --chance sets the share. Without it
the state tells all: whatever decides the outcome (rates, limits, the goal itself) is a property of
some object, nothing is hidden and nothing is random once a game is built. The best possible world
model is right every time, and every error is the model's own.

With chance, as in life, the state tells only what is how likely. One object more, the omen, shows
that it is so, and one property of one object changes by itself: the wind turns, the gas pressure
rises. In 2 steps of 5 it does not, else it takes any of seven other values alike. That it stays is
therefore the likeliest outcome by far, although "something changes" is likelier than "nothing
does": likelihood, token by token, bets on a change and is right one time in seven. Circuit's
chance is the exception: between two values, where token by token finds the likeliest as well.
"""

import copy
import json
import math
import random

ADJECTIVES = "red blue green white black yellow small large round old heavy tall".split()
# any other two colours give brown
MIXED = {("blue", "red"): "purple", ("blue", "yellow"): "green", ("red", "yellow"): "orange"}


def noun(rng, words):
    """'box basket' -> 'red basket': one of the words behind an adjective."""
    return f"{rng.choice(ADJECTIVES)} {rng.choice(words.split())}"


def toward(value, target, most):
    """value moved towards target by at most `most`."""
    return min(value + most, target) if value < target else max(value - most, target)


# --------------------------------------------------------------------------------------------------
# What all games share: objects that contain each other, and the rules for hands, lids and switches


class Game:
    """
    The state of one game and its rules.

    A kind of game adds build(rng), tick(), judge(), hint(), verbs, an omen and an event of its own.

    objects: {name: {"name": "cup (ID: 3)", "uuid", "type", "properties", "contains": [names]}}, the
    root first; uuid_base: the next free uuid.
    An action is a tuple: ("put {} in {}", cup, drawer). One that the rules forbid changes nothing.
    """

    # what instances with chance have and others lack: (words for the object, its type)
    omen = ("", "Omen")
    # what chance changes: (type of the object, property, its possible values)
    event = ("Omen", "", ())
    # the probability that it changes nothing
    calm = 0.4

    def __init__(self):
        self.objects = {}
        self.uuid_base = 0
        self.score = {}
        # decides what chance does, and is no property of any object: nobody can know it
        self.luck = 0.0

    def copy(self):
        """The same game at the same moment, independent of the first."""
        # copy.deepcopy would take 20 times as long
        twin = copy.copy(self)
        twin.objects = {
            name: {**o, "properties": dict(o["properties"]), "contains": list(o["contains"])}
            for name, o in self.objects.items()
        }
        return twin

    # reading the state

    @property
    def kind(self):
        """'sailing': what the kind of game is called in records."""
        return type(self).__name__.lower()

    def state(self):
        """The state as records have it: all objects, the score dict last."""
        return [*self.copy().objects.values(), dict(self.score)]

    def __getitem__(self, name):
        """The properties of an object: self["oven (ID: 3)"]["isOn"]."""
        return self.objects[name]["properties"]

    def all(self, kind):
        """The names of all objects of a type."""
        return [name for name, o in self.objects.items() if o["type"] == kind]

    def the(self, kind):
        """The name of the first object of a type, None if there is none."""
        return next(iter(self.all(kind)), None)

    def inside(self, place):
        """The names of what lies directly in an object."""
        return self.objects[place]["contains"]

    def places(self, name):
        """The names of all that an object is in, from the nearest to the root."""
        parent = self.at(name)
        return [parent, *self.places(parent)] if parent else []

    def at(self, name):
        """The name of what an object is directly in, None for the root."""
        return next((parent for parent, o in self.objects.items() if name in o["contains"]), None)

    def here(self):
        return self.at(self.the("Agent"))

    def held(self, name):
        return self.at(name) == self.the("Agent")

    def near(self, name):
        """True if the agent can reach an object: in the same room, behind no closed lid."""
        places = self.places(name)
        here = self.here()
        if here not in places:
            return False
        return all(self[place].get("isOpen", True) for place in places[: places.index(here)])

    def size(self, name):
        return self[name].get("size", 1)

    # changing the state

    def add(self, words, kind, place=None, **properties):
        """
        A new object of a type in a place (the root: None), called by words and its uuid.

        Returns its full name.
        """
        name = f"{words} (ID: {self.uuid_base})"
        self.objects[name] = {
            "name": name,
            "uuid": self.uuid_base,
            "type": kind,
            "properties": properties,
            "contains": [],
        }
        self.uuid_base += 1
        if place:
            self.move(name, place)
        return name

    def move(self, name, place):
        """
        Moves an object to a place (None: out of the world).

        A place with "free" loses the size of what enters and regains it later.
        """
        old = self.at(name)
        size = self.size(name)
        for spot, gain in ((old, size), (place, -size)):
            if spot and "free" in self[spot]:
                self[spot]["free"] += gain
        if old:
            self.inside(old).remove(name)
        if place:
            self.inside(place).append(name)
        else:
            del self.objects[name]

    def start(self, rng, words, hands=None, temperature=20):
        """
        The root, a room called one of the words, with the agent in it. Returns the room.

        hands: the total size of what the agent can hold (None: any).
        """
        room = self.add(noun(rng, words), "Room", temperature=temperature)
        limit = {} if hands is None else {"free": hands}
        self.add("agent", "Agent", room, isContainer=True, **limit)
        return room

    def fits(self, a, b):
        """True if b has room for a: one with "free" for so much, another container always."""
        if "free" in self[b]:
            return self[b]["free"] >= self.size(a)
        return self[b].get("isContainer", False)

    # the shared verbs

    def take(self, a):
        free = self[a].get("isMoveable") and self.near(a) and not self.held(a)
        if free and self.fits(a, self.the("Agent")):
            self.move(a, self.the("Agent"))

    def drop(self, a):
        if self.held(a):
            self.move(a, self.here())

    def put(self, a, b):
        if not (self.held(a) and self.near(b) and self.fits(a, b)):
            return
        if self[b].get("isOpen", True) and b != self.the("Agent") and a not in self.places(b):
            self.move(a, b)

    def turn(self, a, key, value):
        """Opens, closes, turns on, turns off."""
        free = self[a].get("isOpenable", True) and not self[a].get("isLocked")
        if free and self.near(a) and key in self[a]:
            self[a][key] = value

    verbs = {
        "take {}": take,
        "drop {}": drop,
        "put {} in {}": put,
        "open {}": lambda self, a: self.turn(a, "isOpen", True),
        "close {}": lambda self, a: self.turn(a, "isOpen", False),
        "turn on {}": lambda self, a: self.turn(a, "isOn", True),
        "turn off {}": lambda self, a: self.turn(a, "isOn", False),
        "examine {}": lambda self, a: None,
        "look": lambda self: None,
        "inventory": lambda self: None,
        "wait": lambda self: None,
    }

    # one step

    def act(self, action):
        """Carries out an action: (template, name, ...). Returns the game."""
        self.verbs[action[0]](self, *action[1:])
        return self

    def tick(self):
        """Lets one unit of time pass, whatever the action was."""

    def unsettle(self, rng):
        """Brings chance into a new game: the omen, and a value of its own for what will change."""
        words, omen = self.omen
        self.add(noun(rng, words), omen, next(iter(self.objects)))
        kind, key, values = self.event
        self[self.the(kind)][key] = rng.choice(values)

    def chance(self):
        """
        The games that chance may make of this one: [(probability, game), ...].

        Without the omen it is this one for certain.
        """
        if not self.the(self.omen[1]):
            return [(1.0, self)]
        kind, key, values = self.event
        name = self.the(kind)
        futures = [(self.calm, self)]
        for value in values:
            if value != self[name][key]:
                twin = self.copy()
                twin[name][key] = value
                futures.append(((1 - self.calm) / (len(values) - 1), twin))
        return futures

    def scored(self):
        """The score dict of the present state. judge() says (sub-goals reached now, won, lost)."""
        points, won, lost = self.judge()
        return {"score": points, "gameOver": won or lost, "gameWon": won}

    # parts of hints

    def bring(self, a, b):
        """The next action on the way of a into b, a place or the agent; None when it is there."""
        if self.at(a) == b:
            return None
        for place in [*reversed(self.places(a)), *reversed(self.places(b)), b]:  # outer lids first
            if self[place].get("isOpen") is False:
                return "open {}", place
        if self.held(a):
            return "put {} in {}", a, b
        agent = self.the("Agent")
        if self.fits(a, agent):
            return "take {}", a
        return "drop {}", self.inside(agent)[0]

    def switch(self, a, key, value):
        """The action that makes isOpen or isOn that value; None if it is."""
        words = {"isOpen": ("close {}", "open {}"), "isOn": ("turn off {}", "turn on {}")}
        return None if self[a][key] == value else (words[key][value], a)


# --------------------------------------------------------------------------------------------------
# The eight kinds


class Storage(Game):
    """
    Put the wanted toy into a locked chest and close it.

    Keys fit by number and wear out; the chest holds things up to a total size. Chance: where the
    cat naps; nobody unlocks a chest under it.
    """

    omen = ("cat", "Cat")
    event = ("Cat", "naps", "chest sofa shelf rug stairs window bed stove".split())

    # fmt: off
    def build(self, rng):
        places = [self.start(rng, "attic cellar bedroom garage")]
        for _ in range(rng.randint(1, 2)):
            places.append(self.add(noun(rng, "box drawer cupboard basket"), "Container", places[0],
                                   isOpenable=True, isOpen=rng.random() < 0.4, isContainer=True))
        locks = rng.sample(range(1, 10), 2)
        chest = self.add(noun(rng, "chest safe trunk"), "Chest", places[0],
                         isOpenable=True, isOpen=False, isLocked=True,
                         lock=rng.choice(locks), free=rng.randint(5, 9))
        for fits in locks:
            self.add(noun(rng, "key"), "Key", rng.choice(places),
                     isMoveable=True, fits=fits, uses=rng.randint(1, 3))
        toys = []
        for _ in range(2):
            toys.append(self.add(noun(rng, "ball doll robot puzzle"), "Toy", rng.choice(places),
                                 isMoveable=True, size=rng.randint(1, 5)))
        self[chest]["wants"] = rng.choice(toys)
    # fmt: on

    def under_cat(self):
        cat = self.the("Cat")
        return bool(cat) and self[cat]["naps"] == "chest"

    def unlock(self, chest, key):
        fits = self[chest].get("isLocked") and self[chest]["lock"] == self[key].get("fits")
        if fits and self.near(chest) and self.held(key) and not self.under_cat():
            self[chest]["isLocked"] = False
            self[key]["uses"] -= 1
            if self[key]["uses"] == 0:
                self.move(key, None)

    verbs = {**Game.verbs, "unlock {} with {}": unlock}

    def judge(self):
        chest = self[self.the("Chest")]
        stored = chest["wants"] in self.inside(self.the("Chest"))
        won = stored and not chest["isOpen"]
        return (not chest["isLocked"]) + stored + won, won, False

    def hint(self):
        chest = self.the("Chest")
        if self[chest]["isLocked"]:
            key = next(key for key in self.all("Key") if self[key]["fits"] == self[chest]["lock"])
            unlock = ("wait",) if self.under_cat() else ("unlock {} with {}", chest, key)
            return self.bring(key, self.the("Agent")) or unlock
        return self.bring(self[chest]["wants"], chest) or self.switch(chest, "isOpen", False)


class Delivery(Game):
    """
    Carry parcels between a hall and its rooms in time.

    A walk takes 1 + load minutes, and some doors fall shut by themselves. Chance: how much of the
    load the porter carries.
    """

    omen = ("porter", "Porter")
    event = ("Porter", "carries", range(1, 9))

    # fmt: off
    def build(self, rng):
        hall = self.add(noun(rng, "hall corridor"), "Hall", minutesLeft=rng.randint(20, 60))
        self.add("agent", "Agent", hall, isContainer=True)
        rooms = [hall]
        for _ in range(rng.randint(2, 3)):
            # ticks from opening until the door falls shut; 0: it stays open
            delay = rng.choice([0, 0, 2, 3, 4])
            rooms.append(self.add(noun(rng, "kitchen bedroom study garage"), "Chamber", hall,
                                  isOpenable=True, isOpen=delay == 0 and rng.random() < 0.5,
                                  delay=delay, closesIn=delay))
        for _ in range(rng.randint(1, 2)):
            here, there = rng.sample(rooms, 2)
            self.add(noun(rng, "parcel letter crate"), "Parcel", here,
                     isMoveable=True, size=rng.randint(1, 5), goesTo=there)
    # fmt: on

    def near(self, name):
        """What stands in the same room, and from inside also the door of the room itself."""
        return self.here() in (name, self.at(name))

    def go(self, room):
        """Chambers are joined to the hall only; an open chamber is one with an open door."""
        here = self.here()
        hall = self[self.the("Hall")]
        agent = self.the("Agent")
        porter = self.the("Porter")
        door = None
        if self.at(here) == room:
            door = here
        elif self.at(room) == here:
            door = room
        if door and self[door].get("isOpen"):
            load = sum(map(self.size, self.inside(agent)))
            if porter:
                load = max(0, load - self[porter]["carries"])
            hall["minutesLeft"] = max(0, hall["minutesLeft"] - 1 - load)
            self.move(agent, room)

    verbs = {**Game.verbs, "go to {}": go}

    def tick(self):
        for room in map(self.__getitem__, self.all("Chamber")):
            closing = room["isOpen"] and room["delay"]
            room["closesIn"] = room["closesIn"] - 1 if closing else room["delay"]
            if room["delay"] and room["closesIn"] == 0:
                room["isOpen"] = False
                room["closesIn"] = room["delay"]

    def judge(self):
        parcels = self.all("Parcel")
        delivered = sum(self.at(parcel) == self[parcel]["goesTo"] for parcel in parcels)
        won = delivered == len(parcels)
        return delivered, won, not won and self[self.the("Hall")]["minutesLeft"] == 0

    def hint(self):
        parcel = next(name for name in self.all("Parcel") if self.at(name) != self[name]["goesTo"])
        goal = self[parcel]["goesTo"] if self.held(parcel) else self.at(parcel)
        here = self.here()
        hall = self.the("Hall")
        if goal == here:
            return ("drop {}", parcel) if self.held(parcel) else ("take {}", parcel)
        door = goal if here == hall else here
        there = goal if here == hall else hall
        return ("go to {}", there) if self[door]["isOpen"] else ("open {}", door)


class Baking(Game):
    """
    Bake food but do not burn it.

    The oven heats while it is on and closed, its timer turns it off, food follows the heat at its
    own rate. Chance: the pressure in the gas pipe, and so the power of the oven.
    """

    omen = ("pipe", "Pipe")
    event = ("Oven", "power", range(12, 20))

    # fmt: off
    def build(self, rng):
        warmth = rng.randint(17, 25)
        room = self.start(rng, "kitchen bakery", temperature=warmth)
        cupboard = self.add(noun(rng, "cupboard box drawer"), "Container", room,
                            isOpenable=True, isOpen=rng.random() < 0.5, isContainer=True)
        self.add(noun(rng, "oven stove"), "Oven", room,
                 isOpenable=True, isOpen=rng.random() < 0.3, isOn=False, temperature=warmth,
                 power=rng.randint(12, 25), limit=rng.randint(75, 99),
                 timer=0, step=rng.randint(2, 6), isContainer=True)
        self.add(noun(rng, "plate tray"), "Plate", room, isContainer=True)
        for _ in range(rng.choice([1, 1, 2])):
            done = rng.randint(32, 48)
            self.add(noun(rng, "cake pie bread potato"), "Food", rng.choice([room, cupboard]),
                     isMoveable=True, state="raw", temperature=warmth, rate=rng.randint(7, 15),
                     bakedAt=done, burntAt=done + rng.randint(10, 30))
    # fmt: on

    def press(self, a):
        """Winds the timer by its step."""
        if self.near(a) and "timer" in self[a]:
            self[a]["timer"] += self[a]["step"]

    verbs = {**Game.verbs, "press timer of {}": press}

    def tick(self):
        oven = self[self.the("Oven")]
        warmth = self[self.here()]["temperature"]
        if oven["isOn"] and not oven["isOpen"]:
            oven["temperature"] = toward(oven["temperature"], oven["limit"], oven["power"])
        else:
            oven["temperature"] = toward(oven["temperature"], warmth, 10)
        if oven["isOn"] and oven["timer"]:  # an oven whose timer was not wound stays on
            oven["timer"] -= 1
            oven["isOn"] = oven["timer"] > 0
        for name in self.all("Food"):
            food = self[name]
            baking = self.at(name) == self.the("Oven") and not oven["isOpen"]
            around = oven["temperature"] if baking else warmth
            food["temperature"] = toward(food["temperature"], around, food["rate"])
            if food["temperature"] >= food["bakedAt"] and food["state"] != "burnt":
                food["state"] = "burnt" if food["temperature"] >= food["burntAt"] else "baked"

    def judge(self):
        foods = self.all("Food")
        states = [self[name]["state"] for name in foods]
        on_plate = [name for name in self.inside(self.the("Plate")) if name in foods]
        served = sum(self[name]["state"] == "baked" for name in on_plate)
        return states.count("baked") + served, served == len(states), "burnt" in states

    def hint(self):
        oven = self.the("Oven")
        for food in self.all("Food"):
            action = self.bring(food, oven if self[food]["state"] == "raw" else self.the("Plate"))
            if action:
                return action
        if self[oven]["isOpen"]:
            return "close {}", oven
        if not self[oven]["isOn"] and not self[oven]["timer"]:
            return "press timer of {}", oven
        return self.switch(oven, "isOn", True) or ("wait",)


class Circuit(Game):
    """
    Hatch an egg.

    A device works if wired, also over a switch that is on, to a charged battery; it drains that
    and warms the egg beside it. Chance: whether the sun shines on the panel, which spares the
    battery; it comes or goes in 3 steps of 10.
    """

    omen = ("panel", "Panel")
    event = ("Panel", "isSunny", (False, True))
    calm = 0.7

    # fmt: off
    def build(self, rng):
        warmth = rng.randint(14, 24)
        room = self.start(rng, "barn shed workshop", temperature=warmth)
        nest = self.add(noun(rng, "nest box"), "Container", room,
                        isOpenable=rng.random() < 0.5, isOpen=True, isContainer=True)
        self.add(noun(rng, "battery"), "Battery", room, charge=rng.randint(15, 60))
        self.add(noun(rng, "switch"), "Switch", room, isOn=rng.random() < 0.3, wiredTo="nothing")
        for _ in range(rng.randint(1, 2)):
            self.add(noun(rng, "lamp heater"), "Device", room,
                     isMoveable=True, works=False, wiredTo="nothing",
                     watts=rng.randint(1, 5), heat=rng.randint(2, 6))
        self.add(noun(rng, "egg"), "Egg", rng.choice([room, nest]),
                 isMoveable=True, temperature=warmth, hatchesAt=warmth + rng.randint(6, 18))
    # fmt: on

    def connect(self, a, b):
        """A device can be wired to a switch or a battery, a switch to a battery."""
        partners = {"Device": ("Switch", "Battery"), "Switch": ("Battery",)}
        allowed = partners.get(self.objects[a]["type"], ())
        if self.near(a) and self.near(b) and self.objects[b]["type"] in allowed:
            self[a]["wiredTo"] = b

    def disconnect(self, a):
        if self.near(a) and "wiredTo" in self[a]:
            self[a]["wiredTo"] = "nothing"

    verbs = {**Game.verbs, "connect {} to {}": connect, "disconnect {}": disconnect}

    def live(self, a):
        """True if a gives current: a charged battery, or what is on and wired to something live."""
        if a == "nothing":
            return False
        if self[a].get("charge", 0) > 0:
            return True
        return self[a].get("isOn", False) and self.live(self[a]["wiredTo"])

    def tick(self):
        battery = self[self.the("Battery")]
        warmth = self[self.here()]["temperature"]
        devices = self.all("Device")
        for device in devices:
            self[device]["works"] = self.live(self[device]["wiredTo"])
        working = [device for device in devices if self[device]["works"]]
        drain = sum(self[device]["watts"] for device in working)
        panel = self.the("Panel")
        if not (panel and self[panel]["isSunny"]):
            battery["charge"] = max(0, battery["charge"] - drain)
        for name in self.all("Egg"):
            egg = self[name]
            place = self.at(name)
            heat = sum(self[device]["heat"] for device in working if self.at(device) == place)
            if heat:
                egg["temperature"] += heat
            else:
                egg["temperature"] = toward(egg["temperature"], warmth, 2)
            if egg["temperature"] >= egg["hatchesAt"]:
                self.move(name, None)
                self.add("chick", "Chick", place, isMoveable=True)

    def judge(self):
        devices = [self[device] for device in self.all("Device")]
        wired = any(device["wiredTo"] != "nothing" for device in devices)
        works = any(device["works"] for device in devices)
        hatched = bool(self.all("Chick"))
        lost = not hatched and self[self.the("Battery")]["charge"] == 0
        return wired + works + 2 * hatched, hatched, lost

    def hint(self):
        switch, battery, device, nest = map(self.the, ("Switch", "Battery", "Device", "Container"))
        for a, b in ((switch, battery), (device, switch)):
            if self[a]["wiredTo"] != b:
                return "connect {} to {}", a, b
        return (
            self.bring(self.the("Egg"), nest)
            or self.bring(device, nest)
            or self.switch(switch, "isOn", True)
            or ("wait",)
        )


class Painting(Game):
    """
    Mix the wanted colour, paint the canvas and let it dry.

    A jar takes what fits; two colours in it become a new paint. Chance: the weather in the window;
    nothing dries in the rain.
    """

    omen = ("window", "Window")
    event = ("Window", "weather", "sun rain snow fog hail wind frost storm".split())

    # fmt: off
    def build(self, rng):
        room = self.start(rng, "studio workshop garage")
        colours = rng.sample(["red", "yellow", "blue"], 3)
        self.add(noun(rng, "canvas wall fence"), "Canvas", room,
                 wants=MIXED[tuple(sorted(colours[:2]))], needs=rng.randint(3, 6), colour="none",
                 dries=rng.randint(1, 4), wet=0)
        jars = []
        for _ in range(3):
            jars.append(self.add(noun(rng, "jar cup bucket can"), "Jar", room,
                                 isMoveable=True, holds=rng.randint(10, 20)))
        for colour, jar in zip(colours[:rng.randint(2, 3)], rng.sample(jars, 3)):
            self.fill(jar, colour, rng.randint(3, 9))
    # fmt: on

    def content(self, jar):
        """(colour, volume) of the paint in a jar, (None, 0) if there is none."""
        for paint in self.inside(jar):
            if "volume" in self[paint]:
                return self[paint]["colour"], self[paint]["volume"]
        return None, 0

    def fill(self, jar, colour, volume):
        """
        Makes the jar hold that much paint of that colour, or none if volume is 0.

        Another colour is another object.
        """
        for paint in list(self.inside(jar)):
            if volume and self[paint]["colour"] == colour:
                self[paint]["volume"] = volume
                return
            self.move(paint, None)
        if volume:
            self.add(f"{colour} paint", "Paint", jar, colour=colour, volume=volume)

    def pour(self, a, b):
        colour, volume = self.content(a)
        other, present = self.content(b)
        poured = min(volume, self[b].get("holds", 0) - present)
        if poured > 0 and self.held(a) and self.near(b):
            self.fill(a, colour, volume - poured)
            mixture = colour
            if other not in (None, colour):
                mixture = MIXED.get(tuple(sorted((colour, other))), "brown")
            self.fill(b, mixture, present + poured)

    def empty(self, jar):
        if self.held(jar) and self.content(jar)[1]:
            self.fill(jar, None, 0)

    def paint(self, a, jar):
        colour, volume = self.content(jar)
        canvas = self[a]
        blank = canvas.get("colour") == "none"
        if blank and colour and volume >= canvas["needs"] and self.near(jar):
            self.fill(jar, colour, volume - canvas["needs"])
            canvas["colour"] = colour
            canvas["wet"] = canvas["dries"] + 1  # the tick of this step may already take 1

    verbs = {**Game.verbs, "pour {} into {}": pour, "empty {}": empty, "paint {} from {}": paint}

    def tick(self):
        canvas = self[self.the("Canvas")]
        window = self.the("Window")
        if not (window and self[window]["weather"] == "rain"):
            canvas["wet"] = max(0, canvas["wet"] - 1)

    def judge(self):
        canvas = self[self.the("Canvas")]
        right = canvas["colour"] == canvas["wants"]
        paints = [self[paint]["colour"] for paint in self.all("Paint")]
        mixed = right or canvas["wants"] in paints
        won = right and canvas["wet"] == 0
        return mixed + right + won, won, canvas["colour"] not in ("none", canvas["wants"])

    def hint(self):
        name = self.the("Canvas")
        canvas = self[self.the("Canvas")]
        jars = {self.content(jar)[0]: jar for jar in self.all("Jar")}
        if canvas["wet"]:
            return ("wait",)
        if canvas["wants"] in jars:
            return "paint {} from {}", name, jars[canvas["wants"]]
        pair = next(pair for pair, mixture in MIXED.items() if mixture == canvas["wants"])
        parts = [jars.get(colour) for colour in pair]
        if not all(parts):
            return None
        return self.bring(parts[0], self.the("Agent")) or ("pour {} into {}", *parts)


class Dishes(Game):
    """
    Wash up and fill the rack without a flood.

    Scrubbing needs water in the sink and uses up soap; the bottle gives soap until it is empty.
    Chance: how hard the pump works, and so the flow of the faucet.
    """

    omen = ("pump", "Pump")
    event = ("Faucet", "flow", range(1, 9))

    # fmt: off
    def build(self, rng):
        room = self.start(rng, "kitchen scullery canteen")
        self.add(noun(rng, "sink basin"), "Sink", room,
                 water=0, limit=rng.randint(8, 20), isContainer=True)
        self.add(noun(rng, "faucet tap"), "Faucet", room, isOn=False, flow=rng.randint(1, 6))
        self.add(noun(rng, "rack towel"), "Rack", room, isContainer=True)
        self.add(noun(rng, "sponge brush"), "Sponge", room,
                 isMoveable=True, soap=rng.choice([0, 0, 1, 2]), power=rng.randint(2, 7))
        self.add(noun(rng, "bottle"), "Bottle", room,
                 isMoveable=True, dose=rng.randint(2, 5), doses=rng.randint(1, 3))
        for _ in range(rng.choice([1, 1, 2])):
            self.add(noun(rng, "cup plate bowl fork"), "Dish", room,
                     isMoveable=True, dirt=rng.randint(2, 9))
    # fmt: on

    def squeeze(self, bottle, sponge):
        fits = "doses" in self[bottle] and "soap" in self[sponge]
        if fits and self.held(bottle) and self.near(sponge):
            self[sponge]["soap"] += self[bottle]["dose"]
            self[bottle]["doses"] -= 1
            if self[bottle]["doses"] == 0:
                self.move(bottle, None)

    def scrub(self, dish, sponge):
        sink = self.the("Sink")
        soaked = self.at(dish) == sink and self[sink]["water"] and self[dish].get("dirt")
        if soaked and self.held(sponge) and self[sponge].get("soap"):
            self[dish]["dirt"] = max(0, self[dish]["dirt"] - self[sponge]["power"])
            self[sponge]["soap"] -= 1

    verbs = {**Game.verbs, "squeeze {} on {}": squeeze, "scrub {} with {}": scrub}

    def tick(self):
        sink = self[self.the("Sink")]
        faucet = self[self.the("Faucet")]
        if faucet["isOn"]:
            sink["water"] = min(sink["limit"], sink["water"] + faucet["flow"])

    def judge(self):
        dishes = self.all("Dish")
        sink = self[self.the("Sink")]
        clean = [dish for dish in dishes if self[dish]["dirt"] == 0]
        ready = sum(self.at(dish) == self.the("Rack") for dish in clean)
        flooded = sink["water"] == sink["limit"]
        return len(clean) + ready, ready == len(dishes) and not flooded, flooded

    def hint(self):
        agent, sink, faucet, sponge, bottle = map(
            self.the, ("Agent", "Sink", "Faucet", "Sponge", "Bottle")
        )
        if self[sink]["water"] and self[faucet]["isOn"]:
            return "turn off {}", faucet
        for dish in self.all("Dish"):
            if self[dish]["dirt"] == 0:
                action = self.bring(dish, self.the("Rack"))
            elif self[sponge]["soap"]:
                action = self.bring(dish, sink)
                if not action and not self[sink]["water"]:
                    action = "turn on {}", faucet
                action = action or self.bring(sponge, agent) or ("scrub {} with {}", dish, sponge)
            else:
                action = bottle and self.bring(bottle, agent)
                if bottle and not action:
                    action = "squeeze {} on {}", bottle, sponge
            if action:
                return action


class Garden(Game):
    """
    Grow a fruit.

    A seed in a moist pot sprouts; a plant drinks, grows while the lamp burns, wilts of thirst, and
    bears fruit when it is tall. Chance: how the nozzle sits, and so the dose of the can.
    """

    omen = ("nozzle", "Nozzle")
    event = ("Can", "dose", range(5, 13))

    # fmt: off
    def build(self, rng):
        room = self.start(rng, "greenhouse balcony garden")
        self.add(noun(rng, "barrel well"), "Barrel", room, water=rng.randint(20, 60))
        self.add(noun(rng, "can jug"), "Can", room,
                 isMoveable=True, water=0, holds=rng.randint(9, 20), dose=rng.randint(5, 12))
        self.add(noun(rng, "lamp"), "Lamp", room, isOn=False)
        pots = rng.randint(1, 2)
        for _ in range(pots):
            self.add(noun(rng, "pot bucket"), "Pot", room,
                     moisture=rng.choice([0, 0, 0, 2, 5]), isContainer=True)
        for _ in range(3 - pots):
            self.add(noun(rng, "seed"), "Seed", room,
                     isMoveable=True, thirst=rng.randint(1, 3), rate=rng.randint(2, 6),
                     ripeAt=rng.randint(8, 20))
    # fmt: on

    def fill(self, can, barrel):
        fits = "holds" in self[can] and self.objects[barrel]["type"] == "Barrel"
        if fits and self.near(can) and self.near(barrel):
            water = min(self[can]["holds"] - self[can]["water"], self[barrel]["water"])
            self[can]["water"] += water
            self[barrel]["water"] -= water

    def sprinkle(self, pot, can):
        if self.held(can) and "dose" in self[can] and self.near(pot) and "moisture" in self[pot]:
            water = min(self[can]["dose"], self[can]["water"])
            self[pot]["moisture"] += water
            self[can]["water"] -= water

    verbs = {**Game.verbs, "fill {} from {}": fill, "water {} with {}": sprinkle}

    def tick(self):
        for plant in self.all("Plant"):
            self.grow(plant, self[plant], self[self.at(plant)])
        for name in self.all("Seed"):
            pot = self.at(name)
            seed = self[name]
            if self[pot].get("moisture"):
                self.move(name, None)
                nature = {key: seed[key] for key in ("thirst", "rate", "ripeAt")}
                self.add("plant", "Plant", pot, **nature, height=1, health=3)

    def grow(self, name, plant, pot):
        """One tick of a plant: it drinks; it wilts if water was short, else grows in light."""
        thirsty = pot["moisture"] < plant["thirst"]
        pot["moisture"] = max(0, pot["moisture"] - plant["thirst"])
        if thirsty:
            plant["health"] = max(0, plant["health"] - 1)
        elif self[self.the("Lamp")]["isOn"] and plant["height"] < plant["ripeAt"]:
            plant["height"] = toward(plant["height"], plant["ripeAt"], plant["rate"])
            if plant["height"] == plant["ripeAt"]:
                self.add("fruit", "Fruit", name, isMoveable=True)

    def judge(self):
        fruits = self.all("Fruit")
        plants = self.all("Plant")
        picked = any(map(self.held, fruits))
        dead = any(self[plant]["health"] == 0 for plant in plants)
        return bool(plants) + bool(fruits) + picked, picked, dead

    def hint(self):
        agent, can, lamp, plant, fruit, seed = map(
            self.the, ("Agent", "Can", "Lamp", "Plant", "Fruit", "Seed")
        )
        pot = self.at(plant) if plant else self.the("Pot")
        if fruit:
            return self.bring(fruit, agent)
        if not plant and not self.inside(pot):
            return self.bring(seed, pot)
        if self[pot]["moisture"] < (2 * self[plant]["thirst"] if plant else 1):
            pour = "water {} with {}", pot, can
            refill = "fill {} from {}", can, self.the("Barrel")
            return self.bring(can, agent) or (pour if self[can]["water"] else refill)
        return self.switch(lamp, "isOn", True) or ("wait",)


class Sailing(Game):
    """
    Sail the cargo to the island it is for.

    Nobody sails against the wind. Chance: under a cloud the wind turns, from any quarter to any
    other; else it holds for ever.
    """

    QUARTERS = "north northeast east southeast south southwest west northwest".split()
    omen = ("cloud", "Cloud")
    event = ("Sea", "wind", QUARTERS)

    def build(self, rng):
        wind = rng.choice(self.QUARTERS)
        sea = self.add(noun(rng, "sea bay lake"), "Sea", wind=wind)
        quarters = rng.sample(self.QUARTERS, 3)
        islands = []
        for quarter in quarters:
            name = noun(rng, "island harbour reef")
            islands.append(self.add(name, "Island", sea, lies=quarter, isContainer=True))
        boat = self.add(noun(rng, "boat raft"), "Boat", rng.choice(islands))
        self.add("agent", "Agent", boat, isContainer=True)
        # no cargo needs an island that the first wind keeps away from: it may hold for ever
        reached = [name for name in islands if self[name]["lies"] != wind]
        for _ in range(rng.randint(2, 3)):
            here, there = rng.sample(reached, 2)
            self.add(noun(rng, "barrel crate sack"), "Cargo", here, isMoveable=True, goesTo=there)

    def near(self, name):
        """What is on the boat or on the island where it lies."""
        return self.at(self.the("Boat")) in (name, *self.places(name))

    def drop(self, a):
        if self.held(a):
            self.move(a, self.at(self.the("Boat")))

    def sail(self, island):
        """
        To any island in one step, but not against the wind.

        The wind is called by the quarter it comes from: no boat gets to an island there.
        """
        if "lies" in self[island] and self[island]["lies"] != self[self.the("Sea")]["wind"]:
            self.move(self.the("Boat"), island)

    verbs = {**Game.verbs, "drop {}": drop, "sail to {}": sail}

    def judge(self):
        cargo = self.all("Cargo")
        landed = sum(self.at(name) == self[name]["goesTo"] for name in cargo)
        return landed, landed == len(cargo), False

    def hint(self):
        here = self.at(self.the("Boat"))
        cargo = next(name for name in self.all("Cargo") if self.at(name) != self[name]["goesTo"])
        goal = self[cargo]["goesTo"] if self.held(cargo) else self.at(cargo)
        if goal != here:
            against = self[goal]["lies"] == self[self.the("Sea")]["wind"]
            return ("wait",) if against else ("sail to {}", goal)
        return ("drop {}", cargo) if self.held(cargo) else ("take {}", cargo)


KINDS = (Storage, Delivery, Baking, Circuit, Painting, Dishes, Garden, Sailing)


# --------------------------------------------------------------------------------------------------
# Playing and writing down


def actions(game):
    """
    Every grammatical action: each verb with each choice of different objects.

    Most of them are nonsense.
    """
    names = list(game.objects)
    pairs = [(a, b) for a in names for b in names if a != b]
    words = {0: [()], 1: [(a,) for a in names], 2: pairs}
    return [(verb, *choice) for verb in game.verbs for choice in words[verb.count("{}")]]


def difference(game, new):
    """
    {"modified", "removed", "score"}: the changed and new objects in full, the uuids of those gone,
    and the whole new score if it is another.
    """
    return {
        "modified": [o for name, o in new.copy().objects.items() if o != game.objects.get(name)],
        "removed": [o["uuid"] for name, o in game.objects.items() if name not in new.objects],
        "score": dict(new.score) if new.score != game.score else {},
    }


def step(game, action):
    """
    One full transition: action, tick, chance, score.

    Returns (the game after it, what a record says of it); the given game does not change.
    "changed_by" tells whether the action, time with chance, and the score changed something.
    """
    acted = game.copy().act(action)
    later = acted.copy()
    later.tick()
    probabilities, futures = zip(*later.chance())
    # each action meets its own luck
    luck = random.Random(f"{game.luck} {action}")
    new = luck.choices(futures, probabilities)[0]
    new.luck = luck.random()
    new.score = new.scored()
    diff = difference(game, new)
    return new, {
        "action": action[0].format(*action[1:]),
        "diff": diff,
        "next_score": dict(new.score),
        "changed": any(diff.values()),
        "changed_by": [
            int(acted.objects != game.objects),
            int(new.objects != acted.objects),
            int(bool(diff["score"])),
        ],
    }


def outcomes(game, action):
    """
    All that an action can lead to: [(probability, diff), ...], the likeliest first.

    The probabilities sum to 1, and no two diffs are equal. step() draws from them.
    """
    later = game.copy().act(action)
    later.tick()
    found = {}  # {diff as JSON: (probability, diff)}
    for probability, new in later.chance():
        new.score = new.scored()
        diff = difference(game, new)
        key = json.dumps(diff)
        before = found[key][0] if key in found else 0.0
        found[key] = before + probability, diff
    return sorted(found.values(), key=lambda outcome: -outcome[0])


def random_actions(game, rng, n, habit):
    """
    n actions of a player who knows no rule: a deed such as "take Dish" (types in place of names) as
    often as the Counter `habit` has it, and of the actions that are this deed any.
    """
    alike = {}  # {deed: actions}
    for action in actions(game):
        types = [game.objects[name]["type"] for name in action[1:]]
        alike.setdefault(action[0].format(*types), []).append(action)
    weights = [habit[deed] for deed in alike]
    deeds = rng.choices(list(alike), weights if any(weights) else None, k=n)
    return [rng.choice(alike[deed]) for deed in deeds]


def choose(game, rng, tries, useful, wander):
    """
    The different actions to try in one state, first the one that the walk takes: the hint, or with
    probability `wander` any that does something.

    Each of the others is, with probability `useful`, one that does something, else drawn verb by
    verb from all that is grammatical.
    """
    everything = actions(game)
    working = []
    # most actions do nothing, and leave the copy as good as new for the next
    twin = game.copy()
    for action in everything:
        if twin.act(action).objects != game.objects:
            working.append(action)
            twin = game.copy()
    hint = game.hint()
    # after a detour the hint may be None or forbidden
    sensible = hint in working or hint == ("wait",)
    taken = hint if sensible and rng.random() >= wander else rng.choice(working or [("wait",)])
    # time alone (not chance) changes this state, so whatever we try does: two tries tell enough
    waited = game.copy()
    waited.tick()
    if waited.objects != game.objects:
        tries = min(tries, 2)
    chosen = [taken]
    while len(chosen) < min(tries, len(everything)):
        verb = rng.choice(list(game.verbs))
        untried = [action for action in working if action not in chosen]
        pool = untried
        if not untried or rng.random() >= useful:
            pool = [action for action in everything if action[0] == verb]
        chosen.append(rng.choice(pool))
        chosen = list(dict.fromkeys(chosen))  # without repeats
    return chosen


def has_chance(instance, share):
    """
    True for that share of the instances of each kind, in turn.

    The kinds do not take turns together, so that it is about the same share of any few instances.
    """
    number, kind = divmod(instance, len(KINDS))
    phase = 5 * kind / len(KINDS)
    return math.floor((number + 1) * share + phase) > math.floor(number * share + phase)


def begin(instance, seed, chance):
    """(A new game, random numbers to play it with); its kind follows from the instance's number."""
    # a string seeds through SHA-512, the same in every process
    rng = random.Random(f"{seed}/{instance}")
    game = KINDS[instance % len(KINDS)]()
    game.build(rng)
    if has_chance(instance, chance):
        # draws of its own: all else is the same with and without chance
        fate = random.Random(f"{seed}/{instance}/chance")
        game.unsettle(fate)
        game.luck = fate.random()
    game.score = game.scored()
    return game, rng


def walk(instance, seed, chance, steps=16, wander=0.15):
    """A new game and what its hints make of it, step by step until it is over: a list of games."""
    game, rng = begin(instance, seed, chance)
    found = []
    while not game.score["gameOver"] and len(found) < steps:
        found.append(game)
        detour = rng.random() < wander
        action = rng.choice(actions(game)) if detour else game.hint() or ("wait",)
        game, _ = step(game, action)
    return found


def transitions(
    games, seed, steps=16, tries=6, useful=0.15, wander=0.15, chance=0.5, all_outcomes=False
):
    """
    Yields the records of `games` instances, the kinds in turn, in the format of the compact
    ByteSized32 files, plus "instance".

    games: number of instances; split the data by record["instance"].
    seed: fixes every record; instance i does not depend on `games`.
    steps: states visited per instance at most (a game may end before).
    tries: different actions tried per state, the first being the one that the walk takes ("gold");
    at most 2 where time alone changes the state.
    useful, wander: see choose().
    chance: the share of instances of each kind with chance in them.
    all_outcomes: adds "outcomes", see outcomes(). It takes time.
    """
    state_id = 0
    for instance in range(games):
        game, rng = begin(instance, seed, chance)
        for number in range(1, steps + 1):
            tried = choose(game, rng, tries, useful, wander)
            for action in tried:
                record = {
                    "game": game.kind,
                    "instance": instance,
                    "state_id": state_id,
                    "step": number,
                    "gold": action == tried[0],
                    "game_state": game.state()[:-1],
                    "uuid_base": game.uuid_base,
                    "score": dict(game.score),
                    **step(game, action)[1],
                }
                if all_outcomes:
                    record["outcomes"] = outcomes(game, action)
                yield record
                state_id += 1
            game = step(game, tried[0])[0]
            if game.score["gameOver"]:
                break
