// One decoder block for a few tokens: what a CPU does between two tokens of a generated text.
//
// A token's result depends on that token and its past alone, bit for bit: each output is summed in
// one order, however many tokens are computed at once and whichever thread does it.
//
// The file is compiled once for each instruction set (build.py); the vectors are the compiler's
// own, W floats wide, and only what it can't express is written by hand.

#include <atomic>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif
#define INLINE static inline INLINE_MEMBER
#define INLINE_MEMBER __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * W)));
typedef float vec_at __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W)));
typedef uint32_t uvec __attribute__((vector_size(4 * W)));
typedef uint16_t u16_at __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef int8_t i8_at __attribute__((vector_size(W), aligned(1), may_alias));

// ---- Threads ------------------------------------------------------------------------------------
// They are kept, and look for work for a moment before they sleep. A thread that comes late is not
// waited for: whoever is there takes the next item, and the caller leaves when the last is done.

typedef void (*Work)(const void *context, int item, int worker);

constexpr unsigned OPEN = 1 << 8, NUMBER = 1 << 9;  // a job's state: number, open, helpers in it
constexpr int MAX_WORKERS = 255, SPINS = 4096;

static struct {
    pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER, sleep = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
    std::atomic<unsigned> state{0};
    std::atomic<int> next{0}, sleeping{0};
    Work work;
    const void *context;
    int count, helpers, n_workers = 0;
} pool;

static void take_items(int worker) {
    for (int item; (item = pool.next.fetch_add(1)) < pool.count;)
        pool.work(pool.context, item, worker);
}

static void *serve(void *argument) {
    int worker = (int)(intptr_t)argument;
    unsigned seen = 0;
    auto has_work = [&](unsigned state) { return state & OPEN && state / NUMBER != seen; };
    for (int spins = 0;; spins++) {
        unsigned state = pool.state.load();
        if (has_work(state)) {
            if (!pool.state.compare_exchange_weak(state, state + 1)) continue;
            seen = state / NUMBER;
            if (worker <= pool.helpers) take_items(worker);
            pool.state.fetch_sub(1);
            spins = 0;
        } else if (spins < SPINS) {
            RELAX();
        } else {
            pthread_mutex_lock(&pool.sleep);
            pool.sleeping++;
            while (!has_work(pool.state.load())) pthread_cond_wait(&pool.wake, &pool.sleep);
            pool.sleeping--;
            pthread_mutex_unlock(&pool.sleep);
            spins = 0;
        }
    }
}

static void after_fork() {
    pthread_mutex_init(&pool.in_use, nullptr);
    pthread_mutex_init(&pool.sleep, nullptr);
    pthread_cond_init(&pool.wake, nullptr);
    pool.n_workers = 0;
    pool.sleeping = 0;
    pool.state = 0;
}

static void grow(int n_workers) {
    static bool registered = !pthread_atfork(nullptr, nullptr, after_fork);
    (void)registered;
    while (pool.n_workers < n_workers && pool.n_workers < MAX_WORKERS) {
        pthread_t thread;
        void *worker = (void *)(intptr_t)(pool.n_workers + 1);
        if (pthread_create(&thread, nullptr, serve, worker)) return;
        pthread_detach(thread);
        pool.n_workers++;
    }
}

template <class Context> static void share(
    const Context &context, void (*work)(const Context &, int, int), int count, int n_threads) {
    struct Job { const Context &context; void (*work)(const Context &, int, int); };
    Job job{context, work};
    Work run = [](const void *job, int item, int worker) {
        ((const Job *)job)->work(((const Job *)job)->context, item, worker);
    };
    if (n_threads < 2 || count < 2 || pthread_mutex_trylock(&pool.in_use)) {
        for (int item = 0; item < count; item++) work(context, item, 0);
        return;
    }
    grow(n_threads - 1);
    pool.work = run, pool.context = &job, pool.count = count, pool.helpers = n_threads - 1;
    pool.next = 0;
    pool.state = (pool.state / NUMBER + 1) * NUMBER + OPEN;
    if (pool.sleeping) {
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep);
    }
    take_items(0);
    pool.state &= ~OPEN;
    while (pool.state % OPEN) RELAX();
    pthread_mutex_unlock(&pool.in_use);
}

