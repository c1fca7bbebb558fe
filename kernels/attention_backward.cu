// attention_backward.cu - the gradients of attention.
//
// Of  S = scale Q K',  P = exp(S - lse),  Y = Z V  with  Z = keep f P  after dropout (keep 0 or 1, f its
// factor), given dY, the gradient of Y. A product's gradient is a product with the other factor turned:
//
//     dV = Z' dY          dZ = dY V'          dP = f keep dZ
//
// Through the softmax of a row, with P_j = exp(S_j) / sum exp(S):
//
//     dS_j = P_j (dP_j - sum_i P_i dP_i)
//
// That sum is one number a row. It needs no pass of its own, since
// sum_i P_i f keep_i <dY, V_i> = <dY, sum_i Z_i V_i> = <dY, Y>. And last
//
//     dQ = scale dS K     dK = scale dS' Q
//
// The factors scale and f wait until the sums are complete. So what is computed for each score is
// p keep and, with delta = <dY, Y> / f,  p (keep dZ - delta).
//
// S and P are computed again, by tiles, from Q, K and lse: cheaper than memory for them. dQ sums over
// the keys of a row, dK and dV over the queries of a column. A block can sum only one of these in its own
// registers, and sums of several blocks by atomics would come out differently every time. So there are
//
//     attention_backward_queries      a block owns queries, keys stream by: dQ, and delta for the other
//     attention_backward_keys         a block owns keys, queries stream by: dK and dV
//
// which compute S and dZ both: seven products where five would do. A sequence of at most 64 or 128 keys
// fits one block. For it alone attention_backward_keys does all, by five products (WHOLE): dS goes
// through shared memory, and the warps, who own keys, each sum dQ for some of the queries.
// Every number is the sum of the same numbers in the same order at every run.
//
// Note that attention_backward_keys computes S' and not S: keys are the rows of all its products. Then Z'
// and dS' are in registers just as the products with dY and Q want them.
//
// Arrays as in attention.cu. dqueries and dkeys_values look like queries and keys_values, dout like out.
// delta [A, R], which WHOLE leaves alone. dK and dV are written for every key of the work, dQ for every
// query: zeros where there is nothing.
//
// Memory, for each number of y: q, k, v, y, dy, dq, dk and dv once are 16 bytes, for WHOLE. The other way
// takes 24, since both kernels read q, k, v and dy. From lengths of some 200 on, the limit are the tensor
// cores, and close to it the reads of their operands from shared memory: of 32 rows a warp, ldmatrix
// and mma take about the same time.
#include "attention.cuh"

// delta of `count` queries, by the whole block: dY Y summed along each row. D / 8 lanes share a row. GAP: so
// many numbers lie between the deltas of one tile and those of the next.
template <class T, int D, int GAP>
DEVICE void write_delta(float* delta, const T* out, const T* dout, int stride, int size, int count,
                        float factor) {
    constexpr int LANES = D / 8;
    int column = threadIdx.x % LANES * 8;
    for (int first = 0; first < count; first += THREADS / LANES) {
        int row = first + threadIdx.x / LANES;
        const T* y = out + row * stride + column;
        const T* dy = dout + row * stride + column;
        float sum = 0.f;
        if (row < count && size == D) {
            float a[8], b[8];
            load8(a, y);
            load8(b, dy);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += a[i] * b[i];
        } else if (row < count) {
            for (int i = 0; i < min(8, size - column); i++) sum += wide(y[i]) * wide(dy[i]);
        }
#pragma unroll
        for (int far = LANES / 2; far; far /= 2) sum += __shfl_xor_sync(ALL, sum, far);
        if (column == 0 && row < count) delta[row + row / STREAM * GAP] = sum / factor;
    }
}

