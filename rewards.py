"""
Every verifiable reward and metric: pure functions that never change their inputs.
(Only load_lpips reads files.)

An RLVR reward is not a learned judge: the response is decoded into a predicted state and compared
with the true one. Two families live here.

official_*  what the published code of RLVR-World computes, quirks included, so that our numbers
            can stand beside the paper's.
strict_*    what training uses by default: the quirks that a policy could learn to exploit are
            closed, and the gold answer gets exactly the maximum.

A response is any string. Whatever it holds, it gets a number and never an exception, in time linear
in its length (sorting aside). A broken truth, on the other hand, is our own mistake and raises.
"""

import json
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F

# --------------------------------------------------------------------------------------------------
# Text game: states and values
#
# A state is a list of objects {name, uuid, type, properties: {name: value}, contains: [names of the
# children]} with the score dict {score, gameOver, gameWon} as last element.
# A difference is {"modified": [whole objects], "removed": [uuids], "score": {...} or {}}.

# stands for a fact that a state does not have; equal to itself only
MISSING = object()


def same_value(a, b):
    """Python's == (so True == 1 == 1.0), but a tuple equals a list, as in JSON, at any depth."""
    if a == b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_value(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same_value, a, b))
    return False


def apply_difference(state, difference):
    """
    The next state: the state's objects in their order, modified ones replaced by uuid, removed ones
    dropped, new ones appended; then the score.

    Of several modified objects with one uuid the last wins, and "removed" wins over "modified".
    A non-empty score replaces the old one whole.
    Returns a new list that shares the objects with its inputs.
    Raises KeyError or TypeError if the difference is not well-formed.
    """
    removed = set(difference["removed"])
    modified = {obj["uuid"]: obj for obj in difference["modified"] if obj["uuid"] not in removed}
    *objects, score = state
    present = {obj["uuid"] for obj in objects}
    kept = [modified.get(obj["uuid"], obj) for obj in objects if obj["uuid"] not in removed]
    created = [obj for uuid, obj in modified.items() if uuid not in present]
    return kept + created + [difference.get("score") or score]


# --------------------------------------------------------------------------------------------------
# Text game, official (github.com/thuml/RLVR-World, reward_score/text_game.py, which builds on the
# ByteSized32 evaluation)

FINAL_PHRASES = (
    "The final answer is:",
    "the final answer is:",
    "The final state is:",
    "the final state is:",
    "The final game state is:",
    "the final game state is:",
)


def final_answer(answer):
    """
    The part of a raw response that should be JSON: behind the final phrase, else the last ```json
    block of >= 10 characters, else all of it.
    """
    for phrase in FINAL_PHRASES:
        if phrase in answer:
            return answer.rpartition(phrase)[2].strip()
    block = last_json_block(answer)
    return block if len(block) >= 10 else answer


def last_json_block(answer):
    """The stripped content of the last closed ```json … ``` block, or ""."""
    # one scan with find: a regular expression is cubic in runs of blanks
    block = ""
    position = 0
    while True:
        start = answer.find("```json", position)
        if start < 0:
            return block
        end = answer.find("```", start + 7)
        if end < 0:
            return block
        block = answer[start + 7 : end].strip()
        position = end + 3


def final_difference(answer):
    """
    The JSON in a raw response, of its final answer with True / False / None as in JSON; None where
    it is malformed.

    The three words are replaced inside strings too, as in the official code. JSON that is cut short
    or followed by more text is malformed; the official code guesses a repair instead, and so
    rewards broken answers.
    """
    text = final_answer(answer)
    text = text.replace("True", "true").replace("False", "false").replace("None", "null")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # malformed, an integer of thousands of digits, or [[[[… deeper than the parser goes
        return None


def official_text_game(answer, state, next_state, kind):
    """The official reward of a raw response; see official_text_game_difference."""
    return official_text_game_difference(final_difference(answer), state, next_state, kind)


