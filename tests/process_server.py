"""A server that has imported torch and all scripts, of which tests/processes.py lets processes be forked.

One for a whole test run: the first pytest process starts it and leaves its address in the environment, where those of
pytest-xdist find it. Nothing here imports more than Python's own modules.
"""

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ADDRESS = "IEFP_TESTS_SERVER"  # in the environment
# torch imports dynamo, which takes longer than a small run, in the first step or for DistributedDataParallel.
PROGRAM = """
import sys, conftest, processes, torch._dynamo, PIL.JpegImagePlugin, process_server
process_server.serve(int(sys.argv[1]), processes.run)
"""


def start() -> None:
    """Starts the server unless there is one; whoever connects before it is ready waits."""
    if ADDRESS in os.environ:
        return
    folder = tempfile.mkdtemp()
    os.environ[ADDRESS] = f"{folder}/socket"
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.environ[ADDRESS])
        listener.listen(64)
        number = listener.fileno()
        server = subprocess.Popen([sys.executable, "-c", PROGRAM, str(number)], stdin=subprocess.PIPE, cwd=TESTS.parent,
                                  pass_fds=[number], env={**os.environ, "PYTHONPATH": path})  # fmt: skip

    def stop() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(stop)


def ask(*given: object):
    """What the server's `run` returns of it, in a process of its own."""
    start()
    with Client(os.environ[ADDRESS], family="AF_UNIX") as connection:
        connection.send(sys.path)  # before what may need modules from there
        connection.send(given)
        return connection.recv()


def serve(number: int, run: Callable) -> None:
    """Answers whoever connects to the listening socket, each by a process forked from this one, until input ends."""
    with socket.socket(fileno=number) as listener:
        while sys.stdin not in (ready := wait([listener, sys.stdin], timeout=1)):
            if listener in ready:
                accepted, _ = listener.accept()
                if os.fork() == 0:
                    _answer(Connection(accepted.detach()), run)
                accepted.close()
            _reap()
    _reap()


def _answer(connection: Connection, run: Callable) -> None:
    try:
        sys.path[:] = connection.recv()
        connection.send(run(*connection.recv()))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def _reap() -> None:
    """Those that have ended; so their time counts as this process's."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
