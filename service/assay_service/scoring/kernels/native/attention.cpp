// Attention within the segments of a packed row, each with its prefix. Keys are packed once, in chunks that begin with
// each segment. The keys of a query, and the order of summation, therefore depend on its item only.
#include <torch/library.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <vector>

#include "common.h"

namespace assay {
namespace {

constexpr int64_t kKeys = 64;      // keys in a chunk
constexpr int64_t kQueries = 128;  // queries in a block, over the heads that share keys
constexpr float kHidden = -std::numeric_limits<float>::infinity();

struct Segment {
  int64_t start, tokens, chunk;         // place in the row, number of tokens, and first chunk
  int64_t prefix_tokens, prefix_chunk;  // 0 tokens without a prefix

  int64_t prefix_chunks() const { return (prefix_tokens + kKeys - 1) / kKeys; }
  int64_t own_chunks() const { return (tokens + kKeys - 1) / kKeys; }
};

// Reads segments from rows [start, end, prefix start, prefix end]; a prefix is an earlier segment.
std::vector<Segment> read(const at::Tensor& table, int64_t row_tokens) {
  TORCH_CHECK(table.scalar_type() == at::kLong && table.dim() == 2 && table.size(0) > 0 && table.size(1) == 4 && table.is_contiguous(), "segments");
  const int64_t* p = table.const_data_ptr<int64_t>();
  std::vector<Segment> segments;
  std::unordered_map<int64_t, const int64_t*> known;
  std::unordered_map<int64_t, int64_t> chunk_of;
  int64_t chunks = 0, covered = 0;
  for (int64_t i = 0; i < table.size(0); ++i, p += 4) {
    TORCH_CHECK(p[0] == covered && p[1] > p[0] && p[1] <= row_tokens, "segment ", i, " does not lie in the row");
    Segment s{p[0], p[1] - p[0], chunks, p[3] - p[2], 0};
    if (s.prefix_tokens) {
      TORCH_CHECK(known.count(p[2]) && known[p[2]][1] == p[3], "the prefix of segment ", i, " is no segment before it");
      s.prefix_chunk = chunk_of[p[2]];
    }
    known[s.start] = p;
    chunk_of[s.start] = chunks;
    chunks += s.own_chunks();
    covered = p[1];
    segments.push_back(s);
  }
  return segments;
}

// Heads of tokens, with the cosines and sines that rotate them by position (rotary embedding; null without one).
template <typename T>
struct Heads {
  const T* data;
  int64_t head_stride, token_stride, width;
  const T *cos, *sin;  // [T, width]

  Heads(const at::Tensor& t, const at::Tensor& cos_, const at::Tensor& sin_)
      : data(t.const_data_ptr<T>()), head_stride(t.stride(1)), token_stride(t.stride(2)), width(t.size(3)),
        cos(cos_.defined() ? cos_.const_data_ptr<T>() : nullptr), sin(cos_.defined() ? sin_.const_data_ptr<T>() : nullptr) {}

  void prefetch(int64_t head, int64_t token) const {
    const T* from = data + head * head_stride + token * token_stride;
    for (int64_t i = 0; i < width; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + i);
  }

