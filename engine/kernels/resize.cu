// A tile's picture at a network size, as Pillow makes it, bit for bit: bicubic (a = -0.5), widened when
// shrinking; one axis after the other (ops.columns_first says which), in fixed-point weights, the intermediate
// rounded to uint8.
//
// Once per tile and size, kept over mirror and iterations: not in the inner loop, hence two plain passes.
// Bytes: 3 per source pixel read, 3 per pixel of the intermediate written and read, 3 per pixel of the picture written
// (the other taps come from the cache).
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

__device__ inline u8 rounded(int sum) { return static_cast<u8>(min(max(sum >> PRECISION_BITS, 0), 255)); }

// One pass: the weighted pixels around output position `i` of an axis; `step` apart in `pixels`, which begins at the
// source's first.
__device__ inline int weighted(const u8* pixels, const int* table, int target, int i, int step) {
    const int first = table[i], count = table[target + i];
    const int* weights = table + 2 * target + i;
    pixels += static_cast<size_t>(first) * step;
    int sum = 1 << (PRECISION_BITS - 1);
    for (int t = 0; t < count; ++t) sum += pixels[static_cast<size_t>(t) * step] * weights[t * target];
    return min(max(sum >> PRECISION_BITS, 0), 255);
}

// Grid: pixels of the intermediate, items. From the image's interleaved channels to planes. `reversed`: the network
// takes BGR.
extern "C" __global__ void __launch_bounds__(THREADS) resize_first(const ResizeItem* items, int reversed) {
    const ResizeItem item = items[blockIdx.y];
    if (blockIdx.x == 0 && threadIdx.x < 3) {  // resize_second adds to them
        reinterpret_cast<Picture*>(item.picture)->sums[threadIdx.x] = 0;
    }
    const int plane = item.middle_height * item.middle_width;
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= plane) return;
    const int y = i / item.middle_width, x = i % item.middle_width;
    const int row = 3 * item.image_width;
    const u8* tile = item.tile + (item.columns_first ? 3 * x : static_cast<size_t>(y) * row);
    for (int c = 0; c < 3; ++c) {
        const int value = item.columns_first ? weighted(tile + c, item.first, item.middle_height, y, row)
                                             : weighted(tile + c, item.first, item.middle_width, x, 3);
        item.middle[static_cast<size_t>(reversed ? 2 - c : c) * plane + i] = static_cast<u8>(value);
    }
}

constexpr int SUM_ROUNDS = 8;  // pixels per thread, so that one sum per block and channel is few atomics

// Grid: pixels of the picture, items, channels. Sums the normalised picture in fixed point.
extern "C" __global__ void __launch_bounds__(THREADS)
    resize_second(const ResizeItem* items, const Normalisation* normalisation) {
    __shared__ i64 fixed[256];
    __shared__ i64 scratch[THREADS / WARP];
    const ResizeItem item = items[blockIdx.y];
    const int plane = item.height * item.width;
    const int start = blockIdx.x * THREADS * SUM_ROUNDS;
    if (start >= plane) return;
    fixed[threadIdx.x] = normalisation->fixed[blockIdx.z][threadIdx.x];
    __syncthreads();
    const u8* middle = item.middle + static_cast<size_t>(blockIdx.z) * item.middle_height * item.middle_width;
    u8* out = item.picture + PLANES_AT + static_cast<size_t>(blockIdx.z) * plane;
    i64 total = 0;
    for (int round = 0; round < SUM_ROUNDS; ++round) {
        const int i = start + round * THREADS + threadIdx.x;
        if (i >= plane) break;
        const int y = i / item.width, x = i % item.width;
        const u8* row = middle + static_cast<size_t>(y) * item.middle_width;
        const int value = item.columns_first ? weighted(row, item.second, item.width, x, 1)
                                             : weighted(middle + x, item.second, item.height, y, item.width);
        out[i] = static_cast<u8>(value);
        total += fixed[value];
    }
    total = block_reduce<Sum>(total, i64(0), scratch);
    if (threadIdx.x == 0) {  // integers: any order gives the same; unsigned, as CUDA has it, wraps to the same bits
        atomicAdd(reinterpret_cast<u64*>(&reinterpret_cast<Picture*>(item.picture)->sums[blockIdx.z]), u64(total));
    }
}

// Grid: items / THREADS. What erased pixels become: the mean of the normalised picture (engine/method/README.md §3 step 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    mean_colours(const ResizeItem* items, int count, const Normalisation* normalisation) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    Picture* picture = reinterpret_cast<Picture*>(items[i].picture);
    const double pixels = static_cast<double>(items[i].height) * items[i].width;
    for (int c = 0; c < 3; ++c) {
        picture->fill[c] = static_cast<float>(static_cast<double>(picture->sums[c]) * normalisation->unit / pixels);
    }
}
