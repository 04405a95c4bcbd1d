"""Kill training again and again, and send malformed requests to a reward server; stop at the first wrong result.

Kills: `sfumato train` of a tiny model is killed (SIGKILL) at random moments and resumed. After each kill the newest
checkpoint must load, and `metrics.jsonl` must have every step once, with the values of a run that was never killed.
When a run is complete, its weights and its optimizer must be bit-identical to those of that run, and the next run
starts. Each start is a fork of a process that has already imported torch, so that kills fall into the work.

Requests: `sfumato serve` gets random bytes, wrong JSON, wrong shapes, huge headers and the like, while some connections
stay open and silent. Nothing malformed may be answered with a score or an internal error, and good requests in between
must be scored.

python benchmarks/soak.py [--kills 200] [--requests 10000] [--minutes 60] [--seed 0]
"""

import argparse
import base64
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from run_folders import assert_same_run, metrics_of  # pyright: ignore[reportMissingImports]
from tiny import tiny_config, tiny_var  # pyright: ignore[reportMissingImports]

from sfumato.cli.config_file import to_yaml
from sfumato.families import load_generator
from sfumato.families.library import save_model
from sfumato.files import read_metrics
from sfumato.request import Words
from sfumato.rewards.wire import JSON, TENSORS, pack
from sfumato.training.hooks.checkpoints import checkpoints_in

STEPS = 24
"""Steps of a run; a checkpoint is written after every second one."""
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["sfumato.training.train", "sfumato.cli.train"])


def train(arguments: list[str], output: Path) -> None:
    """Run `sfumato train` in this process, with its output in a file."""
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    from sfumato.cli.main import main

    sys.exit(main(["train", *arguments]))


def run_until(arguments: list[str], output: Path, seconds: float | None) -> bool:
    """Run `sfumato train`; kill it after `seconds` unless this is None. Return True if it was killed.

    Raises:
        AssertionError: it ended by itself, with an error.
    """
    process = PROCESSES.Process(target=train, args=(arguments, output))
    process.start()
    process.join(seconds)
    killed = process.exitcode is None
    if killed:
        process.kill()
        process.join()
    assert process.exitcode in ((-9, 0) if killed else (0,)), f"exit status {process.exitcode}; see {output}"
    return killed


def check_after_kill(run: Path, reference: Path) -> int:
    """Check a run that was killed; return the number of steps in its newest checkpoint.

    Raises:
        AssertionError: a checkpoint does not load, or metrics are missing, repeated or different.
    """
    checkpoints = checkpoints_in(run / "checkpoints")
    for checkpoint in checkpoints:
        load_generator(checkpoint / "model")
        for name in ("state.pt", "engine.pt"):
            torch.load(checkpoint / name, weights_only=True)
    done = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    steps = [int(row["step"]) for row in read_metrics(run)]  # without a last line that the kill cut off
    assert steps == list(range(1, len(steps) + 1)), f"steps {steps} in {run}/metrics.jsonl"
    assert len(steps) >= done, f"{len(steps)} steps in {run}/metrics.jsonl, but a checkpoint of step {done}"
    expected = {row["step"]: row for row in metrics_of(reference)}
    for row in read_metrics(run):
        values = {name: row[name] for name in expected[row["step"]]}
        assert values == expected[row["step"]], f"step {row['step']} of {run} differs from the run without kills"
    return done


def soak_training(folder: Path, kills: int, seconds: float, rng: random.Random) -> dict[str, Any]:
    """Kill and resume runs until there were `kills` kills and `seconds` seconds have passed; return the figures."""
    save_model(folder / "model", tiny_var())
    config, reference = folder / "config.yaml", folder / "whole"
    config.write_text(to_yaml(tiny_config(folder / "model", steps=STEPS, save_every=2, sample_every=8), Path("unused")))
    start = ["--config", str(config)]
    run_until([*start, "--run-dir", str(folder / "warm-up"), "--steps=1"], folder / "whole.log", None)
    began = time.monotonic()
    run_until([*start, "--run-dir", str(reference)], folder / "whole.log", None)
    whole, figures, began = time.monotonic() - began, Counter[str](), time.monotonic()
    while figures["kills"] < kills or time.monotonic() - began < seconds:
        run, output = folder / f"run-{figures['runs complete']}", folder / "runs.log"
        started = (run / "config.json").exists()
        arguments = ["--resume", str(run)] if started else [*start, "--run-dir", str(run)]
        if run_until(arguments, output, rng.uniform(0, 0.7 * whole)):
            figures["kills"] += 1
            done = check_after_kill(run, reference)
            figures["kills before the first checkpoint"] += done == 0
            figures["kills while a file was being written"] += any(run.rglob(".*.tmp"))
            continue
        assert_same_run(run, reference, STEPS)
        left = [path.name for path in run.rglob(".*")]
        assert not left, f"{run} still has {left}"
        shutil.rmtree(run)
        figures["runs complete"] += 1
    return {**figures, "seconds of a run without kills": round(whole, 1), "minutes": minutes_since(began)}


