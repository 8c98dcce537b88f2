"""
TextWorld: transitions written as text <-> tokens, and the scores of decoded answers. It knows no
domain by name: what is particular to one is in its task.py.

On disk a text world is a folder with train.jsonl, val.jsonl and test.jsonl (a record a line, see
write_text_world), bpe.json (the vocabulary, trained on the training split), shared.json (what
records share for their truth) and meta.json. State, prompt and response are encoded separately,
user text never becomes the end token, and sampled ids are scored as sampled.
"""

import difflib
import functools
import gzip
import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common import BadInput
from data.bpe import pretrained_vocabulary, run_vocabulary, train_bpe
from data.world import SPLITS, Batch, World, claim, truth_of_text

# ------------------------------------------------------------------------------------------------
# On disk

# bytes: a file of records with a longer line is not what it should be, and is not read
LONGEST_LINE = 2**26


def json_lines(path, remedy):
    """
    Yields (where, value) for every line of a .jsonl or .jsonl.gz file that is not blank; where
    names file and line for messages. A byte-order mark at the start is skipped.

    remedy: what to do about a bad file, the end of a sentence. Raises BadInput for a file that is
    missing, empty or cut short, a line that is not JSON, not UTF-8, or longer than LONGEST_LINE.
    """
    path = Path(path)
    number = 0
    found = False
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number in itertools.count(1):
                line = file.readline(LONGEST_LINE + 1)
                if not line:
                    break
                where = f"{path}, line {number}"
                if len(line) > LONGEST_LINE:
                    raise BadInput(f"{where}: longer than {LONGEST_LINE:,} bytes; {remedy}")
                line = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip()
                if line:
                    found = True
                    yield where, read_json(line, where, remedy)
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"there is no file {path}; check its name, or {remedy}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise BadInput(
            f"{path} cannot be read after line {number - 1} ({reason}); {remedy}"
        ) from None
    if not found:
        raise BadInput(f"{path} is empty; {remedy}")


