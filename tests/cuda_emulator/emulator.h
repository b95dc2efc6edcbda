// Runs CUDA kernels on the CPU, for tests: included before the .cu sources, which are then plain C++.
//
// A block's threads are fibers on one CPU thread, each run until it ends or waits at a barrier; blocks and threads
// go in an order shuffled by a seed. So what depends on an order, or on a barrier that is missing, shows as a result
// that changes with the seed; a barrier that not all threads reach is an error. Shared memory holds garbage when a
// block begins. It shows logic, not speed, and not what depends on the hardware's memory model.
#pragma once

#include <csetjmp>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#define CUDA_EMULATOR
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __syncthreads() emulator::wait_for_block(__LINE__)
#if defined(__SANITIZE_ADDRESS__)  // it guards ordinary globals only
#define __shared__ static
#else
#define __shared__ static __attribute__((section("emulated_shared")))
extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
#endif

using std::max;
using std::min;

namespace emulator {

struct Dim {
    unsigned x = 0, y = 0, z = 0;
};

constexpr int LANES = 32;
constexpr std::size_t STACK = 64 << 10;

struct Fiber {
    ucontext_t context;
    jmp_buf paused;
    std::unique_ptr<char[]> stack;
    bool begun = false, ended = false, waiting = false;
    int line = 0;  // of the barrier it waits at; 0: within its warp
    int parity = 0;
    Dim thread;
    unsigned rank = 0;
};

struct Warp {
    unsigned arrived = 0;
    std::uint64_t values[2][LANES];  // two, so that one barrier per shuffle is enough
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::function<void()> body;
    Fiber* current = nullptr;
    unsigned size = 0, arrived = 0;
    int line = 0;
    std::string error;
    ucontext_t host;
    jmp_buf host_paused;
};
inline Block block;

}  // namespace emulator

inline emulator::Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

#if defined(__SANITIZE_ADDRESS__)  // knows swapcontext, but not a longjmp to another stack
inline void pause() { swapcontext(&block.current->context, &block.host); }
inline void resume(Fiber& fiber) { swapcontext(&block.host, &fiber.context); }
#else  // without a system call for the signal mask: 20 times faster
inline void pause() {
    if (!_setjmp(block.current->paused)) _longjmp(block.host_paused, 1);
}
inline void resume(Fiber& fiber) {
    if (_setjmp(block.host_paused)) return;
    if (fiber.begun) _longjmp(fiber.paused, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}
#endif

inline void fiber_main() {
    for (;;) {  // the fiber serves block after block
        block.body();
        block.current->ended = true;
        pause();
    }
}

inline void fail(const std::string& what) {
    if (block.error.empty()) block.error = what;
    block.current->waiting = true;  // never goes on: run_block gives up
    pause();
}

inline void wait_for_block(int line) {
    if (block.arrived == 0) block.line = line;
    if (line != block.line)
        fail("divergent barrier: lines " + std::to_string(block.line) + " and " + std::to_string(line));
    if (++block.arrived < block.size) {
        block.current->waiting = true;
        block.current->line = line;
        pause();
        return;
    }
    block.arrived = 0;
    for (unsigned i = 0; i < block.size; ++i) block.fibers[i].waiting = false;
}

inline void wait_for_warp() {
    Warp& warp = block.warps[block.current->rank / LANES];
    if (++warp.arrived < LANES) {
        block.current->waiting = true;
        block.current->line = 0;
        pause();
        return;
    }
    warp.arrived = 0;
    const unsigned first = block.current->rank / LANES * LANES;
    for (unsigned i = first; i < first + LANES; ++i) block.fibers[i].waiting = false;
}

inline void prepare(unsigned threads) {
    if (block.fibers.size() < threads) block.fibers.resize(threads);
    block.warps.assign((threads + LANES - 1) / LANES, Warp());
    block.size = threads;
    block.arrived = 0;
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = block.fibers[i];
        fiber.ended = fiber.waiting = false;
        fiber.rank = i;
        fiber.thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        if (fiber.stack) continue;
        fiber.stack.reset(new char[STACK]);  // not touched before it is used
        fiber.begun = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
#if !defined(__SANITIZE_ADDRESS__)
    if (__start_emulated_shared)
        std::memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
#endif
}

// Runs until every thread has ended, or none can go on.
inline void run_block(const std::vector<unsigned>& order) {
    prepare(static_cast<unsigned>(order.size()));
    for (bool moved = true; moved && block.error.empty();) {
        moved = false;
        for (unsigned i : order) {
            Fiber& fiber = block.fibers[i];
            if (fiber.ended || fiber.waiting) continue;
            block.current = &fiber;
            threadIdx = fiber.thread;
            resume(fiber);
            moved = true;
            if (!block.error.empty()) break;
        }
    }
    for (const Fiber& fiber : block.fibers) {
        if (fiber.rank >= block.size || fiber.ended || !block.error.empty()) continue;
        block.error = "divergent barrier: thread " + std::to_string(fiber.rank) + " waits " +
                      (fiber.line ? "at line " + std::to_string(fiber.line) : std::string("for its warp")) +
                      ", others have ended or wait elsewhere";
    }
    if (!block.error.empty()) block.fibers.clear();  // some are half way through the kernel
}

template <typename T>
T shuffle_down(unsigned lanes, T value, unsigned by) {
    static_assert(sizeof(T) <= 8, "");
    if (lanes != 0xffffffffu || block.size % LANES) fail("a shuffle needs whole warps and every lane");
    Fiber& me = *block.current;
    Warp& warp = block.warps[me.rank / LANES];
    const unsigned lane = me.rank % LANES;
    const int parity = me.parity ^= 1;
    std::memcpy(&warp.values[parity][lane], &value, sizeof(T));
    wait_for_warp();
    if (lane + by < LANES) std::memcpy(&value, &warp.values[parity][lane + by], sizeof(T));
    return value;
}

// float32 to float16, to nearest, ties to even.
inline std::uint16_t half_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const std::uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520 and more
    if (bits < 0x38800000) {                       // subnormal: let float32 do the rounding
        float magnitude;
        std::memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        std::memcpy(&bits, &magnitude, 4);
        return sign | (bits - 0x3f000000);
    }
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (bits - 0x38000000) >> 13;
}