def minutes_since(began: float) -> float:
    """Return the minutes since a time of the monotonic clock."""
    return round((time.monotonic() - began) / 60, 1)


TOKEN = "right"
GOOD = pack(torch.full((2, 3, 4, 4), 0.2), Words(labels=torch.tensor([1, 2]), names=("a", "b")))
CLOSE = "HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
HEAD = f"POST /score {CLOSE}Authorization: Bearer {TOKEN}\r\n"
SHAPES = ((3, 4, 4), (0, 3, 4, 4), (2, 1, 4, 4), (2, 3, 0, 4), (1, 3, 5000, 1), (1,))


def post(body: bytes, content_type: str, head: str = HEAD) -> bytes:
    """Return the bytes of a request to score."""
    return f"{head}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def changed(rng: random.Random) -> bytes:
    """Return a good body with changed bytes in the header, which no longer is one."""
    body = bytearray(GOOD)
    body[0:8] = rng.randbytes(8)
    for _ in range(rng.randint(1, 9)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(body)


def wrong_json(rng: random.Random) -> bytes:
    """Return JSON that is no request."""
    values = [None, 3, -1.5, "x", [], {}, [None], float("nan"), 10**400, {"images": {}}, True]
    content = {"images": rng.choice(values), "labels": rng.choice(values), "captions": rng.choice(values)}
    return json.dumps(rng.choice([content, rng.choice(values), [content]])).encode()


def wrong_picture(rng: random.Random) -> bytes:
    """Return a request whose pictures are not PNG files in base64."""
    png = b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randrange(200))
    text = rng.choice([base64.b64encode(png).decode(), base64.b64encode(png).decode()[:-1] + "*", "€" * 9])
    return json.dumps({"images": [text]}).encode()


def wrong_tensors(rng: random.Random) -> bytes:
    """Return a safetensors file with tensors or texts that are no request."""
    images = torch.rand(2, 3, 4, 4)
    return rng.choice(
        [
            lambda: save({"images": torch.rand(rng.choice(SHAPES))}),
            lambda: save({"images": images * rng.choice([-1, 2, torch.nan, torch.inf])}),
            lambda: save({"images": images.to(rng.choice([torch.int16, torch.int64, torch.bool]))}),
            lambda: save({"images": images, "labels": torch.zeros(rng.randint(3, 9), dtype=torch.long)}),
            lambda: save({"images": images}, {"captions": json.dumps(rng.choice([["a"], "ab", [1, 2], {"a": 1}]))}),
            lambda: save({"images": images}, {"metadata": rng.choice(["[1, 2]", "{", '"', "[{}]", "[" * 9999])}),
        ]
    )()


def wrong_token(rng: random.Random) -> bytes:
    """Return a good request with a wrong or missing token."""
    token = rng.choice(["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer sécret", f"Bearer {TOKEN}{'x' * 9999}"])
    return post(GOOD, TENSORS, f"POST /score {CLOSE}Authorization: {token}\r\n")


def wrong_address(rng: random.Random) -> bytes:
    """Return a request for something that the server does not have."""
    line = rng.choice(
        ["GET /score", "PUT /score", "POST /", "POST /../../etc/passwd", "DELETE /health", "POST /score/x"]
    )
    return f"{line} {CLOSE}Authorization: Bearer {TOKEN}\r\nContent-Length: 0\r\n\r\n".encode()


