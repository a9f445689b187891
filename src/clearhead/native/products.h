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
    const float *scales = nullptr;  // theirs, one for each group of weights
    int groups = 0, n_threads = 1;
};

constexpr int BLOCK = 128;
constexpr int PART = 1024, MOST_TOKENS = 48;  // columns and tokens that are computed before the next
constexpr long AHEAD = 4096;       // bytes: what memory sends a core while it waits for the first
constexpr long NEAR = 256 * 1024;  // bytes of activations that stay in a core's cache
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

// Lays the tokens' activations out, padded with zeros to whole blocks: rounded to bf16 where the
// machine multiplies it, and to 16 bits for whole weights; then all tokens' scales follow.
static void pack(const float *x, Product &p, float *packed) {
    const Matrix &m = p.m;
    const long width = padded(m.columns), rest = width - m.columns;
    uint16_t *half = (uint16_t *)packed;
    float *scales = packed + p.n * width / 2;
    p.x = (const char *)packed, p.scales = scales;
    for (int token = 0; token < p.n; token++, x += m.columns, packed += width, half += width) {
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

typedef float Scales[PART / 32 + W];  // of a row's groups in a part

// The sums of R rows of weights with T tokens, over some columns.
template <int kind, int R, int T> struct Tile {
    const Product &p;
    const int row, token;
    const long first, count;  // columns
    const long ahead;         // bytes to what a later tile reads
    const char *rows[R], *tokens[T];  // from the first column on

    INLINE_MEMBER Tile(const Product &p, int row, int token, long first, long count, const char *weights,
                       long stride, long ahead = 0)
        : p(p), row(row), token(token), first(first), count(count), ahead(ahead) {
        constexpr long bytes = kind >= I8 || (kind == BF16 && HAS_BF16) ? 2 : 4;
        for (int r = 0; r < R; r++) rows[r] = weights + r * stride;
        for (int t = 0; t < T; t++) tokens[t] = p.x + ((token + t) * padded(p.m.columns) + first) * bytes;
    }

    INLINE_MEMBER void add(vec (&sums)[T][R], int r, vec weights, long k) const {
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sums[t][r] += weights * load((const float *)tokens[t] + k);
    }

    // Calls `take` for each `step` weights of each row. What remains at a row's end is copied, so
    // that nothing behind the matrix is read.
    template <class Number, int step, class Take> INLINE_MEMBER void each(Take take) const {
        long k = 0;
        for (; k + step <= count; k += step)
            for (int r = 0; r < R; r++) {
                if (T == 1) __builtin_prefetch(rows[r] + ahead + k * sizeof(Number));
                take(r, (const Number *)rows[r] + k, k);
            }
        for (int r = 0; r < R && k < count; r++) {
            Number last[step] = {};
            memcpy(last, (const Number *)rows[r] + k, (count - k) * sizeof(Number));
            take(r, last, k);
        }
    }

    // Adds the products of widened weights, a group in `steps` vectors.
    template <int steps> INLINE_MEMBER void add_widened(vec (&sums)[T][R], const Scales *scales) const {
        constexpr long bytes = steps * sizeof(svec);
        const long n_groups = padded(count) * 2 / bytes, before = first * 2 / bytes;
        float factors[T][R][2 * PART / bytes + W];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
            for (long i = 0; i < n_groups; i += W) {
                vec of_token = load(p.scales + (long)(token + t) * p.groups + before + i);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) store(factors[t][r] + i, load(scales[r] + i) * of_token);
            }
        for (long group = 0; group < n_groups; group++) {
            ivec whole[T][R];
#pragma GCC unroll 16
            for (long at = group * bytes, step = 0; step < steps; step++, at += sizeof(svec)) {
                svec activations[T];
#pragma GCC unroll 4
                for (int t = 0; t < T; t++) activations[t] = *(const svec_at *)(tokens[t] + at);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) {
                    svec weights = *(const svec_at *)(rows[r] + at);
                    IN_REGISTER(weights);
#pragma GCC unroll 4
                    for (int t = 0; t < T; t++) {
                        ivec product = pairs(weights, activations[t]);
                        whole[t][r] = step ? whole[t][r] + product : product;
                        IN_REGISTER(whole[t][r]);
                    }
                }
            }
#pragma GCC unroll 16
            for (int i = 0; i < R * T; i++)
                sums[i / R][i % R] += factors[i / R][i % R][group] *
                                      __builtin_convertvector(whole[i / R][i % R], vec);
        }
    }

    // Adds the products of a block of a row's weights of few bits, a group in `steps` vectors.
    template <int steps>
    INLINE_MEMBER void add_block(vec &sum, const char *from, const char *token,
                                 const float *factors) const {
        svec unpacked[64 / W];
        unpack<kind>(from, unpacked);
        for (long i = 0; i < row_bytes(kind, BLOCK); i += 64) __builtin_prefetch(from + ahead + i);
#pragma GCC unroll 4
        for (int group = 0; group < 64 / W / steps; group++) {
            ivec whole = {};
#pragma GCC unroll 16
            for (int step = group * steps; step < (group + 1) * steps; step++) {
                whole += pairs(unpacked[step], ((const svec_at *)token)[step]);
                IN_REGISTER(whole);
            }
            sum += factors[group] * __builtin_convertvector(whole, vec);
        }
    }

    // Adds the products of weights of few bits: row by row, as memory lies. The factors of what comes
    // next are computed beforehand, since they take long to arrive.
    template <int steps> INLINE_MEMBER void add_packed(vec (&sums)[T][R]) const {
        constexpr int groups = 64 / W / steps, MOST = PART / BLOCK;  // of a block; blocks
        const long blocks = padded(count) / BLOCK;
        float factors[2][PART / 32 + W];
        auto scale = [&](int r, long block, float *to) {
            const long n = blocks - block < MOST ? blocks - block : MOST;
            const _Float16 *of_row = p.m.scales + (long)(row + r) * p.groups + block * groups;
            const float *of_token = p.scales + (long)token * p.groups + block * groups;
            __builtin_prefetch((const char *)of_row + AHEAD / 2);
            for (long i = 0; i < n * groups; i += W)
                store(to + i, load(of_row + i) * load(of_token + i));
            return n;
        };
        long n = scale(0, 0, factors[0]);
        for (long r = 0, begin = 0, turn = 0; r < R; turn = !turn) {
            const long end = begin + n, next = end < blocks ? end : 0, next_r = r + !next;
            if (next_r < R) n = scale(next_r, next, factors[!turn]);
            vec sum = sums[0][r];
            for (long block = begin; block < end; block++)
                add_block<steps>(sum, rows[r] + row_bytes(kind, block * BLOCK),
                                 tokens[0] + 2 * block * BLOCK, factors[turn] + (block - begin) * groups);
            sums[0][r] = sum;
            r = next_r, begin = next;
        }
    }

    // Adds them to what is there: kept[T][R].
    INLINE_MEMBER void run(vec *kept, const Scales *scales = nullptr) const {
        vec sums[T][R];
#pragma GCC unroll 16
        for (int i = 0; i < T * R; i++) sums[i / R][i % R] = kept[i];
        if constexpr (kind == F32) {
            each<float, W>([&](int r, const float *w, long k) { add(sums, r, load(w), k); });
        } else if constexpr (kind == BF16) {
#if defined(__AVX512BF16__)
            each<uint16_t, 2 * W>([&](int r, const uint16_t *w, long k) {
                for (int t = 0; t < T; t++)
                    sums[t][r] = (vec)_mm512_dpbf16_ps((__m512)sums[t][r],
                                                       (__m512bh)_mm512_loadu_si512(w),
                                                       (__m512bh)_mm512_loadu_si512(tokens[t] + 2 * k));
            });
#else
            each<uint16_t, W>([&](int r, const uint16_t *w, long k) { add(sums, r, load(w), k); });
#endif
        } else {
            auto add = [&]<int steps> {
                if constexpr (kind == I16) add_widened<steps>(sums, scales);
                else add_packed<steps>(sums);
            };
            p.m.group == 32   ? add.template operator()<16 / W>()
            : p.m.group == 64 ? add.template operator()<32 / W>()
                              : add.template operator()<64 / W>();
        }
#pragma GCC unroll 16
        for (int i = 0; i < T * R; i++) kept[i] = sums[i / R][i % R];
    }
};

