"""
Pretrained models: folders read, computed and written as Hugging Face's transformers does it, and
tokenizers that give the ids of its package tokenizers.
"""

import gzip
import json
import random
import re
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

import evaluate
import pretrained
import sample
import train_mle
import train_rlvr
from common import BadInput
from data import load_world
from data.bpe import CHATS
from data.own import prepare
from data.tokenizer_json import SPLITS, end_id, read_tokenizer
from data.world import load_task
from generate import generate
from model import Model, ModelConfig
from pretrained import read_config, read_pretrained, their_name, write_pretrained
from tests.test_model import questions

reason = "needs requirements-dev.txt"
transformers = pytest.importorskip("transformers", reason=reason)
tokenizers = pytest.importorskip("tokenizers", reason=reason)
safetensors = pytest.importorskip("safetensors.torch", reason=reason)

SHAPE = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
SHAPE.update(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3.update(original_max_position_embeddings=32, rope_theta=10000.0)
KINDS = {
    "llama": ("Llama", {}),
    "tied": ("Llama", dict(tie_word_embeddings=True, rms_norm_eps=1e-5)),
    "wide heads": ("Llama", dict(head_dim=12, num_key_value_heads=4)),
    "llama 3": ("Llama", dict(rope_parameters=LLAMA3)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2 untied": ("Qwen2", dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen3": ("Qwen3", dict(head_dim=16, num_key_value_heads=1)),
}


def make(kind, folder, dtype=torch.float32, **how):
    """Writes a random model of a kind with transformers, and returns it in fp32."""
    family, changes = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(
        **{**SHAPE, **changes}, bos_token_id=None, eos_token_id=None
    )
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for p in theirs.parameters():
        mean, std = (0, 0.25) if p.dim() > 1 else (1, 0.2)
        torch.nn.init.normal_(p, mean=mean, std=std)
        p.data = p.data.to(dtype).float()  # transformers would round its rotation as well
    deepcopy(theirs).to(dtype).save_pretrained(folder, **how)
    return theirs


def their_logits(theirs, prompt, response):
    """fp32 logits [R, V] of one response [R] to one prompt [P], by transformers."""
    return theirs(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]


def same_logits(theirs, ours):
    tokens = torch.randint(0, 50, (2, 60))
    P = 20
    mask = torch.ones(2, 1, 40, dtype=torch.bool)
    with torch.no_grad():
        hidden = ours.hidden(tokens[:, :P], torch.tensor([P, P]), tokens[:, None, P:], mask)
        expected = theirs(tokens).logits[:, P - 1 : -1]
        return (ours.logits(hidden)[:, 0] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.fixture(params=KINDS)
def pair(request, tmp_path):
    return make(request.param, tmp_path / "a"), read_pretrained(tmp_path / "a")


def test_the_same_logits_gradients_and_greedy_answers_as_transformers(pair):
    """Right-padded prompts with a group of responses to each, against each of them alone."""
    theirs, ours = pair
    assert same_logits(theirs, ours)
    prompt = torch.randint(0, 50, (3, 9))
    prompt_len = torch.tensor([9, 2, 5])
    response = torch.randint(0, 50, (3, 2, 31))  # as long as Llama 3's rotation matters
    mask = torch.arange(31) < torch.tensor([31, 7, 20])[:, None, None].expand(3, 2, 1)
    weight = torch.randn(mask.shape)
    got = ours(prompt, prompt_len, response, mask, entropy=False)[0]
    expected = torch.zeros(mask.shape)
    for b, g in ((b, g) for b in range(3) for g in range(2)):
        logprobs = their_logits(theirs, prompt[b, : prompt_len[b]], response[b, g]).log_softmax(-1)
        expected[b, g] = logprobs.gather(-1, response[b, g][:, None])[:, 0]
    assert torch.allclose(got[mask], expected[mask], atol=1e-4)
    (got * weight).sum().backward()
    (expected * mask * weight).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        wanted = gradients.pop(their_name(name))
        assert (p.grad - wanted).abs().max() < 1e-4 * wanted.abs().max(), name
    assert not gradients
    batch = questions(prompt[:, :2], torch.tensor([2, 2, 2]), 64, eos_id=None)
    tokens = generate(ours, batch, 1, temperature=0.0).tokens[:, 0]
    greedy = dict(max_new_tokens=64, do_sample=False, pad_token_id=0)
    asked = torch.ones(3, 2, dtype=torch.long)
    theirs.generation_config.eos_token_id = None
    assert torch.equal(
        tokens, theirs.generate(prompt[:, :2], attention_mask=asked, **greedy)[:, 2:]
    )


def test_written_and_read_again(pair, tmp_path):
    """By transformers: the same logits; here: the same bits."""
    theirs, ours = pair
    write_pretrained(ours, tmp_path / "b")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    assert type(again) is type(theirs) and again.dtype == torch.float32
    assert same_logits(again, ours)
    back = read_pretrained(tmp_path / "b")
    assert back.config == ours.config
    for (name, a), b in zip(ours.state_dict().items(), back.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", ["tied", "qwen3"])
def test_bf16_shards_and_old_configs(kind, tmp_path):
    theirs = make(kind, tmp_path / "a", torch.bfloat16, max_shard_size="12KB")
    index = tmp_path / "a/model.safetensors.index.json"
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2 and index.is_file()
    ours = read_pretrained(tmp_path / "a")
    assert same_logits(theirs, ours) and ours.embed.weight.dtype == torch.float32
    path = tmp_path / "a/config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    old = {**config, "rope_theta": rope["rope_theta"], "rope_scaling": None}
    path.write_text(json.dumps({**old, "torch_dtype": "bfloat16"}))
    assert read_config(tmp_path / "a") == ours.config
    index.unlink()  # the shards alone will do
    assert torch.equal(read_pretrained(tmp_path / "a").norm.weight, ours.norm.weight)


def test_a_trained_model_is_exported_by_the_command(tmp_path, capsys):
    config = ModelConfig(50, 64, 2, 4, 2, 32, look_back=False)
    ours = Model(config).eval()
    known = {k: v for k, v in vars(config).items() if k not in ("head_dim", "qk_norm")}
    known.pop("rope_scaling")  # a checkpoint of before it was there
    checkpoint = {"model": ours.state_dict(), "model_config": known, "stage": "rlvr"}
    torch.save({**checkpoint, "progress": {}}, tmp_path / "best.pt")
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "config.json").write_text('{"eos_token_id": 7}')
    command = [f"--checkpoint={tmp_path / 'best.pt'}", f"--export={tmp_path / 'out'}"]
    pretrained.main([*command, f"--tokenizer={source}", "--dtype=bfloat16"])
    out = tmp_path / "out"
    assert (out / "tokenizer.json").read_text() == "{}" and end_id(out) == 7
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert theirs.dtype == torch.bfloat16 and theirs.generation_config.eos_token_id == 7
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert same_logits(theirs.eval(), read_pretrained(out))
    with pytest.raises(BadInput, match="is there already"):
        pretrained.main(command)
    with pytest.raises(BadInput, match="look_back"):
        write_pretrained(Model(ModelConfig(50, look_back=True)), tmp_path / "c")
    with pytest.raises(BadInput, match="together"):
        write_pretrained(Model(ModelConfig(50, qkv_bias=True, qk_norm=True)), tmp_path / "c")
    with pytest.raises(BadInput, match="--export=FOLDER"):
        pretrained.main([])
    assert not (tmp_path / "c").exists()


# ------------------------------------------------------------------------------------------------
# Bad input: one sentence that names the field, the file or the tensor


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    make("llama", folder)
    return folder


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good, tmp_path / "copy")


def refused(folder, *words, read=read_pretrained):
    with pytest.raises(BadInput) as caught:
        read(folder)
    sentence = str(caught.value)
    assert all(str(word) in sentence for word in words), sentence
    assert "\n" not in sentence


LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    "field,value",
    [
        ("model_type", "mixtral"),
        ("model_type", None),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("use_sliding_window", True),
        ("quantization_config", {"quant_method": "gptq"}),
        ("auto_map", {"AutoModelForCausalLM": "own.Own"}),
        ("partial_rotary_factor", 0.5),
        ("rope_scaling", LINEAR),
        ("rope_parameters", {**LINEAR, "rope_type": "yarn"}),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("hidden_size", "many"),
        ("hidden_size", -32),
        ("num_attention_heads", 3),
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", True),
        ("rms_norm_eps", 0),
        ("vocab_size", None),
    ],
)
def test_a_config_that_asks_for_something_else(copy, field, value):
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    refused(copy, path)


@pytest.mark.parametrize(
    "change,tensor",
    [
        (dict(vocab_size=51), "embed_tokens"),
        (dict(vocab_size=2**27, hidden_size=2**27), "embed_tokens"),
        (dict(num_hidden_layers=3), "layers.2."),
        (dict(num_hidden_layers=1), "layers.1."),
        (dict(num_key_value_heads=1), "k_proj"),
        (dict(head_dim=16), "_proj"),
        (dict(model_type="qwen2"), "q_proj.bias"),
        (dict(model_type="qwen3"), "q_norm"),
        (dict(tie_word_embeddings=True), "lm_head"),
    ],
)
def test_a_config_and_tensors_that_disagree(copy, change, tensor):
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(copy, copy, tensor)


ODD = [None, [], {}, "x", -1, 1e30, 0, True, [1], {"type": 3}, {"type": "Sequence"}, [[]], [{}]]


def test_odd_values_in_any_field_are_one_sentence_or_none(tmp_path):
    make("qwen3", tmp_path)
    train("smollm2", tmp_path, size=300)
    for name, read in (("config.json", read_config), ("tokenizer.json", read_tokenizer)):
        path = tmp_path / name
        good = json.loads(path.read_text())
        parts = [good, good["model"]] if "model" in good else [good, good["rope_parameters"]]
        for part in parts:
            for key, kept in list(part.items()):
                for part[key] in ODD:
                    path.write_text(json.dumps(good))
                    try:
                        read(tmp_path)
                    except BadInput as error:
                        assert name in str(error)
                part[key] = kept


def test_damaged_weights(copy, tmp_path):
    path = copy / "model.safetensors"
    data = path.read_bytes()
    rng = random.Random(0)
    for _ in range(150):
        broken = bytearray(data[: rng.choice([0, 7, 900, len(data) // 2, len(data) - 1])])
        if rng.random() < 0.7:
            broken = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                broken[rng.randrange(2000)] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            read_pretrained(copy)
        except BadInput as error:
            assert str(copy) in str(error)
    path.write_bytes(data[:-1])
    refused(copy, path, "damaged")
    weights = safetensors.load(data)
    name = "model.norm.weight"
    for value in (weights[name] * float("nan"), weights[name].double(), weights[name][:3].clone()):
        safetensors.save_file({**weights, name: value}, path)
        refused(copy, copy, name)
    safetensors.save_file({**weights, "extra.weight": weights[name].clone()}, path)
    refused(copy, "extra.weight")
    del weights["lm_head.weight"]
    safetensors.save_file(weights, path)
    refused(copy, "lm_head.weight", "missing")
    path.unlink()
    refused(copy, "no weights")
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    refused(copy, "pytorch_model.bin", "pickled")
    refused(tmp_path / "nothing", "config.json")
    (copy / "config.json").write_text('{"model_type": ')
    refused(copy, "config.json", "JSON")


def test_missing_and_doubled_shards(tmp_path):
    make("llama", tmp_path, max_shard_size="12KB")
    index = tmp_path / "model.safetensors.index.json"
    shard = sorted(tmp_path.glob("model-*"))[1]
    kept = shard.read_bytes()
    shard.unlink()
    refused(tmp_path, index, shard.name)
    index.unlink()
    refused(tmp_path, "missing")
    shard.write_bytes(kept)
    (tmp_path / "model-twice.safetensors").write_bytes(kept)
    refused(tmp_path, "another file")
    for text in ('{"weight_map": {"a": "../../../etc/passwd"}}', '{"weight_map": 3}', "{}"):
        index.write_text(text)
        refused(tmp_path, index)


def test_without_the_package_safetensors(good, monkeypatch):
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    refused(good, "pip install safetensors")


# ------------------------------------------------------------------------------------------------
# Tokenizers

PRE = tokenizers.pre_tokenizers
BYTE_LEVEL = PRE.ByteLevel(add_prefix_space=False)


def split(pattern):
    cut = PRE.Split(tokenizers.Regex(pattern), "isolated")
    return PRE.Sequence([cut, PRE.ByteLevel(add_prefix_space=False, use_regex=False)])


STYLES = {
    "gpt2": BYTE_LEVEL,
    "smollm2": PRE.Sequence([PRE.Digits(individual_digits=True), BYTE_LEVEL]),
    "digits together": PRE.Sequence([PRE.Digits(individual_digits=False), BYTE_LEVEL]),
    "llama 3": split(SPLITS[0]),
    "qwen": split(SPLITS[1]),
}
PIECES = (
    "hello, world's DON'T 12 3456789 ½ ² \u00a0 \n \r\n \t é e\u0301 ſ K 日本語 한국 \u1112\u1161 "
    "🙂 <|end|> <tool> #12 :: .:.: việc Ġ ... ==== \x00 \x04 \u2028 \ufeff ß the a 'll"
).split(" ")
PIECES += [" ", "  ", "\n\n  ", " the", " a", "\r\n\r\n", "\u00a0 "]


def fuzzed(n):
    """Texts of words, spaces, signs and any characters."""
    rng = random.Random(0)
    letters = [c for c in map(chr, range(0x2FFF)) if c.isprintable()]
    for _ in range(n):
        parts = rng.choices(PIECES, k=rng.randrange(1, 14)) + rng.choices(letters, k=2)
        rng.shuffle(parts)
        yield "".join(parts)


def train(style, folder, alphabet=True, normalizer=None, size=600):
    """Trains a tokenizer with the package tokenizers, and writes it. Returns it."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = STYLES[style]
    theirs.normalizer = normalizer
    theirs.decoder = tokenizers.decoders.ByteLevel()
    initial = PRE.ByteLevel.alphabet() if alphabet else []
    how = dict(special_tokens=["<|end|>"], initial_alphabet=initial, show_progress=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, **how)
    theirs.train_from_iterator(fuzzed(300), trainer)
    theirs.add_tokens(["<tool>"])
    folder.mkdir(exist_ok=True)
    theirs.save(str(folder / "tokenizer.json"))
    return theirs


def as_text(folder):
    """The tokenizer in a folder, with no added tokens that it would look for in texts."""
    parts = json.loads((folder / "tokenizer.json").read_text())
    return tokenizers.Tokenizer.from_str(json.dumps({**parts, "added_tokens": []}))


def compare(folder, texts):
    ours = read_tokenizer(folder)
    theirs = as_text(folder)
    for text in texts:
        ids = ours.encode_ordinary(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        assert not set(ids) & set(ours.special.values())
        if not ours.missing and not ours.nfc:
            assert ours.decode(ids) == text
    return ours


@pytest.mark.parametrize("style", STYLES)
def test_the_same_ids_as_tokenizers(style, tmp_path):
    theirs = train(style, tmp_path)
    ours = compare(tmp_path, fuzzed(400))
    assert ours.special == {"<|end|>": 0, "<tool>": 600} and ours.n_vocab == 601
    assert ours.decode([0, 600]) == "<|end|><tool>"
    assert theirs.encode("a<|end|><tool>").ids[1:] == [0, 600]  # there, text can spell them
    assert ours.decode([10**6]) == "\ufffd" and ours.encode_ordinary("\ud800") != []


def test_bytes_that_are_no_token_are_left_out(tmp_path):
    train("smollm2", tmp_path, alphabet=False)
    assert 0x01 in compare(tmp_path, fuzzed(400)).missing
    compare(tmp_path, ["a\x01b", ".\x01.", "\x01", "\U0004ffff x", "=\x02=\x01=="])


def test_nfc_comes_before_encoding(tmp_path):
    train("qwen", tmp_path, normalizer=tokenizers.normalizers.NFC())
    ours = compare(tmp_path, fuzzed(400))
    assert ours.decode(ours.encode_ordinary("e\u0301")) == "é"


def test_ids_that_are_not_in_the_order_of_merges(tmp_path):
    train("gpt2", tmp_path)
    path = tmp_path / "tokenizer.json"
    parts = json.loads(path.read_text())
    vocab = parts["model"]["vocab"]
    ids = [i for i in range(600) if i]
    random.Random(0).shuffle(ids)
    parts["model"]["vocab"] = {word: i and ids[i - 1] for word, i in vocab.items()}
    parts["model"]["merges"] = [" ".join(pair) for pair in parts["model"]["merges"]]  # as of old
    path.write_text(json.dumps(parts))
    compare(tmp_path, fuzzed(400))


def bpe(folder, merges, **model):
    """Writes a tokenizer of the 256 bytes and merges, given as lists of two."""
    folder.mkdir(exist_ok=True)
    words = sorted(PRE.ByteLevel.alphabet()) + [left + right for left, right in merges]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    parts = dict(type="BPE", vocab=vocab, merges=merges, **model)
    sequence = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    json.dump(
        dict(version="1.0", model=parts, added_tokens=[], pre_tokenizer=sequence),
        open(folder / "tokenizer.json", "w"),
    )


def test_merges_in_any_order(tmp_path):
    """
    tokenizers merges the pairs it is told, tiktoken what is a token together: random merges of few
    letters, many of which are never used, several for one token, some of which come too early.
    """
    rng = random.Random(0)
    texts = ["".join(rng.choices("abc", k=rng.randrange(1, 12))) for _ in range(300)]
    for _ in range(60):
        words = list("abc")
        merges = []
        for _ in range(12):
            pair = [rng.choice(words), rng.choice(words)]
            if pair not in merges and len("".join(pair)) < 7:
                merges.append(pair)
                words.append("".join(pair))
        bpe(tmp_path, merges)
        compare(tmp_path, texts)


def test_every_pair_told(tmp_path):
    """Llama 3's merges list each two tokens that are a third; words that are tokens are whole."""
    tokens = ["ab", "bc", "abc", "cc", "abcc", "xyz", "aa", "aaa"]
    known = set("abcxyz") | set(tokens)
    merges = [
        [token[:i], token[i:]]
        for token in tokens
        for i in range(1, len(token))
        if token[:i] in known and token[i:] in known
    ]
    bpe(tmp_path, merges, ignore_merges=True)
    path = tmp_path / "tokenizer.json"
    parts = json.loads(path.read_text())
    parts["model"]["vocab"]["xyz"] = 400  # made by no merge
    path.write_text(json.dumps(parts))
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcxyz", k=rng.randrange(1, 9))) for _ in range(500)]
    compare(tmp_path, [*texts, "xyz", "axyz", "xyz xyz"])
    bpe(tmp_path, [["a", "b"], ["ab", "c"], ["b", "c"]], ignore_merges=True)
    refused(tmp_path, "ignore_merges", read=read_tokenizer)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "'Unigram'"),
        ({"model": {"type": "WordPiece"}}, "'WordPiece'"),
        ({"byte_fallback": True}, "byte_fallback"),
        ({"dropout": 0.1}, "dropout"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}}, "Metaspace"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
        ({"normalizer": {"type": "Lowercase"}}, "'Lowercase'"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}]}},
            "'Prepend'",
        ),
        ({"vocab": {}}, "not what the package"),
        ({"merges": [["a"]]}, "not what the package"),
        ({"merges": [["q", "zzzz"]]}, "not what the package"),
        ({"added_tokens": 3}, "not what the package"),
        ({"model": None}, "not what the package"),
    ],
)
def test_other_kinds_of_tokenizers(change, words, tmp_path):
    train("gpt2", tmp_path, size=300)
    path = tmp_path / "tokenizer.json"
    parts = json.loads(path.read_text())
    for key, value in change.items():
        (parts["model"] if key in parts["model"] else parts)[key] = value
    path.write_text(json.dumps(parts))
    refused(tmp_path, path, words, read=read_tokenizer)