// ---- a block owns queries
//
// As the forward pass, but that the softmax is known beforehand.
template <class T, int D, int OWN>
KERNEL_FOR(blocks_for<T>(D, OWN)) attention_backward_queries(
        const T* __restrict__ queries, const T* __restrict__ keys_values, const T* __restrict__ out,
        const float* __restrict__ lse, const T* __restrict__ dout, float* delta,
        T* __restrict__ dqueries,
        const int* __restrict__ work, const int* __restrict__ query_cuts,
        const int* __restrict__ key_cuts, const int* __restrict__ rows,
        const uint32_t* __restrict__ run,
        int asked, int heads, int size, int query_stride, int key_stride,
        int key_column, int value_column, int reach, float scale,
        unsigned part, unsigned site, unsigned threshold, float factor) {
    constexpr int M = OWN / (16 * WARPS), STEP = 32, N = STEP / 8, LD = apart<D>();
    SHARED(shared);
    T* query_tile = (T*)shared;                                         // [OWN, D]
    T* dout_tile = query_tile + OWN * LD;                               // [OWN, D]
    T* key_tiles = dout_tile + OWN * LD;                                // two of [STREAM, D]
    T* value_tiles = key_tiles + 2 * STREAM * LD;                       // two of [STREAM, D]
    char* scratch = (char*)(value_tiles + 2 * STREAM * LD);             // 512 bytes a warp

    int head = blockIdx.x % heads, item = blockIdx.x / heads;
    if (work[2 * item] < 0) return;
    Sequence s = sequence_of(work[2 * item], query_cuts, key_cuts);
    int first = work[2 * item + 1];
    int count = min(OWN, s.queries - first);
    int row = s.first_query + first, out_stride = heads * size;
    const T* Q = queries + row * query_stride + head * size;
    const T* K = keys_values + s.first_key * key_stride + key_column + head * size;
    const T* V = K - key_column + value_column;
    const T* Y = out + row * out_stride + head * size;
    const T* dY = dout + row * out_stride + head * size;
    float* deltas = delta + head * asked + row;
    const float* lses = lse + head * asked + row;
    Dropout dropout = dropout_of(run, part, site, threshold, scratch);
    const float scale2 = scale * LOG2E;                                 // exp(x) = 2^(x log2(e))

    int begin = max(0, place_of(rows, s, first) - reach) / 16 * 16;
    int end = min(s.keys, place_of(rows, s, first + count - 1) + reach + 1);
    auto load = [&](int key, int stage) {
        const int at = stage * STREAM * LD;
        load_tile<T, D, STREAM>(key_tiles + at, K + key * key_stride, key_stride, size, end - key);
        load_tile<T, D, STREAM>(value_tiles + at, V + key * key_stride, key_stride, size, end - key);
        commit();
    };
    load_tile<T, D, OWN>(query_tile, Q, query_stride, size, count);
    load_tile<T, D, OWN>(dout_tile, dY, out_stride, size, count);
    load(begin, 0);
    write_delta<T, D, 0>(deltas, Y, dY, out_stride, size, count, factor);

    int mine = warp_of() * 16 * M;
    int mine_count = min(16 * M, count - mine);
    int nearest = 0, furthest = -1;                                     // places of the first and the last
    if (mine_count > 0) {
        nearest = place_of(rows, s, first + mine);
        furthest = place_of(rows, s, first + mine + mine_count - 1);
    }
    int g = lane_of() / 4, t = lane_of() % 4 * 2;
    wait<0>();
    __syncthreads();

    uint32_t q[D / 16][M][4], dy[D / 16][M][4];
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        load_operand<T, D>(q[k], own_row<T, D>(query_tile + mine * LD) + k * 16);
        load_operand<T, D>(dy[k], own_row<T, D>(dout_tile + mine * LD) + k * 16);
    }
    float lse2[M][2], its_delta[M][2], dq[M][D / 8][4];
    set_zero<T>(dq);
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = mine + m * 16 + half * 8 + g;
            lse2[m][half] = query < count ? lses[query] * LOG2E : infinity();     // P = 0 where there is none
            its_delta[m][half] = query < count ? deltas[query] : 0.f;
        }
    }

    for (int key = begin, stage = 0; key < end; key += STREAM, stage ^= 1) {
        if (key + STREAM < end) load(key + STREAM, stage ^ 1);
#pragma unroll 1
        for (int j0 = key; j0 < min(key + STREAM, end); j0 += STEP) {
            if (mine_count <= 0 || j0 > furthest + reach || j0 + STEP <= nearest - reach) continue;
            const T* key_rows = key_tiles + (stage * STREAM + j0 - key) * LD;
            const T* value_rows = value_tiles + (stage * STREAM + j0 - key) * LD;
            float p[M][N][4], ds[M][N][4];
            set_zero<T>(p);
            set_zero<T>(ds);
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                add_product_with_rows<T, D>(p, q[k], key_rows + k * 16);            // S
                add_product_with_rows<T, D>(ds, dy[k], value_rows + k * 16);        // dZ
            }
            if (threshold) {
                uint32_t kept[M][N];
                kept_by_query(kept, dropout, (row + mine) * heads + head, heads, j0 / 16);
                drop<false>(ds, kept);
            }
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float probability = ex2(p[m][n][i] * scale2 - lse2[m][i / 2]);
                        ds[m][n][i] = probability * (ds[m][n][i] - its_delta[m][i / 2]);
                    }
                }
            }
            if (j0 + STEP > end || j0 < furthest - reach || j0 + STEP - 1 > nearest + reach) {
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
                                int j = j0 + n * 8 + t + i;
                                if (j >= end || too_far(place, j, reach)) ds[m][n][2 * half + i] = 0.f;
                            }
                        }
                    }
                }
            }
            add_product_with_columns<T, D>(dq, ds, key_rows);
        }
        wait<0>();                                                      // the next tile has landed,
        __syncthreads();                                                // and nobody reads this one any more
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) dq[m][n][i] *= scale * factor;
        }
    }
    T* dQ = dqueries + (row + mine) * query_stride + head * size;
    store_rows<T, D>(dQ, query_stride, size, mine_count, dq, query_tile + mine * LD);
}

