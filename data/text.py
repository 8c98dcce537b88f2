"""
TextWorld: transitions written as text <-> tokens, and the rewards of decoded answers.

On disk a text world is a folder with train.jsonl, val.jsonl, test.jsonl (one {"prompt", "response"} a line, see write_text_world),
bpe.json (the vocabulary, trained on the training split) and meta.json. Context, prompt and response are encoded separately, user text never
becomes the end token, and sampled ids are scored as sampled.
"""
import difflib
import functools
import hashlib
import json
import os
import re
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiktoken
import torch

import rewards
from common import BadInput, numbered_lines, one_of
from data.textgame import lines

SPLITS = ("train", "val", "test")

# ---------------------------------------------------------------------------------------------------------------------
# Byte-pair encoding: trained here, run by tiktoken

# What may become a token, by domain. '#12' is one piece (a uuid), digits stand alone (so that numbers are spelled the same way everywhere), words
# keep their leading blank. On web pages '[12]', the id of a node, is one piece, and so is the text behind it, up to the end of the line: what a
# shop says often becomes one token, which stands right behind its id.
WORDS = r"#\d+|\d| ?[!~@]?[^\W\d_][^\W\d]*| ?[^\s\w#]+|\s+|."
LINES = r"\[\d+\]|[^\[\]\n\t]+|\n+\t*|\t+|."
PIECES = {"textgame": WORDS, "webnav": LINES, "text": WORDS}


def train_bpe(texts, vocab_size, pattern=WORDS):
    """
    Byte-pair encoding (Sennrich et al., arXiv 1508.07909) of texts, an iterable of (text, count); merges stay inside the pattern's pieces.

    Returns the bytes of ids 256, 257, ...; ids below 256 are the single bytes; the last id of the vocabulary is left for the end token.
    Deterministic: of equally frequent pairs the smallest is merged.
    """
    counts = Counter()
    for text, count in texts:
        for piece in re.findall(pattern, text):
            counts[piece] += count
    words = [list(bytes([b]) for b in piece.encode("utf-8", "replace")) for piece in counts]
    weights = list(counts.values())
    pairs, where = Counter(), defaultdict(set)
    for i, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += weights[i]
            where[pair].add(i)
    merged = []
    while len(merged) < vocab_size - 257 and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        if best[0] + best[1] not in merged:
            merged.append(best[0] + best[1])
        for i in where.pop(best):
            old, new, j = words[i], [], 0
            while j < len(old):
                pair = tuple(old[j:j + 2]) == best
                new.append(best[0] + best[1] if pair else old[j])
                j += 2 if pair else 1
            for pair in zip(old, old[1:]):
                pairs[pair] -= weights[i]
                if pairs[pair] <= 0:
                    del pairs[pair]
            for pair in zip(new, new[1:]):
                pairs[pair] += weights[i]
                where[pair].add(i)
            words[i] = new
        pairs.pop(best, None)
    return merged


