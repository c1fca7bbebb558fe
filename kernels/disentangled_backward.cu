// disentangled_backward.cu - the gradients of DeBERTa's attention (disentangled.cu), the same bits every run.
//
// With dY the gradient of Y, keep the mask of dropout and f its factor, follow as in plain attention
//
//     P = exp(score - lse)      delta_i = <dY_i, Y_i>      dP_ij = f keep_ij <dY_i, V_j>
//     dS = P (dP - delta)       dV = f (keep P)' dY
//
// and from score_ij = scale (q_i . k_j + q_i . keys_at[b(i-j)] + queries_at[b(i-j)] . k_j)
//
//     dQ_i = scale sum_j dS_ij (k_j + keys_at[b(i-j)])          dkeys_at[r] = scale sum dS_ij q_i
//     dK_j = scale sum_i dS_ij (q_i + queries_at[b(i-j)])       dqueries_at[r] = scale sum dS_ij k_j
//
// where the sums on the right are over all i, j with b(i-j) = r. So there are three ways to add dS up: by
// queries, by keys, by distances. Each is a kernel's, computes the dS that it needs again, and adds them
// in registers. To have dS three times costs more products than to have it once and add by atomics what
// lies across; but nothing is added in an order that changes, and no dS is written.
//
//     disentangled_side<..., QUERIES>   dQ and delta       a block owns 64 queries, keys stream by
//     disentangled_side<..., KEYS>      dK and dV          a block owns 64 keys, queries stream by
//     disentangled_distances            tables             a block owns a diagonal of tiles i0 - j0 = const:
//                                                          127 distances, which never change on the way
//     disentangled_tables               the sum of that by rows of the tables
//
// to be launched in this order. Arrays as in disentangled.cu; dY and Y [T, A, D], delta [A, T] is written by
// the first kernel. The far ends of the tables: a far tile adds its dS by own rows, w_a. At the end
// dx_a += w_a * (the table's row of that end), and for the table the block writes sum_a w_a x_a.
//
// Memory: q, k, v and dy are read three times, y once, dq, dk and dv are written: 32 bytes for each number of
// y, and more from L2 for every further block. The limit are the tensor cores. In products of 64 x 64 x 64
// a near tile costs 6.75 (queries), 7.75 (keys) and 7 (distances), a far one 3 1/8, 4 1/8 and nothing. Two
// blocks fit on a multiprocessor of an H200.
#include "disentangled.cuh"

// What the gradient of a query's scores wants to know of it: lse as a power of 2, and delta.
struct Query { float lse2, delta; };
DEVICE Query query_of(const float* lse, const float* delta, int row, bool exists) {
    if (!exists) return Query{infinity(), 0.f};                         // so P = 2^(score - infinity) = 0
    return Query{lse[row] * LOG2E, delta[row]};
}

// ---- by queries, or by keys
//
// One text for both, as one is the other seen from across: own rows x (q or k) and y (dY or v), other rows x
// (k or q) and y (v or dY). score = x x' + ..., dP = y y', dx = dS x' + ..., and for keys dv = P y'.

