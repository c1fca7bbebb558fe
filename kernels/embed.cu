// embed.cu - tables of rows: looked up going forward, added to going back.
//
// Forward: h [T, H] = word[ids] + position[ids] + type[ids], and often y = dropout(LayerNorm(h)) at once.
// Backward: a row of a table gets the sum of dh over the tokens it was taken for,
//
//     dtable[id] += sum of dh[t] over the t with ids[t] = id
//
// One word is taken by many tokens, so tokens cannot all add at once. Adding atomically would be simple,
// but float addition is not associative: every run would have other bits. Instead the host sorts the
// tokens by their id, as sum_rows of engine/backend.py does. Then those of one id stand side by side, and
// one warp can add them up in order. Sorting 16 k numbers takes the host less than the step takes, and
// it knows the ids before the step begins.
//
// A row of the type table may be that of half the tokens, which would keep a single warp busy for long
// after all the others are done. So the host cuts the tokens of an id into pieces of at most 32. An id of
// one piece is added to the table at once. The pieces of a longer one are written down as float, and a
// second kernel adds those, again in order. How the host cuts, for the ids 7 5 7 7 with pieces of two:
//
//     order = 1 0 2 3     starts = 0 1 3 4     places = 5 -1 -2     long_starts = 0 2     long_rows = 7
//
// A place is a row of the table, or -1 - (a row of the partial sums). counts = {pieces, long ids} lies in
// memory, like all of this, since a captured graph cannot know it; the grids are as large as they like.
//
// Bytes, with 16-bit numbers: forward three reads and one write, most reads from the L2 cache: 2 T H at
// least. With the norm, 4 T H where h is kept. Backward reads 2 T H, and reads and writes 8 H for every
// distinct id. At 16384 tokens of 768 and 4.3 TB/s: 6 us, 12 us, and 12 us with 4000 distinct words. The
// table is float32, as a gradient that thousands of rows are added to has to be.
#include "prelude.cuh"

// A row of a table from `column` on is added to h.
template <class T> DEVICE void add_row(float (&h)[8], const T* table, int id, int width, int column) {
    float row[8];
    load8(row, table + int64_t(id) * width + column);
#pragma unroll
    for (int i = 0; i < 8; i++) h[i] += row[i];
}

// h = the sum of up to three tables' rows. Tables [rows, width], ids [tokens]; position and type may be
// null, ids too then. A warp does one token, a lane eight columns at a time; eight tokens a block.
// width is a multiple of 8.
template <class T>
KERNEL(256) embed(const T* __restrict__ word, const T* __restrict__ position, const T* __restrict__ type,
                  const int* __restrict__ word_ids, const int* __restrict__ position_ids,
                  const int* __restrict__ type_ids, T* h, int tokens, int width) {
    int token = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    int word_id = word_ids[token];
    int position_id = position ? position_ids[token] : 0;
    int type_id = type ? type_ids[token] : 0;
    for (int column = 8 * lane; column < width; column += 256) {
        float sum[8];
        load8(sum, word + int64_t(word_id) * width + column);
        if (position) add_row(sum, position, position_id, width, column);
        if (type) add_row(sum, type, type_id, width, column);
        store8(h + int64_t(token) * width + column, sum);
    }
}

// The same, and y = dropout(gain * xhat + shift) with xhat = (h - mean) / sqrt(var + eps).
//
//     gain, shift [width], shift may be null; h [tokens, width] or null; y [tokens, width]
//     measures [tokens] or null: {mean, 1 / sqrt(var + eps)}; with h, all that norm.cu's backward asks for
//     run = {seed, step}; threshold 0: nothing is dropped, and run may be null
//
// A warp does one token and has its row in registers, N times 8 columns a lane: width <= 256 N, a
// multiple of 8. h is rounded to T before it is measured, kept or not: the same bits as embed and a norm
// after it.
template <class T, int N>
KERNEL(256) embed_norm(const T* __restrict__ word, const T* __restrict__ position,
                       const T* __restrict__ type, const int* __restrict__ word_ids,
                       const int* __restrict__ position_ids, const int* __restrict__ type_ids,
                       const T* __restrict__ gain, const T* __restrict__ shift, T* h, T* y,
                       float2* measures, const uint32_t* __restrict__ run, unsigned part, unsigned site,
                       unsigned threshold, float scale, float eps, int tokens, int width) {
    int token = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    int word_id = word_ids[token];
    int position_id = position ? position_ids[token] : 0;
    int type_id = type ? type_ids[token] : 0;
    int64_t row = int64_t(token) * width;

    float x[N][8];
    float sum = 0;
#pragma unroll
    for (int n = 0; n < N; n++) {
        int column = 8 * lane + 256 * n;
#pragma unroll
        for (int i = 0; i < 8; i++) x[n][i] = 0;
        if (column < width) {
            load8(x[n], word + int64_t(word_id) * width + column);
            if (position) add_row(x[n], position, position_id, width, column);
            if (type) add_row(x[n], type, type_id, width, column);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[n][i] = wide(narrow<T>(x[n][i]));
                sum += x[n][i];
            }
            if (h) store8(h + row + column, x[n]);
        }
    }
    float average = warp_sum(sum) / width;
    float squares = 0;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            x[n][i] -= average;
            if (8 * lane + 256 * n < width) squares += x[n][i] * x[n][i];
        }
    float length = 1 / sqrtf(warp_sum(squares) / width + eps);
    if (lane == 0 && measures) measures[token] = make_float2(average, length);
