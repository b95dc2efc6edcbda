// A tile's picture at a network size, as Pillow makes it, bit for bit: bicubic (a = -0.5), widened when
// shrinking; one axis after the other (ops.columns_first says which), in fixed-point weights, the intermediate
// rounded to uint8.
//
// Once per tile and size, kept over mirror and iterations: not in the inner loop, hence two passes, each at the
// rate of the bytes that it must move: 3 per source pixel read, 3 per pixel of the intermediate written and read,
// 3 per pixel of the picture written (the other taps come from the cache). One fused pass would move half of that
// with the same instructions, which are what bounds both: at a copy's rate an H100's multiprocessor can issue 16
// for each byte that is written here, and each has 4 taps (8 at half the size). The first pass takes 24, the
// second 25 (115 and more where every byte read, every weight and every place is worked out alone). So a thread
// keeps the weights of a column for 8 rows and 3 channels, or those of a row for 8 columns and 3 channels, in
// registers; reads 8 neighbours at once in the second pass (the intermediate's rows are padded for that); and
// writes words where the picture's width allows. Where the columns go first (seldom: where the height shrinks
// much more than the width) pixels are worked out one by one.
#include "layouts.cuh"

constexpr int PRECISION_BITS = 32 - 8 - 2;

__device__ inline double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

// Grid: target pixels, axes. One thread: the weights of one output pixel, in double as Pillow's precompute_coeffs.
extern "C" __global__ void __launch_bounds__(THREADS) resample_weights(const Axis* axes) {
    const Axis axis = axes[blockIdx.y];
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= axis.target) return;
    const double scale = static_cast<double>(axis.source) / axis.target;
    const double widened = scale < 1.0 ? 1.0 : scale;
    const double support = 2.0 * widened, shrink = 1.0 / widened;
    const double centre = (i + 0.5) * scale;
    const int first = max(static_cast<int>(centre - support + 0.5), 0);
    const int count = min(static_cast<int>(centre + support + 0.5), axis.source) - first;
    double sum = 0.0;
    for (int t = 0; t < count; ++t) sum += bicubic((t + first - centre + 0.5) * shrink);
    axis.table[i] = first;
    axis.table[axis.target + i] = count;
    for (int t = 0; t < count; ++t) {
        double weight = bicubic((t + first - centre + 0.5) * shrink);
        if (sum != 0.0) weight /= sum;
        weight *= 1 << PRECISION_BITS;
        axis.table[(2 + t) * axis.target + i] = static_cast<int>(weight + (weight < 0 ? -0.5 : 0.5));
    }
}

constexpr int FIRST_ROWS = 8;  // per thread
constexpr int FIRST_BLOCK_ROWS = THREADS / WARP * FIRST_ROWS;
constexpr int SIDE_BY_SIDE = 8;  // pixels that a thread of the second pass reads and writes at once
constexpr int SECOND_COLUMNS = WARP * SIDE_BY_SIDE;
constexpr int SECOND_ROWS = 8;
constexpr int SECOND_BLOCK_ROWS = THREADS / WARP * SECOND_ROWS;
constexpr int HALF = 1 << (PRECISION_BITS - 1);

__device__ inline int rounded(int sum) { return min(max(sum >> PRECISION_BITS, 0), 255); }

// The weights around output position `i` of an axis.
struct Taps {
    const int* weights;  // `target` apart
    int target;
    int first;
    int count;

    __device__ Taps(const int* table, int target, int i)
        : weights(table + 2 * target + i), target(target), first(table[i]), count(table[target + i]) {}

    // One value by itself: pixels are `step` apart and begin at the source's first.
    __device__ int weighted(const u8* pixels, int step) const {
        int sum = HALF;
#pragma unroll 1
        for (int t = 0; t < count; ++t) sum += pixels[static_cast<size_t>(first + t) * step] * weights[t * target];
        return rounded(sum);
    }
    // Calls add(t, w) for each tap, 4 at a time while there are: T is the number, w[T] their weights.
    template <typename Add>
    __device__ void each(Add add) const {
        int t = 0;
        for (; t + 4 <= count; t += 4) {
            const int* w = weights + t * target;
            const int four[4] = {__ldg(w), __ldg(w + target), __ldg(w + 2 * target), __ldg(w + 3 * target)};
            add(t, four);
        }
        for (; t < count; ++t) {
            const int one[1] = {__ldg(weights + t * target)};
            add(t, one);
        }
    }
};

// The pixels of one column and some rows, along the rows; `rows` begin at the first tap.
struct AlongRows {
    int sums[FIRST_ROWS][CHANNELS];
    const u8* rows[FIRST_ROWS];

