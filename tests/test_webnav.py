"""
The web shop and the reader of WebArena's files.

Trees and responses are read back here by code of their own, from the texts alone.
"""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
from common import BadInput
from data import load_world
from data.webnav import prepare, shop

FIXTURE = ROOT / "tests/fixtures/webarena.jsonl"
NOTHING = "New items:\nNone\n\nDeleted items:\nNone\n\nUpdated items:\nNone"


def read_tree(text):
    """{id: text of the node} in document order."""
    nodes = [re.fullmatch(r"\t*\[(\d+)\] (.+)", line).groups() for line in text.splitlines()]
    assert len({i for i, _ in nodes}) == len(nodes), "two nodes have the same id"
    return {int(i): node for i, node in nodes}


def read_response(text):
    """
    Three {id: text}: new, deleted, updated.

    Fails unless the headings come once each and in order.
    """
    form = r"New items:\n(.+)\n\nDeleted items:\n(.+)\n\nUpdated items:\n(.+)"
    parts = re.fullmatch(form, text, re.DOTALL).groups()
    return [{} if part == "None" else read_tree(part) for part in parts]


def find(tree, text):
    """The id of the first node whose line has this text."""
    return next(i for i, node in tree.items() if text in node.text)


@pytest.fixture(scope="module")
def records():
    return list(shop.transitions(range(120)))


@pytest.fixture(scope="module")
def steps():
    """
    (old tree, action, new tree, response), all texts.

    The walks are not those of transitions().
    """
    found = []
    for seed in range(25):
        rng = random.Random(seed)
        this = shop.make_shop(seed % 3)
        state = shop.first_state(this, rng)
        tree = shop.number(shop.render(this, state), {}, first=rng.randint(10, 60))
        for _ in range(40):
            action = shop.random_action(this, tree, rng)
            state, new, response = shop.step(this, state, tree, action)
            found.append((shop.observation(tree), action, shop.observation(new), response))
            tree = new
    return found


# --------------------------------------------------------------------------------------------------
# Trees and differences


def test_response_leads_from_old_tree_to_new(steps):
    """
    Deleting, updating and inserting what the response says gives the new tree.

    Nothing in the response is idle.
    """
    for old_text, _, new_text, response in steps:
        tree = read_tree(old_text)
        new, deleted, updated = read_response(response)
        for i, node in deleted.items():
            assert tree.pop(i) == node
        for i, node in updated.items():
            assert tree[i] != node
            tree[i] = node
        assert not tree.keys() & new.keys()
        tree.update(new)
        lines = Counter(line.strip() for line in new_text.splitlines())
        assert Counter(f"[{i}] {node}" for i, node in tree.items()) == lines


def test_new_ids_are_the_next_free_numbers_in_document_order(steps):
    several = 0
    for old_text, _, new_text, response in steps:
        new = list(read_response(response)[0])
        first = max(read_tree(old_text)) + 1
        assert new == list(range(first, first + len(new)))
        assert [i for i in read_tree(new_text) if i in new] == new
        several += len(new) > 1
    assert several > 50


def test_indentation_follows_the_tree(steps):
    """One root; a node is at most one level deeper than the line above it."""
    for text, *_ in steps:
        depths = [len(line) - len(line.lstrip("\t")) for line in text.splitlines()]
        assert depths[0] == 0 and all(1 <= b <= a + 1 for a, b in zip(depths, depths[1:]))


def without_chance(text):
    """The links "For you" taken out; a section that held nothing else is empty."""
    text = re.sub(r"\t*\[\d+\] link 'For you: .*(\n|$)", "", text)
    return re.sub(r"(items:\n)(?=\n|$)", r"\1None\n", text).rstrip("\n")


def test_the_page_tells_all_but_the_links_for_you():
    """
    Equal pages and actions have equal responses: no hidden state decides.

    Ids and the links for you aside.
    """
    seen = {}
    sessions = defaultdict(set)
    for r in shop.transitions(range(120), steps=5, actions=10):
        tree = read_tree(r["state"])
        if any(f"[{i}]" in r["prompt"] and "For you" in node for i, node in tree.items()):
            continue
        page = without_chance(r["state"])
        response = without_chance(r["response"])
        ids = {i: f"old{rank}" for rank, i in enumerate(read_tree(page))}
        ids.update({i: f"new{rank}" for rank, i in enumerate(read_response(response)[0])})

        def rename(text, ids=ids):
            return re.sub(r"\[(\d+)\]", lambda m: f"[{ids.get(int(m[1]), m[1])}]", text)

        pair = rename(page), rename(r["prompt"])
        assert seen.setdefault(pair, rename(response)) == rename(response)
        sessions[pair].add(r["unit"])
    assert sum(len(s) > 1 for s in sessions.values()) > 150, "the check has too few cases"


