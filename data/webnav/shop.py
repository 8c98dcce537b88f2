"""
A small web shop, simulated: actions in, differences out.

Pages are accessibility trees in WebArena's form. One step reads from top to bottom of this file: a
Shop is a fixed catalogue; a State is everything that server and browser remember; render(shop,
state) lists the nodes of the page, and each node carries the states that its use leads to; act()
picks one of them; number() gives the nodes their ids; difference() compares two numbered trees.
transitions() walks and writes down what happened.

The page tells all but one thing: whatever decides the outcome of an action (cart, coupon, typed
text, where "back" leads) can be read off the tree, or belongs to the catalogue, which never
changes. The exception is what every real shop has: links "For you", drawn anew for each page that
opens, at times none. Nobody can predict them: a model that is judged by F1 does best to leave them
out, likelihood teaches it to guess.
"""

import random
import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

# --------------------------------------------------------------------------------------------------
# The catalogue: fixed for a shop, never shown as a whole. The model has to remember it.

NOUNS = ("Mug", "Lamp", "Bag", "Chair", "Rug", "Clock", "Vase", "Shirt")
ADJECTIVES = ("Red", "Blue", "Green", "Black", "White", "Oak", "Mini", "Retro")
# a shop accepts two of them
COUPONS = ("SAVE3", "SAVE5", "SAVE7", "SAVE9")
SIZES = ("Small", "Large")
# dollars more than Small
LARGE_COSTS = 4
# product links on a page
PER_PAGE = 2
# products offered below the search box
SUGGESTIONS = 2
# different things in a cart
MOST_LINES = 2
# pieces of one thing in a cart
MOST_OF_ONE = 2
# places for links "For you" on every page; each holds a product drawn at random, or none
FOR_YOU = 3


class Product(NamedTuple):
    name: str  # "Red Mug"
    category: str  # "Mugs"
    price: int  # dollars, of the smallest size
    sized: bool  # comes in SIZES
    sold_out: bool