  // Writes one head of one token, rotated; `line` is scratch memory for one head.
  void copy(int64_t head, int64_t token, T* to, float* line) const {
    const T* from = data + head * head_stride + token * token_stride;
    if (!cos) {
      std::copy_n(from, width, to);
      return;
    }
    const int64_t half = width / 2;
    const T *c = cos + token * width, *s = sin + token * width;
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const Vec low = load(from + i), high = load(from + i + half);
      fmsub(low, load(c + i), high * load(s + i)).store(line + i);
      fmadd(high, load(c + i + half), low * load(s + i + half)).store(line + i + half);
    }
    for (; i < half; ++i) {
      const float low = from[i], high = from[i + half];
      line[i] = std::fma(low, static_cast<float>(c[i]), -(high * static_cast<float>(s[i])));
      line[i + half] = std::fma(high, static_cast<float>(c[i + half]), low * static_cast<float>(s[i + half]));
    }
    store(line, to, width);
  }
};

// Packs keys [64, d] -> [d / pair, 64, pair] and values [64, d] -> [64 / pair, d, pair], as oneDNN reads them.
template <typename T>
void pack_chunk(const T* keys, const T* values, int64_t d, T* packed_keys, T* packed_values) {
  constexpr int64_t pair = kPair<T>;
  const auto* rows = reinterpret_cast<const float*>(keys);
  auto* columns = reinterpret_cast<float*>(packed_keys);
  const int64_t width = d / pair;
  for (int64_t j = 0; j < kKeys; j += 8) {
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) transpose_8(rows + j * width + i, width, columns + i * kKeys + j, kKeys);
    for (; i < width; ++i)
      for (int64_t key = j; key < j + 8; ++key) std::memcpy(columns + i * kKeys + key, rows + key * width + i, sizeof(float));
  }
  if constexpr (pair == 1) {
    std::copy_n(values, kKeys * d, packed_values);
  } else {
    const auto* from = reinterpret_cast<const uint16_t*>(values);
    auto* to = reinterpret_cast<uint32_t*>(packed_values);
    for (int64_t j = 0; j < kKeys; j += 2, from += 2 * d, to += d)
      for (int64_t i = 0; i < d; ++i) to[i] = from[i] | static_cast<uint32_t>(from[i + d]) << 16;
  }
}

// Turns the scores of one query into weights that are not yet normalised, and returns their sum. Chunks are `step`
// apart; the scores of hidden keys are -inf.
template <typename T>
float softmax(float* scores, T* weights, int64_t chunks, int64_t step, float scale) {
  Vec top[kKeys / kLanes];
  std::fill(top, top + kKeys / kLanes, Vec(kHidden));
  for (int64_t c = 0; c < chunks; ++c)  // the maximum ignores a NaN, but the sum below keeps it
    for (int64_t j = 0; j < kKeys / kLanes; ++j) top[j] = max(Vec::loadu(scores + c * step + kLanes * j), top[j]);
  float lanes[kLanes];
  max(max(top[0], top[1]), max(top[2], top[3])).store(lanes);
  const Vec factor(scale * kLog2E), highest(*std::max_element(lanes, lanes + kLanes));
  Vec total(0.f);
  for (int64_t c = 0; c < chunks; ++c) {
    for (int64_t j = 0; j < kKeys; j += 2 * kLanes) {
      const float* at = scores + c * step + j;
      const Vec low = power_of_2((Vec::loadu(at) - highest) * factor);
      const Vec high = power_of_2((Vec::loadu(at + kLanes) - highest) * factor);
      total = total + (low + high);
      store(low, high, weights + c * step + j);
    }
  }
  return sum(total);
}

// Bounds the scores of one query smoothly (Gemma 2): cap * tanh(score * scale / cap). Hidden keys come later, because -inf
// would become -cap.
inline void bound(float* scores, int64_t chunks, int64_t step, float scale, float cap) {
  const Vec factor(scale / cap), top(cap);
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t j = 0; j < kKeys; j += kLanes) {
      float* at = scores + c * step + j;
      (tanh(Vec::loadu(at) * factor) * top).store(at);
    }
}

struct Shape {
  int64_t heads, kv_heads, width, chunks, window;
  float scale, softcap;  // softcap: 0 without one
  bool causal;

  int64_t group() const { return heads / kv_heads; }
  int64_t block() const { return std::max<int64_t>(16, kQueries / group()); }
  int64_t chunk_size() const { return kKeys * width; }
};

template <typename T>
struct Packed {
  T *keys, *values;  // [kv heads, chunks, 64 * d]
};