# --------------------------------------------------------------------------------------------------
# What the shop does: a story in a shop made by hand, every answer worked out by hand

SHOP = shop.Shop(
    categories=("Mugs", "Lamps"),
    featured=("Red Mug", "Oak Lamp"),
    coupons=("SAVE5",),
    for_you=0,
    products=(
        shop.Product("Red Mug", "Mugs", 10, True, False),
        shop.Product("Blue Mug", "Mugs", 7, True, False),
        shop.Product("Mini Mug", "Mugs", 20, True, True),
        shop.Product("Oak Lamp", "Lamps", 30, False, False),
    ),
)


class Visit:
    """Walks through SHOP; nodes are named by their text."""

    def __init__(self):
        self.state = shop.State(shop.Page("home"))
        self.tree = shop.number(shop.render(SHOP, self.state), {}, first=10)

    def do(self, verb, target="", *arguments):
        """The response to an action on the first node that has the text `target`."""
        node = f"[{find(self.tree, target)}]" if target else ""
        action = " ".join([verb, node, *(f"[{a}]" for a in arguments)])
        self.state, self.tree, response = shop.step(SHOP, self.state, self.tree, action)
        return response

    def sees(self, text):
        return any(text in node.text for node in self.tree.values())


def test_links_for_you_are_chance():
    """
    Each of the three places holds a link on half of the pages that open, to any product alike.

    Within a page they stay.
    """

    def links(state):
        nodes = shop.render(this, state)
        return [node.text for node in nodes if node.key.startswith("for you")]

    this = shop.make_shop(0)
    found = Counter()
    state = shop.State(shop.Page("home"), luck=0.3)
    for _ in range(2000):
        state = shop.visit(state, shop.Page("cart"))
        texts = links(state)
        assert texts == links(shop.replace(state, focus="Coupon"))
        assert len(set(texts)) == len(texts) <= 3
        found.update(texts)
    assert len(found) == len(this.products) and max(found.values()) < 1.4 * min(found.values())
    assert abs(sum(found.values()) / 2000 - 1.5) < 0.1


def test_first_page_and_a_click():
    visit = Visit()
    assert shop.observation(visit.tree) == (
        "[10] RootWebArea 'Home'\n"
        "\t[11] link 'Home'\n"
        "\t[12] link 'Cart (0)'\n"
        "\t[13] link 'Mugs'\n"
        "\t[14] link 'Lamps'\n"
        "\t[15] link 'Contact'\n"
        "\t[16] textbox 'Search' required: False\n"
        "\t[17] button 'Search'\n"
        "\t[18] StaticText 'Deals of the day'\n"
        "\t[19] combobox 'Sort by: Name' expanded: False\n"
        "\t[20] link 'Oak Lamp $30'\n"
        "\t[21] link 'Red Mug $10'\n"
    )
    assert visit.do("click", "link 'Red Mug") == (
        "New items:\n"
        "[22] link 'Back to Home'\n"
        "[23] button 'Add to cart'\n\n"
        "Deleted items:\n"
        "[21] link 'Red Mug $10'\n\n"
        "Updated items:\n"
        "[10] RootWebArea 'Red Mug'\n"
        "[18] StaticText '$10'\n"
        "[19] combobox 'Size: Small' expanded: False\n"
        "[20] link 'Blue Mug $7'"
    )


