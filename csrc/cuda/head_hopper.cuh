// The first convolution on Hopper: what head.cuh computes, streamed.
//
// Each warpgroup of a block streams its own segments of strips of 64 columns, independently of the
// others.  A comes from registers: the windows of the last `kernel` image rows stay there, so each
// image row is loaded once and serves as many output rows.  A new row overwrites the oldest one,
// and instead of the rows, the weights rotate: they are in shared memory twice, one copy after the
// other, and a row of outputs takes `kernel` rows of weights from that sequence.  Rows above and
// below a segment cost no products.
//
// A 9x9 kernel and 32 channels take 18 products of N = 32 for 64 pixels: 335 cycles of the tensor
// cores with three warpgroups, and 224 of the shared memory port: 144 for the weights, 32 for the
// windows, 16 for storing the row, 32 for the output.
//
// With a pixel unshuffle of 2 a row in shared memory is a row of the unshuffled image, as a feature
// map of 16 channels (12 and padding), and ldmatrix loads the windows.  A factor of 4 has the first
// kernel only: its windows alone would take 108 registers.
#pragma once

#include <type_traits>

#include "head.cuh"
#include "stream.cuh"

namespace espan::cuda {

template <class T_, int P_, int Kernel_, int Unshuffle_, int Groups_>
struct HeadStream {
  using T = T_;
  static constexpr int P = P_, kKernel = Kernel_, kUnshuffle = Unshuffle_, kValid = 64;
  static constexpr int kGroups = Groups_, kThreads = 128 * kGroups;
  // The networks have activations after 3x3 convolutions of the whole image only.
  static constexpr bool kActivates = kKernel == 3 && kUnshuffle == 1;
  // A row of a window is `kernel` pixels of these values, in runs of 16.
  static constexpr int kPixel = kUnshuffle == 1 ? 3 : 16;
  static constexpr int kRuns = (kPixel * kKernel + 15) / 16;
  using Pixels = StreamRow<kPixel>;
  // A row in shared memory: the values of 64 windows, and a copy shifted by one value, in which the
  // pairs of odd pixels are aligned.  As in head.cuh the copies start 16 banks apart.
  static constexpr int kRowValues = 3 * 63 + 16 * kRuns;
  static constexpr int kCopy = (2 * kRowValues + 63) / 128 * 128 + 64;
  static_assert(kCopy >= 2 * kRowValues);
  static constexpr int kRow = kUnshuffle == 1 ? 2 * kCopy : Pixels::kRow;
  // Rows are loaded from memory in batches, each during the products of the one before.  Loaded one
  // by one, they arrived too late: 0.089 ms at 1920x1080 on an H200, instead of 0.073.
  // A row of the unshuffled image has four times as many values.
  static constexpr int kBatch = kUnshuffle == 1 ? 4 : 2;
  // A segment begins with kernel rows.  A batch arrives while some warps still read those or the
  // batch before.
  static constexpr int kRows = (kKernel > kBatch ? kKernel : kBatch) + kBatch;
  static constexpr int kRing = kRows * kRow;
  static constexpr int kWeightRow = 32 * P * kRuns, kWeights = kKernel * kWeightRow;
  // The last row is never taken from the second copy.
  static constexpr int kRings = 2 * kWeights - kWeightRow;
  static constexpr int kBarriers = kRings + kGroups * kRing;
  static constexpr int kSharedBytes = kBarriers + 8 * (1 + kGroups);
  static constexpr int kGroup = Group<P>::kTiles, kOutputGroups = P / Group<P>::kChannels;
};

template <class T, int Kernel, int Unshuffle, class F>
void for_each_head_stream(F f) {
  // Those with enough registers.
  constexpr int kGroups = Kernel == 11 ? 2 : Kernel >= 7 || Unshuffle == 2 ? 3 : 4;
  f(HeadStream<T, 16, Kernel, Unshuffle, kGroups>{});
  f(HeadStream<T, 32, Kernel, Unshuffle, kGroups>{});
  f(HeadStream<T, 48, Kernel, Unshuffle, kGroups>{});
  f(HeadStream<T, 64, Kernel, Unshuffle, kGroups>{});
}
template <class T, class F>
void for_each_head_stream(F f) {
  for_each_head_stream<T, 3, 1>(f);
  for_each_head_stream<T, 5, 1>(f);
  for_each_head_stream<T, 7, 1>(f);
  for_each_head_stream<T, 9, 1>(f);
  for_each_head_stream<T, 11, 1>(f);
  for_each_head_stream<T, 3, 2>(f);
}

// The rows of the image: how a thread loads its values and stores them in shared memory, and how a
// lane loads its windows from there.
template <class S>
struct ImageRows : StreamStrip<S> {
  using T = typename S::T;
  using Base = StreamStrip<S>;
  using Base::inside_columns, Base::left, Base::pixel, Base::quad, Base::rows, Base::top;
  using Raw = uint32_t[2];
  const HeadArguments& p;
  // A thread loads values `value` and `value` + kApart of each row r, g, b, r, g, b, ...: the same
  // colour of two pixels.
  static constexpr int kApart = 126;
  int value, y, end;  // y: the next row to load; end: the first one that is not needed
  const unsigned char* from;
  int64_t row_bytes, pixel_bytes;
  bool inside[2];
  float mean = 0;

