"""A reward over HTTP: equal scores, many clients, malformed requests, tokens, limits, and a server that restarts."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from errors import bad_input
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from tiny import tiny_config, trainer_of

from sfumato.request import Words
from sfumato.rewards import Part, RewardError, build_reward
from sfumato.rewards.endpoint import as_png
from sfumato.rewards.server import application, check_host
from sfumato.rewards.wire import JSON, TENSORS, pack

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

LIMIT = 300_000
WORDS = Words(
    labels=torch.tensor([4, 7]), names=("ant", "bée"), captions=("an ant", "“a bee”"), metadata=({"k": 1}, {})
)
IMAGES = torch.randint(0, 256, (2, 3, 8, 6), generator=torch.Generator().manual_seed(0)) / 255


class Telling:
    """Scores that reveal the request: mean, label and length of texts; no score for label 0, an error for label 13."""

    last_failure = "the label is 0"

    def __call__(self, images: torch.Tensor, words: Words) -> torch.Tensor:
        if 13 in words.labels.tolist():
            raise KeyError("unlucky")
        texts = zip(words.captions, words.names, words.metadata, strict=True)
        lengths = [len(caption) + len(name) + len(metadata) for caption, name, metadata in texts]
        scores = images.mean((1, 2, 3)) + words.labels + 100 * torch.tensor(lengths)
        return torch.where(words.labels == 0, torch.nan, scores)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(token: str = "") -> Iterator[str]:
    """Run a server in a thread and yield its address."""
    app, port = application("telling", Part(reward=Telling()), token, LIMIT), free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    yield from start()


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    yield from start("secret")


def post(url: str, body: bytes, content_type: str = TENSORS, token: str = "") -> tuple[int, dict]:
    headers = {"Content-Type": content_type, "Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/score", body, headers), timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_the_scores_are_those_of_the_reward(address: str):
    here = Telling()(IMAGES, WORDS)
    there = build_reward({f"{address}?scale=2": 1.0})(IMAGES, WORDS)[0]
    torch.testing.assert_close(there, 2 * here, rtol=1e-6, atol=0)
    with urllib.request.urlopen(f"{address}/health", timeout=30) as response:
        assert json.loads(response.read()) == {"reward": "telling", "status": "ready", "version": version("sfumato")}


def test_pictures_as_png(address: str):
    pictures = [as_png(Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())) for image in IMAGES]
    content = {
        "images": [base64.b64encode(picture).decode() for picture in pictures],
        "labels": [4, 7], "names": WORDS.names, "captions": WORDS.captions, "metadata": [{"k": 1}, {}],
    }  # fmt: skip
    status, answer = post(address, json.dumps(content).encode(), JSON)
    assert status == 200
    assert answer["scores"] == pytest.approx(Telling()(IMAGES, WORDS).tolist(), rel=1e-6)


def test_no_score_and_its_reason(address: str):
    reward = build_reward({address: 1.0})
    words = Words(labels=torch.tensor([0, 1]), names=("a", "b"))
    _, parts = reward(IMAGES, words)
    assert parts[address].isnan().tolist() == [True, False]
    with pytest.raises(RewardError, match=r" 1 of 2 .*the label is 0"):
        reward.check_scored(parts, 0.1)


def test_a_reward_that_fails_there_is_named_here(address: str):
    words = Words(labels=torch.tensor([13, 1]), names=("a", "b"))
    with pytest.raises(RewardError, match=r"422 .*'telling' .*KeyError: 'unlucky'"):
        build_reward({address: 1.0})(IMAGES, words)


def test_sixteen_clients(address: str):
    def ask(number: int) -> bool:
        images = torch.full((3, 3, 16, 16), number / 255)
        words = Words(labels=torch.tensor([number, 1, 2]) + 20, names=("x",) * 3)
        return torch.equal(build_reward({address: 1.0})(images, words)[0], Telling()(images, words))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(64)))


def test_token(guarded: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RewardError, match=r"401 .*token: .*SFUMATO_REWARD_TOKEN"):
        build_reward({guarded: 1.0})(IMAGES, WORDS)
    monkeypatch.setenv("SFUMATO_REWARD_TOKEN", "secret")
    assert build_reward({guarded: 1.0})(IMAGES, WORDS)[0].isfinite().all()
    assert post(guarded, b"", token="sécret")[0] == 401
    for host in ("0.0.0.0", "192.168.1.2", "example.org"):
        with bad_input("host", host, "SFUMATO_REWARD_TOKEN"):
            check_host(host, "")
        check_host(host, "secret")
    for host in ("127.0.0.1", "::1", "localhost"):
        check_host(host, "")


MANY = save({"images": torch.rand(2, 3, 4, 4), "labels": torch.zeros(3, dtype=torch.long)})
MALFORMED = {
    "nothing": (b"", TENSORS, "body: .*safetensors"),
    "a pickle": (b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00}\x94.", TENSORS, "body: .*safetensors"),
    "other tensors": (save({"x": torch.ones(1)}), TENSORS, "body: .*'images'"),
    "three axes": (save({"images": torch.rand(3, 4, 4)}), TENSORS, r"images: \(3, 4, 4\)"),
    "no images": (save({"images": torch.rand(0, 3, 4, 4)}), TENSORS, r"images: \(0, 3, 4, 4\)"),
    "out of range": (save({"images": torch.full((1, 3, 4, 4), 2.0)}), TENSORS, "images: .*float32 .* 0 to 1"),
    "not a number": (save({"images": torch.full((1, 3, 4, 4), torch.nan)}), TENSORS, "images: .*float32 .* 0 to 1"),
    "whole numbers": (save({"images": torch.ones(1, 3, 4, 4).long()}), TENSORS, "images: .*int64 .* 8 bits"),
    "labels": (MANY, TENSORS, r"labels: \(3,\) .*torch\.int64 .*\(2,\)"),
    "texts": (save({"images": torch.rand(1, 3, 4, 4)}, {"captions": '["a", "b"]'}), TENSORS, "captions: .* 1 "),
    "metadata": (save({"images": torch.rand(1, 3, 4, 4)}, {"metadata": "[3]"}), TENSORS, "metadata: .* 1 "),
    "text/plain": (b"hello", "text/plain", "content-type: 'text/plain'"),
    "no json": (b"{", JSON, "body: .*JSON"),
    "deep json": (b"[" * 100_000, JSON, "body: .*JSON"),
    "a list": (b"[]", JSON, 'body: .*"images"'),
    "no png": (b'{"images": ["aGVsbG8="]}', JSON, "images: .*number 0 .*PNG"),
    "a number": (b'{"images": [3]}', JSON, "images: .*number 0 .*PNG"),
    "json labels": (
        json.dumps({"images": [base64.b64encode(as_png(Image.new("RGB", (2, 2)))).decode()], "labels": ["x"]}).encode(),
        JSON,
        "labels: ",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_requests(address: str, case: str):
    body, content_type, message = MALFORMED[case]
    status, answer = post(address, body, content_type)
    assert status == 400
    assert re.match(message, answer["error"]), answer
    assert post(address, pack(IMAGES, WORDS))[0] == 200


def test_too_long(address: str):
    status, answer = post(address, bytes(LIMIT + 1))
    assert status == 413
    assert re.match(rf"body: .*{LIMIT + 1} .*{LIMIT}", answer["error"]), answer


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_the_server_survives_garbage(address: str, data: st.DataObject):
    """Random bytes and valid requests with changed bytes get a clear answer and never an internal error."""
    body = pack(IMAGES, WORDS)
    if data.draw(st.booleans()):
        body = data.draw(st.binary(max_size=200))
    else:
        changed = bytearray(body)
        for place, value in data.draw(
            st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=9)
        ):
            changed[place] = value
        body = bytes(changed)
    status, answer = post(address, body, data.draw(st.sampled_from((TENSORS, JSON))))
    assert status in (200, 400, 422), answer
    assert ("scores" in answer) == (status == 200)


def test_garbage_instead_of_http(address: str):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"\x00\xff garbage\r\n\r\n")
        assert b"400" in connection.recv(1000)
    assert post(address, pack(IMAGES, WORDS))[0] == 200


SERVER = """
import sys
import uvicorn
from sfumato.rewards import build_reward
from sfumato.rewards.server import bind, serve
(name, part), = build_reward({"brightness": 1.0}).parts.items()
serve(name, part, bind("127.0.0.1", int(sys.argv[1]), ""), device="cpu")
"""


def launch(port: int) -> subprocess.Popen:
    """Start a server in another process and wait until it answers."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], env=environment)
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return process
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def test_training_waits_for_a_server_that_was_killed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    """The run does not stop, and its weights are those of a run without the interruption."""
    monkeypatch.setattr("sfumato.rewards.endpoint.LONGEST_PAUSE", 1.0)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    process = launch(port)
    try:
        weights = []
        for broken in (False, True):
            trainer = trainer_of(tiny_config(tiny_model, reward={f"{address}?retries=300": 1.0}))
            trainer.step(0)
            if broken:
                process.send_signal(signal.SIGKILL)
                process.wait()
                began = time.monotonic()
                with ThreadPoolExecutor(1) as pool:
                    step = pool.submit(trainer.step, 1)
                    time.sleep(1)
                    assert not step.done()
                    process = launch(port)
                    step.result()
                assert time.monotonic() - began > 1
            else:
                trainer.step(1)
            weights.append(torch.cat([p.detach().flatten() for p in trainer.engine.parameters]))
        assert torch.equal(weights[0], weights[1])
    finally:
        process.kill()
        process.wait()