template <class T, int D, int TABLES, int SIDE>
KERNEL(THREADS) disentangled_side(
        const T* __restrict__ queries, const T* __restrict__ keys_values,
        const T* __restrict__ keys_at, const T* __restrict__ queries_at,
        const T* __restrict__ out, const T* __restrict__ dout,
        const float* __restrict__ lse, float* delta,
        T* __restrict__ dqueries, T* __restrict__ dkeys_values, float* __restrict__ far_sums,
        const int* __restrict__ buckets, const int* __restrict__ work, const int* __restrict__ cuts,
        const uint32_t* __restrict__ run,
        int tokens, int heads, int query_stride, int key_stride, int key_column, int value_column,
        int furthest, int below, int above, float scale,
        unsigned part, unsigned site, unsigned threshold) {
    constexpr bool BY_QUERY = SIDE == QUERIES;
    constexpr bool OWN = TABLES & (BY_QUERY ? KEYS_AT : QUERIES_AT);
    constexpr bool OTHER = TABLES & (BY_QUERY ? QUERIES_AT : KEYS_AT);
    SHARED(shared);
    T* x_tiles = (T*)shared;                                            // two of [64, D]
    T* y_tiles = x_tiles + 2 * TILE * D;                                // two of [64, D]
    T* own_halves = y_tiles + 2 * TILE * D;                             // of windows: three of [64, D]
    T* other_halves = own_halves + 3 * TILE * D;                        // three of [64, D]
    T* own_ends = other_halves + 3 * TILE * D;                          // [8, D]
    T* other_ends = own_ends + 8 * D;                                   // [8, D]
    T* own_products = other_ends + 8 * D;                               // [64, SKEW]
    T* other_products = own_products + TILE * SKEW;                     // [64, SKEW]
    float* other_numbers = (float*)other_products;                      // [64], in far tiles
    Query* of_query = (Query*)(other_products + TILE * SKEW);           // two of [64]; own: the first alone

    const int head = blockIdx.x % heads, number = blockIdx.x / heads, width = heads * D;
    const Item item = item_of(work, cuts, number);
    if (item.length == 0) return;
    const int left = item.length - item.first;                          // own rows that exist
    const Distances distances{buckets, furthest, below, above};
    const Dropout dropout{run, part, site, threshold};
    const float factor = factor_of(dropout);
    const float scale2 = scale * LOG2E;

    // Row 0 is the first of the sequence.
    const T* Q = queries + size_t(item.begin) * query_stride + head * D;
    const T* K = keys_values + size_t(item.begin) * key_stride + key_column + head * D;
    const T* V = K - key_column + value_column;
    const T* dY = dout + size_t(item.begin) * width + head * D;
    const T *own_x = BY_QUERY ? Q : K, *own_y = BY_QUERY ? dY : V;
    const T *other_x = BY_QUERY ? K : Q, *other_y = BY_QUERY ? V : dY;
    const int own_x_stride = BY_QUERY ? query_stride : key_stride;
    const int own_y_stride = BY_QUERY ? width : key_stride;
    const int other_x_stride = BY_QUERY ? key_stride : query_stride;
    const int other_y_stride = BY_QUERY ? key_stride : width;
    const T* own_table = (BY_QUERY ? keys_at : queries_at) + (OWN ? head * D : 0);
    const T* other_table = (BY_QUERY ? queries_at : keys_at) + (OTHER ? head * D : 0);
    const float* head_lse = lse + size_t(head) * tokens + item.begin;
    float* head_delta = delta + size_t(head) * tokens + item.begin;
    own_x += size_t(item.first) * own_x_stride;
    own_y += size_t(item.first) * own_y_stride;

    const int g = lane_of() / 4, t = lane_of() % 4 * 2;
    const int mine = warp_of() * 16;                                    // the first row of this warp
    T* my_own_products = own_products + mine * SKEW;
    T* my_other_products = other_products + mine * SKEW;
    T* own_begin = own_products + own_place(mine + g, t);               // of this lane's scores
    const T* other_begin = other_products + other_place(mine + g, t);

    // Own rows, as operands for all that comes.
    load_tile<T, D>(x_tiles, own_x, own_x_stride, left);
    load_tile<T, D>(y_tiles, own_y, own_y_stride, left);
    if (BY_QUERY) {
        const T* Y = out + size_t(item.begin + item.first) * width + head * D;
        load_tile<T, D>(x_tiles + TILE * D, Y, width, left);
    }
    if (OWN) load_ends<T, D>(own_ends, own_table, width, distances);
    if (OTHER) load_ends<T, D>(other_ends, other_table, width, distances);
    commit();
    wait<0>();
    __syncthreads();
    uint32_t x[D / 16][4], y[D / 16][4];
    load_rows<T, D>(x, x_tiles, mine);
    load_rows<T, D>(y, y_tiles, mine);
    float own_number[4] = {0.f, 0.f, 0.f, 0.f};                         // of row g and both ends, then g + 8
    if (OWN) meet_ends<T, D>(own_number, x, own_ends);
    Query row_query[2];
    if (BY_QUERY) {
        // Two threads for a row of <dY, Y>.
        int row = threadIdx.x / 2;
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < D / 2; i += 8) {
            float a[8], b[8];
            unsigned at = place<D>(row, threadIdx.x % 2 * (D / 2) + i);
            load8(a, y_tiles + at);
            load8(b, x_tiles + TILE * D + at);
#pragma unroll
            for (int c = 0; c < 8; c++) sum += a[c] * b[c];
        }
        sum += __shfl_xor_sync(ALL, sum, 1);
        if (threadIdx.x % 2 == 0) {
            of_query[row] = Query{row < left ? head_lse[item.first + row] * LOG2E : infinity(), sum};
            if (row < left) head_delta[item.first + row] = sum;
        }
    }
    __syncthreads();
    if (BY_QUERY) row_query[0] = of_query[mine + g], row_query[1] = of_query[mine + g + 8];

    // Half number n of the windows: for differences a - b = item.first - 64 n - 63 and on. It lies in place
    // n mod 3. A tile's lower half has its own number, its upper half is the lower one of the tile before.
    auto kind_at = [&](int first) {
        return kind_of(distances, BY_QUERY ? item.first - first : first - item.first);
    };
    auto load_half = [&](int n) {
        int difference = item.first - n * TILE - (TILE - 1), at = (n + 3) % 3 * TILE * D;
        if (OWN) load_distances<T, D>(own_halves + at, own_table, width, distances, SIDE, difference);
        if (OTHER) load_distances<T, D>(other_halves + at, other_table, width, distances, SIDE, difference);
    };
    auto load = [&](int first, int kind, int kind_before) {
        int at = first / TILE % 2 * TILE * D, rows = item.length - first;
        load_tile<T, D>(x_tiles + at, other_x + size_t(first) * other_x_stride, other_x_stride, rows);
        load_tile<T, D>(y_tiles + at, other_y + size_t(first) * other_y_stride, other_y_stride, rows);
        if (kind == NEAR) load_half(first / TILE);
        if (kind == NEAR && kind_before != NEAR) load_half(first / TILE - 1);
    };
    int kind = kind_at(0);
    load(0, kind, LOW_END);
    commit();
    if (!BY_QUERY && threadIdx.x < TILE) {
        of_query[threadIdx.x] = query_of(head_lse, head_delta, threadIdx.x, int(threadIdx.x) < item.length);
    }

    float dx[D / 8][4], dv[D / 8][4];
    float far_sum[2][2] = {{0.f, 0.f}, {0.f, 0.f}};                     // by end, of rows g and g + 8
    bool far = false;                                                   // has any tile been?
    set_zero(dx);
    set_zero(dv);
    for (int first = 0; first < item.length; first += TILE) {
        const int stage = first / TILE % 2, low = first / TILE % 3, high = (low + 2) % 3;
        const T* x_tile = x_tiles + stage * TILE * D;
        const T* y_tile = y_tiles + stage * TILE * D;
        wait<0>();                                                      // this tile has landed, and nobody
        __syncthreads();                                                // reads the one before
        const int next = kind_at(first + TILE);
        if (first + TILE < item.length) load(first + TILE, next, kind);
        commit();
        Query next_query{};
        int next_row = first + TILE + threadIdx.x;
        if (!BY_QUERY && threadIdx.x < TILE) {
            next_query = query_of(head_lse, head_delta, next_row, next_row < item.length);
        }

        const Window<T> own_window{own_halves + low * TILE * D, own_halves + high * TILE * D};
        if (OTHER) {
            uint32_t rows[D / 16][4];
            load_rows<T, D>(rows, x_tile, mine);
            if (kind == NEAR) {
                const Window<T> window{other_halves + low * TILE * D, other_halves + high * TILE * D};
                meet_distances<T, D, false, false>(my_other_products, rows, window, 48 - mine);
            } else {
                float c[4];
                meet_ends<T, D>(c, rows, other_ends);
                if (t == 0) {
                    other_numbers[mine + g] = kind == LOW_END ? c[0] : c[1];
                    other_numbers[mine + g + 8] = kind == LOW_END ? c[2] : c[3];
                }
            }
        }
        if (OWN && kind == NEAR) meet_distances<T, D, true, true>(my_own_products, x, own_window, mine);
        float p[TILE / 8][4], ds[TILE / 8][4];                          // scores, then P; dP, then dS
        set_zero(p);
        set_zero(ds);
        add_product_with_rows<T, D>(p, x, x_tile, 0);
        add_product_with_rows<T, D>(ds, y, y_tile, 0);
        __syncthreads();                                                // the products are there

        if (kind == NEAR) {
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (OWN) p[n][i] += wide(own_begin[own_step(n, i)]);
                    if (OTHER) p[n][i] += wide(other_begin[other_step(n, i)]);
                }
            }
        } else {
            float upper = kind == LOW_END ? own_number[0] : own_number[1];
            float lower = kind == LOW_END ? own_number[2] : own_number[3];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    p[n][i] += i < 2 ? upper : lower;
                    if (OTHER) p[n][i] += other_numbers[n * 8 + t + i % 2];
                }
            }
        }
        if (BY_QUERY) {
            KeptByQuery kept;
            uint32_t row = (item.begin + item.first + mine) * heads + head;
            kept.draw_all(dropout, row, heads, first / 16);
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const Query query = row_query[i / 2];
                    bool exists = first + n * 8 + t + i % 2 < item.length;
                    float P = exists ? ex2(p[n][i] * scale2 - query.lse2) : 0.f;
                    float dP = kept.keeps(n, i) ? ds[n][i] * factor : 0.f;
                    ds[n][i] = P * (dP - query.delta);
                }
            }
        } else {
            KeptByKey kept;
            uint32_t row = (item.begin + first) * heads + head;
            kept.draw_all(dropout, row, heads, (item.first + mine) / 16);
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const Query query = of_query[stage * TILE + n * 8 + t + i % 2];
                    bool exists = mine + g + i / 2 * 8 < left;
                    float P = exists ? ex2(p[n][i] * scale2 - query.lse2) : 0.f;
                    bool keeps = kept.keeps(n, i);
                    p[n][i] = keeps ? P : 0.f;
                    ds[n][i] = P * ((keeps ? ds[n][i] * factor : 0.f) - query.delta);
                }
            }
            add_product_with_tile<T, D>(dv, p, y_tile);
        }
        add_product_with_tile<T, D>(dx, ds, x_tile);

        if (OWN && kind == NEAR) {
            // Each gradient to where its product was; then by distances.
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) own_begin[own_step(n, i)] = narrow<T>(ds[n][i]);
            }
            __syncwarp();
