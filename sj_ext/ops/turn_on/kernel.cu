// The turn-on neuron over a sequence: u[t] = a u[t-1] + x[t], s[t] = u[t] >= v_threshold.
//
// One thread carries COLUMNS neurons through all steps, so that every element of [T, N] is read
// once and written once. naive.py beside this file says what is computed, README.md how the backward
// pass comes about. Compiled at first use with
//
//   KIND     0 float32, 1 float16, 2 bfloat16: x, the spikes and their gradients; all else is float32
//   ALIGNED  1 if every row of x starts on a 16-byte boundary
//   BLOCK    threads per block, a power of two
//   COLUMNS  neurons that a thread carries
//   SEGMENT  steps whose potentials a thread holds where a surrogate needs them
//   CLOSED   1 if both ends of a rectangular window are inside
//
// and with SURROGATE_CODE replaced by the statements of a surrogate that is no rectangular window.
// Nothing is included, so that any compiler of CUDA C++ takes it as it is.

#if KIND == 0
typedef float scalar;
#else
typedef unsigned short scalar;
#endif

#if !ALIGNED
#define GROUP 1
#elif KIND == 0
#define GROUP 4
#else
#define GROUP 8
#endif
// Steps whose inputs are loaded before the first of them is needed: enough bytes on their way to
// hide the memory's latency, few enough registers for two blocks of 256 threads on a multiprocessor.
#define AHEAD 4
#define AHEAD_BACK 2

typedef long long Index;

#if KIND == 1
#ifndef HOST_CUDA
static __device__ __forceinline__ float to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
static __device__ __forceinline__ unsigned short to_16_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif
#elif KIND == 2
static __device__ __forceinline__ float to_float(unsigned short bits) {
    return __uint_as_float((unsigned)bits << 16);
}
static __device__ __forceinline__ unsigned short to_16_bits(float value) {
    unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // NaN
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // ties to even
}
#endif

// The neurons of this thread: COLUMNS / GROUP groups of GROUP neighbours, a block's threads side by
// side, so that each access of a warp is one run of memory.
static __device__ __forceinline__ Index first_of(int group) {
    return ((Index)blockIdx.x * COLUMNS + group * GROUP) * BLOCK + (Index)threadIdx.x * GROUP;
}

static __device__ __forceinline__ void read_group(const float* from, float* to) {
#if GROUP == 1
    to[0] = from[0];
#else
#pragma unroll
    for (int i = 0; i < GROUP; i += 4) {
        const float4 quad = *(const float4*)(from + i);
        to[i] = quad.x; to[i + 1] = quad.y; to[i + 2] = quad.z; to[i + 3] = quad.w;
    }
#endif
}

static __device__ __forceinline__ void write_group(float* to, const float* from) {
#if GROUP == 1
    to[0] = from[0];
#else
#pragma unroll
    for (int i = 0; i < GROUP; i += 4) {
        float4 quad;
        quad.x = from[i]; quad.y = from[i + 1]; quad.z = from[i + 2]; quad.w = from[i + 3];
        *(float4*)(to + i) = quad;
    }
#endif
}

#if KIND != 0
static __device__ __forceinline__ void read_group(const unsigned short* from, float* to) {
#if GROUP == 1
    to[0] = to_float(from[0]);
#else
    const uint4 eight = *(const uint4*)from;
    const unsigned pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = to_float((unsigned short)(pairs[i] & 0xffffu));
        to[2 * i + 1] = to_float((unsigned short)(pairs[i] >> 16));
    }
#endif
}

static __device__ __forceinline__ void write_group(unsigned short* to, const float* from) {
#if GROUP == 1
    to[0] = to_16_bits(from[0]);
#else
    unsigned pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
        pairs[i] = (unsigned)to_16_bits(from[2 * i]) | (unsigned)to_16_bits(from[2 * i + 1]) << 16;
    uint4 eight;
    eight.x = pairs[0]; eight.y = pairs[1]; eight.z = pairs[2]; eight.w = pairs[3];
    *(uint4*)to = eight;
#endif
}
#endif

// With rows that are aligned a group lies inside n or outside it as a whole.
template <typename T>
static __device__ __forceinline__ void read(const T* row, Index n, float* to) {
#pragma unroll
    for (int group = 0; group < COLUMNS / GROUP; ++group) {
        const Index first = first_of(group);
        if (first < n) read_group(row + first, to + group * GROUP);
    }
}

template <typename T>
static __device__ __forceinline__ void write(T* row, Index n, const float* from) {
#pragma unroll
    for (int group = 0; group < COLUMNS / GROUP; ++group) {
        const Index first = first_of(group);
        if (first < n) write_group(row + first, from + group * GROUP);
    }
}

