// Folded memory, a whole document: a job is one key/value head of one sequence. Between two folds attention is a product;
// a fold changes at most 2 F entries, in place. What is kept of keys is held along features, too, as products read it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gemm.h"
#include "parallel.h"
#include "simd.h"

using gemm::padded;
using simd::load;
using simd::store;
using simd::vf;
using simd::W;

namespace {

struct Call {
    int64_t batch, length, heads, kv_heads, width, pairs, fold, sinks, whole, threads;
    double scale, softcap, gain, kept, cap, halfway;
    const int64_t *slots, *windows;  // [K]
    const float *q;                  // [B, L, H, E], rotated
    const float *keys, *values;      // [B, L, K, E], keys rotated
    const float *key_scale, *value_scale;  // [K, E]
    const float *query_square;             // [K, G]
    const double *frequencies;             // [pairs]
    float *y;                              // [B, L, H, E]
};

// Stays whatever it received, and no other is merged into it.
constexpr float BARRED = 1e30f;

// Room behind the last row of a tile: a block of a product that begins at any column may read on.
constexpr int64_t SLACK = 4 * W;

struct Head {
    const Call& c;
    const int64_t b, j, group, E, wide, slots, window, room, columns, pitch;
    // Of all tokens: keys [E, L] and values [L, E] as memory keeps them, and importance.
    std::vector<float> token_keys, token_values, token_importance;
    // Entries, each at a place that it keeps: keys before their rotation, by rows and by features, rotated by features.
    std::vector<float> raw, raw_turned, turned, value, square, count, position, spread, importance, bias;
    std::vector<float> query, out, scores, received, gone, apart, cos, sin, barrier, sum_key, sum_value;
    std::vector<int64_t> order, free;

    Head(const Call& call, int64_t job)
        : c(call), b(job / call.kv_heads), j(job % call.kv_heads), group(call.heads / call.kv_heads), E(call.width),
          wide(padded(call.width)), slots(call.slots[j]), window(call.windows[j]), room(slots + call.fold),
          columns(padded(room)), pitch(padded(call.length)) {
        token_keys.resize(E * pitch + SLACK), token_values.resize(c.length * wide), token_importance.resize(c.length);
        for (int64_t t = 0; t < c.length; ++t) {
            const int64_t from = ((b * c.length + t) * c.kv_heads + j) * E;
            for (int64_t e = 0; e < E; ++e) {
                token_keys[e * pitch + t] = stored(c.keys[from + e], c.key_scale[j * E + e], 0.0f);
                token_values[t * wide + e] = stored(c.values[from + e], c.value_scale[j * E + e], 0.0f);
            }
        }
        raw.resize(room * wide), value.resize(columns * wide);
        raw_turned.resize(E * columns + SLACK), turned.resize(E * columns + SLACK);
        for (auto* of_entries : {&square, &count, &position, &spread, &importance, &barrier}) of_entries->resize(columns);
        bias.assign(group * columns, -INFINITY);
        query.resize(c.fold * wide), out.resize(c.fold * wide);
        const int64_t most = columns + padded(window + c.fold);
        scores.resize(c.fold * most + SLACK), received.resize(most);
        gone.resize(c.fold * wide), apart.resize(c.fold * columns + SLACK);
        cos.resize(c.pairs), sin.resize(c.pairs), sum_key.resize(wide), sum_value.resize(wide);
        for (int64_t i = room; i-- > 0;) free.push_back(i);
    }

    // What memory keeps of a number; `above` is added to a mean before it is rounded.
    float stored(float x, float scale, float above) const {
        if (!c.whole) return x;
        const float steps = std::nearbyintf(x / scale + above);
        return (steps < -128.0f ? -128.0f : steps > 127.0f ? 127.0f : steps) * scale;
    }

    void angles(double at) {
        for (int64_t i = 0; i < c.pairs; ++i)
            cos[i] = float(std::cos(at * c.frequencies[i])), sin[i] = float(std::sin(at * c.frequencies[i]));
    }

    // Rotates a row by the last angles.
    void turn(float* x, bool back) const {
        const float gain = float(back ? 1.0 / c.gain : c.gain), sign = back ? -gain : gain;
        for (int64_t i = 0; i < c.pairs; ++i) {
            const float first = x[i], second = x[i + c.pairs];
            x[i] = first * (cos[i] * gain) - second * (sin[i] * sign);
            x[i + c.pairs] = second * (cos[i] * gain) + first * (sin[i] * sign);
        }
    }

