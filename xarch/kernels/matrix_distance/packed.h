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

// U tokens of a factor into out[padded width][U].
static void copy_across(
    float* out, const Strided& x, int64_t width, int64_t b, int64_t t0, int64_t h, const int32_t* real, float* scratch
) {
    const int64_t padded = gemm::padded(width);
    copy(scratch, U, x, width, padded, b, t0, h, real);
    gemm::transpose(scratch, padded, out, U, U, padded);
}

// Keys and input vectors by column tile, and prefix sums of the log-decay in double precision.
class Columns {
public:
    Buffer<float> keys;  // [tiles][padded width][U]
    Buffer<float> B_across;  // [tiles][padded state][U]
    Buffer<float> B;  // [padded][padded state]
    Buffer<double> S;  // [padded]

    explicit Columns(const Problem& p)
        : keys(p.padded() * p.padded_width()),
          B_across(p.padded() * p.padded_state()),
          B(p.dB == nullptr ? 0 : p.padded() * p.padded_state()),
          S(p.padded()),
          scratch_(U * std::max(p.padded_width(), p.padded_state())) {}

    void pack_keys(const Problem& p, const Sequence& sequence, int64_t b, int64_t h) {
        for (int64_t j = 0; j < p.tiles(); ++j)
            copy_across(
                keys.get() + j * U * p.padded_width(), p.k, p.width, b, j * U, h, sequence.real.get(), scratch_.get()
            );
    }

    void pack_B(const Problem& p, const Sequence& sequence, int64_t b, int64_t g) {
        for (int64_t j = 0; j < p.tiles(); ++j)
            copy_across(
                B_across.get() + j * U * p.padded_state(), p.B, p.state, b, j * U, g, sequence.real.get(), scratch_.get()
            );
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

private:
    Buffer<float> scratch_;  // one tile
};

}  // namespace distance