@dataclass(frozen=True)
class Shop:
    """A catalogue, and the coupons that work with it."""

    categories: tuple
    products: tuple
    featured: tuple  # the products on the home page
    coupons: tuple
    for_you: int = FOR_YOU  # how many random links a page has at most

    def product(self, name):
        """The product of that name."""
        return next(p for p in self.products if p.name == name)

    def category(self, name):
        """The products of a category, in catalogue order."""
        return [p for p in self.products if p.category == name]

    def pages(self, category):
        """How many pages a category has."""
        return -(-len(self.category(category)) // PER_PAGE)

    def matches(self, text):
        """The products with a word that starts with text, in catalogue order."""
        if not text:
            return []
        found = []
        for p in self.products:
            if any(word.startswith(text.lower()) for word in p.name.lower().split()):
                found.append(p)
        return found

    def price(self, name, size):
        """What one piece costs in that size."""
        return self.product(name).price + LARGE_COSTS * (size == "Large")

    def addresses(self):
        """{address: Page} of all pages that have one. Any other address is not found."""
        pages = [Page("home"), Page("cart"), Page("contact")]
        for name in self.categories:
            pages += [Page("category", name, i + 1) for i in range(self.pages(name))]
        pages += [Page("product", p.name) for p in self.products]
        return {address(page): page for page in pages}


def make_shop(seed):
    """Three categories of four products each, one of them sold out; one category comes in sizes."""
    rng = random.Random(f"shop {seed}")
    nouns = rng.sample(NOUNS, 3)
    sized = rng.sample(nouns, 1)
    products = []
    for noun in nouns:
        adjectives = rng.sample(ADJECTIVES, 4)
        prices = rng.sample(range(6, 36), len(adjectives))
        sold_out = rng.choice(adjectives)
        for a, price in zip(adjectives, prices):
            name = f"{a} {noun}"
            products.append(Product(name, noun + "s", price, noun in sized, a == sold_out))
    featured = []
    for noun in nouns[:PER_PAGE]:
        featured.append(rng.choice([p.name for p in products if p.category == noun + "s"]))
    categories = tuple(noun + "s" for noun in nouns)
    coupons = tuple(sorted(rng.sample(COUPONS, 2)))
    return Shop(categories, tuple(products), tuple(featured), coupons)


# --------------------------------------------------------------------------------------------------
# The state: all that server and browser remember


class Page(NamedTuple):
    kind: str  # home, category, product, search, cart, contact, order, missing
    name: str = ""  # the category, the product, the searched text or the sum that was paid
    number: int = 1  # category: which page of it
    order: str = "Name"  # home, category, search: sorted by "Name" or by "Price"


class Line(NamedTuple):
    product: str
    size: str  # "" if the product has no sizes
    pieces: int

    @property
    def label(self):
        return f"{self.size} {self.product}".strip()


@dataclass(frozen=True)
class State:
    page: Page
    origin: Page = None  # a product page: the page it was opened from, where "back" leads
    cart: tuple = ()  # of Line
    coupon: str = ""  # the coupon in force

    # gone with the next page
    typed: dict = field(default_factory=dict)  # {text box: its text}
    focus: str = ""  # the text box that has the focus
    size: str = "Small"  # the size chosen on a product page
    newsletter: bool = False  # the box ticked on the contact page

    # what the random links of this page are drawn with; it shows nowhere
    luck: float = 0.0

    # gone with the next action
    opened: str = ""  # key of the node that shows its options, suggestions or tooltip
    messages: tuple = ()  # alerts


def settled(state):
    """Where every action starts from: what had popped up is gone."""
    return replace(state, opened="", messages=())


def visit(state, page):
    """
    The state after opening a page.

    Cart and coupon stay, what was typed or chosen on the old page is gone.
    Only product pages enter the browser's history (the shop replaces the entries of all others), so
    "back" leads from a product to the page before it, which that product page names, and elsewhere
    nowhere.
    """
    origin = None
    if page.kind == "product":
        origin = state.origin if state.page.kind == "product" else state.page
    luck = random.Random(f"{state.luck} {page}").random()
    return State(page, origin, state.cart, state.coupon, luck=luck)


def add_to_cart(shop, state):
    """The state after "Add to cart" on a product page: one piece more, or a message why not."""
    product = shop.product(state.page.name)
    line = Line(product.name, state.size if product.sized else "", 1)
    lines = {old.label: old for old in state.cart}
    if line.label in lines:
        line = line._replace(pieces=lines[line.label].pieces + 1)
    if line.pieces > MOST_OF_ONE:
        return replace(state, messages=(f"At most {MOST_OF_ONE} of each",))
    if line.label not in lines and len(lines) == MOST_LINES:
        return replace(state, messages=("Your cart is full",))
    lines[line.label] = line
    return replace(state, cart=tuple(lines.values()), messages=("Added to cart",))


def to_pay(shop, state):
    """The sum of the cart less the coupon ("SAVE5" is 5 dollars), never below 0."""
    total = sum(line.pieces * shop.price(line.product, line.size) for line in state.cart)
    return max(0, total - int(state.coupon[len("SAVE") :] or 0))


def apply_coupon(shop, state):
    """
    The state after "Apply": the coupon typed replaces the one in force if the shop knows it.

    The text box is emptied.
    """
    code = state.typed.get("Coupon", "")
    typed = {name: text for name, text in state.typed.items() if name != "Coupon"}
    now = replace(state, typed=typed)
    if code in shop.coupons:
        return replace(now, coupon=code, messages=("Coupon applied",))
    if code:
        return replace(now, messages=("Coupon is not valid",))
    return replace(now, messages=("Coupon is required",))


def send_form(state):
    """The state after "Send": a message for each fault, or thanks and an empty form."""
    faults = [f"{name} is required" for name in ("Name", "Email") if name not in state.typed]
    if "Email" in state.typed and "@" not in state.typed["Email"]:
        faults.append("Email is not valid")
    if faults:
        return replace(state, messages=tuple(faults))
    messages = [f"Thank you, {state.typed['Name']}"]
    if state.newsletter:
        messages.append("Newsletter ordered")
    return replace(visit(state, state.page), messages=tuple(messages))


# --------------------------------------------------------------------------------------------------
# The pages: what they show, and where each node leads


@dataclass(frozen=True)
class Node:
    """
    One line of the tree.

    A node whose key was on the page before is the same node: it keeps its id, whatever its text is
    now.
    """

    key: str
    depth: int
    text: str  # the line without its id, such as "link 'Home'"
    click: State = None  # the state that a click leads to; None: the click does nothing
    hover: State = None
    options: dict = field(default_factory=dict)  # a combobox: {option: state}
    box: str = ""  # a text box: its name in State.typed
    enter: str = ""  # a text box: the key of the button that the enter key presses


def title(page):
    """The name of a page, as the tree's root shows it."""
    names = {
        "home": "Home",
        "cart": "Cart",
        "contact": "Contact",
        "missing": "Not found",
        "search": f"Results for {page.name}",
        "order": f"Order of ${page.name}",
    }
    return names.get(page.kind, page.name)


def back_title(page):
    """The name of a page with all that is needed to find it again."""
    text = title(page)
    if page.number > 1:
        text += f" page {page.number}"
    if page.order != "Name":
        text += f" by {page.order}"
    return text


def address(page):
    """The address of a page that has one: http://shop/mugs?page=2"""
    path = {"home": ""}.get(page.kind, (page.name or page.kind).lower().replace(" ", "-"))
    return f"http://shop/{path}" + (f"?page={page.number}" if page.number > 1 else "")


def render(shop, state):
    """All nodes of the page, in document order."""
    now = settled(state)
    bodies = {
        "home": home_page,
        "category": category_page,
        "product": product_page,
        "search": search_page,
        "cart": cart_page,
        "contact": contact_page,
        "order": order_page,
        "missing": missing_page,
    }
    nodes = [Node("root", 0, f"RootWebArea '{title(state.page)}'")]
    nodes += header(shop, state, now)
    nodes += bodies[state.page.kind](shop, state, now)
    chance = random.Random(state.luck)
    for i, p in enumerate(chance.sample(shop.products, shop.for_you)):
        if chance.random() < 0.5:
            click = visit(now, Page("product", p.name))
            nodes.append(Node(f"for you {i}", 1, f"link 'For you: {p.name}'", click=click))
    for i, text in enumerate(state.messages):
        nodes.append(Node(f"message {i}", 1, f"alert '{text}'"))
    return nodes


def header(shop, state, now):
    """What all pages share: navigation, the cart, the search box with its suggestions."""
    pieces = sum(line.pieces for line in now.cart)
    nodes = [
        Node("header home", 1, "link 'Home'", click=visit(now, Page("home"))),
        Node("header cart", 1, f"link 'Cart ({pieces})'", click=visit(now, Page("cart"))),
    ]
    for line in now.cart:
        text = f"StaticText '{line.pieces} x {line.label}'"
        nodes.append(Node(f"header line {line.label}", 2, text))
    if now.coupon:
        nodes.append(Node("header coupon", 2, f"StaticText 'Coupon {now.coupon}'"))
    for name in shop.categories:
        click = visit(now, Page("category", name))
        nodes.append(Node(f"header {name}", 1, f"link '{name}'", click=click))
    nodes.append(Node("header contact", 1, "link 'Contact'", click=visit(now, Page("contact"))))
    nodes += text_box(now, "Search", enter="header search", required=False)
    query = now.typed.get("Search", "")
    suggested = shop.matches(query)[:SUGGESTIONS] if state.opened == "box Search" else []
    for i, p in enumerate(suggested):
        click = visit(now, Page("product", p.name))
        nodes.append(Node(f"suggestion {i}", 2, f"option '{p.name}'", click=click))
    click = visit(now, Page("search", query)) if query else None
    nodes.append(Node("header search", 1, "button 'Search'", click=click))
    return nodes


def text_box(now, name, enter, required):
    """A text box and, below it, what was typed."""
    key = f"box {name}"
    focused = " focused: True" if now.focus == name else ""
    text = f"textbox '{name}'{focused} required: {required}"
    click = replace(now, focus=name, opened=key)
    nodes = [Node(key, 1, text, click=click, box=name, enter=enter)]
    if name in now.typed:
        nodes.append(Node(f"typed {name}", 2, f"StaticText '{now.typed[name]}'"))
    return nodes


def menu(state, now, name, chosen, states):
    """
    A combobox that shows the option in force; a click opens it, then the options follow.

    states: {option: state after choosing it}.
    A page has one menu at most, so it is the same node on all pages that have one.
    """
    states = {**states, chosen: now}
    expanded = state.opened == "menu"
    text = f"combobox '{name}: {chosen}' expanded: {expanded}"
    click = now if expanded else replace(now, opened="menu")
    nodes = [Node("menu", 1, text, click=click, options=states)]
    if expanded:
        for i, (option, after) in enumerate(states.items()):
            selected = " selected: True" if option == chosen else ""
            nodes.append(Node(f"menu {i}", 2, f"menuitem '{option}'{selected}", click=after))
    return nodes


def status(text):
    """The line of text that each page has; the same node everywhere."""
    return [Node("status", 1, f"StaticText '{text}'")]


def main_button(text, click):
    """The button that a page is about; the same node on all pages that have one."""
    disabled = "" if click else " disabled: True"
    return [Node("button", 1, f"button '{text}'{disabled}", click=click)]


def product_link(shop, state, now, i, name, price):
    """
    The i-th link to a product.

    These links persist from page to page, their texts change. The mouse over one tells what is in
    stock.
    """
    key = f"product {i}"
    click = visit(now, Page("product", name))
    hover = replace(now, opened=key)
    nodes = [Node(key, 1, f"link '{name} {price}'", click=click, hover=hover)]
    if state.opened == key:
        stock = "Sold out" if shop.product(name).sold_out else "In stock"
        nodes.append(Node("tooltip", 2, f"tooltip '{stock}'"))
    return nodes


def listing(shop, state, now, text, products):
    """The home, category and search pages: a line of text, a menu that sorts, some products."""
    page = state.page
    sorts = {o: visit(now, page._replace(number=1, order=o)) for o in ("Name", "Price")}
    nodes = status(text) + menu(state, now, "Sort by", page.order, sorts)
    if page.order == "Price":
        products = sorted(products, key=lambda p: (p.price, p.name))
    else:
        products = sorted(products, key=lambda p: p.name)
    first = (page.number - 1) * PER_PAGE
    for i, p in enumerate(products[first : first + PER_PAGE]):
        nodes += product_link(shop, state, now, i, p.name, f"${p.price}")
    return nodes


def home_page(shop, state, now):
    featured = [shop.product(name) for name in shop.featured]
    return listing(shop, state, now, "Deals of the day", featured)


def search_page(shop, state, now):
    found = shop.matches(state.page.name)
    return listing(shop, state, now, f"{len(found) or 'Nothing'} found", found)


def category_page(shop, state, now):
    page = state.page
    products = shop.category(state.page.name)
    pages = shop.pages(state.page.name)
    text = f"{len(products)} products, page {page.number} of {pages}"
    nodes = listing(shop, state, now, text, products)
    which = "Next" if page.number < pages else "First"
    following = page._replace(number=page.number % pages + 1)
    return nodes + [Node("paging", 1, f"link '{which} page'", click=visit(now, following))]


def product_page(shop, state, now):
    this = shop.product(state.page.name)
    family = shop.category(this.category)
    sibling = family[(family.index(this) + 1) % len(family)]
    nodes = []
    if state.origin:
        text = f"link 'Back to {back_title(state.origin)}'"
        nodes.append(Node("back", 1, text, click=visit(now, state.origin)))
    nodes += status(f"${shop.price(this.name, state.size if this.sized else '')}")
    if this.sized:
        sizes = {size: replace(now, size=size) for size in SIZES}
        nodes += menu(state, now, "Size", state.size, sizes)
    if this.sold_out:
        nodes += main_button("Sold out", None)
    else:
        nodes += main_button("Add to cart", add_to_cart(shop, now))
    return nodes + product_link(shop, state, now, 0, sibling.name, f"${sibling.price}")


def cart_page(shop, state, now):
    if not state.cart:
        return status("Your cart is empty")
    nodes = status(f"To pay: ${to_pay(shop, state)}")
    for i, line in enumerate(state.cart):
        price = f"{line.size} {line.pieces} x ${shop.price(line.product, line.size)}".strip()
        nodes += product_link(shop, state, now, i, line.product, price)
        click = replace(now, cart=state.cart[:i] + state.cart[i + 1 :])
        nodes.append(Node(f"remove {i}", 1, "button 'Remove'", click=click))
    nodes += text_box(now, "Coupon", enter="apply", required=False)
    nodes.append(Node("apply", 1, "button 'Apply'", click=apply_coupon(shop, now)))
    paid = Page("order", str(to_pay(shop, state)))
    return nodes + main_button("Checkout", visit(replace(now, cart=(), coupon=""), paid))


def contact_page(shop, state, now):
    nodes = status("Write to us")
    nodes += text_box(now, "Name", enter="button", required=True)
    nodes += text_box(now, "Email", enter="button", required=True)
    text = f"checkbox 'Newsletter' checked: {str(now.newsletter).lower()}"
    click = replace(now, newsletter=not now.newsletter)
    nodes.append(Node("newsletter", 1, text, click=click))
    return nodes + main_button("Send", send_form(now))


def order_page(shop, state, now):
    return status("Thank you for your order")


def missing_page(shop, state, now):
    return status("This page does not exist")


# --------------------------------------------------------------------------------------------------
# A step: trees with ids, actions, differences


def number(nodes, old, first=1):
    """
    {id: Node} in document order.

    Nodes that are on the old page keep their ids; new ones get the next free numbers, counted from
    the largest id of the old tree (from `first` if there is none).
    """
    ids = {node.key: i for i, node in old.items()}
    following = max(old, default=first - 1) + 1
    tree = {}
    for node in nodes:
        if node.key not in ids:
            ids[node.key] = following
            following += 1
        tree[ids[node.key]] = node
    return tree


def observation(tree):
    """The tree as text: one node a line, indented by tabs."""
    return "".join("\t" * node.depth + f"[{i}] {node.text}\n" for i, node in tree.items())


def type_text(shop, now, node, text, enter):
    """
    The state after typing into a text box; the text replaces what was there.

    Other nodes take no text.
    """
    if not node.box:
        return now
    typed = {box: old for box, old in now.typed.items() if box != node.box}
    if text:
        typed[node.box] = text
    now = replace(now, focus=node.box, opened=node.key, typed=typed)
    button = next(other for other in render(shop, now) if other.key == node.enter)
    if enter and button.click:
        return button.click
    return now


def act(shop, state, tree, action):
    """
    The state after an action in WebArena's syntax.

    Such as "click [14]" or "type [12] [red mug] [1]" (1: press enter). ValueError for other verbs.
    """
    now = settled(state)
    verb = action.split()[0]
    arguments = re.findall(r"\[(.*?)\]", action)
    if verb == "goto":
        return visit(now, shop.addresses().get(arguments[0], Page("missing")))
    if verb == "go_back":
        return visit(now, state.origin) if state.origin else now
    # an id that is not on the page: nothing happens
    node = tree.get(int(arguments[0]), Node("none", 0, ""))
    if verb == "click":
        return node.click or now
    if verb == "hover":
        return node.hover or now
    if verb == "select":
        return node.options.get(arguments[1], now)
    if verb == "type":
        return type_text(shop, now, node, arguments[1], enter=arguments[2] == "1")
    raise ValueError(f"no such action: {action}")


def difference(old, new):
    """
    What changed between two trees, as the response text.

    New, deleted and updated items, one a line, "None" where there are none.
    """
    created = [i for i in new if i not in old]
    deleted = [i for i in old if i not in new]
    updated = [i for i in new if i in old and old[i].text != new[i].text]
    sections = []
    for heading, tree, ids in (
        ("New items:", new, created),
        ("Deleted items:", old, deleted),
        ("Updated items:", new, updated),
    ):
        lines = [f"[{i}] {tree[i].text}" for i in ids]
        sections.append("\n".join([heading, *(lines or ["None"])]))
    return "\n\n".join(sections)


def read_page(text):
    """The text of a page -> {id: what stands behind it}."""
    return dict(re.findall(r"\[(\d+)\] (.+)", text))


def apply_difference(page, response):
    """
    The page {id: text} that a response leads to. Anybody may have written it: what is no item of a
    section says nothing.
    """
    page = dict(page)
    heading = ""
    for line in map(str.strip, response.split("\n")):
        item = re.fullmatch(r"\[(\d+)\] (.+)", line)
        if not item:
            heading = line or heading
        elif heading == "Deleted items:":
            page.pop(item[1], None)
        elif heading in ("New items:", "Updated items:"):
            page[item[1]] = item[2]
    return page


def progress(page, product):
    """(Whether a product is in the cart, how near to that a page {id: text} is, from 0 to 4)."""
    ladder = (
        rf"StaticText '\d+ x (\w+ )?{product}'",  # in the cart
        rf"RootWebArea '{product}'",  # its page
        rf"(link|option) '(For you: )?{product}\b",  # what leads there
        rf"RootWebArea '{product.split()[-1]}s'",  # its category
    )
    text = "\n".join(page.values())
    reached = [4 - n for n, line in enumerate(ladder) if re.search(f"^{line}", text, re.M)]
    return 4 in reached, max(reached, default=0)


def step(shop, state, tree, action):
    """One transition: (next state, next tree, response text)."""
    after = act(shop, state, tree, action)
    new = number(render(shop, after), tree)
    return after, new, difference(tree, new)


# --------------------------------------------------------------------------------------------------
# Walks

NOTHING = difference({}, {})  # the response to an action without effect
NAMES = ("Ann", "Bob", "Eve", "Max", "Zoe")


def random_text(shop, box, rng):
    """Something to type into a text box: mostly sensible, sometimes wrong."""
    if box == "Search":
        word = rng.choice(rng.choice(shop.products).name.lower().split())
        return rng.choice((word, word, word[:3], word[:2], word[:1], "sofa"))
    if box == "Coupon":
        return rng.choice((*shop.coupons, *COUPONS, "FREE"))
    name = rng.choice(NAMES)
    if box == "Name":
        return name
    return name.lower() + rng.choice(("@mail.com", "@mail.com", "@web.org", ""))


def random_address(shop, rng):
    """An address: the kind of page is drawn, then one of that kind; one in six does not exist."""
    kind = rng.choice(("home", "cart", "contact", "category", "product", "missing"))
    known = [a for a, page in shop.addresses().items() if page.kind == kind]
    return rng.choice(known or ["http://shop/sale", "http://shop/about"])


def random_action(shop, tree, rng):
    """
    An action on the page.

    What the page itself offers is tried more often than the header, plain text now and then.
    """

    def pick(ids, weight):
        return rng.choices(ids, [weight(tree[i]) for i in ids])[0]

    def interest(node):
        if node.click is None or node.box:  # text boxes are for typing
            return 0.5
        if node.key.startswith("header"):
            return 1
        return 8 if node.key == "button" else 4

    boxes = [i for i, node in tree.items() if node.box]
    menus = [i for i, node in tree.items() if node.options]
    back = any(node.key == "back" for node in tree.values())
    verbs = ("click", "type", "select", "hover", "goto", "go_back")
    verb = rng.choices(verbs, (50, 22, 8 if menus else 0, 10, 6, 6 if back else 2))[0]
    if verb == "click":
        return f"click [{pick(list(tree), interest)}]"
    if verb == "type":
        i = pick(boxes, lambda node: 1 if node.box == "Search" else 4)
        text = random_text(shop, tree[i].box, rng)
        enter = rng.choices((0, 1), (2, 1))[0]
        return f"type [{i}] [{text}] [{enter}]"
    if verb == "select":
        i = rng.choice(menus)
        return f"select [{i}] [{rng.choice(list(tree[i].options))}]"
    if verb == "hover":
        return f"hover [{pick(list(tree), lambda node: 4 if node.hover else 0.5)}]"
    return f"goto [{random_address(shop, rng)}]" if verb == "goto" else "go_back"


def distinct_actions(shop, tree, rng, count):
    """Up to `count` different actions on the page."""
    actions = {}
    for _ in range(10 * count):
        actions[random_action(shop, tree, rng)] = True
        if len(actions) == count:
            break
    return list(actions)


def first_state(shop, rng):
    """Where a visit starts: any page, with the cart and the coupon of an earlier visit."""
    state = State(Page("home"), coupon=rng.choice((*shop.coupons, *[""] * 4)), luck=rng.random())
    in_stock = [p for p in shop.products if not p.sold_out]
    for p in rng.choices(in_stock, k=rng.choice((0, 0, 1, 2, 3))):
        state = replace(state, page=Page("product", p.name), size=rng.choice(SIZES))
        state = add_to_cart(shop, state)
    page = shop.addresses().get(random_address(shop, rng), Page("missing"))
    state = visit(replace(state, page=Page("home")), page)
    if state.page.kind != "contact":
        return state
    # the browser may know what to fill in
    typed = {}
    for box in ("Name", "Email"):
        if rng.random() < 0.7:
            typed[box] = random_text(shop, box, rng)
    return replace(state, typed=typed)


def transitions(sessions, seed=0, shop_seed=0, steps=8, actions=4, most_items=16):
    """
    Records of random walks through one shop, as prepare.py writes them; the "unit" is the visit.

    sessions: the numbers of the visits (each has its own random numbers, so other visits do not
    change it).
    steps: pages seen in a visit.
    actions: different actions tried on each page, before the walk goes on with one that had an
    effect.
    most_items: transitions that change more lines than that are left out, about one in a hundred,
    so that the longest response does not set the cost of sampling all others.
    """
    shop = make_shop(shop_seed)
    for session in sessions:
        rng = random.Random(f"visit {seed} {session}")
        state = first_state(shop, rng)
        tree = number(render(shop, state), {}, first=1)
        for _ in range(steps):
            ways = []
            for action in distinct_actions(shop, tree, rng, actions):
                after, new, response = step(shop, state, tree, action)
                if response.count("\n[") > most_items:
                    continue
                yield {
                    "unit": f"visit {session}",
                    "state": observation(tree),
                    "prompt": f"> {action}\n",
                    "response": response,
                    "kind": state.page.kind,
                    "changed": response != NOTHING,
                }
                # forms would never be filled if the walk did not like to stay on a page
                if response != NOTHING:
                    ways += [(after, new)] * (4 if after.page == state.page else 1)
            state, tree = rng.choice(ways) if ways else (state, tree)
