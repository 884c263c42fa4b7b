// A whole SPAN block in one launch: two or three 3x3 convolutions with activations between them,
// the gate and the residual, for a tile of 28 x Height pixels per thread block.
//
// The tile of x with its halo is copied to shared memory.  Each convolution but the last writes the
// input of the next one there, for a region smaller by one pixel on each side.  So only y is
// written to device memory, but neighbouring tiles both compute the halo: 1.29 times the
// multiplications for 28 x 16.  SiLU and the sigmoid gate (point.cuh) take one tanh and 1.5 to 2.5
// other instructions per value.
//
// The activation and the gate are branches that every thread takes the same way, once for each row
// of a strip after its convolution.  With them, compilation takes about 1.5 times as long; with
// branches around whole strips it would be 3 times, and with template parameters 6 times.
#pragma once

#include "conv.cuh"

namespace espan::cuda {

struct SpabArguments {
  const uint16_t* x;
  uint16_t* y;
  uint16_t* activation;  // or null
  const uint4* weights;
  const float* bias;
  Activation function;  // for spab_kernel, as the gate is
  GateKind gate;
  int convs, height, width, tiles_x, tiles_y;
  int rows;  // per tile, for the streamed kernel
};

// P channels, Height rows per tile.  A warp computes 16 columns (of at most 32), 1/RowWarps of the
// rows, 1/ChannelWarps of the channels.  An SM is meant to hold BlocksPerSm blocks at once.
template <class T_, int P_, int Height_, int RowWarps_, int ChannelWarps_, int BlocksPerSm_>
struct Spab {
  using T = T_;
  static constexpr int P = P_, kHeight = Height_, kWidth = 28;
  static constexpr int kRowWarps = RowWarps_, kChannelWarps = ChannelWarps_;
  static constexpr int kBlocksPerSm = BlocksPerSm_;
  static constexpr int kThreads = 64 * kRowWarps * kChannelWarps;
  static constexpr int kRows = 3 * kHeight + 6;  // rows of three convolutions
  static constexpr int kTiles = P / 8 / kChannelWarps;
  // For three convolutions, Wide holds x with a halo of 3, later the second activation; Narrow
  // holds the first activation with a halo of 2.
  using Wide = Tile<P, kWidth + 6>;
  using Narrow = Tile<P, kWidth + 4>;
  static constexpr int kSharedBytes = (kHeight + 6) * Wide::kRow + (kHeight + 4) * Narrow::kRow;
  // 16-byte vectors of weights of one convolution and of the gate, and pairs of output tiles.
  static constexpr int kWeights = 9 * P * P / 8, kGateWeights = P * P / 8, kPairs = P / 16;
};

// Calls f with each instance.  An instance fits a GPU if the shared memory of an SM has room for
// BlocksPerSm blocks: 228 KB on sm_90 and sm_100, 164 KB on sm_80, 100 KB on the others.  Of those
// that fit, the host picks the one that leaves the fewest SMs idle at the end: on 132 SMs 28 x 16
// is best for 1920 x 1080, 28 x 10 for 510 x 339 (17% fewer rows) and 256 x 256 (33%), 28 x 6 for
// 128 x 128.
template <class T, class F>
void for_each_spab(F f) {
  f(Spab<T, 16, 16, 2, 1, 2>{});
  f(Spab<T, 32, 16, 2, 1, 2>{});
  f(Spab<T, 32, 16, 4, 1, 1>{});
  f(Spab<T, 32, 10, 2, 1, 2>{});
  f(Spab<T, 32, 6, 2, 1, 2>{});
  f(Spab<T, 48, 16, 4, 1, 1>{});
  f(Spab<T, 48, 8, 4, 1, 1>{});
  f(Spab<T, 64, 16, 2, 2, 1>{});
  f(Spab<T, 64, 6, 2, 2, 1>{});
}

// The warp's part of the block.
template <class S>
struct SpabWork : Part<S> {
  using Base = Part<S>;
  using Base::at, Base::channel, Base::column_warp, Base::element, Base::first_pair;
  using Base::inside, Base::left, Base::row_warp, Base::top;
  const SpabArguments& p;

