// prelude.cuh - all that a kernel of this folder may use beyond plain C++.
//
// Everything has two bodies. On a GPU it is an instruction, written as PTX. Under the emulator of
// tests/emulator, which runs the same kernels on a CPU, it is a few lines of C++ that do the same to
// the bit. So a kernel itself holds no `asm`, includes nothing else, and can be stepped through in
// any debugger. NVRTC compiles it: no header of CUDA's is needed, nor a driver.
#pragma once
#ifdef EMULATED
#include "cuda.h"
#else
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
#ifdef __CUDACC_RTC__                               // nvcc brings these along
typedef unsigned long long uint64_t;
typedef int int32_t;
typedef long long int64_t;
#endif
#define SHARED(name) extern __shared__ __align__(128) char name[]    // as much as the launch says
#define BARRIER(number, threads) asm volatile("bar.sync %0, %1;" :: "r"(number), "r"(threads) : "memory")
#endif
#define DEVICE __device__ __forceinline__
#define KERNEL(threads) __global__ void __launch_bounds__(threads)

constexpr unsigned ALL = 0xffffffffu;               // the lanes of a warp
constexpr float LOG2E = 1.4426950408889634f;
DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
template <class A, class B> struct Same { static constexpr bool yes = false; };
template <class A> struct Same<A, A> { static constexpr bool yes = true; };

// ---- numbers of 16 bits
//
// Storage alone: a kernel computes in float. bf16 is the upper half of a float; f16 has three bits
// more of precision and far less range.

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

DEVICE float wide(float x) { return x; }
DEVICE float wide(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

// Round to the nearest, of two to the even one.
DEVICE uint16_t bf16_bits_of(float x) {
#if !defined(EMULATED) && __CUDA_ARCH__ >= 800
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    uint32_t u = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
#endif
}

#ifdef EMULATED
DEVICE float wide(f16 x) {
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = (x.bits >> 10) & 31, rest = x.bits & 1023;
    if (exponent == 0) return (sign ? -1.f : 1.f) * float(rest) * 0x1p-24f;         // subnormal, or 0
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | rest << 13);
    return __uint_as_float(sign | (exponent + 112) << 23 | rest << 13);
}
DEVICE uint16_t f16_bits_of(float x) {
    uint32_t u = __float_as_uint(x), sign = (u >> 16) & 0x8000;
    u &= 0x7fffffff;
    if (u > 0x7f800000) return uint16_t(0x7fff);
    if (u >= 0x477ff000) return uint16_t(sign | 0x7c00);                            // too large
    if (u < 0x38800000) return uint16_t(sign | uint32_t(lrintf(__uint_as_float(u) * 0x1p24f)));
    u += 0xfff + ((u >> 13) & 1);
    return uint16_t(sign | (u - 0x38000000) >> 13);
}
#else
DEVICE float wide(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
DEVICE uint16_t f16_bits_of(float x) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#endif

template <class T> DEVICE T narrow(float x);
template <> DEVICE float narrow<float>(float x) { return x; }
template <> DEVICE bf16 narrow<bf16>(float x) { return bf16{bf16_bits_of(x)}; }
template <> DEVICE f16 narrow<f16>(float x) { return f16{f16_bits_of(x)}; }

// Two numbers side by side in 32 bits, the first one low.
template <class T> DEVICE uint32_t pack(float first, float second) {
    return narrow<T>(first).bits | uint32_t(narrow<T>(second).bits) << 16;
}
#if !defined(EMULATED) && __CUDA_ARCH__ >= 800
template <> DEVICE uint32_t pack<bf16>(float first, float second) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}
template <> DEVICE uint32_t pack<f16>(float first, float second) {
    uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}
#endif
template <class T> DEVICE float first_of(uint32_t both) { return wide(T{uint16_t(both & 0xffff)}); }
template <class T> DEVICE float second_of(uint32_t both) { return wide(T{uint16_t(both >> 16)}); }

// ---- memory
//
// A thread that moves 16 bytes at a time fills the widest path there is. Addresses are then
// multiples of 16.

