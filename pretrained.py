"""
Start from a pretrained language model, and give what became of it back.

    python pretrained.py --checkpoint=out/webnav-rlvr/best.pt --export=webnav-model

writes a folder that transformers and vLLM load. The other way, read_pretrained() makes a Model of a
folder as Hugging Face's libraries write it (config.json and .safetensors); its tokenizer is read by
data/tokenizer_json.py. They are of the families of LLaMA (SmolLM2, TinyLlama, Llama 3), Qwen2 and
2.5 (with DeepSeek-R1's distillates) and Qwen3; what would compute anything else is refused by its
name. Nothing is downloaded, and nothing is ever unpickled.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

# common first: it says how torch's threads wait, before torch is imported
from common import BadInput, load_checkpoint, option, parse_config, run_main

import torch

from data.tokenizer_json import end_id, read_json
from model import Model, ModelConfig


@dataclass
class Config:
    checkpoint: str = ""  # a file of either stage, trained with --look_back=false
    export: str = ""  # the folder to write; it must not exist yet
    tokenizer: str = ""  # the folder of the pretrained model whose tokenizer goes along, if any
    dtype: str = option("float32", "float32", "bfloat16")  # of the weights in the file


# ------------------------------------------------------------------------------------------------
# config.json

# model_type: transformers' class, and what sets its queries and keys apart
FAMILIES = {
    "llama": ("LlamaForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {"qkv_bias": True}),
    "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True}),
}
# what else a config may ask for, and the only answer that is computed here
ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "auto_map": None,  # code of its own
}
# Llama 3's rotation, in the order of ModelConfig.rope_scaling
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def number(path, values, field, default=None, kind=int):
    """A positive number of a config. Raises BadInput for anything else."""
    value = values.get(field)
    if value is None and default is not None:
        return default
    fits = not isinstance(value, bool) and isinstance(value, (int, kind))
    if not fits or not 0 < value < (2**28 if kind is int else float("inf")):
        raise BadInput(f"{path}: {field} is {value!r}, and should be a positive number")
    return kind(value)


def read_config(folder):
    """The ModelConfig of a folder's config.json. Raises BadInput for what is not computed here."""
    path = Path(folder) / "config.json"
    config = read_json(path)

    def refuse(field, value, instead):
        raise BadInput(f"{path}: {field} is {value!r}; what is computed here is {instead}")

    kind = config.get("model_type")
    if kind not in list(FAMILIES):
        refuse("model_type", kind, " or ".join(FAMILIES))
    for field, only in ONLY.items():
        if config.get(field, only) not in (None, only):
            refuse(field, config[field], f"only {only!r}")
    layer_types = config.get("layer_types") or []
    if not isinstance(layer_types, list) or set(map(str, layer_types)) - {"full_attention"}:
        refuse("layer_types", layer_types, "only 'full_attention'")

    # older files have rope_theta and rope_scaling, newer ones both in rope_parameters
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        refuse("rope_scaling", rope, "none, or that of Llama 3")
    rope = {"rope_theta": config.get("rope_theta"), **rope}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "llama3"):
        refuse("rope_type", rope_type, "'default' or 'llama3'")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        refuse("partial_rotary_factor", rope["partial_rotary_factor"], "only 1.0")
    scaling = ()
    if rope_type == "llama3":
        scaling = tuple(number(path, rope, field, kind=float) for field in LLAMA3)
        if not scaling[1] < scaling[2]:
            refuse("low_freq_factor", scaling[1], "less than high_freq_factor")

    layers = number(path, config, "num_hidden_layers")
    heads = number(path, config, "num_attention_heads")
    if layers > 1000:
        refuse("num_hidden_layers", layers, "at most 1000")
    try:
        return ModelConfig(
            vocab_size=number(path, config, "vocab_size"),
            block_size=number(path, config, "max_position_embeddings"),
            n_layer=layers,
            n_head=heads,
            n_kv_head=number(path, config, "num_key_value_heads", heads),
            n_embd=number(path, config, "hidden_size"),
            n_inner=number(path, config, "intermediate_size"),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            rope_theta=number(path, rope, "rope_theta", 10000.0, float),
            norm_eps=number(path, config, "rms_norm_eps", 1e-6, float),
            head_dim=number(path, config, "head_dim", 0),
            rope_scaling=scaling,
            **FAMILIES[kind][1],
        )
    except ValueError as error:
        raise BadInput(f"{path}: no model has this shape: {error}") from None


