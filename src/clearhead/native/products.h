// Products of matrices with the activations of some tokens.
#pragma once

#include "threads.h"
#include "vectors.h"

enum Kind { F32, BF16, I8, I4, I16 };

struct Matrix {
    const void *weights;     // row by row; rows of I8 and I4 are padded to whole blocks with zeros
    const _Float16 *scales;  // of I8 and I4: one for each `group` weights of a row; then 16 unused
    const float *bias;
    int32_t rows, columns, kind, group;
};

struct Product {
    const Matrix &m;
    float *y;  // [n, rows]
    int n;
    bool add = false, gelu = false, exact_gelu = false;
    const char *x = nullptr;  // activations, as `pack` leaves them
    int n_threads = 1;
};

constexpr int BLOCK = 128, CHUNK = 512;
constexpr long AHEAD = 4096;          // bytes: what memory sends a core while it waits for the first
constexpr long NEAR = 192 * 1024;     // bytes of activations that stay in a core's cache
constexpr long padded(long n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

#if defined(__AVX512BF16__)
constexpr bool HAS_BF16 = true;
#else
constexpr bool HAS_BF16 = false;
#endif

// What several tokens meet weights as: those of few bits are widened once for all of them.
constexpr int widened(int kind) { return kind >= I8 ? I16 : kind == BF16 && !HAS_BF16 ? F32 : kind; }

constexpr long row_bytes(int kind, long columns) {
    constexpr int bits[] = {32, 16, 8, 4, 16};
    return (kind < I8 ? columns : padded(columns)) * bits[kind] / 8;
}

// A block of I4 is 32 words; nibble j of word l is weight 32 j + l, plus 8.
template <int kind> INLINE void unpack(const char *from, svec *to) {
    constexpr int STEPS = 16 / W;
    for (int i = 0; i < STEPS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            if constexpr (kind == I4)  // as two's complement, shifted up and down again
                to[j * STEPS + i] = (((const svec_at *)from)[i] ^ (int16_t)0x8888) << (12 - 4 * j) >> 12;
            else to[j * STEPS + i] = load((const int8_t *)from + 2 * W * (j * STEPS + i));
}

template <int kind> INLINE void widen_row(const char *from, char *to, long columns, long ahead) {
    if constexpr (kind == BF16) return convert((const uint16_t *)from, (float *)to, columns);
    constexpr long bytes = row_bytes(kind, BLOCK);
    for (long k = 0; k < padded(columns); k += BLOCK, from += bytes, to += 2 * BLOCK) {
        svec weights[64 / W];
        for (long i = 0; i < bytes; i += 64) __builtin_prefetch(from + ahead + i);
        unpack<kind>(from, weights);
        for (int i = 0; i < 64 / W; i++) ((svec_at *)to)[i] = weights[i];
    }
}

// Rounds a block of n activations to 16 bits, as fractions of the largest; returns the scale. What
// is not finite makes that NaN, and the products too.
static float round_block(const float *x, long n, int16_t *to) {
    vec highest = {}, unsound = {};
    lanes(n, [&](long i, int count) {
        vec v = load(x + i, count), size = v < 0 ? -v : v;
        highest = size > highest ? size : highest, unsound += v * 0.0f;
    });
    for (int i = 1; i < W; i++) highest[0] = highest[i] > highest[0] ? highest[i] : highest[0];
    float most = highest[0] > 1e-30f ? highest[0] : 0.0f, inverse = most ? 32767 / most : 0.0f;
    for (long i = 0; i < BLOCK; i += W) {
        vec v = i < n ? load(x + i, n - i < W ? n - i : W) : vec{};
        *(half_svec *)(to + i) = __builtin_convertvector((ivec)(v * inverse + 12582912.0f), half_svec);
    }
    return most / 32767 + sum(unsound);
}

// Lays n tokens' activations out in blocks, padded with zeros: rounded to bf16 where the machine
// multiplies it, and to 16 bits for whole weights; then the scales of the groups follow a token's.
static void pack(const float *x, int n, const Matrix &m, float *packed) {
    long width = padded(m.columns), rest = width - m.columns;
    for (int token = 0; token < n; token++, x += m.columns, packed += width) {
        uint16_t *half = (uint16_t *)packed;
        float *scales = packed + width / 2;
        if (m.kind >= I8)
            for (long k = 0; k < width; k += BLOCK) {
                long count = m.columns - k < BLOCK ? m.columns - k : BLOCK;
                float scale = round_block(x + k, count, (int16_t *)half + k);
                for (int i = 0; i < BLOCK; i += m.group) *scales++ = scale;
            }
        else if (m.kind == BF16 && HAS_BF16)
            convert(x, half, m.columns), memset(half + m.columns, 0, 2 * rest);
        else memcpy(packed, x, 4 * m.columns), memset(packed + m.columns, 0, 4 * rest);
    }
}

// The sums of R rows of weights with T tokens.
template <int kind, int R, int T> struct Tile {
    static constexpr int AT_ONCE = T == 1 ? 1 : R;  // rows; one alone is read as memory lies
    const Matrix &m;
    const char *rows[R], *tokens[T];
    long row, ahead;  // ahead: bytes to what a later tile reads
    vec sums[R][T] = {};

    INLINE_MEMBER void add(int r, vec weights, long k) {
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sums[r][t] += weights * load((const float *)tokens[t] + k);
    }

    // Calls `take` for each `step` weights of each row. What remains at a row's end is copied, so
    // that nothing behind the matrix is read.
    template <class Number, int step, class Take> INLINE_MEMBER void each(Take take) {
        long k = 0;
        for (; k + step <= m.columns; k += step)
            for (int r = 0; r < R; r++) {
                if (T == 1) __builtin_prefetch(rows[r] + ahead + k * sizeof(Number));
                take(r, (const Number *)rows[r] + k, k);
            }
        for (int r = 0; r < R && k < m.columns; r++) {
            Number last[step] = {};
            memcpy(last, (const Number *)rows[r] + k, (m.columns - k) * sizeof(Number));
            take(r, last, k);
        }
    }

    // Adds the products of a block of whole weights from k on, with their groups' factors.
    INLINE_MEMBER void add_block(vec (&found)[AT_ONCE][T], int first, long k,
                                 const float (*factors)[T][CHUNK / 32], int shift) {
        constexpr int STEPS = 16 / W;
        svec unpacked[64 / W];
        if constexpr (kind != I16) {
            const char *from = rows[first] + k * (kind == I8 ? 2 : 1) / 2;
            unpack<kind>(from, unpacked);
            __builtin_prefetch(from + ahead);
            if (kind == I8) __builtin_prefetch(from + ahead + 64);
        }
        ivec whole[AT_ONCE][T] = {};
#pragma GCC unroll 16
        for (int step = 0; step < 64 / W; step++) {
            long at = 2 * (k + 2 * W * step);
#pragma GCC unroll 4
            for (int r = 0; r < AT_ONCE; r++) {
                svec weights = kind == I16 ? *(const svec_at *)(rows[first + r] + at) : unpacked[step];
                if (T > 1) IN_REGISTER(weights);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++)
                    whole[r][t] += pairs(weights, *(const svec_at *)(tokens[t] + at));
            }
            int slices = (step + 1) / STEPS;
            if ((step + 1) % STEPS || slices & ((1 << shift) - 1)) continue;
#pragma GCC unroll 16
            for (int i = 0; i < AT_ONCE * T; i++) {
                ivec &sum = whole[i / T][i % T];
                float factor = factors[i / T][i % T][(slices >> shift) - 1];
                found[i / T][i % T] += factor * __builtin_convertvector(sum, vec);
                sum = ivec{};
            }
        }
    }

    INLINE_MEMBER void run_whole() {
        long width = padded(m.columns), groups = width / m.group;
        int shift = m.group == 32 ? 0 : m.group == 64 ? 1 : 2;
#pragma GCC unroll 1
        for (int first = 0; first < R; first += AT_ONCE) {
            vec found[AT_ONCE][T] = {};
            for (long k = 0; k < width; k += CHUNK) {
                float factors[AT_ONCE][T][CHUNK / 32];
                long count = width - k < CHUNK ? width - k : CHUNK, group = k / 32 >> shift;
                for (int r = 0; r < AT_ONCE; r++)
                    for (long i = 0; i < count / 32 >> shift; i += W) {
                        vec scales = load(m.scales + (row + first + r) * groups + group + i);
                        for (int t = 0; t < T; t++)
                            store(factors[r][t] + i,
                                  scales * load((const float *)(tokens[t] + 2 * width) + group + i));
                    }
                for (long i = 0; i < count; i += BLOCK)
                    add_block(found, first, k + i,
                              (const float (*)[T][CHUNK / 32])(factors[0][0] + (i / 32 >> shift)), shift);
            }
            memcpy(sums[first], found, sizeof found);
        }
    }

    INLINE_MEMBER void run() {
        if constexpr (kind == F32) {
            each<float, W>([&](int r, const float *w, long k) { add(r, load(w), k); });
        } else if constexpr (kind == BF16) {
#if defined(__AVX512BF16__)
            each<uint16_t, 2 * W>([&](int r, const uint16_t *w, long k) {
                for (int t = 0; t < T; t++)
                    sums[r][t] = (vec)_mm512_dpbf16_ps((__m512)sums[r][t],
                                                       (__m512bh)_mm512_loadu_si512(w),
                                                       (__m512bh)_mm512_loadu_si512(tokens[t] + 2 * k));
            });
#else
            each<uint16_t, W>([&](int r, const uint16_t *w, long k) { add(r, load(w), k); });
#endif
        } else {
            run_whole();
        }
    }
};

template <int kind, int R, int T>
static void multiply_tile(const Product &p, const char *weights, long ahead, int row, int token) {
    constexpr int even = R * T & -(R * T), at_once = even < W ? even : W;
    Tile<kind, R, T> tile{.m = p.m, .row = row, .ahead = ahead};
    for (int r = 0; r < R; r++) tile.rows[r] = weights + r * row_bytes(kind, p.m.columns);
    for (int t = 0; t < T; t++) tile.tokens[t] = p.x + (token + t) * padded(p.m.columns) * 4;
    tile.run();
    for (int i = 0; i < R * T; i += at_once) {
        float found[W];
        store(found, sums_of<at_once>(tile.sums[0] + i));
#pragma GCC unroll 16
        for (int j = i; j < i + at_once; j++) {
            long to = row + j / T;
            float *y = p.y + (long)(token + j % T) * p.m.rows + to;
            *y = found[lane_of(j - i)] + (p.m.bias ? p.m.bias[to] : 0.0f) + (p.add ? *y : 0.0f);
        }
    }
}

// Computes R rows for the tokens up to `end`.
template <int kind, int R> static void multiply_rows(const Product &p, int row, int token, int end) {
    constexpr int wide = widened(kind), MOST = W != 8 ? 4 : wide == I16 ? 2 : 3;
    long columns = p.m.columns, bytes = row_bytes(kind, columns);
    const char *weights = (const char *)p.m.weights + row * bytes;
    long ahead = (AHEAD / (R * bytes) + 1) * R * bytes;
    if (end - token == 1) return multiply_tile<kind, R, 1>(p, weights, ahead, row, token);
    if constexpr (wide != kind) {
        long width = row_bytes(wide, columns);
        char *room = (char *)__builtin_alloca_with_align(R * width, 8 * 64);
        for (int r = 0; r < R; r++)
            widen_row<kind>(weights + r * bytes, room + r * width, columns, ahead);
        weights = room;
    }
    for (; token + MOST <= end; token += MOST) multiply_tile<wide, R, MOST>(p, weights, 0, row, token);
    if (end - token >= 2) multiply_tile<wide, R, 2>(p, weights, 0, row, token), token += 2;
    if (token < end) multiply_tile<wide, R, 1>(p, weights, 0, row, token);
}

// Rows are given out in pieces of a quarter, then an eighth of a thread's part, and so on: threads
// read on without a break, and end together.
constexpr int SIZES = 4, PARTS = 1 << (SIZES - 1);

static int first_row(const Product &p, int item) {
    int turn = item / p.n_threads < SIZES ? item / p.n_threads : SIZES - 1;
    int size = turn < SIZES - 1 ? PARTS >> (turn + 1) : 1;
    long part = p.n_threads * (PARTS - (PARTS >> turn)) + (item - turn * p.n_threads) * size;
    long row = p.m.rows * part / (PARTS * p.n_threads);
    return item < SIZES * p.n_threads ? row / 16 * 16 : p.m.rows;
}

template <int kind> static void multiply_chunk(const void *context, int item, int) {
    const Product &p = *(const Product *)context;
    int first = first_row(p, item), end = first_row(p, item + 1);
    long bytes = padded(p.m.columns) * (p.m.kind >= I8 ? 2 : 4), parts = p.n * bytes / NEAR + 1;
    int some = (p.n + parts - 1) / parts, most = (some + 11) / 12 * 12;  // 12: whole tiles
    for (int token = 0; token < p.n; token += most) {
        int last = token + most < p.n ? token + most : p.n, row = first;
        for (; row + 4 <= end; row += 4) multiply_rows<kind, 4>(p, row, token, last);
        for (; row < end; row++) multiply_rows<kind, 1>(p, row, token, last);
    }
    for (int t = 0; t < p.n && p.gelu; t++)
        gelu(p.y + (long)t * p.m.rows + first, end - first, p.exact_gelu);
}

// Writes x Wᵀ + b, or adds it to what y holds, by all threads.
static void multiply(const float *x, Product p, float *packed, int n_threads) {
    const Work work[] = {multiply_chunk<F32>, multiply_chunk<BF16>, multiply_chunk<I8>,
                         multiply_chunk<I4>};
    pack(x, p.n, p.m, packed);
    p.x = (const char *)packed;
    p.n_threads = n_threads;
    share(work[p.m.kind], &p, SIZES * n_threads, n_threads);
}
