// The network's input for a whole batch in one pass: normalise, mirror, erase, convert.
//
// Bytes per value: 1 read (the picture) and 4 or 2 written; the mask is at tile size and read once per pixel, or
// once per channel mostly from the cache. What bounds it is instructions: at a copy's rate an H100's
// multiprocessor can issue 33 for each half value and its share of the mask, and finding and reading a pixel's
// place in the mask takes 12 of them. So where rows are whole words (the ladder's always are) erase_words has all
// channels of 4 pixels in one thread: the mask is looked up once for the three, the picture is read 4 bytes at a
// time, and what is written is aligned: 20 instructions a value, and the rest waits for memory. Else a thread has
// 4 values of one plane, 57 instructions each: groups are counted from the beginning of the batch, where
// alignment begins, so whatever the sizes, only a plane's first and last group are written one by one; and the
// picture is read byte by byte.
// Bytes become values through a table in shared memory: exact for every input specification, and cheaper than the
// division it replaces; the float16 table is made on the host.
#include "layouts.cuh"

constexpr int ERASE_VALUES = 4;  // of one group
constexpr int ERASE_ROUNDS = 8;  // groups per thread, so that the table and the look-up are paid for
constexpr int WORD_ROUNDS = 4;   // the same of erase_words, whose groups are of 3 channels

template <typename T>
struct alignas(ERASE_VALUES * sizeof(T)) Group {
    T at[ERASE_VALUES];
};

__device__ inline int nearest(int i, float ratio, int last) {
    return min(static_cast<int>(static_cast<float>(i) * ratio), last);
}

// What is erased of a slot, seen at the network's size.
struct Mask {
    const u8* erased;  // 0: nothing is
    MaskStep step;     // the others are there in a cascade only, and read when needed
    const MaskStep* more;
    int more_steps;
    int tile_width;

    __device__ Mask(const EraseSlot& slot, const char* packet) : erased(slot.erased), more(nullptr), more_steps(0) {
        if (erased == nullptr) return;
        const MaskStep* steps = reinterpret_cast<const MaskStep*>(packet + slot.steps_at);
        step = steps[0];
        more = steps + 1;
        more_steps = slot.steps - 1;
        tile_width = slot.tile_width;
    }
    __device__ const u8* row(int y) const {
        int at = nearest(y, step.down, step.last_row);
#pragma unroll 1  // seldom any
        for (int s = 0; s < more_steps; ++s) at = nearest(at, more[s].down, more[s].last_row);
        return erased + static_cast<size_t>(at) * tile_width;
    }
    __device__ int column(int x) const {
        int at = nearest(x, step.across, step.last_column);
#pragma unroll 1
        for (int s = 0; s < more_steps; ++s) at = nearest(at, more[s].across, more[s].last_column);
        return at;
    }
};

__device__ inline float fill_as(float value, float) { return value; }
__device__ inline u16 fill_as(float value, u16) { return half_bits(value); }

template <typename T>
struct Plane {
    const u8* pixels;
    const T* table;
    T fill;
    Mask mask;
    int w;
    bool mirrored;
    bool mask_mirrored;

    __device__ T value(int y, int x) const {
        const int other = w - 1 - x;
        if (mask.erased && mask.row(y)[mask.column(mask_mirrored ? other : x)]) return fill;
        return table[pixels[y * w + (mirrored ? other : x)]];
    }

    // Values from (y, x) on, into the next row where this one ends; w is at least their number.
    __device__ Group<T> group(int y, int x) const {
        const u8* row = pixels + y * w + (mirrored ? w - 1 : 0);
        const int step = mirrored ? -1 : 1;
        u8 bytes[ERASE_VALUES], erased[ERASE_VALUES] = {};
#pragma unroll
        for (int i = 0; i < ERASE_VALUES; ++i) {
            const bool next = x + i >= w;
            bytes[i] = row[(next ? w : 0) + step * (next ? x + i - w : x + i)];
        }
        if (mask.erased) {
            const u8* here = mask.row(y);
            const u8* below = x + ERASE_VALUES > w ? mask.row(y + 1) : here;
#pragma unroll
            for (int i = 0; i < ERASE_VALUES; ++i) {
                const bool next = x + i >= w;
                const int at = next ? x + i - w : x + i;
                erased[i] = (next ? below : here)[mask.column(mask_mirrored ? w - 1 - at : at)];
            }
        }
        Group<T> out;
#pragma unroll
        for (int i = 0; i < ERASE_VALUES; ++i) out.at[i] = erased[i] ? fill : table[bytes[i]];
        return out;
    }
};