  __device__ __forceinline__ ImageRows(const HeadArguments& p, int item, int thread)
      : Base(p.height, p.width, p.tiles_x, p.tiles_y, p.rows, item, thread),
        p(p),
        value(thread % 128),
        y(top - S::kKernel / 2),
        end(top + rows + S::kKernel / 2) {
    if (end > p.height) end = p.height;
    const int n = item / p.tiles_x / p.tiles_y;
    const int size = p.type == Image::uint8 ? 1 : p.type == Image::float32 ? 4 : 2;
    const int x = left - S::kKernel / 2 + value / 3, c = value % 3;
    row_bytes = p.stride[2] * size;
    pixel_bytes = p.stride[3] * size;
    from = static_cast<const unsigned char*>(p.image) +
           (n * p.stride[0] + c * p.stride[1] + y * p.stride[2] + x * p.stride[3]) * size;
    if (p.mean != nullptr) mean = load_global(p.mean + c);
#pragma unroll
    for (int i = 0; i < 2; ++i) inside[i] = stored(i) && inside_columns(x + i * (kApart / 3));
  }

  __device__ __forceinline__ bool has_row(int y) const {
    return static_cast<unsigned>(y) < static_cast<unsigned>(end);
  }
  // Whether the thread stores its value i.
  __device__ __forceinline__ bool stored(int i) const {
    return value < kApart && value + kApart * i < S::kRowValues;
  }

  // Starts to load the thread's values of the next row.
  template <class V>
  __device__ __forceinline__ void fetch(Raw& raw) {
    const bool row_inside = has_row(y++);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      raw[i] = 0;
      if (row_inside && inside[i])
        raw[i] = load_global(reinterpret_cast<const V*>(from + i * (kApart / 3) * pixel_bytes));
    }
    from += row_bytes;
  }
  // Stores the values of row `y` of the image.
  template <class Widen>
  __device__ __forceinline__ void store(uint32_t slot, int y, const Raw& raw, Widen widen) const {
    const bool row_inside = has_row(y);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t at = slot + 2 * (value + kApart * i);
      const uint32_t v = T::pack(widen(raw[i]) - mean, 0);
      const auto bits = static_cast<uint16_t>(row_inside && inside[i] ? v : 0);
      store_shared(at, bits, stored(i));
      store_shared(at + S::kCopy - 2, bits, stored(i) && value + i > 0);
    }
  }

  // Loads the windows of a row.
  __device__ __forceinline__ void load(uint32_t (&a)[S::kRuns][4], uint32_t slot) const {
    const int odd = pixel & 1;
    const uint32_t at = slot + odd * S::kCopy + (pixel * 3 - odd + 2 * quad) * 2;
#pragma unroll
    for (int run = 0; run < S::kRuns; ++run) {
      load_shared(at + run * 32, a[run][0]);
      load_shared(at + run * 32 + 8 * 6, a[run][1]);  // 8 pixels on
      load_shared(at + run * 32 + 8 * 2, a[run][2]);  // 8 values on
      load_shared(at + run * 32 + 8 * 6 + 8 * 2, a[run][3]);
    }
  }
  __device__ __forceinline__ static void prepare(uint32_t, int) {}
};

