// Peaks of maps that are not negative: their maximum, or the value at a quantile, exactly.
//
// A quantile is found by its bits, from the highest (11, 10 and 10 of them; the sign is 0): count the values by
// their next bits, choose the bin in which the rank falls, look on among the values that share it. Three reads of
// 4 bytes per pixel and class, from the L2 cache at the usual sizes. Counting uses integer atomics only, so the
// result does not depend on the order.
#include "layouts.cuh"

constexpr int PEAK_ROUNDS = 16;  // pixels per thread

__device__ inline RankState* rank_state(const TileItem& item, int k) {
    return reinterpret_cast<RankState*>(item.ranks) + k;
}

// Grid: pixels / (THREADS * PEAK_ROUNDS), items, classes. Counts bits [shift, shift + bits) of the values whose
// higher bits are the prefix. The states are zero at first.
extern "C" __global__ void __launch_bounds__(THREADS) rank_histogram(const char* packet, int shift, int bits) {
    __shared__ u32 counts[RANK_BINS];
    const TileItem item = reinterpret_cast<const TileItem*>(packet)[blockIdx.y];
    const int k = blockIdx.z, pixels = item.height * item.width;
    const int start = blockIdx.x * THREADS * PEAK_ROUNDS;
    if (item.ranks == nullptr || k >= item.classes || start >= pixels) return;
    RankState* state = rank_state(item, k);
    const float* total = item.total + static_cast<size_t>(k) * item.stride;
    const int bins = 1 << bits;
    for (int i = threadIdx.x; i < bins; i += THREADS) counts[i] = 0;
    __syncthreads();
    const u32 prefix = state->prefix;
    constexpr int N = Pack<float>::SIZE;
    for (int round = 0; round < PEAK_ROUNDS / N; ++round) {
        const int i = start + (round * THREADS + static_cast<int>(threadIdx.x)) * N;
        if (i >= pixels) break;
        const Pack<float> pack = *reinterpret_cast<const Pack<float>*>(total + i);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const u32 value = static_cast<u32>(ordered_bits(pack.at[j]));
            const bool counts_here = i + j < pixels && value >> (shift + bits) == prefix;
            if (counts_here) atomicAdd(&counts[(value >> shift) & (bins - 1)], 1u);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < bins; i += THREADS) {
        if (counts[i]) atomicAdd(&state->histogram[i], counts[i]);
    }
}

// Grid: 1, items, classes. The bin in which the rank falls becomes part of the prefix; `last`: the prefix is the
// peak. Leaves the histogram zero.
extern "C" __global__ void __launch_bounds__(THREADS) rank_select(const char* packet, int bits, int last) {
    __shared__ u32 sums[THREADS];
    const TileItem item = reinterpret_cast<const TileItem*>(packet)[blockIdx.y];
    const int k = blockIdx.z;
    if (item.ranks == nullptr || k >= item.classes) return;
    RankState* state = rank_state(item, k);
    const int mine = (1 << bits) / THREADS, from = threadIdx.x * mine;
    u32 sum = 0;
    for (int i = 0; i < mine; ++i) sum += state->histogram[from + i];
    sums[threadIdx.x] = sum;
    const u32 rank = static_cast<u32>(item.rank) - state->below, prefix = state->prefix;
    __syncthreads();
    u32 before = 0;
    for (u32 t = 0; t < threadIdx.x; ++t) before += sums[t];
    __syncthreads();  // all have read the state
    const bool here = before <= rank && rank < before + sum;
    for (int i = 0; i < mine; ++i) {
        const u32 count = state->histogram[from + i];
        state->histogram[from + i] = 0;
        if (here && before <= rank && rank < before + count) {  // one thread, one bin
            const u32 longer = prefix << bits | static_cast<u32>(from + i);
            state->prefix = longer;
            state->below = static_cast<u32>(item.rank) - rank + before;
            if (last) item.result[1 + k] = longer;
        }
        before += count;
    }
}

// Grid: pixels / (THREADS * PEAK_ROUNDS), parts, classes. The maximum of each plane, for accumulated sums.
extern "C" __global__ void __launch_bounds__(THREADS) plane_peaks(const char* packet) {
    __shared__ int scratch[THREADS / WARP];
    const PartItem part = reinterpret_cast<const PartItem*>(packet)[blockIdx.y];
    const int pixels = part.height * part.width, start = blockIdx.x * THREADS * PEAK_ROUNDS;
    if (start >= pixels) return;
    const float* map = part.maps + static_cast<size_t>(blockIdx.z) * part.stride;
    int peak = 0;
    for (int round = 0; round < PEAK_ROUNDS; ++round) {
        const int i = start + round * THREADS + threadIdx.x;
        if (i < pixels) peak = max(peak, ordered_bits(map[i]));
    }
    peak = block_reduce<Max>(peak, 0, scratch);
    if (threadIdx.x == 0) atomicMax(reinterpret_cast<int*>(part.peaks) + blockIdx.z, peak);
}
