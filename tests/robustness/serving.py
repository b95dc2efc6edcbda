"""`infercam serve` as a process, and clients that ask it for maps: loopback only."""

from __future__ import annotations

import http.client
import re
import select
import subprocess
import time
from pathlib import Path

from tests.robustness.outcome import Skipped
from tests.robustness.rig import BUNDLE, COMMAND, environment

TIMEOUTS = ("--header-timeout", "2", "--body-timeout", "3", "--timeout", "100")
START_SECONDS = 60.0


class Server:
    """A server that was started here; its log is a file, so that it never waits for a reader."""

    def __init__(self, folder: Path, port: int = 0, *more: str) -> None:
        self.log = folder / "serve.log"
        command = [*COMMAND, "serve", str(BUNDLE), "--port", str(port), *TIMEOUTS, *more]
        with self.log.open("ab") as log:
            self._began = log.tell()
            self.child = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment()
            )
        self.port = self._wait()

    def _wait(self) -> int:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = re.search(r"serving at http://127\.0\.0\.1:(\d+)", self.said())
            if found and self.healthy():
                return int(found[1])
            if found:
                self.port = int(found[1])
            if self.child.poll() is not None:
                break
            time.sleep(0.1)
        said = self.said()
        self.kill()
        raise Skipped(f"infercam serve does not start here: {said[-200:]}")

    def said(self) -> str:
        """What this process has logged."""
        return self.log.read_bytes()[self._began :].decode(errors="replace")

    def healthy(self) -> bool:
        try:
            return self.request("GET", "/v2/health/ready", limit=10)[0] == 200
        except (OSError, http.client.HTTPException, AttributeError):
            return False

    def request(
        self, method: str, path: str, body: bytes | None = None, kind: str = "", limit: float = 60
    ) -> tuple[int, bytes]:
        """(status, body); raises OSError or HTTPException where the answer is not whole."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def maps(self, picture: bytes, query: str = "format=npz", limit: float = 60) -> tuple[int, bytes]:
        return self.request("POST", f"/maps?{query}", picture, "image/png", limit)

    def raw(self, data: bytes, wait: float = 10.0) -> bytes:
        """Send bytes as they are; what comes back until the server closes, or falls silent for `wait` seconds."""
        import socket

        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as s:
            found = b""
            try:
                s.sendall(data)
                while select.select([s], [], [], wait)[0] and (part := s.recv(1 << 16)):
                    found += part
                    if len(found) > 1 << 20:
                        break
            except OSError:  # cut: that is an answer, too
                pass
            return found

    def memory_mb(self) -> float:
        return self._status("VmRSS:") / 1024

    def handles(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.child.pid}/fd").iterdir())

    def threads(self) -> int:
        return int(self._status("Threads:"))

    def _status(self, key: str) -> float:
        lines = Path(f"/proc/{self.child.pid}/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(key))

    def kill(self) -> None:
        """kill -9."""
        self.child.kill()
        self.child.wait(30)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            self.kill()