// The same for the unshuffled image.
template <class S>
struct PixelRows : StreamStrip<S> {
  using T = typename S::T;
  using Base = StreamStrip<S>;
  using Base::left, Base::rows, Base::top;
  static constexpr int u = S::kUnshuffle;
  // A row of the unshuffled image is u image rows.  Of each, a thread loads the values `value`,
  // `value` + kApart, ...: the same colour at the same place in different unshuffled pixels.
  static_assert(S::kPixel == 16);  // a run is a pixel
  static constexpr int kApart = 128 / (3 * u) * (3 * u), kValues = 3 * u * 66;
  static constexpr int kLoads = (kValues + kApart - 1) / kApart;
  using Raw = uint32_t[u][kLoads];
  const HeadArguments& p;
  int value, y, end;  // y: the next row to load; end: the first one that is not needed
  const unsigned char* image;
  int64_t row_bytes, pixel_bytes;
  int column[kLoads];         // of a value in an image row; negative outside
  uint32_t window[S::kRuns];  // of the lane in a row
  float mean = 0;

  __device__ __forceinline__ PixelRows(const HeadArguments& p, int item, int thread)
      : Base(p.height, p.width, p.tiles_x, p.tiles_y, p.rows, item, thread),
        p(p),
        value(thread % 128),
        y(top - 1),
        end(top + rows + 1) {
    if (end > p.height) end = p.height;
    const int n = item / p.tiles_x / p.tiles_y, c = value % 3;
    const int size = p.type == Image::uint8 ? 1 : p.type == Image::float32 ? 4 : 2;
    row_bytes = p.stride[2] * size;
    pixel_bytes = p.stride[3] * size;
    image = static_cast<const unsigned char*>(p.image) + (n * p.stride[0] + c * p.stride[1]) * size;
    if (p.mean != nullptr) mean = load_global(p.mean + c);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int x = u * (left - 1) + (value + kApart * i) / 3;
      column[i] = stored(i) ? reflected(x, p.image_width, u * p.width) : -1;
    }
#pragma unroll
    for (int dx = 0; dx < S::kRuns; ++dx)
      window[dx] = S::Pixels::offset(thread / 32 % 4 * 16 + thread % 16 + dx, thread / 16 % 2);
  }

  __device__ __forceinline__ bool has_row(int y) const {
    return static_cast<unsigned>(y) < static_cast<unsigned>(end);
  }
  __device__ __forceinline__ bool stored(int i) const {
    return value < kApart && value + kApart * i < kValues;
  }

  template <class V>
  __device__ __forceinline__ void fetch(Raw& raw) {
    const bool row_inside = has_row(y);
#pragma unroll
    for (int dy = 0; dy < u; ++dy) {
      const int line = row_inside ? reflected(u * y + dy, p.image_height, u * p.height) : 0;
      const unsigned char* from = image + line * row_bytes;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        raw[dy][i] = 0;
        if (row_inside && column[i] >= 0)
          raw[dy][i] = load_global(reinterpret_cast<const V*>(from + column[i] * pixel_bytes));
      }
    }
    ++y;
  }
  template <class Widen>
  __device__ __forceinline__ void store(uint32_t slot, int y, const Raw& raw, Widen widen) const {
    const bool row_inside = has_row(y);
    const int from = recompute(value);  // not the places of all values in registers
#pragma unroll
    for (int dy = 0; dy < u; ++dy)
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int pixel = from / (3 * u) + i * (kApart / (3 * u));
        const int of_pixel = from % (3 * u) + 3 * u * dy;
        const uint32_t v = T::pack(widen(raw[dy][i]) - mean, 0);
        const auto bits = static_cast<uint16_t>(row_inside && column[i] >= 0 ? v : 0);
        store_shared(slot + S::Pixels::offset(pixel, of_pixel / 8) + of_pixel % 8 * 2, bits,
                     stored(i));
      }
  }
  __device__ __forceinline__ void load(uint32_t (&a)[S::kRuns][4], uint32_t slot) const {
#pragma unroll
    for (int run = 0; run < S::kRuns; ++run) load_matrix(a[run], slot + window[run]);
  }
  // Clears a ring, and with it the padding of the pixels.
  __device__ __forceinline__ static void prepare(uint32_t ring, int thread) {
    for (int first = 0; first < S::kRing; first += 128 * 16) {
      const int at = first + thread % 128 * 16;
      store_shared(ring + at, make_uint4(0, 0, 0, 0), at < S::kRing);
    }
  }
};