    // Takes the rotated key in `sum_key` and the value in `sum_value`, both as memory keeps them, for entry i. Angles are
    // those of its position.
    void put(int64_t i) {
        for (int64_t e = 0; e < E; ++e) turned[e * columns + i] = sum_key[e];
        turn(sum_key.data(), true);
        float sum = 0.0f;
        for (int64_t e = 0; e < E; ++e) {
            raw_turned[e * columns + i] = sum_key[e];
            sum += sum_key[e] * sum_key[e];
        }
        square[i] = sum;
        std::memcpy(&raw[i * wide], sum_key.data(), sizeof(float) * wide);
        std::memcpy(&value[i * wide], sum_value.data(), sizeof(float) * wide);
    }

    void weigh(int64_t i) {
        for (int64_t g = 0; g < group; ++g) {
            const double gain = c.query_square[j * group + g] * c.scale * c.scale / (2.0 * double(E));
            bias[g * columns + i] = float(std::log(double(count[i])) + std::min(gain * spread[i], c.cap));
        }
    }

    bool first(int64_t i) const { return position[i] < float(c.sinks); }

    // The fold before the token at `begin`.
    void fold(int64_t begin) {
        std::vector<int64_t> changed;
        for (int64_t t = std::max<int64_t>(0, begin - c.fold - window); t < begin - window; ++t) {
            const int64_t i = free.back();
            free.pop_back();
            for (int64_t e = 0; e < E; ++e) sum_key[e] = token_keys[e * pitch + t];
            std::memcpy(sum_value.data(), &token_values[t * wide], sizeof(float) * wide);
            angles(double(t));
            put(i);
            count[i] = 1.0f, position[i] = float(t), spread[i] = 0.0f, importance[i] = token_importance[t];
            order.push_back(i), changed.push_back(i);
        }
        if (int64_t(order.size()) > slots) merge(changed);
        for (int64_t i : changed) weigh(i);
    }

