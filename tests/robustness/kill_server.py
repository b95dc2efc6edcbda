"""kill -9 of the server while clients ask: started again, it gives those who ask again the same answers."""

from __future__ import annotations

import http.client
import threading
import time

from tests.robustness.outcome import Outcome, Say, Size
from tests.robustness.rig import Rig
from tests.robustness.serving import Server

CLIENTS = 4
PICTURES = 24
GIVE_UP = 120.0
"""Seconds after which a client has lost its answer."""


def kill_server(rig: Rig, size: Size, say: Say) -> Outcome:
    """Each round: clients ask for maps of their pictures; the server dies in the middle and is started again."""
    outcome = Outcome("kill -9 of the server")
    pictures = [file.read_bytes() for file in sorted(rig.images.iterdir())[:PICTURES]]
    with Server(rig.folder, 0, *rig.engine) as server:
        began = time.monotonic()
        expected = [server.maps(picture) for picture in pictures]
        seconds = time.monotonic() - began
    for i, (status, _) in enumerate(expected):
        if status != 200:
            outcome.lose(f"picture {i}: answered with {status} by an undisturbed server")
    retried = 0
    for number in range(size.rounds):
        clients = _Clients(rig, pictures, outcome, f"round {number}", expected)
        clients.run(float(rig.rng.uniform(0.1, 0.9)) * seconds / 2)
        retried += clients.retried
        say(f"kill -9 of the server: round {number + 1} of {size.rounds}")
    outcome.rounds = size.rounds
    outcome.inputs = size.rounds * len(pictures)
    outcome.figures = {"clients": CLIENTS, "requests asked again": retried}
    return outcome


class _Clients:
    """Some threads that share the pictures, and ask again until they have an answer."""

    def __init__(
        self,
        rig: Rig,
        pictures: list[bytes],
        outcome: Outcome,
        where: str,
        expected: list[tuple[int, bytes]],
    ) -> None:
        self.retried = 0
        self._rig = rig
        self._pictures = pictures
        self._outcome = outcome
        self._where = where
        self._expected = expected
        self._server: Server | None = None

    def run(self, kill_after: float) -> None:
        self._server = Server(self._rig.folder, 0, *self._rig.engine)
        port = self._server.port
        threads = [threading.Thread(target=self._client, args=(n,)) for n in range(CLIENTS)]
        try:
            for thread in threads:
                thread.start()
            time.sleep(kill_after)
            self._server.kill()
            self._server = Server(self._rig.folder, port, *self._rig.engine)
            for thread in threads:
                thread.join(GIVE_UP + 60)
        finally:
            self._server.kill()

    def _client(self, first: int) -> None:
        for i in range(first, len(self._pictures), CLIENTS):
            deadline = time.monotonic() + GIVE_UP
            answer = self._ask(i)
            while answer is None and time.monotonic() < deadline:
                self.retried += 1
                time.sleep(0.05)
                answer = self._ask(i)
            if answer != self._expected[i]:
                got = "no answer" if answer is None else f"status {answer[0]}, {len(answer[1])} bytes"
                self._outcome.lose(f"{self._where}, picture {i}: {got}, not the undisturbed server's")

    def _ask(self, i: int) -> tuple[int, bytes] | None:
        """None: the server is not there, or went away in the middle of the answer."""
        assert self._server is not None
        try:
            answer = self._server.maps(self._pictures[i])
        except (OSError, http.client.HTTPException):
            return None
        return None if answer[0] in (429, 503) else answer