// ---- Vectors ------------------------------------------------------------------------------------

template <int... lane> struct Lanes {};
#if W == 16
constexpr Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15> ALL;
#elif W == 8
constexpr Lanes<0, 1, 2, 3, 4, 5, 6, 7> ALL;
#else
constexpr Lanes<0, 1, 2, 3> ALL;
#endif

INLINE vec load(const float *p) { return *(const vec_at *)p; }
INLINE void store(float *p, vec v) { *(vec_at *)p = v; }
INLINE vec all(float x) { return x - (vec){0}; }

INLINE uvec widen_u16(const void *p) {
#if defined(__AVX512F__)
    return (uvec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (uvec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
#else
    return __builtin_convertvector(*(const u16_at *)p, uvec);
#endif
}

INLINE vec widen_bf16(const uint16_t *p) {
    return (vec)(widen_u16(p) << 16);
}

INLINE void store_bf16(uint16_t *p, vec v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    uvec bits = (uvec)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    uvec nan = (uvec)((bits & 0x7fffffff) > 0x7f800000);
    *(u16_at *)p = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), u16_at);
#endif
}

INLINE vec widen_i8(const int8_t *p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    return __builtin_convertvector(__builtin_convertvector(*(const i8_at *)p, ivec), vec);
#endif
}

// Calls `take` with a vector's worth of indices at a time, and with how many of them there are.
template <class Take> INLINE void lanes(long n, Take take) {
    long i = 0;
    for (; i + W <= n; i += W) take(i, W);
    if (i < n) take(i, (int)(n - i));
}

INLINE vec load(const float *p, int n) {
    if (n == W) return load(p);
    float some[W] = {};
    memcpy(some, p, 4 * n);
    return load(some);
}

INLINE void store(float *p, vec v, int n) {
    if (n == W) return store(p, v);
    float some[W];
    store(some, v);
    memcpy(p, some, 4 * n);
}

INLINE vec load(const uint16_t *p, int n) {
    if (n == W) return widen_bf16(p);
    uint16_t some[W] = {};
    memcpy(some, p, 2 * n);
    return widen_bf16(some);
}

INLINE void store(uint16_t *p, vec v, int n) {
    if (n == W) return store_bf16(p, v);
    uint16_t some[W];
    store_bf16(some, v);
    memcpy(p, some, 2 * n);
}

template <class To, class From> INLINE void convert(const From *from, To *to, long n) {
    lanes(n, [&](long i, int count) { store(to + i, load(from + i, count), count); });
}

// n scales, each 2^shift times.
INLINE void widen_f16(const _Float16 *from, int n, int shift, float to[16]) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 found = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((1u << (n >> shift)) - 1, from));
    _mm512_storeu_ps(to, _mm512_permutexvar_ps(_mm512_srli_epi32(lanes, shift), found));
#else
    for (int i = 0; i < n; i++) to[i] = (float)from[i >> shift];
#endif
}

// Adds the halves of each run of 2·half lanes of both; a's sums go to the runs' first halves.
template <int half, int... lane> INLINE vec fold(vec a, vec b, Lanes<lane...>) {
    return __builtin_shufflevector(a, b, (lane & half ? W + lane - half : lane)...) +
           __builtin_shufflevector(a, b, (lane & half ? W + lane : lane + half)...);
}

// The sums of the lanes of n vectors (n a power of two), each added in the order that it would be
// alone: halves, quarters, … of the lanes.
template <int n, int half = W / 2> INLINE void sum(vec *v, float *sums) {
    if constexpr (half == 0) {
        store(sums, v[0]);
    } else {
        constexpr int left = n > 1 ? n / 2 : 1;
        for (int i = 0; i < left; i++) v[i] = fold<half>(v[n > 1 ? 2 * i : i], v[n > 1 ? 2 * i + 1 : i], ALL);
        sum<left, half / 2>(v, sums);
    }
}

// Where `sum` leaves the sum of vector i: the bits of its number, reversed.
constexpr int lane_of(int i) {
    int lane = 0;
    for (int bit = 1, to = W / 2; to; bit *= 2, to /= 2) lane |= i & bit ? to : 0;
    return lane;
}

