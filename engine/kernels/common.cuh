// What every kernel uses: block size, reductions, and the arithmetic that must equal the host's.
//
// Compiled with -fmad=false: no product and sum are fused, so that every GPU, and the CPU, round alike. The
// kernels wait for memory, not for arithmetic; it costs nothing.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// 8 warps: enough for a block's reductions to be cheap; small enough that 4 to 8 blocks share a multiprocessor (no
// kernel needs more than 64 registers) and the end of one is filled by the others.
constexpr int THREADS = 256;
constexpr int WARP = 32;
constexpr u32 EVERY_LANE = 0xffffffffu;

// Added to every maximum before dividing by it (recipe.EPSILON).
constexpr float EPSILON = 1e-5f;

// 16 bytes: the widest access of one thread.
template <typename T>
struct alignas(16) Pack {
    static constexpr int SIZE = 16 / sizeof(T);
    T at[SIZE];
};

struct Sum {
    template <typename T>
    __device__ static T of(T a, T b) { return a + b; }
};

struct Max {
    template <typename T>
    __device__ static T of(T a, T b) { return a > b ? a : b; }
};

// Combine a value of every thread; the result is right in thread 0. The order is fixed by the block size
// alone. `neutral` changes nothing. scratch: blockDim.x / WARP values of shared memory.
template <typename Op, typename T>
__device__ T block_reduce(T value, T neutral, T* scratch) {
    for (int d = WARP / 2; d > 0; d /= 2) value = Op::of(value, __shfl_down_sync(EVERY_LANE, value, d));
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    if (warp == 0) {
        value = lane < static_cast<int>(blockDim.x) / WARP ? scratch[lane] : neutral;
        for (int d = WARP / 2; d > 0; d /= 2) value = Op::of(value, __shfl_down_sync(EVERY_LANE, value, d));
    }
    __syncthreads();  // the scratch is free again
    return value;
}

// float32 to the bits of the nearest float16; without cuda_fp16.h, which NVRTC may not find.
__device__ inline u16 half_bits(float value) {
#ifdef CUDA_EMULATOR
    return emulator::half_bits(value);
#else
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#endif
}

// Keeps what is not a number: a network that overflows must not look like one that saw nothing.
__device__ inline float relu(float value) { return value < 0.0f ? 0.0f : value; }

// Maps are not negative, so they compare as their bits do, and what is not a number is above all (as NumPy has it).
__device__ inline int ordered_bits(float value) { return __float_as_int(value) & 0x7fffffff; }

// What a class is divided by: its peak, or its floor where that is larger.
__device__ inline float divisor(float peak, float floor) { return fmaxf(peak, floor) + EPSILON; }

__device__ inline float normalised(float value, float by) { return fminf(value / by, 1.0f); }
