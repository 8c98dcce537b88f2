"""The little that every script shares: the command line, one clear sentence for bad input, processes, checkpoints, logs."""
import ast
import contextlib
import ctypes
import dataclasses
import difflib
import itertools
import json
import os
import random
import signal
import sys
import time
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

# ---------------------------------------------------------------------------------------------------------------------
# Bad input: one sentence, exit code 2


class BadInput(Exception):
    """Something the user gave us is wrong. The message is one sentence: what is wrong, where, and what to do."""


LONGEST_LINE = 2 ** 26  # characters: a file of records with a longer one is not what it should be, and is not read into memory


def numbered_lines(file, path):
    """(number, line) of an open file of text or bytes, from 1. Raises BadInput at a line of more than LONGEST_LINE."""
    for number in itertools.count(1):
        line = file.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise BadInput(f"{path}, line {number}: longer than {LONGEST_LINE:,} characters; a record is one line, check what wrote the file")
        yield number, line


def run_main(main, argv=None):
    """Calls main(argv) and turns BadInput into one line on stderr and exit code 2; any other error is a bug and keeps its traceback."""
    try:
        main(sys.argv[1:] if argv is None else argv)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; what was saved before is good, and --resume goes on from it", file=sys.stderr)
        sys.exit(130)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------------------------------
# Configuration: a dataclass at the top of each script, --name=value on the command line


def field_comments(config_class):
    """The comment behind each field of a dataclass, read from its source: {field name: comment}. It is the --help text."""
    import inspect
    comments = {}
    for line in inspect.getsource(config_class).splitlines():
        name, colon, rest = line.strip().partition(":")
        if colon and name.isidentifier() and "#" in rest:
            comments[name] = rest.rsplit("#", 1)[1].strip()
    return comments


def read_value(name, text, kind):
    """'3e-4' -> 0.0003 and so on, for kind bool, int, float or str. Raises BadInput with the expected type."""
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise BadInput(f"--{name}={text}: expected true or false")
    try:
        value = float(text)
        if kind is float and value == value:
            return value
        if kind is int and value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise BadInput(f"--{name}={text}: expected {'a whole number' if kind is int else 'a number'}")


def parse_config(config_class, argv, presets=None, quiet=False):
    """
    Builds config_class from defaults, then --preset=NAME, then every --name=value, in that order, and prints it in full.

    presets: {name: {field: value}}. A bare --flag means true for a bool field. --help prints all fields and exits.
    Raises BadInput for an unknown name (with the nearest one), a value of the wrong type or an unknown preset.
    """
    presets = presets or {}
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    if "--help" in argv or "-h" in argv:
        comments = field_comments(config_class)
        module = sys.modules[config_class.__module__]
        print((module.__doc__ or "").strip() + "\n\noptions, with their defaults:")
        for f in fields.values():
            print(f"  --{f.name}={f.default!s:<22} {comments.get(f.name, '')}")
        for name, values in presets.items():
            print(f"  --preset={name}: " + " ".join(f"{k}={v}" for k, v in values.items()))
        sys.exit(0)
    given = {}
    for word in argv:
        if not word.startswith("--"):
            raise BadInput(f"{word!r} is not an option; options are written --name=value, --help lists them")
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        if name != "preset" and name not in fields:
            near = difflib.get_close_matches(name, [*fields, "preset"], n=1, cutoff=0.5)
            raise BadInput(f"unknown option --{name}" + (f", did you mean --{near[0]}?" if near else ", --help lists them"))
        if not equals:
            if name == "preset" or fields[name].type not in (bool, "bool"):
                raise BadInput(f"--{name} needs a value: --{name}=...")
            text = "true"
        given[name] = text
    values = {}
    if "preset" in given:
        preset = given.pop("preset")
        if preset not in presets:
            raise BadInput(f"unknown preset {preset!r}; there are: {', '.join(presets) or 'none'}")
        values.update(presets[preset])
    for name, text in given.items():
        kind = fields[name].type
        kind = {"bool": bool, "int": int, "float": float, "str": str}.get(kind, kind)
        values[name] = read_value(name, text, kind)
    config = config_class(**values)
    if not quiet and is_main_process():
        print("config: " + " ".join(f"--{k}={v}" for k, v in dataclasses.asdict(config).items()))
    return config