def official_text_game_difference(difference, state, next_state, kind):
    """
    The official reward of a parsed difference against the true next state.

    kind "binary": 1.0 if every fact of the true state is right, else 0.0.
    kind "task_specific": 0.09·item + 0.01·score + 0.2·[both are 1] + share, in [0, 1.3]. item and
    score are the shares of right facts of the true objects and of the true score, share is the part
    of the changed facts that is right (see official_changed_share).
    Any exception that the difference provokes gives 0.0, and so does one without "modified" or
    "removed".
    """
    if kind not in ("binary", "task_specific"):
        raise ValueError(f"kind is {kind!r}, expected 'binary' or 'task_specific'")
    current, _ = official_split(state)
    truth, true_score = official_split(next_state)
    try:
        predicted, score = official_split(official_apply(state, difference))
        item = official_item_share(predicted, truth)
        right_scores = sum(score.get(key, MISSING) == value for key, value in true_score.items())
        score_share = right_scores / len(true_score)
        all_right = item == 1 and score_share == 1
        if kind == "binary":
            return float(all_right)
        share = official_changed_share(predicted, current, truth)
        return 0.09 * item + 0.01 * score_share + 0.2 * all_right + share
    except Exception:
        # no dict, a key left out, a number where a list belongs, …:
        # no way of being wrong may stop the training
        return 0.0


def official_apply(state, difference):
    """
    The official next state. Unlike apply_difference

    - it never appends NEW objects, so the true difference fails where one is created,
    - it passes over what is no object, no list or no score,
    - it leaves the score out if the difference has no "score" key.
    """
    modified = {
        obj["uuid"]: obj
        for obj in list_or_empty(difference["modified"])
        if isinstance(obj, dict) and "uuid" in obj and not isinstance(obj["uuid"], (list, dict))
    }
    removed = list_or_empty(difference["removed"])
    *objects, score = state
    predicted = [modified.get(obj["uuid"], obj) for obj in objects if obj["uuid"] not in removed]
    if "score" in difference:
        new_score = difference["score"]
        replaced = new_score and isinstance(new_score, (dict, list, str))
        predicted.append(new_score if replaced else score)
    return predicted


def list_or_empty(value):
    return value if isinstance(value, list) else []


def official_split(state):
    """
    A state as ({uuid: object}, score).

    What has no uuid is a score if it has the key "score", and nothing otherwise.
    """
    objects = {}
    score = {}
    for element in state:
        if "uuid" in element:
            objects[element["uuid"]] = element
        elif "score" in element:
            score = element
    return objects, score


def official_item_share(predicted, truth):
    """
    The share, in [0, 1], of right facts over the true objects alone.

    A missing object, "properties" or "contains" counts as one wrong fact.
    """
    right = total = 0
    for uuid, true in truth.items():
        if uuid not in predicted:
            total += 1
            continue
        guess = predicted[uuid]
        if "properties" in guess:
            facts = guess["properties"]
            right += sum(
                name in facts and same_value(facts[name], value)
                for name, value in true["properties"].items()
            )
            total += len(true["properties"])
        else:
            total += 1
        right += "contains" in guess and sorted(guess["contains"]) == sorted(true["contains"])
        total += 1
    return right / total


def official_changed_share(predicted, current, truth):
    """
    Of the facts that the truth changes, the share that is predicted right, in [0, 1]; 0.0 if there
    are none (the official term is then absent).

    Only objects present before, in truth and in the prediction take part, so created and wrongly
    dropped ones add nothing. Three quirks are kept:

    - one predicted object without "properties" makes the term absent;
    - "contains" left out counts as [];
    - a property that the truth removes counts (as wrong) only if the prediction keeps it.

    Raises KeyError for a predicted property that the object has neither before nor after: the whole
    reward is then 0.
    """
    shared = [uuid for uuid in truth if uuid in predicted]
    if not all("properties" in predicted[uuid] for uuid in shared):
        return 0.0
    outcomes = []
    for uuid in shared:
        before = current[uuid]["properties"]
        after = truth[uuid]["properties"]
        guess = predicted[uuid]["properties"]
        for name, value in after.items():
            if name not in before or not same_value(before[name], value):
                outcomes.append(name in guess and same_value(guess[name], value))
        for name in guess:
            if name not in after:
                if name not in before:
                    raise KeyError(name)
                outcomes.append(False)
        contains = sorted(truth[uuid]["contains"])
        if sorted(current[uuid]["contains"]) != contains:
            outcomes.append(sorted(predicted[uuid].get("contains", [])) == contains)
    return sum(outcomes) / len(outcomes) if outcomes else 0.0


