// Kernels with one fault each, for test_emulator.py: the emulator has to find it.
extern "C" __global__ void reverse(int* out, int n) {  // the one without
    __shared__ int shared[64];
    shared[threadIdx.x] = out[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = static_cast<int>(threadIdx.x) < n ? shared[63 - threadIdx.x] : -1;
}

extern "C" __global__ void without_barrier(int* out, int n) {
    __shared__ int shared[64];
    shared[threadIdx.x] = out[blockIdx.x * 64 + threadIdx.x];
    out[blockIdx.x * 64 + threadIdx.x] = static_cast<int>(threadIdx.x) < n ? shared[63 - threadIdx.x] : -1;
}

extern "C" __global__ void barrier_after_return(int* out, int n) {
    if (static_cast<int>(threadIdx.x) >= n) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

extern "C" __global__ void barrier_in_branch(int* out, int n) {
    if (static_cast<int>(threadIdx.x) < n) {
        __syncthreads();
    } else {
        out[threadIdx.x] = 1;
        __syncthreads();
    }
}

extern "C" __global__ void shuffle_after_return(int* out, int n) {
    if (static_cast<int>(threadIdx.x) >= n) return;
    out[threadIdx.x] = __shfl_down_sync(0xffffffffu, static_cast<int>(threadIdx.x), 1);
}

extern "C" __global__ void beyond_the_end(int* out, int n) { out[static_cast<int>(threadIdx.x) + n] = 7; }

extern "C" __global__ void unset_shared(float* out, int n) {
    __shared__ float shared[64];
    if (static_cast<int>(threadIdx.x) < n) shared[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x];
}

extern "C" __global__ void sums(int* out, int n) {  // a shuffle and an atomic that are right
    int value = n;
    for (int d = 16; d > 0; d /= 2) value += __shfl_down_sync(0xffffffffu, value, d);
    if (threadIdx.x % 32 == 0) atomicAdd(out, value);
}

extern "C" __global__ void halves(const float* in, unsigned short* out, int n) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < n) out[i] = emulator::half_bits(in[i]);
}
