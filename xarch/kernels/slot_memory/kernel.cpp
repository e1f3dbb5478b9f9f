// Slot memory: sinks, window and slots, one token after another. A job is one key/value head of one sequence; its
// entries stay in the level-2 cache. Rows are padded with zeros to whole vectors.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "simd.h"
#include "tiles.h"

using simd::load;
using simd::store;
using simd::vf;
using simd::W;

namespace {

struct Call {
    int64_t batch, length, heads, kv_heads, width, pairs, sinks, window, slots, age, half, threads;
    double scale, softcap, gain, decay;
    const float *q;          // [B, L, H, E], rotated
    const float *keys;       // [B, K, window + L, E], rotated: what the window held before, then the new tokens
    const float *values;     // likewise
    float *importance;       // [B, K, window + L], updated
    const float *sink_keys;  // [B, K, sinks, E]
    const float *sink_values;
    float *slot_keys;  // [B, K, slots, E], updated, not rotated
    float *slot_values;
    float *slot_positions;  // [B, K, slots], updated
    float *slot_importance;
    const int64_t *positions;   // [B, L]
    const double *frequencies;  // [pairs]
    float *y;                   // [B, L, H, E]
};

// Nearest number of half precision.
float to_half(float x) {
    const float size = std::fabs(x);
    if (!(size < 65520.0f)) return std::isnan(x) ? x : std::copysign(INFINITY, x);
    if (size < 6.103515625e-05f) return (x + 0.75f) - 0.75f;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits += 0xfff + ((bits >> 13) & 1);
    bits &= ~uint32_t(0x1fff);
    std::memcpy(&x, &bits, 4);
    return x;
}

struct Head {
    const Call& c;
    const int64_t b, j, group, wide;
    std::vector<float> keys, values, sink_keys, sink_values, query, turned, raw, kept, scores, out, received;
    float *importance, *places, *slot_importance;  // of exact entries; positions and importance of slots

    Head(const Call& call, int64_t job)
        : c(call), b(job / call.kv_heads), j(job % call.kv_heads), group(call.heads / call.kv_heads),
          wide((call.width + W - 1) / W * W) {
        const int64_t rows = c.window + c.length;
        widen(c.keys + job * rows * c.width, rows, keys), widen(c.values + job * rows * c.width, rows, values);
        widen(c.sink_keys + job * c.sinks * c.width, c.sinks, sink_keys);
        widen(c.sink_values + job * c.sinks * c.width, c.sinks, sink_values);
        widen(c.slot_keys + job * c.slots * c.width, c.slots, raw);
        widen(c.slot_values + job * c.slots * c.width, c.slots, kept);
        importance = c.importance + job * rows;
        places = c.slot_positions + job * c.slots, slot_importance = c.slot_importance + job * c.slots;
        turned.resize(c.slots * wide);
        for (int64_t i = 0; i < c.slots; ++i) turn(&raw[i * wide], places[i], &turned[i * wide], false);
        query.resize(group * wide), out.resize(group * wide);
        const int64_t most = c.sinks + c.window + c.slots;
        scores.resize(group * (most + W)), received.resize(most);
    }

    void widen(const float* from, int64_t rows, std::vector<float>& to) const {
        to.resize(rows * wide);
        for (int64_t i = 0; i < rows; ++i) std::memcpy(&to[i * wide], from + i * c.width, sizeof(float) * c.width);
    }

    void turn(const float* from, double position, float* to, bool back) {
        std::memcpy(to, from, sizeof(float) * wide);
        const double gain = back ? 1.0 / c.gain : c.gain;
        for (int64_t i = 0; i < c.pairs; ++i) {
            const double angle = position * c.frequencies[i];
            const float cos = float(std::cos(angle) * gain), sin = float(std::sin(back ? -angle : angle) * gain);
            to[i] = from[i] * cos - from[i + c.pairs] * sin;
            to[i + c.pairs] = from[i + c.pairs] * cos + from[i] * sin;
        }
    }

    // The token in `row` leaves the window; `used` slots are taken.
    void leave(int64_t row, int64_t position, int64_t used) {
        int64_t place = used;
        if (used == c.slots) {
            place = std::min_element(slot_importance, slot_importance + used) - slot_importance;
            if (!(slot_importance[place] <= importance[row])) return;
        }
        float *key = &raw[place * wide], *value = &kept[place * wide];
        turn(&keys[row * wide], double(position), key, true);
        std::memcpy(value, &values[row * wide], sizeof(float) * wide);
        if (c.half)
            for (int64_t e = 0; e < wide; ++e) key[e] = to_half(key[e]), value[e] = to_half(value[e]);
        places[place] = float(position), slot_importance[place] = importance[row];
        turn(key, double(position), &turned[place * wide], false);
    }

    // What `make` gives for each of the rows, W at a time; make(i) is a vector whose lanes are summed.
    template <class F>
    void sums(int64_t rows, float* to, const F& make) const {
        for (int64_t i = 0; i < rows; i += W) {
            const int64_t last = rows - 1;
            const vf found = tiles::sum_branch<W, 1>(0, [&](int n) __attribute__((always_inline)) {
                return make(i + n < last ? i + n : last);
            });
            simd::store_part(to + i, found, int(rows - i < W ? rows - i : W));
        }
    }