def test_split_patterns_that_are_not_known(tmp_path):
    theirs = train("qwen", tmp_path, size=300)
    theirs.pre_tokenizer = split(r"\w+|\W+")
    theirs.save(str(tmp_path / "tokenizer.json"))
    refused(tmp_path, "pre_tokenizer", read=read_tokenizer)


def test_the_id_that_ends_a_text(tmp_path):
    refused(tmp_path, "eos_token_id", read=end_id)
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert end_id(tmp_path) == 3
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 3]}')
    assert end_id(tmp_path) == 5


def test_the_same_ids_on_bytesized32(tmp_path, shared):
    with gzip.open(shared / "data" / "bytesized32" / "test.jsonl.gz", "rt") as file:
        texts = [line[:2000] for line, _ in zip(file, range(200))]
    train("llama 3", tmp_path, size=1000)
    compare(tmp_path, texts)


# ------------------------------------------------------------------------------------------------
# A world in a pretrained vocabulary, through every script


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretrained model, whose end token is id 0 and whose embedding is wider than its tokens."""
    folder = tmp_path_factory.mktemp("pretrained")
    train("smollm2", folder)
    family, changes = KINDS["tied"]
    KINDS["whole"] = family, {**changes, "vocab_size": 640}
    make("whole", folder)
    del KINDS["whole"]
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    return folder


@pytest.fixture(scope="module")
def world(folder, tmp_path_factory):
    """The world's folder; answers repeat a word of the prompt."""
    at = tmp_path_factory.mktemp("worlds")
    words = [f"{word} {n}" for word in ("hello", "the", "<|end|>") for n in range(12)]
    rows = [{"prompt": f"say {w}\n", "response": w, "state": "room\n"} for w in words]
    (at / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [f"--path={at / 'mine.jsonl'}", f"--out={at / 'mine'}"]
    prepare.main([*own, f"--tokenizer={folder}"])
    prepare.main([own[0], f"--out={at / 'other'}"])
    return at / "mine"


def test_every_script_starts_from_a_folder(folder, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    where = [f"--world={world}", "--device=cpu", "--dtype=float32", "--threads=1"]
    few = ["--steps=2", "--eval_every=1", "--eval_records=2"]
    own = ["--optimizer=adamw", "--lr=1e-3", "--gradient_checkpointing", "--batch_size=4"]
    train_mle.main([*where, *few, f"--init_from={folder}", *own])
    log = [json.loads(line) for line in open("out/mine-mle/metrics.jsonl")]
    # the pretrained model is judged before the first step: as transformers does
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    of = load_world(str(world))
    total = []
    for i in evaluate.validation_indices(of, 2):
        state, prompt, response = map(torch.tensor, of.tokens["val"][i])
        response = torch.cat([response, torch.tensor([0])])
        logprobs = their_logits(theirs, torch.cat([state, prompt]), response).log_softmax(-1)
        total += (-logprobs.gather(-1, response[:, None])[:, 0]).tolist()
    assert log[0]["step"] == 0 and abs(log[0]["val_loss"] - sum(total) / len(total)) < 1e-3
    assert log[-1]["val_loss"] < log[0]["val_loss"]

    grpo = ["--prompts_per_step=2", "--group_size=2", "--micro_batch_size=2"]
    train_rlvr.main([*where, *few, f"--init_from={folder}", *grpo, "--num_minibatches=1"])
    evaluate.main([f"--world={world}", f"--mle={folder}", "--best_of=2", "--val_records=2"])
    sample.main([f"--world={world}", f"--mle={folder}", "--rlvr=mine-rlvr", "--number=1"])
    assert "| MLE, T=1" in capsys.readouterr().out.replace("|  ", "| ")
    # what was trained goes back, and out of the way of other worlds
    back = ["--checkpoint=out/mine-rlvr/best.pt", "--export=back", f"--tokenizer={folder}"]
    pretrained.main(back)
    assert same_ids_and_end(folder, "back")
    train_mle.main([*where, *few, "--init_from=back", *own, "--name=again"])
    for other, words in ((world.parent / "other", "--tokenizer"), (world, "max_position")):
        if other == world:
            config = json.loads(open("back/config.json").read())
            open("back/config.json", "w").write(
                json.dumps({**config, "max_position_embeddings": 8})
            )
        with pytest.raises(BadInput, match=words):
            train_mle.main([f"--world={other}", "--init_from=back", "--name=other"])


def same_ids_and_end(a, b):
    texts = list(fuzzed(20))
    ids = [[read_tokenizer(f).encode_ordinary(text) for text in texts] for f in (a, b)]
    return ids[0] == ids[1] and end_id(a) == end_id(b)


def test_what_stands_behind_a_short_candidate_is_not_the_end_token(world):
    """It was id 0, which is the end token of SmolLM2."""
    batch = load_world(str(world)).candidates(["room\n"], [["say the\n", "say hello hello 7 9\n"]])
    assert batch.eos_id == 0 and not (batch.forced == 0).any()


def test_gradient_checkpointing_changes_nothing(folder):
    ours = read_pretrained(folder)
    prompt = torch.randint(0, 600, (2, 9))
    response = torch.randint(0, 600, (2, 3, 5))
    gradients = []
    for ours.recompute in (False, True):
        args = prompt, torch.tensor([9, 4]), response, torch.ones(2, 3, 5, dtype=torch.bool)
        (ours(*args)[0].sum()).backward()
        gradients.append([p.grad.clone() for p in ours.parameters()])
        ours.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_a_folder_whose_vocabulary_is_another(folder, world, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 600}))
    with pytest.raises(BadInput, match="another model's"):
        prepare.main([f"--path={world.parent / 'mine.jsonl'}", f"--out={tmp_path / 'new'}",
                      f"--tokenizer={other}"])  # fmt: skip
    with pytest.raises(BadInput, match="nothing is downloaded"):
        prepare.main([f"--path={world.parent / 'mine.jsonl'}", f"--out={tmp_path / 'new'}",
                      "--tokenizer=HuggingFaceTB/SmolLM2-135M"])  # fmt: skip
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("chat", CHATS, ids=["chatml", "llama 3", "r1"])
def test_a_question_in_the_chat_form(chat, tmp_path):
    """As the package tokenizers reads the whole text; what the user says never becomes special."""
    theirs = train("qwen", tmp_path)
    theirs.add_tokens(re.findall(r"<[|｜].*?[|｜]>", "".join(chat)))
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"vocab_size": 620, "eos_token_id": 0}')
    rows = [
        {"prompt": f"say {n}\n", "response": f"{n}", **({"state": "room\n"} if n < 20 else {})}
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = f"--path={tmp_path / 'rows.jsonl'}", f"--out={tmp_path / 'chat'}"
    prepare.main([*own, f"--tokenizer={tmp_path}", "--template=chat"])
    world = load_world(str(tmp_path / "chat"))
    for split, records in world.records.items():
        for record, (state, prompt, response) in zip(records, world.tokens[split]):
            whole = chat[0] + record.get("state", "") + record["prompt"] + chat[1]
            assert state + prompt == theirs.encode(whole, add_special_tokens=False).ids
            assert response == world.bpe.encode_ordinary(record["response"])
    assert not set(world.encode(chat[0])) & set(world.bpe.special.values())
    own = [f"--path={tmp_path / 'rows.jsonl'}", f"--out={tmp_path / 'none'}"]
    train("gpt2", tmp_path)
    with pytest.raises(BadInput, match="chat form"):
        prepare.main([*own, f"--tokenizer={tmp_path}", "--template=chat"])


def test_an_answer_that_thinks_first(tmp_path):
    """The task.py in docs/pretrained.md: only the final answer counts."""
    page = (Path(__file__).parents[1] / "docs/pretrained.md").read_text(encoding="utf-8")
    folder = tmp_path / "think"
    folder.mkdir()
    (folder / "task.py").write_text(page.split("```python\n")[1].split("```")[0])
    right = load_task("think", folder / "task.py").metrics["right"].function
    assert right("So it is 4. The final answer is: 5", "Let me see. The final answer is: 5") == 1
    assert right("The final answer is: 4", "The final answer is: 5") == 0
