"""
The vocabulary of a text world: byte-pair encoding (Sennrich et al., arXiv 1508.07909), trained here
on the training split, or that of a pretrained model; run by tiktoken. Nothing is downloaded.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import tiktoken

from common import BadInput
from data.tokenizer_json import as_tokenizer, end_id, read_json, read_tokenizer
from data.world import WORDS

# letters: a longer piece is no word, nothing is learned from it (and every merge would scan it)
LONGEST = 1000


def train_bpe(texts, vocab_size, pattern=WORDS):
    """
    Merges of an iterable of (text, count); merges stay inside the pattern's pieces.

    Returns the bytes of ids 256, 257, ...; ids below 256 are the single bytes; the last id of the
    vocabulary is left for the end token. Deterministic: of equally frequent pairs the smallest is
    merged.
    """
    counts = Counter()
    for text, count in texts:
        for piece in re.findall(pattern, text):
            if len(piece) <= LONGEST:
                counts[piece] += count
    words = [list(bytes([b]) for b in piece.encode("utf-8", "replace")) for piece in counts]
    weights = list(counts.values())

    pairs = Counter()
    where = defaultdict(set)  # {pair: numbers of the words that hold it}
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
            old = words[i]
            words[i] = merge(old, best)
            for pair in zip(old, old[1:]):
                pairs[pair] -= weights[i]
                if pairs[pair] <= 0:
                    del pairs[pair]
            for pair in zip(words[i], words[i][1:]):
                pairs[pair] += weights[i]
                where[pair].add(i)
        pairs.pop(best, None)
    return merged


def merge(word, pair):
    """A word, a list of bytes, with every occurrence of the pair made one."""
    new = []
    j = 0
    while j < len(word):
        found = tuple(word[j : j + 2]) == pair
        new.append(pair[0] + pair[1] if found else word[j])
        j += 2 if found else 1
    return new


def encoding(merged, pattern=WORDS):
    """
    A tiktoken.Encoding of what train_bpe returned, with the same pattern. It has no special tokens,
    so that no text can spell the end token.
    """
    ranks = {bytes([b]): b for b in range(256)}
    ranks.update({token: 256 + i for i, token in enumerate(merged)})
    return tiktoken.Encoding("world", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


# what a model's chat form puts in front of what the user says, and behind it
CHATS = [
    ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),  # SmolLM2, Qwen
    (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),  # Llama 3
    ("<｜begin▁of▁sentence｜><｜User｜>", "<｜Assistant｜>"),  # the R1 distillates
]


def chat_frame(tokenizer, folder):
    """The ids in front of a question and behind it, of the chat form whose tokens there are."""

    def ids(text):
        found = []
        for piece in re.split("(" + "|".join(map(re.escape, tokenizer.special)) + ")", text):
            special = tokenizer.special.get(piece)
            found += tokenizer.encode_ordinary(piece) if special is None else [special]
        return found

    for chat in CHATS:
        if set(re.findall(r"<[|｜].*?[|｜]>", "".join(chat))) <= tokenizer.special.keys():
            return [ids(text) for text in chat]
    raise BadInput(
        f"{folder}: its tokenizer.json has the special tokens of no chat form known here"
    )


def pretrained_vocabulary(folder, template="none"):
    """
    What bpe.json holds where the vocabulary is that of a pretrained model in a folder: its
    tokenizer.json, its end token, the width of its embedding, which may be larger, and what stands
    around a question.
    """
    tokenizer = read_tokenizer(folder)
    width = read_json(Path(folder) / "config.json").get("vocab_size")
    if type(width) is not int or width < tokenizer.n_vocab:
        raise BadInput(
            f"{folder}: config.json says vocab_size {width!r}, and tokenizer.json has "
            f"{tokenizer.n_vocab} tokens: is one of them another model's?"
        )
    frame = chat_frame(tokenizer, folder) if template == "chat" else ([], [])
    own = read_json(Path(folder) / "tokenizer.json")
    return {"tokenizer": own, "end": end_id(folder), "width": width, "frame": frame}


class Vocabulary(NamedTuple):
    bpe: tiktoken.Encoding  # or data.tokenizer_json.Tokenizer: it encodes and decodes
    end: int  # id of the end token
    width: int  # how many ids there are
    before: list  # ids in front of a question
    after: list  # and behind it


def run_vocabulary(vocabulary, pattern, path="bpe.json"):
    """
    What bpe.json holds as a Vocabulary. It is a list of tokens in hex (train_bpe), behind which the
    end token comes, or see pretrained_vocabulary.
    """
    if isinstance(vocabulary, dict):
        bpe = as_tokenizer(vocabulary["tokenizer"], path)
        return Vocabulary(bpe, vocabulary["end"], vocabulary["width"], *vocabulary["frame"])
    bpe = encoding([bytes.fromhex(token) for token in vocabulary], pattern)
    return Vocabulary(bpe, bpe.n_vocab, bpe.n_vocab + 1, [], [])