INLINE float sum(vec v) {
    float sums[W];
    sum<1>(&v, sums);
    return sums[0];
}

#if defined(__AVX512BF16__)
INLINE __m512bh bf16_pairs(const void *p) { return (__m512bh)_mm512_loadu_si512(p); }

// What the lowest four bits of a word stand for, -8 to 7, as bf16; the fifth bit changes nothing.
INLINE __m512i nibble_values() {
    const __m128i low = _mm_setr_epi16(  // -8 to -1
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80);
    const __m128i high = _mm_setr_epi16(  // 0 to 7
        0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0);
    return _mm512_broadcast_i32x8(_mm256_set_m128i(high, low));
}
#else
INLINE vec widen_i4(const void *words, int nibble) {
    uvec w = widen_u16(words) >> (4 * nibble) & 15;
    return __builtin_convertvector((ivec)w - 8, vec);
}
#endif

// e^x = 2^n e^r with |r| ≤ ln 2 / 2, and e^r by Taylor's polynomial: within 2 ulp.
INLINE vec exponential(vec x) {
    x = x < -87.0f ? all(-87.0f) : x > 88.0f ? all(88.0f) : x;
    const vec magic = all(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number
    vec n = x * 1.44269504f + magic - magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec e = all(1.0f / 5040);
    e = e * r + 1.0f / 720, e = e * r + 1.0f / 120, e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6, e = e * r + 0.5f, e = e * r + 1.0f, e = e * r + 1.0f;
    return e * (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
}

INLINE vec gelu_tanh(vec x) {
    vec u = 1.59576912f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exponential(-u));
}

// ---- Matrices -----------------------------------------------------------------------------------

enum Kind { F32, BF16, I8, I4 };

struct Matrix {
    const void *weights;     // row by row; I8 and I4 rows are padded to whole blocks with zeros
    const _Float16 *scales;  // of I8 and I4, one for each `group` weights of a row
    const float *bias;
    int32_t rows, columns, kind, group;
};

#if defined(__AVX512BF16__)
constexpr bool multiplies_bf16(int kind) { return kind == BF16 || kind == I4; }
#else
constexpr bool multiplies_bf16(int) { return false; }
#endif

constexpr int BLOCK = 128;
constexpr long padded(long n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

// Activations as the matrix wants them, padded to whole blocks with zeros: fp32, or bf16 where the
// machine multiplies that.
static void pack(const float *x, int n, const Matrix &m, float *packed) {
    long width = padded(m.columns);
    for (int token = 0; token < n; token++, x += m.columns) {
        if (multiplies_bf16(m.kind)) {
            uint16_t *to = (uint16_t *)packed + token * width;
            convert(x, to, m.columns);
            memset(to + m.columns, 0, 2 * (width - m.columns));
        } else {
            float *to = packed + token * width;
            memcpy(to, x, 4 * m.columns);
            memset(to + m.columns, 0, 4 * (width - m.columns));
        }
    }
}

// The sums of R rows with T tokens. `F32` and `BF16` rows may end within a vector: their last
// weights are copied, so that nothing behind the matrix is read.
template <int kind, int R, int T> struct Tile {
    vec sums[R][T] = {};
    const char *rows[R];
    const char *tokens[T];
    long ahead;  // bytes from a row to the one that the next tile reads

    template <class Step> INLINE_MEMBER void each(long columns, int size, int step, Step take) {
        long whole = columns / step * step;
        for (long k = 0; k < whole; k += step)
            for (int r = 0; r < R; r++) {
                __builtin_prefetch(rows[r] + ahead + k * size);
                take(r, rows[r] + k * size, k);
            }
        if (whole == columns) return;
        for (int r = 0; r < R; r++) {
            char last[4 * W] = {};
            memcpy(last, rows[r] + whole * size, (columns - whole) * size);
            take(r, last, whole);
        }
    }

    INLINE_MEMBER void add(int r, vec weights, long k) {
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sums[r][t] += weights * load((const float *)tokens[t] + k);
    }

    INLINE_MEMBER void floats(const Matrix &m) {
        if constexpr (kind == F32) {
            each(m.columns, 4, W, [&](int r, const char *w, long k) {
                add(r, load((const float *)w), k);
            });
        } else if constexpr (!multiplies_bf16(BF16)) {
            each(m.columns, 2, W, [&](int r, const char *w, long k) {
                add(r, widen_bf16((const uint16_t *)w), k);
            });
        } else {
#if defined(__AVX512BF16__)
            each(m.columns, 2, 2 * W, [&](int r, const char *w, long k) {
                for (int t = 0; t < T; t++)
                    sums[r][t] = (vec)_mm512_dpbf16_ps(
                        (__m512)sums[r][t], bf16_pairs(w), bf16_pairs(tokens[t] + 2 * k));
            });
#endif
        }
    }

    // Calls `take` for each block of weights, with a scale for each 32 of them.
    template <class Take> INLINE_MEMBER void blocks(const Matrix &m, long row, Take take) {
        long width = padded(m.columns), groups = width / m.group;
        int shift = m.group == 32 ? 0 : m.group == 64 ? 1 : 2;
        for (long k = 0; k < width; k += 512) {
            float scales[R][16];
            int n = width - k < 512 ? width - k : 512;
            for (int r = 0; r < R; r++)
                widen_f16(m.scales + (row + r) * groups + (k / 32 >> shift), n / 32, shift, scales[r]);
            for (int i = 0; i < n; i += BLOCK)
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) take(r, k + i, scales[r] + i / 32);
        }
    }

    INLINE_MEMBER void bytes(const Matrix &m, long row) {
        blocks(m, row, [&](int r, long k, const float *scale) {
            const int8_t *weights = (const int8_t *)rows[r] + k;
            __builtin_prefetch(weights + ahead);
            __builtin_prefetch(weights + ahead + 64);
            for (int i = 0; i < BLOCK; i += W)
                add(r, widen_i8(weights + i) * scale[i / 32], k + i);
        });
    }

    // A block is 32 words of 16 bits; nibble j of word l is weight 32 j + l, plus 8.
    INLINE_MEMBER void nibbles(const Matrix &m, long row) {
        blocks(m, row, [&](int r, long k, const float *scale) {
            const char *block = rows[r] + k / 2;
            __builtin_prefetch(block + ahead);
#if defined(__AVX512BF16__)
            __m512i words = _mm512_loadu_si512(block);
            for (int j = 0; j < 4; j++) {
                __m512bh w = (__m512bh)_mm512_permutexvar_epi16(words, nibble_values());
                words = _mm512_srli_epi16(words, 4);
                for (int t = 0; t < T; t++)
                    sums[r][t] += scale[j] * (vec)_mm512_dpbf16_ps(
                        __m512{}, w, bf16_pairs(tokens[t] + 2 * (k + 32 * j)));
            }
#else
            for (int j = 0; j < 4; j++)
                for (int l = 0; l < 32; l += W)
                    add(r, widen_i4(block + 2 * l, j) * scale[j], k + 32 * j + l);
#endif
        });
    }
};

struct Product {
    const Matrix &m;
    const char *x;  // packed
    float *y;       // [n, rows]
    int n, chunk, gelu;
    bool add;       // to what y holds
};

template <int kind, int R, int T> static void compute(const Product &p, int row, int token) {
    const Matrix &m = p.m;
    constexpr bool quantised = kind == I8 || kind == I4;
    constexpr int bits[] = {32, 16, 8, 4};
    long width = quantised ? padded(m.columns) : m.columns;
    long row_bytes = width * bits[kind] / 8;
    Tile<kind, R, T> tile;
    tile.ahead = R * row_bytes;
    for (int r = 0; r < R; r++) tile.rows[r] = (const char *)m.weights + (row + r) * row_bytes;
    for (int t = 0; t < T; t++)
        tile.tokens[t] = p.x + (token + t) * padded(m.columns) * (multiplies_bf16(kind) ? 2 : 4);
    if constexpr (kind == I8) tile.bytes(m, row);
    else if constexpr (kind == I4) tile.nibbles(m, row);
    else tile.floats(m);
    constexpr int at_once = R * T < W ? R * T : W;
    float sums[R * T / at_once][W];
    for (int i = 0; i < R * T / at_once; i++) sum<at_once>(tile.sums[0] + i * at_once, sums[i]);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) {
            int i = r * T + t;
            float *y = p.y + (long)(token + t) * m.rows + row + r;
            float found = sums[i / at_once][lane_of(i % at_once)] + (m.bias ? m.bias[row + r] : 0.0f);
            *y = p.add ? *y + found : found;
        }
}