#pragma unroll
            for (int k = 0; k < SPREAD; k += 16) {
                uint32_t a[4];
                ldmatrix(a, my_own_products + lane_of() % 16 * SKEW + k + lane_of() / 16 * 8);
                add_product_with_columns<T, D>(dx, a, own_window.half(mine + k), (mine + k) % TILE);
            }
        }
        if (OWN && kind != NEAR) {
            far = true;
            float upper = 0.f, lower = 0.f;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) upper += ds[n][0] + ds[n][1], lower += ds[n][2] + ds[n][3];
            if (kind == LOW_END) far_sum[0][0] += upper, far_sum[0][1] += lower;
            else far_sum[1][0] += upper, far_sum[1][1] += lower;
        }
        if (!BY_QUERY && threadIdx.x < TILE) of_query[(stage ^ 1) * TILE + threadIdx.x] = next_query;
        kind = next;
    }

    if (OWN) {
        // The ends: their part of dx, and their own gradient, sum_a w_a x_a.
        float* weights = (float*)other_products;                        // [2, 64]
        float* sums = far_sums + size_t(number) * 2 * width + head * D;
        wait<0>();
        __syncthreads();
        if (far) load_tile<T, D>(x_tiles, own_x, own_x_stride, left);
        commit();
#pragma unroll
        for (int end = 0; end < 2; end++) {
            float upper = quad_sum(far_sum[end][0]), lower = quad_sum(far_sum[end][1]);
            if (t == 0) {
                weights[end * TILE + mine + g] = upper;
                weights[end * TILE + mine + g + 8] = lower;
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float row = wide(own_ends[place<D>(end, n * 8 + t + i % 2)]);
                    dx[n][i] += (i < 2 ? upper : lower) * row;
                }
            }
        }
        wait<0>();
        __syncthreads();
        int end = threadIdx.x / D, column = threadIdx.x % D;
        if (end < 2) {
            float sum = 0.f;
            for (int row = 0; row < (far ? TILE : 0); row++) {
                sum += weights[end * TILE + row] * wide(x_tiles[place<D>(row, column)]);
            }
            sums[end * width + column] = sum * scale;
        }
    }
    const int my_rows = left - mine;
    const size_t row = item.begin + item.first + mine;
    if (BY_QUERY) {
        T* to = dqueries + row * query_stride + head * D;
        store_rows<T, D>(to, query_stride, my_rows, dx, scale, scale, my_own_products);
    } else {
        T* to = dkeys_values + row * key_stride + head * D;
        store_rows<T, D>(to + key_column, key_stride, my_rows, dx, scale, scale, my_own_products);
        store_rows<T, D>(to + value_column, key_stride, my_rows, dv, factor, factor, my_own_products);
    }
}