#pragma unroll
    for (int n = 0; n < N; n++) {
        int column = 8 * lane + 256 * n;
        if (column >= width) continue;
        float g[8], s[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        load8(g, gain + column);
        if (shift) load8(s, shift + column);
#pragma unroll
        for (int i = 0; i < 8; i++) x[n][i] = x[n][i] * length * g[i] + s[i];
        if (threshold) {
            uint4 bytes = draws(run, part, site, token, column / 16);   // sixteen columns': half are ours
            uint32_t low = lane % 2 ? bytes.z : bytes.x;
            uint32_t high = lane % 2 ? bytes.w : bytes.y;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                uint32_t drawn = draw(i < 4 ? low : high, i % 4);
                x[n][i] = drawn < threshold ? 0.f : x[n][i] * scale;
            }
        }
        store8(y + row + column, x[n]);
    }
}

// The first stage of a table's gradient: pieces of at most 32 tokens, as described at the top.
//
//     dh [tokens, width]; table [rows, width] is added to; partials [parts, width] is written
//     grid (any, width / 256): a warp adds 256 columns of a piece, a lane 8; eight warps a block
//
// The lanes fetch the piece's 32 token numbers at once and hand them round, and four rows are on their
// way at a time. Memory limits it, or where rows are few the wait for it.
template <class T>
KERNEL(256) add_pieces(const T* __restrict__ dh, const int* __restrict__ order,
                       const int* __restrict__ starts, const int* __restrict__ places,
                       const int* __restrict__ counts, float* table, float* partials, int width) {
    int lane = threadIdx.x % 32, column = blockIdx.y * 256 + 8 * lane;
    bool inside = column < width;
    for (int piece = blockIdx.x * 8 + threadIdx.x / 32; piece < counts[0]; piece += gridDim.x * 8) {
        int begin = starts[piece], count = starts[piece + 1] - begin;
        int token = lane < count ? order[begin + lane] : 0;
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int done = 0; done < count; done += 4) {
            float rows[4][8];
#pragma unroll
            for (int k = 0; k < 4; k++) {                               // beyond the last, the last again
                int from = __shfl_sync(ALL, token, min(done + k, count - 1));
                if (inside) load8(rows[k], dh + uint32_t(from) * width + column);
            }
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if (!inside || done + k >= count) continue;
#pragma unroll
                for (int i = 0; i < 8; i++) sum[i] += rows[k][i];
            }
        }
        if (!inside) continue;
        int place = places[piece];
        if (place < 0) {
            store8(partials + uint32_t(-1 - place) * width + column, sum);
        } else {
            float* to = table + uint32_t(place) * width + column;
            float before[8];
            load8(before, to);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += before[i];
            store8(to, sum);
        }
    }
}

// The second stage: the partial sums long_starts[i] ... long_starts[i + 1] are those of row long_rows[i].
// A block of 16 warps adds 256 columns: every warp each sixteenth partial sum, then the sixteen in order.
//     grid (any, width / 256); 16 KB of shared memory
KERNEL(512) add_long(const float* __restrict__ partials, const int* __restrict__ long_starts,
                     const int* __restrict__ long_rows, const int* __restrict__ counts, float* table,
                     int width) {
    SHARED(shared);
    float* sums = (float*)shared;                                       // [16, 256]
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, corner = blockIdx.y * 256;
    int column = corner + 8 * lane;
    for (int which = blockIdx.x; which < counts[1]; which += gridDim.x) {
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (column < width) {
#pragma unroll 4
            for (int part = long_starts[which] + warp; part < long_starts[which + 1]; part += 16) {
                float row[8];
                load8(row, partials + uint32_t(part) * width + column);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[i] += row[i];
            }
        }
        store8(sums + warp * 256 + 8 * lane, sum);
        __syncthreads();
        if (threadIdx.x < 256 && corner + threadIdx.x < width) {
            float all = 0;
            for (int i = 0; i < 16; i++) all += sums[i * 256 + threadIdx.x];
            table[uint32_t(long_rows[which]) * width + corner + threadIdx.x] += all;
        }
        __syncthreads();                                                // before sums is written again
    }
}

// instances, and the registers that each may use:
//     embed<bf16>          40
//     embed<f16>           40
//     embed<float>         64
//     embed_norm<bf16,1>   48
//     embed_norm<bf16,3>   64
//     embed_norm<bf16,4>   80
//     embed_norm<f16,1>    48
//     embed_norm<f16,3>    64
//     embed_norm<f16,4>    80
//     embed_norm<float,1>  48
//     embed_norm<float,3>  64
//     add_pieces<bf16>     64
//     add_pieces<f16>      64
//     add_pieces<float>    64
//     add_long             64