# --------------------------------------------------------------------------------------------------
# Text game, strict


def state_facts(state):
    """
    A state as one flat dict of facts:

        {(uuid, "property", name): value, (uuid, "contains", ""): sorted names,
         ("", "score", key): value}

    Name and type of an object are no facts. Every object has a contains fact, so equal facts mean
    equal uuids. An object without "properties" or "contains" has empty ones.
    Raises ValueError if a uuid occurs twice or the score is left out, and other exceptions if the
    list is no state.
    """
    facts = {}
    *objects, score = state
    if "uuid" in score:
        raise ValueError("the last element of a state is its score dict, not an object")
    for obj in objects:
        uuid = obj["uuid"]
        if (uuid, "contains", "") in facts:
            raise ValueError(f"two objects have the uuid {uuid!r}")
        contains = obj.get("contains", [])
        # sorted() would also take the letters of a string or the keys of a dict for names
        if not isinstance(contains, (list, tuple)):
            raise TypeError(f"contains of {uuid!r} is no list")
        facts[uuid, "contains", ""] = sorted(contains)
        for name, value in obj.get("properties", {}).items():
            facts[uuid, "property", name] = value
    for key, value in score.items():
        facts["", "score", key] = value
    return facts


def strict_text_game(predicted_state, state, next_state, kind):
    """
    The strict reward of a predicted next state: objects and score dict, or None for a malformed
    answer, which is worth 0.

    kind "binary": 1.0 if the facts of prediction and truth are the same, both ways, else 0.0.
    kind "task": 0.1·right + 0.2·binary + changed, in [0, 1.3]. right is the share of right facts
    over the union of predicted and true state, where a fact that only one side has is wrong;
    changed is the share of right ones among the facts that differ from the current state in truth
    or in prediction (1 if there are none), so a change that does not happen costs as much as one
    that is missed.

    Values are compared by same_value (True == 1, as officially), contains as a multiset; name and
    type do not count. A list that is no state (two objects of one uuid, say) is worth 0.
    """
    if kind not in ("binary", "task"):
        raise ValueError(f"kind is {kind!r}, expected 'binary' or 'task'")
    current = state_facts(state)
    truth = state_facts(next_state)
    try:
        predicted = state_facts(predicted_state)
    except Exception:  # None, or anything else that is no state
        return 0.0

    facts = predicted.keys() | truth.keys()
    wrong = {fact for fact in facts if differ(predicted, truth, fact)}
    binary = 0.0 if wrong else 1.0
    if kind == "binary":
        return binary
    changed = [
        fact
        for fact in facts | current.keys()
        if differ(current, truth, fact) or differ(current, predicted, fact)
    ]
    right = 1 - len(wrong) / len(facts) if facts else 1.0
    changed_right = 1 - sum(fact in wrong for fact in changed) / len(changed) if changed else 1.0
    return 0.1 * right + 0.2 * binary + changed_right


def differ(facts, other_facts, fact):
    """Whether a fact has another value on the other side, or is there on one side only."""
    return not same_value(facts.get(fact, MISSING), other_facts.get(fact, MISSING))


# --------------------------------------------------------------------------------------------------
# Web page: the change of an accessibility tree as three lists of lines

HEADINGS = ("New items:", "Deleted items:", "Updated items:")


def multiset_f1(predicted, true):
    """
    F1 of two Counters, in [0, 1]: twice the size of the intersection by the sum of the sizes.

    Two empty ones are 1, equal ones exactly 1.
    """
    size = predicted.total() + true.total()
    return 2 * (predicted & true).total() / size if size else 1.0


