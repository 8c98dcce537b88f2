"""
The vocabulary of a pretrained language model: byte-level BPE from the tokenizer.json beside its
weights, run by tiktoken, with the ids that Hugging Face's package tokenizers gives. The families of
GPT-2, SmolLM2, Llama 3 and Qwen; any other kind is refused by its name.
"""

import json
import unicodedata
from itertools import groupby
from pathlib import Path

import tiktoken

from common import BadInput

# what may become one token, as tokenizers' pre-tokenizers cut a text: ByteLevel alone
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# behind Digits, of which NUMBER stand together: to the rest, a digit is where the text ends
DIGITS = r"NUMBER|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
# behind Split, as written in the tokenizer.json of Llama 3 and of Qwen
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = [SPLIT.replace("NUMBER", number) for number in (r"\p{N}{1,3}", r"\p{N}")]

# byte-level BPE writes a byte as a letter: itself where it is printable in Latin-1, else the next
# of those from 256 on
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = PRINTABLE + [byte for byte in range(256) if byte not in PRINTABLE]
LETTERS = PRINTABLE + list(range(256, 256 + 256 - len(PRINTABLE)))
# for str.translate; 256, which Latin-1 does not have, where a letter is none of these
TO_BYTES = {**dict.fromkeys(range(256), 256), **dict(zip(LETTERS, BYTES))}


class Tokenizer:
    """
    A pretrained vocabulary. No text becomes a special token.

    tokens: [(bytes, id)], single bytes and then the others in the order in which they are merged;
    special: {text: id}. A byte that is no token is left out, as tokenizers does.
    """

    def __init__(self, tokens, special, pattern, nfc):
        self.special = special
        self.nfc = nfc
        import regex  # comes with tiktoken

        self.pattern = regex.compile(pattern)
        self.ids = [i for _, i in tokens]
        self.bytes = {i: text.encode() for text, i in special.items()}
        self.bytes.update({i: token for token, i in tokens})
        self.n_vocab = 1 + max(self.bytes)
        # tiktoken merges what has the lowest rank, so that its ranks cannot always be the ids
        ranks = {token: rank for rank, (token, _) in enumerate(tokens)}
        self.missing = bytes(b for b in range(256) if bytes([b]) not in ranks)
        self.bpe = tiktoken.Encoding(
            "pretrained", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )

    def encode_ordinary(self, text):
        """The ids of a text; where nfc is set (Qwen), of its Unicode normal form C."""
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if self.nfc:
            text = unicodedata.normalize("NFC", text)
        raw = text.encode()
        if len(raw) == len(raw.translate(None, self.missing)):
            return [self.ids[rank] for rank in self.bpe.encode_ordinary(text)]
        ids = []
        for piece in self.pattern.findall(text):
            spelled = piece.encode().translate(None, self.missing)
            ranks = self.bpe._encode_single_piece(spelled) if spelled else []
            ids += [self.ids[rank] for rank in ranks]
        return ids

    def decode(self, ids, errors="replace"):
        """The text of ids; one that stands for nothing is a byte that is not UTF-8."""
        return b"".join(self.bytes.get(i, b"\xff") for i in ids).decode(errors=errors)


def read_tokenizer(folder):
    """The Tokenizer of a folder's tokenizer.json; see as_tokenizer."""
    path = Path(folder) / "tokenizer.json"
    return as_tokenizer(read_json(path), path)


def as_tokenizer(parts, path):
    """
    The Tokenizer of what a tokenizer.json holds; path names it in messages.

    Raises BadInput for a kind other than byte-level BPE, and for one that cuts or changes texts in
    a way that is not known here.
    """
    try:
        bpe = parts["model"]
        refuse_others(path, "model", bpe, type="BPE", byte_fallback=False, dropout=None)
        for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
            if bpe.get(affix):
                refuse_others(path, "model", bpe, **{affix: None})
        pattern = read_pattern(path, parts.get("pre_tokenizer"))
        normalizers = in_sequence(parts.get("normalizer"), "normalizers")
        for normalizer in normalizers:
            refuse_others(path, "normalizer", normalizer, type="NFC")
        special = {token["content"]: token["id"] for token in parts["added_tokens"]}
        tokens = read_merges(path, bpe, special)
        return Tokenizer(tokens, special, pattern, nfc=bool(normalizers))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"{path} is not what the package tokenizers writes ({type(error).__name__}: {error})"
        ) from None