static __device__ __forceinline__ void clear(float* values) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) values[j] = 0.0f;
}

static __device__ __forceinline__ void read_or_clear(const float* row, Index n, float* to) {
    clear(to);
    if (row) read(row, n, to);
}

static __device__ __forceinline__ void read_decay(
    const float* decay, Index channels, Index inner, Index n, float* a) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
        const Index column = first_of(j / GROUP) + j % GROUP;
        // 32-bit division: launch.py refuses n of 2^31 and more, and 64 bits would take a call
        const unsigned channel = (unsigned)column / (unsigned)inner % (unsigned)channels;
        a[j] = column < n ? decay[channel] : 0.0f;
    }
}

// One rounded product and one rounded sum, never fused: every form of the neuron fires alike.
static __device__ __forceinline__ float charge(float a, float u, float x) {
    return __fadd_rn(__fmul_rn(a, u), x);
}

static __device__ __forceinline__ bool within(float above, float half_width) {
#if CLOSED
    return fabsf(above) <= half_width;
#else
    return fabsf(above) < half_width;
#endif
}

// v_init, bits and v_seq may be null.
extern "C" __global__ void __launch_bounds__(BLOCK, 512 / BLOCK) turn_on_forward(
    const scalar* __restrict__ x, const float* __restrict__ v_init,
    const float* __restrict__ decay, Index channels, Index inner, float v_threshold,
    float half_width, Index steps, Index n, scalar* __restrict__ spike,
    float* __restrict__ v_last, unsigned char* __restrict__ bits, Index bits_stride,
    float* __restrict__ v_seq) {
    float a[COLUMNS], u[COLUMNS], ahead[AHEAD][COLUMNS];
    read_decay(decay, channels, inner, n, a);
    read_or_clear(v_init, n, u);
    const Index byte = (Index)blockIdx.x * BLOCK + threadIdx.x;
    for (Index start = 0; start < steps; start += AHEAD) {
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            clear(ahead[k]);
            if (start + k < steps) read(x + (start + k) * n, n, ahead[k]);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            const Index t = start + k;
            if (t < steps) {
                float s[COLUMNS];
                unsigned inside = 0;
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
                    u[j] = charge(a[j], u[j], ahead[k][j]);
                    const float above = __fsub_rn(u[j], v_threshold);
                    s[j] = above >= 0.0f ? 1.0f : 0.0f;
                    inside |= (unsigned)within(above, half_width) << j;
                }
                write(spike + t * n, n, s);
                if (v_seq) write(v_seq + t * n, n, u);
                if (bits) bits[t * bits_stride + byte] = (unsigned char)inside;
            }
        }
    }
    write(v_last, n, u);
}

// The sum of `terms` over the block's neurons to sums[block], or each neuron's own to sums[column].
// The order of summation does not depend on the run.
static __device__ __forceinline__ void write_decay_terms(
    const float* terms, Index channels, Index n, float* sums) {
    __shared__ float shared[BLOCK];
    if (channels > 1) {
        write(sums, n, terms);
        return;
    }
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j)
        if (first_of(j / GROUP) + j % GROUP < n) sum += terms[j];
    shared[threadIdx.x] = sum;
    __syncthreads();
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = shared[0];
}

#ifdef RECTANGULAR