struct Kernel {
    std::function<void(void**)> call;
    std::vector<std::size_t> sizes;
};
inline std::map<std::string, Kernel> kernels;

template <typename... A, std::size_t... I>
void call(void (*f)(A...), void** arguments, std::index_sequence<I...>) {
    f(*static_cast<A*>(arguments[I])...);
}

template <typename... A>
bool add(const char* name, void (*f)(A...)) {
    kernels[name] = {[f](void** arguments) { call(f, arguments, std::index_sequence_for<A...>()); }, {sizeof(A)...}};
    return true;
}

}  // namespace emulator

#define EMULATED_KERNEL(name) static const bool added_##name = emulator::add(#name, name);

template <typename T>
T __shfl_down_sync(unsigned lanes, T value, unsigned by) { return emulator::shuffle_down(lanes, value, by); }
template <typename T>
T atomicAdd(T* at, T value) { return std::exchange(*at, *at + value); }
template <typename T>
T atomicMax(T* at, T value) { return std::exchange(*at, max(*at, value)); }
template <typename T>
T __ldg(const T* at) { return *at; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) out |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int i = 0; i < 4; ++i) sum += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
    return sum;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __float_as_int(float value) {
    int bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// What driver.py calls.
extern "C" inline __attribute__((used)) void* emulator_allocate(std::size_t bytes) {
    void* out = nullptr;
    return posix_memalign(&out, 256, bytes) ? nullptr : out;
}
extern "C" inline __attribute__((used)) void emulator_free(void* pointer) { std::free(pointer); }

// Number of a kernel's arguments and their sizes; -1: no such kernel.
extern "C" inline __attribute__((used)) int emulator_arguments(const char* name, std::size_t* sizes, int most) {
    const auto found = emulator::kernels.find(name);
    if (found == emulator::kernels.end()) return -1;
    const auto& all = found->second.sizes;
    for (int i = 0; i < most && i < static_cast<int>(all.size()); ++i) sizes[i] = all[i];
    return static_cast<int>(all.size());
}

// seed 0: blocks and threads in their own order. Returns 0, or 1 with the reason in `error`.
extern "C" inline __attribute__((used)) int emulator_launch(
    const char* name, const unsigned* grid, const unsigned* threads, void** arguments, unsigned seed, char* error,
    std::size_t room) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads[0], threads[1], threads[2]};
    std::mt19937 random(seed);
    std::vector<unsigned> blocks(grid[0] * grid[1] * grid[2]), order(threads[0] * threads[1] * threads[2]);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::iota(order.begin(), order.end(), 0);
    if (seed) std::shuffle(blocks.begin(), blocks.end(), random);
    const auto& kernel = emulator::kernels.at(name);
    emulator::block.body = [&] { kernel.call(arguments); };
    emulator::block.error.clear();
    for (unsigned i : blocks) {
        blockIdx = {i % grid[0], i / grid[0] % grid[1], i / grid[0] / grid[1]};
        if (seed) std::shuffle(order.begin(), order.end(), random);
        emulator::run_block(order);
        if (emulator::block.error.empty()) continue;
        std::snprintf(error, room, "%s, block (%u, %u, %u): %s", name, blockIdx.x, blockIdx.y, blockIdx.z,
                      emulator::block.error.c_str());
        return 1;
    }
    return 0;
}
