// The sum of a tile's low maps at tile size: bilinear, half-pixel centres, no antialiasing, in the order of the
// scales; and each class's maximum.
//
// Bytes per pixel and class: 4 written. The low maps are 1/64 and less of that and stay in the cache. What bounds
// it is instructions, not memory: at a copy's rate an H100's multiprocessor can issue 40 for each pixel; 4 scales
// need 16 for the floats alone, and this takes 49 (85 before the rest was shared as follows). A block works out
// its rows' and columns' taps once, in shared memory: divisions, some 60 instructions a tap, 4 a pixel. A thread
// has 4 columns, so a row's tap is read and compared once for all; and it goes down 16 rows with all scales at
// once: most rows fall between the same two source rows, whose values at its columns it keeps, and where they
// end, the lower of the two is the upper of the next. Its columns are a warp apart, so that every store is of
// whole sectors whatever the tile's width.
#include "layouts.cuh"

constexpr int COLUMNS_EACH = 4;  // per thread
constexpr int UPSAMPLE_COLUMNS = COLUMNS_EACH * WARP;
constexpr int UPSAMPLE_ROWS = 16;  // per thread
constexpr int UPSAMPLE_BLOCK_ROWS = THREADS / WARP * UPSAMPLE_ROWS;
constexpr int LOWS_AT_ONCE = 4;  // scales that a thread goes down with, as the method has; more take turns

struct alignas(16) Tap {  // one read from shared memory
    int low;
    int next;     // the one after, or the same at the edge
    float share;  // of the next one
    float rest;   // of the low one
};

// (i + 0.5) * source / target - 0.5, at least 0, in exact integers: no rounding before the share's own.
__device__ inline Tap tap_of(int i, int source, int target) {
    const int numerator = max((2 * i + 1) * source - target, 0);
    Tap tap;
    tap.low = min(numerator / (2 * target), source - 1);
    tap.next = min(tap.low + 1, source - 1);
    tap.share = static_cast<float>(numerator - tap.low * 2 * target) / static_cast<float>(2 * target);
    tap.rest = 1.0f - tap.share;
    return tap;
}

__device__ inline float between(float a, float b, const Tap& tap) { return a * tap.rest + b * tap.share; }

// What a block's threads share of LOWS_AT_ONCE scales.
struct Lows {
    const float* map[LOWS_AT_ONCE];  // of the class
    int width[LOWS_AT_ONCE];
    Tap down[LOWS_AT_ONCE][UPSAMPLE_BLOCK_ROWS];
    Tap across[LOWS_AT_ONCE][UPSAMPLE_COLUMNS];
};

// Where a thread is in one low map: the source rows around its pixel, at its columns.
struct Place {
    int kept;  // the row that `top` is of; -2: none
    float top[COLUMNS_EACH];
    float bottom[COLUMNS_EACH];

    __device__ static void read(float (&values)[COLUMNS_EACH], const float* map, int begin, const Tap* across) {
#pragma unroll
        for (int c = 0; c < COLUMNS_EACH; ++c) {
            const Tap tap = across[c * WARP];
            values[c] = between(__ldg(map + (begin + tap.low)), __ldg(map + (begin + tap.next)), tap);
        }
    }
    // Adds the map's values at the next row of the tile, whose tap it is. across: from the thread's first column on.
    __device__ void add(float (&sums)[COLUMNS_EACH], const Tap& tap, const float* map, int width, const Tap* across) {
        if (tap.low != kept) {
            if (tap.low != kept + 1) read(bottom, map, tap.low * width, across);  // seldom: the thread's first row
#pragma unroll
            for (int c = 0; c < COLUMNS_EACH; ++c) top[c] = bottom[c];
            kept = tap.low;
            read(bottom, map, tap.next * width, across);
        }
#pragma unroll
        for (int c = 0; c < COLUMNS_EACH; ++c) sums[c] += between(top[c], bottom[c], tap);
    }
};

