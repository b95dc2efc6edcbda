"""What a device backend takes on, by the memory that there is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.backends.device_limits import BATCH_PIXELS, IMAGES, PATIENCE, device_limits

GB = 1 << 30
memory = st.integers(1, 200 * GB)


@given(memory, memory, st.integers(1, 100 << 20), st.booleans())
def test_limits_hold_whatever_the_memory(budget: int, host: int, typical: int, dynamic: bool) -> None:
    found = device_limits(budget, 10, typical, dynamic_batch=dynamic, host_memory=host)
    assert 1 <= found.memory <= max(1, budget // 2)
    assert 1 <= found.batch_pixels <= BATCH_PIXELS and found.batch_pixels * 1034 <= max(1034, budget // 4)
    assert 1 <= found.images <= IMAGES and 1 <= found.patience <= PATIENCE
    assert found.batch_views == (64 if dynamic else 1) and found.few_batches
    more = device_limits(2 * budget, 10, typical, dynamic_batch=dynamic, host_memory=host)
    assert more.batch_pixels >= found.batch_pixels and more.memory >= found.memory


def test_a_large_device_is_bounded_by_the_host() -> None:
    """Pictures in flight are on the host as well: an eighth of it, 20 bytes on the device for each."""
    large = device_limits(56 * GB, 10, 17 << 20, host_memory=128 * GB)
    assert large.memory == 28 * GB and large.images == IMAGES and large.batch_pixels == BATCH_PIXELS
    small = device_limits(56 * GB, 10, 17 << 20, host_memory=4 * GB)
    assert small.memory == 10 * GB
    assert device_limits(56 * GB, 10, 17 << 20, host_memory=0).memory == 1


def test_what_is_asked_for_is_taken() -> None:
    assert device_limits(56 * GB, 10, 1 << 20, batch_pixels=123, keeps=7).batch_pixels == 123
    assert device_limits(56 * GB, 10, 1 << 20, batch_pixels=123, keeps=7).keeps == 7