def one_of(name, value, choices):
    """Returns value if it is one of choices, else raises BadInput that lists them."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
        raise BadInput(f"unknown {name} {value!r}" + (f", did you mean {near[0]!r}?" if near else "") + f" (there are: {', '.join(map(str, choices))})")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Processes and devices


def is_main_process():
    """True on rank 0, and where there is only one process."""
    return int(os.environ.get("RANK", 0)) == 0


def start_processes(device="auto", seed=0):
    """
    Joins the torchrun process group if there is one, picks the device, seeds every generator (each rank its own).

    device: "auto" (cuda, then mps, then cpu) or a torch device name. Returns (device, rank, world_size).
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    if device == "cpu":
        keep_memory()
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(minutes=10))
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed + rank)
    return torch.device(device), rank, world_size


def keep_memory():
    """
    Tells glibc to keep freed memory rather than to hand big blocks back to the kernel: a training step frees and allocates the same tensors
    over and over, and the page faults cost up to half of its time on a CPU. Does nothing where there is no glibc.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-1, 2 ** 30), (-2, 2 ** 26), (-3, 2 ** 30)):  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
            libc.mallopt(option, value)
    except (OSError, AttributeError):
        pass


def autocast(device, dtype):
    """
    bf16 autocast (weights and optimizer stay fp32), or nothing. dtype is "float32", "bfloat16" or "auto": bf16 where the hardware multiplies it
    faster, which is CUDA from Ampere on, and CPUs with AVX512-bf16 or AMX.
    """
    one_of("dtype", dtype, ("auto", "float32", "bfloat16"))
    able = False
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        able = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    if dtype == "bfloat16" or (dtype == "auto" and able):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def all_reduce(values, op="sum"):
    """Sums (or averages, or takes the maximum of) a list of floats over all ranks; returns a list of floats."""
    if not dist.is_initialized():
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
    if op == "mean":
        tensor /= dist.get_world_size()
    return tensor.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Stopping, and numbers that go wrong


def watch_signals():
    """
    From now on Ctrl-C and SIGTERM do not end the process at once: they ask its loop to save and to stop after the present step.

    Returns asked(), True on every rank as soon as any of them was asked. A second Ctrl-C ends the process where it stands.
    """
    received = []

    def note(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return lambda: all_reduce([len(received)], "max")[0] > 0


def resume_command(argv):
    """The command line that goes on with this run."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    start = f"torchrun --nproc_per_node={processes}" if processes > 1 else "python"
    return " ".join([start, sys.argv[0], *(word for word in argv if word != "--resume"), "--resume"])


class Guard:
    """Keeps numbers that are not finite out of the weights: such an update is skipped and counted, and `limit` in a row end the run."""

    def __init__(self, checkpoint, limit=3):
        self.checkpoint, self.limit, self.skipped, self.in_a_row = checkpoint, limit, 0, 0

    def finite(self, step, numbers, records):
        """
        True if all of numbers {name: float} are finite. records() lists the training records of the step, for the message.

        Raises BadInput after `limit` steps in a row that are not.
        """
        wrong = [f"{name} {value}" for name, value in numbers.items() if not np.isfinite(value)]
        self.in_a_row = self.in_a_row + 1 if wrong else 0
        self.skipped += bool(wrong)
        if wrong and is_main_process():
            print(f"step {step}: {', '.join(wrong)}; this update is skipped ({self.skipped} so far)", file=sys.stderr)
        if self.in_a_row >= self.limit:
            raise BadInput(f"{self.limit} updates in a row up to step {step} were not finite ({', '.join(wrong)}; training records "
                           f"{', '.join(map(str, records()))}); go on from {self.checkpoint} with --resume and a lower --lr, or with --dtype=float32")
        return not wrong


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints and logs