    // Leaves as many entries as there are slots; adds those that others were merged into to `changed`, and takes those
    // that are gone from it.
    void merge(std::vector<int64_t>& changed) {
        // What is no number is the least: an order that contradicts itself may lead the sort anywhere.
        auto rank = [&](int64_t i) { return first(i) ? BARRED : importance[i] >= 0.0f ? importance[i] : 0.0f; };
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return rank(a) > rank(b); });
        const int64_t leaving = int64_t(order.size()) - slots;
        const int64_t* go = order.data() + slots;
        std::fill(barrier.begin(), barrier.end(), BARRED);
        for (int64_t n = 0; n < slots; ++n)
            if (!first(order[n])) barrier[order[n]] = square[order[n]];
        for (int64_t n = 0; n < leaving; ++n) std::memcpy(&gone[n * wide], &raw[go[n] * wide], sizeof(float) * wide);
        gemm::Ahead ahead;
        gemm::Job products{apart.data(), columns, leaving, columns};
        products.second = {gone.data(), wide, 1, raw_turned.data(), columns, E};
        gemm::run(products, ahead);
        // Receiver -> what is merged into it.
        std::vector<std::vector<int64_t>> parts(room);
        for (int64_t n = 0; n < leaving; ++n) {
            float* row = &apart[n * columns];
            vf least = vf{} + 2 * BARRED;
            for (int64_t i = 0; i < columns; i += W) {
                // |k|^2 - 2 k . b orders entries as their distances from b do.
                const vf distance = load(&barrier[i]) - 2.0f * load(row + i);
                store(row + i, distance);
                least = simd::vmin(distance, least);
            }
            const float nearest = -simd::hmax(-least);
            for (int64_t m = 0; m < slots; ++m)
                if (row[order[m]] == nearest && barrier[order[m]] < BARRED) {
                    parts[order[m]].push_back(go[n]);
                    break;
                }
        }
        for (int64_t n = 0; n < slots; ++n)
            if (!parts[order[n]].empty()) {
                together(order[n], parts[order[n]]);
                if (std::find(changed.begin(), changed.end(), order[n]) == changed.end()) changed.push_back(order[n]);
            }
        for (int64_t n = 0; n < leaving; ++n) {
            free.push_back(go[n]);
            for (int64_t g = 0; g < group; ++g) bias[g * columns + go[n]] = -INFINITY;
            changed.erase(std::remove(changed.begin(), changed.end(), go[n]), changed.end());
        }
        order.resize(slots);
    }

    void together(int64_t i, const std::vector<int64_t>& parts) {
        std::fill(sum_key.begin(), sum_key.end(), 0.0f), std::fill(sum_value.begin(), sum_value.end(), 0.0f);
        float all = 0.0f, place = 0.0f, squares = 0.0f, paid = 0.0f;
        auto add = [&](int64_t n) {
            const float weight = count[n];
            for (int64_t e = 0; e < E; ++e) {
                sum_key[e] += weight * raw[n * wide + e];
                sum_value[e] += weight * value[n * wide + e];
            }
            all += weight, place += weight * position[n], squares += weight * (spread[n] + square[n]);
            paid += importance[n];
        };
        add(i);
        for (int64_t n : parts) add(n);
        float length = 0.0f;
        for (int64_t e = 0; e < E; ++e) {
            sum_key[e] /= all;
            length += sum_key[e] * sum_key[e];
            sum_value[e] = stored(sum_value[e] / all, c.value_scale[j * E + e], float(c.halfway));
        }
        count[i] = all, position[i] = place / all, importance[i] = paid;
        spread[i] = std::max(0.0f, squares / all - length);
        angles(double(position[i]));
        turn(sum_key.data(), false);
        for (int64_t e = 0; e < E; ++e) sum_key[e] = stored(sum_key[e], c.key_scale[j * E + e], float(c.halfway));
        put(i);
    }

    // Tokens from `begin` on, up to a fold of them: what they attend to, and what the last of them paid to each entry.
    void attend(int64_t begin) {
        const int64_t rows = std::min(c.fold, c.length - begin), from = std::max<int64_t>(0, begin - window);
        const int64_t tokens = begin + rows - from, held = order.empty() ? 0 : columns, all = held + padded(tokens);
        std::fill(received.begin(), received.end(), 0.0f);
        for (int64_t g = 0; g < group; ++g) {
            for (int64_t r = 0; r < rows; ++r) {
                const float* x = c.q + ((b * c.length + begin + r) * c.heads + j * group + g) * E;
                for (int64_t e = 0; e < E; ++e) query[r * wide + e] = x[e] * float(c.scale);
            }
            gemm::Ahead ahead;
            gemm::Job products{scores.data(), all, rows, held};
            products.second = {query.data(), wide, 1, turned.data(), columns, E};
            if (held > 0) gemm::run(products, ahead);
            products.out = scores.data() + held, products.columns = tokens;
            products.second.right = &token_keys[from], products.second.stride = pitch;
            gemm::run(products, ahead);
            for (int64_t r = 0; r < rows; ++r) softmax(r, g, held, begin + r - from + 1, all, r == rows - 1);
            gemm::Job sums{out.data(), wide, rows, E};
            sums.second = {scores.data(), all, 1, value.data(), wide, room};
            if (held > 0) gemm::run(sums, ahead), sums.keep = 1.0f;
            sums.second = {scores.data() + held, all, 1, &token_values[from * wide], wide, tokens};
            gemm::run(sums, ahead);
            for (int64_t r = 0; r < rows; ++r)
                std::memcpy(c.y + ((b * c.length + begin + r) * c.heads + j * group + g) * E, &out[r * wide], sizeof(float) * E);
        }
        if (begin == 0) return;
        const float kept = float(c.kept);
        for (int64_t i : order) importance[i] = (importance[i] + received[i]) * kept;
        for (int64_t t = from; t < begin; ++t)
            token_importance[t] = (token_importance[t] + received[held + t - from]) * kept;
    }

    // Turns the products of a row into weights; the first `seen` of the tokens count.
    void softmax(int64_t r, int64_t g, int64_t held, int64_t seen, int64_t all, bool last) {
        float* x = &scores[r * all];
        if (c.softcap > 0)
            for (int64_t i = 0; i < held + seen; ++i) x[i] = float(c.softcap * std::tanh(x[i] / c.softcap));
        for (int64_t i = 0; i < held; i += W) store(x + i, load(x + i) + load(&bias[g * columns + i]));
        std::fill(x + held + seen, x + all, -INFINITY);
        vf top = vf{} - INFINITY;
        for (int64_t i = 0; i < all; i += W) top = simd::vmax(top, load(x + i));
        const float largest = simd::hmax(top);
        vf total{};
        for (int64_t i = 0; i < all; i += W) {
            const vf weight = simd::vexp(load(x + i) - largest);
            total = total + weight;
            store(x + i, weight);
        }
        const float inverse = 1.0f / simd::hsum(total);
        for (int64_t i = 0; i < all; i += W) {
            const vf weight = load(x + i) * inverse;
            store(x + i, weight);
            if (last) store(&received[i], load(&received[i]) + weight);
        }
    }
};

}  // namespace

extern "C" int folded_memory_forward(const Call* call) {
    return parallel::status_of([&] {
        parallel::parallel_for(call->batch * call->kv_heads, int(call->threads), [&](int64_t job) {
            Head head(*call, job);
            for (int64_t begin = 0; begin < call->length; begin += call->fold) {
                if (begin > 0) head.fold(begin);
                head.attend(begin);
            }
        });
    });
}
