"""Several servers that share the images of a batch, and what happens when some are away."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from errors import bad_input
from local_server import LocalServer, serving
from safetensors.torch import load

from sfumato.request import Words
from sfumato.rewards import RewardError, build_reward, needs
from sfumato.rewards.endpoint import Contacts

IMAGES = (torch.arange(8) / 255)[:, None, None, None].expand(8, 3, 4, 4).contiguous()
WORDS = Words(names=tuple("abcdefgh"), labels=torch.arange(8))


def labels_of(body: bytes) -> list[int]:
    return load(body)["labels"].tolist()


def score(body: bytes) -> tuple[int, bytes]:
    """Score an image by its label, which the first pixel repeats."""
    tensors = load(body)
    assert tensors["images"][:, 0, 0, 0].tolist() == tensors["labels"].tolist()
    return 200, json.dumps({"scores": tensors["labels"].tolist()}).encode()


@pytest.fixture(autouse=True)
def contacts(monkeypatch: pytest.MonkeyPatch) -> Contacts:
    fresh = Contacts()
    monkeypatch.setattr("sfumato.rewards.endpoint.CONTACTS", fresh)
    return fresh


@pytest.fixture
def two() -> Iterator[tuple[LocalServer, LocalServer]]:
    with ExitStack() as stack:
        yield stack.enter_context(serving(score)), stack.enter_context(serving(score))


def reward_of(*servers: LocalServer | str, options: str = ""):
    addresses = [server if isinstance(server, str) else server.address for server in servers]
    return build_reward({f"{','.join(addresses)}?retries=2{options}": 1.0})


def test_servers_share_a_batch(two: tuple[LocalServer, LocalServer], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SFUMATO_REWARD_TOKEN", "secret")
    both = threading.Barrier(2, timeout=10)  # both work at the same time
    for server in two:
        server.answer = lambda body: (both.wait(), score(body))[1]
    assert reward_of(*two)(IMAGES, WORDS)[0].tolist() == list(range(8))
    assert sorted(labels_of(server.seen[0][2]) for server in two) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [server.seen[0][1] for server in two] == ["Bearer secret"] * 2


def test_a_faster_server_does_more(two: tuple[LocalServer, LocalServer]):
    quick, slow = two
    go = threading.Event()
    slow.answer = lambda body: (go.wait(10), score(body))[1]

    def answer(body: bytes) -> tuple[int, bytes]:
        if len(quick.seen) == 6:
            go.set()
        return score(body)

    quick.answer = answer
    assert reward_of(*two, options="&batch_size=1")(IMAGES, WORDS)[0].tolist() == list(range(8))
    assert len(quick.seen) + len(slow.seen) == 8
    assert len(slow.seen) <= 2


def test_a_server_that_fails_is_left_out_and_comes_back(
    two: tuple[LocalServer, LocalServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    healthy, broken = two
    reward = reward_of(broken, healthy)
    broken.answer = lambda body: (502, b"<html><h1>Bad gateway</h1></html>")
    for _ in range(3):
        assert reward(IMAGES, WORDS)[0].tolist() == list(range(8))
    assert len(broken.seen) == 1
    note = f"sfumato: {broken.address}/score is left out and tried again every 60 s (502 Bad gateway)\n"
    assert capsys.readouterr().err == note
    broken.answer = score
    now = time.monotonic()
    monkeypatch.setattr("sfumato.rewards.endpoint.time.monotonic", lambda: now + 61)
    reward(IMAGES, WORDS)
    assert f"{broken.address}/score answers again after 6" in capsys.readouterr().err
    seen = len(broken.seen)
    reward(IMAGES, WORDS)
    assert len(broken.seen) > seen


def test_servers_that_were_never_there_are_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("sfumato.rewards.endpoint.time.sleep", pauses.append)
    with pytest.raises(RewardError, match=r"http://127\.0\.0\.1:(9|11)/score does not answer \(Connection refused\)"):
        reward_of("http://127.0.0.1:9", "http://127.0.0.1:11")(IMAGES, WORDS)
    assert not pauses


def test_if_all_are_away_the_run_waits(
    two: tuple[LocalServer, LocalServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pauses: list[float] = []
    reward = reward_of(*two, options="&batch_size=8")
    assert reward(IMAGES, WORDS)[0].tolist() == list(range(8))
    for server in two:
        server.answer = lambda body: (503, b"busy")

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            two[1].answer = score

    monkeypatch.setattr("sfumato.rewards.endpoint.time.sleep", sleep)
    assert reward(IMAGES, WORDS)[0].tolist() == list(range(8))
    assert pauses == [0.5, 1.0]
    assert "(503 busy; asking again for up to 2 s)" in capsys.readouterr().err
    two[1].answer = two[0].answer
    with pytest.raises(RewardError, match=r"did not answer 3 requests \(503 busy\)"):
        reward(IMAGES, WORDS)


def test_servers_of_a_model(two: tuple[LocalServer, LocalServer], monkeypatch: pytest.MonkeyPatch):
    """OpenAI-compatible servers share questions in the same way, and each gets the key."""
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    choice = {"choices": [{"message": {"content": "Final Score: 4"}}]}
    two[0].answer = lambda body: (500, b"Internal Server Error")
    two[1].answer = lambda body: (200, json.dumps(choice).encode())
    name = f"unifiedreward?endpoint={two[0].address}/v1,{two[1].address}/v1&concurrency=1"
    assert build_reward({name: 1.0})(IMAGES, WORDS)[0].tolist() == pytest.approx([0.8] * 8)
    assert [(path, token) for server in two for path, token, _ in server.seen] == [
        ("/v1/chat/completions", "Bearer key")
    ] * 9


def test_a_server_that_refuses_is_not_left_out(two: tuple[LocalServer, LocalServer]):
    for server in two:
        server.answer = lambda body: (401, b'{"error": "token: it is missing"}')
    with pytest.raises(RewardError, match=r"refused: 401 .*token: it is missing"):
        reward_of(*two, options="&batch_size=8")(IMAGES, WORDS)
    assert len(two[0].seen) + len(two[1].seen) == 1


def test_a_late_answer_is_noted_once(
    two: tuple[LocalServer, LocalServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sfumato.rewards.endpoint.LATE", 0.05)
    two[0].answer = lambda body: (time.sleep(0.2), score(body))[1]
    for _ in range(2):
        reward_of(two[0], options="&timeout=20")(IMAGES, WORDS)
    expected = f"sfumato: waiting for {two[0].address}/score (no answer after 0 s; the time limit is 20 s)\n"
    assert capsys.readouterr().err == expected


def test_a_connection_has_a_time_limit_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """A machine that is off is noticed in seconds; the limit for the answer is 300 s."""
    limits: list[float] = []

    def connect(address: tuple, timeout: float, *rest: object) -> None:
        limits.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr("socket.create_connection", connect)
    for scheme in ("http", "https"):
        with pytest.raises(RewardError, match=r"does not answer \(TimeoutError: timed out\)"):
            reward_of(f"{scheme}://127.0.0.1:9")(IMAGES, WORDS)
    assert limits == [10, 10]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" * 5000 + b"]" * 5000, "not JSON: \\[\\[\\["),
        (b'{"scores": ' + b"[" * 900 + b"]" * 900 + b"}", "no list of 8 scores: "),
        (b"<html><style>p {}</style><p>" + b"Sign in " * 250 + b"</p></html>", "not JSON: Sign in Sign in "),
        (b'{"scores": [1, NaN, Infinity, 1, 1, 1, 1, 1]}', "returned inf for 1 of 8 images"),
        (b'{"scores": [1, 1, 1, 1, 1, 1, 1, "x"]}', "not numbers"),
        (b"[]", "no list of 8 scores"),
    ],
)
def test_answers_that_are_none(two: tuple[LocalServer, LocalServer], body: bytes, message: str):
    two[0].answer = lambda request: (200, body)
    with pytest.raises(RewardError, match=message) as error:
        reward_of(two[0])(IMAGES, WORDS)
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


def test_metadata_that_json_cannot_store(two: tuple[LocalServer, LocalServer]):
    words = Words(names=("a",), labels=torch.tensor([0]), metadata=({"x": float("nan"), "y": [float("inf")]},))
    reward_of(two[0])(IMAGES[:1], words)
    body = two[0].seen[0][2]
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    assert header["__metadata__"]["metadata"] == '[{"x": null, "y": [null]}]'


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("localhost:8100", ("'localhost:8100'", "write http://localhost:8100")),
        ("[::1]:8100/x", ("write http://[::1]:8100/x",)),
        ("http://127.0.0.1:99999", ("url: 'http://127.0.0.1:99999'", "from 1 to 65535")),
        ("http://127.0.0.1:80a", ("url: 'http://127.0.0.1:80a'",)),
        ("http://", ("url: 'http://'",)),
        ("http://[::1", ("url: 'http://[::1'",)),
        ("http://a b:80", ("url: 'http://a b:80'",)),
        ("http://me:secret@127.0.0.1:80", ("url: the address of 127.0.0.1 has a user name",)),
        ("http://127.0.0.1:80,b:81", ("url: 'b:81'",)),
        ("http://127.0.0.1?batch_size=0", ("batch_size: 0",)),
        ("http://127.0.0.1?timeout=0", ("timeout: 0",)),
        ("http://127.0.0.1?timeout=nan", ("timeout: nan",)),
        ("http://127.0.0.1?retries=-1", ("retries: -1",)),
        ("http://127.0.0.1?protocol=pickle", ("'pickle'", "flow-grpo")),
        ("judge?endpoint=http://127.0.0.1:99999/v1", ("endpoint: 'http://127.0.0.1:99999/v1'",)),
        ("judge?endpoint=http://127.0.0.1:99/v1,b", ("endpoint: 'b'",)),
    ],
)
def test_addresses_and_options_that_are_refused(name: str, pieces: tuple[str, ...]):
    with bad_input("reward", *pieces):
        build_reward({name: 1.0})


def test_a_socks_proxy_for_the_hub_is_named(monkeypatch: pytest.MonkeyPatch):
    def download(*arguments: object) -> None:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed. Make sure to install it.")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with bad_input("owner", "ALL_PROXY", "pip install socksio"):
        needs.file("owner/repository/file.pt")


def test_a_socks_proxy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("https_proxy", "socks5://me:secret@127.0.0.1:1080")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(RewardError, match=r"HTTPS_PROXY is a SOCKS proxy, which is not supported") as error:
        reward_of("https://away.invalid")(IMAGES, WORDS)
    assert "secret" not in str(error.value)