def test_size_cart_coupon_and_order():
    visit = Visit()
    visit.do("click", "link 'Red Mug")
    assert "StaticText '$14'" in visit.do("select", "combobox", "Large")
    assert visit.do("select", "combobox", "Large") == NOTHING
    added = visit.do("click", "Add to cart")
    assert "StaticText '1 x Large Red Mug'" in added and "alert 'Added to cart'" in added
    assert "link 'Cart (1)'" in added
    again = visit.do("click", "Add to cart")
    assert "StaticText '2 x Large Red Mug'" in again and "link 'Cart (2)'" in again
    assert "alert" not in again
    assert "alert 'At most 2 of each'" in visit.do("click", "Add to cart")
    assert visit.sees("Cart (2)")
    visit.do("goto", "", "http://shop/oak-lamp")
    visit.do("click", "Add to cart")
    visit.do("goto", "", "http://shop/blue-mug")
    assert visit.sees("Size: Small")  # choices are gone with the page
    assert "alert 'Your cart is full'" in visit.do("click", "Add to cart")
    assert visit.sees("Cart (3)")
    bill = visit.do("click", "link 'Cart")
    assert "link 'Red Mug Large 2 x $14'" in bill and "link 'Oak Lamp 1 x $30'" in bill
    assert "StaticText 'To pay: $58'" in bill
    assert "alert 'Coupon is required'" in visit.do("click", "Apply")
    assert "alert 'Coupon is not valid'" in visit.do("type", "textbox 'Coupon'", "SAVE3", 1)
    visit.do("type", "textbox 'Coupon'", "SAVE5", 0)
    assert "StaticText 'To pay: $53'" in visit.do("click", "Apply") and visit.sees("Coupon SAVE5")
    removed = visit.do("click", "button 'Remove'")
    assert "StaticText 'To pay: $25'" in removed
    assert "StaticText '2 x Large Red Mug'" in removed.split("Deleted items:")[1]
    paid = visit.do("click", "Checkout")
    assert "RootWebArea 'Order of $25'" in paid and "link 'Cart (0)'" in paid
    assert not visit.sees("Coupon") and not visit.sees("Oak Lamp")


def test_sorting_and_paging():
    visit = Visit()
    visit.do("click", "link 'Mugs'")
    # by name
    assert visit.sees("3 products, page 1 of 2")
    assert visit.sees("Blue Mug $7") and visit.sees("Mini Mug $20")
    assert visit.do("select", "combobox", "Name") == NOTHING  # the sort that is active
    visit.do("click", "combobox")
    assert "link 'Red Mug $10'" in visit.do("click", "menuitem 'Price'")
    assert not visit.sees("menuitem")
    page2 = visit.do("click", "Next page")
    assert "link 'Mini Mug $20'" in page2 and "link 'First page'" in page2
    assert visit.sees("Sort by: Price") and not visit.sees("Red Mug")
    assert "link 'Back to Mugs page 2 by Price'" in visit.do("click", "link 'Mini Mug")
    assert "link 'First page'" in visit.do("go_back")
    assert visit.sees("page 2 of 2") and visit.sees("Sort by: Price")


@pytest.mark.parametrize("seed", range(4))
def test_paging_reaches_every_product(seed):
    this = shop.make_shop(seed)
    assert len(this.categories) == 3
    assert all(len(this.category(name)) == 4 for name in this.categories)
    for name in this.categories:
        state = shop.State(shop.Page("category", name))
        seen = []
        tree = shop.number(shop.render(this, state), {})
        while True:
            seen += re.findall(r"link '(\w+ \w+) \$", shop.observation(tree))
            last = "First page" in shop.observation(tree)
            links = [i for i, node in tree.items() if "link" in node.text]
            paging = next(i for i in links if " page" in tree[i].text)
            state, tree, _ = shop.step(this, state, tree, f"click [{paging}]")
            if last:
                break
        assert seen == sorted(p.name for p in this.products if p.category == name)
        assert state.page == shop.Page("category", name), "the last page leads back to the first"


def test_search_suggests_and_finds():
    visit = Visit()
    typed = visit.do("type", "textbox 'Search'", "m", 0)
    assert "StaticText 'm'" in typed and "option 'Red Mug'" in typed
    assert "option 'Blue Mug'" in typed and "Oak Lamp" not in typed
    assert "textbox 'Search' focused: True required: False" in typed
    retyped = visit.do("type", "textbox 'Search'", "oa", 0)
    assert "option 'Oak Lamp'" in retyped.split("Updated items:")[1]
    assert not visit.sees("option 'Blue Mug'")
    found = visit.do("click", "button 'Search'")
    assert "RootWebArea 'Results for oa'" in found and "StaticText '1 found'" in found
    assert visit.sees("link 'Oak Lamp $30'")
    assert "StaticText 'Nothing found'" in visit.do("type", "textbox 'Search'", "sofa", 1)
    assert not visit.sees("Oak Lamp")


