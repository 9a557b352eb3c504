// What kernel.cu uses of CUDA C++, for a host compiler: a block's threads are fibers that take turns,
// and __syncthreads() is where one hands over to the next. To be included before the kernel.

#pragma once
#define HOST_CUDA 1

#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <vector>

struct HostIndex { unsigned x, y, z; };
static HostIndex blockIdx, threadIdx;

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads, blocks)

struct float4 { float x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };

// Compiled with -ffp-contract=off, so that these round as CUDA's do.
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }

static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#if KIND == 1
static inline float to_float(unsigned short bits) {
    _Float16 half;
    memcpy(&half, &bits, sizeof half);
    return (float)half;
}
static inline unsigned short to_16_bits(float value) {
    const _Float16 half = (_Float16)value;
    unsigned short bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}
#endif

namespace host {

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool done = false;
};
static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static unsigned current;
static void (*body)(void*);
static void* body_arguments;

static void enter() {
    body(body_arguments);
    fibers[current].done = true;
    swapcontext(&fibers[current].context, &scheduler);
}

static void run_block(unsigned threads) {
    for (Fiber& fiber : fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.done = false;
        makecontext(&fiber.context, enter, 0);
    }
    for (bool running = true; running;) {  // one turn of every thread, up to the next barrier
        running = false;
        for (current = 0; current < threads; ++current) {
            if (fibers[current].done) continue;
            threadIdx.x = current;
            swapcontext(&scheduler, &fibers[current].context);
            running |= !fibers[current].done;
        }
    }
}

template <typename Function>
static void launch(unsigned blocks, unsigned threads, Function function) {
    body = [](void* function) { (*(Function*)function)(); };
    body_arguments = &function;
    fibers.resize(threads);
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) run_block(threads);
}

}  // namespace host

static inline void __syncthreads() {
    swapcontext(&host::fibers[host::current].context, &host::scheduler);
}
