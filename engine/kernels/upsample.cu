// The sum of a tile's low maps at tile size: bilinear, half-pixel centres, no antialiasing, in the order of the
// scales; and each class's maximum.
//
// Bytes per pixel and class: 4 written. The low maps are 1/64 and less of that and stay in the cache. So that
// arithmetic keeps pace with memory, a block works out its rows' and columns' taps once, in shared memory, and a
// thread goes down a column: of its 8 pixels most fall between the same two source rows, whose values it keeps.
#include "layouts.cuh"

constexpr int UPSAMPLE_COLUMNS = 64;  // per block: tiles are a few hundred wide, so little of a block is idle
constexpr int UPSAMPLE_ROWS = 8;      // per thread
constexpr int UPSAMPLE_BLOCK_ROWS = THREADS / UPSAMPLE_COLUMNS * UPSAMPLE_ROWS;
constexpr int LOWS_AT_ONCE = 4;  // taps in shared memory: 4 scales, as the method has; more take turns

struct Tap {
    int low;
    float share;  // of the next one
};

// (i + 0.5) * source / target - 0.5, at least 0, in exact integers: no rounding before the share's own.
__device__ inline Tap tap_of(int i, int source, int target) {
    const int numerator = max((2 * i + 1) * source - target, 0);
    Tap tap;
    tap.low = min(numerator / (2 * target), source - 1);
    tap.share = static_cast<float>(numerator - tap.low * 2 * target) / static_cast<float>(2 * target);
    return tap;
}

__device__ inline float between(float a, float b, float share) { return a * (1.0f - share) + b * share; }

// Adds one low map to a column's pixels. map: of the class; down: taps of the column's rows.
__device__ inline void add_low(float* sums, const float* map, const LowMap& low, const Tap& across, const Tap* down) {
    const int left = across.low, right = min(left + 1, low.width - 1);
    float top = 0.0f, bottom = 0.0f;
    int kept = -1;
#pragma unroll
    for (int r = 0; r < UPSAMPLE_ROWS; ++r) {
        const Tap tap = down[r];
        if (tap.low != kept) {
            kept = tap.low;
            const float* a = map + kept * low.width;
            const float* b = map + min(kept + 1, low.height - 1) * low.width;
            top = between(a[left], a[right], across.share);
            bottom = between(b[left], b[right], across.share);
        }
        sums[r] += between(top, bottom, tap.share);
    }
}

// Grid: (column, row) blocks of the tile, items, classes.
extern "C" __global__ void __launch_bounds__(THREADS) upsample(const char* packet) {
    __shared__ Tap down[LOWS_AT_ONCE][UPSAMPLE_BLOCK_ROWS];
    __shared__ Tap across[LOWS_AT_ONCE][UPSAMPLE_COLUMNS];
    __shared__ int scratch[THREADS / WARP];
    const TileItem& item = reinterpret_cast<const TileItem*>(packet)[blockIdx.y];
    const int k = blockIdx.z, thread = threadIdx.x;
    const int columns = (item.width + UPSAMPLE_COLUMNS - 1) / UPSAMPLE_COLUMNS;
    const int y0 = blockIdx.x / columns * UPSAMPLE_BLOCK_ROWS, x0 = blockIdx.x % columns * UPSAMPLE_COLUMNS;
    if (k >= item.classes || y0 >= item.height) return;
    const int column = thread % UPSAMPLE_COLUMNS, row = thread / UPSAMPLE_COLUMNS * UPSAMPLE_ROWS;
    const LowMap* lows = reinterpret_cast<const LowMap*>(packet + item.lows_at);
    float sums[UPSAMPLE_ROWS] = {};
    for (int from = 0; from < item.lows; from += LOWS_AT_ONCE) {
        const int count = min(item.lows - from, LOWS_AT_ONCE);
        __syncthreads();  // the taps of before have been used
        // those beyond the tile's edge repeat the last: read, not kept
        for (int i = thread; i < count * UPSAMPLE_BLOCK_ROWS; i += THREADS) {
            const int s = i / UPSAMPLE_BLOCK_ROWS, r = i % UPSAMPLE_BLOCK_ROWS;
            down[s][r] = tap_of(min(y0 + r, item.height - 1), lows[from + s].height, item.height);
        }
        for (int i = thread; i < count * UPSAMPLE_COLUMNS; i += THREADS) {
            const int s = i / UPSAMPLE_COLUMNS, c = i % UPSAMPLE_COLUMNS;
            across[s][c] = tap_of(min(x0 + c, item.width - 1), lows[from + s].width, item.width);
        }
        __syncthreads();
        for (int s = 0; s < count; ++s) {
            const LowMap low = lows[from + s];
            const float* map = low.data + static_cast<size_t>(k) * low.height * low.width;
            add_low(sums, map, low, across[s][column], &down[s][row]);
        }
    }
    int peak = 0;
    if (x0 + column < item.width) {
        float* out = item.total + static_cast<size_t>(k) * item.stride + x0 + column;
#pragma unroll
        for (int r = 0; r < UPSAMPLE_ROWS; ++r) {
            if (y0 + row + r >= item.height) break;
            out[static_cast<size_t>(y0 + row + r) * item.width] = sums[r];
            peak = max(peak, ordered_bits(sums[r]));
        }
    }
    if (item.ranks != nullptr) return;  // a quantile: peaks.cu finds it
    peak = block_reduce<Max>(peak, 0, scratch);
    if (thread == 0) atomicMax(reinterpret_cast<int*>(item.result) + 1 + k, peak);  // any order gives the same
}
