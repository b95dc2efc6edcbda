// The sum of a tile's low maps at tile size: bilinear, half-pixel centres, no antialiasing, in the order of the
// scales; and each class's maximum.
//
// Bytes per pixel and class: 4 written. The low maps are 1/64 and less of that and stay in the cache; of a column's
// 8 pixels most fall between the same two source rows, whose values are kept.
#include "layouts.cuh"

constexpr int UPSAMPLE_COLUMNS = 64;  // per block: tiles are a few hundred wide, so little of a block is idle
constexpr int UPSAMPLE_ROWS = 8;      // per thread
constexpr int UPSAMPLE_BLOCK_ROWS = THREADS / UPSAMPLE_COLUMNS * UPSAMPLE_ROWS;

struct Taps {
    int low;
    int high;
    float share;  // of `high`
};

// (i + 0.5) * source / target - 0.5, at least 0, in exact integers: no rounding before the share's own.
__device__ inline Taps taps_of(int i, int source, int target) {
    const int numerator = max((2 * i + 1) * source - target, 0);
    const int low = min(numerator / (2 * target), source - 1);
    Taps taps;
    taps.low = low;
    taps.high = min(low + 1, source - 1);
    taps.share = static_cast<float>(numerator - low * 2 * target) / static_cast<float>(2 * target);
    return taps;
}

__device__ inline float between(float a, float b, float share) { return a * (1.0f - share) + b * share; }

__device__ void add_low(float* sums, const LowMap& low, int k, int x, int y, const TileItem& item) {
    const Taps across = taps_of(x, low.width, item.width);
    const float* map = low.data + static_cast<size_t>(k) * low.height * low.width;
    float top = 0.0f, bottom = 0.0f;
    int kept = -1;
#pragma unroll
    for (int r = 0; r < UPSAMPLE_ROWS; ++r) {
        if (y + r >= item.height) break;
        const Taps down = taps_of(y + r, low.height, item.height);
        if (down.low != kept) {
            const float *a = map + down.low * low.width, *b = map + down.high * low.width;
            top = between(a[across.low], a[across.high], across.share);
            bottom = between(b[across.low], b[across.high], across.share);
            kept = down.low;
        }
        sums[r] += between(top, bottom, down.share);
    }
}

// Grid: (column, row) blocks of the tile, items, classes.
extern "C" __global__ void __launch_bounds__(THREADS) upsample(const char* packet) {
    __shared__ int scratch[THREADS / WARP];
    const TileItem item = reinterpret_cast<const TileItem*>(packet)[blockIdx.y];
    const int k = blockIdx.z;
    const int columns = (item.width + UPSAMPLE_COLUMNS - 1) / UPSAMPLE_COLUMNS;
    const int block_row = blockIdx.x / columns;
    if (k >= item.classes || block_row * UPSAMPLE_BLOCK_ROWS >= item.height) return;
    const int x = blockIdx.x % columns * UPSAMPLE_COLUMNS + threadIdx.x % UPSAMPLE_COLUMNS;
    const int y = block_row * UPSAMPLE_BLOCK_ROWS + threadIdx.x / UPSAMPLE_COLUMNS * UPSAMPLE_ROWS;
    float sums[UPSAMPLE_ROWS] = {};
    float peak = 0.0f;
    if (x < item.width) {
        const LowMap* lows = reinterpret_cast<const LowMap*>(packet + item.lows_at);
        for (int s = 0; s < item.lows; ++s) add_low(sums, lows[s], k, x, y, item);
        float* out = item.total + static_cast<size_t>(k) * item.stride + x;
#pragma unroll
        for (int r = 0; r < UPSAMPLE_ROWS; ++r) {
            if (y + r >= item.height) break;
            out[static_cast<size_t>(y + r) * item.width] = sums[r];
            peak = fmaxf(peak, sums[r]);
        }
    }
    if (item.ranks != nullptr) return;  // a quantile: peaks.cu finds it
    // Sums are not negative, so they compare as their bits do, and any order of the blocks gives the same.
    const int bits = block_reduce<Max>(__float_as_int(peak), 0, scratch);
    if (threadIdx.x == 0) atomicMax(reinterpret_cast<int*>(item.result) + 1 + k, bits);
}