#ifdef EMULATED
DEVICE void aligned(const void* p) {
    if ((uintptr_t)p & 15) emulator::die("an address of 16 bytes is no multiple of 16");
}
template <class V> DEVICE V load16(const void* p) {
    static_assert(sizeof(V) == 16, "16 bytes");
    aligned(p);
    V v;
    memcpy(&v, p, 16);
    return v;
}
template <class V> DEVICE void store16(void* p, V v) {
    static_assert(sizeof(V) == 16, "16 bytes");
    aligned(p);
    memcpy(p, &v, 16);
}
#else
template <class V> DEVICE V load16(const void* p) { return *(const V*)p; }
template <class V> DEVICE void store16(void* p, V v) { *(V*)p = v; }
#endif

// Eight numbers as floats: 16 bytes of 16-bit numbers, or twice 16 of floats.
DEVICE void load8(float (&x)[8], const float* p) {
    float4 a = load16<float4>(p), b = load16<float4>(p + 4);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
DEVICE void store8(float* p, const float (&x)[8]) {
    store16(p, make_float4(x[0], x[1], x[2], x[3]));
    store16(p + 4, make_float4(x[4], x[5], x[6], x[7]));
}
template <class T> DEVICE void load8(float (&x)[8], const T* p) {
    uint4 v = load16<uint4>(p);
    uint32_t pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) x[2 * i] = first_of<T>(pair[i]), x[2 * i + 1] = second_of<T>(pair[i]);
}
template <class T> DEVICE void store8(T* p, const float (&x)[8]) {
    store16(p, make_uint4(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])));
}

// Copies from global to shared memory that go on while the threads compute. Those issued since the
// last commit() are a group; wait<N>() returns when all but the last N groups have landed - for this
// thread alone, so a barrier follows. bytes = 0 writes zeros and reads nothing.
#ifdef EMULATED
DEVICE void copy16(void* to, const void* from, int bytes = 16) {
    aligned(to), aligned(from);
    emulator::copy(to, from, 16, bytes);
}
DEVICE void commit() { emulator::commit(); }
template <int N> DEVICE void wait() { emulator::wait(N); }
#elif __CUDA_ARCH__ >= 800
DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
DEVICE void copy16(void* to, const void* from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
#else       // Turing has no such copies: they are done at once
DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
DEVICE void copy16(void* to, const void* from, int bytes = 16) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (bytes) v = *(const uint4*)from;
    *(uint4*)to = v;
}
DEVICE void commit() {}
template <int N> DEVICE void wait() {}
#endif

// ---- tensor cores
//
// mma: C [16, 8] += A [16, 16] B [16, 8], by the 32 lanes of a warp together. With g = lane / 4 and
// t = 2 (lane % 4) a lane holds, two 16-bit numbers in each register of A and B:
//
//     A   a[0] = A[g][t..t+1]   a[1] = A[g+8][t..]   a[2] = A[g][t+8..]   a[3] = A[g+8][t+8..]
//     B   b[0] = B[t..t+1][g]   b[1] = B[t+8..t+9][g]
//     C   c[0], c[1] = C[g][t..t+1]                  c[2], c[3] = C[g+8][t..t+1]
//
// ldmatrix: four 8 x 8 matrices of 16-bit numbers from shared memory. Lane 8 m + i gives the address
// of row i of matrix m; register m then holds what an operand above wants of it: [g][t..t+1]; or
// [t..t+1][g], when transposed.

#ifdef EMULATED
struct MmaLane { float* c; const uint32_t *a, *b; };
template <class T> DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MmaLane mine{c, a, b};
    emulator::together(&mine, "mma", 0, [](void** lanes, int n) {
        if (n != 32) emulator::die("mma in a warp of fewer than 32 threads");
        float A[16][16], B[16][8], C[16][8];
        for (int lane = 0; lane < 32; lane++) {
            auto* m = (MmaLane*)lanes[lane];
            int g = lane / 4, t = lane % 4 * 2;
            for (int i = 0; i < 4; i++) {
                float* at = &A[g + i % 2 * 8][t + i / 2 * 8];
                at[0] = first_of<T>(m->a[i]), at[1] = second_of<T>(m->a[i]);
                C[g + i / 2 * 8][t + i % 2] = m->c[i];
            }
            for (int i = 0; i < 2; i++) {
                B[t + i * 8][g] = first_of<T>(m->b[i]), B[t + i * 8 + 1][g] = second_of<T>(m->b[i]);
            }
        }
        for (int r = 0; r < 16; r++)
            for (int k = 0; k < 16; k++)
                for (int j = 0; j < 8; j++) C[r][j] += A[r][k] * B[k][j];
        for (int lane = 0; lane < 32; lane++) {
            auto* m = (MmaLane*)lanes[lane];
            for (int i = 0; i < 4; i++) m->c[i] = C[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
        }
    });
}

