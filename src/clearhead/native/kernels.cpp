// A GPT-2 on a CPU, from token ids to logits: what a processor does between two tokens of a text.
//
// A token's result depends on that token and its past alone, bit for bit: each output is summed in
// one order, however many tokens are computed at once and whichever thread does it.
//
// Compiled once for each instruction set (build.py).

#include "products.h"

struct Block {
    Matrix qkv, out_proj, up, down;
    Norm norm_1, norm_2;
};

struct Model {
    Matrix tokens, positions, head;
    Norm norm;
    const Block *blocks;
    int32_t n_blocks, n_heads, exact_gelu;
};

struct Cache {
    void *keys, *values;   // [L, S, H, C, K]
    const int64_t *slots;  // [B], or null: row b is slot b
    int64_t *lengths;      // [S]
    int64_t capacity, slot_stride, layer_stride;
    int32_t bf16, tokens_per_row;
};

struct Attention {
    const Cache &cache;
    const float *qkv;  // [n, 3, H, K]
    float *z;          // [n, H, K]
    float *weights;    // [workers, TOGETHER, C]
    long layer;
    int n_heads, head_dim;

    long slot(int row) const { return cache.slots ? cache.slots[row] : row; }
    long position(int token) const {
        return cache.lengths[slot(token / cache.tokens_per_row)] + token % cache.tokens_per_row;
    }
    template <class Number> Number *place(void *of, int token, int head, long at) const {
        return (Number *)of + layer * cache.layer_stride +
               slot(token / cache.tokens_per_row) * cache.slot_stride +
               (head * cache.capacity + at) * head_dim;
    }
};

constexpr int TOGETHER = 4;  // tokens of a text that read keys and values together

// Lets T tokens that follow each other attend, by one head.
template <class Number, int T>
static void attend(const Attention &a, int token, int head, float *weights) {
    const int K = a.head_dim;
    const long width = (long)a.n_heads * K, first = a.position(token) + 1, most = first + T - 1;
    const long stride = padded(a.cache.capacity);
    const Number *keys = a.place<Number>(a.cache.keys, token, head, 0);
    const Number *values = a.place<Number>(a.cache.values, token, head, 0);
    const float *query = a.qkv + token * 3 * width + head * K, scale = 1.0f / sqrtf((float)K);
    float inverse[T];
    lanes(most, [&](long j, int n) {
        vec scores[T][W] = {};
        for (int i = 0; i < n; i += 2) {
            const Number *key = keys + (j + i) * K, *next = i + 1 < n ? key + K : key;
            vec found[2][T] = {};
            lanes(K, [&](long k, int some) {
                vec left = load(key + k, some), right = load(next + k, some);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++) {
                    vec asked = load(query + 3 * width * t + k, some);
                    found[0][t] += asked * left, found[1][t] += asked * right;
                }
            });
            for (int t = 0; t < T; t++)
                scores[t][lane_of(i)] = found[0][t], scores[t][lane_of(i + 1)] = found[1][t];
        }
        for (int t = 0; t < T; t++) store(weights + t * stride + j, sums_of<W>(scores[t]) * scale, n);
    });
    for (int t = 0; t < T; t++) {
        float *own = weights + t * stride;
        vec highest = all(-INFINITY), total = {};
        lanes(first + t, [&](long j, int n) {
            vec found = load(own + j, n);
            for (int i = n; i < W; i++) found[i] = -INFINITY;
            highest = found > highest ? found : highest;
        });
        for (int i = 1; i < W; i++) highest[0] = highest[i] > highest[0] ? highest[i] : highest[0];
        lanes(first + t, [&](long j, int n) {
            store(own + j, exponential(load(own + j, n) - highest[0]), n);
            total += load(own + j, n);
        });
        inverse[t] = 1.0f / sum(total);
        for (long j = first + t; j < most; j++) own[j] = 0;
    }
    auto mix = [&]<int vectors>(long k, int some) {
        vec sums[T][vectors] = {};
        for (long j = 0; j < most; j++) {
            vec found[vectors];
            for (int i = 0; i < vectors; i++) found[i] = load(values + j * K + k + i * W, some);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++)
                for (int i = 0; i < vectors; i++) sums[t][i] += weights[t * stride + j] * found[i];
        }
        for (int t = 0; t < T; t++)
            for (int i = 0; i < vectors; i++)
                store(a.z + (token + t) * width + head * K + k + i * W, sums[t][i] * inverse[t], some);
    };
    constexpr int AT_ONCE = T == 1 ? 64 / W : 2;  // vectors
    long k = 0;
    for (; k + AT_ONCE * W <= K; k += AT_ONCE * W) mix.template operator()<AT_ONCE>(k, W);
    lanes(K - k, [&](long i, int some) { mix.template operator()<1>(k + i, some); });
}

template <class Number> static void attend_some(const void *context, int item, int worker) {
    const Attention &a = *(const Attention *)context;
    int per_row = a.cache.tokens_per_row, groups = (per_row + TOGETHER - 1) / TOGETHER;
    int head = item % a.n_heads, group = item / a.n_heads % groups, row = item / a.n_heads / groups;
    int token = row * per_row + group * TOGETHER, end = (row + 1) * per_row;
    float *weights = a.weights + worker * TOGETHER * padded(a.cache.capacity);
    if (token + TOGETHER <= end) return attend<Number, TOGETHER>(a, token, head, weights);
    for (; token < end; token++) attend<Number, 1>(a, token, head, weights);
}