def read_json(path):
    """The object in a JSON file. Raises BadInput if there is none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(
            f"there is no file {path}: name the folder of a pretrained model that is on this "
            f"machine, nothing is downloaded"
        ) from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadInput(f"{path} is no complete JSON object: download it again")
    return value


def refuse_others(path, name, part, **known):
    """Raises BadInput if a part of tokenizer.json has other values than those known here."""
    for field, value in known.items():
        if part.get(field, value) != value:
            raise BadInput(
                f"{path}: {field} of its {name} is {part[field]!r}; what can be read is {value!r}"
            )


def in_sequence(part, name):
    """The normalizers or pre-tokenizers of a part that may be one, several or None."""
    if part is None:
        return []
    return part[name] if part["type"] == "Sequence" else [part]


def read_pattern(path, part):
    """The regular expression of a pre_tokenizer. Raises BadInput."""
    *before, last = in_sequence(part, "pretokenizers") or [{"type": None}]
    if last["type"] == "ByteLevel" and not last["add_prefix_space"] and len(before) < 2:
        first = before[0] if before else {"type": None}
        if last.get("use_regex", True):
            if first["type"] is None:
                return GPT2
            if first["type"] == "Digits":
                return DIGITS.replace("NUMBER", r"\p{N}" + "+" * (not first["individual_digits"]))
        elif first["type"] == "Split" and first["behavior"] == "Isolated" and not first["invert"]:
            if first["pattern"].get("Regex") in SPLITS:
                return first["pattern"]["Regex"]
    raise BadInput(f"{path}: this pre_tokenizer is not known here: {json.dumps(part)[:200]}")


def read_merges(path, bpe, special):
    """
    [(bytes, id)] of a vocabulary: single bytes, then what merges make, in their order.

    tokenizers merges the pairs that it is told, tiktoken any two tokens that are a third together.
    It is the same if every such pair is told (Llama 3), or if the pair is what earlier merges make
    of the token's bytes, so that these never meet as another pair; told ones of which that is not
    true are never used.
    """

    def to_bytes(word):
        return word.translate(TO_BYTES).encode("latin-1")

    words = [m.split(" ") if isinstance(m, str) else m for m in bpe["merges"]]
    made = {left + right for left, right in words}
    if not {word for pair in words for word in pair} | made <= bpe["vocab"].keys():
        raise ValueError("a merge of what is no token")
    ids = {
        to_bytes(word): i
        for word, i in bpe["vocab"].items()
        if word not in special or word in made or len(word) == 1
    }
    pairs = [(to_bytes(left), to_bytes(right)) for left, right in words]
    every_pair = bool(bpe.get("ignore_merges"))
    if every_pair and not all_told(pairs, ids):
        raise BadInput(f"{path}: ignore_merges is set, and the merges do not list every pair")
    rank = {bytes([b]): -1 for b in range(256)}
    halves = {}
    for left, right in pairs:
        token = left + right
        known = left in rank and right in rank
        if token not in rank and (every_pair or known and not crossed(left, right, rank, halves)):
            rank[token] = len(rank)
            halves[token] = left, right
    if bpe.get("unk_token") and not all(bytes([b]) in ids for b in range(256)):
        raise BadInput(f"{path}: unk_token is set, and some bytes are no token")
    tokens = [(token, ids[token]) for token in rank if len(token) > 1 or token in ids]
    if every_pair:  # the others are only found where they are a whole word
        tokens += [(token, i) for token, i in ids.items() if token not in rank]
    if not all(type(i) is int and i >= 0 for _, i in tokens):
        raise ValueError("an id is no number")
    return tokens


def all_told(pairs, ids):
    """Whether merges list every two tokens that are a third together, those of each in a row."""
    told = set(pairs)
    rows = [token for token, _ in groupby(left + right for left, right in pairs)]
    return len(rows) == len(set(rows)) and all(
        (token[:i], token[i:]) in told
        for token in ids
        for i in range(1, len(token))
        if token[:i] in ids and token[i:] in ids
    )


def crossed(left, right, rank, halves):
    """
    Whether a merge of those in rank makes one token of bytes on both sides of the line between left
    and right, before these are made.
    """
    # the pairs that meet at the line, from the last one back to single bytes; each stands there
    # until one of the two is merged with its other neighbour
    until_left = until_right = len(rank)
    while True:
        r = rank.get(left + right, len(rank))
        # of two merges of one rank the left one comes first
        if r < until_left and r <= until_right and r < len(rank):
            return True
        if len(left) == len(right) == 1:
            return False
        if rank[left] > rank[right]:
            until_left = rank[left]
            left = halves[left][1]
        else:
            until_right = rank[right]
            right = halves[right][0]


def end_id(folder):
    """The id that ends a text: eos_token_id of generation_config.json, or else of config.json."""
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        found = read_json(path).get("eos_token_id") if path.is_file() else None
        found = found[0] if isinstance(found, list) and found else found
        if type(found) is int:
            return found
    raise BadInput(f"{folder}: neither generation_config.json nor config.json has an eos_token_id")