def official_sections(text):
    """
    {heading: set of stripped non-empty lines below it}.

    A heading is a line that starts with one of HEADINGS, lines before the first are ignored.
    "None" is a line like any other, and so is prose after a heading.
    """
    sections = {heading: set() for heading in HEADINGS}
    items = set()
    for line in filter(str.strip, text.split("\n")):
        if line.startswith(HEADINGS):
            items = sections[next(heading for heading in HEADINGS if line.startswith(heading))]
        else:
            items.add(line.strip())
    return sections


def official_web_page_scores(answer, truth):
    """
    (precision, recall, F1) of the lines, section by section, each in [0, 1] and 0 where it has no
    denominator (reward_score/web_agent.py).
    """
    predicted = official_sections(answer)
    true = official_sections(truth)
    correct = sum(len(predicted[heading] & true[heading]) for heading in HEADINGS)
    if correct == 0:
        return 0.0, 0.0, 0.0
    precision = correct / sum(map(len, predicted.values()))
    recall = correct / sum(map(len, true.values()))
    return precision, recall, 2 * precision * recall / (precision + recall)


def official_web_page(answer, truth):
    """
    The official reward: F1 in [0, 1].

    "None" lines count as items; text before the first heading or a repeated line costs nothing.
    """
    return official_web_page_scores(answer, truth)[2]


def strict_items(text):
    """
    A Counter of (section, line) over all stripped non-empty lines: each of them is a claim.

    A section starts with the first line that equals its heading; "" is the section of what stands
    before. "None" says that a section is empty, so it is no claim where it is the section's only
    line. A heading that comes again, a heading with more text on its line and "None" beside other
    lines are claims like any other: wrong ones, unless the truth has the same.
    """
    sections = {"": []}
    lines = sections[""]
    for line in filter(None, map(str.strip, text.split("\n"))):
        if line in HEADINGS and line not in sections:
            lines = sections[line] = []
        else:
            lines.append(line)
    claims = Counter()
    for heading, lines in sections.items():
        if heading == "" or lines != ["None"]:
            claims.update((heading, line) for line in lines)
    return claims


def strict_web_page(answer, truth):
    """
    The strict reward: F1 in [0, 1] of the claims of strict_items, as multisets.

    All text but the headings and a lone "None" is a claim, so a line said more often than it is
    true, prose and text before the first heading cost precision. Two empty differences are 1.
    """
    return multiset_f1(strict_items(answer), strict_items(truth))


# --------------------------------------------------------------------------------------------------
# A user's own text


def exact_match(answer, truth):
    """1.0 if both texts are equal up to whitespace around them, else 0.0."""
    return float(answer.strip() == truth.strip())


def line_f1(answer, truth):
    """F1 in [0, 1] of the stripped non-empty lines as multisets; 1 if both texts have none."""
    predicted = Counter(filter(None, map(str.strip, answer.split("\n"))))
    true = Counter(filter(None, map(str.strip, truth.split("\n"))))
    return multiset_f1(predicted, true)


# --------------------------------------------------------------------------------------------------
# Video: metrics of frames
#
# Two tensors [N, 3, H, W] in [0, 1] -> [N] fp32. With a mask [N, 1, H, W] only the pixels under it
# count, and a frame with none has no error (and a PSNR of 100 dB). Also under autocast everything
# here is computed in fp32; the caller cuts N into chunks that fit.


def moving(truth, last, threshold=8 / 255):
    """
    Where the truth moves: truth, last [..., 3, H, W] -> bool [..., 1, H, W].

    True if any colour differs from the last frame by more than threshold.
    """
    return ((truth.float() - last.float()).abs() > threshold).any(-3, keepdim=True)


def mean_over_pixels(errors, mask):
    """errors [N, 3, H, W] -> [N], over all pixels or those under the mask."""
    if mask is None:
        return errors.mean((1, 2, 3))
    return (errors * mask).sum((1, 2, 3)) / (errors.size(1) * mask.sum((1, 2, 3))).clamp(min=1)


def mae(a, b, mask=None):
    """Mean absolute error, 0..1."""
    return mean_over_pixels((a.float() - b.float()).abs(), mask)