  __device__ __forceinline__ SpabWork(const SpabArguments& p, int block, int thread)
      : Base(p.height, p.width, p.tiles_x, p.tiles_y, block, thread), p(p) {}

  // The warp's strip of a convolution.
  template <int kStripRows, class In>
  __device__ __forceinline__ Strip<kStripRows, S::kTiles> convolve(uint32_t in, int conv,
                                                                   const Share& rows,
                                                                   const Share& columns) const {
    Strip<kStripRows, S::kTiles> strip;
    strip.fill(p.bias + conv * S::P + first_pair() * 16, at);
    strip.template convolve<typename S::T, S::P, In::kRow / In::kPixel>(
        in + rows.begin * In::kRow, columns.begin,
        p.weights + conv * S::kWeights + first_pair() * 32, S::kPairs, at);
    return strip;
  }

  // A convolution with SiLU from `in` to `out`, for the tile and kHalo pixels around it.  Outside
  // the image the result is zero, as the padding of the next convolution.
  template <int kHalo, class In, class Out>
  __device__ __forceinline__ void activate(uint32_t in, uint32_t out, int conv,
                                           bool with_activation) const {
    constexpr int kRows = S::kHeight + 2 * kHalo, kColumns = S::kWidth + 2 * kHalo;
    constexpr int kStripRows = (kRows + S::kRowWarps - 1) / S::kRowWarps;
    const Share rows(row_warp, kStripRows, kRows), columns(column_warp, 16, kColumns);
    const auto strip = convolve<kStripRows, In>(in, conv, rows, columns);
    // Computed anew, these need no registers during the convolution.
    const SpabWork now(p, recompute(blockIdx.x), thread_again());
    now.template store<kHalo, kRows, kColumns, kStripRows, Out>(strip, out, with_activation);
  }

  // The activation of a strip, stored to `out` and, if `with_activation`, to memory.
  template <int kHalo, int kRows, int kColumns, int kStripRows, class Out>
  __device__ __forceinline__ void store(const Strip<kStripRows, S::kTiles>& strip, uint32_t out,
                                        bool with_activation) const {
    constexpr int kGroup = Group<S::P>::kTiles;
    const Share rows(row_warp, kStripRows, kRows), columns(column_warp, 16, kColumns);
#pragma unroll
    for (int r = 0; r < kStripRows; ++r) {
      const int row = rows.begin + r, y = top - kHalo + row;
      uint32_t pairs[2][S::kTiles];
      const auto compute = [&](auto function) {
#pragma unroll
        for (int high = 0; high < 2; ++high)
#pragma unroll
          for (int j = 0; j < S::kTiles; ++j)
            pairs[high][j] =
                activated<typename S::T, decltype(function)::value>(strip.pair(r, j, high));
      };
      if (p.function == Activation::silu)
        compute(std::integral_constant<Activation, Activation::silu>{});
      else if (p.function == Activation::relu)
        compute(std::integral_constant<Activation, Activation::relu>{});
      else
        compute(std::integral_constant<Activation, Activation::mish>{});
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int column = columns.begin + at.pixel + 8 * high, x = left - kHalo + column;
        const bool own = row >= rows.own && column >= columns.own;
        const bool real = inside(y, x);
        const bool centre = row >= kHalo && row < kHalo + S::kHeight && column >= kHalo &&
                            column < kHalo + S::kWidth;
#pragma unroll
        for (int g = 0; g < S::kTiles / kGroup; ++g) {
          Lane<kGroup> lane;
#pragma unroll
          for (int j = 0; j < kGroup; ++j) lane.pair[j] = real ? pairs[high][g * kGroup + j] : 0;
          const int c = channel(g);
          store_shared(out + row * Out::kRow + Out::offset(column, c / 8) + c % 8 * 2,
                       lane.vector(), own);
          if (with_activation && own && real && centre)
            store_global(
                reinterpret_cast<typename Lane<kGroup>::Vector*>(p.activation + element(y, x, c)),
                lane.vector());
        }
      }
    }
  }

  // The gate's 1x1 convolution of a strip of h.  The accumulators of a row of h are its A.
  template <int kStripRows>
  struct Gate {
    static constexpr int kSteps = S::P / 16, kOwn = S::kTiles / 2;
    static constexpr bool kShares = S::kChannelWarps == 2;  // two warps share the channels
    static constexpr int kExchanged = kShares ? kStripRows * kOwn * 16 * S::kThreads : 0;
    using H = Strip<kStripRows, S::kTiles>;
    uint32_t others;  // where h of the other channels is