def test_form_is_validated():
    visit = Visit()
    visit.do("click", "link 'Contact'")
    faults = visit.do("click", "Send")
    assert "alert 'Name is required'" in faults and "alert 'Email is required'" in faults
    visit.do("click", "checkbox")
    assert not visit.sees("alert")  # messages last until the next action
    visit.do("type", "textbox 'Name'", "Ann", 0)
    assert "alert 'Email is not valid'" in visit.do("type", "textbox 'Email'", "ann", 1)
    thanks = visit.do("type", "textbox 'Email'", "ann@mail.com", 1)
    assert "alert 'Thank you, Ann'" in thanks and "alert 'Newsletter ordered'" in thanks
    assert "checked: false" in thanks and not visit.sees("'Ann'")


def test_actions_without_effect():
    visit = Visit()
    idle = [
        ("hover", "StaticText"),
        ("click", "StaticText"),
        ("click", "link 'Home'"),
        ("hover", "link 'Mugs'"),
        ("go_back",),
        ("click", "button 'Search'"),
        ("type", "button 'Search'", "mug", 0),
    ]
    assert all(visit.do(*action) == NOTHING for action in idle)
    visit.do("goto", "", "http://shop/mini-mug")
    assert visit.sees("button 'Sold out' disabled: True")
    assert visit.do("click", "Sold out") == NOTHING
    assert "tooltip 'In stock'" in visit.do("hover", "link 'Red Mug")
    assert visit.do("hover", "link 'Red Mug") == NOTHING
    assert "tooltip 'In stock'" in visit.do("hover", "StaticText").split("Deleted items:")[1]


# --------------------------------------------------------------------------------------------------
# The walks


def test_bills_are_right(records):
    """On every cart page: pieces times price, the sum less the coupon, the count in the header."""
    prices = {p.name: p.price for p in shop.make_shop(0).products}
    bills = 0
    for text in {r["state"] for r in records if r["kind"] == "cart"}:
        lines = re.findall(r"link '(\w+ \w+) (Small |Large )?(\d) x \$(\d+)'", text)
        count = sum(int(pieces) for *_, pieces, _ in lines)
        assert f"link 'Cart ({count})'" in text
        if not lines:
            continue
        for name, size, _, each in lines:
            assert int(each) == prices[name] + 4 * (size == "Large ")
        total = sum(int(pieces) * int(each) for *_, pieces, each in lines)
        coupon = re.search(r"Coupon SAVE(\d)", text)
        less = int(coupon[1] if coupon else 0)
        assert int(re.search(r"To pay: \$(\d+)", text)[1]) == max(0, total - less)
        bills += 1
    assert bills > 20


def test_everything_occurs(records):
    kinds = "home category product search cart contact order missing".split()
    assert {r["kind"] for r in records} == set(kinds)
    verbs = "click type select hover goto go_back".split()
    assert {r["prompt"].split()[1] for r in records} == set(verbs)
    new = "\n".join(r["response"].split("\n\nDeleted")[0] for r in records)
    for text in (
        "Added to cart",
        "At most 2 of each",
        "Your cart is full",
        "Coupon applied",
        "Coupon is not valid",
        "Coupon is required",
        "Name is required",
        "Email is required",
        "Email is not valid",
        "Thank you",
        "Newsletter ordered",
    ):
        assert f"alert '{text}" in new, text
    assert "tooltip 'Sold out'" in new and "tooltip 'In stock'" in new
    assert "option '" in new and "menuitem '" in new
    assert any("Order of $" in r["response"] for r in records)