// grad_v_last, grad_v_seq, grad_v and grad_decay may be null; without grad_decay, x and v_init too.
extern "C" __global__ void __launch_bounds__(BLOCK, 512 / BLOCK) turn_on_backward(
    const scalar* __restrict__ grad_spike, const unsigned char* __restrict__ bits,
    Index bits_stride, const scalar* __restrict__ x, const float* __restrict__ v_init,
    const float* __restrict__ decay, Index channels, Index inner, float v_threshold, float alpha,
    Index steps, Index n, const float* __restrict__ grad_v_last,
    const float* __restrict__ grad_v_seq, scalar* __restrict__ grad_x,
    float* __restrict__ grad_v, float* __restrict__ grad_decay, float* __restrict__ checkpoints) {
    // carry = a G[t+1], and the gradient of the last potential to begin with
    float a[COLUMNS], carry[COLUMNS], h[COLUMNS], terms[COLUMNS];
    float gradient[AHEAD_BACK][COLUMNS], input[AHEAD_BACK][COLUMNS];
    unsigned inside[AHEAD_BACK];
    read_decay(decay, channels, inner, n, a);
    read_or_clear(grad_v_last, n, carry);
    clear(h);
    clear(terms);
    const Index byte = (Index)blockIdx.x * BLOCK + threadIdx.x;
    for (Index end = steps; end > 0; end -= AHEAD_BACK) {
#pragma unroll
        for (int k = 0; k < AHEAD_BACK; ++k) {
            const Index t = end - 1 - k;
            clear(gradient[k]);
            clear(input[k]);
            inside[k] = 0;
            if (t >= 0) {
                read(grad_spike + t * n, n, gradient[k]);
                if (grad_decay) read(x + t * n, n, input[k]);
                inside[k] = bits[t * bits_stride + byte];
            }
        }
#pragma unroll
        for (int k = 0; k < AHEAD_BACK; ++k) {
            const Index t = end - 1 - k;
            if (t >= 0) {
                float g[COLUMNS], own[COLUMNS];
                clear(own);
                if (grad_v_seq) read(grad_v_seq + t * n, n, own);
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
                    // times 0 outside: a gradient that is no number stays none, as in naive.py
                    own[j] += (inside[k] >> j & 1u ? alpha : 0.0f) * gradient[k][j];
                    g[j] = own[j] + carry[j];
                    carry[j] = a[j] * g[j];
                    terms[j] += input[k][j] * h[j];
                    h[j] = g[j] + a[j] * h[j];
                }
                write(grad_x + t * n, n, g);
            }
        }
    }
    if (grad_v) write(grad_v, n, carry);
    if (grad_decay) {
        float start[COLUMNS];
        read_or_clear(v_init, n, start);
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) terms[j] += start[j] * h[j];
        write_decay_terms(terms, channels, n, grad_decay);
    }
}

#else

static __device__ __forceinline__ float surrogate_gradient(float above) {
    float window;
    SURROGATE_CODE
    return window;
}

// The same signature for a surrogate that needs the potentials: they are recomputed from x, SEGMENT
// steps at a time, from those that a first pass leaves in checkpoints [ceil(T / SEGMENT) - 1, N].
extern "C" __global__ void __launch_bounds__(BLOCK, 1) turn_on_backward(
    const scalar* __restrict__ grad_spike, const unsigned char* __restrict__ bits,
    Index bits_stride, const scalar* __restrict__ x, const float* __restrict__ v_init,
    const float* __restrict__ decay, Index channels, Index inner, float v_threshold, float alpha,
    Index steps, Index n, const float* __restrict__ grad_v_last,
    const float* __restrict__ grad_v_seq, scalar* __restrict__ grad_x,
    float* __restrict__ grad_v, float* __restrict__ grad_decay, float* checkpoints) {
    float a[COLUMNS], carry[COLUMNS], terms[COLUMNS], before[COLUMNS], u[SEGMENT][COLUMNS];
    read_decay(decay, channels, inner, n, a);
    read_or_clear(grad_v_last, n, carry);
    clear(terms);
    const Index segments = (steps + SEGMENT - 1) / SEGMENT;
    read_or_clear(v_init, n, before);
    for (Index t = 0; t < (segments - 1) * SEGMENT; ++t) {
        float input[COLUMNS];
        clear(input);
        read(x + t * n, n, input);
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) before[j] = charge(a[j], before[j], input[j]);
        if (t % SEGMENT == SEGMENT - 1) write(checkpoints + t / SEGMENT * n, n, before);
    }
    for (Index segment = segments - 1; segment >= 0; --segment) {
        const Index start = segment * SEGMENT;
        if (segment == 0)
            read_or_clear(v_init, n, before);
        else
            read_or_clear(checkpoints + (segment - 1) * n, n, before);
#pragma unroll
        for (int k = 0; k < SEGMENT; ++k) {
            clear(u[k]);
            if (start + k < steps) {
                read(x + (start + k) * n, n, u[k]);
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j)
                    u[k][j] = charge(a[j], k ? u[k ? k - 1 : 0][j] : before[j], u[k][j]);
            }
        }
#pragma unroll
        for (int k = SEGMENT - 1; k >= 0; --k) {
            const Index t = start + k;
            if (t < steps) {
                float g[COLUMNS], own[COLUMNS];
                clear(g);
                clear(own);
                read(grad_spike + t * n, n, g);
                if (grad_v_seq) read(grad_v_seq + t * n, n, own);
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j) {
                    g[j] *= surrogate_gradient(__fsub_rn(u[k][j], v_threshold));
                    g[j] += own[j] + carry[j];
                    carry[j] = a[j] * g[j];
                    terms[j] += g[j] * (k ? u[k ? k - 1 : 0][j] : before[j]);
                }
                write(grad_x + t * n, n, g);
            }
        }
    }
    if (grad_v) write(grad_v, n, carry);
    if (grad_decay) write_decay_terms(terms, channels, n, grad_decay);
}

#endif
