"""The page's server: a queue of orders, sound while it is made, hostile requests refused."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient

from common.config import Recipe
from training.sampling.config import SamplingConfig
from training.sampling.sampler import Sampler
from training.web import play
from training.web.play import Studio, build_app

EXACT = SamplingConfig(weights="fp32", duration_s=0.4)


@pytest.fixture(scope="module")
def sampler(tiny_recipe: Recipe, tiny_run: Path) -> Sampler:
    return Sampler.load(tiny_recipe, tiny_run)


@pytest.fixture
def client(sampler: Sampler) -> Iterator[TestClient]:
    studio = Studio({"one": sampler, "two": sampler}, EXACT)
    with TestClient(build_app(studio, ["testserver"])) as client:
        yield client


def _order(client: TestClient, **changes: object) -> dict:
    order = {"prompt": "a dog barks", "runs": ["one"], "duration_s": 0.4, "seed": 3} | changes
    answer = client.post("/api/jobs", json=order)
    return answer.json() | {"status": answer.status_code}


def _follow(client: TestClient, job: str) -> list[dict]:
    lines = client.get(f"/api/jobs/{job}/events").text.split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def test_an_order_becomes_the_clip_that_the_command_makes(
    client: TestClient, sampler: Sampler
) -> None:
    job = _order(client, runs=["one", "two"])["job"]
    told = _follow(client, job)
    assert told[-1]["state"] == "done" and told[-1]["spent_s"] > 0
    expected, _ = sampler.generate(["a dog barks"], 0.4, [3], EXACT)
    for index, take in enumerate(told[-1]["takes"]):
        assert take["made_s"] == take["total_s"] == 0.4
        assert (take["heard"], take["warnings"]) == ("dog bark", [])
        assert take["spectrogram"].startswith("data:image/png;base64,iVBOR")
        answer = client.get(f"/api/jobs/{job}/{index}.wav")
        wave, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
        assert rate == 16000 and len(wave) == 6400
        np.testing.assert_allclose(wave, expected[0], atol=1e-3)


def test_prompts_as_typed_and_what_is_not_heard(client: TestClient, sampler: Sampler) -> None:
    asked = {"prompt": "Dogs", "negative_prompt": "\U0001f415", "as_is": True}
    job = _order(client, **asked)["job"]
    (take,) = _follow(client, job)[-1]["takes"]
    assert take["heard"] == "Dogs" and "does not know 1 of the 1 tokens" in take["warnings"][0]
    wave, _ = soundfile.read(io.BytesIO(client.get(f"/api/jobs/{job}/0.wav").content))
    exact = EXACT.model_copy(update={"negative_prompt": "\U0001f415"})
    expected, _ = sampler.generate(["Dogs"], 0.4, [3], exact, as_is=True)
    np.testing.assert_allclose(wave, expected[0], atol=1e-3)


def test_sound_comes_while_it_is_made(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener gets the first half before the second is there."""
    go_on = threading.Event()

    def slowly(self: Studio, run: str, order: play.Order) -> Iterator[np.ndarray]:
        yield np.full(3200, 0.25, np.float32)
        assert go_on.wait(20)
        yield np.full(3200, 0.5, np.float32)

    monkeypatch.setattr(Studio, "_stream", slowly)
    studio = Studio({"one": sampler}, EXACT)
    job = studio.get(studio.add(play.Order(prompt="dog", runs=["one"], duration_s=0.4)))
    assert job is not None
    parts = play.listen(job, job.takes[0])
    assert next(parts)[:4] == b"RIFF"
    assert np.frombuffer(next(parts), "<i2").tolist() == [8191] * 3200
    assert not job.over
    go_on.set()
    assert np.frombuffer(next(parts), "<i2").tolist() == [16383] * 3200
    assert next(parts, None) is None


def test_a_clip_longer_than_trained_says_so(client: TestClient) -> None:
    for seconds in (0.4, 0.8):
        job = _order(client, duration_s=seconds)["job"]
        (take,) = _follow(client, job)[-1]["takes"]
        assert (take["total_s"], take["trained_s"]) == (seconds, 0.4)