// Writes the results of R rows for a token, from the lanes of their sums.
template <int R> INLINE void finish(const Product &p, int row, int token, const vec *sums) {
    float *y = p.y + (long)token * p.m.rows + row;
    if constexpr (R == 4) {
        vec in_turn[] = {sums[0], sums[2], sums[1], sums[3]}, found = sums_of<4>(in_turn);
        quad result = __builtin_shufflevector(found, found, 0, W / 4, W / 2, W / 4 * 3);
        if (p.m.bias) result += *(const quad_at *)(p.m.bias + row);
        *(quad_at *)y = p.add ? *(quad_at *)y + result : result;
    } else {
        *y = sum(sums[0]) + (p.m.bias ? p.m.bias[row] : 0.0f) + (p.add ? *y : 0.0f);
    }
}

// Computes R rows for the tokens up to `end`.
template <int kind, int R> static void multiply_rows(const Product &p, int row, int first, int end) {
    constexpr int wide = widened(kind), MOST = W != 8 ? 4 : wide == I16 ? 2 : 3;
    const long columns = p.m.columns, bytes = row_bytes(kind, columns);
    const char *weights = (const char *)p.m.weights + row * bytes;
    const long ahead = (AHEAD / (R * bytes) + 1) * R * bytes;
    vec sums[MOST_TOKENS][R];
    memset(sums, 0, sizeof(vec) * R * (end - first));
    if (end - first == 1)
        Tile<kind, R, 1>(p, row, first, 0, columns, weights, bytes, ahead).run(sums[0]);
    else
        for (long k = 0; k < columns; k += PART) {
            const long count = columns - k < PART ? columns - k : PART;
            const char *part = weights + row_bytes(kind, k);
            long stride = bytes;
            alignas(64) char room[wide == kind ? 1 : R * row_bytes(wide, PART)];
            if constexpr (wide != kind) {
                stride = row_bytes(wide, PART);
                for (int r = 0; r < R; r++)
                    widen_row<kind>(part + r * bytes, room + r * stride, count, ahead);
                part = room;
            }
            Scales scales[R];
            for (int r = 0; r < R && wide == I16; r++)
                for (long i = 0; i < padded(count) / p.m.group; i += W)
                    store(scales[r] + i, load(p.m.scales + (row + r) * p.groups + k / p.m.group + i));
            for (int token = first, left; (left = end - token) > 0;) {
                vec *kept = sums[token - first];
                auto take = [&]<int T> {
                    Tile<wide, R, T>(p, row, token, k, count, part, stride).run(kept, scales);
                    token += T;
                };
                if (left >= MOST && !(MOST == 3 && left == 4)) take.template operator()<MOST>();
                else if (left >= 2) take.template operator()<2>();
                else take.template operator()<1>();
            }
        }
    for (int token = first; token < end; token++) finish<R>(p, row, token, sums[token - first]);
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
    long bytes = padded(p.m.columns) * (p.m.kind >= I8 ? 2 : 4), most = NEAR / bytes / 12 * 12;
    most = most < 12 ? 12 : most > MOST_TOKENS ? MOST_TOKENS : most;  // whole tiles
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
    p.groups = p.m.kind < I8 ? 0 : padded(p.m.columns) / p.m.group;
    p.n_threads = n_threads;
    pack(x, p, packed);
    share(work[p.m.kind], &p, SIZES * n_threads, n_threads);
}