    // Scores of the queries with `rows` keys into scores[g][begin ...].
    void products(const float* rows_, int64_t rows, int64_t begin, int64_t pitch) {
        for (int64_t g = 0; g < group; ++g) {
            const float* q = &query[g * wide];
            float* to = &scores[g * pitch + begin];
            sums(rows, to, [&](int64_t i) __attribute__((always_inline)) {
                vf sum{};
                for (int64_t e = 0; e < wide; e += W) sum = simd::fma(load(q + e), load(rows_ + i * wide + e), sum);
                return sum;
            });
            const float scale = float(c.scale);
            for (int64_t i = 0; i < rows; ++i) to[i] *= scale;
            if (c.softcap > 0)
                for (int64_t i = 0; i < rows; ++i) to[i] = float(c.softcap * std::tanh(to[i] / c.softcap));
        }
    }

    // Adds rows weighted by scores[g][begin ...] to the outputs, four vectors of a row at a time: one sum alone would
    // wait for its own additions.
    void add(const float* rows_, int64_t rows, int64_t begin, int64_t pitch) {
        for (int64_t g = 0; g < group; ++g) {
            const float* weights = &scores[g * pitch + begin];
            float* to = &out[g * wide];
            int64_t e = 0;
            for (; e + 4 * W <= wide; e += 4 * W) add_part<4>(rows_ + e, rows, weights, to + e);
            for (; e < wide; e += W) add_part<1>(rows_ + e, rows, weights, to + e);
        }
    }

    template <int COUNT>
    void add_part(const float* rows_, int64_t rows, const float* weights, float* to) const {
        vf sum[COUNT];
        for (int n = 0; n < COUNT; ++n) sum[n] = load(to + n * W);
        for (int64_t i = 0; i < rows; ++i) {
            const vf weight = simd::splat(weights[i]);
            for (int n = 0; n < COUNT; ++n) sum[n] = simd::fma(weight, load(rows_ + i * wide + n * W), sum[n]);
        }
        for (int n = 0; n < COUNT; ++n) store(to + n * W, sum[n]);
    }

    void token(int64_t t) {
        const int64_t position = c.positions[b * c.length + t], row = c.window + t;
        if (position < c.sinks) {
            std::memcpy(&sink_keys[position * wide], &keys[row * wide], sizeof(float) * wide);
            std::memcpy(&sink_values[position * wide], &values[row * wide], sizeof(float) * wide);
        }
        const int64_t left = position - c.sinks - c.window;  // tokens that had left the window before
        if (c.slots > 0 && left >= 0) leave(t, position - c.window, left < c.slots ? left : c.slots);
        const int64_t first = position + 1 < c.sinks ? position + 1 : c.sinks;
        const int64_t seen = position - c.sinks + 1, recent = seen < 0 ? 0 : (seen < c.window ? seen : c.window);
        const int64_t used = left + 1 < 0 ? 0 : (left + 1 < c.slots ? left + 1 : c.slots);
        const int64_t all = first + recent + used, pitch = (all + W - 1) / W * W;
        for (int64_t g = 0; g < group; ++g) {
            const float* q = c.q + ((b * c.length + t) * c.heads + j * group + g) * c.width;
            std::memcpy(&query[g * wide], q, sizeof(float) * c.width);
        }
        const int64_t oldest = row - recent + 1;
        products(sink_keys.data(), first, 0, pitch);
        products(&keys[oldest * wide], recent, first, pitch);
        products(turned.data(), used, first + recent, pitch);
        std::fill(received.begin(), received.end(), 0.0f);
        std::fill(out.begin(), out.end(), 0.0f);
        for (int64_t g = 0; g < group; ++g) {
            float* x = &scores[g * pitch];
            for (int64_t i = all; i < pitch; ++i) x[i] = -INFINITY;
            float top = -INFINITY;
            for (int64_t i = 0; i < pitch; i += W) top = std::fmax(top, simd::hmax(load(x + i)));
            vf total{};
            for (int64_t i = 0; i < pitch; i += W) {
                vf weight = simd::vexp(load(x + i) - top);
                total = total + weight;
                store(x + i, weight);
            }
            const float inverse = 1.0f / simd::hsum(total);
            for (int64_t i = 0; i < all; ++i) x[i] *= inverse, received[i] += x[i];
        }
        add(sink_values.data(), first, 0, pitch);
        add(&values[oldest * wide], recent, first, pitch);
        add(kept.data(), used, first + recent, pitch);
        for (int64_t g = 0; g < group; ++g)
            std::memcpy(c.y + ((b * c.length + t) * c.heads + j * group + g) * c.width, &out[g * wide], sizeof(float) * c.width);
        const float decay = float(c.decay);
        for (int64_t i = 0; i + c.age < recent; ++i) importance[oldest + i] = decay * importance[oldest + i] + received[first + i];
        for (int64_t i = 0; i < used; ++i) slot_importance[i] = decay * slot_importance[i] + received[first + recent + i];
    }

    void finish(int64_t job) const {
        for (int64_t i = 0; i < c.slots; ++i) {
            std::memcpy(c.slot_keys + (job * c.slots + i) * c.width, &raw[i * wide], sizeof(float) * c.width);
            std::memcpy(c.slot_values + (job * c.slots + i) * c.width, &kept[i * wide], sizeof(float) * c.width);
        }
    }
};

}  // namespace

extern "C" int slot_memory_forward(const Call* call) {
    return parallel::status_of([&] {
        parallel::parallel_for(call->batch * call->kv_heads, int(call->threads), [&](int64_t job) {
            Head head(*call, job);
            for (int64_t t = 0; t < call->length; ++t) head.token(t);
            head.finish(job);
        });
    });
}
