// How images are cut for kernels whose warpgroups stream segments of their own.
#pragma once

#include "instances.h"

namespace espan::cuda {

// The segments of rows of the warpgroups: at most `groups` on each SM at once.  Minimises the rows
// of the busiest SM, where starting a segment takes as long as `start` rows.
struct Segments {
  int strips, segments, rows, items, blocks;

  Segments(const char* op, int64_t batch, int64_t height, int64_t width, int strip_width,
           int groups, int start) {
    constexpr int64_t kMaxWaves = 16;
    const Limits limits(op);
    strips = Tiling(op, batch, height, width, 1, strip_width).x;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int64_t each = 1; each <= kMaxWaves * groups; ++each) {
      if (each > groups && each % groups != 0) continue;
      const int64_t most = std::max<int64_t>(each * limits.sms / (strips * batch), 1);
      const int64_t tall = (height + most - 1) / most, down = (height + tall - 1) / tall;
      const int64_t all = down * strips * batch, busiest = (all + limits.sms - 1) / limits.sms;
      // Fewer than `groups` segments do not fill the tensor cores.
      const int64_t time = tall * std::max<int64_t>(busiest, groups) + busiest * start;
      if (time >= least) continue;
      least = time;
      rows = static_cast<int>(tall);
      segments = static_cast<int>(down);
      items = static_cast<int>(all);
      blocks = static_cast<int>(std::min<int64_t>(all, limits.sms));
    }
  }
};

}  // namespace espan::cuda
