// Products of matrices with the activations of some tokens.
#pragma once

#include "threads.h"
#include "vectors.h"

enum Kind { F32, BF16, I8, I4, I16, U8 };

struct Matrix {
    const void *weights;  // row by row; rows of I8 and I4 are padded to whole blocks with zeros
    const Half *scales;   // of I8 and I4: one for each `group` weights of a row; then 16 unused
    const float *bias;
    int32_t rows, columns, kind, group;
};

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

struct Product {
    const Matrix &m;
    float *y;  // [n, rows]
    int n;
    const Norm *norm = nullptr;  // which the activations pass before
    float *normed = nullptr;     // [n, columns]
    bool add = false, gelu = false, exact_gelu = false;
    char *x = nullptr;        // activations, as `pack` leaves them
    float *scales = nullptr;  // theirs, one for each group of weights: [n, padded_groups]
    float *starts = nullptr;  // of I4: what the 8 in each weight adds to a group, less than 0
    int groups = 0, n_threads = 1;

    constexpr long padded_groups() const { return (groups + W - 1) / W * W; }
};

constexpr int BLOCK = 128;
constexpr int MOST_TOKENS = 48;    // that are computed before the next
constexpr long AHEAD = 4096;       // bytes: what memory sends a core while it waits for the first
constexpr long FAR = 24 * 1024;    // bytes: how far ahead 8 bits come into the second cache
constexpr long NEAR = 256 * 1024;  // bytes of activations that stay in a core's cache
constexpr long padded(long n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

#if defined(__AVX512BF16__)
constexpr bool HAS_BF16 = true;
#else
constexpr bool HAS_BF16 = false;
#endif

// What several tokens meet weights as: those of few bits are widened once for all of them.
constexpr int widened(int kind) {
    return kind == I8 ? I16 : kind == I4 ? U8 : kind == BF16 && !HAS_BF16 ? F32 : kind;
}

// Bytes of an activation: weights of 8 bits meet 16 bits, and those of 4 bits meet 8.
constexpr int activation_bytes(int kind) {
    return kind == I4 || kind == U8 ? 1 : kind >= I8 || (kind == BF16 && HAS_BF16) ? 2 : 4;
}

constexpr long row_bytes(int kind, long columns) {
    constexpr int bits[] = {32, 16, 8, 4, 16, 8};
    return (kind < I8 ? columns : padded(columns)) * bits[kind] / 8;
}

// Weights of few bits in a vector, as they meet activations; and vectors in a block.
constexpr int in_vector(int kind) { return kind == I4 || kind == U8 ? 4 * W : 2 * W; }
constexpr int vectors(int kind) { return BLOCK / in_vector(kind); }

// Byte i of a block of I4 is weight i and, above it, weight 64 + i, each plus 8.
template <int kind> INLINE void unpack(const char *from, svec *to) {
    constexpr int n = vectors(kind);
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
        if constexpr (kind == I8) to[i] = load((const int8_t *)from + 2 * W * i);
        else to[i] = (svec)((const usvec_at *)from)[i % (n / 2)] >> (i < n / 2 ? 0 : 4) & 0x0f0f;
}

// Multiplies whole numbers, and adds neighbours: in 32 bits, or in 16 those of U8.
template <int kind> INLINE auto multiplied(svec weights, svec activations) {
    if constexpr (in_vector(kind) == 4 * W) return byte_pairs(weights, activations);
    else return pairs(weights, activations);
}
INLINE ivec added(ivec whole) { return whole; }
INLINE ivec added(svec whole) { return pairs(whole, whole - whole + (int16_t)1); }

// The factor of each lane of a vector's sums: a group may be half of it.
template <int kind, int group> INLINE vec factor(const float *of_groups) {
    if constexpr (group >= in_vector(kind)) return all(*of_groups);
    vec found;
    for (int i = 0; i < W; i++) found[i] = of_groups[i * 2 / W];
    return found;
}

template <int kind> INLINE void widen_row(const char *from, char *to, long columns, long ahead) {
    if constexpr (kind == BF16) return convert((const uint16_t *)from, (float *)to, columns);
    constexpr long bytes = row_bytes(kind, BLOCK);
    for (long k = 0; k < padded(columns); k += BLOCK, from += bytes, to += sizeof(svec) * vectors(kind)) {
        for (long i = 0; i < bytes; i += 64) __builtin_prefetch(from + ahead + i);
        unpack<kind>(from, (svec *)to);
    }
}

// Rounds a group of activations, of which there are n, to fractions of the largest; returns the scale
// and adds the whole numbers up. What is not finite makes the scale NaN, and the products too.
template <class Whole> static float round_group(const float *x, long n, int group, Whole *to, float *total) {
    typedef Whole some __attribute__((vector_size(sizeof(Whole) * W), aligned(1), may_alias));
    constexpr float MOST = sizeof(Whole) == 1 ? 127 : 32767, magic = 12582912;  // 1.5 · 2^23 rounds
    vec highest = {}, unsound = {}, wholes = {};
    lanes(n < 0 ? 0 : n < group ? n : group, [&](long i, int count) {
        vec v = load(x + i, count), size = v < 0 ? -v : v;
        highest = size > highest ? size : highest, unsound += v * 0.0f;
    });
    for (int i = 1; i < W; i++) highest[0] = highest[i] > highest[0] ? highest[i] : highest[0];
    float most = highest[0] > 1e-30f ? highest[0] : 0.0f, inverse = most ? MOST / most : 0.0f;
    for (long i = 0; i < group; i += W) {
        vec v = i < n ? load(x + i, n - i < W ? n - i : W) : vec{}, rounded = v * inverse + magic;
        wholes += rounded - magic;
        *(some *)(to + i) = __builtin_convertvector((ivec)rounded, some);
    }
    *total = sum(wholes);
    return most / MOST + sum(unsound);
}

template <class Whole> static void round_token(const float *x, const Product &p, int token, Whole *to) {
    float *scales = p.scales + token * p.padded_groups(), *starts = p.starts + token * p.padded_groups();
    memset(scales, 0, p.padded_groups() * sizeof(float));
    memset(starts, 0, p.padded_groups() * sizeof(float));
    for (long g = 0, k = 0; g < p.groups; g++, k += p.m.group) {
        float total;
        scales[g] = round_group(x + k, p.m.columns - k, p.m.group, to + k, &total);
        starts[g] = -8 * total * scales[g];
    }
}

static void normalise(const Norm &norm, const float *x, float *y, int width) {
    vec total = {}, squares = {};
    lanes(width, [&](long i, int count) { total += load(x + i, count); });
    float mean = sum(total) / width;
    lanes(width, [&](long i, int count) {
        store(y + i, load(x + i, count) - mean, count);
        vec centred = load(y + i, count);
        squares += centred * centred;
    });
    float scale = 1.0f / sqrtf(sum(squares) / width + norm.epsilon);
    lanes(width, [&](long i, int count) {
        vec scaled = load(y + i, count) * scale * load(norm.weight + i, count);
        store(y + i, norm.bias ? scaled + load(norm.bias + i, count) : scaled, count);
    });
}

struct Packing {
    const float *x;  // [n, columns]
    const Product &p;
};

// Lays a token's activations out, padded with zeros to whole blocks: rounded to bf16 where the machine
// multiplies it, and to whole numbers for whole weights.
static void pack(const void *context, int token, int) {
    const auto &[all_x, p] = *(const Packing *)context;
    const long columns = p.m.columns, width = padded(columns), rest = width - columns;
    const float *x = all_x + token * columns;
    char *to = p.x + token * width * activation_bytes(p.m.kind);
    if (p.norm) normalise(*p.norm, x, p.normed + token * columns, columns), x = p.normed + token * columns;
    if (p.m.kind == I8) return round_token(x, p, token, (int16_t *)to);
    if (p.m.kind == I4) return round_token(x, p, token, (int8_t *)to);
    if (p.m.kind == BF16 && HAS_BF16) convert(x, (uint16_t *)to, columns);
    else memcpy(to, x, 4 * columns);
    memset(to + columns * activation_bytes(p.m.kind), 0, rest * activation_bytes(p.m.kind));
}

// Columns that are computed before the next.
constexpr int part(int kind) { return activation_bytes(kind) == 1 ? 2048 : 1024; }

typedef float Scales[part(U8) / 32 + W];  // of a row's groups in a part

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
        for (int r = 0; r < R; r++) rows[r] = weights + r * stride;
        for (int t = 0; t < T; t++)
            tokens[t] = p.x + ((token + t) * padded(p.m.columns) + first) * activation_bytes(kind);
    }

    INLINE_MEMBER void add(vec (&sums)[T][R], int r, vec weights, long k) const {
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sums[t][r] += weights * load((const float *)tokens[t] + k);
    }

    // Calls `take` for each `step` weights of each row: of one token's bf16 weights row by row, as memory
    // lies. What remains at a row's end is copied, so that nothing behind the matrix is read.
    template <class Number, int step, class Take> INLINE_MEMBER void each(Take take) const {
        constexpr int TOGETHER = T == 1 && kind == BF16 && !HAS_BF16 ? 1 : R;
#pragma GCC unroll 4
        for (int some = 0; some < R; some += TOGETHER) {
            long k = 0;
            for (; k + step <= count; k += step)
                for (int r = some; r < some + TOGETHER; r++) {
                    if (T == 1) __builtin_prefetch(rows[r] + ahead + k * sizeof(Number));
                    take(r, (const Number *)rows[r] + k, k);
                }
            for (int r = some; r < some + TOGETHER && k < count; r++) {
                Number last[step] = {};
                memcpy(last, (const Number *)rows[r] + k, (count - k) * sizeof(Number));
                take(r, last, k);
            }
        }
    }

    // Adds the products of widened weights.
    template <int group> INLINE_MEMBER void add_widened(vec (&sums)[T][R], const Scales *scales) const {
        constexpr int at_once = group < in_vector(kind) ? 2 : 1;  // groups
        constexpr int steps = at_once * group / in_vector(kind);
        const long n_groups = padded(count) / group, before = first / group;
        float factors[T][R][part(kind) / group + W];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            const long at = (token + t) * p.padded_groups() + before;
            vec starts[R] = {};
            for (long i = 0; i < n_groups; i += W)
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) {
                    vec of_row = load(scales[r] + i);
                    store(factors[t][r] + i, of_row * load(p.scales + at + i));
                    if (kind == U8) starts[r] += of_row * load(p.starts + at + i);
                }