    // Warps that share the channels exchange h through the memory at `exchange`, which any warp may
    // have used until now.
    __device__ __forceinline__ void prepare(const SpabWork& work, const H& h, uint32_t exchange,
                                            int thread) {
      if constexpr (kShares) {
        others = exchange + (thread ^ (S::kThreads / 2)) * 16;
        synchronize();
#pragma unroll
        for (int r = 0; r < kStripRows; ++r)
#pragma unroll
          for (int k = 0; k < kOwn; ++k) {
            uint32_t a[4];
            load(a, h, r, k);
            store_shared(exchange + thread * 16 + (r * kOwn + k) * 16 * S::kThreads,
                         make_uint4(a[0], a[1], a[2], a[3]), true);
          }
        synchronize();
      }
    }
    // A of step k of the warp's own channels.
    static __device__ __forceinline__ void load(uint32_t (&a)[4], const H& h, int r, int k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 v = h.pair(r, 2 * k + i / 2, i % 2);
        a[i] = S::T::pack(v.x, v.y);
      }
    }
    __device__ __forceinline__ Strip<1, S::kTiles> row(const SpabWork& work, const H& h,
                                                       int r) const {
      Strip<1, S::kTiles> g;
      g.fill(work.p.bias + work.p.convs * S::P + work.first_pair() * 16, work.at);
      const uint4* from = work.p.weights + work.p.convs * S::kWeights + work.first_pair() * 32;
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        // The steps of the warp's own channels come first.
        const uint4* step = from + (k + work.first_pair()) % kSteps * S::kPairs * 32;
        uint4 weights[kOwn];
#pragma unroll
        for (int i = 0; i < kOwn; ++i) weights[i] = load_global(step + i * 32 + work.at.lane);
        uint32_t a[4];
        if (k < kOwn) {
          load(a, h, r, k);
        } else {
          uint4 v;
          load_shared(others + (r * kOwn + k - kOwn) * 16 * S::kThreads, v);
          a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
        }
        g.template multiply_row<typename S::T>(0, a, weights);
      }
      return g;
    }
  };

  // The last convolution, gate and residual, from `in` to y.  Each lane copies its own part of x to
  // `narrow` while the convolution runs, so the copy needs no barrier.
  template <class In>
  __device__ __forceinline__ void finish(uint32_t in, uint32_t narrow, int conv, int thread) const {
    using T = typename S::T;
    constexpr int kStripRows = (S::kHeight + S::kRowWarps - 1) / S::kRowWarps;
    constexpr int kGroup = Group<S::P>::kTiles, kGroups = S::kTiles / kGroup;
    constexpr int kBytes = Group<S::P>::kBytes;
    using Vector = typename Lane<kGroup>::Vector;
    static_assert(kStripRows * 2 * kGroups * kBytes * S::kThreads <=
                  (S::kHeight + 4) * S::Narrow::kRow);
    static_assert(Gate<kStripRows>::kExchanged <= (S::kHeight + 2) * In::kRow);
    const Share rows(row_warp, kStripRows, S::kHeight), columns(column_warp, 16, S::kWidth);
    const uint32_t residual = narrow + thread * kBytes;
    const bool plain = p.gate == GateKind::none || p.gate == GateKind::act;
    const bool learned = p.gate == GateKind::linear || p.gate == GateKind::tanh;

    // Calls f(high, g, index in x and y) for each of the lane's vectors in row r of the strip.
    const auto for_row = [&](int r, int tile_top, int tile_left, auto f) {
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int row = rows.begin + r, column = columns.begin + at.pixel + 8 * high;
        const int y = tile_top + row, x = tile_left + column;
        const bool own = row >= rows.own && column >= columns.own && y < p.height && x < p.width;
#pragma unroll
        for (int g = 0; g < kGroups; ++g)
          if (own) f(high, g, element(y, x, channel(g)));
      }
    };
    // The address of such a vector in `residual`.
    const auto slot = [&](int r, int high, int g) {
      return residual + ((r * 2 + high) * kGroups + g) * S::kThreads * kBytes;
    };
    if (!plain)
