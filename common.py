"""What every script shares: options, sentences for bad input, processes, checkpoints, the Run."""

import contextlib
import ctypes
import dataclasses
import difflib
import inspect
import json
import os
import re
import shlex
import signal
import sys
import time
import zipfile
from datetime import timedelta
from pathlib import Path

# Before torch is imported: its threads sleep while they wait for each other. Threads that spin
# instead are a quarter faster on a quiet machine, and eight times slower beside a busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

VERSION = "0.2.0"  # what CHANGELOG.md and CITATION.cff call this

# SMOKE=1 in the environment: all that a script does, in seconds, written to out/smoke.
SMOKE = os.environ.get("SMOKE", "") not in ("", "0")
OUT = "out/smoke" if SMOKE else "out"

# ------------------------------------------------------------------------------------------------
# Bad input: one sentence, exit code 2


class BadInput(Exception):
    """What the user gave us is wrong; the message is one sentence: what, where, and what to do."""


def run_main(main, argv=None):
    """Calls main(argv); BadInput becomes one line on stderr and exit code 2. A bug stays a bug."""
    try:
        main(sys.argv[1:] if argv is None else argv)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; a training goes on with --resume", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # somebody reads only the head of what is printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------
# Configuration: a dataclass at the top of each script, --name=value on the command line


def option(default, *allowed):
    """A field of a Config: its default, and the two ends of its range or the words it may be."""
    return dataclasses.field(default=default, metadata={"allowed": allowed})


def print_help(config_class):
    """Prints the script's docstring, its options with defaults, comments and ranges, and exits."""
    print(sys.modules[config_class.__module__].__doc__ + "\noptions, with their defaults:")
    source = inspect.getsource(config_class)
    for field in dataclasses.fields(config_class):
        line = re.search(rf"((?:^    # .*\n)*)^    {field.name}: .*?(?:  # (.*))?$", source, re.M)
        comment = line[2] or " ".join(line[1].replace("    # ", "").split("\n"))  # before the field
        between = ", " if isinstance(field.default, str) else " to "
        values = between.join(map(str, field.metadata.get("allowed", ())))
        usage = f"  --{field.name}={field.default}".ljust(32)
        print(usage, comment.strip(), f"({values})" * bool(values))
    sys.exit(0)


def read_value(name, text, kind, allowed=()):
    """'3e-4' -> 0.0003 and so on. Raises BadInput for another kind, or what is not allowed."""
    try:
        value = text
        if kind is bool:
            value = ("false", "0", "no", "true", "1", "yes").index(text.lower()) > 2
        elif kind is not str:
            value = kind(float(text))
            if value != float(text):  # not whole, or not a number
                raise ValueError
    except (ValueError, OverflowError):
        expected = {bool: "true or false", int: "a whole number"}.get(kind, "a number")
        raise BadInput(f"--{name}={text}: expected {expected}") from None
    if allowed and kind is str:
        one_of(name, value, allowed)
    elif allowed and not allowed[0] <= value <= allowed[1]:
        raise BadInput(f"--{name}={text}: expected a number from {allowed[0]:g} to {allowed[1]:g}")
    return value


def parse_config(config_class, argv, smoke=()):
    """
    Builds config_class from its defaults and every --name=value (--flag: true), and prints it.
    smoke: {field: value}, last under SMOKE=1. Raises BadInput for an unknown name or a bad value.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    if "--help" in argv or "-h" in argv:
        print_help(config_class)
    values = {}
    for word in argv:
        if not word.startswith("--"):
            raise BadInput(f"{word!r} is no option; they are written --name=value: --help")
        name, equals, text = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
            hint = f"did you mean --{near[0]}?" if near else "--help lists them"
            raise BadInput(f"unknown option --{name}, {hint}")
        kind = fields[name].type
        if not equals and kind is not bool:
            raise BadInput(f"--{name} needs a value: --{name}=...")
        if name == "name" and text and ("/" in text or not text.strip(".")):
            raise BadInput(f"--name={text}: a name has no slash; the folder of results is --out")
        allowed = fields[name].metadata.get("allowed", ())
        values[name] = read_value(name, text if equals else "true", kind, allowed)
    values.update(smoke if SMOKE else ())
    config = config_class(**values)
    if is_main_process():
        words = (f"--{name}={value}" for name, value in dataclasses.asdict(config).items())
        print("config: " + " ".join(words) + "   (SMOKE=1)" * SMOKE)
    return config


def one_of(name, value, choices):
    """Returns value if it is one of choices, else raises BadInput that lists them."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        there_are = ", ".join(map(str, choices))
        raise BadInput(f"unknown {name} {value!r}{hint} (there are: {there_are})")
    return value


# ------------------------------------------------------------------------------------------------
# Processes and devices


