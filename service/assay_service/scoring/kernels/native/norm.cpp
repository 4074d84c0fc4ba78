// Root-mean-square norm, a row at a time, so that a row never depends on its neighbours.
#include <torch/library.h>

#include "common.h"

namespace assay {
namespace {

// Computes x / sqrt(mean(x^2) + eps) * weight. With `round_first` the quotient is rounded before the product (Llama),
// without it is not (Gemma).
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, bool round_first) {
  const int64_t width = x.size(-1), rows = x.numel() / width;
  TORCH_CHECK(weight.scalar_type() == at::kFloat && weight.numel() == width && width % kLanes == 0, "weight");
  const auto in = x.contiguous();
  auto y = at::empty_like(in);
  const float* w = weight.const_data_ptr<float>();
  with_type(x, [&](auto type) {
    using T = decltype(type);
    const T* from = in.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    at::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
      Scratch<float> line(width);
      float* v = line.get();
      for (int64_t row = begin; row < end; ++row) {
        const T* x_row = from + row * width;
        T* out = to + row * width;
        Vec squares(0.f);
        for (int64_t j = 0; j < width; j += kLanes) squares = fmadd(load(x_row + j), load(x_row + j), squares);
        const Vec factor(1 / std::sqrt(sum(squares) / width + static_cast<float>(eps)));
        for (int64_t j = 0; j < width; j += kLanes) {
          const Vec normed = load(x_row + j) * factor;
          (round_first ? normed : normed * Vec::loadu(w + j)).store(v + j);
        }
        store(v, out, width);
        if (!round_first) continue;
        for (int64_t j = 0; j < width; j += kLanes) (load(out + j) * Vec::loadu(w + j)).store(v + j);
        store(v, out, width);
      }
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(assay, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps, bool round_first) -> Tensor", rms_norm);
}

}  // namespace assay
