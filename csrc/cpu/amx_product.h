// Tile products on the matrix unit: 16 x 32 by 32 x 16 in bf16 with fp32 accumulation.  Included
// after vec.h.
//
// The compiler does not allocate tile registers, so they are named by number.  A product takes 16
// cycles; a tile load takes 8 if its rows are cache lines and 20 if they straddle two.  While
// products execute, vector instructions have one port instead of two: 14 of them per product, as
// many as SiLU needs in a layer of 32 channels, are free if interleaved with the products a few at
// a time.

template <int kTile>
inline void load_tile(const void* from, int64_t step) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(step), "i"(kTile) : "memory");
}

template <int kTile>
inline void store_tile(float* to) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(to), "r"(int64_t{64}), "i"(kTile)
               : "memory");
}

template <int kSum, int kIn, int kWeights>
inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kIn), "i"(kWeights));
}

// All tiles are 16 rows of 64 bytes.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Configures the matrix unit and the handling of denormals for the object's lifetime.
struct Unit {
  Unit() {
    constexpr unsigned kDenormalsAreZero = 0x8040;  // FTZ and DAZ
    const TileConfig config;
    asm volatile("ldtilecfg %0" : : "m"(config));
    _mm_setcsr(before | kDenormalsAreZero);
  }
  Unit(const Unit&) = delete;
  ~Unit() {
    _mm_setcsr(before);
    asm volatile("tilerelease");  // otherwise every context switch saves 8 KB of tiles
  }
  const unsigned before = _mm_getcsr();
};

// The sums of kPixelTiles x kGroups tiles, at most 2 x 2, are in tmm0 to 3, the inputs in tmm4 and
// 5, the weights in tmm6 and 7.  The sums are written to `sums` as [group][kBlockPixels][16].
// between() is called after every kPixelTiles x kGroups products.
template <int kPixelTiles, int kGroups, bool kThree>
struct TileProduct {
  const Products& row;

  template <class Between>
  void run(int64_t x, int64_t group, float* sums, Between& between) const {
    constexpr int64_t kTerms = kThree ? 2 : 1;
    start<0>(row.init + group * row.init_plane + x * row.init_step);
    const float* weights = row.weights + group * kTerms * kTileFloats;
    for (int64_t chunk = 0; chunk < row.chunks; ++chunk) {
      const Halves& part = row.in[chunk];
      const char* in = part.data + x * part.step;
      load_weights<0>(weights);
      if constexpr (kThree) {
        load_inputs<0>(in + part.low, part.step);
        multiply<0>();
        between();
      }
      load_inputs<0>(in, part.step);
      multiply<0>();
      between();
      if constexpr (kThree) {
        load_weights<0>(weights + kTileFloats);
        multiply<0>();
        between();
      }
      weights += row.groups * kTerms * kTileFloats;
    }
    finish<0>(sums + group * kBlockPixels * kOutputs);
  }

 private:
  template <int kSum>
  void start(const float* init) const {
    if constexpr (kSum < kPixelTiles * kGroups) {
      const int64_t at =
          kSum / kPixelTiles * row.init_plane + kSum % kPixelTiles * kTilePixels * row.init_step;
      load_tile<kSum>(init + at, 4 * row.init_step);
      start<kSum + 1>(init);
    }
  }

  template <int kTile>
  static void load_inputs(const char* in, int64_t step) {
    if constexpr (kTile < kPixelTiles) {
      load_tile<4 + kTile>(in + kTile * kTilePixels * step, step);
      load_inputs<kTile + 1>(in, step);
    }
  }

  template <int kGroup>
  void load_weights(const float* weights) const {
    if constexpr (kGroup < kGroups) {
      load_tile<6 + kGroup>(weights, 64);
      load_weights<kGroup + 1>(weights + (kThree ? 2 : 1) * kTileFloats);
    }
  }

  template <int kSum>
  void multiply() const {
    if constexpr (kSum < kPixelTiles * kGroups) {
      multiply_tiles<kSum, 4 + kSum % kPixelTiles, 6 + kSum / kPixelTiles>();
      multiply<kSum + 1>();
    }
  }

  template <int kSum>
  void finish(float* sums) const {
    if constexpr (kSum < kPixelTiles * kGroups) {
      const int64_t pixel = kSum / kPixelTiles * kBlockPixels + kSum % kPixelTiles * kTilePixels;
      store_tile<kSum>(sums + pixel * kOutputs);
      finish<kSum + 1>(sums);
    }
  }
};
