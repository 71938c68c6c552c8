// New tokens of running streams and of prompts through the whole decoder, on a CPU in float32: what `engine.native` compiles and calls.
//
// With few rows a product over weights is as fast as the weights come from memory, and everything else is overhead. So weights
// are packed in panels of 16 outputs, which are read once, from front to back, for as many rows at a time as there are registers,
// and all layers run in one call.
// Weights that lose nothing by it are kept in bfloat16: half the bytes, the same numbers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / 4, PANEL = 16, VECTORS = PANEL / LANES;
// Their sums and a panel's weights fill the registers: 32 with AVX-512, else 16.
constexpr int MOST_ROWS = VECTORS == 1 ? 16 : 6;
// Sums that are on their way at once, so that none waits for the one before it.
constexpr int SUMS = 8;
// Weights are asked for so many bytes before they are needed: the processor itself looks ahead no further than a page.
constexpr int64_t AHEAD = 16384;

typedef float Vector __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t Words __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));
typedef uint32_t Wide __attribute__((vector_size(BYTES), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline Vector load(const uint16_t* from) {
    Wide wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Wide) << 16;
    Vector found;
    std::memcpy(&found, &wide, BYTES);
    return found;
}
inline void keep(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }
inline Vector all(float x) { return x - Vector{}; }
// Half and half, since one after the other each addition would wait for the one before.
inline float sum(Vector x) {
    typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
    typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
    float parts[16];
    keep(parts, x);
    if (LANES >= 16) *reinterpret_cast<Eight*>(parts) += *reinterpret_cast<Eight*>(parts + 8);
    if (LANES >= 8) *reinterpret_cast<Four*>(parts) += *reinterpret_cast<Four*>(parts + 4);
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
}

// e^x to a few units of the last place (Cephes): x = n log 2 + r, 2^n by the bits of the exponent, a polynomial for e^r.
inline Vector exponential(Vector x) {
    const Vector least = all(-87.3f), most = all(88.0f);
    x = x < least ? least : x;
    x = x > most ? most : x;
    Vector turns = x * 1.44269504f;
    // Adding 1.5 * 2^23 and taking it away rounds to the nearest whole number.
    const Vector magic = all(12582912.0f);
    Vector whole = (turns + magic) - magic;
    Vector r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vector p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Words exponent = (__builtin_convertvector(whole, Words) + 127) << 23;
    Vector power;
    std::memcpy(&power, &exponent, BYTES);
    return p * power;
}

constexpr int steps_for(int rows) {
    int steps = 1;
    while (steps * rows * VECTORS < SUMS) steps *= 2;
    return steps;
}

// y[b][0..16) of ROWS rows: x (I, ROWS) times one panel (I, 16). Few rows take several weights at a time.
template <typename Weight, int ROWS>
void panel(const Weight* w, const float* x, int64_t I, float* y, int64_t y_stride, int64_t wanted) {
    constexpr int STEPS = steps_for(ROWS);
    Vector sums[STEPS][ROWS][VECTORS] = {};
    int64_t i = 0;
    for (; i + STEPS <= I; i += STEPS)
#pragma GCC unroll 8
        for (int s = 0; s < STEPS; s++) {
            const Weight* from = w + (i + s) * PANEL;
            __builtin_prefetch(from + AHEAD / sizeof(Weight));
            Vector weights[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) weights[v] = load(from + v * LANES);
#pragma GCC unroll 16
            for (int b = 0; b < ROWS; b++) {
                const float value = x[(i + s) * ROWS + b];
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++) sums[s][b][v] += weights[v] * value;
            }
        }
    for (; i < I; i++)
        for (int v = 0; v < VECTORS; v++)
            for (int b = 0; b < ROWS; b++) sums[0][b][v] += load(w + i * PANEL + v * LANES) * x[i * ROWS + b];
#pragma GCC unroll 16
    for (int b = 0; b < ROWS; b++) {
        float found[PANEL];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            Vector total = sums[0][b][v];
#pragma GCC unroll 8
            for (int s = 1; s < STEPS; s++) total += sums[s][b][v];
            keep(found + v * LANES, total);
        }
        std::memcpy(y + b * y_stride, found, wanted * sizeof(float));
    }
}

template <typename Weight>
using Panel = void (*)(const Weight*, const float*, int64_t, float*, int64_t, int64_t);

template <typename Weight, int... ROWS>
Panel<Weight> panel_of(int64_t rows, std::integer_sequence<int, ROWS...>) {
    constexpr Panel<Weight> by_rows[] = {panel<Weight, ROWS + 1>...};
    return by_rows[rows - 1];
}