def their_config(config):
    """What read_config reads, as a dictionary. Raises BadInput if no family has this shape."""
    extras = {"qkv_bias": config.qkv_bias, "qk_norm": config.qk_norm}
    wanted = {name: True for name, value in extras.items() if value}
    kinds = [kind for kind, (_, extra) in FAMILIES.items() if extra == wanted]
    if config.look_back or not kinds:
        what = "look_back" if config.look_back else "qkv_bias and qk_norm together"
        raise BadInput(f"no other library computes {what}: train a model without it to export it")
    theirs = {
        "architectures": [FAMILIES[kinds[0]][0]],
        "model_type": kinds[0],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    if config.rope_scaling:
        scaling = dict(zip(LLAMA3, config.rope_scaling))
        scaling[LLAMA3[-1]] = int(scaling[LLAMA3[-1]])
        theirs["rope_scaling"] = {"rope_type": "llama3", **scaling}
    return theirs


# ------------------------------------------------------------------------------------------------
# Weights

# each word of a parameter's name here -> what transformers calls it
THEIR_WORDS = {
    "embed": "model.embed_tokens",
    "blocks": "model.layers",
    "norm1": "input_layernorm",
    "attention": "self_attn",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "norm2": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


def their_name(name):
    """'blocks.0.attention.q.weight' -> 'model.layers.0.self_attn.q_proj.weight'."""
    return ".".join(THEIR_WORDS.get(word, word) for word in name.split("."))


def import_safetensors():
    """The package, which is optional. Raises BadInput that says how to get it."""
    try:
        import safetensors.torch
    except ImportError:
        raise BadInput(
            "pretrained models are read and written by the package safetensors: "
            ".venv/bin/python -m pip install safetensors"
        ) from None
    return safetensors


def open_tensors(folder):
    """{name: the open .safetensors file that holds it}. Raises BadInput."""
    safetensors = import_safetensors()
    whole = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if whole.is_file():
        names = [whole.name]
    elif index.is_file():
        shards = read_json(index).get("weight_map")
        shards = set(map(str, shards.values())) if isinstance(shards, dict) else {None}
        missing = [name for name in shards if name not in names]
        if missing:
            raise BadInput(f"{index} names a file that is missing: {missing[0]}; download it again")
        names = sorted(shards)
    elif not names:
        pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        why = f"; {pickled[0].name} is pickled code and never opened" if pickled else ""
        raise BadInput(f"there are no weights in {folder}, which are .safetensors files{why}")
    tensors = {}
    for name in names:
        try:
            file = safetensors.safe_open(folder / name, "pt")
            for key in file.keys():
                if key in tensors:
                    raise BadInput(f"{folder / name}: tensor {key} is in another file as well")
                tensors[key] = file
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise BadInput(
                f"{folder / name} is damaged or no .safetensors file ({error}); download it again"
            ) from None
    return tensors


def check_tensor(tensors, name, shape, folder):
    """Raises BadInput unless a tensor is there, in the shape and of a dtype as expected."""
    if name not in tensors:
        raise BadInput(f"{folder}: the tensor {name} is missing, which config.json asks for")
    found = tensors[name].get_slice(name)
    dtype = found.get_dtype()
    if dtype not in ("F32", "BF16", "F16"):
        raise BadInput(f"{folder}: the tensor {name} is of dtype {dtype}, not F32, BF16 or F16")
    if found.get_shape() != list(shape):
        by_config = f"{found.get_shape()}, and config.json says {list(shape)}"
        raise BadInput(f"{folder}: the tensor {name} is {by_config}")


@torch.no_grad()
def read_pretrained(folder, device="cpu"):
    """
    The Model of a Hugging Face folder, in fp32 and ready for evaluation; its shape is .config.

    Raises BadInput, which names file and tensor, for a config that asks for what is not computed
    here, a damaged or missing file, and a tensor that is missing, too many, or of another shape.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = open_tensors(folder)
    with torch.device("meta"):  # shapes are compared before memory is taken
        wanted = {their_name(n): p.shape for n, p in Model(config).named_parameters()}
    for name, shape in wanted.items():
        check_tensor(tensors, name, shape, folder)
    for name in tensors:
        copy_of_tied = config.tie_embeddings and name == "lm_head.weight"
        if name not in wanted and not copy_of_tied and not name.endswith("rotary_emb.inv_freq"):
            raise BadInput(f"{folder}: the tensor {name} has no place in what config.json says")
    model = Model(config)
    for name, parameter in model.named_parameters():
        name = their_name(name)
        parameter.copy_(tensors[name].get_tensor(name))
        if not parameter.isfinite().all():
            raise BadInput(f"{folder}: the tensor {name} is not finite; download it again")
    if config.tie_embeddings and "lm_head.weight" in tensors:
        head = tensors["lm_head.weight"].get_tensor("lm_head.weight")
        if not torch.equal(head.float(), model.embed.weight):
            raise BadInput(
                f"{folder}: config.json says tie_word_embeddings, but the tensor lm_head.weight "
                f"is another than the embedding"
            )
    return model.to(device).eval()


def as_checkpoint(folder, world, device="cpu"):
    """
    A pretrained model in a folder as a checkpoint of stage 1 with no work behind it.

    Raises BadInput if the world has another vocabulary than the model, or longer sequences.
    """
    config = read_config(folder)
    own = world.vocabulary.get("tokenizer") if isinstance(world.vocabulary, dict) else None
    theirs = None if world.eos_id is None else read_json(Path(folder, "tokenizer.json"))
    if own != theirs or world.vocab_size != config.vocab_size:
        raise BadInput(
            f"the world {world.name} does not have the vocabulary of {folder}: for text, prepare "
            f"it with --tokenizer={folder}"
        )
    if world.block_size > config.block_size:
        raise BadInput(
            f"{folder}: max_position_embeddings is {config.block_size}, and the world {world.name} "
            f"has sequences of {world.block_size} tokens"
        )
    return {
        "stage": "mle",
        "world": world.fingerprint,
        "model_config": asdict(config),
        "model": read_pretrained(folder, device).state_dict(),
        "config": {"optimizer": "", "dtype": "float32", "threads": 0},
        "progress": {
            "seconds": 0.0,
            "work": 0,
            "before": {"seconds": 0.0, "work": 0},
            "best": None,
        },
    }


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def write_pretrained(model, folder, tokenizer="", dtype="float32"):
    """
    Writes a model as a folder that transformers and vLLM load: all of it, or nothing.

    tokenizer: the folder of a pretrained model; its tokenizer's files are copied, and the ids of
    its special tokens. Raises BadInput for a model that looks back, which no other library has, or
    a folder that is there already.
    """
    folder = Path(folder)
    theirs = their_config(model.config)
    save_file = import_safetensors().torch.save_file
    if folder.exists():
        raise BadInput(f"{folder} is there already: name a new folder, or remove it")
    theirs["torch_dtype"] = dtype
    special = {}
    if tokenizer:
        known = read_json(Path(tokenizer, "config.json"))
        special = {"bos_token_id": known.get("bos_token_id"), "eos_token_id": end_id(tokenizer)}
    temporary = folder.with_name(folder.name + f".tmp{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        to = getattr(torch, dtype)
        weights = {their_name(n): p.detach().cpu().to(to) for n, p in model.named_parameters()}
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        for name, value in (("config", {**theirs, **special}), ("generation_config", special)):
            (temporary / f"{name}.json").write_text(json.dumps(value, indent=2))
        for name in TOKENIZER_FILES if tokenizer else ():
            if name == "tokenizer.json" or Path(tokenizer, name).is_file():
                shutil.copyfile(Path(tokenizer, name), temporary / name)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(argv):
    config = parse_config(Config, argv)
    if not config.export or not config.checkpoint:
        raise BadInput("name what to export and where to: --checkpoint=FILE --export=FOLDER")
    checkpoint = load_checkpoint(config.checkpoint)
    model = Model(ModelConfig(**checkpoint["model_config"]))
    model.load_state_dict(checkpoint["model"])
    write_pretrained(model, config.export, config.tokenizer, config.dtype)
    print(f"{config.export}: {model.num_parameters():,} parameters in {config.dtype}")


if __name__ == "__main__":
    run_main(main)