// ---- a block owns keys
//
// Here queries are columns. lse and delta of each lie in shared memory beside the tiles.
// WHOLE: the block's sequence has no more than OWN keys, so also dQ is complete, and delta is its own affair.
template <class T, int D, int OWN, int WHOLE>
KERNEL_FOR(blocks_for<T>(D, OWN)) attention_backward_keys(
        const T* __restrict__ queries, const T* __restrict__ keys_values, const T* __restrict__ out,
        const float* __restrict__ lse, const T* __restrict__ dout, float* delta,
        T* __restrict__ dqueries, T* __restrict__ dkeys_values,
        const int* __restrict__ work, const int* __restrict__ query_cuts,
        const int* __restrict__ key_cuts, const int* __restrict__ rows,
        const uint32_t* __restrict__ run,
        int asked, int heads, int size, int query_stride, int key_stride,
        int key_column, int value_column, int reach, float scale,
        unsigned part, unsigned site, unsigned threshold, float factor) {
    constexpr int M = OWN / (16 * WARPS), STEP = 32, N = STEP / 8, LD = apart<D>(), LS = apart<STREAM>();
    constexpr int STAGES = WHOLE && OWN <= STREAM ? 1 : 2;              // 1: all queries are there at once
    SHARED(shared);
    T* key_tile = (T*)shared;                                           // [OWN, D]
    T* value_tile = key_tile + OWN * LD;                                // [OWN, D]
    T* query_tiles = value_tile + OWN * LD;                             // of [STREAM, D]
    T* dout_tiles = query_tiles + STAGES * STREAM * LD;                 // of [STREAM, D]
    char* scratch = (char*)(dout_tiles + STAGES * STREAM * LD);         // 512 bytes a warp
    float* lses = (float*)(scratch + 512 * WARPS);                      // of [STREAM + 4]
    float* deltas = lses + STAGES * (STREAM + 4);                       // of [STREAM + 4]
    T* ds_tile = (T*)(deltas + STAGES * (STREAM + 4));                  // [OWN, STREAM], for WHOLE

    int head = blockIdx.x % heads, item = blockIdx.x / heads;
    if (work[2 * item] < 0) return;
    Sequence s = sequence_of(work[2 * item], query_cuts, key_cuts);
    int first = work[2 * item + 1];
    int count = min(OWN, s.keys - first);
    int out_stride = heads * size;
    int column = head * size;                                           // where a row has its part of q
    int to_keys = (s.first_key + first) * key_stride + column;
    int to_numbers = head * asked + s.first_query;                      // in lse and delta
    Dropout dropout = dropout_of(run, part, site, threshold, scratch);
    const float scale2 = scale * LOG2E;                                 // exp(x) = 2^(x log2(e))

    // The queries that reach any of our keys.
    int begin = WHOLE ? 0 : queries_before(rows, s, first - reach);
    int end = WHOLE ? s.queries : queries_before(rows, s, first + count + reach);
    auto load = [&](int query, int stage) {
        const int at = stage * STREAM * LD, row = s.first_query + query;
        const T* Q = queries + row * query_stride + column;
        const T* dY = dout + row * out_stride + column;
        load_tile<T, D, STREAM>(query_tiles + at, Q, query_stride, size, end - query);
        load_tile<T, D, STREAM>(dout_tiles + at, dY, out_stride, size, end - query);
    };
    // Rows of lse and delta begin anywhere: copies of 16 bytes begin up to three numbers before.
    auto skipped = [&](int query) { return (to_numbers + query) % 4; };
    auto load_numbers = [&](int query, int stage) {
        int i = threadIdx.x % 32 * 4;
        if (threadIdx.x >= (WHOLE ? 32 : 64) || i >= STREAM + 4) return;
        int start = query - skipped(query);
        int wanted = max(0, min(4, end - start - i));
        const float* from = threadIdx.x < 32 ? lse : delta;
        float* to = (threadIdx.x < 32 ? lses : deltas) + stage * (STREAM + 4) + i;
        copy16(to, from + (to_numbers + start + (wanted ? i : 0)), 4 * wanted);
    };
    load_tile<T, D, OWN>(key_tile, keys_values + (to_keys + key_column), key_stride, size, count);
    load_tile<T, D, OWN>(value_tile, keys_values + (to_keys + value_column), key_stride, size, count);
    if (begin < end) load(begin, 0);
    if (begin < end) load_numbers(begin, 0);
    commit();
    if (WHOLE) {
        const int at = s.first_query * out_stride + column;
        write_delta<T, D, 4>(deltas + skipped(0), out + at, dout + at, out_stride, size, s.queries, factor);
    }

    int mine = warp_of() * 16 * M;                                      // this warp's part of the keys
    int first_key = first + mine;
    int last_key = min(first_key + 16 * M, s.keys) - 1;
    int g = lane_of() / 4, t = lane_of() % 4 * 2;
    const T* own_keys = own_row<T, D>(key_tile + mine * LD);
    const T* own_values = own_row<T, D>(value_tile + mine * LD);
    float dk[M][D / 8][4], dv[M][D / 8][4];
    set_zero<T>(dk);
    set_zero<T>(dv);
    wait<0>();
    __syncthreads();

    for (int query = begin, stage = 0; query < end; query += STREAM, stage = (stage + 1) % STAGES) {
        if (STAGES == 2 && query + STREAM < end) {
            load(query + STREAM, stage ^ 1);
            load_numbers(query + STREAM, stage ^ 1);
        }
        commit();
#pragma unroll 1
        for (int i0 = query; i0 < min(query + STREAM, end); i0 += STEP) {
            const int at = stage * STREAM + i0 - query;
            const int i1 = min(i0 + STEP, end);
            // Where all tokens ask, queries i0 ... i1 - 1 stand at just these places.
            bool beyond = !rows && (i1 <= first_key - reach || i0 > last_key + reach);
            if (!WHOLE && (beyond || first_key > last_key)) continue;
            bool inside = !rows && i1 <= first_key + reach + 1 && i0 >= last_key - reach;
            bool edge = !inside || i1 - i0 < STEP || last_key - first_key < 16 * M - 1;
            const T* query_rows = query_tiles + at * LD;
            const T* dout_rows = dout_tiles + at * LD;
            float p[M][N][4], ds[M][N][4];
            set_zero<T>(p);
            set_zero<T>(ds);
            // (Unrolled, of 32 rows a warp, this wants more registers than there are.)
#pragma unroll (M == 1 ? D / 16 : 1)
            for (int k = 0; k < D / 16; k++) {
                uint32_t a[M][4];
                load_operand<T, D>(a, own_keys + k * 16);
                add_product_with_rows<T, D>(p, a, query_rows + k * 16);         // S'
                load_operand<T, D>(a, own_values + k * 16);
                add_product_with_rows<T, D>(ds, a, dout_rows + k * 16);         // dZ'
            }
            uint32_t kept[M][N];
            if (threshold) {
                uint32_t number = (s.first_query + i0) * heads + head;
                kept_by_key(kept, dropout, number, heads, first_key / 16);
                drop<true>(ds, kept);
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int number = at + stage * 4 + skipped(query) + n * 8 + t + i % 2;
                    float lse2 = lses[number] * LOG2E, its_delta = deltas[number];
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        p[m][n][i] = ex2(p[m][n][i] * scale2 - lse2);
                        ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - its_delta);
                    }
                }
            }
            if (threshold) drop<true>(p, kept);
            if (edge) {
#pragma unroll
                for (int n = 0; n < N; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int its = i0 + n * 8 + t + i % 2;
                        int place = place_of(rows, s, min(its, end - 1));
#pragma unroll
                        for (int m = 0; m < M; m++) {
                            int j = first_key + m * 16 + i / 2 * 8 + g;
                            bool exists = its < end && j <= last_key;
                            if (!exists || too_far(place, j, reach)) p[m][n][i] = ds[m][n][i] = 0.f;
                        }
                    }
                }
            }
            add_product_with_columns<T, D>(dv, p, dout_rows);
            add_product_with_columns<T, D>(dk, ds, query_rows);
            if (WHOLE) {
#pragma unroll
                for (int m = 0; m < M; m++) {
#pragma unroll
                    for (int n = 0; n < N; n++) {
                        T* to = ds_tile + (mine + m * 16 + g) * LS + i0 - query + n * 8 + t;
                        *(uint32_t*)to = pack<T>(ds[m][n][0], ds[m][n][1]);
                        *(uint32_t*)(to + 8 * LS) = pack<T>(ds[m][n][2], ds[m][n][3]);
                    }
                }
            }
        }
        if (WHOLE) {
            __syncthreads();                                            // dS' is there, and Q is free
            // Of dQ [STREAM, D] = dS K each warp sums sixteen rows. dS' turned is its first operand.
            const int own = warp_of() * 16;
            float dq[1][D / 8][4];
            set_zero<T>(dq);
            const int its_key = lane_of() % 8 + lane_of() / 16 * 8, its_query = own + lane_of() / 8 % 2 * 8;
            const T* ds_row = ds_tile + its_key * LS + its_query;
            const T* key_row = own_row<T, D>(key_tile);
            if (query + own < end) {
#pragma unroll (M == 1 ? OWN / 16 : 1)
                for (int j = 0; j < OWN; j += 16) {
                    uint32_t a[4];
                    ldmatrix_transposed(a, ds_row + j * LS);
#pragma unroll
                    for (int n = 0; n < D / 8; n += 2) {
                        uint32_t b[4];
                        ldmatrix_transposed(b, key_row + j * LD + n * 8);
                        uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
                        mma<T>(dq[0][n], a, even);
                        mma<T>(dq[0][n + 1], a, odd);
                    }
                }
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) dq[0][n][i] *= scale * factor;
                }
                T* dQ = dqueries + (s.first_query + query + own) * query_stride + column;
                T* room = query_tiles + (stage * STREAM + own) * LD;
                store_rows<T, D>(dQ, query_stride, size, end - query - own, dq, room);
            }
        }
        wait<0>();                                                      // the next tile has landed,
        __syncthreads();                                                // and nobody reads this one any more
        if (STAGES == 1) break;                                         // there was no other
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                dk[m][n][i] *= scale * factor;
                dv[m][n][i] *= factor;
            }
        }
    }
    T* dK = dkeys_values + (to_keys + mine * key_stride + key_column);
    T* dV = dkeys_values + (to_keys + mine * key_stride + value_column);
    store_rows<T, D>(dK, key_stride, size, last_key - first_key + 1, dk, key_tile + mine * LD);
    store_rows<T, D>(dV, key_stride, size, last_key - first_key + 1, dv, value_tile + mine * LD);
}