template <class S>
using HeadRows = std::conditional_t<S::kUnshuffle == 1, ImageRows<S>, PixelRows<S>>;

// One segment.
template <class S>
struct HeadStreamWork : HeadRows<S> {
  using T = typename S::T;
  using Base = HeadRows<S>;
  using Base::channel, Base::element, Base::fetch, Base::inside_columns, Base::lane, Base::left;
  using Base::load, Base::p, Base::pixel, Base::quad, Base::rows, Base::store, Base::top;
  using Base::width, Base::y;
  using Raw = typename Base::Raw;
  using Base::Base;

  // The barrier completes a phase when all warps of the group have stored a row.
  __device__ __forceinline__ void pass_on(uint32_t barrier) const {
    synchronize_warp();
    if (lane == 0) barrier_arrive(barrier);
  }
  __device__ __forceinline__ static void wait(uint32_t barrier, uint32_t& phase) {
    barrier_wait(barrier, phase);
    phase ^= 1;
  }

  // Stores the lane's results of a row.
  template <Activation A>
  __device__ __forceinline__ static void store_features(uint16_t* to, const bool (&own)[2],
                                                        const float (&d)[S::P / 2],
                                                        const float2 (&bias)[S::P / 8]) {
#pragma unroll
    for (int high = 0; high < 2; ++high)
#pragma unroll
      for (int g = 0; g < S::kOutputGroups; ++g) {
        Lane<S::kGroup> result;
#pragma unroll
        for (int j = 0; j < S::kGroup; ++j) {
          const int tile = g * S::kGroup + j;
          result.pair[j] = activated<T, A>(T::pack(d[4 * tile + 2 * high] + bias[tile].x,
                                                   d[4 * tile + 2 * high + 1] + bias[tile].y));
        }
        if (own[high])
          store_global(reinterpret_cast<typename Lane<S::kGroup>::Vector*>(
                           to + high * 8 * S::P + g * Group<S::P>::kChannels),
                       result.vector());
      }
  }

