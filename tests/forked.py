"""Processes that find each other as under torchrun, forked from one, so that libraries are imported once.

Only a process that has computed nothing yet may be forked: a worker script, never the one of pytest.
"""

import json
import os
import socket
import subprocess
import sys
import traceback


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(work, rank, world, port):
    """Forks a process that does ``work()`` as the one of this rank; gives its number."""
    sys.stdout.flush()
    if number := os.fork():
        return number
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_PORT": port}
    sizes = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in {**place, **sizes}.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    try:
        work()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def together(work, world=2):
    """Does ``work()`` in so many processes; how each ended: its status, or minus a signal."""
    port = free_port()
    return ended([started(work, rank, world, port) for rank in range(world)])


def ended(numbers):
    return [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers]


def results(worker, *arguments, timeout=600):
    """What a worker script tells on lines that begin with RESULT."""
    command = [sys.executable, str(worker), *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    lines = [line for line in output.stdout.splitlines() if line.startswith("RESULT")]
    assert lines and not output.returncode, output.stderr[-3000:]
    return [json.loads(line.removeprefix("RESULT")) for line in lines]
