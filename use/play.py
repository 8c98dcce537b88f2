"""
Play: one page in the browser in which worlds are driven, read, and watched while they train.

    python use/play.py                          all worlds under data/, all runs under out/
    python use/play.py --world=data/mine        that one first

Video is drive.py, text is read.py; worlds of your own play from their test records. Only this
machine is listened to, and only this page is answered.
"""

import contextlib
import json
import math
import secrets
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# common first: it says how torch's threads wait, before torch is imported
from common import OUT, BadInput, one_of, option, parse_config, run_main, start_processes

import torch

from data import load_world
from data.world import home, read_meta
from evaluate import checkpoint_path, load_model
from use.drive import Drive
from use.read import Read


@dataclass
class Config:
    world: str = ""  # a folder, or its name under data/: shown first; empty: any
    task: str = ""  # that world's task.py, where it is your own
    mle: str = ""  # the run or checkpoint of stage 1; empty: <world>-mle
    rlvr: str = ""  # of stage 2; empty: <world>-rlvr
    temperature: float = option(0.0, 0.0, 100.0)  # 0: greedy
    port: int = option(0, 0, 65535)  # 0: a free one
    device: str = "auto"  # cpu, cuda, mps or auto
    threads: int = option(2, 1, 1024)  # of a CPU
    seed: int = option(0, 0, 2**31)  # of tables, games, visits and samples
    out: str = OUT  # the folder of all runs


PLACES = 16  # so many are open at a time; the oldest is forgotten
LARGEST = 2**16  # bytes of a request
CURVES = ("val_reward", "reward", "val_psnr", "loss", "kl", "entropy", "equal_groups", "length")
PICTURES = "*.[pg][ni][gf]"
# what the page may do: run itself, show our pictures, ask us
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)

# ------------------------------------------------------------------------------------------------
# What the page may ask for


class Play:
    """The worlds, the places that are open in them, and the runs."""

    LOOK = ("worlds", "runs")  # these compute nothing, and need not wait for what does
    ACT = ("start", "step", "set", "group")

    def __init__(self, config, device):
        self.config = config
        self.device = device
        self.loaded = {}  # {name of a world: (what it was made of, world)}
        self.places = {}  # {id: place}, the newest last

    def folders(self):
        """{name: what load_world() takes}: the world of --world, then all under data/."""
        first = [read_meta(self.config.world)[0]] if self.config.world else []
        found = {folder.name: self.config.world for folder in first}
        for path in sorted(home("any").parent.glob("*/meta.json")):
            found.setdefault(path.parent.name, path.parent.name)
        return found

    def worlds(self, request):
        return dict(worlds=list(self.folders()))

    def world(self, name):
        """A world, loaded again where it, or its tokenizer, has been made anew."""
        folders = self.folders()
        folder = read_meta(folders[one_of("world", name, list(folders))])[0]
        parts = folder / "meta.json", Path(OUT, f"{folder.name}-tokenizer", "best.pt")
        made = [part.stat().st_mtime_ns for part in parts if part.is_file()]
        if self.loaded.get(name, (None,))[0] != made:
            task = self.config.task if folders[name] == self.config.world else ""
            self.loaded[name] = made, load_world(folders[name], self.device, task)
        return self.loaded[name][1]

    def start(self, request):
        """A place in request["world"]: the table, game or record of request["number"]."""
        number = request.get("number")
        if type(number) is not int or not 0 <= number < 2**31:
            raise BadInput("a place has a whole number, from 0 on")
        config = self.config
        if request.get("temperature") == 1:
            config = replace(config, temperature=1.0)
        world = self.world(request.get("world"))
        models = {}
        notes = []
        for label, run in (("MLE", self.config.mle), ("RLVR", self.config.rlvr)):
            path = checkpoint_path(run or f"{world.name}-{label.lower()}", self.config.out)
            make = f"python train_{label.lower()}.py --world={world.in_commands()}"
            if not path.is_file():
                notes.append(f"no {label} yet: {make}")
                continue
            try:
                models[label], _ = load_model(path, world, self.device)
            except BadInput as error:
                notes.append(str(error))
        domain = read_meta(world.folder)[1]["domain"]
        kind = Drive if hasattr(world, "episodes") else Read
        place = kind(world, domain, models, number, config)
        key = secrets.token_hex(8)
        self.places[key] = place
        for old in list(self.places)[:-PLACES]:
            del self.places[old]
        return dict(id=key, notes=notes, models=list(models), **place.view())

    def place(self, request, kind=(Drive, Read)):
        key = request.get("id")
        if not isinstance(key, str) or key not in self.places:
            raise BadInput("this place is closed, many newer ones are open: R opens another")
        if not isinstance(self.places[key], kind):
            raise BadInput("only video is set to the truth, only texts are shown as a group")
        return self.places[key]

    def step(self, request):
        return self.place(request).step(request)

    def set(self, request):
        return self.place(request, Drive).set()

    def group(self, request):
        return self.place(request, Read).group(request)

    def files(self, pattern):
        """The files out/<run>/<pattern>, but none to which a link leads out of the run's folder."""
        found = sorted(Path(self.config.out).glob(f"*/{pattern}"))
        return [p for p in found if p.is_file() and p.resolve().parent == p.parent.resolve()]

    def runs(self, request):
        """
        What runs have logged behind the byte request["seen"][run] (0 where a log has been begun
        anew), the tables, and {picture: when it was made}.
        """
        seen = request.get("seen")
        seen = seen if isinstance(seen, dict) else {}
        logs = {}
        for path in self.files("metrics.jsonl"):
            begin = seen.get(path.parent.name, 0)
            begin = begin if type(begin) is int and 0 <= begin <= path.stat().st_size else 0
            with open(path, "rb") as file:
                file.seek(max(0, begin - 1))
                if begin and file.read(1) != b"\n":
                    begin = 0
                    file.seek(0)
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            rows = [row for line in text.splitlines() if (row := read_row(line))]
            end = begin + len(text)
            logs[path.parent.name] = dict(begin=begin, end=end, age=path.stat().st_mtime, rows=rows)
        tables = {p.parent.name: p.read_text("utf-8", "replace") for p in self.files("results.md")}
        pictures = {f"{p.parent.name}/{p.name}": p.stat().st_mtime for p in self.files(PICTURES)}
        return dict(logs=logs, tables=tables, pictures=pictures)