#pragma unroll
      for (int r = 0; r < kStripRows; ++r)
        for_row(r, top, left, [&](int high, int g, int64_t i) {
          copy_async<kBytes>(slot(r, high, g), p.x + i, true);
        });
    const auto strip = convolve<kStripRows, In>(in, conv, rows, columns);
    wait_for_copies();
    Gate<kStripRows> gate;
    if (learned) gate.prepare(*this, strip, in, thread);
    const int tile_top = recompute(top), tile_left = recompute(left);
#pragma unroll
    for (int r = 0; r < kStripRows; ++r) {
      uint32_t y[2][S::kTiles];
      // Calls f(h, x, tile, high) for each pair of y.  Pixels that are not stored have no x.
      const auto compute = [&](auto f) {
#pragma unroll
        for (int high = 0; high < 2; ++high)
#pragma unroll
          for (int g = 0; g < kGroups; ++g) {
            Vector x;
            load_shared(slot(r, high, g), x);
#pragma unroll
            for (int j = 0; j < kGroup; ++j) {
              const int tile = g * kGroup + j;
              y[high][tile] =
                  f(strip.pair(r, tile, high), T::unpack(Lane<kGroup>(x).pair[j]), tile, high);
            }
          }
      };
      if (p.gate == GateKind::sigmoid) {
        compute([](float2 h, float2 x, int, int) {
          return gated<T, Activation::silu, GateKind::sigmoid>(h, x, x);
        });
      } else if (learned) {
        const Strip<1, S::kTiles> g = gate.row(*this, strip, r);
        compute([&](float2 h, float2 x, int tile, int high) {
          const float2 v = g.pair(0, tile, high);
          return p.gate == GateKind::tanh ? gated<T, Activation::relu, GateKind::tanh>(h, x, v)
                                          : gated<T, Activation::relu, GateKind::linear>(h, x, v);
        });
      } else {
#pragma unroll
        for (int tile = 0; tile < S::kTiles; ++tile)
#pragma unroll
          for (int high = 0; high < 2; ++high) {
            const float2 h = strip.pair(r, tile, high);
            // `act` comes with ReLU only.
            y[high][tile] =
                p.gate == GateKind::act ? activated<T, Activation::relu>(h) : T::pack(h.x, h.y);
          }
      }
      for_row(r, tile_top, tile_left, [&](int high, int g, int64_t i) {
        Lane<kGroup> lane;
#pragma unroll
        for (int j = 0; j < kGroup; ++j) lane.pair[j] = y[high][g * kGroup + j];
        store_global(reinterpret_cast<Vector*>(p.y + i), lane.vector());
      });
    }
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocksPerSm) spab_kernel(const SpabArguments p) {
  using Wide = typename S::Wide;
  using Narrow = typename S::Narrow;
  const uint32_t wide = shared_memory(), narrow = wide + (S::kHeight + 6) * Wide::kRow;
  const int thread = threadIdx.x;
  // Nothing needs to stay in registers from one convolution to the next.
  const auto work = [&] { return SpabWork<S>(p, recompute(blockIdx.x), recompute(thread)); };
  const SpabWork<S> at(p, blockIdx.x, thread);
  const uint16_t* image = p.x + at.image * S::P;
  const bool three = p.convs == 3;
  if (three)
    load_tile<S::P, S::kWidth + 6, S::kThreads>(wide, image, at.top - 3, at.left - 3,
                                                S::kHeight + 6, p.height, p.width, thread);
  else
    load_tile<S::P, S::kWidth + 4, S::kThreads>(narrow, image, at.top - 2, at.left - 2,
                                                S::kHeight + 4, p.height, p.width, thread);
  wait_for_copies();
  synchronize();
  if (three) {
    work().template activate<2, Wide, Narrow>(wide, narrow, 0, p.activation != nullptr);
    synchronize();
  }
  work().template activate<1, Narrow, Wide>(narrow, wide, three ? 1 : 0,
                                            !three && p.activation != nullptr);
  synchronize();
  work().template finish<Wide>(wide, narrow, three ? 2 : 1, thread);
}

}  // namespace espan::cuda
