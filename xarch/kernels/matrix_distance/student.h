// The student's part of one tile of query rows against each tile of keys: errors, their squares and their gradients.
//
// With an origin between rows and columns, exp(S_t - S_s) = a_t b_s, a_t = exp(S_t - origin), b_s = exp(origin - S_s),
// both at most 1: rows take a_t with C, columns take b_s with the products, and no entry needs an exp of its own. Tiles
// on the diagonal and tiles that hold a change of document get their decays entry by entry.
#pragma once
#include "teacher.h"

namespace distance {

struct Squares {
    double error = 0, teacher = 0, skip = 0;  // skip: half the gradient for D
};

inline void split(double value, float& near, float& rest) {
    near = static_cast<float>(value);
    rest = static_cast<float>(value - near);
}

class Rows {
    Buffer<float> C_, scaled_;  // [T][padded state], without and with a_t
    Buffer<float> C_across_, scaled_across_;  // [padded state][T]
    Buffer<float> dC_, dC_scaled_;  // [T][padded state]
    Buffer<float> weight_;  // [T][U], error times decay
    alignas(64) float decay_[T];  // a_t
    // What float32 loses of these prefix sums stands beside them: behind strong decays they are so large within a tile
    // that the difference of two would leave weak decays no digits.
    alignas(64) float exponent_[T], exponent_rest_[T];  // S_t - origin
    alignas(64) float back_[U], back_rest_[U];  // origin - S_s
    alignas(64) float own_[T];  // weight of t = s, kept out of dC and dB: it does not depend on the decays

public:
    explicit Rows(const Problem& p)
        : C_(T * p.padded_state()), scaled_(T * p.padded_state()), C_across_(p.padded_state() * T), scaled_across_(p.padded_state() * T),
          dC_(T * p.padded_state()), dC_scaled_(T * p.padded_state()), weight_(T * U) {}

    const float* C(int i, const Problem& p) const { return C_.get() + i * p.padded_state(); }
    float* dC(int i, const Problem& p) const { return dC_.get() + i * p.padded_state(); }
    float own(int i) const { return own_[i]; }

    void begin(const Problem& p, const Sequence& sequence, const Columns& columns, int64_t b, int64_t g, int64_t t0) {
        const int64_t width = p.padded_state();
        copy(C_.get(), T, p.C, p.state, width, b, t0, g, sequence.real.get());
        gemm::transpose(C_.get(), width, C_across_.get(), T, T, width);
        for (int i = 0; i < T; ++i) {
            const float exponent = static_cast<float>(columns.S[t0 + i] - columns.S[t0]);
            exponent_[i] = exponent < FLOOR ? FLOOR : exponent;
        }
        for (int i = 0; i < T; i += W) simd::store(decay_ + i, simd::vexp(simd::load(exponent_ + i)));
        for (int i = 0; i < T; ++i) split(columns.S[t0 + i] - columns.S[t0], exponent_[i], exponent_rest_[i]);
        for (int64_t n = 0; n < p.state; ++n)
            for (int i = 0; i < T; ++i) scaled_across_[n * T + i] = C_across_[n * T + i] * decay_[i];
        for (int i = 0; i < T; ++i)
            for (int64_t n = 0; n < width; ++n) scaled_[i * width + n] = C_[i * width + n] * decay_[i];
        std::fill(dC_.get(), dC_.get() + T * width, 0.0f);
        std::fill(dC_scaled_.get(), dC_scaled_.get() + T * width, 0.0f);
    }

    // dC of the rows is whole after this, but for the weight of t = s.
    void finish(const Problem& p) {
        const int64_t width = p.padded_state();
        for (int i = 0; i < T; ++i)
            for (int64_t n = 0; n < width; ++n) dC_[i * width + n] += decay_[i] * dC_scaled_[i * width + n];
    }

