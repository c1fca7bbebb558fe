// cuda.h - as much of CUDA C++ as kernels/ uses, for g++: one fiber plays one thread of the GPU.
//
// runtime.cpp switches between the fibers. A thread runs until it must wait for others: for its
// block (__syncthreads), or for its warp (a shuffle, a vote, ldmatrix, mma), whose last lane to
// arrive does the work of all 32.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulator {

struct Thread {                         // what a kernel's code sees of itself; runtime.cpp adds more
    uint3 index;
    int number, lane, warp;
};
struct Block {
    uint3 index;
    dim3 threads, blocks;
    char* shared;                       // ends where a page begins that nobody may touch
};
extern thread_local Thread* thread;
extern thread_local Block* block;

[[noreturn]] void die(const char* what);

// All lanes of a warp meet here. Each leaves something; the last one to come is given all of it.
void together(void* mine, const char* what, int line, void (*all)(void** lanes, int count));
void barrier(int number, int threads, int line);        // 0 threads: all of the block that still run

// Asynchronous copies land when they are waited for, or at once, as the launch says: a kernel has to
// be right either way.
void copy(void* to, const void* from, int size, int bytes);
void commit();
void wait(int groups);

void count_conflicts(const uint16_t* const rows[8]);    // of the memory banks, in one read of eight rows

struct Options { int order, late; unsigned seed; };
const char* launch(void (*kernel)(void**), const unsigned* blocks, const unsigned* threads, size_t shared,
                   void** arguments, const Options* options);

// ---- a kernel as something that can be called with an array of pointers to its arguments

template <auto F> struct Entry;
template <class... A, void (*F)(A...)> struct Entry<F> {
    template <size_t... I> static void call(void** a, std::index_sequence<I...>) { F(*(A*)a[I]...); }
    static void run(void** a) { call(a, std::index_sequence_for<A...>()); }
    template <class T> static constexpr char kind() {
        if (std::is_pointer_v<T>) return 'p';
        if (std::is_same_v<T, float>) return 'f';
        if (std::is_same_v<T, int>) return 'i';
        if (std::is_same_v<T, unsigned>) return 'u';
        return '?';
    }
    static void kinds(char* out) { ((*out++ = kind<std::remove_cv_t<A>>()), ...), *out = 0; }
};
#define EXPORT(number, ...)                                                                                  \
    extern "C" const char* launch_##number(const unsigned* blocks, const unsigned* threads, size_t shared,   \
                                           void** arguments, const emulator::Options* options) {             \
        return emulator::launch(emulator::Entry<&__VA_ARGS__>::run, blocks, threads, shared, arguments, options); \
    }                                                                                                        \
    extern "C" void kinds_##number(char* out) { emulator::Entry<&__VA_ARGS__>::kinds(out); }

// ---- collectives

template <class T> struct Shuffled { T value; int from; T found; };
template <class T> inline T shuffle(unsigned mask, T value, int from, const char* what, int line) {
    if (mask != 0xffffffffu) die("a collective of a part of a warp");
    Shuffled<T> mine{value, from, value};
    together(&mine, what, line, [](void** lanes, int count) {
        for (int i = 0; i < count; i++) {
            auto* s = (Shuffled<T>*)lanes[i];
            if (s->from < 0 || s->from >= count) die("a shuffle from a lane that is not there");
            s->found = ((Shuffled<T>*)lanes[s->from])->value;
        }
    });
    return mine.found;
}
inline unsigned ballot(unsigned mask, int yes, int line) {
    if (mask != 0xffffffffu) die("a collective of a part of a warp");
    unsigned mine = yes != 0;
    together(&mine, "ballot", line, [](void** lanes, int count) {
        unsigned found = 0;
        for (int i = 0; i < count; i++) found |= *(unsigned*)lanes[i] << i;
        for (int i = 0; i < count; i++) *(unsigned*)lanes[i] = found;
    });
    return mine;
}
}  // namespace emulator

#define threadIdx (emulator::thread->index)
#define blockIdx (emulator::block->index)
#define blockDim (emulator::block->threads)
#define gridDim (emulator::block->blocks)
#define SHARED(name) char* name = emulator::block->shared
#define BARRIER(number, threads) emulator::barrier(number, threads, __LINE__)
#define __syncthreads() emulator::barrier(0, 0, __LINE__)
#define __syncwarp() emulator::together(nullptr, "__syncwarp", __LINE__, [](void**, int) {})
#define __shfl_sync(m, x, lane) emulator::shuffle(m, x, lane, "__shfl_sync", __LINE__)
#define __shfl_xor_sync(m, x, bits) \
    emulator::shuffle(m, x, emulator::thread->lane ^ (bits), "__shfl_xor_sync", __LINE__)
#define __ballot_sync(m, yes) emulator::ballot(m, yes, __LINE__)
#define __any_sync(m, yes) (emulator::ballot(m, yes, __LINE__) != 0)

// ---- arithmetic

inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
template <class T> inline T min(T a, T b) { return a < b ? a : b; }
template <class T> inline T max(T a, T b) { return a > b ? a : b; }

template <class T> inline T __ldg(const T* p) { return *p; }
inline float atomicAdd(float* p, float x) {
    uint32_t* at = (uint32_t*)p;
    uint32_t before = __atomic_load_n(at, __ATOMIC_RELAXED), after;
    float old;
    do {
        memcpy(&old, &before, 4);
        float sum = old + x;
        memcpy(&after, &sum, 4);
    } while (!__atomic_compare_exchange_n(at, &before, after, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    return old;
}
inline int atomicAdd(int* p, int x) { return __atomic_fetch_add(p, x, __ATOMIC_ACQ_REL); }