template <int kind, int R> static void rows_with_tokens(const Product &p, int row) {
    int token = 0;
    for (; token + 4 <= p.n; token += 4) compute<kind, R, 4>(p, row, token);
    for (; token + 2 <= p.n; token += 2) compute<kind, R, 2>(p, row, token);
    if (token < p.n) compute<kind, R, 1>(p, row, token);
}

static void apply_gelu(float *x, long n, bool exactly) {
    if (exactly)
        for (long i = 0; i < n; i++) x[i] *= 0.5f * (1.0f + erff(x[i] * 0.70710678f));
    else
        lanes(n, [&](long i, int count) { store(x + i, gelu_tanh(load(x + i, count)), count); });
}

template <int kind> static void multiply_chunk(const Product &p, int item, int) {
    int row = item * p.chunk, end = row + p.chunk < p.m.rows ? row + p.chunk : p.m.rows, first = row;
    for (; row + 4 <= end; row += 4) rows_with_tokens<kind, 4>(p, row);
    for (; row < end; row++) rows_with_tokens<kind, 1>(p, row);
    if (p.gelu)
        for (int t = 0; t < p.n; t++)
            apply_gelu(p.y + (long)t * p.m.rows + first, end - first, p.gelu == 2);
}

// y = x Wᵀ + b, or y += x Wᵀ + b; then GELU (1: by tanh, 2: exactly).
static void multiply(const Matrix &m, const float *x, float *y, int n, bool add, int gelu,
                     float *packed, int n_threads) {
    pack(x, n, m, packed);
    int chunk = (m.rows / (8 * n_threads) + 15) / 16 * 16;
    chunk = chunk < 16 ? 16 : chunk > 256 ? 256 : chunk;
    Product p{m, (const char *)packed, y, n, chunk, gelu, add};
    auto work = m.kind == F32    ? multiply_chunk<F32>
                : m.kind == BF16 ? multiply_chunk<BF16>
                : m.kind == I8   ? multiply_chunk<I8>
                                 : multiply_chunk<I4>;
    share(p, work, (m.rows + chunk - 1) / chunk, n_threads);
}