def is_main_process():
    """True on rank 0, and where there is only one process."""
    return int(os.environ.get("RANK", 0)) == 0


def start_processes(config):
    """
    Joins torchrun's process group if there is one, and does as device, threads, dtype and seed say.
    Returns (device, rank, world_size, precision), the context in which the network runs. "auto"
    becomes what it stands for. The number of threads is fixed: results depend on it.
    """
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    present = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    device = [*present, "cpu"][0] if config.device == "auto" else config.device
    one_of("--device here", device.partition(":")[0], [*present, "cpu"])
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    keep_memory()
    if SMOKE:
        config.threads = 1  # the tensors are so small that threads would only wait for each other
    torch.set_num_threads(config.threads)
    if world_size > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
    torch.manual_seed(config.seed + rank)
    if getattr(config, "dtype", "") == "auto":
        config.dtype = "bfloat16" if multiplies_bf16(device) else "float32"
    return device, rank, world_size, autocast(device, getattr(config, "dtype", "float32"))


def keep_memory():
    """Tells glibc to keep freed memory: page faults cost a step up to half of its time on a CPU."""
    # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    for name, value in ((-1, 2**30), (-2, 2**26), (-3, 2**30)):
        with contextlib.suppress(OSError, AttributeError):  # where there is no glibc
            ctypes.CDLL("libc.so.6").mallopt(name, value)


def multiplies_bf16(device):
    """Whether bf16 is the faster one: CUDA from Ampere on, CPUs with AVX512-bf16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)


def autocast(device, dtype):
    """bf16 autocast (weights and optimizer stay fp32) where dtype is "bfloat16", or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def all_reduce(values, op="sum"):
    """Sums (or averages, or takes the maximum of) a list of floats over all ranks."""
    if not dist.is_initialized():
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
    return (tensor / ranks() if op == "mean" else tensor).tolist()


def share_of(name, total, pieces):
    """One piece of a global number. Raises BadInput if it cannot be divided into so many."""
    if total % pieces:
        raise BadInput(f"--{name}={total} cannot be divided into {pieces} equal pieces")
    return total // pieces


def ranks():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


# ------------------------------------------------------------------------------------------------
# Checkpoints


def save_checkpoint(path, checkpoint):
    """
    Writes a dictionary under another name, flushes and renames it: the file is whole or absent. The
    last.pt of before becomes last-before.pt. Raises BadInput if the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".tmp{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == "last.pt" and path.is_file():
            os.replace(path, path.with_name("last-before.pt"))
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        remedy = "the one before it is untouched: make room on the disk and go on with --resume"
        raise BadInput(f"could not save {path}: {reason}; {remedy}") from None


def load_checkpoint(path, device="cpu", make="python train_mle.py", stages=("mle", "rlvr")):
    """Never unpickles code. Raises BadInput for none, a changed bit, or another stage's."""
    if not Path(path).is_file():
        raise BadInput(f"there is no checkpoint at {path} yet; make one with: {make}")
    try:
        # what torch writes: entries with their CRC-32, none of them compressed
        with zipfile.ZipFile(path) as file:
            if any(e.compress_type for e in file.infolist()) or file.testzip():
                raise ValueError("checksum")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        stage, _, _ = (checkpoint[key] for key in ("stage", "model_config", "progress"))
    except Exception as error:
        wrong = f"is not a checkpoint of this version or is damaged ({type(error).__name__})"
        raise BadInput(f"{path} {wrong}; name another, or make it anew with: {make}") from None
    if stage not in stages:
        wanted = " or ".join(stages)
        raise BadInput(f"{path} is of the stage {stage!r}, not {wanted}; make one with: {make}")
    return checkpoint


def refuse_other_world(checkpoint, fingerprint, path):
    """Raises BadInput if a checkpoint was trained on another world than the one at hand."""
    if checkpoint["world"] != fingerprint:
        worlds = f"({checkpoint['world']}, not {fingerprint})"
        raise BadInput(f"{path} is of another world {worlds}: name the right one with --world")


def newest_checkpoint(path, stage):
    """For --resume: the checkpoint at path or, if that is torn, the one before it, or BadInput."""
    before = path.with_name("last-before.pt")
    wanted = "cpu", "the same command without --resume", (stage,)
    try:
        return load_checkpoint(path, *wanted)
    except BadInput as error:
        if not before.is_file():
            raise
        checkpoint = load_checkpoint(before, *wanted)
        if is_main_process():
            print(f"{error}; going on from {before} instead", file=sys.stderr)
            with contextlib.suppress(FileNotFoundError):  # or the next save would keep it instead
                os.replace(path, path.with_name("last-damaged.pt"))
        return checkpoint


# ------------------------------------------------------------------------------------------------
# A training run