def random_states():
    """The states of Python's, numpy's and torch's generators as plain values that load with weights_only=True."""
    version, keys, position, has_gauss, gauss = np.random.get_state()
    states = {"python": repr(random.getstate()), "torch": torch.get_rng_state(),
              "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss)}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states):
    """Puts back what random_states() returned."""
    random.setstate(ast.literal_eval(states["python"]))
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def save_checkpoint(path, checkpoint, keep=False):
    """
    Writes a dictionary of tensors and plain values to a temporary name, flushes it to disk and renames it: the file is whole or absent.

    keep: the file that was there before stays beside it, "last.pt" as "last-before.pt". Raises BadInput if the disk does not take it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.is_file():
            os.replace(path, previous(path))  # killed here, --resume takes that one
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise BadInput(f"could not save {path}: {getattr(error, 'strerror', None) or error}; the checkpoint that was there before is untouched; "
                       f"make room on the disk and go on with --resume") from None


def previous(path):
    """Where save_checkpoint keeps the checkpoint that stood at path before."""
    return path.with_name(f"{path.stem}-before{path.suffix}")


def load_checkpoint(path, device="cpu", make="python train_mle.py"):
    """
    Reads a checkpoint, verifies its checksums and never unpickles code.

    Raises BadInput if there is none (naming the command that makes one), if it is torn or if any bit of it has changed.
    """
    if not Path(path).is_file():
        raise BadInput(f"there is no checkpoint at {path} yet; make one with: {make}")
    try:
        with zipfile.ZipFile(path) as file:  # what torch writes, each entry with its CRC-32, none of them compressed
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()) or file.testzip():
                raise ValueError("checksum")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(checkpoint, dict) or not {"model", "model_config", "stage"} <= checkpoint.keys():
            raise ValueError("keys")
        return checkpoint
    except Exception as error:
        raise BadInput(f"{path} is not a checkpoint of ours or is damaged ({type(error).__name__}); delete it and train again with: {make}") from None


def newest_checkpoint(path, device="cpu", make="python train_mle.py"):
    """For --resume: the checkpoint at path, or, if that is torn, the one that was there before it. Raises BadInput if neither is good."""
    path = Path(path)
    try:
        return load_checkpoint(path, device, make)
    except BadInput as error:
        if not previous(path).is_file():
            raise
        checkpoint = load_checkpoint(previous(path), device, make)
        if is_main_process():
            print(f"{error}; going on from {previous(path)} instead", file=sys.stderr)
            if path.is_file():  # out of the way, or the next save would keep it in place of the good one
                os.replace(path, path.with_name(f"{path.stem}-damaged{path.suffix}"))
        return checkpoint


def refuse_other_options(config, checkpoint, names):
    """Raises BadInput, naming the fields, if a resumed run is given other values for `names` than it was started with."""
    other = [f"--{name}={checkpoint['config'].get(name)}" for name in names if checkpoint["config"].get(name) != getattr(config, name)]
    if other:
        raise BadInput(f"the run that --resume goes on with was started with {' '.join(other)}: give the same options, or another --name")


class MetricsLog:
    """
    Writes one JSON object a line to out/<name>/metrics.jsonl; with wandb_project set, sends the same numbers to wandb.

    position: the length of the file when the checkpoint was saved from which the run goes on: lines behind it are of steps that will be done
    again, and are dropped. 0 starts the file anew.
    """

    def __init__(self, folder, config, wandb_project="", position=0):
        self.file, self.wandb, self.start = None, None, time.time()
        if not is_main_process():
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.file = open(Path(folder) / "metrics.jsonl", "a", buffering=1)
        self.file.truncate(min(position, self.file.tell()))
        self.file.seek(0, os.SEEK_END)  # truncating does not move the place, and position() must be right before the first line too
        if wandb_project:
            try:
                import wandb
            except ImportError:
                raise BadInput("--wandb needs the package wandb: pip install wandb") from None
            self.wandb = wandb.init(project=wandb_project, name=Path(folder).name, config=config)

    def position(self):
        """The length of the file in bytes, for the checkpoint."""
        return self.file.tell() if self.file else 0

    def write(self, step, **numbers):
        """Writes {"step": step, "seconds": since the start, **numbers}; floats keep 6 significant digits."""
        if self.file is None:
            return
        row = {"step": step, "seconds": round(time.time() - self.start, 2)}
        row.update({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in numbers.items()})
        self.file.write(json.dumps(row) + "\n")
        if self.wandb:
            self.wandb.log(row, step=step)
