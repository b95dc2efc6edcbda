// The network's input for a whole batch in one pass: normalise, mirror, erase, convert.
//
// Bytes per value: 1 read (the picture) and 4 or 2 written; the mask is at tile size and read once per channel,
// mostly from the cache. A thread writes 16 bytes at once; groups are counted over the whole batch, so every store
// is aligned whatever the sizes are, and a group may cross rows, planes and slots.
// Bytes become values through a table in shared memory: exact for every input specification, and cheaper than the
// division it replaces; the float16 table is made on the host.
#include "layouts.cuh"

constexpr int ERASE_ROUNDS = 8;  // groups per thread: the table is loaded once for 32 (64) values each

__device__ inline int nearest(int i, float ratio, int last) {
    return min(static_cast<int>(static_cast<float>(i) * ratio), last);
}

// One row of one plane of one slot.
template <typename T>
struct Row {
    const u8* pixels;
    const u8* mask;  // the row of the mask at tile size; 0: nothing is erased
    const T* table;
    T fill;
    float across;  // of the first step; the others (only in a cascade) are read when needed
    int last;
    const MaskStep* more;
    int more_steps;
    bool mirrored;
    bool mask_mirrored;
};

__device__ inline float fill_as(float value, float) { return value; }
__device__ inline u16 fill_as(float value, u16) { return half_bits(value); }

template <typename T>
__device__ Row<T> row_of(const EraseSlot& slot, const char* packet, const T* table, int c, int y, int h, int w) {
    Row<T> row;
    const size_t plane = static_cast<size_t>(h) * w;
    row.pixels = slot.picture + PLANES_AT + c * plane + static_cast<size_t>(y) * w;
    row.table = table + 256 * c;
    row.mirrored = slot.mirrored != 0;
    row.mask = nullptr;
    if (slot.erased == nullptr) return row;
    row.fill = fill_as(reinterpret_cast<const Picture*>(slot.picture)->fill[c], T());
    row.mask_mirrored = slot.mask_mirrored != 0;
    const MaskStep* steps = reinterpret_cast<const MaskStep*>(packet + slot.steps_at);
    for (int s = 0; s < slot.steps; ++s) y = nearest(y, steps[s].down, steps[s].last_row);
    row.mask = slot.erased + static_cast<size_t>(y) * slot.tile_width;
    row.across = steps[0].across;
    row.last = steps[0].last_column;
    row.more = steps + 1;
    row.more_steps = slot.steps - 1;
    return row;
}

template <typename T>
__device__ inline T value_at(const Row<T>& row, int x, int w) {
    const int other = w - 1 - x;
    if (row.mask != nullptr) {
        int at = nearest(row.mask_mirrored ? other : x, row.across, row.last);
        for (int s = 0; s < row.more_steps; ++s) at = nearest(at, row.more[s].across, row.more[s].last_column);
        if (row.mask[at]) return row.fill;
    }
    return row.table[row.pixels[row.mirrored ? other : x]];
}

template <typename T>
__device__ void erase_batch(const char* packet, const T* table, T* out, int slots, int h, int w) {
    constexpr int N = Pack<T>::SIZE;
    const EraseSlot* all = reinterpret_cast<const EraseSlot*>(packet);
    const u32 plane = static_cast<u32>(h) * w, image = 3 * plane;
    const u64 values = static_cast<u64>(image) * slots;
    const u64 begin = static_cast<u64>(blockIdx.x) * (THREADS * N * ERASE_ROUNDS);
    const u32 slot_of_begin = static_cast<u32>(begin / image);  // 64-bit division once per block only
    const u32 rest_of_begin = static_cast<u32>(begin % image);
    for (int round = 0; round < ERASE_ROUNDS; ++round) {
        const u32 ahead = (round * THREADS + threadIdx.x) * N;
        if (begin + ahead >= values) return;
        const u32 from = rest_of_begin + ahead;
        u32 slot = slot_of_begin + from / image;
        int c = static_cast<int>(from % image / plane);
        int y = static_cast<int>(from % plane) / w;  // image is a multiple of plane
        int x = static_cast<int>(from % plane) % w;
        Row<T> row = row_of(all[slot], packet, table, c, y, h, w);
        const int count = values - (begin + ahead) < N ? static_cast<int>(values - (begin + ahead)) : N;
        Pack<T> pack;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (i >= count) break;
            if (x == w) {
                x = 0;
                if (++y == h) {
                    y = 0;
                    if (++c == 3) {
                        c = 0;
                        ++slot;
                    }
                }
                row = row_of(all[slot], packet, table, c, y, h, w);
            }
            pack.at[i] = value_at(row, x, w);
            ++x;
        }
        T* target = out + begin + ahead;
        if (count == N) {
            *reinterpret_cast<Pack<T>*>(target) = pack;
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                if (i < count) target[i] = pack.at[i];
            }
        }
    }
}

// Grid: values / (THREADS * 16 bytes * ERASE_ROUNDS). packet: EraseSlot[slots], then their steps.
extern "C" __global__ void __launch_bounds__(THREADS)
    erase_float(const char* packet, const Normalisation* normalisation, float* out, int slots, int h, int w) {
    __shared__ float table[3 * 256];
    for (int i = threadIdx.x; i < 3 * 256; i += THREADS) table[i] = normalisation->values[i / 256][i % 256];
    __syncthreads();
    erase_batch(packet, table, out, slots, h, w);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    erase_half(const char* packet, const Normalisation* normalisation, u16* out, int slots, int h, int w) {
    __shared__ u16 table[3 * 256];
    for (int i = threadIdx.x; i < 3 * 256; i += THREADS) table[i] = normalisation->halves[i / 256][i % 256];
    __syncthreads();
    erase_batch(packet, table, out, slots, h, w);
}