    template <int T>
    __device__ void operator()(int t, const int (&weights)[T]) {
#pragma unroll
        for (int r = 0; r < FIRST_ROWS; ++r) {
            const u8* pixels = rows[r] + static_cast<size_t>(CHANNELS * t);
#pragma unroll
            for (int i = 0; i < T * CHANNELS; ++i) {
                sums[r][i % CHANNELS] += __ldg(pixels + i) * weights[i / CHANNELS];
            }
        }
    }
};

__device__ inline int byte_of(u64 word, int i) {
    return static_cast<int>(__byte_perm(static_cast<u32>(word >> 32 * (i / 4)), 0, 0x4440 + i % 4));
}

// 8 pixels side by side, down the columns; `pixels`: of the first tap in the first channel.
struct DownColumns {
    int sums[CHANNELS][SIDE_BY_SIDE];
    const u8* pixels;
    int pitch;
    int plane;

    template <int T>
    __device__ void operator()(int t, const int (&weights)[T]) {
#pragma unroll
        for (int i = 0; i < T; ++i) {
            const u8* row = pixels + static_cast<u32>((t + i) * pitch);
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                const u64 word = __ldg(reinterpret_cast<const u64*>(row + static_cast<u32>(c * plane)));
#pragma unroll
                for (int j = 0; j < SIDE_BY_SIDE; ++j) sums[c][j] += byte_of(word, j) * weights[i];
            }
        }
    }
};

// Grid: (column, row) blocks of the intermediate, items. From the image's interleaved channels to planes, whose rows
// are padded to words. `reversed`: the network takes BGR.
extern "C" __global__ void __launch_bounds__(THREADS) resize_first(const ResizeItem* items, int reversed) {
    const ResizeItem item = items[blockIdx.y];
    if (blockIdx.x == 0 && threadIdx.x < CHANNELS) {  // resize_second adds to them
        reinterpret_cast<Picture*>(item.picture)->sums[threadIdx.x] = 0;
    }
    const int columns = (item.middle_width + WARP - 1) / WARP;
    const int x = blockIdx.x % columns * WARP + threadIdx.x % WARP;
    const int y = blockIdx.x / columns * FIRST_BLOCK_ROWS + threadIdx.x / WARP * FIRST_ROWS;
    const int rows = min(FIRST_ROWS, item.middle_height - y);
    if (x >= item.middle_width || rows <= 0) return;
    const size_t row = static_cast<size_t>(CHANNELS) * item.image_width;
    int values[FIRST_ROWS][CHANNELS];
    if (item.columns_first) {
#pragma unroll
        for (int r = 0; r < FIRST_ROWS; ++r) {
            if (r >= rows) break;
            const Taps taps(item.first, item.middle_height, y + r);
            for (int c = 0; c < CHANNELS; ++c) values[r][c] = taps.weighted(item.tile + CHANNELS * x + c, row);
        }
    } else {
        const Taps taps(item.first, item.middle_width, x);
        AlongRows along;
#pragma unroll
        for (int r = 0; r < FIRST_ROWS; ++r) {  // those beyond the last repeat it: read, not kept
            along.rows[r] = item.tile + min(y + r, item.middle_height - 1) * row + CHANNELS * taps.first;
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) along.sums[r][c] = HALF;
        }
        taps.each([&](int t, auto& weights) { along(t, weights); });
#pragma unroll
        for (int r = 0; r < FIRST_ROWS; ++r) {
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) values[r][c] = rounded(along.sums[r][c]);
        }
    }
    u8* out = item.middle + static_cast<size_t>(y) * item.middle_pitch + x;
    const int plane = item.middle_height * item.middle_pitch;
#pragma unroll
    for (int r = 0; r < FIRST_ROWS; ++r) {
        if (r >= rows) break;
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            out[static_cast<size_t>(reversed ? CHANNELS - 1 - c : c) * plane + r * item.middle_pitch] =
                static_cast<u8>(values[r][c]);
        }
    }
}

// Writes the first `count` bytes of a word, as far as they are there; rows are `width` long.
__device__ inline void store_word(u8* out, u32 word, int count, int width) {
    if (width % 4 == 0) {
        if (count > 0) *reinterpret_cast<u32*>(out) = word;
    } else if (width % 2 == 0) {
        if (count > 0) *reinterpret_cast<u16*>(out) = static_cast<u16>(word);
        if (count > 2) *reinterpret_cast<u16*>(out + 2) = static_cast<u16>(word >> 16);
    } else {
#pragma unroll 1
        for (int j = 0; j < min(count, 4); ++j) out[j] = static_cast<u8>(word >> 8 * j);
    }
}