def wrong_length(rng: random.Random) -> bytes:
    """Return a request whose length is negative, no number, twice stated or larger than the server accepts."""
    length = rng.choice(["-1", "x", "1e3", "9" * 30, str(2**40), "5\r\nContent-Length: 6", ""])
    return f"{HEAD}Content-Type: {TENSORS}\r\nContent-Length: {length}\r\n\r\nhello".encode()


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "random bytes instead of HTTP": lambda rng: rng.randbytes(rng.randint(1, 3000)) + b"\r\n\r\n",
    "random bytes as body": lambda rng: post(rng.randbytes(rng.randrange(3000)), rng.choice([TENSORS, JSON])),
    "a good body with changed bytes": lambda rng: post(changed(rng), TENSORS),
    "wrong JSON": lambda rng: post(wrong_json(rng), JSON),
    "deep JSON": lambda rng: post(rng.choice([b"[", b'{"images":']) * rng.randint(2000, 200_000), JSON),
    "wrong pictures": lambda rng: post(wrong_picture(rng), JSON),
    "wrong tensors": lambda rng: post(wrong_tensors(rng), TENSORS),
    "wrong content type": lambda rng: post(GOOD, rng.choice(["", "text/plain", "x" * 999, "multipart/form-data"])),
    "huge headers": lambda rng: f"{HEAD}X: {'x' * rng.randint(70_000, 400_000)}\r\n\r\n".encode(),
    "wrong length": wrong_length,
    "wrong token": wrong_token,
    "wrong address or method": wrong_address,
    "cut off, then half closed": lambda rng: post(GOOD, TENSORS)[: rng.randrange(1, len(GOOD))],
}
"""Malformed requests: functions that return the bytes to send."""


def send(port: int, request: bytes, half_close: bool = False) -> str:
    """Send bytes, close the sending half of the connection if wanted, and return the status of the answer, or "none"
    if the server closes the connection without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        answer = b""
        try:
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):  # refused before it was read completely
            pass
    found = re.match(rb"HTTP/1\.\d (\d{3})", answer)
    return found[1].decode() if found else "none"


def memory_of(process: int) -> float:
    """Return the MiB of memory that a process has in use."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def soak_server(folder: Path, requests: int, rng: random.Random) -> tuple[dict[str, Counter[str]], dict[str, Any]]:
    """Send malformed requests to `sfumato serve`; return the statuses of its answers by kind, and other figures."""
    environment = {**os.environ, "SFUMATO_REWARD_TOKEN": TOKEN}
    command = [sys.executable, "-m", "sfumato", "serve", "brightness", "--port", "0"]
    with ExitStack() as held:
        log = held.enter_context((folder / "server.log").open("w"))
        server = held.enter_context(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        )
        held.callback(server.kill)
        assert server.stdout is not None
        port = int(server.stdout.readline().rpartition(":")[2])
        while not is_up(port):
            time.sleep(0.1)
        for _ in range(20):  # that stay silent
            held.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(HEAD.encode())
        statuses: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        began, memory = time.monotonic(), 0.0
        for number in range(requests):
            if number == requests // 5:  # buffers and caches have been filled
                memory = memory_of(server.pid)
            kind = rng.choice(list(KINDS))
            request = KINDS[kind](rng)
            cut_off = kind.startswith("cut off")
            status = send(port, request, half_close=cut_off)
            statuses[kind][status] += 1
            assert status.startswith("4") or (cut_off and status == "none"), f"{kind}: {status} for {request[:500]!r}"
            if number % 100 == 99 or number == requests - 1:
                assert send(port, post(GOOD, TENSORS)) == "200"
        assert server.poll() is None
        figures = {
            "MiB after a fifth of the requests": round(memory, 1),
            "MiB at the end": round(memory_of(server.pid), 1),
            "lines that the server wrote to standard error": len((folder / "server.log").read_text().splitlines()),
            "minutes": minutes_since(began),
        }
    return statuses, figures


def is_up(port: int) -> bool:
    """Return whether the server accepts connections and answers."""
    try:
        return send(port, f"GET /health {CLOSE}\r\n".encode()) == "200"
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=0.0, help="kill and resume at least this long")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sfumato-soak-"))
    print(f"files in {folder}, which are kept if a check fails", flush=True)
    if arguments.requests:
        statuses, figures = soak_server(folder, arguments.requests, random.Random(arguments.seed))
        print("\n| malformed requests | sent | answers |\n|---|---|---|")
        for kind, counts in statuses.items():
            print(f"| {kind} | {counts.total()} | {', '.join(f'{n} × {s}' for s, n in sorted(counts.items()))} |")
        print_figures(figures)
    if arguments.kills or arguments.minutes:
        rng = random.Random(arguments.seed)
        print_figures(soak_training(folder, arguments.kills, arguments.minutes * 60, rng))
    shutil.rmtree(folder)


def print_figures(figures: dict[str, Any]) -> None:
    """Print a table of names and numbers."""
    print("\n| | |\n|---|---|", *(f"| {name} | {value} |" for name, value in figures.items()), sep="\n", flush=True)


if __name__ == "__main__":
    main()