def mse(a, b, mask=None):
    """Mean squared error, 0..1."""
    return mean_over_pixels((a.float() - b.float()).square(), mask)


def psnr(a, b, mask=None):
    """Peak signal-to-noise ratio in dB, 10 log10(1 / max(MSE, 1e-10)): at most 100."""
    return -10 * mse(a, b, mask).clamp(min=1e-10).log10()


def window(size, device):
    """[size, size - 10]: a product with it is the Gaussian window of SSIM, where that fits."""
    place = torch.arange(size, device=device)[:, None] - torch.arange(size - 10, device=device)
    weight = torch.exp(-((place - 5) ** 2) / (2 * 1.5**2))
    weight = weight.masked_fill((place < 0) | (place > 10), 0.0)
    return weight / weight.sum(0)


def blur(x):
    """
    [..., H, W] -> [..., H - 10, W - 10]: SSIM's window, one axis after the other.

    A variance as a difference of two large means does not survive TF32 or bf16 (SSIM is then wrong
    by 0.01), so that autocast is off, and CUDA, where fp32 products may be TF32, computes in fp64.
    """
    H, W = x.shape[-2:]
    exact = x.double() if x.is_cuda else x
    with torch.autocast(x.device.type, enabled=False):
        down = window(H, x.device).T.to(exact)
        return (down @ (exact @ window(W, x.device).to(exact))).to(x.dtype)


def ssim(a, b):
    """
    Structural similarity (Wang et al. 2004), at most 1: Gaussian window of 11x11, sigma 1.5, mean
    over the places where it fits and over colours.

    Frames must have at least 11 pixels on each side; ValueError otherwise.
    """
    H, W = a.shape[2:]
    if min(H, W) < 11:
        raise ValueError(
            f"SSIM looks through a window of 11x11 pixels, and the frames have {H}x{W}"
        )
    # on a CPU a few frames at a time, which its cache holds
    size = 16 if a.device.type == "cpu" else max(1, len(a))
    return torch.cat([ssim_of_some(*pair) for pair in zip(a.split(size), b.split(size))])


def ssim_of_some(a, b):
    """ssim of as many frames as are computed at a time."""
    a = a.float()
    b = b.float()
    mean_a, mean_b, product, squares = blur(torch.stack([a, b, a * b, a * a + b * b]))
    means = mean_a * mean_b
    square_means = mean_a**2 + mean_b**2
    c1 = 0.01**2
    c2 = 0.03**2
    above = (2 * means + c1) * (2 * (product - means) + c2)
    below = (square_means + c1) * (squares - square_means + c2)
    return (above / below).mean((1, 2, 3))


# Simonyan and Zisserman 2014: the widths of the convolutions, in five blocks
# fmt: off
VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool",
         512, 512, 512, "pool", 512, 512, 512)
# fmt: on
# the convolutions whose outputs LPIPS compares: relu1_2, 2_2, 3_3, 4_3, 5_3
TAPS = (1, 3, 6, 9, 12)


class LPIPS(torch.nn.Module):
    """
    VGG16's convolutions and the five weightings of LPIPS, version 0.1.
    ("The Unreasonable Effectiveness of Deep Features", arXiv 1801.03924)
    """

    def __init__(self):
        super().__init__()
        widths = [width for width in VGG16 if width != "pool"]
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv2d(i, o, 3, padding=1) for i, o in zip([3, *widths], widths)
        )
        self.heads = torch.nn.ParameterList(torch.zeros(widths[tap]) for tap in TAPS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("spread", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))

    def features(self, x):
        """Frames [N, 3, H, W] in [0, 1] -> five feature maps of unit length at every place."""
        x = (x.float() * 2 - 1 - self.shift) / self.spread
        maps = []
        n = 0
        for layer in VGG16:
            if layer == "pool":
                x = F.max_pool2d(x, 2)
                continue
            x = F.relu(self.convolutions[n](x))
            if n in TAPS:
                maps.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
            n += 1
        return maps