def test_records_have_the_promised_form_and_size(records):
    for r in records:
        assert r["state"].endswith("\n") and re.fullmatch(r"> .+\n", r["prompt"])
        assert r["changed"] == any(read_response(r["response"])) == (r["response"] != NOTHING)
    nodes = sorted(r["state"].count("\n") for r in records)
    lengths = sorted(len(r["response"]) for r in records)
    assert 10 <= nodes[0] and nodes[-1] <= 26 and 12 <= nodes[len(nodes) // 2] <= 22
    assert lengths[len(lengths) // 2] <= 200 and lengths[-1] <= 600
    assert max(r["response"].count("\n[") for r in records) <= 16
    assert 0.1 < sum(not r["changed"] for r in records) / len(records) < 0.25
    per_page = Counter((r["unit"], r["state"]) for r in records)
    # several actions are tried on the same page
    assert sum(n >= 4 for n in per_page.values()) > 0.95 * len(per_page)


def test_same_data_for_any_hash_seed():
    code = (
        "import sys, json, hashlib; sys.path.insert(0, sys.argv[1]); import shop; "
        "records = json.dumps(list(shop.transitions(range(5), 1, 2))); "
        "print(hashlib.sha256(records.encode()).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(ROOT / "data/webnav")]
    digests = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        digests.add(run.stdout.strip())
    here = json.dumps(list(shop.transitions(range(5), 1, 2)))
    assert digests == {hashlib.sha256(here.encode()).hexdigest()}


def test_visits_do_not_depend_on_each_other(records):
    alone = list(shop.transitions([7]))
    assert alone == [r for r in records if r["unit"] == "visit 7"]
    assert list(shop.transitions([7], seed=1)) != alone
    assert alone != list(shop.transitions([7], shop_seed=1))


def test_no_leakage():
    splits = prepare.procedural(prepare.Config(sessions=90))
    pairs = {split: [(r["state"], r["prompt"]) for r in rows] for split, rows in splits.items()}
    different = set().union(*pairs.values())
    assert sum(map(len, pairs.values())) == len(different), "a (page, action) pair occurs twice"
    sessions = {split: {r["unit"] for r in rows} for split, rows in splits.items()}
    assert (len(sessions["train"]), len(sessions["val"]), len(sessions["test"])) == (70, 10, 10)
    assert not sessions["test"] & (sessions["train"] | sessions["val"])
    assert not sessions["val"] & sessions["train"]
    other = prepare.procedural(prepare.Config(sessions=9, seed=1))
    pages = {r["state"] for r in other["train"]}
    assert not pages & {r["state"] for r in splits["train"]}, "another seed is another shop"
    # pages so seldom come twice that the filter needs a test of its own
    rows = list(shop.transitions([7]))
    seen = set()
    once = prepare.without(rows + rows[:5], seen)
    assert len(once) == len({(r["state"], r["prompt"]) for r in rows}) > 20
    assert prepare.without(rows, seen) == []


# --------------------------------------------------------------------------------------------------
# The command line


def test_prepare_writes_a_world_whose_gold_answers_score_1(tmp_path):
    prepare.main(["--sessions=9", "--vocab_size=512", f"--out={tmp_path / 'world'}"])
    world = load_world(str(tmp_path / "world"))
    assert world.block_size <= 512 and world.fingerprint.startswith("webnav ")
    for split, rows in world.records.items():
        assert len(rows) > 20
        assert {"state", "prompt", "response", "kind", "changed"} <= set(rows[0])
        for i, row in enumerate(rows):
            scores = world.score_texts(split, i, [row["response"]], world.metrics)[0]
            assert set(scores.values()) == {1.0}


def test_each_webarena_form_is_read():
    rows = [prepare.read_row(row, where) for row, where in prepare.read_file(FIXTURE)]

    def response(new="None", deleted="None", updated="None"):
        return f"New items:\n{new}\n\nDeleted items:\n{deleted}\n\nUpdated items:\n{updated}"

    submit = "[31] link 'Submit'"
    assert [row["response"] for row in rows] == [
        response(
            new="[60] menuitem 'Orders'\n[61] menuitem 'Invoices'",
            updated="[15] link 'SALES' expanded: True",
        ),
        response(
            new="[23] StaticText '77'",
            updated="[21] textbox 'Id' focused: True required: False",
        ),
        NOTHING,
        response(deleted=submit, updated="[1] RootWebArea 'Hot' focused: True"),
        response(new="[33] textbox 'Title' required: True", deleted=submit),
        NOTHING,
        response(new="[70] alert 'Saved'"),
        response(deleted=submit),
    ]
    assert [row["changed"] for row in rows] == [True, True, False, True, True, False, True, True]
    ends = [
        "click [15]",
        "type [21] [77] [0]",
        "hover [22]",
        "click [32]",
        "goto [http://forum/new]",
        "scroll [down]",
        "hover [15]",
        "goto [http://forum/old]",
    ]
    for row, end in zip(rows, ends):
        assert row["prompt"].endswith("Action: " + end)
        assert "Current page:\n[1] RootWebArea" in row["prompt"]
    assert rows[3]["prompt"].startswith("You are a web browser.\n\nCurrent page:")


def test_webarena_splits(tmp_path):
    """
    By hash: whole prompts, the same ones whatever the order of the lines.

    By name: the test file stays whole.
    """

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    rows = [json.loads(line) for line in FIXTURE.read_text().splitlines()]
    many = [{**rows[0], "question": f"page {i // 2}"} for i in range(80)]
    parts = []
    for order in (many, many[::-1]):
        write("train-00000.jsonl", order[:40])
        write("latest.jsonl", order[40:])  # "latest" is not "test"
        splits = prepare.webarena(prepare.Config(source="webarena", path=str(tmp_path)))
        sizes = {split: len(part) for split, part in splits.items()}
        assert sizes == {"train": 64, "val": 8, "test": 8}
        prompts = {split: {row["prompt"] for row in part} for split, part in splits.items()}
        assert not prompts["train"] & (prompts["val"] | prompts["test"])
        assert not prompts["val"] & prompts["test"]
        parts.append(prompts)
    assert parts[0] == parts[1]
    write("test-00000.jsonl", many[:10])
    splits = prepare.webarena(prepare.Config(source="webarena", path=str(tmp_path)))
    assert [row["prompt"] for row in splits["test"]] == [row["question"] for row in many[:10]]
    known = {row["prompt"] for row in splits["train"] + splits["val"]}
    assert len(splits["val"]) and not known & {row["prompt"] for row in splits["test"]}


def test_webarena_world_is_written(tmp_path):
    options = ["--source=webarena", "--vocab_size=300"]
    prepare.main([f"--path={FIXTURE}", f"--out={tmp_path / 'world'}", *options])
    world = load_world(str(tmp_path / "world"))
    assert world.fingerprint.startswith("webnav ")
    assert sum(len(rows) for rows in world.records.values()) == 8


GOOD = json.dumps({"question": "page", "answer": NOTHING})
SORRY = json.dumps({"question": "page", "answer": f"<think>{NOTHING}</think> sorry"})


@pytest.mark.parametrize(
    "text, words",
    [
        (GOOD + "\n" + GOOD[:40], ["line 2", "cut short"]),
        (GOOD + "\n\n<html>\n", ["line 3", "JSON"]),
        (GOOD + "\n[1, 2]\n", ["line 2", "question"]),
        ("[" * 100_000, ["line 1", "JSON"]),
        (GOOD + "\n" + GOOD.replace("question", "query"), ["line 2", "question"]),
        (GOOD + "\n" + GOOD.replace("answer", "reply"), ["line 2", "answer"]),
        (GOOD.replace("page", " "), ["line 1", "question"]),
        (GOOD.replace("Updated items:", "Changed:"), ["line 1", "Updated items:", "cut short"]),
        (SORRY, ["line 1", "New items:"]),
        ("", ["empty"]),
    ],
)
def test_bad_files_get_one_sentence_and_leave_nothing(tmp_path, text, words):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(BadInput) as error:
        prepare.main(["--source=webarena", f"--path={tmp_path}", f"--out={tmp_path / 'world'}"])
    message = str(error.value)
    assert "data.jsonl" in message and "\n" not in message, message
    assert all(word in message for word in words), message
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--source=webarena"], ["--path"]),
        (["--source=webarena", "--path=/no/such"], ["/no/such", ".jsonl"]),
        (["--path=x"], ["--source=webarena"]),
        (["--source=webarean"], ["webarena"]),
        (["--sessions=3"], ["--sessions=3", "9"]),
    ],
)
def test_bad_options_get_one_sentence(argv, words):
    with pytest.raises(BadInput) as error:
        prepare.main(argv)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


def test_parquet(tmp_path, monkeypatch):
    """
    Without pyarrow: the package is named.

    With it (where it is installed): the same rows as from .jsonl, and a torn file is reported.
    """
    path = tmp_path / "rows.parquet"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        path.write_bytes(b"PAR1")
        with pytest.raises(BadInput, match="pip install pyarrow"):
            list(prepare.read_file(path))
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet  # noqa: F811

    with pytest.raises(BadInput, match="rows.parquet is not a complete parquet file"):
        list(prepare.read_file(path))
    for row, where in prepare.read_file(FIXTURE):  # a file has one form, so each row gets its own
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        [(same, _)] = prepare.read_file(path)
        assert prepare.read_row(same, where) == prepare.read_row(row, where)
