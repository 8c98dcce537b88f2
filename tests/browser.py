"""A browser for tests: Debian's chromium without a window, driven through its debugging port."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Socket:
    """The little of WebSocket (RFC 6455) that is needed: whole texts, one after the other."""

    def __init__(self, url):
        where = urlsplit(url)
        self.file = socket.create_connection((where.hostname, where.port), 20).makefile("rwb")
        key = base64.b64encode(os.urandom(16)).decode()
        self.file.write(
            f"GET {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
            "".encode()
        )
        self.file.flush()
        while self.file.readline().strip():
            pass

    def send(self, text):
        data = text.encode()
        size = len(data)
        head = bytes([0x81, 0x80 | min(size, 126)])
        if size >= 126:
            head = bytes([0x81, 0x80 | 127]) + size.to_bytes(8)
            if size < 2**16:
                head = bytes([0x81, 0x80 | 126]) + size.to_bytes(2)
        self.file.write(head + bytes(4) + data)  # masked with zeros
        self.file.flush()

    def receive(self):
        """The next text."""
        whole = b""
        while True:
            first, size = self.file.read(2)
            size &= 0x7F
            if size >= 126:
                size = int.from_bytes(self.file.read(2 if size == 126 else 8))
            data = self.file.read(size)
            if first & 0x0F in (0, 1):
                whole += data
                if first & 0x80:
                    return whole.decode()


class Browser:
    """One tab. errors: what was thrown, or written to the console as an error."""

    def __init__(self, folder):
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-extensions", "--disable-background-networking"]
        command += [f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for line in self.process.stderr:
            if "DevTools listening on" in line:
                break
        where = urlsplit(line.split()[-1]).netloc
        with urllib.request.urlopen(f"http://{where}/json/list") as reply:
            pages = [page for page in json.load(reply) if page["type"] == "page"]
        self.socket = Socket(pages[0]["webSocketDebuggerUrl"])
        self.errors = []
        self.number = 0
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Sends a command, and returns its result."""
        self.number += 1
        self.socket.send(json.dumps(dict(id=self.number, method=method, params=params)))
        while True:
            got = json.loads(self.socket.receive())
            if got.get("id") == self.number:
                if "error" in got:
                    raise RuntimeError(f"{method}: {got['error']}")
                return got["result"]
            about = got.get("params", {})
            if got.get("method") == "Runtime.exceptionThrown":
                self.errors.append(about["exceptionDetails"])
            if got.get("method") == "Runtime.consoleAPICalled" and about["type"] == "error":
                self.errors.append(about["args"])
            if got.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
                self.errors.append(about["entry"])

    def run(self, script):
        """The value of an expression in the page."""
        how = dict(awaitPromise=True, returnByValue=True)
        found = self.call("Runtime.evaluate", expression=script, **how)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, script, seconds=15):
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(f"!!({script})")
            if value:
                return
            time.sleep(0.02)
        raise TimeoutError(script)

    def key(self, key, text=""):
        """Presses a key, and lets go of it."""
        about = dict(key=key, text=text) if text else dict(key=key)
        self.call("Input.dispatchKeyEvent", type="keyDown", **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def look(self, path, width, height, dark):
        """Writes a picture of the whole page at a width, light or dark."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = [dict(name="prefers-color-scheme", value="dark" if dark else "light")]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        time.sleep(0.2)
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(picture))

    def close(self):
        self.process.terminate()
        self.process.wait(10)
        self.process.stderr.close()
