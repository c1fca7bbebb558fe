// disentangled.cu - DeBERTa's attention, forward: for each head, within each sequence of a packed row of
// tokens, with the scores of disentangled.cuh,
//
//     score_ij = scale (q_i . k_j  +  q_i . keys_at[b(i-j)]  +  queries_at[b(i-j)] . k_j)
//     P = softmax(score) by rows        Y = dropout(P) V
//
// It is attention.cu with something added to the scores: the running softmax is explained there. A block
// owns 64 queries, a warp 16 of them, and keys and values stream by. Neither scores nor products with
// distances ever leave the multiprocessor: beside them a table row for every distance is gathered for every
// tile, 128 bytes from the L2 cache, and a bucket is looked up for that row, not for every score.
//
// Arrays. queries: rows of `query_stride` numbers that begin with q [A, D]. keys_values: rows of
// `key_stride`, with k from column key_column on and v from value_column on. keys_at, queries_at [O, A, D].
// Strides and columns are multiples of 8. All tokens ask. out [T, A, D], lse [A, T] (see attention.cu).
// buckets and their ends, work and cuts: disentangled.cuh. threshold: dropout's p in 256ths.
//
// Memory: q, k, v and y once, 8 bytes for each number of y; keys, values and tables again for every further
// block, from L2: 32 KB for a tile. The limit are the tensor cores: in products of 64 x 64 x 64
// the plain tile costs 2, a near one 4.5 (the 64 x 127 products with distances come as 64 x 80, of which
// four fifths are used), a far one 2 1/8. Three blocks fit on a multiprocessor of an H200.
//
// Between two tiles of keys there are three barriers, and every copy has a product to hide behind: the
// next keys and distances land under the softmax, the values under the scores.
#include "disentangled.cuh"

