// Products of 8-bit integers, which are exact, so that no order of summation can change them.
#pragma once

#include "common.h"

namespace assay {

constexpr int64_t kQuad = 4;         // consecutive k of a column that lie side by side
constexpr int64_t kBeside = 2 * kQuad;  // numbers of a column beside its integers: its scale, and 128 times their sum
constexpr int64_t kZero = 128;       // the unsigned number that stands for 0 in an input
constexpr float kLargest = 127.f;    // the largest magnitude of a number
constexpr int64_t kMostInputs = 66000;  // 255 * 127 * k must be below 2^31

// Rows of an input as integers: x = (number - kZero) * scale. A row that is not finite has the scale NaN.
struct Quantised {
  Scratch<uint8_t> numbers;  // [m, k]
  Scratch<float> scales;     // [m]
};

// Quantises every row of x, fp32 [m, k], by its largest magnitude.
Quantised quantise(const at::Tensor& x);

// Packs a weight of integers, int8 [N, K] and scales [N] -> int8 [panels, K / 4 + 2, columns, 4]. The last two rows of a
// panel are the scales of its columns, fp32, and 128 times the sums of their integers, int32.
at::Tensor pack_integers(const at::Tensor& numbers, const at::Tensor& scales, int64_t columns);

// Computes rows [rows, k] of an input times a panel, fp32 [rows, columns]; `sums` is scratch of the same size.
void multiply_integers(int64_t rows, int64_t columns, int64_t k, const uint8_t* a, const float* scales, const int8_t* panel,
                       int32_t* sums, float* tile);

}  // namespace assay
