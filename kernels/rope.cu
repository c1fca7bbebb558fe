// rope.cu - rotary positions (Su et al., 2021), in place on queries and keys.
//
// Numbers m and m + D/2 of a head are a point in the plane, which is turned by the angle of its token:
//
//     forward     (a, b) -> (a cos - b sin, b cos + a sin)
//     backward    the transposed matrix, which turns the other way: the same with -sin
//
// Only the first `columns` columns are turned: in a packed row of queries, keys and values the values lie
// behind them and are neither read nor written. Nothing is saved.
//
// To move: 4 bytes for a number of 16 bits, and cos and sin, [tokens, D/2] of float32, once. At 16,384 x
// 1,536 and 4.3 TB/s these are 23 us, and 1 more for the angles. What limits: memory.
//
// x [tokens, stride], of which columns = n * heads * D are turned (n = 2 for queries and keys together). D is
// a multiple of 16 and at most 512, an address of 16 bytes. An angle's row is places[token], or the token
// itself where places is null.
//
// A warp has a token. A lane takes eight neighbouring points: 16 bytes of the first half of a head and 16 of
// the second. Its eight angles are the same in every head, so it loads them once and walks over the heads.
// With D = 64 four lanes share a head, and a step of the warp is 8 heads: the 24 of ModernBERT's queries and
// keys are three steps. 40 warps on an SM keep 40 KB under way.
#include "prelude.cuh"

constexpr int WARPS = 8;

// DIRECTION: 1 forwards, -1 backwards. size: D. grid (tokens / 8 rounded up).
template <class T, int DIRECTION> KERNEL(256)
rope(T* x, const float* __restrict__ cos, const float* __restrict__ sin, const int* __restrict__ places,
     int tokens, int stride, int columns, int size) {
    int token = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    int half = size / 2, sharing = half / 8;                            // lanes that share a head
    int heads = columns / size, step = 32 / sharing;                    // heads in a step
    int point = lane % sharing * 8, first = lane / sharing;
    if (first >= step) first = heads;                                   // D = 48: the last 2 of 32 lanes rest
    if (token < tokens && first < heads) {
        size_t angle = size_t(places ? places[token] : token) * half + point;
        float c[8], s[8];
        load8(c, cos + angle);
        load8(s, sin + angle);
        T* row = x + size_t(token) * stride + point;
#pragma unroll 1            // the registers of one head: more warps instead
        for (int head = first; head < heads; head += step) {
            float a[8], b[8];
            load8(a, row + head * size);
            load8(b, row + head * size + half);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float turned = a[i] * c[i] - b[i] * (DIRECTION * s[i]);
                b[i] = b[i] * c[i] + a[i] * (DIRECTION * s[i]);
                a[i] = turned;
            }
            store8(row + head * size, a);
            store8(row + head * size + half, b);
        }
    }
}

// instances, and the registers that each may use:
//     rope<bf16,1>      56
//     rope<bf16,-1>     56
//     rope<f16,1>       64
//     rope<f16,-1>      64
//     rope<float,1>     56
//     rope<float,-1>    56
