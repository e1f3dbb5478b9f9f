// What the tiles of one sequence and one head need, laid out for the products. Tokens behind the last one count as
// padding; padding is packed as zeros, so that whatever it holds, even NaN, reaches nothing.
#pragma once
#include <algorithm>
#include <cmath>

#include "problem.h"

namespace distance {

// Which keys a query may meet: those from `first` on, up to itself, that are not padding.
struct Sequence {
    Buffer<int32_t> student_first, teacher_first;  // [padded]; never decreasing
    Buffer<int32_t> real;  // [padded], all ones or 0
    Buffer<uint8_t> whole;  // [tiles], whether a column tile has no padding

    Sequence(const Problem& p, int64_t b)
        : student_first(p.padded()), teacher_first(p.padded()), real(p.padded()), whole(p.tiles()) {
        const int64_t* segment = p.segments == nullptr ? nullptr : p.segments + b * p.length;
        int64_t start = 0;
        for (int64_t t = 0; t < p.padded(); ++t) {
            if (segment != nullptr && t > 0 && t < p.length && segment[t] != segment[t - 1]) start = t;
            student_first[t] = static_cast<int32_t>(start);
            const int64_t near = p.window > 0 ? t - p.window + 1 : 0;
            teacher_first[t] = static_cast<int32_t>(std::max(start, near));
            real[t] = t < p.length && (p.real == nullptr || p.real[b * p.length + t] != 0) ? -1 : 0;
        }
        for (int64_t j = 0; j < p.tiles(); ++j)
            whole[j] = std::all_of(real.get() + j * U, real.get() + (j + 1) * U, [](int32_t r) { return r != 0; });
    }
};

// `rows` tokens of a factor, times `scale`, transposed into out[width][rows].
static void transpose(
    float* out, int rows, const Strided& x, int64_t width, float scale, int64_t b, int64_t t0, int64_t h,
    const int32_t* real
) {
    for (int i = 0; i < rows; ++i) {
        const float* from = x.at(b, t0 + i, h);
        if (real[t0 + i])
            for (int64_t n = 0; n < width; ++n) out[n * rows + i] = from[n] * scale;
        else
            for (int64_t n = 0; n < width; ++n) out[n * rows + i] = 0;
    }
}

// `rows` tokens of a factor into out[rows][padded width].
static void copy(
    float* out, int64_t rows, const Strided& x, int64_t width, int64_t padded, int64_t b, int64_t t0, int64_t h,
    const int32_t* real
) {
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t given = real[t0 + i] ? width : 0;
        const float* from = x.at(b, t0 + i, h);
        std::copy(from, from + given, out + i * padded);
        std::fill(out + i * padded + given, out + (i + 1) * padded, 0.0f);
    }
}

// Keys and input vectors by column tile, and prefix sums of the log-decay in double precision.
struct Columns {
    Buffer<float> keys;  // [tiles][width][U]
    Buffer<float> B_across;  // [tiles][state][U]
    Buffer<float> B;  // [padded][padded state]
    Buffer<double> S;  // [padded]

    explicit Columns(const Problem& p)
        : keys(p.tiles() * p.width * U),
          B_across(p.tiles() * p.state * U),
          B(p.dB == nullptr ? 0 : p.padded() * p.padded_state()),
          S(p.padded()) {}

    void pack_keys(const Problem& p, const Sequence& sequence, int64_t b, int64_t h) {
        for (int64_t j = 0; j < p.tiles(); ++j)
            transpose(keys.get() + j * p.width * U, U, p.k, p.width, 1, b, j * U, h, sequence.real.get());
    }

    void pack_B(const Problem& p, const Sequence& sequence, int64_t b, int64_t g) {
        for (int64_t j = 0; j < p.tiles(); ++j)
            transpose(B_across.get() + j * p.state * U, U, p.B, p.state, 1, b, j * U, g, sequence.real.get());
        if (B.get() != nullptr)
            copy(B.get(), p.padded(), p.B, p.state, p.padded_state(), b, 0, g, sequence.real.get());
    }

    void sum_decays(const Problem& p, int64_t b, int64_t h) {
        double sum = 0;
        for (int64_t t = 0; t < p.padded(); ++t) {
            if (t < p.length) {
                const float step = *p.log_a.at(b, t, h);
                sum += step < FLOOR ? FLOOR : step;
            }
            S[t] = sum;
        }
    }
};

}  // namespace distance