template <class T, int D, int TABLES>
KERNEL(THREADS) disentangled_forward(
        const T* __restrict__ queries, const T* __restrict__ keys_values,
        const T* __restrict__ keys_at, const T* __restrict__ queries_at,
        T* __restrict__ out, float* __restrict__ lse,
        const int* __restrict__ buckets, const int* __restrict__ work, const int* __restrict__ cuts,
        const uint32_t* __restrict__ run,
        int tokens, int heads, int query_stride, int key_stride, int key_column, int value_column,
        int furthest, int below, int above, float scale,
        unsigned part, unsigned site, unsigned threshold) {
    constexpr bool OWN = TABLES & KEYS_AT, OTHER = TABLES & QUERIES_AT;
    SHARED(shared);
    T* key_tile = (T*)shared;                                           // [64, D]
    T* value_tile = key_tile + TILE * D;                                // [64, D], before all else queries
    T* own_halves = value_tile + TILE * D;                              // of windows: two of [64, D]
    T* other_halves = own_halves + 2 * TILE * D;                        // two of [64, D]
    T* own_ends = other_halves + 2 * TILE * D;                          // [8, D]
    T* other_ends = own_ends + 8 * D;                                   // [8, D]
    T* own_products = other_ends + 8 * D;                               // [64, SKEW]
    T* other_products = own_products + TILE * SKEW;                     // [64, SKEW]
    float* other_numbers = (float*)other_products;                      // [64], in far tiles

    const int head = blockIdx.x % heads, width = heads * D;
    const Item item = item_of(work, cuts, blockIdx.x / heads);
    if (item.length == 0) return;
    const Distances distances{buckets, furthest, below, above};
    const Dropout dropout{run, part, site, threshold};
    const T* Q = queries + size_t(item.begin + item.first) * query_stride + head * D;
    const T* K = keys_values + size_t(item.begin) * key_stride + key_column + head * D;
    const T* V = K - key_column + value_column;
    if (OWN) keys_at += head * D;
    if (OTHER) queries_at += head * D;

    // What the scores of a tile want, from its first key on. Halves of windows are numbered by tile, and
    // lie where that number is even or odd: a tile's lower half, and its upper half that of the tile before.
    auto load_half = [&](int number) {
        int difference = item.first - number * TILE - (TILE - 1);
        int at = (number & 1) * TILE * D;
        if (OWN) load_distances<T, D>(own_halves + at, keys_at, width, distances, QUERIES, difference);
        if (OTHER) load_distances<T, D>(other_halves + at, queries_at, width, distances, QUERIES, difference);
    };
    auto load = [&](int key, int kind, int kind_before) {
        load_tile<T, D>(key_tile, K + size_t(key) * key_stride, key_stride, item.length - key);
        if (kind != NEAR) return;
        load_half(key / TILE);
        if (kind_before != NEAR) load_half(key / TILE - 1);
    };

    load_tile<T, D>(value_tile, Q, query_stride, item.length - item.first);
    if (OWN) load_ends<T, D>(own_ends, keys_at, width, distances);
    if (OTHER) load_ends<T, D>(other_ends, queries_at, width, distances);
    int kind = kind_of(distances, item.first);
    load(0, kind, LOW_END);
    commit();

    const int g = lane_of() / 4, t = lane_of() % 4 * 2;
    const int mine = warp_of() * 16;                                    // the first row of this warp
    const float scale2 = scale * LOG2E;                                 // exp(x) = 2^(x log2(e))
    T* my_own_products = own_products + mine * SKEW;
    T* my_other_products = other_products + mine * SKEW;
    const T* own_begin = own_products + own_place(mine + g, t);         // of this lane's scores
    const T* other_begin = other_products + other_place(mine + g, t);

    float y[D / 8][4];
    float top[2] = {-infinity(), -infinity()}, sum[2] = {0.f, 0.f};
    float own_number[4] = {0.f, 0.f, 0.f, 0.f};                         // of row g and both ends, then g + 8
    set_zero(y);
    wait<0>();
    __syncthreads();
    uint32_t q[D / 16][4];
    load_rows<T, D>(q, value_tile, mine);
    if (OWN) meet_ends<T, D>(own_number, q, own_ends);

    for (int key = 0; key < item.length; key += TILE) {
        wait<0>();                                                      // keys and windows have landed, and
        __syncthreads();                                                // nobody reads the values before
        load_tile<T, D>(value_tile, V + size_t(key) * key_stride, key_stride, item.length - key);
        commit();

        if (OTHER) {
            uint32_t k[D / 16][4];
            load_rows<T, D>(k, key_tile, mine);
            if (kind == NEAR) {
                const int even = (key / TILE & 1) * TILE * D;
                const Window<T> window{other_halves + even, other_halves + (TILE * D - even)};
                meet_distances<T, D, false, false>(my_other_products, k, window, 48 - mine);
            } else {
                float c[4];
                meet_ends<T, D>(c, k, other_ends);
                if (t == 0) {
                    other_numbers[mine + g] = kind == LOW_END ? c[0] : c[1];
                    other_numbers[mine + g + 8] = kind == LOW_END ? c[2] : c[3];
                }
            }
        }
        if (OWN && kind == NEAR) {
            const int even = (key / TILE & 1) * TILE * D;
            const Window<T> window{own_halves + even, own_halves + (TILE * D - even)};
            meet_distances<T, D, true, false>(my_own_products, q, window, mine);
        }
        float e[TILE / 8][4];
        set_zero(e);
        add_product_with_rows<T, D>(e, q, key_tile, 0);
        __syncthreads();                                                // the products are there, and
        int next = kind_of(distances, item.first - key - TILE);         // nobody reads keys and windows
        if (key + TILE < item.length) load(key + TILE, next, kind);
        commit();

        if (kind == NEAR) {
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (OWN) e[n][i] += wide(own_begin[own_step(n, i)]);
                    if (OTHER) e[n][i] += wide(other_begin[other_step(n, i)]);
                }
            }
        } else {
            float first = kind == LOW_END ? own_number[0] : own_number[1];
            float second = kind == LOW_END ? own_number[2] : own_number[3];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    e[n][i] += i < 2 ? first : second;
                    if (OTHER) e[n][i] += other_numbers[n * 8 + t + i % 2];
                }
            }
        }
        if (key + TILE > item.length) {
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) if (key + n * 8 + t + i % 2 >= item.length) e[n][i] = -infinity();
            }
        }

        // From scores to exponentials, and what was so far shrinks.
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float best = top[half];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) best = fmaxf(best, fmaxf(e[n][2 * half], e[n][2 * half + 1]));
            best = quad_max(best);
            float origin = best * scale2;
            float shrink = ex2(top[half] * scale2 - origin);
            top[half] = best;
            float total = 0.f;                                          // of this lane's columns
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    e[n][i] = ex2(e[n][i] * scale2 - origin);
                    total += e[n][i];
                }
            }
            sum[half] = sum[half] * shrink + total;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                y[n][2 * half] *= shrink;
                y[n][2 * half + 1] *= shrink;
            }
        }
        if (threshold) {
            KeptByQuery kept;
            uint32_t row = (item.begin + item.first + mine) * heads + head;
            kept.draw_all(dropout, row, heads, key / 16);
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) if (!kept.keeps(n, i)) e[n][i] = 0.f;
            }
        }
        wait<1>();                                                      // the values have landed
        __syncthreads();
        add_product_with_tile<T, D>(y, e, value_tile);
        kind = next;
    }

    const float factor = factor_of(dropout);
    const int left = item.length - item.first - mine;                   // rows from this warp's first on
    float total[2] = {quad_sum(sum[0]), quad_sum(sum[1])};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = half * 8 + g;
        if (t == 0 && row < left) {
            float* to = lse + size_t(head) * tokens + item.begin + item.first + mine + row;
            *to = top[half] * scale + __logf(total[half]);
        }
    }
    T* Y = out + size_t(item.begin + item.first + mine) * width + head * D;
    store_rows<T, D>(Y, width, left, y, factor / total[0], factor / total[1], my_own_products);
}

