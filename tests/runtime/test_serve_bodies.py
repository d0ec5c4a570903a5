"""Bodies of requests that are too large, do not end, or whose client has left."""

import asyncio
import threading
from typing import Any

import pytest

from edge_sampler.runtime.serve.app import HELD, LARGE, make_app
from tests.runtime.serving import Answer
from tests.runtime.test_serve_app import ONE, SEEDS, Model, ask, asking, served


@pytest.mark.parametrize("length", [{}, {"Content-Length": "{}"}], ids=["in pieces", "with its length"])
def test_a_body_has_a_largest_size(length: dict[str, str]) -> None:
    """One that is as large is taken."""
    body = ONE.ljust(200)
    for largest, status in ((200, 200), (199, 413)):
        headers = {name: value.format(len(body)) for name, value in length.items()}
        pieces = [body[:150], body[150:]]
        answer = ask(served(largest=largest), "POST", "/v2/models/a/infer", *pieces, headers=headers)
        assert answer.status == status
        if status == 413:
            assert answer.json == {"error": "a request has 199 bytes at most"}
            assert answer.headers["connection"] == "close"


def test_a_body_is_refused_before_it_came() -> None:
    for headers, body in (({"Content-Length": "1001"}, ()), ({}, (bytes(1001),))):
        answer = ask(served(), "POST", "/v2/models/a/infer", *body, headers=headers, no_end=True)
        assert answer.status == 413
    zipped = ask(served(), "POST", "/v2/models/a/infer", headers={"Content-Encoding": "gzip"}, no_end=True)
    assert (zipped.status, zipped.json["error"]) == (415, "the body has a Content-Encoding; send it plain")


def test_a_body_has_one_length() -> None:
    headers = {"Content-Length": str(len(ONE)), "Transfer-Encoding": "chunked"}
    answer = ask(served(), "POST", "/v2/models/a/infer", headers=headers, no_end=True)
    assert (answer.status, answer.json["error"]) == (400, "give Content-Length or Transfer-Encoding, not both")
    assert answer.headers["connection"] == "close"


def test_a_body_that_does_not_end_is_given_up() -> None:
    service = served(reading=0.01)
    answer = ask(service, "POST", "/v2/models/a/infer", ONE, no_end=True)
    assert (answer.status, answer.json["error"]) == (408, "the body took more than 0 s")
    assert answer.headers["connection"] == "close"
    assert service.models["a"].metrics.requests == {"bad_request": 1}


def test_a_body_that_is_given_up_is_told_so() -> None:
    service = served()

    async def given_up() -> Answer:
        asked = asyncio.create_task(asking(make_app(service, None), "POST", "/v2/models/a/infer", [ONE], no_end=True))
        while not service.bodies:
            await asyncio.sleep(0)
        for body in service.bodies:
            body.cancel()
        return await asked

    answer = asyncio.run(asyncio.wait_for(given_up(), 60))
    assert (answer.status, answer.json["error"]) == (503, "the server ended before the answer")
    assert answer.headers["connection"] == "close"
    assert (service.bodies, service.active) == (set(), 0)
    ask(service, "POST", "/v2/models/a/infer", ONE)
    assert service.bodies == set()


def test_what_nobody_waits_for_is_not_made() -> None:
    service = served(model := Model("a", waits=60))
    for method, path in (("POST", "infer"), ("GET", "image?seed=1")):
        answer = ask(service, method, f"/v2/models/a/{path}", ONE, leaves=True)
        assert (answer.status, answer.json["error"]) == (499, "the client went away")
    assert (model.cancelled, service.active) == (2, 0)
    half = ask(service, "POST", "/v2/models/a/infer", ONE[:9], no_end=True, leaves=True)
    assert half.status == 499
    assert service.models["a"].metrics.requests == {"cancelled": 3}


def test_all_bodies_together_are_bounded() -> None:
    """Until each has its answer, however that comes about."""
    service = served(Model("a", waits=60), largest=200)
    app, path = make_app(service, None), "/v2/models/a/infer"

    async def held() -> Answer:
        whole = asyncio.create_task(asking(app, "POST", path, [ONE.ljust(200)]))
        parts = [asyncio.create_task(asking(app, "POST", path, [bytes(200)], no_end=True)) for _ in range(HELD - 1)]
        while service.held.total() < HELD * 200 or not service.active:
            await asyncio.sleep(0.001)
        answer = await asking(app, "POST", path, [b"1"], no_end=True)
        for one in (whole, *parts):
            one.cancel()
        await asyncio.gather(whole, *parts)
        return answer

    answer = asyncio.run(asyncio.wait_for(held(), 60))
    assert (answer.status, answer.json["error"]) == (
        503,
        "the server holds all that it can; ask again later",
    )
    assert answer.headers["retry-after"] == "1"
    assert not service.held


def test_large_requests_keep_no_small_one_waiting() -> None:
    """However many there are, and however long reading them takes; asyncio has 32 threads at most."""
    end, begun = threading.Event(), threading.Event()

    class Slow(Model):
        def rows_of(self, asked: Any) -> list[int]:
            if len(rows := super().rows_of(asked)) > 1:
                begun.set()
                assert end.wait(60)
            return rows

    app, path = make_app(served(Slow("a"), largest=4 * LARGE), None), "/v2/models/a/infer"

    async def both() -> list[Answer]:
        large = [asyncio.create_task(asking(app, "POST", path, [SEEDS.ljust(LARGE + 1)])) for _ in range(40)]
        while not begun.is_set():
            await asyncio.sleep(0.001)
        small = await asking(app, "POST", path, [ONE])
        end.set()
        return [small, *await asyncio.gather(*large)]

    answers = asyncio.run(asyncio.wait_for(both(), 60))
    assert [answer.status for answer in answers] == [200] * 41
