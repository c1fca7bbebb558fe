// attention.cu - attention, forward: for each head, within each sequence of a packed row of tokens,
//
//     S = scale Q K'        P = softmax(S) by rows        Y = dropout(P) V
//
// without ever writing S or P to memory (flash attention: Dao et al., 2022). A block owns some queries;
// their keys and values stream by. Softmax needs the largest score of a row and the sum of the
// exponentials, known only at the end. So we keep them so far, and Y so far not yet divided by the sum:
//
//     top' = max(top, the new scores)           shrink = exp(top - top')
//     sum' = shrink sum + the sum of e          e = exp(new scores - top')
//     Y'   = shrink Y + dropout(e) V            at the end  Y / sum,  lse = top + log(sum)
//
// lse is all that the backward pass needs to have P again: P = exp(S - lse). In float are the scores,
// the softmax and Y until it is written; e is rounded to T as the operand of the second product.
//
// Arrays. queries: rows of `query_stride` numbers that begin with q [A, size]. keys_values: rows of
// `key_stride`, with k from column key_column on and v from value_column on. So all three may be parts of
// [q|k|v], or q an array of its own for chosen tokens. out [R, A, size], lse [A, R], R = `asked`. For
// size = D, strides and columns are multiples of 8. scale > 0. reach: keys further from their query are
// not looked at (2^30: all are). threshold: dropout's p in 256ths; factor: 256 / (256 - threshold).
//
// Memory: q, k, v and y once, 8 bytes for each number of y (k and v again for every further block of
// a sequence, from the L2 cache). From lengths of some 200 on, the tensor cores are the limit (mma<T>, of
// which half of a Hopper's speed is the most), and next the exponentials: one for 2 D products, 16 a cycle
// on a multiprocessor. A warp has 32 queries where it can, since an operand from shared memory then serves
// two mma; 16 where a block of 128 would be half empty, and where registers run out, at D = 128.
#include "attention.cuh"