template <typename T>
void pack_keys(const Shape& shape, const std::vector<Segment>& segments, const Heads<T>& k, const Heads<T>& v, Packed<T> packed) {
  std::vector<std::pair<const Segment*, int64_t>> chunks;
  for (const auto& s : segments)
    for (int64_t c = 0; c < s.own_chunks(); ++c) chunks.emplace_back(&s, c);
  const int64_t d = shape.width, size = shape.chunk_size();
  at::parallel_for(0, chunks.size() * shape.kv_heads, 4, [&](int64_t begin, int64_t end) {
    Scratch<T> lines(2 * size);
    Scratch<float> line(d);
    for (int64_t task = begin; task < end; ++task) {
      const auto& [s, c] = chunks[task / shape.kv_heads];
      const int64_t head = task % shape.kv_heads, first = c * kKeys, n = std::min(kKeys, s->tokens - first);
      T *keys = lines.get(), *values = keys + size;
      for (int64_t j = 0; j < n; ++j) {
        k.copy(head, s->start + first + j, keys + j * d, line.get());
        v.copy(head, s->start + first + j, values + j * d, line.get());
      }
      std::fill(keys + n * d, keys + size, T(0));
      std::fill(values + n * d, values + size, T(0));
      const int64_t at = (head * shape.chunks + s->chunk + c) * size;
      pack_chunk<T>(keys, values, d, packed.keys + at, packed.values + at);
    }
  });
}

template <typename T>
struct Workspace {
  Growing<T> turned, weights;
  Growing<float> scores, result, line;
};

// A block of queries of one segment, for all heads that share their keys. It is the unit of work of a thread.
template <typename T>
struct Block {
  const Shape& shape;
  const Segment& s;
  int64_t head, first;  // key-value head; first query, counted from the start of the segment

  int64_t queries() const { return std::min(shape.block(), s.tokens - first); }
  int64_t rows() const { return (shape.group() * queries() + 15) / 16 * 16; }
  int64_t own_chunks() const { return shape.causal ? (first + queries() + kKeys - 1) / kKeys : s.own_chunks(); }
  int64_t chunks() const { return s.prefix_chunks() + own_chunks(); }
  int64_t chunk_at(int64_t c) const {
    const int64_t before = s.prefix_chunks();
    return (head * shape.chunks + (c < before ? s.prefix_chunk + c : s.chunk + c - before)) * shape.chunk_size();
  }

  // Hides keys from query `i` of the segment: the padding of chunks, later tokens, and tokens outside the window.
  void hide(int64_t i, float* scores, int64_t step) const {
    const int64_t before = s.prefix_chunks(), age = shape.window > 0 ? shape.window : std::numeric_limits<int64_t>::max();
    const int64_t ahead = shape.causal ? 1 : std::min(age, s.tokens - i);  // visible tokens from itself on
    const int64_t seen = i + ahead;
    const int64_t own_from = std::max<int64_t>(0, i + 1 - std::min(age, i + 1));
    const int64_t left = age > i + 1 ? age - (i + 1) : 0;             // part of the window that reaches into the prefix
    const int64_t prefix_from = s.prefix_tokens - std::min(left, s.prefix_tokens);
    for (int64_t c = 0; c < chunks(); ++c) {
      const bool prefix = c < before;
      const int64_t base = (prefix ? c : c - before) * kKeys;
      const int64_t from = std::clamp<int64_t>((prefix ? prefix_from : own_from) - base, 0, kKeys);
      const int64_t to = std::clamp<int64_t>((prefix ? s.prefix_tokens : seen) - base, from, kKeys);
      std::fill(scores + c * step, scores + c * step + from, kHidden);
      std::fill(scores + c * step + to, scores + c * step + kKeys, kHidden);
    }
  }

