"""How much one server takes on: every bound in one place."""

from __future__ import annotations

from dataclasses import dataclass

from infercam.engine.data.images import DEFAULT_MAX_PIXELS

MAPS_OF_FULL_SIZE = 8
"""As many maps of the largest picture may be asked for at once; of smaller pictures in proportion more."""


@dataclass(frozen=True)
class Bounds:
    """Each is refused or cut off beyond it; see `infercam serve --help`."""

    queue: int = 64
    """Requests admitted and not answered; the next is refused with 429."""
    request_bytes: int = 16 << 20
    """Of one request's body: 413, as soon as it is passed."""
    pixels: int = DEFAULT_MAX_PIXELS
    """Of one picture, by its header: 413 before a pixel is decoded."""
    timeout: float = 30.0
    """Seconds from a request's last byte to its answer: 504, and its work is dropped."""
    body_timeout: float = 20.0
    """Seconds for a request's body to arrive: 408."""
    header_timeout: float = 10.0
    """Seconds for a request's header to arrive, and for a stalled reader to go on reading: the connection is cut."""
    idle_timeout: int = 60
    """Seconds that a connection is kept between two requests."""
    connections: int = 1024
    """Open at once; beyond it new ones are closed."""

    @property
    def map_pixels(self) -> int:
        """Of all maps of one request."""
        return MAPS_OF_FULL_SIZE * self.pixels