template <class T, int D, int OWN>
KERNEL_FOR(blocks_for<T>(D, OWN)) attention_forward(
        const T* __restrict__ queries, const T* __restrict__ keys_values,
        T* __restrict__ out, float* __restrict__ lse,
        const int* __restrict__ work, const int* __restrict__ query_cuts,
        const int* __restrict__ key_cuts, const int* __restrict__ rows,
        const uint32_t* __restrict__ run,
        int asked, int heads, int size, int query_stride, int key_stride,
        int key_column, int value_column, int reach, float scale,
        unsigned part, unsigned site, unsigned threshold, float factor) {
    constexpr int M = OWN / (16 * WARPS), N = STREAM / 8, LD = apart<D>();
    SHARED(shared);
    T* query_tile = (T*)shared;                                         // [OWN, D]
    T* key_tiles = query_tile + OWN * LD;                               // two of [STREAM, D]
    T* value_tiles = key_tiles + 2 * STREAM * LD;                       // two of [STREAM, D]
    char* scratch = (char*)(value_tiles + 2 * STREAM * LD);             // 512 bytes a warp

    int head = blockIdx.x % heads, item = blockIdx.x / heads;
    if (work[2 * item] < 0) return;
    Sequence s = sequence_of(work[2 * item], query_cuts, key_cuts);
    int first = work[2 * item + 1];
    int count = min(OWN, s.queries - first);
    int row = s.first_query + first;                                    // of the arrays
    const T* Q = queries + row * query_stride + head * size;
    const T* K = keys_values + s.first_key * key_stride + key_column + head * size;
    const T* V = K - key_column + value_column;
    Dropout dropout = dropout_of(run, part, site, threshold, scratch);

    // The keys that any of our queries reaches. They begin with a block of dropout's draws.
    int begin = max(0, place_of(rows, s, first) - reach) / 16 * 16;
    int end = min(s.keys, place_of(rows, s, first + count - 1) + reach + 1);
    auto load = [&](int key, int stage) {
        const int at = stage * STREAM * LD;
        load_tile<T, D, STREAM>(key_tiles + at, K + key * key_stride, key_stride, size, end - key);
        load_tile<T, D, STREAM>(value_tiles + at, V + key * key_stride, key_stride, size, end - key);
        commit();
    };
    load_tile<T, D, OWN>(query_tile, Q, query_stride, size, count);
    load(begin, 0);

    // This warp's part of them.
    int mine = warp_of() * 16 * M;
    int mine_count = min(16 * M, count - mine);
    int nearest = 0, furthest = -1;                                     // places of the first and the last
    if (mine_count > 0) {
        nearest = place_of(rows, s, first + mine);
        furthest = place_of(rows, s, first + mine + mine_count - 1);
    }
    int g = lane_of() / 4, t = lane_of() % 4 * 2;
    const float scale2 = scale * LOG2E;                                 // exp(x) = 2^(x log2(e))

    float y[M][D / 8][4], top[M][2], sum[M][2];
    set_zero<T>(y);
#pragma unroll
    for (int m = 0; m < M; m++) {
        top[m][0] = top[m][1] = -infinity();
        sum[m][0] = sum[m][1] = 0.f;
    }
    wait<0>();
    __syncthreads();
    uint32_t q[D / 16][M][4];
#pragma unroll
    for (int k = 0; k < D / 16; k++) load_operand<T, D>(q[k], own_row<T, D>(query_tile + mine * LD) + k * 16);

    for (int key = begin, stage = 0; key < end; key += STREAM, stage ^= 1) {
        if (key + STREAM < end) load(key + STREAM, stage ^ 1);
        const T* key_tile = key_tiles + stage * STREAM * LD;
        const T* value_tile = value_tiles + stage * STREAM * LD;
        if (mine_count > 0 && key <= furthest + reach && key + STREAM > nearest - reach) {
            float e[M][N][4];
            set_zero<T>(e);
#pragma unroll
            for (int k = 0; k < D / 16; k++) add_product_with_rows<T, D>(e, q[k], key_tile + k * 16);

            if (key + STREAM > end || key < furthest - reach || key + STREAM - 1 > nearest + reach) {
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int query = min(first + mine + m * 16 + half * 8 + g, s.queries - 1);
                        int place = place_of(rows, s, query);
#pragma unroll
                        for (int n = 0; n < N; n++) {
#pragma unroll
                            for (int i = 0; i < 2; i++) {
                                int j = key + n * 8 + t + i;
                                if (j >= end || too_far(place, j, reach)) e[m][n][2 * half + i] = -infinity();
                            }
                        }
                    }
                }
            }

            // From scores to exponentials, and what was so far shrinks.
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float best = top[m][half];
#pragma unroll
                    for (int n = 0; n < N; n++) {
                        best = fmaxf(best, fmaxf(e[m][n][2 * half], e[m][n][2 * half + 1]));
                    }
                    best = quad_max(best);
                    // A row may have met nothing within its reach yet; infinity - infinity is none.
                    float origin = best == -infinity() ? 0.f : best * scale2;
                    float shrink = ex2(top[m][half] * scale2 - origin);
                    top[m][half] = best;
                    float total = 0.f;                                  // of this lane's columns
#pragma unroll
                    for (int n = 0; n < N; n++) {
#pragma unroll
                        for (int i = 2 * half; i < 2 * half + 2; i++) {
                            e[m][n][i] = ex2(e[m][n][i] * scale2 - origin);
                            total += e[m][n][i];
                        }
                    }
                    sum[m][half] = sum[m][half] * shrink + total;
#pragma unroll
                    for (int n = 0; n < D / 8; n++) {
                        y[m][n][2 * half] *= shrink;
                        y[m][n][2 * half + 1] *= shrink;
                    }
                }
            }

            if (threshold) {
                uint32_t kept[M][N];
                kept_by_query(kept, dropout, (row + mine) * heads + head, heads, key / 16);
                drop<false>(e, kept);
            }
            add_product_with_columns<T, D>(y, e, value_tile);
        }
        wait<0>();                                                      // the next tile has landed,
        __syncthreads();                                                // and nobody reads this one any more
    }

