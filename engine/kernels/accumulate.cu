// Normalise a tile's summed views, add them to its accumulated maps, and erase what has reached the threshold
// (engine/method/README.md §3 steps 2 to 4).
//
// Bytes per pixel: for each class 4 read (the sum), 4 read and 4 written (the accumulated map); first iteration: 4
// read and 4 written, in place; 4 more read where classes compete. The mask: 1 read and 1 written. A thread has 4 pixels
// of all classes, 16 bytes at a time; planes begin at multiples of 16 bytes.
#include "layouts.cuh"

constexpr u32 BYTES_OF_ONE = 0x01010101u;

// Grid: pixels / (4 * THREADS), items.
extern "C" __global__ void __launch_bounds__(THREADS) accumulate(const char* packet) {
    __shared__ u32 scratch[THREADS / WARP];
    const TileItem item = reinterpret_cast<const TileItem*>(packet)[blockIdx.y];
    constexpr int N = Pack<float>::SIZE;
    const int pixels = item.height * item.width;
    if (item.accumulated == nullptr || static_cast<int>(blockIdx.x) * THREADS * N >= pixels) return;
    const int i = (blockIdx.x * THREADS + threadIdx.x) * N;
    u32 newly = 0;
    if (i < pixels) {
        const float* floors = reinterpret_cast<const float*>(packet + item.floor_at);
        u32 reached = 0;  // one byte per pixel, as in the mask
        float highest[N] = {};  // of all classes before this iteration, where they compete
        if (item.join & COMPETES) {
            for (int k = 0; k < item.classes; ++k) {
                const size_t at = static_cast<size_t>(k) * item.stride + i;
                const Pack<float> before = *reinterpret_cast<const Pack<float>*>(item.accumulated + at);
#pragma unroll
                for (int j = 0; j < N; ++j) highest[j] = fmaxf(highest[j], before.at[j]);
            }
        }
        for (int k = 0; k < item.classes; ++k) {
            const float peak = __int_as_float(static_cast<int>(item.result[1 + k]));
            const float by = divisor(peak, item.floor_at < 0 ? 0.0f : floors[k]);
            const size_t at = static_cast<size_t>(k) * item.stride + i;
            Pack<float> now = *reinterpret_cast<const Pack<float>*>(item.total + at);
            Pack<float> before = {};
            if (!item.first) before = *reinterpret_cast<const Pack<float>*>(item.accumulated + at);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const float n = normalised(now.at[j], by);
                if (n >= item.threshold) reached |= 1u << 8 * j;
                const float counted = before.at[j] < highest[j] ? 0.0f : n;  // highest is 0 where they do not compete
                // maps are not negative: with 0 before, both are n itself
                now.at[j] = item.join & ADDS ? before.at[j] + counted : fmaxf(before.at[j], counted);
            }
            *reinterpret_cast<Pack<float>*>(item.accumulated + at) = now;
        }
        if (pixels - i < N) reached &= BYTES_OF_ONE >> 8 * (N - (pixels - i));
        u32* mask = reinterpret_cast<u32*>(item.erased + i);
        const u32 old = item.first ? 0u : *mask;
        *mask = old | reached;
        newly = __popc(reached & ~old);
    }
    newly = block_reduce<Sum>(newly, 0u, scratch);
    if (threadIdx.x == 0 && newly) atomicAdd(item.result, newly);
}
