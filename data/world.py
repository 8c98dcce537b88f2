"""
The interface between domains and everything else. A World is all that training, evaluation and use
know of a domain; a task.py is all that a World knows of what is particular to one.

    records on disk -> world.batch -> Batch -> model -> sampled ids -> world.score -> rewards

There are two kinds of worlds, TextWorld (data/text.py) and VideoWorld (data/video.py). What they
have in common stands here, and so does the only reader of meta.json, the file that says what a
prepared folder is.
"""

import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from common import OUT, SMOKE, BadInput, one_of
from rewards import parse_reward

SPLITS = ("train", "val", "test")
HERE = Path(__file__).resolve().parent  # data/, with a folder for each domain

# ------------------------------------------------------------------------------------------------
# What a domain's task.py says of it


@dataclass
class Metric:
    """A function that compares a prediction with the truth, and how to read what it returns."""

    function: Callable
    better: int = 1  # 1: more is better; -1: less is
    scale: float = 100  # tables show it times this
    worst: float = 0.0  # no value is worse; that of an answer that is malformed or never ends
    by_change: bool = False  # tables also show it for what changes, what does not, and over kinds


# What may become one token of a text: '#12' is one piece, digits stand alone (so that numbers are
# spelled the same way everywhere), words keep their leading blank.
WORDS = r"#\d+|\d| ?[!~@]?[^\W\d_][^\W\d]*| ?[^\s\w#]+|\s+|."


def truth_of_text(record, shared):
    """The text under "truth", or else the response. Raises TypeError for what is no text."""
    truth = record.get("truth", record["response"])
    if not isinstance(truth, str):
        raise TypeError(f"'truth' is {truth!r} and no text")
    return truth


@dataclass
class TextTask:
    """What is particular to a text domain. A metric is called as function(prediction, truth)."""

    metrics: dict  # {name: Metric}; the first one is what curves and kinds are shown in
    reward: str  # the default reward, a weighted sum of metrics: "strict_f1+0.1*exact_match"
    token_pattern: str = WORDS
    nothing_changes: str = ""  # the answer that says so, for the table's row "copy"
    # (record, what prepare.py shared among records) -> what metrics compare a prediction with
    truth: Callable = truth_of_text
    # (answer, truth) -> prediction, what metrics see of an answer; ValueError: it is malformed
    read: Callable = lambda answer, truth: answer
    # (answer, truth) -> what other answers would be compared with if this one were right; None: the
    # answer itself where the truth is a text, and else answers agree only if they are equal
    as_truth: Callable = None
    # where objects have uuids: (texts, permutation) -> the texts with other uuids, and how many
    # uuids a state's text has; it is a symmetry of the domain that augments its data
    permute: Callable = None
    count_ids: Callable = None


@dataclass
class VideoTask:
    """
    What is particular to a video domain: its default reward and metrics beyond those of any video,
    called as function(predicted [B, G, F, 3, H, W], true [B, F, 3, H, W], state [B, F, S] or None)
    -> [B, G, F], where state is what the episodes recorded beside the frames.
    """

    reward: str = "mae+0.5*ssim"
    metrics: dict = field(default_factory=dict)  # {name: Metric}


