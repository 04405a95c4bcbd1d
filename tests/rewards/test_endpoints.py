"""Rewards that use a server, tested with a local server, and numbers extracted from a model's answers."""

import base64
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from errors import bad_input
from PIL import Image
from tiny import tiny_request

from sfumato.errors import UserError
from sfumato.rewards import RewardError, build_reward
from sfumato.rewards.answers import find_number

IMAGES = torch.stack([torch.full((3, 8, 8), level) for level in (0.2, 0.4, 0.6)])
WORDS = tiny_request([0, 2, 1]).words


@dataclass
class FakeModel:
    """A local OpenAI-compatible server. `answer` receives the question and the picture's mean in [0, 1]."""

    answer: Callable[[str, float], dict[str, Any]]
    address: str = ""
    failures: list[int] = field(default_factory=list)
    """HTTP statuses of the next answers, before the regular ones"""
    requests: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[FakeModel]:
    fake = FakeModel(answer=lambda question, mean: {"message": {"content": ""}})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append(request)
            fake.tokens.append(self.headers["Authorization"])
            status = fake.failures.pop(0) if fake.failures else 200
            if not status:
                return  # closes the connection
            picture, text = request["messages"][0]["content"]
            data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
            with Image.open(io.BytesIO(data)) as opened:
                mean = float(np.array(opened).mean() / 255)
            body = json.dumps({"choices": [fake.answer(text["text"], mean)]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        fake.address = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield fake
        http.shutdown()
        thread.join()


def says(text: str) -> dict[str, Any]:
    return {"message": {"content": text}}


def test_judge(server: FakeModel, monkeypatch: pytest.MonkeyPatch):
    """Three aspects with one question per image; marks are assigned by picture, not by order of arrival."""
    monkeypatch.setenv("OPENAI_API_KEY", "the key")
    server.answer = lambda question, mean: says(
        f'```json\n{{"quality": {5 * mean:.1f}, "real": {int(mean > 0.5)}, "strange": {int(mean > 0.3)},}}\n```'
    )
    names = [f"judge?endpoint={server.address}&model=m&aspect={aspect}" for aspect in ("quality", "real", "strange")]
    quality, real, normal = build_reward(dict.fromkeys(names, 1.0))(IMAGES, WORDS)[1].values()
    torch.testing.assert_close(quality, torch.tensor([1.0, 2.0, 3.0]), rtol=0, atol=1e-6)
    assert real.tolist() == [0, 0, 1]
    assert normal.tolist() == [1, 0, 0]
    assert len(server.requests) == 3
    assert server.tokens == ["Bearer the key"] * 3
    assert {request["model"] for request in server.requests} == {"m"}
    assert sorted(request["messages"][0]["content"][1]["text"].split('"')[1] for request in server.requests) == [
        "ant", "bee", "cat",
    ]  # fmt: skip


def test_judge_that_cannot_be_understood(server: FakeModel):
    server.answer = lambda question, mean: says("I would rather not." if mean > 0.5 else '{"quality": 4}')
    reward = build_reward({f"judge?endpoint={server.address}": 1.0})
    total, parts = reward(IMAGES, WORDS)
    assert total[:2].tolist() == [4, 4]
    assert total[2].isnan()
    with pytest.raises(RewardError, match=r" 1 of 3 .*quality: 'I would rather"):
        reward.check_scored(parts, 0.1)


def test_a_server_that_is_overloaded_is_asked_again(server: FakeModel, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("sfumato.rewards.endpoint.time.sleep", pauses.append)
    server.answer = lambda question, mean: says("Final Score: 4")
    reward = build_reward({f"unifiedreward?endpoint={server.address}&concurrency=1": 1.0})
    for failures in ([503, 429, 408], [500, 502, 504]):
        server.failures = list(failures)
        assert reward(IMAGES, WORDS)[0].tolist() == pytest.approx([0.8] * 3)
    assert pauses == [0.5, 1.0, 2.0] * 2
    assert len(server.requests) == 12


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_server_that_fails_from_the_beginning_is_refused_at_once(server: FakeModel, status: int):
    server.failures = [status]
    with pytest.raises(RewardError, match=rf"EndpointError: http://.* refused: {status} "):
        build_reward({f"unifiedreward?endpoint={server.address}&concurrency=1": 1.0})(IMAGES[:1], WORDS[:1])
    assert len(server.requests) == 1


def test_a_server_that_refuses_is_not_asked_again(server: FakeModel):
    server.failures = [401]
    with pytest.raises(RewardError, match=r"unifiedreward.*EndpointError: http://.*/chat/completions .*401"):
        build_reward({f"unifiedreward?endpoint={server.address}&concurrency=1": 1.0})(IMAGES[:1], WORDS[:1])
    assert len(server.requests) == 1


def test_a_server_that_was_never_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("sfumato.rewards.endpoint.time.sleep", pauses.append)
    name = "judge?endpoint=http://127.0.0.1:9&retries=2"
    with pytest.raises(RewardError, match=r"http://127\.0\.0\.1:9/.*\(Connection refused\); is the server running"):
        build_reward({name: 1.0})(IMAGES, WORDS)
    assert not pauses


def test_a_server_that_goes_away_is_waited_for(
    server: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pauses: list[float] = []
    monkeypatch.setattr("sfumato.rewards.endpoint.time.sleep", pauses.append)
    server.answer = lambda question, mean: says("Final Score: 4")
    reward = build_reward({f"unifiedreward?endpoint={server.address}&concurrency=1&retries=2": 1.0})
    reward(IMAGES, WORDS)
    assert "waiting" not in capsys.readouterr().err
    server.failures = [0] * 6  # closes the connection
    for _ in range(2):
        with pytest.raises(RewardError, match=r"did not answer 3 requests .*RemoteDisconnected"):
            reward(IMAGES[:1], WORDS[:1])
    assert pauses == [0.5, 1.0, 0.5, 1.0]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"waiting for {server.address}/chat/completions (RemoteDisconnected: " in lines[0]
    assert lines[0].endswith("; asking again for up to 2 s)")
    assert reward(IMAGES[:1], WORDS[:1])[0].tolist() == pytest.approx([0.8])
    assert f"{server.address}/chat/completions answers again after 0 s" in capsys.readouterr().err


@dataclass
class Recorder:
    """A local server that records the headers of every request and gives one answer."""

    address: str
    port: int
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    """method and Authorization of each request"""
    status: int = 200
    location: str = ""


@pytest.fixture
def recorder() -> Iterator[Callable[[], Recorder]]:
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start() -> Recorder:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                record.seen.append((self.command, self.headers["Authorization"]))
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                body = json.dumps({"scores": [9.0] * 3}).encode()
                self.send_response(record.status)
                if record.location:
                    self.send_header("Location", record.location)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.do_POST()

            def do_CONNECT(self) -> None:
                self.do_POST()

            def log_message(self, format: str, *args: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        record = Recorder(f"http://127.0.0.1:{http.server_address[1]}", http.server_address[1])
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        running.append((http, thread))
        return record

    yield start
    for http, thread in running:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused(recorder: Callable[[], Recorder], monkeypatch: pytest.MonkeyPatch, status: int):
    monkeypatch.setenv("SFUMATO_REWARD_TOKEN", "secret")
    named, other = recorder(), recorder()
    named.status, named.location = status, f"{other.address}/score"
    with pytest.raises(RewardError, match=rf"redirects to {other.address}/score"):
        build_reward({named.address: 1.0})(IMAGES, WORDS)
    assert named.seen == [("POST", "Bearer secret")]
    assert not other.seen


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "away.invalid"])
def test_no_request_passes_a_proxy_that_can_read_it(
    recorder: Callable[[], Recorder], monkeypatch: pytest.MonkeyPatch, host: str
):
    monkeypatch.setenv("SFUMATO_REWARD_TOKEN", "secret")
    named, proxy = recorder(), recorder()
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, proxy.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    reward = build_reward({f"http://{host}:{named.port}": 1.0})
    if host == "away.invalid":
        with pytest.raises(RewardError, match=r"away\.invalid.* does not answer"):
            reward(IMAGES, WORDS)
    else:
        assert reward(IMAGES, WORDS)[0].tolist() == [9.0] * 3
        assert named.seen == [("POST", "Bearer secret")]
    assert not proxy.seen


def test_a_token_stays_out_of_messages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SFUMATO_REWARD_TOKEN", "sec\nret")
    with pytest.raises(UserError, match="token: ") as error:
        build_reward({"http://127.0.0.1:9": 1.0})
    assert "sec" not in str(error.value).replace("SFUMATO_REWARD_TOKEN", "")


@pytest.mark.parametrize("name", ["judge", "deqa", "unifiedreward"])
def test_an_address_that_is_none(name: str):
    with bad_input("reward", "endpoint: 'localhost:8000'", "http://"):
        build_reward({f"{name}?endpoint=localhost:8000": 1.0})


def test_unifiedreward_reads_the_final_score(server: FakeModel):
    server.answer = lambda question, mean: says(f"Alignment 1/5.\n**Final Score:** {10 * mean:.1f}")
    scores = build_reward({f"unifiedreward?endpoint={server.address}": 1.0})(IMAGES, WORDS)[0]
    assert scores[:2].tolist() == pytest.approx([0.4, 0.8])
    assert scores[2].isnan()  # 6.0 is out of range
    with Image.open(
        io.BytesIO(
            base64.b64decode(server.requests[0]["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2])
        )
    ) as sent:
        assert sent.size == (512, 512)


def test_deqa_is_the_mean_level(server: FakeModel):
    def answer(question: str, mean: float) -> dict[str, Any]:
        chances = {"good": 0.3, " Good": 0.1, "excellent": 0.2, "The": 0.4} if mean < 0.5 else {"The": 1.0}
        tokens = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items()]
        return {"message": {"content": "good"}, "logprobs": {"content": [{"token": "good", "top_logprobs": tokens}]}}

    server.answer = answer
    scores = build_reward({f"deqa?endpoint={server.address}": 1.0})(IMAGES, WORDS)[0]
    assert scores[:2].tolist() == pytest.approx([(4 * 0.4 + 5 * 0.2) / 0.6] * 2)
    assert scores[2].isnan()
    assert server.requests[0]["logprobs"] is True


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ('{"quality": 3.5, "real": 0}', 3.5),
        ('Sure! Here it is:\n```json\n{\n "quality": 4,\n}\n```\nHope it helps.', 4.0),
        ("{'quality': 2, 'real': True}", 2.0),
        ('{"Quality": "4/5"}', 4.0),
        ('{"quality": "4 out of 5"}', 4.0),
        ('{"quality": {"category": 1, "complete": 0.5, "clear": 1}}', 2.5),
        ('{"quality": true}', 1.0),
        ("{quality: 3 // good\n}", 3.0),
        ("quality = .5", 0.5),
        ("**quality**: **4.5**", 4.5),
        ('{"quality": 1} ... on reflection {"quality": 2}', 2.0),
        ('{"quality": 3', 3.0),
        ('{"quality": 7}', math.nan),
        ('{"quality": -1}', math.nan),
        ('{"quality": null}', math.nan),
        ('{"quality": "good"}', math.nan),
        ('{"inequality": 3}', math.nan),
        ('{"quality": ', math.nan),
        ('{"quality": 3.5, "explanation": "The overall quality: 2 of 5 parts are blurred"}', 3.5),
        ('{"quality": 3.5, "explanation": "The overall quality: 2 of 5 par', 3.5),  # cut off
        ('{"quality": 3.5} The quality: 2 is for the parts.', 3.5),
        ('{"explanation": "quality: 2", "quality": 3.5,}', 3.5),
        ("{'explanation': 'it's quality: 2', 'quality': 3.5}", 3.5),
        ('{\\"quality\\": 3.5, \\"why\\": \\"quality: 2\\"}', 3.5),
        ("{“quality”: 3.5}", 3.5),
        ("{‘quality’: “3.5”}", 3.5),
        ('{"quality": +3.5}', 3.5),
        ('{"quality": [3.5]}', 3.5),
        ('{"result": {"quality": 3}}', 3.0),
        ('{"quality": 4 "real": 1}', 4.0),
        ("The set {a, b} has quality: 3", 3.0),
        ('{"quality": 2} {"quality": null}', math.nan),
        ('{"quality": [3, 4]}', math.nan),
        ('{"quality": "3 to 4"}', math.nan),
        ('{"quality": "3-4"}', math.nan),
        ('{"quality": 3,5}', math.nan),
        ("quality: 3,5", math.nan),
        ('{"quality": "4/10"}', math.nan),
        ('{"quality": "4%"}', math.nan),
        ('{"quality": "no idea"}', math.nan),
        ('{"quality": NaN}', math.nan),
        ("{" * 3000, math.nan),
        ('{"a":' * 3000, math.nan),
        ("", math.nan),
    ],
)
def test_numbers_in_answers(answer: str, number: float):
    assert find_number(answer, "quality", 0.0, 5.0) == pytest.approx(number, nan_ok=True)