// ---- by distances
//
// Tiles whose first query stands `apart` = 64 (first_diagonal + x) after their first key have the same 127
// distances. Block (x, head, z) goes along them, through items z, z + gridDim.z, ... of `work`, and keeps
// sum dS q and sum dS k by distance in registers, 32 distances a warp. Of far diagonals there are no blocks.
// sums [Z, 2, X, 128, A, D]: dkeys_at first, then dqueries_at, by number of distance u (the last is none).

template <class T, int D, int TABLES>
KERNEL(THREADS) disentangled_distances(
        const T* __restrict__ queries, const T* __restrict__ keys_values,
        const T* __restrict__ keys_at, const T* __restrict__ queries_at,
        const T* __restrict__ dout, const float* __restrict__ lse, const float* __restrict__ delta,
        float* __restrict__ sums,
        const int* __restrict__ buckets, const int* __restrict__ work, const int* __restrict__ cuts,
        const uint32_t* __restrict__ run,
        int items, int first_diagonal,
        int tokens, int heads, int query_stride, int key_stride, int key_column, int value_column,
        int furthest, int below, int above, float scale,
        unsigned part, unsigned site, unsigned threshold) {
    constexpr bool OWN = TABLES & KEYS_AT, OTHER = TABLES & QUERIES_AT;
    SHARED(shared);
    T* query_tiles = (T*)shared;                                        // two of [64, D]
    T* key_tiles = query_tiles + 2 * TILE * D;                          // two of [64, D]
    T* value_tile = key_tiles + 2 * TILE * D;                           // [64, D]
    T* dout_tile = value_tile + TILE * D;                               // [64, D]
    T* own_halves = dout_tile + TILE * D;                               // the window: two of [64, D]
    T* other_halves = own_halves + 2 * TILE * D;                        // two of [64, D]
    T* own_products = other_halves + 2 * TILE * D;                      // [64, SKEW]
    T* other_products = own_products + TILE * SKEW;                     // [64, SKEW]

    const int head = blockIdx.y, width = heads * D;
    const int apart = (first_diagonal + int(blockIdx.x)) * TILE;
    const Distances distances{buckets, furthest, below, above};
    const Dropout dropout{run, part, site, threshold};
    const float factor = factor_of(dropout);
    const float scale2 = scale * LOG2E;
    const int g = lane_of() / 4, t = lane_of() % 4 * 2;
    const int mine = warp_of() * 16;                                    // the first row of this warp
    T* own_begin = own_products + own_place(mine + g, t);               // of this lane's scores
    T* other_begin = other_products + other_place(mine + g, t);

    // From item n on, the first one that has a tile on the diagonal.
    auto find = [&](int n) {
        while (n < items) {
            Item item = item_of(work, cuts, n);
            int key = item.first - apart;
            if (item.length && key >= 0 && key < item.length) break;
            n += gridDim.z;
        }
        return n;
    };
    auto load_first = [&](const Item& item, int stage) {                // what the last products want, too
        int key = item.first - apart;
        const T* Q = queries + size_t(item.begin + item.first) * query_stride + head * D;
        const T* K = keys_values + size_t(item.begin + key) * key_stride + key_column + head * D;
        load_tile<T, D>(query_tiles + stage * TILE * D, Q, query_stride, item.length - item.first);
        load_tile<T, D>(key_tiles + stage * TILE * D, K, key_stride, item.length - key);
    };
    auto load_second = [&](const Item& item) {
        int key = item.first - apart;
        const T* V = keys_values + size_t(item.begin + key) * key_stride + value_column + head * D;
        const T* dY = dout + size_t(item.begin + item.first) * width + head * D;
        load_tile<T, D>(value_tile, V, key_stride, item.length - key);
        load_tile<T, D>(dout_tile, dY, width, item.length - item.first);
    };
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int difference = apart - (TILE - 1) + half * TILE, at = half * TILE * D;
        const T *own_table = keys_at + head * D, *other_table = queries_at + head * D;
        if (OWN) load_distances<T, D>(own_halves + at, own_table, width, distances, QUERIES, difference);
        if (OTHER) {
            load_distances<T, D>(other_halves + at, other_table, width, distances, QUERIES, difference);
        }
    }
    int n = find(blockIdx.z);
    if (n < items) {
        Item item = item_of(work, cuts, n);
        load_first(item, 0);
        load_second(item);
    }
    commit();

    float own_sums[2][D / 8][4], other_sums[2][D / 8][4];               // of distances 32 warp + 16 i and on