// Grid: (column, row) blocks of the picture, items. Sums the normalised picture in fixed point: of a byte v it is
// first + step * v + rest[v], so that of the three only the small rest is looked up.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    resize_second(const ResizeItem* items, const Normalisation* normalisation) {
    __shared__ int rest[CHANNELS][256];
    __shared__ i64 scratch[THREADS / WARP];
    const ResizeItem item = items[blockIdx.y];
    const int width = item.width, height = item.height, plane = item.middle_height * item.middle_pitch;
    const int columns = (width + SECOND_COLUMNS - 1) / SECOND_COLUMNS;
    const int x0 = blockIdx.x % columns * SECOND_COLUMNS, y0 = blockIdx.x / columns * SECOND_BLOCK_ROWS;
    if (y0 >= height) return;
    for (int c = 0; c < CHANNELS; ++c) rest[c][threadIdx.x] = normalisation->rest[c][threadIdx.x];
    __syncthreads();
    const int x = x0 + threadIdx.x % WARP * SIDE_BY_SIDE, y = y0 + threadIdx.x / WARP * SECOND_ROWS;
    const int valid = min(SIDE_BY_SIDE, width - x);
    const int rows = valid > 0 ? min(SECOND_ROWS, height - y) : 0;
    u8* out = item.picture + PLANES_AT + static_cast<size_t>(y) * width + x;
    u32 bytes[CHANNELS] = {};
    int rests[CHANNELS] = {};
    for (int r = 0; r < rows; ++r, out += width) {
        u64 words[CHANNELS] = {};
        if (item.columns_first) {
#pragma unroll 1
            for (int j = 0; j < valid; ++j) {
                const Taps taps(item.second, width, x + j);
                const u8* row = item.middle + static_cast<size_t>(y + r) * item.middle_pitch;
                for (int c = 0; c < CHANNELS; ++c) words[c] |= u64(taps.weighted(row + c * plane, 1)) << 8 * j;
            }
        } else {
            const Taps taps(item.second, height, y + r);
            DownColumns down = {{}, item.middle + taps.first * item.middle_pitch + x, item.middle_pitch, plane};
#pragma unroll
            for (int i = 0; i < CHANNELS * SIDE_BY_SIDE; ++i) down.sums[i / SIDE_BY_SIDE][i % SIDE_BY_SIDE] = HALF;
            taps.each([&](int t, auto& weights) { down(t, weights); });
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                u32 half[2] = {};
#pragma unroll
                for (int j = 0; j < SIDE_BY_SIDE; ++j) half[j / 4] |= rounded(down.sums[c][j]) << 8 * (j % 4);
                words[c] = u64(half[1]) << 32 | half[0];
            }
        }
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            if (valid < SIDE_BY_SIDE) words[c] &= (u64(1) << 8 * valid) - 1;  // rest[0] is 0: they do not count
            u8* begin = out + static_cast<size_t>(c) * height * width;
#pragma unroll
            for (int k = 0; k < SIDE_BY_SIDE / 4; ++k) {
                const u32 word = static_cast<u32>(words[c] >> 32 * k);
                store_word(begin + 4 * k, word, valid - 4 * k, width);
                bytes[c] = __dp4a(word, 0x01010101u, bytes[c]);
            }
#pragma unroll
            for (int j = 0; j < SIDE_BY_SIDE; ++j) rests[c] += rest[c][byte_of(words[c], j)];
        }
    }
    const i64 pixels = static_cast<i64>(min(SECOND_COLUMNS, width - x0)) * min(SECOND_BLOCK_ROWS, height - y0);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        const i64 total = block_reduce<Sum>(normalisation->step[c] * bytes[c] + rests[c], i64(0), scratch);
        if (threadIdx.x != 0) continue;
        // integers: any order gives the same; unsigned, as CUDA has it, wraps to the same bits
        u64* sum = reinterpret_cast<u64*>(&reinterpret_cast<Picture*>(item.picture)->sums[c]);
        atomicAdd(sum, u64(total + normalisation->first[c] * pixels));
    }
}

// Grid: items / THREADS. What erased pixels become: the mean of the normalised picture (engine/method/README.md §3 step 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    mean_colours(const ResizeItem* items, int count, const Normalisation* normalisation) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    Picture* picture = reinterpret_cast<Picture*>(items[i].picture);
    const double pixels = static_cast<double>(items[i].height) * items[i].width;
    for (int c = 0; c < CHANNELS; ++c) {
        picture->fill[c] = static_cast<float>(static_cast<double>(picture->sums[c]) * normalisation->unit / pixels);
    }
}