  // `weights_ready` is waited for before the first product.
  __device__ __forceinline__ void stream(uint64_t weights, uint32_t weights_ready, uint32_t ring,
                                         uint32_t barrier, uint32_t& phase) {
    uint32_t a[S::kKernel][S::kRuns][4];  // image row t of the segment is in a[t % kKernel]
    Raw next[S::kBatch];
    with_type(p.type, [&](auto v, auto widen) {
      Raw first[S::kKernel];
#pragma unroll
      for (int t = 0; t < S::kKernel; ++t) this->template fetch<decltype(v)>(first[t]);
#pragma unroll
      for (int t = 0; t < S::kBatch; ++t) this->template fetch<decltype(v)>(next[t]);
#pragma unroll
      for (int t = 0; t < S::kKernel; ++t)
        store(ring + t * S::kRow, y - S::kBatch - S::kKernel + t, first[t], widen);
    });
    pass_on(barrier);
    float2 bias[S::P / 8];
#pragma unroll
    for (int j = 0; j < S::P / 8; ++j)
      bias[j] = load_global(reinterpret_cast<const float2*>(p.bias) + 4 * j + quad);
    const bool own[2] = {inside_columns(left + pixel), inside_columns(left + pixel + 8)};
    uint16_t* to = p.features + element(top, left + pixel, channel(0));
    barrier_wait(weights_ready, 0);
    wait(barrier, phase);
#pragma unroll
    for (int t = 0; t < S::kKernel; ++t) load(a[t], ring + t * S::kRow);

    float d[S::P / 2];
    int oldest = 0, slot = S::kKernel;  // the index of the oldest row in a; the next slot
#pragma unroll 1
    for (int u = 0; u < rows; ++u) {
      // a[s] meets row (s - u) % kKernel of the weights.
      const uint64_t rotated =
          weights + (oldest == 0 ? 0 : S::kKernel - oldest) * (S::kWeightRow / 16);
      registers_fence(d);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < S::kKernel; ++s)
#pragma unroll
        for (int run = 0; run < S::kRuns; ++run)
          wgmma<T, S::P>(d, a[s][run], rotated + (s * S::kRuns + run) * (2 * S::P), s + run > 0);
      wgmma_commit();
      const bool batch = u % S::kBatch == 0;
      if (batch)
        with_type(p.type, [&](auto v, auto widen) {
#pragma unroll
          for (int t = 0; t < S::kBatch; ++t) {
            const int at = slot + t < S::kRows ? slot + t : slot + t - S::kRows;
            store(ring + at * S::kRow, y - S::kBatch + t, next[t], widen);
          }
          pass_on(barrier);
#pragma unroll
          for (int t = 0; t < S::kBatch; ++t) this->template fetch<decltype(v)>(next[t]);
        });
      wgmma_wait<0>();
      registers_fence(d);
      if (batch) wait(barrier, phase);
#pragma unroll
      for (int s = 0; s < S::kKernel; ++s)
        if (s == oldest) load(a[s], ring + slot * S::kRow);
      if (++slot == S::kRows) slot = 0;
      if (++oldest == S::kKernel) oldest = 0;
      if constexpr (S::kActivates) {
        if (p.activation == Activation::silu)
          store_features<Activation::silu>(to, own, d, bias);
        else if (p.activation == Activation::relu)
          store_features<Activation::relu>(to, own, d, bias);
        else
          store_features<Activation::none>(to, own, d, bias);
      } else {
        store_features<Activation::none>(to, own, d, bias);
      }
      to += static_cast<int64_t>(width) * S::P;
    }
    // The next segment overwrites the rows.
    pass_on(barrier);
    wait(barrier, phase);
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) head_stream_kernel(const HeadArguments p) {
#ifdef ESPAN_WGMMA
  const int thread = threadIdx.x, group = uniform(thread / 128);
  const uint32_t weights = shared_memory(), ready = weights + S::kBarriers;
  const uint32_t ring = weights + S::kRings + group * S::kRing, barrier = ready + 8 * (1 + group);
  if (thread == 0) {
    barrier_init(ready, 1);
    for (int i = 0; i < S::kGroups; ++i) barrier_init(ready + 8 * (1 + i), 4);
    barrier_init_fence();
  }
  HeadRows<S>::prepare(ring, thread);
  synchronize();
  grid_dependency_launch();
  grid_dependency_wait();
  if (thread == 0) {
    constexpr int kSecond = S::kWeights - S::kWeightRow;
    barrier_arrive_expect(ready, S::kWeights + kSecond);
    bulk_copy(weights, p.weights, S::kWeights, ready);
    bulk_copy(weights + S::kWeights, p.weights, kSecond, ready);
  }
  synchronize_warp();
  const uint64_t operand = descriptor(weights, S::P * 16, 128);
  uint32_t phase = 0;
  for (int item = blockIdx.x + group * p.blocks; item < p.items; item += S::kGroups * p.blocks) {
    HeadStreamWork<S> work(p, item, thread);
    work.stream(operand, ready, ring, barrier, phase);
  }
#endif
}

}  // namespace espan::cuda
