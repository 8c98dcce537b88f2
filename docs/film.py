"""
The film of README: the page of `make play` in a browser, driven by keys and clicks.

    make demo && make demo WORLD=robot        what it shows
    python docs/film.py                       writes assets/play.gif; needs Debian's chromium

A robot is driven and set to the truth again, then an action of a text game and five samples of it,
then the curves of its runs: those that the demo has logged, uncovered bit by bit.
"""

import base64
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.browser import Browser

PAGE = 1080, 600  # in which it is laid out
SCALE = 0.8
HEAD = 30  # pixels above it, where stands what is done
PATIENCE = 600  # seconds that a busy machine may take for anything
RUNS = ("robot-tokenizer", "robot-mle", "robot-rlvr", "textgame-mle", "textgame-rlvr")


class Film:
    """Pictures of the page, each with what it shows and for how long."""

    def __init__(self, browser):
        self.browser = browser
        self.frames = []
        self.durations = []
        size = dict(zip(("width", "height"), PAGE))
        more = dict(deviceScaleFactor=SCALE, mobile=False)
        browser.call("Emulation.setDeviceMetricsOverride", **size, **more)
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        scheme = [dict(name="prefers-color-scheme", value="light")]
        browser.call("Emulation.setEmulatedMedia", features=scheme)

    def take(self, words, seconds):
        """One picture; words: what is done."""
        data = self.browser.call("Page.captureScreenshot", format="png")["data"]
        page = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        frame = Image.new("RGB", (page.width, page.height + HEAD), "#1b1f24")
        frame.paste(page, (0, HEAD))
        font = ImageFont.load_default(17)
        ImageDraw.Draw(frame).text((14, 4), words, fill="white", font=font)
        self.frames.append(frame)
        self.durations.append(round(1000 * seconds))

    def write(self, path):
        """
        One palette for all frames, so that what does not change takes no space: most of its colours
        for pictures, which are what is shown first, some for texts.
        """
        frames = self.frames
        palette = Image.new("P", (1, 1))
        palette.putpalette(
            colours(frames[: self.pictures], 176) + colours(frames[self.pictures :], 80)
        )
        first, *rest = [frame.quantize(palette=palette, dither=0) for frame in frames]
        how = dict(save_all=True, append_images=rest, duration=self.durations, loop=0)
        first.save(path, optimize=True, **how)
        print(f"{path}: {len(frames)} frames, {path.stat().st_size:,} bytes")


def colours(frames, n):
    """A palette of n colours for some frames, as bytes."""
    width, height = frames[0].size
    every = Image.new("RGB", (width, height * len(frames)))
    for i, frame in enumerate(frames):
        every.paste(frame, (0, i * height))
    found = every.quantize(n).getpalette()[: 3 * n]
    return found + [0] * (3 * n - len(found))


def robot(film, address):
    """Left and down at T = 1; T sets all to the truth again."""
    browser = film.browser
    browser.call("Page.navigate", url=f"{address}#robot")
    browser.wait("document.querySelectorAll('#lanes figure').length === 4", PATIENCE)
    browser.key("g", "g")
    browser.wait("sampled && place.since === 0 && !busy", PATIENCE)
    film.take("make play: keys move the gripper, in the simulator and in two models of it", 2)
    for key, name in [("ArrowLeft", "left")] * 3 + [("ArrowDown", "down")] * 3:
        since = browser.run("place.since")
        browser.key(key)
        browser.wait(f"place.since > {since} && !busy", PATIENCE)
        film.take(f"{name}: models see only their own frames, of the truth none", 0.7)
    film.durations[-1] = 2000
    browser.key("t", "t")
    browser.wait("place.since === 0 && !busy", PATIENCE)
    film.take("T: all are set to the truth again", 1.2)
    film.pictures = len(film.frames)


def textgame(film):
    """An action of the first game, and the group of MLE's samples."""
    browser = film.browser
    browser.run("location.hash = 'textgame'")
    browser.wait("document.querySelectorAll('#actions button').length > 1 && !busy", PATIENCE)
    film.take("a text game: its state, and what can be done", 1.5)
    opens = (
        "[...document.querySelectorAll('#actions button')].find((b) => /^open/.test(b.textContent))"
    )
    browser.run(f"{opens}.click()")
    browser.wait("document.querySelector('#answer-RLVR .lines') && !busy", PATIENCE)
    film.take("what changes: right, wrong and missing lines of what the models said", 2.5)
    browser.run("document.querySelector('#answer-MLE button').click()")
    browser.wait("document.querySelectorAll('#group .sample').length === 5 && !busy", PATIENCE)
    browser.run("scrollTo(0, document.body.scrollHeight)")
    film.take("what GRPO compares: samples, their rewards, who is above the mean", 3)
    browser.run("scrollTo(0, 0)")


def curves(film, logs, folder):
    """The text games' runs, as they were while they trained."""
    browser = film.browser
    shown = [name for name in logs if name.startswith("textgame")]
    for n in range(1, 9):
        for name in shown:
            rows = logs[name].splitlines(keepends=True)
            path = folder / "out" / name / "metrics.jsonl"
            path.write_text("".join(rows[: len(rows) * n // 8]))
            os.utime(path)  # the newest is what is training now
        if n == 1:
            browser.run("location.hash = 'runs'")
            browser.wait("document.querySelector('#curves svg')", PATIENCE)
        browser.run("watch()")
        film.take("runs while they train", 0.5)
    film.durations[-1] = 3000


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logs = {}
        for run in RUNS:
            there = ROOT / "out" / run
            if not (there / "best.pt").is_file():
                sys.exit(f"error: there is no {there}/best.pt: make demo && make demo WORLD=robot")
            (folder / "out" / run).mkdir(parents=True)
            (folder / "out" / run / "best.pt").symlink_to(there / "best.pt")
            logs[run] = (there / "metrics.jsonl").read_text()
        command = [sys.executable, str(ROOT / "use/play.py"), "--threads=1", "--world=robot"]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        try:
            address = next(line for line in server.stdout if line.startswith("http")).split()[0]
            browser = Browser(folder / "browser")
            try:
                film = Film(browser)
                robot(film, address + "/")
                textgame(film)
                curves(film, logs, folder)
                assert not browser.errors, browser.errors
            finally:
                browser.close()
        finally:
            server.terminate()
            server.wait()
    film.write(ROOT / "assets/play.gif")


if __name__ == "__main__":
    main()