def read_json(line, where, remedy):
    """One line of bytes as JSON. Raises BadInput for anything else."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{where}: byte {error.start + 1} is not UTF-8; save the file in the encoding UTF-8, "
            f"or {remedy}"
        ) from None
    except (ValueError, RecursionError):
        raise BadInput(
            f"{where}: not a complete JSON object; the file may be cut short, {remedy}"
        ) from None


def read_records(path, remedy):
    """
    The records of a .jsonl file: {"prompt", "response"}, optionally with "state", "truth", "kind"
    and "changed", see write_text_world.

    Raises BadInput naming file and line for a record that lacks a key or has one of a wrong type.
    """
    records = []
    for where, record in json_lines(path, remedy):
        if not isinstance(record, dict):
            raise BadInput(f"{where}: expected an object with the keys prompt and response")
        for key in ("prompt", "response"):
            if not isinstance(record.get(key), str):
                needs = "each line needs prompt and response"
                raise BadInput(f"{where}: the record has no text under {key!r}; {needs}")
        for key in ("state", "kind", "unit"):
            if not isinstance(record.get(key, ""), str):
                raise BadInput(f"{where}: {key!r} is no text; make it one, or leave it out")
        if "outcomes" in record:
            check_outcomes(record["outcomes"], where)
        if not isinstance(record.get("changed", True), bool):
            raise BadInput(f"{where}: 'changed' is neither true nor false; mend it or leave it out")
        if not record["prompt"] and not record.get("state"):
            raise BadInput(f"{where}: the prompt is empty; give the model something to start from")
        records.append(record)
    return records


def check_outcomes(outcomes, where):
    """Raises BadInput unless they are a list of [probability, response] that sums to 1."""
    form = "a list of [probability, response], with probabilities that sum to 1"
    try:
        total = sum(probability for probability, _ in outcomes)
        texts = all(isinstance(response, str) for _, response in outcomes)
        right = texts and min(outcomes)[0] > 0 and abs(total - 1) < 1e-3
    except (TypeError, ValueError):
        right = False
    if not right:
        raise BadInput(f"{where}: 'outcomes' is not {form}; mend it or leave it out")


FILES = ("train.jsonl", "val.jsonl", "test.jsonl", "bpe.json", "shared.json", "meta.json")


def write_text_world(
    folder,
    domain,
    task,
    splits,
    vocab_size=1024,
    reward="",
    shared=None,
    longest=0,
    tokenizer="",
    template="none",
):
    """
    Writes a text world: trains the BPE on splits["train"] and puts everything into `folder` at once
    (each file is written under another name and renamed over the old one).

    splits: {"train", "val", "test"}: lists of records {"prompt": str, "response": str} with,
    optionally, "state" (text in front of the prompt that many records share: it is run once for all
    of them), "truth" (what the answer is compared with, for the task's truth(); default: the
    response), "kind" (of game or page: metrics are also averaged over kinds), "changed" (whether
    anything happens), "unit" (records of one unit, such as a game, are not independent; default:
    the state, or the prompt) and, for what is judged, "outcomes" ([[probability, response], ...]:
    all that could have happened, where the truth is one draw). shared: JSON that the task's truth()
    gets beside each record. longest: records whose answer has more tokens are left out (0: none).
    tokenizer: the folder of a pretrained model, whose vocabulary is taken in place of a BPE;
    template: "chat" for prompts in its chat form.
    Raises BadInput for an empty split, or a folder that holds files of the user's.
    """
    folder = claim(folder, "text", FILES)
    for split in SPLITS:
        if not splits.get(split):
            raise BadInput(
                f"the {split} split of {folder} would be empty; give prepare.py more data or "
                f"another seed"
            )
    if tokenizer:
        vocabulary = pretrained_vocabulary(tokenizer, template)
    else:
        texts = Counter()
        for record in splits["train"]:
            texts[record["response"]] += 1
            texts[record["prompt"]] += 1
        # every state once, however many records share it
        texts.update({record["state"]: 1 for record in splits["train"] if record.get("state")})
        merged = train_bpe(texts.items(), vocab_size, task.token_pattern)
        vocabulary = [token.hex() for token in merged]
    vocabulary_run = run_vocabulary(vocabulary, task.token_pattern)
    splits = keep_short(splits, vocabulary_run.bpe, longest)

    temporary = folder.with_name(folder.name + f".tmp{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        for split in SPLITS:
            with open(temporary / f"{split}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in splits[split])
        (temporary / "bpe.json").write_text(json.dumps(vocabulary))
        (temporary / "shared.json").write_text(json.dumps(shared or {}))
        meta = {"form": "text", "domain": domain, "reward": reward or task.reward}
        (temporary / "meta.json").write_text(json.dumps(meta))
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

    for split in SPLITS:
        records = splits[split]
        changed = sum(record.get("changed", True) for record in records) / len(records)
        states = len({record["state"] for record in records if record.get("state")})
        shared_states = f", {states:,} states" if states else ""
        print(
            f"{folder / split}.jsonl: {len(records):,} transitions, {changed:.1%} changed"
            f"{shared_states}"
        )
    print(f"{folder / 'bpe.json'}: {vocabulary_run.width} tokens")


def keep_short(splits, bpe, longest):
    """
    The splits without records whose answer has more than `longest` tokens (0: all stay). Says how
    long answers are, and what an unusually long one costs.
    """
    texts = {record["response"] for records in splits.values() for record in records}
    length = {text: len(bpe.encode_ordinary(text)) + 1 for text in texts}
    kept = {}
    for split, records in splits.items():
        kept[split] = [r for r in records if not longest or length[r["response"]] <= longest]
        if not kept[split]:
            raise BadInput(
                f"no answer of the {split} split has at most {longest} tokens: --longest"
            )
    lengths = [length[r["response"]] for records in kept.values() for r in records]
    most = int(np.quantile(lengths, 0.99))
    print(f"answers: median {int(np.median(lengths))} tokens, 99 % {most}, longest {max(lengths)}")
    if max(lengths) > 4 * most:
        print(
            f"note: until a model has learned to end its answers, each is sampled to the longest "
            f"there is, {max(lengths)} tokens; --longest={most} leaves the few longer ones out"
        )
    return kept


def score_answer(task, answer, truth, names):
    """
    {name: value} of one answer; each metric's worst value where it is malformed.

    Raises BadInput for a metric that fails, or whose value is worse than its declared worst: then
    an answer that never ends would be better than a bad one, and that is what training would find.
    """
    try:
        prediction = task.read(answer, truth)
    except (ValueError, TypeError):
        return {name: task.metrics[name].worst for name in names}
    scores = {}
    for name in names:
        metric = task.metrics[name]
        try:
            scores[name] = float(metric.function(prediction, truth))
        except Exception as error:
            raise BadInput(
                f"the metric {name} failed on the answer {answer[:60]!r} ({type(error).__name__}: "
                f"{error}); mend its function in task.py"
            ) from error
        if not metric.better * (scores[name] - metric.worst) >= 0:
            raise BadInput(
                f"the metric {name} is {scores[name]:g} for the answer {answer[:60]!r}, worse than "
                f"its worst value {metric.worst:g}, which answers that never end get; declare that "
                f"in task.py: Metric(..., worst=...)"
            )
    return scores


def marked(answer, true, perfect):
    """
    [(mark, line)] of an answer beside the true one: each line is "right" or "wrong", however lines
    are put, and what is not said is "missing". None: an answer that never ended.
    """
    said = ["(no end)"] if answer is None else answer.split("\n")
    true = true.split("\n")
    marks = [("right" if perfect or line in true else "wrong", line) for line in said]
    return marks + [("missing", line) for line in true if line not in said and not perfect]


# ------------------------------------------------------------------------------------------------
# The world

EXPECTED = "expected_"


class TextWorld(World):
    """A text domain; see data/world.py for what every world has."""

    kinds = True

    def __init__(self, folder, meta, task, make, device="cpu"):
        self.folder = Path(folder)
        self.name = self.folder.name
        self.task = task
        self.device = torch.device(device)
        self.remedy = f"make the world again with {make}"
        self.metrics = dict(task.metrics)
        self.known = defaultdict(dict)  # {(split, index): {answer: {metric: value}}}
        self.foreign_options = () if task.permute else ("permute_ids",)
        try:
            self.reward = meta["reward"]
            self.shared = json.loads((self.folder / "shared.json").read_text())
            path = self.folder / "bpe.json"
            self.vocabulary = json.loads(path.read_text())
            run = run_vocabulary(self.vocabulary, task.token_pattern, path)
            self.bpe, self.eos_id, self.vocab_size, self.before, self.after = run
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{self.folder}: meta.json, shared.json or bpe.json is damaged ({error}); "
                f"{self.remedy}"
            ) from None
        self.terms(self.reward)
        # of the vocabulary and of the splits: no model meets its training records in another test
        digest = hashlib.sha256()
        for name in FILES[:4]:
            digest.update((self.folder / name).read_bytes())
        self.fingerprint = f"{meta['domain']} {digest.hexdigest()[:12]}"

        self.records = {
            split: read_records(self.folder / f"{split}.jsonl", self.remedy) for split in SPLITS
        }
        encode = functools.cache(self.encode)  # states and answers repeat a lot
        self.tokens = {}  # {split: [(state ids, prompt ids, response ids)]}
        for split in SPLITS:
            self.tokens[split] = [
                (
                    encode(r["state"], "first") if r.get("state") else [],
                    encode(r["prompt"], "last" if r.get("state") else "whole"),
                    encode(r["response"]),
                )
                for r in self.records[split]
            ]
        rows = [row for split in SPLITS for row in self.tokens[split]]
        self.max_prompt = max(len(state) + len(prompt) for state, prompt, _ in rows)
        seen = self.tokens["train"] + self.tokens["val"]
        self.response_len = 1 + max(len(response) for *_, response in seen)
        self.block_size = self.max_prompt + self.response_len

        self.expect()
        # {split: {kind: (indices of the unchanged records, indices of the changed ones)}}
        self.strata = {split: self.by_change(split, "kind") for split in SPLITS}
        # the same by state: the training records that can go behind one copy of it
        self.branches = self.by_change("train", "state")
        self.has_states = any(record.get("state") for record in self.records["train"])

    def encode(self, text, part="answer"):
        """
        The ids of a text that is the "first" part of a question, the "last", the "whole" of it, or
        the "answer"; a chat form's frame goes around a question.
        """
        before = self.before if part in ("first", "whole") else []
        after = self.after if part in ("last", "whole") else []
        return before + self.bpe.encode_ordinary(text) + after

    def expect(self):
        """
        Where records tell all that could have happened: metrics "expected_<name>" of the first
        metric and of the reward's, the mean of an answer's scores over these outcomes. They are
        free of the luck of the one draw that the truth is.
        """
        self.headline = next(iter(self.metrics))
        judged = self.records["val"] + self.records["test"]
        if any("outcomes" in record for record in judged):
            if not self.task.as_truth and self.task.truth is not truth_of_text:
                raise BadInput(f"{self.folder}: records have 'outcomes': their task needs as_truth")
            names = [self.headline, *(name for _, name in self.terms(self.reward))]
            for name in names:
                self.metrics[EXPECTED + name] = replace(self.task.metrics[name], by_change=False)
            self.headline = EXPECTED + self.headline

    def by_change(self, split, key):
        """{the records' value of key: (indices of the unchanged ones, of the changed ones)}."""
        groups = defaultdict(lambda: ([], []))
        for i, record in enumerate(self.records[split]):
            # a record without a state shares none: it is alone under its own number
            value = record.get(key, "") if key == "kind" else record.get(key) or i
            groups[value][record.get("changed", True)].append(i)
        return dict(sorted(groups.items())) if key == "kind" else groups

    # --------------------------------------------------------------------------------------------
    # Batches

    def draw(self, split, n, rng, changed_fraction=-1.0, kind_power=1.0):
        """
        n record indices drawn with replacement: a kind with probability ~ (its records)^kind_power,
        then a changed record with probability changed_fraction (-1: as in the data).
        """
        kinds = list(self.strata[split].values())
        sizes = np.array([len(a) + len(b) for a, b in kinds], dtype=float) ** kind_power
        indices = []
        for k in rng.choice(len(kinds), size=n, p=sizes / sizes.sum()):
            unchanged, changes = kinds[k]
            share = changed_fraction
            if changed_fraction < 0:
                share = len(changes) / (len(unchanged) + len(changes))
            wanted = len(changes) and (rng.random() < share or not len(unchanged))
            indices.append(int(rng.choice(changes if wanted else unchanged)))
        return indices

    def prompt_length(self, split, index):
        """Tokens of a record's state and prompt."""
        state, prompt, _ = self.tokens[split][index]
        return len(state) + len(prompt)

    def batch(self, split, indices, permute_ids=0.0, rng=None):
        """
        Records as a Batch, one prompt (state and prompt proper) a row; in a share permute_ids of
        the rows the uuids are permuted (where the task has uuids).
        """
        rows = [self.tokens[split][i] for i in indices]
        undo = None
        if permute_ids:
            undo = [None] * len(rows)
            for n in np.flatnonzero(rng.random(len(rows)) < permute_ids):
                (rows[n],), new_id = self.permuted(split, [indices[n]], rng)
                undo[n] = np.argsort(new_id)
        prompt, prompt_len = self.pad([state + prompt for state, prompt, _ in rows])
        response, length = self.pad([response + [self.eos_id] for *_, response in rows])
        mask = torch.arange(response.size(1), device=self.device) < length[:, None]
        return Batch(
            prompt,
            prompt_len,
            response,
            mask,
            self.response_len,
            self.eos_id,
            split=split,
            indices=list(indices),
            undo=undo,
        )

    def candidates(self, states, actions):
        """
        B states, each with up to G actions (lists of texts, as records have them under "prompt") ->
        a Batch for imagine(): the prompt is the state alone, answers begin with an action, given
        token by token. Where there are fewer than G actions, the last is repeated.
        """
        G = max(map(len, actions))
        given = [[self.encode(action, "last") for action in own] for own in actions]
        given = [own + own[-1:] * (G - len(own)) for own in given]
        R = max(len(ids) for own in given for ids in own) + self.response_len
        # behind the longest answer that an action may get stands any token but the end: what would
        # not end alone does not end beside a longer action
        forced = torch.full((len(states), G, R), 0 if self.eos_id else 1)
        for b, own in enumerate(given):
            for g, ids in enumerate(own):
                forced[b, g, : len(ids)] = torch.tensor(ids)
                forced[b, g, len(ids) : len(ids) + self.response_len] = -1
        prompt, prompt_len = self.pad([self.encode(state, "first") for state in states])
        none = prompt[:, :0]
        forced = forced.to(self.device)
        return Batch(prompt, prompt_len, none, none.bool(), R, self.eos_id, forced=forced)

    def mle_batches(
        self,
        n,
        rng,
        micro_batch_size=0,
        branches=1,
        changed_fraction=-1.0,
        kind_power=1.0,
        permute_ids=0.0,
        prompt_loss=0.0,
    ):
        """
        One training step's worth of n training records, as a list of micro-batches (prompt [B, P],
        prompt_len [B], response [B, G, R], weight [B, G, R]), B at most micro_batch_size (0: all in
        one). weight is 1 on the tokens of the answers, prompt_loss on those of the prompts proper
        that stand in a branch, and 0 on padding.

        branches > 1: records that share a state share its forward pass: the state is the prompt,
        and prompt proper + response is a branch. States with short and with long branches go into
        different micro-batches, so that they are not padded to each other's length.
        """
        if not self.has_states:
            branches = 1
        groups = []
        for i in self.draw("train", max(1, n // branches), rng, changed_fraction, kind_power):
            unchanged, changes = self.branches[self.records["train"][i].get("state") or i]
            share = changed_fraction
            if changed_fraction < 0:
                share = len(changes) / (len(changes) + len(unchanged))
            want = max(round(branches * share), branches - len(unchanged))
            want = min(len(changes), want)
            chosen = list(rng.permutation(changes)[:want])
            chosen += list(rng.permutation(unchanged)[: branches - want])
            if rng.random() < permute_ids:
                groups.append(self.permuted("train", chosen, rng)[0])
            else:
                groups.append([self.tokens["train"][j] for j in chosen])
        groups.sort(key=lambda group: max(len(p) + len(r) for _, p, r in group))
        size = micro_batch_size or len(groups)
        pieces = [groups[i : i + size] for i in range(0, len(groups), size)]
        return [self.branch_batch(piece, prompt_loss) for piece in pieces]

    def permuted(self, split, indices, rng):
        """
        (Token rows of records that share a state, with one random permutation of their uuids; that
        permutation).
        """
        records = [self.records[split][i] for i in indices]
        texts = [records[0]["state"]]
        for record in records:
            texts += [record["prompt"], record["response"]]
        new_id = rng.permutation(self.task.count_ids(texts[0]))
        state, *rest = self.task.permute(texts, new_id)
        state = self.encode(state, "first")
        pairs = zip(rest[::2], rest[1::2])
        return [(state, self.encode(p, "last"), self.encode(r)) for p, r in pairs], new_id

    def branch_batch(self, groups, prompt_loss):
        """One list of token rows (state, prompt, response) per state -> a micro-batch for MLE."""
        if not groups[0][0][0]:  # no shared state: the prompt itself is, with one response each
            groups = [[(p, [], r)] for group in groups for _, p, r in group]
        prompt, prompt_len = self.pad([group[0][0] for group in groups])
        G = max(map(len, groups))
        filled = [group + [None] * (G - len(group)) for group in groups]
        rows = [row for group in filled for row in group]  # B·G of them, None where there is none
        real = torch.tensor([row is not None for row in rows], device=self.device)
        start = torch.tensor([len(row[1]) if row else 0 for row in rows], device=self.device)
        ends = [row[1] + row[2] + [self.eos_id] if row else [self.eos_id] for row in rows]
        response, length = self.pad(ends)
        place = torch.arange(response.size(1), device=self.device)
        weight = torch.where(place >= start[:, None], 1.0, prompt_loss)  # [B·G, R]
        weight = weight * ((place < length[:, None]) & real[:, None])
        shape = len(groups), G, -1
        return prompt, prompt_len, response.view(shape), weight.view(shape)

    def pad(self, rows):
        """Lists of ids -> (ids [n, longest] padded on the right, lengths [n])."""
        length = torch.tensor([len(row) for row in rows])
        padded = torch.full((len(rows), max(1, int(length.max()))), self.eos_id)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        return padded.to(self.device), length.to(self.device)

    # --------------------------------------------------------------------------------------------
    # Answers and their scores

    def decode(self, batch, tokens):
        """
        tokens [B, G, R] -> B lists of G answer texts about the records' own uuids, cut at the end
        token; None where there is no end token.
        """
        texts = []
        for b, row in enumerate(tokens.tolist()):
            answers = []
            for ids in row:
                answer = None
                if self.eos_id in ids:
                    answer = self.bpe.decode(ids[: ids.index(self.eos_id)], errors="replace")
                if answer and batch.undo and batch.undo[b] is not None:
                    answer = self.task.permute([answer], batch.undo[b])[0]
                answers.append(answer)
            texts.append(answers)
        return texts

    def score(self, batch, tokens, names, by_frame=False):
        """tokens [B, G, R] -> {name: [B, G] fp32}: every named metric of the decoded answers."""
        rows = [
            self.score_texts(batch.split, index, answers, names)
            for index, answers in zip(batch.indices, self.decode(batch, tokens))
        ]
        scores = {}
        for name in names:
            values = [[score[name] for score in row] for row in rows]
            scores[name] = torch.tensor(values, dtype=torch.float32, device=self.device)
        return scores

    def score_texts(self, split, index, answers, names):
        """
        A list of {name: value} of several answers (None: one that never ended) to one record. Equal
        answers are scored once; one that is malformed or never ends gets each metric's worst value.
        """
        # where models are judged, they give the same answers again and again
        known = {} if split == "train" else self.known[split, index]
        found = []
        for answer in answers:
            own = known.setdefault(answer, {})
            missing = [name for name in names if name not in own]
            if answer is None:
                own.update({name: self.metrics[name].worst for name in missing})
            elif missing:
                own.update(self.score_text(split, index, answer, missing))
            found.append({name: own[name] for name in names})
        return found

    def score_text(self, split, index, answer, names):
        """{name: value} of one answer to a record."""
        plain = [name for name in names if name in self.task.metrics]
        expected = [name.removeprefix(EXPECTED) for name in names if name not in plain]
        scores = score_answer(self.task, answer, self.truth(split, index), plain)
        scores.update({EXPECTED + name: 0.0 for name in expected})
        for probability, outcome in self.outcomes(split, index) if expected else ():
            for name, value in score_answer(self.task, answer, outcome, expected).items():
                scores[EXPECTED + name] += probability * value
        return scores

    def outcomes(self, split, index):
        """
        [(probability, truth)] of all that could have happened; where a record does not tell, as in
        training, what did.
        """
        truth = self.truth(split, index)
        record = self.records[split][index]
        outcomes = record.get("outcomes", [(1.0, record["response"])])
        try:
            return [(p, self.as_truth(response, truth)) for p, response in outcomes]
        except (ValueError, TypeError) as error:
            raise BadInput(
                f"{self.folder / split}.jsonl, record {index + 1}: an outcome cannot be read "
                f"({error}); {self.remedy}"
            ) from None

    def as_truth(self, answer, truth):
        """What others are compared with if this answer is right, or None where nobody can say."""
        if self.task.as_truth:
            return self.task.as_truth(answer, truth)
        self.task.read(answer, truth)  # ValueError for what is malformed
        return answer if self.task.truth is truth_of_text else None

    def agreement(self, batch, tokens, terms):
        """
        tokens [B, G, R] -> [B, G]: each answer's mean reward against the other G - 1, each taken as
        the truth, or the number of its equals among them where the task cannot say what would be
        true; -inf for one that is malformed or has not ended.
        """
        terms = [(weight, name.removeprefix(EXPECTED)) for weight, name in terms]
        names = [name for _, name in terms]
        rows = []
        for index, answers in zip(batch.indices, self.decode(batch, tokens)):
            truth = self.truth(batch.split, index)
            count = Counter(answer for answer in answers if answer is not None)
            value = dict.fromkeys(count, 0.0)
            for other, n in count.items():
                try:
                    as_truth = self.as_truth(other, truth)
                except (ValueError, TypeError):
                    value[other] = float("-inf")
                    continue
                for answer in count:
                    if as_truth is None:
                        value[answer] += (answer == other) * (n - 1)
                        continue
                    scores = score_answer(self.task, answer, as_truth, names)
                    reward = sum(w * self.better(name) * scores[name] for w, name in terms)
                    value[answer] += (n - (answer == other)) * reward / max(1, len(answers) - 1)
            rows.append([value.get(answer, float("-inf")) for answer in answers])
        return torch.tensor(rows, dtype=torch.float32, device=self.device)

    def is_perfect(self, split, index, answer):
        """Whether an answer is as good as the true one by the first metric of the task."""
        name = next(iter(self.metrics))
        true = self.records[split][index]["response"]
        own, best = self.score_texts(split, index, [answer, true], [name])
        return own[name] >= best[name]

    def truth(self, split, index):
        """What the answer to a record is compared with, as the task says."""
        try:
            return self.task.truth(self.records[split][index], self.shared)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise BadInput(
                f"{self.folder / split}.jsonl, record {index + 1}: its truth cannot be read "
                f"({type(error).__name__}: {error}); {self.remedy}"
            ) from None

    # --------------------------------------------------------------------------------------------
    # The results table

    def references(self, split, indices):
        """Rows of the table that need no model: [(label, {metric: [N, 1]})]."""
        nearest = self.nearest_action(split)
        rules = {
            "copy (nothing changes)": lambda index: self.task.nothing_changes,
            "lookup (no learning)": nearest,
        }
        if EXPECTED + next(iter(self.task.metrics)) in self.metrics:
            rules["ceiling (the likeliest outcome)"] = lambda i: self.likeliest(split, i)
        rows = []
        for label, rule in rules.items():
            scores = [self.score_texts(split, i, [rule(i)], self.metrics)[0] for i in indices]
            by_name = {n: torch.tensor([[score[n]] for score in scores]) for n in self.metrics}
            rows.append((label, by_name))
        return rows

    def likeliest(self, split, index):
        """The response that is right most often: no answer has a higher expected exact match."""
        record = self.records[split][index]
        total = Counter()
        for probability, response in record.get("outcomes", [(1.0, record["response"])]):
            total[response] += probability
        return max(total, key=total.get)

    def nearest_action(self, split):
        """
        answer(index) of the row "lookup": what happened in the same state of the training data
        after the most similar action.
        """
        by_state = defaultdict(list)
        for record in self.records["train"]:
            if "state" in record:
                by_state[record["state"]].append((Counter(record["prompt"].split()), record))

        def answer(index):
            record = self.records[split][index]
            words = Counter(record["prompt"].split())
            near = by_state.get(record.get("state"), [])
            if not near:
                return self.task.nothing_changes
            shared = []
            for other, _ in near:
                total = sum(words.values()) + sum(other.values())
                shared.append(2 * sum((words & other).values()) / max(1, total))
            # the letters decide between actions with as many words in common
            finalists = sorted(range(len(near)), key=lambda i: -shared[i])[:8]
            letters = {}
            for i in finalists:
                pair = record["prompt"], near[i][1]["prompt"]
                letters[i] = difflib.SequenceMatcher(None, *pair).ratio()
            best = max(finalists, key=lambda i: (shared[i], letters[i]))
            return near[best][1]["response"]

        return answer

    def columns(self, split, indices):
        """
        Columns of the table: [(heading, metric, weight [N])]; a column is a weighted mean over the
        records.
        """
        records = [self.records[split][i] for i in indices]
        changed = torch.tensor([float(record.get("changed", True)) for record in records])
        size = Counter(record.get("kind", "") for record in records)
        every = torch.ones(len(records))
        over_kinds = torch.tensor([1 / size[record.get("kind", "")] for record in records])
        parts = []
        for name, metric in self.metrics.items():
            divided = metric.by_change and 0 < changed.sum() < len(changed)
            if divided:
                parts.append((f"{name} unchanged", name, 1 - changed))
                parts.append((f"{name} changed", name, changed))
            parts.append((f"{name} overall" if metric.by_change else name, name, every))
            if metric.by_change and len(size) > 1:
                parts.append((f"{name} mean of kinds", name, over_kinds))
        return parts

    def units(self, split, indices):
        """[N]: what a record says, or else its state, or else its prompt."""
        records = [self.records[split][i] for i in indices]
        return [r.get("unit") or r.get("state") or r["prompt"] for r in records]