def lpips(a, b, net):
    """
    Perceptual distance, 0 for equal frames; net from load_lpips.

    Gradients reach the frames, so it can be a loss. ValueError below 16x16 pixels.
    """
    if min(a.shape[2:]) < 16:
        raise ValueError(
            "LPIPS halves the frames four times and needs 16x16 pixels, "
            f"and they have {a.size(2)}x{a.size(3)}"
        )
    # a training in bf16 may use it as its loss
    with torch.autocast(a.device.type, enabled=False):
        distance = 0
        for x, y, head in zip(net.features(a), net.features(b), net.heads):
            distance = distance + ((x - y).square() * head.view(-1, 1, 1)).sum(1).mean((1, 2))
        return distance


def load_lpips(path):
    """
    An LPIPS network from the two public files in the folder `path`: vgg16-397923af.pth and vgg.pth
    (version 0.1 of the heads). `path` may also be one file with the entries of both.

    Raises ValueError with one sentence, naming file and source, for one that is missing, torn or of
    other content.
    """
    sources = {
        "vgg16-397923af.pth": "https://download.pytorch.org/models/vgg16-397923af.pth",
        "vgg.pth": "https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1/vgg.pth)",
    }
    weights = {}
    for name, source in sources.items():
        file = Path(path) if path and Path(path).is_file() else Path(path or ".") / name
        if not path or not file.is_file():
            raise ValueError(
                f"LPIPS needs the file {name} in the folder given by --lpips_weights; "
                f"it is published at {source}"
            )
        try:
            weights[name] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{file} is damaged or no weights file ({type(error).__name__}); "
                f"fetch it again from {source}"
            ) from None
    vgg = weights["vgg16-397923af.pth"]
    heads = weights["vgg.pth"]
    net = LPIPS()
    number = 0
    convolution = 0
    state = {}
    try:
        for layer in VGG16:
            if layer == "pool":
                number += 1
                continue
            for part in ("weight", "bias"):
                state[f"convolutions.{convolution}.{part}"] = vgg[f"features.{number}.{part}"]
            convolution += 1
            # torchvision numbers the ReLU behind each convolution too
            number += 2
        for n in range(len(TAPS)):
            state[f"heads.{n}"] = heads[f"lin{n}.model.1.weight"].flatten()
        net.load_state_dict(state, strict=False)
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise ValueError(
            f"the files in {path} are not VGG16's and LPIPS's ({reason}); "
            f"fetch them again from {' and '.join(sources.values())}"
        ) from None
    return net.eval().requires_grad_(False)


def frame_repeats(tokens, last):
    """
    tokens [N, F, n] of F predicted frames, last [N, n] of the frame before them -> [N, F]: 1 where
    a frame equals the one before, token by token.

    Its mean over the frames is the repetition rate, of the last frame only it is the paper's.
    """
    return (tokens == torch.cat([last[:, None], tokens[:, :-1]], dim=1)).all(-1).float()


def aggregate_frames(values, how="mean"):
    """
    values [N, F], one a predicted frame -> [N].

    how: mean; last: of the last frame; discount: mean with weights 0.9^t. ValueError for another.
    """
    if how == "mean":
        return values.mean(1)
    if how == "last":
        return values[:, -1]
    if how == "discount":
        weight = 0.9 ** torch.arange(values.size(1), device=values.device)
        return (values * weight).sum(1) / weight.sum()
    raise ValueError(f"how is {how!r}, expected 'mean', 'last' or 'discount'")


# --------------------------------------------------------------------------------------------------
# --reward on the command line


def parse_reward(text, known):
    """
    "mae+0.5*ssim" -> [(1.0, "mae"), (0.5, "ssim")]: a weighted sum of metrics.

    known: the names there are.
    Raises ValueError with one clear sentence for an unknown name or a weight that is no number.
    """
    terms = []
    for term in text.split("+"):
        weight, star, name = term.strip().rpartition("*")
        if name not in known:
            raise ValueError(f"there is no metric {name!r}; this world has {', '.join(known)}")
        try:
            terms.append((float(weight) if star else 1.0, name))
        except ValueError:
            raise ValueError(f"{weight!r} in front of {name} is not a number") from None
    return terms