def read_row(line):
    """A line of metrics.jsonl -> {"step", and of CURVES what it has}, or None."""
    with contextlib.suppress(ValueError, AttributeError):
        row = json.loads(line)
        found = {n: row[n] for n in ("step", *CURVES) if isinstance(row.get(n), (int, float))}
        return found if "step" in found and len(found) > 1 else None


# ------------------------------------------------------------------------------------------------
# The server


class Server(ThreadingHTTPServer):
    """Answers the page. One worker does all that computes, one thing after the other."""

    daemon_threads = True

    def __init__(self, play, port):
        super().__init__(("127.0.0.1", port), Handler)
        self.play = play
        self.worker = ThreadPoolExecutor(1)
        self.page = Path(__file__).with_suffix(".html").read_bytes()

    def handle_error(self, request, address):
        """A tab that was closed meanwhile is no error."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, address)


class Handler(BaseHTTPRequestHandler):
    timeout = 20  # seconds that a request may take to arrive

    def do_GET(self):
        self.answer(self.get)

    def do_POST(self):
        self.answer(self.post)

    def answer(self, find):
        """Sends what find() returns, (type, bytes); what is bad becomes one sentence."""
        code = 200
        try:
            here = [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]
            origin = self.headers.get("Origin", f"http://{here[0]}")
            if self.headers.get("Host") not in here or origin.removeprefix("http://") not in here:
                raise BadInput("this server answers its own page only")
            kind, body = find()
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            code = 400
            said = str(error)
            if not isinstance(error, (BadInput, OSError)):
                traceback.print_exc()
                said = f"play.py has a bug ({type(error).__name__}): its terminal says where"
            kind, body = "application/json", json.dumps({"error": said}).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def get(self):
        """The page, or a picture that is among those listed."""
        if self.path == "/":
            return "text/html; charset=utf-8", self.server.page
        for path in self.server.play.files(PICTURES):
            if unquote(self.path).partition("?")[0] == f"/{path.parent.name}/{path.name}":
                return f"image/{path.suffix[1:]}", path.read_bytes()
        raise BadInput("there is no such page")

    def post(self):
        """What Play does."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            raise BadInput(f"a request has at most {LARGEST} bytes, and says how many")
        try:
            request = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            raise BadInput("the request is no JSON object")
        play = self.server.play
        name = one_of("request", self.path[1:], (*play.LOOK, *play.ACT))
        deed = getattr(play, name)
        if name in play.LOOK:
            done = deed(request)
        else:  # many small operations, of which autograd's notes are a fifth: none are kept
            done = self.server.worker.submit(torch.inference_mode()(deed), request).result()
        return "application/json", json.dumps(finite(done)).encode()

    def log_message(self, *words):
        """Nothing: the terminal is not for every request."""


def finite(value):
    """JSON has no nan and no infinity; None stands for them."""
    if isinstance(value, dict):
        return {name: finite(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(argv):
    config = parse_config(Config, argv)
    device, *_ = start_processes(config)
    play = Play(config, device)
    play.folders()  # an unknown world is said at once
    try:
        server = Server(play, config.port)
    except OSError as error:
        reason = f"--port={config.port}: {error.strerror}"
        raise BadInput(f"{reason}; leave it out, and a free one is found") from None
    print(f"http://127.0.0.1:{server.server_port}   (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    run_main(main)