// ---- The block ----------------------------------------------------------------------------------

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

struct Block {
    Matrix qkv, out_proj, up, down;
    Norm norm_1, norm_2;
    int32_t n_heads, exact_gelu;
};

struct Cache {
    void *keys, *values;  // [S, H, C, K], of one layer
    const int64_t *slots;      // [B], or null: row b is slot b
    const int64_t *positions;  // [B, T]
    int64_t capacity, slot_stride;
    int32_t bf16, tokens_per_row;
};

static void normalise(const Norm &norm, const float *x, float *y, int n, int width) {
    for (int token = 0; token < n; token++, x += width, y += width) {
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
}

struct Attention {
    const Cache &cache;
    const float *qkv;  // [n, 3, H, K]
    float *z;          // [n, H, K]
    float *scores;     // [workers, C]
    int n_heads, head_dim;

    long place(int token, int head) const {
        long row = token / cache.tokens_per_row;
        long slot = cache.slots ? cache.slots[row] : row;
        return slot * cache.slot_stride + head * cache.capacity * head_dim;
    }
};

template <class Number> static void write_cache(const Attention &a, int n) {
    long width = (long)a.n_heads * a.head_dim;
    for (int token = 0; token < n; token++)
        for (int head = 0; head < a.n_heads; head++) {
            long place = a.place(token, head) + a.cache.positions[token] * a.head_dim;
            const float *key = a.qkv + token * 3 * width + width + head * a.head_dim;
            convert(key, (Number *)a.cache.keys + place, a.head_dim);
            convert(key + width, (Number *)a.cache.values + place, a.head_dim);
        }
}

template <class Number> static void attend(const Attention &a, int item, int worker) {
    int token = item / a.n_heads, head = item % a.n_heads, K = a.head_dim;
    long width = (long)a.n_heads * K, count = a.cache.positions[token] + 1;
    const Number *keys = (const Number *)a.cache.keys + a.place(token, head);
    const Number *values = (const Number *)a.cache.values + a.place(token, head);
    const float *query = a.qkv + token * 3 * width + head * K;
    float *z = a.z + token * width + head * K, *weights = a.scores + worker * padded(a.cache.capacity);
    float scale = 1.0f / sqrtf((float)K), highest = -INFINITY;
    for (long j = 0; j < count; j++, keys += K) {
        vec dot = {};
        lanes(K, [&](long i, int n) { dot += load(query + i, n) * load(keys + i, n); });
        weights[j] = sum(dot) * scale;
        highest = weights[j] > highest ? weights[j] : highest;
    }
    vec total = {};
    lanes(count, [&](long j, int n) {
        store(weights + j, exponential(load(weights + j, n) - highest), n);
        total += load(weights + j, n);
    });
    float inverse = 1.0f / sum(total);
    memset(z, 0, 4 * K);
    for (long j = 0; j < count; j++, values += K)
        lanes(K, [&](long i, int n) {
            store(z + i, load(z + i, n) + weights[j] * inverse * load(values + i, n), n);
        });
}

// ---- What Python calls --------------------------------------------------------------------------

static void read(const void *from, int bf16, float *to, long n) {
    bf16 ? convert((const uint16_t *)from, to, n) : convert((const float *)from, to, n);
}

static void write(const float *from, int bf16, void *to, long n) {
    bf16 ? convert(from, (uint16_t *)to, n) : convert(from, (float *)to, n);
}

extern "C" int64_t clearhead_scratch(int64_t width, int64_t widest, int64_t capacity, int64_t n,
                                     int64_t n_threads) {
    return n * (6 * width + 3 * padded(widest)) + n_threads * padded(capacity) + 64;
}

extern "C" void clearhead_linear(const Matrix *m, const void *x, void *y, int bf16, int n,
                                 float *scratch, int n_threads) {
    float *in = scratch, *out = in + (long)n * padded(m->columns);
    float *packed = out + (bf16 ? (long)n * m->rows : 0);
    if (bf16) read(x, bf16, in, (long)n * m->columns);
    multiply(*m, bf16 ? in : (const float *)x, bf16 ? out : (float *)y, n, false, 0, packed, n_threads);
    if (bf16) write(out, bf16, y, (long)n * m->rows);
}

extern "C" void clearhead_block(const Block *b, const Cache *cache, const void *x, void *y, int bf16,
                                int n, float *scratch, int n_threads) {
    int width = b->qkv.columns, hidden = b->up.rows;
    float *stream = scratch, *normed = stream + (long)n * width, *z = normed + (long)n * width;
    float *qkv = z + (long)n * width, *inner = qkv;  // the MLP's is written when qkv is read
    float *packed = inner + (long)n * padded(hidden > 3 * width ? hidden : 3 * width);
    float *scores = packed + (long)n * padded(hidden > width ? hidden : width);
    Attention a{*cache, qkv, z, scores, b->n_heads, width / b->n_heads};
    read(x, bf16, stream, (long)n * width);
    normalise(b->norm_1, stream, normed, n, width);
    multiply(b->qkv, normed, qkv, n, false, 0, packed, n_threads);
    cache->bf16 ? write_cache<uint16_t>(a, n) : write_cache<float>(a, n);
    share(a, cache->bf16 ? attend<uint16_t> : attend<float>, n * b->n_heads, n_threads);
    multiply(b->out_proj, z, stream, n, true, 0, packed, n_threads);
    normalise(b->norm_2, stream, normed, n, width);
    multiply(b->up, normed, inner, n, false, b->exact_gelu ? 2 : 1, packed, n_threads);
    multiply(b->down, inner, stream, n, true, 0, packed, n_threads);
    write(stream, bf16, y, (long)n * width);
}

extern "C" int clearhead_runs_here() {
#if defined(__AVX512BF16__)
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl");
#elif defined(__AVX512F__)
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 1;
#endif
}