// The same without tensor cores, shared memory or tiles, for heads of any size up to 128 and any type: to
// prove things in float, and the shorter text to read first. A warp takes one query after the other of
// the 64 that a block owns. A lane computes the score of one key of 32; then it has some columns of y.
template <class T>
KERNEL(THREADS) disentangled_plain_forward(
        const T* __restrict__ queries, const T* __restrict__ keys_values,
        const T* __restrict__ keys_at, const T* __restrict__ queries_at,
        T* __restrict__ out, float* __restrict__ lse,
        const int* __restrict__ buckets, const int* __restrict__ work, const int* __restrict__ cuts,
        const uint32_t* __restrict__ run,
        int size, int tokens, int heads, int query_stride, int key_stride, int key_column, int value_column,
        int furthest, int below, int above, float scale,
        unsigned part, unsigned site, unsigned threshold) {
    const int head = blockIdx.x % heads, width = heads * size, lane = lane_of();
    const Item item = item_of(work, cuts, blockIdx.x / heads);
    const Distances distances{buckets, furthest, below, above};
    const Dropout dropout{run, part, site, threshold};
    const T* K = keys_values + size_t(item.begin) * key_stride + key_column + head * size;
    const T* V = K - key_column + value_column;

    for (int query = item.first + warp_of(); query < min(item.first + TILE, item.length); query += WARPS) {
        const int row = item.begin + query;
        const T* q = queries + size_t(row) * query_stride + head * size;
        float y[4] = {0.f, 0.f, 0.f, 0.f}, top = -infinity(), sum = 0.f;
        for (int first = 0; first < item.length; first += 32) {
            int key = first + lane;
            float score = -infinity();
            if (key < item.length) {
                const T* k = K + size_t(key) * key_stride;
                size_t at = size_t(row_of(distances, query - key)) * width + head * size;
                score = 0.f;
                for (int c = 0; c < size; c++) {
                    score += wide(q[c]) * wide(k[c]);
                    if (keys_at) score += wide(q[c]) * wide(keys_at[at + c]);
                    if (queries_at) score += wide(queries_at[at + c]) * wide(k[c]);
                }
                score *= scale;
            }
            float best = fmaxf(top, warp_max(score));
            float shrink = ex2((top - best) * LOG2E), e = ex2((score - best) * LOG2E);
            top = best;
            sum = sum * shrink + warp_sum(e);
            if (threshold && !(kept(dropout, row * heads + head, key / 16) >> key % 16 & 1)) e = 0.f;
            for (int c = 0; c < 4; c++) y[c] *= shrink;
            for (int i = 0; i < min(32, item.length - first); i++) {
                float weight = __shfl_sync(ALL, e, i);
                for (int c = 0; c < 4; c++) {
                    int column = lane + 32 * c;
                    if (column < size) y[c] += weight * wide(V[size_t(first + i) * key_stride + column]);
                }
            }
        }
        for (int c = 0; c < 4; c++) {
            int column = lane + 32 * c;
            float share = factor_of(dropout) / sum;
            if (column < size) out[size_t(row) * width + head * size + column] = narrow<T>(y[c] * share);
        }
        if (lane == 0) lse[size_t(head) * tokens + row] = top + __logf(sum);
    }
}

// instances, and the registers that each may use:
//     disentangled_forward<bf16,64,BOTH>        168
//     disentangled_forward<bf16,64,KEYS_AT>     168
//     disentangled_forward<bf16,64,QUERIES_AT>  168
//     disentangled_forward<bf16,32,BOTH>        168
//     disentangled_forward<f16,64,BOTH>         168
//     disentangled_plain_forward<float>         64