// ---- the same without tensor cores or shared memory, for sizes up to 128: to prove things in float
//
// As in attention.cu: a warp takes one query, or one key, after the other; a lane computes the score of one
// of 32 pairs, and has some columns of the sums.

template <class T>
KERNEL_FOR(4) attention_plain_backward_queries(
        const T* __restrict__ queries, const T* __restrict__ keys_values, const T* __restrict__ out,
        const float* __restrict__ lse, const T* __restrict__ dout, float* delta,
        T* __restrict__ dqueries,
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
        int row = s.first_query + query, to = (row * heads + head) * size;
        const T* Q = queries + row * query_stride + head * size;
        float its_delta = 0.f;
        for (int c = lane; c < size; c += 32) its_delta += wide(dout[to + c]) * wide(out[to + c]);
        its_delta = warp_sum(its_delta) / factor;
        if (lane == 0) delta[head * asked + row] = its_delta;
        float its_lse = lse[head * asked + row], dq[4] = {0.f, 0.f, 0.f, 0.f};

        int place = place_of(rows, s, query);
        int begin = max(0, place - reach), end = min(s.keys, place + reach + 1);
        for (int key = begin; key < end; key += 32) {
            int j = key + lane;
            float ds = 0.f;
            if (j < end) {
                float p = ex2((scale * dot(Q, K + j * key_stride, size) - its_lse) * LOG2E);
                float dz = dot(dout + to, V + j * key_stride, size);
                if (threshold && draw_of(run, part, site, row * heads + head, j) < threshold) dz = 0.f;
                ds = p * (dz - its_delta);
            }
            for (int i = 0; i < min(32, end - key); i++) {
                add_row(dq, __shfl_sync(ALL, ds, i), K + (key + i) * key_stride, size);
            }
        }
        for (int c = 0; c < 4; c++) {
            int column = lane + 32 * c;
            T* dQ = dqueries + row * query_stride + head * size;
            if (column < size) dQ[column] = narrow<T>(dq[c] * scale * factor);
        }
    }
}