def test_mistakes_get_a_message(client: TestClient) -> None:
    for changes, words in (
        ({"prompt": "the 3"}, "'the 3': nothing remains"),
        ({"prompt": ""}, "prompt: String should have at least 1 character"),
        ({"prompt": "x" * 501}, "prompt: String should have at most 500"),
        ({"runs": ["three"]}, "no run 'three' here; there are one, two"),
        ({"runs": ["one", "one"]}, "two different runs"),
        ({"runs": []}, "runs: List should have at least 1"),
        ({"duration_s": 1e9}, "duration_s: Input should be less than"),
        ({"duration_s": "long"}, "duration_s: Input should be a valid number"),
        ({"seed": -1}, "seed: Input should be greater"),
        ({"cfg": 1, "negative_prompt": "noise"}, "acts through guidance"),
        ({"negative_prompt": "the 3"}, "nothing remains"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ):
        found = _order(client, **changes)
        assert found["status"] == 422 and words in found["error"], changes
    assert client.get("/api/jobs/none/events").status_code == 404
    assert client.get("/api/jobs/none").status_code == 404
    job = _order(client)["job"]
    assert client.get(f"/api/jobs/{job}/7.wav").status_code == 404
    assert client.get(f"/api/jobs/{job}/..%2f..%2fetc%2fpasswd").status_code == 404
    # The thread still works.
    assert _follow(client, _order(client)["job"])[-1]["state"] == "done"


def test_a_failing_clip_is_reported_and_ends_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterator[np.ndarray]:
        raise RuntimeError("/secret/path")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(Studio, "_stream", broken)
        found = _follow(client, _order(client)["job"])[-1]
    assert found["state"] == "failed" and found["error"] == "RuntimeError while generating"
    assert _follow(client, _order(client)["job"])[-1]["state"] == "done"


def test_foreign_pages_and_names_are_refused(client: TestClient) -> None:
    order = {"prompt": "dog", "runs": ["one"], "duration_s": 0.4}
    evil = {"Origin": "http://evil.example"}
    assert client.post("/api/jobs", json=order, headers=evil).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    same = {"Origin": "http://testserver"}
    assert client.post("/api/jobs", json=order, headers=same).status_code == 200
    huge = client.post("/api/jobs", content=b"x" * 20_000)
    assert huge.status_code == 413
    plain = client.post("/api/jobs", content=b"prompt=dog", headers={"Content-Type": "text/plain"})
    assert plain.status_code == 422
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "http://" not in answer.text.replace("http://www.w3.org", "")
    assert client.get("/docs").status_code == 404


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """In place of `Studio._stream`, the whole clip comes once this event is set."""
    event = threading.Event()

    def stream(self: Studio, run: str, order: play.Order) -> Iterator[np.ndarray]:
        assert event.wait(20)
        yield np.zeros(6400, np.float32)

    monkeypatch.setattr(Studio, "_stream", stream)
    return event


def test_the_queue_is_limited_and_old_clips_go(
    client: TestClient, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(play, "WAITING", 3)
    monkeypatch.setattr(play, "KEPT", 2)
    jobs = [_order(client)["job"] for _ in range(3)]
    assert "waiting already" in _order(client)["error"]
    go_on.set()
    assert [_follow(client, job)[-1]["state"] for job in jobs] == ["done"] * 3
    last = _order(client)["job"]
    assert _follow(client, last)[-1]["state"] == "done"
    assert client.get(f"/api/jobs/{jobs[0]}/events").status_code == 404
    assert client.get(f"/api/jobs/{jobs[2]}/events").status_code == 200


def test_the_state_of_a_job_can_be_asked_for_without_a_stream(
    client: TestClient, go_on: threading.Event
) -> None:
    first, second = (_order(client)["job"] for _ in range(2))
    now = client.get(f"/api/jobs/{second}").json()
    assert (now["state"], now["ahead"]) == ("waiting", 1)
    go_on.set()
    told = _follow(client, second)[-1]
    assert told == client.get(f"/api/jobs/{second}").json() and told["state"] == "done"
    assert client.get(f"/api/jobs/{first}").json()["state"] == "done"


def test_a_clip_that_ends_while_it_is_described_is_reported_as_ended(
    client: TestClient, go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = Studio.describe

    def ending(self: Studio, name: str, job: play.Job) -> dict:
        found = describe(self, name, job)
        go_on.set()
        with job.changed:
            assert job.changed.wait_for(lambda: job.over, 20)
        return found

    monkeypatch.setattr(Studio, "describe", ending)
    assert [now["state"] for now in _follow(client, _order(client)["job"])][-1] == "done"


def test_models_and_defaults(client: TestClient) -> None:
    found = client.get("/api/models").json()
    assert [run["name"] for run in found["runs"]] == ["one", "two"]
    assert found["runs"][0]["step"] == 12 and found["runs"][0]["trained_s"] == 0.4
    assert found["defaults"]["duration_s"] == 0.4