// values: the table of this block's channel.
template <typename T>
__device__ void erase_plane(const char* packet, const T* values, T* table, T* out, int h, int w) {
    constexpr int N = ERASE_VALUES;
    for (int i = threadIdx.x; i < 256; i += THREADS) table[i] = values[i];
    __syncthreads();
    const EraseSlot slot = reinterpret_cast<const EraseSlot*>(packet)[blockIdx.y];
    const int size = h * w, c = blockIdx.z;
    const float fill = reinterpret_cast<const Picture*>(slot.picture)->fill[c];
    const u8* pixels = slot.picture + PLANES_AT + static_cast<size_t>(c) * size;
    const Plane<T> plane = {
        pixels, table, fill_as(fill, T()), Mask(slot, packet), w, slot.mirrored != 0, slot.mask_mirrored != 0};
    const u64 begin = (static_cast<u64>(blockIdx.y) * 3 + c) * size;
    const int early = static_cast<int>(begin % N);  // of a plane's first group belong to the plane before
    int at = (static_cast<int>(blockIdx.x) * THREADS * ERASE_ROUNDS + static_cast<int>(threadIdx.x)) * N - early;
    int y = (at + w) / w - 1, x = (at + w) % w;  // at may be negative; then they are not used
    constexpr int STRIDE = THREADS * N;
    const int rows = STRIDE / w, columns = STRIDE % w;
    for (int round = 0; round < ERASE_ROUNDS && at < size; ++round) {
        if (at >= 0 && at + N <= size && w >= N) {
            *reinterpret_cast<Group<T>*>(out + begin + at) = plane.group(y, x);
        } else {
            for (int i = max(at, 0); i < min(at + N, size); ++i) out[begin + i] = plane.value(i / w, i % w);
        }
        at += STRIDE;
        y += rows;
        x += columns;
        if (x >= w) {
            x -= w;
            ++y;
        }
    }
}

// Grid: groups of a plane / (THREADS * ERASE_ROUNDS), slots, channels. packet: EraseSlot[slots], then their steps.
extern "C" __global__ void __launch_bounds__(THREADS)
    erase_float(const char* packet, const Normalisation* normalisation, float* out, int h, int w) {
    __shared__ float table[256];
    erase_plane(packet, normalisation->values[blockIdx.z], table, out, h, w);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    erase_half(const char* packet, const Normalisation* normalisation, u16* out, int h, int w) {
    __shared__ u16 table[256];
    erase_plane(packet, normalisation->halves[blockIdx.z], table, out, h, w);
}

// The 4 pixels that are shown from x on.
__device__ inline u32 word_at(const u8* row, int x, int w, bool mirrored) {
    if (!mirrored) return __ldg(reinterpret_cast<const u32*>(row + x));
    return __byte_perm(__ldg(reinterpret_cast<const u32*>(row + (w - ERASE_VALUES - x))), 0, 0x0123);
}

// As erase_plane, of all channels; w is a multiple of ERASE_VALUES.
template <typename T>
__device__ void erase_words(const char* packet, const T (*values)[256], T (*table)[256], T* out, int h, int w) {
    constexpr int N = ERASE_VALUES;
    for (int i = threadIdx.x; i < CHANNELS * 256; i += THREADS) table[i / 256][i % 256] = values[i / 256][i % 256];
    __syncthreads();
    const EraseSlot slot = reinterpret_cast<const EraseSlot*>(packet)[blockIdx.y];
    const Mask mask(slot, packet);
    const bool mirrored = slot.mirrored != 0, mask_mirrored = slot.mask_mirrored != 0;
    const int size = h * w;
    const u8* pixels = slot.picture + PLANES_AT;
    T fill[CHANNELS];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        fill[c] = fill_as(reinterpret_cast<const Picture*>(slot.picture)->fill[c], T());
    }
    out += static_cast<size_t>(blockIdx.y) * CHANNELS * size;
    int at = (static_cast<int>(blockIdx.x) * THREADS * WORD_ROUNDS + static_cast<int>(threadIdx.x)) * N;
    for (int round = 0; round < WORD_ROUNDS && at < size; ++round, at += THREADS * N) {
        const int y = at / w, x = at - y * w;
        u32 words[CHANNELS];  // all is read before anything is written: one wait
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) words[c] = word_at(pixels + (c * size + at - x), x, w, mirrored);
        u8 erased[N] = {};
        if (mask.erased) {
            const u8* row = mask.row(y);
#pragma unroll
            for (int i = 0; i < N; ++i) erased[i] = __ldg(row + mask.column(mask_mirrored ? w - 1 - x - i : x + i));
        }
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            Group<T> group;
#pragma unroll
            for (int i = 0; i < N; ++i) group.at[i] = erased[i] ? fill[c] : table[c][words[c] >> 8 * i & 0xff];
            *reinterpret_cast<Group<T>*>(out + (static_cast<size_t>(c) * size + at)) = group;
        }
    }
}

// Grid: groups of a plane / (THREADS * WORD_ROUNDS), slots. Otherwise as above; w is a multiple of 4.
extern "C" __global__ void __launch_bounds__(THREADS)
    erase_words_float(const char* packet, const Normalisation* normalisation, float* out, int h, int w) {
    __shared__ float table[3][256];
    erase_words(packet, normalisation->values, table, out, h, w);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    erase_words_half(const char* packet, const Normalisation* normalisation, u16* out, int h, int w) {
    __shared__ u16 table[3][256];
    erase_words(packet, normalisation->halves, table, out, h, w);
}