// A thread's pixels. down: taps of its rows, across: of its columns; own: how many of them the tile has. Returns
// their maximum, as ordered_bits.
template <int SCALES>
__device__ int descend(const Lows& lows, const Tap* down, const Tap* across, float* out, int width, int rows, int own,
                       bool add) {
    Place places[SCALES ? SCALES : 1] = {};
#pragma unroll
    for (int s = 0; s < SCALES; ++s) places[s].kept = -2;
    int peak = 0;
    for (int r = 0; r < rows; ++r, ++down, out += width) {
        float sums[COLUMNS_EACH] = {};
#pragma unroll
        for (int c = 0; c < COLUMNS_EACH; ++c) {
            if (add && c < own) sums[c] = out[c * WARP];
        }
#pragma unroll
        for (int s = 0; s < SCALES; ++s) {
            places[s].add(sums, down[s * UPSAMPLE_BLOCK_ROWS], lows.map[s], lows.width[s],
                          across + s * UPSAMPLE_COLUMNS);
        }
#pragma unroll
        for (int c = 0; c < COLUMNS_EACH; ++c) {
            if (c >= own) break;
            out[c * WARP] = sums[c];
            peak = max(peak, ordered_bits(sums[c]));  // more scales do not make it smaller
        }
    }
    return peak;
}

// Grid: (column, row) blocks of the tile, items, classes.
extern "C" __global__ void __launch_bounds__(THREADS, 2) upsample(const char* packet) {
    __shared__ Lows lows;
    __shared__ int scratch[THREADS / WARP];
    const TileItem& item = reinterpret_cast<const TileItem*>(packet)[blockIdx.y];
    const int k = blockIdx.z, thread = threadIdx.x, width = item.width, height = item.height, all = item.lows;
    const int columns = (width + UPSAMPLE_COLUMNS - 1) / UPSAMPLE_COLUMNS;
    const int y0 = blockIdx.x / columns * UPSAMPLE_BLOCK_ROWS, x0 = blockIdx.x % columns * UPSAMPLE_COLUMNS;
    if (k >= item.classes || y0 >= height) return;
    const int column = thread % WARP, row = thread / WARP * UPSAMPLE_ROWS;
    const int own = (width - x0 - column + WARP - 1) / WARP;  // columns; of the tile's last block some have none
    const int rows = own > 0 ? min(UPSAMPLE_ROWS, height - y0 - row) : 0;  // or negative, below the tile
    const LowMap* maps = reinterpret_cast<const LowMap*>(packet + item.lows_at);
    float* out = item.total + static_cast<size_t>(k) * item.stride;
    out += static_cast<size_t>(y0 + row) * width + x0 + column;
    int peak = 0;
    for (int from = 0; from == 0 || from < all; from += LOWS_AT_ONCE) {
        const int count = min(all - from, LOWS_AT_ONCE);
        __syncthreads();  // what was shared before has been used
        if (thread < count) {
            const LowMap low = maps[from + thread];
            lows.map[thread] = low.data + static_cast<size_t>(k) * low.height * low.width;
            lows.width[thread] = low.width;
        }
        // those beyond the tile's edge repeat the last: read, not kept
        for (int i = thread; i < count * UPSAMPLE_BLOCK_ROWS; i += THREADS) {
            const int s = i / UPSAMPLE_BLOCK_ROWS, r = i % UPSAMPLE_BLOCK_ROWS;
            lows.down[s][r] = tap_of(min(y0 + r, height - 1), maps[from + s].height, height);
        }
        for (int i = thread; i < count * UPSAMPLE_COLUMNS; i += THREADS) {
            const int s = i / UPSAMPLE_COLUMNS, c = i % UPSAMPLE_COLUMNS;
            lows.across[s][c] = tap_of(min(x0 + c, width - 1), maps[from + s].width, width);
        }
        __syncthreads();
        const Tap *down = &lows.down[0][row], *across = &lows.across[0][column];
        if (count == 4) peak = descend<4>(lows, down, across, out, width, rows, own, from > 0);
        if (count == 3) peak = descend<3>(lows, down, across, out, width, rows, own, from > 0);
        if (count == 2) peak = descend<2>(lows, down, across, out, width, rows, own, from > 0);
        if (count == 1) peak = descend<1>(lows, down, across, out, width, rows, own, from > 0);
        if (count == 0) peak = descend<0>(lows, down, across, out, width, rows, own, false);  // zeros
    }
    if (item.ranks != nullptr) return;  // a quantile: peaks.cu finds it
    peak = block_reduce<Max>(peak, 0, scratch);
    if (thread == 0) atomicMax(reinterpret_cast<int*>(item.result) + 1 + k, peak);  // any order gives the same
}