template <class Number> static void write_cache(const Attention &a, int n) {
    long width = (long)a.n_heads * a.head_dim;
    for (int token = 0; token < n; token++)
        for (int head = 0; head < a.n_heads; head++) {
            long position = a.position(token);
            const float *key = a.qkv + (token * 3 + 1) * width + head * a.head_dim;
            convert(key, a.place<Number>(a.cache.keys, token, head, position), a.head_dim);
            convert(key + width, a.place<Number>(a.cache.values, token, head, position), a.head_dim);
        }
}

// Adds a matrix's row to x.
static void add_row(const Matrix &m, long row, float *x) {
    const char *from = (const char *)m.weights + row * row_bytes(m.kind, m.columns);
    if (m.kind < I8)
        return lanes(m.columns, [&](long i, int n) {
            vec found = m.kind == F32 ? load((const float *)from + i, n) : load((const uint16_t *)from + i, n);
            store(x + i, load(x + i, n) + found, n);
        });
    const Half *scales = m.scales + row * padded(m.columns) / m.group;
    for (long k = 0; k < m.columns; k += BLOCK, from += row_bytes(m.kind, BLOCK)) {
        svec values[vectors(I8)];
        m.kind == I8 ? unpack<I8>(from, values) : unpack<I4>(from, values);
        for (long i = 0; i < BLOCK && k + i < m.columns; i++) {
            int value = m.kind == I8 ? ((const int16_t *)values)[i] : ((const int8_t *)values)[i] - 8;
            x[k + i] += value * load(scales + (k + i) / m.group)[0];
        }
    }
}

// ---- What Python calls --------------------------------------------------------------------------

// How many floats of memory n tokens need on their way.
extern "C" int64_t clearhead_scratch(const Model *model, int64_t capacity, int64_t n, int64_t n_threads) {
    int64_t width = model->tokens.columns, widest = padded(4 * width);
    return n * (3 * width + 2 * widest) + n_threads * TOGETHER * padded(capacity);
}

enum Refusal { NONE, NO_ROOM, UNKNOWN_TOKEN };

// Reads n_rows texts' next tokens, and writes the logits of what follows: all of them, [n, V], or
// each text's last, [B, V].
extern "C" int clearhead_read(const Model *model, const Cache *cache, const int64_t *ids, int n_rows,
                              float *logits, int all_logits, float *scratch, int n_threads) {
    const int per_row = cache->tokens_per_row, n = n_rows * per_row, width = model->tokens.columns;
    float *stream = scratch, *normed = stream + (long)n * width, *z = normed + (long)n * width;
    float *wide = z + (long)n * width;  // queries, keys and values; then the MLP's inner activations
    float *packed = wide + n * padded(4 * width), *weights = packed + n * padded(4 * width);
    Attention a{*cache, wide, z, weights, 0, model->n_heads, width / model->n_heads};
    for (int row = 0; row < n_rows; row++)
        if (cache->lengths[a.slot(row)] + per_row > cache->capacity) return NO_ROOM;
    for (int token = 0; token < n; token++)
        if (ids[token] < 0 || ids[token] >= model->tokens.rows) return UNKNOWN_TOKEN;
    memset(stream, 0, sizeof(float) * n * width);
    for (int token = 0; token < n; token++) {
        add_row(model->tokens, ids[token], stream + (long)token * width);
        add_row(model->positions, a.position(token), stream + (long)token * width);
    }
    int items = n_rows * ((per_row + TOGETHER - 1) / TOGETHER) * model->n_heads;
    for (; a.layer < model->n_blocks; a.layer++) {
        const Block &b = model->blocks[a.layer];
        Product qkv{.m = b.qkv, .y = wide, .n = n, .norm = &b.norm_1, .normed = normed};
        multiply(stream, qkv, packed, n_threads);
        cache->bf16 ? write_cache<uint16_t>(a, n) : write_cache<float>(a, n);
        share(cache->bf16 ? attend_some<uint16_t> : attend_some<float>, &a, items, n_threads);
        multiply(z, {.m = b.out_proj, .y = stream, .n = n, .add = true}, packed, n_threads);
        Product up{.m = b.up, .y = wide, .n = n, .norm = &b.norm_2, .normed = normed, .gelu = true,
                   .exact_gelu = !!model->exact_gelu};
        multiply(stream, up, packed, n_threads);
        multiply(wide, {.m = b.down, .y = stream, .n = n, .add = true}, packed, n_threads);
    }
    for (int row = 0; row < n_rows && !all_logits; row++)
        memcpy(stream + (long)row * width, stream + (long)((row + 1) * per_row - 1) * width, 4 * width);
    int n_logits = all_logits ? n : n_rows;
    Product head{.m = model->head, .y = logits, .n = n_logits, .norm = &model->norm, .normed = normed};
    multiply(stream, head, packed, n_threads);
    for (int row = 0; row < n_rows; row++) cache->lengths[a.slot(row)] += per_row;
    return NONE;
}

extern "C" int clearhead_runs_here() {
#if defined(__AVX512BF16__)
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl");
#elif defined(__AVX512F__)
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
#else
    return 1;
#endif
}