template <class T>
KERNEL_FOR(4) attention_plain_backward_keys(
        const T* __restrict__ queries, const T* __restrict__ keys_values, const T* __restrict__ out,
        const float* __restrict__ lse, const T* __restrict__ dout, float* delta,
        T* __restrict__ dqueries, T* __restrict__ dkeys_values,
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

    for (int key = first + warp_of(); key < min(first + PLAIN, s.keys); key += WARPS) {
        int to = (s.first_key + key) * key_stride + head * size;
        const T* K = keys_values + to + key_column;
        const T* V = keys_values + to + value_column;
        float dk[4] = {0.f, 0.f, 0.f, 0.f}, dv[4] = {0.f, 0.f, 0.f, 0.f};
        int begin = queries_before(rows, s, key - reach), end = queries_before(rows, s, key + reach + 1);
        for (int query = begin; query < end; query += 32) {
            int row = s.first_query + query + lane;
            float z = 0.f, ds = 0.f;
            if (query + lane < end) {
                float score = scale * dot(queries + row * query_stride + head * size, K, size);
                float p = ex2((score - lse[head * asked + row]) * LOG2E);
                float keep = 1.f;
                if (threshold && draw_of(run, part, site, row * heads + head, key) < threshold) keep = 0.f;
                z = keep * p;
                float dz = dot(dout + (row * heads + head) * size, V, size);
                ds = p * (keep * dz - delta[head * asked + row]);
            }
            for (int i = 0; i < min(32, end - query); i++) {
                row = s.first_query + query + i;
                add_row(dv, __shfl_sync(ALL, z, i), dout + (row * heads + head) * size, size);
                add_row(dk, __shfl_sync(ALL, ds, i), queries + row * query_stride + head * size, size);
            }
        }
        for (int c = 0; c < 4; c++) {
            int column = lane + 32 * c;
            if (column >= size) continue;
            dkeys_values[to + key_column + column] = narrow<T>(dk[c] * scale * factor);
            dkeys_values[to + value_column + column] = narrow<T>(dv[c] * factor);
        }
    }
}

// instances, and the registers that each may use:
//     attention_backward_queries<bf16,32,64>   168
//     attention_backward_queries<bf16,64,128>  255
//     attention_backward_queries<bf16,128,64>  255
//     attention_backward_queries<f16,32,64>    168
//     attention_backward_queries<f16,64,64>    200
//     attention_backward_keys<bf16,32,64,0>    168
//     attention_backward_keys<bf16,64,128,0>   255
//     attention_backward_keys<bf16,128,64,0>   255
//     attention_backward_keys<bf16,32,64,1>    168
//     attention_backward_keys<bf16,64,64,1>    168
//     attention_backward_keys<bf16,64,128,1>   255
//     attention_backward_keys<f16,32,64,0>     176
//     attention_backward_keys<f16,64,64,0>     200
//     attention_backward_keys<f16,32,64,1>     168
//     attention_backward_keys<f16,64,64,1>     200
//     attention_plain_backward_queries<float>  80
//     attention_plain_backward_keys<float>     88
