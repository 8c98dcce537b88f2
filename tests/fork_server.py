"""
A `python` that starts a script in milliseconds: a process that has imported torch already forks,
and the copy runs the script. Otherwise the tests of scripts and pages would spend most of their
time on importing torch, three seconds a command.

    environment["PATH"] = f"{fork_server.folder()}:{environment['PATH']}"

Nothing of the repository is imported beforehand: a script finds itself in a fresh process, with the
folder, environment, files and arguments of whoever called `python`, and starts others as quickly
with sys.executable. `python -m module` works as well. The server ends with the process that started
it, and takes along what still runs then.
"""

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


@functools.cache
def folder():
    """Starts the server, once, and returns the folder in which `python` lies."""
    place = Path(tempfile.mkdtemp(prefix="python-"))
    program = place / "python"
    # -IS: to start without looking for packages takes 10 ms
    client = f'exec "{sys.executable}" -IS "{__file__}" "{place}/socket" "$@"'
    program.write_text(f"#!/bin/sh\n{client}\n")
    program.chmod(0o755)
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # as common.py sets it
    command = [sys.executable, __file__, str(place)]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, env=environment, start_new_session=True
    )
    folder.server = server  # its end of the pipe closes with this process
    while not (place / "socket").exists():
        assert server.poll() is None, "the fork server did not start"
        time.sleep(0.05)
    return place


def client(path, arguments):
    """Has the server run a script, and ends as that ends."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        request = json.dumps([os.getcwd(), dict(os.environ), arguments])
        socket.send_fds(connection, [b" "], [0, 1, 2])
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        code = connection.makefile().read()
    sys.exit(int(code) if code else "the script was killed")


def serve(place):
    """Imports what takes long and forks for every client, until the standard input closes."""
    import numpy  # noqa: F401
    import PIL.ImageDraw  # noqa: F401
    import tiktoken  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torch.nn.parallel  # noqa: F401
    import tqdm  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{place}/new")
    listener.listen(64)
    os.rename(f"{place}/new", f"{place}/socket")  # it is there when it listens
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            for path in Path(place).iterdir():
                path.unlink()
            os.rmdir(place)
            os.killpg(0, signal.SIGKILL)
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            run_script(connection, place)
        connection.close()


def run_script(connection, place):
    """Runs what a client asks for in this process, and tells it the exit code."""
    import runpy
    import traceback

    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    where, environment, arguments = json.loads(connection.makefile().read())
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(where)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = f"{place}/python"
    if arguments[0] == "-u":  # as torchrun starts its processes
        del arguments[0]
    module = arguments[0] == "-m"
    sys.argv = arguments[module:]
    sys.path[0] = where if module else str(Path(arguments[0]).resolve().parent)
    code = 0
    try:
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code).encode())
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    client(sys.argv[1], sys.argv[2:])