#pragma unroll
    for (int i = 0; i < 2; i++) set_zero(own_sums[i]), set_zero(other_sums[i]);

    for (int stage = 0; n < items; stage ^= 1) {
        const Item item = item_of(work, cuts, n);
        const int key = item.first - apart;
        const T* query_tile = query_tiles + stage * TILE * D;
        const T* key_tile = key_tiles + stage * TILE * D;
        wait<0>();                                                      // the tiles have landed, and nobody
        __syncthreads();                                                // reads those before
        n = find(n + gridDim.z);
        if (n < items) load_first(item_of(work, cuts, n), stage ^ 1);
        commit();

        uint32_t q[D / 16][4];
        if (OTHER) {
            load_rows<T, D>(q, key_tile, mine);
            const Window<T> window{other_halves, other_halves + TILE * D};
            meet_distances<T, D, false, true>(other_products + mine * SKEW, q, window, 48 - mine);
        }
        load_rows<T, D>(q, query_tile, mine);
        if (OWN) {
            const Window<T> window{own_halves, own_halves + TILE * D};
            meet_distances<T, D, true, true>(own_products + mine * SKEW, q, window, mine);
        }
        uint32_t dy[D / 16][4];
        load_rows<T, D>(dy, dout_tile, mine);
        Query query[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = item.first + mine + half * 8 + g;
            size_t at = size_t(head) * tokens + item.begin;
            query[half] = query_of(lse + at, delta + at, row, row < item.length);
        }
        KeptByQuery kept;
        uint32_t row = (item.begin + item.first + mine) * heads + head;
        kept.draw_all(dropout, row, heads, key / 16);
        __syncthreads();                                                // the products are there

        // In two halves of 32 keys, lest registers run out. Each gradient goes to where its products were.
#pragma unroll
        for (int m = 0; m < TILE / 8; m += 4) {
            float p[4][4], ds[4][4];
            set_zero(p);
            set_zero(ds);
            add_product_with_rows<T, D>(p, q, key_tile, m * 8);
            add_product_with_rows<T, D>(ds, dy, value_tile, m * 8);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    T* own = own_begin + own_step(m + i, e);
                    T* other = other_begin + other_step(m + i, e);
                    float score = p[i][e];
                    if (OWN) score += wide(*own);
                    if (OTHER) score += wide(*other);
                    bool exists = key + (m + i) * 8 + t + e % 2 < item.length;
                    float P = exists ? ex2(score * scale2 - query[e / 2].lse2) : 0.f;
                    float dP = kept.keeps(m + i, e) ? ds[i][e] * factor : 0.f;
                    T dS = narrow<T>(P * (dP - query[e / 2].delta));
                    if (OWN) *own = dS;
                    if (OTHER) *other = dS;
                }
            }
        }
        __syncthreads();                                                // all gradients are there, and nobody
        if (n < items) load_second(item_of(work, cuts, n));             // reads values and dY
        commit();

        // Sums by distance: gradients transposed, times rows. Sixteen rows, number `rows` of four, meet only
        // five of eight times sixteen distances, and theirs begin with number rows, or 3 - rows.