#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = mine + m * 16 + half * 8 + g;
            float total = quad_sum(sum[m][half]);
            if (t == 0 && query < count) {
                lse[head * asked + row + query] = top[m][half] * scale + __logf(total);
            }
            float share = total > 0.f ? factor / total : 0.f;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                y[m][n][2 * half] *= share;
                y[m][n][2 * half + 1] *= share;
            }
        }
    }
    int out_stride = heads * size;
    T* Y = out + (row + mine) * out_stride + head * size;
    store_rows<T, D>(Y, out_stride, size, mine_count, y, query_tile + mine * LD);
}

// The same without tensor cores or shared memory, for sizes up to 128 and any type: to prove things in
// float, and the shorter text to read first. A warp takes one query after the other of the 16 that a block
// owns. A lane computes the score of one key of 32; then it has some columns of y.
template <class T>
KERNEL_FOR(4) attention_plain_forward(
        const T* __restrict__ queries, const T* __restrict__ keys_values,
        T* __restrict__ out, float* __restrict__ lse,
        const int* __restrict__ work, const int* __restrict__ query_cuts,
        const int* __restrict__ key_cuts, const int* __restrict__ rows,
        const uint32_t* __restrict__ run,
        int asked, int heads, int size, int query_stride, int key_stride,
        int key_column, int value_column, int reach, float scale,
        unsigned part, unsigned site, unsigned threshold, float factor) {
    int head = blockIdx.x % heads, item = blockIdx.x / heads, lane = lane_of();
    if (work[2 * item] < 0) return;
    Sequence s = sequence_of(work[2 * item], query_cuts, key_cuts);
    int first = work[2 * item + 1];
    const T* K = keys_values + s.first_key * key_stride + key_column + head * size;
    const T* V = K - key_column + value_column;

    for (int query = first + warp_of(); query < min(first + PLAIN, s.queries); query += WARPS) {
        int row = s.first_query + query;
        const T* Q = queries + row * query_stride + head * size;
        int place = place_of(rows, s, query);
        int begin = max(0, place - reach), end = min(s.keys, place + reach + 1);
        float y[4] = {0.f, 0.f, 0.f, 0.f}, top = -infinity(), sum = 0.f;
        for (int key = begin; key < end; key += 32) {
            int j = key + lane;
            float score = j < end ? scale * dot(Q, K + j * key_stride, size) : -infinity();
            float best = fmaxf(top, warp_max(score));
            float shrink = ex2((top - best) * LOG2E), e = ex2((score - best) * LOG2E);
            top = best;
            sum = sum * shrink + warp_sum(e);
            if (threshold && draw_of(run, part, site, row * heads + head, j) < threshold) e = 0.f;
            for (int c = 0; c < 4; c++) y[c] *= shrink;
            for (int i = 0; i < min(32, end - key); i++) {
                add_row(y, __shfl_sync(ALL, e, i), V + (key + i) * key_stride, size);
            }
        }
        for (int c = 0; c < 4; c++) {
            int column = lane + 32 * c;
            if (column < size) out[(row * heads + head) * size + column] = narrow<T>(y[c] * factor / sum);
        }
        if (lane == 0) lse[head * asked + row] = top + __logf(sum);
    }
}

// instances, and the registers that each may use:
//     attention_forward<bf16,32,64>   168
//     attention_forward<bf16,64,64>   168
//     attention_forward<bf16,64,128>  255
//     attention_forward<bf16,128,64>  255
//     attention_forward<f16,32,64>    176
//     attention_forward<f16,64,64>    176
//     attention_forward<f16,64,128>   255
//     attention_plain_forward<float>  80
