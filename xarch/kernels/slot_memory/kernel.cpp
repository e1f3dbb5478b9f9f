// Slot memory: sinks, window and merged slots, one token after another. A job is one key/value head of one sequence; its
// entries stay in the level-2 cache. Rows are padded with zeros to whole vectors.
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
    int64_t batch, length, heads, kv_heads, width, pairs, sinks, reach, slot_total, age, half, evict, threads;
    double scale, softcap, gain, decay, cap;
    const float *q;         // [B, L, H, E], rotated
    const float *keys;      // [B, K, reach + L, E], rotated: what the longest window held before, then the new tokens
    const float *values;    // likewise
    float *importance;      // [B, K, reach + L], updated
    float *sink_keys;       // [B, K, sinks, E], updated
    float *sink_values;     // likewise
    float *slot_keys;       // [B, M, E], updated, not rotated
    float *slot_values;     // [B, M, E], updated
    float *slot_facts;      // [B, 4, M], updated: count, position, variance, importance
    const int64_t *positions;  // [B, L]
    const int64_t *windows;    // [K]
    const int64_t *slots;      // [K]
    const int64_t *slot_starts;  // [K]
    const double *frequencies;   // [pairs]
    float *y;  // [B, L, H, E]
};

constexpr float far = 1e30f;

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
    const int64_t b, j, group, wide, window, count;
    std::vector<float> keys, values, sink_keys, sink_values, query, turned, raw, kept, fresh, fresh_value, merged,
        merged_value, scores, out, received, distances;
    std::vector<float> n, p, u, s;  // count, position, variance and importance of slots
    float* importance;

    Head(const Call& call, int64_t job)
        : c(call), b(job / call.kv_heads), j(job % call.kv_heads), group(call.heads / call.kv_heads),
          wide((call.width + W - 1) / W * W), window(call.windows[j]), count(call.slots[j]) {
        const int64_t rows = c.reach + c.length;
        keys.resize(rows * wide), values.resize(rows * wide);
        widen(c.keys + job * rows * c.width, rows, keys), widen(c.values + job * rows * c.width, rows, values);
        sink_keys.resize(c.sinks * wide), sink_values.resize(c.sinks * wide);
        widen(c.sink_keys + job * c.sinks * c.width, c.sinks, sink_keys);
        widen(c.sink_values + job * c.sinks * c.width, c.sinks, sink_values);
        importance = c.importance + job * rows;
        raw.resize(count * wide), turned.resize(count * wide), kept.resize(count * wide);
        n.resize(count), p.resize(count), u.resize(count), s.resize(count);
        const int64_t start = b * c.slot_total + c.slot_starts[j];
        widen(c.slot_keys + start * c.width, count, raw), widen(c.slot_values + start * c.width, count, kept);
        for (int64_t i = 0; i < count; ++i) {
            const float* facts = c.slot_facts + b * 4 * c.slot_total + c.slot_starts[j] + i;
            n[i] = facts[0], p[i] = facts[c.slot_total], u[i] = facts[2 * c.slot_total], s[i] = facts[3 * c.slot_total];
            turn(&raw[i * wide], p[i], &turned[i * wide], false);
        }
        query.resize(group * wide), out.resize(group * wide);
        fresh.resize(wide), fresh_value.resize(wide), merged.resize(wide), merged_value.resize(wide);
        const int64_t most = c.sinks + window + count;
        scores.resize(group * (most + W)), received.resize(most), distances.resize(count);
    }

    void widen(const float* from, int64_t rows, std::vector<float>& to) {
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

    float apart(const float* a, const float* b_) const {
        vf sum{};
        for (int64_t e = 0; e < wide; e += W) {
            vf d = load(a + e) - load(b_ + e);
            sum = simd::fma(d, d, sum);
        }
        return simd::hsum(sum);
    }

    void put(int64_t i, const float* key, const float* value, float count_, float position, float variance, float weight) {
        for (int64_t e = 0; e < wide; ++e) {
            raw[i * wide + e] = c.half ? to_half(key[e]) : key[e];
            kept[i * wide + e] = c.half ? to_half(value[e]) : value[e];
        }
        n[i] = count_, p[i] = position, u[i] = variance, s[i] = weight;
        turn(&raw[i * wide], position, &turned[i * wide], false);
    }

    // The token in `row` leaves the window; `used` slots are taken.
    void write(int64_t row, int64_t position, int64_t used) {
        const float weight = importance[row];
        const float* value = &values[row * wide];
        turn(&keys[row * wide], double(position), fresh.data(), true);
        if (used < count) return put(used, fresh.data(), value, 1, float(position), 0, weight);
        int64_t least = count;
        float lowest = far;
        for (int64_t i = 0; i < count; ++i)
            if (s[i] < lowest) lowest = s[i], least = i;
        if (!(lowest <= weight)) least = count;
        if (c.evict) {
            if (least < count) put(least, fresh.data(), value, 1, float(position), 0, weight);
            return;
        }
        const bool token = least == count;
        const float* key_b = token ? fresh.data() : &raw[least * wide];
        const float* value_b = token ? value : &kept[least * wide];
        int64_t near = count;
        float distance = token ? far : apart(fresh.data(), key_b);
        float shortest = far;
        int64_t nearest = count;
        sums(count, distances.data(), [&](int64_t i) __attribute__((always_inline)) {
            vf sum{};
            for (int64_t e = 0; e < wide; e += W) {
                const vf d = load(&raw[i * wide + e]) - load(key_b + e);
                sum = simd::fma(d, d, sum);
            }
            return sum;
        });
        for (int64_t i = 0; i < count; ++i)
            if (i != least && distances[i] < shortest) shortest = distances[i], nearest = i;
        if (shortest <= distance) near = nearest, distance = shortest;
        const bool into_token = near == count;
        const float* key_a = into_token ? fresh.data() : &raw[near * wide];
        const float* value_a = into_token ? value : &kept[near * wide];
        const float n_a = into_token ? 1 : n[near], n_b = token ? 1 : n[least];
        const float p_a = into_token ? float(position) : p[near], p_b = token ? float(position) : p[least];
        const float u_a = into_token ? 0 : u[near], u_b = token ? 0 : u[least];
        const float s_a = into_token ? weight : s[near], s_b = token ? weight : s[least];
        const float f = n_b / (n_a + n_b);
        for (int64_t e = 0; e < wide; ++e) {
            merged[e] = key_a[e] + f * (key_b[e] - key_a[e]);
            merged_value[e] = value_a[e] + f * (value_b[e] - value_a[e]);
        }
        const float variance = u_a + f * (u_b - u_a) + f * (1 - f) * distance;
        const int64_t to = into_token ? least : near;
        put(to, merged.data(), merged_value.data(), n_a + n_b, p_a + f * (p_b - p_a), variance, s_a + s_b);
        if (!into_token && !token) put(least, fresh.data(), value, 1, float(position), 0, weight);
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
        const int64_t position = c.positions[b * c.length + t], row = c.reach + t;
        if (position < c.sinks) {
            std::memcpy(&sink_keys[position * wide], &keys[row * wide], sizeof(float) * wide);
            std::memcpy(&sink_values[position * wide], &values[row * wide], sizeof(float) * wide);
        }
        importance[row] = 0;
        const int64_t left = position - c.sinks - window;  // tokens that had left the window before
        if (count > 0 && left >= 0) write(row - window, position - window, left < count ? left : count);
        const int64_t first = position + 1 < c.sinks ? position + 1 : c.sinks;
        const int64_t seen = position - c.sinks + 1, recent = seen < 0 ? 0 : (seen < window ? seen : window);
        const int64_t used = left + 1 < 0 ? 0 : (left + 1 < count ? left + 1 : count);
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
            float norm = 0;
            for (int64_t e = 0; e < c.width; ++e) norm += query[g * wide + e] * query[g * wide + e];
            const float spread = norm * float(c.scale * c.scale / double(2 * c.width)), cap = float(c.cap);
            for (int64_t i = 0; i < used; ++i) {
                const float bias = spread * u[i];
                x[first + recent + i] += std::log(n[i]) + (bias > cap ? cap : bias);
            }
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
        for (int64_t i = 0; i < used; ++i) s[i] = decay * s[i] + received[first + recent + i];
    }

    void finish(int64_t job) {
        for (int64_t i = 0; i < c.sinks; ++i) {
            std::memcpy(c.sink_keys + (job * c.sinks + i) * c.width, &sink_keys[i * wide], sizeof(float) * c.width);
            std::memcpy(c.sink_values + (job * c.sinks + i) * c.width, &sink_values[i * wide], sizeof(float) * c.width);
        }
        for (int64_t i = 0; i < count; ++i) {
            const int64_t place = b * c.slot_total + c.slot_starts[j] + i;
            std::memcpy(c.slot_keys + place * c.width, &raw[i * wide], sizeof(float) * c.width);
            std::memcpy(c.slot_values + place * c.width, &kept[i * wide], sizeof(float) * c.width);
            float* facts = c.slot_facts + b * 4 * c.slot_total + c.slot_starts[j] + i;
            facts[0] = n[i], facts[c.slot_total] = p[i], facts[2 * c.slot_total] = u[i], facts[3 * c.slot_total] = s[i];
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