#pragma GCC unroll 4
            for (int r = 0; r < R && kind == U8; r++) sums[t][r] += starts[r];
        }
        constexpr int PASS = T > 2 && R > 2 ? 2 : R;  // rows whose sums, for all tokens, stay in registers
#pragma GCC unroll 2
        for (int pass = 0; pass < R; pass += PASS)
            for (long g = 0, at = 0; g < n_groups; g += at_once, at += steps * sizeof(svec))
#pragma GCC unroll 4
                for (int r = pass; r < pass + PASS; r++) {
                    svec weights[steps];
#pragma GCC unroll 8
                    for (int step = 0; step < steps; step++) {
                        weights[step] = ((const svec_at *)(rows[r] + at))[step];
                        IN_REGISTER(weights[step]);
                    }
#pragma GCC unroll 4
                    for (int t = 0; t < T; t++) {
                        const svec_at *activations = (const svec_at *)(tokens[t] + at);
                        auto whole = multiplied<kind>(weights[0], activations[0]);
#pragma GCC unroll 8
                        for (int step = 1; step < steps; step++) {
                            whole += multiplied<kind>(weights[step], activations[step]);
                            IN_REGISTER(whole);
                        }
                        sums[t][r] += factor<kind, group>(factors[t][r] + g) *
                                      __builtin_convertvector(added(whole), vec);
                    }
                }
    }

    // Adds the products of a block of a row's weights of few bits.
    template <int group>
    INLINE_MEMBER void add_block(vec &sum, const char *from, const char *token,
                                 const float *factors) const {
        constexpr int at_once = group < in_vector(kind) ? 2 : 1;  // groups
        constexpr int steps = at_once * group / in_vector(kind);
        svec unpacked[vectors(kind)];
        unpack<kind>(from, unpacked);
        for (long i = 0; i < row_bytes(kind, BLOCK); i += 64)
            __builtin_prefetch(from + ahead + i, 0, kind == I8 ? 2 : 3);
#pragma GCC unroll 4
        for (int g = 0, at = 0; g < BLOCK / group; g += at_once) {
            decltype(multiplied<kind>(svec{}, svec{})) whole = {};
#pragma GCC unroll 16
            for (int step = 0; step < steps; step++, at++) {
                whole += multiplied<kind>(unpacked[at], ((const svec_at *)token)[at]);
                IN_REGISTER(whole);
            }
            sum += factor<kind, group>(factors + g) * __builtin_convertvector(added(whole), vec);
        }
    }

    // Adds the products of weights of few bits: row by row, as memory lies. The factors of what comes
    // next are computed beforehand, since they take long to arrive.
    template <int group> INLINE_MEMBER void add_packed(vec (&sums)[T][R]) const {
        constexpr int groups = BLOCK / group, MOST = part(kind) / BLOCK;  // of a block; blocks
        const long blocks = padded(count) / BLOCK;
        float factors[2][part(kind) / group + W];
        vec starts[2] = {};
        auto scale = [&](int r, long block, int turn) {
            const long n = blocks - block < MOST ? blocks - block : MOST;
            const Half *of_row = p.m.scales + (long)(row + r) * p.groups + block * groups;
            const long at = token * p.padded_groups() + block * groups;
            __builtin_prefetch((const char *)of_row + AHEAD / 2);
            starts[turn] = vec{};
            for (long i = 0; i < n * groups; i += W) {
                vec scales = load(of_row + i);
                store(factors[turn] + i, scales * load(p.scales + at + i));
                if (kind == I4) starts[turn] += scales * load(p.starts + at + i);
            }
            return n;
        };
        long n = scale(0, 0, 0);
        for (long r = 0, begin = 0, turn = 0; r < R; turn = !turn) {
            const long end = begin + n, next = end < blocks ? end : 0, next_r = r + !next;
            vec sum = kind == I4 ? sums[0][r] + starts[turn] : sums[0][r];
            if (next_r < R) n = scale(next_r, next, !turn);
            for (long block = begin; block < end; block++)
                add_block<group>(sum, rows[r] + row_bytes(kind, block * BLOCK),
                                 tokens[0] + activation_bytes(kind) * block * BLOCK,
                                 factors[turn] + (block - begin) * groups);
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
            auto add = [&]<int group> {
                if constexpr (kind == I16 || kind == U8) add_widened<group>(sums, scales);
                else add_packed<group>(sums);
            };
            p.m.group == 32   ? add.template operator()<32>()
            : p.m.group == 64 ? add.template operator()<64>()
                              : add.template operator()<128>();
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
    constexpr int wide = widened(kind), AT_ONCE = part(kind), MOST = W == 8 && wide < I16 ? 3 : 4;
    const long columns = p.m.columns, bytes = row_bytes(kind, columns);
    const char *weights = (const char *)p.m.weights + row * bytes;
    const long reach = kind == I8 && end - first == 1 ? FAR : AHEAD;
    const long ahead = (reach / (R * bytes) + 1) * R * bytes;
    vec sums[MOST_TOKENS][R];
    memset(sums, 0, sizeof(vec) * R * (end - first));
    if (end - first == 1)
        Tile<kind, R, 1>(p, row, first, 0, columns, weights, bytes, ahead).run(sums[0]);
    else
        for (long k = 0; k < columns; k += AT_ONCE) {
            const long count = columns - k < AT_ONCE ? columns - k : AT_ONCE;
            const char *part = weights + row_bytes(kind, k);
            long stride = bytes;
            alignas(64) char room[wide == kind ? 1 : R * row_bytes(wide, AT_ONCE)];
            if constexpr (wide != kind) {
                stride = row_bytes(wide, AT_ONCE);
                for (int r = 0; r < R; r++)
                    widen_row<kind>(part + r * bytes, room + r * stride, count, ahead);
                part = room;
            }
            Scales scales[R];
            for (int r = 0; r < R && wide >= I16; r++)
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
    long bytes = padded(p.m.columns) * activation_bytes(kind), most = NEAR / bytes / 12 * 12;
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
    p.x = (char *)packed;
    p.scales = (float *)(p.x + p.n * padded(p.m.columns) * activation_bytes(p.m.kind));
    p.starts = p.scales + p.n * p.padded_groups();
    Packing packing{x, p};
    share(pack, &packing, p.n, n_threads);
    share(work[p.m.kind], &p, SIZES * n_threads, n_threads);
}