// y (rows, O): x (rows, I) times packed weights.
template <typename Weight>
void product(const Weight* weights, const float* x, int64_t rows, int64_t I, int64_t O, float* y, int threads) {
    // Rows that are taken together stand together, column by column.
    static thread_local std::vector<float> room;
    const float* turned = x;
    if (rows > 1) {
        room.resize(std::max<size_t>(room.size(), rows * I));
        for (int64_t first = 0; first < rows; first += MOST_ROWS) {
            const int64_t together = std::min<int64_t>(rows - first, MOST_ROWS);
            for (int64_t i = 0; i < I; i++)
                for (int64_t b = 0; b < together; b++) room[first * I + i * together + b] = x[(first + b) * I + i];
        }
        turned = room.data();
    }
    const int64_t panels = (O + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t first = 0; first < rows; first += MOST_ROWS) {
            const int64_t together = std::min<int64_t>(rows - first, MOST_ROWS);
            auto some = panel_of<Weight>(together, std::make_integer_sequence<int, MOST_ROWS>{});
            const int64_t wanted = std::min<int64_t>(PANEL, O - p * PANEL);
            some(weights + p * I * PANEL, turned + first * I, I, y + first * O + p * PANEL, O, wanted);
        }
}

void normalise(const float* x, const float* gain, float eps, int64_t size, float* y) {
    Vector squares = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < size; i++) total += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(total / size + eps);
    for (i = 0; i < size; i++) y[i] = x[i] * scale * gain[i];
}

// Turns the pairs (i, i + S/2); the first half of `sines` is negative.
void rotate(float* x, const float* cosines, const float* sines, int64_t S) {
    for (int64_t i = 0; i < S / 2; i++) {
        float a = x[i], b = x[i + S / 2];
        x[i] = a * cosines[i] + b * sines[i];
        x[i + S / 2] = b * cosines[i + S / 2] + a * sines[i + S / 2];
    }
}

// One query (S) over `length` keys and values (length, S); `scores` has room for them and one vector more.
void attend(const float* q, const float* keys, const float* values, int64_t length, int64_t S, float* scores, float* mixed) {
    const float shrink = 1.0f / std::sqrt(static_cast<float>(S));
    for (int64_t t = 0; t < length; t++) {
        const float* key = keys + t * S;
        Vector even = {}, odd = {};
        for (int64_t i = 0; i + 2 * LANES <= S; i += 2 * LANES) {
            even += load(q + i) * load(key + i);
            odd += load(q + i + LANES) * load(key + i + LANES);
        }
        if (S % (2 * LANES)) even += load(q + S - LANES) * load(key + S - LANES);
        scores[t] = sum(even + odd) * shrink;
    }
    float highest = scores[0];
    for (int64_t t = 1; t < length; t++) highest = std::max(highest, scores[t]);
    for (int64_t t = length; t % LANES; t++) scores[t] = -INFINITY;
    Vector total = {};
    for (int64_t t = 0; t < length; t += LANES) {
        Vector e = exponential(load(scores + t) - highest);
        keep(scores + t, e);
        // What lies behind the end is as good as zero, and is not added.
        if (t + LANES <= length) total += e;
    }
    float whole = sum(total);
    for (int64_t t = length - length % LANES; t < length; t++) whole += scores[t];
    const float share = 1.0f / whole;
    for (int64_t i = 0; i < S; i += 4 * LANES) {
        const int64_t width = std::min<int64_t>(4, (S - i) / LANES);
        Vector sums[4] = {};
        if (width == 4)
            for (int64_t t = 0; t < length; t++)
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++) sums[v] += scores[t] * load(values + t * S + i + v * LANES);
        else
            for (int64_t t = 0; t < length; t++)
                for (int v = 0; v < width; v++) sums[v] += scores[t] * load(values + t * S + i + v * LANES);
        for (int v = 0; v < width; v++) keep(mixed + i + v * LANES, sums[v] * share);
    }
}

}  // namespace

extern "C" {

// The fields of `engine.native._Layer` and `_Model`, in their order.
struct Layer {
    const void *qkv, *out, *gate_up, *down;
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm;
    float *keys, *values;
};

struct Model {
    int64_t layers, width, heads, kv_heads, head_size, mlp_width, vocabulary, capacity, halves, threads;
    const Layer* layer;
    const float *norm, *embedding, *cosines, *sines;
    const void* head;
    int64_t embedding_row, embedding_column;
    float eps;
};

// Panels of a matrix (O, I) with any strides, as float32 or, where `halves`, as the upper 16 bits of each.
void tessera_pack(const float* from, int64_t row, int64_t column, int64_t O, int64_t I, int64_t halves, void* to) {
    for (int64_t p = 0; p * PANEL < O; p++)
        for (int64_t i = 0; i < I; i++)
            for (int64_t o = 0; o < PANEL; o++) {
                int64_t place = (p * I + i) * PANEL + o;
                float weight = p * PANEL + o < O ? from[(p * PANEL + o) * row + i * column] : 0.0f;
                uint32_t bits;
                std::memcpy(&bits, &weight, 4);
                if (halves) static_cast<uint16_t*>(to)[place] = bits >> 16;
                else static_cast<float*>(to)[place] = weight;
            }
}

// Whether upper 16 bits say all of each number.
int64_t tessera_halves(const float* from, int64_t count) {
    uint32_t lower = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        std::memcpy(&bits, from + i, 4);
        lower |= bits & 0xffff;
    }
    return lower == 0;
}