#pragma unroll
        for (int rows = 0; rows < 4; rows++) {
            auto add = [&](float (&c)[D / 8][4], const T* products, int skipped, const T* tile) {
                if (skipped < 0 || skipped > 4) return;
                uint32_t a[4];
                int at = (rows * 16 + lane_of() % 8 + lane_of() / 16 * 8) * SKEW + lane_of() / 8 % 2 * 8;
                ldmatrix_transposed(a, products + at + skipped * 16);
                add_product_with_columns<T, D>(c, a, tile, rows * 16);
            };
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int distance = 2 * warp_of() + i;
                if (OWN) add(own_sums[i], own_products, distance - rows, query_tile);
                if (OTHER) add(other_sums[i], other_products, distance - (3 - rows), key_tile);
            }
        }
    }
    wait<0>();

    float* to = sums + (size_t(blockIdx.z) * 2 * gridDim.x + blockIdx.x) * 2 * TILE * width + head * D;
    const size_t table = size_t(gridDim.x) * 2 * TILE * width;          // from one table to the other
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            float* row = to + (warp_of() * 32 + i * 16 + g + e / 2 * 8) * width + t;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                float2 own = make_float2(own_sums[i][n][e] * scale, own_sums[i][n][e + 1] * scale);
                float2 other = make_float2(other_sums[i][n][e] * scale, other_sums[i][n][e + 1] * scale);
                if (OWN) *(float2*)(row + n * 8) = own;
                if (OTHER) *(float2*)(row + table + n * 8) = other;
            }
        }
    }
}