    // One tile of keys; dB [padded][padded state] gains its part, null: no gradient.
    void visit(
        const Problem& p, const Sequence& sequence, const Columns& columns, const Panel& panel, float skip, int64_t t0,
        int64_t j, float* dB, Squares& squares
    ) {
        const int64_t s0 = j * U, s1 = s0 + U, width = p.padded_state();
        const bool before = s1 - 1 <= t0;
        const float* P = panel.tile(j);
        if (before && (s1 - 1 < sequence.student_first[t0] || columns.S[t0] - columns.S[s1 - 1] < GONE)) {
            if (P != nullptr) teacher_only(P, panel.factors(j), squares);
            return;
        }
        for (int i = 0; i < U; ++i) split(columns.S[t0] - columns.S[s0 + i], back_[i], back_rest_[i]);
        const float* B_across = columns.B_across.get() + j * U * width;
        const bool factored = before && s0 >= sequence.student_first[t0 + T - 1];
        if (factored) {
            for (int i = 0; i < U; i += W)
                simd::store(back_ + i, simd::vexp(simd::vmax(simd::load(back_ + i), simd::splat(FLOOR))));
            if (P != nullptr)
                products<true>(p, B_across, P, panel.factors(j), squares);
            else
                products<false>(p, B_across, nullptr, nullptr, squares);
        } else {
            product::multiply<1, T, T, false>(weight_.get(), U, U, C_across_.get(), B_across, U, p.state);
            entries(sequence, P, P == nullptr ? nullptr : panel.factors(j), skip, s0, t0, squares);
        }
        if (dB == nullptr) return;
        const float* C = factored ? scaled_.get() : C_.get();
        float* dC = factored ? dC_scaled_.get() : dC_.get();
        product::multiply<U, 1, T, true>(dC, width, width, weight_.get(), columns.B.get() + s0 * width, width, U);
        product::multiply<1, U, U, true>(dB + s0 * width, width, width, weight_.get(), C, width, T);
    }

private:
    static void teacher_only(const float* P, const float* factors, Squares& squares) {
        double sum = 0;
        for (int i = 0; i < T; ++i) {
            vf part{};
            for (int v = 0; v < VU; ++v) {
                const vf value = simd::load(P + i * U + v * W) * factors[i];
                part = simd::fma(value, value, part);
            }
            sum += simd::hsum(part);
        }
        squares.error += sum;
        squares.teacher += sum;
    }

    // A tile whose decays factor: errors leave the registers as weights, once.
    template <bool ATTENDED>
    void products(const Problem& p, const float* B_across, const float* P, const float* factors, Squares& squares) {
        using product::ROWS;
        vf error[product::VECTORS] = {}, teacher[product::VECTORS] = {};
        for (int c = 0; c < U; c += product::VECTORS * W) {
            int r = 0;
            for (; r + ROWS <= T; r += ROWS) block<ATTENDED, ROWS>(p, B_across, P, factors, r, c, error, teacher);
            if constexpr (T % ROWS != 0) block<ATTENDED, T % ROWS>(p, B_across, P, factors, r, c, error, teacher);
        }
        for (int v = 0; v < product::VECTORS; ++v) {
            squares.error += simd::hsum(error[v]);
            squares.teacher += simd::hsum(teacher[v]);
        }
    }

    template <bool ATTENDED, int R>
    inline __attribute__((always_inline)) void block(
        const Problem& p, const float* B_across, const float* P, const float* factors, int r, int c, vf* error,
        vf* teacher
    ) {
        constexpr int V = product::VECTORS;
        vf sum[R][V] = {};
        product::block<1, T, R, V>(sum, scaled_across_.get() + r, B_across + c, U, p.state);
#pragma GCC unroll 6
        for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                const int64_t at = (r + i) * U + c + v * W;
                const vf back = simd::load(back_ + c + v * W);
                vf e = sum[i][v] * back;
                if (ATTENDED) {
                    const vf attention = simd::load(P + at) * factors[r + i];
                    teacher[v] = simd::fma(attention, attention, teacher[v]);
                    e -= attention;
                }
                error[v] = simd::fma(e, e, error[v]);
                simd::store(weight_.get() + at, e * back);
            }
        }
    }

    // Any tile: products are in weight_, and become weights entry by entry.
    void entries(
        const Sequence& sequence, const float* P, const float* factors, float skip, int64_t s0, int64_t t0,
        Squares& squares
    ) {
        for (int i = 0; i < T; ++i) {
            const int64_t t = t0 + i;
            vf error{}, teacher{};
            for (int v = 0; v < VU; ++v) {
                float* at = weight_.get() + i * U + v * W;
                const int64_t s = s0 + v * W;
                vi mask = allowed(s, sequence.student_first[t], t, sequence.real.get());
                mask &= vi{} + sequence.real[t];
                const vf rest = exponent_rest_[i] + simd::load(back_rest_ + v * W);
                const vf exponent = simd::vmin(exponent_[i] + simd::load(back_ + v * W) + rest, vf{});
                const vf decay = simd::select(mask, simd::vexp(simd::vmax(exponent, simd::splat(FLOOR))), vf{});
                vf e = simd::load(at) * decay;
                e += simd::select((lanes(s) == static_cast<int32_t>(t)) & mask, simd::splat(skip), vf{});
                if (P != nullptr) {
                    const vf attention = simd::load(P + i * U + v * W) * factors[i];
                    teacher = simd::fma(attention, attention, teacher);
                    e -= attention;
                }
                error = simd::fma(e, e, error);
                simd::store(at, e * decay);
            }
            squares.error += simd::hsum(error);
            squares.teacher += simd::hsum(teacher);
            if (t < s0 || t >= s0 + U) continue;
            float& own = weight_[i * U + (t - s0)];
            squares.skip += own;
            own_[i] = own;
            own = 0;
        }
    }
};

}  // namespace distance