  void attend(const Heads<T>& q, Packed<T> packed, Workspace<T>& space, T* out) const {
    const int64_t d = shape.width, n = queries(), m = rows(), step = m * kKeys;
    T *turned = space.turned.get(m * d), *weights = space.weights.get(chunks() * step);
    float *scores = space.scores.get(chunks() * step), *result = space.result.get(m * d), *line = space.line.get(d);
    for (int64_t r = 0; r < shape.group() * n; ++r) q.prefetch(head * shape.group() + r / n, s.start + first + r % n);
    for (int64_t r = 0; r < shape.group() * n; ++r)
      q.copy(head * shape.group() + r / n, s.start + first + r % n, turned + r * d, line);
    std::fill(turned + shape.group() * n * d, turned + m * d, T(0));
    for (int64_t c = 0; c < chunks(); ++c)
      multiply<T>(m, kKeys, d, turned, d, packed.keys + chunk_at(c), scores + c * step);
    std::vector<float> sums(m, 1.f);
    for (int64_t r = 0; r < shape.group() * n; ++r) {
      if (shape.softcap > 0) bound(scores + r * kKeys, chunks(), step, shape.scale, shape.softcap);
      hide(first + r % n, scores + r * kKeys, step);
      const float scale = shape.softcap > 0 ? 1.f : shape.scale;
      sums[r] = softmax<T>(scores + r * kKeys, weights + r * kKeys, chunks(), step, scale);
    }
    for (int64_t c = 0; c < chunks(); ++c)
      multiply<T>(m, d, kKeys, weights + c * step, kKeys, packed.values + chunk_at(c), result, c > 0);
    for (int64_t r = 0; r < shape.group() * n; ++r) {
      float* row = result + r * d;
      const float factor = 1 / sums[r];
      for (int64_t j = 0; j < d; ++j) row[j] *= factor;
      store(row, out + ((s.start + first + r % n) * shape.heads + head * shape.group() + r / n) * d, d);
    }
  }
};

template <typename T>
void run(const Shape& shape, const std::vector<Segment>& segments, const Heads<T>& q, const Heads<T>& k, const Heads<T>& v, T* out) {
  const int64_t size = shape.kv_heads * shape.chunks * shape.chunk_size();
  Scratch<T> keys(size), values(size);
  const Packed<T> packed{keys.get(), values.get()};
  pack_keys(shape, segments, k, v, packed);
  std::vector<Block<T>> blocks;
  for (const auto& s : segments)
    for (int64_t first = 0; first < s.tokens; first += shape.block())
      for (int64_t head = 0; head < shape.kv_heads; ++head) blocks.push_back({shape, s, head, first});
  std::atomic<size_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    const Unit<T> unit;
    Workspace<T> space;
    for (size_t i; (i = next.fetch_add(1)) < blocks.size();) blocks[i].attend(q, packed, space, out);
  });
}

// Computes q [1, heads, T, d], k and v [1, kv heads, T, d] -> [1, T, heads, d]; tokens outside of segments get zeros.
// A token sees `window` tokens, itself included, back from itself, and forward too where not causal; 0 means all.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::optional<at::Tensor>& cos,
                     const std::optional<at::Tensor>& sin, const at::Tensor& table, double scale, int64_t window, bool causal,
                     double softcap) {
  for (const auto& t : {q, k, v})
    TORCH_CHECK(t.dim() == 4 && t.size(0) == 1 && t.stride(3) == 1 && t.size(3) == q.size(3) && t.size(2) == q.size(2), "heads");
  TORCH_CHECK(k.size(1) > 0 && v.size(1) == k.size(1) && q.size(1) % k.size(1) == 0 && q.size(3) % 2 == 0, "head sizes");
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), "heads of several types");
  TORCH_CHECK(cos.has_value() == sin.has_value(), "cos and sin");
  for (const auto& t : {cos, sin})
    TORCH_CHECK(!t || (t->numel() == q.size(2) * q.size(3) && t->size(-1) == q.size(3) && t->scalar_type() == q.scalar_type()), "cos and sin");
  const auto segments = read(table, q.size(2));
  const Segment& last = segments.back();
  const Shape shape{q.size(1), k.size(1), q.size(3), last.chunk + last.own_chunks(), window, static_cast<float>(scale),
                    static_cast<float>(softcap), causal};
  auto out = at::empty({1, q.size(2), q.size(1), q.size(3)}, q.options());
  out.narrow(1, last.start + last.tokens, q.size(2) - last.start - last.tokens).zero_();
  const auto c = cos ? cos->contiguous() : at::Tensor(), s = sin ? sin->contiguous() : at::Tensor();
  with_type(q, [&](auto type) {
    using T = decltype(type);
    run<T>(shape, segments, Heads<T>(q, c, s), Heads<T>(k, c, s), Heads<T>(v, {}, {}), out.mutable_data_ptr<T>());
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(assay, m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? cos, Tensor? sin, Tensor segments, float scale, int window, "
      "bool causal, float softcap=0.) -> Tensor",
      attention);
}

}  // namespace assay