def encoding(merged, pattern=WORDS):
    """A tiktoken.Encoding of the vocabulary that train_bpe returned, with the same pattern. Special tokens: none, so no text can spell the end token."""
    ranks = {bytes([b]): b for b in range(256)}
    ranks.update({token: 256 + i for i, token in enumerate(merged)})
    return tiktoken.Encoding("world", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


# ---------------------------------------------------------------------------------------------------------------------
# On disk


def write_text_world(folder, domain, splits, vocab_size=1024, reward=None, **meta):
    """
    Writes a text world: trains the BPE on splits["train"] and puts everything into `folder` at once (a temporary folder is renamed over it).

    domain: "textgame", "webnav" or "text": it decides which metrics there are. splits: {"train", "val", "test"}: lists of records
    {"prompt": str, "response": str} with, optionally, "context" (text in front of the prompt that many records share: it is run once for all
    of them), "truth" (what the answer is compared with; default: the response), "kind" (of game or page: metrics are also averaged over
    kinds) and "changed" (whether the transition changes anything). Raises BadInput for an empty split.
    """
    folder = Path(folder)
    for split in SPLITS:
        if not splits.get(split):
            raise BadInput(f"the {split} split of {folder} would be empty; give prepare.py more data or another seed")
    texts = Counter()
    for record in splits["train"]:
        texts[record["response"]] += 1
        texts[record["prompt"]] += 1
    texts.update({context: 1 for context in {record["context"] for record in splits["train"] if record.get("context")}})
    merged = train_bpe(texts.items(), vocab_size, PIECES[domain])
    temporary = folder.with_name(folder.name + f".tmp{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        for split in SPLITS:
            with open(temporary / f"{split}.jsonl", "w") as file:
                file.writelines(json.dumps(record) + "\n" for record in splits[split])
        (temporary / "bpe.json").write_text(json.dumps([token.hex() for token in merged]))
        (temporary / "meta.json").write_text(json.dumps({"domain": domain, "reward": reward or DEFAULT_REWARD[domain], **meta}))
        folder.mkdir(parents=True, exist_ok=True)
        for file in temporary.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for split in SPLITS:
        records = splits[split]
        changed = sum(record.get("changed", True) for record in records) / len(records)
        print(f"{folder / (split + '.jsonl')}: {len(records):,} transitions, {changed:.1%} changed, "
              f"{len({record.get('context') for record in records}):,} states")
    print(f"{folder / 'bpe.json'}: {257 + len(merged)} tokens")


def read_jsonl(path, needed=("prompt", "response"), make="the prepare.py that made it"):
    """The records of a .jsonl file. Raises BadInput naming file and line for text that is not JSON or a record that lacks a needed key."""
    if not Path(path).is_file():
        raise BadInput(f"there is no {path}; make it with {make}")
    records = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in numbered_lines(file, path):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                raise BadInput(f"{path}, line {number}: not a complete JSON object; the file may be cut short, make it again with {make}") from None
            if not isinstance(record, dict):
                raise BadInput(f"{path}, line {number}: expected an object with the keys {', '.join(needed)}")
            for key in needed:
                if not isinstance(record.get(key), str):
                    raise BadInput(f"{path}, line {number}: the record has no text under {key!r}; each line needs {', '.join(needed)}")
            for key in ("context", "truth", "kind"):
                if not isinstance(record.get(key, ""), str):
                    raise BadInput(f"{path}, line {number}: what stands under {key!r} is no text; make it one, or leave it out")
            records.append(record)
    if not records:
        raise BadInput(f"{path} is empty; make it again with {make}")
    return records


# ---------------------------------------------------------------------------------------------------------------------
# Metrics by domain: (record, answer text, truth) -> {name: value}


def textgame_truth(record, defaults):
    """(state, next_state) of a text-game record: lists of objects with the score dict last."""
    game_defaults = defaults.get(record["kind"], {})
    state = textgame_state(record["context"], record["kind"], json.dumps(game_defaults))
    return state, rewards.apply_difference(state, lines.read_difference(record["response"], state, game_defaults))


@functools.lru_cache(maxsize=4096)
def textgame_state(context, kind, game_defaults):
    return lines.read_state(context, json.loads(game_defaults))[1]


def score_textgame(record, answer, truth, names, defaults):
    """official_binary, official_task, strict_binary, strict_task of a compact answer. A malformed answer is 0 in all of them."""
    state, next_state = truth
    try:
        difference = lines.read_difference(answer, state, defaults.get(record["kind"], {}))
    except (ValueError, TypeError):
        return dict.fromkeys(names, 0.0)
    predicted = rewards.apply_difference(state, difference)
    kinds = {"strict_binary": "binary", "strict_task": "task", "official_binary": "binary", "official_task": "task_specific"}
    return {name: rewards.strict_text_game(predicted, state, next_state, kinds[name]) if name.startswith("strict")
            else rewards.official_text_game_difference(difference, state, next_state, kinds[name]) for name in names}


def score_webnav(record, answer, truth, names, defaults):
    """strict_f1, the official precision, recall and F1 of the three sections, and exact_match."""
    values = dict(zip(("official_precision", "official_recall", "official_f1"), rewards.official_web_page_scores(answer, truth)))
    values["exact_match"] = rewards.exact_match(answer, truth)
    if "strict_f1" in names:
        values["strict_f1"] = rewards.strict_web_page(answer, truth)
    return {name: values[name] for name in names}


def score_text(record, answer, truth, names, defaults):
    """exact_match and line_f1."""
    functions = {"exact_match": rewards.exact_match, "line_f1": rewards.line_f1}
    return {name: functions[name](answer, truth) for name in names}


METRICS = {"textgame": (score_textgame, ("strict_binary", "strict_task", "official_binary", "official_task")),
           "webnav": (score_webnav, ("strict_f1", "official_f1", "official_precision", "official_recall", "exact_match")),
           "text": (score_text, ("exact_match", "line_f1"))}
NOTHING_CHANGES = {"textgame": lines.SAME, "webnav": "New items:\nNone\n\nDeleted items:\nNone\n\nUpdated items:\nNone", "text": ""}
DEFAULT_REWARD = {"textgame": "strict_task", "webnav": "strict_f1", "text": "exact_match"}
HEADLINE = {"textgame": "strict_binary", "webnav": "strict_f1", "text": "exact_match"}  # what checkpoints are chosen by

# ---------------------------------------------------------------------------------------------------------------------
# The world


@dataclass
class Batch:
    """Transitions as tokens. A response holds its end token; padding is on the right."""
    prompt: torch.Tensor         # [B, P]
    prompt_len: torch.Tensor     # [B]
    response: torch.Tensor       # [B, R]
    response_mask: torch.Tensor  # [B, R] True on the tokens that are predicted
    forced: torch.Tensor         # [B, R] -1 where the model chooses, an id where the world inserts it; None: the model always chooses
    truth: list                  # record numbers, for score() and decode()
    split: str
    undo: list = None            # one permutation a row, by which the uuids of its answers become the record's again; None: they are the record's


class TextWorld:
    """
    All that the training scripts know of a text domain.

    vocab_size, block_size (longest prompt + response_len), response_len (tokens of the longest response, end token included), eos_id,
    reward (default), metrics (names), headline (the metric that checkpoints are chosen by), records {split: [record]}.
    """

    def __init__(self, folder, device="cpu"):
        self.folder, self.device = Path(folder), torch.device(device)
        make = f"python data/{'textgame' if self.folder.name not in ('webnav', 'webarena') else 'webnav'}/prepare.py"
        if not (self.folder / "meta.json").is_file():
            raise BadInput(f"there is no text world in {self.folder} (no meta.json); make one with {make}")
        try:
            self.meta = json.loads((self.folder / "meta.json").read_text())
            self.domain, self.reward = self.meta["domain"], self.meta["reward"]
            merged = [bytes.fromhex(token) for token in json.loads((self.folder / "bpe.json").read_text())]
            self.bpe = encoding(merged, PIECES[one_of("domain", self.domain, PIECES)])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{self.folder}: meta.json or bpe.json is damaged ({error}); make the world again with {make}") from None
        self.score_record, self.metrics = METRICS[self.domain]
        self.headline, self.nothing_changes = HEADLINE[self.domain], NOTHING_CHANGES[self.domain]
        self.split_metrics = {"textgame": ("strict_binary", "official_binary"), "webnav": ("strict_f1",)}.get(self.domain, ())  # by changed, by kind
        self.variants = ()
        self.scale = {name: 1 if name.endswith("_task") else 100 for name in self.metrics}  # shares are shown in percent
        self.signs = dict.fromkeys(self.metrics, 1)  # more is better, for all of them
        needed = ("context", "prompt", "response", "kind") if self.domain == "textgame" else ("prompt", "response")
        self.records = {split: read_jsonl(self.folder / f"{split}.jsonl", needed, make) for split in SPLITS}
        self.eos_id = self.bpe.n_vocab
        self.vocab_size = self.bpe.n_vocab + 1
        encode = functools.lru_cache(maxsize=None)(self.bpe.encode_ordinary)  # contexts and answers repeat a lot
        self.tokens = {split: [(encode(r.get("context", "")), encode(r["prompt"]), encode(r["response"])) for r in self.records[split]]
                       for split in SPLITS}
        self.max_prompt = max(len(c) + len(p) for split in SPLITS for c, p, _ in self.tokens[split])
        self.response_len = max(len(r) for split in ("train", "val") for *_, r in self.tokens[split]) + 1
        self.block_size = self.max_prompt + self.response_len
        for split in SPLITS:
            for number, (context, prompt, _) in enumerate(self.tokens[split], 1):
                if not context and not prompt:
                    raise BadInput(f"{self.folder / split}.jsonl, line {number}: the prompt is empty; give the model something to start from")
        self.fingerprint = f"{self.domain} {hashlib.sha256((self.folder / 'bpe.json').read_bytes()).hexdigest()[:12]}"  # what a model depends on
        self.strata = {split: self._strata(split) for split in SPLITS}
        self.branches = self._branches()

    def _strata(self, split):
        """{kind: (numbers of the unchanged records, numbers of the changed ones)}."""
        strata = defaultdict(lambda: ([], []))
        for i, record in enumerate(self.records[split]):
            strata[record.get("kind", "")][bool(record.get("changed", True))].append(i)
        return {kind: (np.array(a, dtype=np.int64), np.array(b, dtype=np.int64)) for kind, (a, b) in sorted(strata.items())}

    def _branches(self):
        """{context: (numbers of the unchanged training records that share it, numbers of the changed ones)}."""
        branches = defaultdict(lambda: ([], []))
        for i, record in enumerate(self.records["train"]):
            branches[record.get("context") or i][bool(record.get("changed", True))].append(i)
        return branches

    def legal(self):
        """None: any id may stand anywhere in a text response."""
        return None

    def draw(self, split, n, rng, changed=-1.0, power=1.0):
        """
        n record numbers drawn with replacement: a kind with probability ~ (its records)^power, then a changed record with probability
        `changed` (-1: as in the data). This is the training weight of DESIGN.md 6: power 0.5 keeps one big game from drowning the others.
        """
        kinds = list(self.strata[split].values())
        sizes = np.array([len(a) + len(b) for a, b in kinds], dtype=float) ** power
        numbers = []
        for k in rng.choice(len(kinds), size=n, p=sizes / sizes.sum()):
            unchanged, changes = kinds[k]
            share = len(changes) / (len(unchanged) + len(changes)) if changed < 0 else changed
            pool = changes if len(changes) and (rng.random() < share or not len(unchanged)) else unchanged
            numbers.append(int(rng.choice(pool)))
        return numbers

    def prompt_length(self, split, index):
        """Tokens of a record's context and prompt."""
        context, prompt, _ = self.tokens[split][index]
        return len(context) + len(prompt)

    def batch(self, split, indices, renumber=0.0, rng=None):
        """Records as a Batch, one prompt (context and prompt proper) a row; in a share `renumber` of the rows the uuids are permuted (text games)."""
        rows, undo = [self.tokens[split][i] for i in indices], None
        if renumber:
            undo = [None] * len(rows)
            for n in np.flatnonzero(rng.random(len(rows)) < renumber):
                (rows[n],), new_id = self.renumbered(split, [indices[n]], rng)
                undo[n] = np.argsort(new_id)
        prompt, prompt_len = self.pad([c + p for c, p, _ in rows])
        response, response_len = self.pad([r + [self.eos_id] for *_, r in rows])
        mask = torch.arange(response.size(1), device=self.device) < response_len[:, None]
        return Batch(prompt, prompt_len, response, mask, None, list(indices), split, undo)

    def mle_batches(self, n, rng, micro_batch=0, branches=1, changed=-1.0, power=1.0, renumber=0.0, prompt_loss=0.0):
        """
        One training step's worth of n training records, as a list of micro-batches (prompt [B, P], prompt_len [B], response [B, G, R],
        weight [B, G, R]), B at most micro_batch (0: all in one). weight is 1 on the tokens of the answers, prompt_loss on those of the prompts
        proper that stand in a branch, and 0 on padding.

        branches > 1: records that share a context share its forward pass: the context is the prompt, and prompt proper + response is a branch.
        Contexts with short and with long branches go into different micro-batches, so that they are not padded to each other's length.
        renumber: the share of contexts whose uuids are permuted (text games).
        """
        groups = []
        for i in self.draw("train", max(1, n // branches), rng, changed, power):
            unchanged, changes = self.branches[self.records["train"][i].get("context") or i]
            want = round(branches * (changed if changed >= 0 else len(changes) / (len(changes) + len(unchanged))))
            want = min(len(changes), max(want, branches - len(unchanged)))
            chosen = list(rng.permutation(changes)[:want]) + list(rng.permutation(unchanged)[:branches - want])
            groups.append(self.renumbered("train", chosen, rng)[0] if rng.random() < renumber else [self.tokens["train"][j] for j in chosen])
        groups.sort(key=lambda group: max(len(p) + len(r) for _, p, r in group))
        size = micro_batch or len(groups)
        return [self.branch_batch(groups[i:i + size], prompt_loss) for i in range(0, len(groups), size)]

    def renumbered(self, split, numbers, rng):
        """(Token rows of records that share a context, with one random permutation of their uuids; that permutation)."""
        records = [self.records[split][i] for i in numbers]
        texts = [records[0]["context"]] + [record[key] for record in records for key in ("prompt", "response")]
        largest = max(map(int, re.findall(r"#(\d+)", records[0]["context"])), default=0)
        new_id = rng.permutation(largest + 1)
        context, *rest = map(self.bpe.encode_ordinary, lines.renumber(texts, new_id))
        return [(context, rest[2 * i], rest[2 * i + 1]) for i in range(len(records))], new_id

    def branch_batch(self, groups, prompt_loss):
        """groups: one list of token rows (context, prompt, response) per context -> one micro-batch of mle_batches."""
        if not groups[0][0][0]:  # no shared context: the prompt itself is the prompt, one response each
            groups = [[(p, [], r)] for group in groups for _, p, r in group]
        prompt, prompt_len = self.pad([group[0][0] for group in groups])
        G = max(map(len, groups))
        flat = [p + r + [self.eos_id] for group in groups for _, p, r in group + [([], [], [])] * (G - len(group))]
        start = torch.tensor([len(p) for group in groups for _, p, _ in group + [([], [], [])] * (G - len(group))], device=self.device)
        real = torch.tensor([i < len(group) for group in groups for i in range(G)], device=self.device)
        response, response_len = self.pad(flat)
        place = torch.arange(response.size(1), device=self.device)
        weight = torch.where(place >= start[:, None], 1.0, prompt_loss) * ((place < response_len[:, None]) & real[:, None])  # [B·G, R]
        return prompt, prompt_len, response.view(len(groups), G, -1), weight.view(len(groups), G, -1)

    def pad(self, rows):
        """Lists of ids -> (ids [n, longest] padded on the right, lengths [n])."""
        length = torch.tensor([len(row) for row in rows])
        padded = torch.full((len(rows), max(1, int(length.max()))), self.eos_id)
        for i, row in enumerate(rows):
            padded[i, :len(row)] = torch.tensor(row, dtype=torch.long)
        return padded.to(self.device), length.to(self.device)

    def truth(self, split, index):
        """What the answer to a record is compared with: (state, next state) for text games, a text elsewhere."""
        record = self.records[split][index]
        if self.domain != "textgame":
            return record.get("truth", record["response"])
        try:
            return textgame_truth(record, self.meta["defaults"])
        except ValueError as error:
            raise BadInput(f"{self.folder / split}.jsonl, line {index + 1}: {error}; make the world again with prepare.py") from None

    def score_texts(self, split, index, answers, names):
        """Scores several answers (texts; None for one that never ended) to one record: a list of {name: value}. Equal answers are scored once."""
        truth, record, known = self.truth(split, index), self.records[split][index], {None: dict.fromkeys(names, 0.0)}
        for answer in answers:
            if answer not in known:
                known[answer] = self.score_record(record, answer, truth, names, self.meta.get("defaults"))
        return [known[answer] for answer in answers]

    def references(self, split, indices):
        """Rows of the table that need no model: [(label, {metric: [N, 1]})]."""
        rules = {"copy (nothing changes)": lambda i: self.nothing_changes, "lookup (no learning)": self.nearest_action(split)}
        rows = []
        for label, rule in rules.items():
            scores = [self.score_texts(split, i, [rule(i)], self.metrics)[0] for i in indices]
            rows.append((label, {name: torch.tensor([[s[name]] for s in scores]) for name in self.metrics}))
        return rows

    def nearest_action(self, split):
        """answer(index) of the lookup row: what happened in the same state of the training data after the most similar action."""
        by_state = defaultdict(list)
        for record in self.records["train"]:
            if "context" in record:
                by_state[record["context"]].append((Counter(record["prompt"].split()), record))

        def answer(index):
            record = self.records[split][index]
            words = Counter(record["prompt"].split())
            near = by_state.get(record.get("context"), [])
            if not near:
                return self.nothing_changes
            shared = [2 * sum((words & other).values()) / max(1, sum(words.values()) + sum(other.values())) for other, _ in near]
            finalists = sorted(range(len(near)), key=lambda i: -shared[i])[:8]  # the letters decide between actions with as many words in common
            letters = {i: difflib.SequenceMatcher(None, record["prompt"], near[i][1]["prompt"]).ratio() for i in finalists}
            return near[max(finalists, key=lambda i: (shared[i], letters[i]))][1]["response"]
        return answer

    def columns(self, split, indices):
        """Columns of the table: [(heading, metric, how)]; how maps scores [N, seeds] to one number per seed [seeds]."""
        records = [self.records[split][i] for i in indices]
        changed = torch.tensor([bool(r.get("changed", True)) for r in records])
        kinds = defaultdict(list)
        for n, record in enumerate(records):
            kinds[record.get("kind", "")].append(n)

        def over_kinds(values):
            return torch.stack([values[rows].mean(0) for rows in kinds.values()]).mean(0)

        def every(values):
            return values.mean(0)

        def where(mask):
            return lambda values: values[mask].mean(0)
        parts = []
        for name in self.metrics:
            split_up = name in self.split_metrics
            if split_up and 0 < changed.sum() < len(changed):
                parts += [(f"{name} unchanged", name, where(~changed)), (f"{name} changed", name, where(changed))]
            parts.append((name + " overall" * split_up, name, every))
            if split_up and len(kinds) > 1:
                parts.append((f"{name} mean of kinds", name, over_kinds))
        return parts

    def decode(self, batch, tokens):
        """tokens [B, G, R] -> B lists of G answer texts about the records' own uuids, cut at the end token; None where there is no end token."""
        texts = []
        for row, new_id in zip(tokens.tolist(), batch.undo or [None] * len(tokens)):
            cut = [ids[:ids.index(self.eos_id)] if self.eos_id in ids else None for ids in row]
            answers = [None if ids is None else self.bpe.decode(ids, errors="replace") for ids in cut]
            texts.append(answers if new_id is None else [answer and lines.renumber([answer], new_id)[0] for answer in answers])
        return texts

    def score(self, batch, tokens, names):
        """tokens [B, G, R] -> {name: [B, G] fp32}: every named metric of the decoded answers."""
        scores = [self.score_texts(batch.split, i, answers, names) for i, answers in zip(batch.truth, self.decode(batch, tokens))]
        return {name: torch.tensor([[s[name] for s in row] for row in scores], device=self.device) for name in names}