// ---- the sums by rows of a table
//
// gradient [O, H] of one table. Row r takes the sums of its distances, those from number starts[r] to
// starts[r+1] - 1 of `buckets` (which ascend): a distance lies on two diagonals of tiles. And the rows of the
// two ends take the far tiles' sums, far_sums [items, 2, H]. near_sums: the table's part of the first Z of
// disentangled_distances, the next one `next_sums` numbers on. A block adds up 128 columns of a row: each of
// eight warps takes every eighth summand, and at the end these are added in order. The memory read is the
// limit. H is a multiple of 4.

KERNEL(256) disentangled_tables(
        const float* __restrict__ near_sums, const float* __restrict__ far_sums,
        const int* __restrict__ buckets, const int* __restrict__ starts, const int* __restrict__ work,
        float* __restrict__ gradient,
        int width, int parts, int next_sums, int diagonals, int first_diagonal, int items, int furthest) {
    SHARED(shared);
    float4* scratch = (float4*)shared;                                  // [8, 32]
    const int r = blockIdx.x, column = blockIdx.y * 128 + threadIdx.x % 32 * 4;
    const int warp = threadIdx.x / 32;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    auto add = [&](const float* row) {
        float4 x = load16<float4>(row + column);
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    };
    if (column < width) {
        int low = max(starts[r] - furthest, first_diagonal * TILE - (TILE - 1));
        int high = min(starts[r + 1] - furthest, (first_diagonal + diagonals) * TILE);
        for (int i = warp; i < (high - low) * parts; i += 8) {
            int distance = low + i / parts;
            const float* sums = near_sums + size_t(i % parts) * next_sums;
            // A distance lies on a diagonal with u below 64, and on the one before with u + 64.
            int from_first = distance - first_diagonal * TILE + (TILE - 1);
            int diagonal = from_first / TILE, u = from_first % TILE;
            if (diagonal < diagonals) add(sums + (size_t(diagonal) * 2 * TILE + u) * width);
            if (diagonal > 0) add(sums + (size_t(diagonal - 1) * 2 * TILE + TILE + u) * width);
        }
        for (int end = 0; end < 2; end++) {
            if (r != buckets[end * 2 * furthest]) continue;
            for (int i = warp; i < items; i += 8) {
                if (work[2 * i] >= 0) add(far_sums + (size_t(i) * 2 + end) * width);
            }
        }
    }
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (warp > 0 || column >= width) return;
    for (int i = 1; i < 8; i++) {
        float4 x = scratch[i * 32 + threadIdx.x];
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    store16(gradient + size_t(r) * width + column, sum);
}

// instances, and the registers that each may use:
//     disentangled_side<bf16,64,BOTH,QUERIES>       255
//     disentangled_side<bf16,64,BOTH,KEYS>          255
//     disentangled_distances<bf16,64,BOTH>          255
//     disentangled_side<bf16,64,KEYS_AT,QUERIES>    255
//     disentangled_side<bf16,64,KEYS_AT,KEYS>       255
//     disentangled_distances<bf16,64,KEYS_AT>       255
//     disentangled_side<bf16,64,QUERIES_AT,QUERIES> 255
//     disentangled_side<bf16,64,QUERIES_AT,KEYS>    255
//     disentangled_distances<bf16,64,QUERIES_AT>    255
//     disentangled_side<bf16,32,BOTH,QUERIES>       255
//     disentangled_side<bf16,32,BOTH,KEYS>          255
//     disentangled_distances<bf16,32,BOTH>          255
//     disentangled_side<f16,64,BOTH,QUERIES>        255
//     disentangled_side<f16,64,BOTH,KEYS>           255
//     disentangled_distances<f16,64,BOTH>           255
//     disentangled_tables                           40