struct MatrixLane { const void* row; uint32_t* to; bool transposed; };
DEVICE void matrices(uint32_t* to, const void* row, bool transposed) {
    aligned(row);
    MatrixLane mine{row, to, transposed};
    emulator::together(&mine, "ldmatrix", transposed, [](void** lanes, int n) {
        if (n != 32) emulator::die("ldmatrix in a warp of fewer than 32 threads");
        for (int m = 0; m < 4; m++) {
            const uint16_t* rows[8];
            for (int i = 0; i < 8; i++) rows[i] = (const uint16_t*)((MatrixLane*)lanes[8 * m + i])->row;
            emulator::count_conflicts(rows);
            for (int lane = 0; lane < 32; lane++) {
                auto* l = (MatrixLane*)lanes[lane];
                int g = lane / 4, t = lane % 4 * 2;
                uint16_t a = l->transposed ? rows[t][g] : rows[g][t];
                uint16_t b = l->transposed ? rows[t + 1][g] : rows[g][t + 1];
                l->to[m] = a | uint32_t(b) << 16;
            }
        }
    });
}
DEVICE void ldmatrix(uint32_t (&to)[4], const void* row) { matrices(to, row, false); }
DEVICE void ldmatrix_transposed(uint32_t (&to)[4], const void* row) { matrices(to, row, true); }
#else
DEVICE void ldmatrix(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}
DEVICE void ldmatrix_transposed(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(row)) : "memory");
}
template <class T> DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
#if __CUDA_ARCH__ >= 800
#define MMA(type, name)                                                                               \
    template <> DEVICE void mma<type>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 "                    \
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                           \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));              \
    }
MMA(bf16, "bf16")
MMA(f16, "f16")
#undef MMA
#else       // Turing multiplies half as deep, and knows f16 alone
template <> DEVICE void mma<f16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    for (int half = 0; half < 2; half++)
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
}
#endif
#endif

// ---- arithmetic

// 2^x within two units of the last place: the one exponential that a GPU computes in one instruction.
DEVICE float ex2(float x) {
#ifdef EMULATED
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

DEVICE float warp_sum(float x) {
#pragma unroll
    for (int apart = 16; apart; apart /= 2) x += __shfl_xor_sync(ALL, x, apart);
    return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
    for (int apart = 16; apart; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, apart));
    return x;
}

// The sum over a block of whole warps, in every thread. scratch: 32 floats of shared memory, whose
// last use by anybody lies before a barrier.
DEVICE float block_sum(float x, float* scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < warps ? scratch[lane] : 0.f;
    return warp_sum(x);
}
DEVICE float block_max(float x, float* scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_max(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < warps ? scratch[lane] : -infinity();
    return warp_max(x);
}

// ---- random numbers
//
// Philox4x32-10, and the counters of engine/philox.py: the draws of a dropout are bytes, and that of
// row r and column c is byte c % 16 of the block (c / 16, r). So NumPy, the emulator and any GPU drop
// the same numbers. Seed and step are read from memory, since a captured graph has its arguments fixed.


DEVICE uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        uint32_t high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9E3779B9u, key.y += 0xBB67AE85u;
    }
    return counter;
}

// Sixteen draws: those of columns 16 * block ... 16 * block + 15 of a row.
DEVICE uint4 draws(const uint32_t* run, uint32_t part, uint32_t site, uint32_t row, uint32_t block) {
    return philox(make_uint4(block, row, part, site), make_uint2(run[0], run[1]));
}
DEVICE uint32_t draw(uint32_t word, int byte) { return (word >> (8 * byte)) & 255; }