def load_task(domain, path="", kind=None):
    """
    The TASK of data/<domain>/task.py or of a file that the user names; kind: TextTask or VideoTask,
    where it must be one of them. Code is never looked for where a record or meta.json points.

    Raises BadInput if there is none, or if the file is not of this domain (named as its folder is).
    """
    file = HERE / domain / "task.py"
    if path:
        file = Path(path)
        if not file.is_file():
            raise BadInput(f"--task: there is no {path}")
        if file.resolve().parent.name != domain:
            there = file.resolve().parent.name
            raise BadInput(f"--task={path} is the task of {there!r}, the world is of {domain!r}")
    if not re.fullmatch(r"\w+", domain) or file.suffix != ".py" or not file.is_file():
        raise BadInput(
            f"there is no {file}; a world of the domain {domain!r} needs its task: "
            f"--task=FOLDER/{domain}/task.py"
        )
    spec = importlib.util.spec_from_file_location(f"task_of_{domain}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "TASK", None), kind or (TextTask, VideoTask)):
        wanted = kind.__name__ if kind else "TextTask or VideoTask"
        raise BadInput(f"{file} defines no TASK that is a {wanted}, which is needed here")
    return module.TASK


# ------------------------------------------------------------------------------------------------
# Folders


def home(name):
    """
    The folder of a world, given as a path (with a slash) or by name: data/<name>, and elsewhere
    under SMOKE=1, where no world of value lies.
    """
    if not re.fullmatch(r"\w[\w.-]*", str(name)):
        return Path(name)
    return Path(OUT, "data", name).resolve() if SMOKE else HERE / name


def how_to_make(name):
    """The command that makes the world called name, as far as its name tells."""
    name = Path(name).name
    for domain in (name, name.split("-")[0]):
        if (HERE / domain / "prepare.py").is_file():
            return f"python data/{domain}/prepare.py"
        if (HERE.parent / "runs" / f"{domain}.sh").is_file():
            return f"the first command of runs/{domain}.sh"
    return "the prepare.py of its domain; for your own data: python data/own/prepare.py --help"


def read_meta(name):
    """
    (folder, meta, command that makes it) of the world in the folder `name`, or called so.

    Raises BadInput if there is none, or if meta.json is damaged or of another version.
    """
    folder = home(name)
    if not (folder / "meta.json").is_file() and (Path(name) / "meta.json").is_file():
        folder = Path(name)
    make = how_to_make(name)
    try:
        meta = json.loads((folder / "meta.json").read_text())
        one_of("form", meta["form"], ("text", "video"))
        if not isinstance(meta["domain"], str):
            raise ValueError("the domain is no text")
    except OSError:
        raise BadInput(
            f"there is no world in {folder} (no meta.json); make it with {make}"
        ) from None
    except (ValueError, KeyError, TypeError, BadInput) as error:
        raise BadInput(
            f"{folder / 'meta.json'} is damaged or of another version ({error}); make the world "
            f"again with {make}"
        ) from None
    return folder, meta, make


def claim(folder, form, names):
    """
    The folder of a world, "text" or "video", that is about to be written. Raises BadInput if it
    holds a world of the other form, or files called as ours are that no prepare.py of ours has
    written: nothing of the user's is replaced.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / "meta.json").read_text())
        there_is = meta["form"] if isinstance(meta["domain"], str) else ""
    except (OSError, ValueError, KeyError, TypeError):
        there_is = ""
    there = [name for name in names if (folder / name).exists()]
    elsewhere = "name another folder with --out, and nothing of yours is replaced"
    if there_is and there_is != form:
        raise BadInput(f"{folder} holds a {there_is} world, this one is {form}; {elsewhere}")
    if there and not there_is:
        found = ", ".join(there)
        raise BadInput(f"{folder} holds {found}, which no prepare.py has written; {elsewhere}")
    try:
        if (folder.exists() and not folder.is_dir()) or not folder.name:
            raise NotADirectoryError(20, "it is a file or no folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write to {folder} ({error.strerror}): --out") from None
    return folder


# ------------------------------------------------------------------------------------------------
# Batches and worlds


@dataclass
class Batch:
    """
    Transitions as ids, and what their world demands of answers. Padding is on the right; a response
    holds its end token.
    """

    prompt: torch.Tensor  # [B, P]
    prompt_len: torch.Tensor  # [B]
    response: torch.Tensor  # [B, R] the true answers
    response_mask: torch.Tensor  # [B, R] True on the tokens that are predicted
    response_len: int  # the longest answer that may be sampled
    eos_id: int | None = None  # ends an answer; None: all have response_len tokens
    allowed_ids: torch.Tensor | None = None  # [response_len, V] bool: what may stand where
    forced: torch.Tensor | None = None  # [B, R] or [B, G, R]: ids that are given; -1: chosen
    split: str = ""
    indices: list = field(default_factory=list)  # the records, for score() and decode()
    # text: by which permutation of uuids each answer becomes the record's own, or None
    undo: list | None = None

    def rows(self, part):
        """The Batch of some of its rows (a slice)."""
        names = ("prompt", "prompt_len", "response", "response_mask", "forced", "indices", "undo")
        cut = {n: getattr(self, n)[part] for n in names if getattr(self, n) is not None}
        return replace(self, **cut)


class World:
    """
    What every world has:

    name, folder, task, reward (the default), metrics {name: Metric}, variants (further names that a
    reward may use), vocab_size, block_size (the longest sequence), eos_id, response_len,
    records {split: list}, fingerprint (what a model's weights depend on), device.

    draw(split, n, rng, changed_fraction, power) -> indices of n records, drawn with replacement
    prompt_length(split, index) -> tokens
    batch(split, indices, permute_ids, rng) -> Batch
    candidates(states, actions) -> Batch for imagine(): text only, B states with G actions each
    mle_batches(n, rng, ...) -> [(prompt, prompt_len, response [B, G, R], weight [B, G, R])]
    decode(batch, tokens [B, G, R]) -> text: B lists of G texts; video: frames [B, G, F, 3, H, W]
    score(batch, tokens [B, G, R], names) -> {name: [B, G] fp32}: decodes, and scores every metric
    agreement(batch, tokens [B, G, R], terms) -> [B, G] fp32: each answer's mean reward against the
        other G - 1, each taken as the truth; -inf for one that is malformed or has not ended. The
        vote's winner has the largest.
    median(batch, tokens [B, G, R], names) -> {name: [B, 1]} of the answers' median, or None where
        there is none
    references(split, indices) -> the table's rows that need no model, [(label, {metric: [N, 1]})]
    columns(split, indices) -> the table's columns, [(heading, metric, weight [N])]: each is a
        weighted mean over the records
    headline -> the metric by which rows are compared in a sentence
    units(split, indices) -> [N] names of what is independent of each other (games, visits,
        episodes), over which intervals are taken
    """

    variants = ()
    of_frames = ()  # the metrics that each of several predicted frames has
    allowed_ids = None  # [response_len, V] bool: which ids may stand where in a response
    foreign_options = ()  # training options that say nothing of such a world
    kinds = False  # whether records are of several kinds, such as games
    vocabulary = None  # text: what bpe.json holds
    horizon = 1

    def in_commands(self):
        """How a command names this world: by its name, or by its folder where that is elsewhere."""
        at_home = home(self.name) == self.folder
        return shlex.quote(self.name if at_home else str(self.folder))

    def terms(self, text, by_frame=False):
        """
        'mae+0.5*ssim' -> [(1.0, 'mae'), (0.5, 'ssim')]. Raises BadInput for a metric that the world
        does not have or, by_frame, one that each of several predicted frames does not have.
        """
        try:
            terms = parse_reward(text, (*self.metrics, *self.variants))
        except ValueError as error:
            hint = "; lpips needs weights: --lpips_weights=FOLDER" if "lpips" in text else ""
            raise BadInput(f"the reward {text!r}: {error}{hint}") from None
        if by_frame and not all(name in self.of_frames for _, name in terms):
            there_are = ", ".join(self.of_frames) or "none in this world"
            raise BadInput(
                f"the reward {text!r}: --supervision=process needs metrics that each of several "
                f"predicted frames has ({there_are})"
            )
        return terms

    def refuse_foreign_options(self, config):
        """Raises BadInput for an option that was set but says nothing of such a world."""
        for name in self.foreign_options:
            if getattr(config, name, None) != getattr(type(config), name, None):
                raise BadInput(f"--{name} says nothing of the world {self.name}: leave it out")

    def median(self, batch, tokens, names):
        """None: such answers have no median."""

    def better(self, name):
        """1 if more of a metric is better, -1 if less is."""
        return self.metrics[name].better

    def weighted_sum(self, terms, scores):
        """scores {name: [...]} -> their sum, each with the sign that makes more better."""
        return sum(weight * self.better(name) * scores[name].float() for weight, name in terms)

    def compute_reward(self, batch, tokens, terms, by_frame=False):
        """tokens [B, G, R] -> rewards of what they decode to, [B, G] fp32 or by frame [B, G, F]."""
        scores = self.score(batch, tokens, [name for _, name in terms], by_frame)
        return self.weighted_sum(terms, scores)