// Feeds ids (B) to slots (B) at positions (B), and writes their keys and values there. Several may go into one slot, one behind
// the other: each sees those before it. The scores after W of them, `wanted` in rising order, go into logits (W, V).
void tessera_step(
    const Model* m, int64_t B, const int64_t* ids, const int64_t* slots, const int64_t* positions, int64_t W,
    const int64_t* wanted, float* logits
) {
    const int64_t D = m->width, H = m->heads, K = m->kv_heads, S = m->head_size, M = m->mlp_width;
    const int threads = static_cast<int>(m->threads);
    const int64_t N = (H + 2 * K) * S;
    int64_t longest = 0;
    for (int64_t b = 0; b < B; b++) longest = std::max(longest, positions[b] + 1);
    const int64_t room = longest + 2 * LANES;
    static thread_local std::vector<float> buffer;
    buffer.resize(std::max<size_t>(buffer.size(), B * (2 * D + N + H * S + 3 * M)));
    float *x = buffer.data(), *normal = x + B * D, *qkv = normal + B * D, *mixed = qkv + B * N, *wide = mixed + B * H * S,
          *inner = wide + B * 2 * M;
    auto multiply = [&](const void* w, const float* from, int64_t rows, int64_t I, int64_t O, float* to) {
        if (m->halves) product(static_cast<const uint16_t*>(w), from, rows, I, O, to, threads);
        else product(static_cast<const float*>(w), from, rows, I, O, to, threads);
    };
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < D; i++) x[b * D + i] = m->embedding[ids[b] * m->embedding_row + i * m->embedding_column];
    for (int64_t l = 0; l < m->layers; l++) {
        const Layer& layer = m->layer[l];
        for (int64_t b = 0; b < B; b++) normalise(x + b * D, layer.attention_norm, m->eps, D, normal + b * D);
        multiply(layer.qkv, normal, B, D, N, qkv);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t pair = 0; pair < B * K; pair++) {
            const int64_t b = pair / K, k = pair % K, at = positions[b];
            const float *cosines = m->cosines + at * S, *sines = m->sines + at * S;
            float *key = qkv + b * N + (H + k) * S, *value = key + K * S;
            const int64_t place = (slots[b] * K + k) * m->capacity * S;
            float *keys = layer.keys + place, *values = layer.values + place;
            if (layer.k_norm) normalise(key, layer.k_norm, m->eps, S, key);
            rotate(key, cosines, sines, S);
            std::memcpy(keys + at * S, key, S * sizeof(float));
            std::memcpy(values + at * S, value, S * sizeof(float));
        }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
        for (int64_t pair = 0; pair < B * K; pair++) {
            const int64_t b = pair / K, k = pair % K, at = positions[b];
            const float *cosines = m->cosines + at * S, *sines = m->sines + at * S;
            const int64_t place = (slots[b] * K + k) * m->capacity * S;
            const float *keys = layer.keys + place, *values = layer.values + place;
            static thread_local std::vector<float> scores;
            scores.resize(std::max<size_t>(scores.size(), room));
            for (int64_t h = k * (H / K); h < (k + 1) * (H / K); h++) {
                float* query = qkv + b * N + h * S;
                if (layer.q_norm) normalise(query, layer.q_norm, m->eps, S, query);
                rotate(query, cosines, sines, S);
                attend(query, keys, values, at + 1, S, scores.data(), mixed + (b * H + h) * S);
            }
        }
        multiply(layer.out, mixed, B, H * S, D, normal);
        for (int64_t i = 0; i < B * D; i++) x[i] += normal[i];
        for (int64_t b = 0; b < B; b++) normalise(x + b * D, layer.mlp_norm, m->eps, D, normal + b * D);
        multiply(layer.gate_up, normal, B, D, 2 * M, wide);
        for (int64_t b = 0; b < B; b++) {
            const float *gate = wide + b * 2 * M, *up = gate + M;
            float* to = inner + b * M;
            int64_t i = 0;
            for (; i + LANES <= M; i += LANES) keep(to + i, load(gate + i) / (1.0f + exponential(-load(gate + i))) * load(up + i));
            for (; i < M; i++) to[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
        }
        multiply(layer.down, inner, B, M, D, normal);
        for (int64_t i = 0; i < B * D; i++) x[i] += normal[i];
    }
    for (int64_t w = 0; w < W; w++) normalise(x + wanted[w] * D, m->norm, m->eps, D, normal + w * D);
    multiply(m->head, normal, W, D, m->vocabulary, logits);
}
}