class Run:
    """
    One training run of any stage: its folder, checkpoints, log, clock, and how it ends.

        run = Run("mle", config, "textgame-mle", fingerprint)
        run.keep(model_config, model=model, optimizer=optimizer)  # --resume puts them back here
        for step in run.steps(validate):
            ...
            run.log(("loss",), tokens, loss=loss)

    seconds: in steps, without validation. work: tokens through the network, forward 1, forward and
    backward 3. before: both, of earlier stages.
    """

    PROGRESS = ("step", "seconds", "work", "before", "best", "evaluated", "skipped")

    def __init__(self, stage, config, name, fingerprint=""):
        self.stage = stage
        self.config = config
        self.fingerprint = fingerprint
        self.folder = Path(config.out) / (config.name or name)
        self.step = 0
        self.seconds = 0.0
        self.work = 0
        self.before = {"seconds": 0.0, "work": 0}
        self.fresh = True  # it starts from random weights
        self.best = None
        self.evaluated = -1
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.file = None
        self.wandb = None
        self.begun = None  # when the step under way began
        self.rows = []  # what was logged since the last validation
        path = self.folder / "last.pt"
        self.resumed = newest_checkpoint(path, stage) if config.resume else None
        if self.resumed:
            refuse_other_world(self.resumed, fingerprint, path)

    def build_on(self, checkpoint):
        """Remembers the work behind the checkpoint that this run starts from."""
        self.before = work_behind(checkpoint)
        self.fresh = False

    def refuse_other_options(self, names):
        """Raises BadInput if the run is resumed with other values than it was started with."""
        started = self.resumed["config"]
        other = [name for name in names if started.get(name) != getattr(self.config, name)]
        if other:
            given = " ".join(f"--{name}={started.get(name)}" for name in other)
            raise BadInput(f"this run was started with {given}: give the same, or another --name")

    def keep(self, model_config, **parts):
        """Tells what checkpoints hold: things with a state_dict(). Resumed, it is put back here."""
        self.model_config = dataclasses.asdict(model_config)
        self.parts = parts
        if self.resumed:
            for name, part in parts.items():
                part.load_state_dict(self.resumed[name])
            vars(self).update(self.resumed["progress"])
            torch.set_rng_state(self.resumed["random"][0])
            if self.resumed["random"][1:] and torch.cuda.is_available():
                torch.cuda.set_rng_state(self.resumed["random"][1])
        self.open_log(self.resumed["log_position"] if self.resumed else None)
        self.resumed = None  # it holds a second copy of everything

    def open_log(self, position):
        """Opens metrics.jsonl and drops what stands behind position: those steps come again."""
        if not is_main_process():
            return
        if self.config.wandb:
            try:
                import wandb
            except ImportError:
                raise BadInput("--wandb needs the package wandb: pip install wandb") from None
            how = dict(name=self.folder.name, config=dataclasses.asdict(self.config))
            self.wandb = wandb.init(project=self.config.wandb, **how)
        if position is None and (self.folder / "last.pt").is_file() and not SMOKE:
            # another run of this name: nothing of the user's is lost
            n = 1 + len(list(self.folder.parent.glob(f"{self.folder.name}.old*")))
            aside = self.folder.rename(f"{self.folder}.old{n}")
            self.tell(f"{self.folder} held another run, which is now {aside}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.folder / "metrics.jsonl", "a", buffering=1)
        except OSError as error:
            raise BadInput(f"cannot write to {self.folder} ({error.strerror}): --out") from None
        self.file.truncate(min(position or 0, self.file.tell()))
        self.file.seek(0, os.SEEK_END)  # truncating does not move the place

    def write(self, step, **numbers):
        """Writes one line of metrics.jsonl, floats with 6 significant digits."""
        if not self.file:
            return
        row = {"step": step, "train_seconds": self.elapsed(), **numbers}
        row = {n: float(f"{x:.6g}") if isinstance(x, float) else x for n, x in row.items()}
        self.file.write(json.dumps(row) + "\n")
        if self.wandb:
            self.wandb.log(row, step=step)

    def save(self, filename):
        """Writes <folder>/<filename>."""
        if not is_main_process():
            return
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        checkpoint = {
            "stage": self.stage,
            "world": self.fingerprint,
            "config": dataclasses.asdict(self.config),
            "model_config": self.model_config,
            "progress": {name: getattr(self, name) for name in self.PROGRESS},
            "random": [torch.get_rng_state(), *cuda],
            "log_position": self.file.tell(),
            **{name: part.state_dict() for name, part in self.parts.items()},
        }
        save_checkpoint(self.folder / filename, checkpoint)

    def rng(self, rank=0):
        """Random numbers that depend on seed, step and rank only, so that resuming is exact."""
        return np.random.default_rng([self.config.seed, self.step, rank])

    def rate(self):
        """The share of the learning rate at this step: warm-up, 1, then falling to 0."""
        config = self.config
        falling = (1 - self.step / config.steps) / config.decay if config.decay else 1.0
        return min(1.0, (self.step + 1) / config.warmup, falling)

    def set_rate(self, optimizer, lr):
        """Sets an optimizer's learning rate to lr times the rate of this step."""
        for group in optimizer.param_groups:
            group["lr"] = lr * self.rate()

    def steps(self, validate):
        """
        Yields each step's number until all are done, --seconds are over, or Ctrl-C or SIGTERM came.
        best.pt has the largest value of validate() -> (value, {name: number}).
        """
        config = self.config
        asked = watch_signals()
        how = dict(unit="step", initial=self.step, total=config.steps)
        self.bar = tqdm(disable=not is_main_process(), **how)
        first = self.step
        while True:
            self.begun = None
            finished = self.step >= config.steps
            capped = bool(config.seconds) and self.seconds >= config.seconds
            # a model that has learned nothing yet has nothing to show
            begun = self.step or not self.fresh
            due = (begun and self.step % config.eval_every == 0) or finished or capped
            if due and self.evaluated != self.step:
                self.validation(validate)
            if finished or capped:
                break
            if asked():
                self.save("last.pt")
                break
            self.begun = time.perf_counter()
            yield self.step
            self.step += 1
            self.seconds = all_reduce([self.elapsed()], "max")[0]
            self.bar.update()
            if self.step == first + 10 < config.steps:
                minutes = self.seconds / self.step * (config.steps - self.step) / 60
                self.tell(f"{config.steps:,} steps: about {minutes:.1f} min more, validation apart")
        self.bar.close()
        end = f"done: {self.step} steps in {self.seconds:.0f} s; the best is {self.folder}/best.pt"
        if not finished:
            end = f"stopped after step {self.step}, all is saved; go on with: {resume_command()}"
        self.tell(end)

    def elapsed(self):
        """Seconds of training, of the step under way what has passed of it."""
        return self.seconds + (time.perf_counter() - self.begun if self.begun else 0.0)

    def validation(self, validate):
        """Validates, keeps best.pt and last.pt, and says how it stands."""
        value, numbers = validate()
        better = self.best is None or value > self.best
        self.evaluated = self.step
        if better:
            self.best = value
            self.save("best.pt")
        self.write(self.step, work=self.work, **{f"val_{n}": x for n, x in numbers.items()})
        found = ", ".join(f"{name} {number:.4f}" for name, number in numbers.items())
        found += " (best so far)" if better else ""
        if self.rows:
            means = {name: np.mean([row[name] for row in self.rows]) for name in self.shown}
            found += "; training: " + ", ".join(f"{n} {mean:.4g}" for n, mean in means.items())
        self.tell(f"step {self.step}: validation: {found}; {self.seconds:.0f} s")
        self.rows = []
        self.save("last.pt")

    def log(self, shown, tokens, **numbers):
        """Writes the numbers of the step under way; the names in `shown` go to the bar, too."""
        self.shown = shown
        numbers["tokens_per_second"] = tokens / max(1e-9, self.elapsed() - self.seconds)
        self.rows.append(numbers)
        self.write(self.step + 1, **numbers)
        self.bar.set_postfix({name: f"{numbers[name]:.3g}" for name in shown}, refresh=False)

    def tell(self, sentence):
        """Prints a sentence above the bar."""
        if is_main_process():
            tqdm.write(sentence)

    def finite(self, numbers, records):
        """True if all numbers {name: float} are finite; BadInput if 3 steps in a row are not."""
        wrong = ", ".join(f"{n} {x}" for n, x in numbers.items() if not np.isfinite(x))
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if wrong else 0
        if wrong:
            self.skipped += 1
            self.tell(f"step {self.step}: {wrong}; update skipped ({self.skipped} so far)")
        if self.skipped_in_a_row == 3:
            where = f"{wrong}; training records {', '.join(map(str, records()))}"
            remedy = f"go on from {self.folder}/last.pt with --resume and a lower --lr"
            raise BadInput(f"3 updates in a row were not finite ({where}); {remedy}, or in float32")
        return not wrong


def work_behind(checkpoint):
    """{"seconds", "work"} of all training behind a checkpoint, its own stage and those before."""
    progress = checkpoint["progress"]
    return {key: progress["before"][key] + progress[key] for key in ("seconds", "work")}


def watch_signals():
    """Returns asked(): whether Ctrl-C or SIGTERM came since, on any rank (Ctrl-C twice: ends)."""
    received = []

    def note(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return lambda: all_reduce([len(received)], "max")[0] > 0


def resume_command():
    """The command line that goes on with this run."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    start = f"torchrun --nproc_per_node={processes}" if processes > 1 else "python"
    words = [w for w in sys.argv if w != "--resume" and not w.startswith("--seconds")]
    return f"{start} {shlex.join(words)} --resume"
